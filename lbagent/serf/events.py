r"""From what Serf handed over to an event that means something: bytes in, values out.

The handler contract is Serf's: one line `NAME \t ADDR \t ROLE \t k=v,k=v` per member, the payload of a
user event or query as it was sent. Split at LF and TAB only: nothing else is escaped by Serf.
"""

from __future__ import annotations

from typing import NamedTuple

from lbagent.names import NAME, canonical_address
from lbagent.serf.raw import Raw

USER, QUERY, TYPED = "user", "query", "typed"
"""The clocks a pause or resume may be ordered by; typed at an operator's prompt, it has none."""

REASON_LIMIT = 200
_MINUTE = 60
_UNITS = {"s": 1, "m": _MINUTE, "h": 60 * _MINUTE, "d": 24 * 60 * _MINUTE}
_DURATION_DIGITS = 7
_EPOCH_DIGITS = 11


class MemberLine(NamedTuple):
    """One member as a member event describes it: name and address are well-formed."""

    name: str
    address: str
    role: str
    tags: dict[str, str]


class MemberEvent(NamedTuple):
    """member-join, -leave, -failed, -update or -reap, with every line that could be used."""

    kind: str
    members: tuple[MemberLine, ...]
    refused: tuple[str, ...]


class Command(NamedTuple):
    """A pause or resume of one node."""

    verb: str
    clock: str
    ltime: int | None
    name: str
    address: str | None
    until: int | None
    reason: str
    digest: str


class Malformed(NamedTuple):
    """An event lbagent knows, whose payload nobody could act upon."""

    why: str


class StatusQuery(NamedTuple):
    """The query `lbagent-status`."""


class Ignored(NamedTuple):
    """Somebody else's event."""


Event = MemberEvent | Command | StatusQuery | Malformed | Ignored


def parse(raw: Raw) -> Event:
    """What the event says; never raises, whatever the bytes."""
    if not raw.wanted and raw.kind != TYPED:
        return Ignored()
    text = raw.payload.decode("utf-8", "surrogateescape")
    if raw.of_members:
        return _members(raw.kind, text, raw.self_name)
    return StatusQuery() if raw.name == "lbagent-status" else _command(raw, text)


def duration(text: str) -> int | None:
    """Seconds in `90s`, `15m`, `2h` or `7d`; None for anything else."""
    digits, unit = text[:-1], text[-1:]
    if unit in _UNITS and digits.isascii() and digits.isdigit() and len(digits) <= _DURATION_DIGITS:
        return int(digits) * _UNITS[unit]
    return None


def _members(kind: str, text: str, self_name: str) -> MemberEvent:
    members: list[MemberLine] = []
    refused: list[str] = []
    # What follows the last LF was cut off: an agent that stops hands over half a line, or none.
    for line in text.split("\n")[:-1]:
        fields = line.split("\t")
        if fields[0] == self_name and self_name:
            continue
        member = _member(fields)
        if isinstance(member, str):
            refused.append(f"{kind}: {member}")
        else:
            members.append(member)
    return MemberEvent(kind, tuple(members), tuple(refused))


def _member(fields: list[str]) -> MemberLine | str:
    if len(fields) != 4:  # noqa: PLR2004  # NAME, ADDR, ROLE, TAGS
        return f"a line of {len(fields)} fields instead of 4, beginning {fields[0][:40]!r}"
    name, address, role, tags = fields
    if not NAME.fullmatch(name):
        return f"node name {name[:80]!r} is not {NAME.pattern}"
    canonical = canonical_address(address)
    if canonical is None:
        return f"node {name}: {address[:60]!r} is not an IP address"
    return MemberLine(name, canonical, role, _tags(tags))


def _tags(text: str) -> dict[str, str]:
    # Commas and `=` inside values are not escaped, so a name that comes twice proves nothing: dropped.
    # `role` has a field of its own, which no other tag can forge.
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


def _command(raw: Raw, text: str) -> Command | Malformed:
    text = text.removesuffix("\n").removesuffix("\r")
    if any(character < " " and character != "\t" for character in text):
        return Malformed(f"{raw.name}: the payload holds control characters")
    words = [word for word in text.replace("\t", " ").split(" ") if word]
    head, reason = _split_reason(words)
    plain = [word for word in head if not word.startswith(("until=", "for="))]
    if not plain or len(plain) > 3:  # noqa: PLR2004  # NAME, ADDRESS, ROLE
        return Malformed(f"{raw.name}: the payload {text[:80]!r} is not NAME [ADDRESS] [ROLE] [for=2h] [reason=…]")
    until = _until([word for word in head if word not in plain], raw.at // 1000)
    if isinstance(until, str):
        return Malformed(f"{raw.name}: {until}")
    address = canonical_address(plain[1]) if len(plain) > 1 else None
    # Old enough to be taken for a replay is only what is the same to the letter.
    digest = f"{raw.name} {text}"
    return Command(raw.name, raw.kind, raw.ltime, plain[0], address, until, reason, _checksum(digest))


def _split_reason(words: list[str]) -> tuple[list[str], str]:
    at = next((number for number, word in enumerate(words) if word.startswith("reason=")), len(words))
    reason = " ".join(words[at:]).removeprefix("reason=")[:REASON_LIMIT]
    # Printed to terminals and into logs later; a Japanese reason is printable, an escape sequence is not.
    return words[:at], "".join(character if character.isprintable() else "?" for character in reason)


def _until(words: list[str], now: int) -> int | str | None:
    if len(words) > 1:
        return f"{words[1]!r} after {words[0]!r}: give one of until= and for="
    for word in words:
        key, _, value = word.partition("=")
        if key == "until" and value.isascii() and value.isdigit() and len(value) <= _EPOCH_DIGITS:
            return int(value)
        seconds = duration(value) if key == "for" else None
        if seconds is None:
            return f"{word[:40]!r} is not until=EPOCH or for=90s, 15m, 2h, 7d"
        return now + seconds
    return None


def _checksum(text: str) -> str:
    import zlib  # noqa: PLC0415  # only commands need it

    return f"{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"
