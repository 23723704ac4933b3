"""`python -m demo`: no questions, nothing left behind, 0 where no request has failed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

from demo.processes import Stuck
from demo.screen import Screen
from demo.stage import Stage
from demo.story import Story


def main() -> int:
    """Play the demo."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    screen = Screen()
    try:
        return _played(screen)
    except KeyboardInterrupt:
        screen.line("stopped; nothing is left behind")
        return 130
    except (Stuck, OSError, subprocess.SubprocessError) as error:
        screen.verdict(good=False, text=f"The demo stopped: {error}")
        return 1


def _played(screen: Screen) -> int:
    begin = time.monotonic()
    with Stage() as stage:
        status = Story(stage, screen).tell()
    if not stage.gone:
        raise Stuck(f"something is left behind: see {stage.folder}")
    screen.line(f"It took {time.monotonic() - begin:.0f} s, and nothing is left behind: no process, no port, no file.")
    screen.line('Your own load balancer next: README.md, from "Install" on.\n')
    return status


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # what `signal` calls
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
