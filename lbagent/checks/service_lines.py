"""The lines that roles.yml would make, validated with documentation addresses before any node exists."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections import UserDict
from collections.abc import Iterator, Mapping
from itertools import count

from lbagent.checks.candidate import Validator
from lbagent.haproxy.lines import Marker
from lbagent.haproxy.server import Server
from lbagent.haproxy.text import Document, Edit
from lbagent.roles import Missing, Role, Roles, Service
from lbagent.tuples import NamedTuple

_HOLD_SERVERS = ("backend", "listen")
_FIRST = int(ipaddress.IPv4Address("192.0.2.1"))  # RFC 5737: addresses for documentation
_PLACE = re.compile(r"^(?:parsing )?\[[^\]]*\] ?: ?(?:'server [^']*' ?: ?)?")

_MOST = 40
"""Lines that are tried one by one after all of them together were refused."""


class RefusedLine(NamedTuple):
    """What a role and a service make, and HAProxy refuses."""

    role: str
    service: str
    words: str
    """HAProxy's."""

    def __str__(self) -> str:
        return f"role {self.role}, service {self.service}: HAProxy refuses every line: {self.words}"


class _Line(NamedTuple):
    """The line of one role and service, at one marker."""

    role: str
    service: str
    marker: Marker
    text: str


class _AnyTag(UserDict[str, str]):
    """The tags of a node that has every tag."""

    def __missing__(self, key: str) -> str:
        return "1"

    def __contains__(self, key: object) -> bool:
        return True


def refused_lines(document: Document, roles: Roles, validator: Validator) -> list[RefusedLine]:
    """The lines that HAProxy refuses, one for each role and service. Raises TryAgain where it cannot be asked.

    Only what the live haproxy.cfg allows can be judged: where that is refused itself, the result is empty.
    """
    lines = [*_lines(document, roles)]
    if not lines or validator.live_refusal() is not None or validator.refusal(_with(document, lines)) is None:
        return []
    tried = list(dict.fromkeys((line.role, line.service) for line in lines))[:_MOST]
    found = []
    for role, service in tried:
        own = [line for line in lines if (line.role, line.service) == (role, service)]
        if words := validator.refusal(_with(document, own)):
            found.append(RefusedLine(role, service, _PLACE.sub("", words)))
    return found


def _lines(document: Document, roles: Roles) -> Iterator[_Line]:
    pairs, serving, numbers = roles.pairs(), roles.serving(), count()
    for proxy in document.proxies:
        for marker in proxy.markers if proxy.kind in _HOLD_SERVERS else ():
            pair = pairs.get(marker.middle)
            for role in serving[pair] if pair else ():
                number = next(numbers)
                if pair and (text := _text(role, roles.services[pair.service], number)):
                    yield _Line(role.name, pair.service, marker, text)


def _text(role: Role, service: Service, number: int) -> str | None:
    """The line of a node of that role; None where no tags make one."""
    node = f"lbagent-check-{number}"
    values, address = role.values(node), str(ipaddress.IPv4Address(_FIRST + number % 254))
    every: tuple[Mapping[str, str], ...] = ({}, _AnyTag())
    for tags in every:
        with contextlib.suppress(Missing):
            port, options = service.port_of(values, tags), (role.options or service.options).fill(values, tags)
            return Server(node, address, port, options, role.name).line
    return None


def _with(document: Document, lines: list[_Line]) -> tuple[str, ...]:
    """The texts of haproxy.cfg with these lines added above their markers."""
    by_marker: dict[int, list[str]] = {}
    for line in lines:
        text = f"{line.marker.indent}{line.text}{line.marker.ending}"
        by_marker.setdefault(line.marker.at, []).append(text)
    return document.edited(Edit(at, at, texts) for at, texts in by_marker.items())
