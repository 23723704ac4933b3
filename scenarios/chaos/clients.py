"""Clients that hide nothing: no retries, and every failed request is kept with its time, its reason and HAProxy's log.

Each request has an id in the header X-Request. HAProxy logs it with the chosen server, to a receiver on the load
balancer's own network.
"""

from __future__ import annotations

import functools
import http.client
import itertools
import socket
import threading
import time
from collections.abc import Collection
from typing import NamedTuple, Self

from scenarios.chaos.site import ADDRESS, PORTS, Site
from scenarios.machines import Machine, start_thread_on

KINDS = ("keep-alive", "new")
CLIENTS = 3
"""Clients of each kind at each port: over one connection, and over a new one for each request."""

PAUSE = 0.04
"""Seconds between an answer and the client's next request."""

PATIENCE = 8.0
"""Seconds after which a request without an answer has failed. HAProxy's own limits are shorter."""


class LogLine(NamedTuple):
    """What HAProxy has logged about a request."""

    balancer: str
    proxy: str
    server: str
    status: str
    ending: str
    """Termination state, such as `--` or `SC`."""
    times: str


class Failure(NamedTuple):
    """A request that has failed. Times are monotonic seconds."""

    request: str
    begin: float
    end: float
    service: str
    reason: str
    """Status, or name of the error."""


class Clients:
    """The clients, from `__enter__` to `__exit__`."""

    def __init__(self, site: Site) -> None:
        """Nothing runs yet."""
        self._site, self._stop, self._lock = site, threading.Event(), threading.Lock()
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count(1)
        self._logs: dict[str, LogLine] = {}
        self._begins: dict[str, float] = {}
        self.failures: list[Failure] = []
        self.requests = 0

    def __enter__(self) -> Self:
        for name, balancer in self._site.balancers.items():
            start_thread_on(balancer.machine, functools.partial(self._receive_logs, name))
        for service in PORTS:
            for kind, _ in itertools.product(KINDS, range(CLIENTS)):
                work = functools.partial(self._send_requests, service, keep=kind == "keep-alive")
                self._threads.append(start_thread_on(self._site.client, work))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE + 2)

    def find_log(self, request: str) -> LogLine | None:
        """Return what a load balancer has logged about the request, or None."""
        return self._logs.get(request)

    def find_requests(self, balancer: str, node: str, begin: float, end: float) -> list[str]:
        """Return the requests that this load balancer has sent to the node, and that began in this time."""
        with self._lock:
            return [
                request
                for request, line in self._logs.items()
                if (line.balancer, line.server) == (balancer, node) and begin < self._begins.get(request, 0) < end
            ]

    def _receive_logs(self, balancer: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            receiver.bind(("127.0.0.1", 514))
            receiver.settimeout(1)
            while not self._stop.is_set():
                try:
                    words = receiver.recv(4096).decode("utf-8", "replace").partition("]: ")[2].split()
                except TimeoutError:
                    continue
                if len(words) == 5 and words[0].startswith("r"):
                    proxy, _, server = words[1].partition("/")
                    with self._lock:
                        self._logs[words[0]] = LogLine(balancer, proxy, server, *words[2:])

    def _send_requests(self, service: str, *, keep: bool) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            request, begin = f"r{next(self._numbers)}", time.monotonic()
            reason = ""
            is_open = False
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(ADDRESS, PORTS[service], timeout=PATIENCE)
                    connection.auto_open = 0  # http.client would reconnect silently
                    connection.connect()
                connection.request("GET", "/", headers=_make_headers(request, keep=keep))
                answer = connection.getresponse()
                answer.read()
                is_open = not answer.will_close
                reason = "" if answer.status == http.HTTPStatus.OK else str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                reason = type(error).__name__
            self._record(Failure(request, begin, time.monotonic(), service, reason))
            if connection and not is_open:
                connection.close()
                connection = None
            self._stop.wait(PAUSE)
        if connection:
            connection.close()

    def _record(self, one: Failure) -> None:
        with self._lock:
            self.requests += 1
            self._begins[one.request] = one.begin
            if one.reason:
                self.failures.append(one)


def _make_headers(request: str, *, keep: bool) -> dict[str, str]:
    return {"X-Request": request} | ({} if keep else {"Connection": "close"})


def ask_directly(client: Machine, address: str, service: str, expected: Collection[str]) -> set[str]:
    """Send new requests to a load balancer's own address until all expected nodes have answered, or long enough.

    Returns the nodes that have answered, and the failures.
    """
    answers = set[str]()

    def work() -> None:
        for _ in range(20 * len(expected)):
            connection = http.client.HTTPConnection(address, PORTS[service], timeout=PATIENCE)
            try:
                connection.request("GET", "/", headers={"Connection": "close"})
                answer = connection.getresponse()
                body = answer.read().decode()
                answers.add(body if answer.status == http.HTTPStatus.OK else f"!{answer.status}")
            except (OSError, http.client.HTTPException) as error:
                answers.add(f"!{type(error).__name__}")
            finally:
                connection.close()
            if answers >= set(expected) or any(one.startswith("!") for one in answers):
                return

    start_thread_on(client, work).join()
    return answers
