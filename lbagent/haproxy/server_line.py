"""Build `server` lines that are safe by construction: the only way for foreign data into haproxy.cfg.

HAProxy accepts a newline inside an argument and reads the rest as another directive. It reads `:80` as 0.0.0.0 and
`1.2.3:80` as 1.2.0.3, and expands `${…}`. `Server` rejects all of that.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from lbagent.names import NAME, SERVICE, canonical_address

_Key = TypeVar("_Key")

_safe_options: set[str] = {""}

ROLE_COMMENT = " # lbagent role="
"""Comment that marks a managed `server` line; the name of the role follows."""

PAUSED_ROLE_COMMENT = " # lbagent paused role="
"""The same for a paused node that drains."""

_DRAIN = f" weight 0{PAUSED_ROLE_COMMENT}"

ID_LIMIT = 1 << 20
"""HAProxy's consistent hash uses ids modulo 2^20 (lb_chash.c: puid * 4096 in 32 bits)."""

SMALLEST_ID = 1 << 12
"""HAProxy gives lower ids, by position, to servers without `id`."""


class Unsafe(ValueError):
    """A value that may not become part of a `server` line."""


class Server:
    """The server of a managed line."""

    __slots__ = ("address", "id", "name", "options", "port", "role")

    def __init__(self, name: str, address: str, port: int, options: str, role: str, id: int | None = None) -> None:  # noqa: A002  # the fields of the line
        """Validate the fields. Raises Unsafe if HAProxy could read one of them as something else."""
        if not NAME.fullmatch(name) and not _is_service_name(name):
            raise Unsafe(f"server name {name!r} is not {NAME.pattern}")
        if canonical_address(address) != address:
            raise Unsafe(f"{address!r} is not the canonical form of an IP address")
        if not 1 <= port <= 65535:  # noqa: PLR2004
            raise Unsafe(f"port {port} is not 1 to 65535")
        if options not in _safe_options:
            if not (options.isascii() and options.isprintable()) or "#" in options:
                raise Unsafe(f"options {options!r} hold more than printable ASCII without '#'")
            _safe_options.add(options)
        if not NAME.fullmatch(role):
            raise Unsafe(f"role {role!r} is not {NAME.pattern}")
        self.name, self.address, self.port, self.options, self.role, self.id = name, address, port, options, role, id

    @property
    def endpoint(self) -> str:
        """ADDRESS:PORT, with an IPv6 address in brackets."""
        return format_endpoint(self.address, self.port)

    @property
    def line(self) -> str:
        """The managed line, without indentation and line ending."""
        return format_server_line(self.name, self.endpoint, self.options, self.role, self.id)


def _is_service_name(name: str) -> bool:
    node, _, service = name.rpartition(".")
    return bool(NAME.fullmatch(node) and SERVICE.fullmatch(service))


def format_paused_line(node: str, address: str, role: str) -> str:
    """Return the comment that replaces the `server` line of a paused node. Raises Unsafe."""
    safe = Server(node, address, 1, "", role)
    return f"# lbagent paused {safe.name} {safe.address} role={safe.role}"


def is_drained(text: str) -> bool:
    """Return whether this is the managed line of a paused node that drains."""
    return PAUSED_ROLE_COMMENT in text and not text.startswith("#")


def select_drained(lines: Mapping[_Key, str]) -> dict[_Key, str]:
    """Return those of the lines that `is_drained` is true of. Fast for thousands of lines."""
    return {key: line for key, line in lines.items() if PAUSED_ROLE_COMMENT in line and is_drained(line)}


def drain_line(text: str) -> str:
    """Return the managed line of a server while its node is paused and drains."""
    if is_drained(text):
        return text
    # HAProxy uses the last `weight` of a line.
    head, _, role = text.rpartition(ROLE_COMMENT)
    return f"{head}{_DRAIN}{role}"


def undrain_line(text: str) -> str:
    """Return the managed line of a server after its node is resumed."""
    head, _, role = text.rpartition(PAUSED_ROLE_COMMENT)
    return f"{head.removesuffix(' weight 0')}{ROLE_COMMENT}{role}" if head else text


def format_server_line(name: str, endpoint: str, options: str, role: str, id: int | None = None) -> str:  # noqa: A002  # HAProxy's keyword
    """Return the managed line with these fields. They are not validated: to be written, it needs `Server`."""
    number = f" id {id}" if id else ""
    return f"server {name} {endpoint}{' ' if options else ''}{options}{number}{ROLE_COMMENT}{role}"


def format_endpoint(address: str, port: int | str) -> str:
    """Format ADDRESS:PORT, with an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def assign_stable_ids(nodes: Iterable[str], taken: Iterable[int] = ()) -> Mapping[str, int]:
    """Return an id for each node, derived from its name; on a collision the next hash is tried.

    `taken` are the ids of other servers. The ids are the same on all load balancers and do not change when other nodes
    join or leave, so a consistent hash keeps sending a client to the same server.
    """
    used = {number % ID_LIMIT for number in taken}
    ids: dict[str, int] = {}
    for node in sorted(nodes):
        attempt = 0
        while (number := _hash_name(node, attempt)) in used:
            attempt += 1
        used.add(number)
        ids[node] = number
    return ids


def _hash_name(node: str, attempt: int) -> int:
    text = f"{node}#{attempt}" if attempt else node
    return SMALLEST_ID + zlib.crc32(text.encode()) % (ID_LIMIT - SMALLEST_ID)
