"""A load balancer whose Serf agent has no rights: `handle` as one user, `watch` as another, as the units have it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.helpers.real_programs import LBAGENT, LoadBalancer

HERE = Path(__file__).resolve().parent.parent.parent
SERF, GROUP = 61_001, 61_002
"""Serf's user, and the group of the state directory: numbers that no host gives to its own."""

AS_SERF = ("setpriv", f"--reuid={SERF}", f"--regid={SERF}", f"--groups={GROUP}", "--")
"""Before a command: it runs as Serf's user, as serf.service.d/lbagent.conf has it."""


def create_state_directory(state: Path, group: int = GROUP) -> None:
    """The state directory as tmpfiles.d makes it."""
    for line in (HERE / "systemd" / "lbagent.tmpfiles").read_text().splitlines():
        kind, path, mode, user, owner, *_ = [*line.split(), "", "", "", "", ""]
        here = state / Path(path or "/").relative_to("/var/lib/lbagent") if kind == "d" else state
        if kind == "d":
            here.mkdir(exist_ok=True)
            os.chown(here, {"root": 0}[user], {"root": 0, "lbagent": group}[owner])
            here.chmod(int(mode, 8))


class TwoUserLoadBalancer(LoadBalancer):
    """Such a load balancer; `handle` and commands on request run as Serf's user, all other verbs as root."""

    def __enter__(self) -> Self:
        self.folder.chmod(0o755)
        create_state_directory(self.state)
        # The checkout and its environment may lie where only root reads.
        shutil.copytree(
            HERE / "lbagent", self.folder / "site" / "lbagent", ignore=shutil.ignore_patterns("__pycache__")
        )
        self.handler = self.folder / "handler"
        code = f"import sys; sys.path.insert(0, {str(self.folder / 'site')!r}); from lbagent.cli import run; run()"
        python = os.path.realpath(sys.executable)
        self.handler.write_text(f'#!/bin/sh\nexec {" ".join(AS_SERF)} {python} -IBc "{code}" "$@"\n')
        self.handler.chmod(0o755)
        return self

    def run(
        self, *argv: str, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `lbagent`: `handle` as Serf's user."""
        command = [str(self.handler if argv[-1] == "handle" else LBAGENT), *argv]
        environ = {**self.env, **(env or {})}
        return subprocess.run(command, input=stdin, env=environ, capture_output=True, timeout=120, check=False)

    def run_as_serf(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a script of Python as Serf's user, in the spool."""
        python = os.path.realpath(sys.executable)
        command = [*AS_SERF, python, "-IBc", script, *words]
        return subprocess.run(
            command, cwd=self.state / "spool", capture_output=True, text=True, timeout=120, check=False
        )


@contextlib.contextmanager
def suspend(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process hangs."""
    import signal  # noqa: PLC0415

    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
