"""The verb `status`: prints the status once or every two seconds, as a table, as plain lines, or as JSON."""

from __future__ import annotations

import io
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lbagent.errors import LbagentError
from lbagent.membership.peers import Peer
from lbagent.names import format_age, format_count, make_printable
from lbagent.run.engine import Engine
from lbagent.settings import Settings
from lbagent.status.nodes import NOT_MANAGED, Node, State
from lbagent.status.report import Report, Served, collect_status
from lbagent.system.log import Log, format_error

COLUMNS = ("NODE", "ADDRESS", "ROLE", "WHERE", "STATE", "SINCE", "HAPROXY", "OPEN")

_NOTHING = "-"
_ROLES = 10
"""Roles that are listed before `and N more roles`."""

PAUSE = 2.0
"""Seconds between two reports of `--watch`."""

Reports = Iterator[Report | str]
"""Reports; a text if the report failed."""


def status(as_json: bool, watch: bool) -> Callable[[Settings, Log], int]:  # noqa: FBT001  # the two options of the verb
    """Return the verb. With `watch` it runs until Ctrl-C, and then exits with 0."""

    def verb(settings: Settings, log: Log) -> int:
        log.journal = False
        engine = Engine(settings, log)
        reports = itertools.chain([collect_status(engine)], _repeat(engine) if watch else ())
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A character that the terminal's encoding lacks must not end the command.
            sys.stdout.reconfigure(errors="replace")
        terminal = sys.stdout.isatty() and not as_json
        try:
            if terminal:
                _print_on_terminal(reports, watch=watch)
            else:
                _print_lines(reports, as_json=as_json)
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
            yield flatten(format_error(error))


def _print_lines(reports: Reports, *, as_json: bool) -> None:
    for report in reports:
        if isinstance(report, str):
            print(f"lbagent: {report}", file=sys.stderr)
        else:
            print(json.dumps(report.as_json()) if as_json else "\n".join(format_plain(report)), flush=True)


def _print_on_terminal(reports: Reports, *, watch: bool) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    # COLUMNS=0 leaves no room. A width that is set here no longer follows the terminal, so set it only then.
    if not console.width:
        console.width = 80
    if not console.height:
        console.height = 25
    if not watch or console.is_dumb_terminal:
        for report in reports:
            console.print(report if isinstance(report, str) else make_long_view(report, console))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for report in reports:
            live.update(report if isinstance(report, str) else fit_view(report, console), refresh=True)


class Row(NamedTuple):
    """The cells of one node."""

    node: str
    address: str
    role: str
    where: str
    state: str
    since: str
    haproxy: str
    open: str
    why: str


class Line(NamedTuple):
    """A line above or below the table."""

    label: str
    text: str


def make_row(node: Node, report: Report) -> Row:
    """Return the cells of a node."""
    left = node.pause.until - report.sources.at if node.pause and node.pause.until is not None else None
    why = [node.why, f"{format_age(left)} left" if left is not None else ""]
    cells = (
        node.name,
        node.address,
        node.role,
        _format_proxies(node),
        node.state,
        _format_since(node, report),
        *_format_stats(node, report),
    )
    return Row._make([*(flatten(cell or _NOTHING) for cell in cells), flatten(", ".join(filter(None, why)))])


def list_faults(report: Report) -> list[Line]:
    """Return a line for each fault."""
    at, retry = report.sources.at, report.next_retry
    found = []
    for one in report.faults:
        since = "" if one.since is None else f" (for {format_age(at - one.since)})"
        again = f"; next try in {format_age(retry - at)}" if one.kind == "reload" and retry and retry > at else ""
        found.append(Line(one.kind, flatten(f"{one.what}{since}{again}")))
    return found


def list_served_nodes(report: Report) -> list[Node]:
    """Return the nodes that this load balancer may have lines for."""
    return [node for node in report.nodes if node.state not in (State.UNKNOWN_ROLE, State.LOAD_BALANCER)]


def count_other_roles(report: Report) -> list[Line]:
    """Return one line that counts the nodes whose roles are not in roles.yml; none if there are no such nodes."""
    roles = Counter(node.role for node in report.nodes if node.state is State.UNKNOWN_ROLE)
    if not roles:
        return []
    most = [f"{count} {role or 'without a role'}" for role, count in roles.most_common(_ROLES)]
    more = f" and {format_count(len(roles) - _ROLES, 'more role')}" if len(roles) > _ROLES else ""
    text = f"{format_count(roles.total(), 'node')}, not in roles.yml: {', '.join(most)}{more}"
    return [Line("other roles", flatten(text))]


def list_footer(report: Report) -> list[Line]:
    """Return the lines below the table."""
    return [Line(label, flatten(text)) for label, text in _format_footer(report)]


def flatten(text: str) -> str:
    """Return the text on one line, with printable characters only."""
    return make_printable(" ".join(text.split()))


def shorten_state(state: str) -> str:
    """Return a state of HAProxy without its details: `UP` for `UP 1/3`."""
    return state if state == "no check" else state.split(" ", maxsplit=1)[0]


def _format_proxies(node: Node) -> str:
    names = (f"{one.proxy} (not managed)" if one.line == NOT_MANAGED else one.proxy for one in node.servers)
    return ", ".join(dict.fromkeys(names))


def _format_since(node: Node, report: Report) -> str:
    return "" if node.since is None else format_age(report.sources.at - node.since)


def _format_stats(node: Node, report: Report) -> tuple[str, str]:
    """Return HAProxy's states of the node's servers, and the number of open sessions."""
    if report.sources.stats_socket.error is not None:
        return "?", "?"
    servers = [one for one in node.servers if one.server is not None]
    states = Counter(one.state or "absent" for one in servers)
    if len(states) > 1:
        counts = Counter(shorten_state(one.state or "absent") for one in servers)
        text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    else:
        text = next(iter(states), "")
    sessions = [one.sessions for one in servers if one.sessions is not None]
    return text, str(sum(sessions)) if sessions else ""


def _format_footer(report: Report) -> Iterator[tuple[str, str]]:
    sources = report.sources
    at, events, last = sources.at, sources.events, sources.last
    counts = Counter(node.state for node in report.nodes)
    kinds = ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))
    yield "nodes", f"{len(report.nodes)}: {kinds}" if kinds else "none"
    yield "lines", _format_lines(report)
    yield from (("load balancer", _format_peer(peer, at)) for peer in report.peers)
    if old := sources.old_workers:
        yield "old workers", f"{old}, until the connections from before the reload have ended"
    if sources.daemon or last.sync is not None:
        yield "daemon", _format_daemon(report)
    if last.run is not None:
        ended = last.words or f"exit status {last.status}"
        yield "last run", f"{format_age(at - last.run)} ago, {ended}"
        if last.status and last.success is not None:
            yield "last success", f"{format_age(at - last.success)} ago"
    if run := sources.last_run:
        text = f"{format_age(at - run.at)} ago, {run.outcome}: {run.words} ({run.why})"
        yield "last change" if last.run is not None else "last run", text
    if events.pending:
        oldest = "" if events.oldest is None else f", the oldest for {format_age(at - events.oldest)}"
        yield "waiting", f"{format_count(events.pending, 'event')}{oldest}"
    if sources.stats_socket.missing and (error := sources.stats_socket.error):
        yield "haproxy", error
    yield from (("note", text) for text in report.notes)


def _format_peer(peer: Peer, at: int) -> str:
    """Return status, comparison of the managed lines, and last answer of another load balancer."""
    if peer.equal is None:
        lines = "managed lines unknown"
    else:
        lines = "same managed lines" if peer.equal else f"different managed lines (digest {peer.digest})"
    seen = "no answer yet" if peer.seen is None else f"last answer {format_age(at - peer.seen)} ago"
    return f"{peer.name} {peer.address} {peer.status or 'not in Serf'}, {lines}, {seen}"


def _format_daemon(report: Report) -> str:
    last, at = report.sources.last, report.sources.at
    runs = "`lbagent watch` runs" if report.sources.daemon else "`lbagent watch` does not run"
    synced = "never synced" if last.sync is None else f"last sync {format_age(at - last.sync)} ago"
    return f"{runs}, {synced}"


def _format_lines(report: Report) -> str:
    if report.digest is None:
        return "unknown, haproxy.cfg cannot be read"
    lines = f"digest {report.digest}" if report.has_managed_lines else "none in haproxy.cfg"
    if (served := report.sources.served) is None:
        return f"{lines}, unknown whether HAProxy has confirmed them"
    return lines if report.confirmed is None else f"{lines}, {_format_confirmation(report, served)}"


def _format_confirmation(report: Report, served: Served) -> str:
    if report.confirmed:
        return f"confirmed by HAProxy worker {served.worker}"
    if served.digest is None:
        return "never confirmed by HAProxy"
    if served.digest != report.digest:
        return f"not confirmed, HAProxy has digest {served.digest}"
    if served.worker is None:
        return "written while HAProxy did not run"
    return f"not confirmed, HAProxy worker {served.worker} has ended"


def format_plain(report: Report) -> list[str]:
    """Return the report as plain lines: one per node, nodes of unknown roles last, nothing cut."""
    others = [node for node in report.nodes if node.state in (State.LOAD_BALANCER, State.UNKNOWN_ROLE)]
    rows: Sequence[Row] = [make_row(node, report) for node in (*list_served_nodes(report), *others)]
    table = [(*COLUMNS, "WHY"), *rows] if rows else []
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(set_cell_size, cells, widths)).rstrip() for cells in table]
    top, under = ([f"{label}: {text}" for label, text in part(report)] for part in (list_faults, list_footer))
    return [*top, *([""] if top and lines else []), *lines, *([""] if lines else []), *under]


_GAP, _INDENT = 2, 4
_NUMBERS = ("SINCE",)
_WRAPPING = (COLUMNS.index("WHERE"), COLUMNS.index("HAPROXY"))
"""The columns that are wrapped on a narrow terminal."""

_WHY = 200
"""Characters of a reason that are shown on a terminal."""

_GOOD, _BAD, _ODD = "green", "bold red", "yellow"
_STATES = {"in": _GOOD, "failed": _BAD, "quarantined": _BAD, "left": "dim"}
_LABELS = {"note": _ODD}


def make_view(report: Report, width: int, most: int | None = None) -> RenderableType:
    """Return faults, table and footer for a terminal of `width` columns.

    At most `most` nodes are in the table; nodes that are `in` are left out first.
    """
    listed = list_served_nodes(report)
    rows = [make_row(listed[at], report) for at in _choose(listed, most)]
    hidden = len(listed) - len(rows)
    more = [Line("not shown", f"{hidden} more nodes (the terminal has too few lines)")] if hidden else []
    footer = _make_lines([*more, *count_other_roles(report), *list_footer(report)])
    faults = list_faults(report)
    top: list[RenderableType] = [_make_lines(faults, _BAD), Text()] if faults else []
    if not rows:
        return Group(*top, footer)
    widths = _find_widths(rows, width)
    return Group(*top, *(_make_tables(rows, widths) if widths else [_make_paragraphs(rows)]), Text(), footer)


def make_long_view(report: Report, console: Console) -> RenderableType:
    """Return the whole view; if it is higher than the terminal, its last lines repeat the faults."""
    found, faults = make_view(report, console.width), list_faults(report)
    if faults and len(console.render_lines(found, pad=False)) > console.height:
        return Group(found, Text(), _make_lines(faults, _BAD))
    return found


def fit_view(report: Report, console: Console) -> RenderableType:
    """Return the view with as many nodes as fit on the terminal."""
    most = min(len(report.nodes), console.height)
    while True:
        found = make_view(report, console.width, most)
        over = len(console.render_lines(found, pad=False)) - console.height
        if over <= 0 or most == 0:
            return found
        # A node takes up to four lines.
        most = max(0, most - max(1, over // 4))


def _choose(nodes: Sequence[Node], most: int | None) -> Sequence[int]:
    """Return the indexes of the nodes that are shown, in their order."""
    indexes = range(len(nodes))
    if most is None or most >= len(indexes):
        return indexes
    return sorted(sorted(indexes, key=lambda at: nodes[at].state is State.IN)[:most])


def _find_widths(rows: Sequence[Row], width: int) -> list[int] | None:
    """Return the width of each column; None if the terminal is too narrow for a table."""
    columns = list(zip(COLUMNS, *(row[: len(COLUMNS)] for row in rows), strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    for at in _WRAPPING:
        over = max(0, sum(widths) + _GAP * (len(widths) - 1) - width)
        widths[at] = max(widths[at] - over, *map(_measure_longest_word, columns[at]))
    return widths if sum(widths) + _GAP * (len(widths) - 1) <= width else None


def _make_tables(rows: Sequence[Row], widths: Sequence[int]) -> Iterator[RenderableType]:
    """Yield a line for each node; its reason follows on lines of its own, as wide as the terminal."""
    table = _make_table(widths)
    table.show_header = True
    for row in rows:
        state = Text(row.state, _STATES.get(row.state, _ODD))
        stats = Text(row.haproxy, _choose_style(row.haproxy))
        others = map(Text, (row.address, row.role, row.where))
        table.add_row(Text(row.node, "bold"), *others, state, Text(row.since), stats, Text(row.open.rjust(widths[-1])))
        if row.why:
            yield table
            yield Padding(_format_why(row), (0, 0, 0, _INDENT))
            table = _make_table(widths)
    if table.rows:
        yield table


def _make_table(widths: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_header=False)
    for name, width in zip(COLUMNS[:-1], widths[:-1], strict=True):
        table.add_column(name, justify="right" if name in _NUMBERS else "left", width=width, overflow="fold")
    # Padded here: rich before 13.4 makes a last column of fixed width two wider.
    table.add_column(COLUMNS[-1].rjust(widths[-1]), no_wrap=True)
    return table


def _make_paragraphs(rows: Sequence[Row]) -> Table:
    """Return a paragraph for each node: name, address and role on the left, state and reason on the right."""
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for row in rows:
        identity = [Text(row.node, "bold"), Text(row.address), Text(row.role)]
        state = Text.assemble((row.state, _STATES.get(row.state, _ODD)), f" {row.since}", ": " if row.why else "")
        stats = Text.assemble(
            (row.haproxy, _choose_style(row.haproxy)), f", {row.open} open" if row.open != "-" else ""
        )
        details = [state + _format_why(row), stats, Text(row.where)]
        table.add_row(*(Text("\n").join(line for line in lines if line.plain != "-") for lines in (identity, details)))
    return table


def _make_lines(lines: Sequence[Line], style: str = "bold") -> Table:
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in lines:
        table.add_row(Text(label, _LABELS.get(label, style)), Text(text))
    return table


def _format_why(row: Row) -> Text:
    return Text(row.why if len(row.why) <= _WHY else f"{row.why[: _WHY - 1]}…")


def _choose_style(state: str) -> str:
    if "DOWN" in state or "NOLB" in state:
        return _BAD
    return _GOOD if shorten_state(state) in ("UP", "no check") else _ODD


def _measure_longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)
