"""python -m load: 1,000 random changes, ten a second, on two load balancers under load; with and without `runtime`.

CHANGES=1000 RATE=10 WRK=3600 say how many, how often, and how many requests a second wrk makes beside the counted ones.
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
from tests.helpers.real_programs import Haproxy, Lb, eventually

CHANGES, RATE, WRK = (
    int(os.environ.get(name, default)) for name, default in (("CHANGES", 1000), ("RATE", 10), ("WRK", 3600))
)
COUNTED = 300
"""Requests a second and load balancer by the clients that hide nothing."""

Happened = tuple[float, int, str, bool]
"""When a handler started, for which load balancer (its port), the node, and whether that serves from then on."""

LATE = 0.3
"""Seconds after its handler started in which a node that goes may still get new requests (p99)."""


def main() -> int:
    """Both ways; 0 where every promise is kept."""
    return max([once(runtime=True), once(runtime=False)])


def once(*, runtime: bool) -> int:
    """One load test; prints what came of it."""
    fleet = Fleet(random.Random(7))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(nodes(fleet, folder))
        two = [stack.enter_context(balancer(port, fleet, runtime=runtime)) for _ in range(2)]
        before = [haproxy.reloads()[0] for _, haproxy in two]
        seconds = CHANGES / RATE + 4
        with clients(seconds, [lb.front for lb, _ in two]) as (counted, wrks):
            time.sleep(2)
            happened = changing(fleet, [lb for lb, _ in two])
            said = json.loads(counted.communicate()[0])
            rates = [wrk_says(wrk.communicate()[0].decode()) for wrk in wrks]
        for lb, _ in two:
            eventually(lambda: lb.idle, 60)  # noqa: B023
        reloads = [haproxy.reloads()[0] - number for (_, haproxy), number in zip(two, before, strict=True)]
        same = all(agree(fleet, lb, haproxy) for lb, haproxy in two)
    return told(runtime, said, rates, reloads, same, lateness(said, happened))


@contextlib.contextmanager
def clients(
    seconds: float, ports: list[int]
) -> Iterator[tuple[subprocess.Popen[bytes], list[subprocess.Popen[bytes]]]]:
    """The counted clients, and one wrk for each load balancer beside them."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        connections = 32
        # wrk has no rate of its own; a pause after each answer makes one.
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


def changing(fleet: Fleet, lbs: list[Lb]) -> list[Happened]:
    """Make the changes on every load balancer; returns when each handler started, and whether its node serves since."""
    happened: list[Happened] = []
    running: list[subprocess.Popen[bytes]] = []
    start = time.time()
    for number in range(CHANGES):
        time.sleep(max(0.0, start + number / RATE - time.time()))
        change: Change = fleet.change()
        for lb in lbs:
            happened.append((time.time(), lb.front, change.name, change.name in fleet.serving))
            running.append(lb.start_handle(change.kind, change.stdin, **change.env))
        # Serf runs its handlers one after another.
        for handler in running:
            out, words = handler.communicate()
            assert (handler.returncode, out, words) == (0, b"", b""), (change, words)
        running.clear()
    return happened


def wrk_says(said: str) -> tuple[float, str]:
    """Requests a second, and its complaints."""
    rate = next(float(line.split()[1]) for line in said.splitlines() if line.startswith("Requests/sec"))
    return rate, "; ".join(line.strip() for line in said.splitlines() if "errors" in line or "Non-2xx" in line)


def lateness(said: list[Any], happened: list[Happened]) -> list[float]:
    """For each node that was taken out: seconds until the last new request reached it, before it came back."""
    asked: dict[tuple[int, str], list[float]] = {}
    for at, port, server in said:
        asked.setdefault((port, server), []).append(at)
    found, back = [], dict[tuple[int, str], float]()
    for at, port, name, serves in reversed(happened):
        if not serves:
            late = [one - at for one in asked.get((port, name), ()) if at < one < back.get((port, name), one + 1)]
            found.append(max(late, default=0.0))
        back[port, name] = at
    return found


def agree(fleet: Fleet, lb: Lb, haproxy: Haproxy) -> bool:
    """Whether HAProxy, haproxy.cfg and membership are what the fleet is."""
    in_file = {line.split()[1]: line.split()[2].rpartition(":")[0] for line in lb.managed if line.startswith("server")}
    wanted = {name: fleet.address[name] for name in fleet.serving}
    serving = {name for name, state in haproxy.servers().items() if not state.startswith("MAINT")}
    members = {name for name, one in lb.members().items() if one["status"] == "alive"}
    return in_file == wanted and serving == set(wanted) and members == fleet.there


def told(runtime: bool, said: list[Any], rates: list[Any], reloads: list[int], same: bool, late: list[float]) -> int:  # noqa: FBT001
    """Print the figures; 1 where a promise is broken."""
    failed = Counter(server for _, _, server in said if server.startswith("!"))
    p99 = statistics.quantiles(late, n=100)[98] if len(late) > 1 else 0.0
    print(f"runtime {'on' if runtime else 'off'}: {CHANGES} changes, {RATE} a second, on two load balancers")
    print(f"  counted requests  {len(said)}, failed {sum(failed.values())} {dict(failed) or ''}")
    wrk, complaints = " + ".join(f"{rate:.0f}" for rate, _ in rates), "; ".join(words for _, words in rates if words)
    print(f"  wrk               {wrk} requests a second {complaints}")
    print(f"  reloads           {reloads}")
    print(
        f"  new requests to who went, from the start of handle: median {statistics.median(late):.3f} s, p99 {p99:.3f}"
    )
    print(f"  HAProxy = haproxy.cfg = membership: {same}", flush=True)
    return 0 if not failed and same and (not runtime or (p99 <= LATE and not any(reloads))) else 1


if __name__ == "__main__":
    sys.exit(main())
