"""Unusable markers and lines are reported and kept; all others work."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.real_programs import (
    CONFIG,
    LBAGENT,
    PATIENCE,
    Haproxy,
    LoadBalancer,
    member_line,
    wait_until,
)

pytestmark = pytest.mark.real

WEB01, WEB02 = member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12")
MARKER = "    # additional-lb-iis-server\n"


@pytest.fixture
def lb(binary: Path) -> Iterator[LoadBalancer]:
    with LoadBalancer(binary=binary) as made:
        yield made


@pytest.fixture
def default_lb() -> Iterator[LoadBalancer]:
    with LoadBalancer() as made:
        yield made


def find_line_number(lb: LoadBalancer, text: str, which: int = 0) -> int:
    """Return the number of the line `text`; of several equal lines the one with index `which`."""
    return [at for at, line in enumerate(lb.text.decode().split("\n"), 1) if line.strip() == text][which]


def check_everything_works(lb: LoadBalancer, haproxy: Haproxy) -> None:
    """Fail unless join, pause, leave, status and check work."""
    joined = lb.join(WEB01, WEB02)
    assert joined.returncode == 0
    assert lb.send_query("pause", "web01", 1).stdout.startswith(b"done")
    assert haproxy.find_serving() == {"web02"}
    assert lb.send_query("resume", "web01", 2).stdout.startswith(b"done")
    assert haproxy.find_serving() == {"web01", "web02"}
    assert [lb.run(verb).returncode for verb in ("plan", "apply", "status")] == [0, 0, 0]
    assert all(one["quarantine"] is None for one in lb.members().values())


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("frontend f\n    bind {folder}/f.sock\n    default_backend lb-iis\n", "frontend f"),
        ("defaults d\n", "defaults d"),
        ("peers p\n    peer nobody 127.0.0.1:1\n", "peers p"),
        ("resolvers r\n", "resolvers r"),
        ("userlist u\n", "userlist u"),
        ("global\n", "global"),
        ("cache c\n    total-max-size 4\n    max-age 10\n", "cache c"),
    ],
)
def test_a_marker_in_a_section_without_servers_is_reported_and_ignored(
    lb: LoadBalancer, section: str, name: str
) -> None:
    section = lb.fill_template(section)
    lb.text = lb.text + f"{section}{MARKER}".encode()
    with Haproxy(lb) as haproxy:
        check_everything_works(lb, haproxy)

        misplaced = f"{lb.cfg}:{find_line_number(lb, MARKER.strip(), 1)}"
        why = f"it is in {name}, which cannot hold servers"
        assert f"{misplaced}: marker ignored: {why}" in lb.run("status").stdout.decode().replace("\n", "")
        assert f"marker-misplaced: {misplaced}: '{MARKER.strip()}' is ignored: {why}" in lb.run("check").stdout.decode()
        assert lb.text.endswith(f"{section}{MARKER}".encode())


DAMAGED = [
    "server web01 127.0.0.11:80 check # lbagent role=web,old",
    "server web01 localhost:80 check # lbagent role=web",
    "server web01 127.0.0.11 # lbagent role=web",
    "server web01 127.0.0.11:80 check # lbagent role=",
    "server web01 127.0.0.11:80 check # lbagent role=web # mine",
    "server web01 127.0.0.11:80 check # LBAGENT role=web",
    "server web01 127.0.0.11:80 check #lbagent role=web",
    'server "web01" 127.0.0.11:80 check # lbagent role=web',
    "server web:01 127.0.0.11:80 check # lbagent role=web",
    "server web01 ipv4@127.0.0.11:80 check # lbagent role=web",
    "server web01 127.0.0.11:080 check # lbagent role=web",
    "# lbagent paused web01 127.0.0.11 role=web,old",
    "# lbagent paused web01 somewhere role=web",
    "# lbagent paused web01",
]


def test_damaged_managed_lines_elsewhere_are_kept_and_reported(lb: LoadBalancer) -> None:
    tail = "".join(f"backend z{at}\n    {line}\n" for at, line in enumerate(DAMAGED))
    lb.text = lb.text + tail.encode()
    with Haproxy(lb) as haproxy:
        check_everything_works(lb, haproxy)

        checked = lb.run("check").stdout.decode()
        for line in DAMAGED:
            where = f"{lb.cfg}:{find_line_number(lb, line)}"
            assert f"line-damaged: {where}: {line!r} looks like a managed line" in checked
        assert lb.text.endswith(tail.encode())


@pytest.mark.parametrize("line", [one for one in DAMAGED if one.startswith("server")])
@pytest.mark.parametrize("place", ["above", "below"])
def test_a_damaged_managed_line_beside_a_marker_is_the_operators(
    default_lb: LoadBalancer, line: str, place: str
) -> None:
    lb, line = default_lb, line.replace("127.0.0.11", "127.0.0.31")
    lb.text = lb.text.replace(
        MARKER.encode(), (f"    {line}\n{MARKER}" if place == "above" else f"{MARKER}    {line}\n").encode()
    )
    with Haproxy(lb) as haproxy:
        ended = lb.join(WEB01, WEB02)

        assert ended.returncode == 0
        mine = [] if "web:01" not in line else [lb.server("web01", "127.0.0.11")]
        others = [one for one in lb.managed if "web01 127.0.0.31" not in one and "localhost" not in one]
        assert [one for one in others if one != line] == [*mine, lb.server("web02", "127.0.0.12")]
        assert f"    {line}\n".encode() in lb.text
        assert set(haproxy.servers()) == {line.split()[1].strip('"'), *(["web01"] if mine else []), "web02"}
        assert [lb.run(verb).returncode for verb in ("plan", "apply", "status")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("template", "taken"),
    [("server-template web0 1-3", True), ("server-template WEB0 3", True), ("'server-template' \"web\" 01-3", False)],
)
def test_the_names_of_a_server_template_are_the_operators_in_its_proxy_only(
    lb: LoadBalancer,
    template: str,
    taken: bool,  # noqa: FBT001  # the last one names web1 to web3
) -> None:
    lb.text = lb.text.replace(MARKER.encode(), f"    {template} localhost:80 init-addr none\n{MARKER}".encode())
    lb.text = lb.text + f"backend two\n{MARKER}".encode()
    with Haproxy(lb) as haproxy:
        assert lb.join(WEB01, member_line("web09", "127.0.0.19")).returncode == 0

        assert haproxy.find_serving("two") == {"web01", "web09"}
        assert "web09" in haproxy.servers()
        assert lb.managed.count(lb.server("web01", "127.0.0.11")) == (1 if taken else 2)
        assert all(one["quarantine"] is None for one in lb.members().values())
        assert ("lb-iis (not managed)" in lb.run("status").stdout.decode()) is taken
        assert lb.run("apply").returncode == 0


def test_adopting_keeps_a_backup_line_below_the_marker(lb: LoadBalancer) -> None:
    above, below = "    server web01 127.0.0.11:{port} check\n", "    server spare 127.0.0.11:{port} check backup\n"
    lb.text = lb.fill_template(CONFIG.replace(MARKER, f"{above}{MARKER}{below}")).encode()
    expected = lb.fill_template(
        CONFIG.replace(MARKER, f"    {lb.server('web01', '127.0.0.11')}\n{MARKER}{below}")
    ).encode()
    with Haproxy(lb) as haproxy:
        lb.join(WEB01)
        adopted = lb.run("apply", "--adopt", "--yes")
        assert (adopted.returncode, lb.text) == (0, expected)

        again = lb.run("apply"), lb.run("apply", "--adopt", "--yes"), lb.run("plan")
        assert [one.returncode for one in again] == [0, 0, 0]
        assert lb.text == expected

        paused = lb.send_query("pause", "web01", 1).stdout
        assert paused.endswith(b": in listen lb-iis: HAProxy's server spare has its address, pauses do not affect it\n")
        assert haproxy.find_serving() == {"spare"}
        assert lb.send_query("resume", "web01", 2).stdout.startswith(b"done")
        assert lb.text == expected
        assert haproxy.find_serving() == {"web01", "spare"}


def test_adopting_takes_one_of_two_lines_above_the_marker(lb: LoadBalancer) -> None:
    spare, mine = "    server spare 127.0.0.11:{port} check backup\n", "    server WEB01 127.0.0.11:{port} check\n"
    lb.text = lb.fill_template(CONFIG.replace(MARKER, f"{spare}{mine}{MARKER}")).encode()
    expected = lb.fill_template(
        CONFIG.replace(MARKER, f"{spare}    {lb.server('web01', '127.0.0.11')}\n{MARKER}")
    ).encode()
    with Haproxy(lb):
        lb.join(WEB01)
        for options in (["--adopt", "--yes"], ["--adopt", "--yes"], []):
            assert lb.run("apply", *options).returncode == 0
            assert lb.text == expected


@pytest.mark.parametrize("name", ["haproxy.cfg", "roles.yml"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "socket"])
def test_a_path_that_is_not_a_regular_file_is_refused_at_once(default_lb: LoadBalancer, name: str, kind: str) -> None:
    lb = default_lb
    path = lb.etc / name
    path.rename(lb.folder / "kept")
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))
    folder = (name, kind) == ("haproxy.cfg", "folder")  # of *.cfg files, which HAProxy reads too
    why = b"holds no *.cfg file" if folder else b"not a regular file"

    joined, planned, checked = lb.join(WEB01), lb.run("plan"), lb.run("check")

    assert (joined.returncode, planned.returncode) == ((1, 1) if name == "haproxy.cfg" else (2, 2))
    assert checked.returncode == 1
    assert all(why in is_reported for is_reported in (joined.stderr, planned.stderr, checked.stdout))
    assert len(lb.list_spool()) + len(lb.members()) == 1


@pytest.mark.parametrize("name", ["haproxy.cfg", "roles.yml"])
def test_watch_ends_on_sigterm_although_a_file_is_a_fifo(default_lb: LoadBalancer, name: str) -> None:
    lb = default_lb
    path = lb.etc / name
    path.rename(lb.folder / "kept")
    os.mkfifo(path)
    with subprocess.Popen([LBAGENT, "watch"], env=lb.env, stderr=subprocess.PIPE) as watch:
        assert watch.stderr
        os.set_blocking(watch.stderr.fileno(), False)
        seen = b""

        def is_reported() -> bool:
            nonlocal seen
            seen += watch.stderr.read() or b""  # type: ignore[union-attr]
            return b"not a regular file" in seen

        try:
            wait_until(is_reported)
            watch.send_signal(signal.SIGTERM)
            assert watch.wait(PATIENCE) == 0
        finally:
            watch.kill()
