"""There is one writer at a time."""

# ruff: noqa: E501  # a case of a table stands on one line

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbagent.state.lock import acquire_lock, is_locked

HOLDER = """
import sys, time
from lbagent.state.lock import acquire_lock
with acquire_lock(sys.argv[1]) as had:
    print(had, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the lock is."""
    return str(tmp_path / "lock")


@pytest.fixture
def holder(path: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, path, "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_free_lock_is_acquired_and_released(path: str) -> None:
    with acquire_lock(path) as had:
        assert had
        assert is_locked(path)

    assert not is_locked(path)


def test_a_busy_lock_is_not_acquired(path: str, holder: subprocess.Popen[str]) -> None:
    assert holder.poll() is None

    with acquire_lock(path) as had:
        assert not had


def test_a_failed_attempt_does_not_release_the_lock_of_another_process(
    path: str, holder: subprocess.Popen[str]
) -> None:
    with acquire_lock(path) as had:
        assert not had

    assert is_locked(path)
    assert holder.poll() is None


def test_waiting_ends_in_time(path: str, holder: subprocess.Popen[str]) -> None:
    started = time.monotonic()

    with acquire_lock(path, 0.2) as had:
        assert not had

    assert time.monotonic() - started >= 0.2
    assert holder.poll() is None


def test_a_waiting_process_acquires_the_lock_when_its_holder_ends(path: str, holder: subprocess.Popen[str]) -> None:
    holder.kill()

    with acquire_lock(path, 5) as had:
        assert had


def test_a_lock_dies_with_its_holder(path: str, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()

    assert not is_locked(path)


def test_an_error_gives_it_back(path: str) -> None:
    with pytest.raises(KeyError), acquire_lock(path):
        raise KeyError

    assert not is_locked(path)


def test_the_file_stays(path: str) -> None:
    with acquire_lock(path):
        pass

    assert Path(path).exists()


def test_a_lock_without_a_file_is_not_held(path: str) -> None:
    assert not is_locked(path)
    assert not Path(path).exists()


def test_looking_at_a_lock_does_not_disturb_others_that_look(path: str) -> None:
    with acquire_lock(path):
        pass

    answers = [subprocess.Popen([sys.executable, "-c", f"from lbagent.state.lock import is_locked; print([is_locked({path!r}) for _ in range(500)].count(True))"],
                                stdout=subprocess.PIPE, text=True) for _ in range(3)]  # fmt: skip

    assert [answer.communicate()[0] for answer in answers] == ["0\n"] * 3


def test_a_lock_at_which_another_process_looks_is_not_busy(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(path).touch()
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # as is_locked does, for a moment
    monkeypatch.setattr(time, "sleep", lambda _: os.close(descriptor))

    with acquire_lock(path) as acquired:
        assert acquired


def test_a_released_lock_is_free_while_a_child_shares_its_descriptor(path: str) -> None:
    with acquire_lock(path):
        opened = (
            int(name) for name in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{name}") == path
        )
        [descriptor] = opened
        shared = os.dup(descriptor)  # as a child has it that was forked and has not run its program yet
    with acquire_lock(path) as acquired:
        pass
    os.close(shared)

    assert acquired
