"""The daemon applies events, edits and expired pauses with real HAProxy and Serf, and obeys signals and systemd."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbagent.haproxy.config import Document
from tests.helpers.daemon import run_watch
from tests.helpers.pair import HANDLER
from tests.helpers.real_programs import (
    PATIENCE,
    RELOADING,
    Haproxy,
    LoadBalancer,
    SerfAgent,
    is_pending,
    member_line,
    wait_until,
)

pytestmark = pytest.mark.real

WEB01, WEB02 = member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12")


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer whose HAProxy runs."""
    with LoadBalancer() as one, Haproxy(one):
        yield one


def make_line(lb: LoadBalancer) -> str:
    """Return the line of web01."""
    return lb.server("web01", "127.0.0.11")


def test_handle_only_stores_an_event_and_the_daemon_applies_it(lb: LoadBalancer) -> None:
    with run_watch(lb):
        gate = lb.hold_checks()

        done = lb.join(WEB01)

        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        wait_until(lambda: lb.staged_checks == 1)  # not by handle, which has ended
        gate.touch()
        wait_until(lambda: lb.is_settled(make_line(lb)))
    assert [entry["why"] for entry in lb.history()] == ["member-join web01"]


def test_many_events_take_few_runs(lb: LoadBalancer) -> None:
    with run_watch(lb):
        gate = lb.hold_checks()
        lb.join(WEB01)
        wait_until(lambda: lb.staged_checks == 1)
        for number in range(2, 22):
            assert lb.join(member_line(f"web{number:02}", f"127.0.1.{number}")).returncode == 0
        gate.touch()

        wait_until(lambda: len(lb.managed) == 21 and lb.idle)

    assert lb.staged_checks == 2
    assert [entry["why"].count("member-join") for entry in lb.history()] == [1, 20]


def test_members_of_serf_are_applied_at_the_start(lb: LoadBalancer) -> None:
    with SerfAgent("lb01", "127.0.0.9", "lb") as agent, SerfAgent("web01", "127.0.0.11", "web") as web:
        web.join(agent)
        wait_until(lambda: "web01" in agent.members())

        with run_watch(lb, SERF_RPC_ADDR=agent.rpc):
            wait_until(lambda: lb.is_settled(make_line(lb)))

    assert [entry["why"] for entry in lb.history()] == ["sync: member-join web01"]


def test_a_node_of_a_real_agent_joins_and_leaves(lb: LoadBalancer) -> None:
    with (
        SerfAgent("lb01", "127.0.0.9", "lb", handler=HANDLER, env=lb.env) as agent,
        run_watch(lb, SERF_RPC_ADDR=agent.rpc),
        SerfAgent("web01", "127.0.0.11", "web") as web,
    ):
        web.join(agent)
        wait_until(lambda: lb.is_settled(make_line(lb)))
        web.leave()
        wait_until(lb.is_settled)


def test_events_do_not_wait_for_another_load_balancer_to_answer(lb: LoadBalancer) -> None:
    asked, real = lb.folder / "asked", shutil.which("serf")
    serf = lb.bin / "serf"
    serf.write_text(f'#!/bin/sh\n[ "$1" != query ] || {{ echo $$ >> {asked}; exec sleep 60; }}\nexec {real} "$@"\n')
    serf.chmod(0o755)
    with SerfAgent("lb01", "127.0.0.9", "lb") as agent, SerfAgent("lb02", "127.0.0.10", "lb") as other:
        other.join(agent)
        wait_until(lambda: "lb02" in agent.members())
        with run_watch(lb, SERF_RPC_ADDR=agent.rpc):
            wait_until(asked.exists)

            lb.join(WEB01)

            wait_until(lambda: lb.is_settled(make_line(lb)))
            assert Path(f"/proc/{asked.read_text().split()[-1]}").exists()  # it is still waiting


# --- edits --------------------------------------------------------------------------------------------------------


def edit_in_place(path: Path, content: str) -> None:
    path.write_text(content)


def edit_by_rename(path: Path, content: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(content)
    beside.rename(path)


def edit_in_steps(path: Path, content: str) -> None:
    with path.open("w") as file:
        for at in range(0, len(content), len(content) // 3 + 1):
            file.write(content[at : at + len(content) // 3 + 1])
            file.flush()
            time.sleep(0.05)


def edit_by_deletion(path: Path, content: str) -> None:
    path.unlink()
    time.sleep(0.05)
    path.write_text(content)


@pytest.mark.parametrize("edit", [edit_in_place, edit_by_rename, edit_in_steps, edit_by_deletion])
def test_an_edit_of_roles_yml_is_applied(lb: LoadBalancer, edit: Callable[[Path, str], None]) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))

        edit(lb.roles, lb.roles.read_text().replace("200ms", "300ms"))

        wait_until(lambda: lb.is_settled(make_line(lb).replace("200ms", "300ms")))


@pytest.mark.parametrize("edit", [edit_in_place, edit_by_rename, edit_in_steps, edit_by_deletion])
def test_an_edit_of_haproxy_cfg_is_applied(lb: LoadBalancer, edit: Callable[[Path, str], None]) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))

        edit(lb.cfg, lb.cfg.read_text() + "\nbackend second\n    # additional-lb-iis-server\n")

        wait_until(lambda: lb.is_settled(make_line(lb), make_line(lb)))


def test_a_changed_link_is_an_edit(lb: LoadBalancer) -> None:
    # As Kubernetes mounts a ConfigMap: roles.yml -> ..data/roles.yml, ..data -> ..1
    for number, interval in (("..1", "200ms"), ("..2", "300ms")):
        (lb.etc / number).mkdir()
        (lb.etc / number / "roles.yml").write_text(lb.roles.read_text().replace("200ms", interval))
    (lb.etc / "..data").symlink_to("..1")
    lb.roles.unlink()
    lb.roles.symlink_to("..data/roles.yml")
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))

        (lb.etc / "..next").symlink_to("..2")
        (lb.etc / "..next").rename(lb.etc / "..data")

        wait_until(lambda: lb.is_settled(make_line(lb).replace("200ms", "300ms")))


def test_the_daemon_waits_for_a_missing_folder(lb: LoadBalancer) -> None:
    away = lb.folder / "away"
    shutil.move(lb.etc, away)
    with run_watch(lb):
        shutil.move(away, lb.etc)

        lb.join(WEB01)

        wait_until(lambda: lb.is_settled(make_line(lb)))


# --- time ---------------------------------------------------------------------------------------------------------


def test_an_expired_pause_ends_by_itself(lb: LoadBalancer) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        lb.send_command("pause", "web01 for=10s", 1)
        wait_until(lambda: lb.is_settled("# lbagent paused web01 127.0.0.11 role=web"))

        wait_until(lambda: lb.is_settled(make_line(lb)))

    assert lb.members()["web01"]["pause"] is None


def test_a_failed_run_is_tried_again(lb: LoadBalancer) -> None:
    with run_watch(lb) as process:
        haproxy = lb.bin / "haproxy"
        haproxy.unlink()
        haproxy.write_text("#!/nowhere/sh\n")
        haproxy.chmod(0o755)
        rounds = process.rounds
        lb.join(WEB01)
        wait_until(lambda: process.rounds > rounds + 1)
        assert (process.poll(), lb.managed) == (None, [])

        lb.use_haproxy(lb.binary)

        wait_until(lambda: lb.is_settled(make_line(lb)))


# --- signals ------------------------------------------------------------------------------------------------------


def test_the_daemon_outlives_a_spool_that_cannot_be_read(lb: LoadBalancer) -> None:
    spool = lb.state / "spool"
    with lb.start("watch") as daemon:
        try:
            wait_until(lambda: (lb.state / "metrics.prom").exists() and lb.idle)
            spool.rmdir()
            spool.write_text("not a directory")
            assert daemon.stderr
            assert any(line.startswith(f"lbagent: {spool}: ".encode()) for line in daemon.stderr)
            spool.unlink()
            lb.join(WEB01)

            wait_until(lambda: lb.is_settled(make_line(lb)))
            assert daemon.poll() is None
        finally:
            daemon.terminate()
    assert daemon.returncode == 0


def test_sigterm_lets_the_current_change_finish(lb: LoadBalancer) -> None:
    with run_watch(lb) as process:
        gate = lb.hold_checks()
        lb.join(WEB01)
        wait_until(lambda: lb.staged_checks == 1)

        process.terminate()
        wait_until(lambda: not is_pending(process.pid, signal.SIGTERM))
        under_way = process.poll()
        gate.touch()

        assert (under_way, process.wait(PATIENCE)) == (None, 0)
        assert (lb.managed, lb.list_staged(), lb.history()[-1]["outcome"]) == ([make_line(lb)], [], "applied")


def test_handle_applies_events_while_the_daemon_hangs(lb: LoadBalancer) -> None:
    with run_watch(lb) as process:
        process.send_signal(signal.SIGSTOP)
        lb.join(WEB01)
        at_once = lb.managed
        [event] = (lb.state / "spool").iterdir()
        os.utime(event, (time.time() - 6,) * 2)

        lb.join(WEB02)

        assert at_once == []
        assert lb.managed == [make_line(lb), lb.server("web02", "127.0.0.12")]
        process.send_signal(signal.SIGCONT)
        lb.leave(WEB01)
        wait_until(lambda: lb.is_settled(lb.server("web02", "127.0.0.12")))


def test_sighup_makes_the_daemon_read_everything_again(lb: LoadBalancer) -> None:
    with (
        SerfAgent("lb01", "127.0.0.9", "lb") as agent,
        run_watch(lb, SERF_RPC_ADDR=agent.rpc) as process,
        SerfAgent("web01", "127.0.0.11", "web") as web,
    ):
        web.join(agent)
        wait_until(lambda: "web01" in agent.members())

        process.send_signal(signal.SIGHUP)

        wait_until(lambda: lb.is_settled(make_line(lb)))


def test_a_second_daemon_refuses_to_start(lb: LoadBalancer) -> None:
    with run_watch(lb) as first:
        second = lb.run("watch")

        messages = f"lbagent: {lb.state}/watch.lock: another `lbagent watch` is running; stop one of the two\n"
        assert (second.returncode, second.stderr.decode()) == (6, messages)
        assert first.poll() is None


# --- systemd ------------------------------------------------------------------------------------------------------


def test_systemd_receives_the_state_of_the_daemon(lb: LoadBalancer) -> None:
    path = str(lb.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(path)
        ear.settimeout(PATIENCE)
        messages: list[str] = []

        def heard(word: str) -> bool:
            until = time.monotonic() + PATIENCE
            while not any(word in one for one in messages) and time.monotonic() < until:
                messages.append(ear.recv(4096).decode())
            return any(word in one for one in messages)

        with run_watch(lb, NOTIFY_SOCKET=path, WATCHDOG_USEC="200000") as process:
            assert heard("READY=1\nSTATUS=unchanged: nothing to do")
            messages.clear()
            assert heard("WATCHDOG=1")
            lb.join(WEB01)
            assert heard("STATUS=applied: 1 line added, 0 removed; applied to HAProxy (worker ")
            messages.clear()
            process.send_signal(signal.SIGHUP)
            assert heard("RELOADING=1\nMONOTONIC_USEC=")
            assert heard("READY=1")
            process.terminate()
            assert heard("STOPPING=1")


def test_systemd_receives_watchdog_messages_while_haproxy_is_slow(lb: LoadBalancer) -> None:
    path = str(lb.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear, run_watch(lb, NOTIFY_SOCKET=path):
        gate = lb.hold_checks()
        lb.join(WEB01)
        wait_until(lambda: lb.staged_checks == 1)
        ear.bind(path)
        ear.settimeout(PATIENCE)

        messages = [ear.recv(4096).decode() for _ in range(3)]

        gate.touch()
        assert messages == ["WATCHDOG=1\nEXTEND_TIMEOUT_USEC=30000000"] * 3


def test_a_watchdog_of_another_process_is_ignored(lb: LoadBalancer) -> None:
    path = f"\0lbagent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(path)
        ear.settimeout(PATIENCE)
        with run_watch(lb, NOTIFY_SOCKET=f"@{path[1:]}", WATCHDOG_USEC="1", WATCHDOG_PID="1"):
            while not ear.recv(4096).startswith(b"READY=1"):
                pass


# --- reloads ------------------------------------------------------------------------------------------------------


@pytest.mark.every_haproxy
def test_a_burst_takes_one_reload_per_interval_and_is_applied_completely() -> None:
    roles = RELOADING.replace("  timeout: 15s\n", "  timeout: 15s\n  min_reload_interval: 2s\n")
    with LoadBalancer(roles=roles) as lb, Haproxy(lb) as haproxy, run_watch(lb):
        lb.join(*(member_line(f"web{number:02}", f"127.0.1.{number}") for number in range(1, 21)))
        wait_until(lambda: len(lb.managed) == 20 and lb.idle)
        before, started = haproxy.reloads()[0], time.monotonic()

        for number in range(110):  # at the end, ten nodes are paused
            verb = ("pause", "resume")[number // 20 % 2]
            assert lb.send_command(verb, f"web{number % 20 + 1:02}", number + 1).returncode == 0
        took = time.monotonic() - started
        wait_until(lambda: sum(line.startswith("#") for line in lb.managed) == 10 and lb.idle)
        wait_until(lambda: haproxy.servers().keys() == {f"web{number:02}" for number in range(1, 11)})

        wait_until(lambda: (lb.served() or {})["digest"] == compute_digest(lb))
        assert 1 <= haproxy.reloads()[0] - before <= took / 2 + 2


def test_a_change_without_a_reload_does_not_wait_for_one(lb: LoadBalancer) -> None:
    with run_watch(lb):
        before = lb.history()
        for number in range(1, 6):
            lb.join(member_line(f"web{number:02}", f"127.0.1.{number}"))
            wait_until(functools.partial(_has_applied, lb, number))

    assert [entry["reloaded"] for entry in lb.history()[len(before) :]] == [False] * 5


def _has_applied(lb: LoadBalancer, count: int) -> bool:
    return len(lb.managed) == count and lb.idle


def compute_digest(lb: LoadBalancer) -> str:
    """Return the digest of the present managed lines."""
    return Document([("", lb.text.decode())]).compute_digest()
