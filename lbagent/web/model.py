"""A load balancer as the page shows it: asked from its daemon or its own page, and parsed.

The same parser reads the local daemon's object and the answer of another load balancer's `/api/status`, which may come
from another version of lbagent: what is missing or has the wrong type is an error, never a page that looks healthy.
Each is asked at most three times a second, however many viewers there are, and only while there are viewers.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_type_hints
from urllib.parse import SplitResult, urlsplit

from starlette.concurrency import run_in_threadpool

from lbagent.errors import UsageError
from lbagent.membership.model import Pause
from lbagent.membership.peers import Peer

_FRESH = 0.3
"""Seconds for which an answer is used, and at least as long as it took."""

_LOCAL_LIMIT, _PEER_LIMIT = 10.0, 1.0
"""Seconds that the daemon, and another load balancer, have for an answer."""

_OLD, _FIRST_LOOK = 4.0, 0.7
"""Seconds after which an answer of another load balancer is not shown, and that a page waits for a new one then."""

_SIZE_LIMIT = 64 << 20
"""Bytes of an answer: the status of 20,000 nodes has 15 MB."""

_SMALL = 1 << 16
"""Bytes that are parsed at once."""

_VOLATILE = ("at", "heartbeat", "busy", "metrics")
"""Keys that change while nothing happens."""

Value = TypeVar("Value")

HEARTBEAT_LATE = 120.0
"""Seconds without a pass of the daemon's main loop after which it counts as hanging; one reload waits 30 s at most."""

SYNC_LATE = 300
"""Seconds after which a daemon that syncs every minute must have synced."""

_HARMLESS = ("service", "quarantine", "blocked", "peer")
"""Kinds of `wrong` that do not keep events from taking effect on this load balancer."""

_SERVES = ("UP", "no check")
"""How HAProxy's state of a server begins that takes new requests."""

_STATE_CLASSES = {"in": "good", "failed": "bad", "quarantined": "bad"}


class Server(NamedTuple):
    """A line of a node in haproxy.cfg."""

    proxy: str
    server: str | None
    address: str
    line: str
    state: str | None
    sessions: int | None

    @property
    def serves(self) -> bool:
        """Whether HAProxy sends it new requests."""
        return (self.state or "").startswith(_SERVES)


class Node(NamedTuple):
    """A node on one load balancer. The fields are keys of `lbagent status --json`."""

    name: str
    address: str | None
    role: str | None
    status: str | None
    state: str
    since: int | None
    why: str
    pause: Pause | None
    paused_by_tag: bool
    quarantine: tuple[int, str] | None
    """Epoch seconds and reason."""
    tags: Mapping[str, str] | None
    added: Sequence[str]
    """Lines that the next run adds."""
    removed: Sequence[str]
    servers: Sequence[Server]

    @property
    def css(self) -> str:
        """The class of its state: good, bad or odd."""
        return _STATE_CLASSES.get(self.state, "odd")

    @property
    def haproxy(self) -> str:
        """HAProxy's states of its servers, counted where they differ; empty where there is none."""
        states = [one.state or "absent" for one in self.servers if one.server is not None]
        if len(set(states)) == 1:
            return states[0]
        words = [state if state == "no check" else state.split(" ")[0] for state in states]
        return ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))

    @property
    def down(self) -> bool:
        """Whether HAProxy's checks take it out at a line that should serve."""
        return any("DOWN" in (one.state or "") for one in self.servers if one.line in ("managed", "not managed"))

    @property
    def sessions(self) -> int | None:
        """Open sessions on all of its servers; None where HAProxy does not report any."""
        known = [one.sessions for one in self.servers if one.sessions is not None]
        return sum(known) if known else None

    @property
    def proxies(self) -> list[str]:
        """The proxies with a line of it, in the order of the file."""
        return list(dict.fromkeys(one.proxy for one in self.servers))

    def may(self, verb: str) -> bool:
        """Return whether `pause`, `resume` or `forget` makes sense for it."""
        if verb == "resume":
            return self.pause is not None
        if verb == "forget":
            return self.status != "alive"
        return self.state not in ("load balancer", "unknown role")


class Problem(NamedTuple):
    """Something that is wrong now."""

    kind: str
    what: str
    since: int | None


class Status(NamedTuple):
    """The status of one load balancer."""

    at: int
    digest: str | None
    confirmed: bool | None
    worker: int | None
    """HAProxy's worker that confirmed the lines."""
    stats_error: str | None
    pending: int | None
    sync_at: int | None
    sync_failing: int | None
    daemon_running: bool | None
    run: tuple[int, int, str] | None
    """End of the last run in epoch seconds, its exit status, and its words."""
    next_retry: int | None
    blocked: Sequence[str]
    notes: Sequence[str]
    wrong: Sequence[Problem]
    peers: Sequence[Peer]
    nodes: Mapping[str, Node]


class Entry(NamedTuple):
    """A change in the history of one load balancer."""

    at: int
    why: str
    outcome: str
    words: str
    reloaded: bool
    ms: int | None
    added: Sequence[str]
    removed: Sequence[str]
    added_count: int
    removed_count: int

    @property
    def css(self) -> str:
        """The class of its outcome: good, odd or bad."""
        return {"applied": "good", "written": "odd", "queued": "odd"}.get(self.outcome, "bad")

    @property
    def way(self) -> str:
        """How the change reached HAProxy; empty where it did not."""
        if self.outcome != "applied":
            return ""
        return "by a reload" if self.reloaded else "through the runtime API"

    def concerns(self, node: str) -> bool:
        """Return whether the entry names the node: in its cause, its words, or its lines."""
        word = re.compile(rf"(?<![\w.-]){re.escape(node)}(?![\w-]|\.\w)")
        # In a proxy with several services a server is NODE.SERVICE.
        server = re.compile(rf"(?:server|paused) {re.escape(node)}[ .]")
        texts = (self.why, self.words)
        return any(map(word.search, texts)) or any(map(server.search, (*self.added, *self.removed)))


class Balancer(NamedTuple):
    """A load balancer: what its daemon published last, or why that is unknown."""

    name: str
    seen: float
    """When this was received, in epoch seconds."""
    age: float
    """Seconds between the last pass of the daemon's main loop and that moment."""
    busy: bool
    """Whether a run was under way."""
    status: Status | None
    error: str
    """Why `status` is None."""
    history: Sequence[Entry] = ()

    def list_faults(self) -> list[str]:
        """Return why events do not take effect here, most important first; empty where they do."""
        status = self.status
        if status is None:
            return [self.error]
        faults = [f"{one.kind}: {one.what}" for one in status.wrong if one.kind not in _HARMLESS]
        if self.age > HEARTBEAT_LATE:
            faults.insert(0, f"daemon: hangs; its last sign of life was {self.age:.0f} s ago; restart it")
        if status.sync_at is None and status.sync_failing is None:
            faults.append("sync: has not succeeded yet")
        elif status.sync_at is not None and status.at - status.sync_at > SYNC_LATE and status.sync_failing is None:
            faults.append(f"sync: the last one was {status.at - status.sync_at} s ago")
        if status.confirmed is False and not self.busy:
            faults.append("haproxy: has not confirmed the current haproxy.cfg")
        if status.digest is None:
            faults.append("haproxy: haproxy.cfg cannot be read")
        return list(dict.fromkeys(faults))

    def list_unserved(self, node: str) -> list[str]:
        """Return the proxies in which this node is the only one that HAProxy sends new requests."""
        if self.status is None or node not in self.status.nodes:
            return []
        serving: dict[str, set[str]] = {}
        for one in self.status.nodes.values():
            for server in one.servers:
                if server.serves and one.address != self.status.nodes[node].address:
                    serving.setdefault(server.proxy, set()).add(one.name)
        mine = dict.fromkeys(one.proxy for one in self.status.nodes[node].servers if one.serves)
        return [proxy for proxy in mine if proxy not in serving]


def drop_outdated(balancers: Sequence[Balancer]) -> list[Balancer]:
    """Return the load balancers without reports of different lines, where their lines are known to be equal now.

    A daemon compares its lines with the other's at each sync, once a minute. The digests here are a second old.
    """
    digests = {one.name: one.status.digest for one in balancers if one.status}

    def is_outdated(problem: Problem, status: Status) -> bool:
        differing = [one for one in status.peers if one.answers and one.equal is False]
        names = [one.name for one in differing if digests.get(one.name) == status.digest]
        return problem.kind == "peer" and problem.what.split(" ", 1)[0] in names

    found = []
    for one in balancers:
        if status := one.status:
            wrong = [problem for problem in status.wrong if not is_outdated(problem, status)]
            one = one._replace(status=status._replace(wrong=wrong))  # noqa: PLW2901  # the same, newer
        found.append(one)
    return found


def parse_balancer(found: Mapping[str, Any], now: float) -> Balancer:
    """Parse the daemon's object, or an answer of `/api/status`, received at `now`. Raises ValueError."""
    try:
        if int(found["version"]) != 1:
            raise ValueError(f"version {found['version']} is not known; upgrade lbagent here")
        status = found["status"]
        return Balancer(
            _get(found, "name", str),
            now,
            0.0 if found["heartbeat"] is None else max(0.0, float(found["at"]) - float(found["heartbeat"])),
            _get(found, "busy", bool),
            None if status is None else _parse_status(status),
            str(found["error"] or ("" if status else "no status")),
            [_parse_entry(one) for one in found.get("history", ())],
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"unexpected content ({type(error).__name__}: {error})") from error


def _parse_status(found: Mapping[str, Any]) -> Status:
    served, run = found["served"], found["run"]
    return _parse(
        Status,
        found,
        worker=_get(served, "worker", int | None) if served else None,
        stats_error=_get(found["stats_socket"], "error", str | None),
        pending=_get(found["events"], "pending", int | None),
        sync_at=_get(found["sync"], "at", int | None),
        sync_failing=_get(found["sync"], "failing", int | None),
        daemon_running=_get(found["daemon"], "running", bool | None),
        run=(_get(run, "at", int), _get(run, "status", int), _get(run, "words", str)) if run else None,
        blocked=_list_texts(found["blocked"]),
        notes=_list_texts(found["notes"]),
        wrong=[_parse(Problem, one) for one in found["wrong"]],
        peers=[_parse(Peer, one, status_line=str(one.get("status_line") or "") or None) for one in found["peers"]],
        nodes={node.name: node for node in map(_parse_node, found["nodes"])},
    )


def _parse_node(found: Mapping[str, Any]) -> Node:
    pause, quarantine, tags, change = found["pause"], found["quarantine"], found["tags"], found["change"]
    return _parse(
        Node,
        found,
        pause=pause and _parse(Pause, pause),
        quarantine=(_get(quarantine, "since", int), _get(quarantine, "reason", str)) if quarantine else None,
        tags=tags if tags is None else {str(key): str(value) for key, value in tags.items()},
        added=_list_texts(change["added"]),
        removed=_list_texts(change["removed"]),
        servers=[_parse(Server, one) for one in found["servers"]],
    )


def _parse_entry(found: Mapping[str, Any]) -> Entry:
    return _parse(Entry, found, added=_list_texts(found["added"]), removed=_list_texts(found["removed"]))


_find_types = functools.cache(get_type_hints)


def _parse(kind: Callable[..., Value], found: Mapping[str, Any], **given: Any) -> Value:  # noqa: ANN401  # any field
    """Return a tuple whose fields are `given`, or else the keys of the same name, with the types of the fields."""
    types = _find_types(kind)
    return kind(**{name: given[name] if name in given else _get(found, name, types[name]) for name in types})


def _get(found: Mapping[str, Any], key: str, kind: type | UnionType) -> Any:  # noqa: ANN401  # of the requested kind
    value = found[key]
    if not isinstance(value, kind):
        raise TypeError(f"{key!r} is {str(value)[:40]!r}")
    return value


def _list_texts(found: Sequence[Any]) -> list[str]:
    return [str(one) for one in found]


class Snapshot(NamedTuple):
    """What is known of a load balancer at one moment."""

    balancer: Balancer
    raw: Mapping[str, Any]
    """The object that was received; empty where there was none."""
    version: int
    """Differs after each change that a viewer can see."""


def make_snapshot(name: str, content: bytes | None, error: str) -> Snapshot:
    """Return the snapshot of what was received; without content, or with invalid content, the status is unknown."""
    now = time.time()
    if content is not None:
        try:
            raw = json.loads(content)
            balancer = parse_balancer(raw, now)
        except (ValueError, TypeError, RecursionError) as broken:
            error = f"{name}: unexpected answer: {str(broken)[:200]}"
        else:
            status = raw["status"] and {key: value for key, value in raw["status"].items() if key not in _VOLATILE}
            seen = {**{key: value for key, value in raw.items() if key not in _VOLATILE}, "status": status}
            late = balancer.list_faults()
            return Snapshot(balancer, raw, zlib.crc32(json.dumps([seen, len(late)]).encode()))
    unknown = Balancer(name, now, 0.0, busy=False, status=None, error=error)
    return Snapshot(unknown, {}, zlib.crc32(error.encode()))


class Daemon:
    """The local daemon, at its status socket."""

    def __init__(self, path: str, name: str) -> None:
        """`name` is shown until the daemon reports the name of this load balancer."""
        self._path, self._name = path, name
        self._lock = asyncio.Lock()
        self._found: Snapshot | None = None
        self._fresh_until = float("-inf")

    async def look(self) -> Snapshot:
        """Return the current snapshot. Never raises, and takes ten seconds at most."""
        async with self._lock:
            begin = time.monotonic()
            if self._found is None or begin > self._fresh_until:
                self._found = await self._read()
                self._name = self._found.balancer.name
                end = time.monotonic()
                self._fresh_until = end + max(_FRESH, end - begin)
            return self._found

    async def _read(self) -> Snapshot:
        try:
            async with asyncio.timeout(_LOCAL_LIMIT):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    content = await reader.read(-1)
                finally:
                    writer.close()
        except (FileNotFoundError, ConnectionRefusedError):
            error = f"daemon: does not run, or has no status socket at {self._path}; start `lbagent watch`"
        except PermissionError:
            error = f"daemon: {self._path}: this user may not connect; run as a member of the group lbagent-web"
        except TimeoutError:
            error = f"daemon: does not answer within {_LOCAL_LIMIT:.0f} s; restart it"
        except OSError as failed:
            error = f"daemon: {self._path}: {failed.strerror or failed}"
        else:
            return await _make_snapshot_aside(self._name, content)
        return make_snapshot(self._name, None, error)


class OtherBalancer:
    """The web page of another load balancer, asked in the background: a silent one delays no page."""

    def __init__(self, url: str) -> None:
        """`url` is that of its page, such as https://lb02.example.net/lbagent. Raises UsageError."""
        parts = urlsplit(url)
        with contextlib.suppress(ValueError):
            if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0):
                self.url, self._parts, self._name = url.rstrip("/"), parts, parts.hostname
                self._found: Snapshot | None = None
                self._found_at = self._asked_at = float("-inf")
                self._asking: asyncio.Task[None] | None = None
                return
        raise UsageError(f"--peer {url[:80]!r}: not an http:// or https:// URL")

    async def look(self) -> Snapshot:
        """Return the last snapshot, and ask for a new one. One that is too old is unknown."""
        now = time.monotonic()
        # One question at a time: a resolver that hangs must not use up the threads.
        if (self._asking is None or self._asking.done()) and now - self._asked_at > _FRESH:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask())
        if self._asking and now - self._found_at > _OLD:
            await asyncio.wait([self._asking], timeout=_FIRST_LOOK)
        if self._found is None or time.monotonic() - self._found_at > _OLD:
            return make_snapshot(self._name, None, f"{self.url}: has not answered yet")
        return self._found

    async def _ask(self) -> None:
        thread = asyncio.ensure_future(asyncio.to_thread(_fetch, self._parts))
        try:
            answered, _ = await asyncio.wait([thread], timeout=2 * _PEER_LIMIT)
            if not answered:
                self._keep(make_snapshot(self._name, None, f"{self.url}: did not answer in time"))
            self._keep(await _make_snapshot_aside(self._name, await thread))
        except (OSError, http.client.HTTPException, ValueError) as error:
            words = "did not answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            self._keep(make_snapshot(self._name, None, f"{self.url}: {words}"))

    def _keep(self, found: Snapshot) -> None:
        self._found, self._found_at, self._name = found, time.monotonic(), found.balancer.name


async def _make_snapshot_aside(name: str, content: bytes) -> Snapshot:
    if len(content) < _SMALL:
        return make_snapshot(name, content, "")
    # Some 100 ms per 1,000 nodes: other requests are served meanwhile.
    return await run_in_threadpool(make_snapshot, name, content, "")


def _fetch(parts: SplitResult) -> bytes:
    """Return the answer of /api/status. Raises OSError, HTTPException, ValueError."""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_PEER_LIMIT)
    deadline = time.monotonic() + _PEER_LIMIT
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/api/status", headers={"Accept": "application/json"})
        answer = connection.getresponse()
        content = b""
        # Each read has the whole limit: a peer that sends a byte a second must not keep this thread.
        while (piece := answer.read1(1 << 20)) and len(content) <= _SIZE_LIMIT:
            content += piece
            if time.monotonic() > deadline:
                raise TimeoutError
    finally:
        connection.close()
    # A load balancer that knows nothing of itself answers 503, with the reason as JSON.
    if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.SERVICE_UNAVAILABLE) or content[:1] != b"{":
        raise ValueError(f"answered {answer.status} {answer.reason}"[:100])
    return content
