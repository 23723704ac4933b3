"""python -m load.latency: how long a join and a pause take to reach the traffic, from the start of `handle`.

With `watch`, the runtime API, real Serf agents and 3,333 requests per second; then a table of where the time goes.
Environment: TIMES=100 (number of joins and of pauses), HAPROXY=3.0 (version), WRK=3333 (requests per second).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from load.pair import Fleet, balancer, nodes
from tests.helpers.http_clients import send_request
from tests.helpers.real_programs import LBAGENT, LoadBalancer, SerfAgent, binaries, member_line, wait_until

TIMES = int(os.environ.get("TIMES", "100"))
WRK = int(os.environ.get("WRK", "3333"))
VERSION = os.environ.get("HAPROXY", "3.0")

JOIN_LIMIT, PAUSE_LIMIT, P99_LIMIT = 0.040, 0.025, 0.120
"""Limits, in seconds, of the medians, and of the 99th percentile of both."""

Answers = list[tuple[float, str]]
"""Start of each request, and the node that answered."""

STEPS = {
    "process start": "start of `handle` to the event read from its environment",
    "spool": "to the event stored durably",
    "wake-up": "to the daemon's next round",
    "membership": "to the event in members.json, durably",
    "plan": "to the planned text of haproxy.cfg",
    "maintenance": "to HAProxy's answer on the stats socket that a removed server takes no traffic",
    "stage": "to the staged file",
    "haproxy -c": "to HAProxy's verdict on it",
    "swap": "to the new haproxy.cfg",
    "socket": "to the server added or enabled, and HAProxy compared with the plan",
}
"""The steps, in order, and what ends each."""

Marks = list[tuple[str, float, float]]
"""The steps that the daemon has traced: name, begin and end."""


class Change(NamedTuple):
    """One change: when its handler started, when the traffic had changed, and when the daemon had finished it."""

    started: float
    seen: float
    ended: float


def main() -> int:
    """Measure and print; returns 0 if all figures are below their limits."""
    fleet = Fleet(random.Random(7))
    fleet.joined = {"web00", "web01"}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, port = Path(name), stack.enter_context(nodes(fleet, Path(name)))
        agent = stack.enter_context(serf_agents(fleet))
        trace, env = folder / "trace", {"SERF_RPC_ADDR": agent.rpc}

        def start_daemon(lb: LoadBalancer) -> subprocess.Popen[bytes]:
            argv = [sys.executable, "-m", "load.traced", str(trace)]
            return subprocess.Popen(argv, env={**lb.env, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        lb, _ = stack.enter_context(
            balancer(port, fleet, runtime=True, binary=binaries()[VERSION], start_daemon=start_daemon)
        )
        load = stack.enter_context(wrk(lb.front))
        joins, pauses = measure(lb, fleet.address["web02"], env)
        load.send_signal(signal.SIGINT)
        rate = next(line.split()[1] for line in load.communicate()[0].decode().splitlines() if "Requests/sec" in line)
        marks = [parse_mark(line) for line in trace.read_text().splitlines()]
    load_average = f"load average {os.getloadavg()[0]:.1f}"
    print(f"HAProxy {VERSION}, {rate} requests per second, {TIMES} joins and pauses, {load_average}")
    status = max(
        report("first request on a node that joins", joins, JOIN_LIMIT),
        report("last request on a node that is paused", pauses, PAUSE_LIMIT),
    )
    print_steps(joins, pauses, marks)
    return status


@contextlib.contextmanager
def serf_agents(fleet: Fleet) -> Iterator[SerfAgent]:
    """Run the agents of the load balancer, which is yielded, and of all joined nodes."""
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(SerfAgent("lb01", "127.0.0.9", "lb"))
        for name in fleet.joined:
            stack.enter_context(SerfAgent(name, fleet.address[name], "web")).join(agent)
        yield agent


@contextlib.contextmanager
def wrk(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Send about WRK requests per second to `port` until SIGINT."""
    connections = 32
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        # wrk has no option for a rate, so each connection pauses after each answer.
        script.write(f"function delay() return {connections * 1000 // WRK} end")
        script.flush()
        argv = ["wrk", "-t1", f"-c{connections}", "-d1h", "-s", script.name, f"http://127.0.0.1:{port}/"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.kill()


def measure(lb: LoadBalancer, address: str, env: dict[str, str]) -> tuple[list[Change], list[Change]]:
    """Return the joins and pauses, each as a client saw it."""
    answers: Answers = []
    joins, pauses = [], []
    with client(lb.front, answers):
        for number in range(TIMES + 1):
            at = handle(lb, "member-join", member_line("web02", address), **env)
            wait_until(lambda at=at: find_requests(answers, at), pause=0.005)  # type: ignore[misc]  # a default argument binds it now
            wait_until(lambda: lb.idle)
            joins.append(Change(at, find_requests(answers, at)[0], time.time()))
            at = handle(lb, "user", b"web02", **env, SERF_USER_EVENT="pause", SERF_USER_LTIME=str(2 * number + 1))
            time.sleep(0.5)
            wait_until(lambda: lb.idle)
            pauses.append(Change(at, max(find_requests(answers, at), default=at), time.time()))
            handle(lb, "member-leave", member_line("web02", address), **env)
            handle(lb, "user", b"web02", **env, SERF_USER_EVENT="resume", SERF_USER_LTIME=str(2 * number + 2))
            wait_until(lambda: lb.idle)
    return joins[1:], pauses[1:]  # the first round of the daemon is not over at the first change


def handle(lb: LoadBalancer, kind: str, stdin: bytes, **env: str) -> float:
    """Run `handle` for an event and return when it started."""
    environ = {**lb.env, "SERF_EVENT": kind, "SERF_SELF_NAME": "lb01", "SERF_SELF_ROLE": "lb", **env}
    at = time.time()
    with subprocess.Popen([LBAGENT, "handle"], stdin=subprocess.PIPE, env=environ) as handler:
        handler.communicate(stdin)
    assert handler.returncode == 0
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


def report(name: str, changes: list[Change], limit: float) -> int:
    """Print one row; returns 1 if a figure is beyond its limit, else 0."""
    seconds = [change.seen - change.started for change in changes]
    median, p99 = find_figures(seconds)
    print(
        f"{name:<42} median {median * 1000:5.0f} ms (limit {limit * 1000:.0f}),"
        f" p99 {p99 * 1000:5.0f} ms (limit {P99_LIMIT * 1000:.0f}), min {min(seconds) * 1000:.0f}"
    )
    return int(median > limit or p99 > P99_LIMIT)


def parse_mark(line: str) -> tuple[str, float, float]:
    """Parse a line of load.traced."""
    step, began, ended = line.split("\t")
    return step, float(began), float(ended)


def print_steps(joins: list[Change], pauses: list[Change], marks: Marks) -> None:
    """Print the median and the 99th percentile of each step, in milliseconds."""
    print(f"{'milliseconds':<16}{'join':>8}{'p99':>8}{'pause':>8}{'p99':>8}")
    rows = [[split_steps(change, marks) for change in changes] for changes in (joins, pauses)]
    for step, meaning in STEPS.items():
        figures = [find_figures([row[step] for row in kind]) for kind in rows]
        columns = "".join(f"{seconds * 1000:8.1f}" for pair in figures for seconds in pair)
        print(f"{step:<16}{columns}   {meaning}")


def find_figures(seconds: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    return statistics.median(seconds), statistics.quantiles(seconds, n=100, method="inclusive")[98]


def split_steps(change: Change, marks: Marks) -> dict[str, float]:
    """Return the seconds of each step of one change."""
    here = {step: (began, ended) for step, began, ended in reversed(marks) if change.started <= began < change.ended}
    ends = {
        "process start": here["event"][0],
        "spool": here["store"][0],
        "wake-up": here["round"][0],
        "membership": here["membership"][1],
        "plan": here["plan"][1],
        "maintenance": here["withdraw"][1],
        "stage": here["haproxy -c"][0],
        "haproxy -c": here["haproxy -c"][1],
        "swap": here["swap"][1],
        "socket": here["roll out"][1],
    }
    begins = [change.started, *ends.values()]
    return {step: end - begin for (step, end), begin in zip(ends.items(), begins, strict=False)}


if __name__ == "__main__":
    sys.exit(main())
