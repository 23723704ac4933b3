"""Load roles.yml. All mistakes are found in one run, each with its place, key path and fix."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import yaml

from lbagent.errors import RolesRefused
from lbagent.names import NAME, NAME_RULE, SERVICE, SERVICE_RULE
from lbagent.roles import yaml_text
from lbagent.roles.keys import HAPROXY_KEYS, ROLE_KEYS, SERVICE_KEYS, TOP_KEYS, Key
from lbagent.roles.model import HaproxySettings, Pair, Role, Roles, Service
from lbagent.roles.yaml_text import Reader, find_nearest, is_nearly_equal

Items = Mapping[str, tuple[yaml.Node, yaml.Node]]
"""The YAML nodes of each key and its value, by key."""

_RESERVED = tuple(key.name for key in ROLE_KEYS)


def parse_roles(content: bytes, where: str) -> Roles:
    """Parse roles.yml. `where` names the file in messages. Raises RolesRefused with every mistake."""
    digest = f"{zlib.crc32(content):08x}"

    def count_mistakes(root: yaml.Node) -> int:
        file = _File()
        file.read(root, digest)
        return len(file.mistakes)

    file = _File()
    root, mistakes = yaml_text.parse_yaml(content, count_mistakes)
    roles = file.read(root, digest) if root is not None else None
    if root is None and not mistakes:
        file.note(None, "", "is empty", "declare at least one role below roles:")
    mistakes += file.mistakes
    if mistakes or roles is None:
        mistakes.sort(key=lambda one: (one.line, one.column))
        raise RolesRefused.from_mistakes([one.format_sentence(where) for one in dict.fromkeys(mistakes)])
    return roles


class _File(Reader):
    """Reads one file and notes its mistakes."""

    def __init__(self) -> None:
        super().__init__()
        self._services: Items = {}

    def read(self, root: yaml.Node, digest: str) -> Roles | None:
        """Read the roles; None if the file is not a mapping."""
        top = self.read_items(root, "", "write roles: with at least one role below it")
        if top is None:
            return None
        top = self._correct_keys(dict(top))
        haproxy = self._read_table(HAPROXY_KEYS, top, "haproxy")
        self._services = self._read_part(top, "services", "write NAME: {port: 80} below it") or {}
        read = (self._read_service(name, *nodes) for name, nodes in self._services.items() if name not in self.unread)
        services = {service.name: service for service in read if service is not None}
        nested = top.get("roles")
        # The older form has the roles at the top level.
        flat = {name: nodes for name, nodes in top.items() if name not in TOP_KEYS}
        if nested is not None:
            for key, _ in flat.values():
                self._note_unknown_top_key(key)
        found = flat if nested is None else self._read_part(top, "roles", "write ROLE: {SECTION: [SERVICE]} below it")
        if found is not None and not found:
            self.note(nested[1] if nested else None, "roles", "declares no role", "write ROLE: {SECTION: [SERVICE]}")
        prefix = "" if nested is None else "roles."
        roles = {name: self._read_role(name, *nodes, f"{prefix}{name}") for name, nodes in (found or {}).items()}
        self._note_ambiguous_markers(roles, found or {}, prefix)
        return Roles(HaproxySettings(**haproxy), services, roles, digest)  # type: ignore[arg-type]

    def _correct_keys(self, top: dict[str, tuple[yaml.Node, yaml.Node]]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Note misspelled and misplaced top-level keys, and return the top level with them corrected."""
        for name, (key, value) in list(top.items()):
            near = find_nearest(name, TOP_KEYS) if name not in TOP_KEYS else None
            if near and near not in top and self._is_part(value, near):
                self.note(key, name, "unknown key", f"did you mean {near}?")
                top[near] = top.pop(name)
        services = top["services"][1] if "services" in top else None
        for key, value in services.value if isinstance(services, yaml.MappingNode) else ():
            name = str(key.value)
            if (
                name in TOP_KEYS
                and name not in top
                and isinstance(value, yaml.MappingNode)
                and "port" not in _list_key_names(value)
            ):
                self.note(key, f"services.{name}", "is not a service", f"indent {name}: like services:")
                top[name] = (key, value)
                self.unread.add(name)
        return top

    @staticmethod
    def _is_part(value: yaml.Node, part: str) -> bool:
        """Return whether a top-level value looks like that part of roles.yml, not like a role of the older form."""
        if not isinstance(value, yaml.MappingNode) or not value.value:
            return True
        if part == "haproxy":
            return any(str(key.value) in {one.name for one in HAPROXY_KEYS} for key, _ in value.value)
        return all(isinstance(one, yaml.MappingNode) for _, one in value.value)

    def _note_unknown_top_key(self, key: yaml.Node) -> None:
        name = str(key.value)
        near = find_nearest(name, TOP_KEYS)
        fix = f"did you mean {near}?" if near else f"use one of: {', '.join(TOP_KEYS)}; roles belong below roles:"
        self.note(key, name, "unknown key", fix)

    def _read_part(self, top: Items, name: str, fix: str) -> Items | None:
        return self.read_items(top[name][1], name, fix) if name in top else {}

    def _read_table(self, keys: tuple[Key, ...], top: Items, path: str) -> dict[str, object]:
        """Read a part with a fixed set of keys; return its values by attribute."""
        found = (
            self._read_part(top, path, f"write KEY: VALUE below it; the keys are {', '.join(key.name for key in keys)}")
            or {}
        )
        self._note_unknown_keys(found, keys, path)
        return self._read_values(keys, found, path)

    def _read_values(self, keys: tuple[Key, ...], found: Items, path: str) -> dict[str, object]:
        read = {
            key.target: key.kind.read(self, found[key.name][1], f"{path}.{key.name}")
            for key in keys
            if key.name in found
        }
        return {attribute: value for attribute, value in read.items() if value is not None}

    def _note_unknown_keys(self, found: Items, keys: tuple[Key, ...], path: str) -> None:
        for name, (key, _) in found.items():
            if name not in {one.name for one in keys}:
                self.note_unknown_key(key, f"{path}.{name}", [one.name for one in keys])

    def _read_service(self, name: str, key: yaml.Node, node: yaml.Node) -> Service | None:
        path = f"services.{name}"
        if not SERVICE.fullmatch(name) or name == "none":
            problem = "reserved name" if name == "none" else "invalid service name"
            self.note(key, path, problem, "rename the service" if name == "none" else f"use {SERVICE_RULE}")
        port = node.value if isinstance(node, yaml.ScalarNode) and node.value.isdigit() else "80"
        found = self.read_items(node, path, f"write {name}: {{port: {port}}}") or {}
        known = [one.name for one in SERVICE_KEYS]
        if isinstance(node, yaml.MappingNode) and all(find_nearest(one, known) != "port" for one in found):
            self.note(key, path, "has no port", f"write {name}: {{port: 80}}")
        self._note_unknown_keys(found, SERVICE_KEYS, path)
        values = self._read_values(SERVICE_KEYS, found, path)
        return Service(name, **values) if "port" in values else None  # type: ignore[arg-type]

    def _read_role(self, name: str, key: yaml.Node, node: yaml.Node, path: str) -> Role:
        if not NAME.fullmatch(name):
            self.note(key, path, "invalid role name", f"use {NAME_RULE}")
        services = [one for one in self._services if one != "none"] or ["SERVICE"]
        example = f"{{SECTION: [{services[0]}]}}"
        if isinstance(node, yaml.SequenceNode):
            self.note(
                key, path, "is a list, not a role", f"indent it further if it is a section, or write {name}: {example}"
            )
            return Role(name, {})
        found = self.read_items(node, path, f"indent the keys below it further, or write {name}: {example}") or {}
        sections = {
            section: self._read_section(section, *nodes, f"{path}.{section}")
            for section, nodes in found.items()
            if section not in _RESERVED
        }
        return Role(name, sections, **self._read_values(ROLE_KEYS, found, path))  # type: ignore[arg-type]

    def _read_section(self, section: str, key: yaml.Node, node: yaml.Node, path: str) -> tuple[str, ...]:
        if self._is_misspelled(section, node):
            self.note_unknown_key(key, path, _RESERVED)
            return ()
        if not NAME.fullmatch(section):
            self.note(key, path, "invalid section name", f"use {NAME_RULE}")
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self._note_no_list(section, node, path)
            return ()
        found = self.read_texts(node, path, f"write {section}: [SERVICE]") or []
        names = [text for _, text in found]
        for at, (item, service) in enumerate(found):
            if service != "none" and service not in self._services and service not in self.unread:
                self._note_undeclared(item, service, path)
            if service in names[:at]:
                self.note(item, path, f"service {service[:60]!r} appears twice", "remove one")
            if service == "none" and len(names) > 1:
                self.note(item, path, "lists none together with services", "remove none, or the services")
        return tuple(service for service in dict.fromkeys(names) if service != "none")

    def _is_misspelled(self, section: str, node: yaml.Node) -> bool:
        """Return whether a key of a role is a misspelled reserved key, and not a section."""
        if any(is_nearly_equal(section, one) for one in _RESERVED):
            return True
        # `internal` may be a section's name: then it lists services.
        services = {*self._services, "none"}
        is_section = isinstance(node, yaml.SequenceNode) and all(str(item.value) in services for item in node.value)
        return not is_section and find_nearest(section, _RESERVED) is not None

    def _note_no_list(self, section: str, node: yaml.Node, path: str) -> None:
        reserved = f"or use a known key: {', '.join(_RESERVED)}"
        if isinstance(node, yaml.ScalarNode) and node.value.strip():
            words = [word.strip() for word in node.value.split(",")]
            known = all(word in self._services or word == "none" for word in words)
            fix = f"write {section}: [{', '.join(words)}]" if known else f"write {section}: [SERVICE], {reserved}"
            self.note(node, path, f"{node.value[:60]!r} is not a list of services", fix)
        elif isinstance(node, yaml.ScalarNode):
            self.note(node, path, "has no value", f"write {section}: [none] for a section without services")
        else:
            self.note(node, path, "is a mapping, not a list of services", f"write {section}: [SERVICE], {reserved}")

    def _note_undeclared(self, item: yaml.Node, service: str, path: str) -> None:
        near = None if self.is_full else find_nearest(service, self._services)
        if near:
            fix = f"did you mean {near}?"
        else:
            known = ", ".join(list(self._services)[:20]) or "none"
            fix = f"declare it below services: (declared: {known})"
        self.note(item, path, f"service {service[:60]!r} is not declared", fix)

    def _note_ambiguous_markers(self, roles: Mapping[str, Role], nodes: Items, prefix: str) -> None:
        seen: dict[str, Pair] = {}
        for name, pair in _list_pairs(roles):
            other = seen.setdefault(pair.middle, pair)
            if other != pair:
                keys = {str(key.value): key for key, _ in nodes[name][1].value}
                marker = f"# additional-{pair.middle}-server"
                problem = f"marker {marker!r} is ambiguous, it could mean {pair} or {other}"
                self.note(keys.get(pair.section), f"{prefix}{name}.{pair.section}", problem, "rename one")


def _list_pairs(roles: Mapping[str, Role]) -> Iterator[tuple[str, Pair]]:
    for name, role in roles.items():
        for section, services in role.sections.items():
            for service in services:
                yield name, Pair(section, service)


def _list_key_names(node: yaml.MappingNode) -> list[str]:
    return [str(key.value) for key, _ in node.value]
