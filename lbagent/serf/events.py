r"""Parse what Serf passes to its handler: member events, commands and queries.

Serf's contract: stdin has one line `NAME \t ADDR \t ROLE \t k=v,k=v` per member, or the payload of a user event or
query as it was sent. Lines are split at LF and fields at TAB only; Serf escapes nothing.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from lbagent.names import NAME, NAME_RULE, canonical_address, format_count, make_printable
from lbagent.serf.raw_event import RawEvent

USER, QUERY, TYPED = "user", "query", "typed"
"""The clocks that order commands. One typed at an operator's prompt has no LTime."""

REASON_LIMIT = 200
REASON_BYTES = 400
"""Limit of a reason that is sent: Serf accepts 1,024 bytes for a whole query, with the names of the nodes asked."""

QUERIES = {"pause": "pause", "resume": "resume", "forget": "lbagent-forget"}
"""The Serf query of each verb that goes to all load balancers."""

_SENDER = re.compile(rf"(?:{NAME.pattern}@)?{NAME.pattern}")
_MINUTE = 60
_UNITS = {"s": 1, "m": _MINUTE, "h": 60 * _MINUTE, "d": 24 * 60 * _MINUTE}
_LONGEST = 10 * 365 * 24 * 60 * _MINUTE
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
    """The load balancer where an operator typed it, or USER@NAME from its web page, as the sender claims."""
    force: bool = False
    duration: int | None = None
    """Seconds from the time it was sent, if it has `for=` rather than `until=`."""


class Malformed(NamedTuple):
    """A known event with an invalid payload."""

    why: str


class MemberLine(NamedTuple):
    """One member of a member event. Name and address are valid."""

    name: str
    address: str
    role: str
    tags: dict[str, str]


class MemberEvent(NamedTuple):
    """A member event: join, leave, failed, update or reap, with all its valid members."""

    kind: str
    members: tuple[MemberLine, ...]
    refused: tuple[str, ...]
    exact: bool = False
    """Whether tags are unambiguous: read from JSON, not from the `k=v,k=v` of stdin."""


class StatusQuery(NamedTuple):
    """The query `lbagent-status` and its arguments."""

    words: tuple[str, ...]


class Ignored(NamedTuple):
    """An event that is not for lbagent."""


Event = MemberEvent | Command | StatusQuery | Malformed | Ignored


def parse_event(raw: RawEvent) -> Event:
    """Parse an event. Never raises, whatever its bytes."""
    if not raw.is_relevant and raw.kind != TYPED:
        return Ignored()
    text = raw.payload.decode("utf-8", "surrogateescape")
    if raw.is_member_event:
        return _parse_member_event(raw.kind, text, raw.self_name)
    return StatusQuery(tuple(text.split())) if raw.name == "lbagent-status" else parse_command(raw, text)


def fold_tags_as_stdin(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags as read from stdin, where a comma inside a value looks like the start of the next tag."""
    return _parse_tags(",".join(f"{key}={value}" for key, value in tags.items()))


def _parse_member_event(kind: str, text: str, self_name: str) -> MemberEvent:
    members: list[MemberLine] = []
    refused: list[str] = []
    # Drop what follows the last LF: an agent that stops may pass an incomplete line.
    for line in text.split("\n")[:-1]:
        fields = line.split("\t")
        if fields[0] == self_name and self_name:
            continue
        member = _parse_member(fields)
        if isinstance(member, str):
            refused.append(f"{kind}: {member}")
        else:
            members.append(member)
    return MemberEvent(kind, tuple(members), tuple(refused))


def _parse_member(fields: list[str]) -> MemberLine | str:
    if len(fields) != 4:  # noqa: PLR2004  # NAME, ADDR, ROLE, TAGS
        return f"invalid line {chr(9).join(fields)[:40]!r}: {format_count(len(fields), 'field')} instead of 4"
    name, address, role, tags = fields
    if not NAME.fullmatch(name):
        return f"invalid node name {name[:80]!r}; use {NAME_RULE}"
    canonical = canonical_address(address)
    if canonical is None:
        return f"node {name}: {address[:60]!r} is not an IP address"
    return MemberLine(name, canonical, role, _parse_tags(tags))


def _parse_tags(text: str) -> dict[str, str]:
    # Commas and `=` in values are not escaped, so a key that appears twice is ambiguous and dropped. `role` has a field
    # of its own, which no other tag can forge.
    tags: dict[str, str] = {}
    doubled = {"role"}
    for pair in text.split(",") if text else ():
        key, _, value = pair.partition("=")
        if key in tags:
            doubled.add(key)
        tags[key] = value
    for key in doubled:
        tags.pop(key, None)
    return tags


def parse_command(raw: RawEvent, text: str) -> Command | Malformed:
    """Parse the command in the payload `text`."""
    verb = raw.name.removeprefix("lbagent-")
    text = text.removesuffix("\n").removesuffix("\r")
    if any(character < " " and character != "\t" for character in text):
        return Malformed(f"{verb}: the payload contains control characters")
    words, reason = _split_reason([word for word in text.replace("\t", " ").split(" ") if word])
    times = [word for word in words if word.startswith(("until=", "for="))]
    sender = next((word.removeprefix("by=") for word in words if word.startswith("by=")), None)
    plain = [word for word in words if word not in times and not word.startswith("by=")]
    force = verb == "forget" and plain[-1:] == ["force"]
    plain = plain[:-1] if force else plain
    if not plain or len(plain) > 3 or not (sender is None or _SENDER.fullmatch(sender)):  # noqa: PLR2004  # NAME, ADDRESS, ROLE
        return Malformed(f"{verb}: invalid payload {text[:80]!r}; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]")
    now = raw.at // 1000
    found = _parse_end(times)
    if isinstance(found, str):
        return Malformed(f"{verb}: {found}")
    until, duration = found
    if until is not None and until <= now and raw.kind != USER:
        # Serf replays user events, and a pause that has ended is worth knowing. Queries and typed commands arrive at
        # once.
        return Malformed(f"{verb}: {times[0]!r} is {now - until} s in the past here; compare the clocks of both hosts")
    address = canonical_address(plain[1]) if len(plain) > 1 else None
    # Only an identical command may be taken for a replay.
    digest = _checksum(f"{raw.name} {text}")
    end = until if duration is None else now + duration
    return Command(verb, raw.kind, raw.ltime, plain[0], address, end, reason, digest, sender or "", force, duration)


def parse_duration(text: str) -> int | None:
    """Return the seconds in `90s`, `15m`, `2h` or `7d`; None for anything else."""
    digits, unit = text[:-1], text[-1:]
    if unit in _UNITS and digits.isascii() and digits.isdigit() and len(digits) <= _DURATION_DIGITS:
        return int(digits) * _UNITS[unit]
    return None


def parse_time(text: str) -> int | None:
    """Return the seconds of a time that an operator enters, from 1 s to ten years; None for anything else."""
    seconds = parse_duration(text)
    return seconds if seconds and seconds <= _LONGEST else None


def can_send_reason(reason: str) -> bool:
    """Return whether a reason has printable characters only, and few enough for a query."""
    size = len(reason.encode("utf-8", "surrogateescape"))
    return reason.isprintable() and len(reason) <= REASON_LIMIT and size <= REASON_BYTES


def _split_reason(words: list[str]) -> tuple[list[str], str]:
    at = next((number for number, word in enumerate(words) if word.startswith("reason=")), len(words))
    reason = " ".join(words[at:]).removeprefix("reason=")[:REASON_LIMIT]
    # It is printed to terminals and logs: keep printable Unicode, replace escape sequences.
    return words[:at], make_printable(reason)


def _parse_end(words: list[str]) -> tuple[int | None, int | None] | str:
    """Return the epoch seconds of `until=` and the seconds of `for=`, or why they are invalid."""
    if len(words) > 1:
        return f"both {words[0]!r} and {words[1]!r}; give one of them"
    for word in words:
        key, _, value = word.partition("=")
        if key == "until" and value.isascii() and value.isdigit() and len(value) <= _EPOCH_DIGITS:
            return int(value), None
        seconds = parse_duration(value) if key == "for" else None
        if not seconds:
            return f"invalid time {word[:40]!r}; use until=EPOCH, or for= with a time such as 90s, 15m, 2h or 7d"
        return None, seconds
    return None, None


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"
