"""Measures what clients of an address see in each step: requests, lost requests, the longest outage."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, Self

from scenarios.machines import Machine, start_thread_on
from tests.helpers.http_clients import Count, send_request
from tests.helpers.real_programs import wait_until

CLIENTS = {"keep-alive": 4, "new": 8}
"""Number of clients with one connection, and with one per request. The last of each uses the second port."""

PAUSE = 0.05
"""Seconds between an answer and the client's next request."""

PATIENCE = 1.0
"""Seconds after which a request without an answer is lost."""


class Answer(NamedTuple):
    """How one request ended."""

    time: float
    kind: str
    outcome: str
    server: str


class Row(NamedTuple):
    """What clients saw in one step."""

    step: str
    seconds: float
    requests: int
    lost: dict[str, Count]
    outage: float
    servers: frozenset[str]

    @property
    def errors(self) -> int:
        """Requests that ended in an error, rather than in no answer within PATIENCE."""
        return sum(count.total() - count["TimeoutError"] for count in self.lost.values())

    def __str__(self) -> str:
        lost = " ".join(f"{self.lost[kind].total():10}" for kind in CLIENTS)
        how = ", ".join(f"{name} {times}" for name, times in sorted(sum(self.lost.values(), Count()).items()))
        return f"{self.step:62} {self.seconds:7.1f} {self.requests:8} {lost} {self.outage:8.2f}  {how}".rstrip()


class Meter:
    """Clients on a machine that send requests to an address, from `__enter__` to `__exit__`."""

    HEAD = f"{'step':62} {'seconds':>7} {'requests':>8} {'lost, kept':>10} {'lost, new':>10} {'outage s':>8}"

    def __init__(self, client: Machine, host: str, ports: tuple[int, int]) -> None:
        """Prepare the clients. Most use the first of `ports`; the outage is measured there."""
        self._client, self._host, self._ports = client, host, ports
        self._stop, self._lock, self._answers = threading.Event(), threading.Lock(), list[Answer]()
        self._threads: list[threading.Thread] = []
        self.rows: list[Row] = []

    def __enter__(self) -> Self:
        for kind, clients in CLIENTS.items():
            for number in range(clients):
                work = functools.partial(self._send_requests, kind, self._ports[number == clients - 1])
                self._threads.append(start_thread_on(self._client, work))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def _send_requests(self, kind: str, port: int) -> None:
        def record(outcome: str, server: str) -> float:
            with self._lock:
                self._answers.append(Answer(time.monotonic(), f"{kind} {port}", outcome, server))
            return PAUSE

        is_running, keep = (lambda: not self._stop.is_set()), kind == "keep-alive"
        send_request(port, is_running, record, keep=keep, host=self._host, patience=PATIENCE)

    @contextlib.contextmanager
    def step(self, words: str) -> Iterator[list[Row]]:
        """Measure the block as one row. Yields a list that contains the row afterwards."""
        begin, rows = time.monotonic(), list[Row]()
        yield rows
        rows.append(self._make_row(words, begin, time.monotonic()))
        self.rows += rows

    def wait_for_requests(self, requests: int = 100) -> None:
        """Wait until this number of new requests has succeeded."""
        start = time.monotonic()
        wait_until(
            lambda: sum(one.time > start and one.outcome == "ok" for one in self._list_recent_answers()) >= requests, 60
        )

    def _list_recent_answers(self) -> list[Answer]:
        with self._lock:
            return self._answers[-1000:]

    def _make_row(self, words: str, begin: float, end: float) -> Row:
        with self._lock:
            seen = [answer for answer in self._answers if begin <= answer.time <= end]
        lost = {
            kind: collections.Counter(one.outcome for one in seen if one.kind.startswith(kind) and one.outcome != "ok")
            for kind in CLIENTS
        }
        served = [
            begin,
            *(one.time for one in seen if one.outcome == "ok" and one.kind.endswith(f" {self._ports[0]}")),
            end,
        ]
        outage = max(later - earlier for earlier, later in itertools.pairwise(served))
        servers = frozenset(one.server for one in seen if one.outcome == "ok")
        return Row(words, end - begin, len(seen), lost, outage, servers)
