"""The chaos run itself: its model notices what must not happen, and an interrupted run leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scenarios.chaos.clients import Failure, LogLine
from scenarios.chaos.comparison import GRACE, Seen, explain_failure, find_differences
from scenarios.chaos.model import Fault, Model, Node
from scenarios.chaos.site import CONFIG, SERVICES, Server
from tests.helpers.real_programs import wait_until


@pytest.fixture
def model() -> Model:
    """Two nodes: n01 serves, n02 is paused."""
    return Model([Node("n01", "10.0.1.1", "web"), Node("n02", "10.0.1.2", "web", paused=True)], CONFIG, dict(SERVICES))


def test_lines_and_servers_of_a_healthy_pair_agree(model: Model) -> None:
    seen = Seen(model.render_config(), {"lb-iis": {"n01": Server("10.0.1.1:80", "UP"), "n02": Server("", "MAINT")}})

    found = find_differences(model, {"lb01": seen, "lb02": seen})

    assert found == []
    assert model.list_lines("iis") == [
        "server n01 10.0.1.1:80 check inter 1s rise 2 fall 2 # lbagent role=web",
        "# lbagent paused n02 10.0.1.2 role=web",
    ]


def test_a_server_that_one_haproxy_still_serves_is_a_difference(model: Model) -> None:
    good = {"n01": Server("10.0.1.1:80", "UP")}
    bad = {**good, "n02": Server("10.0.1.2:80", "UP")}
    text = model.render_config()

    found = find_differences(model, {"lb01": Seen(text, {"lb-iis": good}), "lb02": Seen(text, {"lb-iis": bad})})

    paused = "# lbagent paused n02 10.0.1.2 role=web"
    assert found == [
        f"  n02 in lb-iis: model: [{paused}, absent]  lb01: [{paused}, absent]  lb02: [{paused}, UP 10.0.1.2:80]"
    ]


def test_a_changed_line_of_the_operator_is_a_difference(model: Model) -> None:
    good = Seen(model.render_config(), {"lb-iis": {"n01": Server("10.0.1.1:80", "UP")}})
    bad = good._replace(text=good.text.replace("maxconn 4000", "maxconn 400"))

    found = find_differences(model, {"lb01": good, "lb02": bad})

    assert [line for line in found if line.startswith(("  -", "  +")) and "maxconn" in line] == [
        "  -    maxconn 4000",
        "  +    maxconn 400",
    ]


def test_only_a_fault_of_its_server_explains_an_error_of_haproxy() -> None:
    failure = Failure("r1", 10.0, 11.0, "iis", "503")
    logged = LogLine("lb01", "lb-iis", "n01", "503", "SC--", "0/0/-1/0")
    others = [Fault("n02", "node killed", 9.0, 12.0), Fault("lb01", "HAProxy killed", 9.0, 12.0)]

    assert explain_failure(failure, logged, others) == ""
    assert explain_failure(failure, logged, [*others, Fault("n01", "node frozen", 0.0, 5.0)]) == "node frozen"
    assert explain_failure(failure, logged, [Fault("n01", "node frozen", 0.0, 9.9 - GRACE)]) == ""


def test_a_fault_of_a_load_balancer_explains_a_lost_connection() -> None:
    failure = Failure("r1", 10.0, 10.1, "iis", "ConnectionResetError")

    assert explain_failure(failure, None, [Fault("n01", "node killed", 9.0, 12.0)]) == ""
    assert explain_failure(failure, None, [Fault("lb02", "HAProxy killed", 9.0, 12.0)]) == "HAProxy killed"


def list_networks() -> set[str]:
    """Return the network namespaces of all processes of the host."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry / "ns/net"))
    return found


def list_children(pid: int) -> set[int]:
    """Return all descendants of a process."""
    direct = {
        int(child) for task in Path(f"/proc/{pid}/task").glob("*") for child in (task / "children").read_text().split()
    }
    return direct.union(*(list_children(child) for child in direct))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_an_interrupted_run_leaves_nothing_behind(number: signal.Signals) -> None:
    here, seed = Path(__file__).resolve().parent.parent, str(random.randrange(1_000_000))
    argv = [sys.executable, "-m", "scenarios.chaos", "--seconds", "600", "--seed", seed]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=here) as run:
        assert run.stdout
        next(line for line in run.stdout if "machines booted" in line)
        children = list_children(run.pid)
        networks = set()
        for child in children:
            with contextlib.suppress(FileNotFoundError):  # a command that has ended
                networks.add(os.readlink(f"/proc/{child}/ns/net"))

        run.send_signal(number)

    assert len(networks) > 30
    wait_until(lambda: not (networks - {os.readlink("/proc/self/ns/net")}) & list_networks())
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
