"""The plan: the managed lines that haproxy.cfg should have, as a function of its text, roles.yml and membership.

The plan depends on the state only, not on events, time or order of arrival. A plan for its own result changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from lbagent.errors import Refused
from lbagent.haproxy.config import Document, Edit, Marker, Proxy, digest_lines
from lbagent.membership.model import Membership
from lbagent.outcome import BlockedRemoval
from lbagent.planning.desired import DesiredServers
from lbagent.planning.guard import Guard, Removals
from lbagent.planning.proxy import MarkerBlock, PlanContext, ProxyPlanner
from lbagent.planning.quarantine import find_quarantined_in
from lbagent.roles.model import Pair, Roles


class Change(NamedTuple):
    """The lines of one node that the plan adds and removes."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    """Each with its proxy, as `PROXY: LINE`."""
    reasons: tuple[str, ...] = ()
    """Why lines are removed, where the node gets no other line instead."""


Changed = tuple[tuple[str, ...], tuple[str, ...]]
"""Lines added and lines removed."""


class Plan(NamedTuple):
    """The texts before and after, and their differences."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    """One text per file of haproxy.cfg; equal to `before` where nothing changes."""
    digest: str
    """Digest of the managed lines in `after`."""
    changes: Mapping[str, Change]
    """By node, in the order of the text."""
    blocked: tuple[BlockedRemoval, ...]
    """Removals that the safety guard blocks, marker by marker."""
    notes: tuple[str, ...]
    """Notes for the operator: unknown and missing markers, operator's lines, nodes without a line."""
    managed_lines: Mapping[str, list[str]]
    """The managed lines in `after` by the middle of their marker (empty where the marker is gone)."""
    removals: Removals = Removals()
    """The unrequested removals, allowed or blocked."""
    reasons: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """By node: why it gets no line at a marker, or why a line of it is kept or removed."""

    @property
    def added(self) -> tuple[str, ...]:
        """Every added line, with its proxy."""
        return tuple(line for change in self.changes.values() for line in change.added)

    @property
    def removed(self) -> tuple[str, ...]:
        """Every removed line, with its proxy."""
        return tuple(line for change in self.changes.values() for line in change.removed)

    @property
    def changed(self) -> Changed:
        """Every added line and every removed line."""
        return self.added, self.removed


class PlanOptions(NamedTuple):
    """Options of a plan."""

    force: bool = False
    """Apply removals that the safety guard would block."""
    adopt: bool = False
    """Make operator's lines above a marker managed where they name a desired node."""
    kept: frozenset[str] = frozenset()
    """Nodes whose lines stay unchanged: quarantined nodes, and nodes that a trial leaves out."""


_NO_OPTIONS = PlanOptions()


def make_plan(document: Document, roles: Roles, membership: Membership, options: PlanOptions = _NO_OPTIONS) -> Plan:
    """Return the plan for `document`. Raises Refused where a marker appears twice in a proxy."""
    pairs = roles.list_pairs()
    desired = DesiredServers(roles, membership)
    guard = Guard(membership, desired.paused, desired.superseded, force=options.force)
    context = PlanContext(pairs, desired, guard, options.kept, options.adopt)
    edits: list[Edit] = []
    changes = _Changes()
    notes: dict[str, None] = {}
    managed: list[tuple[str, list[str]]] = []
    lines_by_marker: dict[str, list[str]] = {}
    for proxy in (one for one in document.proxies if one.markers or one.managed):
        _refuse_duplicate_markers(document, proxy)
        planner = ProxyPlanner(document, proxy, context)
        texts: list[str] = []
        for block in planner.plan_blocks():
            edits += block.make_edits(document, proxy)
            changes.record_block(proxy, block)
            texts += block.after
            lines_by_marker.setdefault(block.find_middle(proxy), []).extend(block.after)
        managed += [(str(proxy), texts)] if texts else []
        notes.update(dict.fromkeys(planner.notes))
        changes.record_reasons(planner.reasons)
    notes.update(dict.fromkeys([*_note_missing_markers(document, pairs), *_note_ignored_lines(document)]))
    return Plan(
        document.texts,
        document.apply_edits(edits),
        digest_lines(managed),
        changes.by_node,
        tuple(guard.blocked),
        tuple(notes),
        lines_by_marker,
        guard.removals,
        changes.reasons,
    )


class _Changes:
    """The changes and reasons of all proxies, by node."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[list[str], list[str], dict[str, None]]] = {}
        self._reasons: dict[str, dict[str, None]] = {}

    def record_block(self, proxy: Proxy, block: MarkerBlock) -> None:
        for line in block.removed:
            _, removed, reasons = self._lines.setdefault(line.node, ([], [], {}))
            removed.append(f"{proxy}: {line.text}")
            reasons |= {line.reason: None} if line.reason else {}
        for planned in block.added:
            added, _, _ = self._lines.setdefault(planned.node, ([], [], {}))
            added.append(f"{proxy}: {planned.text}")

    def record_reasons(self, reasons: Iterable[tuple[str, str]]) -> None:
        for node, reason in reasons:
            self._reasons.setdefault(node, {})[reason] = None

    @property
    def by_node(self) -> dict[str, Change]:
        return {node: Change(*map(tuple, lines)) for node, lines in self._lines.items()}

    @property
    def reasons(self) -> dict[str, tuple[str, ...]]:
        return {node: tuple(reasons) for node, reasons in self._reasons.items()}


class Preview(NamedTuple):
    """What the next run would change, and what it would leave unchanged."""

    plan: Plan | None = None
    """None where no plan can be made."""
    obstacle: str = ""
    """Why no plan can be made."""
    blocked: frozenset[str] = frozenset()
    """Nodes with lines that the safety guard does not let the plan remove."""
    quarantined: frozenset[str] = frozenset()

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the plan."""
        return self.plan.notes if self.plan else ()

    def change(self, node: str) -> Change:
        """Return what the next run would do to the lines of a node."""
        return self.plan.changes.get(node, _NO_CHANGE) if self.plan else _NO_CHANGE


_NO_CHANGE = Change()


def make_preview(document: Document, roles: Roles, membership: Membership) -> Preview:
    """Return what the next run would do with `document`. Raises Refused where a marker appears twice in a proxy."""
    kept = find_quarantined_in(membership, document, roles)
    plan = make_plan(document, roles, membership, PlanOptions(kept=kept))
    if not plan.blocked:
        return Preview(plan, quarantined=kept)
    # The guard keeps lines of a node where a forced plan would remove lines that this plan keeps.
    forced = make_plan(document, roles, membership, PlanOptions(force=True, kept=kept)).changes
    removed = {node: set(change.removed) for node, change in plan.changes.items()}
    blocked = (node for node, change in forced.items() if not set(change.removed) <= removed.get(node, set()))
    return Preview(plan, blocked=frozenset(blocked), quarantined=kept)


def _refuse_duplicate_markers(document: Document, proxy: Proxy) -> None:
    for first, second in find_duplicate_markers(document, proxy):
        text = document.lines[second.at].strip()
        words = f"marker {text!r} appears twice in {proxy}, first at {document.locate(first.at)}; delete one"
        raise Refused(f"{document.locate(second.at)}: {words}")


def find_duplicate_markers(document: Document, proxy: Proxy) -> Iterator[tuple[Marker, Marker]]:
    """Yield markers that appear twice in a proxy, after the first of each; branches of one `.if` are apart."""
    seen: dict[str, list[Marker]] = {}
    for marker in proxy.markers:
        before = seen.setdefault(marker.middle, [])
        first = next((one for one in before if not document.are_exclusive(one.at, marker.at)), None)
        if first is not None:
            yield first, marker
        before.append(marker)


def _note_ignored_lines(document: Document) -> list[str]:
    """Return notes on markers and lines that look wrong and are ignored."""
    ignored = [f"{document.locate(at)}: marker ignored: {why}" for at, why in document.misplaced]
    ignored += [
        f"{document.locate(at)}: almost a marker, and ignored; write '# additional-SECTION-SERVICE-server'"
        for at in document.near_markers
    ]
    return ignored + [
        f"{document.locate(line.at)}: looks like a managed line, but {line.why}; treated as an operator's line"
        for line in document.damaged
    ]


def _note_missing_markers(document: Document, pairs: Mapping[str, Pair]) -> list[str]:
    there = {marker.middle for proxy in document.proxies for marker in proxy.markers}
    missing = (middle for middle in pairs if middle not in there)
    return [f"haproxy.cfg has no marker '# additional-{middle}-server'" for middle in missing]
