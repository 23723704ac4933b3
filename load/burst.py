"""python -m load.burst: 1,000 pauses and resumes, where every change needs a reload; one reload per interval.

Environment: EVENTS=1000 (number of events, each one run of `handle`).
"""

from __future__ import annotations

import os
import sys
import time

from tests.helpers.daemon import run_watch
from tests.helpers.real_programs import RELOADING, Haproxy, LoadBalancer, member_line, wait_until

EVENTS = int(os.environ.get("EVENTS", "1000"))
NODES = [f"web{number:02}" for number in range(1, 21)]
INTERVAL = 2


def main() -> int:
    """Send the events and print the figures; returns 0 if no interval had two reloads and the last state is applied."""
    roles = RELOADING.replace("  timeout: 15s\n", f"  timeout: 15s\n  min_reload_interval: {INTERVAL}s\n")
    with LoadBalancer(roles=roles) as lb, Haproxy(lb) as haproxy, run_watch(lb):
        lb.join(*(member_line(name, f"127.0.1.{number}") for number, name in enumerate(NODES, 1)))
        wait_until(lambda: len(haproxy.find_serving()) == len(NODES) and lb.idle)
        before, started = haproxy.reloads()[0], time.monotonic()
        for number in range(EVENTS):
            # Pause twenty nodes, then resume the same twenty.
            verb = ("pause", "resume")[number // len(NODES) % 2]
            assert lb.send_command(verb, NODES[number % len(NODES)], number + 1).returncode == 0
        took = time.monotonic() - started
        wanted = set() if EVENTS // len(NODES) % 2 else set(NODES)
        wait_until(lambda: haproxy.find_serving() == wanted and lb.idle, 60)
        reloads = haproxy.reloads()[0] - before
    print(f"{EVENTS} events in {took:.0f} s: {reloads} reloads, at most one per {INTERVAL} s; all applied")
    return int(reloads > took / INTERVAL + 2)


if __name__ == "__main__":
    sys.exit(main())
