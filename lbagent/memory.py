"""Membership as JSON: what members.json holds, and whether what it holds can be believed."""

from __future__ import annotations

import json
from typing import Any

from lbagent.membership import Heard, Member, Membership, Pause, Quarantine

_PLAIN = ("name", "address", "role", "tags", "status", "changed")


class Damaged(ValueError):
    """The bytes are not a membership."""


def dump(membership: Membership) -> bytes:
    """Membership as one JSON object, a row per member."""
    state = {
        "version": 1,
        "clocks": membership.clocks,
        "folded": sorted(membership.folded),
        "members": [_row(member) for member in membership.members.values()],
    }
    return json.dumps(state, separators=(",", ":")).encode()


def load(content: bytes) -> Membership:
    """The membership that `dump` wrote. Raises Damaged."""
    try:
        state = json.loads(content)
        clocks = {_is(str, clock): _is(int, ltime) for clock, ltime in state["clocks"].items()}
        folded = frozenset(_is(str, identity) for identity in state["folded"])
        return Membership({row["name"]: _member(row) for row in state["members"]}, clocks, folded)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"is damaged ({type(error).__name__}: {error})") from error


def _row(member: Member) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(_PLAIN, member, strict=False))
    if member.pause:
        row["pause"] = member.pause._asdict()
    if member.heard:
        row["ltimes"] = {clock: heard._asdict() for clock, heard in member.heard.items()}
    if member.quarantine:
        row["quarantine"] = member.quarantine._asdict()
    return row


def _member(row: dict[str, Any]) -> Member:
    name, address, role, tags, status, changed = (row[key] for key in _PLAIN)
    if not (type(name) is type(address) is type(role) is type(status) is str and type(changed) is int):
        raise TypeError(f"member {name!r} has a field of the wrong type")
    if tags is not None and type(tags) is not dict:
        raise TypeError(f"the tags of {name!r} are no mapping")
    if len(row) == len(_PLAIN):
        return Member(name, address, role, tags, status, changed)
    heard = {clock: _heard(one) for clock, one in row.get("ltimes", {}).items()}
    return Member(
        name, address, role, tags, status, changed, _pause(row.get("pause")), heard, _quarantine(row.get("quarantine"))
    )


def _pause(row: dict[str, Any] | None) -> Pause | None:
    if row is None:
        return None
    until = row["until"]
    return Pause(
        _is(int, row["since"]), _is(str, row["by"]), _is(str, row["reason"]), None if until is None else _is(int, until)
    )


def _quarantine(row: dict[str, Any] | None) -> Quarantine | None:
    return None if row is None else Quarantine(_is(int, row["since"]), _is(str, row["reason"]), _is(str, row["key"]))


def _heard(row: dict[str, Any]) -> Heard:
    return Heard(_is(int, row["ltime"]), tuple(_is(str, one) for one in row["digests"]), _is(bool, row["paused"]))


def _is(kind: type[Any], value: Any) -> Any:  # noqa: ANN401  # what JSON held, until it has been looked at
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
