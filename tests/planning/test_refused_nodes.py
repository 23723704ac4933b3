"""The search for the nodes whose lines HAProxy refuses finds them in at most 16 trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbagent.planning.quarantine import TRIALS_LIMIT, find_refused_nodes


class Court:
    """A HAProxy that refuses certain nodes, and counts how often it was asked."""

    def __init__(self, bad: Callable[[Sequence[str]], str | None]) -> None:
        self.bad, self.trials = bad, 0

    def refusal(self, nodes: Sequence[str]) -> str | None:
        """Return why HAProxy refuses these nodes; None where it accepts them."""
        self.trials += 1
        return self.bad(nodes)

    def blame(self, nodes: Sequence[str]) -> dict[str, str]:
        """Return the nodes that the search finds, with their reasons."""
        words = self.bad(nodes)
        assert words is not None
        return find_refused_nodes(nodes, self.refusal, words)


def refusing(*guilty: str) -> Court:
    """Refuses each of these, with the words of the first it meets."""
    return Court(lambda nodes: next((f"{node} is bad" for node in nodes if node in guilty), None))


def nodes(count: int) -> list[str]:
    """So many."""
    return [f"n{at}" for at in range(count)]


def test_one_node_alone_needs_no_trial() -> None:
    court = refusing("n0")

    assert court.blame(["n0"]) == {"n0": "n0 is bad"}
    assert court.trials == 0


@pytest.mark.parametrize("at", [0, 1, 499, 500, 998, 999])
def test_one_refused_node_of_a_thousand_is_found(at: int) -> None:
    court = refusing(f"n{at}")

    assert court.blame(nodes(1000)) == {f"n{at}": f"n{at} is bad"}
    assert court.trials <= TRIALS_LIMIT


def test_one_refused_node_of_twenty_thousand_is_found() -> None:
    court = refusing("n12345")

    assert court.blame(nodes(20_000)) == {"n12345": "n12345 is bad"}
    assert court.trials <= TRIALS_LIMIT


@pytest.mark.parametrize(("count", "trials"), [(2, 2), (16, 5), (1000, 11), (20_000, 16)])
def test_one_refused_node_takes_a_bisection_and_one_trial_of_the_rest(count: int, trials: int) -> None:
    court = refusing("n0")

    court.blame(nodes(count))

    assert court.trials <= trials


def test_when_the_trials_run_out_the_nodes_after_the_last_group_are_still_tried() -> None:
    court = refusing("n100", "n600")

    found = court.blame(nodes(1000))

    assert found["n100"] == "n100 is bad"
    assert "n600" in found
    assert len(found) < 60


def test_two_refused_nodes_are_found_each_with_its_own_reason() -> None:
    court = refusing("n3", "n60")

    assert court.blame(nodes(64)) == {"n3": "n3 is bad", "n60": "n60 is bad"}
    assert court.trials <= TRIALS_LIMIT


def test_several_refused_nodes_of_a_few_are_all_found() -> None:
    assert list(refusing(*nodes(8)).blame(nodes(8))) == nodes(8)


def test_of_two_nodes_that_are_refused_only_together_one_is_blamed() -> None:
    court = Court(lambda tried: "n2 and n9 clash" if {"n2", "n9"} <= set(tried) else None)

    found = court.blame(nodes(16))

    assert found == {"n9": "n2 and n9 clash"}


def test_of_three_nodes_that_exclude_each_other_one_stays() -> None:
    court = Court(lambda tried: "clash" if len({"n1", "n2", "n3"} & set(tried)) > 1 else None)

    assert len(court.blame(nodes(4))) == 2


def test_nodes_left_after_the_last_trial_are_refused_together() -> None:
    court = refusing(*(f"n{at}" for at in range(0, 1000, 2)))

    found = court.blame(nodes(1000))

    assert {f"n{at}" for at in range(0, 1000, 2)} <= set(found)
    assert any("not tried separately" in why for why in found.values())
    assert court.trials == 16


@given(
    st.integers(1, 60).flatmap(
        lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1), min_size=1, max_size=2))
    )
)
@settings(max_examples=300)
def test_one_or_two_refused_nodes_are_found_exactly(case: tuple[int, set[int]]) -> None:
    count, guilty = case
    court = refusing(*(f"n{at}" for at in guilty))

    found = court.blame(nodes(count))

    assert found == {f"n{at}": f"n{at} is bad" for at in guilty}
    assert court.trials <= TRIALS_LIMIT


@given(
    st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1), min_size=1)))
)
@settings(max_examples=300)
def test_every_refused_node_is_found_in_at_most_sixteen_trials(case: tuple[int, set[int]]) -> None:
    count, guilty = case
    court = refusing(*(f"n{at}" for at in guilty))

    found = court.blame(nodes(count))

    assert {f"n{at}" for at in guilty} <= set(found)
    assert court.trials <= 17


@given(st.sets(st.integers(0, 12), min_size=1))
def test_up_to_thirteen_nodes_are_always_found_exactly(guilty: set[int]) -> None:
    court = refusing(*(f"n{at}" for at in guilty))

    assert court.blame(nodes(13)) == {f"n{at}": f"n{at} is bad" for at in guilty}
    assert court.trials <= TRIALS_LIMIT


@given(st.integers(2, 30), st.sets(st.frozensets(st.integers(0, 29), min_size=1, max_size=3), min_size=1, max_size=4))
@settings(max_examples=300)
def test_the_remaining_nodes_are_accepted(count: int, clashes: set[frozenset[int]]) -> None:
    sets = [{f"n{at % count}" for at in clash} for clash in clashes]
    court = Court(lambda tried: next(("clash" for clash in sets if clash <= set(tried)), None))

    found = court.blame(nodes(count))

    assert court.bad([node for node in nodes(count) if node not in found]) is None
    assert court.trials <= TRIALS_LIMIT


@pytest.mark.parametrize(
    ("count", "guilty", "trials"),
    [
        (8, [6, 7], 4),
        (8, [0, 7], 7),
        (8, [0, 6], 8),
        (7, range(7), 15),
        (8, range(8), 15),
        (10, range(10), 13),
        (13, range(13), 16),
        (13, [11, 12], 5),
        (13, [0, 12], 15),
        (14, [0, 13], 8),
        (16, [0, 1, 15], 13),
        (16, [7, 15], 8),
    ],
)
def test_several_refused_nodes_take_so_many_trials(count: int, guilty: Sequence[int], trials: int) -> None:
    court = refusing(*(f"n{at}" for at in guilty))

    assert court.blame(nodes(count)) == {f"n{at}": f"n{at} is bad" for at in guilty}
    assert court.trials == trials


@pytest.mark.parametrize(("count", "together"), [(14, [10]), (16, [3, 10]), (17, [7, 7]), (100, [49, 49])])
def test_nodes_that_were_not_tried_separately_have_a_reason_with_their_number(count: int, together: list[int]) -> None:
    found = refusing(*nodes(count)).blame(nodes(count))

    alone = count - sum(together)
    reasons = [f"n{number} is bad" for number in range(alone)]
    for size in together:
        reasons += [f"n{len(reasons)} is bad (or one of {size - 1} others, not tried separately)"] * size
    assert list(found.values()) == reasons


def test_of_two_nodes_that_were_not_tried_separately_the_other_one_is_named() -> None:
    found = refusing("n0", "n4", "n8", "n12").blame(nodes(15))

    assert list(found) == ["n0", "n4", "n8", "n12", "n13", "n14"]
    assert found["n13"] == found["n14"] == "n12 is bad (or the other node, not tried separately)"
