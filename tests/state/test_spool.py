"""No event is lost, events are applied in order, and a foreign file does not stop the rest."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from lbagent.state.spool import KEPT as BAD_KEPT
from lbagent.state.spool import Record, Spool

WRITER = """
import sys
from lbagent.state.spool import Spool
spool = Spool(sys.argv[1], 65536)
for number in range(int(sys.argv[3])):
    print(spool.store(f"{sys.argv[2]} {number}".encode()))
"""

DRAINER = """
import sys, time
from lbagent.state.spool import Spool
spool = Spool(sys.argv[1], 65536)
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    records, said = spool.read()
    assert not said, said
    for record in records:
        print(record.content.decode())
    spool.remove(record.name for record in records)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty spool folder."""
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Spool:
    """A spool whose records hold at most 1,000 bytes."""
    return Spool(str(folder), 1000)


def left(folder: Path) -> list[str]:
    """What lies in the folder, hidden files and all."""
    return sorted(path.name for path in folder.iterdir())


def test_records_are_read_in_the_order_in_which_they_were_stored(spool: Spool) -> None:
    for number in range(12):
        spool.store(f"event {number}".encode())

    assert spool.read() == ([Record(str(number + 1), f"event {number}".encode()) for number in range(12)], [])


def test_reading_takes_nothing_away(spool: Spool) -> None:
    spool.store(b"one")

    assert spool.read() == spool.read() == (spool.peek(), [])


def test_a_removed_record_is_not_read_again(spool: Spool, folder: Path) -> None:
    names = [spool.store(b"one"), spool.store(b"two")]

    spool.remove([names[0], "77"])

    assert left(folder) == ["2"]


def test_a_number_is_one_above_the_largest(spool: Spool, folder: Path) -> None:
    (folder / "41").write_bytes(b"x")
    (folder / "9").write_bytes(b"x")

    assert spool.store(b"one") == "42"


def test_a_number_that_another_process_is_writing_is_not_used(spool: Spool, folder: Path) -> None:
    (folder / ".5").write_bytes(b"half")

    assert spool.store(b"one") == "6"
    assert spool.list_names() == ["6"]


def test_a_number_used_since_the_listing_is_not_used_again(spool: Spool, folder: Path, mocker: MockerFixture) -> None:
    spool.store(b"the other's")
    looked = mocker.patch("os.listdir", return_value=[])

    name = spool.store(b"one")

    mocker.stop(looked)
    assert name == "2"
    assert (folder / "1").read_bytes() == b"the other's"


def test_an_empty_or_missing_spool_holds_nothing(spool: Spool, tmp_path: Path) -> None:
    assert (spool.read(), spool.list_names(), spool.find_oldest_time()) == (([], []), [], None)
    assert (Spool(str(tmp_path / "no"), 9).list_names(), Spool(str(tmp_path / "no"), 9).read()) == ([], ([], []))


def test_a_record_is_for_its_owner_and_group_only(spool: Spool, folder: Path) -> None:
    spool.store(b"one")

    assert stat.S_IMODE((folder / "1").stat().st_mode) & 0o027 == 0


def test_the_age_of_the_oldest_is_known(spool: Spool, folder: Path) -> None:
    spool.store(b"one")
    spool.store(b"two")
    os.utime(folder / "1", (1000, 1000))

    assert spool.find_oldest_time() == 1000


def test_an_age_that_cannot_be_read_is_an_error(spool: Spool, mocker: MockerFixture) -> None:
    spool.store(b"one")
    mocker.patch.object(os, "lstat", side_effect=OSError(errno.EIO, os.strerror(errno.EIO)))

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        spool.find_oldest_time()


@pytest.mark.parametrize(
    "name", ["x", "007", "0", "-1", "1.5", "1e3", "٣", "9" * 18, "9" * 40, " 1", "a\nb", "日本", "%s", "~", "1~"]
)
def test_a_foreign_name_is_moved_to_bad_and_the_rest_is_read(spool: Spool, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    (folder / "5").write_bytes(b"good")

    records, said = spool.read()

    assert records == [Record("5", b"good")]
    assert len(said) == 1
    assert "is not named like a record; moved to" in said[0]
    assert "\n" not in said[0]
    assert left(folder) == ["5", "bad"]


def test_a_name_of_broken_bytes_is_set_aside(spool: Spool, folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe\x1b[31m")).write_bytes(b"x")

    records, said = spool.read()

    assert records == []
    assert len(said) == 1
    assert said[0].isprintable()


def test_a_fifo_does_not_make_us_wait(spool: Spool, folder: Path) -> None:
    os.mkfifo(folder / "1")

    records, said = spool.read()

    assert records == []
    assert said[0].startswith(f"{str(folder / '1')!r} is not a regular file; moved to ")


def test_a_link_does_not_lead_elsewhere(spool: Spool, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "1").symlink_to(tmp_path / "secret")
    (folder / "2").symlink_to("nowhere")

    records, said = spool.read()

    assert records == []
    assert len(said) == 2
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_folders_and_sockets_are_set_aside(spool: Spool, folder: Path) -> None:
    (folder / "1").mkdir()
    (folder / "1" / "inside").write_bytes(b"x")
    os.mknod(folder / "2", stat.S_IFSOCK | 0o600)

    records, said = spool.read()

    assert records == []
    assert len(said) == 2
    assert left(folder) == ["bad"]


@pytest.mark.parametrize(("size", "there"), [(0, True), (1000, True), (1001, False), (10_000_000, False)])
def test_a_record_beyond_the_limit_is_moved_to_bad(spool: Spool, folder: Path, size: int, there: bool) -> None:  # noqa: FBT001
    (folder / "1").write_bytes(b"x" * size)

    assert bool(spool.read()[0]) is there


def test_peeking_moves_nothing(spool: Spool, folder: Path) -> None:
    (folder / "foreign").write_bytes(b"x")
    spool.store(b"one")

    assert spool.peek() == [Record("1", b"one")]
    assert left(folder) == ["1", "foreign"]


def test_the_newest_hundred_bad_files_are_kept(spool: Spool, folder: Path) -> None:
    for number in range(BAD_KEPT + 5):
        (folder / f"x{number:03}").write_bytes(b"x")
    (folder / "x000").unlink()
    (folder / "x000").mkdir()

    spool.read()

    assert [name.partition("-")[2] for name in left(folder / "bad")] == [
        f"x{number:03}" for number in range(5, BAD_KEPT + 5)
    ]


def test_a_bad_folder_that_is_a_file_loses_nothing(spool: Spool, folder: Path) -> None:
    (folder / "bad").write_bytes(b"in the way")
    spool.store(b"one")

    assert spool.read()[0] == [Record("1", b"one")]


def test_a_file_that_cannot_be_moved_does_not_stop_the_rest(spool: Spool, folder: Path) -> None:
    (folder / "bad").write_bytes(b"in the way")
    (folder / "foreign").write_bytes(b"x")
    spool.store(b"one")

    assert spool.read()[0] == [Record("1", b"one")]


def test_a_file_in_the_place_of_bad_is_moved_too(spool: Spool, folder: Path) -> None:
    (folder / "bad").write_bytes(b"in the way")
    (folder / "foreign").write_bytes(b"x")

    assert [words.count("; moved to") for words in spool.read()[1]] == [1]

    assert sorted(name.partition("-")[2] for name in left(folder / "bad")) == ["bad", "foreign"]
    assert left(folder) == ["bad"]


def test_a_folder_costs_no_descriptor(spool: Spool, folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 6):
        (folder / str(number)).mkdir()

    spool.peek()

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_hidden_file_of_a_writer_that_died_is_forgotten(spool: Spool, folder: Path) -> None:
    (folder / ".5").write_bytes(b"half")
    (folder / ".6").write_bytes(b"being written")
    os.utime(folder / ".5", (time.time() - 301, time.time() - 301))

    spool.read()

    assert left(folder) == [".6"]


def test_a_record_of_the_largest_number_does_not_lose_the_next(spool: Spool, folder: Path) -> None:
    (folder / str(10**17 - 1)).write_bytes(b"x")

    spool.store(b"one")

    assert b"one" in [record.content for record in spool.read()[0]]


def test_a_full_disk_leaves_nothing_half_written(spool: Spool, folder: Path, mocker: MockerFixture) -> None:
    mocker.patch("os.fsync", side_effect=OSError(errno.ENOSPC, "No space left on device"))

    with pytest.raises(OSError, match="No space left"):
        spool.store(b"one")

    assert left(folder) == []


def test_many_writers_at_once_lose_nothing_and_keep_their_own_order(spool: Spool, folder: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(who), "25"], stdout=subprocess.PIPE, text=True)
        for who in range(8)
    ]

    numbers = [[int(line) for line in (writer.communicate()[0]).split()] for writer in writers]

    assert all(own == sorted(own) for own in numbers)
    taken = [number for own in numbers for number in own]
    assert len(set(taken)) == len(taken) == 200
    assert sorted(record.content for record in spool.read()[0]) == sorted(
        f"{who} {number}".encode() for who in range(8) for number in range(25)
    )
    assert [name for name in left(folder) if name.startswith(".")] == []


def test_writers_and_a_drainer_lose_nothing_and_fold_nothing_twice(spool: Spool, folder: Path) -> None:
    drainer = subprocess.Popen([sys.executable, "-c", DRAINER, str(folder), "3"], stdout=subprocess.PIPE, text=True)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(who), "40"], stdout=subprocess.DEVNULL)
        for who in range(6)
    ]
    assert [writer.wait() for writer in writers] == [0] * 6

    drained = drainer.communicate()[0].split("\n")[:-1]

    assert drainer.returncode == 0
    everything = drained + [record.content.decode() for record in spool.read()[0]]
    assert sorted(everything) == sorted(f"{who} {number}" for who in range(6) for number in range(40))
    for who in range(6):
        own = [int(line.split()[1]) for line in everything if line.startswith(f"{who} ")]
        assert own == sorted(own)


def test_a_flood_is_read_in_portions_oldest_first(spool: Spool, mocker: MockerFixture) -> None:
    mocker.patch("lbagent.state.spool.AT_ONCE", 4)
    mocker.patch("lbagent.state.spool.BYTES_AT_ONCE", 2500)
    for number in range(1, 8):
        spool.store(bytes(1000 if number < 4 else 10))

    portions = []
    while records := spool.read()[0]:
        assert {name for name, _, _ in spool.list_marks()} == {record.name for record in records}
        portions.append([record.name for record in records])
        spool.remove(portions[-1])

    assert portions == [["1", "2", "3"], ["4", "5", "6", "7"]]


def test_a_file_with_another_hard_link_is_not_a_record(spool: Spool, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.link(tmp_path / "file", folder / "1")

    assert spool.read()[1][0].startswith(f"{str(folder / '1')!r} has another hard link; moved to ")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_link_in_place_of_the_spool_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)

    with pytest.raises(NotADirectoryError):
        Spool(str(tmp_path / "link"), 9).store(b"x")

    assert left(folder) == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize("call", ["open", "read"])
def test_a_record_that_cannot_be_read_now_stays(
    spool: Spool, folder: Path, mocker: MockerFixture, call: str, number: int
) -> None:
    name = spool.store(b"one")
    real = getattr(os, call)

    def fail(what: str | int, *words: object, **options: object) -> object:
        if call == "read" or what == name:
            raise OSError(number, os.strerror(number), *([what] if call == "open" else []))
        return real(what, *words, **options)

    mocker.patch.object(os, call, fail)
    with pytest.raises(OSError, match=str(folder)) as raised:
        spool.read()
    with pytest.raises(OSError, match=str(folder)):
        spool.peek()
    readable = spool.peek(partly=True)
    mocker.stopall()

    assert raised.value.errno == number
    assert readable == []
    assert spool.read() == ([Record(name, b"one")], [])


def test_a_link_in_place_of_a_record_is_moved(spool: Spool, folder: Path) -> None:
    (folder / "1").symlink_to("/etc/hostname")

    records, warnings = spool.read()

    assert records == []
    assert [warning.partition(";")[0] for warning in warnings] == [
        f"'{folder}/1' cannot be read (Too many levels of symbolic links)"
    ]
