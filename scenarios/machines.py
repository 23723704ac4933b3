"""Machines to test with: namespaces of their own for network, mounts and processes, on one switch, gone with the test.

Nothing is made in the host's namespaces but processes that end with this one: a run that is killed leaves nothing.
Programs see their production paths: /etc and /var are laid over the host's, /run and what a machine keeps are its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol, Self

from tests.helpers.real_programs import PATIENCE, clean_environment, wait_until

_BOOT = """\
set -e
mount -t tmpfs lbagent "$1"
for folder in etc var; do
    mkdir "$1/$folder" "$1/$folder.work"
    mount -t overlay -o "lowerdir=/$folder,upperdir=$1/$folder,workdir=$1/$folder.work" lbagent "/$folder"
done
mount -t tmpfs -o mode=755 lbagent /run
shift
for folder in "$@"; do
    mkdir -p "$folder"
    mount -t tmpfs -o mode=755 lbagent "$folder"
done
ip link set lo up
# Whoever loses its parent becomes a child of this process, and ends without a trace.
trap '' CHLD
echo up
exec sleep infinity
"""

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


class Machine:
    """A machine, from `with` to its end; `own` are folders of its own, empty at first."""

    def __init__(self, name: str, own: Sequence[str] = ()) -> None:
        """Nothing runs yet."""
        self.name, self._own = name, own
        self._boot: subprocess.Popen[str] | None = None
        self.daemons: list[Daemon] = []
        self.pid = 0
        """Its first process, as the host numbers it."""

    def __enter__(self) -> Self:
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as folder:
            # The kernel ends unshare with this process, and the machine with unshare: no killed run leaves one.
            argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--uts", "--fork"]
            argv += ["--kill-child", "--mount-proc", "sh", "-c", _BOOT, "boot", folder, *self._own]
            pipe = subprocess.PIPE
            self._boot = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
            assert self._boot.stdout
            if self._boot.stdout.readline() != "up\n":
                raise RuntimeError(f"{self.name} does not boot: {self._boot.communicate()[1]}")
        self.pid = next(pid for pid, parent in _parents() if parent == self._boot.pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self._boot:
            self._boot.kill()
            self._boot.communicate()
            self._boot = None
        for daemon in self.daemons:
            daemon.ended()
            daemon.close()

    @property
    def root(self) -> Path:
        """Its files, as seen from here."""
        return Path(f"/proc/{self.pid}/root")

    def inside(self, *argv: str) -> list[str]:
        """The command line that runs `argv` on this machine."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--uts", "--wd=/", "--", *argv]

    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, checked: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end."""
        environ = {**clean_environment(), **(env or {})}
        done = subprocess.run(
            self.inside(*argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environ,
            timeout=120,
            check=False,
        )
        if checked and done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(argv)}: {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def processes(self, name: str) -> list[int]:
        """The processes of this name that run here, as the host numbers them."""
        return [pid for pid, _ in _parents() if _is(pid, name, f"/proc/{self.pid}/ns/pid")]

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to every process of this name here."""
        for pid in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def enter(self) -> None:
        """Have the calling thread, and no other, use this machine's network from now on."""
        with open(f"/proc/{self.pid}/ns/net", "rb") as network:  # its number is wanted
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")


def _parents() -> Iterator[tuple[int, int]]:
    """Every living process of the host, and its parent."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
                if state != "Z":
                    yield int(entry.name), int(parent)


def _is(pid: int, name: str, namespace: str) -> bool:
    try:
        same = os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(namespace)
        return same and Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"
    except OSError:
        return False


class Daemon:
    """A program that runs on a machine until it is stopped."""

    def __init__(self, machine: Machine, *argv: str, env: Mapping[str, str] | None = None) -> None:
        """Nothing runs before `start`."""
        self.machine, self._argv, self._env = machine, argv, {**clean_environment(), **(env or {})}
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the daemon
        self._process: subprocess.Popen[bytes] | None = None
        machine.daemons.append(self)

    def start(self) -> None:
        """Start it, once more after its end."""
        self.ended()
        argv = self.machine.inside(*self._argv)
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=self._env
        )

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until it is `ready`. Raises RuntimeError with its log where it ends before."""

        def there() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"{self.machine.name}: {self._argv[0]} has ended: {self.log[-2000:]}")
            return ready()

        wait_until(there)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode("utf-8", "replace")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal, and wait for its end."""
        if self._process is None:
            return
        started = [pid for pid, parent in _parents() if parent == self._process.pid]
        for pid in started:
            os.kill(pid, number)
        self.ended()

    def close(self) -> None:
        """Forget its log."""
        self._log.close()

    def ended(self) -> None:
        """Wait for its end, where somebody else has seen to that."""
        if self._process:
            self._process.wait(PATIENCE)
            self._process = None


class Pluggable(Protocol):
    """A machine with a network of its own."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def pid(self) -> int:
        """Its first process, as the host numbers it."""


class Switch:
    """An Ethernet of its own: what is plugged in reaches each other, and nothing else."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._machine = Machine("switch")

    def __enter__(self) -> Self:
        self._machine.__enter__()
        # No snooping: keepalived's and ARP's packets go to all.
        self._machine.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self._machine.run("ip", "link", "set", "br0", "up")
        return self

    def __exit__(self, *failed: object) -> None:
        self._machine.__exit__(*failed)

    def plug(self, machine: Pluggable, address: str) -> None:
        """Give `machine` an eth0 with this address (and its prefix), on this switch."""
        pair = ["type", "veth", "peer", "name", machine.name, "netns", str(self._machine.pid)]
        subprocess.run(["ip", "link", "add", "eth0", "netns", str(machine.pid), *pair], check=True)
        there = ["nsenter", f"--target={machine.pid}", "--net", "ip"]
        subprocess.run([*there, "address", "add", address, "dev", "eth0"], check=True)
        subprocess.run([*there, "link", "set", "eth0", "up"], check=True)
        self._machine.run("ip", "link", "set", machine.name, "master", "br0", "up")

    def unplug(self, machine: Pluggable) -> None:
        """Let nothing pass between it and the others; neither side's kernel notices."""
        self._machine.run("ip", "link", "set", machine.name, "nomaster")

    def replug(self, machine: Pluggable) -> None:
        """Undo `unplug`."""
        self._machine.run("ip", "link", "set", machine.name, "master", "br0")

    def cable(self, machine: Machine, state: str) -> None:
        """Pull its cable out (`down`), or put it in again (`up`)."""
        self._machine.run("ip", "link", "set", machine.name, state)


def thread_on(machine: Machine, work: Callable[[], None]) -> threading.Thread:
    """A running thread that does this work on the machine's network."""

    def inside() -> None:
        machine.enter()
        work()

    thread = threading.Thread(target=inside, daemon=True)
    thread.start()
    return thread
