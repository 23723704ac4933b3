"""The door everybody comes through: one verb, one exit status, one line where it fails."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from lbagent.errors import INTERRUPTED, LbagentError
from lbagent.settings import Settings, load_handler_settings
from lbagent.system.log import Log, format_error, sentences

Verb = Callable[[Settings, Log], int]

_SIGINT, _SIGTERM = 2, 15


def run() -> None:
    """The console script: `main`, and out, without taking down an interpreter that ends anyway (3 to 10 ms)."""
    _open_what_is_closed()
    try:
        status = main()
    except SystemExit as told:  # argparse, after --help and --version
        status = int(told.code or 0)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1
    os._exit(status)


def _open_what_is_closed() -> None:
    """Have stdin, stdout and stderr, if only /dev/null: a file opened in their place would be written into, or read."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, open(descriptor, "r+" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit status; what a user did wrong is one line, never a traceback."""
    words = sys.argv[1:] if argv is None else argv
    settings = load_handler_settings(words, os.environ)
    if settings is not None:
        from lbagent.commands.handle import handle  # noqa: PLC0415  # each verb loads what it needs

        gc.disable()  # a handler ends before its first garbage would be worth collecting
        return _ended(settings, handle)
    from lbagent import arguments  # noqa: PLC0415

    try:
        settings, verb = arguments.parsed(words, os.environ)
    except LbagentError as error:
        print(f"lbagent: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:  # of --help and --version, onto a full disk
        print(f"lbagent: {format_error(error)}", file=sys.stderr)
        return 1
    from lbagent.serf import agent  # noqa: PLC0415
    from lbagent.settings import DEFAULT_ROLES  # noqa: PLC0415

    agent.of_process = agent.SerfEnv(agent.folders(settings.roles, os.environ, DEFAULT_ROLES), os.environ)
    agent.of_process.load()
    return _ended(settings, verb)


def _ended(settings: Settings, verb: Verb) -> int:
    log = Log(verbose=settings.verbose)
    _unwind_when_told_to_end()
    try:
        return verb(settings, log)
    except LbagentError as error:
        for sentence in sentences(error):
            log.error(sentence, exit_status=error.exit_status)
        return error.exit_status
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        log.error(format_error(error))
        return 1
    except KeyboardInterrupt:
        log.error("interrupted: the next run goes on from here")
        return INTERRUPTED
    except Exception as error:  # the last door: a defect is one line too, and all of it with -v
        log.error(f"this is a defect of lbagent, nothing is lost: {type(error).__name__}: {error}")
        if settings.verbose:
            raise
        return 1


def _unwind_when_told_to_end() -> None:
    """Have SIGTERM, too, end us as Ctrl-C does: nothing staged is left, and no process of ours."""
    # The heart of `signal`, which itself costs 3 ms for the names of the numbers.
    import _signal  # type: ignore[import-not-found]  # noqa: PLC0415

    def told_to_end(number: int, _: object) -> None:
        _signal.signal(number, _signal.SIG_IGN)  # once is enough: clearing up must not be cut short
        raise KeyboardInterrupt

    for number in (_SIGINT, _SIGTERM):
        # Who starts us with a signal ignored (nohup) means it.
        if _signal.getsignal(number) in (_signal.SIG_DFL, _signal.default_int_handler):
            _signal.signal(number, told_to_end)
