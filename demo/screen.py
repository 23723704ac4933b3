"""What the demo looks like: 80 columns, on a dark terminal or a light one, or none at all."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from demo.client import Answer

WIDTH = 78
_TRAFFIC = 44
"""Columns of the picture of what a client sees."""

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "blue": "34", "magenta": "35", "cyan": "36"}
_NODES = ("blue", "magenta", "cyan")


class Picture(NamedTuple):
    """A stretch of time as the client saw it."""

    answers: Sequence[Answer]
    nodes: Sequence[str]
    begin: float
    end: float
    marks: Sequence[tuple[float, str]]
    """What happened, and when."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.begin

    def counts(self, columns: int) -> dict[str, list[int]]:
        """The answers of each node, moment by moment."""
        counts = {node: [0] * columns for node in self.nodes}
        for answer in self.answers:
            if answer.node in counts:
                counts[answer.node][int((answer.at - self.begin) / self.seconds * columns)] += 1
        return counts


class Screen:
    """Writes to stdout; colours only where a person looks who has not said NO_COLOR."""

    def __init__(self) -> None:
        """Looks at stdout and the environment once."""
        self._tty = sys.stdout.isatty()
        self._colours = self._tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        self._bars = " ▁▂▃▄▅▆▇█" if unicode else " .:-=+*%#"
        self._rule, self._arrow = "─▲" if unicode else "-^"

    def title(self, text: str, about: str) -> None:
        """The first lines."""
        self._say(f"\n {self._paint(text, 'bold')}  {about}\n")

    def act(self, title: str, why: str) -> None:
        """The heading of one act."""
        head = f"{self._rule * 2} {title} "
        self._say(f"\n{self._paint(head, 'bold')}{self._paint(self._rule * (WIDTH - len(head)), 'dim')}")
        self._say(f"   {why}\n")

    def side_by_side(self, left: Sequence[str], right: Sequence[str]) -> None:
        """Two files beside each other; their first lines are their names."""
        for number in range(max(len(left), len(right))):
            pair = [column[number] if number < len(column) else "" for column in (left, right)]
            kind = "bold" if number == 0 else "green" if "# additional-" in pair[1] else ""
            head = self._paint(f"{pair[0]:36}", "bold" if number == 0 else "")
            self._say(f"   {head} {self._paint(pair[1], kind)}".rstrip())

    def typed(self, where: str, command: str) -> None:
        """A command as somebody would type it."""
        self._say(f"   {where:<8} $ {self._paint(command, 'bold')}")

    def fact(self, who: str, what: str) -> None:
        """One line of who said or did what."""
        self._say(f"   {self._paint(f'{who:<8}', 'dim')} {what}")

    def diff(self, before: str, after: str) -> None:
        """What changed in haproxy.cfg."""
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
        for line in list(lines)[3:]:
            kind = {"+": "green", "-": "red"}.get(line[:1], "dim")
            self._say(f"   {self._paint(line.rstrip(), kind)}")

    def traffic(self, picture: Picture) -> None:
        """Who answered when: a row per node, a column per moment, and what happened below."""
        counts = picture.counts(_TRAFFIC)
        most = max((count for row in counts.values() for count in row), default=0) or 1
        self._say("")
        for number, (node, row) in enumerate(counts.items()):
            self._say(f"   {node:<8} {self._paint(self._row(row, most), _NODES[number % 3])} {sum(row):5d} answers")
        self._say(f"   {'':8} {self._paint(self._axis(picture), 'dim')}")
        failed = sum(not answer.node for answer in picture.answers)
        said = self._paint(f"{failed} failed", "red" if failed else "green")
        self.fact("client", f"{len(picture.answers)} requests in {picture.seconds:.1f} s, {said}")

    def rule(self) -> None:
        """A line across."""
        self._say(f"\n{self._paint(self._rule * WIDTH, 'dim')}")

    def verdict(self, *, good: bool, text: str) -> None:
        """The line that matters most."""
        self._say(f"\n {self._paint(text, 'green' if good else 'red', 'bold')}")

    def line(self, text: str = "") -> None:
        """A plain line."""
        self._say(f" {text}".rstrip())

    def waiting(self, text: str = "") -> None:
        """What is being waited for; the next line takes its place. Nothing where nobody looks."""
        if self._tty:
            sys.stdout.write(f"\r\x1b[K{self._paint(f'   {text}', 'dim') if text else ''}")
            sys.stdout.flush()

    def _row(self, counts: Iterable[int], most: int) -> str:
        top = len(self._bars) - 1
        return "".join(self._bars[-(-count * top // most)] for count in counts)

    def _axis(self, picture: Picture) -> str:
        axis = ""
        for at, text in picture.marks:
            axis = f"{axis:<{int((at - picture.begin) * _TRAFFIC / picture.seconds)}}{self._arrow} {text} "
        return axis.rstrip()

    def _paint(self, text: str, *kinds: str) -> str:
        codes = ";".join(_CODES[kind] for kind in kinds if kind)
        return f"\x1b[{codes}m{text}\x1b[0m" if codes and self._colours and text else text

    def _say(self, text: str) -> None:
        self.waiting()
        print(text, flush=True)
