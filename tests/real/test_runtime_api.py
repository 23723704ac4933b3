"""Changes reach a real HAProxy through the runtime API where possible, else by a reload, and no request fails."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.faults import (
    fill_disk,
    mount_small_disk,
    read_only_line,
    replace_haproxy,
    restore_haproxy,
    set_reload_command,
)
from tests.helpers.http_clients import run_clients
from tests.helpers.real_programs import (
    CONFIG,
    RELOADING,
    ROLES,
    Backend,
    Haproxy,
    LoadBalancer,
    binaries,
    deletes_servers,
    member_line,
    wait_until,
)
from tests.helpers.recording_backend import Recorder

pytestmark = pytest.mark.real

KEPT_ALIVE = CONFIG.replace("    option httpclose\n", "")
TOLD = re.compile(r"applied to HAProxy \(worker \d+\) without a reload")

CHANGES = int(os.environ.get("LBAGENT_CHANGES", "60"))


@pytest.fixture
def lb(binary: Path) -> Iterator[LoadBalancer]:
    with LoadBalancer(binary=binary) as made:
        yield made


@contextlib.contextmanager
def run_backends(lb: LoadBalancer, *numbers: int) -> Iterator[list[Backend]]:
    """Run web servers: web1 at 127.0.0.11 and so on."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Backend(f"web{one}", make_address(one), lb.port)) for one in numbers]


def make_address(number: int) -> str:
    return f"127.0.0.{10 + number}"


def make_member_line(number: int, **tags: str) -> bytes:
    return member_line(f"web{number}", make_address(number), **tags)


def make_line(lb: LoadBalancer, number: int) -> str:
    return lb.server(f"web{number}", make_address(number))


def read_last_result(lb: LoadBalancer) -> str:
    """Return the result of the last change, without numbers of lines and pids."""
    return re.sub(r"worker \d+", "worker N", lb.history()[-1]["words"].partition("; ")[2])


WITHOUT_RELOAD, RELOADED = "applied to HAProxy (worker N) without a reload", "HAProxy reloaded, worker N"


def edit_config(lb: LoadBalancer, old: str, new: str) -> None:
    """Edit haproxy.cfg without a reload."""
    text = lb.text.decode()
    assert old in text
    lb.text = text.replace(old, new).encode()


def read_server_state(haproxy: Haproxy, name: str) -> list[str]:
    """Return the row of a server in `show servers state`."""
    rows = (row.split() for row in haproxy.send("show servers state").splitlines())
    return next(row for row in rows if len(row) > 4 and row[3] == name)


def read_check_status(haproxy: Haproxy, name: str) -> str:
    """Return the result of a server's last check in `show stat`: L4OK, L6OK, L7OK and so on."""
    rows = csv.DictReader(haproxy.send("show stat").removeprefix("# ").splitlines())
    # An asterisk shows that the next check is in progress.
    return next(row["check_status"].removeprefix("* ") for row in rows if row["svname"] == name)


def read_connections(haproxy: Haproxy, frontend: str) -> int:
    """Return the number of connections that a frontend has accepted since HAProxy was started."""
    rows = csv.DictReader(haproxy.send("show stat").removeprefix("# ").splitlines())
    return next(int(row["conn_tot"]) for row in rows if (row["pxname"], row["svname"]) == (frontend, "FRONTEND"))


class Fleet:
    """Six nodes with random changes, and the expected servers; 7 to 12 are their other addresses."""

    def __init__(self, lb: LoadBalancer) -> None:
        self._lb, self._chance = lb, random.Random(20)
        self._there, self._paused, self._moved = set[int](), set[int](), set[int]()

    @property
    def expected_servers(self) -> dict[str, str]:
        """The expected servers, with their addresses."""
        return {f"web{one}": f"{self._address(one)}:{self._lb.port}" for one in self._there - self._paused} | {
            f"web{one}": f"{make_address(one)}:{self._lb.port}" for one in (13, 14)
        }

    def change(self, ltime: int) -> subprocess.CompletedProcess[bytes]:
        """Make a random change to a random node."""
        one, what = self._chance.randint(1, 6), self._chance.choice(["join", "leave", "pause", "resume", "move"])
        if what in ("pause", "resume"):
            (self._paused.add if what == "pause" else self._paused.discard)(one)
            return self._lb.send_command(what, f"web{one}", ltime)
        if what == "leave":
            self._there.discard(one)
            return self._lb.leave(member_line(f"web{one}", self._address(one)))
        self._moved ^= {one} if what == "move" else set()
        self._there.add(one)
        return self._lb.join(member_line(f"web{one}", self._address(one)))

    def _address(self, one: int) -> str:
        return make_address(one + 6 if one in self._moved else one)


def test_random_changes_lose_no_request_and_need_no_reload(binary: Path) -> None:
    with LoadBalancer(KEPT_ALIVE, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, *range(1, 15)):
        fleet = Fleet(lb)
        lb.join(make_member_line(13), make_member_line(14))
        with run_clients(lb.front, clients=4, pause=0.005) as count:
            ends = [fleet.change(ltime) for ltime in range(1, CHANGES + 1)]

        states = {name: read_server_state(haproxy, name) for name in haproxy.servers()}
        assert {(done.returncode, done.stderr) for done in ends} == {(0, b"")}
        assert (dict(count), haproxy.reloads()) == ({"ok": count["ok"]}, (0, 0))
        assert count["ok"] > CHANGES
        assert {
            text.split()[1]: text.split()[2] for text in lb.managed if text.startswith("server ")
        } == fleet.expected_servers
        assert {name: f"{row[4]}:{row[18]}" for name, row in states.items() if row[6] == "0"} == fleet.expected_servers
        assert all(TOLD.search(entry["words"]) and not entry["reloaded"] for entry in lb.history())
        assert lb.list_staged() == []


@pytest.mark.parametrize("mode", ["-W", "-D"])
def test_join_pause_resume_leave_and_return_need_no_reload(lb: LoadBalancer, mode: str) -> None:
    with Haproxy(lb, mode) as haproxy, run_backends(lb, 1, 2) as (one, _):
        worker = haproxy.worker()
        lb.join(make_member_line(1), make_member_line(2))
        assert haproxy.find_answering() == {"web1", "web2"}
        lb.send_command("pause", "web1", 1)
        before = one.requests
        assert (haproxy.find_answering(), one.requests) == ({"web2"}, before)
        lb.send_command("resume", "web1", 2)
        assert haproxy.find_answering() == {"web1", "web2"}
        lb.leave(make_member_line(1))
        assert haproxy.find_answering() == {"web2"}
        lb.join(make_member_line(1))

        assert haproxy.find_answering() == {"web1", "web2"}
        assert (haproxy.worker(), lb.managed) == (worker, [make_line(lb, 1), make_line(lb, 2)])
        assert lb.list_outcomes() == ["applied"] * 5
        assert (
            lb.history()[0]["words"]
            == f"2 lines added, 0 removed; applied to HAProxy (worker {worker}) without a reload"
        )
        assert lb.run("apply").stdout.startswith(b"No changes: ")


def test_the_server_of_a_node_that_left_stays_in_maintenance_where_it_cannot_be_deleted(lb: LoadBalancer) -> None:
    if deletes_servers(lb.binary):
        pytest.skip("this HAProxy deletes it")
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        lb.leave(make_member_line(1))
        left = (lb.served() or {})["left"]
        assert haproxy.servers()["web1"] == "MAINT"
        assert left == {
            "worker": (lb.served() or {})["worker"],
            "servers": {"lb-iis/web1": make_line(lb, 1)},
        }

        os.kill(haproxy.pid, 12)
        wait_until(lambda: haproxy.reloads() == (1, 0) and len(haproxy.workers()) == 1)
        lb.join(make_member_line(1))

        assert haproxy.find_answering() == {"web1", "web2"}
        assert "left" not in (lb.served() or {})


def test_the_server_of_a_node_that_left_is_deleted_where_it_can_be(lb: LoadBalancer) -> None:
    if not deletes_servers(lb.binary):
        pytest.skip("this HAProxy may use what it has freed")
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2, 3):
        lb.join(make_member_line(1), make_member_line(2), make_member_line(3))
        lb.send_command("pause", "web1", 1)
        lb.leave(make_member_line(2))
        assert haproxy.servers() == {"web1": "MAINT", "web3": haproxy.servers()["web3"]}
        lb.leave(make_member_line(1))
        assert set(haproxy.servers()) == {"web3"}
        assert "left" not in (lb.served() or {})

        lb.join(make_member_line(2))

        assert (haproxy.find_answering(), haproxy.reloads()) == ({"web2", "web3"}, (0, 0))


def test_a_server_with_an_open_session_is_deleted_once_the_session_has_ended(binary: Path) -> None:
    text = CONFIG.replace("mode http", "mode tcp").replace(
        "    option idle-close-on-response\n    option httpclose\n", ""
    )
    with (
        LoadBalancer(text, binary=binary) as lb,
        Haproxy(lb) as haproxy,
        SlowService("127.0.0.11", lb.port) as service,
        run_backends(lb, 2),
    ):
        if not deletes_servers(lb.binary):
            pytest.skip("this HAProxy may use what it has freed")
        lb.join(make_member_line(1))
        with socket.create_connection(("127.0.0.1", lb.front)) as client:
            client.sendall(b"hello")
            server, _ = service.accept()
            with server:
                lb.join(make_member_line(2))
                assert lb.leave(make_member_line(1)).returncode == 0
                assert haproxy.servers()["web1"] == "MAINT"
                server.sendall(b"bye")
                assert client.recv(9) == b"bye"
        wait_until(lambda: lb.run("apply").returncode == 0 and set(haproxy.servers()) == {"web2"})
        assert haproxy.reloads() == (0, 0)
        assert "left" not in (lb.served() or {})


def test_a_state_file_of_an_older_lbagent_is_read(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1))
        path = lb.state / "served.json"
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "left"})
        )

        lb.join(make_member_line(2))

        assert (read_last_result(lb), haproxy.reloads()) == (WITHOUT_RELOAD, (0, 0))


def test_runtime_off_reloads(binary: Path) -> None:
    with LoadBalancer(roles=RELOADING, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1):
        lb.join(make_member_line(1))

        assert (read_last_result(lb), haproxy.reloads()) == (RELOADED, (1, 0))
        assert lb.history()[-1]["reloaded"]


@pytest.mark.parametrize(
    ("socket_line", "why"),
    [
        ("stats socket {socket} mode 600 level operator", "has `level operator`, not `level admin`"),
        ("stats socket {socket} mode 600", "has `level operator`, not `level admin`"),
    ],
)
def test_a_socket_below_admin_level_leads_to_a_reload(binary: Path, socket_line: str, why: str) -> None:
    text = CONFIG.replace("stats socket {socket} mode 600 level admin expose-fd listeners", socket_line)
    with LoadBalancer(text, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1):
        done = lb.run(
            "-v", "handle", stdin=make_member_line(1), env={"SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01"}
        )

        assert haproxy.reloads() == (1, 0)
        assert f"lbagent: reload needed: {lb.socket}: {why}\n" in done.stderr.decode()


@pytest.mark.parametrize("second", ["abns@lbagent-{front}", "ipv4@127.0.0.1:{port}"])
def test_another_socket_at_admin_level_is_used(binary: Path, second: str) -> None:
    first = "    stats socket {socket} mode 600 level admin expose-fd listeners"
    both = f"    stats socket {{socket}} level operator\n    stats socket {second} level admin"
    with LoadBalancer(CONFIG.replace(first, both), binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1):
        lb.join(make_member_line(1))

        assert (haproxy.reloads(), haproxy.find_answering()) == ((0, 0), {"web1"})


@pytest.mark.parametrize("severity", ["number", "string"])
def test_a_socket_that_puts_the_severity_before_each_answer_is_used(binary: Path, severity: str) -> None:
    config = CONFIG.replace("level admin", f"level admin severity-output {severity}")
    with LoadBalancer(config, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        assert read_last_result(lb) == WITHOUT_RELOAD
        assert lb.send_query("pause", "web1", 1).stdout.startswith(b"done")
        assert read_last_result(lb) == WITHOUT_RELOAD
        assert haproxy.servers()["web1"] == "MAINT"
        assert b"answers with level admin" in lb.run("check").stdout


# --- servers that are removed -------------------------------------------------------------------------------------

STICKY = KEPT_ALIVE.replace(
    "    balance roundrobin\n",
    "    balance roundrobin\n    cookie C insert indirect nocache dynamic\n    dynamic-cookie-key k\n",
)


def send_request(lb: LoadBalancer, cookie: str = "") -> tuple[str, str]:
    """Return the backend that answers, and the cookie that is set."""
    connection = http.client.HTTPConnection("127.0.0.1", lb.front, timeout=5)
    connection.request("GET", "/", headers={"Cookie": cookie} if cookie else {})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return body, (answer.getheader("set-cookie") or "").partition(";")[0]


def test_a_paused_node_loses_its_sticky_clients_too(binary: Path) -> None:
    with LoadBalancer(STICKY, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        cookie = next(found for name, found in (send_request(lb) for _ in range(4)) if name == "web1")
        haproxy.send("set server lb-iis/web1 state drain")
        assert {send_request(lb, cookie)[0] for _ in range(6)} == {"web1"}
        haproxy.send("set server lb-iis/web1 state ready")

        lb.send_command("pause", "web1", 1)

        assert {send_request(lb, cookie)[0] for _ in range(6)} == {"web2"}
        lb.send_command("resume", "web1", 2)
        assert {send_request(lb, cookie)[0] for _ in range(6)} == {"web1"}
        assert haproxy.reloads() == (0, 0)


class SlowService:
    """A TCP service that sends `hello`, and `bye` after it has received something."""

    def __init__(self, where: str, port: int) -> None:
        self._socket = socket.create_server((where, port))

    def __enter__(self) -> socket.socket:
        return self._socket

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_requests_in_progress_on_a_paused_node_finish(binary: Path) -> None:
    text = CONFIG.replace("mode http", "mode tcp").replace(
        "    option idle-close-on-response\n    option httpclose\n", ""
    )
    with (
        LoadBalancer(text, binary=binary) as lb,
        Haproxy(lb),
        SlowService("127.0.0.11", lb.port) as service,
        run_backends(lb, 2),
    ):
        lb.join(make_member_line(1))
        with socket.create_connection(("127.0.0.1", lb.front)) as client:
            client.sendall(b"hello")
            server, _ = service.accept()
            with server:
                assert server.recv(9) == b"hello"
                lb.join(make_member_line(2))
                lb.send_command("pause", "web1", 1)
                client.sendall(b"more")
                assert server.recv(9) == b"more"
                server.sendall(b"bye")
                assert client.recv(9) == b"bye"


def test_a_pause_and_a_resume_take_effect_while_the_operators_text_is_invalid(
    lb: LoadBalancer,
) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        good = lb.text
        edit_config(lb, "balance roundrobin", "balanse roundrobin")
        broken = lb.text

        paused = lb.send_command("pause", "web1", 1)

        assert paused.returncode == 4
        assert read_only_line(paused).endswith("; no new traffic reaches lb-iis/web1")
        assert (haproxy.find_answering(), lb.text, lb.list_staged()) == ({"web2"}, broken, [])

        again = lb.send_command("resume", "web1", 2)
        assert (again.returncode, haproxy.find_answering(), lb.text) == (0, {"web1", "web2"}, broken)
        assert haproxy.reloads() == (0, 0)
        lb.send_command("pause", "web1", 3)
        lb.text = good
        assert (lb.run("apply").returncode, haproxy.find_answering(), haproxy.reloads()) == (0, {"web2"}, (0, 0))


def test_a_pause_that_is_not_in_the_file_is_sent_again_to_a_new_worker(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        good = lb.text
        edit_config(lb, "balance roundrobin", "balanse roundrobin")
        lb.send_command("pause", "web1", 1)
        lb.cfg.write_bytes(good)
        os.kill(haproxy.pid, 12)
        wait_until(lambda: haproxy.reloads() == (1, 0) and len(haproxy.workers()) == 1)
        edit_config(lb, "balance roundrobin", "balanse roundrobin")
        assert haproxy.find_answering() == {"web1", "web2"}

        done = lb.run("apply")

        assert (done.returncode, haproxy.find_answering()) == (4, {"web2"})


def test_a_run_killed_after_its_commands_leaves_no_server_disabled(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        before = lb.text
        replace_haproxy(lb, "kill -9 $PPID")
        killed = lb.send_command("pause", "web1", 1)
        assert (killed.returncode, lb.text, haproxy.find_answering()) == (-9, before, {"web2"})
        restore_haproxy(lb)

        resumed = lb.send_command("resume", "web1", 2)

        assert (resumed.returncode, lb.text, lb.list_staged()) == (0, before, [])
        assert (haproxy.find_answering(), haproxy.reloads()) == ({"web1", "web2"}, (0, 0))


def test_a_pause_stops_the_traffic_although_haproxy_refuses_the_text_without_the_line(binary: Path) -> None:
    text = CONFIG.replace("    balance", "    #use-server web1 if { path /one }\n    balance")
    text = text.replace("{ path", "{{ path").replace("one }", "one }}")
    with LoadBalancer(text, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2, 3):
        lb.join(make_member_line(1), make_member_line(2))
        edit_config(lb, "#use-server", "use-server")

        refused = lb.send_command("pause", "web1", 1)
        assert (refused.returncode, haproxy.find_answering()) == (4, {"web2"})
        joined = lb.join(make_member_line(3))
        assert (joined.returncode, haproxy.find_answering()) == (0, {"web2", "web3"})
        assert lb.managed == [make_line(lb, 1), make_line(lb, 2), make_line(lb, 3)]
        os.kill(haproxy.pid, 12)
        wait_until(lambda: haproxy.reloads() == (1, 0) and len(haproxy.workers()) == 1)
        lb.leave(make_member_line(3))
        assert haproxy.find_answering() == {"web2"}
        lb.send_command("resume", "web1", 2)

        assert haproxy.find_answering() == {"web1", "web2"}


def test_a_pause_takes_effect_although_the_disk_of_haproxy_cfg_is_full(lb: LoadBalancer) -> None:
    text = lb.text
    with mount_small_disk(lb.etc):
        lb.cfg.write_bytes(text)
        lb.roles.write_text(lb.fill_template(ROLES))
        with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
            lb.join(make_member_line(1), make_member_line(2))
            before = lb.text
            with fill_disk(lb.etc):
                done = lb.send_command("pause", "web1", 1)
                assert (done.returncode, haproxy.find_answering(), lb.text) == (1, {"web2"}, before)
            assert (lb.run("apply").returncode, haproxy.find_answering(), haproxy.reloads()) == (0, {"web2"}, (0, 0))
            assert lb.list_staged() == []


@pytest.mark.parametrize("kind", ["pause", "leave", "query"])
def test_a_command_that_cannot_be_stored_is_applied_and_reported(lb: LoadBalancer, kind: str) -> None:
    with mount_small_disk(lb.state), Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        before = lb.text
        with fill_disk(lb.state):
            verbs = {
                "leave": lambda: lb.leave(make_member_line(1)),
                "pause": lambda: lb.send_command("pause", "web1", 1),
            }
            done = verbs.get(kind, lambda: lb.send_query("pause", "web1", 1))()
            output = done.stdout.decode() if kind == "query" else read_only_line(done)

        assert done.returncode == (0 if kind == "query" else 1)
        assert output.removeprefix("refused: ").startswith("not stored: sync needed: ")
        assert output.rstrip().endswith("; no new traffic reaches lb-iis/web1")
        assert (haproxy.find_answering(), lb.text) == ({"web2"}, before)


# --- servers that are added ---------------------------------------------------------------------------------------


def test_a_joined_server_gets_traffic_only_once_it_answers(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1):
        lb.join(make_member_line(1))
        with run_clients(lb.front) as count:
            lb.join(make_member_line(2))
            lb.send_command("pause", "web2", 1)
            lb.send_command("resume", "web2", 2)
            assert haproxy.servers()["web2"] == "DOWN"
            with run_backends(lb, 2):
                wait_until(lambda: haproxy.servers()["web2"] == "UP")
                wait_until(lambda: haproxy.find_answering() == {"web1", "web2"})
                lb.send_command("pause", "web2", 3)
        assert (dict(count), haproxy.reloads()) == ({"ok": count["ok"]}, (0, 0))


CHECKED = CONFIG.replace("    balance roundrobin\n", "    balance roundrobin\n    option httpchk GET /alive\n")


def test_a_server_that_fails_its_check_gets_no_traffic(binary: Path) -> None:
    roles = ROLES.replace("interval: 200ms", "interval: 300ms")
    with (
        LoadBalancer(CHECKED, roles, binary) as lb,
        Haproxy(lb) as haproxy,
        run_backends(lb, 1),
        SlowService("127.0.0.12", lb.port),
    ):
        lb.join(make_member_line(1))
        with run_clients(lb.front) as count:
            lb.join(make_member_line(2))
            lb.send_command("pause", "web2", 1)
            lb.send_command("resume", "web2", 2)
        assert (dict(count), haproxy.reloads()) == ({"ok": count["ok"]}, (0, 0))
        assert (haproxy.servers()["web1"], haproxy.servers()["web2"]) == ("UP", "DOWN")


def test_default_server_applies_to_added_servers(binary: Path) -> None:
    text = CONFIG.replace("defaults\n", "defaults\n    default-server weight 7 maxconn 33\n")
    with LoadBalancer(text, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1):
        lb.join(make_member_line(1))
        told = read_server_state(haproxy, "web1")[7:9], haproxy.send("show stat lb-iis 4 -1").count(",33,")

        lb.roles.write_text(lb.fill_template(RELOADING))
        lb.join(make_member_line(2))

        assert told == (["7", "7"], 1)
        assert read_server_state(haproxy, "web1")[7:9] == ["7", "7"]
        assert haproxy.reloads() == (1, 0)


def test_connections_to_added_servers_are_reused(binary: Path) -> None:
    with LoadBalancer(KEPT_ALIVE, binary=binary) as lb, Haproxy(lb) as haproxy:
        served = subprocess.Popen(  # a server that keeps connections
            [os.environ.get("PYTHON", "/usr/bin/python3"), "-c", KEEPING, "127.0.0.11", str(lb.port)],
            stdout=subprocess.PIPE,
        )
        try:
            assert served.stdout
            served.stdout.readline()
            lb.join(make_member_line(1))
            with run_clients(lb.front, clients=1) as count:
                wait_until(lambda: count["ok"] > 50)
            keys = haproxy.send("show stat").splitlines()[0].removeprefix("# ").split(",")
            rows = [dict(zip(keys, row.split(","), strict=False)) for row in haproxy.send("show stat").splitlines()]
            [row] = [row for row in rows if row.get("svname") == "web1"]
            assert (haproxy.reloads(), int(row["reuse"]) > int(row["connect"])) == ((0, 0), True)
        finally:
            served.kill()
            served.communicate()


KEEPING = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Answer)
print("up", flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("balance", ["source", "random"])
def test_clients_keep_an_added_server_after_a_reload(binary: Path, balance: str) -> None:
    text = CONFIG.replace("balance roundrobin", f"balance {balance}\n    hash-type consistent")
    with LoadBalancer(text, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2, 3):
        for number in (1, 2, 3):
            lb.join(make_member_line(number))
        told = {name: read_server_state(haproxy, name)[2] for name in haproxy.servers()}
        assert haproxy.reloads() == (0, 0)

        lb.roles.write_text(lb.fill_template(RELOADING))
        lb.leave(make_member_line(1))

        assert haproxy.reloads() == (1, 0)
        assert {name: read_server_state(haproxy, name)[2] for name in haproxy.servers()} == {
            name: number for name, number in told.items() if name != "web1"
        }


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("balance source", "`balance source` does not support dynamic servers"),
        ("balance static-rr", "`balance static-rr` does not support dynamic servers"),
        ("default-server agent-check agent-port 1", "`agent-check` cannot be set through the runtime API"),
    ],
)
def test_where_servers_cannot_be_added_a_join_reloads_and_a_pause_does_not(binary: Path, lines: str, why: str) -> None:
    text = CONFIG.replace("    balance roundrobin\n", f"    {lines}\n")
    with LoadBalancer(text, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1))
        done = lb.run(
            "-v", "handle", stdin=make_member_line(2), env={"SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01"}
        )
        assert f"lbagent: reload needed: lb-iis/web2: {why}\n" in done.stderr.decode()
        assert (read_last_result(lb), haproxy.reloads()) == (RELOADED, (2, 0))
        lb.send_command("pause", "web1", 1)
        assert haproxy.servers()["web1"] == "MAINT"
        lb.send_command("resume", "web1", 2)
        assert haproxy.servers()["web1"] != "MAINT"
        lb.leave(make_member_line(1))
        lb.join(make_member_line(1))

        assert (read_last_result(lb), haproxy.reloads()) == (WITHOUT_RELOAD, (2, 0))


def test_changed_options_need_a_reload(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        lb.send_command("pause", "web1", 1)
        lb.roles.write_text(lb.roles.read_text().replace("interval: 200ms", "interval: 300ms"))

        lb.send_command("resume", "web1", 2)

        assert (read_last_result(lb), haproxy.reloads()) == (RELOADED, (1, 0))
        assert haproxy.find_answering() == {"web1", "web2"}


def test_a_changed_address_needs_no_reload_for_a_server_of_the_file_either(binary: Path) -> None:
    with LoadBalancer(KEPT_ALIVE, roles=RELOADING, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1))
        lb.roles.write_text(lb.fill_template(ROLES))
        with run_clients(lb.front) as count:
            lb.join(member_line("web1", make_address(2)))
            seen = haproxy.find_answering()

        assert (seen, haproxy.reloads(), read_last_result(lb)) == ({"web2"}, (1, 0), WITHOUT_RELOAD)
        assert dict(count) == {"ok": count["ok"]}


# --- differences between haproxy.cfg and the running HAProxy ------------------------------------------------------


def test_a_backend_that_haproxy_does_not_have_yet_needs_a_reload(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1):
        edit_config(lb, "listen lb-iis", "listen lb-new")

        lb.join(make_member_line(1))

        assert (read_last_result(lb), haproxy.reloads(), haproxy.find_answering()) == (RELOADED, (1, 0), {"web1"})


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("set server lb-iis/web1 state maint", "lb-iis/web1 is out of balancing"),
        ("set server lb-iis/web1 state drain", "lb-iis/web1 is out of balancing"),
        ("set server lb-iis/web1 addr 127.0.0.13 port 7", "lb-iis/web1 is at 127.0.0.13 port 7"),
        ("set server lb-iis/web3 state ready", "lb-iis/web3 still gets traffic"),
    ],
)
def test_a_difference_in_the_running_haproxy_is_repaired_by_one_reload_and_recorded(
    lb: LoadBalancer, command: str, why: str
) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2, 3):
        lb.join(make_member_line(1), make_member_line(3))
        lb.send_command("pause", "web3", 1)
        haproxy.send(command)

        lb.join(make_member_line(2))

        assert read_last_result(lb) == f"{RELOADED}; HAProxy differed from haproxy.cfg: {why}"
        assert lb.history()[-1]["reloaded"]
        assert (haproxy.reloads(), haproxy.find_answering()) == ((1, 0), {"web1", "web2"})
        assert lb.run("apply").stdout.startswith(b"No changes: ")


def test_a_difference_in_the_running_haproxy_is_fixed_although_haproxy_cfg_is_invalid(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1):
        lb.join(make_member_line(1))
        edit_config(lb, "    balance ", "    balanse ")
        text = lb.text
        haproxy.send("set server lb-iis/web1 state maint")

        done = lb.run("apply")

        assert done.returncode == 4
        assert read_only_line(done).startswith(
            "haproxy.cfg is invalid, not because of lbagent; fixed: lb-iis/web1 is out of balancing: parsing ["
        )
        assert (lb.text, haproxy.reloads(), haproxy.find_answering()) == (text, (0, 0), {"web1"})


def test_a_change_does_not_wait_for_the_verdict_on_the_text_before_it(lb: LoadBalancer) -> None:
    lb.join(make_member_line(1), make_member_line(2))
    pids = lb.folder / "pids"
    replace_haproxy(lb, f'case "$*" in *" {lb.cfg}") echo $$ >> {pids}; exec sleep 600 ;; esac\nexec "$real" "$@"')
    lb.roles.write_text(lb.roles.read_text().replace("interval: 200ms", "interval: 300ms"))

    done = lb.run("apply")

    started = pids.read_text().split() if pids.exists() else []
    assert (done.returncode, lb.text.count(b"inter 300ms")) == (0, 2)
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []


def test_a_hundred_undeleted_servers_are_removed_by_one_reload(lb: LoadBalancer) -> None:
    def crowd(first: int) -> list[bytes]:
        return [member_line(f"n{number}", f"127.9.0.{number - first + 1}") for number in range(first, first + 50)]

    with Haproxy(lb) as haproxy, run_backends(lb, 1):
        lb.join(make_member_line(1), *crowd(0))
        lb.leave(*crowd(0))
        lb.join(*crowd(100))
        assert (haproxy.reloads(), len(haproxy.servers())) == ((0, 0), 51 if deletes_servers(lb.binary) else 101)

        lb.leave(*crowd(100))

        assert (haproxy.reloads()[0], set(haproxy.servers())) == (0 if deletes_servers(lb.binary) else 1, {"web1"})
        assert "left" not in (lb.served() or {})


STATED = CONFIG.replace("    hard-stop-after", "    server-state-file {folder}/states\n    hard-stop-after").replace(
    "    mode http\n", "    mode http\n    load-server-state-from-file global\n"
)


SAVING = """
import socket, sys
with socket.socket(socket.AF_UNIX) as one, open(sys.argv[2], "wb") as file:
    one.connect(sys.argv[1])
    one.sendall(b"show servers state\\n")
    file.write(b"".join(iter(lambda: one.recv(9999), b"")))
"""


def test_a_state_that_a_server_state_file_restores_at_a_reload_is_corrected(binary: Path) -> None:
    with LoadBalancer(STATED, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        lb.send_command("pause", "web1", 1)
        saving = lb.folder / "save.py"
        saving.write_text(SAVING)
        save = f"python3 {saving} {lb.socket} {lb.folder}/states"
        set_reload_command(lb, f"{save}\nkill -USR2 {haproxy.pid}", ROLES)
        lb.roles.write_text(lb.roles.read_text().replace("interval: 200ms", "interval: 300ms"))

        lb.send_command("resume", "web1", 2)

        assert read_last_result(lb) == f"{RELOADED}; fixed: lb-iis/web1 is out of balancing"
        assert (haproxy.reloads(), haproxy.find_answering()) == ((1, 0), {"web1", "web2"})


# --- a reload that fails ------------------------------------------------------------------------------------------


def test_a_server_that_was_disabled_stays_disabled_after_a_failed_reload(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2, 3):
        lb.join(make_member_line(1), make_member_line(2))
        before = lb.text
        set_reload_command(lb, "exit 1", ROLES)
        lb.roles.write_text(lb.roles.read_text().replace("interval: 200ms", "interval: 300ms"))

        done = lb.send_command("pause", "web1", 1)

        assert done.returncode == 5
        assert read_only_line(done).endswith(
            f"the previous managed lines are restored in {lb.cfg}; no new traffic reaches lb-iis/web1"
        )
        assert (lb.text, lb.list_staged(), haproxy.find_answering()) == (before, [], {"web2"})


def test_the_runtime_api_is_used_while_a_failed_reload_waits(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2, 3):
        lb.join(make_member_line(1), make_member_line(2))
        lb.send_command("pause", "web1", 1)
        set_reload_command(lb, f"echo reload >>{lb.folder}/reloads\nexit 1", ROLES)
        roles = lb.roles.read_text()
        options = 'options: "check inter {interval} rise 2 fall {tag:fall|2}"'
        lb.roles.write_text(roles.replace("    lb: [iis]\n", f"    lb: [iis]\n    {options}\n"))
        failed = lb.join(make_member_line(2, fall="5"))
        assert (failed.returncode, (lb.folder / "reloads").read_text()) == (5, "reload\n")

        resumed, joined, left = (
            lb.send_command("resume", "web1", 2),
            lb.join(make_member_line(3)),
            lb.leave(make_member_line(1)),
        )

        assert [done.returncode for done in (resumed, joined, left)] == [5, 5, 5]
        assert read_only_line(joined).startswith("reload postponed: ")
        assert (lb.folder / "reloads").read_text() == "reload\n"
        assert haproxy.find_answering() == {"web2", "web3"}
        assert lb.managed == [make_line(lb, 2), make_line(lb, 3)]
        assert read_last_result(lb) == WITHOUT_RELOAD
        assert (lb.served() or {})["failure"]["times"] == 1
        (lb.folder / "reload").write_text(f"#!/bin/sh\nkill -USR2 {haproxy.pid}\n")
        assert lb.run("apply", "--force").returncode == 0
        assert haproxy.find_answering() == {"web2", "web3"}
        assert lb.managed == [make_line(lb, 2).replace("fall 2", "fall 5"), make_line(lb, 3)]


def test_a_server_added_before_a_failed_reload_is_removed_again(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1))
        before = lb.text
        haproxy.send("set server lb-iis/web1 state drain")  # an operator's change after the first commands
        set_reload_command(lb, "exit 1", ROLES)

        done = lb.join(make_member_line(2))

        assert (done.returncode, lb.text, lb.list_staged()) == (5, before, [])
        assert haproxy.servers()["web2"] == "MAINT"
        haproxy.send("set server lb-iis/web1 state ready")
        lb.send_command("pause", "web9", 1)
        assert (lb.managed, haproxy.find_answering()) == ([make_line(lb, 1), make_line(lb, 2)], {"web1", "web2"})


def test_a_server_with_a_new_address_keeps_serving_after_a_failed_reload(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2, 3):
        lb.join(make_member_line(1), make_member_line(3))
        before = lb.text
        haproxy.send("set server lb-iis/web3 state drain")
        set_reload_command(lb, "exit 1", ROLES)

        done = lb.join(member_line("web1", make_address(2)))

        assert (done.returncode, lb.text, haproxy.find_answering()) == (5, before, {"web2"})


# --- runs without the runtime API ---------------------------------------------------------------------------------


def test_without_reload_the_runtime_api_is_not_used(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        lb.text = lb.text.replace(make_line(lb, 1).encode(), b"")
        before = haproxy.find_serving()

        done = lb.run("apply", "--no-reload")

        assert done.stdout == b"written: 1 line added, 0 removed; not reloaded (--no-reload)\n"
        assert (haproxy.find_serving(), haproxy.reloads()) == (before, (0, 0))


# --- renamed servers, and tags ------------------------------------------------------------------------------------


def test_renamed_servers_serve_until_the_new_name_serves(lb: LoadBalancer) -> None:
    roles = lb.roles.read_text().replace("services:\n", f"services:\n  api: {{port: {lb.port + 1}}}\n")
    lb.roles.write_text(roles.replace("lb: [iis]", "lb: [iis, api]"))
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        lb.count_checks("sleep 0.3")
        with run_clients(lb.front, 4) as count:
            wait_until(lambda: count["ok"] > 20)
            marker = "    # additional-lb-iis-server\n"
            edit_config(lb, marker, marker + marker.replace("iis", "api"))
            assert lb.run("apply").returncode == 0
            so_far = count["ok"]
            wait_until(lambda: count["ok"] > so_far + 20)

        assert (set(count), haproxy.reloads()[0]) == ({"ok"}, 0)
        assert haproxy.find_serving() == {"web1.iis", "web1.api", "web2.iis", "web2.api"}
        left = {name: state for name, state in haproxy.servers().items() if name in ("web1", "web2")}
        assert left == ({} if deletes_servers(lb.binary) else {"web1": "MAINT", "web2": "MAINT"})


def test_renamed_servers_get_their_old_name_back_after_a_failed_reload(lb: LoadBalancer) -> None:
    second = f"\nlisten two\n    bind 127.0.0.1:{lb.port + 2}\n    # additional-lb-iis-server\n"
    lb.text += second.encode()
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        set_reload_command(lb, "exit 1", ROLES)
        roles = lb.roles.read_text().replace("services:\n", f"services:\n  api: {{port: {lb.port + 1}}}\n")
        lb.roles.write_text(roles.replace("lb: [iis]", "lb: [iis, api]"))
        lb.join(make_member_line(1), make_member_line(2))
        haproxy.send("set server two/web2 state drain")  # an operator's change after the first commands
        marker = b"    # additional-lb-iis-server\n"
        lb.text = lb.text.replace(marker, marker + marker.replace(b"iis", b"api"), 1)

        done = lb.run("apply")

        assert (
            done.returncode,
            read_only_line(done).endswith(f"the previous managed lines are restored in {lb.cfg}"),
        ) == (
            5,
            True,
        )
        assert (haproxy.find_serving(), haproxy.find_answering()) == ({"web1", "web2"}, {"web1", "web2"})
        assert (lb.served() or {})["left"]["servers"].keys().isdisjoint({"lb-iis/web1", "lb-iis/web2"})


def test_servers_whose_addresses_all_change_serve_without_a_check_result(binary: Path) -> None:
    text = CONFIG.replace("    balance roundrobin", "    balance roundrobin\n    option httpchk GET /")
    roles = ROLES.replace("interval: 200ms", "interval: 1s")
    with (
        LoadBalancer(text, roles, binary) as lb,
        Haproxy(lb) as haproxy,
        run_backends(lb, 1, 2),
        contextlib.ExitStack() as stack,
    ):
        for one in (1, 2):
            stack.enter_context(Backend(f"new{one}", make_address(one), lb.port + 1))
        lb.join(make_member_line(1), make_member_line(2))
        wait_until(lambda: set(haproxy.servers().values()) == {"UP"})
        with run_clients(lb.front, 4) as count:
            wait_until(lambda: count["ok"] > 20)
            lb.roles.write_text(lb.roles.read_text().replace(f"port: {lb.port}", f"port: {lb.port + 1}"))
            assert lb.run("apply").returncode == 0
            so_far = count["ok"]
            wait_until(lambda: count["ok"] > so_far + 20)

        assert (set(count), haproxy.reloads()[0]) == ({"ok"}, 0)
        assert haproxy.find_answering() == {"new1", "new2"}


@pytest.mark.parametrize("options", ["port abc", "port 70000", "addr localhost"])
def test_a_check_with_an_unknown_target_delays_no_server(lb: LoadBalancer, options: str) -> None:
    word, value = options.split()
    default = lb.port if word == "port" else "127.0.0.11"
    options = f'{{port: {lb.port}, options: "check {word} {{tag:there|{default}}}"}}'
    lb.roles.write_text(lb.roles.read_text().replace(f"{{port: {lb.port}}}", options))
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        odd = lb.join(make_member_line(1, there=value))
        good = lb.join(make_member_line(2))

        assert (odd.stderr + good.stderr).count(b"internal error") == 0
        wait_until(lambda: "web2" in haproxy.find_answering())
        assert good.returncode in (0, 4)


def test_a_state_that_a_server_state_file_restores_at_a_start_by_another_process_is_corrected(binary: Path) -> None:
    text = CONFIG.replace("global\n", "global\n    server-state-file {folder}/kept\n")
    text = text.replace("    mode http\n", "    mode http\n    load-server-state-from-file global\n", 1)
    with LoadBalancer(text, binary=binary) as lb, run_backends(lb, 1):
        with Haproxy(lb) as haproxy:
            lb.join(make_member_line(1))
            haproxy.send("set server lb-iis/web1 state maint")
            (lb.folder / "kept").write_text(haproxy.send("show servers state"))
            haproxy.send("set server lb-iis/web1 state ready")
            os.utime(lb.cfg)
        wait_until(lambda: time.time() > lb.cfg.stat().st_ctime + 3)  # so that the worker has certainly read it
        with Haproxy(lb) as haproxy:
            assert haproxy.servers() == {"web1": "MAINT"}

            output = lb.run("apply").stdout.decode()

            assert output == "unchanged: fixed: lb-iis/web1 is out of balancing\n"
            assert (haproxy.find_answering(), haproxy.reloads()) == ({"web1"}, (0, 0))
            assert lb.run("apply").stdout.startswith(b"No changes: ")


@pytest.mark.parametrize("change", ["pause", "leave"])
def test_a_worker_that_has_read_an_older_text_does_not_keep_a_paused_or_removed_node(binary: Path, change: str) -> None:
    with LoadBalancer(KEPT_ALIVE, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        lb.join(make_member_line(1), make_member_line(2))
        older, worker = lb.text, haproxy.worker()
        lb.send_command("pause", "web2", 1) if change == "pause" else lb.leave(make_member_line(2))
        newer = lb.text
        # The operator's reload has read the file just before it was replaced.
        lb.text = older
        os.kill(haproxy.pid, signal.SIGUSR2)
        wait_until(lambda: answers_as_another_worker(haproxy, worker))
        lb.text = newer
        assert haproxy.find_answering() == {"web1", "web2"}

        done = lb.run("apply")

        assert (done.returncode, done.stdout.decode(), done.stderr) == (
            0,
            "unchanged: fixed: lb-iis/web2 still gets traffic\n",
            b"",
        )
        assert haproxy.find_answering() == {"web1"}
        lb.send_command("resume", "web2", 2) if change == "pause" else lb.join(make_member_line(2))
        assert haproxy.find_answering() == {"web1", "web2"}
        assert lb.run("apply").stdout.startswith(b"No changes: ")


def answers_as_another_worker(haproxy: Haproxy, worker: int) -> bool:
    """Return whether another worker than this one answers on the stats socket."""
    try:
        return haproxy.worker() != worker
    except OSError:
        return False


# --- attributes that equal those after a reload -------------------------------------------------------------------


def set_options(lb: LoadBalancer, words: str) -> None:
    """Set the options of the service `iis`."""
    lb.roles.write_text(
        lb.roles.read_text().replace(f"{{port: {lb.port}}}", f'{{port: {lb.port}, options: "{words}"}}')
    )


def add_to_proxy(*lines: str) -> str:
    """Return KEPT_ALIVE with more lines in its proxy."""
    return KEPT_ALIVE.replace(
        "    balance roundrobin\n", "".join(f"    {one}\n" for one in ("balance roundrobin", *lines))
    )


def test_servers_with_external_checks_are_never_added_through_the_runtime_api(binary: Path) -> None:
    text = add_to_proxy("option external-check", "external-check command /bin/true")
    text = text.replace("global\n", "global\n    external-check\n    insecure-fork-wanted\n")
    with LoadBalancer(text, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        before = haproxy.pid
        ends = [lb.join(make_member_line(number)) for number in (1, 2)]

        assert haproxy.workers(), "HAProxy has ended"
        assert [(done.returncode, done.stderr) for done in ends] == [(0, b"")] * 2
        assert (haproxy.pid, haproxy.reloads()) == (before, (2, 0))
        assert haproxy.find_answering() == {"web1", "web2"}


@pytest.mark.parametrize(
    ("words", "default"),
    [("check inter 200ms ssl verify none", ""), ("check inter 200ms", "default-server ssl verify none")],
)
@pytest.mark.parametrize("check", ["option httpchk GET /", ""])
def test_a_node_behind_tls_serves_as_soon_as_it_has_joined(binary: Path, words: str, default: str, check: str) -> None:
    with (
        LoadBalancer(add_to_proxy(default, check), binary=binary) as lb,
        Haproxy(lb) as haproxy,
        Recorder(lb.port) as recorder,
    ):
        set_options(lb, words)
        lb.join(make_member_line(1))

        wait_until(lambda: haproxy.servers()["web1"] == "UP")
        # A check that only connects, L4OK, would not find a broken certificate.
        assert read_check_status(haproxy, "web1") == ("L7OK" if check else "L6OK")
        assert (haproxy.get(), haproxy.reloads()) == ("ok", (0, 0))
        assert all("TLS ciphers" in one for one in recorder.seen(make_address(1), clients=False))


@pytest.mark.parametrize("proxy", ["send-proxy", "send-proxy-v2"])
def test_a_node_that_expects_a_proxy_header_serves_as_soon_as_it_has_joined(binary: Path, proxy: str) -> None:
    with (
        LoadBalancer(add_to_proxy("option httpchk GET /"), binary=binary) as lb,
        Haproxy(lb) as haproxy,
        Recorder(lb.port) as seen,
    ):
        set_options(lb, f"check inter 200ms {proxy}")
        lb.join(make_member_line(1))

        wait_until(lambda: haproxy.servers()["web1"] == "UP")
        assert (haproxy.get(), haproxy.reloads()) == ("ok", (0, 0))
        assert all("PROXY v" in one for one in seen.seen(make_address(1), clients=False))


def test_one_error_does_not_disable_an_observed_server(binary: Path) -> None:
    with LoadBalancer(KEPT_ALIVE, binary=binary) as lb, Haproxy(lb) as haproxy, Recorder(lb.port):
        set_options(lb, "check inter 1s observe layer7 on-error mark-down")
        lb.join(make_member_line(1), make_member_line(2))
        wait_until(lambda: set(haproxy.servers().values()) == {"UP"})
        for _ in range(2):
            assert haproxy.get(path="/error") == "500"
        assert set(haproxy.servers().values()) == {"UP"}
        down = set()  # two checks bring a server back
        for _ in range(18):
            haproxy.get(path="/error")
            down |= {name for name, state in haproxy.servers().items() if state == "DOWN"}

        assert (down, haproxy.reloads()) == ({"web1", "web2"}, (0, 0))


def test_requests_share_connections_to_a_server_that_speaks_h2(binary: Path) -> None:
    """A server added with `proto` through the runtime API makes a connection for each request."""
    h2 = "frontend h2\n    bind 127.0.0.11:{port} proto h2\n    http-request return status 200\n"
    with LoadBalancer(f"{add_to_proxy('http-reuse always')}\n{h2}", binary=binary) as lb, Haproxy(lb) as haproxy:
        set_options(lb, "proto h2")
        lb.join(make_member_line(1))
        before = read_connections(haproxy, "h2")

        assert {haproxy.get() for _ in range(30)} == {""}
        # A few threads of HAProxy may have a connection each.
        assert read_connections(haproxy, "h2") - before <= 8


@pytest.mark.parametrize("how", ["default", "own"])
def test_a_disabled_server_stays_disabled(binary: Path, how: str) -> None:
    text = add_to_proxy("default-server disabled") if how == "default" else KEPT_ALIVE
    with LoadBalancer(text, binary=binary) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        set_options(lb, f"check inter 200ms {'disabled' if how == 'own' else ''}".strip())
        lb.join(make_member_line(1))
        assert (haproxy.reloads(), haproxy.servers()) == ((1, 0), {"web1": "MAINT"})
        reloads = haproxy.reloads()[0]

        lb.send_command("pause", "web1", 1)
        lb.send_command("resume", "web1", 2)

        assert (haproxy.servers(), haproxy.reloads()[0]) == ({"web1": "MAINT"}, reloads)
        assert lb.run("apply").stdout.startswith(b"No changes: ")
        assert haproxy.servers() == {"web1": "MAINT"}


def test_a_new_weight_is_set_without_a_reload(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        set_options(lb, "check inter 200ms weight {tag:weight|100}")
        lb.join(make_member_line(1), make_member_line(2))
        lb.join(make_member_line(1, weight="30"))
        assert (read_server_state(haproxy, "web1")[7], haproxy.reloads()) == ("30", (0, 0))
        lb.send_command("pause", "web1", 1)
        lb.handle("member-update", make_member_line(1, weight="250"))
        lb.send_command("resume", "web1", 2)

        assert (read_server_state(haproxy, "web1")[7], haproxy.reloads()) == ("250", (0, 0))
        assert haproxy.find_answering() == {"web1", "web2"}


def test_a_weight_that_haproxy_refuses_is_an_error_and_changes_nothing(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        set_options(lb, "check inter 200ms weight {tag:weight|100}")
        lb.join(make_member_line(1), make_member_line(2))
        before = lb.text
        done = lb.join(make_member_line(1, weight="300"))

        assert (done.returncode, lb.text, read_server_state(haproxy, "web1")[7]) == (4, before, "100")
        assert haproxy.reloads() == (0, 0)


def test_servers_that_join_have_their_own_cookies(binary: Path) -> None:
    with (
        LoadBalancer(add_to_proxy("cookie C insert indirect nocache"), binary=binary) as lb,
        Haproxy(lb) as haproxy,
        run_backends(lb, 1, 2),
    ):
        set_options(lb, "check inter 200ms cookie {name}")
        lb.join(make_member_line(1))
        lb.join(make_member_line(2))

        assert {send_request(lb) for _ in range(8)} == {("web1", "C=web1"), ("web2", "C=web2")}
        assert {send_request(lb, "C=web1")[0] for _ in range(6)} == {"web1"}
        assert haproxy.reloads()[0] == (0 if deletes_servers(lb.binary) else 2)


@pytest.mark.parametrize(("state", "first"), [("fully-down", "DOWN"), ("down", "DOWN"), ("fully-up", "UP")])
def test_the_initial_state_is_honoured(state: str, first: str) -> None:
    newest = list(binaries())[-1]
    if newest < "3.2":
        pytest.skip("no HAProxy 3.2")
    with LoadBalancer(KEPT_ALIVE, binary=binaries()[newest]) as lb, Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        set_options(lb, f"check inter 4s rise 2 init-state {state}")
        lb.join(make_member_line(1))

        assert haproxy.servers()["web1"].startswith(first)
        assert haproxy.reloads() == (0, 0)


def test_a_drained_server_of_a_node_that_left_is_deleted(lb: LoadBalancer) -> None:
    if not deletes_servers(lb.binary):
        pytest.skip("this HAProxy may use what it has freed")
    with Haproxy(lb) as haproxy, run_backends(lb, 1, 2):
        set_options(lb, "check inter 200ms on-marked-down shutdown-sessions")
        lb.join(make_member_line(1), make_member_line(2))

        lb.leave(make_member_line(1))

        assert (set(haproxy.servers()), haproxy.reloads()) == ({"web2"}, (0, 0))
