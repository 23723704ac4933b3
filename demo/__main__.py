"""`python -m demo`: plays the demo without questions and cleans up. Exits 0 if no request failed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

from demo.cluster import Cluster
from demo.processes import DemoFailed
from demo.scenes import Scenes
from demo.screen import Screen


def main() -> int:
    """Play the demo and return its exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    screen = Screen()
    try:
        return _play(screen)
    except KeyboardInterrupt:
        screen.show_line("interrupted; all programs and files are removed")
        return 130
    except (DemoFailed, OSError, subprocess.SubprocessError) as error:
        screen.show_result(good=False, text=f"The demo stopped: {error}")
        return 1


def _play(screen: Screen) -> int:
    begin = time.monotonic()
    with Cluster() as cluster:
        status = Scenes(cluster, screen).play()
    if not cluster.is_gone:
        raise DemoFailed(f"{cluster.folder}: a program or file is left behind")
    screen.show_line(f"It took {time.monotonic() - begin:.0f} s. All programs have ended, and all files are removed.")
    screen.show_line('Next: set up your own load balancer, see "Install" in README.md.\n')
    return status


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # what `signal` calls
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
