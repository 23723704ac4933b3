"""The files of examples/impala on loopback: load balancers, daemons that only say who they are, clients by address."""

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
"""The addresses of two hundred clients."""

_ESTABLISHED, _KEEP_ALIVE = "01", "02:"
_PRIVILEGES = "    user haproxy\n    group haproxy\n"


def moved(text: str, places: Mapping[str, str]) -> str:
    """`text` with these words replaced, each of which it has to hold."""
    for place, other in places.items():
        assert place in text, f"the example no longer says {place!r}"
        text = text.replace(place, other)
    return text


class Site:
    """What the load balancers of one test share: the ports of the daemons, and where each hands its table to."""

    def __init__(self, *, one_port: bool = False) -> None:
        """With `one_port` the daemons speak HiveServer2 on the port for Beeswax too: to HAProxy both are TCP."""
        self.hs2 = free_port()
        self.beeswax = self.hs2 if one_port else free_port()
        self.peers = {"lb01": free_port(), "lb02": free_port()}


class Balancer:
    """A load balancer on the example's own haproxy.cfg and roles.yml; only addresses, ports and paths are others."""

    def __init__(
        self,
        site: Site,
        name: str = "lb01",
        changed: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        """`changed` is what haproxy.cfg says in the place of the example's words; nothing runs before the `with`."""
        self.shell, self.jdbc, self.stats = free_port(), free_port(), free_port()
        self.lb = LoadBalancer("", "", binary)
        text = moved((EXAMPLE / "haproxy.cfg").read_text(encoding="utf-8"), changed or {})
        self.lb.cfg.write_text(moved(text, self._places(site, name)), encoding="utf-8")
        self._roles = moved(
            (EXAMPLE / "roles.yml").read_text(encoding="utf-8"),
            {
                "/etc/haproxy/haproxy.cfg": str(self.lb.cfg),
                "beeswax_port|21000": f"beeswax_port|{site.beeswax}",
                "hs2_port|21050": f"hs2_port|{site.hs2}",
                "10.0.0.0/8": "127.0.0.0/8",
            },
        )
        self.runtime(on=True)
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

    def runtime(self, *, on: bool) -> None:
        """Have changes said to HAProxy, or (not `on`) each of them take a reload."""
        text = self._roles if on else self._roles.replace("haproxy:\n", "haproxy:\n  runtime: off\n")
        beside = self.lb.etc / "roles.new"
        beside.write_text(text, encoding="utf-8")
        beside.rename(self.lb.roles)

    def _places(self, site: Site, name: str) -> dict[str, str]:
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
    """Says its name to whoever connects to one of its ports, and waits until he goes."""

    def __init__(self, name: str, address: str, site: Site) -> None:
        """Serves from the `with` on."""
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


def served(port: int, source: str) -> str:
    """Which daemon a client of this address gets. Raises OSError where it gets none."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0)) as connection:
        return connection.makefile().readline().strip()


def spread(port: int) -> dict[str, str]:
    """Which daemon each of the clients gets, one after the other."""
    return {source: served(port, source) for source in SOURCES}


def timers(*ports: int) -> list[float]:
    """The seconds until the kernel asks the other side of each connection to or from one of these ports for a sign.

    Both ends of a connection have a row; those that ask for nothing are left out.
    """
    found = []
    with open("/proc/net/tcp", encoding="ascii") as table:
        for _, local, remote, state, _, timer, *_ in map(str.split, table):
            known = {int(one.partition(":")[2], 16) for one in (local, remote) if ":" in one} & {*ports}
            if state == _ESTABLISHED and known and timer.startswith(_KEEP_ALIVE):
                found.append(int(timer.removeprefix(_KEEP_ALIVE), 16) / os.sysconf("SC_CLK_TCK"))
    return found


def strayed(before: Mapping[str, str], after: Mapping[str, str]) -> float:
    """The share of the clients that get another daemon than before, in percent."""
    return 100 * sum(after[source] != daemon for source, daemon in before.items()) / len(before)
