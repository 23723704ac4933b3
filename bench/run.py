"""Benchmarks: each figure is a ratio of two measures that are taken alternately in the same run.

make bench
"""

from __future__ import annotations

import compileall
import fcntl
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import world

import lbagent
from lbagent.haproxy.config import Document
from lbagent.membership.model import Member, Membership
from lbagent.planning.plan import make_plan
from lbagent.roles.model import HaproxySettings, Role, Roles, Service, Template

Measure = Callable[[int], float]

RUNS = int(os.environ.get("RUNS", "15"))


def main() -> int:
    """Measure and print; returns 0 if every promise is kept."""
    # As installed: without byte code, each command would compile its modules again.
    compileall.compile_dir(os.path.dirname(lbagent.__file__), quiet=1)
    print(f"{'':58s}{'this':>10s}{'that':>10s}{'ratio':>8s}{'promise':>9s}")
    kept = [measure_join(), measure_store(), measure_batch(), measure_growth(), measure_burst()]
    return 0 if all(kept) else 1


def report(name: str, this: float, that: float, promise: float, unit: str = "ms") -> bool:
    """Print one line of the table; returns whether its promise is kept."""
    ratio = this / that
    kept = ratio <= promise
    mark = "" if kept else "  MISSED"
    print(f"{name:58s}{this:7.1f} {unit}{that:7.1f} {unit}{ratio:7.2f}x{f'≤ {promise:g}x':>9s}{mark}", flush=True)
    return kept


def alternate(this: Measure, that: Measure, runs: int = RUNS) -> tuple[float, float]:
    """Return the medians of two measures taken alternately, after one run of each as warm-up."""
    this(0)
    that(0)
    both = [(this(number), that(number)) for number in range(1, runs + 1)]
    return statistics.median(one for one, _ in both), statistics.median(other for _, other in both)


def run_bare_python(_: int) -> float:
    """Return the milliseconds of a Python process that does nothing."""
    return time_process([sys.executable, "-c", "pass"])


def time_process(argv: list[str], stdin: bytes = b"", environ: dict[str, str] | None = None) -> float:
    """Return the milliseconds of a whole process."""
    started = time.perf_counter()
    subprocess.run(argv, input=stdin, env=environ, check=True)
    return (time.perf_counter() - started) * 1000


def measure_join() -> bool:
    """Measure `handle` of one join, with `haproxy -c` and the reload replaced by `true`."""
    with world.lb(1) as lb:
        environ = {"PATH": lb.path(haproxy=False), "SERF_EVENT": "member-join"}
        this, that = alternate(
            lambda number: time_process(lb.argv("handle"), _format_member(number), environ), run_bare_python
        )
        return report("handle, one join, checks replaced by true / python -c pass", this, that, 6)


def measure_store() -> bool:
    """Measure `handle` while `watch` runs: it only stores the event."""
    with world.lb(1) as lb:
        os.mkdir(os.path.join(lb.folder, "state"))
        environ = {"PATH": lb.path(haproxy=False), "SERF_EVENT": "member-join"}
        with open(os.path.join(lb.folder, "state", "watch.lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            this, that = alternate(
                lambda number: time_process(lb.argv("handle"), _format_member(number), environ), run_bare_python
            )
        return report("handle, one join, stored for watch / python -c pass", this, that, 1.6)


def measure_batch() -> bool:
    """Measure 1,000 joins in one event into 10,000 servers in 100 backends: own CPU time against `haproxy -c`."""
    with world.lb(100) as lb:
        lb.join(0, 10_000)

        costs, checks = [], []
        for _ in range(9):
            with lb.restored():
                # `true` replaces haproxy; its time is not ours.
                costs.append(lb.join(20_000, 1000).cpu - world.run(["true"]).cpu)
                checks.append(world.run(["/usr/sbin/haproxy", "-c", "-f", lb.cfg()]).cpu)
        name = "1,000 joins into 10,000 servers, own CPU / haproxy -c"
        return report(name, statistics.median(costs), statistics.median(checks), 1.5)


def measure_growth() -> bool:
    """Measure planning with ten times the servers."""
    return report(
        "planning 10,000 servers / 1,000 servers", *alternate(make_planning(10_000), make_planning(1_000)), 12
    )


def make_planning(servers: int) -> Measure:
    """Return a measure of planning one more join, in milliseconds of CPU time."""
    names = [f"r{number}" for number in range(100)]
    service = {name: Service(name, Template("80"), Template("check inter 60s")) for name in names}
    roles = Roles(HaproxySettings(), service, {name: Role(name, {"lb": (name,)}) for name in names}, "")
    members = {
        name: Member(name, f"10.0.{number // 250}.{number % 250 + 1}", names[number % 100], {}, "alive", 0)
        for number in range(servers)
        for name in [f"web{number}"]
    }
    empty = "".join(f"backend {name}\n    # additional-lb-{name}-server\n" for name in names)
    (text,) = make_plan(Document([("haproxy.cfg", empty)]), roles, Membership(members)).after
    more = {**members, "new": Member("new", "10.200.0.1", "r0", {}, "alive", 0)}

    def measure(_: int) -> float:
        started = time.process_time()
        make_plan(Document([("haproxy.cfg", text)]), roles, Membership(more))
        return (time.process_time() - started) * 1000

    return measure


def measure_burst() -> bool:
    """Count the checks of haproxy.cfg for 200 handlers at once."""
    with world.lb(1) as lb:
        log = os.path.join(lb.folder, "checks")
        counting = os.path.join(lb.folder, "bin", "haproxy")
        os.unlink(counting)
        with open(counting, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\necho check >> {log}\nexec /usr/sbin/haproxy "$@"\n')
        os.chmod(counting, 0o755)
        environ = {"PATH": lb.path(haproxy=False), "SERF_EVENT": "member-join"}
        handlers = []
        for number in range(200):
            handlers.append(subprocess.Popen(lb.argv("handle"), stdin=subprocess.PIPE, env=environ))
            stdin = handlers[-1].stdin
            assert stdin is not None
            stdin.write(_format_member(number))
            stdin.close()
        for handler in handlers:
            handler.wait()
        with open(lb.cfg(), encoding="utf-8") as file:
            joined = file.read().count("# lbagent role=")
        with open(log, encoding="utf-8") as file:
            checks = file.read().count("check")
        return joined == 200 and report("haproxy -c runs for 200 handlers at once / handlers", checks, 200, 0.25, "  ")


def _format_member(number: int) -> bytes:
    return f"web{number}\t10.0.{number // 250}.{number % 250 + 1}\tr0\trole=r0\n".encode()


if __name__ == "__main__":
    sys.exit(main())
