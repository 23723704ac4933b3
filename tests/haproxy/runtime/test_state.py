"""Statistics of HAProxy's servers are parsed; anything else is rejected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.haproxy.runtime import session, state
from lbagent.haproxy.runtime.state import ServerStats
from tests.helpers.real_programs import Haproxy, LoadBalancer, binaries, wait_until

HEAD = "# pxname,svname,qcur,scur,status,type,\n"


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    with LoadBalancer(binary=request.param) as one:
        yield one


@pytest.mark.real
def test_the_answer_of_a_real_haproxy_is_parsed(lb: LoadBalancer) -> None:
    lb.text += b"    server down 127.0.0.1:1 check inter 50ms fall 1\n    server plain [::1]:2\n"
    lb.text += b"    server out 127.0.0.1:1 disabled\n    server drained 127.0.0.1:1\n"
    with Haproxy(lb) as haproxy:
        haproxy.send("set server lb-iis/drained state drain")

        def said() -> state.Stats:
            return state.parse_stats(session.ask(str(lb.socket), state.STATS_COMMAND, 5))

        wait_until(lambda: said()["lb-iis", "down"].state == "DOWN")
        assert said() == {
            ("lb-iis", "down"): ServerStats("DOWN", 0, 1, "127.0.0.1:1"),
            ("lb-iis", "plain"): ServerStats("no check", 0, 1, "[::1]:2"),
            ("lb-iis", "out"): ServerStats("MAINT", 0, 1, "127.0.0.1:1"),
            ("lb-iis", "drained"): ServerStats("DRAIN", 0, 1, "127.0.0.1:1"),
        }


@pytest.mark.real
def test_a_haproxy_without_servers_has_no_statistics(lb: LoadBalancer) -> None:
    with Haproxy(lb):
        assert state.parse_stats(session.ask(str(lb.socket), state.STATS_COMMAND, 5)) == {}


def test_frontends_and_backends_are_not_servers() -> None:
    answer = f"{HEAD}a,FRONTEND,,0,OPEN,0,\na,web01,0,2,UP 1/3,2,\na,BACKEND,0,2,UP,1,\n"

    assert state.parse_stats(answer) == {("a", "web01"): ServerStats("UP 1/3", 2)}


def test_a_truncated_row_is_ignored() -> None:
    assert state.parse_stats(f"{HEAD}a,web01,0,2,UP,2,\na,web02,0,2,U") == {("a", "web01"): ServerStats("UP", 2)}


def test_sessions_that_are_not_a_number_are_unknown() -> None:
    assert state.parse_stats(f"{HEAD}a,web01,0,\N{ARABIC-INDIC DIGIT TWO},UP,2,\n") == {
        ("a", "web01"): ServerStats("UP", None)
    }


@pytest.mark.parametrize("answer", ["", "\n", "Permission denied\n", "Unknown command: 'show'\n", "# pxname,svname\n"])
def test_an_unexpected_answer_is_rejected_with_its_text(answer: str) -> None:
    with pytest.raises(ValueError, match="answered `show stat` with ") as refused:
        state.parse_stats(answer)

    assert str(refused.value) == f"answered `show stat` with {answer!r}"


@given(st.text())
def test_any_answer_is_parsed_or_rejected(answer: str) -> None:
    for text in (answer, f"{HEAD}{answer}"):
        with contextlib.suppress(ValueError):
            state.parse_stats(text)


ROW = "2 lb 1 web1 10.0.0.1 {op} {admin} 1 1 1 6 3 {rise} {check} 0 0 0 - 8080 - 0 0 - - 0"


@pytest.mark.parametrize(
    ("op", "admin", "rise", "check", "expected"),
    [
        (2, 0, 4, 6, "passed checked"),
        (0, 0, 0, 6, "down checked"),
        (0, 0, 1, 6, "passed down checked"),
        (2, 1, 4, 6, "out passed checked"),
        (2, 8, 4, 6, "out passed draining checked"),
        (2, 9, 4, 6, "out passed checked"),
        (0, 2, 0, 6, "checked"),
        (0, 4, 0, 14, "checked"),
        (2, 16, 1, 6, "passed checked"),
        (2, 32, 1, 6, "passed checked"),
        (2, 0, 0, 2, ""),
        (2, 0, 0, 4, ""),
        (2, 0, 0, 0, ""),
        (1, 0, 0, 6, "checked"),
    ],
)
def test_the_state_of_a_server_is_parsed(op: int, admin: int, rise: int, check: int, expected: str) -> None:
    row = ROW.format(op=op, admin=admin, rise=rise, check=check)

    [(key, found)] = state.parse_states(f"1\n# be_id be_name\n{row}\n\n").items()

    assert key == ("lb", "web1")
    assert (found.address, found.port, found.endpoint, found.row) == ("10.0.0.1", 8080, "10.0.0.1:8080", row)
    names = ("out", "passed", "draining", "down", "checked")
    assert [name for name in names if getattr(found, name)] == expected.split()


def test_a_row_of_eighteen_fields_is_truncated() -> None:
    words = ROW.format(op=2, admin=0, rise=4, check=6).split()

    assert len(state.parse_states(f"1\n{' '.join(words[:19])}\n")) == 1
    with pytest.raises(ValueError, match=r"^has truncated rows$"):
        state.parse_states(f"1\n{' '.join(words[:18])}\n")


@pytest.mark.parametrize("at", [5, 6, 12, 13, 18])
def test_a_row_with_text_in_place_of_a_number_is_rejected(at: int) -> None:
    words = ROW.format(op=2, admin=0, rise=4, check=6).split()
    words[at] = "x"

    with pytest.raises(ValueError, match="invalid literal"):
        state.parse_states(f"1\n{' '.join(words)}\n")


def test_an_unexpected_answer_is_quoted_in_part() -> None:
    with pytest.raises(ValueError, match=r"^has an unexpected answer: 'x{60}'$"):
        state.parse_states("x" * 61)


def find_difference(line: str, **row: int) -> str:
    """Return how web1 differs from this line."""
    found = state.parse_states(f"1\n{ROW.format(**{'op': 2, 'admin': 0, 'rise': 4, 'check': 6, **row})}\n")
    return state.find_differences(found, {("lb", "web1"): line}, []).get(("lb", "web1"), "")


@pytest.mark.parametrize(
    ("line", "admin", "expected"),
    [
        ("server web1 10.0.0.1:8080", 0, ""),
        ("server web1 10.0.0.1:8080 weight 0 # lbagent paused role=web", 0, "lb/web1 still gets new clients"),
        ("server web1 10.0.0.1:8080 weight 0 # lbagent paused role=web", 8, ""),
        ("server web1 10.0.0.1:8080 weight 0 # lbagent paused role=web", 1, ""),
        ("server web1 10.0.0.1:8080", 1, "lb/web1 is out of balancing"),
        ("server web1 10.0.0.1:8080", 8, "lb/web1 is out of balancing"),
        ("server web1 10.0.0.1:80", 0, "lb/web1 is at 10.0.0.1 port 8080"),
        ("server web1 10.0.0.2:8080", 0, "lb/web1 is at 10.0.0.1 port 8080"),
        ("server web1 10.0.0.2:8080", 1, "lb/web1 is at 10.0.0.1 port 8080"),
        ("server web1 10.0.0.2:8080 source 10.0.0.1:8080 # lbagent role=web", 0, "lb/web1 is at 10.0.0.1 port 8080"),
        ("server  web1  10.0.0.1:8080", 0, ""),
    ],
)
def test_a_server_differs_in_address_port_or_state(line: str, admin: int, expected: str) -> None:
    assert find_difference(line, admin=admin) == expected


def test_a_server_that_is_as_its_line_says_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(line: str) -> NoReturn:
        raise AssertionError(line)

    monkeypatch.setattr(state, "split_server_line", fail)

    assert find_difference("server web1 10.0.0.1:8080 # lbagent role=web") == ""


def test_states_and_sessions_are_those_of_all_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "show servers state": f"1\n{ROW.format(op=2, admin=0, rise=4, check=6)}\n",
        "show stat -1 4 -1": f"{HEAD}a,web01,0,2,UP,2,\na,web02,0,,UP,2,\n",
    }
    one = session.Session("/socket", session.Worker(1, 2), 1000)
    monkeypatch.setattr(one, "send", lambda commands: [answers[command] for command in commands])

    assert [*one.fetch_states()] == [("lb", "web1")]
    assert one.fetch_sessions() == {("a", "web01"): 2}


def test_statistics_with_a_weight_have_one() -> None:
    head = "# pxname,svname,scur,status,type,weight,\n"

    assert state.parse_stats(f"{head}a,web01,0,UP,2,7,\na,web02,1,DRAIN,2,,\n") == {
        ("a", "web01"): ServerStats("UP", 0, 7),
        ("a", "web02"): ServerStats("DRAIN", 1, None),
    }


def test_a_count_has_at_most_nineteen_digits() -> None:
    for digits, expected in ((19, int("9" * 19)), (20, None)):
        found = state.parse_stats(f"{HEAD}a,web01,0,{'9' * digits},UP,2,\n")
        assert found == {("a", "web01"): ServerStats("UP", expected)}


def test_a_server_has_no_statistics_until_they_are_known() -> None:
    assert ServerStats(None, None, None) == state.NO_STATS


def test_the_last_column_needs_no_comma() -> None:
    answer = "# pxname,svname,scur,status,type\na,web01,0,UP,2\na,FRONTEND,0,OPEN,0\n"

    assert state.parse_stats(answer) == {("a", "web01"): ServerStats("UP", 0)}


def test_unexpected_statistics_are_quoted_in_part() -> None:
    with pytest.raises(ValueError, match=r"^answered `show stat` with 'x{60}'$"):
        state.parse_stats("x" * 61)


def test_statistics_with_an_address_have_one() -> None:
    head = "# pxname,svname,scur,status,type,addr,\n"

    assert state.parse_stats(f"{head}a,web01,0,UP,2,10.0.0.1:80,\na,web02,0,UP,2,,\n") == {
        ("a", "web01"): ServerStats("UP", 0, None, "10.0.0.1:80"),
        ("a", "web02"): ServerStats("UP", 0),
    }
