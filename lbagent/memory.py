"""Membership as JSON: what members.json holds, and whether what it holds can be believed.

Columns, as in `table`, because 20,000 members are read before anything can be done; of whom more is
known than the columns tell, that stands under their names in `more`.
"""

from __future__ import annotations

import json

from lbagent.membership import STATUSES, UNKNOWN, Heard, Member, Membership, Pause, Quarantine
from lbagent.names import are_addresses, are_names
from lbagent.table import Columns, Table, tabled
from lbagent.tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_COLUMNS = ("name", "address", "role", "status", "changed")


class Damaged(ValueError):
    """The bytes are not a membership."""


def dump(membership: Membership) -> bytes:
    """Membership as one JSON object."""
    table = tabled(membership.members)
    state = {
        "version": 1,
        "clocks": dict(membership.clocks),
        "folded": sorted(membership.folded),
        "missed": dict(membership.missed),
        "removals": {where: dict(nodes) for where, nodes in membership.removals.items()},
        "members": dict(zip(_COLUMNS, table.columns, strict=True)),
        "more": {name: _more(member) for name, member in table.special.items()},
    }
    return json.dumps(state, separators=(",", ":")).encode()


def load(content: bytes) -> Membership:
    """The membership that `dump` wrote. Raises Damaged."""
    try:
        state = json.loads(content)
        clocks, missed = _numbers(state["clocks"]), _numbers(state.get("missed", {}))
        folded = frozenset(_is(str, identity) for identity in state["folded"])
        columns = Columns(*(_is(list, state["members"][column]) for column in _COLUMNS))
        _believable(columns)
        table = Table(columns, {})
        table.special.update({name: _special(table[name], more) for name, more in state["more"].items()})
        removals = {_is(str, where): _numbers(nodes) for where, nodes in state.get("removals", {}).items()}
        return Membership(table, clocks, folded, missed, removals)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise Damaged(f"is damaged ({type(error).__name__}: {error})") from error


def _believable(columns: Columns) -> None:
    """Raise where a column holds what lbagent never writes; whole columns at a time."""
    names, addresses, roles, statuses, changed = columns
    if len({len(column) for column in columns}) != 1:
        raise ValueError("the columns differ in length")
    if not set(map(type, set(roles))) <= {str} or not set(map(type, changed)) <= {int}:
        raise TypeError("a column holds a value of the wrong type")
    if not set(statuses) <= STATUSES or len(set(names)) < len(names):
        raise ValueError("a status is unknown, or a name stands twice")
    # Only of a node that nobody has seen no address is known.
    if "" in addresses and {one for at, one in zip(addresses, statuses, strict=True) if not at} != {UNKNOWN}:
        raise ValueError("a member has no address")
    # Joining them, both refuse with a TypeError what is no text.
    if not are_names(names) or not are_addresses([*filter(None, addresses)] if "" in addresses else addresses):
        raise ValueError("a name or an address is none")


def _more(member: Member) -> dict[str, Any]:
    return {
        "tags": member.tags,
        "pause": member.pause and member.pause._asdict(),
        "ltimes": {clock: heard._asdict() for clock, heard in member.heard.items()},
        "quarantine": member.quarantine and member.quarantine._asdict(),
    }


def _special(member: Member, more: dict[str, Any]) -> Member:
    pause, quarantine, tags = more["pause"], more["quarantine"], more["tags"]
    return member._replace(
        tags=None if tags is None else {_is(str, tag): _is(str, value) for tag, value in _is(dict, tags).items()},
        pause=pause and Pause(*_all(pause, since=int, by=str, reason=str, until=(int, type(None)))),
        heard={_is(str, clock): _heard(one) for clock, one in more["ltimes"].items()},
        quarantine=quarantine and Quarantine(*_all(quarantine, since=int, reason=str, key=str)),
    )


def _heard(row: dict[str, Any]) -> Heard:
    ltime, digests, paused = _all(row, ltime=int, digests=list, paused=bool)
    return Heard(ltime, tuple(_is(str, one) for one in digests), paused)


def _numbers(row: dict[str, Any]) -> dict[str, int]:
    return {_is(str, name): _is(int, number) for name, number in row.items()}


def _all(row: dict[str, Any], **kinds: type[Any] | tuple[type[Any], ...]) -> list[Any]:
    return [_is(kind, row[key]) for key, kind in kinds.items()]


def _is(kind: type[Any] | tuple[type[Any], ...], value: Any) -> Any:  # noqa: ANN401  # what JSON held, until looked at
    if type(value) not in (kind if isinstance(kind, tuple) else (kind,)):
        raise TypeError(f"{value!r} is not what it should be")
    return value
