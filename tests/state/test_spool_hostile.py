"""Foreign files in the spool are moved to bad/, events are applied, and nothing blocks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.faults import insert_lines, make_spool_record, read_only_line, replace_haproxy
from tests.helpers.real_programs import LoadBalancer, member_line

GOOD = member_line("web1", "127.0.0.11")


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer() as made:
        yield made


@pytest.fixture
def spool(lb: LoadBalancer) -> Path:
    path = lb.state / "spool"
    path.mkdir(parents=True)
    return path


def bad(lb: LoadBalancer) -> list[str]:
    """What was set aside, oldest first, under the names it had."""
    return [name.partition("-")[2] for name in sorted(os.listdir(lb.state / "spool/bad"))]


def only_good_is_in(lb: LoadBalancer, operator: bytes) -> bool:
    assert lb.text == insert_lines(operator, [lb.server("web1", "127.0.0.11")])
    assert sorted(lb.members()) == ["web1"]
    assert (lb.list_spool(), lb.list_staged()) == ([], [])
    return True


def _link(path: Path, to: str) -> None:
    path.symlink_to(to)


def _dangling(path: Path) -> None:
    _link(path, "/nowhere/bad")


def _listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"x")


RECORD = make_spool_record("f00d0000", "member-join", member_line("web9", "127.0.0.99"))

ODD: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "folder": _folder,
    "link-to-a-record": lambda path: _link(path, "../record"),
    "link-to-nowhere": lambda path: _link(path, "/nowhere"),
    "link-to-itself": lambda path: _link(path, path.name),
    "link-to-a-device": lambda path: _link(path, "/dev/zero"),
    "socket": _listening,
    "device": lambda path: os.mknod(path, 0o020600, os.makedev(1, 5)),
    "one-gigabyte": _sparse,
    "just-too-large": lambda path: path.write_bytes(RECORD.ljust(64 * 1024 + 1, b"\n")),
    "empty": lambda path: path.touch(),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 16),
    "cut-in-its-head": lambda path: path.write_bytes(RECORD[:30]),
    "of-another-version": lambda path: path.write_bytes(RECORD.replace(b"lbagent 1", b"lbagent 2")),
    "without-a-time": lambda path: path.write_bytes(RECORD.replace(b"1700000000000", b"yesterday")),
    "before-all-time": lambda path: path.write_bytes(RECORD.replace(b"1700000000000", b"-1")),
    "beyond-all-time": lambda path: path.write_bytes(RECORD.replace(b"1700000000000", b"9" * 40)),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_a_file_that_is_not_a_record_is_moved_and_the_event_is_applied(
    lb: LoadBalancer, spool: Path, make: Callable[[Path], None]
) -> None:
    operator = lb.text
    (lb.state / "record").write_bytes(RECORD)
    make(spool / "1")

    done = lb.join(GOOD)

    assert done.returncode == 0
    assert read_only_line(done).startswith(f"'{spool}/1' ")
    assert bad(lb) == ["1"]
    assert (lb.state / "record").read_bytes() == RECORD
    assert only_good_is_in(lb, operator)


@pytest.mark.parametrize(
    "name",
    [
        "web 1",
        "0",
        "01",
        "-1",
        "1.tmp",
        "x" * 255,
        pytest.param("\u8868" * 84, id="three-byte-characters"),  # 252 bytes in 84 characters
        "a\nb\x1b[31m",
        os.fsdecode(b"\x83\x5c\xff"),
        "1" * 40,
    ],
)
def test_foreign_names_are_moved_and_the_event_is_applied(lb: LoadBalancer, spool: Path, name: str) -> None:
    # A name is cut by bytes: 84 characters of three bytes are too long for one with the time in front of it.
    operator = lb.text
    (spool / name).write_bytes(RECORD)

    done = lb.join(GOOD)

    assert done.returncode == 0
    assert read_only_line(done).isprintable()
    assert bad(lb) == [name[:100]] or len(os.fsencode(name)) > 200
    assert only_good_is_in(lb, operator)


def test_a_record_with_the_largest_number_does_not_lose_the_events_after_it(lb: LoadBalancer, spool: Path) -> None:
    operator = lb.text
    # The next number would not be a record's name any more.
    (spool / ("9" * 17)).write_bytes(b"not a record")

    done = lb.join(GOOD)

    assert done.returncode == 0
    assert bad(lb) == ["9" * 17]
    assert only_good_is_in(lb, operator)


def test_record_cut_in_its_payload_gives_its_whole_lines_only(lb: LoadBalancer, spool: Path) -> None:
    operator = lb.text
    record = make_spool_record(
        "f00d0000", "member-join", member_line("web2", "127.0.0.12") + member_line("web3", "127.0.0.13")
    )
    (spool / "1").write_bytes(record[:-5])

    done = lb.join(GOOD)

    assert done.returncode == 0
    lines = [lb.server("web1", "127.0.0.11"), lb.server("web2", "127.0.0.12")]
    assert lb.text == insert_lines(operator, lines)
    assert lb.list_spool() == []


FORGED = {
    "kind-nobody-knows": make_spool_record("a", "member-explode", member_line("web9", "127.0.0.99")),
    "no-kind": make_spool_record("a", "", b""),
    "command-nobody-knows": make_spool_record("a", "user", b"web1\n", "shutdown", "5"),
    "typed-command-nobody-knows": make_spool_record("a", "typed", b"web1\n", "shutdown"),
    "typed-command-nobody-knows-for-nobody": make_spool_record("a", "typed", b"nobody\n", "shutdown"),
    "ltime-of-words": make_spool_record("a", "user", b"nobody-at-all with too many words in it\n", "pause", "five"),
    "no-payload": make_spool_record("a", "user", b"", "pause", "5"),
    "control-characters": make_spool_record("a", "user", b"web1\x1b[31m\n", "pause", "5"),
    "until-when": make_spool_record("a", "user", b"web1 until=tomorrow\n", "pause", "5"),
    "a-second-line": make_spool_record("a", "member-join", b"x\n server evil 6.6.6.6:80\t127.0.0.9\tweb\trole=web\n"),
    "address-with-a-second-line": make_spool_record(
        "a", "member-join", b"evil\t127.0.0.9\r server evil\tweb\trole=web\n"
    ),
    "own-name": make_spool_record("a", "member-join", member_line("lb01", "127.0.0.99")),
    "role-with-blanks": make_spool_record("a", "member-join", b"evil\t127.0.0.9\tweb check\trole=web\n"),
    "a-million-fields": make_spool_record("a", "member-join", b"\t" * 60_000 + b"\n"),
}


@pytest.mark.parametrize("record", FORGED.values(), ids=FORGED)
def test_forged_fields_neither_get_in_nor_block(lb: LoadBalancer, spool: Path, record: bytes) -> None:
    operator = lb.text
    lb.join(GOOD)
    for number in ("1", "2"):
        (spool / number).write_bytes(record.replace(b"\0a\0", f"\0a{number}\0".encode()))

    runs = [lb.join(GOOD), lb.join(GOOD)]

    assert [run.returncode for run in runs] == [0, 0]
    assert not any(b"Traceback" in run.stderr or b"defect" in run.stderr for run in runs)
    assert lb.text == insert_lines(operator, [lb.server("web1", "127.0.0.11")])
    assert (lb.list_spool(), lb.list_staged()) == ([], [])


def test_two_records_of_one_id_are_applied_once(lb: LoadBalancer, spool: Path) -> None:
    operator = lb.text
    (spool / "1").write_bytes(make_spool_record("same", "member-join", GOOD))
    assert lb.run("apply").returncode == 0
    # As a crash between members.json and the removal of the record leaves it.
    (spool / "1").write_bytes(make_spool_record("same", "member-leave", GOOD))

    done = lb.run("apply")

    assert done.returncode == 0
    assert only_good_is_in(lb, operator)


def test_of_thousands_of_foreign_files_the_newest_hundred_are_kept(lb: LoadBalancer, spool: Path) -> None:
    operator = lb.text
    for number in range(1, 3001):
        (spool / str(number)).write_bytes(b"not a record")

    done = lb.join(GOOD)

    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert bad(lb) == [str(number) for number in range(2901, 3001)]
    assert only_good_is_in(lb, operator)


def test_of_hundreds_of_foreign_folders_the_newest_hundred_are_kept(lb: LoadBalancer, spool: Path) -> None:
    operator = lb.text
    for number in range(1, 301):
        _folder(spool / str(number))

    done = lb.join(GOOD)

    assert done.returncode == 0
    assert bad(lb) == [str(number) for number in range(201, 301)]
    assert only_good_is_in(lb, operator)


def test_thousands_of_records_are_applied_in_order_as_one_batch(lb: LoadBalancer, spool: Path) -> None:
    operator = lb.text
    for number in range(1, 2000):
        kind = "member-join" if number % 2 else "member-leave"
        (spool / str(number)).write_bytes(make_spool_record(f"id{number}", kind, member_line("web2", "127.0.0.12")))
    lb.count_checks()

    done = lb.join(GOOD)

    assert (done.returncode, done.stderr) == (0, b"")
    assert lb.checks == 1
    assert lb.text == insert_lines(operator, [lb.server("web1", "127.0.0.11"), lb.server("web2", "127.0.0.12")])
    assert {name: row["status"] for name, row in lb.members().items()} == {"web1": "alive", "web2": "alive"}
    assert lb.list_spool() == []


def test_hidden_files_of_writers_that_died_do_not_block_the_events(lb: LoadBalancer, spool: Path) -> None:
    operator = lb.text
    long_ago = time.time() - 3600
    (spool / ".1").touch()
    os.mkfifo(spool / ".2")
    _folder(spool / ".3")
    (spool / ".x").touch()
    for name in (".1", ".2", ".3", ".x"):
        os.utime(spool / name, (long_ago, long_ago))

    done = lb.join(GOOD)

    assert (done.returncode, done.stderr) == (0, b"")
    assert lb.list_spool() == [".3"]
    assert lb.text == insert_lines(operator, [lb.server("web1", "127.0.0.11")])


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, _dangling], ids=["file", "fifo", "link"])
def test_bad_that_is_no_folder_does_not_block_the_events(
    lb: LoadBalancer, spool: Path, make: Callable[[Path], None]
) -> None:
    make(spool / "bad")
    (spool / "1").write_bytes(b"not a record")

    done = lb.join(GOOD)

    assert done.returncode == 0
    assert lb.managed == [lb.server("web1", "127.0.0.11")]


def test_a_spool_that_is_a_file_is_reported_and_haproxy_cfg_stays(lb: LoadBalancer, spool: Path) -> None:
    operator = lb.text
    spool.rmdir()
    spool.write_bytes(b"")

    done = lb.join(GOOD)

    assert done.returncode == 1
    assert read_only_line(done).startswith(f"not stored: sync needed: {spool}: ")
    assert lb.text == operator


def test_a_foreign_file_is_moved_and_the_event_remembered_while_haproxy_refuses(lb: LoadBalancer, spool: Path) -> None:
    operator = lb.text
    (spool / "1").write_bytes(b"not a record")
    replace_haproxy(lb, "exit 1")

    done = lb.join(GOOD)

    assert done.returncode == 4
    assert done.stderr.count(b"\n") == 2
    assert bad(lb) == ["1"]
    assert lb.text == operator
    assert sorted(lb.members()) == ["web1"]
