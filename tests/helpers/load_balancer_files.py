"""The files of a load balancer, and calls of the real console script as Serf makes them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lbagent.serf.raw_event import RECORD_LIMIT, read_handler_event
from lbagent.settings import Paths
from lbagent.state import store
from lbagent.state.spool import Spool
from tests.helpers.builders import managed_lines

SERF = Path(__file__).parent.parent / "fixtures" / "serf"


class HandlerRun(NamedTuple):
    """The result of the console script."""

    status: int
    out: bytes
    err: str


class LoadBalancerFiles(NamedTuple):
    """A state directory, roles.yml and haproxy.cfg."""

    folder: Path
    script: str
    path: str
    """PATH for the script."""

    @property
    def cfg(self) -> Path:
        """haproxy.cfg."""
        return self.folder / "haproxy.cfg"

    @property
    def roles(self) -> Path:
        """roles.yml."""
        return self.folder / "roles.yml"

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.folder / "state"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of Serf's agent."""
        return {
            "PATH": self.path,
            "LBAGENT_ROLES": str(self.roles),
            "LBAGENT_STATE_DIR": str(self.state),
            "LC_ALL": "C.UTF-8",
        }

    @property
    def managed(self) -> list[str]:
        """The managed lines of haproxy.cfg."""
        return managed_lines(self.cfg.read_bytes().decode("utf-8", "surrogateescape"))

    @property
    def members(self) -> dict[str, str]:
        """The statuses in members.json, by name."""
        members = store.parse_membership((self.state / "members.json").read_bytes()).members
        return {name: one.status for name, one in members.items()}

    @property
    def spool_files(self) -> list[str]:
        """The names of the files in the spool."""
        return sorted(path.name for path in (self.state / "spool").iterdir()) if (self.state / "spool").exists() else []

    def run(self, *words: str, stdin: bytes = b"", **more: str) -> HandlerRun:
        """Run the console script."""
        done = subprocess.run(  # noqa: PLW1510  # the status is what the tests look at
            [self.script, *words],
            input=stdin,
            capture_output=True,
            env={**self.environ, **more},
            cwd=self.folder,
            timeout=60,
        )
        return HandlerRun(done.returncode, done.stdout, done.stderr.decode("utf-8", "surrogateescape"))

    def handle(self, kind: str, stdin: bytes = b"", **more: str) -> HandlerRun:
        """Run the handler as Serf does."""
        return self.run("handle", stdin=stdin, SERF_EVENT=kind, SERF_SELF_NAME="lb01", **more)

    def join(self, *nodes: str, role: str = "web") -> HandlerRun:
        """Handle a member-join of nodes, each `NAME ADDRESS`."""
        lines = ("\t".join([*node.split(), role, f"role={role}"]) + "\n" for node in nodes)
        return self.handle("member-join", "".join(lines).encode())

    def send_event(self, name: str, payload: str, ltime: int) -> HandlerRun:
        """Handle a user event."""
        return self.handle("user", payload.encode(), SERF_USER_EVENT=name, SERF_USER_LTIME=str(ltime))

    def send_query(self, name: str, payload: str = "", ltime: int = 1) -> HandlerRun:
        """Handle a query."""
        return self.handle("query", payload.encode(), SERF_QUERY_NAME=name, SERF_QUERY_LTIME=str(ltime))

    def store_event(self, environ: Mapping[str, str], stdin: bytes, identity: str) -> None:
        """Store an event in the spool, as a handler that finds the lock busy."""
        raw = read_handler_event(
            {key.encode(): value.encode() for key, value in environ.items()}, stdin, 1_700_000_000_000, identity
        )
        paths = Paths(str(self.state))
        paths.prepare()
        for record in raw.split_records():
            Spool(paths.spool, RECORD_LIMIT).store(record)


def build_files(
    folder: Path, script: str, cfg: str | bytes, roles: str, haproxy: str | None = None
) -> LoadBalancerFiles:
    """Return the files of a load balancer in `folder`; `haproxy` is run in place of HAProxy."""
    programs = folder / "bin"
    programs.mkdir()
    if haproxy:
        (programs / "haproxy").symlink_to(haproxy)
    stage = LoadBalancerFiles(folder, script, f"{programs}:{os.environ['PATH']}")
    stage.cfg.write_bytes(cfg if isinstance(cfg, bytes) else cfg.encode())
    stage.roles.write_text(f"haproxy: {{config: {stage.cfg}}}\n{roles}")
    return stage


def captured_event(case: str) -> tuple[dict[str, str], bytes]:
    """Return environment and stdin of an event captured from a real Serf agent."""
    return json.loads((SERF / case / "env.json").read_text()), (SERF / case / "stdin.bin").read_bytes()
