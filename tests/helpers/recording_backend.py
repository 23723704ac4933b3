"""A backend that records, for each of its addresses, the contents of connections.

PROXY header, TLS hello, first request or bytes; the source address; which requests shared a connection. It speaks TLS
to clients that do, and answers HTTP/1 with 200, below `/error` with 500.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Self

CERTIFICATE = Path(__file__).with_name("backend.pem")
"""Key and certificate of `backend.test`, made for these tests alone."""

_PATIENCE = 3.0
_SPEAKS_FIRST = 6.0
"""Seconds after which a silent client counts as waiting for a greeting."""


class Recorder:
    """Listens on one port of every loopback address."""

    def __init__(self, port: int) -> None:
        """Nothing is started before the `with`."""
        self._port = port
        self._lock = threading.Lock()
        self.checks: dict[str, set[str]] = defaultdict(set)
        """By address: what its checks looked like."""
        self.traffic: dict[str, set[str]] = defaultdict(set)
        """By address: what connections with requests of clients looked like."""
        self._connections: dict[str, list[list[int]]] = defaultdict(list)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(CERTIFICATE)
        self._tls.set_alpn_protocols(["http/1.1", "h2"])
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("0.0.0.0", self._port), backlog=512)
        threading.Thread(target=self._accept, args=(self._socket,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listening.accept()
                threading.Thread(target=self._serve, args=(connection, peer[0]), daemon=True).start()

    def _serve(self, connection: socket.socket, source: str) -> None:
        with contextlib.suppress(OSError, ValueError, ssl.SSLError), connection:
            connection.settimeout(_PATIENCE)
            address = connection.getsockname()[0]
            proxy = _proxy_header(connection)
            seen = [f"from {_normalize_address(source)}", proxy]
            if _peek(connection, 1) == b"\x16":
                hello = _peek(connection, 5)
                seen.append(_parse_client_hello(_peek(connection, 5 + int.from_bytes(hello[3:5], "big"))))
                try:
                    with self._tls.wrap_socket(connection, server_side=True) as secure:
                        self._answer(secure, address, seen)
                except ssl.SSLError:
                    self._note(self.checks, address, seen)
            else:
                self._answer(connection, address, seen)

    def _answer(self, connection: socket.socket, address: str, seen: list[str]) -> None:
        connection.settimeout(_SPEAKS_FIRST)
        try:
            data = connection.recv(65536)
        except TimeoutError:
            data = b""
        except OSError:
            data = b""
        if not re.match(rb"[A-Z]+ /\S* HTTP/1", data):
            if data[:1] == b"\x16":  # of `ssl-hello-chk`, with random bytes in it
                data = b"a TLS hello of %d bytes" % len(data)
            self._note(self.checks, address, [*seen, f"{data[:400]!r}"] if data else seen)
            return
        connection.settimeout(_PATIENCE)
        if b" /traffic" not in data and b" /error" not in data:
            self._note(self.checks, address, [*seen, _mask_address(data, address, self._port)])
            connection.sendall(_response(200))
            return
        self._note(self.traffic, address, seen)
        counted = [0]
        with self._lock:
            self._connections[address].append(counted)
        while data:
            counted[0] += 1
            connection.sendall(_response(500 if b" /error" in data else 200))
            data = connection.recv(65536)

    def connections(self, address: str) -> list[int]:
        """Return the numbers of requests on each connection to this address since the last call."""
        with self._lock:
            return [number for [number] in self._connections.pop(address, ())]

    def seen(self, address: str, *, clients: bool) -> list[str]:
        """Return descriptions of the connections to this address, without beginnings of other ones."""
        with self._lock:
            found = sorted((self.traffic if clients else self.checks).get(address, ()))
        return [one for one in found if not any(other.startswith(f"{one} | ") for other in found)]

    def _note(self, where: dict[str, set[str]], address: str, seen: list[str]) -> None:
        with self._lock:
            where[address].add(" | ".join(seen))


def _response(status: int) -> bytes:
    return f"HTTP/1.1 {status} Said\r\nContent-Length: 2\r\n\r\nok".encode()


def _mask_address(data: bytes, address: str, port: int) -> str:
    text = data.decode("latin1").replace(address, "ADDRESS").replace(str(port), "PORT")
    return re.sub("(?i)(x-haproxy-server-state:).*", r"\1", text)  # contains times and counters


def _normalize_address(address: str) -> str:
    return "loopback" if address.startswith("127.") and not address.startswith("127.9.") else address


def _peek(connection: socket.socket, size: int) -> bytes:
    """Return up to `size` bytes without consuming them."""
    connection.settimeout(_SPEAKS_FIRST)
    found = b""
    with contextlib.suppress(TimeoutError):
        for _ in range(12):
            before, found = found, connection.recv(size, socket.MSG_PEEK)
            if len(found) >= size or not found:
                break
            if len(found) == len(before):
                time.sleep(0.002)  # the rest may still arrive
    connection.settimeout(_PATIENCE)
    return found


def _proxy_header(connection: socket.socket) -> str:
    start = _peek(connection, 16)
    if start.startswith(b"PROXY "):
        line = b""
        while not line.endswith(b"\n"):
            line += connection.recv(1)
        return f"PROXY v1 {line.split()[1].decode()}"
    if start.startswith(b"\r\n\r\n\0\r\nQUIT\n"):
        head = connection.recv(16)
        size = struct.unpack("!H", head[14:16])[0]
        body = connection.recv(size) if size else b""
        at = {0x1: 12, 0x2: 36, 0x3: 216}.get(head[13] >> 4, 0)
        kinds = []
        while at + 3 <= len(body):
            kinds.append(f"{body[at]:02x}")
            at += 3 + int.from_bytes(body[at + 1 : at + 3], "big")
        return f"PROXY v2 {head[12]:02x} {head[13]:02x} {','.join(kinds)}"
    return "no PROXY header"


def _parse_client_hello(record: bytes) -> str:
    """Return the contents of a TLS hello: versions, ciphers, extensions, server name, protocols."""
    at = 9 + 2 + 32
    at += 1 + record[at]
    size = int.from_bytes(record[at : at + 2], "big")
    ciphers = hashlib.sha256(record[at + 2 : at + 2 + size]).hexdigest()[:8]
    at += 2 + size
    at += 1 + record[at]
    end = at + 2 + int.from_bytes(record[at : at + 2], "big")
    at += 2
    found = []
    while at + 4 <= end:
        kind, size = struct.unpack("!HH", record[at : at + 4])
        body = record[at + 4 : at + 4 + size]
        # Session tickets, key shares, padding and pre-shared keys differ from connection to connection.
        if kind not in (21, 35, 41, 42, 45, 51):
            found.append(f"{kind}={body.hex()}")
        elif kind == 35:  # only the presence of tickets is compared
            found.append("tickets")
        at += 4 + size
    return f"TLS ciphers {ciphers} {' '.join(found)}"
