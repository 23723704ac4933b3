"""roles.yml: from YAML to Roles, refusing with line and key path what cannot be meant.

The text is composed to nodes, not loaded to values: nodes know their lines, doubled keys are seen,
and a role called `no` or a port written `080` is what the operator typed, not what YAML 1.1 makes of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NoReturn

import yaml

from lbagent.errors import RolesRefused
from lbagent.names import NAME, SERVICE
from lbagent.roles import (
    DEFAULT_CONFIG,
    DEFAULT_INTERVAL,
    DEFAULT_MAX,
    DEFAULT_OPTIONS,
    HaproxySettings,
    Pair,
    Role,
    Roles,
    Service,
    Template,
)

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESERVED = ("interval", "networks", "options", "on_failed", "max")
_SCALAR_LIMIT = 2000
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_ON = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def parse(content: bytes, where: str) -> Roles:
    """The roles in `content`; `where` names the file in refusals. Raises RolesRefused."""
    return _Reader(where).read(content)


class _Reader:
    """One reading of one file."""

    def __init__(self, where: str) -> None:
        self._where = where

    def read(self, content: bytes) -> Roles:
        try:
            root = yaml.compose(content, Loader=_LOADER)
        except (yaml.YAMLError, ValueError) as error:
            raise RolesRefused(f"{self._where}{_yaml_words(error)}") from error
        if root is None:
            raise RolesRefused(f"{self._where}: is empty (a `roles:` with at least one role is needed)")
        top = self._mapping(root, "")
        haproxy = self._haproxy(top.pop("haproxy", None))
        services = self._services(top.pop("services", None))
        # The older form has its roles at the top level.
        nested = top.pop("roles", None)
        if nested is not None:
            self._only(top, (), "", ("haproxy", "services", "roles"))
        found = top if nested is None else self._mapping(nested, "roles")
        path = "" if nested is None else "roles."
        if not found:
            self._refuse(nested or root, "roles", "no role is declared")
        roles = {name: self._role(name, node, f"{path}{name}", services) for name, node in found.items()}
        self._unambiguous(roles, nested or root)
        return Roles(haproxy, services, roles, f"{zlib.crc32(content):08x}")

    def _haproxy(self, node: yaml.Node | None) -> HaproxySettings:
        if node is None:
            return HaproxySettings()
        keys = self._mapping(node, "haproxy")
        self._only(keys, ("config", "reload", "runtime", "timeout", "min_reload_interval"), "haproxy.")
        default = HaproxySettings()
        config, reload = keys.get("config"), keys.get("reload")
        return HaproxySettings(
            self._paths(config) if config else (DEFAULT_CONFIG,),
            self._words(reload, "haproxy.reload", 'a list such as ["systemctl", "reload", "haproxy"]') if reload else None,
            self._switch(keys.get("runtime"), "haproxy.runtime", default=default.runtime),
            self._seconds(keys.get("timeout"), "haproxy.timeout", default.timeout),
            self._seconds(keys.get("min_reload_interval"), "haproxy.min_reload_interval", default.min_reload_interval),
        )

    def _paths(self, node: yaml.Node) -> tuple[str, ...]:
        if isinstance(node, yaml.ScalarNode):
            found: tuple[str, ...] = (self._scalar(node, "haproxy.config", "a path"),)
        else:
            found = self._words(node, "haproxy.config", "a path or a list of paths")
        for path in found:
            if not path.startswith("/"):
                self._refuse(node, "haproxy.config", f"{path!r} is not an absolute path")
        return found

    def _services(self, node: yaml.Node | None) -> dict[str, Service]:
        keys = self._mapping(node, "services") if node is not None else {}
        return {name: self._service(name, value, f"services.{name}") for name, value in keys.items()}

    def _service(self, name: str, node: yaml.Node, path: str) -> Service:
        if not SERVICE.fullmatch(name) or name == "none":
            self._refuse(node, path, f"a service's name is {SERVICE.pattern}, and not `none`")
        keys = self._mapping(node, path)
        self._only(keys, ("port", "options"), f"{path}.")
        if "port" not in keys:
            self._refuse(node, path, "`port` is missing, as in {port: 80}")
        port = self._template(keys["port"], f"{path}.port")
        if port.constant and not (port.text.isdigit() and port.text[0] != "0" and 1 <= int(port.text[:6]) <= 65535):  # noqa: PLR2004
            self._refuse(keys["port"], f"{path}.port", f'{port.text!r} is not 1 to 65535, or "{{tag:port|8080}}"')
        options = self._template(keys["options"], f"{path}.options") if "options" in keys else Template(DEFAULT_OPTIONS)
        return Service(name, port, options)

    def _role(self, name: str, node: yaml.Node, path: str, services: dict[str, Service]) -> Role:
        if not NAME.fullmatch(name):
            self._refuse(node, path, f"a role's name is {NAME.pattern}")
        keys = self._mapping(node, path)
        on_failed = self._text(keys.get("on_failed"), f"{path}.on_failed", "keep")
        if on_failed not in ("keep", "remove"):
            self._refuse(keys["on_failed"], f"{path}.on_failed", f"{on_failed!r} is not keep or remove")
        return Role(
            name,
            {
                section: self._section(section, value, f"{path}.{section}", services)
                for section, value in keys.items()
                if section not in _RESERVED
            },
            self._interval(keys.get("interval"), f"{path}.interval"),
            self._networks(keys.get("networks"), f"{path}.networks"),
            self._template(keys["options"], f"{path}.options") if "options" in keys else None,
            on_failed == "remove",
            self._count(keys.get("max"), f"{path}.max"),
        )

    def _section(self, section: str, node: yaml.Node, path: str, services: dict[str, Service]) -> tuple[str, ...]:
        known = ", ".join(services) or "none is declared"
        if not NAME.fullmatch(section):
            self._refuse(node, path, f"a section's name is {NAME.pattern}")
        if not isinstance(node, yaml.SequenceNode):
            reserved = ", ".join(_RESERVED)
            self._refuse(node, path, f"a section is a list of services, as in [iis] (other keys: {reserved})")
        found = self._words(node, path, "a list of services, as in [iis]", least=0)
        for service, item in zip(found, node.value, strict=True):
            if service != "none" and service not in services:
                self._refuse(item, path, f"service {service!r} is not declared in `services:` (known: {known})")
            if found.count(service) > 1:
                self._refuse(item, path, f"service {service!r} stands twice")
        return tuple(service for service in found if service != "none")

    def _unambiguous(self, roles: dict[str, Role], node: yaml.Node) -> None:
        seen: dict[str, Pair] = {}
        for role in roles.values():
            for pair in (Pair(section, service) for section, names in role.sections.items() for service in names):
                other = seen.setdefault(pair.middle, pair)
                if other != pair:
                    marker = f"# additional-{pair.middle}-server"
                    self._refuse(node, f"roles.{role.name}", f"{marker!r} could mean {pair} or {other}: rename one")

    def _interval(self, node: yaml.Node | None, path: str) -> str:
        text = self._text(node, path, DEFAULT_INTERVAL)
        digits = text.rstrip("usmhd")
        if not (digits.isascii() and digits.isdigit() and text[len(digits) :] in ("us", "ms", "s", "m", "h", "d")):
            # HAProxy reads a bare number as milliseconds: 60 would check sixteen times a second.
            self._refuse(node, path, f"{text!r} is not a time with its unit, as in 60s")
        return text

    def _networks(self, node: yaml.Node | None, path: str) -> tuple[str, ...]:
        if node is None:
            return ()
        import ipaddress  # noqa: PLC0415  # 3 ms for those who use it

        found = self._words(node, path, "a list such as [10.0.0.0/8]")
        for text, item in zip(found, node.value, strict=True):
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                self._refuse(item, path, f"{error} (a network is written 10.0.0.0/8)")
        return tuple(str(ipaddress.ip_network(text)) for text in found)

    def _count(self, node: yaml.Node | None, path: str) -> int:
        text = self._text(node, path, str(DEFAULT_MAX))
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 20_000):  # noqa: PLR2004
            self._refuse(node, path, f"{text!r} is not a number from 1 to 20000")
        return int(text)

    def _seconds(self, node: yaml.Node | None, path: str, default: float) -> float:
        if node is None:
            return default
        text = self._scalar(node, path, "a time such as 30s")
        digits = text.rstrip("msh")
        unit = text[len(digits) :]
        if not (digits.isascii() and digits.isdigit() and 0 < len(digits) < 9 and unit in _SECONDS):  # noqa: PLR2004
            self._refuse(node, path, f"{text!r} is not a time with its unit, as in 30s")
        return int(digits) * _SECONDS[unit]

    def _switch(self, node: yaml.Node | None, path: str, *, default: bool) -> bool:
        text = self._text(node, path, "on" if default else "off").lower()
        if text not in _ON:
            self._refuse(node, path, f"{text!r} is not on or off")
        return _ON[text]

    def _template(self, node: yaml.Node, path: str) -> Template:
        text = self._scalar(node, path, "text")
        try:
            return Template(text)
        except ValueError as error:
            self._refuse(node, path, f"{text!r}: {error}")

    def _words(self, node: yaml.Node, path: str, right: str, least: int = 1) -> tuple[str, ...]:
        if not isinstance(node, yaml.SequenceNode) or len(node.value) < least:
            self._refuse(node, path, f"is not {right}")
        return tuple(self._scalar(item, path, right) for item in node.value)

    def _text(self, node: yaml.Node | None, path: str, default: str) -> str:
        return default if node is None else self._scalar(node, path, "text")

    def _scalar(self, node: yaml.Node, path: str, right: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or (node.tag.endswith(":null") and not node.style):
            self._refuse(node, path, f"is not {right}")
        text: str = node.value
        if len(text) > _SCALAR_LIMIT or not text.strip() or any(character < " " for character in text):
            if path.endswith(".options") and not text.strip():
                return ""
            self._refuse(node, path, f"{text[:40]!r} is empty, too long or holds control characters")
        return text

    def _mapping(self, node: yaml.Node, path: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._refuse(node, path or "the file", "is not a mapping of keys to values")
        return dict(self._items(node, path))

    def _items(self, node: yaml.MappingNode, path: str) -> Iterator[tuple[str, yaml.Node]]:
        seen: set[str] = set()
        for key, value in node.value:
            name = self._scalar(key, path or "the file", "a mapping whose keys are words")
            if name in seen:
                self._refuse(key, f"{path}.{name}".lstrip("."), "stands twice")
            seen.add(name)
            yield name, value

    def _only(
        self, keys: dict[str, yaml.Node], known: tuple[str, ...], path: str, said: tuple[str, ...] = ()
    ) -> None:
        for key, node in keys.items():
            if key not in known:
                self._refuse(node, f"{path}{key}", f"unknown key (known: {', '.join(said or known)})")

    def _refuse(self, node: yaml.Node | None, path: str, what: str) -> NoReturn:
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        raise RolesRefused(f"{self._where}{line}: {path}: {what}")


def _yaml_words(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    words = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return f"{line}: is not YAML: {' '.join(str(words).split())}"
