"""python -m load: 1,000 random changes, ten per second, on two load balancers under load, with `runtime` on and off.

Environment: CHANGES=1000 (number), RATE=10 (per second), WRK=3600 (requests per second by wrk, not counted).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from load.pair import Change, Fleet, balancer, nodes
from tests.helpers.real_programs import Haproxy, LoadBalancer, wait_until

CHANGES, RATE, WRK = (
    int(os.environ.get(name, default)) for name, default in (("CHANGES", 1000), ("RATE", 10), ("WRK", 3600))
)
COUNTED = 300
"""Requests per second that the counting clients send to each load balancer."""

Handled = tuple[float, int, str, bool]
"""Start of a handler, port of its load balancer, the node, and whether the node serves afterwards."""

LATE = 0.3
"""Limit, in seconds, of the 99th percentile of the last new request to a removed node after its handler started."""


def main() -> int:
    """Run the load test twice; returns 0 if every promise is kept."""
    return max([run_load_test(runtime=True), run_load_test(runtime=False)])


def run_load_test(*, runtime: bool) -> int:
    """Run one load test and print its figures; returns 0 if every promise is kept."""
    fleet = Fleet(random.Random(7))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(nodes(fleet, folder))
        pair = [stack.enter_context(balancer(port, fleet, runtime=runtime)) for _ in range(2)]
        before = [haproxy.reloads()[0] for _, haproxy in pair]
        seconds = CHANGES / RATE + 4
        with clients(seconds, [lb.front for lb, _ in pair]) as (counted, wrks):
            time.sleep(2)
            handled = make_changes(fleet, [lb for lb, _ in pair])
            requests = json.loads(counted.communicate()[0])
            rates = [parse_wrk_output(wrk.communicate()[0].decode()) for wrk in wrks]
        agree = [becomes_consistent(fleet, lb, haproxy) for lb, haproxy in pair]
        reloads = [haproxy.reloads()[0] - number for (_, haproxy), number in zip(pair, before, strict=True)]
    late = find_late_requests(requests, handled)
    return report(runtime=runtime, requests=requests, rates=rates, reloads=reloads, same=all(agree), late=late)


@contextlib.contextmanager
def clients(
    seconds: float, ports: list[int]
) -> Iterator[tuple[subprocess.Popen[bytes], list[subprocess.Popen[bytes]]]]:
    """Run the counting clients, and one wrk for each load balancer."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        connections = 32
        # wrk has no option for a rate, so each connection pauses after each answer.
        script.write(f"function delay() return {connections * len(ports) * 1000 // WRK} end")
        script.flush()
        counting = [sys.executable, "-m", "load.clients", str(seconds), str(COUNTED), *map(str, ports)]
        loading = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency", "-s", script.name]
        with contextlib.ExitStack() as stack:
            wrks = [
                stack.enter_context(subprocess.Popen([*loading, f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE))
                for port in ports
            ]
            yield stack.enter_context(subprocess.Popen(counting, stdout=subprocess.PIPE)), wrks


def make_changes(fleet: Fleet, lbs: list[LoadBalancer]) -> list[Handled]:
    """Make the changes on every load balancer and return the handlers that ran."""
    handled: list[Handled] = []
    running: list[subprocess.Popen[bytes]] = []
    start = time.time()
    for number in range(CHANGES):
        time.sleep(max(0.0, start + number / RATE - time.time()))
        change: Change = fleet.make_change()
        for lb in lbs:
            handled.append((time.time(), lb.front, change.name, change.name in fleet.serving))
            running.append(lb.start_handle(change.kind, change.stdin, **change.env))
        # Serf runs its handlers one after another.
        for handler in running:
            stdout, stderr = handler.communicate()
            assert (handler.returncode, stdout, stderr) == (0, b"", b""), (change, stderr)
        running.clear()
    return handled


def parse_wrk_output(output: str) -> tuple[float, str]:
    """Return requests per second, and the errors that wrk reports."""
    rate = next(float(line.split()[1]) for line in output.splitlines() if line.startswith("Requests/sec"))
    return rate, "; ".join(line.strip() for line in output.splitlines() if "errors" in line or "Non-2xx" in line)


def find_late_requests(requests: list[Any], handled: list[Handled]) -> list[float]:
    """Return, for each removal of a node, the seconds until the last new request reached it before its return."""
    reached: dict[tuple[int, str], list[float]] = {}
    for at, port, server in requests:
        reached.setdefault((port, server), []).append(at)
    found, returned = [], dict[tuple[int, str], float]()
    for at, port, name, serves in reversed(handled):
        if not serves:
            late = [one - at for one in reached.get((port, name), ()) if at < one < returned.get((port, name), one + 1)]
            found.append(max(late, default=0.0))
        returned[port, name] = at
    return found


def becomes_consistent(fleet: Fleet, lb: LoadBalancer, haproxy: Haproxy) -> bool:
    """Wait for the last run, and for the reload that `watch` has postponed to the end of its interval."""
    with contextlib.suppress(AssertionError):
        return wait_until(lambda: lb.idle and is_consistent(fleet, lb, haproxy), 60)
    return False


def is_consistent(fleet: Fleet, lb: LoadBalancer, haproxy: Haproxy) -> bool:
    """Return whether HAProxy, haproxy.cfg and membership match the fleet."""
    in_file = {line.split()[1]: line.split()[2].rpartition(":")[0] for line in lb.managed if line.startswith("server")}
    wanted = {name: fleet.address[name] for name in fleet.serving}
    serving = {name for name, state in haproxy.servers().items() if not state.startswith("MAINT")}
    members = {name for name, one in lb.members().items() if one["status"] == "alive"}
    return in_file == wanted and serving == set(wanted) and members == fleet.joined


def report(
    *, runtime: bool, requests: list[Any], rates: list[Any], reloads: list[int], same: bool, late: list[float]
) -> int:
    """Print the figures; returns 1 if a promise is broken, else 0."""
    failed = Counter(server for _, _, server in requests if server.startswith("!"))
    p99 = statistics.quantiles(late, n=100)[98] if len(late) > 1 else 0.0
    print(f"runtime {'on' if runtime else 'off'}: {CHANGES} changes, {RATE} per second, on two load balancers")
    print(f"  counted requests  {len(requests)}, failed {sum(failed.values())} {dict(failed) or ''}")
    wrk, errors = " + ".join(f"{rate:.0f}" for rate, _ in rates), "; ".join(errors for _, errors in rates if errors)
    print(f"  wrk               {wrk} requests per second {errors}")
    print(f"  reloads           {reloads}")
    print(
        "  new requests to removed nodes, after the start of handle:"
        f" median {statistics.median(late):.3f} s, p99 {p99:.3f} s"
    )
    print(f"  HAProxy = haproxy.cfg = membership: {same}", flush=True)
    return 0 if not failed and same and (not runtime or (p99 <= LATE and not any(reloads))) else 1


if __name__ == "__main__":
    sys.exit(main())
