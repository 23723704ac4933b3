"""Membership as JSON: what members.json holds, and whether what it holds can be believed.

Columns, as in `table`, because 20,000 members are read before anything can be done; of whom more is
known than the columns tell, that is under their names in `more`. What an older version wrote is read too; and an older
version can read this: it knows no `commands`, and takes what it knows from the keys beside them.
"""

from __future__ import annotations

import json

from lbagent.membership.model import (
    PRESENT,
    STATUSES,
    Columns,
    LastCommand,
    Member,
    Membership,
    Pause,
    Quarantine,
    Said,
    Table,
    as_table,
)
from lbagent.names import are_addresses, are_names, canonical_address
from lbagent.system.tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_COLUMNS = ("name", "address", "role", "status", "changed")

_MOST = 1 << 70
"""Beyond any LTime (64 bits) and time; what is larger has never been written."""


class Damaged(ValueError):
    """The bytes are not a membership."""


def serialize_membership(membership: Membership) -> bytes:
    """Membership as one JSON object."""
    table = as_table(membership.members)
    state = {
        "version": 1,
        "clocks": dict(membership.clocks),
        "folded": sorted(membership.folded),
        "missed": dict(membership.missed),
        "marks": membership.marks,
        "met": membership.met,
        "removals": {where: dict(nodes) for where, nodes in membership.removals.items()},
        "members": dict(zip(_COLUMNS, table.columns, strict=True)),
        "more": {name: _more(member) for name, member in table.special.items()},
    }
    return json.dumps(state, separators=(",", ":")).encode()


def parse_membership(content: bytes) -> Membership:
    """The membership that `serialize_membership` wrote. Raises Damaged."""
    try:
        state = json.loads(content)
        clocks, missed = _numbers(state["clocks"]), _numbers(state.get("missed", {}))
        folded = frozenset(_is(str, identity) for identity in _is(list, state["folded"]))
        columns = Columns(*(_is(list, state["members"][column]) for column in _COLUMNS))
        _believable(columns)
        table = Table(columns, {})
        table.special.update({name: _special(table[name], more) for name, more in _is(dict, state["more"]).items()})
        removals = {_text(where): _numbers(nodes) for where, nodes in _is(dict, state.get("removals", {})).items()}
        marks = tuple((_number(ltime), _number(at)) for ltime, at in _is(list, state.get("marks", [])))
        return Membership(table, clocks, folded, missed, removals, marks, _number(state.get("met", 0)))
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
        raise ValueError("a status is unknown, or a name is listed twice")
    if changed and not 0 <= min(changed) <= max(changed) < _MOST:
        raise ValueError("a time is out of range")
    if "" in addresses and any(not one and status in PRESENT for one, status in zip(addresses, statuses, strict=True)):
        raise ValueError("a member that is present has no address")
    # Joining them, both refuse with a TypeError what is no text.
    if not are_names(names) or not are_addresses([*filter(None, addresses)] if "" in addresses else addresses):
        raise ValueError("a name or an address is none")


def _more(member: Member) -> dict[str, Any]:
    return {
        "tags": member.tags,
        "pause": member.pause and member.pause._asdict(),
        "ltimes": {clock: _heard_row(heard) for clock, heard in member.heard.items()},
        "quarantine": member.quarantine and member.quarantine._asdict(),
        **({"elsewhere": member.elsewhere} if member.elsewhere else {}),
    }


def _heard_row(heard: LastCommand) -> dict[str, Any]:
    return {
        "ltime": heard.ltime,
        "digests": [said.digest for said in heard.commands],
        "paused": any(said.pauses for said in heard.commands),
        "commands": [said._asdict() for said in heard.commands],
    }


def _special(member: Member, more: dict[str, Any]) -> Member:
    pause, quarantine, tags = more["pause"], more["quarantine"], more["tags"]
    found = None
    if pause is not None:
        since, by, reason, until = _all(pause, since=int, by=str, reason=str, until=(int, type(None)))
        found = Pause(_number(since), by, reason, until if until is None else _number(until))
    refused = None
    if quarantine is not None:
        since, reason, key = _all(quarantine, since=int, reason=str, key=str)
        refused = Quarantine(_number(since), reason, key)
    rows = _is(dict, more["ltimes"])
    return member._replace(
        tags=None if tags is None else {_is(str, tag): _is(str, value) for tag, value in _is(dict, tags).items()},
        pause=found,
        heard={_is(str, clock): _heard(row, clock, rows, found) for clock, row in rows.items()},
        quarantine=refused,
        elsewhere=tuple(map(_address, _is(list, more.get("elsewhere", [])))),
    )


def _heard(row: dict[str, Any], clock: str, rows: dict[str, Any], pause: Pause | None) -> LastCommand:
    ltime, digests, paused = _all(row, ltime=int, digests=list, paused=bool)
    if "commands" in row:
        commands = tuple(_said(said) for said in _is(list, row["commands"]))
        if not commands or len({said.digest for said in commands}) < len(commands):
            raise ValueError("a clock without a command, or with one twice")
        return LastCommand(_number(ltime), tuple(sorted(commands)))
    # As an older version has it: one pause for all clocks, and of a pause that has ended nothing but its LTime.
    until = (pause.until if pause else 0) if paused else None
    after = {other: _number(_all(one, ltime=int)[0]) for other, one in rows.items() if other != clock}
    # What was decided then is decided again: the pause in effect came last, or else whatever ended it.
    last = tuple(sorted(after.items())) if paused == (pause is not None) else ()
    known = sorted(set(map(_text, digests))) or [""]
    return LastCommand(
        _number(ltime), tuple(Said(one, paused, until, last, "", pause.since if pause else 0) for one in known)
    )


def _said(row: dict[str, Any]) -> Said:
    digest, pauses, until, after, address, at = _all(
        row, digest=str, pauses=bool, until=(int, type(None)), after=list, address=str, at=int
    )
    pairs = tuple((_text(clock), _number(ltime)) for clock, ltime in after)
    end = until if until is None else _number(until)
    return Said(digest, pauses, end, pairs, _address(address) if address else "", _number(at))


def _numbers(row: dict[str, Any]) -> dict[str, int]:
    return {_text(name): _number(number) for name, number in _is(dict, row).items()}


def _number(value: Any) -> int:  # noqa: ANN401  # what JSON held, until looked at
    number: int = _is(int, value)
    if not 0 <= number < _MOST:
        raise ValueError(f"{str(number)[:40]} is out of range")
    return number


def _text(value: Any) -> str:  # noqa: ANN401  # as above
    text: str = _is(str, value)
    return text


def _address(value: Any) -> str:  # noqa: ANN401  # as above
    if canonical_address(_text(value)) != value:
        raise ValueError(f"{value[:60]!r} is not an address")
    return _text(value)


def _all(row: dict[str, Any], **kinds: type[Any] | tuple[type[Any], ...]) -> list[Any]:
    return [_is(kind, _is(dict, row)[key]) for key, kind in kinds.items()]


def _is(kind: type[Any] | tuple[type[Any], ...], value: Any) -> Any:  # noqa: ANN401  # as above
    if type(value) not in (kind if isinstance(kind, tuple) else (kind,)):
        raise TypeError(f"{str(value)[:60]!r} is not what it should be")
    return value
