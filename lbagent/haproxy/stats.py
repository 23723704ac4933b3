"""What HAProxy says of its servers: the answer to `show stat` in, values out."""

from __future__ import annotations

from collections.abc import Mapping

from lbagent.tuples import NamedTuple

COMMAND = "show stat -1 4 -1"
"""Of every proxy the servers, and nothing else."""

_COLUMNS = ("pxname", "svname", "type", "status", "scur")
_SERVER = "2"


class Said(NamedTuple):
    """What HAProxy says of one server."""

    state: str | None
    """In its words: `UP`, `DOWN`, `UP 1/3`, `no check`, `MAINT (via a/b)` and so on."""
    sessions: int | None
    """Open now."""


Stats = Mapping[tuple[str, str], Said]
"""By proxy and server."""

NOTHING = Said(None, None)


def servers(answer: str) -> Stats:
    """What `answer` says of each server. Raises ValueError where it is no answer to `show stat`."""
    import csv  # noqa: PLC0415  # 2 ms that an event need not pay

    rows = csv.reader(f"{line}\n" for line in answer.removeprefix("# ").split("\n"))
    try:
        header = next(rows)
        proxy, server, kind, state, sessions = map(header.index, _COLUMNS)
        # Whole rows only: an answer may be cut short.
        found = [row for row in rows if len(row) == len(header) and row[kind] == _SERVER]
    except (csv.Error, ValueError) as error:
        raise ValueError(f"answered `show stat` with {answer[:60]!r}") from error
    return {(row[proxy], row[server]): Said(row[state], _number(row[sessions])) for row in found}


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # noqa: PLR2004  # of 64 bits
