"""Nodes whose lines HAProxy refused: kept as they are until something changes that could change the verdict."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

from lbagent.haproxy.config import Document
from lbagent.membership.lookup import find_paused
from lbagent.membership.model import Member, Membership, Quarantine, as_table
from lbagent.roles.model import Roles


def fingerprint_context(document: Document, roles: Roles) -> str:
    """What could change HAProxy's verdict, but for the node itself: the operator's text and roles.yml."""
    return f"{document.compute_operator_digest()}{roles.digest}"


def find_quarantined(membership: Membership, surroundings: Callable[[], str]) -> frozenset[str]:
    """The nodes whose quarantine still holds in these `surroundings` (operator's text and roles.yml)."""
    there = [member for member in as_table(membership.members).special.values() if member.quarantine]
    if not there:
        return frozenset()
    key = _keys(membership, surroundings())
    return frozenset(member.name for member in there if member.quarantine and member.quarantine.key == key(member))


def find_quarantined_in(membership: Membership, document: Document, roles: Roles) -> frozenset[str]:
    """The nodes whose quarantine still holds beside this text and roles.yml; digested only where there is one."""
    return find_quarantined(membership, lambda: fingerprint_context(document, roles))


def quarantine_nodes(membership: Membership, reasons: Mapping[str, str], surroundings: str, now: int) -> Membership:
    """Membership with the nodes of `reasons` in quarantine since `now`, in epoch seconds."""
    table, key = as_table(membership.members), _keys(membership, surroundings)
    known = (table[node] for node in reasons if node in table)
    edits = {one.name: one._replace(quarantine=Quarantine(now, reasons[one.name], key(one))) for one in known}
    return membership._replace(members=table.apply_edits(edits))


def lift_quarantines(membership: Membership, held: frozenset[str]) -> Membership:
    """Membership with no node in quarantine but those in `held`; the very same where there is none to lift."""
    table = as_table(membership.members)
    over = {
        name: member._replace(quarantine=None)
        for name, member in table.special.items()
        if member.quarantine and name not in held
    }
    return membership._replace(members=table.apply_edits(over)) if over else membership


def _keys(membership: Membership, surroundings: str) -> Callable[[Member], str]:
    """What makes the key of a member: all that its lines are made of, a pause by its address's other names too."""
    out = find_paused(membership)

    def key(member: Member) -> str:
        tags = sorted((member.tags or {}).items())
        said = (member.address, member.role, tags, member.present, member.name in out, surroundings)
        return f"{zlib.crc32(repr(said).encode('utf-8', 'surrogateescape')):08x}"

    return key


# --- blame -----------------------------------------------------------------------------------------------

CHECKS = 16
"""Trials one search may take; the whole, twice, the operator's own text and what is left make it 20."""


def find_refused_nodes(
    nodes: Sequence[str], refusal: Callable[[Sequence[str]], str | None], words: str
) -> dict[str, str]:
    """Those of `nodes` whose changes HAProxy refuses, each with its reason.

    `refusal` says what HAProxy says of the changes of some nodes, None where it takes them; `words`
    is what it said of all. One culprit of n costs about log2 n + 1 trials; of up to 13 nodes each is
    judged for itself, however many are bad. Those it could not try in CHECKS trials are blamed together.
    """
    return _Search(refusal).run(list(nodes), words)


class _Search:
    def __init__(self, refusal: Callable[[Sequence[str]], str | None]) -> None:
        self._refusal = refusal
        self._left = CHECKS
        self._good: list[str] = []
        self._found: dict[str, str] = {}

    def run(self, nodes: list[str], words: str) -> dict[str, str]:
        refused: str | None = words
        while nodes and refused is not None:
            if self._better_one_by_one(len(nodes)):
                self._one_by_one(nodes, refused)
                break
            first, nodes, words = self._first(nodes, refused)
            self._blame(first, words)
            # Most often there is one culprit, and all that stand behind it are good.
            refused = self._tried(nodes) if nodes and self._left else words
        return self._found

    def _tried(self, nodes: list[str]) -> str | None:
        self._left -= 1
        words = self._refusal([*self._good, *nodes])
        if words is None:
            self._good += nodes
        return words

    def _first(self, nodes: list[str], words: str) -> tuple[list[str], list[str], str]:
        """The first culprit in `nodes`, which with the good ones were refused; those behind it; its reason."""
        behind: list[str] = []
        # One trial is kept for those behind: they are many, and most often good.
        while len(nodes) > 1 and self._left > bool(behind):
            half = len(nodes) // 2
            left, right = nodes[:half], nodes[half:]
            said = self._tried(left)
            if said is None:
                nodes = right
            else:
                nodes, behind, words = left, right + behind, said
        return nodes, behind, words

    def _better_one_by_one(self, count: int) -> bool:
        """Whether there are several culprits, and another halving would leave too few trials to try each for itself."""
        halving = (count - 1).bit_length() + 1
        return bool(self._found) and count <= self._left < count - 1 + halving

    def _one_by_one(self, nodes: list[str], words: str) -> None:
        before = len(self._found)
        for node in nodes[:-1]:
            if said := self._tried([node]):
                self._blame([node], said)
        # With all others good, it is the last: no trial needed to know.
        last = words if len(self._found) == before else self._tried(nodes[-1:])
        if last is not None:
            self._blame(nodes[-1:], last)

    def _blame(self, nodes: list[str], words: str) -> None:
        others = f" (or one of {len(nodes) - 1} others, not tried one by one)" if len(nodes) > 1 else ""
        self._found.update((node, f"{words}{others}") for node in nodes)
