"""Servers are brought into balancing by the right commands, in order, each once it answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import pytest

from lbagent.haproxy.config import Key
from lbagent.haproxy.runtime.servers import Admission, Join, format_stop_command
from lbagent.haproxy.runtime.session import Session
from lbagent.haproxy.runtime.state import ServerState, parse_states

KEY = ("lb", "web1")
ADDED = "New server registered."


class RecordingSession:
    """A session whose HAProxy has the servers in `passed`, and answers as in `answers`."""

    def __init__(self, answers: Mapping[str, str | None] | None = None, passed: Sequence[str] = ()) -> None:
        """A command without an answer here succeeds."""
        self.sent: list[str] = []
        self.problems: list[str] = []
        self._answers, self._passed = answers or {}, passed

    def send(self, commands: Sequence[str]) -> list[str | None]:
        """Record the commands and answer them."""
        self.sent += commands
        return [self._answers.get(one, ADDED if one.startswith("add server") else "") for one in commands]

    def fetch_states(self) -> Mapping[Key, ServerState]:
        """Return the states: all checks of the servers in `passed` have passed."""
        rows = (f"2 lb 1 {name} 10.0.0.1 2 0 1 1 1 6 3 4 6 0 0 0 - 80 - 0 0 - - 0" for name in self._passed)
        return parse_states("\n".join(["1", *rows, ""]))


def admit(session: RecordingSession, *joins: Join, cookies: Sequence[str] = ()) -> bool:
    """Bring the servers into balancing."""
    return Admission(cast(Session, session)).admit_servers(joins, cookies)


@pytest.fixture
def listening() -> Iterator[tuple[str, int]]:
    """An endpoint that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield "127.0.0.1", one.getsockname()[1]


@pytest.fixture
def silent() -> tuple[str, int]:
    """An endpoint that refuses connections."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return "127.0.0.1", one.getsockname()[1]


def test_no_server_needs_no_command() -> None:
    session = RecordingSession()

    assert admit(session, cookies=["enable dynamic-cookie backend lb"])
    assert session.sent == []


def test_a_server_without_a_check_is_ready_at_once() -> None:
    session = RecordingSession()

    assert admit(session, Join(KEY, "", ("add server lb/web1 10.0.0.1:80",)), cookies=["cookies"])
    assert session.sent == ["add server lb/web1 10.0.0.1:80", "cookies", "set server lb/web1 state ready"]
    assert session.problems == []


def test_a_server_that_answers_is_ready(listening: tuple[str, int]) -> None:
    session = RecordingSession()

    assert admit(session, Join(KEY, "", ("one", "two"), listening))
    assert session.sent == ["one", "two", "set server lb/web1 state ready"]


def test_a_server_that_does_not_answer_is_down_until_its_checks_pass(silent: tuple[str, int]) -> None:
    session = RecordingSession()

    assert admit(session, Join(KEY, "", ("one",), silent))
    assert session.sent == [
        "one",
        "set server lb/web1 state drain",
        "set server lb/web1 health down",
        "set server lb/web1 state ready",
    ]


def test_a_server_of_a_paused_node_only_drains(silent: tuple[str, int], listening: tuple[str, int]) -> None:
    session = RecordingSession()

    assert admit(session, Join(KEY, "", (), silent, drain=True), Join(("lb", "web2"), "", (), listening, drain=True))
    assert session.sent == [
        "set server lb/web1 state drain",
        "set server lb/web1 health down",
        "set server lb/web2 state drain",
    ]


def test_a_server_whose_state_does_not_change_is_not_made_ready() -> None:
    session = RecordingSession()

    assert admit(session, Join(KEY, "", ("set server lb/web1 weight 3",), ready=False))
    assert session.sent == ["set server lb/web1 weight 3"]


def test_a_server_with_an_awaited_check_is_up_once_it_has_passed() -> None:
    session = RecordingSession(passed=["web1"])

    assert admit(session, Join(KEY, "", ("one",), check_wait=0.1), Join(("lb", "web2"), "", (), check_wait=0.1))
    assert session.sent == [
        "one",
        "set server lb/web1 state drain",
        "set server lb/web1 health down",
        "set server lb/web2 state drain",
        "set server lb/web2 health down",
        "set server lb/web1 health up",
        "set server lb/web1 state ready",
        "set server lb/web2 state ready",
    ]


def test_a_refused_command_is_a_problem_and_stops_the_rest() -> None:
    session = RecordingSession({"add server lb/web1 10.0.0.1:80": "No such backend."})

    assert not admit(session, Join(KEY, "", ("add server lb/web1 10.0.0.1:80", "enable health lb/web1")))
    assert session.sent == ["add server lb/web1 10.0.0.1:80", "enable health lb/web1"]
    assert session.problems == ["`add server lb/web1 10.0.0.1:80`: No such backend."]


@pytest.mark.parametrize("command", ["set server lb/web1 state ready", "set server lb/web1 health down"])
def test_a_failure_of_the_last_commands_is_a_failure(silent: tuple[str, int], command: str) -> None:
    session = RecordingSession({command: "Permission denied"})

    assert not admit(session, Join(KEY, "", (), silent))
    assert session.problems == [f"`{command}`: Permission denied"]
    assert not admit(RecordingSession({command: None}), Join(KEY, "", (), check_wait=0.1))


def test_a_command_without_an_answer_has_failed() -> None:
    session = RecordingSession({"one": None})

    assert not admit(session, Join(KEY, "", ("one",)))
    assert session.problems == []


@pytest.mark.parametrize(
    ("command", "answer", "succeeds"),
    [
        ("add server lb/web1 10.0.0.1:80", ADDED, True),
        ("add server lb/web1 10.0.0.1:80", f"[WARNING] x\n{ADDED}", True),
        ("add server lb/web1 10.0.0.1:80", f"{ADDED}\nx", False),
        ("add server lb/web1 10.0.0.1:80", "", False),
        ("set server lb/web1 addr 10.0.0.1 port 80", "IP changed from '10.0.0.2' to '10.0.0.1' by 'stats'", True),
        ("set server lb/web1 addr 10.0.0.1 port 80", "no need to change the addr", True),
        ("set server lb/web1 addr 10.0.0.1 port 80", "nothing changed", True),
        ("set server lb/web1 addr 10.0.0.1 port 80", "", False),
        ("set server lb/web1 weight 3", "", True),
        ("set server lb/web1 weight 3", "nothing changed", False),
    ],
)
def test_each_command_has_its_answer_of_success(command: str, answer: str, succeeds: bool) -> None:  # noqa: FBT001
    assert admit(RecordingSession({command: answer}), Join(KEY, "", (command,), ready=False)) == succeeds


def test_a_server_is_stopped_or_drained() -> None:
    assert format_stop_command(KEY, drain=False) == "set server lb/web1 state maint"
    assert format_stop_command(KEY, drain=True) == "set server lb/web1 state drain"
