"""Machines for tests: each has its own network, mounts and processes, and is connected to one switch.

In the host's namespaces there are only processes that end with this one: a killed run leaves nothing behind.
Programs use their production paths. /etc and /var are overlays of the host's; /run and some folders are separate.
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

_BOOT_SCRIPT = """\
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
# Orphaned processes become children of this process; the kernel reaps them.
trap '' CHLD
echo up
exec sleep infinity
"""

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


class Machine:
    """A machine, from `__enter__` to `__exit__`. `own` lists its separate folders, which are empty at first."""

    def __init__(self, name: str, own: Sequence[str] = ()) -> None:
        """Nothing runs yet."""
        self.name, self._own = name, own
        self._boot: subprocess.Popen[str] | None = None
        self.daemons: list[Daemon] = []
        self.pid = 0
        """The pid of its first process on the host."""

    def __enter__(self) -> Self:
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as folder:
            # The kernel ends unshare with this process, and the machine with unshare, also if this run is killed.
            argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--uts", "--fork"]
            argv += ["--kill-child", "--mount-proc", "sh", "-c", _BOOT_SCRIPT, "boot", folder, *self._own]
            pipe = subprocess.PIPE
            self._boot = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
            assert self._boot.stdout
            if self._boot.stdout.readline() != "up\n":
                raise RuntimeError(f"{self.name}: cannot boot: {self._boot.communicate()[1]}")
        self.pid = next(pid for pid, parent in _list_processes() if parent == self._boot.pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self._boot:
            self._boot.kill()
            self._boot.communicate()
            self._boot = None
        for daemon in self.daemons:
            daemon.wait()
            daemon.close()

    @property
    def root(self) -> Path:
        """The path on the host of the machine's root folder."""
        return Path(f"/proc/{self.pid}/root")

    def inside(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` on this machine."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--uts", "--wd=/", "--", *argv]

    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, checked: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the machine. Raises RuntimeError if it fails and `checked` is true."""
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

    def list_processes(self, name: str) -> list[int]:
        """Return the pids on the host of the machine's processes of this name."""
        return [pid for pid, _ in _list_processes() if _is_process(pid, name, f"/proc/{self.pid}/ns/pid")]

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to every process of this name on the machine."""
        for pid in self.list_processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def enter_network(self) -> None:
        """Switch the calling thread to this machine's network."""
        with open(f"/proc/{self.pid}/ns/net", "rb") as network:  # setns needs its descriptor
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")


def _list_processes() -> Iterator[tuple[int, int]]:
    """Yield the pid of every process of the host and that of its parent, without zombies."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
                if state != "Z":
                    yield int(entry.name), int(parent)


def _is_process(pid: int, name: str, namespace: str) -> bool:
    try:
        same = os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(namespace)
        return same and Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"
    except OSError:
        return False


class Daemon:
    """A program on a machine that runs until `stop`, or until the machine ends."""

    def __init__(self, machine: Machine, *argv: str, env: Mapping[str, str] | None = None) -> None:
        """Prepare the program; `start` starts it."""
        self.machine, self._argv, self._env = machine, argv, {**clean_environment(), **(env or {})}
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the daemon
        self._process: subprocess.Popen[bytes] | None = None
        machine.daemons.append(self)

    def start(self) -> None:
        """Start the program; wait first for the end of its previous run."""
        self.wait()
        argv = self.machine.inside(*self._argv)
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=self._env
        )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready` returns true. Raises RuntimeError with the log if the program ends before."""

        def is_ready() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"{self.machine.name}: {self._argv[0]} ended: {self.log[-2000:]}")
            return ready()

        wait_until(is_ready)

    @property
    def log(self) -> str:
        """The output of the program so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode("utf-8", "replace")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the program, and wait for its end."""
        if self._process is None:
            return
        started = [pid for pid, parent in _list_processes() if parent == self._process.pid]
        for pid in started:
            os.kill(pid, number)
        self.wait()

    def close(self) -> None:
        """Delete the log."""
        self._log.close()

    def wait(self) -> None:
        """Wait for the end of the program, which the caller has caused."""
        if self._process:
            # nsenter stops itself when its program is stopped.
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(PATIENCE)
            self._process = None

    def freeze(self) -> None:
        """Stop the program until `thaw`."""
        self._send_to_program(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the program, and nsenter, which has stopped itself."""
        self._send_to_program(signal.SIGCONT)
        if self._process:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the program and its children, and wait for its end."""
        self._send_to_program(signal.SIGKILL)
        self.wait()

    @property
    def pids(self) -> set[int]:
        """The pids on the host of the program and its children."""
        if self._process is None:
            return set()
        parents = dict(_list_processes())
        program = {pid for pid, parent in parents.items() if parent == self._process.pid}
        return program | {pid for pid, parent in parents.items() if parent in program}

    def _send_to_program(self, number: int) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class NetworkedMachine(Protocol):
    """A machine with its own network."""

    @property
    def name(self) -> str:
        """The name of the machine."""

    @property
    def pid(self) -> int:
        """The pid of its first process on the host."""


class Switch:
    """A separate Ethernet switch: its machines reach each other and nothing else."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self.machine = Machine("switch")

    def __enter__(self) -> Self:
        self.machine.__enter__()
        # Without snooping, multicast packets of keepalived reach all machines.
        self.machine.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.machine.run("ip", "link", "set", "br0", "up")
        return self

    def __exit__(self, *failed: object) -> None:
        self.machine.__exit__(*failed)

    def plug(self, machine: NetworkedMachine, address: str) -> None:
        """Connect `machine` by an eth0 with this address, such as 10.0.0.1/24."""
        pair = ["type", "veth", "peer", "name", machine.name, "netns", str(self.machine.pid)]
        subprocess.run(["ip", "link", "add", "eth0", "netns", str(machine.pid), *pair], check=True)
        there = ["nsenter", f"--target={machine.pid}", "--net", "ip"]
        subprocess.run([*there, "address", "add", address, "dev", "eth0"], check=True)
        subprocess.run([*there, "link", "set", "eth0", "up"], check=True)
        self.machine.run("ip", "link", "set", machine.name, "master", "br0", "up")

    def unplug(self, machine: NetworkedMachine) -> None:
        """Drop all packets of the machine; its eth0 stays up."""
        self.machine.run("ip", "link", "set", machine.name, "nomaster")

    def replug(self, machine: NetworkedMachine) -> None:
        """Undo `unplug`."""
        self.machine.run("ip", "link", "set", machine.name, "master", "br0")

    def set_cable(self, machine: Machine, state: str) -> None:
        """Disconnect the machine's cable (`down`), or connect it again (`up`)."""
        self.machine.run("ip", "link", "set", machine.name, state)


def start_thread_on(machine: Machine, work: Callable[[], None]) -> threading.Thread:
    """Start a thread that runs `work` on the machine's network, and return it."""

    def inside() -> None:
        machine.enter_network()
        work()

    thread = threading.Thread(target=inside, daemon=True)
    thread.start()
    return thread
