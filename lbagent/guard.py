"""The guard: no accident may empty a service.

What a leave, a reap or a pause takes away was asked for. What a sync, an edit of roles.yml or `on_failed`
takes away was not, and when that is more than half of a marker's nodes it waits for `--force`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lbagent.membership import LEFT, Member

_NAMED = 20


class Line(NamedTuple):
    """A managed line: as it stands (at a line number), or as it is to stand."""

    node: str
    name: str
    text: str
    at: int = -1
    role: str = ""

    @property
    def pauses(self) -> bool:
        """Whether it is the comment that stands for a paused node."""
        return self.text.startswith("#")

    @property
    def endpoint(self) -> str:
        """ADDRESS:PORT of a server, nothing of a paused one."""
        return "" if self.pauses else self.text.split(None, 3)[2]


class Guard:
    """Decides over removals, and remembers in words what it held back."""

    def __init__(self, members: Mapping[str, Member], *, force: bool) -> None:
        """With `force` it lets everything go."""
        self._members, self._force = members, force
        self.held: list[str] = []

    def hold(self, going: list[Line], standing: int, where: str) -> list[Line]:
        """Of `going` out of `standing` lines at one marker, those that stay."""
        unasked = [line for line in going if not self._asked(line)]
        if self._force or 2 * len(unasked) <= standing:
            return []
        names = ", ".join(line.name for line in unasked[:_NAMED]) + (", …" if len(unasked) > _NAMED else "")
        self.held.append(f"{len(unasked)} of {standing} lines {where} would go: {names}")
        return unasked

    def _asked(self, line: Line) -> bool:
        member = self._members.get(line.node)
        # A role that changed is Serf's word about this one node, no accident with a list.
        return member is not None and (member.status == LEFT or (member.present and member.role != line.role))
