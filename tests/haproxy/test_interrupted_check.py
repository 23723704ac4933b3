"""An interrupt may arrive at any moment of `haproxy -c`: HAProxy is ended with the run."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lbagent.haproxy.validation import check_files
from tests.helpers.real_programs import wait_until


def check_until_line(number: int, config: Path) -> str:
    """Check a file, with an interrupt at line `number` of those that run; returns the function of this line."""
    lines, place = 0, ""

    def interrupt(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401  # a trace function
        nonlocal lines, place
        if not frame.f_globals["__name__"].startswith(("lbagent.", "contextlib")):
            return None
        lines += event == "line"
        if lines == number:
            sys.settrace(None)
            place = frame.f_code.co_name
            raise KeyboardInterrupt
        return interrupt

    tracer, blocked = sys.gettrace(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    sys.settrace(interrupt)
    try:
        check_files([str(config)], 60, None)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracer)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return place


def has_ended(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    return True


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the end of the run closes these files
def test_an_interrupt_at_any_line_leaves_no_haproxy_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, pids = os.posix_spawn, list[int]()

    def note_pid(*words: Any, **options: Any) -> int:  # noqa: ANN401  # those of posix_spawn
        pids.append(spawn(*words, **options))
        return pids[-1]

    program, config = tmp_path / "haproxy", tmp_path / "haproxy.cfg"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    config.write_text("defaults\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(os, "posix_spawn", note_pid)

    number = 1
    while (place := check_until_line(number, config)) != "_poll_until_end":
        if pids:
            with contextlib.suppress(AssertionError):
                wait_until(lambda: has_ended(pids[-1]))
            assert has_ended(pids[-1]), f"interrupted in {place}, line {number} of the run"
        number += 1

    assert pids
