"""A load balancer with an unprivileged Serf agent: `handle` runs as Serf's user, `watch` as root, as in the units."""

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
"""The ids of Serf's user and of the group of the state directory, which no host uses."""

AS_SERF = ("setpriv", f"--reuid={SERF}", f"--regid={SERF}", f"--groups={GROUP}", "--")
"""The prefix of a command that runs it as Serf's user, as in serf.service.d/lbagent.conf."""


def create_state_directory(state: Path, group: int = GROUP) -> None:
    """Create the state directory as tmpfiles.d does."""
    for line in (HERE / "systemd" / "lbagent.tmpfiles").read_text().splitlines():
        kind, path, mode, user, owner, *_ = [*line.split(), "", "", "", "", ""]
        here = state / Path(path or "/").relative_to("/var/lib/lbagent") if kind == "d" else state
        if kind == "d":
            here.mkdir(exist_ok=True)
            os.chown(here, {"root": 0}[user], {"root": 0, "lbagent": group}[owner])
            here.chmod(int(mode, 8))


class TwoUserLoadBalancer(LoadBalancer):
    """A load balancer that runs `handle` as Serf's user and all other commands as root."""

    def __enter__(self) -> Self:
        self.folder.chmod(0o755)
        create_state_directory(self.state)
        # The checkout may be in a folder that only root can read.
        # Compiled modules are copied too, but not those that another process is writing at this moment.
        shutil.copytree(HERE / "lbagent", self.folder / "site" / "lbagent", ignore=shutil.ignore_patterns("*.pyc.*"))
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
        """Run a Python script as Serf's user in the spool."""
        python = os.path.realpath(sys.executable)
        command = [*AS_SERF, python, "-IBc", script, *words]
        return subprocess.run(
            command, cwd=self.state / "spool", capture_output=True, text=True, timeout=120, check=False
        )


@contextlib.contextmanager
def suspend(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Suspend the process until the end of the block."""
    import signal  # noqa: PLC0415

    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
