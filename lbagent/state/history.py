"""Read the last line of history.jsonl, however long the file and its lines are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO

from lbagent.outcome import PastRun

_FIRST = 1 << 14
"""Bytes read first. They usually hold the last line; one about ten thousand servers is a hundred times longer."""


def read_past_runs(path: str) -> PastRun | None:
    """Return the last run with a complete line; None if there is none, or no file. Raises other OSErrors."""
    try:
        with open(path, "rb") as file:
            return next((run for line in _read_lines_backwards(file) if (run := _parse_run(line))), None)
    except FileNotFoundError:
        return None


def _read_lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines from the last one on, reading ten times more of the file at each step."""
    size, piece = os.fstat(file.fileno()).st_size, _FIRST
    while True:
        start = max(0, size - piece)
        file.seek(start)
        # The first line of a piece may be cut. Then it is not valid JSON, and is read again with the next piece.
        yield from reversed(file.read(size - start).split(b"\n"))
        if start == 0:
            return
        piece *= 10


def _parse_run(line: bytes) -> PastRun | None:
    try:
        entry = json.loads(line)
        when = datetime.fromisoformat(entry["when"])
        return PastRun(int(when.timestamp()), *(str(entry[key]) for key in ("why", "outcome", "words")))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
