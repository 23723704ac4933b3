"""Entry point of the program: runs one command, returns its exit status, and logs one line where it fails."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
from collections.abc import Callable

from lbagent.errors import INTERRUPTED, LbagentError
from lbagent.settings import DEFAULT_ROLES, Settings, load_handler_settings
from lbagent.system.log import Log, format_error, format_error_lines

Verb = Callable[[Settings, Log], int]
"""A command: does its work and returns the exit status. May raise LbagentError and OSError."""

_NEW_OBJECTS = 200_000
"""Number of new objects after which Python looks for garbage."""

_SIGINT, _SIGTERM = 2, 15


def run() -> None:
    """Run `main` and exit without tearing down the interpreter, which would take 3 to 10 ms."""
    _open_closed_streams()
    _wrap_stdout()
    try:
        status = main()
    except SystemExit as stop:  # argparse raises it after --help and --version
        status = int(stop.code or 0)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # the reader has ended, and needs no message
        status = status or 1
    except OSError as error:
        status = status or _print_error(error)
    os._exit(status)


def _print_error(error: OSError) -> int:
    """Print the error, and return the exit status."""
    with contextlib.suppress(OSError):
        print(f"lbagent: {format_error(error)}", file=sys.stderr)
    return 1


class _Stdout(io.FileIO):
    """Stdout, whose errors have a file name."""

    def write(self, data: memoryview, /) -> int | None:  # type: ignore[override]  # BufferedWriter passes no other
        """Write as much as the kernel takes."""
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "stdout") from None


def _wrap_stdout() -> None:
    """Give stdout a name, and a buffer, which it lacks with PYTHONUNBUFFERED.

    Python does not write the rest of an unbuffered write that the kernel cuts short, for example on a full disk.
    """
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(1, "w", closefd=False)),
        encoding=sys.stdout.encoding,
        errors=sys.stdout.errors,
        line_buffering=bool(sys.stdout.line_buffering),
    )


def _open_closed_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed.

    Otherwise the next file that is opened would get its number, and output meant for stderr would be written into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            mode = "r+" if name == "stdin" else "w"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status. A user's mistake is logged as one line, never as a traceback."""
    words = sys.argv[1:] if argv is None else argv
    settings = load_handler_settings(words, os.environ)
    if settings is not None:
        from lbagent.commands.handle import handle  # noqa: PLC0415  # an event must not wait for the other commands

        gc.disable()  # a handler ends before a garbage collection would pay off
        return _run_verb(settings, handle)
    # The default examines thousands of members and lines again after every 700 new ones; none of them is garbage.
    gc.set_threshold(_NEW_OBJECTS)
    from lbagent import arguments  # noqa: PLC0415  # an event must not wait for the other commands

    try:
        settings, verb = arguments.parse_command_line(words, os.environ)
    except LbagentError as error:
        print(f"lbagent: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:  # --help and --version write to stdout, whose disk may be full
        return _print_error(error)
    _load_serf_env(settings)
    return _run_verb(settings, verb)


def _load_serf_env(settings: Settings) -> None:
    """Take the Serf agent's address and token from serf.env where the environment has none."""
    from lbagent.serf import agent  # noqa: PLC0415  # a handler inherits both from the Serf agent

    folders = agent.list_serf_env_folders(settings.roles, os.environ, DEFAULT_ROLES)
    agent.process_serf_env = agent.SerfEnv(folders, os.environ)
    agent.process_serf_env.load()


def _run_verb(settings: Settings, verb: Verb) -> int:
    log = Log(verbose=settings.verbose)
    _handle_signals()
    try:
        return verb(settings, log)
    except LbagentError as error:
        for line in format_error_lines(error):
            log.error(line, exit_status=error.exit_status)
        return error.exit_status
    except BrokenPipeError:
        # The reader of the output (head, less) has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        log.error(format_error(error))
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; stored events stay for the next run")
        return INTERRUPTED
    except Exception as error:  # a defect is reported as one line as well; with -v the traceback follows
        what = f"internal error: {type(error).__name__}: {error}"
        log.error(f"{what}; stored events stay for the next run; please report it, with the traceback of -v")
        if settings.verbose:
            raise
        return 1


def _handle_signals() -> None:
    """Let SIGTERM raise KeyboardInterrupt as Ctrl-C does, so that staged files and child processes are cleaned up."""
    # The C part of `signal`. The module itself takes 3 ms more, for the enums of the signal numbers.
    import _signal  # type: ignore[import-not-found]  # noqa: PLC0415

    def interrupt(number: int, _: object) -> None:
        _signal.signal(number, _signal.SIG_IGN)  # ignore further signals: they must not interrupt the clean-up
        raise KeyboardInterrupt

    for number in (_SIGINT, _SIGTERM):
        # A signal that is ignored at the start (nohup) stays ignored.
        if _signal.getsignal(number) in (_signal.SIG_DFL, _signal.default_int_handler):
            _signal.signal(number, interrupt)
