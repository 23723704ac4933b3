"""Many `lbagent handle` processes at once lose no event and need few batches."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.real_programs import Haproxy, LoadBalancer, member_line, wait_until

pytestmark = pytest.mark.real

CROWD = 200
FAR_BELOW = CROWD // 4

NAMES = [f"web{number}" for number in range(1, CROWD + 1)]
ADDRESSES = [f"127.0.1.{number}" for number in range(1, CROWD + 1)]


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer() as one:
        one.count_checks()
        yield one


def wait_for_all(started: list[subprocess.Popen[bytes]]) -> list[tuple[int, bytes, bytes]]:
    """Wait for all processes; returns exit status, stdout and stderr of each."""
    output = [process.communicate(timeout=120) for process in started]
    return [(process.returncode, *words) for process, words in zip(started, output, strict=True)]


def test_of_200_nodes_that_join_at_once_none_is_lost(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        started = [
            lb.start_handle("member-join", member_line(name, address))
            for name, address in zip(NAMES, ADDRESSES, strict=True)
        ]
        ends = wait_for_all(started)

        print(f"{CROWD} handlers at once: {lb.checks} runs of haproxy -c")
        assert set(ends) == {(0, b"", b"")}
        assert lb.managed == [lb.server(name, address) for name, address in zip(NAMES, ADDRESSES, strict=True)]
        assert {name: (one["address"], one["status"]) for name, one in lb.members().items()} == {
            name: (address, "alive") for name, address in zip(NAMES, ADDRESSES, strict=True)
        }
        assert sorted(haproxy.servers()) == sorted(NAMES)
        assert lb.checks <= FAR_BELOW
        assert haproxy.reloads() == (0, 0)
        assert lb.list_outcomes() == ["applied"] * lb.checks
        assert (lb.list_spool(), lb.list_staged()) == ([], [])


def test_a_lock_that_is_deleted_during_a_run_loses_no_node_and_fails_no_other_run(lb: LoadBalancer) -> None:
    gates = lb.folder / "gate"
    lb.count_checks(f"n=$(wc -l <{lb.folder}/checks); while [ ! -e {gates}$n ]; do sleep 0.01; done")
    with Haproxy(lb) as haproxy, lb.start_handle("member-join", member_line("web1", "127.0.1.1")) as first:
        wait_until(lambda: lb.checks == 1)
        (lb.state / "lock").unlink()
        with lb.start_handle("member-join", member_line("web2", "127.0.1.2")) as second:
            wait_until(lambda: lb.checks == 2)
            Path(f"{gates}1").touch()
            assert first.stderr
            assert b"the lock file was removed or replaced during a run" in first.stderr.readline()
            assert len(lb.list_staged()) == 1  # the one of the second run
            for number in (2, 3, 4):
                Path(f"{gates}{number}").touch()
            assert (second.communicate(), second.returncode, first.wait(60)) == ((b"", b""), 0, 0)

        assert lb.managed == [lb.server("web1", "127.0.1.1"), lb.server("web2", "127.0.1.2")]
        assert haproxy.find_serving() == set(haproxy.servers()) == {"web1", "web2"}
        assert set(lb.members()) == {"web1", "web2"}


def test_a_thousand_nodes_in_one_event_take_one_check_and_no_reload(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        names = [f"web{number}" for number in range(1, 1001)]
        addresses = [f"127.0.{number // 250 + 1}.{number % 250 + 1}" for number in range(1000)]

        end = lb.join(*map(member_line, names, addresses))

        assert (end.returncode, end.stdout, end.stderr) == (0, b"", b"")
        assert lb.managed == list(map(lb.server, names, addresses))
        assert (lb.checks, haproxy.reloads()) == (1, (0, 0))


def test_joins_pauses_and_leaves_at_once_end_with_the_right_state_of_each_node(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        staying, pausing, leaving = (range(start, 60, 3) for start in (0, 1, 2))
        lb.join(*(member_line(NAMES[number], ADDRESSES[number]) for number in (*pausing, *leaving)))

        started = [lb.start_handle("member-join", member_line(NAMES[number], ADDRESSES[number])) for number in staying]
        started += [
            lb.start_handle("user", NAMES[number].encode(), SERF_USER_EVENT="pause", SERF_USER_LTIME=str(number))
            for number in pausing
        ]
        started += [
            lb.start_handle("member-leave", member_line(NAMES[number], ADDRESSES[number])) for number in leaving
        ]
        ends = wait_for_all(started)

        assert set(ends) == {(0, b"", b"")}
        assert lb.managed == [
            lb.server(NAMES[number], ADDRESSES[number])
            if number in staying
            else f"# lbagent paused {NAMES[number]} {ADDRESSES[number]} role=web"
            for number in range(60)
            if number not in leaving
        ]
        assert haproxy.find_serving() == {NAMES[number] for number in staying}
        assert (lb.list_spool(), lb.list_staged()) == ([], [])


def test_an_event_that_arrives_twice_at_once_is_applied_once(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        started = [lb.start_handle("member-join", member_line("web1", "127.0.1.1")) for _ in range(20)]
        ends = wait_for_all(started)

        assert set(ends) == {(0, b"", b"")}
        assert lb.managed == [lb.server("web1", "127.0.1.1")]
        assert (lb.checks, haproxy.reloads()) == (1, (0, 0))


# Every run repeats unlock, read spool, try-lock until the spool is empty.
@pytest.mark.parametrize("verb", ["handle", "query", "apply"])
def test_an_event_that_arrives_during_another_run_is_applied_by_that_run(lb: LoadBalancer, verb: str) -> None:
    with Haproxy(lb) as haproxy:
        lb.join(member_line("web1", "127.0.1.1"), member_line("web2", "127.0.1.2"))
        before, gate = lb.checks, lb.hold_checks()
        lb.roles.write_text(lb.roles.read_text().replace("200ms", "300ms"))
        runs = {
            "handle": lambda: lb.start_handle("member-leave", member_line("web2", "127.0.1.2")),
            "query": lambda: lb.start_handle("query", b"web2\n", SERF_QUERY_NAME="pause", SERF_QUERY_LTIME="1"),
            "apply": lambda: lb.start("apply"),
        }

        with runs[verb]() as first:
            wait_until(lambda: lb.checks > before)
            second = lb.join(member_line("web3", "127.0.1.3"))
            gate.touch()
            first.communicate()

        assert (first.returncode, second.returncode, lb.list_spool()) == (0, 0, [])
        assert "web3" in haproxy.servers()
