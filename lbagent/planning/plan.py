"""The plan: what the managed lines are to be, as a function of haproxy.cfg's text, roles.yml and membership.

Declarative: nothing here asks what happened, only what is so. No clock, no order of arrival, and
what was planned once is planned again the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lbagent.errors import Refused
from lbagent.haproxy.config import Document, Edit, Marker, Proxy, digest_lines
from lbagent.membership.model import Membership
from lbagent.outcome import BlockedRemoval
from lbagent.planning.desired import DesiredServers
from lbagent.planning.guard import Guard, Removals
from lbagent.planning.proxy import PlanContext, ProxyPlanner
from lbagent.roles.model import Pair, Roles
from lbagent.system.tuples import NamedTuple


class Change(NamedTuple):
    """What the plan does to the lines of one node."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


Changed = tuple[tuple[str, ...], tuple[str, ...]]
"""Lines added and removed."""


class Plan(NamedTuple):
    """The texts as they should be, and how they differ from what they are."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    """One text per file of haproxy.cfg, equal to `before` where nothing is to change."""
    digest: str
    """Of the managed lines in `after`."""
    changes: Mapping[str, Change]
    """By node, in the order of the text."""
    blocked: tuple[BlockedRemoval, ...]
    """Removals the guard holds back, marker by marker."""
    notes: tuple[str, ...]
    """What an operator should know: unknown and lost markers, lines by hand, nodes without a line."""
    managed_lines: Mapping[str, list[str]]
    """The managed lines in `after`, by the middle of the marker that they stand above (nothing where it is gone)."""
    removals: Removals = Removals()
    """What is removed or blocked though nobody asked for its removal."""

    @property
    def added(self) -> tuple[str, ...]:
        """Every line that comes, after the proxy it comes into."""
        return tuple(line for change in self.changes.values() for line in change.added)

    @property
    def removed(self) -> tuple[str, ...]:
        """Every line that goes, after the proxy it goes from."""
        return tuple(line for change in self.changes.values() for line in change.removed)

    @property
    def changed(self) -> Changed:
        """Every line that comes and goes."""
        return self.added, self.removed


class PlanOptions(NamedTuple):
    """How far a plan may go."""

    force: bool = False
    """Let go what the guard would hold back."""
    adopt: bool = False
    """Turn hand-written namesakes above a marker into managed lines."""
    kept: frozenset[str] = frozenset()
    """Nodes whose lines stay as they are: quarantined ones, and those on trial."""


_PLAIN = PlanOptions()


def make_plan(document: Document, roles: Roles, membership: Membership, rules: PlanOptions = _PLAIN) -> Plan:
    """The plan for `document`. Raises Refused where a marker stands twice in one proxy."""
    pairs = roles.list_pairs()
    wishes = DesiredServers(roles, membership)
    guard = Guard(membership, wishes.paused, wishes.superseded, force=rules.force)
    turn = PlanContext(wishes, guard, rules.kept, rules.adopt)
    edits: list[Edit] = []
    changes: dict[str, tuple[list[str], list[str]]] = {}
    notes: dict[str, None] = {}
    managed: list[tuple[str, list[str]]] = []
    standing: dict[str, list[str]] = {}
    for proxy in (one for one in document.proxies if one.markers or one.managed):
        _single(document, proxy)
        place = ProxyPlanner(document, proxy, roles, pairs, membership.members)
        texts: list[str] = []
        for spot in place.spots(turn):
            edits += spot.edits(document, proxy)
            spot.enter(proxy, place.node, changes)
            texts += spot.after
            standing.setdefault(spot.middle(proxy), []).extend(spot.after)
        managed += [(str(proxy), texts)] if texts else []
        notes.update(dict.fromkeys(place.notes))
    notes.update(dict.fromkeys([*turn.wishes.notes, *_unmarked(document, pairs), *_left_alone(document)]))
    named = {node: Change(tuple(added), tuple(removed)) for node, (added, removed) in changes.items()}
    held, after = tuple(turn.guard.held), document.apply_edits(edits)
    return Plan(document.texts, after, digest_lines(managed), named, held, tuple(notes), standing, turn.guard.removals)


def _single(document: Document, proxy: Proxy) -> None:
    for first, second in doubled(document, proxy):
        text = document.lines[second.at].strip()
        where = document.locate(first.at)
        raise Refused(f"{document.locate(second.at)}: {text!r} stands in {proxy} twice, first at {where}: delete one")


def doubled(document: Document, proxy: Proxy) -> Iterator[tuple[Marker, Marker]]:
    """Markers that are in a proxy twice, though not in two branches of one `.if`, each with the first of them."""
    seen: dict[str, list[Marker]] = {}
    for marker in proxy.markers:
        before = seen.setdefault(marker.middle, [])
        first = next((one for one in before if not document.are_exclusive(one.at, marker.at)), None)
        if first is not None:
            yield first, marker
        before.append(marker)


def _left_alone(document: Document) -> list[str]:
    """What is wrong with markers and lines of which lbagent keeps away."""
    ignored = [f"{document.locate(at)}: this marker is ignored: {why}" for at, why in document.misplaced]
    ignored += [f"{document.locate(at)}: this is not a marker, though nearly" for at in document.near_markers]
    return ignored + [
        f"{document.locate(line.at)}: this looks like a managed line, but {line.why}: it is left alone"
        for line in document.damaged
    ]


def _unmarked(document: Document, pairs: Mapping[str, Pair]) -> list[str]:
    there = {marker.middle for proxy in document.proxies for marker in proxy.markers}
    missing = (middle for middle in pairs if middle not in there)
    return [f"haproxy.cfg has no marker '# additional-{middle}-server'" for middle in missing]
