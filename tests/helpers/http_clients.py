"""HTTP clients that count each failed request and never retry."""

from __future__ import annotations

import collections
import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator

Count = collections.Counter[str]
"""Numbers of requests by result: `ok`, a status, or the name of an error."""


@contextlib.contextmanager
def run_clients(port: int, clients: int = 4, pause: float = 0.01) -> Iterator[Count]:
    """Send requests to `port` from `clients` clients until the end of the block; the count is complete after it."""
    stop, count, lock = threading.Event(), Count(), threading.Lock()

    def ended(how: str, _: str) -> float:
        with lock:
            count[how] += 1
        return pause

    def going() -> bool:
        return not stop.is_set()

    threads = [threading.Thread(target=send_request, args=(port, going, ended), daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield count
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def send_request(  # one parameter per property of the request
    port: int,
    going: Callable[[], bool],
    report: Callable[[str, str], float],
    *,
    keep: bool = True,
    host: str = "127.0.0.1",
    patience: float = 5,
) -> None:
    """Send requests to `port` while `going()`, over one connection or (not `keep`) over a new one for each request.

    `report` gets the result and the answering server of each, and returns the seconds to wait before the next. Without
    an answer within `patience` seconds a request has failed.
    """
    connection: http.client.HTTPConnection | None = None
    while going():
        server = ""
        try:
            if connection is None:
                connection = http.client.HTTPConnection(host, port, timeout=patience)
                connection.auto_open = 0  # http.client would reconnect silently
                connection.connect()
            connection.request("GET", "/", headers={} if keep else {"Connection": "close"})
            answer = connection.getresponse()
            server = answer.read().decode()
            how, gone = "ok" if answer.status == http.HTTPStatus.OK else str(answer.status), answer.will_close
        except (OSError, http.client.HTTPException) as error:
            how, gone = type(error).__name__, True
        if gone and connection:
            connection.close()
            connection = None
        time.sleep(report(how, server))
    if connection:
        connection.close()
