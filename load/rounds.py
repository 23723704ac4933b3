"""python -m load.rounds [VERSION…]: a node joins, is paused, resumed, leaves and returns, under load, 200 times.

With `watch` and the runtime API, on each HAProxy version that the tests find, or on those named (for example 3.0).
Prints how long each change takes to reach the traffic, and what must be 0: failed requests, reloads, servers left
behind. Environment: ROUNDS=200 (number).
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from load.latency import Answers, client, find_requests, handle
from load.pair import Fleet, balancer, nodes
from tests.helpers.http_clients import run_clients
from tests.helpers.real_programs import Haproxy, LoadBalancer, binaries, member_line, wait_until

ROUNDS = int(os.environ.get("ROUNDS", "200"))
SETTLED = 0.25
"""Seconds to wait for the last request to a removed node."""

CHANGES = ("join", "pause", "resume", "leave", "return")


def main(versions: list[str]) -> int:
    """Measure and print; returns 0 if every promise is kept."""
    return max(measure(version, binaries()[version]) for version in versions or binaries())


def measure(version: str, binary: Path) -> int:
    """Run all rounds on one HAProxy version; returns 1 if a promise is broken, else 0."""
    fleet = Fleet(random.Random(7))
    fleet.joined = {"web00", "web01"}
    answers: Answers = []
    took: dict[str, list[float]] = {name: [] for name in CHANGES}
    with (
        tempfile.TemporaryDirectory() as folder,
        nodes(fleet, Path(folder)) as port,
        balancer(port, fleet, runtime=True, binary=binary) as (lb, haproxy),
    ):
        before = haproxy.reloads()[0]
        with run_clients(lb.front, 4, 0.01) as count, client(lb.front, answers):
            for number in range(ROUNDS):
                make_round(lb, answers, fleet.address["web02"], number, took)
        wait_until(lambda: lb.idle)
        return report(version, haproxy, dict(count), haproxy.reloads()[0] - before, took)


def make_round(lb: LoadBalancer, answers: Answers, address: str, number: int, took: dict[str, list[float]]) -> None:
    """Make all five changes of one node."""
    node = member_line("web02", address)
    user = {"SERF_USER_EVENT": "pause", "SERF_USER_LTIME": str(2 * number + 1)}
    enter(lb, answers, took["join"], "member-join", node)
    leave(lb, answers, took["pause"], "user", b"web02", **user)
    user = {"SERF_USER_EVENT": "resume", "SERF_USER_LTIME": str(2 * number + 2)}
    enter(lb, answers, took["resume"], "user", b"web02", **user)
    leave(lb, answers, took["leave"], "member-leave", node)
    enter(lb, answers, took["return"], "member-join", node)
    leave(lb, answers, [], "member-leave", node)


def enter(lb: LoadBalancer, answers: Answers, took: list[float], kind: str, stdin: bytes, **env: str) -> None:
    """Handle an event after which the node takes traffic; add the seconds until its first request to `took`."""
    at = handle(lb, kind, stdin, **env)
    wait_until(lambda: find_requests(answers, at), pause=0.005)
    took.append(find_requests(answers, at)[0] - at)
    wait_until(lambda: lb.idle)


def leave(lb: LoadBalancer, answers: Answers, took: list[float], kind: str, stdin: bytes, **env: str) -> None:
    """Handle an event after which the node takes no traffic; add the seconds until its last request to `took`."""
    at = handle(lb, kind, stdin, **env)
    time.sleep(SETTLED)
    took.append(max(find_requests(answers, at), default=at) - at)
    wait_until(lambda: lb.idle)


def report(version: str, haproxy: Haproxy, count: dict[str, int], reloads: int, took: dict[str, list[float]]) -> int:
    """Print the figures; returns 1 if a promise is broken, else 0."""
    failed = {how: number for how, number in count.items() if how != "ok"}
    left = sorted(haproxy.servers().keys() - {"web00", "web01"})
    workers = len(haproxy.workers())
    medians = ", ".join(f"{name} {statistics.median(times) * 1000:.0f}" for name, times in took.items())
    print(f"HAProxy {version}: {ROUNDS} rounds, milliseconds to traffic (median): {medians}")
    print(
        f"  requests {sum(count.values())}, failed {sum(failed.values())} {failed or ''}; reloads {reloads};"
        f" servers left behind {len(left)}; workers {workers}",
        flush=True,
    )
    # Before HAProxy 3.0, the removed server stays behind in maintenance.
    kept = [] if version >= "3.0" else ["web02"]
    return int(bool(failed) or reloads > 0 or left != kept or workers != 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
