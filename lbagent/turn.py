"""What one plan is made with, the same for proxy after proxy."""

from __future__ import annotations

from lbagent.guard import Guard
from lbagent.tuples import NamedTuple
from lbagent.wishes import Wishes


class Turn(NamedTuple):
    """What a whole plan is made with, proxy after proxy."""

    wishes: Wishes
    guard: Guard
    kept: frozenset[str] = frozenset()
    """Nodes whose lines stay as they are: quarantined ones, and those on trial."""
    adopt: bool = False
    """Turn hand-written namesakes above a marker into managed lines."""
