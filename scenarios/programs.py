"""Programs of a scenario: each in a session of its own, ended with all it has started, also when a test fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.helpers.real_programs import wait_until


class Program:
    """A program that can be killed and started again; what it says is appended to `log`."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Nothing runs before `start`, or the `with`."""
        self.argv, self.env, self.log = list(argv), dict(env), log
        self._process: subprocess.Popen[bytes] | None = None
        # Killed without a chance to clean up, a test still leaves no program behind.
        self._leash = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Run it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._leash, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                env=self.env,
                start_new_session=True,
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send one signal to the program alone and wait for its end; then nothing that it has started is left."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            self._process.wait(60)
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not self.pids())

    def send(self, number: signal.Signals) -> None:
        """Send one signal and go on."""
        assert self._process
        self._process.send_signal(number)

    @property
    def lives(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def said(self) -> str:
        """All of its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def pids(self) -> list[int]:
        """The living processes of its session."""
        return list(_of_session(self._process.pid)) if self._process else []

    def memory(self) -> float:
        """MiB of all its processes, what they share with others counted by halves, thirds and so on."""
        return sum(map(_proportional, self.pids())) / 1024


def _of_session(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    yield int(entry.name)


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
