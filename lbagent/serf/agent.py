"""The local Serf agent: ask it through the `serf` program; find its process, and read its files and settings.

`serf` itself reads SERF_RPC_ADDR and SERF_RPC_AUTH, which are in the agent's environment, and so in a handler's. Other
commands load them from serf.env. Any user may run a program called `serf` with any files. So only processes of root, of
this user, or of the user that listens at the RPC address are trusted, and only regular, small files are read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeVar

from lbagent.errors import TryAgain
from lbagent.names import brief
from lbagent.serf import member_list
from lbagent.serf.member_list import AgentInfo, ListedMember, MemberList
from lbagent.system import processes, subprocess, untrusted_files
from lbagent.system.processes import Process

_FILE_LIMIT = 1 << 20
"""Maximum bytes of a file of the agent; a keyring and settings take some thousand."""


DEFAULT_RPC = "127.0.0.1:7373"

_SWITCHES = frozenset(("disable-compression", "rejoin", "replay", "syslog"))
"""Options of `serf agent` without a value."""

_SETTINGS = {
    "encrypt": "encrypt_key",
    "event-handler": "event_handlers",
    "join": "start_join",
    "keyring-file": "keyring_file",
    "node": "node_name",
    "rejoin": "rejoin_after_leave",
    "replay": "replay_on_join",
    "retry-join": "retry_join",
    "rpc-addr": "rpc_addr",
    "snapshot": "snapshot_path",
}
"""Keys of a configuration file of the agent, by the options with the same meaning."""

_LISTS = ("event_handlers", "start_join", "retry_join")

Answer = TypeVar("Answer")

AnswerCallback = Callable[[str, str], None]
"""Called with a node's name and its answer."""

_TIMEOUT = 10.0
"""Seconds for an answer of the agent: on a busy machine, the program `serf` itself takes seconds to start and end."""
_MORE = 2.0
"""Seconds that a query may take beyond its own timeout."""

COMMAND_TIMEOUTS = (1, 2, 3, 4)
"""Seconds that another load balancer has for its answer to a command, each time it is asked."""

_ENV_FILE = "serf.env"

_ENV_KEYS = ("SERF_RPC_ADDR", "SERF_RPC_AUTH")


class SerfTimedOut(TryAgain):
    """The program `serf` did not end in time. The agent may have received the command."""


def fetch_members() -> MemberList:
    """Return all members that the agent knows. Raises TryAgain."""
    return _ask(["members", "-format=json"], member_list.parse_member_list)


def fetch_info() -> AgentInfo:
    """Return the agent's name, role, clocks and handlers. Raises TryAgain."""
    return _ask(["info", "-format=json"], member_list.parse_info)


def fetch_peers() -> tuple[ListedMember, ...]:
    """Return the other load balancers that the agent knows. Raises TryAgain."""
    info = fetch_info()
    role = re.escape(member_list.find_own_role(info))
    # Serf selects: a list of all members has megabytes. A member may have several roles.
    listed = _ask(["members", "-format=json", f"-tag=role=.*{role}.*"], member_list.parse_member_list)
    return member_list.find_peers(listed, info)


def fetch_clocks() -> Mapping[str, int]:
    """Return the agent's LTimes, by clock; empty if the agent is unreachable."""
    try:
        return fetch_info().clocks
    except TryAgain:
        return {}


def send_query(
    name: str, payload: str, nodes: Collection[str], waits: Iterable[int], on_answer: AnswerCallback | None = None
) -> dict[str, str]:
    """Send a query to these nodes and return their answers, by node. Raises TryAgain.

    It is sent again, to the nodes without an answer, once per entry of `waits`, the seconds to wait each time: Serf
    delivers queries by gossip, and on a small cluster 1 in 40 does not reach every node. `on_answer` is called with
    each answer as it arrives. Raises SerfTimedOut if no attempt ended in time; where another one does, it counts.
    """
    found: dict[str, str] = {}
    has_ended, timeout = False, None
    for seconds in waits:
        if silent := [node for node in nodes if node not in found]:
            try:
                _send_once(name, payload, silent, seconds, found, on_answer)
                has_ended = True
            except SerfTimedOut as error:
                timeout = error
    if timeout and not (has_ended or found):
        raise timeout
    return found


def _send_once(
    name: str,
    payload: str,
    nodes: Collection[str],
    seconds: int,
    found: dict[str, str],
    on_answer: AnswerCallback | None,
) -> None:
    """Send a query once and add the answers to `found` as they arrive. Raises TryAgain."""
    # An answer that cannot be sent directly may be relayed by two other nodes.
    options = ("-no-ack", "-relay-factor=2", f"-timeout={seconds}s", *(f"-node={node}" for node in nodes))
    argv = ["query", *options, name, payload]

    def add_answers(output: str) -> None:
        answers = member_list.parse_answers(output, nodes)
        for node in answers.keys() - found.keys():
            found[node] = answers[node]
            if on_answer:
                on_answer(node, answers[node])

    def all_have_answered(output: str) -> bool:
        # Serf waits for its whole timeout, even if all nodes have answered. Its last line may be incomplete.
        add_answers(output.rpartition("\n")[0])
        return len(member_list.parse_answers(output, nodes)) == len(nodes)

    add_answers(_run_serf(argv, seconds + _MORE, all_have_answered))


def _ask(argv: list[str], read: Callable[[str], Answer]) -> Answer:
    output = _run_serf(argv, _TIMEOUT)
    try:
        return read(output)
    except (ValueError, RecursionError) as error:
        raise TryAgain(f"Serf agent: invalid answer to `serf {argv[0]}`: {error}") from error


def _run_serf(argv: list[str], timeout: float, enough: Callable[[str], bool] | None = None) -> str:
    try:
        result = subprocess.run_program(["serf", *argv], timeout, environ=dict(os.environ), enough=enough)
    except OSError as error:
        fix = "install it" if isinstance(error, FileNotFoundError) else "try again"
        raise TryAgain(f"serf: cannot be started: {error.strerror}; {fix}") from error
    if result.status is None:
        raise SerfTimedOut(f"Serf agent: `serf {argv[0]}` did not end within {timeout:g} s")
    if not result.succeeded:
        raise TryAgain(f"Serf agent: `serf {argv[0]}` failed: {brief(result.output.split(chr(10))[0])}")
    return result.output


class SerfEnv:
    """serf.env (SERF_RPC_ADDR, SERF_RPC_AUTH), loaded into an environment."""

    def __init__(self, folders: Iterable[str], environ: MutableMapping[str, str]) -> None:
        """Use the first of `folders` that has a serf.env. Variables that `environ` already has take precedence."""
        self.paths = [os.path.join(folder, _ENV_FILE) for folder in dict.fromkeys(folders)]
        self._environ = environ
        self._own = [key for key in _ENV_KEYS if not environ.get(key)]
        """Variables that only the file sets."""
        self._content: bytes | None = None
        self.error = ""
        """Why the file could not be read; empty otherwise."""
        self.found = ""
        """Path of the file that was read; empty if there is none."""

    def load(self) -> bool:
        """Update the environment from the file; return whether the file has changed since the last call."""
        content = self._read()
        changed = content != self._content
        self._content = content
        if changed:
            found = _parse_env(content)
            for key in self._own:
                self._environ.pop(key, None)
                if value := found.get(key):
                    self._environ[key] = value
        return changed

    @property
    def changed(self) -> bool:
        """Whether the file has changed since it was loaded."""
        return self._read() != self._content

    def _read(self) -> bytes:
        self.error = self.found = ""
        for path in self.paths:
            try:
                with open(path, "rb") as file:
                    self.found = path
                    return file.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                self.error = f"{path}: cannot be read: {error.strerror}"
                return b""
        return b""


def list_serf_env_folders(roles: str, environ: Mapping[str, str], default: str) -> list[str]:
    """Return the directories to look in: of `roles`, of $LBAGENT_ROLES, and of the `default` roles.yml."""
    return [os.path.dirname(path) for path in (roles, environ.get("LBAGENT_ROLES") or default, default)]


def _parse_env(content: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        key, _, value = line.strip().partition("=")
        if key in _ENV_KEYS and (value := _unquote(value)):
            found.setdefault(key, value)
    return found


def _unquote(value: str) -> str:
    """Remove the quotes around a value, as systemd does, which reads the same file for the agent."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


process_serf_env: SerfEnv | None = None
"""The serf.env of this process; None if the Serf agent has set the variables."""


class File(NamedTuple):
    """A file of the agent, as it was read."""

    path: str
    content: bytes
    mode: int


def parse_options(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options of a `serf agent` command line, with their values."""
    found = []
    words = iter(argv[2:])
    for word in words:
        name, separator, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name:
            found.append((name, value if separator else "true" if name in _SWITCHES else next(words, "")))
    return found


def parse_agent_file(file: File) -> Mapping[str, Any] | str:
    """Return the settings in a file of the agent, or why it is invalid."""
    try:
        found = json.loads(file.content)
    except (ValueError, RecursionError) as broken:
        return f"invalid JSON: {broken}"
    return found if isinstance(found, dict) else "not a JSON object"


def merge_settings(argv: Sequence[str], files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that the agent has: its files in order, then its command line; lists are concatenated."""
    lines: list[Mapping[str, Any]] = [
        {key: [value] if key in _LISTS else value == "true" if name in _SWITCHES else value}
        for name, value in parse_options(argv)
        if (key := _SETTINGS.get(name))
    ]
    settings: dict[str, Any] = {}
    for given in (*files, *lines):
        for key, value in given.items():
            before = settings.get(key)
            # As Serf merges them, a later false does not override a true.
            settings[key] = before + value if isinstance(before, list) and isinstance(value, list) else value or before
    return settings


def list_event_handlers(settings: Mapping[str, Any]) -> list[str]:
    """Return the event handlers, as they are written."""
    return _list_texts(settings, "event_handlers")


def list_join_addresses(settings: Mapping[str, Any]) -> list[str]:
    """Return the addresses that the agent joins, as they are written."""
    return _list_texts(settings, "start_join", "retry_join")


def _list_texts(settings: Mapping[str, Any], *keys: str) -> list[str]:
    lists = (found for key in keys if isinstance(found := settings.get(key), list))
    return [one for found in lists for one in found if isinstance(one, str)]


def find_rpc_address(settings: Mapping[str, Any]) -> str:
    """Return the RPC address."""
    return str(settings.get("rpc_addr") or DEFAULT_RPC)


class Unreadable(NamedTuple):
    """A file of the agent that could not be read."""

    path: str
    problem: str
    hidden: bool = False
    """True if this user may not read it."""
    broken: bool = False
    """True if the agent cannot read it either."""


class Agent(NamedTuple):
    """The running agent, as far as it can be inspected."""

    process: Process
    files: Sequence[File]
    settings: Mapping[str, Any]
    unreadable: Sequence[Unreadable]

    @property
    def complete(self) -> bool:
        """Whether all of its files could be read. If not, its settings are not known."""
        return not any(file.hidden for file in self.unreadable)

    @property
    def open(self) -> bool:
        """Whether its environment and working directory may be inspected."""
        return self.process.cwd is not None


def find_running_agent() -> Agent | None:
    """Return the agent at the RPC address that lbagent uses; None if none is found."""
    asked = os.environ.get("SERF_RPC_ADDR") or DEFAULT_RPC
    trusted_users = {0, os.geteuid(), *processes.find_listening_users(asked)}
    for one in processes.find_processes("serf"):
        argv = one.argv
        # An agent in a container may have the same RPC address. If that is not known, the address decides.
        if argv[1:2] == ["agent"] and one.user in trusted_users and one.shares_network is not False:
            found = _read_agent(one, argv)
            if processes.is_same_endpoint(find_rpc_address(found.settings), asked):
                return found
    return None


_known_agent: tuple[str, Process] | None = None
"""The agent that `find_start_time` found last, with the RPC address in $SERF_RPC_ADDR."""


def find_start_time() -> float | None:
    """Return when the agent at the RPC address started, in epoch seconds; None if none is found.

    While an agent that was found runs, no other one is looked for: the process table is long.
    """
    global _known_agent  # noqa: PLW0603  # one agent per process of lbagent
    asked = os.environ.get("SERF_RPC_ADDR") or DEFAULT_RPC
    if _known_agent is None or _known_agent[0] != asked or not processes.is_running(*_known_agent[1].identity):
        found = find_running_agent()
        _known_agent = (asked, found.process) if found else None
    return _known_agent[1].start_time if _known_agent else None


def _read_agent(process: Process, argv: Sequence[str]) -> Agent:
    files: list[File] = []
    unreadable: list[Unreadable] = []
    for path in _list_paths(argv, process.cwd or "/"):
        try:
            found = untrusted_files.read_untrusted_file(path, _FILE_LIMIT)
        except OSError as refused:
            unreadable.append(Unreadable(path, f"cannot be read: {refused.strerror}", hidden=True))
        else:
            if found.whole:
                files.append(File(path, found.content, found.mode))
            else:
                unreadable.append(Unreadable(path, f"not read: larger than {_FILE_LIMIT} bytes"))
    tables = []
    for one in files:
        table = parse_agent_file(one)
        if isinstance(table, str):
            unreadable.append(Unreadable(one.path, table, broken=True))
        else:
            tables.append(table)
    settings = merge_settings(argv, tables)
    return Agent(process, [*files, *_find_keyring(settings)], settings, unreadable)


def _find_keyring(settings: Mapping[str, Any]) -> Iterator[File]:
    path = settings.get("keyring_file")
    if isinstance(path, str) and os.path.exists(path):
        yield File(path, b"", os.stat(path).st_mode)


def _list_paths(argv: Sequence[str], cwd: str) -> Iterator[str]:
    """Yield the configuration files on the agent's command line, in the order it reads them."""
    for name, value in parse_options(argv):
        path = os.path.join(cwd, value)
        if name not in ("config-file", "config-dir"):
            continue
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(".json"))
            yield from (os.path.join(path, name) for name in names)
        else:
            yield path
