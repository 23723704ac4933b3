"""examples/impala with real programs: no client loses its daemon or its query because other daemons change.

Spark's Thrift Servers substitute for Impala daemons: they use the protocol of Impala's port 21050. Tests without SQL
use small servers that send their name.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import functools
import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbagent.haproxy.reload import is_learning
from scenarios.impala_cluster import CHANGE_TIMEOUT, Cluster
from scenarios.impala_hs2 import LongQuery, QueryFailed, Server, Session, run_servers
from scenarios.impala_site import (
    SOURCES,
    Balancer,
    Daemon,
    Site,
    map_clients,
    measure_moved_share,
    read_keepalive_timers,
)
from tests.helpers.real_programs import PATIENCE, LoadBalancer, binaries, member_line, wait_until

NAMES = ("impala01", "impala02")
SMALL_DAEMONS = tuple(f"impala{number}" for number in range(11, 21))
STICKY = "    balance leastconn\n    stick-table type ip size 100k expire 24h peers lb\n    stick on src\n"


class Figures(dict[str, str]):
    """Measured figures by their description, printed after the tests."""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("measured")
        width = max(map(len, self), default=0)
        for what, figure in self.items():
            terminalreporter.write_line(f"{what:{width}}  {figure}")


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Figures:
    found = Figures()
    request.config.pluginmanager.register(found)
    return found


@pytest.fixture(scope="module")
def site() -> Site:
    """A site with one port: HiveServer2 substitutes for Beeswax too."""
    return Site(one_port=True)


@pytest.fixture(scope="module")
def servers(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Two real HiveServer2 servers."""
    folder = tmp_path_factory.mktemp("hs2")
    both = [Server(name, address(name), site.hs2, folder) for name in NAMES]
    with run_servers(*both):
        yield {server.name: server for server in both}


@pytest.fixture
def cluster(site: Site, servers: dict[str, Server]) -> Iterator[Cluster]:
    """A load balancer that both daemons have joined."""
    one = Cluster(Balancer(site))
    with one.running():
        for name in servers:
            one.join(name, address(name))
        yield one


def address(name: str) -> str:
    return f"127.0.8.{int(name.removeprefix('impala'))}"


def join(lb: LoadBalancer, *names: str) -> None:
    assert lb.join(*(member_line(name, address(name), "impala") for name in names)).stderr == b""


def format_percent(share: float) -> str:
    return f"{share:g} %"


@contextlib.contextmanager
def run_small_daemons(site: Site, *names: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(Daemon(name, address(name), site))
        yield


@pytest.mark.parametrize("binary", list(binaries().values()), ids=list(binaries()))
def test_only_the_clients_of_a_daemon_that_leaves_move(
    binary: Path, request: pytest.FixtureRequest, figures: Figures
) -> None:
    site = Site()
    with run_small_daemons(site, *SMALL_DAEMONS[:4]), Balancer(site, binary=binary) as one:
        join(one.lb, *SMALL_DAEMONS[:2])
        at_first = map_clients(one.jdbc)
        theirs = {source for source, name in at_first.items() if name == SMALL_DAEMONS[0]}

        join(one.lb, SMALL_DAEMONS[2])
        joined = measure_moved_share(at_first, map_clients(one.jdbc))
        one.set_runtime(on=False)
        since = time.monotonic()
        join(one.lb, SMALL_DAEMONS[3])
        held = time.monotonic() - since
        reloaded = measure_moved_share(at_first, map_clients(one.jdbc))
        assert (joined, reloaded, one.haproxy.reloads()) == (0, 0, (1, 0))

        one.lb.leave(member_line(SMALL_DAEMONS[0], address(SMALL_DAEMONS[0]), "impala"))
        left = map_clients(one.jdbc)
        assert {source for source in SOURCES if left[source] != at_first[source]} == theirs

    assert set(at_first.values()) == {*SMALL_DAEMONS[:2]}
    version = request.node.callspec.id
    figures[f"HAProxy {version}: clients of 200 that move when a third daemon joins, without a reload"] = (
        format_percent(joined)
    )
    figures[f"HAProxy {version}: when a fourth joins, with a reload right after the start"] = format_percent(reloaded)
    figures[f"HAProxy {version}: seconds that reload took, until the table could be handed over"] = f"{held:.1f}"
    figures[f"HAProxy {version}: when one of two leaves (all of them its own)"] = format_percent(
        measure_moved_share(at_first, left)
    )


def test_clients_keep_their_daemons_on_the_other_load_balancer(figures: Figures) -> None:
    site = Site()
    with run_small_daemons(site, *SMALL_DAEMONS[:3]), Balancer(site) as one, Balancer(site, "lb02") as other:
        for lb in (one.lb, other.lb):
            join(lb, *SMALL_DAEMONS[:2])
        at_first = map_clients(one.jdbc)
        wait_until(lambda: count_table_entries(other) == len(SOURCES))

        over = measure_moved_share(at_first, map_clients(other.jdbc))
        one.haproxy.stop()
        join(other.lb, SMALL_DAEMONS[2])
        alone = measure_moved_share(at_first, map_clients(other.jdbc))

    assert (over, alone) == (0, 0)
    figures["clients that move at a failover to the other load balancer"] = format_percent(over)


@pytest.mark.parametrize("both", [False, True], ids=["alone", "with the other load balancer up"])
def test_a_reload_by_hand_right_after_the_start_may_lose_the_table(figures: Figures, *, both: bool) -> None:
    site = Site()
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_small_daemons(site, *SMALL_DAEMONS[:2]))
        if both:
            other = stack.enter_context(Balancer(site, "lb02"))
            wait_until(lambda: not is_learning(other.haproxy.send("show peers")))
        one = stack.enter_context(Balancer(site))
        join(one.lb, *SMALL_DAEMONS[:2])
        if both:
            wait_until(lambda: not is_learning(one.haproxy.send("show peers")))
        map_clients(one.jdbc)
        worker, able = one.haproxy.worker(), not is_learning(one.haproxy.send("show peers"))

        os.kill(one.haproxy.pid, signal.SIGUSR2)
        wait_until(lambda: one.haproxy.reloads() == (1, 0) and one.haproxy.worker() != worker)
        wait_until(lambda: count_table_entries(one) == (len(SOURCES) if able else 0))

    assert able or not both
    when = "the other load balancer up, within" if both else "alone, after" if able else "alone, within"
    figures[f"clients forgotten by a reload by hand, {when} five seconds of the start"] = "0" if able else "200"


@pytest.mark.parametrize(
    ("words", "least", "most"),
    [("balance source", 50, 80), ("balance source\n    hash-type consistent", 1, 50)],
    ids=["source", "consistent"],
)
def test_balance_source_would_move_clients(words: str, least: float, most: float, figures: Figures) -> None:
    site = Site()
    with run_small_daemons(site, *SMALL_DAEMONS[:3]), Balancer(site, changed={STICKY: f"    {words}\n"}) as one:
        join(one.lb, *SMALL_DAEMONS[:2])
        at_first = map_clients(one.jdbc)
        join(one.lb, SMALL_DAEMONS[2])
        moved = measure_moved_share(at_first, map_clients(one.jdbc))

    assert least < moved < most
    figures[f"the same join with `{' '.join(words.split())}`"] = format_percent(moved)


def test_keep_alives_detect_vanished_clients(figures: Figures) -> None:
    site = Site()
    with run_small_daemons(site, *SMALL_DAEMONS[:2]), Balancer(site) as one, contextlib.ExitStack() as stack:
        join(one.lb, *SMALL_DAEMONS[:2])
        for port in (one.jdbc, one.shell):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            assert client.makefile().readline()

        waits = read_keepalive_timers(one.jdbc, one.shell, site.hs2, site.beeswax)

    # HAProxy has two connections per client, one to the daemon. Clients and daemons do not enable keep-alive.
    assert len(waits) == 4
    assert all(60 < seconds <= 120 for seconds in waits)
    figures["HAProxy's connections of two clients with a keep-alive timer of two minutes"] = "4 of 4"


def test_the_statistics_need_a_password() -> None:
    with Balancer(Site()) as one:
        statuses = [request_statistics(one.stats, words) for words in ("", "admin:wrong", "admin:change-me")]

    assert statuses == [401, 401, 200]


def test_check_finds_only_that_the_other_load_balancer_does_not_run(cluster: Cluster) -> None:
    done = cluster.run("check")

    found = [line.split()[:2] for line in done.stdout.decode().splitlines()[:-1] if not line.startswith("ok ")]
    assert (done.returncode, done.stderr, found) == (1, b"", [["error", "peers:"]])


def test_a_client_keeps_its_daemon(cluster: Cluster, figures: Figures) -> None:
    clients = SOURCES[:10]
    with contextlib.ExitStack() as stack:
        opened = {one: stack.enter_context(Session(cluster.balancer.jdbc, one)) for one in clients}
        at_first = {source: session.node for source, session in opened.items()}
        again = {one: stack.enter_context(Session(cluster.balancer.jdbc, one)) for one in clients}

        assert {source: session.node for source, session in again.items()} == at_first
        assert collections.Counter(at_first.values()) == dict.fromkeys(NAMES, 5)

    with contextlib.ExitStack() as stack:
        shells = [stack.enter_context(Session(cluster.balancer.shell, SOURCES[0])) for _ in range(6)]
        assert collections.Counter(session.node for session in shells) == dict.fromkeys(NAMES, 3)
    figures["second sessions of ten clients on 21051 with another daemon than the first"] = "0 of 10"
    figures["six sessions of one client on 25003, by daemon"] = "3 and 3"


def test_a_long_query_survives_200_changes_without_a_reload(
    cluster: Cluster, site: Site, tmp_path: Path, figures: Figures
) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_small_daemons(site, *SMALL_DAEMONS))
        busy = [stack.enter_context(Session(cluster.balancer.jdbc, source)) for source in SOURCES[:2]]
        idle = [stack.enter_context(Session(cluster.balancer.jdbc, source)) for source in SOURCES[:2]]
        theirs = [session.node for session in busy]
        queries = [stack.enter_context(LongQuery(session, tmp_path)) for session in busy]
        worker, done, since = cluster.worker, len(cluster.list_reload_flags()), time.monotonic()

        for name in SMALL_DAEMONS:
            cluster.join(name, address(name))
        for _ in range(9):
            for name in SMALL_DAEMONS:
                cluster.pause(name)
            for name in SMALL_DAEMONS:
                cluster.resume(name)
            with Session(cluster.balancer.jdbc, SOURCES[0]) as again:
                assert again.node == theirs[0]
        for name in SMALL_DAEMONS:
            cluster.leave(name)
        lasted = time.monotonic() - since

        assert set(theirs) == set(NAMES)
        assert cluster.list_reload_flags()[done:] == [False] * 200
        assert cluster.worker == worker
        assert [query.finish() for query in queries] == [True, True]
        assert [session.node for session in idle] == theirs
    figures["changes without a reload that two queries and two idle sessions survived"] = "200 of 200"
    figures["seconds from the first of them to the last, with one worker"] = f"{lasted:.0f}"


def test_a_long_query_survives_reloads(cluster: Cluster, site: Site, tmp_path: Path, figures: Figures) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_small_daemons(site, *SMALL_DAEMONS[:5]))
        cluster.balancer.set_runtime(on=False)
        sessions = [stack.enter_context(Session(cluster.balancer.jdbc, source)) for source in SOURCES[:2]]
        theirs = [session.node for session in sessions]
        queries = [stack.enter_context(LongQuery(session, tmp_path)) for session in sessions]
        reloads, done = cluster.worker[1], len(cluster.list_reload_flags())

        for at, name in enumerate(SMALL_DAEMONS[:5]):
            cluster.join(name, address(name))
            sessions.append(stack.enter_context(Session(cluster.balancer.jdbc, SOURCES[at % 2])))
            cluster.leave(name)
        old = len(cluster.haproxy.workers()) - 1

        assert cluster.list_reload_flags()[done:] == [True] * 10
        assert cluster.worker[1] == reloads + 10
        assert [session.node for session in sessions[2:]] == [theirs[at % 2] for at in range(5)]
        assert [query.finish() for query in queries] == [True, True]
        for session in sessions:
            session.close()
        wait_until(lambda: len(cluster.haproxy.workers()) == 1)
    figures["reloads that two queries survived; old workers at the end, and after their sessions"] = f"10; {old}, 0"


def test_a_paused_daemon_finishes_its_query_and_gets_no_new_session(
    cluster: Cluster, tmp_path: Path, figures: Figures
) -> None:
    jdbc = cluster.balancer.jdbc
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(Session(jdbc, SOURCES[0]))
        name = session.node
        [other] = set(NAMES) - {name}
        query = stack.enter_context(LongQuery(session, tmp_path))

        paused = cluster.run("pause", name)
        new = [stack.enter_context(Session(jdbc, source)) for source in SOURCES[:6]]
        shells = [stack.enter_context(Session(cluster.balancer.shell, SOURCES[0])) for _ in range(2)]

        assert (paused.returncode, paused.stdout.split(None, 1)) == (0, [b"lb01", b"done, 1 session still open\n"])
        assert {one.node for one in [*new, *shells]} == {other}
        assert query.finish()

        cluster.resume(name)
        with Session(jdbc, SOURCES[6]) as new_client, Session(jdbc, SOURCES[0]) as moved:
            assert (new_client.node, moved.node) == (name, other)
    figures["new sessions of eight clients on a paused daemon; its query"] = "0 of 8; finished with all its rows"


def test_a_killed_daemon_gets_no_sessions_until_it_is_up_again(
    cluster: Cluster, servers: dict[str, Server], tmp_path: Path, figures: Figures
) -> None:
    jdbc = cluster.balancer.jdbc
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(Session(jdbc, SOURCES[0]))
        name = session.node
        [other] = set(NAMES) - {name}
        query = stack.enter_context(LongQuery(session, tmp_path))

        servers[name].kill()
        since = time.monotonic()
        with pytest.raises(QueryFailed):
            query.finish()
        new = [stack.enter_context(Session(jdbc, source)) for source in SOURCES[:4]]
        first = time.monotonic() - since
        assert {one.node for one in new} == {other}
        wait_until(functools.partial(has_status, cluster, name, "DOWN"), CHANGE_TIMEOUT)

        servers[name].start()
        servers[name].wait_until_ready()
        wait_until(functools.partial(has_status, cluster, name, "UP"), CHANGE_TIMEOUT)
        with Session(jdbc, SOURCES[6]) as new_client:
            assert new_client.node == name
    figures["seconds from SIGKILL until four clients have sessions on another daemon"] = f"{first:.1f}"


def count_table_entries(balancer: Balancer) -> int:
    """Return the number of clients in the stick table."""
    return int(balancer.haproxy.send("show table impalajdbc").splitlines()[0].rpartition("used:")[2])


def request_statistics(port: int, account: str) -> int:
    """Return the HTTP status of the statistics page for this NAME:PASSWORD."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        basic = base64.b64encode(account.encode()).decode()
        connection.request("GET", "/", headers={"Authorization": f"Basic {basic}"} if account else {})
        return connection.getresponse().status


def has_status(cluster: Cluster, name: str, word: str) -> bool:
    return all(cluster.haproxy.servers(proxy)[name] == word for proxy in ("impala", "impalajdbc"))
