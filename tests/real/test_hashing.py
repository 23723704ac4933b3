"""With `balance source` clients keep their server over joins, returns and reloads, and on both load balancers."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
from collections.abc import Iterator

import pytest

from tests.helpers.real_programs import CONFIG, Backend, Haproxy, LoadBalancer, member_line, wait_until

pytestmark = [pytest.mark.real, pytest.mark.every_haproxy]

HASHED = CONFIG.replace("balance roundrobin", "balance source\n    hash-type consistent")
CLIENTS = [f"127.0.{number // 250 + 2}.{number % 250 + 1}" for number in range(1000)]
ADDRESS = {f"web{number:02}": f"127.0.1.{number}" for number in range(1, 12)}
TEN, ELEVENTH = list(ADDRESS)[:10], list(ADDRESS)[10]


def make_member_line(name: str) -> bytes:
    return member_line(name, ADDRESS[name])


@contextlib.contextmanager
def run_pair() -> Iterator[list[tuple[LoadBalancer, Haproxy]]]:
    """Run two load balancers for the same nodes, which joined them in different orders."""
    with contextlib.ExitStack() as stack:
        one, other = stack.enter_context(LoadBalancer(HASHED)), stack.enter_context(LoadBalancer(HASHED))
        other.roles.write_text(other.roles.read_text().replace(f"port: {other.port}", f"port: {one.port}"))
        for name, address in ADDRESS.items():
            stack.enter_context(Backend(name, address, one.port))
        two = [(lb, stack.enter_context(Haproxy(lb))) for lb in (one, other)]
        one.join(*map(make_member_line, TEN))
        for name in reversed(TEN):
            other.join(make_member_line(name))
        for _, haproxy in two:
            wait_until(lambda haproxy=haproxy: set(haproxy.servers().values()) == {"UP"})  # type: ignore[misc]
        yield two


def find_server_of_clients(lb: LoadBalancer) -> dict[str, str]:
    """Return the node of each client."""
    found = {}
    for client in CLIENTS:
        connection = http.client.HTTPConnection("127.0.0.1", lb.front, timeout=10, source_address=(client, 0))
        with contextlib.closing(connection):
            connection.request("GET", "/")
            found[client] = connection.getresponse().read().decode()
    return found


def join_node(lb: LoadBalancer, haproxy: Haproxy, name: str) -> dict[str, str]:
    """Join a node; returns the node of each client after it."""
    lb.join(make_member_line(name))
    wait_until(lambda: haproxy.servers()[name] == "UP")
    return find_server_of_clients(lb)


def test_a_node_that_joins_takes_its_share_and_no_other_client_moves() -> None:
    with run_pair() as ((lb, haproxy), (other, other_haproxy)):
        before, reloads = find_server_of_clients(lb), haproxy.reloads()
        assert (set(before.values()), find_server_of_clients(other)) == (set(TEN), before)

        after = join_node(lb, haproxy, ELEVENTH)
        moved = [client for client in CLIENTS if before[client] != after[client]]
        assert {after[client] for client in moved} == {ELEVENTH}
        assert 0.3 < len(moved) / (len(CLIENTS) / len(ADDRESS)) < 2

        lb.leave(make_member_line(ELEVENTH))
        assert find_server_of_clients(lb) == before
        lb.leave(make_member_line("web03"))
        assert join_node(lb, haproxy, "web03") == before
        assert join_node(lb, haproxy, ELEVENTH) == after
        assert haproxy.reloads() == reloads

        os.kill(haproxy.pid, signal.SIGUSR2)
        wait_until(lambda: haproxy.reloads()[0] == reloads[0] + 1)
        wait_until(lambda: set(haproxy.servers().values()) == {"UP"})
        assert find_server_of_clients(lb) == after
        assert join_node(other, other_haproxy, ELEVENTH) == after
        print(f"{len(moved)} of {len(CLIENTS)} clients moved to the eleventh of eleven nodes, nobody else")
