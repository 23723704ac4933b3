"""The only room that starts processes: argument lists, a time limit, output captured, never inherited.

A child that held our stdout would stall Serf's event loop, and what it printed would become the
answer to a query.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_WORDS_LIMIT = 64 * 1024
_ELSEWHERE = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Finished(NamedTuple):
    """How a command ended."""

    status: int | None
    """Its exit status; None where it ran out of time."""
    words: str
    """What it said, stdout and stderr together."""

    @property
    def good(self) -> bool:
        """Whether it ended in time and with 0."""
        return self.status == 0


def found(program: str) -> str | None:
    """The path of a program, also where an init script left PATH short."""
    return shutil.which(program) or shutil.which(program, path=_ELSEWHERE)


def run(
    argv: Sequence[str], timeout: float, *, cwd: str | None = None, environ: Mapping[str, str] | None = None
) -> Finished:
    """Run a command for at most `timeout` seconds. Raises OSError where it cannot be started."""
    program = found(argv[0])
    if program is None:
        raise FileNotFoundError(2, "no such program", argv[0])
    # Into memory, not a pipe: a daemon that a reload leaves behind keeps a pipe open, and us waiting.
    output = os.memfd_create("output", os.MFD_CLOEXEC)
    try:
        child = subprocess.Popen(  # noqa: S603  # an argument list, no shell
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=environ,
            start_new_session=True,
        )
        if not _ended(child.pid, timeout):
            # A session of its own: what it started and waits for ends with it.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return Finished(None, f"{argv[0]} did not end within {timeout:g} s")
        return Finished(child.wait(), os.pread(output, _WORDS_LIMIT, 0).decode("utf-8", "replace").strip())
    finally:
        os.close(output)


def _ended(pid: int, timeout: float) -> bool:
    # Popen.wait(timeout) polls in steps of up to 50 ms, more than a whole `haproxy -c`.
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    finally:
        os.close(descriptor)
