"""python -m load.latency: from the start of `handle` to the first request on who comes, and to the last on who goes.

With `watch` and the runtime API; TIMES=40 says how often each.
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
from tests.helpers.http_clients import ask
from tests.helpers.real_programs import Lb, eventually, member

TIMES = int(os.environ.get("TIMES", "40"))

PROMISED = 0.060
"""Seconds, median."""

Answers = list[tuple[float, str]]
"""When a request started, and who answered it."""


def main() -> int:
    """Measure and print; 0 where both medians keep the promise."""
    fleet = Fleet(random.Random(7))
    fleet.there = {"web00", "web01"}
    with (
        tempfile.TemporaryDirectory() as folder,
        nodes(fleet, Path(folder)) as port,
        balancer(port, fleet, runtime=True) as (lb, _),
    ):
        came, went = measured(lb, fleet.address["web02"])
    return max(told("first request on a server that joins", came), told("last request on a node that is paused", went))


def measured(lb: Lb, address: str) -> tuple[list[float], list[float]]:
    """How long each join, and each pause, took to be seen by a client."""
    answers: Answers = []
    came, went = [], []
    with client(lb.front, answers):
        for number in range(TIMES):
            at = handled(lb, "member-join", member("web02", address))
            eventually(lambda at=at: reached(answers, at))  # type: ignore[misc]  # a default argument binds it now
            came.append(reached(answers, at)[0] - at)
            eventually(lambda: lb.idle)
            at = handled(lb, "user", b"web02", SERF_USER_EVENT="pause", SERF_USER_LTIME=str(2 * number + 1))
            time.sleep(0.5)
            went.append(max(reached(answers, at), default=at) - at)
            eventually(lambda: lb.idle)
            handled(lb, "member-leave", member("web02", address))
            handled(lb, "user", b"web02", SERF_USER_EVENT="resume", SERF_USER_LTIME=str(2 * number + 2))
            eventually(lambda: lb.idle)
    return came, went


def handled(lb: Lb, kind: str, stdin: bytes, **env: str) -> float:
    """Have the event handled; returns when the handler started."""
    at = time.time()
    assert lb.start_handle(kind, stdin, **env).wait() == 0
    return at


def reached(answers: Answers, since: float) -> list[float]:
    """When the requests since then started that reached the node."""
    return [at for at, server in answers[-20_000:] if at >= since and server == "web02"]


class client:  # noqa: N801  # a context
    """One keep-alive client that asks all the time, a request a millisecond."""

    def __init__(self, port: int, answers: Answers) -> None:
        """Who answers, and when it was asked, is added to `answers`."""
        self._port, self._answers, self._stop = port, answers, threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _ask(self) -> None:
        started = 0.0

        def going() -> bool:
            nonlocal started
            started = time.time()
            return not self._stop.is_set()

        def said(how: str, server: str) -> float:
            assert how == "ok", how
            self._answers.append((started, server))
            return 0.001

        ask(self._port, going, said)


def told(what: str, seconds: list[float]) -> int:
    """Print one row; 1 where the median is beyond the promise."""
    median = statistics.median(seconds)
    print(f"{what:<42} median {median * 1000:5.0f} ms of {PROMISED * 1000:.0f}, max {max(seconds) * 1000:.0f}")
    return int(median > PROMISED)


if __name__ == "__main__":
    sys.exit(main())
