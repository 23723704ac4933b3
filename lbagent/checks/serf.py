"""Serf's agent, looked at from what it says to what stands in its files."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from lbagent.checks.finding import AS_SERF, NAMED, Finding, Kind, enumerated, error, ok, unseen, warning
from lbagent.errors import TryAgain
from lbagent.names import canonical_address, format_count
from lbagent.roles.model import Roles
from lbagent.serf import agent, agent_process
from lbagent.serf.agent_process import (
    DEFAULT_RPC,
    Agent,
    File,
    Unreadable,
    find_rpc_address,
    list_event_handlers,
    list_join_addresses,
    parse_agent_file,
    parse_options,
)
from lbagent.serf.member_list import AgentInfo, MemberList, find_peers
from lbagent.system import sockets, subprocess, untrusted_files

_MEMBERS = ("member-join", "member-leave", "member-failed", "member-update", "member-reap")
_KINDS = (*_MEMBERS, "user", "query", "*")

NEEDED = (
    *(f"{kind}:" for kind in _MEMBERS),
    *(f"{kind}:{name}" for kind in ("user", "query") for name in ("pause", "resume")),
    "query:lbagent-status",
    "query:lbagent-forget",
)
"""The filters of `serf info` that have to lead to `lbagent handle`."""

Handlers = Sequence[tuple[str, str]]
"""Filters, as `serf info` writes them (`*:`, `user:`, `user:pause`), and their commands."""


def of_specs(specs: Sequence[str]) -> list[tuple[str, str]]:
    """The handlers that `event_handlers` of an agent's settings make; a spec that is none makes none."""
    found = []
    for spec in specs:
        filters, command = _parted(spec)
        if _wrong(filters) is None:
            found += [(one if ":" in one else f"{one}:", command) for one in filters]
    return found


def handlers_merged(told: Mapping[str, str], written: Handlers) -> list[tuple[str, str]]:
    """What the agent tells of its handlers, with those it does not tell: of one filter it tells the last only."""
    return [*told.items(), *(pair for pair in written if pair[0] in told and pair not in told.items())]


def handlers_specs(written: Sequence[str], where: str) -> Iterator[Finding]:
    """The specs in a file of the agent with which it would not start again."""
    for spec in written:
        filters, _ = _parted(spec)
        if (wrong := _wrong(filters)) is not None:
            yield error(
                Kind.HANDLER_SPEC,
                where,
                f"the agent does not start with the handler {spec!r}: {wrong!r} is no event",
                "write EVENT,EVENT=COMMAND without blanks; a command that holds a `=` needs `*=` in front",
            )


Look = Callable[[str], bool | None]
"""A look at a command; None where it cannot be seen."""


def handlers_judge(handlers: Handlers, calls: Look, exists: Look) -> Iterator[Finding]:
    """Whether `lbagent handle` is called for all it needs, once; `calls` and `exists` look at a command."""
    seen = {command: calls(command) for _, command in handlers}
    ours = list(dict.fromkeys((name, command) for name, command in handlers if seen[command]))
    if hidden := sorted(command for command, found in seen.items() if found is None):
        what = f"whether {enumerated([repr(one) for one in hidden])} calls lbagent cannot be looked at by this user"
        yield unseen(Kind.HANDLERS, "serf info", what, "run this as root")
        return
    if not ours:
        what = "no handler of the agent calls lbagent: nothing that happens is heard of"
        yield error(Kind.HANDLERS, "serf info", what, 'write `"event_handlers": ["lbagent handle"]`')
        return
    covering = {need: sum(_covers(name, need) for name, _ in ours) for need in NEEDED}
    found = [*_gaps(covering), *_programs({command for _, command in ours}, exists)]
    yield from found
    if not found:
        yield ok(Kind.HANDLERS, "serf info", f"{ours[0][1]!r} is called for all that lbagent needs")


def program(command: str) -> str:
    """The program that a shell runs first for `command`; nothing where that cannot be said."""
    words = [*_words(command)]
    while words and "=" in words[0].split("/")[0]:
        words.pop(0)
    return words[0] if words else ""


def names_lbagent(command: str) -> bool:
    """Whether the command itself is lbagent's."""
    words = _words(command)
    return "handle" in words and any(word.rpartition("/")[2] == "lbagent" for word in words)


def _gaps(covering: Mapping[str, int]) -> Iterator[Finding]:
    missing = [need.rstrip(":") for need, times in covering.items() if not times]
    twice = [need.rstrip(":") for need, times in covering.items() if times > 1]
    if missing:
        what = f"lbagent is not called for {', '.join(missing)}"
        yield error(Kind.HANDLERS, "serf info", what, "call it for all, without a filter: `lbagent handle`")
    if twice:
        what = f"lbagent is called more than once for {enumerated(twice)}"
        yield warning(Kind.HANDLERS, "serf info", what, "one handler without a filter is enough")


def _programs(commands: Collection[str], exists: Look) -> Iterator[Finding]:
    for command in sorted(commands):
        found = exists(command)
        if found is None:
            what = f"whether {program(command)!r} is a program in the agent's PATH cannot be looked at by this user"
            yield unseen(Kind.HANDLERS, "serf info", what, "run this as root")
        elif not found:
            what = f"the handler {command!r} cannot be run: {program(command)!r} is no program in the agent's PATH"
            yield error(Kind.HANDLERS, "serf info", what, "give its whole path")


def _covers(name: str, need: str) -> bool:
    return name in ("*:", need) or (name in ("user:", "query:") and need.startswith(name))


def _parted(spec: str) -> tuple[list[str], str]:
    # As Serf does: at the first `=`, whatever stands in front of it; nothing there means all.
    head, separator, command = spec.partition("=")
    return ((head or "*").split(","), command) if separator else (["*"], spec)


def _wrong(filters: Sequence[str]) -> str | None:
    """The first filter that is none; None where all are."""
    for one in filters:
        kind, colon, _ = one.partition(":")
        if kind not in _KINDS or (colon and kind not in ("user", "query")):
            return one
    return None


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def cluster_agent(info: AgentInfo) -> Iterator[Finding]:
    """The agent itself: there, and speaking in cipher."""
    yield ok(Kind.SERF, "", f"the agent {info.name} answers")
    if info.encrypted:
        yield ok(Kind.ENCRYPTION, "", "what the agents say is encrypted")
    else:
        what = "the cluster is not encrypted: whoever reaches it can enrol a server, pause one, or call it failed"
        yield error(Kind.ENCRYPTION, "", what, "make a key with `serf keygen`, and set `encrypt_key` on every node")


def role(info: AgentInfo, roles: Roles | None) -> Finding:
    """The role of this load balancer, by which others know it for one."""
    if not info.role:
        what = "the agent has no role: the other load balancers cannot be told from any node"
        return warning(Kind.ROLE_TAG, info.name, what, 'write `"tags": {"role": "lb"}`')
    if any(any(one.sections.values()) for one in (roles.find_roles(info.role) if roles else ())):
        what = f"its role {info.role} is one that roles.yml serves: the other load balancer becomes a server"
        return error(Kind.ROLE_TAG, info.name, what, "give the load balancers a role of their own, as `lb`")
    return ok(Kind.ROLE_TAG, info.name, f"its role is {info.role}")


def peers(
    info: AgentInfo,
    listing: MemberList,
    named: Sequence[str] = (),
    serving: Collection[str] = (),
    *,
    declared: bool = False,
) -> Iterator[Finding]:
    """The load balancers of the same role, and members that nobody can use.

    `named` are the nodes that the agent's settings name to join (`retry_join`, `start_join`), by address or name;
    `serving` are the roles of roles.yml; `declared` says that haproxy.cfg has another load balancer.
    """
    there = find_peers(listing, info)
    failed = sorted(one.name for one in there if one.status == "failed")
    alive = sorted(one.name for one in there if one.status == "alive")
    missing, strangers = _missing(listing, named), _strangers(listing, info, named, serving)
    if failed:
        what = f"{format_count(len(failed), 'other load balancer')} failed: {enumerated(failed)}"
        made = warning if alive else error
        yield made(Kind.PEERS, "serf members", what, "start its agent, or `serf force-leave` it")
    elif not alive and (missing or declared):
        why = f"its settings name {enumerated(missing)}, which is no member" if missing else _DECLARED
        what = f"no other load balancer is in this cluster, though {why}: neither hears of the other's pauses"
        yield error(Kind.PEERS, "serf members", what, _SAME_KEY)
    elif not alive and strangers:
        what = f"its settings name {enumerated(strangers)}, whose role is not {info.role or 'lb'}"
        yield warning(Kind.PEERS, "serf members", what, "give all load balancers the same role, as `lb`")
    elif missing:
        what = f"the agent's settings name {enumerated(missing)}, which is no member"
        yield warning(Kind.PEERS, "serf members", what, _SAME_KEY)
    if alive or not (failed or missing or declared or strangers):
        told = f": {enumerated(alive)}" if alive else ""
        yield ok(Kind.PEERS, "serf members", f"{format_count(len(alive), 'other load balancer')} there{told}")
    for words in listing.refused[:NAMED]:
        yield warning(Kind.MEMBERS, "", words, "mend that node's name, or its address")
    if more := len(listing.refused[NAMED:]):
        yield warning(
            Kind.MEMBERS, "serf members", f"{format_count(more, 'more member')} of no use", "see `serf members`"
        )


_DECLARED = "the `peers` section of haproxy.cfg has another one"
_SAME_KEY = (
    "start the agent there, with the same `encrypt_key` as here (`lbagent-serf-setup --key-from`), or take it out"
)


def _missing(listing: MemberList, named: Sequence[str]) -> list[str]:
    """Those of the nodes named by the settings that are no members."""
    known = {*listing.names, *(one.address for one in listing.members)}
    return [one for one in dict.fromkeys(named) if host_of(one) not in known]


def _strangers(listing: MemberList, info: AgentInfo, named: Sequence[str], serving: Collection[str]) -> list[str]:
    """The members that the settings name, that serve nothing, and that have another role than a load balancer."""
    hosts = {host_of(one) for one in named}
    there = (one for one in listing.members if one.name != info.name and {one.name, one.address} & hosts)
    return [f"{one.name} (role {one.role or 'none'})" for one in there if one.role not in (info.role, *serving)]


def host_of(named: str) -> str:
    """The host of `HOST`, `HOST:PORT` or `[HOST]:PORT`; an address in its usual form."""
    host = named.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return canonical_address(host) or host


_REPLAY = {
    "snapshot_path": "a load balancer that was down finds its cluster, and knows what it has heard, by this file",
    "replay_on_join": "pauses sent while the load balancer was down are lost without it",
    "rejoin_after_leave": "after a stop that was a leave, the snapshot is forgotten without it",
}


def judge(settings: Mapping[str, Any], files: Sequence[File], argv: Sequence[str]) -> Iterator[Finding]:
    """What of its settings is not as a load balancer needs them."""
    where = files[-1].path if files else "serf agent"
    yield from _replay(settings, where)
    if settings.get("leave_on_terminate"):
        yield ok(Kind.LEAVE, where, "ended by SIGTERM, the agent leaves")
    else:
        what = "ended by SIGTERM (an init script) it counts as failed, and the others wait for its answer"
        yield warning(Kind.LEAVE, where, what, 'write `"leave_on_terminate": true`')
    yield from _keys(settings, files, argv)
    yield from _rpc(settings, where)
    for file in files:
        found = parse_agent_file(file)
        yield from handlers_specs(list_event_handlers(found) if not isinstance(found, str) else (), file.path)


def _replay(settings: Mapping[str, Any], where: str) -> Iterator[Finding]:
    missing = [key for key in _REPLAY if not settings.get(key)]
    for key in missing:
        right = '"/var/lib/serf/snapshot"' if key == "snapshot_path" else "true"
        yield warning(Kind.REPLAY, where, f"no `{key}`: {_REPLAY[key]}", f'write `"{key}": {right}`')
    if not missing:
        yield ok(Kind.REPLAY, where, "what was sent while this load balancer was down is heard afterwards")


def _keys(settings: Mapping[str, Any], files: Sequence[File], argv: Sequence[str]) -> Iterator[Finding]:
    found = []
    if any(name == "encrypt" for name, _ in parse_options(argv)):
        what = "the key stands on the agent's command line, where every user of this host sees it"
        found.append(error(Kind.KEY, "serf agent -encrypt", what, "put `encrypt_key` into a file of mode 0600"))
    holding = [file for file in files if b"encrypt_key" in file.content or file.path == settings.get("keyring_file")]
    for file in holding:
        if file.mode & 0o004:
            what = f"the key can be read by every user of this host (mode {file.mode & 0o7777:04o})"
            found.append(error(Kind.KEY, file.path, what, "chmod 0600, and change the key"))
    yield from found
    if holding and not found:
        yield ok(Kind.KEY, holding[0].path, "others cannot read the key")


def _rpc(settings: Mapping[str, Any], where: str) -> Iterator[Finding]:
    address = find_rpc_address(settings)
    host = address.rpartition(":")[0].strip("[]")
    if not (host.startswith("127.") or host in ("::1", "localhost")):
        what = f"whoever reaches {address} commands the agent"
        yield error(Kind.RPC, where, what, f'write `"rpc_addr": "{DEFAULT_RPC}"`')
    if settings.get("rpc_auth"):
        yield ok(Kind.RPC, where, f"{address} asks for a token")
    else:
        what = f"every user of this host commands the agent through {address}"
        yield warning(
            Kind.RPC,
            where,
            what,
            'write `"rpc_auth": "TOKEN"`, and give the agent SERF_RPC_AUTH=TOKEN for its handlers',
        )


_SCRIPT_LIMIT = 64 * 1024
"""Bytes of a handler's program that are read to see whether it is a script that calls lbagent."""


def info() -> AgentInfo | Finding:
    """What the agent says of itself, or why it cannot be asked."""
    try:
        subprocess.find_program("serf")
    except FileNotFoundError:
        what = "the program is not there: nothing is heard of the cluster"
        return error(Kind.SERF, "serf", what, "install Serf, or have it in PATH")
    try:
        return agent.fetch_info()
    except TryAgain as refused:
        if "uthenticat" in str(refused) or "invalid auth token" in str(refused).lower():
            return _without_token(str(refused))
        return error(Kind.SERF, "", str(refused), f"start the agent, or set SERF_RPC_ADDR ({DEFAULT_RPC} without it)")


def _without_token(refused: str) -> Finding:
    """What it means that the agent does not accept our token."""
    used = agent.process_serf_env
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
    environ, address = found.process.environ, find_rpc_address(found.settings)
    where = f"pid {found.process.pid}"
    if not found.open:
        what = "what its handlers are given cannot be looked at: this user may not read its environment"
        yield unseen(Kind.RPC, where, what, "run this as root")
        return
    if found.settings.get("rpc_auth") and not environ.get("SERF_RPC_AUTH"):
        what = "its handlers cannot ask the agent: they inherit no SERF_RPC_AUTH from it"
        yield warning(Kind.RPC, where, what, "start the agent with SERF_RPC_AUTH=TOKEN, the value of `rpc_auth`")
    if not sockets.is_same_endpoint(environ.get("SERF_RPC_ADDR", DEFAULT_RPC), address):
        what = f"its handlers cannot ask the agent: they inherit no SERF_RPC_ADDR={address} from it"
        yield warning(Kind.RPC, where, what, f"start the agent with SERF_RPC_ADDR={address}")


def exists(command: str, found: Agent | None) -> bool | None:
    """Whether the shell of the agent finds the program of a handler; None where that cannot be seen."""
    return True if _program(command, found) else _if_unseen(found)


def calls(command: str, found: Agent | None) -> bool | None:
    """Whether a handler is lbagent's, or a script that calls it; None where that cannot be seen."""
    if names_lbagent(command):
        return True
    path = _program(command, found)
    try:
        content = untrusted_files.read_untrusted_file(path, _SCRIPT_LIMIT).content if path else None
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
    name = program(command)
    if "/" in name and found:
        name = os.path.join(found.process.cwd or "/", name)
    return shutil.which(name, path=environ.get("PATH") or None)


def _unreadable(file: Unreadable) -> Finding:
    if file.hidden:
        return unseen(Kind.AGENT_FILES, file.path, file.problem, "run this as root")
    if file.broken:
        fix = "fix it: the agent does not start again with it"
        return error(Kind.AGENT_FILES, file.path, file.problem, fix)
    return warning(Kind.AGENT_FILES, file.path, file.problem, "see whether it is the agent's")


class SerfSide:
    """What each look has found out for the next ones."""

    def __init__(self, roles: Callable[[], Roles | None], has_peers: Callable[[], bool]) -> None:
        """Nothing is known yet; `roles`, and whether haproxy.cfg `has_peers`, are asked for when they are needed."""
        self._roles, self._has_peers = roles, has_peers
        self._info: AgentInfo | None = None
        self._running: Agent | None = None

    @property
    def running(self) -> Agent | None:
        """The agent's process, once it was looked for."""
        return self._running

    def agent(self) -> Iterator[Finding]:
        """What the agent says of itself."""
        self._running = agent_process.find_running_agent()
        found = info()
        if isinstance(found, Finding):
            yield found
            return
        self._info = found
        yield from cluster_agent(found)
        yield role(found, self._roles())

    def handlers(self) -> Iterator[Finding]:
        """Whether lbagent is called for all it needs."""
        if self._info is None:
            return
        written = of_specs(list_event_handlers(self._running.settings)) if self._running else []
        yield from handlers_judge(
            handlers_merged(self._info.handlers, written),
            lambda command: calls(command, self._running),
            lambda command: exists(command, self._running),
        )

    def peers(self) -> Iterator[Finding]:
        """The other load balancers. Raises TryAgain."""
        if self._info is not None:
            named = list_join_addresses(self._running.settings) if self._running else []
            roles = self._roles()
            serving = [*roles.roles] if roles else []
            yield from peers(self._info, agent.fetch_members(), named, serving, declared=self._has_peers())

    def settings(self) -> Iterator[Finding]:
        """The agent's own files and command line."""
        running = self._running
        if running is None:
            if self._info is not None:
                what = "cannot be looked at: no `serf agent` process with this RPC address is shown here"
                made = unseen if os.geteuid() else warning
                yield made(Kind.AGENT_FILES, "Serf's settings", what, "run this as root, on the load balancer itself")
            return
        yield from map(_unreadable, running.unreadable)
        if not running.complete:
            return
        yield from judge(running.settings, running.files, running.process.argv)
        yield from environment(running)
