"""Nodes that share an address with another node: HAProxy sends requests to the right one, in any order of events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.helpers.real_programs import ROLES, Backend, Haproxy, LoadBalancer, member_line, wait_until

pytestmark = [pytest.mark.real, pytest.mark.every_haproxy]

WEB01, WEB02 = member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.11")
WEB09 = member_line("web09", "127.0.0.19")


@contextlib.contextmanager
def run_load_balancer(roles: str = ROLES) -> Iterator[tuple[LoadBalancer, Haproxy]]:
    """Run HAProxy without servers."""
    with LoadBalancer(roles=roles) as lb, Haproxy(lb) as haproxy:
        yield lb, haproxy


def send_all(lb: LoadBalancer) -> None:
    """Handle the events of a paused host that was installed again under another name."""
    runs = [
        lb.join(WEB02),
        lb.send_command("pause", "web02", 5),
        lb.handle("member-failed", WEB02),
        lb.join(WEB01),
    ]
    assert [run.returncode for run in runs] == [0, 0, 0, 0]


def test_a_paused_host_has_one_comment_whether_its_events_come_singly_or_in_one_batch() -> None:
    with run_load_balancer() as (one, _), run_load_balancer() as (other, haproxy):
        one.join(WEB09)
        send_all(one)
        gate = other.hold_checks()
        with other.start_handle("member-join", WEB09) as first:
            wait_until(lambda: other.checks)
            send_all(other)  # stored: the first handler has the lock
            gate.touch()
            first.communicate()

        assert [line.replace(str(one.port), str(other.port)) for line in one.managed] == other.managed
        assert other.managed == ["# lbagent paused web01 127.0.0.11 role=web", other.server("web09", "127.0.0.19")]
        assert haproxy.find_serving() == {"web09"}
        assert (one.run("plan").returncode, other.run("plan").returncode) == (0, 0)


def test_a_node_of_another_role_gets_no_requests_of_a_failed_node_at_its_address() -> None:
    with (
        run_load_balancer(ROLES + "  db: {{lb: [none]}}\n") as (lb, haproxy),
        Backend("web02", "127.0.0.12", lb.port),
    ):
        lb.join(WEB01, member_line("web02", "127.0.0.12"))
        lb.handle("member-failed", WEB01)

        with Backend("db01", "127.0.0.11", lb.port):
            assert lb.join(member_line("db01", "127.0.0.11", "db")).returncode == 0

            assert haproxy.find_answering() == {"web02"}
            assert lb.managed == [lb.server("web02", "127.0.0.12")]
