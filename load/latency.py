"""python -m load.latency: how long a join and a pause take to reach the traffic, from the start of `handle`.

With `watch` and the runtime API. Environment: TIMES=40 (number of joins and of pauses).
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from load.pair import Fleet, balancer, nodes
from tests.helpers.http_clients import send_request
from tests.helpers.real_programs import LoadBalancer, member_line, wait_until

TIMES = int(os.environ.get("TIMES", "40"))

JOIN_LIMIT, PAUSE_LIMIT = 0.060, 0.040
"""Limits, in seconds, of the medians."""

Answers = list[tuple[float, str]]
"""Start of each request, and the node that answered."""


def main() -> int:
    """Measure and print; returns 0 if both medians are below their limits."""
    fleet = Fleet(random.Random(7))
    fleet.joined = {"web00", "web01"}
    with (
        tempfile.TemporaryDirectory() as folder,
        nodes(fleet, Path(folder)) as port,
        balancer(port, fleet, runtime=True) as (lb, _),
    ):
        joins, pauses = measure(lb, fleet.address["web02"])
    return max(
        report("first request on a node that joins", joins, JOIN_LIMIT),
        report("last request on a node that is paused", pauses, PAUSE_LIMIT),
    )


def measure(lb: LoadBalancer, address: str) -> tuple[list[float], list[float]]:
    """Return the seconds that each join, and each pause, took to be seen by a client."""
    answers: Answers = []
    joins, pauses = [], []
    with client(lb.front, answers):
        for number in range(TIMES):
            at = handle(lb, "member-join", member_line("web02", address))
            wait_until(lambda at=at: find_requests(answers, at))  # type: ignore[misc]  # a default argument binds it now
            joins.append(find_requests(answers, at)[0] - at)
            wait_until(lambda: lb.idle)
            at = handle(lb, "user", b"web02", SERF_USER_EVENT="pause", SERF_USER_LTIME=str(2 * number + 1))
            time.sleep(0.5)
            pauses.append(max(find_requests(answers, at), default=at) - at)
            wait_until(lambda: lb.idle)
            handle(lb, "member-leave", member_line("web02", address))
            handle(lb, "user", b"web02", SERF_USER_EVENT="resume", SERF_USER_LTIME=str(2 * number + 2))
            wait_until(lambda: lb.idle)
    return joins, pauses


def handle(lb: LoadBalancer, kind: str, stdin: bytes, **env: str) -> float:
    """Run `handle` for an event and return when it started."""
    at = time.time()
    assert lb.start_handle(kind, stdin, **env).wait() == 0
    return at


def find_requests(answers: Answers, since: float) -> list[float]:
    """Return the start of each request after `since` that web02 answered."""
    return [at for at, server in answers[-20_000:] if at >= since and server == "web02"]


class client:  # noqa: N801  # a context
    """One client with a persistent connection that sends a request per millisecond."""

    def __init__(self, port: int, answers: Answers) -> None:
        """Add each request to `answers`."""
        self._port, self._answers, self._stop = port, answers, threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _ask(self) -> None:
        started = 0.0

        def is_running() -> bool:
            nonlocal started
            started = time.time()
            return not self._stop.is_set()

        def record(how: str, server: str) -> float:
            assert how == "ok", how
            self._answers.append((started, server))
            return 0.001

        send_request(self._port, is_running, record)


def report(name: str, seconds: list[float], limit: float) -> int:
    """Print one row; returns 1 if the median is beyond the limit, else 0."""
    median = statistics.median(seconds)
    print(f"{name:<42} median {median * 1000:5.0f} ms (limit {limit * 1000:.0f}), max {max(seconds) * 1000:.0f}")
    return int(median > limit)


if __name__ == "__main__":
    sys.exit(main())
