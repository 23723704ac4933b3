"""`lbagent status` on a real load balancer shows present problems on top, and none that is fixed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.helpers.daemon import run_watch
from tests.helpers.pair import Balancer, run_pair
from tests.helpers.real_programs import (
    CONFIG,
    LBAGENT,
    RELOADING,
    Backend,
    Haproxy,
    LoadBalancer,
    binaries,
    member_line,
    wait_until,
)
from tests.helpers.terminal import Terminal
from tests.helpers.two_users import TwoUserLoadBalancer

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not binaries() or shutil.which("serf") is None, reason="a real haproxy and a real serf are needed"
    ),
]


def read_status(lb: LoadBalancer, **env: str) -> dict[str, Any]:
    """Return the JSON object."""
    done = lb.run("status", "--json", env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    found: dict[str, Any] = json.loads(done.stdout)
    # No web server runs behind these load balancers, unless a test is about that.
    return found | {"wrong": [one for one in found["wrong"] if one["kind"] != "service"]}


def list_kinds(lb: LoadBalancer) -> list[str]:
    """Return the kinds of the problems."""
    return [one["kind"] for one in read_status(lb)["wrong"]]


def test_a_fixed_failure_is_no_longer_shown() -> None:
    with LoadBalancer() as lb, Haproxy(lb):
        lb.join(member_line("web01", "127.0.0.11"))
        good = read_status(lb)
        lb.text = lb.text.replace(b"balance ", b"balanse ")
        assert lb.run("apply").returncode == 4
        broken, shown = read_status(lb), lb.run("status").stdout.decode()
        lb.text = lb.text.replace(b"balanse ", b"balance ")
        assert lb.run("apply").returncode == 0
        fixed, below = read_status(lb), lb.run("status").stdout.decode()

    assert good["wrong"] == []
    [wrong] = broken["wrong"]
    assert (wrong["kind"], broken["run"]["status"]) == ("last run", 4)
    assert "balanse" in wrong["what"]
    top = [line for line in shown.splitlines() if not line.startswith("service: ")]
    assert top[0].startswith("last run: refused: haproxy.cfg is invalid, not because of lbagent")
    assert broken["last_success"] == good["run"]["at"]
    assert (fixed["wrong"], fixed["run"]["status"], fixed["last_success"]) == ([], 0, fixed["run"]["at"])
    assert re.search(r"^last run: \d+s ago, unchanged: nothing to do$", below, re.MULTILINE)
    assert "\nlast change: " in below


def test_a_failed_reload_is_shown_with_the_time_of_its_next_attempt() -> None:
    with LoadBalancer(roles=RELOADING.replace("haproxy:\n", "haproxy:\n  reload: ['false']\n")) as lb, Haproxy(lb):
        assert lb.join(member_line("web01", "127.0.0.11")).returncode == 5
        found = read_status(lb)
        lines = lb.run("status").stdout.decode().splitlines()
        top = next(line for line in lines if not line.startswith("service: "))

    assert found["next_retry"] == found["served"]["failure"]["at"] + 60
    assert [one["kind"] for one in found["wrong"]] == ["reload"]
    assert top.startswith("reload: the reload failed once: ")
    assert "; next try in " in top


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_stopped_daemon_and_a_stopped_haproxy_are_on_top() -> None:
    with TwoUserLoadBalancer() as lb:
        with Haproxy(lb):
            with run_watch(lb):
                lb.join(member_line("web01", "127.0.0.11"))
                wait_until(lambda: lb.managed)
                running = read_status(lb)
            assert list_kinds(lb) == ["daemon", "sync"]
        assert list_kinds(lb) == ["daemon", "sync", "haproxy"]
        shown = Terminal([LBAGENT, "status"], lb.env, 80).wait_for_end()[1]

    assert running["daemon"] == {"running": True, "needed": True}
    assert "daemon" not in [one["kind"] for one in running["wrong"]]
    assert shown.splitlines()[0].startswith("daemon   `lbagent watch` does not run; events are stored")


def read_peer_metrics(lb: LoadBalancer) -> tuple[int, ...]:
    """Return the numbers of other load balancers in metrics.prom: expected, seen and differing."""
    text = (lb.state / "metrics.prom").read_text()
    found = dict(re.findall(r"^lbagent_peers_(\w+) (\d+)$", text, re.MULTILINE))
    return tuple(int(found[name]) for name in ("expected", "seen", "differing"))


def sync_peers(balancer: Balancer) -> tuple[int, ...]:
    """Run `sync`, which asks the other load balancers, and return their numbers as `read_peer_metrics` does.

    On a busy machine an answer may come too late for one sync.
    """
    assert balancer.run("sync").returncode in (0, 75)
    return read_peer_metrics(balancer.lb)


def test_the_other_load_balancer_has_a_row_with_its_lines_and_last_answer() -> None:
    with run_pair() as (one, other):
        for balancer in (one, other):
            balancer.lb.join(member_line("web01", "127.0.0.11"))
        wait_until(lambda: sync_peers(one) == (1, 1, 0))
        equal = read_status(one.lb)
        shown = one.lb.run("status").stdout.decode()
        other.lb.join(member_line("web02", "127.0.0.12"))
        wait_until(lambda: sync_peers(one) == (1, 1, 1))
        differing = read_status(one.lb)
        other.agent.kill()
        wait_until(lambda: one.agent.members()["lb02"] == "failed", 40)
        wait_until(lambda: sync_peers(one) == (1, 0, 1))
        failed = read_status(one.lb)

    [peer] = equal["peers"]
    assert (peer["name"], peer["status"], peer["equal"], peer["answers"]) == ("lb02", "alive", True, True)
    assert peer["digest"] == equal["digest"]
    assert "peer" not in [wrong["kind"] for wrong in equal["wrong"]]
    assert f"\nload balancer: lb02 {peer['address']} alive, same managed lines, last answer " in shown
    assert [node["state"] for node in equal["nodes"] if node["name"] == "lb02"] in ([], ["load balancer"])
    assert [wrong["what"] for wrong in differing["wrong"] if wrong["kind"] == "peer"] == [
        "lb02: its managed lines differ from ours; compare `lbagent plan` on both"
    ]
    assert failed["peers"][0]["status"] == "failed"
    assert failed["peers"][0]["seen"] == differing["peers"][0]["seen"]
    assert [wrong["what"] for wrong in failed["wrong"] if wrong["kind"] == "peer"] == [
        "lb02: failed in Serf; start its agent"
    ]


def test_failing_syncs_are_on_top() -> None:
    with LoadBalancer() as lb, Haproxy(lb):
        lb.join(member_line("web01", "127.0.0.11"))
        lb.run("sync")
        found = read_status(lb)

    assert [one["kind"] for one in found["wrong"]] == ["sync"]
    assert found["sync"]["failing"] is not None
    assert "Serf agent: `serf " in found["sync"]["words"]


def test_a_proxy_without_a_server_that_accepts_requests_is_on_top() -> None:
    with LoadBalancer() as lb, Backend("web01", "127.0.0.11", lb.port) as web, Haproxy(lb) as haproxy:
        lb.join(member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12"))
        wait_until(lambda: haproxy.servers() == {"web01": "UP", "web02": "DOWN"})
        serving = lb.run("status").stdout.decode()
        web.stop()
        wait_until(lambda: haproxy.servers()["web01"] == "DOWN")
        down = lb.run("status").stdout.decode()

    assert serving.startswith("NODE ")
    assert down.startswith("service: lb-iis: no server takes new requests (2 DOWN)\n\nNODE ")


def test_a_dry_run_records_nothing() -> None:
    with LoadBalancer() as lb, Haproxy(lb):
        lb.join(member_line("web01", "127.0.0.11"))
        before = sorted(path.name for path in lb.state.iterdir())
        subprocess.run([LBAGENT, "sync", "--dry-run"], env=lb.env, capture_output=True, check=False)

        assert sorted(path.name for path in lb.state.iterdir()) == before
        assert list_kinds(lb) == []


@pytest.mark.every_haproxy
def test_the_servers_of_a_proxy_that_a_variable_names_have_their_state() -> None:
    named = CONFIG.replace("global\n", "global\n    presetenv NAME lb-iis\n").replace(
        "listen lb-iis", 'listen "${{NAME}}"'
    )
    # Not paused: HAProxy 3.0 and later may have deleted the server of a paused node.
    with LoadBalancer(named) as lb, Haproxy(lb), Backend("web01", "127.0.0.11", lb.port):
        lb.join(member_line("web01", "127.0.0.11"))
        wait_until(lambda: list_server_states(lb) == [("lb-iis", "web01", "UP")])


def list_server_states(lb: LoadBalancer) -> list[tuple[str, str | None, str | None]]:
    """Return proxy, server and state of the only node's servers; on a busy machine HAProxy may answer too late."""
    (node,) = read_status(lb)["nodes"]
    return [(one["proxy"], one["server"], one["state"]) for one in node["servers"]]


@pytest.mark.every_haproxy
def test_a_proxy_whose_servers_have_weight_0_takes_no_requests() -> None:
    config = CONFIG.replace("    # add", "    default-server weight 0\n    # add")
    with LoadBalancer(config) as lb, Haproxy(lb), Backend("web01", "127.0.0.11", lb.port):
        lb.join(member_line("web01", "127.0.0.11"))
        text = lb.run("status").stdout.decode()

    assert text.startswith("service: lb-iis: no server takes new requests (1 with weight 0)\n\nNODE ")
