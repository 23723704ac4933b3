"""Load balancers that are only files, of the size that a benchmark needs."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

LBAGENT = os.path.join(os.path.dirname(sys.executable), "lbagent")

_HEAD = """\
global
    maxconn 1000
defaults
    mode http
    timeout connect 5s
    timeout client 50s
    timeout server 50s
listen front
    bind 127.0.0.1:18099
"""


class Cost(NamedTuple):
    """The cost of a command with its children."""

    cpu: float
    """Milliseconds of user and system time."""
    output: bytes


class Lb(NamedTuple):
    """A load balancer: haproxy.cfg with one marker in each of `backends` backends, roles.yml, and a state directory."""

    folder: str
    backends: int

    def cfg(self) -> str:
        """The path of haproxy.cfg."""
        return os.path.join(self.folder, "haproxy.cfg")

    def path(self, *, haproxy: bool) -> str:
        """Return a PATH with the real `haproxy`, or with `true` under its name."""
        return f"{'' if haproxy else os.path.join(self.folder, 'bin') + ':'}{os.environ['PATH']}:/usr/sbin"

    def argv(self, verb: str) -> list[str]:
        """Return the command line of a verb."""
        state = os.path.join(self.folder, "state")
        return [LBAGENT, "--roles", os.path.join(self.folder, "roles.yml"), "--state-dir", state, verb]

    def join(self, first: int, count: int, *, haproxy: bool = False) -> Cost:
        """Handle one member-join of `count` nodes, spread over the backends."""
        lines = "".join(_line(number, number % self.backends) for number in range(first, first + count))
        environ = {"PATH": self.path(haproxy=haproxy), "SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01"}
        return run(self.argv("handle"), lines.encode(), environ)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore all files at the end, so that each measurement starts from the same state."""
        with tempfile.TemporaryDirectory(prefix="lbagent-bench-") as kept:
            shutil.copytree(self.folder, kept, symlinks=True, dirs_exist_ok=True)
            yield
            shutil.rmtree(self.folder)
            shutil.copytree(kept, self.folder, symlinks=True)


@contextmanager
def lb(backends: int) -> Iterator[Lb]:
    """Make a load balancer and remove it at the end."""
    folder = tempfile.mkdtemp(prefix="lbagent-bench-")
    try:
        os.mkdir(os.path.join(folder, "bin"))
        for name in ("haproxy", "reload-haproxy"):
            os.symlink(shutil.which("true") or "/bin/true", os.path.join(folder, "bin", name))
        services = "".join(f"  s{number}: {{port: 80}}\n" for number in range(backends))
        roles = "".join(f"  r{number}: {{lb: [s{number}], interval: 60s}}\n" for number in range(backends))
        _write(folder, "roles.yml", f"{_settings(folder)}services:\n{services}roles:\n{roles}")
        markers = "".join(
            f"backend b{number}\n    balance roundrobin\n    # additional-lb-s{number}-server\n"
            for number in range(backends)
        )
        _write(folder, "haproxy.cfg", _HEAD + markers)
        yield Lb(folder, backends)
    finally:
        shutil.rmtree(folder)


def run(argv: Sequence[str], stdin: bytes = b"", environ: Mapping[str, str] | None = None) -> Cost:
    """Run a command and return its cost. Ends the benchmark if the command fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(argv, input=stdin, env=environ, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{argv[0]} ended with {done.returncode}: {done.stderr.decode()}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Cost(cpu * 1000, done.stdout)


def _line(number: int, role: int) -> str:
    address = f"10.{number // 62500}.{number // 250 % 250}.{number % 250 + 1}"
    return f"web{number:05d}\t{address}\tr{role}\trole=r{role}\n"


def _settings(folder: str) -> str:
    return f"haproxy: {{config: {folder}/haproxy.cfg, reload: [reload-haproxy]}}\n"


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)
