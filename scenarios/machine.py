"""A Debian of its own, booted with systemd or not, in namespaces: nothing of it is installed on this machine.

It takes root, debootstrap and the Debian mirror of this machine. While tests run in it, its only network is loopback.
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
INSIDE = str(HERE / "inside")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lbagent", "debian")
"""Where each release is kept between runs as debootstrap made it."""

PACKAGES = "systemd,systemd-sysv,dbus,procps,ca-certificates"
ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}

_INSIDE = ("-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w")


class Machine:
    """A copy of a release as debootstrap makes it, up to date; booted while in the `with`."""

    def __init__(self, release: str = "bookworm", name: str = "lb01") -> None:
        """Nothing is made yet."""
        self.release, self.name = release, name
        self._folder = Path(tempfile.mkdtemp(prefix=f"{release}-"))
        self.root = self._folder / "root"
        self._log = self._folder / "log"
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def make(self) -> None:
        """Install a minimal Debian with systemd."""
        with _kept(self.release) as base:
            subprocess.run(["cp", "-a", "--reflink=auto", base, self.root], check=True)
        (self.root / "etc/hostname").write_text(f"{self.name}\n")

    def copy(self, other: Machine) -> None:
        """Become a copy of another machine that is not booted, with a name of its own."""
        subprocess.run(["cp", "-a", "--reflink=auto", other.root, self.root], check=True)
        (self.root / "etc/hostname").write_text(f"{self.name}\n")

    @property
    def pid(self) -> int:
        """Its first process, as the host numbers it; 0 while it is not booted."""
        return self._init

    def online(self, *words: str) -> str:
        """The output of a command that runs in it before it is booted, with the network of this machine."""
        return online(self.root, *words)

    def apart(self, *words: str, seconds: float, log: Path) -> int:
        """The exit status of a command that runs in it, not booted, with loopback alone; `log` gets its output."""
        with log.open("ab") as file:
            command = [INSIDE, str(self.root), *words]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=seconds, check=False
            )
        return done.returncode

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            command = [INSIDE, "--boot", str(self.root)]
            self._unshare = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._init = wait_until(self._first_process, 60)
            wait_until(lambda: self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"), 90)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._init:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)  # and with the first process of a namespace all others
        if self._unshare:
            self._unshare.kill()
            self._unshare.wait()
        self._unshare, self._init = None, 0

    def discard(self) -> None:
        """Remove it."""
        wait_until(lambda: str(self.root) not in Path("/proc/mounts").read_text())
        shutil.rmtree(self._folder)

    def run(self, *words: str, stdin: str = "", seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command in it while it is booted, as root."""
        command = ["nsenter", f"--target={self._init}", *_INSIDE, "--", *words]
        return subprocess.run(
            command, env=ENVIRON, input=stdin, capture_output=True, text=True, check=False, timeout=seconds
        )

    def good(self, *words: str, stdin: str = "") -> str:
        """The output of a command in it, which has to end well."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def path(self, path: str) -> Path:
        """Where a path of it is on this machine."""
        return self.root / path.lstrip("/")

    def _first_process(self) -> int:
        if self._unshare is None or self._unshare.poll() is not None:
            raise RuntimeError(self._log.read_text())
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        running = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "systemd\n"]
        return running[0] if running else 0


def online(root: Path, *words: str, tries: int = 1) -> str:
    """The output of a command in the Debian below `root`, with the network of this machine."""
    output = ""
    for number in range(tries):
        time.sleep(10 * number)
        command = [INSIDE, "--online", str(root), "env", "DEBIAN_FRONTEND=noninteractive", *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        output = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    message = f"{words}: {output}"
    raise RuntimeError(message)


@contextlib.contextmanager
def _kept(release: str) -> Iterator[Path]:
    """The release as debootstrap made it, with the newest packages; nobody else changes it within the `with`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    base = CACHE / release
    with (CACHE / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            _debootstrap(release, base)
        _use_settings_of_this_machine(base)
        online(base, "apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update", tries=4)
        online(base, "apt-get", "-qqy", "dist-upgrade", tries=2)
        online(base, "apt-get", "clean")
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


def _use_settings_of_this_machine(root: Path) -> None:
    """What this machine needs to reach its mirrors, the copy needs too: apt's settings for it, and certificates."""
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout.splitlines()
    names = ("Acquire::Check-", "Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Force")
    wanted = [line for line in settings if line.startswith(names) and not line.endswith(' "";')]
    (root / "etc/apt/apt.conf.d/00this-machine").write_text("".join(f"{line}\n" for line in wanted))
    certificates = "etc/ssl/certs/ca-certificates.crt"
    if Path("/", certificates).exists():
        shutil.copy(Path("/", certificates), root / certificates)
