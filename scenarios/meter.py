"""What clients of an address see, step by step: how many requests, how many lost, how long nobody was served."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, Self

from scenarios.machines import Machine, thread_on
from tests.helpers.http_clients import Count, send_request
from tests.helpers.real_programs import wait_until

CLIENTS = {"keep-alive": 4, "new": 8}
"""So many go on over one connection, so many make one for each request; the last of each asks the second port."""

PAUSE = 0.05
"""Seconds between a client's answer and its next request."""

PATIENCE = 1.0
"""Seconds after which a request without an answer is lost."""


class Answer(NamedTuple):
    """How one request ended."""

    at: float
    kind: str
    how: str
    server: str


class Row(NamedTuple):
    """What clients saw in one step."""

    step: str
    seconds: float
    requests: int
    lost: dict[str, Count]
    gap: float
    servers: frozenset[str]

    @property
    def broken(self) -> int:
        """Requests that ended in an error, rather than in no answer within PATIENCE."""
        return sum(count.total() - count["TimeoutError"] for count in self.lost.values())

    def __str__(self) -> str:
        lost = " ".join(f"{self.lost[kind].total():10}" for kind in CLIENTS)
        how = ", ".join(f"{name} {times}" for name, times in sorted(sum(self.lost.values(), Count()).items()))
        return f"{self.step:62} {self.seconds:7.1f} {self.requests:8} {lost} {self.gap:8.2f}  {how}".rstrip()


class Meter:
    """Clients on a machine, who ask an address from `with` to its end."""

    HEAD = f"{'step':62} {'seconds':>7} {'requests':>8} {'lost, kept':>10} {'lost, new':>10} {'outage s':>8}"

    def __init__(self, client: Machine, host: str, ports: tuple[int, int]) -> None:
        """Nobody asks yet; the first of `ports` is asked by most, and measured by its outage."""
        self._client, self._host, self._ports = client, host, ports
        self._stop, self._lock, self._answers = threading.Event(), threading.Lock(), list[Answer]()
        self._threads: list[threading.Thread] = []
        self.rows: list[Row] = []

    def __enter__(self) -> Self:
        for kind, clients in CLIENTS.items():
            for number in range(clients):
                work = functools.partial(self._ask, kind, self._ports[number == clients - 1])
                self._threads.append(thread_on(self._client, work))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def _ask(self, kind: str, port: int) -> None:
        def said(how: str, server: str) -> float:
            with self._lock:
                self._answers.append(Answer(time.monotonic(), f"{kind} {port}", how, server))
            return PAUSE

        going, keep = (lambda: not self._stop.is_set()), kind == "keep-alive"
        send_request(port, going, said, keep=keep, host=self._host, patience=PATIENCE)

    @contextlib.contextmanager
    def step(self, words: str) -> Iterator[list[Row]]:
        """What happens within is one row, which is in the list afterwards."""
        begin, rows = time.monotonic(), list[Row]()
        yield rows
        rows.append(self._row(words, begin, time.monotonic()))
        self.rows += rows

    def served(self, requests: int = 100) -> None:
        """Wait until so many more requests have been answered."""
        start = time.monotonic()
        wait_until(lambda: sum(one.at > start and one.how == "ok" for one in self._seen()) >= requests, 60)

    def _seen(self) -> list[Answer]:
        with self._lock:
            return self._answers[-1000:]

    def _row(self, words: str, begin: float, end: float) -> Row:
        with self._lock:
            seen = [answer for answer in self._answers if begin <= answer.at <= end]
        lost = {
            kind: collections.Counter(one.how for one in seen if one.kind.startswith(kind) and one.how != "ok")
            for kind in CLIENTS
        }
        served = [begin, *(one.at for one in seen if one.how == "ok" and one.kind.endswith(f" {self._ports[0]}")), end]
        gap = max(later - earlier for earlier, later in itertools.pairwise(served))
        servers = frozenset(one.server for one in seen if one.how == "ok")
        return Row(words, end - begin, len(seen), lost, gap, servers)
