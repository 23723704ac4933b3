"""Whether somebody listens is found out side by side, and without being noticed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from lbagent.system.sockets import find_silent_endpoints
from tests.helpers.real_programs import free_port


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(0.2)
        yield one


def test_who_refuses_is_told_from_who_listens(listener: socket.socket) -> None:
    there, nobody = ("127.0.0.1", listener.getsockname()[1]), ("127.0.0.1", free_port())

    assert find_silent_endpoints([there, nobody, there], 1.0) == {nobody}


def test_who_listens_sees_nobody_come(listener: socket.socket) -> None:
    assert find_silent_endpoints([("127.0.0.1", listener.getsockname()[1])], 1.0) == set()

    with pytest.raises(TimeoutError):
        listener.accept()


def test_a_full_backlog_is_waited_for_no_longer_than_its_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        where = full.getsockname()
        with socket.create_connection(where), socket.socket() as second:
            second.settimeout(0)
            second.connect_ex(where)
            time.sleep(0.05)

            assert find_silent_endpoints([where], 0.2) == {where}


def test_many_are_tried_at_once(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    nobody = {(f"127.8.{number // 250}.{number % 250 + 1}", port) for number in range(500)}

    assert find_silent_endpoints([("127.0.0.1", port), *nobody], 5.0) == nobody


@pytest.mark.parametrize("where", [("::1", 1), ("255.255.255.255", 1)])
def test_what_cannot_be_reached_at_all_is_silent_or_not_known(where: tuple[str, int]) -> None:
    assert find_silent_endpoints([where], 0.5) <= {where}


def test_nobody_is_asked_about_nothing() -> None:
    assert find_silent_endpoints([], 1.0) == set()
