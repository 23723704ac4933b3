"""The safety guard: no accident may empty a service, neither at once nor node by node.

A removal by a leave, a reap or a pause was requested. A removal by a sync, an edit of roles.yml, `on_failed` or a tag
that became invalid was not. Such removals are blocked until `--force` where they are more than half of a marker's
nodes, together with those of the last hour.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from lbagent.haproxy.config import ManagedLine
from lbagent.membership.model import LEFT, REMOVALS_WINDOW, Membership
from lbagent.names import NAME, role_names
from lbagent.outcome import BlockedRemoval

_NAMES_LIMIT = 20


class Removals(NamedTuple):
    """The unrequested removals of a plan, by place in haproxy.cfg."""

    allowed: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """The nodes whose lines are removed."""
    blocked: frozenset[str] = frozenset()
    """Places where lines stay because too many would be removed."""


class Guard:
    """Decides on removals, and records what it allowed and blocked."""

    def __init__(
        self, membership: Membership, paused: frozenset[str], superseded: Collection[str] = (), *, force: bool
    ) -> None:
        """With `force` it blocks nothing. `superseded` holds failed nodes whose address an alive node has."""
        self._members, self._removals = membership.members, membership.removals
        self._paused, self._superseded, self._force = paused, superseded, force
        self.blocked: list[BlockedRemoval] = []
        self._allowed: dict[str, tuple[str, ...]] = {}
        self._blocked: set[str] = set()

    @property
    def removals(self) -> Removals:
        """The decisions so far."""
        return Removals(self._allowed, frozenset(self._blocked))

    def block_removals(self, going: Mapping[ManagedLine, str], beside: set[str], where: str) -> list[ManagedLine]:
        """Return the lines of `going` whose removal is blocked.

        `going` maps each line that would be removed to its node. The nodes in `beside` stay or are added. Requested
        removals count on neither side, so that the next run decides the same. Paused nodes do not count either, as they
        serve nothing.
        """
        unasked = [line for line, node in going.items() if not self._was_requested(line, node)]
        if not unasked:
            return []
        nodes, others = {going[line] for line in unasked}, len(beside - self._paused)
        before = self._list_earlier_removals(where, nodes | beside)
        if self._force or len(unasked) + len(before) <= others:
            self._allowed[where] = tuple(sorted(nodes))
            return []
        names = _format_names(line.name for line in unasked)
        words = f"{len(unasked)} of {len(unasked) + others} lines {where} would be removed: {names}"
        if before:
            minutes = REMOVALS_WINDOW // 60
            words += f"; {len(before)} more were removed within the last {minutes} minutes: {_format_names(before)}"
        self.blocked.append(BlockedRemoval(len(unasked), words))
        self._blocked.add(where)
        return unasked

    def _was_requested(self, line: ManagedLine, node: str) -> bool:
        # Removing a comment takes no traffic away, and a paused node gets none.
        if line.is_comment or node in self._paused or node in self._superseded:
            return True
        member = self._members.get(node)
        if member is None:
            return False
        # A change to another role is a request. A missing role, or an invalid role name, is an accident.
        roles = role_names(member.role)
        moved = line.role not in roles and any(map(NAME.fullmatch, roles))
        return member.status == LEFT or (member.present and moved)

    def _list_earlier_removals(self, where: str, counted: set[str]) -> list[str]:
        """Return the nodes that were removed there within the last hour, and neither returned nor left since."""
        found = sorted(set(self._removals.get(where, ())) - counted - self._paused)
        return [node for node in found if (member := self._members.get(node)) and member.status != LEFT]


def remember_removals(membership: Membership, removals: Removals, now: int, *, force: bool) -> Membership:
    """Return membership with the removals of a plan at `now` (epoch seconds); the same object without news.

    Removals before something was blocked count for as long as it is blocked. `force` accepts and forgets all.
    """
    if force:
        return membership._replace(removals={}) if membership.removals else membership
    known = {where: dict(nodes) for where, nodes in membership.removals.items()}
    for where, nodes in removals.allowed.items():
        known.setdefault(where, {}).update(dict.fromkeys(nodes, now))
    for where in removals.blocked & known.keys():
        if min(known[where].values(), default=now) <= now - REMOVALS_WINDOW // 2:
            known[where] = dict.fromkeys(known[where], now)
    return membership if known == membership.removals else membership._replace(removals=known)


def _format_names(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:_NAMES_LIMIT]) + (", …" if len(found) > _NAMES_LIMIT else "")
