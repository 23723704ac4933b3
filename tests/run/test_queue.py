"""The process that holds the lock applies records until none is new, and always ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lbagent.errors import Refused, RolledBack, TryAgain
from lbagent.outcome import BlockedRemoval, Outcome, Verdict
from lbagent.run.queue import DrainLoop
from lbagent.state.lock import acquire_lock
from lbagent.state.spool import Spool
from lbagent.system.log import Log

DONE = Outcome(Verdict.APPLIED, "done")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    (tmp_path / "spool").mkdir()
    return Spool(str(tmp_path / "spool"), 1000)


@pytest.fixture
def lock(tmp_path: Path) -> str:
    return str(tmp_path / "lock")


def runs(spool: Spool, *ends: Outcome | Exception, kept: bool = False) -> tuple[list[int], Callable[[], Outcome]]:
    """A run that ends so, the next so, while each time but the last a record comes; and how often it was called."""
    calls: list[int] = []

    def run() -> Outcome:
        if not kept:
            spool.remove(spool.list_names())
        end = ends[len(calls)]
        calls.append(len(calls))
        if len(calls) < len(ends):
            spool.store(b"came meanwhile")
        if isinstance(end, Exception):
            raise end
        return end

    return calls, run


def test_a_record_of_the_same_number_is_another_record(spool: Spool, lock: str) -> None:
    assert spool.store(b"one") == "1"
    calls, run = runs(spool, DONE, DONE, DONE)

    DrainLoop(spool, Log()).run_while_spooled(lock, run)

    assert calls == [0, 1, 2]
    assert spool.list_names() == []


def test_an_empty_spool_asks_for_no_run(spool: Spool, lock: str) -> None:
    calls, run = runs(spool, DONE)

    DrainLoop(spool, Log()).run_while_spooled(lock, run)

    assert calls == []


def test_a_record_that_cannot_be_removed_is_not_retried_without_end(spool: Spool, lock: str) -> None:
    spool.store(b"one")
    calls, run = runs(spool, DONE, DONE, kept=True)

    DrainLoop(spool, Log()).run_while_spooled(lock, run)

    assert calls == [0, 1]
    assert spool.list_names() == ["1", "2"]


def test_with_a_busy_lock_its_holder_applies_the_rest(spool: Spool, lock: str) -> None:
    spool.store(b"one")
    calls, run = runs(spool, DONE)

    with acquire_lock(lock) as had:
        DrainLoop(spool, Log()).run_while_spooled(lock, run)

    assert (had, calls) == (True, [])


def test_each_failure_is_logged_once_and_the_first_gives_the_status(
    spool: Spool, lock: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spool.store(b"one")
    calls, run = runs(spool, Refused("no"), RolledBack("back"), RolledBack("back"), OSError(5, "I/O error", "/x"), DONE)
    rounds = DrainLoop(spool, Log())

    rounds.run_while_spooled(lock, run)

    assert calls == [0, 1, 2, 3, 4]
    assert rounds.status == 4
    assert capfd.readouterr().err == "lbagent: no\nlbagent: back\nlbagent: /x: I/O error\n"


def test_marks_are_kept_only_of_present_records(spool: Spool, lock: str) -> None:
    spool.store(b"one")
    rounds = DrainLoop(spool, Log())

    rounds.run_while_spooled(lock, runs(spool, *[DONE] * 50)[1])

    assert (spool.list_names(), len(rounds.seen)) == ([], 1)


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ((DONE,), 0),
        ((DONE, TryAgain("later")), 75),
        ((DONE._replace(blocked=(BlockedRemoval(2, "two of two"),)), DONE), 3),
        ((OSError(28, "No space left on device"), DONE), 1),
    ],
)
def test_the_status_is_that_of_the_first_run_that_failed(
    spool: Spool, lock: str, ends: tuple[Outcome | Exception, ...], status: int
) -> None:
    spool.store(b"one")
    rounds = DrainLoop(spool, Log())

    rounds.run_while_spooled(lock, runs(spool, *ends)[1])

    assert rounds.status == status


def test_a_record_that_is_written_anew_is_seen_anew(spool: Spool) -> None:
    spool.store(b"one")
    before = spool.list_marks()
    os.unlink(os.path.join(spool.folder, "1"))
    spool.store(b"two")

    assert spool.list_names() == ["1"]
    assert spool.list_marks().isdisjoint(before)
