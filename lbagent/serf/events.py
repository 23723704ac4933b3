r"""From what Serf handed over to an event that means something: bytes in, values out.

The handler contract is Serf's: one line `NAME \t ADDR \t ROLE \t k=v,k=v` per member, the payload of a
user event or query as it was sent. Split at LF and TAB only: nothing else is escaped by Serf.
"""

from __future__ import annotations

from collections.abc import Mapping

from lbagent.names import NAME, canonical_address
from lbagent.serf.command import TYPED, Command, Malformed, command
from lbagent.serf.raw import Raw
from lbagent.tuples import NamedTuple


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


def parse(raw: Raw) -> Event:
    """What the event says; never raises, whatever the bytes."""
    if not raw.wanted and raw.kind != TYPED:
        return Ignored()
    text = raw.payload.decode("utf-8", "surrogateescape")
    if raw.of_members:
        return _members(raw.kind, text, raw.self_name)
    return StatusQuery(tuple(text.split())) if raw.name == "lbagent-status" else command(raw, text)


def as_stdin_tells(tags: Mapping[str, str]) -> dict[str, str]:
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
