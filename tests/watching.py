"""`lbagent watch`, run beside a test."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator

from tests.world import PATIENCE, Lb, eventually


@contextlib.contextmanager
def watching(lb: Lb, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """`lbagent watch`, once it holds its lock and has made its first round."""
    process = lb.start("watch", env=env)
    try:
        eventually(lambda: (lb.state / "metrics.prom").exists() and lb.idle)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=PATIENCE)
        process.kill()
        process.communicate()
