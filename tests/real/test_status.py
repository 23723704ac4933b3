"""`lbagent status` with a real HAProxy: its output and exit status, on a terminal and without one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pytest
from pytest_mock import MockerFixture

from lbagent.run.engine import Engine
from lbagent.settings import Settings
from lbagent.status.report import collect_status
from lbagent.system import processes
from lbagent.system.log import Log
from tests.helpers.real_programs import CONFIG, LBAGENT, RELOADING, Backend, Haproxy, LoadBalancer, binaries, wait_until
from tests.helpers.real_programs import member_line as line

pytestmark = pytest.mark.real

MORE_ROLES = RELOADING.replace("  iis:", "  mongo: {{port: 27017}}\n  iis:") + "    mon: [mongo]\n"
MORE_CFG = f"{CONFIG}\nbackend mon-mongo\n    # additional-mon-mongo-server\n    server mine 127.0.0.14:27017\n"


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def lb_and_haproxy(request: pytest.FixtureRequest) -> Iterator[tuple[LoadBalancer, Haproxy]]:
    """A load balancer whose HAProxy runs: web01 answers, web02 does not."""
    with (
        LoadBalancer(MORE_CFG, MORE_ROLES, request.param) as lb,
        Haproxy(lb) as haproxy,
        Backend("web01", "127.0.0.11", lb.port),
    ):
        joined = [line(f"web0{at}", f"127.0.0.{10 + at}") for at in (1, 2, 3, 4)]
        assert lb.join(*joined, line("spark1", "127.0.0.20", "spark")).returncode == 0
        assert lb.send_command("pause", "web03 for=2h reason=patches", 1).returncode == 0
        assert lb.handle("member-failed", joined[1]).returncode == 0
        wait_until(lambda: haproxy.servers() == {"web01": "UP", "web02": "DOWN", "web04": "DOWN"})
        wait_until(lambda: haproxy.servers("mon-mongo") == {"web01": "DOWN", "web02": "DOWN", "mine": "no check"})
        yield lb, haproxy


def run_status(lb: LoadBalancer, *words: str, **env: str) -> str:
    """Return the output of `lbagent status`; fails unless it ends with 0 and stderr is empty."""
    done = lb.run("status", *words, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def read_json(lb: LoadBalancer) -> dict[str, Any]:
    """Return the JSON object."""
    found = json.loads(run_status(lb, "--json"))
    assert isinstance(found, dict)
    return found


def parse_rows(text: str) -> list[list[str]]:
    """Return the cells of a plain table without SINCE and other times."""
    cells = (
        re.split(r"  +", re.sub(r"\d+[smh] left", "LONG left", row)) for row in text.partition("\n\n")[0].split("\n")
    )
    return [[*row[:5], *row[6:]] for row in cells]


def start_on_terminal(
    lb: LoadBalancer, *words: str, width: int = 80, **env: str
) -> tuple[subprocess.Popen[bytes], int]:
    """Start `lbagent status` on a new terminal; the caller closes the returned descriptor and waits."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    started = subprocess.Popen(
        [LBAGENT, "status", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**lb.env, "TERM": "xterm-256color", **env},
    )
    os.close(theirs)
    return started, ours


def read_terminal(descriptor: int, until: str = "", times: int = 1) -> str:
    """Return the output on a terminal up to its end, or until it contains `until` at least `times` times."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while (piece := os.read(descriptor, 1 << 16)) and (not until or shown.decode().count(until) < times):
            shown += piece
            if until and shown.decode("utf-8", "replace").count(until) >= times:
                break
    return shown.decode("utf-8", "replace")


def run_on_terminal(lb: LoadBalancer, *words: str, width: int = 80, **env: str) -> str:
    """Return the output of one run on a terminal."""
    started, terminal = start_on_terminal(lb, *words, width=width, **env)
    with started:
        shown = read_terminal(terminal)
        os.close(terminal)
    assert started.returncode == 0
    return shown.replace("\r\n", "\n")


def test_every_node_has_its_state_in_a_real_haproxy(lb_and_haproxy: tuple[LoadBalancer, Haproxy]) -> None:
    lb, haproxy = lb_and_haproxy

    text = run_status(lb)

    here = "lb-iis, mon-mongo"
    by_hand = "in backend mon-mongo: an operator's line has its name or address, pauses do not affect it"
    assert parse_rows(text) == [
        ["NODE", "ADDRESS", "ROLE", "WHERE", "STATE", "HAPROXY", "OPEN", "WHY"],
        ["web01", "127.0.0.11", "web", here, "in", "1 DOWN, 1 UP", "0"],
        ["web02", "127.0.0.12", "web", here, "failed", "DOWN", "0", "its line is kept"],
        ["web03", "127.0.0.13", "web", here, "paused", "-", "-", "by user event: patches, LONG left"],
        ["web04", "127.0.0.14", "web", "lb-iis, mon-mongo (not managed)", "in", "1 DOWN, 1 no check", "0", by_hand],
        ["spark1", "127.0.0.20", "spark", "-", "unknown role", "-", "-", "roles.yml has no role spark"],
    ]
    assert text.partition("\n\n")[2].split("\n")[:2] == [
        "nodes: 5: 2 in, 1 failed, 1 paused, 1 unknown role",
        f"lines: digest {read_json(lb)['digest']}, confirmed by HAProxy worker {haproxy.worker()}",
    ]


def test_json_has_every_server(lb_and_haproxy: tuple[LoadBalancer, Haproxy]) -> None:
    lb, haproxy = lb_and_haproxy

    found = read_json(lb)

    nodes = {node["name"]: node for node in found["nodes"]}
    assert list(nodes) == ["spark1", "web01", "web02", "web03", "web04"]
    assert nodes["web01"]["servers"][0] == {
        "proxy": "lb-iis",
        "server": "web01",
        "address": f"127.0.0.11:{lb.port}",
        "line": "managed",
        "state": "UP",
        "sessions": 0,
    }
    assert (found["confirmed"], found["served"]["worker"]) == (True, haproxy.worker())
    assert found["stats_socket"] == {"address": str(lb.socket), "error": None}
    assert (found["last_run"]["why"], found["last_run"]["outcome"]) == ("pause web03 by user event", "applied")
    assert (found["events"], found["problems"], found["blocked"]) == ({"pending": 0, "oldest": None}, [], [])


def test_a_pause_that_haproxy_cfg_does_not_have_yet_is_pending(lb_and_haproxy: tuple[LoadBalancer, Haproxy]) -> None:
    lb, _ = lb_and_haproxy
    before = lb.text
    with (lb.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lb.send_command("pause", "web01", 2)

        found = read_json(lb)

    node = next(node for node in found["nodes"] if node["name"] == "web01")
    assert (node["state"], node["why"]) == ("pending", "its lines will be changed; paused by user event")
    assert node["change"]["added"][0] == "listen lb-iis: # lbagent paused web01 127.0.0.11 role=web"
    assert found["events"]["pending"] == 1
    assert (lb.text, lb.list_spool()) == (before, ["1"])


def test_sessions_are_counted(lb_and_haproxy: tuple[LoadBalancer, Haproxy]) -> None:
    lb, haproxy = lb_and_haproxy
    with socket.create_connection(("127.0.0.1", lb.front)) as client, socket.create_server(("127.0.0.12", lb.port)):
        wait_until(lambda: haproxy.servers()["web02"] == "UP")
        haproxy.send("set server lb-iis/web01 state maint")
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")

        wait_until(lambda: parse_rows(run_status(lb))[2][6] == "1")


def test_a_worker_that_has_ended_confirms_nothing(lb_and_haproxy: tuple[LoadBalancer, Haproxy]) -> None:
    lb, haproxy = lb_and_haproxy
    worker = haproxy.worker()
    haproxy.stop()

    text = run_status(lb)

    assert text.startswith("haproxy: HAProxy does not run; start it\n\nNODE ")
    assert parse_rows(text.partition("\n\n")[2])[1] == [
        "web01",
        "127.0.0.11",
        "web",
        "lb-iis, mon-mongo",
        "in",
        "?",
        "?",
    ]
    digest = read_json(lb)["digest"]
    below = text.rpartition("\n\n")[2].split("\n")
    assert below[1] == f"lines: digest {digest}, not confirmed, HAProxy worker {worker} has ended"


def test_the_first_stats_socket_that_answers_is_used(lb_and_haproxy: tuple[LoadBalancer, Haproxy]) -> None:
    lb, _ = lb_and_haproxy
    dead = f"    stats socket {lb.folder}/dead.sock\n".encode()
    lb.text = lb.text.replace(b"global\n", b"global\n" + dead)

    assert read_json(lb)["stats_socket"] == {"address": str(lb.socket), "error": None}


def test_a_fresh_load_balancer_shows_what_is_missing_and_writes_nothing(lb: LoadBalancer) -> None:
    text = run_status(lb)

    assert text.split("\n") == [
        "haproxy: HAProxy does not run; start it",
        f"problem: {lb.state}/members.json: missing; nodes are shown as in haproxy.cfg and in pending events",
        "nodes: none",
        "lines: none in haproxy.cfg",
        "",
    ]
    assert not lb.state.exists()


def test_without_haproxy_cfg_there_is_a_status(lb: LoadBalancer) -> None:
    assert lb.join(line("web01", "127.0.0.11")).returncode in (0, 75)
    lb.cfg.unlink()

    found = read_json(lb)

    assert [(node["name"], node["state"]) for node in found["nodes"]] == [("web01", "no line")]
    assert found["problems"] == [f"{lb.cfg}: No such file or directory"]
    assert found["digest"] is None


def test_without_a_stats_socket_the_fix_is_shown(lb: LoadBalancer) -> None:
    lb.text = re.sub(rb".*stats socket.*\n", b"", lb.text)

    right = "`stats socket /run/haproxy/admin.sock mode 600 level admin` in global"
    assert read_json(lb)["stats_socket"] == {
        "address": None,
        "error": f"haproxy.cfg has no stats socket; add {right}",
    }


def test_a_damaged_members_json_is_reported_and_not_changed(lb: LoadBalancer) -> None:
    lb.join(line("web01", "127.0.0.11"))
    path = lb.state / "members.json"
    path.write_bytes(b"{")

    found = read_json(lb)

    assert [(node["name"], node["since"]) for node in found["nodes"]] == [("web01", None)]
    [problem] = found["problems"]
    assert problem.startswith(f"{path}: is damaged (JSONDecodeError: ")
    assert problem.endswith("); nodes are shown as in haproxy.cfg; the next event rebuilds it")
    assert path.read_bytes() == b"{"


def test_a_damaged_served_json_is_reported_and_confirms_nothing(lb: LoadBalancer) -> None:
    lb.state.mkdir()
    path = lb.state / "served.json"
    path.write_bytes(b"[]")

    found = read_json(lb)

    assert (found["served"], found["confirmed"]) == (None, None)
    words = f"{path}: damaged or not readable; the next change writes it again"
    assert words in found["problems"]


def test_a_damaged_last_json_is_reported(lb: LoadBalancer) -> None:
    lb.join(line("web01", "127.0.0.11"))
    path = lb.state / "last.json"
    path.write_bytes(b"{")

    found = read_json(lb)

    assert (found["run"], found["last_success"]) == (None, None)
    assert found["problems"] == [f"{path}: damaged or not readable; the next run writes it again"]


def test_a_worker_that_cannot_be_read_has_not_ended(
    lb_and_haproxy: tuple[LoadBalancer, Haproxy], mocker: MockerFixture
) -> None:
    lb, haproxy = lb_and_haproxy
    worker = haproxy.worker()
    mocker.patch.dict(os.environ, lb.env)
    mocker.patch.object(processes, "find_process", side_effect=OSError(errno.EMFILE, "Too many open files"))

    found = collect_status(Engine(Settings(str(lb.roles), str(lb.state)), Log()))

    assert found.confirmed is None
    assert f"HAProxy worker {worker}: cannot be read: Too many open files" in found.problems


def test_an_unreadable_file_is_reported_and_the_rest_is_shown(lb: LoadBalancer) -> None:
    lb.join(line("web01", "127.0.0.11"))
    for name in ("members.json", "history.jsonl"):
        (lb.state / name).unlink()
        (lb.state / name).mkdir()
    (lb.state / "spool").rmdir()
    (lb.state / "spool").touch()

    found = read_json(lb)

    assert [(node["name"], node["state"], node["since"]) for node in found["nodes"]] == [("web01", "in", None)]
    assert found["problems"] == [
        f"{lb.state}/members.json: not a regular file",
        f"{lb.state}/spool: Not a directory",
        f"{lb.state}/history.jsonl: not a regular file",
    ]
    assert (found["events"], found["last_run"]) == ({"pending": None, "oldest": None}, None)


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["status", "--watch"]])
def test_an_invalid_roles_yml_gives_one_line_and_exit_status_2(lb: LoadBalancer, words: list[str]) -> None:
    lb.roles.write_text("roles: {web: {x: 1}}\n")

    done = lb.run(*words)

    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.startswith(f"lbagent: {lb.roles}:1:".encode())


def test_a_character_that_the_locale_lacks_does_not_end_the_command(lb: LoadBalancer) -> None:
    lb.join(line("web01", "127.0.0.11"))
    lb.send_command("pause", "web01 reason=\N{HIRAGANA LETTER A}", 1)

    assert "by user event: ?" in run_status(lb, PYTHONIOENCODING="latin-1")
    assert "by user event: \\u3042" in run_status(lb, "--json", PYTHONIOENCODING="ascii")


def test_a_terminal_gets_colours_unless_they_are_disabled(lb: LoadBalancer) -> None:
    lb.join(line("web01", "127.0.0.11"))

    coloured, plain, dumb = run_on_terminal(lb), run_on_terminal(lb, NO_COLOR="1"), run_on_terminal(lb, TERM="dumb")

    assert "\x1b[32min" in coloured
    assert re.findall(r"\x1b\[[0-9;]*3[0-9]", plain) == []
    assert "\x1b" not in dumb
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split("\n")[0].rstrip() == dumb.split("\n")[0]
    assert "\x1b" not in run_on_terminal(lb, "--json")


def test_a_narrow_terminal_is_not_exceeded(lb: LoadBalancer) -> None:
    lb.join(line("web01", "127.0.0.11"))

    text = re.sub(r"\x1b\[[0-9;]*m", "", run_on_terminal(lb, width=40))

    assert max(map(len, text.split("\n"))) <= 40
    assert text.split("\n")[0].startswith("haproxy  HAProxy does not run")
    assert text.split("\n")[2].startswith("web01       in ")


def test_a_terminal_without_a_size_has_80_columns(lb: LoadBalancer) -> None:
    lb.join(line("web01", "127.0.0.11"))

    def shown(**env: str) -> str:
        return re.sub(r"\d+s", "0s", run_on_terminal(lb, width=80, **env))  # the times of the two runs differ

    assert shown(COLUMNS="0", LINES="0") == shown()


def test_watch_on_a_terminal_redraws_in_place_and_ctrl_c_ends_it_with_0(lb: LoadBalancer) -> None:
    lb.join(line("web01", "127.0.0.11"))
    started, terminal = start_on_terminal(lb, "--watch")
    with started:
        first = read_terminal(terminal, "web01")
        lb.join(line("web02", "127.0.0.12"))
        second = read_terminal(terminal, "web02")
        started.send_signal(signal.SIGINT)
        rest = read_terminal(terminal)
        os.close(terminal)

    assert started.returncode == 0
    assert "\x1b[?1049h" in first
    assert "\x1b[H" in second
    assert "\x1b[?1049l" in rest
    assert "Traceback" not in rest


@pytest.mark.parametrize("words", [["--watch"], ["--watch", "--json"]])
def test_watch_without_a_terminal_prints_again_without_escape_codes(lb: LoadBalancer, words: list[str]) -> None:
    lb.join(line("web01", "127.0.0.11"))
    with lb.start("status", *words) as started:
        assert started.stdout
        shown = read_terminal(started.stdout.fileno(), "web01", 2)
        lb.roles.write_text("roles: nonsense\n")
        assert started.stderr
        complaint = read_terminal(started.stderr.fileno(), "\n")
        started.send_signal(signal.SIGINT)
        started.communicate()

    assert started.returncode == 0
    assert "\x1b" not in shown
    assert complaint.startswith(f"lbagent: {lb.roles}:1:")
    if "--json" in words:
        assert [json.loads(text)["version"] for text in shown.splitlines()[:1]] == [1]


def test_a_reader_that_closes_the_pipe_causes_no_traceback(lb: LoadBalancer) -> None:
    lb.join(*(line(f"web{at}", f"127.0.1.{at}") for at in range(1, 250)))

    shown = subprocess.run(
        f"{LBAGENT} status | head -1", shell=True, env=lb.env, capture_output=True, check=True, timeout=60
    )

    assert shown.stdout == b"haproxy: HAProxy does not run; start it\n"
    assert shown.stderr == b""


def test_an_event_does_not_load_rich(lb: LoadBalancer) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", LBAGENT, "handle"],
        env={**lb.env, "SERF_EVENT": "member-join"},
        input=line("web01", "127.0.0.11") + b"\n",
        capture_output=True,
        check=True,
        timeout=60,
    )

    assert sorted(lb.members()) == ["web01"]
    assert b"rich" not in done.stderr
