"""The events of one run: every record of the spool, parsed, in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

from lbagent.membership.model import Membership
from lbagent.membership.updates import UpdateResult, apply_events
from lbagent.serf.events import QUERY, TYPED, Command, Event, Ignored, StatusQuery, parse_event
from lbagent.serf.raw_event import RawEvent, parse_record
from lbagent.state.spool import Record, Spool
from lbagent.system.log import Log

Understood = tuple[RawEvent, Event]

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
                self.by_name[record.name] = parse_stored_event(record)
            except ValueError as error:
                said.append(spool.set_aside(record.name, str(error)))
        for words in said:
            log.warning(words)
        self.asked = _asked(records, self.by_name)
        """The queries of who may only store them, by the ids of their records."""

    @property
    def events(self) -> list[Understood]:
        """The events, oldest first."""
        return list(self.by_name.values())

    def folded(self, before: Membership, serf_clocks: Mapping[str, int]) -> UpdateResult:
        """`before` after all events, as `fold` has it; an event that it stumbles over is set aside."""
        try:
            return apply_events(before, self.events, serf_clocks)
        except Exception:  # noqa: BLE001  # a defect of ours over one event must not hold up all others, for ever
            for name, event in list(self.by_name.items()):
                self._try(name, event, before)
            return apply_events(before, self.events, serf_clocks)

    def _try(self, name: str, event: Understood, before: Membership) -> None:
        try:
            apply_events(before, [event], {})
        except Exception as error:  # noqa: BLE001  # as above
            del self.by_name[name]
            why = f"cannot be folded ({type(error).__name__}: {error})"
            self._log.warning(self._spool.set_aside(name, why))


def peek_events(spool: Spool) -> list[Understood]:
    """The events that a run would take now, nothing being moved."""
    return list(_by_name(spool.peek()).values())


def peek_queries(spool: Spool) -> dict[str, Command]:
    """The queries, of who may only store them, that a run would take now, by the ids of their records."""
    records = spool.peek()
    return _asked(records, _by_name(records))


def _by_name(records: Iterable[Record]) -> dict[str, Understood]:
    found = {}
    for record in records:
        with contextlib.suppress(ValueError):
            found[record.name] = parse_stored_event(record)
    return found


def _asked(records: Iterable[Record], by_name: Mapping[str, Understood]) -> dict[str, Command]:
    found = (by_name[record.name] for record in records if record.foreign and record.name in by_name)
    return {raw.id: event for raw, event in found if isinstance(event, Command) and raw.kind == QUERY}


def parse_stored_event(record: Record) -> Understood:
    """The event in a record. Raises ValueError for one that no handler of ours has stored."""
    raw = parse_record(record.content)
    if record.foreign and raw.kind == TYPED:
        raise ValueError("holds what an operator typed, and is not root's")
    event = parse_event(raw)
    if isinstance(event, Ignored | StatusQuery) or (isinstance(event, Command) and event.verb not in _VERBS):
        raise ValueError(f"holds {raw.kind[:40]!r} {raw.name[:40]!r}, which is no event of ours")
    return raw, event
