"""Programs of the demo: each started in a session of its own, and ended by its pid whatever happens."""

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
"""Seconds after which something that should have happened is taken for failed."""


class Stuck(Exception):
    """Something did not happen; the words say what, and what the program concerned said last."""


def wait_for(what: str, seen: Callable[[], bool], log: Path | None = None) -> None:
    """Wait until `seen` is true. Raises Stuck with the last lines of `log`."""
    deadline = time.monotonic() + PATIENCE
    while not seen():
        if time.monotonic() > deadline:
            last = log.read_text(errors="replace").splitlines()[-6:] if log and log.exists() else []
            raise Stuck("\n".join([f"{what}: not seen within {PATIENCE:g} s", *last]))
        time.sleep(0.01)


class Crew:
    """The running programs."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """Logs go to `folder`; `environ` is what every program gets."""
        self._folder, self._environ = folder, dict(environ)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # Killed without a chance to clean up, the demo still leaves no program behind.
        self._leash = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []

    def start(self, name: str, argv: Sequence[str], **more: str) -> None:
        """Start a program under `name`, with `more` in its environment."""
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*self._leash, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**self._environ, **more},
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Where the program called `name` writes."""
        return self._folder / f"{name}.log"

    def lives(self, name: str) -> bool:
        """Whether it still runs."""
        return self._running[name].poll() is None

    def tell(self, name: str, number: signal.Signals) -> None:
        """Send one signal to the program alone, and wait until it has ended."""
        process = self._running[name]
        process.send_signal(number)
        wait_for(f"the end of {name}", lambda: process.poll() is not None, self.log(name))
        del self._running[name]

    def end_all(self) -> None:
        """End every program, the last started first, with whatever it has started."""
        for process in reversed(self._running.values()):
            _end(process)

    @property
    def gone(self) -> bool:
        """Whether all that was started has ended."""
        return not any(_group_lives(process.pid) for process in self._running.values())


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        deadline = time.monotonic() + seconds
        while _group_lives(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        if not _group_lives(process.pid):
            return


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
