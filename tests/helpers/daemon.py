"""Runs `lbagent watch` during a test."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator

from tests.helpers.real_programs import PATIENCE, LoadBalancer, wait_until


@contextlib.contextmanager
def run_watch(lb: LoadBalancer, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `lbagent watch`; yields its process after its first run."""
    process = lb.start("watch", env=env)
    # The output is read, as by the journal: a full pipe would block the daemon.
    listening = threading.Thread(target=process.communicate, daemon=True)
    listening.start()
    try:
        wait_until(lambda: (lb.state / "metrics.prom").exists() and lb.idle)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        listening.join(PATIENCE)
        process.kill()
        listening.join()
