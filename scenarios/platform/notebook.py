"""An open notebook: a websocket through the load balancer, with a browser's cookie, which must stay open."""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
import urllib.request
from typing import Any, Self


class Notebook:
    """Sends a message and requests a page every half second, and records the nodes that answer."""

    def __init__(self) -> None:
        """Prepare the notebook; `__enter__` opens it."""
        self.answered = 0
        self.nodes: set[str] = set()
        self.page_nodes: set[str] = set()
        self._cookie: dict[str, str] = {}
        self._failed: list[Exception] = []
        self._stop = threading.Event()
        self._open = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        client: Any = importlib.import_module("websockets.sync.client")
        with urllib.request.urlopen("http://10.20.0.2:8080/") as answer:
            self._cookie = {"Cookie": answer.headers["Set-Cookie"].split(";")[0]}
        # No pings: only counted messages use the websocket.
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
                self._socket.send(str(self.answered))
                node, message = self._socket.recv(timeout=30).split()
                assert message == str(self.answered)
                self.nodes.add(node)
                page = urllib.request.Request("http://10.20.0.2:8080/api/version", headers=self._cookie)
                with urllib.request.urlopen(page, timeout=30) as answer:
                    self.page_nodes.add(json.load(answer)["body"]["node"])
                self.answered += 1
        except Exception as error:  # noqa: BLE001  # raised by `__exit__`
            self._failed.append(error)
