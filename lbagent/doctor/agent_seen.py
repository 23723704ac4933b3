"""The Serf agent as it is on this machine: its answers, its environment, its handlers' programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from lbagent.doctor import agent_settings, handlers
from lbagent.doctor.agent_process import Agent
from lbagent.doctor.agent_settings import DEFAULT_RPC
from lbagent.doctor.finding import AS_SERF, Finding, Kind, error, unseen, warning
from lbagent.errors import TryAgain
from lbagent.host import commands, foreign, serfenv, sockets
from lbagent.serf import agent
from lbagent.serf.listing import Info

_SCRIPT_LIMIT = 64 * 1024
"""Bytes of a handler's program that are read to see whether it is a script that calls lbagent."""


def info() -> Info | Finding:
    """What the agent says of itself, or why it cannot be asked."""
    try:
        commands.found("serf")
    except FileNotFoundError:
        what = "the program is not there: nothing is heard of the cluster"
        return error(Kind.SERF, "serf", what, "install Serf, or have it in PATH")
    try:
        return agent.info()
    except TryAgain as refused:
        if "uthenticat" in str(refused) or "invalid auth token" in str(refused).lower():
            return _without_token(str(refused))
        return error(Kind.SERF, "", str(refused), f"start the agent, or set SERF_RPC_ADDR ({DEFAULT_RPC} without it)")


def _without_token(refused: str) -> Finding:
    """What it means that the agent does not accept our token."""
    used = serfenv.of_process
    if used and used.error and os.geteuid():
        return unseen(Kind.SERF, used.error.partition(": ")[0], "cannot be read: it holds the token", AS_SERF)
    given = "the token is not the agent's" if os.environ.get("SERF_RPC_AUTH") else "a token is needed"
    where = used.found if used and used.found else "SERF_RPC_AUTH"
    what = f"{given}: no sync is possible ({refused})"
    return error(Kind.SERF, where, what, "set SERF_RPC_AUTH to the agent's `rpc_auth`")


def environment(found: Agent) -> Iterator[Finding]:
    """Whether its handlers are given what they need to ask it."""
    if not found.complete:
        return
    environ, rpc = found.process.environ, agent_settings.rpc(found.settings)
    where = f"pid {found.process.pid}"
    if not found.open:
        what = "what its handlers are given cannot be looked at: this user may not read its environment"
        yield unseen(Kind.RPC, where, what, "run this as root")
        return
    if found.settings.get("rpc_auth") and not environ.get("SERF_RPC_AUTH"):
        what = "its handlers cannot ask the agent: they inherit no SERF_RPC_AUTH from it"
        yield warning(Kind.RPC, where, what, "start the agent with SERF_RPC_AUTH=TOKEN, the value of `rpc_auth`")
    if not sockets.same(environ.get("SERF_RPC_ADDR", DEFAULT_RPC), rpc):
        what = f"its handlers cannot ask the agent: they inherit no SERF_RPC_ADDR={rpc} from it"
        yield warning(Kind.RPC, where, what, f"start the agent with SERF_RPC_ADDR={rpc}")


def exists(command: str, found: Agent | None) -> bool | None:
    """Whether the shell of the agent finds the program of a handler; None where that cannot be seen."""
    return True if _program(command, found) else _if_unseen(found)


def calls(command: str, found: Agent | None) -> bool | None:
    """Whether a handler is lbagent's, or a script that calls it; None where that cannot be seen."""
    if handlers.names_lbagent(command):
        return True
    path = _program(command, found)
    try:
        content = foreign.read(path, _SCRIPT_LIMIT).content if path else None
    except OSError:
        content = None
    if content is None:
        return _if_unseen(found)
    return content.startswith(b"#!") and b"lbagent" in content


def _if_unseen(found: Agent | None) -> bool | None:
    """What it means that a program is not seen: it is not there, or this user may not look where the agent does."""
    return False if found and found.open else None


def _program(command: str, found: Agent | None) -> str | None:
    environ = found.process.environ if found else {}
    name = handlers.program(command)
    if "/" in name and found:
        name = os.path.join(found.process.cwd or "/", name)
    return shutil.which(name, path=environ.get("PATH") or None)
