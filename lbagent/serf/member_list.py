"""What a Serf agent says of itself and of its cluster: the words of the `serf` program in, values out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from types import MappingProxyType

from lbagent.names import NAME, canonical_address, role_names
from lbagent.system.tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

_LB = "lb"
"""What the documentation calls the role of a load balancer."""

_CLOCKS = {"user": "event_time", "query": "query_time"}


class ListedMember(NamedTuple):
    """One member as `serf members` lists it: name and address are well-formed."""

    name: str
    address: str
    role: str
    tags: Mapping[str, str]
    """Without `role`. JSON parts them without a doubt, which stdin's `k=v,k=v` does not."""
    status: str
    """alive, leaving, left or failed."""


class MemberList(NamedTuple):
    """A whole answer of `serf members`."""

    members: tuple[ListedMember, ...]
    names: frozenset[str]
    """Of all, the refused ones too: whoever Serf knows at an address nobody can have is not gone."""
    refused: tuple[str, ...]
    """A sentence for each member that could not be used."""
    strays: Mapping[str, str] = MappingProxyType({})
    """The roles of those, by what they call themselves."""


class AgentInfo(NamedTuple):
    """What `serf info` says of the agent of this load balancer."""

    name: str
    role: str
    encrypted: bool
    clocks: Mapping[str, int]
    """Its LTimes, by clock: `user` and `query`."""
    handlers: Mapping[str, str]
    """Its event handlers, by filter (`*:`, `user:pause`, …)."""


def parse_member_list(said: str) -> MemberList:
    """The members in the answer of `serf members -format=json`. Raises ValueError where it is none."""
    members: list[ListedMember] = []
    refused: list[str] = []
    strays: dict[str, str] = {}
    found_rows = _answer(said).get("members", ())
    if not isinstance(found_rows, list | None):
        msg = f"`members` is {str(found_rows)[:40]!r} and not a list"
        raise ValueError(msg)  # noqa: TRY004  # as in _table
    rows = [_table(row) for row in found_rows or ()]
    for row in rows:
        found = _listed(row)
        if isinstance(found, str):
            refused.append(f"serf members: {found}")
            strays[_text(row, "name")] = _text(_table(row.get("tags")), "role")
        else:
            members.append(found)
    return MemberList(tuple(members), frozenset(_text(row, "name") for row in rows), tuple(refused), strays)


def parse_info(said: str) -> AgentInfo:
    """The answer of `serf info -format=json`. Raises ValueError where it is none."""
    answer = _answer(said)
    serf, tags = _table(answer.get("serf")), _table(answer.get("tags"))
    clocks = {clock: int(_text(serf, key)) for clock, key in _CLOCKS.items() if key in serf}
    handlers = {str(kind): str(command) for kind, command in _table(answer.get("event_handlers")).items()}
    name = _text(_table(answer.get("agent")), "name")
    if not name:
        msg = "the agent has no name"
        raise ValueError(msg)
    return AgentInfo(name, _text(tags, "role"), _text(serf, "encrypted") == "true", clocks, handlers)


def parse_answers(said: str, nodes: Collection[str]) -> dict[str, str]:
    """The first answer of each of these nodes in what `serf query` prints."""
    found: dict[str, str] = {}
    for line in said.split("\n"):
        for node in nodes:
            words = line.removeprefix(f"Response from '{node}': ")
            if words != line:
                found.setdefault(node, words)
    return found


def find_peers(listed: MemberList, myself: AgentInfo) -> tuple[ListedMember, ...]:
    """The other load balancers: the members with this agent's own role, `lb` where it has none."""
    role = _first(myself)
    peers = (one for one in listed.members if role in role_names(one.role))
    return tuple(one for one in peers if one.name != myself.name and one.status != "left")


def find_unreachable_peers(listed: MemberList, myself: AgentInfo) -> tuple[str, ...]:
    """Load balancers of a name or address with which nobody can ask them."""
    mine = _first(myself)
    return tuple(name for name, role in listed.strays.items() if mine in role_names(role) and name != myself.name)


def _first(myself: AgentInfo) -> str:
    """The role by which load balancers know each other: the first of this agent's tag."""
    return next(iter(role_names(myself.role)), _LB)


def _listed(row: Mapping[str, Any]) -> ListedMember | str:
    name, tags = _text(row, "name"), _table(row.get("tags"))
    if not NAME.fullmatch(name):
        return f"node name {name[:80]!r} is not {NAME.pattern}"
    # "10.0.0.5:7946" or "[fd00::5]:7946": the gossip port is none of ours.
    given = _text(row, "addr")
    address = canonical_address(given.rpartition(":")[0].strip("[]"))
    if address is None:
        return f"node {name}: {given[:60]!r} is not an IP address and a port"
    texts = {tag: _text(tags, tag) for tag in tags if tag != "role"}
    return ListedMember(name, address, _text(tags, "role"), texts, _text(row, "status"))


def _answer(said: str) -> Mapping[str, Any]:
    try:
        found = json.loads(said)
    except RecursionError as error:
        msg = "JSON that is nested too deeply"
        raise ValueError(msg) from error
    if not isinstance(found, dict):
        msg = f"{said[:40]!r} is not names and values"
        raise ValueError(msg)  # noqa: TRY004  # as in _table
    return found


def _table(value: Any) -> Mapping[str, Any]:  # noqa: ANN401  # as above
    if value is None:
        return {}
    if not isinstance(value, dict):
        msg = f"{str(value)[:40]!r} is where names and values should be"
        raise ValueError(msg)  # noqa: TRY004  # for the caller, all of it is one: not an answer of Serf
    return value


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        msg = f"{key!r} is {str(value)[:40]!r} and not text"
        raise ValueError(msg)  # noqa: TRY004  # as in _table
    return value
