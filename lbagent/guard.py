"""The guard: no accident may empty a service.

What a leave, a reap or a pause takes away was asked for. What a sync, an edit of roles.yml or `on_failed`
takes away was not, and when that is more than half of a marker's nodes it waits for `--force`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lbagent.haproxy.lines import Line
from lbagent.membership import LEFT, Member
from lbagent.outcome import Held

_NAMED = 20


class Guard:
    """Decides over removals, and remembers what it held back."""

    def __init__(
        self,
        members: Mapping[str, Member],
        paused: frozenset[str],
        superseded: Collection[str] = (),
        *,
        force: bool,
    ) -> None:
        """With `force` it blocks nothing; `superseded` are failed nodes whose address a living one has."""
        self._members, self._paused, self._superseded, self._force = members, paused, superseded, force
        self.held: list[Held] = []

    def hold(self, going: Mapping[Line, str], beside: set[str], where: str) -> list[Line]:
        """Of the lines that would go (with their nodes) while the nodes `beside` stay or come, those that are held.

        What was asked to go counts for neither side, so that the verdict is the same in the next run; nor does who
        is paused, for he serves nobody.
        """
        unasked = [line for line, node in going.items() if not self._asked(line, node)]
        if self._force or not unasked or len(unasked) <= (others := len(beside - self._paused)):
            return []
        names = ", ".join(line.name for line in unasked[:_NAMED]) + (", …" if len(unasked) > _NAMED else "")
        words = f"{len(unasked)} of {len(unasked) + others} lines {where} would go: {names}"
        self.held.append(Held(len(unasked), words))
        return unasked

    def _asked(self, line: Line, node: str) -> bool:
        # A comment takes no traffic away, and who is paused is to have none.
        if line.pauses or node in self._paused or node in self._superseded:
            return True
        member = self._members.get(node)
        # A role that changed is Serf's word about this one node, no accident with a list.
        return member is not None and (member.status == LEFT or (member.present and member.role != line.role))
