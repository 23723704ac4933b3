"""What lies in the spool, as one batch of events; what cannot be one of them is set aside, and the rest goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from lbagent.fold import Folded, fold
from lbagent.host.log import Log
from lbagent.host.spool import Spool
from lbagent.membership import Membership
from lbagent.serf.command import Command
from lbagent.serf.events import Event, Ignored, StatusQuery, parse
from lbagent.serf.raw import Raw, from_record

Understood = tuple[Raw, Event]

_VERBS = ("pause", "resume", "forget")


class Batch:
    """The events of one run, in order."""

    def __init__(self, spool: Spool, log: Log) -> None:
        """Takes every record; what is none is set aside, and said. Raises OSError."""
        self._spool, self._log = spool, log
        records, said = spool.read()
        self.by_name: dict[str, Understood] = {}
        """The events by their records' names."""
        for record in records:
            try:
                self.by_name[record.name] = understood(record.content)
            except ValueError as error:
                said.append(spool.set_aside(record.name, str(error)))
        for words in said:
            log.warning(words)

    @property
    def events(self) -> list[Understood]:
        """The events, oldest first."""
        return list(self.by_name.values())

    def folded(self, before: Membership, serf_clocks: Mapping[str, int]) -> Folded:
        """`before` after all events, as `fold` has it; an event that it stumbles over is set aside."""
        try:
            return fold(before, self.events, serf_clocks)
        except Exception:  # noqa: BLE001  # a defect of ours over one event must not hold up all others, for ever
            for name, event in list(self.by_name.items()):
                self._try(name, event, before)
            return fold(before, self.events, serf_clocks)

    def _try(self, name: str, event: Understood, before: Membership) -> None:
        try:
            fold(before, [event], {})
        except Exception as error:  # noqa: BLE001  # as above
            del self.by_name[name]
            why = f"cannot be folded ({type(error).__name__}: {error})"
            self._log.warning(self._spool.set_aside(name, why))


def peeked(spool: Spool) -> list[Understood]:
    """The events that a run would take now, nothing being moved."""
    events = []
    for record in spool.peek():
        with contextlib.suppress(ValueError):
            events.append(understood(record.content))
    return events


def understood(content: bytes) -> Understood:
    """The event in a record. Raises ValueError for one that no handler of ours has stored."""
    raw = from_record(content)
    event = parse(raw)
    if isinstance(event, Ignored | StatusQuery) or (isinstance(event, Command) and event.verb not in _VERBS):
        raise ValueError(f"holds {raw.kind[:40]!r} {raw.name[:40]!r}, which is no event of ours")
    return raw, event
