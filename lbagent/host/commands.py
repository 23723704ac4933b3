"""The only room that starts processes: argument lists, a time limit, output captured, never inherited.

A child that held our stdout would stall Serf's event loop, and what it printed would become the answer
to a query. posix_spawn and not `subprocess`, which costs the handler's path 6 ms more to load.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_WORDS_LIMIT = 64 * 1024
_ELSEWHERE = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25


class Finished(NamedTuple):
    """How a command ended."""

    status: int | None
    """Its exit status, negative for a signal; None where it ran out of time."""
    words: str
    """What it said, stdout and stderr together."""

    @property
    def good(self) -> bool:
        """Whether it ended in time and with 0."""
        return self.status == 0


def found(program: str) -> str:
    """The path of a program, also where an init script left PATH short. Raises FileNotFoundError."""
    folders = ("",) if "/" in program else (*os.environ.get("PATH", "").split(":"), *_ELSEWHERE)
    for folder in folders:
        path = os.path.join(folder, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(2, "no such program", program)


def run(
    argv: Sequence[str], timeout: float, *, cwd: str | None = None, environ: Mapping[str, str] | None = None
) -> Finished:
    """Run a command for at most `timeout` seconds. Raises OSError where it cannot be started."""
    program = found(argv[0])
    command = [program, *argv[1:]]
    if cwd is not None and cwd != os.getcwd():
        # posix_spawn knows no folder; env does.
        command = [found("env"), f"--chdir={cwd}", *command]
    # Into memory, not a pipe: a daemon that a reload leaves behind keeps a pipe open, and us waiting.
    output = os.memfd_create("output", os.MFD_CLOEXEC)
    try:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ if environ is None else environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            # A session of its own, so that at a time limit what it started ends with it.
            setsid=True,
            setsigdef=[_SIGPIPE, _SIGXFSZ],  # which Python ignores, and nobody else expects to be ignored
        )
        status = _status(pid, timeout)
        if status is None:
            return Finished(None, f"{argv[0]} did not end within {timeout:g} s")
        return Finished(status, os.pread(output, _WORDS_LIMIT, 0).decode("utf-8", "replace").strip())
    finally:
        os.close(output)


def _status(pid: int, timeout: float) -> int | None:
    descriptor = os.pidfd_open(pid)
    try:
        ended = bool(select.select([descriptor], [], [], timeout)[0])
        if not ended:
            os.killpg(pid, _SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(status) if ended else None
