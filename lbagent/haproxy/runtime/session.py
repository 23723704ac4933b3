"""Talking to one worker over its stats socket: who answers is made sure of, and each answer belongs to its command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lbagent.haproxy.config import Key
from lbagent.haproxy.process import Worker
from lbagent.haproxy.runtime import socket, state
from lbagent.haproxy.runtime.state import ServerState

_ASK = 2.0
_SAY = 10.0
"""Seconds for one line of commands; a thousand servers take one."""

_LINE = 32 * 1024
"""Bytes of one line of commands, where tune.bufsize has room for it: HAProxy 3.1 and later refuse a longer one."""

_BUFSIZE, _RESERVE = 16384, 1024
"""Of tune.bufsize, the latter is never to be had; a command that does not fit is never answered."""


_WHO = "show info"
"""What each line begins with: a reload may have come between."""


class SessionError(Exception):
    """Why HAProxy cannot be sent anything."""

    def __init__(self, words: str, *, passing: bool = False) -> None:
        """`passing` says that it may be over in a moment: a new worker does not answer yet."""
        super().__init__(words)
        self.passing = passing


class Session:
    """A socket through which this worker takes changes."""

    def __init__(self, address: str, worker: Worker, limit: int, version: str = "", line: int = _LINE) -> None:
        """`limit` and `line` are in bytes, of one command and of a line of them; `version` is HAProxy's own."""
        self._address, self._worker, self._limit, self._line = address, worker, limit, line
        self.version = version
        self.problems: list[str] = []
        """Why something could not be said, in words."""

    def send(self, commands: Sequence[str]) -> list[str | None]:
        """The answer to each command, in order; None where none came, or not from this worker."""
        found: list[str | None] = []
        for batch in self._batches(commands):
            found += self._said(batch) if batch else [None]
        return found

    def fetch_states(self) -> Mapping[Key, ServerState]:
        """Every server that the worker has. Raises Unspoken."""
        [answer] = self.send(["show servers state"])
        try:
            return state.parse_states(answer or "")
        except ValueError as error:
            raise SessionError("; ".join([*self.problems, f"`show servers state` {error}"])) from error

    def fetch_sessions(self) -> Mapping[Key, int]:
        """The open sessions of every server, as far as HAProxy says. Raises Unspoken."""
        [answer] = self.send([state.COMMAND])
        try:
            found = state.parse_stats(answer or "")
        except ValueError as error:
            raise SessionError(str(error)) from error
        return {key: one.sessions for key, one in found.items() if one.sessions is not None}

    def _batches(self, commands: Sequence[str]) -> Iterator[list[str]]:
        """Lines' worth of commands; an empty one for a command that is too long to be said."""
        batch: list[str] = []
        size = 0
        for command in commands:
            length = len(command.encode()) + 1
            if batch and (size + length > self._line or length > self._limit):
                yield batch
                batch, size = [], 0
            if length > self._limit:
                self.problems.append(f"a command of {length} bytes is too long to be said")
                yield []
            else:
                batch.append(command)
                size += length
        if batch:
            yield batch

    def _said(self, batch: list[str]) -> list[str | None]:
        try:
            # Whoever answers says first who it is: a reload may have come between.
            text, why = socket.exchange(self._address, ";".join([_WHO, *batch]), _SAY)
            info, *found = socket.split_answers(text) or [""]
            if why and not info:
                raise why
        except OSError as error:
            self.problems.append(explain_error(self._address, error))
            return [None] * len(batch)
        pid = socket.parse_worker_pid(socket.parse_info(info))
        if pid != self._worker.pid:
            self.problems.append(f"{self._address} was answered by process {pid}, not by worker {self._worker.pid}")
            return [None] * len(batch)
        if why or len(found) != len(batch):
            self.problems.append(f"{len(found)} of {len(batch)} commands were answered: {why or 'the rest was not'}")
        return [*found[: len(batch)], *[None] * (len(batch) - len(found))]


def open_session(settings: Sequence[Sequence[str]], worker: Worker) -> Session:
    """The first socket of `global` through which this very worker takes changes. Raises Unspoken."""
    sizes = [found[1] for found in settings if found[:1] == ["tune.bufsize"] and len(found) > 1]
    bufsize = int(sizes[-1]) if sizes and sizes[-1].isdigit() else _BUFSIZE
    reasons = []
    room = max(bufsize - _RESERVE, 0)
    for address in socket.list_stats_sockets(settings):
        try:
            return Session(
                address,
                worker,
                min(socket.COMMAND_LIMIT, room),
                _version(address, worker),
                min(_LINE, max(room - len(_WHO) - 1, 0)),
            )
        except SessionError as error:
            reasons.append(error)
    words = "; ".join(map(str, reasons)) or "haproxy.cfg has no `stats socket … level admin`"
    raise SessionError(words, passing=any(one.passing for one in reasons))


def _version(address: str, worker: Worker) -> str:
    """The version of HAProxy that answers. Raises Unspoken where it is not this worker, or takes no changes."""
    try:
        level, info = socket.split_answers(socket.ask(address, "show cli level;show info", _ASK))
    except ValueError:
        raise SessionError(f"{address}: half an answer", passing=True) from None
    except OSError as error:
        words = explain_error(address, error)
        raise SessionError(words, passing=words.endswith(("no answer in time", "half an answer"))) from error
    if level != "admin":
        raise SessionError(f"{address}: is of `level {level}`, not `level admin`")
    facts = socket.parse_info(info)
    if socket.parse_worker_pid(facts) != worker.pid:
        words = f"{address}: is not that of the newest worker, {worker.pid}, or that one is stopping"
        raise SessionError(words, passing=True)
    return facts.get("Version", "")


def explain_error(address: str, error: OSError) -> str:
    """What is wrong with a socket: nobody there, not allowed, too slow, or cut off half-way."""
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            why = "nobody listens"
        case PermissionError():
            why = "permission denied"
        case TimeoutError():
            why = "no answer in time"
        case socket.TruncatedAnswer() | ConnectionResetError() | BrokenPipeError():
            why = "half an answer"
        case _:
            why = error.strerror or str(error)
    return f"{address}: {why}"
