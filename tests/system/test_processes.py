"""Processes are found by name and described, also while they exec; a process that ended has no description."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from lbagent.system.processes import can_read_processes, find_processes, read_process
from tests.helpers.real_programs import wait_until

NAME = "hap (roxy) x"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with blanks and parentheses in its name."""
    (tmp_path / NAME).symlink_to("/bin/sleep")
    with subprocess.Popen([str(tmp_path / NAME), "60"], cwd=tmp_path, env={"A": "b=c", "E": ""}) as started:
        # Its name is there a moment before its words.
        wait_until(lambda: Path(f"/proc/{started.pid}/cmdline").read_bytes().startswith(bytes(tmp_path)))
        yield started
        started.kill()


def test_a_process_is_described(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    found = read_process(sleeper.pid)

    assert found is not None
    assert (found.pid, found.parent, found.program, found.alive) == (sleeper.pid, os.getpid(), NAME, True)
    assert (found.argv, found.environ, found.cwd) == (
        [str(tmp_path / NAME), "60"],
        {"A": "b=c", "E": ""},
        str(tmp_path),
    )
    assert found.user == os.getuid()


def test_its_start_time_is_in_epoch_seconds(sleeper: subprocess.Popen[bytes]) -> None:
    found = read_process(sleeper.pid)

    assert found is not None
    assert abs(found.start_time - time.time()) < 5


def test_a_process_is_found_by_the_beginning_of_its_name(sleeper: subprocess.Popen[bytes]) -> None:
    assert sleeper.pid in [one.pid for one in find_processes("hap (")]
    assert sleeper.pid not in [one.pid for one in find_processes("ap (")]


def test_a_process_that_repeats_its_exec_always_has_arguments_and_environment(tmp_path: Path) -> None:
    script = tmp_path / "again"
    script.write_text('#!/bin/sh\nexec "$0" word\n')
    script.chmod(0o755)
    with subprocess.Popen([script, "word"], env={"A": "b"}) as started:
        looks = [(one.argv[-1:], "A" in one.environ) for _ in range(2000) if (one := read_process(started.pid))]
        started.kill()

    assert (len(looks), [look for look in looks if look != (["word"], True)]) == (2000, [])


def test_a_process_without_environment_is_read_at_once(mocker: MockerFixture) -> None:
    with subprocess.Popen(["/bin/sleep", "60"], env={}) as started:
        wait_until(lambda: Path(f"/proc/{started.pid}/comm").read_text() == "sleep\n")
        found = read_process(started.pid)
        sleep = mocker.patch("time.sleep")

        assert found
        assert (found.environ, sleep.call_count) == ({}, 0)
        started.kill()


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    wait_until(lambda: (found := read_process(sleeper.pid)) is not None and not found.alive)

    assert sleeper.pid not in [one.pid for one in find_processes("hap")]


def test_an_ended_process_is_none_and_has_no_arguments_or_environment(sleeper: subprocess.Popen[bytes]) -> None:
    before = read_process(sleeper.pid)
    sleeper.kill()
    sleeper.wait()

    assert read_process(sleeper.pid) is None
    assert before is not None
    assert (before.argv, before.environ, before.cwd, before.unit) == ([], {}, None, None)


def test_this_process_is_found() -> None:
    found = read_process(os.getpid())

    assert found is not None
    assert found.argv[0] == sys.orig_argv[0]
    assert can_read_processes()


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_no_such_pid_is_none(pid: int) -> None:
    assert read_process(pid) is None


def test_an_environment_that_may_not_be_read_is_empty_at_once(
    sleeper: subprocess.Popen[bytes], mocker: MockerFixture
) -> None:
    """It is not mistaken for the empty one of a process during an exec, for which the reader waits."""
    found = read_process(sleeper.pid)
    assert found is not None
    mocker.patch("lbagent.system.processes.open", side_effect=PermissionError, create=True)
    sleep = mocker.patch("time.sleep")

    assert (found.environ, sleep.call_count) == ({}, 0)
