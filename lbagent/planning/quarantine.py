"""Quarantine: nodes whose lines HAProxy refused stay unchanged until something changes that may change the verdict."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

from lbagent.haproxy.config import Document
from lbagent.membership.model import Member, Membership, Quarantine, as_table, find_paused
from lbagent.roles.model import Roles

TRIALS_LIMIT = 16
"""Trials in one search. Two for all changes, one for the operator's text and one for the rest make it 20 at most."""


def fingerprint_context(document: Document, roles: Roles) -> str:
    """Return a text that changes with the operator's lines or roles.yml, which may change HAProxy's verdict."""
    return f"{document.compute_operator_digest()}{roles.digest}"


def find_quarantined(membership: Membership, context: Callable[[], str]) -> frozenset[str]:
    """Return the nodes whose quarantine still applies; `context` returns the text of `fingerprint_context`."""
    there = [member for member in as_table(membership.members).special.values() if member.quarantine]
    if not there:
        return frozenset()
    key = _make_key_function(membership, context())
    return frozenset(member.name for member in there if member.quarantine and member.quarantine.key == key(member))


def find_quarantined_in(membership: Membership, document: Document, roles: Roles) -> frozenset[str]:
    """Return the nodes whose quarantine still applies. The context is computed only where a node is quarantined."""
    return find_quarantined(membership, lambda: fingerprint_context(document, roles))


def quarantine_nodes(membership: Membership, reasons: Mapping[str, str], context: str, now: int) -> Membership:
    """Return membership with the nodes of `reasons` in quarantine since `now` (epoch seconds)."""
    table, key = as_table(membership.members), _make_key_function(membership, context)
    known = (table[node] for node in reasons if node in table)
    edits = {one.name: one._replace(quarantine=Quarantine(now, reasons[one.name], key(one))) for one in known}
    return membership._replace(members=table.apply_edits(edits))


def lift_quarantines(membership: Membership, held: frozenset[str]) -> Membership:
    """Return membership with only the nodes in `held` quarantined; the same object where nothing changes."""
    table = as_table(membership.members)
    over = {
        name: member._replace(quarantine=None)
        for name, member in table.special.items()
        if member.quarantine and name not in held
    }
    return membership._replace(members=table.apply_edits(over)) if over else membership


def _make_key_function(membership: Membership, surroundings: str) -> Callable[[Member], str]:
    """Return a function for the key of a member: it covers everything that its lines are made of.

    A pause counts where it applies to any name at the address of the member.
    """
    out = find_paused(membership)

    def key(member: Member) -> str:
        tags = sorted((member.tags or {}).items())
        state = (member.address, member.role, tags, member.present, member.name in out, surroundings)
        return f"{zlib.crc32(repr(state).encode()):08x}"

    return key


def find_refused_nodes(
    nodes: Sequence[str], validate: Callable[[Sequence[str]], str | None], reason: str
) -> dict[str, str]:
    """Return those of `nodes` whose changes HAProxy refuses, each with its reason.

    `validate` returns HAProxy's reason against the changes of some nodes; None where it accepts them. `reason` is
    HAProxy's reason against all. One culprit of n takes about log2 n + 1 trials. Of up to 13 nodes each is tried alone.
    Nodes left after TRIALS_LIMIT trials are refused together.
    """
    return _Search(validate).run(list(nodes), reason)


class _Search:
    def __init__(self, refusal: Callable[[Sequence[str]], str | None]) -> None:
        self._validate = refusal
        self._left = TRIALS_LIMIT
        self._good: list[str] = []
        self._found: dict[str, str] = {}

    def run(self, nodes: list[str], words: str) -> dict[str, str]:
        refused: str | None = words
        while nodes and refused is not None:
            if self._should_try_one_by_one(len(nodes)):
                self._try_one_by_one(nodes, refused)
                break
            first, nodes, words = self._find_first_culprit(nodes, refused)
            self._blame(first, words)
            # Usually there is one culprit, and all nodes after it are good.
            refused = self._try_nodes(nodes) if nodes and self._left else words
        return self._found

    def _try_nodes(self, nodes: list[str]) -> str | None:
        self._left -= 1
        words = self._validate([*self._good, *nodes])
        if words is None:
            self._good += nodes
        return words

    def _find_first_culprit(self, nodes: list[str], words: str) -> tuple[list[str], list[str], str]:
        """Return the first culprit in `nodes`, the nodes after it, and its reason.

        Together with the good nodes, `nodes` were refused.
        """
        behind: list[str] = []
        # One trial is reserved for the nodes after it: they are many, and usually good.
        while len(nodes) > 1 and self._left > bool(behind):
            half = len(nodes) // 2
            left, right = nodes[:half], nodes[half:]
            state = self._try_nodes(left)
            if state is None:
                nodes = right
            else:
                nodes, behind, words = left, right + behind, state
        return nodes, behind, words

    def _should_try_one_by_one(self, count: int) -> bool:
        """Return whether several culprits exist and another halving would leave too few trials for each node."""
        halving = (count - 1).bit_length() + 1
        return bool(self._found) and count <= self._left < count - 1 + halving

    def _try_one_by_one(self, nodes: list[str], words: str) -> None:
        before = len(self._found)
        for node in nodes[:-1]:
            if state := self._try_nodes([node]):
                self._blame([node], state)
        # Where all others are good, the last node is the culprit: it needs no trial.
        last = words if len(self._found) == before else self._try_nodes(nodes[-1:])
        if last is not None:
            self._blame(nodes[-1:], last)

    def _blame(self, nodes: list[str], words: str) -> None:
        if len(nodes) > 1:
            others = "the other node" if len(nodes) == 2 else f"one of {len(nodes) - 1} others"  # noqa: PLR2004
            words = f"{words} (or {others}, not tried separately)"
        self._found.update(dict.fromkeys(nodes, words))
