"""Clients that hide nothing: each failure of a request counts, none is tried again. A process of its own.

python -m load.clients SECONDS RATE PORT…: so many requests a second and port, over connections that are kept and
over new ones, in turn; prints a JSON object with every request's moment and server, and every failure.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from typing import Any

KEPT, NEW = 6, 2
"""Threads that keep their connection, and threads that make a new one for each request, for each port."""


def client(port: int, until: float, pause: float, *, keep: bool, said: list[Any]) -> None:
    """Ask again and again; a connection that the server wants closed is closed, any other is kept."""
    connection: http.client.HTTPConnection | None = None
    while (started := time.time()) < until:
        try:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.auto_open = 0  # else it would reconnect in silence
                connection.connect()
            connection.request("GET", "/", headers={} if keep else {"Connection": "close"})
            answer = connection.getresponse()
            server = answer.read().decode()
            said.append((started, port, server if answer.status == 200 else f"!{answer.status}"))
            if answer.will_close:
                connection.close()
                connection = None
        except Exception as error:  # noqa: BLE001  # whatever it is, a user would have seen it
            said.append((started, port, f"!{type(error).__name__}"))
            if connection:
                connection.close()
            connection = None
        time.sleep(max(0.0, started + pause - time.time()))


def main(words: list[str]) -> None:
    """Run, and tell."""
    seconds, rate, *ports = (float(word) for word in words)
    said: list[Any] = []
    until = time.time() + seconds
    threads = [
        threading.Thread(
            target=client, args=(int(port), until, (KEPT + NEW) / rate), kwargs={"keep": number < KEPT, "said": said}
        )
        for port in ports
        for number in range(KEPT + NEW)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
