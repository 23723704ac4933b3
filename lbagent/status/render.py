"""The report as texts that a person reads: a row of cells per node, and the lines below them.

Names, reasons and states are foreign: nothing unprintable leaves this room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lbagent.membership.peers import Peer
from lbagent.names import format_count, make_printable
from lbagent.status.nodes import BY_HAND, Node, State
from lbagent.status.report import Report, Served

COLUMNS = ("NODE", "ADDRESS", "ROLE", "WHERE", "STATE", "SINCE", "HAPROXY", "OPEN")

_NOTHING = "-"
_ROLES = 10
"""Roles that are named before `and N more roles`."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


class Row(NamedTuple):
    """One node, in words."""

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
    """A line below the table."""

    label: str
    words: str


def row(node: Node, report: Report) -> Row:
    """What stands in the row of a node."""
    left = node.pause.until - report.sources.at if node.pause and node.pause.until is not None else None
    why = [node.why, f"{age(left)} left" if left is not None else ""]
    cells = (node.name, node.address, node.role, _where(node), node.state, _since(node, report), *_said(node, report))
    return Row._make([*(flat(cell or _NOTHING) for cell in cells), flat(", ".join(filter(None, why)))])


def wrong(report: Report) -> list[Line]:
    """What is wrong now, a line each; nothing where nothing is."""
    at, retry = report.sources.at, report.next_retry
    found = []
    for one in report.wrong:
        since = "" if one.since is None else f" (for {age(at - one.since)})"
        again = f"; next try in {age(retry - at)}" if one.kind == "reload" and retry and retry > at else ""
        found.append(Line(one.kind, flat(f"{one.what}{since}{again}")))
    return found


def here(report: Report) -> list[Node]:
    """The nodes that this load balancer may have lines for."""
    return [node for node in report.nodes if node.state not in (State.UNKNOWN_ROLE, State.BALANCER)]


def elsewhere(report: Report) -> list[Line]:
    """A line for all the others, whose roles are none of roles.yml."""
    roles = Counter(node.role for node in report.nodes if node.state is State.UNKNOWN_ROLE)
    if not roles:
        return []
    most = [f"{count} {role or 'without a role'}" for role, count in roles.most_common(_ROLES)]
    more = f" and {format_count(len(roles) - _ROLES, 'more role')}" if len(roles) > _ROLES else ""
    words = f"{format_count(roles.total(), 'node')} whose role roles.yml does not have: {', '.join(most)}{more}"
    return [Line("elsewhere", flat(words))]


def below(report: Report) -> list[Line]:
    """The lines below the table."""
    return [Line(label, flat(words)) for label, words in _below(report)]


def flat(words: str) -> str:
    """The words on one line, with nothing in them that a terminal obeys."""
    return make_printable(" ".join(words.split()))


def age(seconds: int) -> str:
    """A stretch of time in the largest unit of which there are two: `45s`, `90m`, `3h`, `120d`."""
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= 2 * size), (1, "s"))
    return f"{max(0, seconds) // size}{unit}"


def word(state: str) -> str:
    """What a state of HAProxy's begins with, without its details: `UP` of `UP 1/3`."""
    return state if state == "no check" else state.split(" ", maxsplit=1)[0]


def _where(node: Node) -> str:
    here = dict.fromkeys(f"{one.proxy} (by hand)" if one.line == BY_HAND else one.proxy for one in node.servers)
    return ", ".join(here)


def _since(node: Node, report: Report) -> str:
    return "" if node.since is None else age(report.sources.at - node.since)


def _said(node: Node, report: Report) -> tuple[str, str]:
    """What HAProxy says of the node's servers together, and how many sessions are open there."""
    if report.sources.stats_socket.error is not None:
        return "?", "?"
    servers = [one for one in node.servers if one.server is not None]
    states = Counter(one.state or "absent" for one in servers)
    if len(states) > 1:
        words = Counter(word(one.state or "absent") for one in servers)
        said = ", ".join(f"{count} {state}" for state, count in sorted(words.items()))
    else:
        said = next(iter(states), "")
    sessions = [one.sessions for one in servers if one.sessions is not None]
    return said, str(sum(sessions)) if sessions else ""


def _below(report: Report) -> Iterator[tuple[str, str]]:
    sources = report.sources
    at, events, last = sources.at, sources.events, sources.last
    counts = Counter(node.state for node in report.nodes)
    kinds = ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))
    yield "nodes", f"{len(report.nodes)}: {kinds}" if kinds else "none is known"
    yield "lines", _lines(report)
    yield from (("load balancer", _peer(peer, at)) for peer in report.peers)
    if old := sources.old_workers:
        yield "old workers", f"{old} of HAProxy, each until what was open at its reload has ended"
    if sources.daemon or last.sync is not None:
        yield "daemon", _daemon(report)
    if last.run is not None:
        ended = last.words or f"exit status {last.status}"
        yield "last run", f"{age(at - last.run)} ago, {ended}"
        if last.status and last.success is not None:
            yield "last success", f"{age(at - last.success)} ago"
    if run := sources.last_run:
        words = f"{age(at - run.at)} ago, {run.outcome}: {run.words} ({run.why})"
        yield "last change" if last.run is not None else "last run", words
    if events.pending:
        oldest = "" if events.oldest is None else f", the oldest for {age(at - events.oldest)}"
        yield "waiting", f"{format_count(events.pending, 'event')}{oldest}"
    if sources.stats_socket.missing and (error := sources.stats_socket.error):
        yield "haproxy", error
    yield from (("note", words) for words in report.notes)


def _peer(peer: Peer, at: int) -> str:
    """Another load balancer: what Serf says of it, whether its managed lines are equal, when it was seen."""
    if peer.equal is None:
        lines = "its managed lines are not known"
    else:
        lines = "the same managed lines" if peer.equal else f"other managed lines (digest {peer.digest})"
    seen = "" if peer.seen is None else f", seen {age(at - peer.seen)} ago"
    return f"{peer.name} {peer.address} {peer.status}, {lines}{seen}"


def _daemon(report: Report) -> str:
    last, at = report.sources.last, report.sources.at
    runs = "`lbagent watch` runs" if report.sources.daemon else "`lbagent watch` does not run"
    synced = "never synced" if last.sync is None else f"last sync {age(at - last.sync)} ago"
    return f"{runs}, {synced}"


def _lines(report: Report) -> str:
    if report.digest is None:
        return "unknown: haproxy.cfg cannot be read"
    stands = f"digest {report.digest}" if report.serves else "none managed in haproxy.cfg"
    if (served := report.sources.served) is None:
        return f"{stands}, not known whether HAProxy has confirmed it"
    return stands if report.confirmed is None else f"{stands}, {_confirmation(report, served)}"


def _confirmation(report: Report, served: Served) -> str:
    if report.confirmed:
        return f"served by HAProxy worker {served.worker}"
    if served.digest is None:
        return "never confirmed by HAProxy"
    if served.digest != report.digest:
        return f"not confirmed: HAProxy last confirmed {served.digest}"
    if served.worker is None:
        return "written while HAProxy did not run"
    return f"not confirmed: HAProxy worker {served.worker} has ended since"


def plain(report: Report) -> list[str]:
    """The whole sheet as lines: one node one line, those of unknown roles last, nothing cut, no colours."""
    others = [node for node in report.nodes if node.state in (State.BALANCER, State.UNKNOWN_ROLE)]
    rows: Sequence[Row] = [row(node, report) for node in (*here(report), *others)]
    table = [(*COLUMNS, "WHY"), *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
    top, under = ([f"{label}: {words}" for label, words in part(report)] for part in (wrong, below))
    return [*top, *([""] if top and lines else []), *lines, *([""] if lines else []), *under]


_GAP, _INDENT = 2, 4
_NUMBERS = ("SINCE",)
_WRAPPING = (COLUMNS.index("WHERE"), COLUMNS.index("HAPROXY"))
"""The columns that may take several lines, where the terminal is narrow."""

_WHY = 200
"""Characters of a reason that are shown; `--json` has the whole."""

_GOOD, _BAD, _ODD = "green", "bold red", "yellow"
_STATES = {"in": _GOOD, "failed": _BAD, "quarantined": _BAD, "left": "dim"}
_LABELS = {"note": _ODD}


def view(report: Report, width: int, most: int | None = None) -> RenderableType:
    """The table of the nodes that have or may have lines, and what stands below it.

    Of more than `most` those that are not simply in come first.
    """
    listed = here(report)
    rows = [row(listed[at], report) for at in _chosen(listed, most)]
    hidden = len(listed) - len(rows)
    more = [Line("not shown", f"{hidden} more nodes, for want of room")] if hidden else []
    under = _view_below([*more, *elsewhere(report), *below(report)])
    problems = wrong(report)
    top: list[RenderableType] = [_view_below(problems, _BAD), Text()] if problems else []
    if not rows:
        return Group(*top, under)
    widths = _widths(rows, width)
    return Group(*top, *(_wide(rows, widths) if widths else [_narrow(rows)]), Text(), under)


def fitted(report: Report, console: Console) -> RenderableType:
    """The view with as many nodes as leave it no higher than the terminal."""
    most = min(len(report.nodes), console.height)
    while True:
        found = view(report, console.width, most)
        over = len(console.render_lines(found, pad=False)) - console.height
        if over <= 0 or most == 0:
            return found
        # A node takes a few lines.
        most = max(0, most - max(1, over // 4))


def _chosen(here: Sequence[Node], most: int | None) -> Sequence[int]:
    """The numbers of the nodes that are shown, in their order."""
    everyone = range(len(here))
    if most is None or most >= len(everyone):
        return everyone
    return sorted(sorted(everyone, key=lambda at: here[at].state == "in")[:most])


def _widths(rows: Sequence[Row], width: int) -> list[int] | None:
    """The width of each column; None where a line per node leaves no room for them."""
    columns = list(zip(COLUMNS, *(row[: len(COLUMNS)] for row in rows), strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    for at in _WRAPPING:
        over = max(0, sum(widths) + _GAP * (len(widths) - 1) - width)
        widths[at] = max(widths[at] - over, *map(_longest_word, columns[at]))
    return widths if sum(widths) + _GAP * (len(widths) - 1) <= width else None


def _wide(rows: Sequence[Row], widths: Sequence[int]) -> Iterator[RenderableType]:
    """A line for each node; a reason, where there is one, below it and as wide as the terminal."""
    table = _columns(widths)
    table.show_header = True
    for row in rows:
        state, said = Text(row.state, _STATES.get(row.state, _ODD)), Text(row.haproxy, _of_haproxy(row.haproxy))
        others = map(Text, (row.address, row.role, row.where))
        table.add_row(Text(row.node, "bold"), *others, state, Text(row.since), said, Text(row.open.rjust(widths[-1])))
        if row.why:
            yield table
            yield Padding(_why(row), (0, 0, 0, _INDENT))
            table = _columns(widths)
    if table.rows:
        yield table


def _columns(widths: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_header=False)
    for name, width in zip(COLUMNS[:-1], widths[:-1], strict=True):
        table.add_column(name, justify="right" if name in _NUMBERS else "left", width=width, overflow="fold")
    # As wide as its text, which is padded here: rich before 13.4 gives the width of a last column two more.
    table.add_column(COLUMNS[-1].rjust(widths[-1]), no_wrap=True)
    return table


def _narrow(rows: Sequence[Row]) -> Table:
    """A paragraph for each node: who it is, and how it is with it."""
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for row in rows:
        who = [Text(row.node, "bold"), Text(row.address), Text(row.role)]
        state = Text.assemble((row.state, _STATES.get(row.state, _ODD)), f" {row.since}", ": " if row.why else "")
        said = Text.assemble((row.haproxy, _of_haproxy(row.haproxy)), f", {row.open} open" if row.open != "-" else "")
        how = [state + _why(row), said, Text(row.where)]
        table.add_row(*(Text("\n").join(line for line in lines if line.plain != "-") for lines in (who, how)))
    return table


def _view_below(lines: Sequence[Line], style: str = "bold") -> Table:
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, words in lines:
        table.add_row(Text(label, _LABELS.get(label, style)), Text(words))
    return table


def _why(row: Row) -> Text:
    return Text(row.why if len(row.why) <= _WHY else f"{row.why[: _WHY - 1]}…")


def _of_haproxy(said: str) -> str:
    if "DOWN" in said or "NOLB" in said:
        return _BAD
    return _GOOD if word(said) in ("UP", "no check") else _ODD


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)
