"""Servers are brought into balancing by the right commands, in order, each once it answers."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import pytest

from lbagent.haproxy.config import Key
from lbagent.haproxy.runtime import servers
from lbagent.haproxy.runtime.servers import Admission, Join, format_stop_command
from lbagent.haproxy.runtime.session import Session, SessionError
from lbagent.haproxy.runtime.state import ServerState, parse_states
from lbagent.system import processes

KEY = ("lb", "web1")
ADDED = "New server registered."


class RecordingSession:
    """A session whose HAProxy has the servers in `passed`, and answers as in `answers`."""

    def __init__(
        self, answers: Mapping[str, str | None] | None = None, passed: Mapping[str, float] | None = None
    ) -> None:
        """A command without an answer here succeeds. `passed` is the poll at which the check of a server passes."""
        self.sent: list[str] = []
        self.problems: list[str] = []
        self.polls = 0
        self._answers, self._passed = answers or {}, passed or {}

    def send(self, commands: Sequence[str]) -> list[str | None]:
        """Record the commands and answer them."""
        self.sent += commands
        return [self._answers.get(one, ADDED if one.startswith("add server") else "") for one in commands]

    def fetch_states(self) -> Mapping[Key, ServerState]:
        """Return the states of the servers in `passed`."""
        self.polls += 1
        assert self.polls < 1000, "it never ends"
        rises = {name: 4 if self.polls >= poll else 0 for name, poll in self._passed.items()}
        rows = (f"2 lb 1 {name} 10.0.0.1 2 0 1 1 1 6 3 {rise} 6 0 0 0 - 80 - 0 0 - - 0" for name, rise in rises.items())
        return parse_states("\n".join(["1", *rows, ""]))


class Clock:
    """A clock that only `sleep` advances, in steps of 0.02 s, up to a minute."""

    def __init__(self) -> None:
        """It starts at 0."""
        self._now = 0.0

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        assert seconds == 0.02
        assert self._now < 60
        self._now = round(self._now + seconds, 6)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait."""
    monkeypatch.setattr(servers, "time", Clock())


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
    session = RecordingSession(passed={"web1": 3, "web2": float("inf")})

    assert admit(session, Join(KEY, "", ("one",), check_wait=0.3), Join(("lb", "web2"), "", (), check_wait=0.1))
    assert session.polls == (0.3 + 0.4) / 0.02
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


def test_no_longer_wait_follows_when_all_checks_have_passed() -> None:
    session = RecordingSession(passed={"web1": 2, "web2": 5})

    assert admit(session, Join(KEY, "", (), check_wait=2.0), Join(("lb", "web2"), "", (), check_wait=2.0))
    assert session.polls == 5
    assert session.sent[4:] == [
        "set server lb/web1 health up",
        "set server lb/web2 health up",
        "set server lb/web1 state ready",
        "set server lb/web2 state ready",
    ]


def test_a_server_is_ready_where_the_states_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Mapping[Key, ServerState]:
        raise SessionError("no answer")

    session = RecordingSession()
    monkeypatch.setattr(session, "fetch_states", fail)

    assert admit(session, Join(KEY, "", (), check_wait=2.0))
    assert session.sent[2:] == ["set server lb/web1 state ready"]


def test_a_server_has_a_second_to_accept_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[tuple[str, int]], float]] = []

    def find(endpoints: Iterable[tuple[str, int]], timeout: float) -> set[tuple[str, int]]:
        asked.append(([*endpoints], timeout))
        return set()

    monkeypatch.setattr(processes, "find_silent_endpoints", find)

    joins = Join(KEY, "", (), ("10.0.0.1", 80)), Join(KEY, "", (), ("10.0.0.2", 80), check_wait=1.0), Join(KEY, "", ())
    assert admit(RecordingSession(), *joins)
    assert asked == [([("10.0.0.1", 80)], 1.0)]


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
    assert admit(RecordingSession({command: None}), Join(KEY, "", (), check_wait=0.1)) is False


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
