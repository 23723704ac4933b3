"""The page on the encryption key: its own commands rotate the key of real agents, without a member that is lost."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from scenarios.machines import Daemon, Machine, Switch
from tests.helpers.page_commands import DOCS, PATH, can_make_machines, list_commands
from tests.helpers.real_programs import wait_until

PAGE = DOCS / "how-to" / "rotate-the-key.md"
ADDRESSES = {"lb01": "10.0.0.1", "lb02": "10.0.0.2", "web01": "10.0.0.5"}
TOKEN = "only for the tests"
ENVIRON = {"PATH": PATH}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not can_make_machines(), reason="needs root, namespaces, haproxy and serf"),
]


class Cluster:
    """Two load balancers and a server, each with an agent whose settings are in /etc/serf/agent.json."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self.key = make_key()
        self.machines = {name: Machine(name, ["/etc/serf", "/etc/lbagent"]) for name in ADDRESSES}
        self.agents = {
            name: Daemon(machine, "serf", "agent", "-config-dir=/etc/serf", env=ENVIRON)
            for name, machine in self.machines.items()
        }

    def start(self, name: str, key: str) -> None:
        """Start an agent with this key in its settings."""
        others = [address for other, address in ADDRESSES.items() if other != name]
        settings = {"node_name": name, "bind": ADDRESSES[name], "encrypt_key": key, "retry_join": others}
        root = self.machines[name].root
        (root / "etc/serf/agent.json").write_text(json.dumps({**settings, "rpc_auth": TOKEN}))
        (root / "etc/lbagent/serf.env").write_text(f'SERF_RPC_ADDR=127.0.0.1:7373\nSERF_RPC_AUTH="{TOKEN}"\n')
        self.agents[name].start()
        self.agents[name].wait_until(lambda: self.run(name, f"SERF_RPC_AUTH='{TOKEN}' serf info")[0] == 0)

    def run(self, name: str, script: str) -> tuple[int, str]:
        """Run a shell script on a machine; exit status and output."""
        done = self.machines[name].run("sh", "-c", script, env=ENVIRON, checked=False)
        return done.returncode, done.stdout + done.stderr

    def alive(self, name: str) -> set[str]:
        """The members that an agent sees alive."""
        listed = self.run(name, f"SERF_RPC_AUTH='{TOKEN}' serf members -status=alive")[1]
        return {line.split()[0] for line in listed.splitlines() if "alive" in line}


def make_key() -> str:
    """A new key."""
    return subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The cluster, complete."""
    cluster = Cluster()
    with Switch() as switch, contextlib.ExitStack() as stack:
        for name, machine in cluster.machines.items():
            stack.enter_context(machine)
            switch.plug(machine, f"{ADDRESSES[name]}/24")
        for name in ADDRESSES:
            cluster.start(name, cluster.key)
        wait_until(lambda: all(cluster.alive(name) == set(ADDRESSES) for name in ADDRESSES))
        yield cluster


def test_the_commands_of_the_page_rotate_the_key(cluster: Cluster) -> None:
    commands = [command for _, command in list_commands(PAGE.read_text(encoding="utf-8"))]
    assert len(commands) == 6

    # One shell, as the page has it: `new` is a variable of that shell. The placeholder is the operator's to fill in.
    status, output = cluster.run("lb01", "\n".join(["set -e", *commands]).replace("OLD KEY", cluster.key))

    assert status == 0, output
    [new] = set(re.findall(r"([A-Za-z0-9+/]{43}=) +\[3/3\]", output)) - {cluster.key}
    assert all(cluster.alive(name) == set(ADDRESSES) for name in ADDRESSES)

    # Step 3 of the page: each agent finds the new key in its file at its next start.
    cluster.agents["web01"].stop()
    cluster.start("web01", new)
    wait_until(lambda: cluster.alive("web01") == set(ADDRESSES))
