"""The nodes and load balancers of the load tests: nodes answer with their name, load balancers run `watch`."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.helpers.real_programs import Haproxy, LoadBalancer, free_port, member_line, wait_until

NODES = 40

CONFIG = """\
global
    stats socket {socket} mode 600 level admin expose-fd listeners
    hard-stop-after 30s
    nbthread 1
    maxconn 2000

defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    timeout http-request 5s
    option idle-close-on-response
    option redispatch
    retries 2

listen lb-iis
    bind 127.0.0.1:{front}
    balance roundrobin
    # additional-lb-iis-server
"""

ROLES = """\
haproxy:
  config: {cfg}
  runtime: RUNTIME
services:
  iis: {{port: {port}}}
roles:
  web:
    lb: [iis]
    interval: 500ms
    networks: [127.0.0.0/8]
"""


class Change(NamedTuple):
    """One change, as Serf would report it to both load balancers."""

    kind: str
    name: str
    address: str
    env: dict[str, str]
    stdin: bytes


class Fleet:
    """The nodes: address of each, those in the cluster, and those that are paused."""

    def __init__(self, dice: random.Random) -> None:
        """Half of the nodes are in the cluster."""
        self._dice = dice
        self.address = {f"web{number:02}": f"127.1.1.{number + 1}" for number in range(NODES)}
        self.joined = set(list(self.address)[: NODES // 2])
        self.paused: set[str] = set()
        self._ltime = 0

    @property
    def serving(self) -> set[str]:
        """Nodes that take traffic."""
        return self.joined - self.paused

    def make_change(self) -> Change:
        """Make one random change; at least a fifth of the nodes goes on serving."""
        while True:
            kind = self._dice.choice(["join", "leave", "pause", "resume", "move"])
            name = self._dice.choice(sorted(self.address))
            if kind in ("leave", "pause") and (name not in self.serving or len(self.serving) <= NODES // 5):
                continue
            if kind == "join" and name not in self.joined:
                self.joined.add(name)
                return self._member("member-join", name)
            if kind == "leave":
                self.joined.discard(name)
                return self._member("member-leave", name)
            if kind == "move" and name in self.joined:
                last = self.address[name].rpartition(".")[2]
                self.address[name] = f"127.1.{2 if self.address[name].startswith('127.1.1.') else 1}.{last}"
                return self._member("member-update", name)
            if (kind == "pause" and name in self.joined) or (kind == "resume" and name in self.paused & self.joined):
                (self.paused.add if kind == "pause" else self.paused.discard)(name)
                self._ltime += 1
                env = {"SERF_USER_EVENT": kind, "SERF_USER_LTIME": str(self._ltime)}
                return Change("user", name, self.address[name], env, name.encode())

    def list_members(self) -> list[bytes]:
        """Return the lines of all joined nodes, as in the stdin of a member-join."""
        return [member_line(name, self.address[name]) for name in sorted(self.joined)]

    def _member(self, kind: str, name: str) -> Change:
        return Change(kind, name, self.address[name], {}, member_line(name, self.address[name]))


@contextlib.contextmanager
def nodes(fleet: Fleet, folder: Path) -> Iterator[int]:
    """Run one HAProxy that answers for every node with its name, on both of its addresses; yields the port."""
    port = free_port()
    fronts = "".join(
        f"frontend {name}\n    bind 127.1.1.{number + 1}:{port}\n    bind 127.1.2.{number + 1}:{port}\n"
        f"    http-request return status 200 content-type text/plain string {name}\n"
        for number, name in enumerate(fleet.address)
    )
    text = f"global\n    nbthread 1\n    maxconn 4000\ndefaults\n    mode http\n    timeout client 60s\n{fronts}"
    (folder / "nodes.cfg").write_text(text)
    with subprocess.Popen(["haproxy", "-f", folder / "nodes.cfg", "-db"], stderr=subprocess.DEVNULL) as process:
        try:
            time.sleep(0.5)
            yield port
        finally:
            process.terminate()


@contextlib.contextmanager
def balancer(
    port: int,
    fleet: Fleet,
    *,
    runtime: bool,
    binary: Path | None = None,
    start_daemon: Callable[[LoadBalancer], subprocess.Popen[bytes]] = lambda lb: lb.start("watch"),
) -> Iterator[tuple[LoadBalancer, Haproxy]]:
    """Run a load balancer with HAProxy (`binary`, by default the first) and `watch`, which serves all joined nodes."""
    roles = ROLES.replace("RUNTIME", "on" if runtime else "off").replace("{port}", str(port))
    with LoadBalancer(CONFIG, roles, binary) as lb, Haproxy(lb) as haproxy:
        assert lb.join(*fleet.list_members()).returncode == 0
        daemon = start_daemon(lb)
        try:
            wait_until(lambda: (lb.state / "watch.lock").exists() and lb.idle)
            yield lb, haproxy
        finally:
            daemon.terminate()
            daemon.communicate()
