"""When what last happened: what last.json holds, for the metrics of runs to come."""

from __future__ import annotations

import json

from lbagent.tuples import NamedTuple


class Last(NamedTuple):
    """The last of each kind, in epoch seconds; None where there has been none yet."""

    run: int | None = None
    status: int = 0
    """Exit status of the last run."""
    event: int | None = None
    """Arrival of the newest event that was folded."""
    change: int | None = None
    """haproxy.cfg became another."""
    reload: int | None = None
    reload_good: bool = True
    sync: int | None = None
    success: int | None = None
    """A run ended with 0."""
    words: str = ""
    """How the last run ended, in a sentence."""
    sync_failing: int | None = None
    """Since when syncs fail; None while they do not."""
    sync_words: str = ""
    """Why the last sync failed."""


def dump(last: Last) -> bytes:
    """The last of each kind as one JSON object."""
    return json.dumps(last._asdict()).encode()


def load(content: bytes) -> Last:
    """What `dump` wrote; what is missing or damaged starts anew. Raises ValueError, AttributeError, RecursionError."""
    found = json.loads(content)
    # Beyond what a float64 holds exactly there is no time; Prometheus would refuse the whole file for it.
    sound = {field: found[field] for field, most in _MOST.items() if _is_number(found.get(field), most)}
    texts = {field: found[field] for field in ("words", "sync_words") if isinstance(found.get(field), str)}
    return Last(**sound, **texts, reload_good=found.get("reload_good") is not False)


def _is_number(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


_MOST = {
    **dict.fromkeys(("run", "event", "change", "reload", "sync", "success", "sync_failing"), 1 << 53),
    "status": 255,
}
