"""The HAProxy that runs this haproxy.cfg, found among all others: by the file it reads, never "the first one"."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from lbagent.errors import TryAgain
from lbagent.haproxy.runtime import socket
from lbagent.system import processes, untrusted_files
from lbagent.system.processes import Process
from lbagent.system.tuples import NamedTuple

_WITH_VALUE = frozenset(("-C", "-L", "-N", "-S", "-f", "-m", "-n", "-p", "-x"))
"""The options of haproxy that take the next word."""

_PARSING = 2.0
"""Seconds a worker may have begun to read its file before it was forked, and one more for each MB."""


class Worker(NamedTuple):
    """The process that serves, named for good."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return processes.is_running(*self)


class Running(NamedTuple):
    """A running HAProxy: its main process (the master, where there is one) and the worker that serves."""

    main: Process
    worker: Process
    is_master: bool
    old: int = 0
    """Workers of before, that go on until their last connection ends."""

    @property
    def environ(self) -> dict[str, str]:
        """What it was started with, without what HAProxy sets for itself."""
        return _variables(self.main.environ)

    @property
    def is_up(self) -> bool:
        """Whether its worker serves: a master that has just been started has none yet."""
        return is_up(self.worker) and not (self.is_master and self.worker is self.main)

    def read_since(self, changed: float, size: int) -> bool:
        """Whether its worker certainly began to read a file of `size` bytes after the moment `changed`."""
        return self.worker.born > changed + _PARSING + size / 1e6


def find(config: Sequence[str], settings: Sequence[Sequence[str]], known: Running | None = None) -> Running | None:
    """The HAProxy that was started with one of the files or folders in `config`; `settings` is its `global`.

    Whose master is `known` and lives is not looked for. Raises TryAgain where two masters run the same file and nothing
    tells which is meant.
    """
    if known and (now := _now(known, config)):
        return now
    candidates = processes.find_processes("haproxy")
    pids = {one.pid for one in candidates}
    roots = [one for one in candidates if one.parent not in pids and _serves(one, config)]
    declared = any(words[:1] == ["master-worker"] for words in settings)
    found = []
    for root in roots:
        workers = [one for one in candidates if one.parent == root.pid]
        is_master = bool(workers) or declared or bool({"-W", "-Ws"} & set(root.argv))
        found.append(Running(root, _serving(workers) or root, is_master, max(len(workers) - 1, 0)))
    if len(found) <= 1:
        return next(iter(found), None)
    chosen = _choose(found, settings)
    return chosen if chosen.is_master else chosen._replace(old=sum(not one.is_master for one in found) - 1)


def environment(config: Sequence[str]) -> dict[str, str] | None:
    """The variables that the HAProxy of these files reads them with; those of this process where none runs.

    None where they may not be read, or differ between several.
    """
    candidates = processes.find_processes("haproxy")
    pids = {one.pid for one in candidates}
    found = [_variables(one.environ) for one in candidates if one.parent not in pids and _serves(one, config)]
    if not found:
        return {key: value for key, value in os.environ.items() if not key.startswith("SERF_")}
    return found[0] if found[0] and all(one == found[0] for one in found) else None


def shown_not_to_run(config: Sequence[str], settings: Sequence[Sequence[str]]) -> bool:
    """Whether all that could show a running HAProxy shows none: no process was found, so ask the rest.

    The pidfile may name a HAProxy that reads another file of this name, in a container: that one is a stranger.
    """
    if not processes.can_read_processes():
        return False
    pid = _pidfile(settings)
    named = processes.read_process(pid) if pid else None
    if named is not None and named.alive and named.program.startswith("haproxy") and not _is_stranger(named, config):
        return False
    return not any(_answers(address) for address in socket.sockets(settings))


def config_files(argv: Sequence[str]) -> list[str]:
    """What a haproxy command line gives after `-f` and `--`."""
    given = [argv[at + 1] for at, word in enumerate(argv[:-1]) if word == "-f"]
    return given + (list(argv[argv.index("--") + 1 :]) if "--" in argv else [])


def only_looks(argv: Sequence[str]) -> bool:
    """Whether a haproxy command line checks files or tells a version (`-c`, `-cc`, `-v`, `-vv`), and serves nothing."""
    words = iter(argv[1:])
    for word in words:
        if word == "--":
            return False
        if word in _WITH_VALUE:
            next(words, None)
        elif word.startswith(("-c", "-v")):
            return True
    return False


def _variables(environ: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if not key.startswith("HAPROXY_")}


def _serves(process: Process, config: Sequence[str]) -> bool:
    """Whether it was started with one of the files or folders in `config`, these very ones."""
    return any(process.sees(path, ours) for path in _given(process) for ours in config)


def _is_stranger(process: Process, config: Sequence[str]) -> bool:
    """Whether it was started with files of the same names that are other ones."""
    ours = {os.path.abspath(name) for name in config}
    return bool(ours & {os.path.abspath(path) for path in _given(process)}) and not _serves(process, config)


def _given(process: Process) -> list[str]:
    argv = process.argv
    base = process.cwd or "/"
    return [] if only_looks(argv) else [os.path.join(base, name) for name in config_files(argv)]


def _serving(workers: Sequence[Process]) -> Process | None:
    """The newest process that serves, or else the newest that is starting."""
    newest = sorted(workers, key=lambda one: (one.started, one.pid), reverse=True)
    return next((one for one in newest if is_up(one)), newest[0] if newest else None)


def is_up(process: Process) -> bool:
    """Whether a process of HAProxy that serves, not a master, is past its start: it has read its file and is bound.

    On every version the handlers of SIGTTIN and SIGTTOU come last. Since 3.1 a new worker is there before it reads its
    file; while it tries to bind, for two seconds, it is younger than the one that serves.
    """
    return process.handles(signal.SIGTTOU)


def is_reloading(master: Process) -> bool:
    """Whether a master is in the midst of a reload: it blocks signals until its new worker serves, or has failed.

    That is so on every version. Where a script starts HAProxy, the shell unblocks them before the new program has a
    handler.
    """
    return master.holds_back(signal.SIGUSR2) or not master.handles(signal.SIGUSR2)


def _now(known: Running, config: Sequence[str]) -> Running | None:
    """The same master with the workers it has now; None where that has to be looked for."""
    main = processes.read_process(known.main.pid)
    if main is None or not main.alive or main.named != known.main.named or not _serves(main, config):
        return None
    found = [one for pid in processes.find_children(main.pid) if (one := processes.read_process(pid)) is not None]
    workers = [one for one in found if one.alive and one.program.startswith("haproxy")]
    serving = _serving(workers)
    return serving and Running(main, serving, is_master=True, old=len(workers) - 1)


def _choose(found: list[Running], settings: Sequence[Sequence[str]]) -> Running:
    for pid in _witnesses(found, settings):
        for one in found:
            if pid in (one.main.pid, one.worker.pid):
                return one
    masters = [one for one in found if one.is_master]
    if len(masters) > 1:
        pids = ", ".join(str(one.main.pid) for one in masters)
        raise TryAgain(f"several HAProxy masters run this haproxy.cfg (pids {pids}): give it a stats socket of its own")
    if masters:
        return masters[0]
    # Without a master, old processes stay in the table until their last connection ends.
    newest = _serving([one.main for one in found])
    return next(one for one in found if one.main is newest)


def _witnesses(found: list[Running], settings: Sequence[Sequence[str]]) -> list[int]:
    pids = [_pidfile(settings), *(_pidfile([["pidfile", _after(one.main.argv, "-p")]]) for one in found)]
    for address in socket.sockets(settings):
        try:
            pids.append(socket.worker_pid(address))
        except OSError:
            continue
    return [pid for pid in pids if pid]


def _after(argv: Sequence[str], option: str) -> str:
    return next((argv[at + 1] for at, word in enumerate(argv[:-1]) if word == option), "")


def _pidfile(settings: Sequence[Sequence[str]]) -> int | None:
    path = next((words[1] for words in settings if words[0] == "pidfile" and len(words) > 1), "")
    try:
        text = untrusted_files.read_untrusted_file(path, 64).content.split()
    except OSError:
        return None
    return int(text[0]) if text and text[0].isdigit() else None


def _answers(address: str) -> bool:
    try:
        socket.ask(address, "show info", 1.0)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True
    return True
