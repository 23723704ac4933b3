"""An open notebook: a websocket through the load balancer, with a browser's cookie, that must not break."""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
import urllib.request
from typing import Any, Self


class Notebook:
    """From the `with` on, says something and asks for a page every half second, and remembers which nodes answered."""

    def __init__(self) -> None:
        """Nothing is opened before the `with`."""
        self.said = 0
        self.nodes: set[str] = set()
        self.pages: set[str] = set()
        self._cookie: dict[str, str] = {}
        self._failed: list[Exception] = []
        self._stop = threading.Event()
        self._open = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        client: Any = importlib.import_module("websockets.sync.client")
        with urllib.request.urlopen("http://10.20.0.2:8080/") as answer:
            self._cookie = {"Cookie": answer.headers["Set-Cookie"].split(";")[0]}
        # No pings: what goes over it is what is counted.
        opened = client.connect("ws://10.20.0.2:8080/ws", additional_headers=self._cookie, ping_interval=None)
        self._socket = self._open.enter_context(opened)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._open.close()
        if self._failed:
            raise self._failed[0]

    def _work(self) -> None:
        try:
            while not self._stop.wait(0.5):
                self._socket.send(str(self.said))
                node, words = self._socket.recv(timeout=30).split()
                assert words == str(self.said)
                self.nodes.add(node)
                page = urllib.request.Request("http://10.20.0.2:8080/api/version", headers=self._cookie)
                with urllib.request.urlopen(page, timeout=30) as answer:
                    self.pages.add(json.load(answer)["body"]["node"])
                self.said += 1
        except Exception as error:  # noqa: BLE001  # told by who waits
            self._failed.append(error)
