"""Parse the output of `serf members`, `serf info` and `serf query`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

from lbagent.names import NAME, NAME_RULE, are_ipv4_addresses, are_names, canonical_address, role_names

_LB = "lb"
"""Role of the load balancers in the documentation; the default if the agent has no role."""

_CLOCKS = {"user": "event_time", "query": "query_time"}


class ListedMember(NamedTuple):
    """One member of `serf members`. Name and address are valid."""

    name: str
    address: str
    role: str
    tags: Mapping[str, str]
    """All tags but `role`. In JSON they are unambiguous, unlike `k=v,k=v` on stdin."""
    status: str
    """alive, leaving, left or failed."""


_make_member: Callable[[tuple[str, str, str, Mapping[str, str], str]], ListedMember]
_make_member = partial(tuple.__new__, ListedMember)
"""Constructor of ListedMember at half the cost, as Serf may list twenty thousand of them."""


class MemberList(NamedTuple):
    """The parsed output of `serf members`."""

    members: tuple[ListedMember, ...]
    names: frozenset[str]
    """Names of all members, invalid ones included: a member with an invalid address is not gone."""
    refused: tuple[str, ...]
    """One sentence per member that could not be used."""
    strays: Mapping[str, str] = MappingProxyType({})
    """Roles of those members, by their names."""


class AgentInfo(NamedTuple):
    """The parsed output of `serf info`."""

    name: str
    role: str
    encrypted: bool
    clocks: Mapping[str, int]
    """LTimes, by clock: `user` and `query`."""
    handlers: Mapping[str, str]
    """Event handlers, by filter (`*:`, `user:pause`, …)."""


def parse_member_list(output: str) -> MemberList:
    """Parse the output of `serf members -format=json`. Raises ValueError."""
    members: list[ListedMember] = []
    refused: list[str] = []
    strays: dict[str, str] = {}
    found_rows = _parse_answer(output).get("members", ())
    if not isinstance(found_rows, list | None):
        raise ValueError(f"`members` is {str(found_rows)[:40]!r}, not a list")  # noqa: TRY004  # as in _check_mapping
    rows = [_check_mapping(row) for row in found_rows or ()]
    if (plain := _parse_plain_members(rows)) is not None:
        return MemberList(tuple(plain), frozenset([one.name for one in plain]), ())
    for row in rows:
        found = _parse_member(row)
        if isinstance(found, str):
            refused.append(f"serf members: {found}")
            strays[_get_text(row, "name")] = _get_text(_check_mapping(row.get("tags")), "role")
        else:
            members.append(found)
    return MemberList(tuple(members), frozenset(_get_text(row, "name") for row in rows), tuple(refused), strays)


def parse_info(output: str) -> AgentInfo:
    """Parse the output of `serf info -format=json`. Raises ValueError."""
    answer = _parse_answer(output)
    serf, tags = _check_mapping(answer.get("serf")), _check_mapping(answer.get("tags"))
    clocks = {clock: int(_get_text(serf, key)) for clock, key in _CLOCKS.items() if key in serf}
    handlers = {str(kind): str(command) for kind, command in _check_mapping(answer.get("event_handlers")).items()}
    name = _get_text(_check_mapping(answer.get("agent")), "name")
    if not name:
        raise ValueError("the agent has no name")
    return AgentInfo(name, _get_text(tags, "role"), _get_text(serf, "encrypted") == "true", clocks, handlers)


def parse_answers(output: str, nodes: Collection[str]) -> dict[str, str]:
    """Return the first answer of each of these nodes in the output of `serf query`, cut at ANSWER_LIMIT."""
    found: dict[str, str] = {}
    for line in output.split("\n"):
        for node in nodes:
            words = line.removeprefix(f"Response from '{node}': ")
            if words != line:
                found.setdefault(node, words[:ANSWER_LIMIT])
    return found


def find_peers(listed: MemberList, myself: AgentInfo) -> tuple[ListedMember, ...]:
    """Return the other load balancers: members with the agent's own role, or `lb` if it has none."""
    role = find_own_role(myself)
    peers = (one for one in listed.members if role in role_names(one.role))
    return tuple(one for one in peers if one.name != myself.name and one.status != "left")


ANSWER_LIMIT = 1024
"""Characters of an answer that are used: Serf's default limit of an answer, in bytes."""

NOT_REACHABLE = "not asked: its name or address in Serf is invalid"
"""Why none of `find_unreachable_peers` gets a query."""


def find_unreachable_peers(listed: MemberList, myself: AgentInfo) -> tuple[str, ...]:
    """Return the load balancers that cannot be queried, because their name or address is invalid."""
    mine = find_own_role(myself)
    return tuple(name for name, role in listed.strays.items() if mine in role_names(role) and name != myself.name)


def explain_no_query(status: str) -> str:
    """Return why a load balancer with this status gets no query; empty where it gets one."""
    return "" if status == "alive" else f"not asked: {status} in Serf"


def find_own_role(myself: AgentInfo) -> str:
    """Return the role that load balancers share: the first one of the agent's own tag."""
    return next(iter(role_names(myself.role)), _LB)


def _parse_plain_members(rows: list[Mapping[str, Any]]) -> list[ListedMember] | None:
    """Return the members as `_parse_member` does; None where it is needed. Fast for thousands of members."""
    try:
        names, given, statuses, tags = ([row[key] for row in rows] for key in ("name", "addr", "status", "tags"))
        values = chain(statuses, chain.from_iterable(map(dict.values, tags)))
        hosts = [address.rpartition(":")[0] for address in given]
        if not (set(map(type, values)) <= {str} and are_names(names) and are_ipv4_addresses(hosts)):
            return None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    roles = [one.pop("role", "") for one in tags]
    return list(map(_make_member, zip(names, hosts, roles, tags, statuses, strict=True)))


def _parse_member(row: Mapping[str, Any]) -> ListedMember | str:
    name, tags = _get_text(row, "name"), _check_mapping(row.get("tags"))
    if not NAME.fullmatch(name):
        return f"invalid node name {name[:80]!r}; use {NAME_RULE}"
    # "10.0.0.5:7946" or "[fd00::5]:7946": drop the gossip port.
    given = _get_text(row, "addr")
    address = canonical_address(given.rpartition(":")[0].strip("[]"))
    if address is None:
        return f"node {name}: {given[:60]!r} is not an IP address and a port"
    texts = {tag: _get_text(tags, tag) for tag in tags if tag != "role"}
    return ListedMember(name, address, _get_text(tags, "role"), texts, _get_text(row, "status"))


def _parse_answer(output: str) -> Mapping[str, Any]:
    try:
        found = json.loads(output)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"{output[:40]!r} is not a JSON object")  # noqa: TRY004  # as in _check_mapping
    return found


def _check_mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401  # any JSON value
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r} is not a JSON object")  # noqa: TRY004  # all callers handle ValueError
    return value


def _get_text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {str(value)[:40]!r}, not text")  # noqa: TRY004  # as in _check_mapping
    return value
