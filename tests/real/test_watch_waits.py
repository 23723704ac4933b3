"""A daemon that cannot do its work keeps running without load, and continues as soon as it can."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from lbagent.daemon import file_watcher
from lbagent.daemon.daemon import Daemon
from lbagent.daemon.file_watcher import FileWatcher
from lbagent.settings import Settings
from lbagent.state.lock import acquire_lock
from lbagent.state.spool import Mark, Spool
from lbagent.system.log import Log
from tests.helpers.daemon import run_watch
from tests.helpers.faults import replace_haproxy
from tests.helpers.real_programs import (
    RELOADING,
    Haproxy,
    LoadBalancer,
    SerfAgent,
    deletes_servers,
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


def measure_seconds(count: Callable[[], int], more: int) -> float:
    """Return the seconds until `count` has grown by `more`. A daemon that never waits needs hundredths of a second."""
    begin, before = time.monotonic(), count()
    wait_until(lambda: count() >= before + more)
    return time.monotonic() - begin


def damage_roles(lb: LoadBalancer) -> str:
    """Make roles.yml invalid; returns the previous text."""
    good = lb.roles.read_text()
    lb.roles.write_text(f"{good}\nnonsense: [\n")
    return good


def test_a_pause_that_ends_while_roles_yml_is_refused_does_not_keep_the_daemon_busy(lb: LoadBalancer) -> None:
    lb.join(WEB01)
    lb.send_command("pause", "web01 for=5s", 1)
    end = lb.members()["web01"]["pause"].until
    good = damage_roles(lb)
    with run_watch(lb) as daemon:
        wait_until(lambda: time.time() > end + 1)
        assert measure_seconds(lambda: daemon.rounds, 3) > 1  # attempts are made after 1, 2, 4 … seconds
        assert lb.managed == ["# lbagent paused web01 127.0.0.11 role=web"]

        lb.roles.write_text(good)
        wait_until(lambda: lb.managed == [lb.server("web01", "127.0.0.11")])


@pytest.mark.every_haproxy
def test_a_waiting_reload_does_not_keep_the_daemon_busy_once_the_text_is_invalid() -> None:
    roles = RELOADING.replace("runtime: off", "runtime: off\n  min_reload_interval: 2s")
    with LoadBalancer(roles=roles) as lb, Haproxy(lb) as haproxy, run_watch(lb):
        lb.count_checks()
        lb.join(WEB01)
        wait_until(lambda: haproxy.reloads() == (1, 0))
        lb.join(WEB02)
        wait_until(lambda: len(lb.managed) == 2 and lb.idle)
        good, checks = lb.text, lb.checks
        lb.text = good.replace(b"balance", b"balanse")
        wait_until(lambda: lb.checks > checks)
        # An attempt takes six at most, and attempts are made after 1, 2, 4 … seconds.
        assert measure_seconds(lambda: lb.checks, 15) > 2

        lb.text = good
        wait_until(lambda: haproxy.find_serving() == {"web01", "web02"})


def test_an_edit_during_a_run_is_applied(lb: LoadBalancer) -> None:
    with run_watch(lb):
        gate = lb.hold_checks()
        lb.join(WEB01)
        wait_until(lambda: lb.staged_checks == 1)
        lb.roles.write_text(lb.roles.read_text().replace("interval: 200ms", "interval: 300ms"))
        gate.touch()

        wait_until(lambda: lb.managed == [lb.server("web01", "127.0.0.11").replace("200ms", "300ms")])


def test_a_refused_roles_yml_does_not_end_the_daemon_where_serf_answers(lb: LoadBalancer) -> None:
    with SerfAgent("lb01", "127.0.0.5", "lb") as agent, run_watch(lb, SERF_RPC_ADDR=agent.rpc) as daemon:
        before, good = daemon.rounds, damage_roles(lb)
        wait_until(lambda: daemon.rounds > before)
        daemon.send_signal(signal.SIGHUP)  # a sync is due
        before = daemon.rounds
        wait_until(lambda: daemon.rounds > before + 1)
        assert daemon.poll() is None

        lb.join(WEB01)
        assert lb.managed == []
        lb.roles.write_text(good)
        wait_until(lambda: lb.is_settled(lb.server("web01", "127.0.0.11")))


def test_a_removed_state_directory_is_created_again(lb: LoadBalancer) -> None:
    with run_watch(lb) as daemon:
        gone = lb.state.rename(lb.folder / "gone")  # at once: the daemon writes files meanwhile
        shutil.rmtree(gone, ignore_errors=True)
        daemon.send_signal(signal.SIGHUP)
        wait_until((lb.state / "spool").is_dir)

        lb.join(WEB01)

        wait_until(lambda: lb.is_settled(lb.server("web01", "127.0.0.11")))
        assert daemon.poll() is None


def test_a_join_is_applied_while_a_hundred_undeleted_servers_wait_for_a_failing_reload(lb: LoadBalancer) -> None:
    if deletes_servers(lb.binary):
        pytest.skip("this HAProxy deletes removed servers")
    many = [member_line(f"n{number:03}", f"127.0.2.{number + 1}") for number in range(101)]
    lb.join(WEB01, *many)
    lb.leave(*many[:99])
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        bind = f"    bind 127.0.0.1:{busy.getsockname()[1]}\n    balance".encode()
        lb.text = lb.text.replace(b"    balance", bind)
        lb.leave(*many[99:])  # the hundredth: the reload is tried, and fails
        assert (lb.served() or {})["failure"]["times"] == 1
        with run_watch(lb) as daemon:
            lb.join(WEB02)

            wait_until(lambda: lb.is_settled(lb.server("web01", "127.0.0.11"), lb.server("web02", "127.0.0.12")))
            before, rounds = lb.cfg.stat(), daemon.rounds
            daemon.send_signal(signal.SIGHUP)
            wait_until(lambda: daemon.rounds > rounds)
            assert lb.cfg.stat() == before
    assert (lb.served() or {})["failure"]["times"] == 1


def test_an_event_that_arrives_just_after_the_last_run_is_new(
    lb: LoadBalancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, **lb.env})
    lb.run("apply")
    looks = 0
    real = Spool.list_marks

    def marks(spool: Spool) -> frozenset[Mark]:
        nonlocal looks
        looks += 1
        found = real(spool)
        if looks == 2:  # once before the run, once after it
            lb.join(WEB01)
        return found

    with FileWatcher() as watcher, acquire_lock(str(lb.state / "watch.lock")):
        daemon = Daemon(Settings(str(lb.roles), str(lb.state)), Log(), watcher)
        monkeypatch.setattr(Spool, "list_marks", marks)
        daemon._run_round()
        monkeypatch.setattr(Spool, "list_marks", real)

        assert (len(lb.list_spool()), daemon._has_work()) == (1, True)


def test_each_stored_event_wakes_the_daemon_when_it_can_be_read(lb: LoadBalancer) -> None:
    lb.join()  # creates the state directory
    spool = Spool(str(lb.state / "spool"), 1000)
    with FileWatcher() as watcher:
        watcher.watch_folders([], spool.folder)
        for number in range(200):
            name = spool.store(b"an event")

            while watcher.wait(30) and name not in spool.list_names():
                pass

            assert spool.list_names() == [name], number
            spool.remove([name])
            watcher.wait(0)


def test_without_inotify_the_daemon_polls_each_second(lb: LoadBalancer, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise OSError(24, "inotify instance limit reached")

    monkeypatch.setattr(file_watcher, "Observer", none_left)
    with FileWatcher() as watcher:
        watcher.watch_folders([str(lb.state)])
        assert not watcher.wait(0.01)
        watcher.wake()
        assert watcher.wait(1)


def test_a_failed_reload_recorded_with_a_future_time_is_tried_again(lb: LoadBalancer) -> None:
    lb.join(WEB01)
    replace_haproxy(lb, 'exec "$real" "$@"')
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        bind = f"    bind 127.0.0.1:{busy.getsockname()[1]}\n    balance".encode()
        lb.text = lb.text.replace(b"    balance", bind)
        lb.roles.write_text(lb.roles.read_text().replace("200ms", "300ms"))
        assert lb.run("apply").returncode == 5
    served = lb.state / "served.json"
    at = (lb.served() or {})["failure"]["at"]
    assert lb.run("apply").returncode == 5

    served.write_text(served.read_text().replace(f'"at": {at}', f'"at": {at + 86400}'))

    assert lb.run("apply").returncode == 0
    assert lb.managed == [lb.server("web01", "127.0.0.11").replace("200ms", "300ms")]


def test_a_failed_sync_is_tried_again_within_a_minute(lb: LoadBalancer) -> None:
    agent, node = SerfAgent("lb01", "127.0.0.5", "lb"), SerfAgent("web01", "127.0.0.11", "web")
    with agent, node:
        agent.kill()
        with run_watch(lb, SERF_RPC_ADDR=agent.rpc):
            agent.start()
            node.join(agent)

            wait_until(lambda: lb.is_settled(lb.server("web01", "127.0.0.11")), 40)


@pytest.mark.every_haproxy
def test_a_shorter_interval_between_reloads_takes_effect_at_once() -> None:
    roles = RELOADING.replace("runtime: off", "runtime: off\n  min_reload_interval: 1h")
    with LoadBalancer(roles=roles) as lb, Haproxy(lb) as haproxy, run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: haproxy.reloads() == (1, 0))
        lb.join(WEB02)
        wait_until(lambda: len(lb.managed) == 2 and lb.idle)
        assert haproxy.reloads() == (1, 0)

        lb.roles.write_text(lb.roles.read_text().replace("interval: 1h", "interval: 1s"))

        wait_until(lambda: haproxy.find_serving() == {"web01", "web02"})


def test_sigterm_ends_the_daemon_during_a_run_of_another_process(lb: LoadBalancer) -> None:
    with run_watch(lb) as daemon, acquire_lock(str(lb.state / "lock")) as had:
        assert had
        daemon.send_signal(signal.SIGHUP)
        wait_until(lambda: any(notice.startswith(b"RELOADING=1\n") for notice in daemon.notices))  # a round has begun

        daemon.terminate()

        assert daemon.wait(10) == 0
