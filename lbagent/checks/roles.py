"""Check roles.yml, and find files of the classic handler.rb in its place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lbagent.checks.finding import SEE_MIGRATION, Finding, Kind, error, ok, warning
from lbagent.names import format_count
from lbagent.roles.model import Role, Roles

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
    if not any(role.sections.values()):
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
