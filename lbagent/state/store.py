"""Read and write the files of the state directory, except spool and locks.

A damaged file is the same as a missing one, except members.json, which raises `Damaged`. There, members are stored in
columns, as in `model.Table`, because 20,000 members are read before a run can do anything. Members that have more than
the fields in the columns are in `more`, by name. Files of an older version can be read. An older version can read this
file: it ignores `commands` and uses the keys beside it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from lbagent import metrics as metrics_module
from lbagent.membership import peers
from lbagent.membership.model import (
    PRESENT,
    STATUSES,
    Columns,
    LastCommands,
    Member,
    Membership,
    Pause,
    PauseCommand,
    Quarantine,
    Table,
    as_table,
)
from lbagent.membership.peers import Peers
from lbagent.metrics import Last
from lbagent.names import are_addresses, are_names, canonical_address
from lbagent.outcome import PastRun
from lbagent.settings import Paths
from lbagent.state import files
from lbagent.system import untrusted_files

_COLUMNS = ("name", "address", "role", "status", "changed")

_NUMBER_LIMIT = 1 << 70
"""Larger than any LTime (64 bits) and any time. lbagent never writes a larger number."""

_FIRST_PIECE = 1 << 14
"""Bytes read first. They usually hold the last line; one with 10,000 servers is a hundred times longer."""

_LISTED_LINES = 50
"""Added and removed lines that are kept of an entry; a change of ten thousand servers has as many."""

HISTORY_LIMIT = 4 * 1024 * 1024
"""Size in bytes above which history.jsonl is renamed to history.jsonl.1."""

_ANSWERS_KEPT = 100
"""Number of answers in answers.json. Serf runs its handlers one after another, and each waits for seconds only."""

_ANSWER_POLL = 0.02
"""Seconds between two looks at answers.json."""

_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""Exceptions that reading damaged JSON may raise: 1e999 is not an int, 100,000 brackets are too deep."""


class Failure(NamedTuple):
    """A failed reload, and what has to change before it is retried."""

    at: int
    times: int
    key: str
    """Digest of the operator's lines and roles.yml. If they change, a retry may succeed."""
    words: str


class ServersInMaintenance(NamedTuple):
    """The servers that were put into maintenance through the runtime API, and stay so until a reload."""

    worker: tuple[int, int] | None = None
    """Pid and start time of the worker they belong to."""
    lines: Mapping[tuple[str, str], str] = MappingProxyType({})
    """The line that each was made from, by proxy and server; empty where that is unknown."""


class Served(NamedTuple):
    """What HAProxy last confirmed."""

    digest: str = ""
    """Digest of the managed lines."""
    worker: tuple[int, int] | None = None
    """Pid and start time of the worker that confirmed them; None if HAProxy did not run."""
    failure: Failure | None = None
    in_maintenance: ServersInMaintenance = ServersInMaintenance()
    is_complete: bool = True
    """Whether `in_maintenance` has all of them.

    False after a run that could not write served.json, as the disk was full.
    """


class Store:
    """A state directory."""

    def __init__(self, paths: Paths) -> None:
        """Use the state directory at `paths`."""
        self.paths = paths
        self._membership: tuple[bytes, Membership] | None = None
        """The content of members.json that was read or written last, and its membership."""

    def load_membership(self) -> Membership | None:
        """Return the stored membership; None if there is none. Raises Damaged, OSError."""
        try:
            content = untrusted_files.read_whole_file(self.paths.members)
        except FileNotFoundError:
            return None
        if self._membership is None or self._membership[0] != content:
            self._membership = content, parse_membership(content)
        return self._membership[1]

    def set_damaged_aside(self) -> str:
        """Rename an unreadable members.json and return its new path. Raises OSError."""
        # With nanoseconds: a second damaged file within one second must not replace the first.
        aside = f"{self.paths.members}.damaged-{time.strftime('%Y%m%dT%H%M%S')}.{time.time_ns() % 10**9:09}"
        os.rename(self.paths.members, aside)
        return aside

    def save_membership(self, membership: Membership) -> None:
        """Replace members.json atomically and durably. Raises OSError."""
        content = serialize_membership(membership)
        files.replace_file(self.paths.members, content)
        self._membership = content, membership._replace(members=as_table(membership.members))

    def load_served(self) -> Served:
        """Return what HAProxy last confirmed; an empty state where that is unknown."""
        is_complete = not os.path.lexists(self._incomplete_path)
        served = self._read_served(self.paths.served)
        if served is None and not is_complete:
            served = self._read_served(self._incomplete_path)
        return (served or Served())._replace(is_complete=is_complete)

    @property
    def _incomplete_path(self) -> str:
        return f"{self.paths.served}.incomplete"

    def _read_served(self, path: str) -> Served | None:
        try:
            found = json.loads(untrusted_files.read_whole_file(path))
            failure = found["failure"]
            return Served(
                str(found["digest"]),
                _parse_worker(found["worker"]),
                Failure(int(failure["at"]), int(failure["times"]), str(failure["key"]), str(failure["words"]))
                if failure
                else None,
                _parse_left(found.get("left")),
            )
        except (OSError, *_DAMAGE):
            return None

    def mark_served_incomplete(self) -> None:
        """Rename served.json to note that HAProxy was sent changes it does not list.

        A rename works on a full disk, too.
        """
        with contextlib.suppress(OSError):
            os.rename(self.paths.served, self._incomplete_path)

    def save_served(self, served: Served, *, durable: bool = True) -> None:
        """Write served.json, with fsync if `durable`. Raises OSError."""
        content: dict[str, object] = {"digest": served.digest, "worker": _serialize_worker(served.worker)}
        content["failure"] = served.failure and served.failure._asdict()
        if served.in_maintenance.lines:
            lines = {"/".join(key): line for key, line in served.in_maintenance.lines.items()}
            content["left"] = {"worker": _serialize_worker(served.in_maintenance.worker), "servers": lines}
        files.replace_file(self.paths.served, json.dumps(content).encode(), durable=durable)
        if served.is_complete:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._incomplete_path)

    def load_roles_cache(self, key: str) -> Any:  # noqa: ANN401  # JSON
        """Return what was cached under `key`; None if nothing was."""
        try:
            found = json.loads(untrusted_files.read_whole_file(self.paths.roles))
            return (
                json.loads(found["state"])
                if found["key"] == key and found["check"] == _checksum(found["state"])
                else None
            )
        except (OSError, *_DAMAGE):
            return None

    def save_roles_cache(self, key: str, state: Any) -> None:  # noqa: ANN401  # JSON
        """Cache `state` under `key`. Errors are ignored."""
        with contextlib.suppress(OSError):
            text = json.dumps(state)
            files.replace_file(
                self.paths.roles, json.dumps({"key": key, "check": _checksum(text), "state": text}).encode()
            )

    def append_history(self, entry: Mapping[str, object]) -> None:
        """Append a line to history.jsonl. Errors are ignored: they never change an outcome."""
        path = self.paths.history
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(OSError):
            if os.path.exists(path) and os.path.getsize(path) > HISTORY_LIMIT:
                os.replace(path, f"{path}.1")
            with open(path, "a", encoding="utf-8", opener=_open_private) as file:
                file.write(json.dumps({"when": when, **entry}) + "\n")

    def publish_answers(self, answers: Mapping[str, str]) -> None:
        """Add answers to answers.json, by record id. Raises OSError."""
        kept = {**{key: text for key, text in self._load_answers().items() if key not in answers}, **answers}
        newest = dict(list(kept.items())[-_ANSWERS_KEPT:])
        files.replace_file(self.paths.answers, json.dumps(newest).encode(), durable=False)

    def wait_for_answer(self, record: str, seconds: float) -> str | None:
        """Wait up to `seconds` for the answer to a record; None if there is none by then. Raises OSError."""
        deadline = time.monotonic() + seconds
        seen: tuple[int, int, int] | None = None
        while True:
            stamp = files.read_stamp(self.paths.answers)
            if stamp != seen and (answer := self._load_answers().get(record)) is not None:
                return answer
            seen = stamp
            if time.monotonic() >= deadline:
                return None
            time.sleep(_ANSWER_POLL)

    def _load_answers(self) -> dict[str, str]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(untrusted_files.read_whole_file(self.paths.answers))
            return {key: str(text) for key, text in found.items()} if isinstance(found, dict) else {}
        return {}

    def load_last(self) -> Last:
        """Return the times of the last run, event and so on; defaults where they are unknown."""
        try:
            return metrics_module.parse_last(untrusted_files.read_whole_file(self.paths.last))
        except (OSError, *_DAMAGE):
            return Last()

    def save_last(self, when: Last) -> None:
        """Write last.json. Errors are ignored."""
        with contextlib.suppress(OSError):
            files.replace_file(self.paths.last, metrics_module.serialize_last(when), durable=False)

    def load_peers(self) -> Peers | None:
        """Return the other load balancers as the last sync saw them; None where that is unknown."""
        try:
            return peers.parse_peers(untrusted_files.read_whole_file(self.paths.peers))
        except (OSError, *_DAMAGE):
            return None

    def save_peers(self, found: Peers) -> None:
        """Write peers.json. Errors are ignored."""
        with contextlib.suppress(OSError):
            files.replace_file(self.paths.peers, peers.serialize_peers(found), durable=False)

    def publish_metrics(self, metrics: bytes) -> None:
        """Write metrics.prom, readable by all users. Raises OSError."""
        files.replace_file(self.paths.metrics, metrics, 0o644, durable=False)


def _checksum(text: str) -> int:
    """Return a checksum that detects a roles.json damaged on disk."""
    return zlib.crc32(text.encode())


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK, 0o640)  # do not block on a FIFO that has no reader


def _serialize_worker(worker: tuple[int, int] | None) -> dict[str, int] | None:
    return worker and {"pid": worker[0], "started": worker[1]}


def _parse_worker(found: Mapping[str, Any] | None) -> tuple[int, int] | None:
    return (int(found["pid"]), int(found["started"])) if found else None


def _parse_left(found: Mapping[str, Any] | None) -> ServersInMaintenance:
    if not found:  # older versions did not store any
        return ServersInMaintenance()
    lines = {(key.partition("/")[0], key.partition("/")[2]): str(line) for key, line in found["servers"].items()}
    return ServersInMaintenance(_parse_worker(found["worker"]), lines)


def read_last_run(path: str) -> PastRun | None:
    """Return the last run with a complete line; None if there is none, or no file. Raises other OSErrors."""
    try:
        with untrusted_files.open_regular_file(path) as file:
            return next((run for line in _read_lines_backwards(file) if (run := _parse_run(line))), None)
    except FileNotFoundError:
        return None


def read_entries(path: str, limit: int) -> list[dict[str, Any]]:
    """Return the last `limit` entries, newest first, also of the rotated file. Raises OSErrors but FileNotFoundError.

    Each has `at` (epoch seconds), `why`, `outcome`, `words`, `reloaded`, `ms`, the first lines that were `added` and
    `removed`, and the numbers of all of them, `added_count` and `removed_count`. Lines that are not valid are skipped.
    """
    found: list[dict[str, Any]] = []
    for name in (path, f"{path}.1"):
        with contextlib.suppress(FileNotFoundError), untrusted_files.open_regular_file(name) as file:
            lines = reversed(file.read().split(b"\n"))
            entries = (entry for line in lines if line and (entry := _parse_entry(line)))
            found += itertools.islice(entries, limit - len(found))
    return found


def _read_lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines from the last one on, reading ten times more of the file at each step."""
    size, piece = os.fstat(file.fileno()).st_size, _FIRST_PIECE
    while True:
        start = max(0, size - piece)
        file.seek(start)
        # The first line of a piece may be cut. Then it is not valid JSON, and is read again with the next piece.
        yield from reversed(file.read(size - start).split(b"\n"))
        if start == 0:
            return
        piece *= 10


def _parse_run(line: bytes) -> PastRun | None:
    from datetime import datetime  # noqa: PLC0415  # a run only writes the history

    try:
        entry = json.loads(line)
        when = datetime.fromisoformat(entry["when"])
        return PastRun(int(when.timestamp()), *(str(entry[key]) for key in ("why", "outcome", "words")))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _parse_entry(line: bytes) -> dict[str, Any] | None:
    run = _parse_run(line)
    if run is None:
        return None
    entry = json.loads(line)
    added, removed = (_list_texts(entry.get(key)) for key in ("added", "removed"))
    return {
        **run._asdict(),
        "reloaded": entry.get("reloaded") is True,
        "ms": entry["ms"] if isinstance(entry.get("ms"), int) else None,
        "added": added[:_LISTED_LINES],
        "removed": removed[:_LISTED_LINES],
        "added_count": len(added),
        "removed_count": len(removed),
    }


def _list_texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


class Damaged(ValueError):
    """The content of members.json is not a membership."""


def serialize_membership(membership: Membership) -> bytes:
    """Return membership as one JSON object."""
    table = as_table(membership.members)
    state = {
        "version": 1,
        "clocks": dict(membership.clocks),
        "folded": sorted(membership.applied_events),
        "missed": dict(membership.missed),
        "marks": membership.marks,
        "met": membership.peers_asked_at,
        "removals": {where: dict(nodes) for where, nodes in membership.removals.items()},
        "members": dict(zip(_COLUMNS, table.columns, strict=True)),
        "more": {name: _serialize_special(member) for name, member in table.special.items()},
    }
    return json.dumps(state, separators=(",", ":")).encode()


def parse_membership(content: bytes) -> Membership:
    """Parse what `serialize_membership` returned. Raises Damaged."""
    try:
        state = json.loads(content)
        clocks, missed = _check_numbers(state["clocks"]), _check_numbers(state.get("missed", {}))
        folded = frozenset(_check_type(str, identity) for identity in _check_type(list, state["folded"]))
        columns = Columns(*(_check_type(list, state["members"][column]) for column in _COLUMNS))
        _validate_columns(columns)
        table = Table(columns, {})
        table.special.update(
            {name: _parse_special(table[name], more) for name, more in _check_type(dict, state["more"]).items()}
        )
        removals = {
            _check_text(where): _check_numbers(nodes)
            for where, nodes in _check_type(dict, state.get("removals", {})).items()
        }
        marks = tuple(
            (_check_number(ltime), _check_number(at)) for ltime, at in _check_type(list, state.get("marks", []))
        )
        return Membership(table, clocks, folded, missed, removals, marks, _check_number(state.get("met", 0)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise Damaged(f"is damaged ({type(error).__name__}: {error})") from error


def _validate_columns(columns: Columns) -> None:
    """Check whole columns at a time. Raises ValueError, TypeError where one holds what lbagent never writes."""
    names, addresses, roles, statuses, changed = columns
    if len({len(column) for column in columns}) != 1:
        raise ValueError("the columns differ in length")
    if not set(map(type, set(roles))) <= {str} or not set(map(type, changed)) <= {int}:
        raise TypeError("a column holds a value of the wrong type")
    if not set(statuses) <= STATUSES or len(set(names)) < len(names):
        raise ValueError("a status is unknown, or a name is listed twice")
    if changed and not 0 <= min(changed) <= max(changed) < _NUMBER_LIMIT:
        raise ValueError("a time is out of range")
    if "" in addresses and any(not one and status in PRESENT for one, status in zip(addresses, statuses, strict=True)):
        raise ValueError("a member that is present has no address")
    # Both raise TypeError for a value that is not text.
    if not are_names(names) or not are_addresses(
        [one for one in addresses if one != ""] if "" in addresses else addresses
    ):
        raise ValueError("a name or an address is invalid")


def _serialize_special(member: Member) -> dict[str, Any]:
    return {
        "tags": member.tags,
        "pause": member.pause and member.pause._asdict(),
        "ltimes": {clock: _serialize_commands(last) for clock, last in member.last_commands.items()},
        "quarantine": member.quarantine and member.quarantine._asdict(),
        **({"elsewhere": member.elsewhere} if member.elsewhere else {}),
    }


def _serialize_commands(last: LastCommands) -> dict[str, Any]:
    return {
        "ltime": last.ltime,
        "digests": [command.digest for command in last.commands],
        "paused": any(command.pauses for command in last.commands),
        "commands": [command._asdict() for command in last.commands],
    }


def _parse_special(member: Member, more: dict[str, Any]) -> Member:
    pause, quarantine, tags = more["pause"], more["quarantine"], more["tags"]
    found = None
    if pause is not None:
        since, by, reason, until = _check_keys(pause, since=int, by=str, reason=str, until=(int, type(None)))
        found = Pause(_check_number(since), by, reason, until if until is None else _check_number(until))
    refused = None
    if quarantine is not None:
        since, reason, key = _check_keys(quarantine, since=int, reason=str, key=str)
        refused = Quarantine(_check_number(since), reason, key)
    rows = _check_type(dict, more["ltimes"])
    return member._replace(
        tags=None
        if tags is None
        else {_check_type(str, tag): _check_type(str, value) for tag, value in _check_type(dict, tags).items()},
        pause=found,
        last_commands={
            _check_type(str, clock): _parse_commands(row, clock, rows, found) for clock, row in rows.items()
        },
        quarantine=refused,
        elsewhere=tuple(map(_check_address, _check_type(list, more.get("elsewhere", [])))),
    )


def _parse_commands(row: dict[str, Any], clock: str, rows: dict[str, Any], pause: Pause | None) -> LastCommands:
    ltime, digests, paused = _check_keys(row, ltime=int, digests=list, paused=bool)
    if "commands" in row:
        commands = tuple(_parse_command(command) for command in _check_type(list, row["commands"]))
        if not commands or len({command.digest for command in commands}) < len(commands):
            raise ValueError("a clock has no command, or the same one twice")
        return LastCommands(_check_number(ltime), tuple(sorted(commands)))
    # The format of an older version: one pause for all clocks, and only the LTime of a pause that has ended.
    until = (pause.until if pause else 0) if paused else None
    after = {other: _check_number(_check_keys(one, ltime=int)[0]) for other, one in rows.items() if other != clock}
    # Keep what the older version decided: the pause in effect came last, or otherwise the command that ended it.
    last = tuple(sorted(after.items())) if paused == (pause is not None) else ()
    known = sorted(set(map(_check_text, digests))) or [""]
    return LastCommands(
        _check_number(ltime),
        tuple(PauseCommand(one, paused, until, last, "", pause.since if pause else 0) for one in known),
    )


def _parse_command(row: dict[str, Any]) -> PauseCommand:
    digest, pauses, until, after, address, at = _check_keys(
        row, digest=str, pauses=bool, until=(int, type(None)), after=list, address=str, at=int
    )
    pairs = tuple((_check_text(clock), _check_number(ltime)) for clock, ltime in after)
    end = until if until is None else _check_number(until)
    return PauseCommand(digest, pauses, end, pairs, _check_address(address) if address else "", _check_number(at))


def _check_numbers(row: dict[str, Any]) -> dict[str, int]:
    return {_check_text(name): _check_number(number) for name, number in _check_type(dict, row).items()}


def _check_number(value: Any) -> int:  # noqa: ANN401  # any JSON value
    number: int = _check_type(int, value)
    if not 0 <= number < _NUMBER_LIMIT:
        raise ValueError(f"{str(number)[:40]} is out of range")
    return number


def _check_text(value: Any) -> str:  # noqa: ANN401  # as above
    text: str = _check_type(str, value)
    return text


def _check_address(value: Any) -> str:  # noqa: ANN401  # as above
    if canonical_address(_check_text(value)) != value:
        raise ValueError(f"{value[:60]!r} is not an address")
    return _check_text(value)


def _check_keys(row: dict[str, Any], **kinds: type[Any] | tuple[type[Any], ...]) -> list[Any]:
    return [_check_type(kind, _check_type(dict, row)[key]) for key, kind in kinds.items()]


def _check_type(kind: type[Any] | tuple[type[Any], ...], value: Any) -> Any:  # noqa: ANN401  # as above
    if type(value) not in (kind if isinstance(kind, tuple) else (kind,)):
        raise TypeError(f"{str(value)[:60]!r} has the wrong type")
    return value
