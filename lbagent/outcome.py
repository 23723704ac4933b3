"""How a run ended: one verdict, one exit status, one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from lbagent import names

QUIET = "nothing to do"
"""The message of an outcome if nothing was done."""

_NAMED = 20
"""At most so many refused nodes are named; the rest are counted."""


class Verdict(StrEnum):
    """How a run ended that did not fail."""

    UNCHANGED = "unchanged"  # haproxy.cfg already matches the plan; HAProxy runs it, or HAProxy does not run
    APPLIED = "applied"  # HAProxy has confirmed the new text
    WRITTEN = "written"  # haproxy.cfg was written; HAProxy does not run, or no reload was requested
    QUEUED = "queued"  # haproxy.cfg was written; HAProxy loads it as soon as the minimum reload interval is over


class BlockedRemoval(NamedTuple):
    """The removals that the safety guard blocks at one marker, with the sentence that reports them."""

    lines: int
    message: str

    def __str__(self) -> str:
        return self.message

    @property
    def report(self) -> str:
        """The sentence with what to do."""
        return f"{self.message}; `lbagent apply --force` applies these removals"


class Outcome(NamedTuple):
    """What a run did: printed, logged, and written to history.jsonl."""

    verdict: Verdict
    message: str = ""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    blocked: tuple[BlockedRemoval, ...] = ()
    """Removals that the safety guard blocks, one entry per marker."""
    running: bool = True
    """False only if HAProxy was shown not to run."""
    reloaded: bool = False
    """Whether HAProxy was reloaded; False where the runtime API was enough, or nothing changed."""
    quarantined: tuple[str, ...] = ()
    """The nodes in quarantine at the end of the run."""

    @property
    def exit_status(self) -> int:
        """Exit status: 4 if nodes are in quarantine, else 3 if the safety guard blocks removals, else 0."""
        if self.quarantined:
            return 4
        return 3 if self.blocked else 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing was done because nothing had to be done."""
        return self.message == QUIET

    @property
    def is_confirmed(self) -> bool:
        """Whether HAProxy is known to run what membership asks for."""
        return self.running and self.verdict in (Verdict.UNCHANGED, Verdict.APPLIED)


class PastRun(NamedTuple):
    """A past run, as recorded in history.jsonl."""

    at: int
    """Epoch seconds."""
    why: str
    outcome: str
    """A verdict, or the `outcome` of its error."""
    words: str


def format_line_counts(added: int, removed: int) -> str:
    """Format the numbers of added and removed lines."""
    return f"{names.format_count(added, 'line')} added, {removed} removed" if added or removed else "no lines changed"


def format_quarantined(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Return one sentence per node whose line HAProxy rejects. `reasons` maps node to reason."""
    named = [f"{node} is in quarantine, its lines are unchanged: {why}" for node, why in reasons.items()]
    more = len(named) - _NAMED
    return (
        (*named[:_NAMED], f"{more} more nodes are in quarantine; `lbagent status` lists them")
        if more > 0
        else (*named,)
    )
