"""A pair of load balancers under load: if one fails, the other serves, and both get the same lines afterwards.

`make test-pair` runs it. The tests share the machines, and each repairs them at its end. A table of the requests is
printed at the end.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios.meter import CLIENTS, PATIENCE, PAUSE, Meter
from scenarios.pair import HEAL_TIMEOUT, Balancer, Pair
from tests.helpers.real_programs import wait_until

SERF = "meta l4proto { tcp, udp } th dport 7946"
VRRP = "ip protocol vrrp"

ALL_IN = {"a01": "in", "b01": "in", "web01": "in", "web02": "in"}

LINES = """\
server web01 10.0.0.21:80 check inter 3s rise 2 fall 2 # lbagent role=web
server web02 10.0.0.22:80 check inter 3s rise 2 fall 2 # lbagent role=web
server a01 10.0.0.31:1111 check inter 3s rise 2 fall 2 # lbagent role=A
server b01 10.0.0.41:2222 check inter 3s rise 2 fall 2 # lbagent role=B
"""

LONGEST_OUTAGE = 60.0
"""Seconds; every outage must be shorter, even on a busy machine."""


@pytest.fixture(scope="module")
def machines() -> Iterator[Pair]:
    """Both load balancers, four servers, and clients that send requests all the time."""
    with Pair() as pair:
        wait_until(lambda: pair.agree(ALL_IN), HEAL_TIMEOUT, 0.2)
        wait_until(lambda: all(one.serving() == set(ALL_IN) for one in pair.both), HEAL_TIMEOUT, 0.2)
        with pair.meter:
            yield pair
        print(f"\n\n{format_report(pair.meter)}")


@pytest.fixture
def pair(machines: Pair) -> Pair:
    """The pair in a healthy state, with the address on lb01."""
    wait_until(lambda: machines.agree(ALL_IN), HEAL_TIMEOUT, 0.2)
    machines.move_address(machines.lb01)
    wait_until(lambda: machines.address_holders == ["lb01"])
    return machines


def format_report(meter: Meter) -> str:
    """Return a table of what clients saw, with a line for each step."""
    kept, new = CLIENTS.values()
    clients = f"{kept} clients over one connection each, {new} with one for each request, {PAUSE * 1000:.0f} ms between"
    return "\n".join(
        [meter.HEAD, *map(str, meter.rows), f"({clients}; lost: an error, or no answer in {PATIENCE:g} s)"]
    )


def wait_for_states(pair: Pair, **other: str) -> None:
    """Wait until both load balancers report these states, and `in` for all other servers."""
    states = {name: state for name, state in {**ALL_IN, **other}.items() if state != "gone"}
    try:
        wait_until(functools.partial(pair.agree, states), HEAL_TIMEOUT, 0.2)
    except AssertionError as late:
        seen = "\n".join(f"{one.name}:\n{one.run('lbagent', 'status').stdout}" for one in pair.both)
        raise AssertionError(f"not {states}:\n{seen}") from late


def wait_for_address(pair: Pair, to: Balancer) -> None:
    """Wait until only this load balancer has the address, and clients get answers."""
    wait_until(lambda: pair.address_holders == [to.name], HEAL_TIMEOUT)
    pair.meter.wait_for_requests()


KILLED = """\
import time
from scenarios.machines import Daemon, Machine
with Machine("killed") as machine:
    Daemon(machine, "sleep", "1000").start()
    print(machine.pid, flush=True)
    time.sleep(1000)
"""


def list_networks() -> set[str]:
    """Return the network namespaces of all processes of the host."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry / "ns/net"))
    return found


def test_a_killed_run_leaves_no_network_behind() -> None:
    here = Path(__file__).resolve().parent.parent
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, cwd=here) as run:
        assert run.stdout
        network = os.readlink(f"/proc/{int(run.stdout.readline())}/ns/net")
        assert network in list_networks()

        run.kill()

    wait_until(lambda: network not in list_networks())


def test_every_server_enrols_on_both_and_check_finds_nothing(pair: Pair) -> None:
    with pair.meter.step("no change") as rows:
        checks = [balancer.run("lbagent", "check") for balancer in pair.both]
        pair.meter.wait_for_requests(500)

    assert [balancer.managed for balancer in pair.both] == [LINES.splitlines()] * 2
    assert [line for check in checks for line in check.stdout.splitlines()[:-1] if not line.startswith("ok ")] == []
    assert rows[0].lost == {kind: {} for kind in CLIENTS}
    assert rows[0].servers == {"web01", "web02", "a01"}


def test_http_features_of_the_example(pair: Pair) -> None:
    answer = pair.request()
    pair.nodes["a01"].set_health("Sick")
    for name in ("web01", "web02"):
        pair.nodes[name].pause()
    wait_until(lambda: [one.serving() for one in pair.both] == [{"b01"}] * 2, HEAL_TIMEOUT, 0.2)

    sorry, sick = pair.request(), pair.request(1111)

    pair.nodes["a01"].set_health("Healthy")
    for name in ("web01", "web02"):
        pair.nodes[name].resume()
    wait_until(lambda: [one.serving() for one in pair.both] == [set(ALL_IN)] * 2, HEAL_TIMEOUT, 0.2)
    assert re.findall(r"(?im)^set-cookie: *(\S*)$", answer) in (["", "session=web01"], ["", "session=web02"])
    assert re.findall(r"(?im)^(HTTP.*|location:.*)$", sorry) == [
        "HTTP/1.1 302 Found",
        "location: http://sorry.example.com/",
    ]
    assert sick.startswith("HTTP/1.1 503 ")


def test_mongodb_is_checked_and_gets_no_clients(pair: Pair) -> None:
    mongo = pair.boot("mongo01", "10.0.0.51", "mongo")
    wait_for_states(pair, mongo01="in")
    wait_until(lambda: all("mongo01" in one.serving() for one in pair.both), HEAL_TIMEOUT, 0.2)

    stats = pair.lb01.run("curl", "-sfu", "admin:change-me", "http://127.0.0.1:8404/;csv").stdout

    mongo.leave()
    wait_for_states(pair)
    pair.remove("mongo01")
    rows = {row["# pxname"]: row for row in csv.DictReader(stats.splitlines()) if row["svname"] == "mongo01"}
    assert {name: row["stot"] for name, row in rows.items()} == {"monitor-mongo": "0"}


def test_haproxy_logs_to_the_new_file_after_a_rotation(pair: Pair) -> None:
    folder = pair.lb01.machine.root / "var/log/haproxy"
    wait_until(lambda: " lb-iis/web0" in (folder / "haproxy.log").read_text())

    pair.lb01.run("logrotate", "--force", "/etc/logrotate.d/haproxy-lb")

    wait_until(
        lambda: " lb-iis/web0" in (folder / "haproxy.log").read_text() if (folder / "haproxy.log").exists() else ""
    )
    size = (folder / "haproxy.log.1").stat().st_size
    pair.meter.wait_for_requests()
    assert (folder / "haproxy.log.1").stat().st_size == size


LAST_SERVER = "done, no other server of web_service_b serves"


def change_servers(pair: Pair, step: str) -> None:
    """Add web03, pause b01 and remove web01 while lb01 is down."""
    with pair.meter.step(f"{step}: web03 joins, b01 pauses, web01 leaves") as rows:
        pair.boot("web03", "10.0.0.23", "web")
        pair.lb02.run("lbagent", "pause", "b01", "--force", checked=False)
        wait_until(lambda: {"web03", "web02"} <= pair.lb02.serving(), HEAL_TIMEOUT, 0.2)
        pair.nodes["web01"].leave()
        wait_until(lambda: pair.lb02.serving() == {"a01", "web02", "web03"}, HEAL_TIMEOUT, 0.2)
        pair.meter.wait_for_requests()

    assert rows[0].errors == 0


def undo_changes(pair: Pair) -> None:
    """Undo `change_servers`."""
    pair.nodes["web01"].start_serf()
    wait_for_states(pair, web03="in", b01="paused")
    pair.lb01.run("lbagent", "resume", "b01")
    pair.nodes["web03"].leave()
    wait_for_states(pair)
    pair.remove("web03")


@pytest.mark.parametrize("whole", [False, True], ids=["haproxy", "all"])
def test_one_load_balancer_serves_while_the_other_is_dead(pair: Pair, *, whole: bool) -> None:
    dead = "HAProxy, Serf and lbagent" if whole else "HAProxy"
    with pair.meter.step(f"{dead} of lb01 killed: the address moves") as failover:
        pair.lb01.crash() if whole else pair.lb01.kill_haproxy()
        wait_for_address(pair, pair.lb02)
    change_servers(pair, "meanwhile")

    with pair.meter.step("lb01 is started again: both have the same lines") as back:
        pair.lb01.restart() if whole else pair.lb01.start_haproxy()
        # An agent that has just started may not yet reach the other load balancer.
        wait_until(lambda: pair.lb01.run("lbagent", "sync").stderr == "", HEAL_TIMEOUT, 1)
        wait_for_states(pair, web01="gone", web03="in", b01="paused")

    assert pair.address_holders == ["lb02"]
    assert pair.lb01.serving() == pair.lb02.serving()
    assert failover[0].outage < LONGEST_OUTAGE
    assert back[0].errors == 0
    undo_changes(pair)


def test_the_address_moves_when_keepalived_is_stopped(pair: Pair) -> None:
    with pair.meter.step("keepalived of lb01 stopped: the address moves") as rows:
        pair.move_address(pair.lb02)
        wait_for_address(pair, pair.lb02)

    assert rows[0].outage < LONGEST_OUTAGE


def test_gossip_bypasses_a_broken_link_between_the_load_balancers(pair: Pair) -> None:
    with (
        pair.cut_network(SERF, [pair.lb01], [pair.lb02]),
        pair.meter.step("gossip cut between lb01 and lb02 only: a pause, a resume") as rows,
    ):
        pair.nodes["web01"].pause()
        wait_for_states(pair, web01="paused")
        pair.nodes["web01"].resume()
        wait_for_states(pair)
        typed = pair.lb02.run("lbagent", "pause", "b01", "--force", checked=False)
        wait_for_states(pair, b01="paused")
        seen = pair.lb01.read_members()

    pair.lb02.run("lbagent", "resume", "b01")
    assert seen["lb02"] == "alive"
    # The query and its answer pass through other members.
    assert (typed.returncode, typed.stdout) == (0, f"lb02  {LAST_SERVER}\nlb01  {LAST_SERVER}\n")
    assert rows[0].errors == 0


def test_after_a_split_of_the_cluster_both_have_the_same_lines(pair: Pair) -> None:
    ours, theirs = [pair.lb01, *pair.select_nodes("web01", "a01")], [pair.lb02, *pair.select_nodes("web02", "b01")]
    with pair.cut_network(SERF, ours, theirs):
        with pair.meter.step("cluster split: each half reports the other as failed") as split:
            wait_until(
                lambda: all(pair.lb01.read_members()[host.name] == "failed" for host in theirs), HEAL_TIMEOUT, 0.2
            )
            wait_until(lambda: all(pair.lb02.read_members()[host.name] == "failed" for host in ours), HEAL_TIMEOUT, 0.2)
        with pair.meter.step("split: web01 is paused on one side, b01 on the other") as paused:
            pair.nodes["web01"].pause()
            alone = pair.lb02.run("lbagent", "pause", "b01", "--force", checked=False)
            wait_until(lambda: pair.lb01.serving() == {"web02", "a01", "b01"}, HEAL_TIMEOUT, 0.2)
            wait_until(lambda: pair.lb02.serving() == {"web01", "web02", "a01"}, HEAL_TIMEOUT, 0.2)

    with pair.meter.step("healed: both have the same lines") as healed:
        wait_for_states(pair, web01="paused", b01="paused")

    assert (alone.returncode, alone.stdout) == (1, f"lb02  {LAST_SERVER}\nlb01  not asked: failed in Serf\n")
    assert [rows[0].errors for rows in (split, paused, healed)] == [0, 0, 0]
    assert pair.address_holders == ["lb01"]
    for name in ("web01", "b01"):
        pair.lb01.run("lbagent", "resume", name)


def test_both_serve_the_same_while_both_have_the_address(pair: Pair) -> None:
    with (
        pair.cut_network(VRRP, [pair.lb01], [pair.lb02]),
        pair.meter.step("VRRP cut: both have the address; web01 pauses") as split,
    ):
        wait_until(lambda: pair.address_holders == ["lb01", "lb02"], HEAL_TIMEOUT)
        pair.nodes["web01"].pause()
        wait_for_states(pair, web01="paused")
        pair.meter.wait_for_requests()
    with pair.meter.step("VRRP healed: one releases the address") as healed:
        wait_for_address(pair, pair.lb01)

    pair.nodes["web01"].resume()
    assert max(split[0].outage, healed[0].outage) < LONGEST_OUTAGE


def test_a_load_balancer_without_network_gets_the_same_lines_afterwards(pair: Pair) -> None:
    with pair.meter.step("cable of lb01 pulled: the address moves") as pulled:
        pair.switch.set_cable(pair.lb01.machine, "down")
        wait_for_address(pair, pair.lb02)
    change_servers(pair, "without lb01")

    with pair.meter.step("cable connected again: both have the same lines") as back:
        pair.switch.set_cable(pair.lb01.machine, "up")
        wait_for_states(pair, web01="gone", web03="in", b01="paused")

    assert pair.address_holders == ["lb02"]
    assert pulled[0].outage < LONGEST_OUTAGE
    assert back[0].errors == 0
    undo_changes(pair)
