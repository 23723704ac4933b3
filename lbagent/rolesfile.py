"""roles.yml: from YAML to Roles, refusing with line and key path what cannot be meant."""

from __future__ import annotations

import zlib

import yaml

from lbagent.names import NAME, SERVICE
from lbagent.roles import (
    DEFAULT_CONFIG,
    DEFAULT_INTERVAL,
    DEFAULT_MAX,
    DEFAULT_OPTIONS,
    LARGEST_PORT,
    HaproxySettings,
    Pair,
    Role,
    Roles,
    Service,
    Template,
    number,
)
from lbagent.yamlnodes import Nodes

_RESERVED = ("interval", "networks", "options", "on_failed", "on_pause", "max")
_LARGEST_MAX = 20_000


def parse(content: bytes, where: str) -> Roles:
    """The roles in `content`; `where` names the file in refusals. Raises RolesRefused."""
    return _Reader(where).read(content)


class _Reader(Nodes):
    """One reading of one file."""

    def read(self, content: bytes) -> Roles:
        root = self.composed(content)
        top = self.mapping(root, "")
        haproxy = self._haproxy(top.pop("haproxy", None))
        services = self._services(top.pop("services", None))
        # The older form has its roles at the top level.
        nested = top.pop("roles", None)
        if nested is not None:
            self.only(top, (), "", ("haproxy", "services", "roles"))
        found = top if nested is None else self.mapping(nested, "roles")
        path = "" if nested is None else "roles."
        if not found:
            self.refuse(nested or root, "roles", "no role is declared")
        roles = {name: self._role(name, node, f"{path}{name}", services) for name, node in found.items()}
        self._unambiguous(roles, found, path)
        return Roles(haproxy, services, roles, f"{zlib.crc32(content):08x}")

    def _haproxy(self, node: yaml.Node | None) -> HaproxySettings:
        if node is None:
            return HaproxySettings()
        keys = self.mapping(node, "haproxy")
        self.only(keys, ("config", "reload", "runtime", "timeout", "min_reload_interval"), "haproxy.")
        default = HaproxySettings()
        config, reload = keys.get("config"), keys.get("reload")
        return HaproxySettings(
            self._paths(config) if config else (DEFAULT_CONFIG,),
            self.words(reload, "haproxy.reload", 'a list such as ["systemctl", "reload", "haproxy"]')
            if reload
            else None,
            self.switch(keys.get("runtime"), "haproxy.runtime", default=default.runtime),
            self.seconds(keys.get("timeout"), "haproxy.timeout", default.timeout),
            self.seconds(keys.get("min_reload_interval"), "haproxy.min_reload_interval", default.min_reload_interval),
        )

    def _paths(self, node: yaml.Node) -> tuple[str, ...]:
        if isinstance(node, yaml.ScalarNode):
            found: tuple[str, ...] = (self.scalar(node, "haproxy.config", "a path"),)
        else:
            found = self.words(node, "haproxy.config", "a path or a list of paths")
        for path in found:
            if not path.startswith("/"):
                self.refuse(node, "haproxy.config", f"{path!r} is not an absolute path")
        return found

    def _services(self, node: yaml.Node | None) -> dict[str, Service]:
        keys = self.mapping(node, "services") if node is not None else {}
        return {name: self._service(name, value, f"services.{name}") for name, value in keys.items()}

    def _service(self, name: str, node: yaml.Node, path: str) -> Service:
        if not SERVICE.fullmatch(name) or name == "none":
            self.refuse(node, path, f"a service's name is {SERVICE.pattern}, and not `none`")
        keys = self.mapping(node, path)
        self.only(keys, ("port", "options"), f"{path}.")
        if "port" not in keys:
            self.refuse(node, path, "`port` is missing, as in {port: 80}")
        port = self._template(keys["port"], f"{path}.port")
        if port.constant and number(port.text, LARGEST_PORT) is None:
            self.refuse(keys["port"], f"{path}.port", f'{port.text!r} is not 1 to 65535, or "{{tag:port|8080}}"')
        options = self._template(keys["options"], f"{path}.options") if "options" in keys else Template(DEFAULT_OPTIONS)
        return Service(name, port, options)

    def _role(self, name: str, node: yaml.Node, path: str, services: dict[str, Service]) -> Role:
        if not NAME.fullmatch(name):
            self.refuse(node, path, f"a role's name is {NAME.pattern}")
        keys = self.mapping(node, path)
        remove_failed = self._choice(keys.get("on_failed"), f"{path}.on_failed", ("keep", "remove")) == "remove"
        drain = self._choice(keys.get("on_pause"), f"{path}.on_pause", ("remove", "drain")) == "drain"
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
            remove_failed,
            self._count(keys.get("max"), f"{path}.max"),
            drain,
        )

    def _section(self, section: str, node: yaml.Node, path: str, services: dict[str, Service]) -> tuple[str, ...]:
        known = ", ".join(services) or "none is declared"
        if not NAME.fullmatch(section):
            self.refuse(node, path, f"a section's name is {NAME.pattern}")
        if not isinstance(node, yaml.SequenceNode):
            reserved = ", ".join(_RESERVED)
            self.refuse(node, path, f"a section is a list of services, as in [iis] (other keys: {reserved})")
        found = self.words(node, path, "a list of services, as in [iis]", least=0)
        for service, item in zip(found, node.value, strict=True):
            if service != "none" and service not in services:
                self.refuse(item, path, f"service {service!r} is not declared in `services:` (known: {known})")
            if found.count(service) > 1:
                self.refuse(item, path, f"service {service!r} stands twice")
        return tuple(service for service in found if service != "none")

    def _unambiguous(self, roles: dict[str, Role], nodes: dict[str, yaml.Node], path: str) -> None:
        seen: dict[str, Pair] = {}
        for name, role in roles.items():
            for pair in (Pair(section, service) for section, names in role.sections.items() for service in names):
                other = seen.setdefault(pair.middle, pair)
                if other != pair:
                    section = self.mapping(nodes[name], f"{path}{name}")[pair.section]
                    marker = f"# additional-{pair.middle}-server"
                    self.refuse(section, f"{path}{name}", f"{marker!r} could mean {pair} or {other}: rename one")

    def _choice(self, node: yaml.Node | None, path: str, words: tuple[str, str]) -> str:
        """One of two words, by default the first."""
        found = self.text(node, path, words[0])
        if found not in words:
            self.refuse(node, path, f"{found!r} is not {words[0]} or {words[1]}")
        return found

    def _interval(self, node: yaml.Node | None, path: str) -> str:
        text = self.text(node, path, DEFAULT_INTERVAL)
        digits = text.rstrip("usmhd")
        if not (digits.isascii() and digits.isdigit() and text[len(digits) :] in ("us", "ms", "s", "m", "h", "d")):
            # HAProxy reads a bare number as milliseconds: 60 would check sixteen times a second.
            self.refuse(node, path, f"{text!r} is not a time with its unit, as in 60s")
        return text

    def _networks(self, node: yaml.Node | None, path: str) -> tuple[str, ...]:
        if node is None:
            return ()
        import ipaddress  # noqa: PLC0415  # 3 ms for those who use it

        found = self.words(node, path, "a list such as [10.0.0.0/8]")
        for text, item in zip(found, node.value, strict=True):
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                self.refuse(item, path, f"{error} (a network is written 10.0.0.0/8)")
        return tuple(str(ipaddress.ip_network(text)) for text in found)

    def _count(self, node: yaml.Node | None, path: str) -> int:
        text = self.text(node, path, str(DEFAULT_MAX))
        count = number(text, _LARGEST_MAX)
        if count is None:
            self.refuse(node, path, f"{text!r} is not a number from 1 to {_LARGEST_MAX}")
        return count

    def _template(self, node: yaml.Node, path: str) -> Template:
        text = self.scalar(node, path, "text")
        try:
            return Template(text)
        except ValueError as error:
            self.refuse(node, path, f"{text!r}: {error}")
