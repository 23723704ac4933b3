"""How a run ended: one word, one exit status, one line."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """The end of a run that was not an error."""

    UNCHANGED = "unchanged"  # the text equals the plan, and HAProxy serves it
    APPLIED = "applied"  # HAProxy has confirmed the new text
    WRITTEN = "written"  # haproxy.cfg is new; HAProxy does not run, or was not to be reloaded
    QUEUED = "queued"  # stored; whoever holds the lock goes on with it


class Outcome(NamedTuple):
    """What `handle`, `apply` and `sync` report, log and write into history.jsonl."""

    verdict: Verdict
    words: str = ""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    """Removals the guard keeps back, one sentence each."""

    @property
    def exit_status(self) -> int:
        """0, or 3 where the guard held something back (contract, section 8)."""
        return 3 if self.held else 0

    @property
    def confirmed(self) -> bool:
        """HAProxy is known to serve what membership asks for."""
        return self.verdict in (Verdict.UNCHANGED, Verdict.APPLIED)
