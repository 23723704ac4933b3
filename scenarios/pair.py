"""The load balancers and servers of examples/windows-iis and a client, each on its own machine."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from scenarios.machines import Daemon, Machine, Switch
from scenarios.meter import Meter
from tests.helpers.real_programs import LBAGENT, wait_until

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "windows-iis"

ADDRESS = "10.0.0.10"
"""The address that keepalived moves, and that the clients use."""

HEAL_TIMEOUT = 150.0
"""Seconds until a healed cluster is consistent. Serf retries a failed node every 30 s, `watch` syncs every minute."""

_NODE = """\
global
    nbthread 1
defaults
    mode http
    timeout client 60s
frontend services
    bind :80
    bind :1111
    bind :2222
    http-request return status 200 content-type text/plain string Healthy if {{ path /health }}
    http-after-response set-header Set-Cookie IP={address}
    http-after-response add-header Set-Cookie session={name}
    http-request return status 200 content-type text/plain string {name}
frontend mongo
    mode tcp
    bind :27017
"""
"""Substitutes for IIS, the web services and MongoDB: it answers with the name of its node."""

_DROP_RULES = """\
table inet {name} {{
    chain incoming {{ type filter hook input priority 0; ip saddr {{ {addresses} }} {what} drop; }}
}}
"""
"""Packets are dropped by the receiver. If the sender dropped them, Serf would get an error, and suspect no node."""

_BACKUP_MESSAGE = "Entering BACKUP STATE"
"""keepalived logs this when it receives the advertisements of the other load balancer."""

_INSTALLED_FILES = {
    "haproxy.cfg": "haproxy/haproxy.cfg",
    "roles.yml": "lbagent/roles.yml",
    "serf/{name}.json": "serf/agent.json",
    "keepalived/{name}.conf": "keepalived/keepalived.conf",
    "rsyslog.d/40-haproxy.conf": "rsyslog.d/40-haproxy.conf",
    "logrotate.d/haproxy-lb": "logrotate.d/haproxy-lb",
}
"""The example's files and their targets below /etc, as in its README.md."""


class Host:
    """A machine with a Serf agent."""

    def __init__(self, name: str, address: str, own: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Prepare the programs; nothing runs yet."""
        self.name, self.address = name, address
        self.machine = Machine(name, own)
        path = f"{LBAGENT.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self.env = {"PATH": path, "SERF_RPC_AUTH": "only for the tests", **(env or {})}
        self.serf = Daemon(self.machine, "serf", "agent", "-config-dir=/etc/serf", env=self.env)

    def run(self, *argv: str, checked: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on the machine, as an operator with Serf's token."""
        return self.machine.run(*argv, env=self.env, checked=checked)

    def start_serf(self) -> None:
        """Start the agent, and wait until it answers."""
        self.serf.start()
        self.serf.wait_until(lambda: self.run("serf", "info", checked=False).returncode == 0)

    def read_members(self) -> dict[str, str]:
        """Return the members that this agent sees: name -> `alive`, `failed` …."""
        rows = json.loads(self.run("serf", "members", "-format=json").stdout)["members"] or []
        return {row["name"]: row["status"] for row in rows}

    def drop_packets(self, name: str, what: str, others: Sequence[Host]) -> None:
        """Drop the packets of these hosts that match `what`, words of nftables. `name` is the name of the table."""
        addresses = ", ".join(other.address for other in others)
        rules = self.machine.root / "run" / f"{name}.nft"
        rules.write_text(_DROP_RULES.format(name=name, what=what, addresses=addresses))
        self.run("nft", "-f", f"/run/{name}.nft")

    def accept_packets(self, name: str) -> None:
        """Undo `drop_packets`."""
        self.run("nft", "delete", "table", "inet", name)

    def write_secrets(self, key: str) -> None:
        """Write Serf's key and the token of its RPC port, as README.md of the example describes."""
        path = self.machine.root / "etc/serf/key.json"
        path.write_text(json.dumps({"encrypt_key": key, "rpc_auth": self.env["SERF_RPC_AUTH"]}))
        path.chmod(0o600)


class Balancer(Host):
    """A load balancer with HAProxy, Serf, lbagent, keepalived and rsyslog."""

    def __init__(self, name: str, address: str, env: Mapping[str, str] | None = None) -> None:
        """Prepare the programs; nothing runs yet."""
        own = ["haproxy", "lbagent", "serf", "keepalived", "rsyslog.d", "logrotate.d"]
        super().__init__(
            name, address, [f"/etc/{one}" for one in own] + ["/var/lib/lbagent", "/var/lib/serf", "/var/log"], env
        )
        daemon = functools.partial(Daemon, self.machine, env=self.env)
        # -W, as `-Ws` needs a HAProxy that was built with systemd; without its socket, both do the same.
        master = ["-W", "-f", "/etc/haproxy/haproxy.cfg", "-p", "/run/haproxy.pid", "-S", "/run/haproxy-master.sock"]
        self.haproxy = daemon("haproxy", *master)
        self.rsyslog = daemon("rsyslogd", "-n", "-iNONE", "-f", "/etc/rsyslog.d/40-haproxy.conf")
        self.watch = daemon("lbagent", "watch")
        # A killed keepalived leaves pid files: a later one does not start if another process has the pid.
        words = "rm -f /run/keepalived*.pid /run/keepalived/*.pid /run/vrrp*.pid; exec keepalived --dont-fork"
        self.keepalived = daemon("sh", "-c", f"{words} --log-console --log-detail")

    def install(self, key: str) -> None:
        """Copy the example's files to their targets, unchanged."""
        for source, target in _INSTALLED_FILES.items():
            shutil.copyfile(EXAMPLE / source.format(name=self.name), self.machine.root / "etc" / target)
        (self.machine.root / "run/haproxy").mkdir()
        self.write_secrets(key)

    def start(self) -> None:
        """Start all programs, keepalived last: it may get the address at once."""
        self.rsyslog.start()
        self.start_haproxy()
        self.start_serf()
        self.watch.start()
        self.start_keepalived()

    def start_haproxy(self) -> None:
        """Start HAProxy, and wait until it answers keepalived's check."""
        self.haproxy.start()
        self.haproxy.wait_until(
            lambda: self.run("curl", "-sf", "http://127.0.0.1:8404/alive", checked=False).returncode == 0
        )

    def start_keepalived(self) -> None:
        """Start keepalived, and wait until it is in state BACKUP."""
        before = self.keepalived.log.count(_BACKUP_MESSAGE)
        self.keepalived.start()
        self.keepalived.wait_until(lambda: self.keepalived.log.count(_BACKUP_MESSAGE) > before)

    def kill_haproxy(self) -> None:
        """Kill HAProxy, master and worker at once."""
        self.machine.kill("haproxy")
        self.haproxy.wait()

    def crash(self) -> None:
        """Kill HAProxy, Serf's agent and lbagent at once; keepalived has to detect it."""
        self.kill_haproxy()
        for daemon, name in ((self.serf, "serf"), (self.watch, "lbagent")):
            self.machine.kill(name)
            daemon.wait()

    def restart(self) -> None:
        """Start the programs that `crash` has killed, as systemd would."""
        self.start_haproxy()
        self.start_serf()
        self.watch.start()

    @property
    def has_address(self) -> bool:
        """Whether this load balancer has the address."""
        return f" {ADDRESS}/" in self.run("ip", "-oneline", "address").stdout

    @property
    def managed(self) -> list[str]:
        """The managed lines of haproxy.cfg, without indentation."""
        lines = (line.strip() for line in self.cfg.decode().splitlines())
        return [line for line in lines if line.startswith(("server ", "# lbagent paused "))]

    @property
    def cfg(self) -> bytes:
        """The content of haproxy.cfg."""
        return (self.machine.root / "etc/haproxy/haproxy.cfg").read_bytes()

    def read_status(self) -> dict[str, Any]:
        """Return the output of `lbagent status --json`, without the other load balancer, which is a member too."""
        found: dict[str, Any] = json.loads(self.run("lbagent", "status", "--json").stdout)
        return found | {"nodes": [node for node in found["nodes"] if node["role"] != "lb"]}

    def serving(self) -> set[str]:
        """Return the nodes with a server that is UP in HAProxy."""
        rows = [(node["name"], server["state"]) for node in self.read_status()["nodes"] for server in node["servers"]]
        return {name for name, state in rows if state and state.startswith("UP")}


class Node(Host):
    """An application server with a Serf agent and its services."""

    def __init__(self, name: str, address: str, role: str) -> None:
        """Prepare the programs; nothing runs yet."""
        super().__init__(name, address, ["/etc/serf", "/var/lib/serf"])
        self._role = role
        self._services = Daemon(self.machine, "haproxy", "-db", "-f", "/run/services.cfg", env=self.env)

    def install(self, key: str) -> None:
        """Write the example's settings of its role, with its name and address, and paths of Linux."""
        text = (EXAMPLE / "serf" / f"{self._role.lower()}01.json").read_text()
        agent = json.loads(text.replace(r"C:\\serf\\", "/var/lib/serf/"))
        agent |= {"node_name": self.name, "bind": f"{self.address}:7946", "advertise": f"{self.address}:7946"}
        etc = self.machine.root / "etc/serf"
        (etc / "agent.json").write_text(json.dumps(agent))
        shutil.copyfile(EXAMPLE / f"serf/tags-{self._role}.json", self.machine.root / "var/lib/serf/tags.json")
        (self.machine.root / "run/services.cfg").write_text(_NODE.format(name=self.name, address=self.address))
        self.write_secrets(key)

    def start(self) -> None:
        """Start the services, then the agent."""
        self._services.start()
        self.start_serf()

    def set_health(self, health: str) -> None:
        """Make /health answer this word."""
        path = self.machine.root / "run/services.cfg"
        path.write_text(re.sub(r"string \w+ if", f"string {health} if", path.read_text()))
        self._services.stop()
        self._services.start()

    def pause(self) -> None:
        """Send the user event `pause` for this node."""
        self.run("serf", "event", "-coalesce=false", "pause", self.name)

    def resume(self) -> None:
        """Send the user event `resume` for this node."""
        self.run("serf", "event", "-coalesce=false", "resume", self.name)

    def leave(self) -> None:
        """Leave the cluster; the services keep running."""
        self.run("serf", "leave")
        self.serf.wait()


class Pair:
    """Two load balancers, their servers and a client, from `__enter__` to `__exit__`."""

    def __init__(self) -> None:
        """Prepare the programs; nothing runs yet."""
        self._stack = contextlib.ExitStack()
        self.lb01, self.lb02 = Balancer("lb01", "10.0.0.11"), Balancer("lb02", "10.0.0.12")
        self.switch, self._client = Switch(), Machine("client")
        self._key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
        self.meter = Meter(self._client, ADDRESS, (80, 1111))
        self.nodes = dict[str, Node]()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.switch)
            stack.enter_context(self._client)
            self.switch.plug(self._client, "10.0.0.99/24")
            self._stack = stack
            for balancer in self.both:
                self._boot(balancer)
            for name, address, role in (
                ("web01", "10.0.0.21", "web"),
                ("web02", "10.0.0.22", "web"),
                ("a01", "10.0.0.31", "A"),
                ("b01", "10.0.0.41", "B"),
            ):
                self.boot(name, address, role)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def both(self) -> tuple[Balancer, Balancer]:
        """The load balancers."""
        return self.lb01, self.lb02

    @property
    def address_holders(self) -> list[str]:
        """The names of the load balancers that have the address."""
        return [balancer.name for balancer in self.both if balancer.has_address]

    def boot(self, name: str, address: str, role: str) -> Node:
        """Start a new application server."""
        self.nodes[name] = node = Node(name, address, role)
        self._boot(node)
        return node

    def remove(self, name: str) -> None:
        """End an application server at once, without a leave."""
        self.nodes.pop(name).machine.__exit__()

    def select_nodes(self, *names: str) -> list[Host]:
        """Return the application servers with these names."""
        return [self.nodes[name] for name in names]

    def _boot(self, host: Balancer | Node) -> None:
        self._stack.enter_context(host.machine)
        self.switch.plug(host.machine, f"{host.address}/24")
        host.install(self._key)
        host.start()

    def agree(self, states: dict[str, str]) -> bool:
        """Return whether both load balancers report exactly these states and run the same haproxy.cfg."""
        seen = [balancer.read_status() for balancer in self.both]
        return (
            all({node["name"]: node["state"] for node in one["nodes"]} == states for one in seen)
            and seen[0]["digest"] == seen[1]["digest"]
            and all(one["confirmed"] for one in seen)
            and self.lb01.cfg == self.lb02.cfg
        )

    @contextlib.contextmanager
    def cut_network(self, what: str, ours: Sequence[Host], theirs: Sequence[Host]) -> Iterator[None]:
        """Drop the packets between the two sides that match `what`, in both directions, during the block."""
        sides = [(host, theirs) for host in ours] + [(host, ours) for host in theirs]
        for host, others in sides:
            host.drop_packets("cut", what, others)
        try:
            yield
        finally:
            for host, _ in sides:
                host.accept_packets("cut")

    def request(self, port: int = 80, path: str = "/") -> str:
        """Send a request to the address. Returns status line, header fields and body."""
        return self._client.run("curl", "-si", f"http://{ADDRESS}:{port}{path}", checked=False).stdout

    def move_address(self, to: Balancer) -> None:
        """Move the address to a load balancer, as an operator does: stop keepalived on its owner."""
        other = self.lb02 if to is self.lb01 else self.lb01
        if other.has_address:
            other.keepalived.stop()
            wait_until(lambda: self.address_holders == [to.name])
            other.start_keepalived()
