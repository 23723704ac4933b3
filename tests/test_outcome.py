"""Each outcome and each error of a run has its exit status."""

from __future__ import annotations

import re

import pytest

from lbagent import errors
from lbagent.haproxy.reload import ReloadFailed
from lbagent.outcome import BlockedRemoval, Outcome, Verdict, format_line_counts, format_quarantined


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.LbagentError, 1),
        (errors.NotStored, 1),
        (errors.UsageError, 2),
        (errors.RolesRefused, 2),
        (errors.Refused, 4),
        (errors.RolledBack, 5),
        (errors.ReloadPostponed, 5),
        (ReloadFailed, 5),
        (errors.Busy, 6),
        (errors.TryAgain, 75),
    ],
)
def test_every_error_has_its_exit_status(error: type[errors.LbagentError], status: int) -> None:
    assert error("words").exit_status == status
    assert str(error("words")) == "words"
    assert issubclass(error, errors.LbagentError)


def test_every_error_is_in_the_table_with_its_exit_status() -> None:
    found = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.LbagentError)]

    table = dict(re.findall(r"(\w+) +(\d+) ", str(errors.__doc__)))
    shown = {one.__name__: str(one.exit_status) for one in found}
    assert set(table) == set(shown)
    assert table == shown


@pytest.mark.parametrize(
    ("verdict", "confirmed"),
    [(Verdict.UNCHANGED, True), (Verdict.APPLIED, True), (Verdict.WRITTEN, False), (Verdict.QUEUED, False)],
)
def test_an_outcome_is_confirmed_only_if_haproxy_runs_it(verdict: Verdict, confirmed: bool) -> None:  # noqa: FBT001
    assert Outcome(verdict).is_confirmed is confirmed


def test_nothing_to_do_is_not_confirmed_if_haproxy_does_not_run() -> None:
    assert Outcome(Verdict.UNCHANGED, running=False).is_confirmed is False


@pytest.mark.parametrize(
    ("added", "removed", "words"),
    [
        (0, 0, "no lines changed"),
        (1, 2, "1 line added, 2 removed"),
        (2, 1, "2 lines added, 1 removed"),
    ],
)
def test_numbers_of_lines_have_the_right_plural(added: int, removed: int, words: str) -> None:
    assert format_line_counts(added, removed) == words


def test_every_quarantined_node_has_a_sentence() -> None:
    assert format_quarantined({}) == ()
    assert format_quarantined({"web09": "unknown keyword"}) == (
        "web09 is in quarantine, its lines are unchanged: unknown keyword",
    )


def test_of_thousands_of_quarantined_nodes_a_few_are_named() -> None:
    output = format_quarantined({f"n{at}": "refused" for at in range(1000)})

    assert len(output) == 21
    assert output[-1] == "980 more nodes are in quarantine; `lbagent status` lists them"


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_verdict_that_is_not_an_error_has_exit_status_zero(verdict: Verdict) -> None:
    assert Outcome(verdict).exit_status == 0


@pytest.mark.parametrize("verdict", list(Verdict))
def test_blocked_removals_have_exit_status_three(verdict: Verdict) -> None:
    assert Outcome(verdict, blocked=(BlockedRemoval(3, "3 of 4 lines would go"),)).exit_status == 3
