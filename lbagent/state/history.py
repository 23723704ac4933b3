"""The last line of history.jsonl, however long the file and its lines are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO

from lbagent.outcome import PastRun

_FIRST = 1 << 14
"""Bytes that hold the last line as a rule; one that tells of ten thousand servers is a hundred times as long."""


def read_past_runs(path: str) -> PastRun | None:
    """The last run that left a whole line; None where there is none. Raises OSError, but not where no file is."""
    try:
        with open(path, "rb") as file:
            return next((run for line in _backwards(file) if (run := _run(line))), None)
    except FileNotFoundError:
        return None


def _backwards(file: BinaryIO) -> Iterator[bytes]:
    """The lines from the last one on, each time those of a piece of the file ten times as large."""
    size, piece = os.fstat(file.fileno()).st_size, _FIRST
    while True:
        start = max(0, size - piece)
        file.seek(start)
        # The first line of a piece may have lost its head: then it is no JSON, and comes again with the next piece.
        yield from reversed(file.read(size - start).split(b"\n"))
        if start == 0:
            return
        piece *= 10


def _run(line: bytes) -> PastRun | None:
    try:
        entry = json.loads(line)
        when = datetime.fromisoformat(entry["when"])
        return PastRun(int(when.timestamp()), *(str(entry[key]) for key in ("why", "outcome", "words")))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
