"""`lbagent pause --wait` returns when no session is open on any load balancer of a real pair with long TCP sessions."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator

import pytest

from lbagent.system.processes import count_connections
from tests.helpers import tcp_sessions
from tests.helpers.pair import Balancer, join_both, run_pair
from tests.helpers.real_programs import LBAGENT, SerfAgent, wait_until
from tests.helpers.tcp_sessions import Session
from tests.helpers.terminal import Terminal

pytestmark = pytest.mark.real

NODES = {"db01": "127.0.0.11", "db02": "127.0.0.12"}


@pytest.fixture(scope="module")
def shared_pair() -> Iterator[tuple[Balancer, Balancer]]:
    """A pair that balances two TCP servers, shared by all tests of this file."""
    with contextlib.ExitStack() as stack:
        balanced_pair = stack.enter_context(run_pair(tcp_sessions.CONFIG, tcp_sessions.ROLES))
        stack.enter_context(tcp_sessions.run_echo_servers([*NODES.values()], balanced_pair[0].lb.port))
        agents = [stack.enter_context(SerfAgent(name, address, "db")) for name, address in NODES.items()]
        join_both(balanced_pair, *agents)
        yield balanced_pair


@pytest.fixture
def balanced_pair(shared_pair: tuple[Balancer, Balancer]) -> Iterator[tuple[Balancer, Balancer]]:
    """The same pair; no node is paused before and after the test."""
    yield shared_pair
    for balancer in shared_pair:
        balancer.lb.count_checks()  # restores `haproxy -c`
    shared_pair[0].run("resume", *NODES)
    for balancer in shared_pair:
        wait_until(lambda: not any(line.startswith("#") for line in balancer.lb.managed))  # noqa: B023


@contextlib.contextmanager
def open_sessions_to(balancer: Balancer, node: str, number: int) -> Iterator[list[Session]]:
    """Open `number` sessions through HAProxy to one node."""
    found: list[Session] = []
    before = count_connections()
    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as others:
            while len(found) < number:
                session = Session(balancer.lb.front)
                is_wanted = session.server == NODES[node]
                (stack if is_wanted else others).enter_context(contextlib.closing(session))
                found += [session] if is_wanted else []
        # On a busy machine, HAProxy closes its side of the other sessions later.
        others_at = [(address, balancer.lb.port) for name, address in NODES.items() if name != node]
        wait_until(lambda: all(count_connections()[at] <= before[at] for at in others_at))
        yield found


def start_lbagent(balancer: Balancer, *words: str) -> subprocess.Popen[bytes]:
    """Start `lbagent` with its output in a pipe."""
    return balancer.lb.start(*words, env={"SERF_RPC_ADDR": balancer.agent.rpc})


def start_on_terminal(balancer: Balancer, *words: str, columns: int = 80) -> Terminal:
    """Start `lbagent` on a terminal."""
    return Terminal([LBAGENT, *words], {**balancer.lb.env, "SERF_RPC_ADDR": balancer.agent.rpc}, columns)


def read_lines(process: subprocess.Popen[bytes], number: int) -> list[str]:
    """Return the next lines of the output, sorted: the load balancers answer in any order."""
    assert process.stdout
    return sorted(process.stdout.readline().decode().rstrip("\n") for _ in range(number))


# Both load balancers of these tests are on one host, so that each counts the connections of both.


def test_each_change_is_a_line_where_output_is_piped(balanced_pair: tuple[Balancer, Balancer]) -> None:
    with open_sessions_to(balanced_pair[0], "db01", 2) as opened:
        waiting = start_lbagent(balanced_pair[0], "pause", "db01", "--wait")
        rows = [read_lines(waiting, 2)]
        for session in opened:
            session.close()
            rows.append(read_lines(waiting, 2))
        out, err = waiting.communicate(timeout=60)

    assert rows == [
        ["lb01  done, 2 sessions still open", "lb02  done, 2 sessions still open"],
        ["lb01  1 session still open", "lb02  1 session still open"],
        ["lb01  no session open", "lb02  no session open"],
    ]
    assert (waiting.returncode, out, err) == (0, b"", b"")


def test_without_a_session_it_does_not_wait(balanced_pair: tuple[Balancer, Balancer]) -> None:
    done = balanced_pair[0].run("pause", "--wait", "db01")  # the name of the node is not the time

    assert done.returncode == 0
    assert sorted(done.stdout.decode().splitlines()) == ["lb01  done", "lb02  done"]
    assert done.stderr == b""


def test_the_number_is_replaced_in_place_on_a_terminal(balanced_pair: tuple[Balancer, Balancer]) -> None:
    with open_sessions_to(balanced_pair[0], "db01", 2) as opened:
        terminal = start_on_terminal(balanced_pair[0], "pause", "db01", "--wait")
        rows = ["lb01  done, 2 sessions still open", "lb02  done, 2 sessions still open"]
        for session, words in zip(opened, ("2 sessions", "1 session"), strict=True):
            terminal.wait_for_screen(
                *rows,
                "…",
                f"  lb01  {words} still open",
                f"  lb02  {words} still open",
            )
            assert terminal.screen[2][1:] == " waiting until no session is open; Ctrl-C ends the waiting, not the pause"
            session.close()
        status, _ = terminal.wait_for_end()

    assert (status, sorted(terminal.screen)) == (0, sorted([*rows, "lb01  no session open", "lb02  no session open"]))


def test_a_time_limit_ends_it_and_the_message_has_what_is_still_open(balanced_pair: tuple[Balancer, Balancer]) -> None:
    with open_sessions_to(balanced_pair[0], "db01", 1) as [session]:
        done = balanced_pair[0].run("pause", "db01", "--wait", "1s")

        assert session.is_alive()
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "lbagent: db01: 1 session still open on lb01, lb02 after 1s; the pause is in effect, run it again to wait on\n"
    )


def test_ctrl_c_ends_the_wait_and_keeps_the_pause(balanced_pair: tuple[Balancer, Balancer]) -> None:
    with open_sessions_to(balanced_pair[0], "db01", 1) as [session]:
        terminal = start_on_terminal(balanced_pair[0], "pause", "db01", "--wait", columns=140)
        terminal.wait_for("waiting until")
        terminal.type("\x03")
        status, _ = terminal.wait_for_end()

        assert session.is_alive()
    assert status == 130
    assert terminal.screen[2:] == [
        "lbagent: interrupted: pause of db01: in effect on lb01, lb02; 1 session still open on lb01, lb02"
    ]
    assert "\x1b[?25h" in terminal.raw.rpartition("\x1b[?25l")[2]  # the cursor is visible again
    for balancer in balanced_pair:
        assert any(line.startswith("# lbagent paused db01 ") for line in balancer.lb.managed)


def test_rows_of_several_nodes_contain_their_names(balanced_pair: tuple[Balancer, Balancer]) -> None:
    with (
        open_sessions_to(balanced_pair[0], "db01", 1) as [one],
        open_sessions_to(balanced_pair[1], "db02", 1) as [other],
    ):
        waiting = start_lbagent(balanced_pair[0], "pause", "db01", "db02", "--force", "--wait=1m")
        rows = read_lines(waiting, 4)
        one.close()
        first = read_lines(waiting, 2)
        other.close()
        rest = read_lines(waiting, 2)
        waiting.communicate(timeout=60)

    assert [re.sub(r", no other server of \S+ serves", "", row) for row in rows] == [
        f"{node}  {lb}  done, 1 session still open" for node in NODES for lb in ("lb01", "lb02")
    ]
    assert [first, rest] == [[f"{node}  {lb}  no session open" for lb in ("lb01", "lb02")] for node in NODES]
    assert waiting.returncode == 0


def test_a_node_that_is_resumed_during_the_wait_is_not_paused_again(balanced_pair: tuple[Balancer, Balancer]) -> None:
    with open_sessions_to(balanced_pair[0], "db01", 1):
        waiting = start_lbagent(balanced_pair[0], "pause", "db01", "--wait")
        read_lines(waiting, 2)
        assert balanced_pair[1].rows("resume", "db01") == (0, {"lb01": "done", "lb02": "done"})
        _, err = waiting.communicate(timeout=60)

    assert waiting.returncode == 1
    assert re.fullmatch(r"lbagent: db01: not paused any more on lb0[12](, lb02)?; pause it again\n", err.decode())
    assert not any(line.startswith("#") for balancer in balanced_pair for line in balancer.lb.managed)


def test_a_pause_that_is_not_confirmed_is_not_waited_for(balanced_pair: tuple[Balancer, Balancer]) -> None:
    one, other = balanced_pair
    with open_sessions_to(one, "db01", 1):
        gate = other.lb.hold_checks()  # the handler of lb02 hangs
        done = one.run("pause", "db01", "--wait")
        gate.touch()

    assert done.returncode == 1
    assert done.stdout.decode().splitlines()[1] == "lb02  not answered"
    assert done.stderr.decode() == (
        "lbagent: db01: not waiting for open sessions: the pause is not confirmed by lb02; run it again\n"
    )


def test_a_load_balancer_that_failed_is_not_waited_for(balanced_pair: tuple[Balancer, Balancer]) -> None:
    one, _ = balanced_pair
    with SerfAgent("lb03", "127.0.0.8", "lb") as third:
        third.join(one.agent)
        third.kill()
    wait_until(lambda: one.agent.members()["lb03"] == "failed")
    try:
        with open_sessions_to(one, "db01", 1) as [session]:
            waiting = start_lbagent(one, "pause", "db01", "--wait")
            rows = read_lines(waiting, 3)
            session.close()
            end = read_lines(waiting, 2)
            waiting.communicate(timeout=60)
    finally:
        one.agent._serf("force-leave", "lb03")

    assert rows[2] == "lb03  not asked: failed in Serf"
    assert end == ["lb01  no session open", "lb02  no session open"]
    assert waiting.returncode == 1


def test_a_spinner_shows_which_load_balancer_has_not_answered(balanced_pair: tuple[Balancer, Balancer]) -> None:
    one, other = balanced_pair
    gate, before = other.lb.hold_checks(), other.lb.checks  # the handler of lb02 hangs
    terminal = start_on_terminal(one, "pause", "db01")
    terminal.wait_for("waiting for lb02")
    shown = terminal.screen
    wait_until(lambda: other.lb.checks > before)
    gate.touch()
    status, _ = terminal.wait_for_end()

    assert (shown[0], shown[1][1:]) == ("lb01  done", " waiting for lb02")
    assert (status, terminal.screen) == (0, ["lb01  done", "lb02  done"])
