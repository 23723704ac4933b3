"""A Debian 12 of its own, with systemd as its first process, in namespaces: what is installed there is on no host.

Root, debootstrap and a Debian mirror are all it takes; it has no network but loopback while it runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.world import eventually

PACKAGES = "systemd,systemd-sysv,dbus,procps,ca-certificates"

_BOOT = """
set -e
mount --make-rprivate /
mount --bind $1 $1
mount -t proc proc $1/proc
mount -t sysfs -o ro sysfs $1/sys
mount -t cgroup2 cgroup2 $1/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs $1/run
mount -t tmpfs -o mode=755 tmpfs $1/dev
mkdir $1/dev/pts $1/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts $1/dev/pts
ln -s pts/ptmx $1/dev/ptmx
mount -t tmpfs tmpfs $1/dev/shm
"""

_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}

_SYSTEMD = "exec chroot $1 /usr/bin/env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd"

_INSIDE = ("-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w")


class Machine:
    """Made by debootstrap, once; booted while in the `with`."""

    def __init__(self) -> None:
        """Nothing is made yet."""
        self._folder = Path(tempfile.mkdtemp(prefix="debian-"))
        self.root = self._folder / "root"
        self._log = self._folder / "log"
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def make(self, mirror: str = "http://deb.debian.org/debian") -> None:
        """Install a minimal Debian with systemd."""
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(self.root), mirror]
        said = ""
        for pause in (2, 10, 30):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return
            said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            shutil.rmtree(self.root, ignore_errors=True)
            time.sleep(pause)
        raise RuntimeError(f"debootstrap: {said}")

    def chroot(self, *words: str) -> str:
        """Run a command in it before it is booted, with the network of the host."""
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        proxies = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
        command = ["chroot", str(self.root), *words]
        done = subprocess.run(command, env={**environ, **proxies}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def __enter__(self) -> Self:
        nodes = "\n".join(f"mknod -m 666 $1/dev/{name} c {major} {minor}" for name, (major, minor) in _NODES.items())
        script = f"{_BOOT}{nodes}\n{_SYSTEMD}"
        flags = ["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup"]
        (self.root / "etc/hostname").write_text("lb01\n")
        with self._log.open("wb") as log:
            command = ["unshare", *flags, "sh", "-c", script, "sh", str(self.root)]
            self._unshare = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._init = eventually(self._first_process, 60)
            eventually(lambda: self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"), 90)
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
        eventually(lambda: str(self.root) not in Path("/proc/mounts").read_text())
        shutil.rmtree(self._folder)

    def run(self, *words: str, stdin: str = "", seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root."""
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        command = ["nsenter", f"--target={self._init}", *_INSIDE, "--", *words]
        return subprocess.run(
            command, env=environ, input=stdin, capture_output=True, text=True, check=False, timeout=seconds
        )

    def good(self, *words: str, stdin: str = "") -> str:
        """What a command in it says, which has to end well."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def path(self, path: str) -> Path:
        """Where a path of it is on the host."""
        return self.root / path.lstrip("/")

    def _first_process(self) -> int:
        if self._unshare is None or self._unshare.poll() is not None:
            raise RuntimeError(self._log.read_text())
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        running = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "systemd\n"]
        return running[0] if running else 0
