"""lb01 of the platform, with the example's files."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scenarios.platform.machines import PROGRAMS, Program, make_configured_agent, network
from scenarios.platform.services import EXAMPLE, SERVES, find_kind, make_port_probe, read_settings
from tests.helpers.real_programs import LBAGENT, Haproxy, LoadBalancer

LB = "10.20.0.2"


class Balancer:
    """lb01: the example's haproxy.cfg and roles.yml, HAProxy, Serf, `lbagent watch` and node_exporter."""

    def __init__(self, folder: Path) -> None:
        """Write the files; `running` starts the programs."""
        self.folder = folder
        self.lb = LoadBalancer(folder=folder / "lb01")
        for one in ("haproxy.cfg", "roles.yml"):
            shutil.copy(EXAMPLE / one, self.lb.etc)
        shutil.copytree(EXAMPLE / "errors", self.lb.etc / "errors")
        self.lb.socket = Path("/run/haproxy/admin.sock")
        self.haproxy = Haproxy(self.lb, config=["/etc/haproxy/haproxy.cfg"])
        self.key, token = _make_secret(), _make_secret()
        self.rpc = {"SERF_RPC_ADDR": "127.0.0.1:7373", "SERF_RPC_AUTH": token}
        env = {**self.lb.env, **self.rpc, "PATH": f"{LBAGENT.parent}:{self.lb.bin}:{PROGRAMS}"}
        where = self.write_settings(read_settings("lb01"), rpc_auth=token)
        self.agent = make_configured_agent("lb01", LB, where, env, f"-snapshot={self.lb.folder}/snapshot")
        exporter = ["prometheus-node-exporter", "--collector.disable-defaults", "--collector.textfile"]
        exporter += [f"--collector.textfile.directory={self.lb.state}", "--web.listen-address=:9100"]
        self.watch = Program(
            [str(LBAGENT), "-v", "watch"], folder / "watch.log", self._is_watching, **{**self.lb.env, **self.rpc}
        )
        self.exporter = Program(exporter, folder / "exporter.log", make_port_probe(LB, 9100))

    def write_settings(self, found: dict[str, Any], **secrets: str) -> Path:
        """Write settings of Serf, with the secrets in a separate file, and return their folder."""
        where = self.folder / f"serf-{found['node_name']}"
        where.mkdir()
        (where / "agent.json").write_text(json.dumps(found))
        (where / "secrets.json").touch(0o600)
        (where / "secrets.json").write_text(json.dumps({"encrypt_key": self.key, **secrets}))
        return where

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run all programs, with the example's files mounted on /etc/haproxy."""
        Path("/run/haproxy").mkdir()
        subprocess.run(["mount", "--bind", self.lb.etc, "/etc/haproxy"], check=True, env={"PATH": PROGRAMS})
        with contextlib.ExitStack() as stack:
            stack.callback(subprocess.run, ["umount", "--lazy", "/etc/haproxy"], check=True, env={"PATH": PROGRAMS})
            stack.enter_context(network(LB))
            stack.enter_context(self.haproxy)
            stack.enter_context(self.agent)
            for program in (self.watch, self.exporter):
                stack.callback(program.end)
                program.start()
                program.wait_until_ready()
            yield

    def _is_watching(self) -> bool:
        return (self.lb.state / "watch.lock").exists() and self.lb.idle

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run `lbagent` as an operator on lb01 does."""
        return self.lb.run(*words, env=self.rpc)

    def read_states(self, name: str) -> dict[str, str]:
        """Return HAProxy's state of a node's server, by service; `none` if HAProxy has no such server."""
        return {
            service: self.haproxy.servers(f"lb-{service}").get(name, "none").split()[0]
            for service in SERVES[find_kind(name)]
        }


def _make_secret() -> str:
    return subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
