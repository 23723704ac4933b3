"""The client: two browsers without pity, who ask all the time and try nothing twice."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from typing import NamedTuple

_PAUSE = 0.005
"""Seconds between an answer and the next request."""


class Answer(NamedTuple):
    """One request, when it was answered, and by which node."""

    at: float
    node: str
    """Nothing where the request failed."""


class Client:
    """Asks HAProxy from `start` to `stop`, on one connection that stays and on a new one each time."""

    def __init__(self, address: str, port: int) -> None:
        """Nothing is asked yet."""
        self._address, self._port = address, port
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[stays], daemon=True) for stays in (True, False)]
        self.answers: list[Answer] = []
        self.failures: list[str] = []

    @property
    def running(self) -> bool:
        """Whether it asks already."""
        return self._threads[0].is_alive()

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the requests under way, and ask no more."""
        self._stopped.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def between(self, begin: float, end: float) -> list[Answer]:
        """The answers of a stretch of time."""
        return [answer for answer in list(self.answers) if begin <= answer.at < end]

    def _ask(self, stays: bool) -> None:  # noqa: FBT001  # which of the two browsers
        connection = http.client.HTTPConnection(self._address, self._port, timeout=5)
        with contextlib.closing(connection):
            while not self._stopped.is_set():
                self._ask_once(connection)
                if not stays:
                    connection.close()
                time.sleep(_PAUSE)

    def _ask_once(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            node = response.read().decode()
            why = "" if response.status == http.HTTPStatus.OK else f"status {response.status}"
        except (OSError, http.client.HTTPException) as error:
            node, why = "", f"{type(error).__name__}: {error}"
            connection.close()
        if why:
            self.failures.append(why)
        self.answers.append(Answer(time.monotonic(), "" if why else node))
