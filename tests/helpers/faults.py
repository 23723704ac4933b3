"""Functions that create faults: full and read-only disks, broken HAProxys, hostile files."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.helpers.real_programs import RELOADING, LoadBalancer, wait_until


def make_server_lines(lb: LoadBalancer, *numbers: int) -> list[str]:
    """Return the managed lines of the nodes webN, for each N of `numbers`."""
    return [lb.server(f"web{number}", f"127.0.0.{number + 10}") for number in numbers]


def make_spool_record(identity: str, kind: str, payload: bytes, name: str = "", ltime: str = "") -> bytes:
    """Return a spool record as any user with access to the spool could write it."""
    head = (identity, "1700000000000", kind, name, ltime, "lb01")
    return b"\0".join([b"lbagent 1", *(word.encode() for word in head), payload])


def read_folder(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content by name of everything below `folder`, without the files that describe the last run."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.name not in ("last.json", "metrics.prom")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else b""
        found[str(path.relative_to(folder))] = (mode, content)
    return found


def replace_haproxy(lb: LoadBalancer, script: str) -> None:
    """Replace the `haproxy` of `lb` by a shell script, in which `exec "$real" "$@"` runs the real one."""
    path = lb.bin / "haproxy"
    path.unlink(missing_ok=True)
    write_script(path, f"real={shlex.quote(str(lb.binary))}\n{script}")


def restore_haproxy(lb: LoadBalancer) -> None:
    """Restore the real `haproxy` at the path from which a master executes itself at a reload."""
    lb.use_haproxy(lb.binary)


def set_reload_command(lb: LoadBalancer, script: str, roles: str = RELOADING) -> None:
    """Set a shell script as reload command in roles.yml."""
    path = write_script(lb.folder / "reload", script)
    lb.roles.write_text(lb.fill_template(roles).replace("haproxy:\n", f"haproxy:\n  reload: [{path}]\n"))


def insert_lines(operator: bytes, lines: Iterable[str]) -> bytes:
    """Return the operator's text with managed lines above its first marker, with its indentation and line ending."""
    before, marker, after = re.split(rb"(?m)^([ \t]*# additional-[^\n]*)", operator, maxsplit=1)
    indent = marker[: len(marker) - len(marker.lstrip())]
    ending = b"\r\n" if marker.endswith(b"\r") or b"\r\n" in operator else b"\n"
    ours = b"".join(indent + line.encode() + ending for line in lines)
    return before + ours + marker + (after or ending)


def read_only_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the only line on stderr of a run; fails if there is a traceback."""
    output = done.stderr.decode("utf-8", "replace")
    assert output.startswith("lbagent: "), output
    assert output.count("\n") == 1, output
    return output.removeprefix("lbagent: ").rstrip("\n")


def list_spool_records(lb: LoadBalancer) -> list[str]:
    """Return the names of complete events in the spool; a killed writer leaves a hidden file."""
    return [name for name in lb.list_spool() if not name.startswith(".")]


def list_stored_nodes(lb: LoadBalancer) -> set[str]:
    """Return the nodes in members.json and in complete spool records, which no crash may lose."""
    found = [(lb.state / "spool" / name).read_bytes() for name in list_spool_records(lb)]
    return {*lb.members(), *(record.split(b"\0", 7)[7].partition(b"\t")[0].decode() for record in found)}


def write_script(path: Path, script: str) -> Path:
    """Write an executable shell script; returns its path."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def mount_small_disk(folder: Path, size: str = "256k") -> Iterator[Path]:
    """Mount an empty file system over `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size},mode=0755", "lbagent-test", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def mount_read_only(folder: Path) -> Iterator[None]:
    """Mount a folder read-only: root ignores permissions, but not a read-only mount."""
    _mount("--bind", folder, folder)
    try:
        _mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def mount_file(file: Path, over: Path) -> Iterator[None]:
    """Mount a single file over another one, as a container's host does."""
    _mount("--bind", file, over)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", over], check=True)


def _mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")


@contextlib.contextmanager
def fill_disk(folder: Path) -> Iterator[None]:
    """Fill the disk of `folder` to the last byte until the end of the block."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def hide_haproxy() -> Iterator[list[str]]:
    """Yield the prefix of a command that runs it without an installed haproxy."""
    found = [
        path
        for folder in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
        if os.path.isfile(path := os.path.realpath(f"{folder}/haproxy"))
    ]
    hidden = "; ".join(f"mount --bind /dev/null {shlex.quote(path)}" for path in dict.fromkeys(found))
    words = ["unshare", "--mount", "sh", "-ec", f'{hidden or ":"}; exec "$@"', "sh"]
    if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare is not allowed here")
    yield words


def list_running(words: str) -> list[int]:
    """Return the pids of processes with `words` in their command line that do not end."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not _running(words))
    return _running(words)


def _running(words: str) -> list[int]:
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            if words.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found
