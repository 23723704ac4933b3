"""Talking to one worker over its stats socket: who answers is made sure of, and each answer belongs to its command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lbagent.haproxy import runtime, servers
from lbagent.haproxy.process import Worker
from lbagent.haproxy.roster import Key
from lbagent.haproxy.servers import State

_ASK = 2.0
_SAY = 10.0
"""Seconds for one line of commands; a thousand servers take one."""

_LINE = 32 * 1024
"""Bytes of one line of commands."""

_NOT_YET = "is not that of the newest worker"

_BUFSIZE, _RESERVE = 16384, 1024
"""Of tune.bufsize, the latter is never to be had; a command that does not fit is never answered."""


class Unspoken(Exception):
    """Why HAProxy cannot be sent anything."""

    def __init__(self, words: str, *, passing: bool = False) -> None:
        """`passing` says that it may be over in a moment: a new worker does not answer yet."""
        super().__init__(words)
        self.passing = passing


class Conversation:
    """A socket through which this worker takes changes."""

    def __init__(self, address: str, worker: Worker, limit: int) -> None:
        """`limit` is in bytes of one command."""
        self._address, self._worker, self._limit = address, worker, limit
        self.trouble: list[str] = []
        """Why something could not be said, in words."""

    def say(self, commands: Sequence[str]) -> list[str | None]:
        """The answer to each command, in order; None where none came, or not from this worker."""
        found: list[str | None] = []
        for batch in self._batches(commands):
            found += self._said(batch) if batch else [None]
        return found

    def states(self) -> Mapping[Key, State]:
        """Every server that the worker has. Raises Unspoken."""
        [answer] = self.say(["show servers state"])
        try:
            return servers.states(answer or "")
        except ValueError as error:
            raise Unspoken("; ".join([*self.trouble, f"`show servers state` {error}"])) from error

    def _batches(self, commands: Sequence[str]) -> Iterator[list[str]]:
        """Lines' worth of commands; an empty one for a command that is too long to be said."""
        batch: list[str] = []
        size = 0
        for command in commands:
            length = len(command.encode()) + 1
            if batch and (size + length > _LINE or length > self._limit):
                yield batch
                batch, size = [], 0
            if length > self._limit:
                self.trouble.append(f"a command of {length} bytes is too long to be said")
                yield []
            else:
                batch.append(command)
                size += length
        if batch:
            yield batch

    def _said(self, batch: list[str]) -> list[str | None]:
        try:
            # Whoever answers says first who it is: a reload may have come between.
            text, why = runtime.heard(self._address, ";".join(["show info", *batch]), _SAY)
            info, *found = runtime.answers(text) or [""]
            if why and not info:
                raise why
        except OSError as error:
            self.trouble.append(words(self._address, error))
            return [None] * len(batch)
        pid = runtime.worker(runtime.facts(info))
        if pid != self._worker.pid:
            self.trouble.append(f"{self._address} was answered by process {pid}, not by worker {self._worker.pid}")
            return [None] * len(batch)
        if why or len(found) != len(batch):
            self.trouble.append(f"{len(found)} of {len(batch)} commands were answered: {why or 'the rest was not'}")
        return [*found[: len(batch)], *[None] * (len(batch) - len(found))]


def opened(settings: Sequence[Sequence[str]], worker: Worker) -> Conversation:
    """The first socket of `global` through which this very worker takes changes. Raises Unspoken."""
    sizes = [found[1] for found in settings if found[:1] == ["tune.bufsize"] and len(found) > 1]
    bufsize = int(sizes[-1]) if sizes and sizes[-1].isdigit() else _BUFSIZE
    reasons = []
    for address in runtime.sockets(settings):
        why = _against(address, worker)
        if why is None:
            return Conversation(address, worker, min(runtime.COMMAND_LIMIT, max(bufsize - _RESERVE, 0)))
        reasons.append(why)
    passing = any(_NOT_YET in why or "no answer in time" in why or "half an answer" in why for why in reasons)
    raise Unspoken("; ".join(reasons) or "haproxy.cfg has no `stats socket … level admin`", passing=passing)


def _against(address: str, worker: Worker) -> str | None:
    try:
        level, info = runtime.answers(runtime.ask(address, "show cli level;show info", _ASK))
    except ValueError:
        return f"{address}: half an answer"
    except OSError as error:
        return words(address, error)
    if level != "admin":
        return f"{address}: is of `level {level}`, not `level admin`"
    if runtime.worker(runtime.facts(info)) != worker.pid:
        return f"{address}: {_NOT_YET}, {worker.pid}, or that one is stopping"
    return None


def words(address: str, error: OSError) -> str:
    """What is wrong with a socket: nobody there, not allowed, too slow, or cut off half-way."""
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            why = "nobody listens"
        case PermissionError():
            why = "permission denied"
        case TimeoutError():
            why = "no answer in time"
        case runtime.Half() | ConnectionResetError() | BrokenPipeError():
            why = "half an answer"
        case _:
            why = error.strerror or str(error)
    return f"{address}: {why}"
