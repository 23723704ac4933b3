"""The door everybody comes through: one verb, one exit status, one line where it fails."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable

from lbagent.errors import LbagentError
from lbagent.host.log import Log
from lbagent.settings import Settings, of_handler

Verb = Callable[[Settings, Log], int]

_INTERRUPTED = 130


def run() -> None:
    """The console script: `main`, and out, without taking down an interpreter that ends anyway (3 to 10 ms)."""
    status = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit status; what a user did wrong is one line, never a traceback."""
    words = sys.argv[1:] if argv is None else argv
    settings = of_handler(words, os.environ)
    if settings is not None:
        from lbagent.handler import handle  # noqa: PLC0415  # each verb loads what it needs

        gc.disable()  # a handler ends before its first garbage would be worth collecting
        return _ended(settings, handle)
    from lbagent import parser  # noqa: PLC0415

    try:
        settings, verb = parser.parsed(words, os.environ)
    except LbagentError as error:
        print(f"lbagent: {error}", file=sys.stderr)
        return error.exit_status
    return _ended(settings, verb)


def _ended(settings: Settings, verb: Verb) -> int:
    log = Log(verbose=settings.verbose)
    try:
        return verb(settings, log)
    except LbagentError as error:
        log.error(str(error))
        return error.exit_status
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        log.error(f"{error.filename or 'the system'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # the last door: a defect is one line too, and all of it with -v
        log.error(f"this is a defect of lbagent, nothing is lost: {type(error).__name__}: {error}")
        if settings.verbose:
            raise
        return 1
