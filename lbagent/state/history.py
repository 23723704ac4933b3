"""Read the last lines of history.jsonl, however long the file and its lines are."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO

from lbagent.outcome import PastRun

_FIRST = 1 << 14
"""Bytes read first. They usually hold the last line; one with 10,000 servers is a hundred times longer."""

_LINES = 50
"""Added and removed lines that are kept of an entry; a change of ten thousand servers has as many."""


def read_last_run(path: str) -> PastRun | None:
    """Return the last run with a complete line; None if there is none, or no file. Raises other OSErrors."""
    try:
        with open(path, "rb") as file:
            return next((run for line in _read_lines_backwards(file) if (run := _parse_run(line))), None)
    except FileNotFoundError:
        return None


def read_entries(path: str, limit: int) -> list[dict[str, Any]]:
    """Return the last `limit` entries, newest first, also of the rotated file. Raises OSErrors but FileNotFoundError.

    Each has `at` (epoch seconds), `why`, `outcome`, `words`, `reloaded`, `ms`, the first lines that were `added` and
    `removed`, and the numbers of all of them, `added_count` and `removed_count`. Lines that are not valid are skipped.
    """
    found: list[dict[str, Any]] = []
    for name in (path, f"{path}.1"):
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as file:
            lines = reversed(file.read().split(b"\n"))
            entries = (entry for line in lines if line and (entry := _parse_entry(line)))
            found += itertools.islice(entries, limit - len(found))
    return found


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


def _parse_entry(line: bytes) -> dict[str, Any] | None:
    run = _parse_run(line)
    if run is None:
        return None
    entry = json.loads(line)
    added, removed = (_list_texts(entry.get(key)) for key in ("added", "removed"))
    return {
        **run._asdict(),
        "reloaded": entry.get("reloaded") is True,
        "ms": entry["ms"] if isinstance(entry.get("ms"), int) else None,
        "added": added[:_LINES],
        "removed": removed[:_LINES],
        "added_count": len(added),
        "removed_count": len(removed),
    }


def _list_texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
