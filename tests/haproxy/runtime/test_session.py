"""A session on a stats socket matches each answer to its command, and reports every error."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbagent.haproxy.runtime import session
from lbagent.haproxy.runtime.session import Session, SessionError, Worker, open_session

WORKER = Worker(4711, 1)
INFO = "Name: HAProxy\nPid: 4711\nStopping: 0\n\n"


class Listener:
    """A stats socket that sends prepared answers, to one line of commands per connection."""

    def __init__(self, path: Path, answer: Callable[[str], str | None]) -> None:
        self.path, self.heard = path, list[str]()
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._silent: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
            last.sendall(b"\n")
        self._thread.join(5)
        for one in (self._socket, *self._silent):
            one.close()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            line = b""
            while not line.endswith(b"\n"):
                line += connection.recv(1 << 16)
            if line == b"\n":
                connection.close()
                return
            self.heard.append(line.decode().rstrip("\n"))
            answer = self._answer(self.heard[-1])
            if answer is None:
                self._silent.append(connection)
            else:
                connection.sendall(answer.encode())
                connection.close()


Listening = Callable[[Callable[[str], str | None]], Listener]


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    with contextlib.ExitStack() as stack:

        def made(answer: Callable[[str], str | None]) -> Listener:
            listener = Listener(tmp_path / "stats.sock", answer)
            stack.callback(listener.close)
            return listener

        yield made


def settings(path: Path, *more: list[str]) -> list[list[str]]:
    return [["stats", "socket", str(path), "level", "admin"], *more]


def answering(info: str = INFO, level: str = "admin", rest: str = "") -> Callable[[str], str | None]:
    """Return answers in HAProxy's format: a level where it is requested, `show info`, and `rest` for what follows."""

    def answer(line: str) -> str:
        return f"{level}\n\n{info}" if line.startswith("show cli level") else info + rest

    return answer


def against(path: Path) -> str:
    with pytest.raises(SessionError) as refused:
        open_session(settings(path), WORKER)
    return str(refused.value).replace(str(path), "SOCKET")


def test_without_a_socket_nothing_is_sent() -> None:
    with pytest.raises(SessionError, match=r"haproxy.cfg has no `stats socket … level admin`"):
        open_session([["maxconn", "7"]], WORKER)


def test_a_socket_without_a_listener_is_reported(tmp_path: Path) -> None:
    assert against(tmp_path / "none.sock") == "SOCKET: no listener"


def test_a_socket_of_an_ended_haproxy_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "stats.sock"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))

    assert against(path) == "SOCKET: no listener"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (answering(level="operator"), "has `level operator`, not `level admin`"),
        (
            answering(INFO.replace("4711", "4712")),
            "does not belong to the newest worker, 4711, or that one is stopping",
        ),
        (
            answering(INFO.replace("Stopping: 0", "Stopping: 1")),
            "does not belong to the newest worker, 4711, or that one is stopping",
        ),
        (lambda _: "", "truncated answer"),
        (lambda _: "admin\n\nPid: 47", "truncated answer"),
        (lambda _: "admin\n\n", "truncated answer"),
    ],
)
def test_an_unusable_socket_is_reported_with_the_reason(
    listening: Listening, answer: Callable[[str], str | None], why: str
) -> None:
    assert against(listening(answer).path) == f"SOCKET: {why}"


def test_a_socket_that_never_answers_ends_in_a_timeout(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_QUERY_TIMEOUT", 0.1)

    assert against(listening(lambda _: None).path) == "SOCKET: no answer in time"


def test_the_first_usable_socket_is_used(listening: Listening, tmp_path: Path) -> None:
    good = listening(answering(rest="\n"))
    lines = [["stats", "socket", str(tmp_path / "none")], ["stats", "socket", "fd@3"], *settings(good.path)]

    talk = open_session(lines, WORKER)

    assert talk.send(["set server a/b state maint"]) == [""]
    assert good.heard[-1] == "show info;set server a/b state maint"


def talking(listener: Listener, *more: list[str]) -> Session:
    return open_session(settings(listener.path, *more), WORKER)


def test_after_a_truncated_answer_the_rest_has_no_answer(listening: Listening) -> None:
    talk = talking(listening(answering(rest="\nNo such server.\n\nNew serv")))

    assert talk.send(["one", "two", "three", "four"]) == ["", "No such server.", None, None]
    assert talk.problems == ["2 of 4 commands were answered: the answer was cut off"]


def test_with_fewer_answers_than_commands_the_rest_has_no_answer(listening: Listening) -> None:
    talk = talking(listening(answering(rest="\n")))

    assert talk.send(["one", "two"]) == ["", None]
    assert talk.problems == ["1 of 2 commands were answered: the rest was not"]


def test_answers_of_another_worker_do_not_count(listening: Listening) -> None:
    listener = listening(lambda line: ("admin\n\n" if "level" in line else "") + INFO)
    talk = talking(listener)
    listener._answer = lambda _: INFO.replace("4711", "4712") + "\n\n"

    assert talk.send(["one", "two"]) == [None, None]
    assert talk.problems == [f"{listener.path} was answered by process 4712, not by worker 4711"]


def test_a_pause_in_the_answers_ends_in_a_timeout(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_SEND_TIMEOUT", 0.1)
    listener = listening(answering())
    talk = talking(listener)
    listener._answer = lambda _: None

    assert talk.send(["one"]) == [None]
    assert talk.problems == [f"{listener.path}: no answer in time"]


@pytest.mark.parametrize(("more", "most"), [([], 8192), ([["tune.bufsize", "4096"]], 3072)])
def test_a_command_that_is_too_long_for_haproxy_is_never_sent(
    listening: Listening, more: list[list[str]], most: int
) -> None:
    listener = listening(answering(rest="\n"))
    talk = talking(listener, *more)

    assert talk.send(["one", "x" * most, "two"]) == ["", None, ""]
    assert talk.problems == [f"a command of {most + 1} bytes exceeds the limit of HAProxy"]
    assert all("xx" not in line for line in listener.heard)
    assert talk.send(["x" * (most - 1)]) == [""]


def test_thousands_of_commands_are_split_into_lines(listening: Listening) -> None:
    listener = listening(answering())
    listener._answer = lambda line: ("admin\n\n" if "level" in line else "") + INFO + "\n" * line.count("set ")
    talk = talking(listener)

    answers = talk.send([f"set server lb/web{number:04} state maint" for number in range(2000)])

    assert answers == [""] * 2000
    assert max(len(line) for line in listener.heard) < 33_000
