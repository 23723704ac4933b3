"""A separate Debian in namespaces, with or without systemd. Nothing is installed on the host.

Needs root, debootstrap and the host's Debian mirror. Its only network is loopback, except in `run_online`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.helpers.real_programs import wait_until

HERE = Path(__file__).resolve().parent
RUN_IN_ROOT = str(HERE / "run_in_root")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lbagent", "debian")
"""The folder with a copy of each release from debootstrap, kept between runs."""

PACKAGES = "systemd,systemd-sysv,dbus,procps,ca-certificates"
ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}

_NAMESPACES = ("-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w")


class Machine:
    """A copy of a minimal Debian with the newest packages. It is booted from `__enter__` to `__exit__`."""

    def __init__(self, release: str = "bookworm", name: str = "lb01") -> None:
        """Choose the release; `make` or `copy` creates the machine."""
        self.release, self.name = release, name
        self._folder = Path(tempfile.mkdtemp(prefix=f"{release}-"))
        self.root = self._folder / "root"
        self._log = self._folder / "log"
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def make(self) -> None:
        """Install a minimal Debian with systemd."""
        with _updated_release(self.release) as base:
            subprocess.run(["cp", "-a", "--reflink=auto", base, self.root], check=True)
        (self.root / "etc/hostname").write_text(f"{self.name}\n")

    def copy(self, other: Machine) -> None:
        """Copy another machine, which must not be booted, with this machine's name."""
        subprocess.run(["cp", "-a", "--reflink=auto", other.root, self.root], check=True)
        (self.root / "etc/hostname").write_text(f"{self.name}\n")

    @property
    def pid(self) -> int:
        """The pid of its first process on the host; 0 if it is not booted."""
        return self._init

    def run_online(self, *words: str) -> str:
        """Run a command in the machine, not booted, with the host's network. Returns stdout."""
        return run_online(self.root, *words)

    def run_offline(self, *words: str, seconds: float, log: Path) -> int:
        """Run a command in the machine, not booted, with loopback only; `log` gets its output. Returns its status."""
        with log.open("ab") as file:
            command = [RUN_IN_ROOT, str(self.root), *words]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=seconds, check=False
            )
        return done.returncode

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            command = [RUN_IN_ROOT, "--boot", str(self.root)]
            self._unshare = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._init = wait_until(self._find_init, 60)
            wait_until(lambda: self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"), 90)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._init:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)  # ends all processes of the namespace
        if self._unshare:
            self._unshare.kill()
            self._unshare.wait()
        self._unshare, self._init = None, 0

    def discard(self) -> None:
        """Remove the machine's files."""
        wait_until(lambda: str(self.root) not in Path("/proc/mounts").read_text())
        shutil.rmtree(self._folder)

    def run(self, *words: str, stdin: str = "", seconds: float = 1200) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the booted machine."""
        command = ["nsenter", f"--target={self._init}", *_NAMESPACES, "--", *words]
        return subprocess.run(
            command, env=ENVIRON, input=stdin, capture_output=True, text=True, check=False, timeout=seconds
        )

    def run_successfully(self, *words: str, stdin: str = "") -> str:
        """Run a command in the booted machine; it must exit with 0. Returns stdout."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, (
            f"{words}: exit status {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout

    def path(self, path: str) -> Path:
        """Return the path on the host of a path in the machine."""
        return self.root / path.lstrip("/")

    def _find_init(self) -> int:
        if self._unshare is None or self._unshare.poll() is not None:
            raise RuntimeError(self._log.read_text())
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        running = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "systemd\n"]
        return running[0] if running else 0


def run_online(root: Path, *words: str, tries: int = 1) -> str:
    """Run a command in the Debian below `root`, with the host's network. Returns stdout.

    A failed command is repeated up to `tries` times. Raises RuntimeError with its output.
    """
    output = ""
    for number in range(tries):
        time.sleep(10 * number)
        command = [RUN_IN_ROOT, "--online", str(root), "env", "DEBIAN_FRONTEND=noninteractive", *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        output = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    message = f"{words}: {output}"
    raise RuntimeError(message)


@contextlib.contextmanager
def _updated_release(release: str) -> Iterator[Path]:
    """Yield the cached copy of the release, with the newest packages; it is locked meanwhile."""
    CACHE.mkdir(parents=True, exist_ok=True)
    base = CACHE / release
    with (CACHE / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            _debootstrap(release, base)
        _copy_host_settings(base)
        run_online(base, "apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update", tries=4)
        run_online(base, "apt-get", "-qqy", "dist-upgrade", tries=2)
        run_online(base, "apt-get", "clean")
        yield base


def _debootstrap(release: str, base: Path) -> None:
    mirror = subprocess.run([HERE.parent / ".ci/mirror"], capture_output=True, text=True, check=True).stdout.strip()
    beside = base.with_name(f".{release}.new")
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, str(beside), mirror]
    output = ""
    for pause in (2, 10, 30, 0):
        shutil.rmtree(beside, ignore_errors=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            beside.rename(base)
            return
        output = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        time.sleep(pause)
    message = f"debootstrap: {output}"
    raise RuntimeError(message)


def _copy_host_settings(root: Path) -> None:
    """Copy apt's settings for the mirrors, and the certificates, from the host."""
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout.splitlines()
    names = ("Acquire::Check-", "Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Force")
    wanted = [line for line in settings if line.startswith(names) and not line.endswith(' "";')]
    (root / "etc/apt/apt.conf.d/00this-machine").write_text("".join(f"{line}\n" for line in wanted))
    certificates = "etc/ssl/certs/ca-certificates.crt"
    if Path("/", certificates).exists():
        shutil.copy(Path("/", certificates), root / certificates)
