"""What a load balancer is told to do about one node, as the payload of an event says it: pause, resume, forget."""

from __future__ import annotations

from lbagent.names import NAME, canonical_address, printable
from lbagent.serf.raw import Raw
from lbagent.tuples import NamedTuple

USER, QUERY, TYPED = "user", "query", "typed"
"""The clocks a command may be ordered by; typed at an operator's prompt, it has none."""

REASON_LIMIT = 200
_MINUTE = 60
_UNITS = {"s": 1, "m": _MINUTE, "h": 60 * _MINUTE, "d": 24 * 60 * _MINUTE}
_DURATION_DIGITS = 7
_EPOCH_DIGITS = 11


class Command(NamedTuple):
    """A pause, resume or forget of one node."""

    verb: str
    clock: str
    ltime: int | None
    name: str
    address: str | None
    until: int | None
    reason: str
    digest: str
    by: str = ""
    """The load balancer at which an operator typed it: what the sender says, no more."""
    force: bool = False
    lasting: int | None = None
    """Seconds from when it was sent, where it says `for=` and not `until=`."""


class Malformed(NamedTuple):
    """An event lbagent knows, whose payload nobody could act upon."""

    why: str


def command(raw: Raw, text: str) -> Command | Malformed:
    """The command in the payload `text`."""
    verb = raw.name.removeprefix("lbagent-")
    text = text.removesuffix("\n").removesuffix("\r")
    if any(character < " " and character != "\t" for character in text):
        return Malformed(f"{verb}: the payload holds control characters")
    words, reason = _split_reason([word for word in text.replace("\t", " ").split(" ") if word])
    times = [word for word in words if word.startswith(("until=", "for="))]
    senders = [word.removeprefix("by=") for word in words if word.startswith("by=")]
    plain = [word for word in words if word not in times and not word.startswith("by=")]
    force = verb == "forget" and plain[-1:] == ["force"]
    plain = plain[:-1] if force else plain
    if not plain or len(plain) > 3 or not all(map(NAME.fullmatch, senders[:1])):  # noqa: PLR2004  # NAME, ADDRESS, ROLE
        return Malformed(f"{verb}: the payload {text[:80]!r} is not NAME [ADDRESS] [ROLE] [for=2h] [reason=…]")
    now = raw.at // 1000
    found = _end(times)
    if isinstance(found, str):
        return Malformed(f"{verb}: {found}")
    until, lasting = found
    if until is not None and until <= now and raw.kind != USER:
        # Serf replays user events: what has ended since is worth knowing. Queries and typed commands come at once.
        return Malformed(f"{verb}: {times[0]!r} is past here, by {now - until} s: see the clocks")
    address = canonical_address(plain[1]) if len(plain) > 1 else None
    # Old enough to be taken for a replay is only what is the same to the letter.
    digest = _checksum(f"{raw.name} {text}")
    end = until if lasting is None else now + lasting
    by = "".join(senders[:1])
    return Command(verb, raw.kind, raw.ltime, plain[0], address, end, reason, digest, by, force, lasting)


def duration(text: str) -> int | None:
    """Seconds in `90s`, `15m`, `2h` or `7d`; None for anything else."""
    digits, unit = text[:-1], text[-1:]
    if unit in _UNITS and digits.isascii() and digits.isdigit() and len(digits) <= _DURATION_DIGITS:
        return int(digits) * _UNITS[unit]
    return None


def _split_reason(words: list[str]) -> tuple[list[str], str]:
    at = next((number for number, word in enumerate(words) if word.startswith("reason=")), len(words))
    reason = " ".join(words[at:]).removeprefix("reason=")[:REASON_LIMIT]
    # Printed to terminals and into logs later; a Japanese reason is printable, an escape sequence is not.
    return words[:at], printable(reason)


def _end(words: list[str]) -> tuple[int | None, int | None] | str:
    """The moment in `until=` (epoch seconds) and the seconds in `for=`, or why there is neither."""
    if len(words) > 1:
        return f"{words[1]!r} after {words[0]!r}: give one of until= and for="
    for word in words:
        key, _, value = word.partition("=")
        if key == "until" and value.isascii() and value.isdigit() and len(value) <= _EPOCH_DIGITS:
            return int(value), None
        seconds = duration(value) if key == "for" else None
        if not seconds:
            return f"{word[:40]!r} is not until=EPOCH or for=90s, 15m, 2h, 7d"
        return None, seconds
    return None, None


def _checksum(text: str) -> str:
    import zlib  # noqa: PLC0415  # only commands need it

    return f"{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"
