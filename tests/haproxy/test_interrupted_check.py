"""An interrupt may arrive at any moment of `haproxy -c`: HAProxy is ended with the run."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lbagent.haproxy.validation import check_files
from tests.helpers.faults import list_running, write_script


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


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the end of the run closes these files
def test_an_interrupt_at_any_line_leaves_no_haproxy_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, config = write_script(tmp_path / "haproxy", "sleep 60"), tmp_path / "haproxy.cfg"
    config.write_text("defaults\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    number = 1
    while (place := check_until_line(number, config)) != "_poll_until_end":
        assert list_running(str(program)) == [], f"interrupted in {place}, line {number} of the run"
        number += 1
    assert list_running(str(program)) == []
