"""When what last happened: what last.json holds, for the metrics of runs to come."""

from __future__ import annotations

import json
from typing import NamedTuple


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


def dump(last: Last) -> bytes:
    """The last of each kind as one JSON object."""
    return json.dumps(last._asdict()).encode()


def load(content: bytes) -> Last:
    """What `dump` wrote; what is missing or damaged in it starts anew. Raises ValueError, TypeError, RecursionError."""
    found = json.loads(content)
    fresh = Last()
    sound = {
        field: found[field]
        for field, annotation in _KINDS.items()
        if field in found and type(found[field]) in annotation
    }
    return fresh._replace(**sound)


_TIME = (int, type(None))
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("run", "event", "change", "reload", "sync"), _TIME),
    "status": (int,),
    "reload_good": (bool,),
}
