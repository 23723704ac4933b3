"""A load balancer and its nodes in one cluster: real Serf agents on the example's files, `lbagent handle`, `watch`."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from scenarios.impala_site import EXAMPLE, Balancer
from tests.helpers.real_programs import LBAGENT, PATIENCE, SerfAgent, clean_environment, wait_until

TOKEN = "a word of lb01's own"

LONG = 60.0
"""Seconds for a change to come through gossip, a handler, the daemon and HAProxy."""


class Cluster:
    """A load balancer whose agent calls `lbagent handle` while `lbagent watch` runs, and nodes that enrol by it."""

    def __init__(self, balancer: Balancer) -> None:
        """Nothing runs before `running`."""
        self.balancer, self.lb, self.haproxy = balancer, balancer.lb, balancer.haproxy
        self._key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
        settings = self._settings("serf-lb01.json", "lb01", rpc_auth=TOKEN)
        env = {**self.lb.env, "SERF_RPC_AUTH": TOKEN}
        self.agent = SerfAgent("lb01", "127.0.0.9", env=env, more=[f"-config-file={settings}"])
        self._rpc = {"SERF_RPC_ADDR": self.agent.rpc, "SERF_RPC_AUTH": TOKEN}
        (self.lb.bin / "lbagent").symlink_to(LBAGENT)
        self.nodes: dict[str, SerfAgent] = {}
        self._booted = contextlib.ExitStack()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The whole, while it runs; the nodes that joined end with it."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.balancer)
            stack.enter_context(self.agent)
            stack.enter_context(self._watching())
            stack.enter_context(self._booted)
            yield

    def join(self, name: str, address: str) -> None:
        """A node boots; returns once HAProxy has it."""
        settings = self._settings("serf-impala01.json", name, retry_join=[self.agent.bind])
        node = SerfAgent(name, address, env=clean_environment(), more=[f"-config-file={settings}"])
        with self._bringing(name):
            self.nodes[name] = self._booted.enter_context(node)

    def leave(self, name: str) -> None:
        """A node shuts down; returns once HAProxy gives it nothing new."""
        with self._taking(name):
            self.nodes.pop(name).leave()

    def pause(self, name: str) -> None:
        """A node takes itself out; returns once HAProxy gives it nothing new."""
        with self._taking(name):
            self.nodes[name].send_event("pause", name)

    def resume(self, name: str) -> None:
        """A node puts itself back in; returns once HAProxy has it."""
        with self._bringing(name):
            self.nodes[name].send_event("resume", name)

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """`lbagent`, as an operator on the load balancer types it."""
        return self.lb.run(*words, env=self._rpc)

    @property
    def served(self) -> frozenset[str] | None:
        """The servers to which HAProxy gives new sessions; None where those of the two proxies are not the same."""
        shell, jdbc = (self.haproxy.find_serving(proxy) for proxy in ("impala", "impalajdbc"))
        return frozenset(shell) if shell == jdbc else None

    @property
    def worker(self) -> tuple[int, int]:
        """The process that serves, and how many reloads the master has made."""
        return self.haproxy.worker(), self.haproxy.reloads()[0]

    def told(self) -> list[bool]:
        """Of each change so far that came to something, whether it took a reload."""
        return [entry["reloaded"] for entry in self.lb.history() if entry["outcome"] == "applied"]

    @property
    def _settled(self) -> frozenset[str]:
        served = self.served
        assert served is not None
        return served

    @contextlib.contextmanager
    def _bringing(self, name: str) -> Iterator[None]:
        names = self._settled | {name}
        yield
        wait_until(functools.partial(self._has, names), LONG)

    @contextlib.contextmanager
    def _taking(self, name: str) -> Iterator[None]:
        names = self._settled - {name}
        yield
        wait_until(functools.partial(self._has, names), LONG)

    def _has(self, names: frozenset[str]) -> bool:
        return self.lb.idle and self.served == names

    def _settings(self, example: str, name: str, **changed: object) -> Path:
        """The example's settings of an agent, for a machine that is not alone."""
        settings = json.loads((EXAMPLE / example).read_text(encoding="utf-8"))
        own = {"node_name": name, "encrypt_key": self._key, "retry_join": [], "retry_interval": "1s"}
        path = self.lb.folder / f"{name}.json"
        settings |= {**own, "snapshot_path": f"{path}.snapshot", **changed}
        path.touch(0o600)
        path.write_text(json.dumps(settings), encoding="utf-8")
        return path

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
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
