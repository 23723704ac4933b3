"""The daemon's status socket: one current JSON object per connection, for the group of `lbagent web` only."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.daemon import run_watch
from tests.helpers.real_programs import Haproxy, LoadBalancer, member_line, wait_until

pytestmark = pytest.mark.real

WEB01 = member_line("web01", "127.0.0.11")


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer whose HAProxy runs."""
    with LoadBalancer() as one, Haproxy(one):
        yield one


def read_socket(lb: LoadBalancer) -> dict[str, Any]:
    """Return the object that a reader gets."""
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(20)
        reader.connect(str(lb.folder / "status.sock"))
        content = json.loads(b"".join(iter(lambda: reader.recv(1 << 16), b"")))
    assert isinstance(content, dict)
    return content


def wait_for_status(lb: LoadBalancer, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Wait for an object for which `wanted` is true, and return it."""

    def look() -> dict[str, Any] | None:
        try:
            found = read_socket(lb)
        except OSError:
            return None  # the daemon is starting
        return found if wanted(found) else None

    found = wait_until(look)
    assert found
    return found


def test_a_reader_gets_status_history_and_metrics(lb: LoadBalancer) -> None:
    with run_watch(lb, LBAGENT_RUNTIME_DIR=str(lb.folder)):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(lb.server("web01", "127.0.0.11")))

        found = wait_for_status(lb, lambda found: found["status"]["nodes"] and not found["busy"])
        status = json.loads(lb.run("status", "--json").stdout)

    assert (found["version"], found["error"], found["name"]) == (1, None, os.uname().nodename)
    assert found["status"].keys() == status.keys()
    assert (found["status"]["digest"], found["status"]["confirmed"]) == (status["digest"], True)
    assert [node["name"] for node in found["status"]["nodes"]] == ["web01"]
    assert [(entry["why"], entry["added_count"]) for entry in found["history"]] == [("member-join web01", 1)]
    assert "lbagent_daemon_running 1\n" in found["metrics"]
    assert abs(found["at"] - found["heartbeat"]) < 30


def test_an_invalid_roles_yml_is_the_error_and_no_status(lb: LoadBalancer) -> None:
    with run_watch(lb, LBAGENT_RUNTIME_DIR=str(lb.folder)):
        lb.roles.write_text("roles: [")

        found = wait_for_status(lb, lambda found: found["error"])

    assert found["status"] is None
    assert found["error"].startswith(f"{lb.roles}:")


def test_only_the_user_of_the_daemon_and_the_group_may_connect(lb: LoadBalancer) -> None:
    path = lb.folder / "status.sock"
    with run_watch(lb, LBAGENT_RUNTIME_DIR=str(lb.folder)):
        mode = path.stat().st_mode & 0o777

    assert mode in (0o600, 0o660)
    assert not path.exists()


def test_readers_that_read_nothing_or_close_at_once_do_not_delay_others(lb: LoadBalancer) -> None:
    with run_watch(lb, LBAGENT_RUNTIME_DIR=str(lb.folder)):
        idle = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for one in idle:
            one.connect(str(lb.folder / "status.sock"))
        idle[0].close()

        assert read_socket(lb)["status"] is not None

        for one in idle:
            one.close()


def test_the_socket_of_a_daemon_that_was_killed_is_replaced(lb: LoadBalancer) -> None:
    with run_watch(lb, LBAGENT_RUNTIME_DIR=str(lb.folder)) as daemon:
        daemon.kill()
        daemon.wait(20)
    assert (lb.folder / "status.sock").exists()

    with run_watch(lb, LBAGENT_RUNTIME_DIR=str(lb.folder)):
        wait_for_status(lb, lambda found: found["status"])


def test_the_daemon_works_without_a_runtime_directory(lb: LoadBalancer, tmp_path: Path) -> None:
    with run_watch(lb, LBAGENT_RUNTIME_DIR=str(tmp_path / "missing")):
        lb.join(WEB01)

        wait_until(lambda: lb.is_settled(lb.server("web01", "127.0.0.11")))
