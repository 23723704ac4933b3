"""Start programs: argument lists, a time limit, captured output. The only module that does so.

A child that inherited stdout would block Serf's event loop, and its output would become the answer to a query. Uses
posix_spawn, as importing `subprocess` takes 6 ms on the handler's path.
"""

from __future__ import annotations

# The C part of `signal`: the module itself takes 3 ms more.
import _signal  # type: ignore[import-not-found]
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

_OUTPUT_LIMIT = 16 * 1024 * 1024
"""Maximum bytes of output: `serf members` of 20,000 nodes prints 7 MB."""
_POLL = 0.1
"""Seconds between two checks of the output."""

Enough = Callable[[str], bool]
"""Returns whether the output so far is all that is wanted."""

waiting_callbacks: list[Callable[[], None]] = []
"""Called every 0.1 s while a program runs: the daemon sends its watchdog signal there."""

_DEFAULT_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_SIGINT, _SIGKILL, _SIGPIPE, _SIGTERM, _SIGXFSZ = 2, 9, 13, 15, 25
_SHELL_SIGNAL, _SIGNALS = 128, 64
"""Offset that a shell adds to the number of the signal that killed a program, and the number of signals."""


class ProgramResult(NamedTuple):
    """The result of a program."""

    status: int | None
    """Exit status, negative for a signal; None after a timeout."""
    output: str
    """stdout and stderr together."""

    @property
    def succeeded(self) -> bool:
        """Whether it ended in time with exit status 0."""
        return self.status == 0

    @property
    def was_killed(self) -> bool:
        """Whether a signal killed it, or killed a program that it, as a shell script, ran.

        Then it has given no verdict.
        """
        return self.status is not None and (self.status < 0 or _SHELL_SIGNAL < self.status <= _SHELL_SIGNAL + _SIGNALS)

    @property
    def ending(self) -> str:
        """How it ended, as the end of a sentence."""
        if self.status is None:
            return "did not end in time"
        if not self.was_killed:
            return f"ended with {self.status}"
        number = -self.status if self.status < 0 else self.status - _SHELL_SIGNAL
        hint = ", as the kernel does where memory is short" if number == _SIGKILL else ""
        return f"was killed by signal {number}{hint}"


def find_program(program: str) -> str:
    """Return the path of a program, also if an init script set a short PATH. Raises FileNotFoundError."""
    # Skip relative entries of PATH, also empty ones: they mean the directory where Serf was started.
    absolute = [folder for folder in os.environ.get("PATH", "").split(":") if folder.startswith("/")]
    for folder in ("",) if "/" in program else (*absolute, *_DEFAULT_FOLDERS):
        path = os.path.join(folder, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(2, "no such program", program)


class Program:
    """A program that runs beside this one, from the start of a `with` block to its end at most."""

    def __init__(
        self, argv: Sequence[str], timeout: float, *, cwd: str | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        """Nothing is started yet. `timeout` is in seconds, from the start."""
        self._argv, self._timeout, self._cwd = argv, timeout, cwd
        self._environ = os.environ if environ is None else environ
        self._pid = 0
        self._output = -1
        self._has_ended = False

    def __enter__(self) -> Self:
        """Start it. Raises OSError if it cannot be started."""
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.end()

    def start(self) -> None:
        """Start it; the caller calls `end`, also if this raises. Raises OSError if it cannot be started."""
        command = _build_command(self._argv, self._cwd)
        # Into a memfd, not a pipe: a daemon left behind by a reload would keep a pipe open and block us.
        self._output = os.memfd_create("output", os.MFD_CLOEXEC)
        self._deadline = time.monotonic() + self._timeout
        # An interrupt waits until the pid is known: the program may have run for a while before this process continues.
        # Where there are other threads (`watch`, `web`), one of these gets the signal, and its handler raises nothing.
        mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_SIGINT, _SIGTERM))
        try:
            self._pid = _spawn(command, self._environ, self._output, mask)
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)

    def wait(self, enough: Enough | None = None) -> ProgramResult:
        """Return its result at its end, at its time limit, or when its output is `enough`; then its status is 0."""
        self._has_ended = _wait_for_end(self._pid, self._deadline, self._output, enough)
        status = self._reap()
        words = _read_output(self._output)
        if status is None and not (enough and enough(words)):
            return ProgramResult(None, f"{self._argv[0]} did not end within {self._timeout:g} s")
        return ProgramResult(status or 0, words.strip())

    def end(self) -> None:
        """Kill it if it still runs, also when this run is interrupted: Ctrl-C does not reach another session."""
        try:
            if self._pid:
                self._reap()
        finally:
            output, self._output = self._output, -1
            if output >= 0:
                os.close(output)

    def _reap(self) -> int | None:
        """Return its exit status; None if it had not ended, and was killed."""
        if not self._has_ended:
            os.killpg(self._pid, _SIGKILL)
        pid, self._pid = self._pid, 0
        status = os.waitpid(pid, 0)[1]
        return os.waitstatus_to_exitcode(status) if self._has_ended else None


def run_program(
    argv: Sequence[str],
    timeout: float,
    *,
    cwd: str | None = None,
    environ: Mapping[str, str] | None = None,
    enough: Enough | None = None,
) -> ProgramResult:
    """Run a program for at most `timeout` seconds, or until its output is `enough`; then its status counts as 0.

    Raises OSError if it cannot be started.
    """
    with Program(argv, timeout, cwd=cwd, environ=environ) as program:
        return program.wait(enough)


def _build_command(argv: Sequence[str], cwd: str | None) -> list[str]:
    command = [find_program(argv[0]), *argv[1:]]
    if cwd is None or cwd == os.getcwd():
        return command
    # posix_spawn cannot set the working directory; env can.
    return [find_program("env"), f"--chdir={cwd}", *command]


def _read_output(output: int) -> str:
    return os.pread(output, _OUTPUT_LIMIT, 0).decode("utf-8", "replace")


def _spawn(command: list[str], environ: Mapping[str, str], output: int, mask: set[int]) -> int:
    return os.posix_spawn(
        command[0],
        command,
        environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        # A session of its own, so that a timeout kills its children as well.
        setsid=True,
        setsigmask=mask,
        setsigdef=[_SIGPIPE, _SIGXFSZ],  # Python ignores these; programs expect the default
    )


def _wait_for_end(pid: int, deadline: float, output: int, enough: Enough | None) -> bool:
    descriptor = os.pidfd_open(pid)
    try:
        return _poll_until_end(descriptor, deadline, output, enough)
    finally:
        os.close(descriptor)


def _poll_until_end(descriptor: int, deadline: float, output: int, enough: Enough | None) -> bool:
    while (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], min(left, _POLL))[0]:
            return True
        for call in waiting_callbacks:
            call()
        if enough and enough(_read_output(output)):
            return False
        # Discard excess output rather than fill the memory.
        if os.fstat(output).st_size > _OUTPUT_LIMIT:
            os.ftruncate(output, _OUTPUT_LIMIT)
    return bool(select.select([descriptor], [], [], 0)[0])
