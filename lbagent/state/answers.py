"""answers.json: results of queries, for a handler that only stores its event and waits for the answer."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping

from lbagent.state import files

_KEPT = 100
"""Number of answers kept. Serf runs its handlers one after another, and each waits only for seconds."""

_STEP = 0.02
"""Seconds between two looks at the file."""


def publish_answers(path: str, said: Mapping[str, str]) -> None:
    """Add answers to the file at `path`. `said` maps the id of a spool record to its answer. Raises OSError."""
    kept = {**{key: words for key, words in _read_answers(path).items() if key not in said}, **said}
    files.replace_file(path, json.dumps(dict(list(kept.items())[-_KEPT:])).encode(), durable=False)


def wait_for_answer(path: str, identity: str, seconds: float) -> str | None:
    """Wait up to `seconds` for the answer to a spool record; None if there is none by then. Raises OSError."""
    deadline = time.monotonic() + seconds
    looked: tuple[int, int] | None = None
    while True:
        stamp = _read_stamp(path)
        if stamp != looked and (words := _read_answers(path).get(identity)) is not None:
            return words
        looked = stamp
        if time.monotonic() >= deadline:
            return None
        time.sleep(_STEP)


def _read_stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read_answers(path: str) -> dict[str, str]:
    with contextlib.suppress(FileNotFoundError, ValueError), open(path, "rb") as file:
        found = json.loads(file.read())
        return {key: str(words) for key, words in found.items()} if isinstance(found, dict) else {}
    return {}
