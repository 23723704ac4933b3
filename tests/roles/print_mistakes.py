"""Print broken roles.yml files and the messages of each as a Markdown table: `python -m tests.roles.print_mistakes`.

The files are those of test_mistakes.py, as different ones as possible. The messages come from the loader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lbagent.errors import RolesRefused
from lbagent.roles import loader
from tests.roles.test_mistakes import BROKEN

COUNT = 50


def list_mistakes(text: str) -> tuple[str, ...]:
    """Return the messages for a roles.yml."""
    try:
        loader.parse_roles(text.encode(), "roles.yml")
    except RolesRefused as refused:
        return tuple(refused.mistakes)
    return ()


def choose_files() -> list[str]:
    """Return COUNT files in the order of test_mistakes.py: first those with a problem that no earlier file has."""
    texts = list(dict.fromkeys(text for text, _ in BROKEN))
    seen: set[str] = set()
    new: list[str] = []
    others: list[str] = []
    for text in texts:
        problems = {find_problem(message) for message in list_mistakes(text)}
        (others if problems <= seen else new).append(text)
        seen |= problems
    chosen = {*[*new, *others][:COUNT]}
    return [text for text in texts if text in chosen]


def find_problem(message: str) -> str:
    """Return the problem that a message names, without its place, fix, values and numbers."""
    problem = message.partition("; ")[0].rpartition(": ")[2]
    return re.sub(r"'[^']*'|\{.*\}|[0-9]+", "", problem)


def format_table() -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| | roles.yml | messages |"
    yield "|--:|---|---|"
    for number, text in enumerate(choose_files(), 1):
        yield f"| {number} | {format_cell(text.rstrip().splitlines())} | {format_cell(list_mistakes(text))} |"


def format_cell(lines: list[str] | tuple[str, ...]) -> str:
    """Return lines as one cell of a Markdown table, with blanks and tabs kept."""
    escaped = (line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;") for line in lines)
    return "<br>".join(f"<code>{line.replace(chr(9), '→').replace(' ', '&nbsp;')}</code>" for line in escaped)


def main() -> None:
    """Print the table."""
    for line in format_table():
        print(line)


if __name__ == "__main__":
    main()
