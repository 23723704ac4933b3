"""The report as a terminal shows it: a table as wide as the terminal, and hanging lines below it.

What is foreign is given to rich as Text, never as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lbagent import sheet
from lbagent.sheet import COLUMNS, Line, Row

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from lbagent.report import Report

_GAP = 2
_REASON = 24
"""Columns a reason should have at least; with less room a node gets several lines."""

_WHY = 100
"""Characters of a reason that a table has room for; `--json` has the whole."""

_GOOD, _BAD, _ODD = "green", "bold red", "yellow"
_STATES = {"in": _GOOD, "failed": _BAD, "quarantined": _BAD, "left": "dim", "unknown role": "dim"}
_LABELS = {"held back": _BAD, "problem": _BAD, "reload": _BAD, "note": _ODD}


def view(report: Report, width: int, most: int | None = None) -> RenderableType:
    """The table and what stands below it; of more than `most` nodes those first that are not simply in."""
    rows = [sheet.row(report.nodes[at], report) for at in _chosen(report, most)]
    hidden = len(report.nodes) - len(rows)
    more = [Line("not shown", f"{hidden} more nodes, for want of room")] if hidden else []
    below = _below([*more, *sheet.below(report)])
    if not rows:
        return below
    return Group(_wide(rows) if _fits(rows, width) else _narrow(rows), Text(), below)


def fitted(report: Report, console: Console) -> RenderableType:
    """The view with as many nodes as leave it no higher than the terminal."""
    most = min(len(report.nodes), console.height)
    while True:
        found = view(report, console.width, most)
        over = len(console.render_lines(found, pad=False)) - console.height
        if over <= 0 or most == 0:
            return found
        most = max(0, most - over)


def _chosen(report: Report, most: int | None) -> Sequence[int]:
    """The numbers of the nodes that are shown, in their order."""
    everyone = range(len(report.nodes))
    if most is None or most >= len(everyone):
        return everyone
    return sorted(sorted(everyone, key=lambda at: report.nodes[at].state == "in")[:most])


def _fits(rows: Sequence[Row], width: int) -> bool:
    """Whether a line per node leaves its reason room to be read."""
    columns = zip(*([*COLUMNS, ""], *rows), strict=True)
    node, address, role, where, state, *more, why = columns
    needed = [max(map(cell_len, column)) for column in (node, address, role, *more)]
    needed.append(max(map(_longest_word, where)))
    needed.append(max(map(cell_len, state)) if not any(why) else _REASON)
    return sum(needed) + _GAP * (len(needed) - 1) <= width


def _wide(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in COLUMNS:
        right, wraps = column in ("SINCE", "OPEN"), column in ("WHERE", "STATE")
        table.add_column(column, justify="right" if right else "left", no_wrap=not wraps, overflow="fold")
    for row in rows:
        name, address, role, where, _, since, haproxy, sessions, _ = row
        told = (Text(haproxy, _of_haproxy(haproxy)), Text(sessions))
        table.add_row(Text(name, "bold"), Text(address), Text(role), Text(where), _state(row), Text(since), *told)
    return table


def _narrow(rows: Sequence[Row]) -> Table:
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for row in rows:
        told = Text.assemble((row.haproxy, _of_haproxy(row.haproxy)), f", {row.open} open" if row.open != "-" else "")
        who = Text("\n").join([Text(row.node, "bold"), Text(row.address), Text(row.role)])
        table.add_row(who, Text("\n").join([_state(row), Text(f"since {row.since}, ") + told, Text(row.where)]))
    return table


def _below(lines: Sequence[Line]) -> Table:
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, words in lines:
        table.add_row(Text(label, _LABELS.get(label, "bold")), Text(words))
    return table


def _state(row: Row) -> Text:
    why = row.why if len(row.why) <= _WHY else f"{row.why[: _WHY - 1]}…"
    return Text.assemble((row.state, _STATES.get(row.state, _ODD)), f": {why}" if why else "")


def _of_haproxy(said: str) -> str:
    if "DOWN" in said or "NOLB" in said:
        return _BAD
    return _GOOD if sheet.word(said) in ("UP", "no check") else _ODD


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)
