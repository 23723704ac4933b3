"""Where the page's content comes from: the local daemon's socket, and the web page of another load balancer.

Each is asked at most three times a second, however many viewers there are, and only while there are viewers.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from starlette.concurrency import run_in_threadpool

from lbagent.errors import UsageError
from lbagent.web.model import Balancer, parse_balancer

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
            return await _parse(self._name, content)
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
            self._keep(await _parse(self._name, await thread))
        except (OSError, http.client.HTTPException, ValueError) as error:
            words = "did not answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            self._keep(make_snapshot(self._name, None, f"{self.url}: {words}"))

    def _keep(self, found: Snapshot) -> None:
        self._found, self._found_at, self._name = found, time.monotonic(), found.balancer.name


async def _parse(name: str, content: bytes) -> Snapshot:
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
