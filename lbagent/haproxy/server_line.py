"""One `server` line, safe by construction: the only way by which foreign data gets into haproxy.cfg.

HAProxy accepts a newline inside an argument and reads what follows as a directive of its own, takes
`:80` for 0.0.0.0 and `1.2.3:80` for 1.2.0.3, and expands `${…}`: nothing of that can be said here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from lbagent.names import NAME, SERVICE, canonical_address

_safe_options: set[str] = {""}

OURS = " # lbagent role="
"""What makes a `server` line a managed one, before the name of the role."""

PAUSED_OURS = " # lbagent paused role="
"""The same on the line of a paused node that drains."""

_DRAIN = f" weight 0{PAUSED_OURS}"

LARGEST_ID = 1 << 20
"""The ring of a consistent hash sees an id modulo 2^20 (lb_chash.c: puid * 4096 in 32 bits)."""

SMALLEST_ID = 1 << 12
"""Below lie the ids that HAProxy gives by position to servers without one."""


class Unsafe(ValueError):
    """A value that may not become part of a `server` line."""


class Server:
    """A server as it will stand in haproxy.cfg, or as the comment that stands for a paused one."""

    __slots__ = ("address", "id", "name", "options", "port", "role")

    def __init__(self, name: str, address: str, port: int, options: str, role: str, id: int | None = None) -> None:  # noqa: A002  # the fields of the line
        """Raises Unsafe, ValueError, where any of the fields could be read as something else."""
        if not NAME.fullmatch(name) and not _of_service(name):
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
        """ADDRESS:PORT, an IPv6 address in brackets."""
        return format_endpoint(self.address, self.port)

    @property
    def line(self) -> str:
        """The managed line, without indentation and line ending."""
        return f"server {self.name} {self.endpoint}{format_tail(self.options, self.role, self.id)}"


def _of_service(name: str) -> bool:
    node, _, service = name.rpartition(".")
    return bool(NAME.fullmatch(node) and SERVICE.fullmatch(service))


def format_paused_line(node: str, address: str, role: str) -> str:
    """The comment that stands where a paused node's `server` line would. Raises Unsafe."""
    safe = Server(node, address, 1, "", role)
    return f"# lbagent paused {safe.name} {safe.address} role={safe.role}"


def is_drained(text: str) -> bool:
    """Whether this is the managed line of a paused node that drains."""
    return PAUSED_OURS in text and not text.startswith("#")


def drain_line(text: str) -> str:
    """The managed line of a server, as it is while its node is paused and drains."""
    if is_drained(text):
        return text
    # HAProxy goes by the last `weight` of a line.
    head, _, role = text.rpartition(OURS)
    return f"{head}{_DRAIN}{role}"


def undrain_line(text: str) -> str:
    """The managed line of a server, as it is once its node takes new clients again."""
    head, _, role = text.rpartition(PAUSED_OURS)
    return f"{head.removesuffix(' weight 0')}{OURS}{role}" if head else text


def format_tail(options: str, role: str, id: int | None = None) -> str:  # noqa: A002  # HAProxy's keyword
    """What follows the address in the line; by itself nothing that may be written."""
    number = f" id {id}" if id else ""
    return f"{' ' if options else ''}{options}{number}{OURS}{role}"


def format_endpoint(address: str, port: int | str) -> str:
    """ADDRESS:PORT, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def assign_stable_ids(nodes: Iterable[str], taken: Iterable[int] = ()) -> Mapping[str, int]:
    """A number for each node, made from its name alone but where two would share one.

    The same on both load balancers, and unchanged when others join or leave, so that a consistent
    hash sends a client where it was sent before.
    """
    used = {number % LARGEST_ID for number in taken}
    ids: dict[str, int] = {}
    for node in sorted(nodes):
        attempt = 0
        while (number := _hash(node, attempt)) in used:
            attempt += 1
        used.add(number)
        ids[node] = number
    return ids


def _hash(node: str, attempt: int) -> int:
    text = f"{node}#{attempt}" if attempt else node
    return SMALLEST_ID + zlib.crc32(text.encode()) % (LARGEST_ID - SMALLEST_ID)
