"""The output of the demo: 80 columns wide, for dark and light terminals, and for pipes."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from demo.client import Answer

WIDTH = 78
_COLUMNS = 44
"""Columns of the traffic chart."""

# Legible on black and on white, unlike blue and yellow.
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "magenta": "35"}


class Traffic(NamedTuple):
    """The answers that the client got between `begin` and `end`."""

    answers: Sequence[Answer]
    nodes: Sequence[str]
    begin: float
    end: float
    marks: Sequence[tuple[float, str]]
    """Times and names of the changes."""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.end - self.begin

    def count_by_column(self, columns: int) -> dict[str, list[int]]:
        """Return the number of answers of each node in each of `columns` equal intervals."""
        counts = {node: [0] * columns for node in self.nodes}
        for answer in self.answers:
            if answer.node in counts:
                counts[answer.node][int((answer.at - self.begin) / self.seconds * columns)] += 1
        return counts


class Screen:
    """Writes to stdout; with colours only on a terminal and without NO_COLOR."""

    def __init__(self) -> None:
        """Choose colours and characters from stdout and the environment."""
        self._tty = sys.stdout.isatty()
        self._colours = self._tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        self._bars = " ▁▂▃▄▅▆▇█" if unicode else " .:-=+*%#"
        self._rule, self._arrow = "─▲" if unicode else "-^"

    def show_title(self, text: str, about: str) -> None:
        """Print the title."""
        self._print(f"\n {self._paint(text, 'bold')}  {about}\n")

    def show_heading(self, title: str, explanation: str) -> None:
        """Print the heading of a scene."""
        head = f"{self._rule * 2} {title} "
        self._print(f"\n{self._paint(head, 'bold')}{self._paint(self._rule * (WIDTH - len(head)), 'dim')}")
        self._print(f"   {explanation}\n")

    def show_side_by_side(self, left: Sequence[str], right: Sequence[str]) -> None:
        """Print two files beside each other; their first lines are their names."""
        for number in range(max(len(left), len(right))):
            pair = [column[number] if number < len(column) else "" for column in (left, right)]
            kind = "bold" if number == 0 else "green" if "# additional-" in pair[1] else ""
            head = self._paint(f"{pair[0]:36}", "bold" if number == 0 else "")
            self._print(f"   {head} {self._paint(pair[1], kind)}".rstrip())

    def show_command(self, where: str, command: str) -> None:
        """Print a command as typed on a machine."""
        self._print(f"   {where:<8} $ {self._paint(command, 'bold')}")

    def show_fact(self, program: str, fact: str) -> None:
        """Print one line about what a program did."""
        self._print(f"   {self._paint(f'{program:<8}', 'dim')} {fact}")

    def show_diff(self, before: str, after: str) -> None:
        """Print the changed lines of haproxy.cfg."""
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
        for line in list(lines)[3:]:
            kind = {"+": "green", "-": "red"}.get(line[:1], "dim")
            self._print(f"   {self._paint(line.rstrip(), kind)}")

    def show_traffic(self, traffic: Traffic) -> None:
        """Print a chart: a row per node, a column per interval, the changes below."""
        counts = traffic.count_by_column(_COLUMNS)
        most = max((count for row in counts.values() for count in row), default=0) or 1
        self._print("")
        for node, row in counts.items():
            self._print(f"   {node:<8} {self._paint(self._format_row(row, most), 'magenta')} {sum(row):5d} answers")
        self._print(f"   {'':8} {self._paint(self._format_axis(traffic), 'dim')}")
        failed = sum(not answer.node for answer in traffic.answers)
        failures = self._paint(f"{failed} failed", "red" if failed else "green")
        self.show_fact("client", f"{len(traffic.answers)} requests in {traffic.seconds:.1f} s, {failures}")

    def show_rule(self) -> None:
        """Print a horizontal line."""
        self._print(f"\n{self._paint(self._rule * WIDTH, 'dim')}")

    def show_result(self, *, good: bool, text: str) -> None:
        """Print the result, green or red."""
        self._print(f"\n {self._paint(text, 'green' if good else 'red', 'bold')}")

    def show_line(self, text: str = "") -> None:
        """Print a plain line."""
        self._print(f" {text}".rstrip())

    def show_progress(self, text: str = "") -> None:
        """Print what the demo waits for, on a terminal only; the next line replaces it."""
        if self._tty:
            sys.stdout.write(f"\r\x1b[K{self._paint(f'   {text}', 'dim') if text else ''}")
            sys.stdout.flush()

    def _format_row(self, counts: Iterable[int], most: int) -> str:
        top = len(self._bars) - 1
        return "".join(self._bars[-(-count * top // most)] for count in counts)

    def _format_axis(self, traffic: Traffic) -> str:
        axis = ""
        for at, text in traffic.marks:
            axis = f"{axis:<{int((at - traffic.begin) * _COLUMNS / traffic.seconds)}}{self._arrow} {text} "
        return axis.rstrip()

    def _paint(self, text: str, *kinds: str) -> str:
        codes = ";".join(_CODES[kind] for kind in kinds if kind)
        return f"\x1b[{codes}m{text}\x1b[0m" if codes and self._colours and text else text

    def _print(self, text: str) -> None:
        self.show_progress()
        print(text, flush=True)
