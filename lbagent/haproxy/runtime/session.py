"""Send commands to one worker through its stats socket; verify that this worker answers.

Each answer is matched to its command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lbagent.haproxy.config import Key
from lbagent.haproxy.process import Worker
from lbagent.haproxy.runtime import socket, state
from lbagent.haproxy.runtime.state import ServerState

_QUERY_TIMEOUT = 2.0
_SEND_TIMEOUT = 10.0
"""Seconds to wait for one line of commands; a thousand servers take one."""

_LINE_LIMIT = 32 * 1024
"""Maximum bytes of one line of commands, if tune.bufsize allows: HAProxy 3.1 and later reject a longer one."""

_BUFSIZE, _RESERVE = 16384, 1024
"""Default of tune.bufsize, and its part that is never available; a command that does not fit is never answered."""


_IDENTIFY = "show info"
"""First command of each line: a reload may have replaced the worker."""


class SessionError(Exception):
    """Why commands cannot be sent to HAProxy."""

    def __init__(self, words: str, *, is_temporary: bool = False) -> None:
        """`is_temporary`: whether it may soon end: a new worker does not answer yet."""
        super().__init__(words)
        self.is_temporary = is_temporary


class Session:
    """A stats socket of one worker."""

    def __init__(self, address: str, worker: Worker, limit: int, version: str = "", line: int = _LINE_LIMIT) -> None:
        """`limit` and `line` are the maximum bytes of a command and of a line; `version` is HAProxy's."""
        self._address, self._worker, self._limit, self._line = address, worker, limit, line
        self.version = version
        self.problems: list[str] = []
        """Messages about commands that could not be sent."""

    def send(self, commands: Sequence[str]) -> list[str | None]:
        """Send commands; return the answer to each, None if there was none, or not from this worker."""
        found: list[str | None] = []
        for batch in self._split_commands(commands):
            found += self._send_batch(batch) if batch else [None]
        return found

    def fetch_states(self) -> Mapping[Key, ServerState]:
        """Return the state of every server of the worker. Raises SessionError."""
        [answer] = self.send(["show servers state"])
        try:
            return state.parse_states(answer or "")
        except ValueError as error:
            raise SessionError("; ".join([*self.problems, f"`show servers state` {error}"])) from error

    def fetch_sessions(self) -> Mapping[Key, int]:
        """Return the open sessions of every server, as far as HAProxy reports them. Raises SessionError."""
        [answer] = self.send([state.COMMAND])
        try:
            found = state.parse_stats(answer or "")
        except ValueError as error:
            raise SessionError(str(error)) from error
        return {key: one.sessions for key, one in found.items() if one.sessions is not None}

    def _split_commands(self, commands: Sequence[str]) -> Iterator[list[str]]:
        """Split commands into lines; an empty list replaces a command that is too long to be sent."""
        batch: list[str] = []
        size = 0
        for command in commands:
            length = len(command.encode()) + 1
            if batch and (size + length > self._line or length > self._limit):
                yield batch
                batch, size = [], 0
            if length > self._limit:
                self.problems.append(f"a command of {length} bytes exceeds the limit of HAProxy")
                yield []
            else:
                batch.append(command)
                size += length
        if batch:
            yield batch

    def _send_batch(self, batch: list[str]) -> list[str | None]:
        try:
            # The first answer identifies the worker: a reload may have replaced it.
            text, why = socket.exchange(self._address, ";".join([_IDENTIFY, *batch]), _SEND_TIMEOUT)
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
    """Return a session on the first socket of `global` where this worker accepts changes. Raises SessionError."""
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
                _fetch_version(address, worker),
                min(_LINE_LIMIT, max(room - len(_IDENTIFY) - 1, 0)),
            )
        except SessionError as error:
            reasons.append(error)
    words = "; ".join(map(str, reasons)) or "haproxy.cfg has no `stats socket … level admin`"
    raise SessionError(words, is_temporary=any(one.is_temporary for one in reasons))


def _fetch_version(address: str, worker: Worker) -> str:
    """Return HAProxy's version. Raises SessionError if another worker answers, or it accepts no changes."""
    try:
        level, info = socket.split_answers(socket.ask(address, "show cli level;show info", _QUERY_TIMEOUT))
    except ValueError:
        raise SessionError(f"{address}: truncated answer", is_temporary=True) from None
    except OSError as error:
        words = explain_error(address, error)
        raise SessionError(words, is_temporary=words.endswith(("no answer in time", "truncated answer"))) from error
    if level != "admin":
        raise SessionError(f"{address}: has `level {level}`, not `level admin`")
    facts = socket.parse_info(info)
    if socket.parse_worker_pid(facts) != worker.pid:
        words = f"{address}: does not belong to the newest worker, {worker.pid}, or that one is stopping"
        raise SessionError(words, is_temporary=True)
    return facts.get("Version", "")


def explain_error(address: str, error: OSError) -> str:
    """Describe an error of a socket: no listener, no permission, timeout, or a truncated answer."""
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            why = "no listener"
        case PermissionError():
            why = "permission denied"
        case TimeoutError():
            why = "no answer in time"
        case socket.TruncatedAnswer() | ConnectionResetError() | BrokenPipeError():
            why = "truncated answer"
        case _:
            why = error.strerror or str(error)
    return f"{address}: {why}"
