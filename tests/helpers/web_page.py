"""Runs `lbagent web` on loopback, and a substitute for the daemon whose status it shows.

The libraries of the page take 0.4 s of processor time to load. A process that has loaded them is forked for each page
of the tests (`multiprocessing`'s fork server), so that a fresh page costs 10 ms.
"""

from __future__ import annotations

import contextlib
import http.client
import http.cookies
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

import bcrypt

from lbagent.cli import run
from tests.helpers.real_programs import LBAGENT, clean_environment, free_port, wait_until

USER, PASSWORD = "alice", "correct horse"


def server(proxy: str = "lb-iis", **more: object) -> dict[str, Any]:
    """Return a server of a node as in `status --json`."""
    found = {"proxy": proxy, "server": "web01", "address": "10.0.0.1:80", "line": "managed", "state": "UP"}
    return {**found, "sessions": 3, **more}


def node(name: str, address: str = "10.0.0.1", **more: object) -> dict[str, Any]:
    """Return a node whose servers are in balancing."""
    found: dict[str, Any] = {"name": name, "address": address, "role": "web", "status": "alive", "state": "in"}
    found |= {"since": int(time.time()) - 600, "why": "", "pause": None, "paused_by_tag": False, "quarantine": None}
    found |= {"tags": {}, "change": {"added": [], "removed": []}}
    return {**found, "servers": [server(server=name, address=f"{address}:80")], **more}


def status(*nodes: dict[str, Any], **more: object) -> dict[str, Any]:
    """Return the status of a load balancer without problems."""
    now = int(time.time())
    served = {"digest": "00ff", "worker": 4711, "alive": True, "failure": None}
    found: dict[str, Any] = {"version": 1, "at": now, "digest": "00ff", "confirmed": True, "served": served}
    found |= {"stats_socket": {"address": "/run/haproxy/admin.sock", "error": None}, "old_workers": 0}
    found |= {"events": {"pending": 0, "oldest": None}, "last_run": None, "blocked": [], "notes": [], "problems": []}
    found |= {"wrong": [], "run": {"at": now, "status": 0, "words": "unchanged: nothing to do"}, "last_success": now}
    found |= {"next_retry": None, "sync": {"at": now, "failing": None, "words": ""}, "peers": []}
    return {**found, "daemon": {"running": True, "needed": True}, "nodes": list(nodes), **more}


def document(*nodes: dict[str, Any], **more: object) -> dict[str, Any]:
    """Return the document that a daemon with these nodes publishes."""
    found: dict[str, Any] = {"version": 1, "name": "lb01", "at": time.time(), "heartbeat": time.time(), "busy": False}
    found |= {"status": status(*nodes), "error": None, "history": [], "metrics": "lbagent_daemon_running 1\n"}
    return {**found, **more}


def entry(why: str, **more: object) -> dict[str, Any]:
    """Return a change in the history."""
    found = {"at": int(time.time()), "why": why, "outcome": "applied", "words": "1 line added", "reloaded": False}
    return {**found, "ms": 35, "added": [], "removed": [], "added_count": 0, "removed_count": 0, **more}


class Publisher:
    """A daemon's status socket with the content of the test."""

    def __init__(self, content: Mapping[str, Any] | bytes) -> None:
        """Nothing is started before the `with`."""
        self.content = content
        self.asked = 0
        self._folder = tempfile.TemporaryDirectory(prefix="web-")
        self.folder = Path(self._folder.name)
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Start to listen."""
        path = self.folder / "status.sock"
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Stop like a killed process: the socket file stays and refuses connections."""
        if self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                reader, _ = listener.accept()
                self.asked += 1
                content = self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()
                with reader, contextlib.suppress(OSError):
                    reader.sendall(content)


class Answer(NamedTuple):
    """An answer of the page."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:  # noqa: ANN401  # JSON
        """The body, parsed."""
        return json.loads(self.text)

    @property
    def token(self) -> str:
        """The hidden field of the forms."""
        found = re.search(r'name="token" value="([0-9a-f]+)"', self.text)
        assert found, self.text
        return found[1]


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["lbagent.web.server", "uvicorn.protocols.http.h11_impl", __name__])


def _run_forked(argv: Sequence[str], env: Mapping[str, str], log: str) -> None:
    """Run `lbagent` in this process, which was forked for it."""
    os.environ.clear()
    os.environ.update(env)
    with open(os.devnull, "rb") as nothing, open(log, "wb") as output:
        for file, numbers in ((nothing, [0]), (output, [1, 2])):
            for number in numbers:
                os.dup2(file.fileno(), number)
    sys.argv = list(argv)
    run()


class WebPage:
    """The process of the page, and a client that keeps its cookie."""

    def __init__(self, folder: Path, *words: str, users: bool = False, env: Mapping[str, str] | None = None) -> None:
        """`folder` has the status socket; `words` are options."""
        self.port, self.folder = free_port(), folder
        self.cookie = ""
        argv = [str(LBAGENT), "-v", "web", "--listen", f"127.0.0.1:{self.port}", *words]
        if users:
            path = folder / "web.users"
            hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
            path.write_text(f"# written by htpasswd\n{USER}:{hashed}\n")
            argv += ["--users", str(path)]
        environ = {**clean_environment(), "SERF_RPC_ADDR": "127.0.0.1:1", **(env or {})}
        self._argv, self._env = argv, {**environ, "LBAGENT_RUNTIME_DIR": str(folder)}
        self.log = folder / "web.log"
        self.process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Self:
        for tries_left in (2, 1, 0):
            self.log.write_bytes(b"")
            self.process = _FORKS.Process(target=_run_forked, args=(self._argv, self._env, str(self.log)), daemon=True)
            self.process.start()
            try:
                wait_until(self._listens)
            except BaseException:
                self.__exit__()
                if not tries_left or "Address already in use" not in self.log.read_text():
                    raise
                # Another program of this machine was faster.
                before, self.port = self.port, free_port()
                self._argv = [word.replace(f":{before}", f":{self.port}") for word in self._argv]
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.terminate()
            self.process.join(15)
            self.process.kill()
            self.process.join()

    def add_options(self, *words: str) -> None:
        """Add options before the start."""
        self._argv += words

    @property
    def url(self) -> str:
        """The URL of the page."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def origin(self) -> dict[str, str]:
        """The headers that a browser adds to a form of this page."""
        return {"Origin": self.url, "Sec-Fetch-Site": "same-origin"}

    def get(self, path: str, **headers: str) -> Answer:
        """Send a GET; names of headers are written with `_`."""
        return self.send("GET", path, None, {name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, fields: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Answer:
        """Send a POST like a form of this page; `headers` replace those of a browser."""
        return self.send("POST", path, urlencode(fields), self.origin if headers is None else headers)

    def send(self, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> Answer:
        """Send one request over a new connection; the cookie is kept as by a browser."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {}
        given |= {"Cookie": self.cookie} if self.cookie else {}
        try:
            connection.request(method, path, body, {**given, **headers})
            answer = connection.getresponse()
            text = answer.read()
            for line in answer.headers.get_all("set-cookie", []):
                [morsel] = http.cookies.SimpleCookie(line).values()
                self.cookie = f"{morsel.key}={morsel.value}" if morsel.value else ""
            return Answer(answer.status, answer.headers, text.decode("utf-8", "replace"))
        finally:
            connection.close()

    def log_in(self, user: str = USER, password: str = PASSWORD, **fields: str) -> Answer:
        """Send the form of /login."""
        return self.post("/login", {"user": user, "password": password, **fields})

    @contextlib.contextmanager
    def listen(self) -> Iterator[Iterator[str]]:
        """Yield an iterator over the data of the events of /events."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/events", headers={"Cookie": self.cookie} if self.cookie else {})
            answer = connection.getresponse()
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = (line.decode() for line in iter(answer.readline, b""))
            yield (line.removeprefix("data: ").strip() for line in lines if line.startswith("data: "))
        finally:
            connection.close()

    @property
    def memory(self) -> float:
        """The resident memory in MiB."""
        assert self.process
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def _listens(self) -> bool:
        assert self.process
        if self.process.exitcode is not None:
            raise RuntimeError(self.log.read_text())
        # Not whether the port answers: another program may have it.
        return "web: listens on " in self.log.read_text()


def run_web(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `lbagent web` with invalid options to its end."""
    environ = {**clean_environment(), "LBAGENT_RUNTIME_DIR": str(folder), "PATH": os.environ["PATH"]}
    argv = [str(LBAGENT), "web", *words]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=30, check=False)
