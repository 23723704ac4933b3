"""Membership as JSON: the content of members.json and its validation.

Members are stored in columns, as in `model.Table`, because 20,000 members are read before a run can do anything.
Members that have more than the fields in the columns are in `more`, by name. Files of an older version can be read.
An older version can read this file: it ignores `commands` and uses the keys beside it.
"""

from __future__ import annotations

import json
from typing import Any

from lbagent.membership.model import (
    PRESENT,
    STATUSES,
    Columns,
    LastCommands,
    Member,
    Membership,
    Pause,
    PauseCommand,
    Quarantine,
    Table,
    as_table,
)
from lbagent.names import are_addresses, are_names, canonical_address

_COLUMNS = ("name", "address", "role", "status", "changed")

_NUMBER_LIMIT = 1 << 70
"""Larger than any LTime (64 bits) and any time. lbagent never writes a larger number."""


class Damaged(ValueError):
    """The content of members.json is not a membership."""


def serialize_membership(membership: Membership) -> bytes:
    """Return membership as one JSON object."""
    table = as_table(membership.members)
    state = {
        "version": 1,
        "clocks": dict(membership.clocks),
        "folded": sorted(membership.applied_events),
        "missed": dict(membership.missed),
        "marks": membership.marks,
        "met": membership.peers_asked_at,
        "removals": {where: dict(nodes) for where, nodes in membership.removals.items()},
        "members": dict(zip(_COLUMNS, table.columns, strict=True)),
        "more": {name: _serialize_special(member) for name, member in table.special.items()},
    }
    return json.dumps(state, separators=(",", ":")).encode()


def parse_membership(content: bytes) -> Membership:
    """Parse what `serialize_membership` returned. Raises Damaged."""
    try:
        state = json.loads(content)
        clocks, missed = _check_numbers(state["clocks"]), _check_numbers(state.get("missed", {}))
        folded = frozenset(_check_type(str, identity) for identity in _check_type(list, state["folded"]))
        columns = Columns(*(_check_type(list, state["members"][column]) for column in _COLUMNS))
        _validate_columns(columns)
        table = Table(columns, {})
        table.special.update(
            {name: _parse_special(table[name], more) for name, more in _check_type(dict, state["more"]).items()}
        )
        removals = {
            _check_text(where): _check_numbers(nodes)
            for where, nodes in _check_type(dict, state.get("removals", {})).items()
        }
        marks = tuple(
            (_check_number(ltime), _check_number(at)) for ltime, at in _check_type(list, state.get("marks", []))
        )
        return Membership(table, clocks, folded, missed, removals, marks, _check_number(state.get("met", 0)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise Damaged(f"is damaged ({type(error).__name__}: {error})") from error


def _validate_columns(columns: Columns) -> None:
    """Check whole columns at a time. Raises ValueError, TypeError where one holds what lbagent never writes."""
    names, addresses, roles, statuses, changed = columns
    if len({len(column) for column in columns}) != 1:
        raise ValueError("the columns differ in length")
    if not set(map(type, set(roles))) <= {str} or not set(map(type, changed)) <= {int}:
        raise TypeError("a column holds a value of the wrong type")
    if not set(statuses) <= STATUSES or len(set(names)) < len(names):
        raise ValueError("a status is unknown, or a name is listed twice")
    if changed and not 0 <= min(changed) <= max(changed) < _NUMBER_LIMIT:
        raise ValueError("a time is out of range")
    if "" in addresses and any(not one and status in PRESENT for one, status in zip(addresses, statuses, strict=True)):
        raise ValueError("a member that is present has no address")
    # Both raise TypeError for a value that is not text.
    if not are_names(names) or not are_addresses(
        [one for one in addresses if one != ""] if "" in addresses else addresses
    ):
        raise ValueError("a name or an address is invalid")


def _serialize_special(member: Member) -> dict[str, Any]:
    return {
        "tags": member.tags,
        "pause": member.pause and member.pause._asdict(),
        "ltimes": {clock: _serialize_commands(last) for clock, last in member.last_commands.items()},
        "quarantine": member.quarantine and member.quarantine._asdict(),
        **({"elsewhere": member.elsewhere} if member.elsewhere else {}),
    }


def _serialize_commands(last: LastCommands) -> dict[str, Any]:
    return {
        "ltime": last.ltime,
        "digests": [command.digest for command in last.commands],
        "paused": any(command.pauses for command in last.commands),
        "commands": [command._asdict() for command in last.commands],
    }


def _parse_special(member: Member, more: dict[str, Any]) -> Member:
    pause, quarantine, tags = more["pause"], more["quarantine"], more["tags"]
    found = None
    if pause is not None:
        since, by, reason, until = _check_keys(pause, since=int, by=str, reason=str, until=(int, type(None)))
        found = Pause(_check_number(since), by, reason, until if until is None else _check_number(until))
    refused = None
    if quarantine is not None:
        since, reason, key = _check_keys(quarantine, since=int, reason=str, key=str)
        refused = Quarantine(_check_number(since), reason, key)
    rows = _check_type(dict, more["ltimes"])
    return member._replace(
        tags=None
        if tags is None
        else {_check_type(str, tag): _check_type(str, value) for tag, value in _check_type(dict, tags).items()},
        pause=found,
        last_commands={
            _check_type(str, clock): _parse_commands(row, clock, rows, found) for clock, row in rows.items()
        },
        quarantine=refused,
        elsewhere=tuple(map(_check_address, _check_type(list, more.get("elsewhere", [])))),
    )


def _parse_commands(row: dict[str, Any], clock: str, rows: dict[str, Any], pause: Pause | None) -> LastCommands:
    ltime, digests, paused = _check_keys(row, ltime=int, digests=list, paused=bool)
    if "commands" in row:
        commands = tuple(_parse_command(command) for command in _check_type(list, row["commands"]))
        if not commands or len({command.digest for command in commands}) < len(commands):
            raise ValueError("a clock has no command, or the same one twice")
        return LastCommands(_check_number(ltime), tuple(sorted(commands)))
    # The format of an older version: one pause for all clocks, and only the LTime of a pause that has ended.
    until = (pause.until if pause else 0) if paused else None
    after = {other: _check_number(_check_keys(one, ltime=int)[0]) for other, one in rows.items() if other != clock}
    # Keep what the older version decided: the pause in effect came last, or otherwise the command that ended it.
    last = tuple(sorted(after.items())) if paused == (pause is not None) else ()
    known = sorted(set(map(_check_text, digests))) or [""]
    return LastCommands(
        _check_number(ltime),
        tuple(PauseCommand(one, paused, until, last, "", pause.since if pause else 0) for one in known),
    )


def _parse_command(row: dict[str, Any]) -> PauseCommand:
    digest, pauses, until, after, address, at = _check_keys(
        row, digest=str, pauses=bool, until=(int, type(None)), after=list, address=str, at=int
    )
    pairs = tuple((_check_text(clock), _check_number(ltime)) for clock, ltime in after)
    end = until if until is None else _check_number(until)
    return PauseCommand(digest, pauses, end, pairs, _check_address(address) if address else "", _check_number(at))


def _check_numbers(row: dict[str, Any]) -> dict[str, int]:
    return {_check_text(name): _check_number(number) for name, number in _check_type(dict, row).items()}


def _check_number(value: Any) -> int:  # noqa: ANN401  # any JSON value
    number: int = _check_type(int, value)
    if not 0 <= number < _NUMBER_LIMIT:
        raise ValueError(f"{str(number)[:40]} is out of range")
    return number


def _check_text(value: Any) -> str:  # noqa: ANN401  # as above
    text: str = _check_type(str, value)
    return text


def _check_address(value: Any) -> str:  # noqa: ANN401  # as above
    if canonical_address(_check_text(value)) != value:
        raise ValueError(f"{value[:60]!r} is not an address")
    return _check_text(value)


def _check_keys(row: dict[str, Any], **kinds: type[Any] | tuple[type[Any], ...]) -> list[Any]:
    return [_check_type(kind, _check_type(dict, row)[key]) for key, kind in kinds.items()]


def _check_type(kind: type[Any] | tuple[type[Any], ...], value: Any) -> Any:  # noqa: ANN401  # as above
    if type(value) not in (kind if isinstance(kind, tuple) else (kind,)):
        raise TypeError(f"{str(value)[:60]!r} has the wrong type")
    return value
