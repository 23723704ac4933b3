"""Programs of a scenario, each in its own session. Its children end with it, also when a test fails."""

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
    """A program that can be killed and started again. Its output is appended to `log`."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Prepare the program; `start` or `__enter__` starts it."""
        self.argv, self.env, self.log = list(argv), dict(env), log
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the program with the test, also if the test is killed.
        self._parent_death_signal = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the program."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._parent_death_signal, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                env=self.env,
                start_new_session=True,
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the program, wait for its end, and kill the other processes of its session."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            self._process.wait(60)
            for pid in self.list_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not self.list_processes())

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program, without waiting."""
        assert self._process
        self._process.send_signal(number)

    @property
    def is_running(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """The whole log of the program."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def list_processes(self) -> list[int]:
        """Return the pids of its session, without zombies."""
        return list(_list_session(self._process.pid)) if self._process else []

    def measure_memory(self) -> float:
        """Return the memory of its session in MiB. Shared pages are divided among their processes (PSS)."""
        return sum(map(_read_proportional_memory, self.list_processes())) / 1024


def _list_session(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    yield int(entry.name)


def _read_proportional_memory(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
