"""Machines on one network, each a network namespace with a name and an address; only inside `scenarios/apart`."""

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
"""Seconds in which a program has to be there: a JVM on a busy machine takes its time."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, env={"PATH": PROGRAMS})


@contextlib.contextmanager
def network(*addresses: str) -> Iterator[None]:
    """A network that machines may be plugged into; where we are has these addresses on it."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        for address in addresses:
            _ip("addr", "add", f"{address}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield
    finally:
        _ip("link", "del", BRIDGE)


class Machine:
    """A machine on the network, from the `with` on; its programs may listen on every port."""

    _made = 0

    def __init__(self, name: str, address: str) -> None:
        """Nothing is made before the `with`."""
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

    def within(self, *argv: str) -> list[str]:
        """The words that run `argv` on this machine."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *argv]


class Program:
    """A program on a machine (or here), and how one sees that it is there."""

    def __init__(self, argv: Sequence[str], log: Path, seen: Callable[[], object], **env: str) -> None:
        """Nothing runs before `start`; what it says goes to `log`."""
        self.argv, self.log, self._seen = list(argv), log, seen
        self._env = {**clean_environment(), "PATH": PROGRAMS, **env}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `ready` waits until it is there."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def ready(self) -> None:
        """Wait until it can be seen. Raises RuntimeError with its words where it has ended."""
        wait_until(self._there, PATIENCE, 0.05)

    def _there(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(self.log.read_text(errors="replace")[-2000:])
        with contextlib.suppress(OSError):
            return bool(self._seen())
        return False

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send it, and what it has started, a signal, and wait; SIGKILL where it does not heed another."""
        process, self._process = self._process, None
        for one in (number, signal.SIGKILL):
            if process:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, one)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                    return


def agent(machine: Machine, settings: Path, folder: Path) -> SerfAgent:
    """The Serf agent of a machine, with the settings of that folder and none of its own but the place of its RPC."""
    bin_ = folder / f"{machine.name}-bin"
    bin_.mkdir()
    serf = bin_ / "serf"
    # SerfAgent starts, and asks, `serf`: on that machine.
    serf.write_text(f'#!/bin/sh\nPATH={PROGRAMS}\nexec {" ".join(machine.within("serf"))} "$@"\n')
    serf.chmod(0o755)
    return settled(machine.name, machine.address, settings, {**clean_environment(), "PATH": f"{bin_}:{PROGRAMS}"})


def settled(name: str, address: str, settings: Path, env: dict[str, str], *more: str) -> SerfAgent:
    """An agent on Serf's own ports, whose settings are the files in a folder."""
    rpc = "127.0.0.1:7373"
    words = [f"-config-dir={settings}", "-profile=lan", f"-rpc-addr={rpc}", *more]
    found = SerfAgent(name, address, env={**env}, more=words)
    found.bind, found.rpc = f"{address}:7946", rpc
    found._env["SERF_RPC_ADDR"] = rpc
    return found
