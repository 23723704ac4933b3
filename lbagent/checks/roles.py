"""What a roles.yml that loads may still be wrong about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import yaml

from lbagent.checks.finding import Finding, Kind, ok, warning
from lbagent.names import format_count
from lbagent.roles.model import Role, Roles

Path = tuple[str, ...]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def key_lines(content: bytes) -> Mapping[Path, int]:
    """The line, counted from 1, of every key, by the keys that lead to it. Raises yaml.YAMLError."""
    root: yaml.Node | None = yaml.compose(content, Loader=_LOADER)
    return {} if root is None else dict(_below(root, ()))


def _below(node: yaml.Node, path: Path) -> Iterator[tuple[Path, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _below(value, here)


def judge(roles: Roles, path: str, lines: Mapping[Path, int]) -> Iterator[Finding]:
    """What there is to say of `roles`, which were read from the file `path`, whose keys stand at `lines`."""
    yield ok(
        Kind.ROLES, path, f"{format_count(len(roles.roles), 'role')}, {format_count(len(roles.services), 'service')}"
    )
    for role in roles.roles.values():
        # The older form has its roles at the top level.
        line = lines.get(("roles", role.name)) or lines.get((role.name,))
        yield from _of_role(role, f"{path}:{line}" if line else path)
    used = {pair.service for pair in roles.map_pairs_to_roles()}
    for service in roles.services:
        if service not in used:
            line = lines.get(("services", service))
            yield warning(
                Kind.SERVICE_UNUSED,
                f"{path}:{line}" if line else path,
                f"no role uses service {service}",
                "name it in a section of a role, or take it out",
            )


def _of_role(role: Role, where: str) -> Iterator[Finding]:
    if not any(role.sections.values()):
        yield warning(
            Kind.ROLE_EMPTY,
            where,
            f"role {role.name} serves nothing: its nodes get no line anywhere",
            "give it a section, as in `lb: [iis]`, or take it out",
        )
    elif role.networks:
        yield ok(Kind.NETWORKS, where, f"role {role.name} comes from {', '.join(role.networks)}")
    else:
        yield warning(
            Kind.NETWORKS,
            where,
            f"role {role.name} lets any address in",
            "name where its nodes live, as in `networks: [10.0.0.0/8]`",
        )
