"""A new HAProxy process in place of one that has no master, and the words of programs that failed."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lbagent.errors import TryAgain
from lbagent.haproxy.process import Running


def successor(running: Running, lines: Sequence[Sequence[str]]) -> list[str]:
    """The command line of a process that takes over from one without a master. Raises TryAgain."""
    if os.environ.get("INVOCATION_ID"):
        # It would belong to our service, and end with it.
        raise TryAgain("HAProxy runs without a master (-W) and lbagent in a systemd service: set haproxy.reload")
    argv = _without_handover(running.main.argv)
    daemon = "-D" in argv or any(words[0] == "daemon" for words in lines)
    if not daemon or "-db" in argv or "-d" in argv:
        raise TryAgain("HAProxy runs in the foreground without a master: run it with -W, or set haproxy.reload")
    passing = [words[2] for words in lines if words[:2] == ["stats", "socket"] and "listeners" in words[3:]]
    handover = ["-x", passing[0]] if passing and os.path.exists(passing[0]) else []
    return [*argv, *handover, "-sf", str(running.main.pid)]


def _without_handover(argv: Sequence[str]) -> list[str]:
    kept: list[str] = []
    words = iter(argv)
    skipping = False
    for word in words:
        if skipping and word.isdigit():
            continue
        skipping = word in ("-sf", "-st")
        if word == "-x":
            next(words, None)
        elif not skipping:
            kept.append(word)
    return kept


def spoken(output: str) -> str:
    """The first thing HAProxy complained about, or the last line of whatever else spoke."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # [ALERT]    (4041) : config : parsing [/etc/haproxy/haproxy.cfg:12]: unknown keyword …
    alerts = [line.partition(") : ")[2].removeprefix("config : ") for line in lines if line.startswith("[ALERT]")]
    return alerts[0] if alerts else (lines[-1] if lines else "without a word")
