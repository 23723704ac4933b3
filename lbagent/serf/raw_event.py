"""One event as Serf passed it, and its form as a spool record.

Separate from `events`: a handler that only stores its event needs nothing else.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Mapping

RECORD_LIMIT = 64 * 1024
"""Maximum bytes of a spool record; longer member events are split between lines."""

STDIN_LIMIT = 16 * 1024 * 1024
"""Maximum bytes of stdin; 20,000 members with full tags are below it."""

_MAGIC = b"lbagent 1"
_FIELDS = 7
_FIELD_LIMIT = 1024
_MEMBER_EVENTS = frozenset({"member-join", "member-leave", "member-failed", "member-update", "member-reap"})


_Fields = namedtuple("_Fields", "id at kind name ltime self_name payload")  # noqa: PYI024  # `typing` takes longer to import than an event to store


class RawEvent(_Fields):
    """One event, not validated yet."""

    id: str
    """Identifies the event, so that applying a record twice has no further effect."""
    at: int
    """Arrival, in milliseconds since the epoch."""
    kind: str
    """SERF_EVENT: member-join, user, query, …"""
    name: str
    """SERF_USER_EVENT or SERF_QUERY_NAME."""
    ltime: int | None
    self_name: str
    payload: bytes

    __slots__ = ()

    @property
    def is_member_event(self) -> bool:
        """Whether stdin has one line per member."""
        return self.kind in _MEMBER_EVENTS

    @property
    def is_relevant(self) -> bool:
        """Whether lbagent handles this event; others are ignored and not stored."""
        if self.kind == "user":
            return self.name in ("pause", "resume")
        if self.kind == "query":
            return self.name in ("pause", "resume", "lbagent-forget", "lbagent-status")
        return self.is_member_event

    def split_records(self) -> Iterator[bytes]:
        """Yield the event as spool records of at most RECORD_LIMIT bytes; a longer line is dropped."""
        for number, payload in enumerate(self._split_payload()):
            ltime = "" if self.ltime is None else str(self.ltime)
            words = (f"{self.id}{number:04x}", str(self.at), self.kind, self.name, ltime, self.self_name)
            head = [word.encode("utf-8", "surrogateescape")[:_FIELD_LIMIT] for word in words]
            yield b"\0".join([_MAGIC, *head, payload])

    def _split_payload(self) -> Iterator[bytes]:
        room = RECORD_LIMIT - (_FIELDS + 1) * _FIELD_LIMIT
        if len(self.payload) <= room or not self.is_member_event:
            yield self.payload[:room]
            return
        piece = bytearray()
        for line in _split_lines(self.payload):
            if len(piece) + len(line) > room:
                yield bytes(piece)
                piece.clear()
            if len(line) <= room:
                piece += line
        yield bytes(piece)


def read_handler_event(environ: Mapping[bytes, bytes], stdin: bytes, at: int, identity: str) -> RawEvent:
    """Return the event that Serf describes in `environ` and on stdin (docs/reference/events-and-queries.md).

    `at` is the arrival in milliseconds since the epoch.
    """
    kind = _decode(environ.get(b"SERF_EVENT", b""))
    clock = {"user": b"USER", "query": b"QUERY"}.get(kind, b"")
    name = environ.get(b"SERF_USER_EVENT" if kind == "user" else b"SERF_QUERY_NAME", b"") if clock else b""
    ltime = environ.get(b"SERF_" + clock + b"_LTIME", b"") if clock else b""
    return RawEvent(
        identity, at, kind, _decode(name), _parse_ltime(ltime), _decode(environ.get(b"SERF_SELF_NAME", b"")), stdin
    )


def parse_record(record: bytes) -> RawEvent:
    """Parse a spool record. Raises ValueError."""
    magic, *head = record.split(b"\0", _FIELDS - 1)
    if magic != _MAGIC or len(head) != _FIELDS - 1:
        raise ValueError("not a spool record")
    identity, at, kind, name, ltime, rest = head
    self_name, separator, payload = rest.partition(b"\0")
    if not separator or not (at.isdigit() and len(at) < 16):  # noqa: PLR2004  # beyond any epoch in ms
        raise ValueError("not a spool record")
    return RawEvent(
        _decode(identity), int(at), _decode(kind), _decode(name), _parse_ltime(ltime), _decode(self_name), payload
    )


def _split_lines(payload: bytes) -> list[bytes]:
    # bytes.splitlines() also splits at a lone CR, which Serf passes through in names.
    return [line + b"\n" for line in payload.split(b"\n")[:-1]]


def _parse_ltime(word: bytes) -> int | None:
    return int(word) if word.isdigit() and len(word) < 20 else None  # noqa: PLR2004  # Serf's are 64 bits wide


def _decode(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")
