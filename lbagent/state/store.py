"""What is remembered in the state directory: members.json, served.json, history.jsonl, last.json; and metrics.prom."""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Mapping
from types import MappingProxyType

from lbagent import metrics as metrics_module
from lbagent.membership import storage
from lbagent.membership.model import Membership
from lbagent.metrics import Last
from lbagent.state import files
from lbagent.state.paths import Paths
from lbagent.system import untrusted_files
from lbagent.system.tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from lbagent.membership.peers import Peers

HISTORY_LIMIT = 4 * 1024 * 1024
"""Bytes after which history.jsonl becomes history.jsonl.1."""


_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading damaged JSON may end in: 1e999 is no int, a hundred thousand brackets are too deep."""


class Failure(NamedTuple):
    """A reload that failed, and what has to change before it is tried again."""

    at: int
    times: int
    key: str
    """Of the operator's text and roles.yml: when they change, so may the result."""
    words: str


class Left(NamedTuple):
    """The servers that were put into maintenance on the stats socket, and stay there until a reload."""

    worker: tuple[int, int] | None = None
    """Pid and start time of the worker that has them so."""
    lines: Mapping[tuple[str, str], str] = MappingProxyType({})
    """By proxy and server, the line that made it; nothing where that is not known."""


class Served(NamedTuple):
    """What HAProxy last confirmed."""

    digest: str = ""
    """Of the managed lines."""
    worker: tuple[int, int] | None = None
    """Pid and start time of the worker that confirmed them; None when HAProxy did not run."""
    failure: Failure | None = None
    left: Left = Left()
    complete: bool = True
    """Whether `left` has all of them: False after a run that could note none, as its disk was full."""


class Store:
    """A state directory."""

    def __init__(self, paths: Paths) -> None:
        """The state at `paths`."""
        self.paths = paths

    def load_membership(self) -> Membership | None:
        """What is remembered; None where nothing is. Raises memory.Damaged, OSError."""
        try:
            return storage.parse_membership(untrusted_files.content(self.paths.members))
        except FileNotFoundError:
            return None

    def set_damaged_aside(self) -> str:
        """Keep a members.json that cannot be used under another name, and say which. Raises OSError."""
        # To the nanosecond: a second one within the same second must not replace the first.
        aside = f"{self.paths.members}.damaged-{time.strftime('%Y%m%dT%H%M%S')}.{time.time_ns() % 10**9:09}"
        os.rename(self.paths.members, aside)
        return aside

    def save_membership(self, membership: Membership) -> None:
        """Write members.json whole and durably. Raises OSError."""
        files.replace_file(self.paths.members, storage.serialize_membership(membership))

    def load_served(self) -> Served:
        """What HAProxy last confirmed; nothing where that is not known."""
        complete = not os.path.lexists(self._incomplete)
        served = self._read_served(self.paths.served)
        if served is None and not complete:
            served = self._read_served(self._incomplete)
        return (served or Served())._replace(complete=complete)

    @property
    def _incomplete(self) -> str:
        return f"{self.paths.served}.incomplete"

    def _read_served(self, path: str) -> Served | None:
        try:
            found = json.loads(untrusted_files.content(path))
            failure = found["failure"]
            return Served(
                str(found["digest"]),
                _worker(found["worker"]),
                Failure(int(failure["at"]), int(failure["times"]), str(failure["key"]), str(failure["words"]))
                if failure
                else None,
                _left(found.get("left")),
            )
        except (OSError, *_DAMAGE):
            return None

    def distrust(self) -> None:
        """Note that HAProxy was sent what served.json does not have, by a new name for it: a full disk lets that be."""
        with contextlib.suppress(OSError):
            os.rename(self.paths.served, self._incomplete)

    def save_served(self, served: Served) -> None:
        """Write served.json. Raises OSError."""
        content: dict[str, object] = {"digest": served.digest, "worker": _named(served.worker)}
        content["failure"] = served.failure and served.failure._asdict()
        if served.left.lines:
            lines = {"/".join(key): line for key, line in served.left.lines.items()}
            content["left"] = {"worker": _named(served.left.worker), "servers": lines}
        files.replace_file(self.paths.served, json.dumps(content).encode())
        if served.complete:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._incomplete)

    def load_roles_cache(self, key: str) -> Any:  # noqa: ANN401  # JSON
        """What was cached under `key`, None where nothing was."""
        try:
            found = json.loads(untrusted_files.content(self.paths.roles))
            return (
                json.loads(found["state"]) if found["key"] == key and found["check"] == _check(found["state"]) else None
            )
        except (OSError, *_DAMAGE):
            return None

    def save_roles_cache(self, key: str, state: Any) -> None:  # noqa: ANN401  # JSON
        """Keep `state` for the next run, as well as can be."""
        with contextlib.suppress(OSError):
            text = json.dumps(state)
            files.replace_file(
                self.paths.roles, json.dumps({"key": key, "check": _check(text), "state": text}).encode()
            )

    def append_history(self, entry: Mapping[str, object]) -> None:
        """Add a line to history.jsonl, as well as can be: it never changes an outcome."""
        path = self.paths.history
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(OSError):
            if os.path.exists(path) and os.path.getsize(path) > HISTORY_LIMIT:
                os.replace(path, f"{path}.1")
            with open(path, "a", encoding="utf-8", opener=_private) as file:
                file.write(json.dumps({"when": when, **entry}) + "\n")

    def load_last(self) -> Last:
        """When what last happened; nothing where that is not known."""
        try:
            return metrics_module.load(untrusted_files.content(self.paths.last))
        except (OSError, *_DAMAGE):
            return Last()

    def keep(self, when: Last) -> None:
        """Write last.json, as well as can be."""
        with contextlib.suppress(OSError):
            files.replace_file(self.paths.last, metrics_module.dump(when), durable=False)

    def peers(self) -> Peers | None:
        """The other load balancers, as the last sync saw them; None where that is not known."""
        from lbagent.membership import peers  # noqa: PLC0415  # no event needs it

        try:
            with open(self.paths.peers, "rb") as file:
                return peers.load(file.read())
        except (OSError, *_DAMAGE):
            return None

    def keep_peers(self, found: Peers) -> None:
        """Write peers.json, as well as can be."""
        from lbagent.membership import peers  # noqa: PLC0415  # no event needs it

        with contextlib.suppress(OSError):
            files.replace_file(self.paths.peers, peers.dump(found), durable=False)

    def publish(self, metrics: bytes) -> None:
        """Write metrics.prom, for everybody to read. Raises OSError."""
        files.replace_file(self.paths.metrics, metrics, 0o644, durable=False)


def _check(text: str) -> int:
    """A checksum: what a bad disk made of roles.json is not a roles.yml that was checked once."""
    return zlib.crc32(text.encode())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)


def _named(worker: tuple[int, int] | None) -> dict[str, int] | None:
    return worker and {"pid": worker[0], "started": worker[1]}


def _worker(found: Mapping[str, Any] | None) -> tuple[int, int] | None:
    return (int(found["pid"]), int(found["started"])) if found else None


def _left(found: Mapping[str, Any] | None) -> Left:
    if not found:  # an older lbagent knew of none
        return Left()
    lines = {(key.partition("/")[0], key.partition("/")[2]): str(line) for key, line in found["servers"].items()}
    return Left(_worker(found["worker"]), lines)
