"""Start the programs of the demo, each in its own session, and end them by their pids."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATIENCE = 15.0
"""Seconds to wait for a step of the demo."""


class DemoFailed(Exception):
    """A step of the demo did not happen; the message ends with the last lines of the log."""


def wait_for(step: str, is_done: Callable[[], bool], log: Path | None = None) -> None:
    """Wait until `is_done` returns true. Raises DemoFailed with the last lines of `log`."""
    deadline = time.monotonic() + PATIENCE
    while not is_done():
        if time.monotonic() > deadline:
            last = log.read_text(errors="replace").splitlines()[-6:] if log and log.exists() else []
            raise DemoFailed("\n".join([f"{step}: not seen within {PATIENCE:g} s", *last]))
        time.sleep(0.01)


class Programs:
    """The running programs, by name."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """Write logs to `folder`; every program gets the environment `environ`."""
        self._folder, self._environ = folder, dict(environ)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # If the demo is killed, the kernel ends its programs.
        self._wrapper = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []

    def start(self, name: str, argv: Sequence[str], **more: str) -> None:
        """Start a program under `name`; `more` is added to its environment."""
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*self._wrapper, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**self._environ, **more},
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Return the log file of a program."""
        return self._folder / f"{name}.log"

    def stop(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a program and wait until it has ended."""
        process = self._running[name]
        process.send_signal(number)
        wait_for(f"the end of {name}", lambda: process.poll() is not None, self.log(name))
        del self._running[name]

    def end(self) -> None:
        """End every program with its children, the last one first."""
        for process in reversed(self._running.values()):
            _end(process)

    @property
    def have_ended(self) -> bool:
        """Whether all programs and their children have ended."""
        return not any(_is_group_alive(process.pid) for process in self._running.values())


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        deadline = time.monotonic() + seconds
        while _is_group_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        if not _is_group_alive(process.pid):
            return


def _is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
