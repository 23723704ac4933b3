"""The plan: the managed lines that haproxy.cfg should have, as a function of its text, roles.yml and membership.

The plan depends on the state only, not on events, time or order of arrival. A plan for its own result changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lbagent.errors import Refused
from lbagent.haproxy.config import Document, Edit, Marker, Proxy, digest_lines
from lbagent.membership.model import Membership
from lbagent.outcome import BlockedRemoval
from lbagent.planning.desired import DesiredServers
from lbagent.planning.guard import Guard, Removals
from lbagent.planning.proxy import PlanContext, ProxyPlanner
from lbagent.roles.model import Pair, Roles


class Change(NamedTuple):
    """The lines of one node that the plan adds and removes."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


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
    """The removals that nobody requested, allowed or blocked."""

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


_PLAIN = PlanOptions()


def make_plan(document: Document, roles: Roles, membership: Membership, rules: PlanOptions = _PLAIN) -> Plan:
    """Return the plan for `document`. Raises Refused where a marker appears twice in a proxy."""
    pairs = roles.list_pairs()
    desired = DesiredServers(roles, membership)
    guard = Guard(membership, desired.paused, desired.superseded, force=rules.force)
    context = PlanContext(desired, guard, rules.kept, rules.adopt)
    edits: list[Edit] = []
    changes: dict[str, tuple[list[str], list[str]]] = {}
    notes: dict[str, None] = {}
    managed: list[tuple[str, list[str]]] = []
    lines_by_marker: dict[str, list[str]] = {}
    for proxy in (one for one in document.proxies if one.markers or one.managed):
        _refuse_duplicate_markers(document, proxy)
        planner = ProxyPlanner(document, proxy, roles, pairs, membership.members)
        texts: list[str] = []
        for block in planner.plan_blocks(context):
            edits += block.make_edits(document, proxy)
            block.record_changes(proxy, planner.find_node, changes)
            texts += block.after
            lines_by_marker.setdefault(block.find_middle(proxy), []).extend(block.after)
        managed += [(str(proxy), texts)] if texts else []
        notes.update(dict.fromkeys(planner.notes))
    notes.update(
        dict.fromkeys([*context.desired.notes, *_note_missing_markers(document, pairs), *_note_ignored_lines(document)])
    )
    named = {node: Change(tuple(added), tuple(removed)) for node, (added, removed) in changes.items()}
    blocked, after = tuple(context.guard.blocked), document.apply_edits(edits)
    return Plan(
        document.texts,
        after,
        digest_lines(managed),
        named,
        blocked,
        tuple(notes),
        lines_by_marker,
        context.guard.removals,
    )


def _refuse_duplicate_markers(document: Document, proxy: Proxy) -> None:
    for first, second in find_duplicate_markers(document, proxy):
        text = document.lines[second.at].strip()
        where = document.locate(first.at)
        raise Refused(f"{document.locate(second.at)}: {text!r} stands in {proxy} twice, first at {where}: delete one")


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
    ignored = [f"{document.locate(at)}: this marker is ignored: {why}" for at, why in document.misplaced]
    ignored += [f"{document.locate(at)}: this is not a marker, though nearly" for at in document.near_markers]
    return ignored + [
        f"{document.locate(line.at)}: this looks like a managed line, but {line.why}: it is left alone"
        for line in document.damaged
    ]


def _note_missing_markers(document: Document, pairs: Mapping[str, Pair]) -> list[str]:
    there = {marker.middle for proxy in document.proxies for marker in proxy.markers}
    missing = (middle for middle in pairs if middle not in there)
    return [f"haproxy.cfg has no marker '# additional-{middle}-server'" for middle in missing]
