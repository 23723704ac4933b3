"""python -m load.scale [MEMBERS…]: what 200, 2,000 and 20,000 members cost, with a growth from each to the next.

A hundred members per proxy, in a real HAProxy with `watch`. The Serf agent runs, and is not asked: a script in place of
`serf` prints the members. Environment: TIMES=7 (measurements of each kind), HAPROXY=3.0 (version).
"""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import lbagent
from tests.helpers.real_programs import LBAGENT, Haproxy, LoadBalancer, SerfAgent, binaries, wait_until

SIZES = (200, 2_000, 20_000)
PER_PROXY = 100
TIMES = int(os.environ.get("TIMES", "7"))
VERSION = os.environ.get("HAPROXY", "3.0")

STATUS_LIMIT, SYNC_LIMIT, PAUSE_LIMIT = 4.0, 3.0, 300.0
"""Limits at 20,000 members: `status` / `plan`, `sync` / `haproxy -c`, and the milliseconds of a pause.

`sync` runs `haproxy -c` beside its other work, so its duration is compared; that of `status` is compared in CPU time.
"""

_HEAD = """\
global
    stats socket {socket} mode 600 level admin
    maxconn 1000
    no strict-limits
defaults
    mode http
    timeout connect 5s
    timeout client 50s
    timeout server 50s
listen front
    bind 127.0.0.1:{front}
    http-request return status 200
frontend nodes
    bind 0.0.0.0:{port}
    http-request return status 200
"""

_SERF = """\
#!/bin/sh
case "$*" in
*-tag=*) echo '{{"members": null}}'; exit ;;
esac
case "$1" in
members | info) exec cat {folder}/$1.json ;;
esac
exit 1
"""

_LAUNCHER = """\
import json, os, sys, time
started = time.perf_counter()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
took = time.perf_counter() - started
cpu = usage.ru_utime + usage.ru_stime
os.write(2, b"\\n" + json.dumps([took, cpu, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]).encode())
"""
"""Runs a command and reports it; a small process, as a child's peak of memory begins with that of its parent."""


class Cost(NamedTuple):
    """What one command has cost."""

    milliseconds: float
    cpu: float
    """Milliseconds of processor time, with that of its children."""
    mebibytes: float
    """Its peak of resident memory, or that of its largest child."""


class Row(NamedTuple):
    """One line of the table."""

    name: str
    unit: str
    values: tuple[float, ...]


def main(words: Sequence[str]) -> int:
    """Measure, and print the table; returns 0 if every promise is kept at the largest size."""
    sizes = [int(word) for word in words] or SIZES
    # As installed: without byte code, each command would compile all modules again.
    compileall.compile_dir(Path(lbagent.__file__).parent, quiet=1)
    found = [measure(size) for size in sizes]
    print_table(sizes, [Row(name, name.rpartition(", ")[2], tuple(one[name] for one in found)) for name in found[0]])
    return check_promises(found[-1])


def measure(size: int) -> dict[str, float]:
    """Return every figure of this many members by name; the unit is its last word."""
    took: dict[str, list[float]] = {}

    def record(name: str, value: float) -> None:
        took.setdefault(name, []).append(value)

    with (
        LoadBalancer(make_config(size), make_roles(size), binaries()[VERSION]) as lb,
        SerfAgent("lb01", "127.0.0.9", "lb") as agent,
    ):
        write_serf(lb, size)
        env = {**lb.env, "SERF_RPC_ADDR": agent.rpc}
        first = run_command(env, "sync")
        with Haproxy(lb) as haproxy, run_daemon(lb, env) as daemon:
            for number in range(TIMES):
                for verb in ("plan", "status", "sync"):
                    cost = run_command(env, verb)
                    record(f"`{verb}`, ms", cost.milliseconds)
                    record(f"`{verb}`, CPU ms", cost.cpu)
                    record(f"memory of `{verb}`, MiB", cost.mebibytes)
                check = run([str(lb.binary), "-c", "-f", str(lb.cfg)], lb.env)
                record("`haproxy -c`, ms", check.milliseconds)
                record("`haproxy -c`, CPU ms", check.cpu)
                for name, milliseconds in change_members(lb, haproxy, size, number):
                    record(f"{name} to HAProxy, ms", milliseconds)
            memory = read_memory(daemon.pid)
            haproxy_memory = read_memory(haproxy.worker())
    figures = {name: statistics.median(values) for name, values in took.items()}
    figures["first `sync`, ms"] = first.milliseconds
    figures["memory of `watch`, MiB"] = memory
    figures["memory of HAProxy, MiB"] = haproxy_memory
    return figures


def change_members(lb: LoadBalancer, haproxy: Haproxy, size: int, number: int) -> Iterator[tuple[str, float]]:
    """Let one member leave and join, then be paused and resumed; yields each change with its milliseconds."""
    node = size // 2 + number
    proxy, server = f"s{node // PER_PROXY}", name_node(node)
    line = f"{server}\t{format_address(node)}\tr{node // PER_PROXY}\trole=r{node // PER_PROXY}\n".encode()
    ltimes = {"pause": str(2 * number + 1), "resume": str(2 * number + 2)}

    def handle(kind: str, stdin: bytes, *, serves: bool, **env: str) -> float:
        started = time.perf_counter()
        with lb.start_handle(kind, stdin, **env) as handler:
            assert handler.wait() == 0
        wait_until(lambda: is_serving(haproxy, proxy, server) is serves, pause=0.002)
        took = (time.perf_counter() - started) * 1000
        wait_until(lambda: lb.idle)
        return took

    yield "leave", handle("member-leave", line, serves=False)
    yield "join", handle("member-join", line, serves=True)
    for verb, ltime in ltimes.items():
        took = handle("user", server.encode(), serves=verb == "resume", SERF_USER_EVENT=verb, SERF_USER_LTIME=ltime)
        yield verb, took


def is_serving(haproxy: Haproxy, proxy: str, server: str) -> bool:
    """Return whether HAProxy has the server and it is not in maintenance."""
    rows = [line.split() for line in haproxy.send(f"show servers state {proxy}").splitlines()[2:] if line]
    return any(row[3] == server and row[6] == "0" for row in rows)


@contextlib.contextmanager
def run_daemon(lb: LoadBalancer, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `watch` until the block is left; its first round has ended when the block begins."""
    with subprocess.Popen([LBAGENT, "watch"], env=env, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: (lb.state / "watch.lock").exists() and (lb.state / "metrics.prom").exists() and lb.idle)
            time.sleep(2)
            wait_until(lambda: lb.idle)
            yield process
        finally:
            process.terminate()


def run_command(env: dict[str, str], verb: str) -> Cost:
    """Return the cost of one verb. Raises AssertionError if it fails."""
    return run([str(LBAGENT), verb], env)


def run(argv: Sequence[str], env: dict[str, str]) -> Cost:
    """Return the cost of a command, whose output is dropped. Raises AssertionError if it fails."""
    launcher = [sys.executable, "-SIc", _LAUNCHER, *argv]
    done = subprocess.run(launcher, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    seconds, cpu, kibibytes, status = json.loads(done.stderr.rpartition(b"\n")[2])
    assert status == 0, done.stderr
    return Cost(seconds * 1000, cpu * 1000, kibibytes / 1024)


def read_memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_config(size: int) -> str:
    """Return haproxy.cfg with a marker in each proxy."""
    proxies = "".join(
        f"backend s{number}\n    balance roundrobin\n    # additional-lb-s{number}-server\n"
        for number in range(-(-size // PER_PROXY))
    )
    return _HEAD + proxies


def make_roles(size: int) -> str:
    """Return roles.yml with a role and a service for each proxy."""
    numbers = range(-(-size // PER_PROXY))
    services = "".join(f"  s{number}: {{{{port: {{port}}}}}}\n" for number in numbers)
    roles = "".join(
        f"  r{number}: {{{{lb: [s{number}], interval: 60s, networks: [127.0.0.0/8]}}}}\n" for number in numbers
    )
    return f"haproxy: {{{{config: {{cfg}}}}}}\nservices:\n{services}roles:\n{roles}"


def write_serf(lb: LoadBalancer, size: int) -> None:
    """Put a `serf` into the PATH of the load balancer that lists all members."""
    members = [
        {
            "name": name_node(number),
            "addr": f"{format_address(number)}:7946",
            "port": 7946,
            "tags": {"role": f"r{number // PER_PROXY}"},
            "status": "alive",
            "protocol": {"max": 5, "min": 2, "version": 4},
        }
        for number in range(size)
    ]
    info = {"agent": {"name": "lb01"}, "serf": {"event_time": "1", "query_time": "1"}, "tags": {"role": "lb"}}
    (lb.folder / "members.json").write_text(json.dumps({"members": members}, indent=2))
    (lb.folder / "info.json").write_text(json.dumps(info))
    script = lb.bin / "serf"
    script.write_text(_SERF.format(folder=lb.folder))
    script.chmod(0o755)


def name_node(number: int) -> str:
    """Return the name of a member."""
    return f"node{number:05}"


def format_address(number: int) -> str:
    """Return the address of a member, which is a loopback address."""
    return f"127.{1 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"


def print_table(sizes: Sequence[int], rows: Sequence[Row]) -> None:
    """Print the figures, and by how much each grows from one size to the next."""
    print(f"HAProxy {VERSION}; medians of {TIMES}")
    growth = [f"{before:,}→{after:,}" for before, after in pairwise(sizes)]
    print(f"{'':34}{''.join(f'{size:>10,}' for size in sizes)}{''.join(f'{one:>15}' for one in growth)}")
    for row in rows:
        ratios = [after / before for before, after in pairwise(row.values)]
        print(
            f"{row.name:34}{''.join(f'{value:10.0f}' for value in row.values)}"
            f"{''.join(f'{ratio:14.1f}x' for ratio in ratios)}"
        )


def check_promises(figures: dict[str, float]) -> int:
    """Print the promises with what was measured; returns 1 if one is not kept, else 0."""
    promises = [
        ("`status` / `plan`", figures["`status`, CPU ms"] / figures["`plan`, CPU ms"], STATUS_LIMIT, "x"),
        ("`sync` / `haproxy -c`", figures["`sync`, ms"] / figures["`haproxy -c`, ms"], SYNC_LIMIT, "x"),
        ("pause to HAProxy", figures["pause to HAProxy, ms"], PAUSE_LIMIT, " ms"),
    ]
    for name, value, limit, unit in promises:
        kept = "" if value <= limit else "  MISSED"
        print(f"{name:34}{value:10.1f}{unit}  (limit {limit:g}{unit}){kept}")
    return int(any(value > limit for _, value, limit, _ in promises))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
