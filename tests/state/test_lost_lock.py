"""A lock file that is deleted, replaced or moved away during a slow run: nothing is lost."""

# ruff: noqa: E501  # a line of a script

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbagent.state import files, lock
from tests.helpers.load_balancer_files import LoadBalancerFiles, build_files
from tests.helpers.real_programs import LBAGENT, wait_until

CFG = "backend lb\n    # additional-lb-iis-server\n"
ROLES = "services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n"

SLOW_CHECK = """#!/bin/sh
case " $* " in *" -c "*) if [ -e {slow} ]; then rm {slow}; touch {waits}; while ! [ -e {go} ]; do sleep 0.05; done; fi ;; esac
exit 0
"""
"""A HAProxy that takes its time over the first text it checks."""

SLOW_WRITER = """
import os, sys, time
from lbagent import cli
from lbagent.state import store
serialize = store.serialize_membership
def slowly(membership):
    if os.path.exists({slow!r}) and membership.members:
        os.unlink({slow!r})
        open({waits!r}, "w").close()
        while not os.path.exists({go!r}):
            time.sleep(0.05)
    return serialize(membership)
store.serialize_membership = slowly
sys.exit(cli.main(["handle"]))
"""
"""A handler that takes its time before it writes the first members.json that has members."""


def replaced(path: Path) -> None:
    """The file is another one."""
    path.with_name("other").touch()
    path.with_name("other").rename(path)


def moved_away(path: Path) -> None:
    """The state directory is restored from a copy: other inodes, the same content."""
    folder = path.parent
    shutil.copytree(folder, f"{folder}.copy", ignore=shutil.ignore_patterns("*.new"))  # `watch` may be writing it
    folder.rename(f"{folder}.old")
    Path(f"{folder}.copy").rename(folder)


WAYS: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "replaced": replaced,
    "a folder that was copied back": moved_away,
}


@pytest.fixture
def stage(tmp_path: Path) -> LoadBalancerFiles:
    script = tmp_path / "slow-haproxy"
    script.write_text(SLOW_CHECK.format(slow=tmp_path / "slow-check", waits=tmp_path / "waits", go=tmp_path / "go"))
    script.chmod(0o755)
    return build_files(tmp_path, str(LBAGENT), CFG, ROLES, str(script))


@pytest.fixture
def started(stage: LoadBalancerFiles) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(*command: str, node: str) -> subprocess.Popen[bytes]:
        environ = {**stage.environ, "SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01"}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, cwd=stage.folder
        )
        processes.append(process)
        assert process.stdin
        process.stdin.write(("\t".join([*node.split(), "web", "role=web"]) + "\n").encode())
        process.stdin.close()
        process.stdin = None
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def servers(stage: LoadBalancerFiles) -> list[str]:
    """The servers that haproxy.cfg has."""
    return [line.split()[1] for line in stage.managed]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("slow", ["haproxy.cfg", "members.json"])
def test_changes_of_another_process_meanwhile_stay(
    stage: LoadBalancerFiles, started: Callable[..., subprocess.Popen[bytes]], slow: str, way: str
) -> None:
    assert stage.join("web0 10.0.0.9").status == 0
    flag, waits, go = (stage.folder / name for name in ("slow-check", "waits", "go"))
    flag.touch()
    writer = SLOW_WRITER.format(slow=str(flag), waits=str(waits), go=str(go))
    command = [stage.script, "handle"] if slow == "haproxy.cfg" else [sys.executable, "-c", writer]
    first = started(*command, node="web1 10.0.0.1")
    wait_until(waits.exists)

    WAYS[way](stage.state / "lock")
    second = stage.join("web2 10.0.0.2")
    go.touch()
    _, said = first.communicate(timeout=60)

    assert second.status == 0, second.err
    assert (first.returncode, said.count(b"starting again")) == (0, 1), said.decode()
    assert servers(stage) == ["web0", "web1", "web2"]
    assert sorted(stage.members) == ["web0", "web1", "web2"]
    assert stage.spool_files == []


def test_a_lock_that_was_replaced_before_it_was_acquired_is_not_the_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")

    with lock.acquire_lock(path) as acquired:
        assert acquired
        os.unlink(path)
        with lock.acquire_lock(path + ".other"):
            pass
        with pytest.raises(lock.LockLost, match=r"lock: the lock file was removed or replaced during a run"):
            lock.check_lock(path)
        assert lock.acquire_again(path, 0)
        lock.check_lock(path)
        assert lock.is_locked(path)

    assert not lock.is_locked(path)


def test_a_lock_file_that_cannot_be_examined_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, examine = str(tmp_path / "lock"), os.stat

    def fail(file: str | int | Path, **options: bool) -> os.stat_result:
        if file == path:
            raise OSError(errno.EIO, "Input/output error", path)
        return examine(file, **options)

    with lock.acquire_lock(path):
        monkeypatch.setattr(os, "stat", fail)
        with pytest.raises(OSError, match="Input/output error"):
            lock.check_lock(path)


def test_a_lost_lock_is_not_acquired_again_while_another_process_has_the_new_one(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    holder = "import sys, time; from lbagent.state.lock import acquire_lock\nwith acquire_lock(sys.argv[1]) as had:\n print(had, flush=True); time.sleep(60)"

    with lock.acquire_lock(path):
        os.unlink(path)
        with subprocess.Popen([sys.executable, "-c", holder, path], stdout=subprocess.PIPE) as other:
            assert other.stdout
            assert other.stdout.readline() == b"True\n"
            assert not lock.acquire_again(path, 0.1)
            other.kill()
        assert lock.acquire_again(path, 5)


def test_no_file_is_replaced_without_the_lock(tmp_path: Path) -> None:
    path, file = str(tmp_path / "lock"), tmp_path / "file"
    file.write_bytes(b"old")

    with lock.acquire_lock(path):
        os.unlink(path)
        with pytest.raises(lock.LockLost):
            files.replace_file(str(file), b"new")

    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_no_haproxy_cfg_is_swapped_without_the_lock(tmp_path: Path) -> None:
    path, file = str(tmp_path / "lock"), tmp_path / "file"
    file.write_bytes(b"old")
    target = files.read_target(str(file))

    with lock.acquire_lock(path), files.stage_text(target, b"new") as staged:
        os.unlink(path)
        with pytest.raises(lock.LockLost):
            files.swap_files(staged, target, keep=True)

    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_under_which_nothing_is_written_stops_no_write(tmp_path: Path) -> None:
    path = str(tmp_path / "watch.lock")

    with lock.acquire_lock(path, writes=False):
        os.unlink(path)
        files.replace_file(str(tmp_path / "file"), b"new")

    assert (tmp_path / "file").read_bytes() == b"new"


def test_watch_creates_its_lock_again_and_stays_the_only_one(stage: LoadBalancerFiles) -> None:
    path = stage.state / "watch.lock"
    with subprocess.Popen(
        [stage.script, "watch"], env=stage.environ, cwd=stage.folder, stderr=subprocess.PIPE
    ) as daemon:
        try:
            wait_until(lambda: lock.is_locked(str(path)))
            path.unlink()
            wait_until(lambda: lock.is_locked(str(path)))
            moved_away(path)
            wait_until(lambda: lock.is_locked(str(path)))

            second = stage.run("watch")

            assert (second.status, daemon.poll()) == (6, None)
            assert second.err == f"lbagent: {path}: another `lbagent watch` is running; stop one of the two\n"
        finally:
            daemon.terminate()


def test_watch_ends_if_another_watch_has_its_lock(stage: LoadBalancerFiles, tmp_path: Path) -> None:
    path = stage.state / "watch.lock"
    command = [stage.script, "watch"]
    with subprocess.Popen(command, env=stage.environ, cwd=stage.folder, stderr=subprocess.PIPE) as daemon:
        try:
            wait_until(lambda: lock.is_locked(str(path)))
            with lock.acquire_lock(str(tmp_path / "new.lock")):
                (tmp_path / "new.lock").rename(path)
                _, said = daemon.communicate(timeout=60)
        finally:
            daemon.kill()

    assert daemon.returncode == 6
    assert f"{path}: another `lbagent watch` is running; stop one of the two".encode() in said
