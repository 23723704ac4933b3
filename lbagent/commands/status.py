"""The verb `status`: prints the status once or every two seconds, as a table, as plain lines, or as JSON."""

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
from lbagent.status.report import Report, collect_status
from lbagent.system.log import Log, format_error

PAUSE = 2.0
"""Seconds between two reports of `--watch`."""

Reports = Iterator[Report | str]
"""Reports; a text if the report failed."""


def status(as_json: bool, watch: bool) -> Callable[[Settings, Log], int]:  # noqa: FBT001  # the two options of the verb
    """Return the verb. With `watch` it runs until Ctrl-C, and then exits with 0."""

    def verb(settings: Settings, log: Log) -> int:
        log.journal = False
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        reports = itertools.chain([collect_status(engine)], _repeat(engine) if watch else ())
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A character that the terminal's encoding lacks must not end the command.
            sys.stdout.reconfigure(errors="replace")
        terminal = sys.stdout.isatty() and not as_json
        try:
            if terminal:
                _print_on_terminal(reports, watch=watch)
            else:
                _print_lines(reports, _format_json if as_json else _format_plain)
        except KeyboardInterrupt:
            if not watch:
                raise
        return 0

    return verb


def _repeat(engine: Engine) -> Reports:
    """Yield the status every two seconds; after an error its text."""
    while True:
        time.sleep(PAUSE)
        try:
            yield collect_status(engine)
        except (LbagentError, OSError) as error:
            yield render.flatten(format_error(error))


def _print_lines(reports: Reports, format_report: Callable[[Report], str]) -> None:
    for report in reports:
        if isinstance(report, str):
            print(f"lbagent: {report}", file=sys.stderr)
        else:
            print(format_report(report), flush=True)


def _format_json(report: Report) -> str:
    return json.dumps(report.as_json())


def _format_plain(report: Report) -> str:
    return "\n".join(render.format_plain(report))


def _print_on_terminal(reports: Reports, *, watch: bool) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    # COLUMNS=0 leaves no room. A width that is set here no longer follows the terminal, so set it only then.
    if not console.width:
        console.width = 80
    if not console.height:
        console.height = 25
    if not watch or console.is_dumb_terminal:
        for report in reports:
            console.print(report if isinstance(report, str) else render.make_long_view(report, console))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for report in reports:
            live.update(report if isinstance(report, str) else render.fit_view(report, console), refresh=True)
