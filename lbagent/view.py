"""The report as a terminal shows it: a table as wide as the terminal, and hanging lines below it.

What is foreign is given to rich as Text, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lbagent import sheet
from lbagent.sheet import COLUMNS, Line, Row

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from lbagent.nodes import Node
    from lbagent.report import Report

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
    here = sheet.here(report)
    rows = [sheet.row(here[at], report) for at in _chosen(here, most)]
    hidden = len(here) - len(rows)
    more = [Line("not shown", f"{hidden} more nodes, for want of room")] if hidden else []
    below = _below([*more, *sheet.elsewhere(report), *sheet.below(report)])
    wrong = sheet.wrong(report)
    top: list[RenderableType] = [_below(wrong, _BAD), Text()] if wrong else []
    if not rows:
        return Group(*top, below)
    widths = _widths(rows, width)
    return Group(*top, *(_wide(rows, widths) if widths else [_narrow(rows)]), Text(), below)


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


def _below(lines: Sequence[Line], style: str = "bold") -> Table:
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
    return _GOOD if sheet.word(said) in ("UP", "no check") else _ODD


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)
