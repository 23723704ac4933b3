"""What the next run would do, were it now."""

from __future__ import annotations

from lbagent.haproxy.config import Document
from lbagent.membership.model import Membership
from lbagent.planning import quarantine
from lbagent.planning.plan import Change, Plan, PlanOptions, make_plan
from lbagent.roles.model import Roles
from lbagent.system.tuples import NamedTuple

_NONE = Change((), ())


class Preview(NamedTuple):
    """What it would do, and what it would leave."""

    plan: Plan | None = None
    """None where none can be made."""
    obstacle: str = ""
    """Why none can."""
    held: frozenset[str] = frozenset()
    """Nodes of which the guard keeps lines."""
    quarantined: frozenset[str] = frozenset()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the plan says of haproxy.cfg, roles.yml and nodes."""
        return self.plan.notes if self.plan else ()

    def change(self, node: str) -> Change:
        """What would be done to the lines of a node."""
        return self.plan.changes.get(node, _NONE) if self.plan else _NONE


def make_preview(document: Document, roles: Roles, membership: Membership) -> Preview:
    """What the next run would do with `document`. Raises Refused where a marker stands twice in one proxy."""
    kept = quarantine.find_quarantined_in(membership, document, roles)
    found = Preview(make_plan(document, roles, membership, PlanOptions(kept=kept)), quarantined=kept)
    if found.plan is None or not found.plan.blocked:
        return found
    # Held is what would go if it were forced, and does not go now.
    forced = make_plan(document, roles, membership, PlanOptions(force=True, kept=kept)).changes
    held = (node for node, change in forced.items() if not set(change.removed) <= set(found.change(node).removed))
    return found._replace(held=frozenset(held))
