"""The oracle: what has to serve, written from the documentation alone. It shares no code with lbagent.

A node has a line where Serf knows it (it has joined and has not left) and roles.yml has its role. A paused node has a
comment in place of its line. HAProxy serves a node where it has a line and its web server answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from scenarios.chaos.site import DRAINED, PORTS, PROXIES, Server


@dataclasses.dataclass
class Node:
    """What a node has to be once every fault is over."""

    name: str
    address: str
    role: str
    home: str = ""
    """The role at first; few nodes have another one at a time, or the safety guard would block removals."""
    agent: str = "alive"
    """`alive`, `left` or `dead` (killed: Serf reports it as failed)."""
    backend: bool = True
    """Whether its web server runs."""
    paused: bool = False
    """Paused by a command."""
    tagged: bool = False
    """Paused by the tag `lbagent=paused`."""
    busy: bool = False
    """Already changed since the last calm: its next change has to wait, so that the order of changes is certain."""

    @property
    def is_known(self) -> bool:
        """Whether Serf lists it as alive or failed."""
        return self.agent != "left"

    @property
    def is_out(self) -> bool:
        """Whether it is paused."""
        return self.paused or self.tagged


class Fault(NamedTuple):
    """A fault that explains failed requests to its subject, a node or a load balancer. Times are monotonic seconds."""

    subject: str
    reason: str
    begin: float
    end: float


class Model:
    """All nodes, and the texts that the operator has written."""

    def __init__(self, nodes: Iterable[Node], config: str, services: dict[str, list[str]]) -> None:
        """`config` is haproxy.cfg without managed lines; `services` has the services of each role in roles.yml."""
        self.nodes = {node.name: node for node in nodes}
        for node in self.nodes.values():
            node.home = node.role
        self.config, self.services = config, services
        self.intervals = dict.fromkeys(services, "1s")

    def list_lines(self, service: str) -> list[str]:
        """Return the managed lines above the marker of this service."""
        lines = []
        for name in sorted(self.nodes):
            node = self.nodes[name]
            if not node.is_known or service not in self.services.get(node.role, ()):
                continue
            options = f"check inter {self.intervals[node.role]} rise 2 fall 2"
            server = f"server {name} {node.address}:{PORTS[service]} {options}"
            if not node.is_out:
                lines.append(f"{server} # lbagent role={node.role}")
            elif node.role in DRAINED:
                lines.append(f"{server} weight 0 # lbagent paused role={node.role}")
            else:
                lines.append(f"# lbagent paused {name} {node.address} role={node.role}")
        return lines

    def render_config(self) -> str:
        """Return the whole haproxy.cfg."""
        lines = []
        for line in self.config.splitlines(keepends=True):
            for service in PORTS:
                if line.strip() == f"# additional-lb-{service}-server":
                    indent = line[: len(line) - len(line.lstrip())]
                    lines += [f"{indent}{managed}\n" for managed in self.list_lines(service)]
            lines.append(line)
        return "".join(lines)

    def list_servers(self) -> dict[str, dict[str, Server]]:
        """Return the servers that are not in maintenance in a running HAProxy, by proxy and name."""
        found: dict[str, dict[str, Server]] = {proxy: {} for proxy in PROXIES.values()}
        for node in self.nodes.values():
            for service in self.services.get(node.role, ()):
                if node.is_known and (not node.is_out or node.role in DRAINED):
                    state = "DOWN" if not node.backend else "DRAIN" if node.is_out else "UP"
                    found[PROXIES[service]][node.name] = Server(f"{node.address}:{PORTS[service]}", state)
        return found

    def list_serving(self, service: str) -> set[str]:
        """Return the nodes that get requests for this service."""
        return {name for name, server in self.list_servers()[PROXIES[service]].items() if server.state == "UP"}

    def list_states(self) -> dict[str, str]:
        """Return the state of each node that `lbagent status` has to report."""
        found = {}
        for node in self.nodes.values():
            if not node.is_known:
                if node.paused:
                    found[node.name] = "left"
            elif node.role not in self.services:
                found[node.name] = "unknown role"
            elif node.is_out:
                found[node.name] = "paused"
            else:
                found[node.name] = "failed" if node.agent == "dead" else "in"
        return found
