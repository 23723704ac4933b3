"""The client of the demo: it sends requests on two connections all the time and never retries."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from typing import NamedTuple

_PAUSE = 0.005
"""Seconds between an answer and the next request."""


class Answer(NamedTuple):
    """One request: when it was answered, and by which node."""

    at: float
    node: str
    """Empty if the request failed."""


class Client:
    """Sends requests from `start` to `stop`: on one persistent connection, and on a new connection for each request."""

    def __init__(self, address: str, port: int) -> None:
        """Send nothing yet."""
        self._address, self._port = address, port
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=[persistent], daemon=True) for persistent in (True, False)
        ]
        self.answers: list[Answer] = []
        self.failures: list[str] = []

    @property
    def running(self) -> bool:
        """Whether it sends requests."""
        return self._threads[0].is_alive()

    def start(self) -> None:
        """Start sending requests."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop after the current requests."""
        self._stopped.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def between(self, begin: float, end: float) -> list[Answer]:
        """Return the answers between two times."""
        return [answer for answer in list(self.answers) if begin <= answer.at < end]

    def _run(self, persistent: bool) -> None:  # noqa: FBT001  # passed by Thread
        connection = http.client.HTTPConnection(self._address, self._port, timeout=5)
        with contextlib.closing(connection):
            while not self._stopped.is_set():
                self._send_request(connection)
                if not persistent:
                    connection.close()
                time.sleep(_PAUSE)

    def _send_request(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            node = response.read().decode()
            failure = "" if response.status == http.HTTPStatus.OK else f"status {response.status}"
        except (OSError, http.client.HTTPException) as error:
            node, failure = "", f"{type(error).__name__}: {error}"
            connection.close()
        if failure:
            self.failures.append(failure)
        self.answers.append(Answer(time.monotonic(), "" if failure else node))
