"""The site of the Windows scenarios: two load balancers, an encrypted cluster, and what each step took."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Self

from scenarios.wine import Ended, Server
from tests.helpers.pair import Balancer, run_pair
from tests.helpers.real_programs import CONFIG, wait_until


class Report:
    """What each step took and said, printed as a table at the end."""

    def __init__(self) -> None:
        """Empty."""
        self._rows: list[tuple[str, float, str]] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """Time a step; what is put into the list is told with it."""
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
        """`key` is what the cluster is encrypted with."""
        self.two, self.key, self.report = two, key, report

    def server(self, number: int, role: str = "web", folder: str = "", name: str = "") -> Server:
        """A server that knows nothing of the cluster yet."""
        return Server(name or f"win{number:02}", f"127.0.0.{number}", role, folder)

    @contextlib.contextmanager
    def enrolled(self, number: int, role: str = "web", folder: str = "", name: str = "") -> Iterator[Server]:
        """A server that has booted and stands in both haproxy.cfg."""
        with self.server(number, role, folder, name) as server:
            server.configure(self.key, self.addresses)
            installed = server.install()
            assert installed.status == 0, installed.said
            server.boot()
            self.has(server)
            yield server

    @property
    def addresses(self) -> list[str]:
        """Where the load balancers' agents are."""
        return [balancer.agent.bind for balancer in self.two]

    def line(self, server: Server) -> str:
        """The line that the server should have on both."""
        return self.two[0].lb.server(server.name, server.address, server.role)

    def paused(self, server: Server) -> str:
        """The line that stands for the server while it is paused."""
        return f"# lbagent paused {server.name} {server.address} role={server.role}"

    def has(self, server: Server) -> None:
        """Wait until both serve it."""
        self._until(server, [self.line(server)])

    def pauses(self, server: Server) -> None:
        """Wait until both have it paused."""
        self._until(server, [self.paused(server)])

    def lacks(self, server: Server) -> None:
        """Wait until neither has it."""
        self._until(server, [])

    def of(self, server: Server) -> list[list[str]]:
        """What stands of the server on either load balancer, as it is now."""
        return [[line for line in one.lb.managed if f" {server.name} " in line] for one in self.two]

    def status(self, server: Server) -> str:
        """What Serf says of it: `alive`, `left`, `failed`."""
        return self.two[0].agent.members().get(server.name, "unknown")

    def _until(self, server: Server, lines: list[str]) -> None:
        wait_until(lambda: self.of(server) == [lines, lines] and all(one.lb.idle for one in self.two), 60)


@contextlib.contextmanager
def site(report: Report) -> Iterator[Site]:
    """A site of its own, whose sessions may last."""
    key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
    with run_pair(CONFIG.replace(" server 10s", " server 10m"), more=[f"-encrypt={key}"]) as two:
        yield Site(two, key, report)


def confirmed(ended: Ended) -> bool:
    """Whether both load balancers have said `done`, and the script has ended so."""
    lines = ended.said.splitlines()[1:3]
    return ended.status == 0 and [line.split()[:2] for line in lines] == [["lb01", "done"], ["lb02", "done"]]


class Slow:
    """A web server whose answers take until `release`."""

    def __init__(self, address: str, port: int) -> None:
        """Serves from the `with` on."""
        gate = self._gate = threading.Event()

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                gate.wait(600)
                self.send_response(200)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"slow")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name it has
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
        """What a patient client is answered through a load balancer."""
        connection = http.client.HTTPConnection("127.0.0.1", front, timeout=600)
        connection.request("GET", "/")
        with connection.getresponse() as answer:
            return answer.read().decode()

    def release(self) -> None:
        """Answer everything, from now on at once."""
        self._gate.set()
