"""HAProxy's stats socket: find its address in `global`, send a line of commands, read the answer.

Protocol: HAProxy management manual, section 9.3 "Unix Socket commands".
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence

COMMAND_LIMIT = 8 * 1024
"""Maximum bytes of one command. One longer than tune.bufsize is never answered and blocks its session."""

_SUN_PATH = 108
"""Size of a Unix socket address in bytes."""

_ANSWER_LIMIT = 64 * 1024 * 1024


class TruncatedAnswer(OSError):
    """HAProxy closed the connection in the middle of its answer."""


def list_stats_sockets(settings: Iterable[Sequence[str]]) -> list[str]:
    """Return the addresses of the stats sockets in `settings`, the words of each line of `global`."""
    return [words[2] for words in settings if len(words) > 2 and words[:2] == ["stats", "socket"]]  # noqa: PLR2004


def ask(address: str, command: str, timeout: float) -> str:
    """Send one command and return the answer. Raises OSError (ConnectionRefusedError if nothing listens).

    `timeout` is in seconds.
    """
    answer, why = exchange(address, command, timeout)
    if why:
        raise why
    return answer


def exchange(address: str, line: str, timeout: float) -> tuple[str, OSError | None]:
    """Send one line of commands; return the answer, and the error that cut it short.

    `timeout` is in seconds. Raises OSError if the line cannot be sent.
    """
    family, name = _parse_address(address)
    answer = bytearray()
    deadline = time.monotonic() + timeout
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(name)
        # HAProxy silently drops a command without its newline.
        connection.sendall(f"{line}\n".encode())
        try:
            while len(answer) < _ANSWER_LIMIT and (piece := connection.recv(1 << 16)):
                answer += piece
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
        except OSError as error:
            return answer.decode("utf-8", "replace"), error
    return answer.decode("utf-8", "replace"), None if answer.endswith(b"\n") else TruncatedAnswer(
        "the answer was cut off"
    )


def split_answers(text: str) -> list[str]:
    """Split the output of a line of commands into answers; each ends with an empty line."""
    found: list[str] = []
    lines: list[str] = []
    for line in text.split("\n")[:-1]:
        if line:
            lines.append(line)
        else:
            found.append("\n".join(lines))
            lines = []
    return found


def parse_info(answer: str) -> dict[str, str]:
    """Parse the answer to `show info` into names and values."""
    return dict(line.partition(": ")[::2] for line in answer.splitlines())


def parse_worker_pid(info: dict[str, str]) -> int | None:
    """Return the pid of the worker in an answer to `show info`; None if it is stopping."""
    pid = info.get("Pid", "")
    return int(pid) if pid.isdigit() and info.get("Stopping", "0") == "0" else None


def fetch_worker_pid(address: str, timeout: float = 1.0) -> int | None:
    """Return the pid of the worker that answers on the socket; None if it is stopping. Raises OSError."""
    return parse_worker_pid(parse_info(ask(address, "show info", timeout)))


def _parse_address(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    kind, separator, rest = address.partition("@")
    if not separator:
        kind, rest = "unix" if address.startswith("/") else "ipv4", address
    if kind == "unix":
        return socket.AF_UNIX, rest
    if kind == "abns":
        # HAProxy binds the whole of sun_path, padded with zeros.
        return socket.AF_UNIX, f"\0{rest}".ljust(_SUN_PATH, "\0")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        raise OSError(f"stats socket {address!r} has an unsupported address")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return family, (host.strip("[]") or "127.0.0.1", int(port))
