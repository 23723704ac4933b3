"""Workers from before a reload that long sessions keep alive are in `status` and in the metrics."""

from __future__ import annotations

import json

import pytest

from tests.helpers.real_programs import Haproxy, LoadBalancer, member_line, wait_until
from tests.helpers.tcp_sessions import CONFIG, ROLES, open_sessions, run_echo_servers

pytestmark = [pytest.mark.real, pytest.mark.every_haproxy]

RELOADING = ROLES.replace("haproxy:\n", "haproxy:\n  runtime: off\n")
ADDRESSES = [f"127.0.0.{number}" for number in range(11, 17)]


def make_member_line(number: int) -> bytes:
    return member_line(f"db{number}", ADDRESSES[number], "db")


def read_old_workers(lb: LoadBalancer) -> tuple[int | None, list[str], list[str]]:
    """Return the old workers in `status --json`, `status` and metrics.prom."""
    as_json = json.loads(lb.run("status", "--json").stdout)
    below = [line for line in lb.run("status").stdout.decode().splitlines() if line.startswith("old workers")]
    metrics = (lb.state / "metrics.prom").read_text().splitlines()
    return as_json["old_workers"], below, [line for line in metrics if line.startswith("lbagent_old_workers")]


def format_row(number: int) -> str:
    return f"old workers: {number}, until the connections from before the reload have ended"


def test_old_workers_are_counted_until_their_last_session_ends() -> None:
    with LoadBalancer(CONFIG, RELOADING) as lb, Haproxy(lb), run_echo_servers(ADDRESSES, lb.port):
        lb.join(make_member_line(0))
        wait_until(lambda: read_old_workers(lb)[0] == 0)  # the first worker takes a moment to end
        lb.run("apply")
        assert read_old_workers(lb) == (0, [], ["lbagent_old_workers 0"])

        with open_sessions(lb.front, 1) as (first,):
            lb.join(make_member_line(1))
            with open_sessions(lb.front, 1) as (second,):
                lb.join(make_member_line(2))
                assert read_old_workers(lb) == (2, [format_row(2)], ["lbagent_old_workers 2"])
                assert (first.is_alive(), second.is_alive()) == (True, True)
            wait_until(lambda: read_old_workers(lb)[:2] == (1, [format_row(1)]))
        wait_until(lambda: read_old_workers(lb)[:2] == (0, []))
        lb.run("apply")
        assert read_old_workers(lb)[2] == ["lbagent_old_workers 0"]


def test_without_haproxy_there_are_no_old_workers() -> None:
    with LoadBalancer(CONFIG, RELOADING) as lb:
        lb.join(make_member_line(0))

        assert read_old_workers(lb) == (None, [], [])


def test_sessions_survive_changes_without_a_reload() -> None:
    with LoadBalancer(CONFIG, ROLES) as lb, Haproxy(lb) as haproxy, run_echo_servers(ADDRESSES, lb.port):
        lb.join(*map(make_member_line, range(3)))
        reloads = haproxy.reloads()
        with open_sessions(lb.front, 6) as sessions:
            assert {session.server for session in sessions} == set(ADDRESSES[:3])

            for number in (3, 4, 5):
                lb.join(make_member_line(number))
            for number in (0, 1, 3):
                lb.leave(make_member_line(number))
            lb.send_command("pause", "db2", 1)

            assert [session.is_alive() for session in sessions] == 6 * [True]
            assert (haproxy.reloads(), read_old_workers(lb)) == (reloads, (0, [], ["lbagent_old_workers 0"]))
            with open_sessions(lb.front, 6) as fresh:
                assert {session.server for session in fresh} == {ADDRESSES[4], ADDRESSES[5]}
