"""Two load balancers set up by lbagent-serf-setup, with real Serf agents: two keys are an error of `check` on both."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbagent.serf.agent import find_running_agent
from tests.helpers.real_programs import LBAGENT, LoadBalancer, binaries, clean_environment, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not binaries() or shutil.which("serf") is None or os.geteuid() != 0,
        reason="a real haproxy, a real serf, and a network of its own are needed",
    ),
]

SYSTEMD = Path(__file__).resolve().parent.parent.parent / "systemd"


@pytest.fixture
def network() -> Iterator[list[str]]:
    """The prefix of a command that runs it in a separate network, with the agents of this test only."""
    script = "ip link set lo up; echo up; exec sleep 600"
    with subprocess.Popen(["unshare", "--net", "sh", "-ec", script], stdout=subprocess.PIPE) as process:
        try:
            if not process.stdout or process.stdout.readline() != b"up\n":
                pytest.skip("unshare is not allowed here")
            yield ["nsenter", f"--net=/proc/{process.pid}/ns/net", "--"]
        finally:
            process.kill()


class Balancer:
    """One load balancer in a separate folder; its agent has a separate RPC port, as both share a host."""

    def __init__(self, name: str, rpc: int, network: list[str], folder: Path) -> None:
        """Nothing is set up here."""
        self.lb = LoadBalancer(folder=folder / name)
        self.root, self._name, self._rpc, self._network = folder / name / "root", name, rpc, network
        self._setup = folder / name / "setup"
        text = (SYSTEMD / "lbagent-serf-setup").read_text()
        text = text.replace("share=/usr/share/lbagent lbagent=/usr/bin/lbagent", f"share={SYSTEMD} lbagent={LBAGENT}")
        self._setup.write_text(text)
        self._setup.chmod(0o755)

    def set_up(self, *words: str, stdin: bytes = b"") -> None:
        """Run `lbagent-serf-setup`."""
        argv = [str(self._setup), "--root", str(self.root), "--node", self._name, *words]
        subprocess.run(argv, input=stdin, check=True, capture_output=True)
        for path in (self.root / "etc/serf/lbagent.json", self.root / "etc/lbagent/serf.env"):
            path.write_text(path.read_text().replace(":7373", f":{self._rpc}").replace("/var/lib/serf", str(self.root)))
        shutil.copy(self.root / "etc/lbagent/serf.env", self.lb.etc)

    @contextlib.contextmanager
    def agent(self) -> Iterator[None]:
        """The Serf agent of the load balancer."""
        argv = [*self._network, "serf", "agent", f"-config-dir={self.root}/etc/serf"]
        env = {**self._env, **dict(line.split("=", 1) for line in (self.lb.etc / "serf.env").read_text().split())}
        with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                info = [*self._network, "serf", "info"]
                wait_until(lambda: subprocess.run(info, env=env, capture_output=True, check=False).returncode == 0)
                yield
            finally:
                process.terminate()
                process.wait()

    def check_peers(self) -> tuple[int, list[str]]:
        """Return exit status and findings about other load balancers of `lbagent check`."""
        argv = [*self._network, str(LBAGENT), "check"]
        done = subprocess.run(argv, env=self._env, capture_output=True, text=True, check=False)
        lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
        return done.returncode, [line for line in lines if line.split()[1] == "peers:"]

    @property
    def _env(self) -> dict[str, str]:
        return {
            **clean_environment(),
            **{key: self.lb.env[key] for key in ("PATH", "LBAGENT_ROLES", "LBAGENT_STATE_DIR")},
        }


def test_two_keys_are_an_error_on_both_load_balancers_until_the_second_has_the_bundle_of_the_first(
    network: list[str], tmp_path: Path
) -> None:
    one, two = Balancer("lb01", 7373, network, tmp_path), Balancer("lb02", 7374, network, tmp_path)
    one.set_up("127.0.0.9", "127.0.0.10")
    two.set_up("127.0.0.10", "127.0.0.9")
    with one.agent():
        with two.agent():
            apart = one.check_peers(), two.check_peers()
        two.set_up("--replace", "--bundle", str(one.root / "etc/lbagent/peer.bundle"))
        with two.agent():
            wait_until(lambda: two.check_peers()[1] == ["ok peers: serf members: 1 other load balancer: lb01"], pause=1)
            together = one.check_peers()[1]

    assert [status for status, _ in apart] == [1, 1]
    for (_, [line]), other in zip(apart, ("127.0.0.10", "127.0.0.9"), strict=True):
        assert line.startswith(
            "error peers: serf members: no other load balancer is in this cluster,"
            f" although the agent's settings join {other};"
        )
        assert "with the same `encrypt_key` as here" in line
    assert together == ["ok peers: serf members: 1 other load balancer: lb02"]


def test_an_agent_in_another_network_namespace_is_not_the_one_that_check_looks_at(
    network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Balancer("lb01", 7375, network, tmp_path)
    one.set_up("127.0.0.9", "127.0.0.10")
    monkeypatch.setenv("SERF_RPC_ADDR", "127.0.0.1:7375")
    inside = "from lbagent.serf.agent import find_running_agent as find; print(find() is not None)"
    with one.agent():
        found = subprocess.run([*network, sys.executable, "-c", inside], capture_output=True, text=True, check=True)

        assert found.stdout == "True\n"
        assert find_running_agent() is None
