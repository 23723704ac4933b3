"""The site of the Windows scenarios: two load balancers in an encrypted cluster, and a report of each step."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Self

from scenarios.wine import ScriptResult, Server
from tests.helpers.pair import Balancer, run_pair
from tests.helpers.real_programs import CONFIG, wait_until


class Report:
    """The duration and output of each step, printed as a table at the end."""

    def __init__(self) -> None:
        """Start with no steps."""
        self._rows: list[tuple[str, float, str]] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """Measure a step. Text that the block appends to the yielded list is printed with it."""
        began, words = time.monotonic(), list[str]()
        yield words
        self._rows.append((what, time.monotonic() - began, " ".join(words).strip()))

    def show(self) -> None:
        """Print the table."""
        width = max((len(what) for what, _, _ in self._rows), default=0)
        print("\n")
        for what, seconds, words in self._rows:
            first, *others = words.split("\n")
            print(f"{what:{width}}  {seconds:5.1f} s  {first}")
            for line in others:
                print(f"{'':{width}}           {line}")


class Site:
    """Two load balancers in one encrypted cluster, which Windows servers join."""

    def __init__(self, two: tuple[Balancer, Balancer], key: str, report: Report) -> None:
        """`key` is the encryption key of the cluster."""
        self.balancers, self.key, self.report = two, key, report

    def server(self, number: int, role: str = "web", folder: str = "", name: str = "") -> Server:
        """Return a server that is not configured for the cluster yet."""
        return Server(name or f"win{number:02}", f"127.0.0.{number}", role, folder)

    @contextlib.contextmanager
    def enrol(self, number: int, role: str = "web", folder: str = "", name: str = "") -> Iterator[Server]:
        """Yield a server that has booted, and has a line in haproxy.cfg of both load balancers."""
        with self.server(number, role, folder, name) as server:
            server.configure(self.key, self.addresses)
            installed = server.install()
            assert installed.status == 0, installed.output
            server.boot()
            self.wait_until_added(server)
            yield server

    @property
    def addresses(self) -> list[str]:
        """The addresses of the load balancers' agents."""
        return [balancer.agent.bind for balancer in self.balancers]

    def server_line(self, server: Server) -> str:
        """Return the server line that both load balancers should have."""
        return self.balancers[0].lb.server(server.name, server.address, server.role)

    def paused_line(self, server: Server) -> str:
        """Return the comment line that replaces the server line during a pause."""
        return f"# lbagent paused {server.name} {server.address} role={server.role}"

    def wait_until_added(self, server: Server) -> None:
        """Wait until both load balancers have its server line."""
        self._wait_for_lines(server, [self.server_line(server)])

    def wait_until_paused(self, server: Server) -> None:
        """Wait until both load balancers have paused it."""
        self._wait_for_lines(server, [self.paused_line(server)])

    def wait_until_removed(self, server: Server) -> None:
        """Wait until no load balancer has a line for it."""
        self._wait_for_lines(server, [])

    def read_lines(self, server: Server) -> list[list[str]]:
        """Return the server's managed lines on each load balancer."""
        return [[line for line in one.lb.managed if f" {server.name} " in line] for one in self.balancers]

    def read_status(self, server: Server) -> str:
        """Return its status in Serf: `alive`, `left`, `failed`, or `unknown`."""
        return self.balancers[0].agent.members().get(server.name, "unknown")

    def _wait_for_lines(self, server: Server, lines: list[str]) -> None:
        wait_until(lambda: self.read_lines(server) == [lines, lines] and all(one.lb.idle for one in self.balancers), 60)


@contextlib.contextmanager
def run_site(report: Report) -> Iterator[Site]:
    """Run a new site, whose server timeout permits long sessions."""
    key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
    with run_pair(CONFIG.replace(" server 10s", " server 10m"), more=[f"-encrypt={key}"]) as two:
        yield Site(two, key, report)


def is_confirmed(ended: ScriptResult) -> bool:
    """Return whether both load balancers answered `done`, and the script exited with 0."""
    lines = ended.output.splitlines()[1:3]
    words = [line.replace(",", " ").split()[:2] for line in lines]
    return ended.status == 0 and words == [["lb01", "done"], ["lb02", "done"]]


class SlowServer:
    """A web server that answers only after `release`."""

    def __init__(self, address: str, port: int) -> None:
        """Prepare the server; `__enter__` starts it."""
        gate = self._gate = threading.Event()

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                gate.wait(600)
                self.send_response(200)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"slow")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the base class
                pass

        self._server = http.server.ThreadingHTTPServer((address, port), Answer)
        self._server.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def client(front: int) -> str:
        """Send a request through a load balancer with a long time limit, and return the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", front, timeout=600)
        connection.request("GET", "/")
        with connection.getresponse() as answer:
            return answer.read().decode()

    def release(self) -> None:
        """Send all answers, now and later, at once."""
        self._gate.set()
