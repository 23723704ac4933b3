"""python -m load.clients SECONDS RATE PORT…: send RATE requests per second to each port and never retry.

The requests use persistent connections and new ones. Prints a JSON list of [start, port, server]; a failed request
has `!` and the failure in place of the server.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from tests.helpers.http_clients import send_request

KEPT, NEW = 6, 2
"""Number of threads per port with a persistent connection, and with a new connection for each request."""


def client(port: int, until: float, pause: float, *, keep: bool, requests: list[Any]) -> None:
    """Send a request every `pause` seconds until `until`; add each one to `requests`."""
    started = time.time()

    def going() -> bool:
        nonlocal started
        started = time.time()
        return started < until

    def ended(how: str, server: str) -> float:
        requests.append((started, port, server if how == "ok" else f"!{how}"))
        return max(0.0, started + pause - time.time())

    send_request(port, going, ended, keep=keep)


def main(words: list[str]) -> None:
    """Run the clients and print their requests."""
    seconds, rate, *ports = (float(word) for word in words)
    requests: list[Any] = []
    until = time.time() + seconds
    threads = [
        threading.Thread(
            target=client,
            args=(int(port), until, (KEPT + NEW) / rate),
            kwargs={"keep": number < KEPT, "requests": requests},
        )
        for port in ports
        for number in range(KEPT + NEW)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(requests, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
