"""Machines on one network, each a network namespace with a name and an address.

They need `scenarios/run_isolated`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from tests.helpers.real_programs import SerfAgent, clean_environment, wait_until

BRIDGE = "platform"
PROGRAMS = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
PATIENCE = 120.0
"""Seconds until a program is ready, for example a JVM on a busy machine."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, env={"PATH": PROGRAMS})


@contextlib.contextmanager
def network(*addresses: str) -> Iterator[None]:
    """Create the network of the machines. This namespace has these addresses on it."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        for address in addresses:
            _ip("addr", "add", f"{address}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield
    finally:
        _ip("link", "del", BRIDGE)


class Machine:
    """A machine on the network, from `__enter__` to `__exit__`. Its programs may listen on every port."""

    _made = 0

    def __init__(self, name: str, address: str) -> None:
        """Choose name and address; `__enter__` creates the machine."""
        self.name, self.address = name, address

    def __enter__(self) -> Self:
        Machine._made += 1
        cable = f"cable{Machine._made}"
        _ip("netns", "add", self.name)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", cable, "master", BRIDGE, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self.name, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        _ip("netns", "del", self.name)

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` on this machine."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *argv]


class Program:
    """A program on a machine or in this namespace, with a probe that shows whether it is ready."""

    def __init__(self, argv: Sequence[str], log: Path, probe: Callable[[], object], **env: str) -> None:
        """Prepare the program; `start` starts it. Its output goes to `log`."""
        self.argv, self.log, self._probe = list(argv), log, probe
        self._env = {**clean_environment(), "PATH": PROGRAMS, **env}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program; `wait_until_ready` waits for its probe."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Wait until the probe succeeds. Raises RuntimeError with the log if the program has ended."""
        wait_until(self._is_ready, PATIENCE, 0.05)

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(self.log.read_text(errors="replace")[-2000:])
        with contextlib.suppress(OSError):
            return bool(self._probe())
        return False

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the program's process group, and wait; after 20 s, send SIGKILL."""
        process, self._process = self._process, None
        for one in (number, signal.SIGKILL):
            if process:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, one)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                    return


def make_agent(machine: Machine, settings: Path, folder: Path) -> SerfAgent:
    """Return the Serf agent of a machine, with the settings in a folder and its own RPC address."""
    bin_ = folder / f"{machine.name}-bin"
    bin_.mkdir()
    serf = bin_ / "serf"
    # SerfAgent runs `serf`: this script runs it on the machine.
    serf.write_text(f'#!/bin/sh\nPATH={PROGRAMS}\nexec {" ".join(machine.command("serf"))} "$@"\n')
    serf.chmod(0o755)
    return make_configured_agent(
        machine.name, machine.address, settings, {**clean_environment(), "PATH": f"{bin_}:{PROGRAMS}"}
    )


def make_configured_agent(name: str, address: str, settings: Path, env: dict[str, str], *more: str) -> SerfAgent:
    """Return an agent with Serf's default ports, and the settings in a folder."""
    rpc = "127.0.0.1:7373"
    options = [f"-config-dir={settings}", "-profile=lan", f"-rpc-addr={rpc}", *more]
    found = SerfAgent(name, address, env={**env}, more=options)
    found.bind, found.rpc = f"{address}:7946", rpc
    found._env["SERF_RPC_ADDR"] = rpc
    return found
