"""The part of the tests with several HAProxy versions that `make test` runs; `make matrix` runs all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

ENOUGH = 4
"""From this number of combinations on, each runs with one version, and together they run with all versions."""


def choose_slice(cases: Sequence[tuple[Hashable, Hashable, str]], versions: Sequence[str], start: int = 0) -> set[int]:
    """Return the positions of the slice in `cases` of a module; a case is (test, other parameters, HAProxy version).

    Each test, with each combination of its other parameters, runs with one version or two: if two, with one of
    the older half and one of the newer half of `versions`. The versions rotate from `start` on, so that all are used.
    """
    combinations: dict[Hashable, dict[Hashable, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    for position, (test, others, version) in enumerate(cases):
        combinations[test][others].append((version, position))
    chosen: set[int] = set()
    for turn, by_others in enumerate(combinations.values(), start):
        for number, there in enumerate(by_others.values()):
            on: dict[str, list[int]] = defaultdict(list)
            for version, position in there:
                on[version].append(position)
            count = 1 if len(by_others) >= ENOUGH else 2
            wanted = [version for version in _rotate(versions, turn + number) if version in on][:count]
            chosen.update(position for version in wanted for position in on[version])
    return chosen


def _rotate(versions: Sequence[str], turn: int) -> list[str]:
    """Return `versions` rotated: one of each half first, every version equally often."""
    first = turn % len(versions)
    half = len(versions) // 2
    second = first + half if first < half else len(versions) - 1 - first
    return list(dict.fromkeys([versions[first], versions[second], *versions]))
