"""HAProxy's stats sockets: their addresses in `global`, single commands, and sessions with one worker.

A session verifies that this worker answers, and matches each answer to its command. Protocol: HAProxy management
manual, section 9.3 "Unix Socket commands".
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from lbagent.haproxy.config import Key
from lbagent.haproxy.runtime import state
from lbagent.haproxy.runtime.state import ServerState
from lbagent.system import processes

_Parsed = TypeVar("_Parsed")

COMMAND_LIMIT = 8 * 1024
"""Maximum bytes of one command. One longer than tune.bufsize is never answered and blocks its session."""

_SUN_PATH = 108
"""Size of a Unix socket address in bytes."""

_ANSWER_LIMIT = 64 * 1024 * 1024

_QUERY_TIMEOUT = 2.0
_SEND_TIMEOUT = 10.0
"""Seconds to wait for one line of commands; a thousand servers take one."""

_LINE_LIMIT = 32 * 1024
"""Maximum bytes of one line of commands, if tune.bufsize allows: HAProxy 3.1 and later reject a longer one."""

_BUFSIZE, _RESERVE = 16384, 1024
"""Default of tune.bufsize, and its part that is never available; a command that does not fit is never answered."""


_SEVERITY = re.compile(r"^\[(?:[0-7]|emerg|alert|crit|err|warning|notice|info|debug)\]: ", re.MULTILINE)
"""What a stats socket with `severity-output` puts before each message."""

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
        [answer] = self.send([state.STATES_COMMAND])
        try:
            return state.parse_states(answer or "")
        except ValueError as error:
            raise SessionError("; ".join([*self.problems, f"`show servers state` {error}"])) from error

    def fetch_sessions(self) -> Mapping[Key, int]:
        """Return the open sessions of every server, as far as HAProxy reports them. Raises SessionError."""
        [answer] = self.send([state.STATS_COMMAND])
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
            text, why = exchange(self._address, ";".join([_IDENTIFY, *batch]), _SEND_TIMEOUT)
            info, *found = split_answers(text) or [""]
            if why and not info:
                raise why
        except OSError as error:
            self.problems.append(explain_error(self._address, error))
            return [None] * len(batch)
        pid = parse_worker_pid(parse_info(info))
        if pid != self._worker.pid:
            self.problems.append(f"{self._address} was answered by process {pid}, not by worker {self._worker.pid}")
            return [None] * len(batch)
        if why or len(found) != len(batch):
            self.problems.append(f"{len(found)} of {len(batch)} commands were answered: {why or 'the rest was not'}")
        return [*found[: len(batch)], *[None] * (len(batch) - len(found))]


def open_session(settings: GlobalLines, worker: Worker) -> Session:
    """Return a session on the first socket of `global` where this worker accepts changes. Raises SessionError."""
    sizes = [found[1] for found in settings if found[:1] == ["tune.bufsize"] and len(found) > 1]
    bufsize = int(sizes[-1]) if sizes and sizes[-1].isdigit() else _BUFSIZE
    reasons = []
    room = max(bufsize - _RESERVE, 0)
    for address in list_stats_sockets(settings):
        try:
            return Session(
                address,
                worker,
                min(COMMAND_LIMIT, room),
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
        level, info = split_answers(ask(address, "show cli level;show info", _QUERY_TIMEOUT))
    except ValueError:
        raise SessionError(f"{address}: truncated answer", is_temporary=True) from None
    except OSError as error:
        words = explain_error(address, error)
        raise SessionError(words, is_temporary=words.endswith(("no answer in time", "truncated answer"))) from error
    if level != "admin":
        raise SessionError(f"{address}: has `level {level}`, not `level admin`")
    facts = parse_info(info)
    if parse_worker_pid(facts) != worker.pid:
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
        case TruncatedAnswer() | ConnectionResetError() | BrokenPipeError():
            why = "truncated answer"
        case _:
            why = error.strerror or str(error)
    return f"{address}: {why}"


class Worker(NamedTuple):
    """The serving process of HAProxy, identified by pid and start time."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return processes.is_running(*self)


GlobalLines = Sequence[Sequence[str]]
"""The words of each line of `global`."""


class TruncatedAnswer(OSError):
    """HAProxy closed the connection in the middle of its answer."""


def list_stats_sockets(settings: GlobalLines) -> list[str]:
    """Return the addresses of the stats sockets in `settings`."""
    return [words[2] for words in settings if len(words) > 2 and words[:2] == ["stats", "socket"]]  # noqa: PLR2004


def ask(address: str, command: str, timeout: float) -> str:
    """Send one command and return the answer. Raises OSError (ConnectionRefusedError if nothing listens).

    `timeout` is in seconds.
    """
    answer, why = exchange(address, command, timeout)
    if why:
        raise why
    return answer


def ask_any(settings: GlobalLines, command: str, parse: Callable[[str], _Parsed], timeout: float) -> _Parsed | None:
    """Return the answer of the first stats socket that gives one, parsed; None if none does. `timeout` is in seconds.

    A text for which `parse` raises a ValueError is ignored.
    """
    for address in list_stats_sockets(settings):
        with contextlib.suppress(OSError, ValueError):
            return parse(ask(address, command, timeout))
    return None


def exchange(address: str, line: str, timeout: float) -> tuple[str, OSError | None]:
    """Send one line of commands; return the answer, and the error that cut it short.

    `timeout` is in seconds. Raises OSError if the line cannot be sent.
    """
    family, name = _parse_address(address)
    answer = bytearray()
    deadline = time.monotonic() + timeout
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(name)
        # HAProxy silently drops a command without its newline.
        connection.sendall(f"{line}\n".encode())
        try:
            while len(answer) < _ANSWER_LIMIT and (piece := connection.recv(1 << 16)):
                answer += piece
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
        except OSError as error:
            return _decode_answer(answer), error
    return _decode_answer(answer), None if answer.endswith(b"\n") else TruncatedAnswer("the answer was cut off")


def _decode_answer(answer: bytearray) -> str:
    text = answer.decode("utf-8", "replace")
    return _SEVERITY.sub("", text) if "]: " in text else text


def split_answers(text: str) -> list[str]:
    """Split the output of a line of commands into answers; each ends with an empty line."""
    found: list[str] = []
    lines: list[str] = []
    for line in text.split("\n")[:-1]:
        if line:
            lines.append(line)
        else:
            found.append("\n".join(lines))
            lines = []
    return found


def parse_info(answer: str) -> dict[str, str]:
    """Parse the answer to `show info` into names and values."""
    return dict(line.partition(": ")[::2] for line in answer.splitlines())


def parse_worker_pid(info: dict[str, str]) -> int | None:
    """Return the pid of the worker in an answer to `show info`; None if it is stopping."""
    pid = info.get("Pid", "")
    return int(pid) if pid.isdigit() and info.get("Stopping", "0") == "0" else None


def fetch_worker_pid(address: str, timeout: float = 1.0) -> int | None:
    """Return the pid of the worker that answers on the socket; None if it is stopping. Raises OSError."""
    return parse_worker_pid(parse_info(ask(address, "show info", timeout)))


def _parse_address(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    kind, separator, rest = address.partition("@")
    if not separator:
        kind, rest = "unix" if address.startswith("/") else "ipv4", address
    if kind == "unix":
        return socket.AF_UNIX, rest
    if kind == "abns":
        # HAProxy binds the whole of sun_path, padded with zeros.
        return socket.AF_UNIX, f"\0{rest}".ljust(_SUN_PATH, "\0")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        raise OSError(f"stats socket {address!r} has an unsupported address")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return family, (host.strip("[]") or "127.0.0.1", int(port))
