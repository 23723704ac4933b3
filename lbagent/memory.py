"""Membership as JSON: what members.json holds, and whether what it holds can be believed."""

from __future__ import annotations

import json
from typing import Any

from lbagent.membership import Heard, Member, Membership, Pause, Quarantine

_FIELDS = ("name", "address", "role", "tags", "status", "changed", "pause", "ltimes", "quarantine")
"""What stands in a member's row, in this order: 20,000 rows are read before anything can be done."""

_TEXTS = (0, 1, 2, 4)


class Damaged(ValueError):
    """The bytes are not a membership."""


def dump(membership: Membership) -> bytes:
    """Membership as one JSON object, a row per member."""
    state = {
        "version": 1,
        "clocks": membership.clocks,
        "folded": sorted(membership.folded),
        "fields": _FIELDS,
        "members": list(membership.members.values()),
    }
    return json.dumps(state, separators=(",", ":")).encode()


def load(content: bytes) -> Membership:
    """The membership that `dump` wrote. Raises Damaged."""
    try:
        state = json.loads(content)
        clocks = {_is(str, clock): _is(int, ltime) for clock, ltime in state["clocks"].items()}
        folded = frozenset(_is(str, identity) for identity in state["folded"])
        if tuple(state["fields"]) != _FIELDS:
            raise Damaged(f"has the fields {state['fields']!r}, not {list(_FIELDS)!r}")
        members = {row[0]: Member._make(row) for row in _sound(state["members"])}
        special = [member for member in members.values() if member.pause or member.heard or member.quarantine]
        members.update((member.name, Member._make(_special(list(member)))) for member in special)
        return Membership(members, clocks, folded)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Damaged(f"is damaged ({type(error).__name__}: {error})") from error


def _sound(rows: list[list[Any]]) -> list[list[Any]]:
    """The rows, once the type of every field has been looked at, column by column."""
    columns = list(zip(*rows, strict=True))
    if columns and len(columns) != len(_FIELDS):
        raise TypeError(f"a member has {len(columns)} fields")
    for number, column in enumerate(columns[:6]):
        right = {str} if number in _TEXTS else {int} if _FIELDS[number] == "changed" else {dict, type(None)}
        if not set(map(type, column)) <= right:
            raise TypeError(f"a member's {_FIELDS[number]} has the wrong type")
    return rows


def _special(row: list[Any]) -> list[Any]:
    pause, ltimes, quarantine = row[6:]
    return [
        *row[:6],
        pause and Pause(*_all(pause, int, str, str, (int, type(None)))),
        {_is(str, clock): _heard(one) for clock, one in ltimes.items()},
        quarantine and Quarantine(*_all(quarantine, int, str, str)),
    ]


def _heard(row: list[Any]) -> Heard:
    ltime, digests, paused = _all(row, int, list, bool)
    return Heard(ltime, tuple(_is(str, one) for one in digests), paused)


def _all(row: list[Any], *kinds: type[Any] | tuple[type[Any], ...]) -> list[Any]:
    return [_is(kind, value) for kind, value in zip(kinds, row, strict=True)]


def _is(kind: type[Any] | tuple[type[Any], ...], value: Any) -> Any:  # noqa: ANN401  # what JSON held, until looked at
    if type(value) not in (kind if isinstance(kind, tuple) else (kind,)):
        raise TypeError(f"{value!r} is not what it should be")
    return value
