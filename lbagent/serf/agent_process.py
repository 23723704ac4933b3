"""The process of the Serf agent that is asked, and the files that it was started with.

Whoever has an account may call a program `serf`, and its files what he likes: believed is a process of root, of our
own user, or of the user who listens where the agent is asked; and of its files only what is regular and small.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lbagent.checks import serf
from lbagent.checks.finding import Finding, Kind, error, unseen, warning
from lbagent.checks.serf import DEFAULT_RPC, File
from lbagent.state import untrusted_files
from lbagent.system import processes, sockets
from lbagent.system.processes import Process
from lbagent.system.tuples import NamedTuple

_FILE_LIMIT = 1 << 20
"""Bytes of a file of the agent: a keyring and a few settings take thousands."""


class Agent(NamedTuple):
    """The running agent, as far as it can be looked at."""

    process: Process
    files: Sequence[File]
    settings: Mapping[str, Any]
    findings: Sequence[Finding]
    """What could not be read of it."""

    @property
    def complete(self) -> bool:
        """Whether all of its files could be read: else its settings are not known."""
        return not any(found.unseen for found in self.findings)

    @property
    def open(self) -> bool:
        """Whether its environment and its folder may be looked at."""
        return self.process.cwd is not None


def running() -> Agent | None:
    """The agent that is asked: of all that run here, the one with this RPC address."""
    asked = os.environ.get("SERF_RPC_ADDR") or DEFAULT_RPC
    believed = {0, os.geteuid(), *sockets.find_listeners(asked)}
    for one in processes.find_processes("serf"):
        argv = one.argv
        if argv[1:2] == ["agent"] and one.user in believed:
            found = _agent(one, argv)
            if sockets.is_same_endpoint(serf.rpc(found.settings), asked):
                return found
    return None


def _agent(process: Process, argv: Sequence[str]) -> Agent:
    files: list[File] = []
    findings: list[Finding] = []
    for path in _paths(argv, process.cwd or "/"):
        try:
            found = untrusted_files.read_untrusted_file(path, _FILE_LIMIT)
        except OSError as refused:
            what = f"cannot be looked at: {refused.strerror}"
            findings.append(unseen(Kind.AGENT_FILES, path, what, "run this as root"))
        else:
            if found.whole:
                files.append(File(path, found.content, found.mode))
            else:
                what = f"is not looked at: it holds more than {_FILE_LIMIT} bytes"
                findings.append(warning(Kind.AGENT_FILES, path, what, "see whether it is the agent's"))
    tables = []
    for one in files:
        table = serf.loaded(one)
        if isinstance(table, str):
            fix = "mend it, the agent does not start again with it"
            findings.append(error(Kind.AGENT_FILES, one.path, table, fix))
        else:
            tables.append(table)
    settings = serf.merged(argv, tables)
    return Agent(process, [*files, *_keyring(settings)], settings, findings)


def _keyring(settings: Mapping[str, Any]) -> Iterator[File]:
    path = settings.get("keyring_file")
    if isinstance(path, str) and os.path.exists(path):
        yield File(path, b"", os.stat(path).st_mode)


def _paths(argv: Sequence[str], cwd: str) -> Iterator[str]:
    """The files of the agent's command line, in the order it reads them."""
    for name, value in serf.options(argv):
        path = os.path.join(cwd, value)
        if name not in ("config-file", "config-dir"):
            continue
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(".json"))
            yield from (os.path.join(path, name) for name in names)
        else:
            yield path
