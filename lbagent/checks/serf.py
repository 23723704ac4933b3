"""Check the Serf agent: its answer, event handlers, encryption, role tag, members, files and environment."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import lbagent
from lbagent.checks.daemon import is_token_refused
from lbagent.checks.files import Account
from lbagent.checks.finding import NAMES_LIMIT, Finding, Kind, error, join_names, ok, unreadable, warning
from lbagent.errors import TryAgain
from lbagent.names import canonical_address, format_count
from lbagent.roles.model import Roles
from lbagent.serf import agent
from lbagent.serf.agent import (
    DEFAULT_RPC,
    Agent,
    File,
    Unreadable,
    find_rpc_address,
    list_event_handlers,
    parse_agent_file,
    parse_options,
)
from lbagent.serf.member_list import AgentInfo, MemberList, find_peers
from lbagent.system import processes, subprocess, untrusted_files

_MEMBER_EVENTS = ("member-join", "member-leave", "member-failed", "member-update", "member-reap")
_EVENTS = (*_MEMBER_EVENTS, "user", "query", "*")

NEEDED = (
    *(f"{event}:" for event in _MEMBER_EVENTS),
    *(f"{event}:{name}" for event in ("user", "query") for name in ("pause", "resume")),
    "query:lbagent-status",
    "query:lbagent-forget",
)
"""The events that `lbagent handle` must receive, as filters of `serf info`."""

_SCRIPT_LIMIT = 64 * 1024
"""Bytes of a handler script that are searched for a call of lbagent."""

_VERSION_TIMEOUT = 10.0

HANDLER_LATE = 60.0
"""Seconds after which a running event handler counts as hung. The limits of lbagent's own handler are below."""

_FIX_KEY = (
    "start its agent with the same `encrypt_key` as here (on the second load balancer: "
    "`lbagent-serf-setup --replace --key-from FILE`, with /etc/serf/lbagent.json of the first), "
    "or remove it from the settings"
)

_HANDLER_FIX = 'add `"event_handlers": ["lbagent handle"]` to the agent\'s settings'

Handlers = Sequence[tuple[str, str]]
"""Filters as in `serf info` (`*:`, `user:`, `user:pause`), with their commands."""

Test = Callable[[str], bool | None]
"""A test of a handler command; None where this user cannot see the result."""


# --- event handlers -------------------------------------------------------------------------------------------------


def parse_handler_specs(specs: Sequence[str]) -> list[tuple[str, str]]:
    """Return the handlers that `event_handlers` in an agent's settings create; invalid ones are left out."""
    found = []
    for spec in specs:
        filters, command = _split_spec(spec)
        if _find_invalid_filter(filters) is None:
            found += [(one if ":" in one else f"{one}:", command) for one in filters]
    return found


def merge_handlers(reported: Mapping[str, str], written: Handlers) -> list[tuple[str, str]]:
    """Return the handlers in `serf info` with those of the settings that it omits: it lists one per filter."""
    return [*reported.items(), *(pair for pair in written if pair[0] in reported and pair not in reported.items())]


def check_handler_specs(specs: Sequence[str], path: str) -> Iterator[Finding]:
    """Find handlers in a file of the agent with which it would not start again."""
    for spec in specs:
        filters, _ = _split_spec(spec)
        if (invalid := _find_invalid_filter(filters)) is not None:
            text = f"the agent does not start with the handler {spec!r}: {invalid!r} is not an event"
            fix = "write EVENT,EVENT=COMMAND without blanks; if the command contains `=`, put `*=` before it"
            yield error(Kind.HANDLER_SPEC, path, text, fix)


def check_handlers(
    handlers: Handlers, calls_lbagent: Test, is_found: Test, written: Handlers | None = None
) -> Iterator[Finding]:
    """Check that `lbagent handle` receives each event it needs, once, and that its program exists.

    `handlers` are those of `serf info`, which the agent had at its start; a SIGHUP loads those of its settings, but
    does not change `serf info` (Serf 0.8 to 0.10). `written` are those of its settings; None where not readable.
    """
    results = {command: calls_lbagent(command) for _, command in handlers}
    if unknown := sorted(command for command, result in results.items() if result is None):
        names = join_names([repr(command) for command in unknown])
        yield unreadable(Kind.HANDLERS, "serf info", f"not visible for this user whether {names} calls lbagent")
        return
    ours = list(dict.fromkeys((name, command) for name, command in handlers if results[command]))
    in_settings = written is None or any(calls_lbagent(command) is not False for _, command in written)
    if not ours and written and in_settings:
        text = "no event handler called lbagent when the agent started, but its settings have one now"
        yield error(Kind.HANDLERS, "serf info", text, "restart the agent")
        return
    if not ours:
        text = "no event handler calls lbagent; Serf events have no effect"
        yield error(Kind.HANDLERS, "serf info", text, _HANDLER_FIX)
        return
    calls = {event: sum(_matches(name, event) for name, _ in ours) for event in NEEDED}
    found = [*_check_calls(calls), *_check_programs({command for _, command in ours}, is_found)]
    if not in_settings:
        text = "the agent's settings have no handler for lbagent any more; from its next reload or restart, Serf events"
        found.append(error(Kind.HANDLERS, "event_handlers", f"{text} have no effect", _HANDLER_FIX))
    yield from found
    if not found:
        yield ok(Kind.HANDLERS, "serf info", f"{ours[0][1]!r} receives all events that lbagent needs")


def _check_calls(calls: Mapping[str, int]) -> Iterator[Finding]:
    missing = [event.rstrip(":") for event, times in calls.items() if not times]
    repeated = [event.rstrip(":") for event, times in calls.items() if times > 1]
    if missing:
        text = f"lbagent does not receive {', '.join(missing)}; these events have no effect"
        yield error(Kind.HANDLERS, "serf info", text, "write the handler without a filter: `lbagent handle`")
    if repeated:
        text = f"lbagent receives {join_names(repeated)} more than once"
        yield warning(Kind.HANDLERS, "serf info", text, "keep one handler, without a filter: `lbagent handle`")


def _check_programs(commands: Collection[str], is_found: Test) -> Iterator[Finding]:
    for command in sorted(commands):
        name, found = find_program_name(command), is_found(command)
        if found is None:
            yield unreadable(
                Kind.HANDLERS, "serf info", f"not visible for this user whether {name!r} is in Serf's PATH"
            )
        elif not found:
            text = (
                f"the handler {command!r} cannot run: Serf's PATH has no program {name!r}; Serf events have no effect"
            )
            yield error(Kind.HANDLERS, "serf info", text, "write its full path in `event_handlers`")


def _matches(name: str, event: str) -> bool:
    return name in ("*:", event) or (name in ("user:", "query:") and event.startswith(name))


def _split_spec(spec: str) -> tuple[list[str], str]:
    # As Serf does: at the first `=`, whatever precedes it; nothing there means all events.
    head, separator, command = spec.partition("=")
    return ((head or "*").split(","), command) if separator else (["*"], spec)


def _find_invalid_filter(filters: Sequence[str]) -> str | None:
    for one in filters:
        event, colon, _ = one.partition(":")
        if event not in _EVENTS or (colon and event not in ("user", "query")):
            return one
    return None


def split_command(command: str) -> list[str]:
    """Return the words of a handler command, as the shell cuts them."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def find_program_name(command: str) -> str:
    """Return the program that the shell runs first for `command`; empty where there is none."""
    words = split_command(command)
    while words and "=" in words[0].split("/")[0]:
        words.pop(0)
    return words[0] if words else ""


def names_lbagent(command: str) -> bool:
    """Return whether the command is `lbagent handle`, with or without a path and options."""
    words = split_command(command)
    return "handle" in words and any(word.rpartition("/")[2] == "lbagent" for word in words)


def calls_lbagent(command: str, running: Agent | None) -> bool | None:
    """Return whether a handler is lbagent or a script that names it; None where this user cannot read the script."""
    if names_lbagent(command):
        return True
    path = find_program(command, running)
    try:
        content = untrusted_files.read_untrusted_file(path, _SCRIPT_LIMIT).content if path else None
    except OSError:
        content = None
    if content is None:
        return _answer_unseen(running)
    return content.startswith(b"#!") and b"lbagent" in content


def finds_program(command: str, running: Agent | None) -> bool | None:
    """Return whether the agent's shell finds the program of a handler; None where this user cannot see that."""
    return True if find_program(command, running) else _answer_unseen(running)


def find_program(command: str, running: Agent | None) -> str | None:
    """Return the path of a handler's program in the PATH and working directory of the agent; None where not found."""
    environ = running.process.environ if running else {}
    name = find_program_name(command)
    if "/" in name and running:
        name = os.path.join(running.process.cwd or "/", name)
    return shutil.which(name, path=environ.get("PATH") or None)


def _answer_unseen(running: Agent | None) -> bool | None:
    """Return the answer about a program that was not found: False if the agent's PATH is readable, else None."""
    return False if running and running.open else None


def check_handler_version(command: str, running: Agent, account: Account) -> Iterator[Finding]:
    """Run the handler's `lbagent --version` as Serf's user: it must start, and be the version of this command."""
    path = find_program(command, running) if names_lbagent(command) else None
    if path is None or os.path.basename(path) != "lbagent" or os.geteuid() not in (0, account.user):
        return
    argv = [path, "--version"]
    if account.user != os.geteuid():
        groups = ",".join(map(str, sorted(account.groups)))
        argv = ["setpriv", f"--reuid={account.user}", f"--groups={groups}", "--", *argv]
    try:
        result = subprocess.run_program(argv, _VERSION_TIMEOUT, environ=running.process.environ)
    except OSError:
        return
    version = result.output.strip().rpartition(" ")[2]
    if not result.succeeded:
        reason = (result.output.strip().split("\n") or [""])[-1]
        text = f"{path} fails as user {account.user} ({result.ending}: {reason}); Serf events have no effect"
        yield error(Kind.HANDLERS, "serf info", text, "install lbagent again, or fix its permissions")
    elif version != lbagent.__version__:
        text = f"Serf's handler {path} is lbagent {version}, this command is {lbagent.__version__}"
        yield warning(
            Kind.HANDLERS, "serf info", text, "remove one of the two, or correct the path in `event_handlers`"
        )


def check_running_handlers(running: Agent | None) -> Iterator[Finding]:
    """Find event handlers that have run for too long: Serf runs handlers one after another."""
    if running is None:
        return
    for one in [one for one in processes.find_processes("") if one.parent == running.process.pid]:
        age = time.time() - one.start_time
        if age > HANDLER_LATE:
            where = f"pid {one.pid} ({' '.join(one.argv)})"
            text = f"this event handler has run for {age:.0f} s; Serf runs handlers one after another"
            fix = "end that process, and correct its handler"
            yield error(Kind.HANDLERS, where, f"{text}, so no event reaches lbagent", fix)


# --- the agent and its cluster --------------------------------------------------------------------------------------


def fetch_info() -> AgentInfo | Finding:
    """Return the agent's answer to `serf info`, or the finding why there is none."""
    try:
        subprocess.find_program("serf")
    except FileNotFoundError:
        return error(
            Kind.SERF, "serf", "the program is not installed; no events arrive", "install Serf, or add it to PATH"
        )
    try:
        return agent.fetch_info()
    except TryAgain as refused:
        if is_token_refused(str(refused)):
            return _explain_token(str(refused))
        address = os.environ.get("SERF_RPC_ADDR") or DEFAULT_RPC
        fix = f"start the agent, or set SERF_RPC_ADDR to its `rpc_addr` (now {address})"
        return error(Kind.SERF, "", str(refused), fix)


def _explain_token(refusal: str) -> Finding:
    """Return the finding for an agent that refuses the RPC token."""
    env = agent.process_serf_env
    if env and env.error and os.geteuid():
        return unreadable(Kind.SERF, env.error.partition(": ")[0], "not readable for this user; it has the RPC token")
    reason = "wrong RPC token" if os.environ.get("SERF_RPC_AUTH") else "the agent requires an RPC token"
    where = env.found if env and env.found else "SERF_RPC_AUTH"
    text = f"{reason}; no sync is possible ({refusal})"
    return error(Kind.SERF, where, text, "set SERF_RPC_AUTH to the `rpc_auth` of the agent")


def check_encryption(info: AgentInfo) -> Iterator[Finding]:
    """Check that the agent encrypts: without a key, anyone who can send packets to it can change its members."""
    yield ok(Kind.SERF, "", f"the agent {info.name} answers")
    if info.encrypted:
        yield ok(Kind.ENCRYPTION, "", "the cluster is encrypted")
    else:
        text = "the cluster is not encrypted; anyone who can reach it can add, pause or fail servers"
        fix = "create a key with `serf keygen`, and set it as `encrypt_key` on every node"
        yield error(Kind.ENCRYPTION, "", text, fix)


def check_role_tag(info: AgentInfo, roles: Roles | None) -> Finding:
    """Check the role of this load balancer: the load balancers find each other by it."""
    if not info.role:
        text = "the agent has no role tag; the load balancers cannot find each other"
        return warning(Kind.ROLE_TAG, info.name, text, 'add `"tags": {"role": "lb"}` to its settings')
    if any(one.has_services for one in (roles.find_roles(info.role) if roles else ())):
        text = f"roles.yml has services for its role {info.role}; the other load balancer becomes a server"
        return error(Kind.ROLE_TAG, info.name, text, "give the load balancers their own role, for example `lb`")
    return ok(Kind.ROLE_TAG, info.name, f"its role is {info.role}")


def check_peers(
    info: AgentInfo,
    members: MemberList,
    joins: Sequence[str] = (),
    roles: Collection[str] = (),
    *,
    has_peer: bool = False,
) -> Iterator[Finding]:
    """Check the other load balancers, which have the same role as this one.

    `joins` are the nodes in `retry_join` and `start_join`, by address or name, `roles` the roles of roles.yml;
    `has_peer`: whether a `peers` section of haproxy.cfg names another load balancer.
    """
    found = find_peers(members, info)
    failed = sorted(one.name for one in found if one.status == "failed")
    alive = sorted(one.name for one in found if one.status == "alive")
    missing, other_role = _find_missing(members, info, joins), _find_other_role(members, info, joins, roles)
    if failed:
        text = f"{format_count(len(failed), 'other load balancer')} failed: {join_names(failed)}"
        severity = warning if alive else error
        yield severity(Kind.PEERS, "serf members", text, "start its agent, or remove it with `serf force-leave`")
    elif not alive and (missing or has_peer):
        reason = f"the agent's settings join {join_names(missing)}" if missing else "haproxy.cfg has a `peers` section"
        text = f"no other load balancer is in this cluster, although {reason}; pauses reach only one of them"
        yield error(Kind.PEERS, "serf members", text, _FIX_KEY)
    elif not alive and other_role:
        text = f"the agent's settings join {join_names(other_role)}, which has another role than {info.role or 'lb'}"
        yield error(Kind.PEERS, "serf members", text, "give all load balancers the same role, for example `lb`")
    elif missing:
        text = f"the agent's settings join {join_names(missing)}, which is not a member"
        yield warning(Kind.PEERS, "serf members", text, _FIX_KEY)
    if alive or not (failed or missing or has_peer or other_role):
        names = f": {join_names(alive)}" if alive else ""
        yield ok(Kind.PEERS, "serf members", f"{format_count(len(alive), 'other load balancer')}{names}")


def check_members(members: MemberList) -> Iterator[Finding]:
    """Find members with an invalid name or address: they get no line."""
    for text in members.refused[:NAMES_LIMIT]:
        yield warning(Kind.MEMBERS, "", text, "correct the node's name or address")
    if more := len(members.refused[NAMES_LIMIT:]):
        text = f"{format_count(more, 'more member')} with an invalid name or address"
        yield warning(Kind.MEMBERS, "serf members", text, "see the output of `serf members`")


def _find_missing(members: MemberList, info: AgentInfo, joins: Sequence[str]) -> list[str]:
    """Return the nodes in `joins` that are not members, or load balancers that have left: Serf lists them for a day."""
    known = {*members.names, *(one.address for one in members.members)}
    left = [one._replace(status="alive") for one in members.members if one.status == "left"]
    for peer in find_peers(members._replace(members=tuple(left)), info):
        known -= {peer.name, peer.address}
    return [one for one in dict.fromkeys(joins) if parse_host(one) not in known]


def _find_other_role(members: MemberList, info: AgentInfo, joins: Sequence[str], roles: Collection[str]) -> list[str]:
    """Return the members in `joins` that are neither servers (`roles`) nor load balancers with our role."""
    hosts = {parse_host(one) for one in joins}
    joined = (one for one in members.members if one.name != info.name and {one.name, one.address} & hosts)
    return [f"{one.name} (role {one.role or 'none'})" for one in joined if one.role not in (info.role, *roles)]


def parse_host(text: str) -> str:
    """Return the host of `HOST`, `HOST:PORT` or `[HOST]:PORT`; an address in its canonical form."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return canonical_address(host) or host


# --- the agent's process, files and settings ------------------------------------------------------------------------


_REPLAY_SETTINGS = {
    "snapshot_path": "after a restart the agent does not rejoin its cluster and forgets which events it has seen",
    "replay_on_join": "pauses that were sent while this load balancer was down are lost",
    "rejoin_after_leave": "after a stop with a leave the agent ignores its snapshot",
}


def check_agent_process(running: Agent | None, info: AgentInfo | None) -> Iterator[Finding]:
    """Check the agent's files, settings and environment; `running` is its process, None where none was found."""
    if running is None:
        if info is not None:
            yield _explain_no_process()
        return
    yield from map(_explain_unreadable, running.unreadable)
    if running.complete:
        yield from check_agent_settings(running.settings, running.files, running.process.argv)
        yield from check_agent_environment(running)


def _explain_no_process() -> Finding:
    """Return the finding for an agent that answers, but whose process is not visible on this host."""
    address = os.environ.get("SERF_RPC_ADDR") or DEFAULT_RPC
    if not _is_local(parse_host(address)):
        text = f"the agent at SERF_RPC_ADDR={address} runs on another host; its handlers do not call this lbagent"
        return error(Kind.AGENT_FILES, "Serf's settings", text, "set SERF_RPC_ADDR to the agent of this load balancer")
    text = f"not checked: no process `serf agent` with the RPC address {address} is visible on this host"
    if os.geteuid():
        return unreadable(Kind.AGENT_FILES, "Serf's settings", text)
    return warning(Kind.AGENT_FILES, "Serf's settings", text, "run `lbagent check` where the agent runs")


def _is_local(host: str) -> bool:
    """Return whether a host name or address is one of this host; True where that is unknown."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
    except OSError as refused:
        return not isinstance(refused, socket.gaierror) and refused.strerror != os.strerror(99)  # EADDRNOTAVAIL
    return True


def _explain_unreadable(file: Unreadable) -> Finding:
    if file.hidden:
        return unreadable(Kind.AGENT_FILES, file.path, file.problem)
    if file.broken:
        return error(Kind.AGENT_FILES, file.path, file.problem, "fix the file; the agent does not start again with it")
    return warning(Kind.AGENT_FILES, file.path, file.problem, "make sure that it is a settings file of the agent")


def check_agent_settings(settings: Mapping[str, Any], files: Sequence[File], argv: Sequence[str]) -> Iterator[Finding]:
    """Check the agent's settings against what a load balancer needs."""
    where = files[-1].path if files else "serf agent"
    yield from _check_replay(settings, where)
    if settings.get("leave_on_terminate"):
        yield ok(Kind.LEAVE, where, "the agent leaves the cluster on SIGTERM")
    else:
        text = (
            "on SIGTERM the agent does not leave; the other load balancers count it as failed and wait for its answers"
        )
        yield warning(Kind.LEAVE, where, text, 'add `"leave_on_terminate": true`')
    yield from _check_key(settings, files, argv)
    yield from _check_rpc(settings, where)
    for file in files:
        table = parse_agent_file(file)
        yield from check_handler_specs(list_event_handlers(table) if not isinstance(table, str) else (), file.path)


def _check_replay(settings: Mapping[str, Any], where: str) -> Iterator[Finding]:
    missing = [key for key in _REPLAY_SETTINGS if not settings.get(key)]
    for key in missing:
        value = '"/var/lib/serf/snapshot"' if key == "snapshot_path" else "true"
        yield warning(Kind.REPLAY, where, f"no `{key}`; {_REPLAY_SETTINGS[key]}", f'add `"{key}": {value}`')
    if not missing:
        yield ok(Kind.REPLAY, where, "after a restart the agent receives the events it has missed")


def _check_key(settings: Mapping[str, Any], files: Sequence[File], argv: Sequence[str]) -> Iterator[Finding]:
    found = []
    if any(name == "encrypt" for name, _ in parse_options(argv)):
        text = "the key is on the agent's command line; every user of this host can read it"
        found.append(error(Kind.KEY, "serf agent -encrypt", text, "move it to `encrypt_key` in a file of mode 0600"))
    with_key = [file for file in files if b"encrypt_key" in file.content or file.path == settings.get("keyring_file")]
    for file in with_key:
        if file.mode & 0o004:
            text = f"every user of this host can read the key (mode {file.mode & 0o7777:04o})"
            found.append(error(Kind.KEY, file.path, text, "run `chmod 0600` on the file, and change the key"))
    yield from found
    if with_key and not found:
        yield ok(Kind.KEY, with_key[0].path, "other users cannot read the key")


def _check_rpc(settings: Mapping[str, Any], where: str) -> Iterator[Finding]:
    address = find_rpc_address(settings)
    host = address.rpartition(":")[0].strip("[]")
    if not (host.startswith("127.") or host in ("::1", "localhost")):
        text = f"anyone who can reach {address} can control the agent"
        yield error(Kind.RPC, where, text, f'set `"rpc_addr": "{DEFAULT_RPC}"`')
    if settings.get("rpc_auth"):
        yield ok(Kind.RPC, where, f"{address} requires a token")
    else:
        text = f"every user of this host can control the agent through {address}"
        fix = 'set `"rpc_auth": "TOKEN"`, and start the agent with SERF_RPC_AUTH=TOKEN for its handlers'
        yield warning(Kind.RPC, where, text, fix)


def check_agent_environment(running: Agent) -> Iterator[Finding]:
    """Check that the agent's handlers inherit what they need to ask the agent: SERF_RPC_AUTH and SERF_RPC_ADDR."""
    environ, address = running.process.environ, find_rpc_address(running.settings)
    where = f"serf agent (pid {running.process.pid})"
    if not running.open:
        yield unreadable(Kind.RPC, where, "this user may not read its environment")
        return
    if running.settings.get("rpc_auth") and not environ.get("SERF_RPC_AUTH"):
        text = "no SERF_RPC_AUTH in its environment; handlers cannot ask the agent"
        yield warning(Kind.RPC, where, text, "start the agent with SERF_RPC_AUTH=TOKEN, the value of `rpc_auth`")
    if not processes.is_same_endpoint(environ.get("SERF_RPC_ADDR", DEFAULT_RPC), address):
        text = f"no SERF_RPC_ADDR={address} in its environment; handlers cannot ask the agent"
        yield warning(Kind.RPC, where, text, f"start the agent with SERF_RPC_ADDR={address}")
