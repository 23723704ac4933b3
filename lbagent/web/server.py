"""The process of `lbagent web`: listens, serves until SIGTERM or Ctrl-C, and ends streams before it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import uvicorn

from lbagent.daemon import sd_notify
from lbagent.errors import UsageError
from lbagent.settings import STATUS_SOCKET
from lbagent.system.log import Log
from lbagent.web.access import Hosts, Users
from lbagent.web.app import Site, build_app

_CONNECTIONS = 500
"""Connections at once; further ones are answered 503."""


class Options(NamedTuple):
    """The options of the command line."""

    listen: str
    """ADDRESS:PORT."""
    hosts: Sequence[str] = ()
    users: str | None = None
    prefix: str = ""
    peers: Sequence[str] = ()


def serve(options: Options, folder: str, log: Log) -> int:
    """Serve until SIGTERM or SIGINT. `folder` has the daemon's status socket. Raises LbagentError, OSError."""
    address, port = parse_listen(options.listen)
    server: _Server | None = None
    names = [*options.hosts, address, *(["localhost"] if address in ("127.0.0.1", "::1") else [])]
    site = Site(
        os.path.join(folder, STATUS_SOCKET),
        os.uname().nodename,
        parse_prefix(options.prefix),
        Hosts(names),
        Users(options.users) if options.users else None,
        tuple(options.peers),
        lambda: server is None or server.should_exit,
        log,
    )
    logging.getLogger("uvicorn").addHandler(_LogHandler(log))
    config = uvicorn.Config(
        build_app(site),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
    )
    server = _Server(config)
    with _listen(address, port) as listener:
        log.info(f"web: listens on {options.listen}")
        server.run(sockets=[listener])
    return 0


def parse_listen(text: str) -> tuple[str, int]:
    """Return address and port of ADDRESS:PORT. Raises UsageError."""
    address, _, port = text.rpartition(":")
    if not address or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--listen {text[:60]!r}: not ADDRESS:PORT, such as 127.0.0.1:8053 or [::1]:8053")
    return address.removeprefix("[").removesuffix("]"), int(port)


def parse_prefix(text: str) -> str:
    """Return the prefix as /NAME or /NAME/NAME, without a slash at the end. Raises UsageError."""
    plain = text.rstrip("/")
    if plain and not (plain.startswith("/") and plain.replace("/", "").replace("-", "").replace("_", "").isalnum()):
        raise UsageError(f"--prefix {text[:60]!r}: not a path such as /lbagent")
    return plain


@contextlib.contextmanager
def _listen(address: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][0]
    except OSError as error:
        raise UsageError(f"--listen {address}:{port}: {error.strerror}; use an IP address of this host") from error
    try:
        listener = socket.create_server((address, port), family=family)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), f"--listen {address}:{port}") from error
    with listener:
        yield listener


class _Server(uvicorn.Server):
    """uvicorn's server, with signals of our own: it would raise them again at its end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at SIGTERM and Ctrl-C."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        yield

    def install_signal_handlers(self) -> None:
        """End at SIGTERM and Ctrl-C; uvicorn before 0.29 asks for them here."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def _end(self, *_: object) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and notify systemd."""
        await super().startup(sockets=sockets)
        sd_notify.notify("READY=1")


class _LogHandler(logging.Handler):
    """Writes uvicorn's warnings and errors to lbagent's log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self._log.warning(f"web: {record.getMessage()}")
