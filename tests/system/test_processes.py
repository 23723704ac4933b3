"""Processes are found and described, also while they exec; their listeners are found, endpoints compared by address."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from lbagent.system.processes import (
    can_read_processes,
    find_listening_users,
    find_process,
    find_processes,
    find_silent_endpoints,
    is_same_endpoint,
    read_process,
)
from tests.helpers.real_programs import free_port, wait_until

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
    with subprocess.Popen(["/bin/cat"], env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdin
        assert started.stdout
        started.stdin.write(b"x\n")
        started.stdin.flush()
        assert started.stdout.readline() == b"x\n"  # its exec is complete
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
    assert find_process(pid) is None


def test_a_process_that_cannot_be_read_has_not_ended(sleeper: subprocess.Popen[bytes], mocker: MockerFixture) -> None:
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    mocker.patch("lbagent.system.processes.open", side_effect=error, create=True)

    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        find_process(sleeper.pid)
    assert read_process(sleeper.pid) is None


def test_an_environment_that_may_not_be_read_is_empty_at_once(
    sleeper: subprocess.Popen[bytes], mocker: MockerFixture
) -> None:
    """It is not mistaken for the empty one of a process during an exec, for which the reader waits."""
    found = read_process(sleeper.pid)
    assert found is not None
    mocker.patch("lbagent.system.processes.open", side_effect=PermissionError, create=True)
    sleep = mocker.patch("time.sleep")

    assert (found.environ, sleep.call_count) == ({}, 0)


@pytest.mark.parametrize(
    ("one", "other", "are"),
    [
        ("127.0.0.1:7373", "127.0.0.1:7373", True),
        ("localhost:7373", "127.0.0.1:7373", True),
        ("0.0.0.0:7373", "127.0.0.1:7373", True),
        (":7373", "127.0.0.1:7373", True),
        ("[::]:7373", "127.0.0.1:7373", True),
        ("[::1]:7373", "0:0:0:0:0:0:0:1:7373", True),
        ("127.0.0.1:7373", "127.0.0.2:7373", False),
        ("localhost:7373", "127.0.0.1:7374", False),
        ("0.0.0.0:7374", "127.0.0.1:7373", False),
        ("unix.sock", "127.0.0.1:7373", False),
        ("127.0.0.1:99999999999999999999", "127.0.0.1:7373", False),
        ("\x00:7373", "127.0.0.1:7373", False),
    ],
)
def test_endpoints_are_compared_by_address_not_by_spelling(one: str, other: str, are: bool) -> None:  # noqa: FBT001
    assert (is_same_endpoint(one, other), is_same_endpoint(other, one)) == (are, are)


def test_the_uid_of_a_listener_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as here:
        port = here.getsockname()[1]

        assert find_listening_users(f"localhost:{port}") == {os.getuid()}
        assert find_listening_users(f"127.0.0.2:{port}") == set()
    assert find_listening_users(f"127.0.0.1:{port}") == set()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(0.2)
        yield one


def test_only_the_endpoint_that_refuses_is_silent(listener: socket.socket) -> None:
    there, nobody = ("127.0.0.1", listener.getsockname()[1]), ("127.0.0.1", free_port())

    assert find_silent_endpoints([there, nobody, there], 1.0) == {nobody}


def test_the_listener_sees_no_connection(listener: socket.socket) -> None:
    assert find_silent_endpoints([("127.0.0.1", listener.getsockname()[1])], 1.0) == set()

    with pytest.raises(TimeoutError):
        listener.accept()


def count_waiting(port: int) -> int:
    """Return the number of connections that wait at a listening port (of `ss`: Recv-Q)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [words for words in lines if words[1].endswith(f":{port:04X}") and words[3] == "0A"]
    return int(listening[0][4].split(":")[1], 16)


def test_an_endpoint_with_a_full_backlog_is_silent_after_the_time_limit() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        where = full.getsockname()
        with socket.create_connection(where), socket.socket() as second:
            second.settimeout(0)
            second.connect_ex(where)
            wait_until(lambda: count_waiting(where[1]) == 1)

            assert find_silent_endpoints([where], 0.2) == {where}


def test_five_hundred_endpoints_are_tried(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    nobody = {(f"127.8.{number // 250}.{number % 250 + 1}", port) for number in range(500)}

    assert find_silent_endpoints([("127.0.0.1", port), *nobody], 5.0) == nobody


@pytest.mark.parametrize("where", [("::1", 1), ("255.255.255.255", 1)])
def test_an_unreachable_endpoint_raises_no_error(where: tuple[str, int]) -> None:
    assert find_silent_endpoints([where], 0.5) <= {where}


def test_no_endpoints_give_no_silent_ones() -> None:
    assert find_silent_endpoints([], 1.0) == set()
