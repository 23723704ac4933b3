"""A headless Chromium, driven by the WebDriver protocol: JSON over HTTP."""

from __future__ import annotations

import base64
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, Self

from scenarios.programs import Program
from tests.helpers.real_programs import clean_environment, free_port, wait_until

# Chromium sends no requests except to the pages under test.
CHROMIUM_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
]
CHROMIUM_OPTIONS += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
]


class Browser:
    """One browser window, from `__enter__` to `__exit__`. `open` returns when the page is loaded."""

    def __init__(self) -> None:
        """Prepare chromedriver; `__enter__` starts it."""
        self._folder = tempfile.TemporaryDirectory(prefix="browser-")
        self._port, here = free_port(), Path(self._folder.name)
        argv = ["chromedriver", f"--port={self._port}", "--allowed-ips=127.0.0.1"]
        self.driver = Program(argv, {**clean_environment(), "HOME": str(here)}, here / "log")
        self._session = ""

    def __enter__(self) -> Self:
        try:
            self.driver.start()
            wait_until(self._is_ready, 60)
            arguments = [*CHROMIUM_OPTIONS, f"--user-data-dir={self._folder.name}/profile"]
            wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}}
            self._session = self._request("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._session:
            self._send("DELETE", "")
        self.driver.kill()
        self._folder.cleanup()

    def open(self, url: str) -> None:
        """Load a page with its style sheets, scripts and images."""
        self._send("POST", "/url", {"url": url})

    def click(self, link: str) -> None:
        """Follow the first link whose text contains `link`."""
        using = {"using": "partial link text", "value": link}
        element = next(iter(self._send("POST", "/element", using).values()))
        self._send("POST", f"/element/{element}/click", {})

    def press(self, css: str) -> None:
        """Click the first element that matches the selector."""
        self._send("POST", f"/element/{self._find(css)}/click", {})

    def fill(self, css: str, text: str) -> None:
        """Type `text` into the first element that matches the selector."""
        self._send("POST", f"/element/{self._find(css)}/value", {"text": text})

    def emulate(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Set the screen size in CSS pixels, and the light or dark colour scheme, for the next pages."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.send_command("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send_command("Emulation.setEmulatedMedia", {"features": scheme})

    def send_command(self, name: str, values: dict[str, Any]) -> Any:  # noqa: ANN401  # JSON
        """Send a command of Chromium's DevTools protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": name, "params": values})

    def _find(self, css: str) -> str:
        found = self._send("POST", "/element", {"using": "css selector", "value": css})
        return str(next(iter(found.values())))

    @property
    def url(self) -> str:
        """The URL of the page."""
        return str(self._send("GET", "/url"))

    @property
    def source(self) -> str:
        """The HTML of the page."""
        return str(self._send("GET", "/source"))

    @property
    def title(self) -> str:
        """The title of the page."""
        return str(self._send("GET", "/title"))

    def run(self, script: str) -> Any:  # noqa: ANN401  # whatever JavaScript returns
        """Run the body of a JavaScript function on the page, and return its result."""
        return self._send("POST", "/execute/sync", {"script": script, "args": []})

    def screenshot(self, path: Path) -> None:
        """Save the visible part of the page as PNG."""
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def _is_ready(self) -> bool:
        try:
            return bool(self._request("GET", "/status")["ready"])
        except OSError:
            return False

    def _send(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON
        return self._request(method, f"/session/{self._session}{path}", body)

    def _request(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self._port}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
