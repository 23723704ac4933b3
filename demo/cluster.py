"""The programs of the demo: HAProxy, Serf agents and web servers, in one temporary folder and on free ports."""

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

from demo.processes import DemoFailed, Programs, wait_for

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

_OUTLIVES = 1.0
"""Seconds between the end of a node's Serf agent and that of its web server."""

# Serf runs its handlers one after another: once this one has written its file, `lbagent handle` has ended.
_RECORD = """\
#!/bin/sh
{ echo "$SERF_EVENT $SERF_USER_EVENT"; cat; } > events/.new
mv events/.new "events/$(date +%s%N)"
"""


class Cluster:
    """One load balancer and three web nodes. Leaving the `with` ends them and removes the folder."""

    def __init__(self) -> None:
        """Start nothing yet. Raises DemoFailed if a program is missing."""
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        for program in ("haproxy", "serf", "lbagent"):
            if shutil.which(program, path=path) is None:
                raise DemoFailed(f"{program}: not installed; run `make demo`, which installs it")
        self._serf_port, self._rpc_port, self.web_port, self.port = _find_free_ports(4)
        self.folder = Path(tempfile.mkdtemp(prefix="lbagent-demo-"))
        self.config = self.folder / "haproxy.cfg"
        self._programs = Programs(self.folder, {"PATH": path, "LANG": "C.UTF-8"})

    def __enter__(self) -> Self:
        """Write the files; start nothing."""
        (self.folder / "events").mkdir()
        (self.folder / "record").write_text(_RECORD)
        (self.folder / "record").chmod(0o755)
        (self.folder / "roles.yml").write_text(ROLES.format(config=self.config, port=self.web_port))
        self.config.write_text(HAPROXY.format(folder=self.folder, address=LB, port=self.port))
        key = base64.b64encode(os.urandom(32)).decode()
        (self.folder / "serf.json").write_text(json.dumps({"encrypt_key": key}))
        (self.folder / "serf.json").chmod(0o600)
        return self

    def __exit__(self, *_: object) -> None:
        """End every program by its pid and remove the folder. A second Ctrl-C does not interrupt this."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _STOPPING}
        try:
            self._programs.end()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def is_gone(self) -> bool:
        """Whether all programs have ended and the folder is removed."""
        return self._programs.have_ended and not self.folder.exists()

    def start_load_balancer(self) -> None:
        """Start HAProxy and the Serf agent whose event handler is lbagent."""
        self._programs.start("haproxy", ["haproxy", "-W", "-f", str(self.config)])
        wait_for("haproxy", lambda: _is_listening(LB, self.port), self._programs.log("haproxy"))
        handlers = ["-event-handler=lbagent handle", "-event-handler=./record"]
        environ = {"LBAGENT_ROLES": str(self.folder / "roles.yml"), "LBAGENT_STATE_DIR": str(self.folder / "state")}
        self._start_agent("lb01", LB, handlers, **environ)

    def boot(self, *nodes: str) -> None:
        """Start the web server of each node, then its Serf agent, which joins the cluster."""
        for node in nodes:
            self._boot(node, NODES[node])

    def _boot(self, node: str, address: str) -> None:
        server = str(Path(__file__).resolve().with_name("web.py"))
        self._programs.start(f"{node}-web", [sys.executable, server, node, address, str(self.web_port)])
        wait_for(
            f"the web server of {node}",
            lambda: _is_listening(address, self.web_port),
            self._programs.log(f"{node}-web"),
        )
        self._start_agent(node, address, ["-tag=role=web", f"-join={LB}:{self._serf_port}"])

    def shut_down(self, node: str) -> None:
        """Stop the Serf agent of a node, which leaves the cluster, and a second later its web server.

        Serf takes two seconds to leave. Its agent ends at about the time when the load balancer gets the event. On a
        busy machine lbagent needs more than a second: the web server runs until the event is handled.
        """
        handled = len(self.list_events())
        self._programs.stop(node, signal.SIGINT)
        time.sleep(_OUTLIVES)

        def has_left() -> bool:
            new = self.list_events()[handled:]
            return any(kind == "member-leave" and line.split()[0] == node for kind, lines in new for line in lines)

        wait_for(f"member-leave of {node}", has_left, self.log("lb01"))
        self._programs.stop(f"{node}-web", signal.SIGTERM)

    def run_serf(self, node: str, *words: str) -> None:
        """Run a `serf` command against the agent of `node`. Raises DemoFailed."""
        command = ["serf", words[0], f"-rpc-addr={NODES[node]}:{self._rpc_port}", *words[1:]]
        result = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
        if result.returncode:
            raise DemoFailed(f"{' '.join(command)}: {result.stdout.strip()}")

    def list_events(self) -> list[tuple[str, list[str]]]:
        """Return the events that lbagent has handled: (event, lines of stdin without those of the load balancer)."""
        written = sorted(path for path in (self.folder / "events").iterdir() if path.name != ".new")
        texts = [path.read_text().splitlines() for path in written]
        return [(head.strip(), [line for line in lines if not line.startswith("lb01\t")]) for head, *lines in texts]

    def read_history(self) -> list[dict[str, Any]]:
        """Return the entries of lbagent's history.jsonl."""
        path = self.folder / "state" / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self, name: str) -> Path:
        """Return the log file of a program. A handler's output is in the log of its agent, at the DEBUG level."""
        return self._programs.log(name)

    def _start_agent(self, name: str, address: str, more: Sequence[str], **environ: str) -> None:
        common = [f"-bind={address}:{self._serf_port}", f"-rpc-addr={address}:{self._rpc_port}", "-log-level=debug"]
        argv = ["serf", "agent", f"-node={name}", *common, f"-config-file={self.folder / 'serf.json'}", *more]
        self._programs.start(name, argv, **environ)
        wait_for(f"the Serf agent of {name}", lambda: _is_listening(address, self._rpc_port), self._programs.log(name))


def _is_listening(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _find_free_ports(number: int) -> list[int]:
    # Below the ephemeral ports, so that no connection takes one meanwhile.
    candidates = (random.randrange(15_000, 32_000) for _ in range(1_000))  # not a secret
    found = {port: None for port in candidates if _is_free(port)}
    return list(found)[:number]


def _is_free(port: int) -> bool:
    for address in (LB, *NODES.values()):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
                try:
                    probe.bind((address, port))
                except OSError:
                    return False
    return True
