"""The safety guard: no accident may empty a service, neither at once nor node by node.

What a leave, a reap or a pause removes was asked for. What a sync, an edit of roles.yml, `on_failed` or a tag that
became invalid removes was not: if that is more than half of a marker's nodes, together with what was removed there in
the same way within WINDOW, it waits for `--force`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from lbagent.haproxy.config import ManagedLine
from lbagent.membership.model import LEFT, REMOVALS, Membership
from lbagent.names import NAME, role_names
from lbagent.outcome import BlockedRemoval
from lbagent.system.tuples import NamedTuple

_NAMED = 20


class Removals(NamedTuple):
    """The removals of a plan that nobody asked for, by place in haproxy.cfg."""

    allowed: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """The nodes whose lines are removed."""
    blocked: frozenset[str] = frozenset()
    """Where lines stay because too many would be removed."""


class Guard:
    """Decides over removals, and remembers what it blocked and what it allowed."""

    def __init__(
        self, membership: Membership, paused: frozenset[str], superseded: Collection[str] = (), *, force: bool
    ) -> None:
        """With `force` it blocks nothing; `superseded` are failed nodes whose address a living one has."""
        self._members, self._removals = membership.members, membership.removals
        self._paused, self._superseded, self._force = paused, superseded, force
        self.held: list[BlockedRemoval] = []
        self._allowed: dict[str, tuple[str, ...]] = {}
        self._blocked: set[str] = set()

    @property
    def removals(self) -> Removals:
        """What has been decided so far."""
        return Removals(self._allowed, frozenset(self._blocked))

    def block_removals(self, going: Mapping[ManagedLine, str], beside: set[str], where: str) -> list[ManagedLine]:
        """Of the lines that would go (with their nodes) while the nodes `beside` stay or come, those that are blocked.

        What was asked to go counts for neither side, so that the verdict is the same in the next run; nor does a
        paused node, which serves nobody.
        """
        unasked = [line for line, node in going.items() if not self._asked(line, node)]
        if not unasked:
            return []
        nodes, others = {going[line] for line in unasked}, len(beside - self._paused)
        before = self._before(where, nodes | beside)
        if self._force or len(unasked) + len(before) <= others:
            self._allowed[where] = tuple(sorted(nodes))
            return []
        words = (
            f"{len(unasked)} of {len(unasked) + others} lines {where} would go: {_some(line.name for line in unasked)}"
        )
        if before:
            words += f"; {len(before)} more went within the last {REMOVALS // 60} minutes: {_some(before)}"
        self.held.append(BlockedRemoval(len(unasked), words))
        self._blocked.add(where)
        return unasked

    def _asked(self, line: ManagedLine, node: str) -> bool:
        # A comment takes no traffic away, and a paused node is to have none.
        if line.pauses or node in self._paused or node in self._superseded:
            return True
        member = self._members.get(node)
        if member is None:
            return False
        # Another role is Serf's word about this one node; none, or one that can't be a role's name, is an accident.
        roles = role_names(member.role)
        moved = line.role not in roles and any(map(NAME.fullmatch, roles))
        return member.status == LEFT or (member.present and moved)

    def _before(self, where: str, counted: set[str]) -> list[str]:
        """The nodes that were removed there a short while ago, and are neither back nor gone for a good reason."""
        found = sorted(set(self._removals.get(where, ())) - counted - self._paused)
        return [node for node in found if (member := self._members.get(node)) and member.status != LEFT]


def remember(membership: Membership, removals: Removals, now: int, *, force: bool) -> Membership:
    """Membership that knows of the removals of a plan at `now`, in epoch seconds; the very same if nothing is new.

    What was removed before something was blocked counts for as long as that is blocked. `force` accepts all of it.
    """
    if force:
        return membership._replace(removals={}) if membership.removals else membership
    known = {where: dict(nodes) for where, nodes in membership.removals.items()}
    for where, nodes in removals.allowed.items():
        known.setdefault(where, {}).update(dict.fromkeys(nodes, now))
    for where in removals.blocked & known.keys():
        if min(known[where].values(), default=now) <= now - REMOVALS // 2:
            known[where] = dict.fromkeys(known[where], now)
    return membership if known == membership.removals else membership._replace(removals=known)


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:_NAMED]) + (", …" if len(found) > _NAMED else "")
