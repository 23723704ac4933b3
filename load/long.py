"""python -m load.long: the memory of the daemon over 100,000 events and over as many syncs as a day has minutes.

Environment: EVENTS=100000, SYNCS=1440 (numbers).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lbagent.serf.raw_event import RECORD_LIMIT, RawEvent
from lbagent.settings import Paths
from lbagent.state.spool import Spool
from tests.helpers.real_programs import LoadBalancer, SerfAgent, member_line, wait_until

EVENTS, SYNCS = (int(os.environ.get(name, default)) for name, default in (("EVENTS", 100_000), ("SYNCS", 1440)))
BATCH = 500
GROWTH_LIMIT = 1.5
"""Limit, in MiB, of the growth from the first tenth to the end."""

_DAEMON = (
    "from lbagent import cli; from lbagent.daemon import daemon; "
    "daemon.SYNC_EVERY = {every}; raise SystemExit(cli.main(['watch']))"
)
_CONFIG = """\
listen lb-iis
    bind 127.0.0.1:{front}
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
    # additional-lb-iis-server
"""


def main() -> int:
    """Measure both; returns 0 if memory did not grow."""
    return max(measure_events(), measure_syncs())


def measure_events() -> int:
    """Store joins, leaves, pauses and resumes of a hundred nodes, in batches, and report the memory."""
    with LoadBalancer(_CONFIG) as lb, daemon(lb, 60.0, {}) as process:
        spool = Spool(Paths(str(lb.state)).spool, RECORD_LIMIT)
        sizes = []
        for first in range(0, EVENTS, BATCH):
            for number in range(first, first + BATCH):
                for record in _make_event(number).split_records():
                    spool.store(record)
            wait_until(lambda: not lb.list_spool(), 120)
            sizes.append(measure_memory(process))
        return report(f"{EVENTS} events", sizes)


def measure_syncs() -> int:
    """Let the daemon sync, and report the memory."""
    with (
        LoadBalancer(_CONFIG) as lb,
        SerfAgent("lb01", "127.0.0.9", "lb") as agent,
        SerfAgent("web01", "127.0.0.11", "web") as web,
    ):
        web.join(agent)
        with daemon(lb, 0.02, {"SERF_RPC_ADDR": agent.rpc}) as process:
            sizes, syncs = [], 0
            while syncs < SYNCS:
                time.sleep(1)
                sizes.append(measure_memory(process))
                # Each sync fetches the member list twice.
                syncs = agent.log.count("Accepted client") // 4
        return report(f"{syncs} syncs", sizes)


@contextlib.contextmanager
def daemon(lb: LoadBalancer, every: float, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon with a sync every `every` seconds."""
    code = _DAEMON.format(every=every)
    with subprocess.Popen([sys.executable, "-c", code], env={**lb.env, **env}, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until((lb.state / "metrics.prom").exists)
            yield process
        finally:
            process.terminate()


def measure_memory(process: subprocess.Popen[bytes]) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def report(name: str, sizes: list[float]) -> int:
    """Print the memory after each tenth; returns 1 if it grew beyond the limit, else 0."""
    tenths = [sizes[len(sizes) * tenth // 10 - 1] for tenth in range(1, 11)]
    print(f"{name}: MiB after each tenth: {' '.join(f'{size:.1f}' for size in tenths)}", flush=True)
    return 0 if tenths[-1] - tenths[0] <= GROWTH_LIMIT else 1


def _make_event(number: int) -> RawEvent:
    name, identity, now = f"web{number % 100:02}", f"{number:016x}", int(time.time() * 1000)
    kind = ("member-join", "user", "user", "member-update", "member-leave")[number // 100 % 5]
    if kind == "user":
        verb = ("pause", "resume")[number // 100 % 2]
        return RawEvent(identity, now, kind, verb, number + 1, "lb01", f"{name} reason={number}".encode())
    return RawEvent(identity, now, kind, "", None, "lb01", member_line(name, f"127.0.1.{number % 100 + 1}"))


if __name__ == "__main__":
    sys.exit(main())
