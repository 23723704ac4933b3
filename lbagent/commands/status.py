"""The verb `status`: a row for each node, once or again and again; as a table, as plain lines, or as JSON."""

from __future__ import annotations

import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live

from lbagent.errors import LbagentError
from lbagent.run.engine import Engine
from lbagent.settings import Settings
from lbagent.state.paths import Paths
from lbagent.status import render
from lbagent.status.collect import collect_status
from lbagent.status.report import Report
from lbagent.system.log import Log, format_error

PAUSE = 2.0
"""Seconds between two looks."""

Looks = Iterator[Report | str]
"""What was seen; words where nothing could be."""


def status(as_json: bool, watch: bool) -> Callable[[Settings, Log], int]:  # noqa: FBT001  # the verb's two switches
    """The verb that shows the status; with `watch` until Ctrl-C, which is the way it ends well."""

    def verb(settings: Settings, log: Log) -> int:
        log.journal = False
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        looks = itertools.chain([collect_status(engine)], _again(engine) if watch else ())
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A reason in Japanese must not end us where the locale knows only Latin.
            sys.stdout.reconfigure(errors="replace")
        terminal = sys.stdout.isatty() and not as_json
        try:
            if terminal:
                _to_terminal(looks, watch=watch)
            else:
                _line_by_line(looks, _json if as_json else _plain)
        except KeyboardInterrupt:
            if not watch:
                raise
        return 0

    return verb


def _again(engine: Engine) -> Looks:
    """The status every two seconds; what hinders a look is told, and it goes on."""
    while True:
        time.sleep(PAUSE)
        try:
            yield collect_status(engine)
        except (LbagentError, OSError) as error:
            yield render.flat(format_error(error))


def _line_by_line(looks: Looks, lines: Callable[[Report], str]) -> None:
    for look in looks:
        if isinstance(look, str):
            print(f"lbagent: {look}", file=sys.stderr)
        else:
            print(lines(look), flush=True)


def _json(report: Report) -> str:
    return json.dumps(report.as_json())


def _plain(report: Report) -> str:
    return "\n".join(render.plain(report))


def _to_terminal(looks: Looks, *, watch: bool) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    # COLUMNS=0 is a width that nothing fits into. Only then: a width that is set follows no terminal any more.
    if not console.width:
        console.width = 80
    if not console.height:
        console.height = 25
    if not watch or console.is_dumb_terminal:
        for look in looks:
            console.print(look if isinstance(look, str) else render.view(look, console.width))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for look in looks:
            live.update(look if isinstance(look, str) else render.fitted(look, console), refresh=True)
