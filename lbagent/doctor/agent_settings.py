"""The settings of a running Serf agent: its command line and its files, as it reads them itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lbagent.doctor import handlers
from lbagent.doctor.finding import Finding, Kind, error, ok, warning
from lbagent.tuples import NamedTuple

DEFAULT_RPC = "127.0.0.1:7373"

_SWITCHES = frozenset(("disable-compression", "rejoin", "replay", "syslog"))
"""The options of `serf agent` that take no value."""

_OF_OPTION = {"snapshot": "snapshot_path", "rejoin": "rejoin_after_leave", "replay": "replay_on_join"}
_OF_OPTION |= {"rpc-addr": "rpc_addr", "encrypt": "encrypt_key", "event-handler": "event_handlers"}
_OF_OPTION |= {"keyring-file": "keyring_file", "node": "node_name"}
_OF_OPTION |= {"join": "start_join", "retry-join": "retry_join"}
_LISTS = ("event_handlers", "start_join", "retry_join")

_REPLAY = {
    "snapshot_path": "a load balancer that was down finds its cluster, and knows what it has heard, by this file",
    "replay_on_join": "pauses sent while the load balancer was down are lost without it",
    "rejoin_after_leave": "after a stop that was a leave, the snapshot is forgotten without it",
}


class File(NamedTuple):
    """A file of the agent, as it was read."""

    path: str
    content: bytes
    mode: int


def options(argv: Sequence[str]) -> list[tuple[str, str]]:
    """The options of a `serf agent` command line, with their values."""
    found = []
    words = iter(argv[2:])
    for word in words:
        name, separator, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name:
            found.append((name, value if separator else "true" if name in _SWITCHES else next(words, "")))
    return found


def loaded(file: File) -> Mapping[str, Any] | str:
    """What stands in a file of the agent, or why it cannot be read."""
    try:
        found = json.loads(file.content)
    except (ValueError, RecursionError) as broken:
        return f"is not JSON: {broken}"
    return found if isinstance(found, dict) else "is not a JSON object"


def merged(argv: Sequence[str], files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings as the agent has them: its files in order, then its command line; lists add up."""
    lines: list[Mapping[str, Any]] = [
        {key: [value] if key in _LISTS else value == "true" if name in _SWITCHES else value}
        for name, value in options(argv)
        if (key := _OF_OPTION.get(name))
    ]
    settings: dict[str, Any] = {}
    for given in (*files, *lines):
        for key, value in given.items():
            before = settings.get(key)
            # A later false does not undo a true, as Serf merges them.
            settings[key] = before + value if isinstance(before, list) and isinstance(value, list) else value or before
    return settings


def specs(settings: Mapping[str, Any]) -> list[str]:
    """Its event handlers, as they are written."""
    found = settings.get("event_handlers")
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def joined(settings: Mapping[str, Any]) -> list[str]:
    """The nodes it is told to join, as they are written."""
    found = [one for key in ("start_join", "retry_join") for one in _list(settings.get(key))]
    return [one for one in found if isinstance(one, str)]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def rpc(settings: Mapping[str, Any]) -> str:
    """Where it is asked."""
    return str(settings.get("rpc_addr") or DEFAULT_RPC)


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
        found = loaded(file)
        yield from handlers.specs(specs(found) if not isinstance(found, str) else (), file.path)


def _replay(settings: Mapping[str, Any], where: str) -> Iterator[Finding]:
    missing = [key for key in _REPLAY if not settings.get(key)]
    for key in missing:
        right = '"/var/lib/serf/snapshot"' if key == "snapshot_path" else "true"
        yield warning(Kind.REPLAY, where, f"no `{key}`: {_REPLAY[key]}", f'write `"{key}": {right}`')
    if not missing:
        yield ok(Kind.REPLAY, where, "what was sent while this load balancer was down is heard afterwards")


def _keys(settings: Mapping[str, Any], files: Sequence[File], argv: Sequence[str]) -> Iterator[Finding]:
    found = []
    if any(name == "encrypt" for name, _ in options(argv)):
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
    address = rpc(settings)
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
