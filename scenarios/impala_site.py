"""The files of examples/impala on loopback: load balancers, daemons that send their name, clients by address."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.helpers.real_programs import PATIENCE, Haproxy, LoadBalancer, free_port

EXAMPLE = Path(__file__).parent.parent / "examples" / "impala"

SOURCES = tuple(f"127.0.9.{number}" for number in range(1, 201))
"""The source addresses of 200 clients."""

_ESTABLISHED, _KEEP_ALIVE = "01", "02:"
_PRIVILEGES = "    user haproxy\n    group haproxy\n"


def replace_words(text: str, places: Mapping[str, str]) -> str:
    """Return `text` with each key of `places` replaced by its value. Fails if `text` does not contain a key."""
    for place, other in places.items():
        assert place in text, f"the example no longer contains {place!r}"
        text = text.replace(place, other)
    return text


class Site:
    """The ports that the load balancers of one test share: those of the daemons, and those of `peers`."""

    def __init__(self, *, one_port: bool = False) -> None:
        """Choose free ports. With `one_port`, HiveServer2 and Beeswax share a port: HAProxy sees only TCP."""
        self.hs2 = free_port()
        self.beeswax = self.hs2 if one_port else free_port()
        self.peers = {"lb01": free_port(), "lb02": free_port()}


class Balancer:
    """A load balancer with the example's haproxy.cfg and roles.yml. Only addresses, ports and paths differ."""

    def __init__(
        self,
        site: Site,
        name: str = "lb01",
        changed: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        """Write the files; `__enter__` starts HAProxy. `changed` maps words of haproxy.cfg to their replacements."""
        self.shell, self.jdbc, self.stats = free_port(), free_port(), free_port()
        self.lb = LoadBalancer("", "", binary)
        text = replace_words((EXAMPLE / "haproxy.cfg").read_text(encoding="utf-8"), changed or {})
        self.lb.cfg.write_text(replace_words(text, self._make_replacements(site, name)), encoding="utf-8")
        self._roles = replace_words(
            (EXAMPLE / "roles.yml").read_text(encoding="utf-8"),
            {
                "/etc/haproxy/haproxy.cfg": str(self.lb.cfg),
                "beeswax_port|21000": f"beeswax_port|{site.beeswax}",
                "hs2_port|21050": f"hs2_port|{site.hs2}",
                "10.0.0.0/8": "127.0.0.0/8",
            },
        )
        self.set_runtime(on=True)
        self.haproxy = Haproxy(self.lb)
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lb)
            stack.enter_context(self.haproxy)
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def set_runtime(self, *, on: bool) -> None:
        """Apply changes through the runtime API, or each by a reload if not `on`."""
        text = self._roles if on else self._roles.replace("haproxy:\n", "haproxy:\n  runtime: off\n")
        beside = self.lb.etc / "roles.new"
        beside.write_text(text, encoding="utf-8")
        beside.rename(self.lb.roles)

    def _make_replacements(self, site: Site, name: str) -> dict[str, str]:
        places = {
            "/run/haproxy/admin.sock": str(self.lb.socket),
            "localpeer lb01": f"localpeer {name}",
            "10.0.0.1:1024": f"127.0.0.1:{site.peers['lb01']}",
            "10.0.0.2:1024": f"127.0.0.1:{site.peers['lb02']}",
            "bind :25003": f"bind 127.0.0.1:{self.shell}",
            "bind :21051": f"bind 127.0.0.1:{self.jdbc}",
            "bind :25002": f"bind 127.0.0.1:{self.stats}",
        }
        return places if os.geteuid() == 0 else {_PRIVILEGES: "", **places}


class Daemon:
    """A daemon that sends its name to each client of its ports, and waits until the client disconnects."""

    def __init__(self, name: str, address: str, site: Site) -> None:
        """Prepare the daemon; `__enter__` starts it."""
        self.name, self.address = name, address
        self._ports = {site.beeswax, site.hs2}
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for port in self._ports:
                server = _Server((self.address, port), self.name)
                stack.callback(server.server_close)
                threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
                stack.callback(server.shutdown)
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], name: str) -> None:
        self.name = name
        super().__init__(address, _Answer)


class _Answer(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.sendall(f"{self.server.name}\n".encode())
            self.request.recv(1)


def find_daemon(port: int, source: str) -> str:
    """Return the name of the daemon that a client with this source address gets. Raises OSError if it gets none."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0)) as connection:
        return connection.makefile().readline().strip()


def map_clients(port: int) -> dict[str, str]:
    """Return the daemon of each client, by source address; the clients connect one after another."""
    return {source: find_daemon(port, source) for source in SOURCES}


def read_keepalive_timers(*ports: int) -> list[float]:
    """Return the seconds until the next keep-alive probe of each connection to or from one of these ports.

    Both ends of a connection have a row; ends without keep-alive are omitted.
    """
    found = []
    with open("/proc/net/tcp", encoding="ascii") as table:
        for _, local, remote, state, _, timer, *_ in map(str.split, table):
            known = {int(one.partition(":")[2], 16) for one in (local, remote) if ":" in one} & {*ports}
            if state == _ESTABLISHED and known and timer.startswith(_KEEP_ALIVE):
                found.append(int(timer.removeprefix(_KEEP_ALIVE), 16) / os.sysconf("SC_CLK_TCK"))
    return found


def measure_moved_share(before: Mapping[str, str], after: Mapping[str, str]) -> float:
    """Return the share of the clients that get another daemon than before, in percent."""
    return 100 * sum(after[source] != daemon for source, daemon in before.items()) / len(before)
