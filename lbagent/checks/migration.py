"""Coming from the classic handler.rb: what is left of it, and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from lbagent.checks.finding import Finding, Kind, enumerated, error, warning
from lbagent.haproxy.config import Document, Marker, Proxy
from lbagent.names import format_count
from lbagent.roles.model import Roles

_PORTS = {"iis": 80, "http": 80, "web": 80, "https": 443, "mongo": 27017, "mongodb": 27017, "mysql": 3306}
_PORTS |= {"postgres": 5432, "postgresql": 5432, "redis": 6379, "impala": 21050, "spark": 8080}
_NOT_SECTIONS = {"interval", "networks", "options", "on_failed", "on_pause", "max", "address"}


def of_roles(content: bytes, path: str) -> Iterator[Finding]:
    """The classic role.yml: roles at the top level, and no service declared; with the block to add."""
    try:
        top = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    if not isinstance(top, dict) or "roles" in top:
        return
    declared = top.get("services")
    known = set(declared) if isinstance(declared, dict) else set()
    roles = {name: role for name, role in top.items() if name not in ("haproxy", "services")}
    used = dict.fromkeys(name for role in roles.values() for name in _services(role))
    missing = [name for name in used if name not in known]
    if not missing:
        return
    ports = ", ".join(f"{name}: {{port: {_PORTS.get(name.lower(), 'PORT')}}}" for name in missing)
    what = "this is a role.yml of the classic handler.rb, which declares no services"
    fix = f"add this line, with the ports of your services: `services: {{{ports}}}`"
    yield error(Kind.MIGRATION, path, what, fix)


def _services(role: Any) -> Iterator[str]:  # noqa: ANN401  # what YAML held
    if isinstance(role, dict):
        for section, services in role.items():
            if section not in _NOT_SECTIONS:
                names = services if isinstance(services, list) else [services]
                yield from (name for name in names if isinstance(name, str) and name != "none")


def is_classic(marker: Marker, roles: Roles) -> bool:
    """Whether a marker is one of the classic handler: a service, and no section."""
    return marker.middle not in roles.list_pairs() and marker.middle in roles.services


def of_markers(document: Document, roles: Roles) -> Iterator[Finding]:
    """Markers without a section, and server lines of the old handler above markers."""
    for proxy in document.proxies:
        for number, marker in enumerate(proxy.markers):
            if is_classic(marker, roles):
                yield _without_section(document, proxy, marker, roles)
            elif marker.middle in roles.list_pairs() and not document.has_managed_lines:
                yield from _unmanaged(document, proxy, number)


def _without_section(document: Document, proxy: Proxy, marker: Marker, roles: Roles) -> Finding:
    pairs = [pair for pair in roles.list_pairs().values() if pair.service == marker.middle]
    # The section by whose name the proxy is called, as in `listen lb-iis`.
    pairs.sort(key=lambda pair: not proxy.name.lower().startswith(pair.section.lower()))
    what = f"'# additional-{marker.middle}-server' is a marker of the classic handler.rb: it names no section"
    if pairs:
        fix = f"write '# additional-{pairs[0].middle}-server'"
    else:
        fix = f"give a role a section with {marker.middle}, and write '# additional-SECTION-{marker.middle}-server'"
    return error(Kind.MIGRATION, document.locate(marker.at), what, fix)


def _unmanaged(document: Document, proxy: Proxy, number: int) -> Iterator[Finding]:
    lines = [line for line in proxy.operator_servers if line.marker == number]
    if lines:
        names = enumerated([line.name for line in lines])
        what = (
            f"{format_count(len(lines), 'server line')} above the marker ({names}) {'is' if len(lines) == 1 else 'are'}"
            " not managed: pauses and leaves of these nodes have no effect"
        )
        fix = "`lbagent apply --adopt` once they have joined; lines that are to stay yours can stay"
        yield warning(Kind.MIGRATION, document.locate(lines[0].at), what, fix)
