"""`lbagent watch`, run beside a test."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator

from tests.helpers.real_programs import PATIENCE, LoadBalancer, wait_until


@contextlib.contextmanager
def run_watch(lb: LoadBalancer, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """`lbagent watch`, once it holds its lock and has made its first round."""
    process = lb.start("watch", env=env)
    # The output has to be read, as the journal does: a full pipe blocks its writer.
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
