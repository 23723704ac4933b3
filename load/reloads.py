"""python -m load.reloads [VERSION…]: 20 reloads in a row on each HAProxy, by lbagent and by HAProxy alone.

By lbagent: from the request to the worker that it confirms, and whole `handle` runs that take a reload.
HAProxy alone: from SIGUSR2 to the first answer of another worker on the stats socket. Environment: TIMES=20 (number).
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lbagent.haproxy.instance import Haproxy as Instance
from lbagent.roles.model import HaproxySettings
from tests.helpers.real_programs import RELOADING, Haproxy, LoadBalancer, binaries, member_line, wait_until

TIMES = int(os.environ.get("TIMES", "20"))


def main(versions: list[str]) -> int:
    """Measure and print; returns 0 if no reload was lost, doubled or failed."""
    return max(
        measure(version, binaries()[version], master_cli=master_cli)
        for version in versions or binaries()
        for master_cli in (False, True)
    )


def measure(version: str, binary: Path, *, master_cli: bool) -> int:
    """Make all reloads of one HAProxy; returns 1 if their number is not the expected one, else 0."""
    with LoadBalancer(roles=RELOADING, binary=binary) as lb:
        more = ["-S", f"{lb.folder}/master.sock"] if master_cli else []
        with Haproxy(lb, more=more) as haproxy:
            settings = HaproxySettings((str(lb.cfg),))
            lines = [["stats", "socket", str(lb.socket), "level", "admin"]]
            alone = repeat(lambda _: reload_alone(haproxy))
            reloads = repeat(lambda _: confirm_reload(Instance(settings, lines)))
            runs = repeat(lambda number: join_node(lb, number))
            counted = haproxy.reloads()
    print(
        f"HAProxy {version} {'with -S' if master_cli else 'SIGUSR2'}: {TIMES} reloads in a row,"
        f" HAProxy alone {describe(alone)}; by lbagent {describe(reloads)}; whole runs of handle {describe(runs)};"
        f" {counted[0]} reloads, {counted[1]} failed",
        flush=True,
    )
    return int(counted != (3 * TIMES, 0))


def repeat(work: Callable[[int], None]) -> list[float]:
    """Return the seconds that each of TIMES calls took."""
    took = []
    for number in range(TIMES):
        started = time.monotonic()
        work(number)
        took.append(time.monotonic() - started)
    return took


def reload_alone(haproxy: Haproxy) -> None:
    """Send SIGUSR2 and wait until another worker answers."""
    haproxy.reloads()  # wait for the end of the last reload, else the signal would be lost
    old = haproxy.worker()
    os.kill(haproxy.pid, signal.SIGUSR2)

    def has_changed() -> bool:
        with contextlib.suppress(OSError, KeyError):
            return haproxy.worker() != old
        return False

    wait_until(has_changed, pause=0.002)


def confirm_reload(instance: Instance) -> None:
    """Reload as lbagent does, until the new worker is confirmed."""
    assert instance.reload()


def join_node(lb: LoadBalancer, number: int) -> None:
    """Handle one member-join, which needs a reload."""
    assert lb.join(member_line(f"web{number:02}", f"127.0.1.{number + 1}")).returncode == 0


def describe(seconds: list[float]) -> str:
    """Format the sum, the median and the maximum."""
    return f"{sum(seconds):.1f} s (median {statistics.median(seconds) * 1000:.0f} ms, longest {max(seconds):.2f} s)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
