"""A load balancer and its nodes in one cluster: real Serf agents with the example's files, and lbagent."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from scenarios.impala_site import EXAMPLE, Balancer
from tests.helpers.real_programs import LBAGENT, PATIENCE, SerfAgent, clean_environment, wait_until

TOKEN = "the token of lb01"

CHANGE_TIMEOUT = 60.0
"""Seconds in which a change must pass gossip, the handler, the daemon and HAProxy."""


class Cluster:
    """A load balancer with `lbagent handle` as its agent's handler and `lbagent watch`, and the nodes that join it."""

    def __init__(self, balancer: Balancer) -> None:
        """Write the settings; `running` starts the programs."""
        self.balancer, self.lb, self.haproxy = balancer, balancer.lb, balancer.haproxy
        self._key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
        settings = self._write_settings("serf-lb01.json", "lb01", rpc_auth=TOKEN)
        env = {**self.lb.env, "SERF_RPC_AUTH": TOKEN}
        self.agent = SerfAgent("lb01", "127.0.0.9", env=env, more=[f"-config-file={settings}"])
        self._rpc = {"SERF_RPC_ADDR": self.agent.rpc, "SERF_RPC_AUTH": TOKEN}
        (self.lb.bin / "lbagent").symlink_to(LBAGENT)
        self.nodes: dict[str, SerfAgent] = {}
        self._agents = contextlib.ExitStack()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the load balancer. All nodes that have joined end with it."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.balancer)
            stack.enter_context(self.agent)
            stack.enter_context(self._run_watch())
            stack.enter_context(self._agents)
            yield

    def join(self, name: str, address: str) -> None:
        """Boot a node. Returns when HAProxy sends it new sessions."""
        settings = self._write_settings("serf-impala01.json", name, retry_join=[self.agent.bind])
        node = SerfAgent(name, address, env=clean_environment(), more=[f"-config-file={settings}"])
        with self._wait_until_added(name):
            self.nodes[name] = self._agents.enter_context(node)

    def leave(self, name: str) -> None:
        """Shut a node down. Returns when HAProxy sends it no new sessions."""
        with self._wait_until_removed(name):
            self.nodes.pop(name).leave()

    def pause(self, name: str) -> None:
        """Pause a node by its own event. Returns when HAProxy sends it no new sessions."""
        with self._wait_until_removed(name):
            self.nodes[name].send_event("pause", name)

    def resume(self, name: str) -> None:
        """Resume a node by its own event. Returns when HAProxy sends it new sessions."""
        with self._wait_until_added(name):
            self.nodes[name].send_event("resume", name)

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run `lbagent` as an operator on the load balancer does."""
        return self.lb.run(*words, env=self._rpc)

    @property
    def serving_nodes(self) -> frozenset[str] | None:
        """The servers to which HAProxy sends new sessions; None if those of the two proxies differ."""
        shell, jdbc = (self.haproxy.find_serving(proxy) for proxy in ("impala", "impalajdbc"))
        return frozenset(shell) if shell == jdbc else None

    @property
    def worker(self) -> tuple[int, int]:
        """The pid of the current worker, and the number of reloads that the master has made."""
        return self.haproxy.worker(), self.haproxy.reloads()[0]

    def list_reload_flags(self) -> list[bool]:
        """Return for each applied change, in order, whether it needed a reload."""
        return [entry["reloaded"] for entry in self.lb.history() if entry["outcome"] == "applied"]

    @property
    def _agreed_nodes(self) -> frozenset[str]:
        served = self.serving_nodes
        assert served is not None
        return served

    @contextlib.contextmanager
    def _wait_until_added(self, name: str) -> Iterator[None]:
        names = self._agreed_nodes | {name}
        yield
        wait_until(functools.partial(self._serves_exactly, names), CHANGE_TIMEOUT)

    @contextlib.contextmanager
    def _wait_until_removed(self, name: str) -> Iterator[None]:
        names = self._agreed_nodes - {name}
        yield
        wait_until(functools.partial(self._serves_exactly, names), CHANGE_TIMEOUT)

    def _serves_exactly(self, names: frozenset[str]) -> bool:
        return self.lb.idle and self.serving_nodes == names

    def _write_settings(self, example: str, name: str, **changed: object) -> Path:
        """Write the example's settings of an agent, with names, key and addresses of this test."""
        settings = json.loads((EXAMPLE / example).read_text(encoding="utf-8"))
        own = {"node_name": name, "encrypt_key": self._key, "retry_join": [], "retry_interval": "1s"}
        path = self.lb.folder / f"{name}.json"
        settings |= {**own, "snapshot_path": f"{path}.snapshot", **changed}
        path.touch(0o600)
        path.write_text(json.dumps(settings), encoding="utf-8")
        return path

    @contextlib.contextmanager
    def _run_watch(self) -> Iterator[None]:
        env = {**self.lb.env, **self._rpc}
        with (self.lb.folder / "watch.log").open("wb") as log:
            process = subprocess.Popen([LBAGENT, "watch"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            wait_until(lambda: (self.lb.state / "metrics.prom").exists() and self.lb.idle)
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
            process.wait()
