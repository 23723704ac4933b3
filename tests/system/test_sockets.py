"""host/sockets: who listens where, and when two addresses are one."""

from __future__ import annotations

import os
import socket

import pytest

from lbagent.system.sockets import find_listening_users, is_same_endpoint


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
def test_two_addresses_are_one_however_they_are_written(one: str, other: str, are: bool) -> None:  # noqa: FBT001
    assert (is_same_endpoint(one, other), is_same_endpoint(other, one)) == (are, are)


def test_who_listens_is_known_by_his_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as here:
        port = here.getsockname()[1]

        assert find_listening_users(f"localhost:{port}") == {os.getuid()}
        assert find_listening_users(f"127.0.0.2:{port}") == set()
    assert find_listening_users(f"127.0.0.1:{port}") == set()
