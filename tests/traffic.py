"""Keep-alive clients that hide nothing: each request that fails counts, and none is tried again."""

from __future__ import annotations

import collections
import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator

Count = collections.Counter[str]
"""How requests ended: `ok`, a status, or the name of an error."""


@contextlib.contextmanager
def load(port: int, clients: int = 8, pause: float = 0.002) -> Iterator[Count]:
    """So many clients ask `port` without end, until the end of the block; then the count is complete."""
    stop, count, lock = threading.Event(), Count(), threading.Lock()

    def ended(how: str) -> None:
        with lock:
            count[how] += 1

    threads = [threading.Thread(target=_client, args=(port, stop, ended, pause), daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield count
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def _client(port: int, stop: threading.Event, ended: Callable[[str], None], pause: float) -> None:
    connection: http.client.HTTPConnection | None = None
    while not stop.is_set():
        try:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.auto_open = 0  # http.client would connect anew without a word
                connection.connect()
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read()
            ended("ok" if answer.status == http.HTTPStatus.OK else str(answer.status))
            gone = answer.will_close
        except (OSError, http.client.HTTPException) as error:
            ended(type(error).__name__)
            gone = True
        if gone and connection:
            connection.close()
            connection = None
        time.sleep(pause)
    if connection:
        connection.close()
