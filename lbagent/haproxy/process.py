"""Find the HAProxy process that runs this haproxy.cfg, by the files on its command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import NamedTuple

from lbagent.errors import TryAgain
from lbagent.haproxy.runtime import session
from lbagent.haproxy.runtime.session import GlobalLines
from lbagent.system import processes, untrusted_files
from lbagent.system.processes import Process

_WITH_VALUE = frozenset(("-C", "-L", "-N", "-S", "-f", "-m", "-n", "-p", "-x"))
"""Options of haproxy that take a value (management manual, section 3)."""

_PARSING_TIME = 2.0
"""Seconds between a worker's fork and its read of the file; one more per MB."""


class RunningHaproxy(NamedTuple):
    """A running HAProxy: its main process (the master, if any) and its serving worker."""

    main: Process
    worker: Process
    is_master: bool
    old: int = 0
    """Number of old workers that wait for their last connections."""

    @property
    def environ(self) -> dict[str, str]:
        """Its initial environment, without the variables that HAProxy sets."""
        return _drop_own_variables(self.main.environ)

    @property
    def is_up(self) -> bool:
        """Whether its worker serves. A master that has just started has no worker yet."""
        return is_up(self.worker) and not (self.is_master and self.worker is self.main)

    def has_read_since(self, changed: float, size: int) -> bool:
        """Return whether the worker certainly read a file of `size` bytes after `changed` (epoch seconds)."""
        return self.worker.start_time > changed + _PARSING_TIME + size / 1e6


def find_haproxy(
    config: Sequence[str], settings: GlobalLines, known: RunningHaproxy | None = None
) -> RunningHaproxy | None:
    """Return the HAProxy that was started with a file or directory in `config`; `settings` is its `global`.

    `known` saves the search if its master is alive. Raises TryAgain if two masters run the same file and neither
    pidfile nor stats socket shows which is meant.
    """
    if known and (now := _refresh(known, config)):
        return now
    found = list_haproxys(config, declared=any(words[:1] == ["master-worker"] for words in settings))
    if len(found) <= 1:
        return next(iter(found), None)
    chosen = _choose_by_witnesses(found, settings)
    return chosen if chosen.is_master else chosen._replace(old=sum(not one.is_master for one in found) - 1)


def list_haproxys(config: Sequence[str], *, declared: bool = False) -> list[RunningHaproxy]:
    """Return every HAProxy that was started with a file or directory in `config`.

    `declared`: whether `global` has `master-worker`.
    """
    candidates = processes.find_processes("haproxy")
    pids = {one.pid for one in candidates}
    found = []
    for root in (one for one in candidates if one.parent not in pids and _runs_config(one, config)):
        workers = [one for one in candidates if one.parent == root.pid]
        is_master = bool(workers) or declared or bool({"-W", "-Ws"} & set(root.argv))
        found.append(RunningHaproxy(root, _find_serving_process(workers) or root, is_master, max(len(workers) - 1, 0)))
    return found


def read_own_environ() -> dict[str, str]:
    """Return the variables of this process, without SERF_* variables, whose values others chose."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SERF_")}


def is_shown_not_to_run(config: Sequence[str], settings: GlobalLines) -> bool:
    """Return whether pidfile and stats sockets show no running HAProxy, after no process was found.

    The pidfile may name a HAProxy that reads another file of the same name, in a container; that one is ignored.
    """
    if not processes.can_read_processes():
        return False
    pid = _read_pidfile(settings)
    named = processes.read_process(pid) if pid else None
    if named is not None and named.alive and named.program.startswith("haproxy") and not _is_stranger(named, config):
        return False
    return not any(_is_answering(address) for address in session.list_stats_sockets(settings))


def list_config_files(argv: Sequence[str]) -> list[str]:
    """Return the files and directories after `-f` and `--` on a haproxy command line."""
    given = [argv[at + 1] for at, word in enumerate(argv[:-1]) if word == "-f"]
    return given + (list(argv[argv.index("--") + 1 :]) if "--" in argv else [])


def list_files(path: str) -> list[str]:
    """Return the files that HAProxy loads for this path of a file or directory. Raises OSError."""
    if not os.path.isdir(path):
        return [path]
    # HAProxy loads the non-hidden *.cfg files of a directory in byte order (management manual, section 3, option -f).
    # It ignores directories and special files, and refuses to start with a link to nothing.
    names = sorted(os.fsencode(name) for name in os.listdir(path) if name.endswith(".cfg") and not name.startswith("."))
    found = [os.path.join(path, os.fsdecode(name)) for name in names]
    return [one for one in found if os.path.isfile(one) or not os.path.exists(one)]


def explain_other_files(running: RunningHaproxy, names: Sequence[str]) -> str:
    """Return the files that this HAProxy was started with, as words; empty if they are `names`, in the same order."""
    main = running.main
    given: list[str] = []
    for path in _list_given_files(main):
        ours = main.resolve_path(path)
        try:
            given += [path if one == ours else os.path.join(path, os.path.basename(one)) for one in list_files(ours)]
        except OSError:
            return ""
    if len(given) == len(names) and all(map(main.sees_file, given, names)):
        return ""
    return " ".join(given)


def is_check_only(argv: Sequence[str]) -> bool:
    """Return whether a haproxy command line only checks files or prints a version (`-c`, `-cc`, `-v`, `-vv`)."""
    words = iter(argv[1:])
    for word in words:
        if word == "--":
            return False
        if word in _WITH_VALUE:
            next(words, None)
        elif word.startswith(("-c", "-v")):
            return True
    return False


def _drop_own_variables(environ: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if not key.startswith("HAPROXY_")}


def _runs_config(process: Process, config: Sequence[str]) -> bool:
    """Return whether it was started with one of the files or directories in `config`."""
    return any(process.sees_file(path, ours) for path in _list_given_files(process) for ours in config)


def _is_stranger(process: Process, config: Sequence[str]) -> bool:
    """Return whether it was started with other files of the same names."""
    ours = {os.path.abspath(name) for name in config}
    return bool(ours & {os.path.abspath(path) for path in _list_given_files(process)}) and not _runs_config(
        process, config
    )


def _list_given_files(process: Process) -> list[str]:
    argv = process.argv
    base = process.cwd or "/"
    return [] if is_check_only(argv) else [os.path.join(base, name) for name in list_config_files(argv)]


def _find_serving_process(workers: Sequence[Process]) -> Process | None:
    """Return the newest serving process, else the newest starting one."""
    newest = sorted(workers, key=lambda one: (one.started, one.pid), reverse=True)
    return next((one for one in newest if is_up(one)), newest[0] if newest else None)


def is_up(process: Process) -> bool:
    """Return whether a process that serves (not a master) has started: it has read its file and is bound.

    On every version, the handlers of SIGTTIN and SIGTTOU are installed last. Since 3.1, a new worker exists before it
    reads its file; while it tries to bind, for two seconds, it is younger than the serving one.
    """
    return process.handles_signal(signal.SIGTTOU)


def is_reloading(master: Process) -> bool:
    """Return whether a master is reloading: it blocks signals until its new worker serves or has failed.

    That is so on every version. Where a script starts HAProxy, the shell unblocks them before the new program has a
    handler.
    """
    return master.defers_signal(signal.SIGUSR2) or not master.handles_signal(signal.SIGUSR2)


def _refresh(known: RunningHaproxy, config: Sequence[str]) -> RunningHaproxy | None:
    """Return the same master with its current workers; None if it has to be searched for."""
    main = processes.read_process(known.main.pid)
    if main is None or not main.alive or main.identity != known.main.identity or not _runs_config(main, config):
        return None
    found = [one for pid in processes.find_children(main.pid) if (one := processes.read_process(pid)) is not None]
    workers = [one for one in found if one.alive and one.program.startswith("haproxy")]
    serving = _find_serving_process(workers)
    return serving and RunningHaproxy(main, serving, is_master=True, old=len(workers) - 1)


def _choose_by_witnesses(found: list[RunningHaproxy], settings: GlobalLines) -> RunningHaproxy:
    for pid in _list_witness_pids(found, settings):
        for one in found:
            if pid in (one.main.pid, one.worker.pid):
                return one
    masters = [one for one in found if one.is_master]
    if len(masters) > 1:
        pids = ", ".join(str(one.main.pid) for one in masters)
        raise TryAgain(f"several HAProxy masters run this haproxy.cfg (pids {pids}): give it a stats socket of its own")
    if masters:
        return masters[0]
    # Without a master, old processes remain until their last connection ends.
    newest = _find_serving_process([one.main for one in found])
    return next(one for one in found if one.main is newest)


def _list_witness_pids(found: list[RunningHaproxy], settings: GlobalLines) -> list[int]:
    pids = [
        _read_pidfile(settings),
        *(_read_pidfile([["pidfile", _find_option(one.main.argv, "-p")]]) for one in found),
    ]
    for address in session.list_stats_sockets(settings):
        try:
            pids.append(session.fetch_worker_pid(address))
        except OSError:
            continue
    return [pid for pid in pids if pid]


def _find_option(argv: Sequence[str], option: str) -> str:
    return next((argv[at + 1] for at, word in enumerate(argv[:-1]) if word == option), "")


def _read_pidfile(settings: GlobalLines) -> int | None:
    path = next((words[1] for words in settings if words[0] == "pidfile" and len(words) > 1), "")
    try:
        text = untrusted_files.read_untrusted_file(path, 64).content.split()
    except OSError:
        return None
    return int(text[0]) if text and text[0].isdigit() else None


def _is_answering(address: str) -> bool:
    try:
        session.ask(address, "show info", 1.0)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True
    return True
