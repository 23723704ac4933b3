"""The stage: a folder, free ports, HAProxy, Serf agents and web servers; all gone when it is left."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from demo.processes import Crew, Stuck, wait_for

LB = "127.0.0.1"
NODES = {"web01": "127.0.0.2", "web02": "127.0.0.3", "web03": "127.0.0.4"}

ROLES = """\
haproxy:
  config: {config}
services:
  shop: {{port: {port}}}
roles:
  web:
    lb: [shop]
    options: check inter 1s
    networks: [127.0.0.0/8]
"""

HAPROXY = """\
global
    stats socket {folder}/admin.sock level admin
    hard-stop-after 10s

defaults
    mode http
    option idle-close-on-response
    option redispatch 1
    timeout connect 2s
    timeout client 10s
    timeout server 10s

listen shop
    bind {address}:{port}
    balance roundrobin
    # additional-lb-shop-server
"""

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_MOMENT = 1.0
"""Seconds between the end of a node's Serf agent and that of its web server."""

# Serf runs its handlers one after another: when this one has told, `lbagent handle` has ended.
_TELL = """\
#!/bin/sh
{ echo "$SERF_EVENT $SERF_USER_EVENT"; cat; } > told/.new
mv told/.new "told/$(date +%s%N)"
"""


class Stage:
    """Everything that runs."""

    def __init__(self) -> None:
        """Nothing runs yet. Raises Stuck where a program is missing."""
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        for program in ("haproxy", "serf", "lbagent"):
            if shutil.which(program, path=path) is None:
                raise Stuck(f"{program} is not installed here; `make demo` sees to that")
        self._serf_port, self._rpc_port, self.web_port, self.port = _free_ports(4)
        self.folder = Path(tempfile.mkdtemp(prefix="lbagent-demo-"))
        self.config = self.folder / "haproxy.cfg"
        self._crew = Crew(self.folder, {"PATH": path, "LANG": "C.UTF-8"})

    def __enter__(self) -> Self:
        """Write the files; start nothing."""
        (self.folder / "told").mkdir()
        (self.folder / "tell").write_text(_TELL)
        (self.folder / "tell").chmod(0o755)
        (self.folder / "roles.yml").write_text(ROLES.format(config=self.config, port=self.web_port))
        self.config.write_text(HAPROXY.format(folder=self.folder, address=LB, port=self.port))
        key = base64.b64encode(os.urandom(32)).decode()
        (self.folder / "serf.json").write_text(json.dumps({"encrypt_key": key}))
        (self.folder / "serf.json").chmod(0o600)
        return self

    def __exit__(self, *_: object) -> None:
        """End every program by its pid, and remove the folder; a second Ctrl-C has to wait."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _STOPPING}
        try:
            self._crew.end_all()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def gone(self) -> bool:
        """Whether nothing is left of it."""
        return self._crew.gone and not self.folder.exists()

    def start_load_balancer(self) -> None:
        """HAProxy, and the Serf agent whose event handler is lbagent."""
        self._crew.start("haproxy", ["haproxy", "-W", "-f", str(self.config)])
        wait_for("haproxy", lambda: _answers(LB, self.port), self._crew.log("haproxy"))
        handlers = ["-event-handler=lbagent handle", "-event-handler=./tell"]
        environ = {"LBAGENT_ROLES": str(self.folder / "roles.yml"), "LBAGENT_STATE_DIR": str(self.folder / "state")}
        self._agent("lb01", LB, handlers, **environ)

    def boot(self, *nodes: str) -> None:
        """For each node its web server, then its Serf agent, which joins."""
        for node in nodes:
            self._boot(node, NODES[node])

    def _boot(self, node: str, address: str) -> None:
        server = str(Path(__file__).resolve().with_name("web.py"))
        self._crew.start(f"{node}-web", [sys.executable, server, node, address, str(self.web_port)])
        wait_for(f"the web server of {node}", lambda: _answers(address, self.web_port), self._crew.log(f"{node}-web"))
        self._agent(node, address, ["-tag=role=web", f"-join={LB}:{self._serf_port}"])

    def shut_down(self, node: str) -> None:
        """A node as it should be taken down: Serf leaves, and the web server outlives that by a moment.

        Serf needs two seconds to say goodbye, its agent ends at about the moment the load balancer has heard it.
        """
        self._crew.tell(node, signal.SIGINT)
        time.sleep(_MOMENT)
        self._crew.tell(f"{node}-web", signal.SIGTERM)

    def serf(self, node: str, *words: str) -> None:
        """One `serf` command, typed on `node`. Raises Stuck."""
        command = ["serf", words[0], f"-rpc-addr={NODES[node]}:{self._rpc_port}", *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
        if done.returncode:
            raise Stuck(f"{' '.join(command)}: {done.stdout.strip()}")

    def told(self) -> list[tuple[str, list[str]]]:
        """The events that Serf has handed over so far, lbagent's run included: (event, lines of stdin)."""
        whole = sorted(path for path in (self.folder / "told").iterdir() if path.name != ".new")
        texts = [path.read_text().splitlines() for path in whole]
        return [(head.strip(), [line for line in lines if not line.startswith("lb01\t")]) for head, *lines in texts]

    def history(self) -> list[dict[str, Any]]:
        """What lbagent itself says of its changes."""
        path = self.folder / "state" / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self, name: str) -> Path:
        """Where a program writes; what the handler says is in its agent's, at the DEBUG level."""
        return self._crew.log(name)

    def _agent(self, name: str, address: str, more: Sequence[str], **environ: str) -> None:
        common = [f"-bind={address}:{self._serf_port}", f"-rpc-addr={address}:{self._rpc_port}", "-log-level=debug"]
        argv = ["serf", "agent", f"-node={name}", *common, f"-config-file={self.folder / 'serf.json'}", *more]
        self._crew.start(name, argv, **environ)
        wait_for(f"the Serf agent of {name}", lambda: _answers(address, self._rpc_port), self._crew.log(name))


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _free_ports(number: int) -> list[int]:
    # Below the ephemeral ports, so that no connection takes one meanwhile.
    tried = (random.randrange(15_000, 32_000) for _ in range(1_000))  # noqa: S311  # no secret
    found = {port: None for port in tried if _free(port)}
    return list(found)[:number]


def _free(port: int) -> bool:
    for address in (LB, *NODES.values()):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as one:
                try:
                    one.bind((address, port))
                except OSError:
                    return False
    return True
