"""Find the process of the local Serf agent and read its files and settings.

Any user may run a program called `serf` with any files. Only processes of root, of this user, or of the user that
listens at the RPC address are trusted, and only regular, small files are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lbagent.system import processes, sockets, untrusted_files
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
    found = settings.get("event_handlers")
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def list_join_addresses(settings: Mapping[str, Any]) -> list[str]:
    """Return the addresses that the agent joins, as they are written."""
    found = [one for key in ("start_join", "retry_join") for one in _as_list(settings.get(key))]
    return [one for one in found if isinstance(one, str)]


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


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
    trusted_users = {0, os.geteuid(), *sockets.find_listening_users(asked)}
    for one in processes.find_processes("serf"):
        argv = one.argv
        # An agent in a container may have the same RPC address. If that is not known, the address decides.
        if argv[1:2] == ["agent"] and one.user in trusted_users and one.shares_network is not False:
            found = _read_agent(one, argv)
            if sockets.is_same_endpoint(find_rpc_address(found.settings), asked):
                return found
    return None


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
