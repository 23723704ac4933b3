"""Check roles.yml: its form, files of the classic handler.rb in its place, and the server lines that it makes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections import UserDict
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

import yaml

from lbagent.checks.finding import SEE_MIGRATION, Finding, Kind, error, ok, warning
from lbagent.checks.haproxy import Validator
from lbagent.haproxy.config import Document, Edit, Marker
from lbagent.haproxy.server_line import Server
from lbagent.names import format_count
from lbagent.roles.model import MissingTag, Role, Roles, Service

_SERVER_SECTIONS = ("backend", "listen")
_FIRST_ADDRESS = int(ipaddress.IPv4Address("192.0.2.1"))
"""RFC 5737: addresses for documentation."""

_PLACE = re.compile(r"^(?:parsing )?\[[^\]]*\] ?: ?(?:'server [^']*' ?: ?)?")
"""HAProxy's prefix of a message about a server line: file, line and server of the temporary copy."""

_SINGLE_TRIALS = 40
"""Lines that are validated one by one after HAProxy refused all of them together."""

KeyPath = tuple[str, ...]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_USUAL_PORTS = {"iis": 80, "http": 80, "web": 80, "https": 443, "mongo": 27017, "mongodb": 27017, "mysql": 3306}
_USUAL_PORTS |= {"postgres": 5432, "postgresql": 5432, "redis": 6379, "impala": 21050, "spark": 8080}
_RESERVED_KEYS = {"interval", "networks", "options", "on_failed", "on_pause", "max", "address"}
"""Keys of a role that are not sections."""


def find_key_lines(content: bytes) -> Mapping[KeyPath, int]:
    """Return the line, counted from 1, of each key of a YAML text, by its key path. Raises yaml.YAMLError."""
    root: yaml.Node | None = yaml.compose(content, Loader=_LOADER)
    return {} if root is None else dict(_walk_keys(root, ()))


def _walk_keys(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _walk_keys(value, here)


def check_roles(roles: Roles, path: str, lines: Mapping[KeyPath, int]) -> Iterator[Finding]:
    """Check a valid roles.yml: roles without a service or `networks`, services without a role.

    `path` is the file, `lines` are the lines of its keys.
    """
    counts = f"{format_count(len(roles.roles), 'role')}, {format_count(len(roles.services), 'service')}"
    yield ok(Kind.ROLES, path, counts)
    for role in roles.roles.values():
        # In the older form roles are top-level keys.
        line = lines.get(("roles", role.name)) or lines.get((role.name,))
        yield _check_role(role, f"{path}:{line}" if line else path)
    used = {pair.service for pair in roles.map_pairs_to_roles()}
    for service in roles.services:
        if service not in used:
            line = lines.get(("services", service))
            where, text = f"{path}:{line}" if line else path, f"no role uses service {service}"
            yield warning(Kind.SERVICE_UNUSED, where, text, "name it in a section of a role, or delete it")


def _check_role(role: Role, where: str) -> Finding:
    if not role.has_services:
        text, fix = (
            f"role {role.name} has no service; its nodes get no server lines",
            "add a section, as in `lb: [iis]`",
        )
        return warning(Kind.ROLE_EMPTY, where, text, f"{fix}, or delete the role")
    if role.networks:
        return ok(Kind.NETWORKS, where, f"role {role.name} accepts addresses in {', '.join(role.networks)}")
    text = f"role {role.name} accepts any address"
    return warning(Kind.NETWORKS, where, text, "add the networks of its nodes, as in `networks: [10.0.0.0/8]`")


def check_classic_content(content: bytes, path: str) -> Iterator[Finding]:
    """Check whether a refused roles.yml has the form of the classic handler.rb: roles at the top, no services.

    The fix is the `services` line to add.
    """
    try:
        top = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    if not isinstance(top, dict) or "roles" in top:
        return
    declared = top.get("services")
    known = set(declared) if isinstance(declared, dict) else set()
    roles = {name: role for name, role in top.items() if name not in ("haproxy", "services")}
    used = dict.fromkeys(name for role in roles.values() for name in _list_services(role))
    if missing := [name for name in used if name not in known]:
        ports = ", ".join(f"{name}: {{port: {_USUAL_PORTS.get(name.lower(), 'PORT')}}}" for name in missing)
        text = "this is a role.yml of the classic handler.rb; it does not declare its services"
        yield error(
            Kind.MIGRATION, path, text, f"add this line, with your ports: `services: {{{ports}}}`; {SEE_MIGRATION}"
        )


def _list_services(role: Any) -> Iterator[str]:  # noqa: ANN401  # any YAML value
    if isinstance(role, dict):
        for section, services in role.items():
            if section not in _RESERVED_KEYS:
                names = services if isinstance(services, list) else [services]
                yield from (name for name in names if isinstance(name, str) and name != "none")


def check_classic_file(path: str) -> Iterator[Finding]:
    """Check for the role.yml of the classic handler.rb beside a missing roles.yml at `path`."""
    classic = os.path.join(os.path.dirname(path), "role.yml")
    if os.path.exists(classic):
        text = "lbagent does not read this file of the classic handler.rb"
        yield error(Kind.MIGRATION, classic, text, f"copy it to {path}, and add a `services:` block; {SEE_MIGRATION}")


class RefusedLine(NamedTuple):
    """A role and a service whose server lines HAProxy refuses."""

    role: str
    service: str
    reason: str
    """In HAProxy's words."""

    def __str__(self) -> str:
        return f"role {self.role}, service {self.service}: HAProxy refuses its server lines: {self.reason}"


class _TrialLine(NamedTuple):
    """The server line of one role and service, at one marker."""

    role: str
    service: str
    marker: Marker
    text: str


class _AllTags(UserDict[str, str]):
    """Tags of a node that has every tag; each has the value 1."""

    def __missing__(self, key: str) -> str:
        return "1"

    def __contains__(self, key: object) -> bool:
        return True


def find_refused_lines(document: Document, roles: Roles, validator: Validator) -> list[RefusedLine]:
    """Return the roles and services whose server lines HAProxy refuses, each tried with a documentation address.

    The result is empty where HAProxy refuses the live haproxy.cfg. Raises TryAgain where HAProxy cannot be run.
    """
    lines = [*_make_trial_lines(document, roles)]
    if not lines or validator.find_live_refusal() is not None:
        return []
    if validator.find_refusal(_insert_lines(document, lines)) is None:
        return []
    pairs = list(dict.fromkeys((line.role, line.service) for line in lines))[:_SINGLE_TRIALS]
    found = []
    for pair in pairs:
        own = [line for line in lines if (line.role, line.service) == pair]
        if reason := validator.find_refusal(_insert_lines(document, own)):
            found.append(RefusedLine(*pair, _PLACE.sub("", reason)))
    return found


def _make_trial_lines(document: Document, roles: Roles) -> Iterator[_TrialLine]:
    pairs, serving, numbers = roles.list_pairs(), roles.map_pairs_to_roles(), count()
    for proxy in document.proxies:
        for marker in proxy.markers if proxy.kind in _SERVER_SECTIONS else ():
            pair = pairs.get(marker.middle)
            for role in serving[pair] if pair else ():
                number = next(numbers)
                if pair and (text := _format_trial_line(role, roles.services[pair.service], number)):
                    yield _TrialLine(role.name, pair.service, marker, text)


def _format_trial_line(role: Role, service: Service, number: int) -> str | None:
    """Return the server line of a node with that role; None where no tags make one."""
    node = f"lbagent-check-{number}"
    values, address = role.build_values(node), str(ipaddress.IPv4Address(_FIRST_ADDRESS + number % 254))
    candidates: tuple[Mapping[str, str], ...] = ({}, _AllTags())
    for tags in candidates:
        with contextlib.suppress(MissingTag):
            port, options = service.find_port(values, tags), (role.options or service.options).fill(values, tags)
            return Server(node, address, port, options, role.name).line
    return None


def _insert_lines(document: Document, lines: list[_TrialLine]) -> tuple[str, ...]:
    """Return the texts of haproxy.cfg with these lines inserted above their markers."""
    by_marker: dict[int, list[str]] = {}
    for line in lines:
        text = f"{line.marker.indent}{line.text}{line.marker.ending}"
        by_marker.setdefault(line.marker.at, []).append(text)
    return document.apply_edits(Edit(at, at, texts) for at, texts in by_marker.items())
