r"""From what Serf handed over to an event that means something: bytes in, values out.

The handler contract is Serf's: one line `NAME \t ADDR \t ROLE \t k=v,k=v` per member, the payload of a
user event or query as it was sent. Split at LF and TAB only: nothing else is escaped by Serf.
"""

from __future__ import annotations

from collections.abc import Mapping

from lbagent.names import NAME, canonical_address, make_printable
from lbagent.serf.raw_event import RawEvent
from lbagent.system.tuples import NamedTuple

# --- command ---------------------------------------------------------------------------------------------

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


def parse_command(raw: RawEvent, text: str) -> Command | Malformed:
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


def parse_duration(text: str) -> int | None:
    """Seconds in `90s`, `15m`, `2h` or `7d`; None for anything else."""
    digits, unit = text[:-1], text[-1:]
    if unit in _UNITS and digits.isascii() and digits.isdigit() and len(digits) <= _DURATION_DIGITS:
        return int(digits) * _UNITS[unit]
    return None


def _split_reason(words: list[str]) -> tuple[list[str], str]:
    at = next((number for number, word in enumerate(words) if word.startswith("reason=")), len(words))
    reason = " ".join(words[at:]).removeprefix("reason=")[:REASON_LIMIT]
    # Printed to terminals and into logs later; a Japanese reason is printable, an escape sequence is not.
    return words[:at], make_printable(reason)


def _end(words: list[str]) -> tuple[int | None, int | None] | str:
    """The moment in `until=` (epoch seconds) and the seconds in `for=`, or why there is neither."""
    if len(words) > 1:
        return f"{words[1]!r} after {words[0]!r}: give one of until= and for="
    for word in words:
        key, _, value = word.partition("=")
        if key == "until" and value.isascii() and value.isdigit() and len(value) <= _EPOCH_DIGITS:
            return int(value), None
        seconds = parse_duration(value) if key == "for" else None
        if not seconds:
            return f"{word[:40]!r} is not until=EPOCH or for=90s, 15m, 2h, 7d"
        return None, seconds
    return None, None


def _checksum(text: str) -> str:
    import zlib  # noqa: PLC0415  # only commands need it

    return f"{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"


# --- events ----------


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
    exact: bool = False
    """Whether tags are certain: read from JSON, not from the `k=v,k=v` of stdin."""


class StatusQuery(NamedTuple):
    """The query `lbagent-status`, and the words it came with."""

    words: tuple[str, ...]


class Ignored(NamedTuple):
    """Somebody else's event."""


Event = MemberEvent | Command | StatusQuery | Malformed | Ignored


def parse_event(raw: RawEvent) -> Event:
    """What the event says; never raises, whatever the bytes."""
    if not raw.is_relevant and raw.kind != TYPED:
        return Ignored()
    text = raw.payload.decode("utf-8", "surrogateescape")
    if raw.is_member_event:
        return _members(raw.kind, text, raw.self_name)
    return StatusQuery(tuple(text.split())) if raw.name == "lbagent-status" else parse_command(raw, text)


def fold_tags_as_stdin(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that would be read from stdin, where a comma inside a value looks like the next tag."""
    return _tags(",".join(f"{key}={value}" for key, value in tags.items()))


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
