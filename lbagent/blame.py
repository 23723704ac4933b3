"""Whose line does HAProxy refuse? Found by trying, never by line numbers: halve until one node is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CHECKS = 17
"""Trials one search may take; the whole, the operator's own text and what is left make it 20."""


def culprits(nodes: Sequence[str], refusal: Callable[[Sequence[str]], str | None], words: str) -> dict[str, str]:
    """Those of `nodes` whose changes HAProxy refuses, each with its reason.

    `refusal` says what HAProxy says of the changes of some nodes, None where it takes them; `words`
    is what it said of all. Those it could not try in CHECKS trials are blamed together.
    """
    return _Search(refusal).run(list(nodes), words)


class _Search:
    def __init__(self, refusal: Callable[[Sequence[str]], str | None]) -> None:
        self._refusal = refusal
        self._left = CHECKS
        self._good: list[str] = []
        self._found: dict[str, str] = {}

    def run(self, nodes: list[str], words: str) -> dict[str, str]:
        self._refused(nodes, words)
        return self._found

    def _refused(self, nodes: list[str], words: str) -> None:
        """Search in `nodes`, which together with the good ones were refused with `words`."""
        if len(nodes) == 1:
            self._found[nodes[0]] = words
            return
        half = len(nodes) // 2
        left, right = nodes[:half], nodes[half:]
        before = len(self._found)
        self._try(left)
        if len(self._found) == before:
            # All of the left half is good, so it is the right one: no trial needed to know.
            self._refused(right, words)
        else:
            self._try(right)

    def _try(self, nodes: list[str]) -> None:
        if not self._left:
            others = f" (with {len(nodes) - 1} others, not tried one by one)" if len(nodes) > 1 else ""
            self._found.update((node, f"refused together{others}") for node in nodes)
            return
        self._left -= 1
        words = self._refusal([*self._good, *nodes])
        if words is None:
            self._good += nodes
        else:
            self._refused(nodes, words)
