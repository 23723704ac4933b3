"""A preview: what the next run would do now."""

from __future__ import annotations

from typing import NamedTuple

from lbagent.haproxy.config import Document
from lbagent.membership.model import Membership
from lbagent.planning import quarantine
from lbagent.planning.plan import Change, Plan, PlanOptions, make_plan
from lbagent.roles.model import Roles

_NONE = Change((), ())


class Preview(NamedTuple):
    """What the next run would change, and what it would leave unchanged."""

    plan: Plan | None = None
    """None where no plan can be made."""
    obstacle: str = ""
    """Why no plan can be made."""
    held: frozenset[str] = frozenset()
    """Nodes whose lines the safety guard keeps."""
    quarantined: frozenset[str] = frozenset()

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the plan."""
        return self.plan.notes if self.plan else ()

    def change(self, node: str) -> Change:
        """Return what the next run would do to the lines of a node."""
        return self.plan.changes.get(node, _NONE) if self.plan else _NONE


def make_preview(document: Document, roles: Roles, membership: Membership) -> Preview:
    """Return what the next run would do with `document`. Raises Refused where a marker appears twice in a proxy."""
    kept = quarantine.find_quarantined_in(membership, document, roles)
    found = Preview(make_plan(document, roles, membership, PlanOptions(kept=kept)), quarantined=kept)
    if found.plan is None or not found.plan.blocked:
        return found
    # A node is held where a forced plan would remove lines that this plan keeps.
    forced = make_plan(document, roles, membership, PlanOptions(force=True, kept=kept)).changes
    held = (node for node, change in forced.items() if not set(change.removed) <= set(found.change(node).removed))
    return found._replace(held=frozenset(held))
