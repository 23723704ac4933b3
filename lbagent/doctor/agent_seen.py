"""The Serf agent as it is on this machine: its answers, its process, its files, its handler's program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lbagent.doctor import agent_settings, handlers
from lbagent.doctor.agent_settings import DEFAULT_RPC, File
from lbagent.doctor.finding import Finding, Kind, error, warning
from lbagent.errors import TryAgain
from lbagent.host import commands, processes
from lbagent.host.processes import Process
from lbagent.serf import agent
from lbagent.serf.listing import Info

_SCRIPT_LIMIT = 64 * 1024
"""Bytes of a handler's program that are read to see whether it is a script that calls lbagent."""


class Agent(NamedTuple):
    """The running agent, as far as it can be looked at."""

    process: Process
    files: Sequence[File]
    settings: Mapping[str, Any]
    findings: Sequence[Finding]
    """What could not be read of it."""


def info() -> Info | Finding:
    """What the agent says of itself, or why it cannot be asked."""
    try:
        commands.found("serf")
    except FileNotFoundError:
        what = "the program is not there: the agent cannot be looked at"
        return warning(Kind.SERF, "serf", what, "install Serf, or have it in PATH")
    try:
        return agent.info()
    except TryAgain as refused:
        if "uthenticat" in str(refused):
            return warning(Kind.SERF, "", f"cannot be looked at: {refused}", "set SERF_RPC_AUTH to its `rpc_auth`")
        return error(Kind.SERF, "", str(refused), f"start the agent, or set SERF_RPC_ADDR ({DEFAULT_RPC} without it)")


def running() -> Agent | None:
    """The agent that is asked: of all that run here, the one with this RPC address."""
    asked = os.environ.get("SERF_RPC_ADDR") or DEFAULT_RPC
    for one in processes.named("serf"):
        argv = one.argv
        if argv[1:2] == ["agent"]:
            found = _agent(one, argv)
            if agent_settings.rpc(found.settings) == asked:
                return found
    return None


def environment(found: Agent) -> Iterator[Finding]:
    """Whether its handlers are given what they need to ask it."""
    environ, rpc = found.process.environ, agent_settings.rpc(found.settings)
    where = f"pid {found.process.pid}"
    if environ and found.settings.get("rpc_auth") and not environ.get("SERF_RPC_AUTH"):
        what = "its handlers cannot ask the agent: they inherit no SERF_RPC_AUTH from it"
        yield warning(Kind.RPC, where, what, "start the agent with SERF_RPC_AUTH=TOKEN, the value of `rpc_auth`")
    if environ and environ.get("SERF_RPC_ADDR", DEFAULT_RPC) != rpc:
        what = f"its handlers cannot ask the agent: they inherit no SERF_RPC_ADDR={rpc} from it"
        yield warning(Kind.RPC, where, what, f"start the agent with SERF_RPC_ADDR={rpc}")


def exists(command: str, found: Agent | None) -> bool:
    """Whether the shell of the agent finds the program of a handler."""
    return _program(command, found) is not None


def calls(command: str, found: Agent | None) -> bool:
    """Whether a handler is lbagent's, or a script that calls it."""
    if handlers.names_lbagent(command):
        return True
    path = _program(command, found)
    try:
        with open(path or os.devnull, "rb") as file:
            content = file.read(_SCRIPT_LIMIT)
    except OSError:
        return False
    return content.startswith(b"#!") and b"lbagent" in content


def _program(command: str, found: Agent | None) -> str | None:
    environ = found.process.environ if found else {}
    name = handlers.program(command)
    if "/" in name and found:
        name = os.path.join(found.process.cwd or "/", name)
    return shutil.which(name, path=environ.get("PATH") or None)


def _agent(process: Process, argv: Sequence[str]) -> Agent:
    files: list[File] = []
    findings: list[Finding] = []
    for path in _paths(argv, process.cwd or "/"):
        try:
            with open(path, "rb") as file:
                files.append(File(path, file.read(), os.fstat(file.fileno()).st_mode))
        except OSError as refused:
            what = f"cannot be looked at: {refused.strerror}"
            findings.append(warning(Kind.AGENT_FILES, path, what, "run this as root"))
    tables = []
    for one in files:
        table = agent_settings.loaded(one)
        if isinstance(table, str):
            fix = "mend it, the agent does not start again with it"
            findings.append(error(Kind.AGENT_FILES, one.path, table, fix))
        else:
            tables.append(table)
    settings = agent_settings.merged(argv, tables)
    keyring = settings.get("keyring_file")
    if isinstance(keyring, str) and os.path.exists(keyring):
        files.append(File(keyring, b"", os.stat(keyring).st_mode))
    return Agent(process, files, settings, findings)


def _paths(argv: Sequence[str], cwd: str) -> Iterator[str]:
    """The files of the agent's command line, in the order it reads them."""
    for name, value in agent_settings.options(argv):
        path = os.path.join(cwd, value)
        if name not in ("config-file", "config-dir"):
            continue
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(".json"))
            yield from (os.path.join(path, name) for name in names)
        else:
            yield path
