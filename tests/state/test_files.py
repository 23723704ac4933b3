"""A file is at every moment the complete old one or the complete new one."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from lbagent.state import files
from tests.helpers.faults import mount_file
from tests.helpers.real_programs import wait_until

OLD, NEW = b"old\r\n\xff\n" * 1000, b"new\n" * 3000


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    """A haproxy.cfg."""
    path = tmp_path / "haproxy.cfg"
    path.write_bytes(OLD)
    return path


def names(folder: Path) -> list[str]:
    """What lies in the folder."""
    return sorted(path.name for path in folder.iterdir())


def put(cfg: Path, content: bytes, *, keep: bool = True) -> bool:
    """Stage and swap."""
    target = files.read_target(str(cfg))
    with files.stage_text(target, content) as path:
        return files.swap_files(path, target, keep=keep)


def test_a_swapped_file_is_the_new_one_and_the_old_one_is_kept_beside_it(cfg: Path) -> None:
    assert put(cfg, NEW)

    assert cfg.read_bytes() == NEW
    assert (cfg.parent / ".haproxy.cfg.lbagent-previous").read_bytes() == OLD
    assert names(cfg.parent) == [".haproxy.cfg.lbagent-previous", "haproxy.cfg"]


def test_without_keep_nothing_is_left_beside_it(cfg: Path) -> None:
    assert put(cfg, NEW, keep=False)

    assert names(cfg.parent) == ["haproxy.cfg"]


def test_a_staged_file_is_removed_at_the_end(cfg: Path) -> None:
    with files.stage_text(files.read_target(str(cfg)), NEW) as path:
        assert Path(path).read_bytes() == NEW
        assert Path(path).parent == cfg.parent

    assert names(cfg.parent) == ["haproxy.cfg"]
    assert cfg.read_bytes() == OLD


def test_a_staged_file_that_a_crash_left_is_no_harm(cfg: Path) -> None:
    (cfg.parent / ".haproxy.cfg.lbagent-staged").write_bytes(b"crash")
    (cfg.parent / ".haproxy.cfg.lbagent-old").write_bytes(b"crash")

    assert put(cfg, NEW)

    assert cfg.read_bytes() == NEW
    assert names(cfg.parent) == [".haproxy.cfg.lbagent-previous", "haproxy.cfg"]


def test_a_link_in_place_of_the_staged_file_is_not_followed(cfg: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"victim")
    (cfg.parent / ".haproxy.cfg.lbagent-staged").symlink_to(tmp_path / "victim")

    assert put(cfg, NEW)

    assert (tmp_path / "victim").read_bytes() == b"victim"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o4755])
def test_mode_and_owner_stay(cfg: Path, mode: int) -> None:
    os.chown(cfg, 1234, 2345)
    cfg.chmod(mode)

    put(cfg, NEW)

    found = cfg.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, 1234, 2345)


def test_extended_attributes_stay(cfg: Path) -> None:
    try:
        os.setxattr(cfg, "user.note", b"kept")
    except OSError:
        pytest.skip("this file system has no extended attributes")

    put(cfg, NEW)

    assert os.getxattr(cfg, "user.note") == b"kept"


def test_a_symbolic_link_stays_one(cfg: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    link = tmp_path / "etc" / "haproxy.cfg"
    link.symlink_to("../haproxy.cfg")

    assert put(link, NEW)

    assert link.is_symlink()
    assert cfg.read_bytes() == NEW
    assert names(link.parent) == ["haproxy.cfg"]


def test_a_text_that_an_editor_saved_before_the_swap_stays(cfg: Path) -> None:
    target = files.read_target(str(cfg))
    with files.stage_text(target, NEW) as path:
        cfg.write_bytes(b"his")

        assert not files.is_unchanged(target)
        assert not files.swap_files(path, target, keep=True)

    assert cfg.read_bytes() == b"his"
    assert names(cfg.parent) == ["haproxy.cfg"]


def test_an_editor_that_renames_is_noticed(cfg: Path, tmp_path: Path) -> None:
    target = files.read_target(str(cfg))
    (tmp_path / "his").write_bytes(b"his")
    (tmp_path / "his").rename(cfg)

    with files.stage_text(target, NEW) as path:
        assert not files.swap_files(path, target, keep=True)

    assert cfg.read_bytes() == b"his"


def test_a_link_that_leads_elsewhere_now_is_noticed(cfg: Path, tmp_path: Path) -> None:
    other, link = tmp_path / "other.cfg", tmp_path / "link.cfg"
    other.write_bytes(OLD)
    link.symlink_to(cfg)
    target = files.read_target(str(link))

    link.unlink()
    link.symlink_to(other)

    assert not files.is_unchanged(target)


def test_a_missing_file_is_not_unchanged(cfg: Path) -> None:
    target = files.read_target(str(cfg))
    cfg.unlink()

    assert not files.is_unchanged(target)


def test_a_reader_sees_old_or_new_and_nothing_else(cfg: Path) -> None:
    seen: set[bytes] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(cfg.read_bytes())

    reader = threading.Thread(target=watch)
    reader.start()
    for content in [NEW, OLD] * 60:
        assert put(cfg, content)
    done.set()
    reader.join()

    assert seen <= {OLD, NEW}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(cfg: Path, mocker: MockerFixture) -> None:
    mocker.patch("os.fsync", side_effect=OSError(errno.ENOSPC, "No space left on device"))

    with pytest.raises(OSError, match="No space left"):
        put(cfg, NEW)

    assert cfg.read_bytes() == OLD
    assert names(cfg.parent) == ["haproxy.cfg"]


@pytest.mark.parametrize("name", ["haproxy.cfg", "ha proxy\\.cfg"])
def test_a_target_that_is_a_mount_point_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / "etc").mkdir()
    cfg, host = tmp_path / "etc" / name, tmp_path / "host.cfg"
    cfg.touch()
    host.write_bytes(OLD)
    with mount_file(host, cfg):
        assert files.is_mount_point(str(cfg))
        with pytest.raises(OSError, match="is a mount point of its own; mount its folder instead"):
            put(cfg, NEW)

        assert cfg.read_bytes() == OLD
        assert names(cfg.parent) == [name]
    assert not files.is_mount_point(str(cfg))


def test_a_file_of_our_own_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "members.json"
    files.replace_file(str(path), b"one")
    files.replace_file(str(path), b"two")

    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0
    assert names(tmp_path) == ["members.json"]


def test_a_file_of_our_own_survives_a_full_disk(tmp_path: Path, mocker: MockerFixture) -> None:
    path = tmp_path / "members.json"
    files.replace_file(str(path), b"one")
    mocker.patch("os.fsync", side_effect=OSError(errno.ENOSPC, "No space left on device"))

    with pytest.raises(OSError, match="No space left"):
        files.replace_file(str(path), b"two")

    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["members.json"]


def test_a_link_in_place_of_a_new_state_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"victim")
    (tmp_path / "members.json.new").symlink_to(tmp_path / "victim")

    files.replace_file(str(tmp_path / "members.json"), b"one")

    assert (tmp_path / "victim").read_bytes() == b"victim"
    assert (tmp_path / "members.json").read_bytes() == b"one"
    assert names(tmp_path) == ["members.json", "victim"]


def test_a_folder_in_place_of_a_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "served.json").mkdir()

    with pytest.raises(IsADirectoryError) as raised:
        files.replace_file(str(tmp_path / "served.json"), b"one")

    assert raised.value.filename == str(tmp_path / "served.json")
    assert names(tmp_path) == ["served.json"]


def test_a_file_that_a_process_is_writing_is_not_replaced(cfg: Path) -> None:
    with cfg.open("r+b"):
        assert not put(cfg, NEW)
        assert names(cfg.parent) == ["haproxy.cfg"]

    assert cfg.read_bytes() == OLD
    assert put(cfg, NEW)


def test_a_writer_that_opens_the_file_during_the_swap_writes_the_live_file(
    cfg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writing() -> None:
        with cfg.open("r+b") as file:
            file.truncate()
            file.write(b"his")

    rename, writer, inode = files._rename, threading.Thread(target=writing), cfg.stat().st_ino

    def writer_waits() -> bool:
        leases = [line for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]
        return any(" BREAKING " in line for line in leases)

    def while_he_opens(path: str, to: str) -> None:
        writer.start()
        wait_until(writer_waits)
        rename(path, to)

    monkeypatch.setattr(files, "_rename", while_he_opens)

    swapped = put(cfg, NEW)
    writer.join()

    assert not swapped
    assert cfg.read_bytes() == b"his"
    assert names(cfg.parent) == ["haproxy.cfg"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL, errno.ENOLCK])
def test_without_leases_the_file_is_swapped(cfg: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refusing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.fcntl", refusing)

    assert put(cfg, NEW)
    assert cfg.read_bytes() == NEW


def test_the_original_that_a_killed_swap_left_becomes_the_previous_text(cfg: Path) -> None:
    (cfg.parent / ".haproxy.cfg.lbagent-old").write_bytes(b"confirmed")
    (cfg.parent / ".haproxy.cfg.lbagent-previous").write_bytes(b"older")
    (cfg.parent / ".haproxy.cfg.lbagent-staged").write_bytes(b"staged")
    (cfg.parent / ".haproxy.cfg.lbagent-replaced").write_bytes(b"never confirmed")

    files.remove_stale_stages(files.read_target(str(cfg)))

    assert names(cfg.parent) == [".haproxy.cfg.lbagent-previous", "haproxy.cfg"]
    assert (cfg.parent / ".haproxy.cfg.lbagent-previous").read_bytes() == b"confirmed"


def test_a_swap_that_was_killed_before_it_began_left_nothing_to_keep(cfg: Path) -> None:
    os.link(cfg, cfg.parent / ".haproxy.cfg.lbagent-old")
    (cfg.parent / ".haproxy.cfg.lbagent-previous").write_bytes(b"older")

    files.remove_stale_stages(files.read_target(str(cfg)))

    assert names(cfg.parent) == [".haproxy.cfg.lbagent-previous", "haproxy.cfg"]
    assert (cfg.parent / ".haproxy.cfg.lbagent-previous").read_bytes() == b"older"


def test_an_error_of_the_system_names_the_file(cfg: Path, tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch("os.fsync", side_effect=lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))

    with pytest.raises(OSError, match="No space left") as staged:
        put(cfg, NEW)
    with pytest.raises(OSError, match="No space left") as own:
        files.replace_file(str(tmp_path / "members.json"), b"one")

    assert staged.value.filename == str(cfg.parent / ".haproxy.cfg.lbagent-staged")
    assert own.value.filename == str(tmp_path / "members.json.new")
