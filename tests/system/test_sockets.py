"""Listeners are found, endpoints are compared by address, and silent endpoints are found without being connected to."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from lbagent.system.processes import find_listening_users, find_silent_endpoints, is_same_endpoint
from tests.helpers.real_programs import free_port


@pytest.mark.parametrize(
    ("one", "other", "are"),
    [
        ("127.0.0.1:7373", "127.0.0.1:7373", True),
        ("localhost:7373", "127.0.0.1:7373", True),
        ("0.0.0.0:7373", "127.0.0.1:7373", True),
        (":7373", "127.0.0.1:7373", True),
        ("[::]:7373", "127.0.0.1:7373", True),
        ("[::1]:7373", "0:0:0:0:0:0:0:1:7373", True),
        ("127.0.0.1:7373", "127.0.0.2:7373", False),
        ("localhost:7373", "127.0.0.1:7374", False),
        ("0.0.0.0:7374", "127.0.0.1:7373", False),
        ("unix.sock", "127.0.0.1:7373", False),
        ("127.0.0.1:99999999999999999999", "127.0.0.1:7373", False),
        ("\x00:7373", "127.0.0.1:7373", False),
    ],
)
def test_endpoints_are_compared_by_address_not_by_spelling(one: str, other: str, are: bool) -> None:  # noqa: FBT001
    assert (is_same_endpoint(one, other), is_same_endpoint(other, one)) == (are, are)


def test_the_uid_of_a_listener_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as here:
        port = here.getsockname()[1]

        assert find_listening_users(f"localhost:{port}") == {os.getuid()}
        assert find_listening_users(f"127.0.0.2:{port}") == set()
    assert find_listening_users(f"127.0.0.1:{port}") == set()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(0.2)
        yield one


def test_only_the_endpoint_that_refuses_is_silent(listener: socket.socket) -> None:
    there, nobody = ("127.0.0.1", listener.getsockname()[1]), ("127.0.0.1", free_port())

    assert find_silent_endpoints([there, nobody, there], 1.0) == {nobody}


def test_the_listener_sees_no_connection(listener: socket.socket) -> None:
    assert find_silent_endpoints([("127.0.0.1", listener.getsockname()[1])], 1.0) == set()

    with pytest.raises(TimeoutError):
        listener.accept()


def test_an_endpoint_with_a_full_backlog_is_silent_after_the_time_limit() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        where = full.getsockname()
        with socket.create_connection(where), socket.socket() as second:
            second.settimeout(0)
            second.connect_ex(where)
            time.sleep(0.05)

            assert find_silent_endpoints([where], 0.2) == {where}


def test_five_hundred_endpoints_are_tried(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    nobody = {(f"127.8.{number // 250}.{number % 250 + 1}", port) for number in range(500)}

    assert find_silent_endpoints([("127.0.0.1", port), *nobody], 5.0) == nobody


@pytest.mark.parametrize("where", [("::1", 1), ("255.255.255.255", 1)])
def test_an_unreachable_endpoint_raises_no_error(where: tuple[str, int]) -> None:
    assert find_silent_endpoints([where], 0.5) <= {where}


def test_no_endpoints_give_no_silent_ones() -> None:
    assert find_silent_endpoints([], 1.0) == set()
