"""Two load balancers as examples/windows-iis has them, its servers and a client, each a machine of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from scenarios.machines import Daemon, Machine, Switch
from scenarios.meter import Meter
from tests.helpers.real_programs import LBAGENT, wait_until

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "windows-iis"

ADDRESS = "10.0.0.10"
"""What keepalived moves, and the clients ask."""

LONG = 150.0
"""Seconds that a healed cluster has: Serf tries a lost node every 30 s, `watch` syncs each minute, all is slow."""

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
"""Stands in for IIS, the web services and MongoDB: it answers with its name."""

_CUT = """\
table inet {name} {{
    chain incoming {{ type filter hook input priority 0; ip saddr {{ {addresses} }} {what} drop; }}
}}
"""
"""Where it arrives: of a packet that its own host does not let out Serf is told, and then suspects nobody."""

_BACKUP = "Entering BACKUP STATE"
"""What keepalived logs when it listens to the other one."""

_ETC = {
    "haproxy.cfg": "haproxy/haproxy.cfg",
    "roles.yml": "lbagent/roles.yml",
    "serf/{name}.json": "serf/agent.json",
    "keepalived/{name}.conf": "keepalived/keepalived.conf",
    "rsyslog.d/40-haproxy.conf": "rsyslog.d/40-haproxy.conf",
    "logrotate.d/haproxy-lb": "logrotate.d/haproxy-lb",
}
"""Where README.md of the example says that its files belong, below /etc."""


class Host:
    """A machine with a Serf agent."""

    def __init__(self, name: str, address: str, own: Sequence[str]) -> None:
        """Nothing runs yet."""
        self.name, self.address = name, address
        self.machine = Machine(name, own)
        path = f"{LBAGENT.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self.env = {"PATH": path, "SERF_RPC_AUTH": "only for the tests"}
        self.serf = Daemon(self.machine, "serf", "agent", "-config-dir=/etc/serf", env=self.env)

    def run(self, *argv: str, checked: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program here, as an operator with Serf's token."""
        return self.machine.run(*argv, env=self.env, checked=checked)

    def start_serf(self) -> None:
        """Start the agent, and wait until it can be asked."""
        self.serf.start()
        self.serf.until(lambda: self.run("serf", "info", checked=False).returncode == 0)

    def members(self) -> dict[str, str]:
        """Who is in the cluster, as the agent here sees it: name -> `alive`, `failed` …."""
        rows = json.loads(self.run("serf", "members", "-format=json").stdout)["members"] or []
        return {row["name"]: row["status"] for row in rows}

    def deaf(self, name: str, what: str, others: Sequence[Host]) -> None:
        """From now on nothing of this kind arrives from the others."""
        addresses = ", ".join(other.address for other in others)
        rules = self.machine.root / "run" / f"{name}.nft"
        rules.write_text(_CUT.format(name=name, what=what, addresses=addresses))
        self.run("nft", "-f", f"/run/{name}.nft")

    def heal(self, name: str) -> None:
        """It arrives again."""
        self.run("nft", "delete", "table", "inet", name)

    def secrets(self, key: str) -> None:
        """What README.md of the example has the operator make: Serf's key, and the token of its RPC port."""
        path = self.machine.root / "etc/serf/key.json"
        path.write_text(json.dumps({"encrypt_key": key, "rpc_auth": self.env["SERF_RPC_AUTH"]}))
        path.chmod(0o600)


class Balancer(Host):
    """A load balancer with everything that runs on it."""

    def __init__(self, name: str, address: str) -> None:
        """Nothing runs yet."""
        own = ["haproxy", "lbagent", "serf", "keepalived", "rsyslog.d", "logrotate.d"]
        super().__init__(
            name, address, [f"/etc/{one}" for one in own] + ["/var/lib/lbagent", "/var/lib/serf", "/var/log"]
        )
        daemon = functools.partial(Daemon, self.machine, env=self.env)
        master = ["-Ws", "-f", "/etc/haproxy/haproxy.cfg", "-p", "/run/haproxy.pid", "-S", "/run/haproxy-master.sock"]
        self.haproxy = daemon("haproxy", *master)
        self.rsyslog = daemon("rsyslogd", "-n", "-iNONE", "-f", "/etc/rsyslog.d/40-haproxy.conf")
        self.watch = daemon("lbagent", "watch")
        self.keepalived = daemon("keepalived", "--dont-fork", "--log-console", "--log-detail")

    def install(self, key: str) -> None:
        """Put everything where it belongs, byte for byte."""
        for source, target in _ETC.items():
            shutil.copyfile(EXAMPLE / source.format(name=self.name), self.machine.root / "etc" / target)
        (self.machine.root / "run/haproxy").mkdir()
        self.secrets(key)

    def start(self) -> None:
        """Start what has to run before the address may come here, and then keepalived."""
        self.rsyslog.start()
        self.start_haproxy()
        self.start_serf()
        self.watch.start()
        self.start_keepalived()

    def start_haproxy(self) -> None:
        """Start HAProxy, and wait until it answers what keepalived asks."""
        self.haproxy.start()
        self.haproxy.until(
            lambda: self.run("curl", "-sf", "http://127.0.0.1:8404/alive", checked=False).returncode == 0
        )

    def start_keepalived(self) -> None:
        """Start keepalived, and wait until it listens to the other one."""
        before = self.keepalived.log.count(_BACKUP)
        self.keepalived.start()
        self.keepalived.until(lambda: self.keepalived.log.count(_BACKUP) > before)

    def kill_haproxy(self) -> None:
        """HAProxy dies, master and worker at once."""
        self.machine.kill("haproxy")
        self.haproxy.ended()

    def crash(self) -> None:
        """HAProxy, Serf's agent and lbagent die at once; keepalived has to find out."""
        self.kill_haproxy()
        for daemon, name in ((self.serf, "serf"), (self.watch, "lbagent")):
            self.machine.kill(name)
            daemon.ended()

    def restart(self) -> None:
        """Start again what has crashed, as its units would."""
        self.start_haproxy()
        self.start_serf()
        self.watch.start()

    @property
    def holds(self) -> bool:
        """Whether the address is here."""
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

    def status(self) -> dict[str, Any]:
        """What `lbagent status --json` says; without the other load balancer, which is a member as well."""
        found: dict[str, Any] = json.loads(self.run("lbagent", "status", "--json").stdout)
        return found | {"nodes": [node for node in found["nodes"] if node["role"] != "lb"]}

    def serving(self) -> set[str]:
        """The nodes that HAProxy gives requests to."""
        rows = [(node["name"], server["state"]) for node in self.status()["nodes"] for server in node["servers"]]
        return {name for name, state in rows if state and state.startswith("UP")}


class Node(Host):
    """An application server: a Serf agent beside what it serves."""

    def __init__(self, name: str, address: str, role: str) -> None:
        """Nothing runs yet."""
        super().__init__(name, address, ["/etc/serf", "/var/lib/serf"])
        self._role = role
        self._services = Daemon(self.machine, "haproxy", "-db", "-f", "/run/services.cfg", env=self.env)

    def install(self, key: str) -> None:
        """Its agent as the example has it for its role; what is Windows', and its name and address, are its own."""
        text = (EXAMPLE / "serf" / f"{self._role.lower()}01.json").read_text()
        agent = json.loads(text.replace(r"C:\\serf\\", "/var/lib/serf/"))
        agent |= {"node_name": self.name, "bind": f"{self.address}:7946", "advertise": f"{self.address}:7946"}
        etc = self.machine.root / "etc/serf"
        (etc / "agent.json").write_text(json.dumps(agent))
        shutil.copyfile(EXAMPLE / f"serf/tags-{self._role}.json", self.machine.root / "var/lib/serf/tags.json")
        (self.machine.root / "run/services.cfg").write_text(_NODE.format(name=self.name, address=self.address))
        self.secrets(key)

    def start(self) -> None:
        """Serve, then say so."""
        self._services.start()
        self.start_serf()

    def say(self, health: str) -> None:
        """From now on /health answers this."""
        path = self.machine.root / "run/services.cfg"
        path.write_text(re.sub(r"string \w+ if", f"string {health} if", path.read_text()))
        self._services.stop()
        self._services.start()

    def pause(self) -> None:
        """Ask to be taken out, by a user event."""
        self.run("serf", "event", "-coalesce=false", "pause", self.name)

    def resume(self) -> None:
        """Ask to be put back in."""
        self.run("serf", "event", "-coalesce=false", "resume", self.name)

    def leave(self) -> None:
        """Leave the cluster, and go on serving who is still there."""
        self.run("serf", "leave")
        self.serf.ended()


class Pair:
    """The whole of it, from `with` to its end."""

    def __init__(self) -> None:
        """Nothing runs yet."""
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
    def holders(self) -> list[str]:
        """Who has the address."""
        return [balancer.name for balancer in self.both if balancer.holds]

    def boot(self, name: str, address: str, role: str) -> Node:
        """Switch a new application server on."""
        self.nodes[name] = node = Node(name, address, role)
        self._boot(node)
        return node

    def remove(self, name: str) -> None:
        """Switch an application server off."""
        self.nodes.pop(name).machine.__exit__()

    def named(self, *names: str) -> list[Host]:
        """The application servers of these names."""
        return [self.nodes[name] for name in names]

    def _boot(self, host: Balancer | Node) -> None:
        self._stack.enter_context(host.machine)
        self.switch.plug(host.machine, f"{host.address}/24")
        host.install(self._key)
        host.start()

    def agree(self, states: dict[str, str]) -> bool:
        """Whether both load balancers say exactly this of the nodes, have the same text, and serve it."""
        seen = [balancer.status() for balancer in self.both]
        return (
            all({node["name"]: node["state"] for node in one["nodes"]} == states for one in seen)
            and seen[0]["digest"] == seen[1]["digest"]
            and all(one["confirmed"] for one in seen)
            and self.lb01.cfg == self.lb02.cfg
        )

    @contextlib.contextmanager
    def cut(self, what: str, ours: Sequence[Host], theirs: Sequence[Host]) -> Iterator[None]:
        """Nothing of this kind gets from one side to the other, either way, until the end of the block."""
        sides = [(host, theirs) for host in ours] + [(host, ours) for host in theirs]
        for host, others in sides:
            host.deaf("cut", what, others)
        try:
            yield
        finally:
            for host, _ in sides:
                host.heal("cut")

    def get(self, port: int = 80, path: str = "/") -> str:
        """What a client of the address is answered: status line, fields and body."""
        return self._client.run("curl", "-si", f"http://{ADDRESS}:{port}{path}", checked=False).stdout

    def hand_over(self, to: Balancer) -> None:
        """Have the address moved, as an operator does: keepalived is stopped where it is."""
        other = self.lb02 if to is self.lb01 else self.lb01
        if other.holds:
            other.keepalived.stop()
            wait_until(lambda: self.holders == [to.name])
            other.start_keepalived()
