"""Long TCP sessions: echo servers, and clients that notice when their session ends."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

CONFIG = """\
global
    stats socket {socket} mode 600 level admin expose-fd listeners
    maxconn 500
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
listen sql
    bind 127.0.0.1:{front}
    balance leastconn
    # additional-sql-db-server
"""

ROLES = """\
haproxy:
  config: {cfg}
services:
  db: {{port: {port}}}
roles:
  db: {{sql: [db], interval: 200ms, networks: [127.0.0.0/8]}}
"""


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.sendall(f"{self.request.getsockname()[0]}\n".encode())
            while heard := self.request.recv(4096):
                self.request.sendall(heard)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


@contextlib.contextmanager
def run_echo_servers(addresses: list[str], port: int) -> Iterator[None]:
    """Run an echo server on each address until the end of the block."""
    with contextlib.ExitStack() as stack:
        for address in addresses:
            one = stack.enter_context(_Server((address, port), _Echo))
            threading.Thread(target=one.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(one.shutdown)
        yield


class Session:
    """One connection, open until `close`."""

    def __init__(self, port: int) -> None:
        """Connect, and read the name of the server."""
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._file = self._socket.makefile("rwb", 0)
        self.server = self._file.readline().decode().strip()

    def is_alive(self) -> bool:
        """Return whether the server still answers over this connection."""
        try:
            self._file.write(b"query\n")
            return self._file.readline() == b"query\n"
        except OSError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()


@contextlib.contextmanager
def open_sessions(port: int, number: int) -> Iterator[list[Session]]:
    """Open `number` sessions, which are closed at the end of the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Session(port))) for _ in range(number)]
