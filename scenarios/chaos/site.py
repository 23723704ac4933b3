"""The machines of the chaos run: two load balancers, 30 nodes with a Serf agent and a web server each, and a client."""

from __future__ import annotations

import contextlib
import csv
import functools
import http.client
import json
import re
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Self

import bcrypt

from scenarios import pair
from scenarios.machines import Daemon, Machine, Switch, start_thread_on
from tests.helpers.preloading import compile_library
from tests.helpers.real_programs import LBAGENT
from tests.helpers.web_page import PASSWORD, USER, WebPage

ADDRESS = pair.ADDRESS

PORTS = {"iis": 80, "web_service_a": 1111}
"""Port of each service, on the nodes and on the load balancers."""

PROXIES = {"iis": "lb-iis", "web_service_a": "lb-web-service-a"}
"""The proxy of each service in haproxy.cfg."""

CONFIG = """\
global
    log 127.0.0.1:514 local0 info
    stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners
    hard-stop-after 2m
    nbthread 1
    maxconn 4000

# The operator's comment, with an umlaut: \u00fc
defaults
    mode http
    log global
    option idle-close-on-response
    option httpchk
    http-check send meth GET uri /health ver HTTP/1.1 hdr Host www.example.com
    # Nothing is hidden from the clients.
    retries 0
    timeout connect 3s
    timeout client 30s
    timeout server 4s
    timeout http-request 10s
    timeout http-keep-alive 10s
    timeout check 3s
    log-format "%[capture.req.hdr(0)] %b/%s %ST %tsc %Tw/%Tc/%Tr/%Ta"

listen lb-iis
    bind :80
    http-request capture req.hdr(X-Request) len 24
    balance roundrobin
    # additional-lb-iis-server

listen lb-web-service-a
\tbind :1111
\thttp-request capture req.hdr(X-Request) len 24
\tbalance leastconn
\t# additional-lb-web_service_a-server

listen stats
    no log
    bind 127.0.0.1:8404
    monitor-uri /alive
    stats enable
    stats uri /
"""
"""A request that has failed must reach the client: HAProxy does not retry, and does not redispatch."""

SERVICES = {"web": ["iis"], "A": ["web_service_a"], "both": ["iis", "web_service_a"]}
"""The services of each role in roles.yml at first."""

DRAINED = {"both"}
"""Roles with `on_pause: drain`."""

_ROLES = """\
haproxy:
  config: /etc/haproxy/haproxy.cfg
services:
  iis: {port: 80}
  web_service_a: {port: 1111}
roles:
"""

_KEEPALIVED = """\
global_defs {{
    router_id {name}
    enable_script_security
    script_user root
    vrrp_garp_master_delay 1
    vrrp_garp_master_refresh 5
}}
vrrp_script haproxy {{
    script "/usr/bin/curl --silent --fail --max-time 3 --output /dev/null http://127.0.0.1:8404/alive"
    interval 1
    timeout 4
    fall 2
    rise 2
}}
vrrp_instance lb {{
    state BACKUP
    nopreempt
    priority {priority}
    interface eth0
    virtual_router_id 51
    advert_int 1
    unicast_src_ip {address}
    unicast_peer {{
        {peer}
    }}
    virtual_ipaddress {{
        10.0.0.10/16 dev eth0
    }}
    track_script {{
        haproxy
    }}
}}
"""
"""As in examples/windows-iis, with more time for the check: this machine runs 33 machines at once."""

_BACKEND = """\
global
    nbthread 1
    maxconn 500
defaults
    mode http
    timeout client 60s
frontend services
    bind :80
    bind :1111
    http-request return status 200 content-type text/plain string {name}
"""


_PAGE = 8053
"""Port of the web page of a load balancer."""

_CONTROL = "/run/chaos-control"
"""The file through which shim.c gets its orders."""

DISKS = ("/var/lib/lbagent", "/etc/haproxy")
"""Folders of a load balancer that are small file systems."""

_DISK_SIZE, _FULL = "8m", "chaos-fills-the-disk"


_NEIGHBOURS = 8192
"""Neighbours of all machines, together with those of other tests on this host."""


@functools.cache
def build_shim() -> Path:
    """Compile shim.c; return the path of the library."""
    folder = Path("build/chaos").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return compile_library(Path(__file__).with_name("shim.c"), folder / "shim.so")


class Server(NamedTuple):
    """A server in a running HAProxy."""

    address: str
    state: str
    """`UP`, `DOWN`, `MAINT` …, without the progress of checks."""


def render_roles(services: Mapping[str, Sequence[str]], intervals: Mapping[str, str]) -> str:
    """Return roles.yml with the services and the interval of each role."""
    rows = [
        f"  {role}: {{lb: [{', '.join(names)}], interval: {intervals[role]}, networks: [10.0.0.0/16]"
        f"{', on_pause: drain' if role in DRAINED else ''}}}\n"
        for role, names in services.items()
    ]
    return _ROLES + "".join(rows)


def make_mac(address: str) -> str:
    """Return the MAC address of the machine that has this IP address."""
    return ":".join(["02:00", *(f"{int(number):02x}" for number in address.split("."))])


def make_agent(name: str, address: str) -> dict[str, object]:
    """Return the settings of a Serf agent, as in examples/windows-iis; failed members are called more often."""
    return {
        "node_name": name,
        "bind": f"{address}:7946",
        "advertise": f"{address}:7946",
        "retry_join": ["10.0.0.11:7946", "10.0.0.12:7946"],
        "retry_interval": "2s",
        "reconnect_interval": "2s",
        "rpc_addr": "127.0.0.1:7373",
        "snapshot_path": "/var/lib/serf/snapshot",
        "rejoin_after_leave": True,
        "leave_on_terminate": True,
    }


class Balancer(pair.Balancer):
    """A load balancer with HAProxy, Serf, `lbagent watch` and keepalived."""

    def __init__(self, name: str, address: str, haproxy: Path) -> None:
        """Prepare the programs; `haproxy` is the HAProxy to use."""
        path = f"{haproxy.parent}:{LBAGENT.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        super().__init__(
            name,
            address,
            {
                "LD_PRELOAD": str(build_shim()),
                "CHAOS_CONTROL": _CONTROL,
                "PATH": path,
                "LBAGENT_RUNTIME_DIR": "/run/lbagent",
            },
        )
        self._shim_is_set = False
        page = ["-v", "web", "--listen", f"127.0.0.1:{_PAGE}", "--users", "/etc/lbagent/web.users"]
        self.page = Daemon(self.machine, "lbagent", *page, env=self.env)

    def install(self, key: str) -> None:
        """Write haproxy.cfg, roles.yml and the settings of Serf and keepalived."""
        etc = self.machine.root / "etc"
        peer, priority = ("10.0.0.12", 101) if self.name == "lb01" else ("10.0.0.11", 100)
        (etc / "haproxy/haproxy.cfg").write_text(CONFIG)
        (etc / "lbagent/roles.yml").write_text(render_roles(SERVICES, dict.fromkeys(SERVICES, "1s")))
        agent = {"tags": {"role": "lb"}, "event_handlers": ["lbagent handle"], "replay_on_join": True}
        (etc / "serf/agent.json").write_text(json.dumps(make_agent(self.name, self.address) | agent))
        text = _KEEPALIVED.format(name=self.name, address=self.address, peer=peer, priority=priority)
        (etc / "keepalived/keepalived.conf").write_text(text)
        for folder in ("haproxy", "lbagent"):
            (self.machine.root / "run" / folder).mkdir()
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
        (etc / "lbagent/web.users").write_text(f"{USER}:{hashed}\n")
        self.write_secrets(key)
        self.set_shim()
        for folder in DISKS:
            self.run("mount", "-o", f"remount,size={_DISK_SIZE}", folder)

    def set_shim(self, clock: int = 0, disk: float = 0) -> None:
        """Step the clock of all programs but Serf by these seconds, and make each write wait `disk` seconds."""
        with (self.machine.root / _CONTROL.lstrip("/")).open("r+b" if self._shim_is_set else "wb") as file:
            file.write(struct.pack("<qq", clock, int(disk * 1_000_000)))
        self._shim_is_set = True

    def fill_disk(self, folder: str) -> None:
        """Fill the file system of this folder to its last byte."""
        path = self.machine.root / folder.lstrip("/") / _FULL
        with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def clear_disk(self, folder: str) -> None:
        """Undo `fill_disk`."""
        (self.machine.root / folder.lstrip("/") / _FULL).unlink()

    def edit(self, name: str, change: Callable[[str], str], *, in_place: bool) -> None:
        """Change a file below /etc as an editor does: by a rename, or `in_place`, where readers may see half of it.

        An edit that lbagent's own rename has replaced at this moment is made again.
        """
        path = self.machine.root / "etc" / name
        while change(text := path.read_text()) != text:
            if in_place:
                content = change(text).encode()
                with path.open("wb", buffering=0) as file:
                    file.write(content[: len(content) // 2])
                    time.sleep(0.02)
                    file.write(content[len(content) // 2 :])
            else:
                beside = path.with_name(f".{path.name}.edited")
                beside.write_text(change(text))
                beside.rename(path)

    @property
    def programs(self) -> tuple[Daemon, ...]:
        """All programs, in the order of their start."""
        return self.haproxy, self.serf, self.watch, self.page, self.keepalived

    def send_order(self, node: str, verb: str) -> str:
        """Pause or resume a node on the web page, as a user with a browser. Returns why that failed, or nothing."""
        answers: list[str] = []

        def work() -> None:
            with TemporaryDirectory() as folder:
                page = WebPage(Path(folder))
                page.port = _PAGE
                try:
                    page.log_in()
                    token = page.get(f"/nodes/{node}").token
                    answer = page.post(f"/nodes/{node}/{verb}", {"token": token})
                except (OSError, http.client.HTTPException, AssertionError) as error:
                    answers.append(f"{type(error).__name__}: {error}")
                else:
                    is_sent = answer.status == http.HTTPStatus.SEE_OTHER
                    alert = re.search(r'role="alert">(.*?)</p>', answer.text)
                    answers.append("" if is_sent else f"{answer.status}: {alert[1] if alert else answer.text}")

        start_thread_on(self.machine, work).join()
        return answers[0]

    def clear_state(self) -> None:
        """Delete what lbagent and Serf have stored."""
        self.run("sh", "-c", "rm -rf /var/lib/lbagent/* /var/lib/serf/*")

    def drop_address(self) -> None:
        """Remove the moving address, which a killed keepalived leaves behind."""
        self.run("ip", "address", "delete", f"{ADDRESS}/16", "dev", "eth0", checked=False)

    def wait_for_haproxy(self) -> None:
        """Wait until HAProxy answers."""
        self.haproxy.wait_until(
            lambda: self.run("curl", "-sf", "http://127.0.0.1:8404/alive", checked=False).returncode == 0
        )

    def start(self) -> None:
        """Start all programs, keepalived last."""
        self.start_haproxy()
        self.start_serf()
        self.watch.start()
        self.page.start()
        self.start_keepalived()

    def read_servers(self) -> dict[str, dict[str, Server]]:
        """Return the servers that the running HAProxy has, by proxy and name. Raises OSError if it does not answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.machine.root / "run/haproxy/admin.sock"))
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
        found: dict[str, dict[str, Server]] = {proxy: {} for proxy in PROXIES.values()}
        for row in csv.DictReader(text.removeprefix("# ").splitlines()):
            if row["pxname"] in found and row["svname"] not in ("FRONTEND", "BACKEND"):
                # A drained server has weight 0 in its line; after a reload, HAProxy shows it as UP.
                status = row["status"].split()[0]
                state = "DRAIN" if status == "UP" and row["weight"] == "0" else status
                found[row["pxname"]][row["svname"]] = Server(row["addr"], state)
        return found

    def find_servers(self) -> dict[str, dict[str, Server]]:
        """Return the servers as `read_servers` does; empty where HAProxy does not answer."""
        try:
            return self.read_servers()
        except OSError:
            return {}

    def read_status_rows(self) -> tuple[dict[str, str], str, bool]:
        """Return what `lbagent status --json` reports: the state of each node, the digest, whether it is confirmed."""
        found = self.read_status()
        return {node["name"]: node["state"] for node in found["nodes"]}, found["digest"], bool(found["confirmed"])


class Node(pair.Host):
    """A node with a Serf agent and a web server that answers with its name."""

    def __init__(self, name: str, address: str, role: str) -> None:
        """Prepare the programs; nothing runs yet."""
        super().__init__(name, address, ["/etc/serf", "/var/lib/serf"])
        self.backend = Daemon(self.machine, "haproxy", "-db", "-f", "/run/backend.cfg", env=self.env)
        self.role = role

    def install(self, key: str) -> None:
        """Write the settings of the agent, its tags, and the web server."""
        self.write_agent()
        (self.machine.root / "var/lib/serf/tags.json").write_text(json.dumps({"role": self.role}))
        (self.machine.root / "run/backend.cfg").write_text(_BACKEND.format(name=self.name))
        self.write_secrets(key)

    def write_agent(self) -> None:
        """Write the settings of the agent, with its present address."""
        agent = make_agent(self.name, self.address) | {"tags_file": "/var/lib/serf/tags.json"}
        (self.machine.root / "etc/serf/agent.json").write_text(json.dumps(agent))

    def drop_network(self) -> None:
        """Remove the node's address."""
        self.run("ip", "address", "flush", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")

    def set_address(self, address: str) -> None:
        """Give the node another address; nobody else may have it."""
        self.address = address
        self.run("ip", "address", "flush", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "address", make_mac(address))
        self.run("ip", "address", "add", f"{address}/16", "dev", "eth0")
        self.write_agent()

    def start(self, *, joins: bool) -> None:
        """Start the web server and, if it `joins`, the agent, without waiting."""
        self.backend.start()
        if joins:
            self.serf.start()


class Site:
    """All machines, from `__enter__` to `__exit__`."""

    def __init__(self, nodes: Mapping[str, tuple[str, str]], haproxy: Path) -> None:
        """Prepare the programs; `nodes` has address and role of each node, `haproxy` is that of the load balancers."""
        self._stack = contextlib.ExitStack()
        self.balancers = {
            name: Balancer(name, address, haproxy) for name, address in (("lb01", "10.0.0.11"), ("lb02", "10.0.0.12"))
        }
        self.nodes = {name: Node(name, address, role) for name, (address, role) in nodes.items()}
        self.switch, self.client = Switch(), Machine("client")
        self.serf_key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_more_neighbours())
            stack.enter_context(self.switch)
            stack.enter_context(self.client)
            self.switch.plug(self.client, "10.0.0.99/16")
            for host in self.hosts.values():
                stack.enter_context(host.machine)
                self.switch.plug(host.machine, f"{host.address}/16")
                host.run("ip", "link", "set", "eth0", "address", make_mac(host.address))
                host.install(self.serf_key)
            self._stack = stack.pop_all()
        return self

    def start(self, outside: Collection[str]) -> None:
        """Start all programs; the nodes `outside` do not join the cluster."""
        for balancer in self.balancers.values():
            balancer.start()
        for node in self.nodes.values():
            node.start(joins=node.name not in outside)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def hosts(self) -> dict[str, Balancer | Node]:
        """All load balancers and nodes by name."""
        return {**self.balancers, **self.nodes}

    def drop_packets(self, table: str, rules: Sequence[str]) -> None:
        """Drop the packets in the switch that match one of `rules`, words of nftables. The sender gets no error."""
        lines = "".join(f"        {rule} drop\n" for rule in rules)
        text = f"table bridge {table} {{\n    chain cut {{ type filter hook forward priority 0;\n{lines}    }}\n}}\n"
        path = self.switch.machine.root / "run" / f"{table}.nft"
        path.write_text(text)
        self.switch.machine.run("nft", "-f", f"/run/{table}.nft")

    def accept_packets(self, table: str) -> None:
        """Undo `drop_packets`."""
        self.switch.machine.run("nft", "delete", "table", "bridge", table)


@contextlib.contextmanager
def _more_neighbours() -> Iterator[None]:
    """Raise the limits for neighbours, which all machines of this host share, until the end; SIGKILL leaves them."""
    files = [Path(f"/proc/sys/net/ipv4/neigh/default/gc_thresh{number}") for number in (3, 2, 1)]
    before = {file: int(file.read_text()) for file in files}
    for file in files:
        file.write_text(str(max(before[file], _NEIGHBOURS)))
    try:
        yield
    finally:
        for file in reversed(files):
            file.write_text(str(before[file]))
