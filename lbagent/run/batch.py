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

ParsedEvent = tuple[RawEvent, Event]

_VERBS = ("pause", "resume", "forget")


class Batch:
    """The events of one run, in order."""

    def __init__(self, spool: Spool, log: Log) -> None:
        """Read every record; one that is not an event is moved to `bad/` and logged. Raises OSError."""
        self._spool, self._log = spool, log
        records, warnings = spool.read()
        self.by_name: dict[str, ParsedEvent] = {}
        """The events, by the names of their records."""
        for record in records:
            try:
                self.by_name[record.name] = parse_stored_event(record)
            except ValueError as error:
                warnings.append(spool.set_aside(record.name, str(error)))
        for warning in warnings:
            log.warning(warning)
        self.foreign_queries = _select_foreign_queries(records, self.by_name)
        """Queries stored by users who may not apply them, by the ids of their records."""

    @property
    def events(self) -> list[ParsedEvent]:
        """The events, oldest first."""
        return list(self.by_name.values())

    def apply_to(self, before: Membership, serf_clocks: Mapping[str, int]) -> UpdateResult:
        """Return `before` with all events applied; an event that raises is moved to `bad/` and logged."""
        try:
            return apply_events(before, self.events, serf_clocks)
        except Exception:  # noqa: BLE001  # a defect that one event triggers must not block all others
            for name, event in list(self.by_name.items()):
                self._set_aside_if_failing(name, event, before)
            return apply_events(before, self.events, serf_clocks)

    def _set_aside_if_failing(self, name: str, event: ParsedEvent, before: Membership) -> None:
        try:
            apply_events(before, [event], {})
        except Exception as error:  # noqa: BLE001  # as above
            del self.by_name[name]
            reason = f"cannot be applied ({type(error).__name__}: {error})"
            self._log.warning(self._spool.set_aside(name, reason))


def peek_events(spool: Spool) -> list[ParsedEvent]:
    """Return the events that a run would apply now. The spool is not changed."""
    return list(_parse_records(spool.peek()).values())


def peek_queries(spool: Spool) -> dict[str, Command]:
    """Return the queries stored by users who may not apply them, by the ids of their records.

    The spool is not changed.
    """
    records = spool.peek()
    return _select_foreign_queries(records, _parse_records(records))


def parse_stored_event(record: Record) -> ParsedEvent:
    """Return the event in a record. Raises ValueError where no handler of lbagent stored it."""
    raw = parse_record(record.content)
    if record.foreign and raw.kind == TYPED:
        raise ValueError("has a command of an operator, but is not root's file")
    event = parse_event(raw)
    if isinstance(event, Ignored | StatusQuery) or (isinstance(event, Command) and event.verb not in _VERBS):
        raise ValueError(f"has {raw.kind[:40]!r} {raw.name[:40]!r}, not an event for lbagent")
    return raw, event


def _parse_records(records: Iterable[Record]) -> dict[str, ParsedEvent]:
    found = {}
    for record in records:
        with contextlib.suppress(ValueError):
            found[record.name] = parse_stored_event(record)
    return found


def _select_foreign_queries(records: Iterable[Record], by_name: Mapping[str, ParsedEvent]) -> dict[str, Command]:
    found = (by_name[record.name] for record in records if record.foreign and record.name in by_name)
    return {raw.id: event for raw, event in found if isinstance(event, Command) and raw.kind == QUERY}
