"""Statistics of HAProxy's servers are parsed; anything else is rejected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
