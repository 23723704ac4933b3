"""The answer to a pause or resume is true: full disks, refused lines, reloads by other processes, open sessions."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import run_watch
from tests.helpers.faults import fill_disk, mount_small_disk
from tests.helpers.real_programs import CONFIG, ROLES, Backend, Haproxy, LoadBalancer, member_line, wait_until

pytestmark = pytest.mark.real

OFF = ROLES.replace("haproxy:\n", "haproxy:\n  runtime: off\n")
USE_SERVER = "    use-server web1 if {{ path /one }}\n"
TRACK = "\nbackend other\n    server copy 127.0.0.1:9 track lb-iis/web1\n"
SRV_IS_UP = "    http-request return status 404 if !{{ srv_is_up(lb-iis/web1) }} {{ path /none }}\n"
HELD = "web1: HAProxy refuses haproxy.cfg without its line: "


@contextlib.contextmanager
def run_load_balancer(
    binary: Path, roles: str = ROLES, config: str = CONFIG, later: str = ""
) -> Iterator[tuple[LoadBalancer, Haproxy]]:
    """Run a load balancer with two web nodes; `later` is added to haproxy.cfg and loaded once both nodes serve."""
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(config, roles, binary))
        haproxy = stack.enter_context(Haproxy(lb))
        for number in (1, 2):
            stack.enter_context(Backend(f"web{number}", f"127.0.0.{10 + number}", lb.port))
        assert lb.join(make_member_line(1), make_member_line(2)).returncode == 0
        if later:
            add_reference(lb, later.format())
            reload_haproxy(haproxy)
            assert lb.run("apply").returncode == 0
        wait_until(lambda: haproxy.find_answering() == {"web1", "web2"})
        yield lb, haproxy


def make_member_line(number: int, **tags: str) -> bytes:
    """Return the line of a web node in a member event."""
    return member_line(f"web{number}", f"127.0.0.{10 + number}", **tags)


def add_reference(lb: LoadBalancer, text: str) -> None:
    """Make the operator's text refer to web1."""
    if text.startswith("\n"):
        lb.text += text.encode()
    else:
        lb.text = lb.text.replace(b"    balance", text.encode() + b"    balance")


def reload_haproxy(haproxy: Haproxy) -> None:
    """Reload HAProxy as another process does."""
    first = haproxy.worker()
    wait_until(lambda: time.time() > haproxy.lb.cfg.stat().st_ctime + 3)
    os.kill(haproxy.pid, signal.SIGUSR2)
    wait_until(lambda: haproxy.worker() != first)


@contextlib.contextmanager
def run_on_small_disk(binary: Path) -> Iterator[tuple[LoadBalancer, Haproxy]]:
    """Run a load balancer whose state directory is a small disk."""
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(binary=binary))
        stack.enter_context(mount_small_disk(lb.state))
        haproxy = stack.enter_context(Haproxy(lb))
        for number in (1, 2):
            stack.enter_context(Backend(f"web{number}", f"127.0.0.{10 + number}", lb.port))
        yield lb, haproxy


# --- a full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", ["query", "event", "sync", "apply", "join", "watch"])
def test_a_pause_that_could_not_be_stored_ends_once_the_disk_has_room(binary: Path, back: str) -> None:
    with run_on_small_disk(binary) as (lb, haproxy):
        lb.join(make_member_line(1), make_member_line(2))
        before = lb.text
        with fill_disk(lb.state):
            done = lb.leave(make_member_line(2)) if back == "join" else lb.send_command("pause", "web2", 1)
            assert (done.returncode, haproxy.find_answering()) == (1, {"web1"})
            assert lb.run("apply").returncode in (0, 1)
            assert haproxy.find_answering() == {"web1"}

        if back == "query":
            assert lb.send_query("resume", "web2", 2).stdout == b"done\n"
        elif back == "event":
            assert lb.send_command("resume", "web2", 2).returncode == 0
        elif back == "join":
            assert lb.join(make_member_line(2)).returncode == 0
        elif back == "watch":
            with run_watch(lb):
                wait_until(lambda: haproxy.find_answering() == {"web1", "web2"})
        else:
            lb.run(back)

        assert (haproxy.find_answering(), lb.text) == ({"web1", "web2"}, before)
        assert not any(entry["reloaded"] for entry in lb.history())


def test_a_pause_that_cannot_be_stored_is_refused_and_a_later_one_is_done(binary: Path) -> None:
    with run_on_small_disk(binary) as (lb, haproxy):
        lb.join(make_member_line(1), make_member_line(2))
        with fill_disk(lb.state):
            output = lb.send_query("pause", "web2", 1).stdout.decode()
        assert output.startswith("refused: not stored: sync needed: ")
        assert output.endswith("; no new traffic reaches lb-iis/web2\n")

        assert lb.send_query("pause", "web2", 2).stdout == b"done\n"

        assert haproxy.find_answering() == {"web1"}
        assert lb.send_query("resume", "web2", 3).stdout == b"done\n"
        assert haproxy.find_answering() == {"web1", "web2"}


# --- a text that refers to the node -------------------------------------------------------------------------------


@pytest.mark.parametrize("refers", [USE_SERVER, TRACK, SRV_IS_UP], ids=["use-server", "track", "srv_is_up"])
def test_with_runtime_off_a_node_that_haproxy_cfg_refers_to_is_not_paused_yet(binary: Path, refers: str) -> None:
    with run_load_balancer(binary, OFF, later=refers) as (lb, haproxy):
        before = lb.text

        first, second = (lb.send_query("pause", "web1", ltime).stdout.decode() for ltime in (1, 2))

        assert (haproxy.find_answering(), lb.text, lb.list_staged()) == ({"web2"}, before, [])
        for output in (first, second):
            assert output.startswith(f"not applied yet: {HELD}")
            assert output.endswith("; no new traffic reaches lb-iis/web1\n")
        assert lb.members()["web1"]["pause"] is not None
        assert lb.send_query("resume", "web1", 3).stdout == b"done\n"
        assert haproxy.find_answering() == {"web1", "web2"}


def test_without_a_socket_a_node_that_haproxy_cfg_refers_to_keeps_serving_and_is_not_answered_done(
    binary: Path,
) -> None:
    config = CONFIG.replace("level admin", "level operator")
    with run_load_balancer(binary, config=config, later=USE_SERVER) as (lb, haproxy):
        before = lb.text

        first, second = (lb.send_query("pause", "web1", ltime).stdout.decode() for ltime in (1, 2))

        assert (haproxy.find_answering(), lb.text) == ({"web1", "web2"}, before)
        for output in (second, first):
            assert output.startswith(f"not applied yet: {HELD}")
            assert "no new traffic" not in output


def test_with_an_admin_socket_the_pause_of_a_referred_node_is_done(binary: Path) -> None:
    with run_load_balancer(binary, later=USE_SERVER) as (lb, haproxy):
        assert [lb.send_query("pause", "web1", ltime).stdout for ltime in (1, 2)] == [b"done\n", b"done\n"]
        assert haproxy.find_answering() == {"web2"}
        assert not any(entry["reloaded"] for entry in lb.history())
        assert lb.send_query("resume", "web1", 3).stdout == b"done\n"
        assert haproxy.find_answering() == {"web1", "web2"}


@pytest.mark.parametrize("roles", [ROLES, OFF], ids=["runtime", "reload"])
@pytest.mark.parametrize("refers", [USE_SERVER, TRACK, SRV_IS_UP], ids=["use-server", "track", "srv_is_up"])
def test_after_a_reload_by_another_process_the_node_is_paused_again(binary: Path, refers: str, roles: str) -> None:
    with run_load_balancer(binary, roles, later=refers) as (lb, haproxy), run_watch(lb):
        lb.send_command("pause", "web1", 1)
        wait_until(lambda: lb.idle and haproxy.servers()["web1"].startswith("MAINT"))

        for _ in range(2):
            reload_haproxy(haproxy)
            wait_until(lambda: haproxy.servers()["web1"].startswith("MAINT"))

        assert haproxy.find_answering() == {"web2"}
        lb.send_command("resume", "web1", 2)
        wait_until(lambda: haproxy.find_answering() == {"web1", "web2"})


def test_a_reload_for_another_node_does_not_bring_a_paused_node_back(binary: Path) -> None:
    with run_load_balancer(binary, OFF, later=USE_SERVER) as (lb, haproxy), Backend("web3", "127.0.0.13", lb.port):
        lb.send_command("pause", "web1", 1)

        assert lb.join(make_member_line(3)).returncode == 0  # although web1 is in quarantine

        assert haproxy.find_answering() == {"web2", "web3"}


# --- a line that HAProxy refuses ----------------------------------------------------------------------------------

TAGGED = ROLES.replace("{{port: {port}}}", '{{port: {port}, options: "check weight {{tag:weight|100}}"}}')


@pytest.mark.parametrize(
    "roles", [TAGGED, TAGGED.replace("haproxy:\n", "haproxy:\n  runtime: off\n")], ids=["on", "off"]
)
def test_a_resume_whose_line_is_refused_is_not_applied_yet(binary: Path, roles: str) -> None:
    with run_load_balancer(binary, roles) as (lb, haproxy):
        assert lb.send_query("pause", "web1", 1).stdout == b"done\n"
        lb.handle("member-update", make_member_line(1, weight="300"))
        before = lb.text

        first, second = (lb.send_query("resume", "web1", ltime).stdout.decode() for ltime in (2, 3))

        for output in (first, second):
            assert output.startswith("not applied yet: web1: HAProxy refuses its line: ")
        assert (lb.text, haproxy.find_answering()) == (before, {"web2"})
        assert lb.send_query("pause", "web2", 4).stdout.startswith(b"done")
        assert lb.send_query("resume", "web2", 5).stdout == b"done\n"
        lb.handle("member-update", make_member_line(1, weight="30"))
        assert lb.send_query("resume", "web1", 6).stdout == b"done\n"
        assert haproxy.find_answering() == {"web1", "web2"}


def test_a_pause_waits_while_roles_yml_is_missing(binary: Path) -> None:
    with run_load_balancer(binary) as (lb, haproxy):
        roles = lb.roles.read_text()
        lb.roles.unlink()
        text = lb.text

        output = [lb.send_query("pause", "web1", 1).stdout.decode(), lb.run("pause", "web1", "--force").stdout.decode()]

        for words in output:
            assert f"not applied yet: {lb.roles}: cannot be read: No such file or directory\n" in words
        assert lb.text == text
        lb.roles.write_text(roles)
        assert lb.run("apply").returncode == 0
        assert (lb.managed[0], haproxy.find_answering()) == ("# lbagent paused web1 127.0.0.11 role=web", {"web2"})


def test_a_pause_waits_after_a_failed_reload(binary: Path) -> None:
    with run_load_balancer(binary, OFF) as (lb, haproxy):
        text = lb.text
        lb.roles.write_text(lb.roles.read_text().replace("haproxy:\n", "haproxy:\n  reload: [/bin/false]\n"))

        output = lb.send_query("pause", "web1", 1).stdout.decode()

        assert output.startswith("not applied yet: /bin/false ended with 1")
        assert output.endswith("; no new traffic reaches lb-iis/web1\n")
        assert (lb.text, haproxy.find_answering()) == (text, {"web2"})


def test_a_pause_waits_while_haproxy_refuses_haproxy_cfg(binary: Path) -> None:
    with run_load_balancer(binary) as (lb, haproxy):
        lb.text = broken = lb.text.replace(b"balance", b"balanse")

        output = lb.send_query("pause", "web1", 1).stdout.decode()

        assert output.startswith(
            "not applied yet: haproxy.cfg is invalid, not because of lbagent; nothing was changed: "
        )
        assert output.endswith("; no new traffic reaches lb-iis/web1\n")
        assert (lb.text, haproxy.find_answering()) == (broken, {"web2"})


# --- sessions that maintenance would cut --------------------------------------------------------------------------

TCP = CONFIG.replace("mode http", "mode tcp").replace("    option idle-close-on-response\n    option httpclose\n", "")
TCP = TCP.replace("client 10s", "client 1h").replace("server 10s", "server 1h")  # no session ends by being idle
CUTS = ROLES.replace("{{port: {port}}}", '{{port: {port}, options: "check on-marked-down shutdown-sessions"}}')
BY_DEFAULT = TCP.replace("    # add", "    default-server on-marked-down shutdown-sessions\n    # add")
VARIABLE = BY_DEFAULT.replace("global\n", "global\n    presetenv NAME lb-iis\n").replace(
    "listen lb", 'listen "${{NAME}}" #'
)
CHAIN = BY_DEFAULT.replace("defaults\n", "defaults base\n    default-server on-marked-down shutdown-sessions\n")
CHAIN = CHAIN.replace(
    "listen lb-iis", "defaults more from base\n    default-server inter 1s\n\nlisten lb-iis from more"
)
CHAIN = CHAIN.replace("    default-server on-marked-down shutdown-sessions\n    # add", "    # add")


@pytest.mark.parametrize(
    ("config", "roles"),
    [(TCP, CUTS), (BY_DEFAULT, ROLES), (VARIABLE, ROLES), (CHAIN, ROLES)],
    ids=["options", "default-server", "variable", "defaults-chain"],
)
@pytest.mark.parametrize("runtime", ["on", "off"])
@pytest.mark.parametrize("how", ["pause", "leave"])
def test_open_sessions_finish_where_maintenance_would_cut_them(
    binary: Path,
    config: str,
    roles: str,
    runtime: str,
    how: str,
) -> None:
    roles = roles if runtime == "on" else roles.replace("haproxy:\n", "haproxy:\n  runtime: off\n")
    roles = roles.replace("interval: 200ms", "interval: 5s")  # the connection of a check counts as a session
    config = config.replace("    hard-stop-after 2s\n", "")
    with (
        LoadBalancer(config, roles, binary) as lb,
        Haproxy(lb) as haproxy,
        socket.create_server(("127.0.0.11", lb.port)) as service,
    ):
        lb.join(make_member_line(1))
        with socket.create_connection(("127.0.0.1", lb.front)) as client:
            client.sendall(b"hello")
            server, _ = service.accept()
            while server.recv(9) != b"hello":  # it was a check
                server, _ = service.accept()
            with server, Backend("web2", "127.0.0.12", lb.port):
                lb.join(make_member_line(2))
                changed = lb.send_query("pause", "web1", 1) if how == "pause" else lb.leave(make_member_line(1))
                client.sendall(b"more")
                assert server.recv(9) == b"more"
                server.sendall(b"bye")
                assert client.recv(9) == b"bye"
                answer = b"done, 1 session still open\n" if how == "pause" else b""
                assert (changed.returncode, changed.stdout) == (0, answer)
                assert "web1" not in haproxy.find_answering()
                assert (
                    lb.send_command("resume", "web1", 2).returncode == 0
                    if how == "pause"
                    else lb.join(make_member_line(1)).returncode == 0
                )
        assert [line.split()[1] for line in lb.managed] == ["web1", "web2"]
        wait_until(lambda: haproxy.servers()["web1"].split()[0] == "UP")
        assert haproxy.reloads() == (0, 0) or (runtime, "shutdown-sessions" in roles) != ("on", True)


# --- operator's lines with the address of the node ----------------------------------------------------------------

OPERATOR = "in listen lb-iis: HAProxy's server op has its address, pauses do not affect it\n"


@pytest.mark.parametrize(
    ("address", "roles"),
    [
        ('"${WHERE}:PORT"', ROLES),
        ('"$WHERE":PORT', OFF),
        ('"${LATER}:PORT"', ROLES),
        ("ipv4@localhost:PORT", ROLES),
        ("ipv4@127.0.0.11:PORT", ROLES),
    ],
)
def test_a_pause_is_not_done_while_an_operators_server_has_the_address(
    binary: Path, address: str, roles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy knows the address of a line with a variable or a host name; haproxy.cfg alone does not show it."""
    node = "127.0.0.1" if "localhost" in address else "127.0.0.11"
    with LoadBalancer(CONFIG, roles, binary) as lb, Backend("web1", node, lb.port):
        text = lb.text.decode().replace("global\n", f"global\n    setenv LATER {node}\n")
        lb.text = (text + f"    server op {address.replace('PORT', str(lb.port))}\n").encode()
        monkeypatch.setenv("WHERE", node)
        with Haproxy(lb) as haproxy:
            monkeypatch.delenv("WHERE")
            lb.join(member_line("web1", node))

            paused = lb.send_query("pause", "web1", 1).stdout.decode()
            again = lb.send_query("pause", "web1", 2).stdout.decode()

            assert haproxy.find_answering(4) == {"web1"}
            if "127.0.0.11" in address or "LATER" in address:  # the text shows it
                assert paused.endswith("an operator's line has its name or address, pauses do not affect it\n")
            else:
                assert {paused, again} == {f"not applied yet: web1: {OPERATOR}"}
                haproxy.send("set server lb-iis/op state maint")
                assert lb.send_query("pause", "web1", 3).stdout.startswith(b"done")


def test_a_pause_without_a_stats_socket_reads_an_operators_address_as_the_running_haproxy_does(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.replace("    stats socket {socket} mode 600 level admin expose-fd listeners\n", "")
    with LoadBalancer(config, binary=binary) as lb, Backend("web1", "127.0.0.11", lb.port):
        lb.text += f'    server op "${{WHERE}}:{lb.port}"\n'.encode()
        monkeypatch.setenv("WHERE", "127.0.0.11")
        with Haproxy(lb) as haproxy:
            monkeypatch.delenv("WHERE")
            lb.join(member_line("web1", "127.0.0.11"))

            paused = lb.send_query("pause", "web1", 1).stdout.decode()

            assert haproxy.find_answering(4) == {"web1"}
            assert paused == f"not applied yet: web1: {OPERATOR}"


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_pause_that_is_stored_although_the_lock_cannot_be_opened_is_not_refused(binary: Path, kind: str) -> None:
    with run_load_balancer(binary) as (lb, haproxy):
        lock = lb.state / "lock"
        lock.unlink()
        lock.mkdir() if kind == "directory" else lock.symlink_to(lb.folder / "none" / "lock")

        assert lb.send_query("pause", "web1", 1).stdout.startswith(f"not applied yet: {lock}: ".encode())
        assert f"error    state: {lock}: not a file; no event takes effect; " in lb.run("check").stdout.decode()
        wait_until(lambda: haproxy.find_answering() == {"web1", "web2"})
        lock.rmdir() if kind == "directory" else lock.unlink()
        assert lb.run("apply").returncode == 0
        wait_until(lambda: haproxy.find_answering() == {"web2"})
