"""How a run ended: one word, one exit status, one line."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from lbagent import names
from lbagent.system.tuples import NamedTuple

QUIET = "nothing to do"
"""The words of an outcome where nothing was done."""

_NAMED = 20
"""Refused nodes named one by one: a journal is no place for thousands."""


class Verdict(StrEnum):
    """The end of a run that was not an error."""

    UNCHANGED = "unchanged"  # the text equals the plan, and HAProxy serves it, or does not run
    APPLIED = "applied"  # HAProxy has confirmed the new text
    WRITTEN = "written"  # haproxy.cfg is new; HAProxy does not run, or was not to be reloaded
    QUEUED = "queued"  # haproxy.cfg is new; HAProxy takes it over as soon as it may be reloaded again


class BlockedRemoval(NamedTuple):
    """Removals that the guard keeps back at one marker, the sentence that says so."""

    lines: int
    words: str

    def __str__(self) -> str:
        return self.words


class Outcome(NamedTuple):
    """What `handle`, `apply` and `sync` report, log and write into history.jsonl."""

    verdict: Verdict
    words: str = ""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    blocked: tuple[BlockedRemoval, ...] = ()
    """Removals the guard keeps back, marker by marker."""
    running: bool = True
    """Whether HAProxy was seen; False where it is shown not to run."""
    reloaded: bool = False
    """Whether it took a reload; False where HAProxy was told, or had nothing to learn."""
    quarantined: tuple[str, ...] = ()
    """The nodes that are in quarantine at the end."""

    @property
    def exit_status(self) -> int:
        """0; 4 where HAProxy refuses the lines of a node, 3 where the guard blocks removals (contract, section 8)."""
        if self.quarantined:
            return 4
        return 3 if self.blocked else 0

    @property
    def quiet(self) -> bool:
        """Whether nothing was done, and there was nothing to do."""
        return self.words == QUIET

    @property
    def confirmed(self) -> bool:
        """HAProxy is known to serve what membership asks for."""
        return self.running and self.verdict in (Verdict.UNCHANGED, Verdict.APPLIED)


class PastRun(NamedTuple):
    """A run of the past, as history.jsonl tells of it."""

    at: int
    """Epoch seconds."""
    why: str
    outcome: str
    """A verdict, or what its error calls it."""
    words: str


def format_line_counts(added: int, removed: int) -> str:
    """How many lines came and went, in words."""
    return f"{names.format_count(added, 'line')} added, {removed} removed"


def format_quarantined(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each node whose line HAProxy refused, with its reason."""
    named = [f"{node} is in quarantine, its lines stay as they were: {why}" for node, why in reasons.items()]
    more = len(named) - _NAMED
    return (*named[:_NAMED], f"{more} more nodes are in quarantine, as `members.json` tells") if more > 0 else (*named,)
