"""Clients that hide nothing: each failure of a request counts, none is tried again. A process of its own.

python -m load.clients SECONDS RATE PORT…: so many requests a second and port, over connections that are kept and
over new ones, in turn; prints a JSON object with every request's moment and server, and every failure.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from tests.helpers.http_clients import ask

KEPT, NEW = 6, 2
"""Threads that keep their connection, and threads that make a new one for each request, for each port."""


def client(port: int, until: float, pause: float, *, keep: bool, said: list[Any]) -> None:
    """Ask once in each `pause`; the moment, the port and who answered, or after a `!` what went wrong, are `said`."""
    started = time.time()

    def going() -> bool:
        nonlocal started
        started = time.time()
        return started < until

    def ended(how: str, server: str) -> float:
        said.append((started, port, server if how == "ok" else f"!{how}"))
        return max(0.0, started + pause - time.time())

    ask(port, going, ended, keep=keep)


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
