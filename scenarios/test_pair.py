"""A pair of load balancers under load: what breaks on one is carried by the other, and both end with the same lines.

`make test-pair`. The tests share the machines, and each leaves them whole; the table at the end has what clients saw.
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
from scenarios.pair import LONG, Balancer, Pair
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

MINUTE = 60.0
"""Longer than any outage may be, on a machine however busy."""


@pytest.fixture(scope="module")
def machines() -> Iterator[Pair]:
    """Both load balancers, four servers, and a client that asks without end."""
    with Pair() as pair:
        wait_until(lambda: pair.agree(ALL_IN), LONG, 0.2)
        wait_until(lambda: all(one.serving() == set(ALL_IN) for one in pair.both), LONG, 0.2)
        with pair.meter:
            yield pair
        print(f"\n\n{report(pair.meter)}")


@pytest.fixture
def pair(machines: Pair) -> Pair:
    """The pair with nothing broken, the address on lb01."""
    wait_until(lambda: machines.agree(ALL_IN), LONG, 0.2)
    machines.hand_over(machines.lb01)
    wait_until(lambda: machines.holders == ["lb01"])
    return machines


def report(meter: Meter) -> str:
    """What clients saw, a line for each step."""
    kept, new = CLIENTS.values()
    asking = f"{kept} clients over one connection each, {new} with one for each request, {PAUSE * 1000:.0f} ms between"
    return "\n".join([meter.HEAD, *map(str, meter.rows), f"({asking}; lost: an error, or no answer in {PATIENCE:g} s)"])


def settle(pair: Pair, **other: str) -> None:
    """Wait until both load balancers agree on this, and everybody else is in."""
    states = {name: state for name, state in {**ALL_IN, **other}.items() if state != "gone"}
    try:
        wait_until(functools.partial(pair.agree, states), LONG, 0.2)
    except AssertionError as late:
        seen = "\n".join(f"{one.name}:\n{one.run('lbagent', 'status').stdout}" for one in pair.both)
        raise AssertionError(f"not {states}:\n{seen}") from late


def moved(pair: Pair, to: Balancer) -> None:
    """Wait until the address is there, and nowhere else, and clients are served."""
    wait_until(lambda: pair.holders == [to.name], LONG)
    pair.meter.served()


KILLED = """\
import time
from scenarios.machines import Daemon, Machine
with Machine("killed") as machine:
    Daemon(machine, "sleep", "1000").start()
    print(machine.pid, flush=True)
    time.sleep(1000)
"""


def networks() -> set[str]:
    """Every network that a process of this host uses."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry / "ns/net"))
    return found


def test_a_run_that_is_killed_leaves_nothing() -> None:
    here = Path(__file__).resolve().parent.parent
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, cwd=here) as run:
        assert run.stdout
        network = os.readlink(f"/proc/{int(run.stdout.readline())}/ns/net")
        assert network in networks()

        run.kill()

    wait_until(lambda: network not in networks())


def test_every_server_enrols_on_both_and_check_finds_nothing(pair: Pair) -> None:
    with pair.meter.step("nothing happens") as rows:
        checks = [balancer.run("lbagent", "check") for balancer in pair.both]
        pair.meter.served(500)

    assert [balancer.managed for balancer in pair.both] == [LINES.splitlines()] * 2
    assert [line for check in checks for line in check.stdout.splitlines()[:-1] if not line.startswith("ok ")] == []
    assert rows[0].lost == {kind: {} for kind in CLIENTS}
    assert rows[0].servers == {"web01", "web02", "a01"}


def test_what_the_example_promises_of_http(pair: Pair) -> None:
    answer = pair.get()
    pair.nodes["a01"].say("Sick")
    for name in ("web01", "web02"):
        pair.nodes[name].pause()
    wait_until(lambda: [one.serving() for one in pair.both] == [{"b01"}] * 2, LONG, 0.2)

    sorry, sick = pair.get(), pair.get(1111)

    pair.nodes["a01"].say("Healthy")
    for name in ("web01", "web02"):
        pair.nodes[name].resume()
    wait_until(lambda: [one.serving() for one in pair.both] == [set(ALL_IN)] * 2, LONG, 0.2)
    assert re.findall(r"(?im)^set-cookie: *(\S*)$", answer) in (["", "session=web01"], ["", "session=web02"])
    assert re.findall(r"(?im)^(HTTP.*|location:.*)$", sorry) == [
        "HTTP/1.1 302 Found",
        "location: http://sorry.example.com/",
    ]
    assert sick.startswith("HTTP/1.1 503 ")


def test_mongodb_is_watched_and_nobody_is_sent_there(pair: Pair) -> None:
    mongo = pair.boot("mongo01", "10.0.0.51", "mongo")
    settle(pair, mongo01="in")
    wait_until(lambda: all("mongo01" in one.serving() for one in pair.both), LONG, 0.2)

    stats = pair.lb01.run("curl", "-sfu", "admin:change-me", "http://127.0.0.1:8404/;csv").stdout

    mongo.leave()
    settle(pair)
    pair.remove("mongo01")
    rows = {row["# pxname"]: row for row in csv.DictReader(stats.splitlines()) if row["svname"] == "mongo01"}
    assert {name: row["stot"] for name, row in rows.items()} == {"monitor-mongo": "0"}


def test_the_log_goes_on_after_it_was_rotated(pair: Pair) -> None:
    folder = pair.lb01.machine.root / "var/log/haproxy"
    wait_until(lambda: " lb-iis/web0" in (folder / "haproxy.log").read_text())

    pair.lb01.run("logrotate", "--force", "/etc/logrotate.d/haproxy-lb")

    wait_until(
        lambda: " lb-iis/web0" in (folder / "haproxy.log").read_text() if (folder / "haproxy.log").exists() else ""
    )
    whole = (folder / "haproxy.log.1").stat().st_size
    pair.meter.served()
    assert (folder / "haproxy.log.1").stat().st_size == whole


LAST = "done, no other server of web_service_b serves"


def meanwhile(pair: Pair, words: str) -> None:
    """A server joins, one is paused, one leaves, while lb01 is not well."""
    with pair.meter.step(f"{words}: web03 joins, b01 pauses, web01 leaves") as rows:
        pair.boot("web03", "10.0.0.23", "web")
        pair.lb02.run("lbagent", "pause", "b01", "--force", checked=False)
        wait_until(lambda: {"web03", "web02"} <= pair.lb02.serving(), LONG, 0.2)
        pair.nodes["web01"].leave()
        wait_until(lambda: pair.lb02.serving() == {"a01", "web02", "web03"}, LONG, 0.2)
        pair.meter.served()

    assert rows[0].broken == 0


def undo(pair: Pair) -> None:
    """As it was before `meanwhile`."""
    pair.nodes["web01"].start_serf()
    settle(pair, web03="in", b01="paused")
    pair.lb01.run("lbagent", "resume", "b01")
    pair.nodes["web03"].leave()
    settle(pair)
    pair.remove("web03")


@pytest.mark.parametrize("whole", [False, True], ids=["haproxy", "all"])
def test_what_dies_on_one_load_balancer_is_carried_by_the_other(pair: Pair, *, whole: bool) -> None:
    dead = "HAProxy, Serf and lbagent" if whole else "HAProxy"
    with pair.meter.step(f"{dead} of lb01 killed: the address moves") as failover:
        pair.lb01.crash() if whole else pair.lb01.kill_haproxy()
        moved(pair, pair.lb02)
    meanwhile(pair, "meanwhile")

    with pair.meter.step("lb01 is started again: both have the same lines") as back:
        pair.lb01.restart() if whole else pair.lb01.start_haproxy()
        # An agent that has just started may not yet reach who could tell.
        wait_until(lambda: pair.lb01.run("lbagent", "sync").stderr == "", LONG, 1)
        settle(pair, web01="gone", web03="in", b01="paused")

    assert pair.holders == ["lb02"]
    assert pair.lb01.serving() == pair.lb02.serving()
    assert failover[0].gap < MINUTE
    assert back[0].broken == 0
    undo(pair)


def test_the_address_goes_back_when_keepalived_is_stopped(pair: Pair) -> None:
    with pair.meter.step("keepalived of lb01 stopped: the address moves") as rows:
        pair.hand_over(pair.lb02)
        moved(pair, pair.lb02)

    assert rows[0].gap < MINUTE


def test_gossip_goes_round_a_cut_between_the_load_balancers(pair: Pair) -> None:
    with (
        pair.cut(SERF, [pair.lb01], [pair.lb02]),
        pair.meter.step("gossip cut between lb01 and lb02 only: a pause, a resume") as rows,
    ):
        pair.nodes["web01"].pause()
        settle(pair, web01="paused")
        pair.nodes["web01"].resume()
        settle(pair)
        typed = pair.lb02.run("lbagent", "pause", "b01", "--force", checked=False)
        settle(pair, b01="paused")
        seen = pair.lb01.members()

    pair.lb02.run("lbagent", "resume", "b01")
    assert seen["lb02"] == "alive"
    # The query goes round, and its answer too.
    assert (typed.returncode, typed.stdout) == (0, f"lb02  {LAST}\nlb01  {LAST}\n")
    assert rows[0].broken == 0


def test_a_cluster_cut_in_two_heals_to_the_same_lines(pair: Pair) -> None:
    ours, theirs = [pair.lb01, *pair.named("web01", "a01")], [pair.lb02, *pair.named("web02", "b01")]
    with pair.cut(SERF, ours, theirs):
        with pair.meter.step("gossip cut in two: each half calls the other failed") as apart:
            wait_until(lambda: all(pair.lb01.members()[host.name] == "failed" for host in theirs), LONG, 0.2)
            wait_until(lambda: all(pair.lb02.members()[host.name] == "failed" for host in ours), LONG, 0.2)
        with pair.meter.step("in two: web01 pauses on one side, b01 on the other") as paused:
            pair.nodes["web01"].pause()
            alone = pair.lb02.run("lbagent", "pause", "b01", "--force", checked=False)
            wait_until(lambda: pair.lb01.serving() == {"web02", "a01", "b01"}, LONG, 0.2)
            wait_until(lambda: pair.lb02.serving() == {"web01", "web02", "a01"}, LONG, 0.2)

    with pair.meter.step("healed: both have the same lines") as healed:
        settle(pair, web01="paused", b01="paused")

    assert (alone.returncode, alone.stdout) == (1, f"lb02  {LAST}\nlb01  not asked: failed in Serf\n")
    assert [rows[0].broken for rows in (apart, paused, healed)] == [0, 0, 0]
    assert pair.holders == ["lb01"]
    for name in ("web01", "b01"):
        pair.lb01.run("lbagent", "resume", name)


def test_two_who_both_have_the_address_serve_the_same(pair: Pair) -> None:
    with (
        pair.cut(VRRP, [pair.lb01], [pair.lb02]),
        pair.meter.step("VRRP cut: both have the address; web01 pauses") as split,
    ):
        wait_until(lambda: pair.holders == ["lb01", "lb02"], LONG)
        pair.nodes["web01"].pause()
        settle(pair, web01="paused")
        pair.meter.served()
    with pair.meter.step("VRRP healed: one gives the address up") as healed:
        moved(pair, pair.lb01)

    pair.nodes["web01"].resume()
    assert max(split[0].gap, healed[0].gap) < MINUTE


def test_a_load_balancer_without_its_cable_comes_back_to_the_same_lines(pair: Pair) -> None:
    with pair.meter.step("cable of lb01 pulled: the address moves") as pulled:
        pair.switch.cable(pair.lb01.machine, "down")
        moved(pair, pair.lb02)
    meanwhile(pair, "without it")

    with pair.meter.step("cable in again: both have the same lines") as back:
        pair.switch.cable(pair.lb01.machine, "up")
        settle(pair, web01="gone", web03="in", b01="paused")

    assert pair.holders == ["lb02"]
    assert pulled[0].gap < MINUTE
    assert back[0].broken == 0
    undo(pair)
