"""Roles and services as values, and as JSON: `loader` reads them from YAML, which takes 11 ms to import.

In JSON, fields are stored by name: a new key of roles.yml needs no change here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lbagent.names import TAG_RULE, TAG_VALUE, canonical_address, role_names

_TEMPLATE = "template"
"""The only key of an object that is a template."""

DEFAULT_OPTIONS = "check inter {interval} rise 2 fall 2"
DEFAULT_INTERVAL = "2s"
DEFAULT_MAX = 1_000
DEFAULT_CONFIG = "/etc/haproxy/haproxy.cfg"

_PLACEHOLDER = re.compile(r"\{(interval|name|role|server|tag:([A-Za-z0-9._-]{1,64})(?:\|([A-Za-z0-9._:-]{0,64}))?)\}")
PLACEHOLDERS = "{interval}, {name}, {role}, {server}, {tag:NAME} and {tag:NAME|default}"
_ADDRESS_TAG = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""A Serf tag that may become part of an address: IPv6 has colons."""

_NUMBER = re.compile("[1-9][0-9]{0,8}")
LARGEST_PORT = 65535


def parse_port(text: str, most: int) -> int | None:
    """Parse a number from 1 to `most`; None for anything else, such as a leading zero."""
    found = int(text) if _NUMBER.fullmatch(text) else None
    return found if found is not None and found <= most else None


def remove_placeholders(text: str) -> str:
    """Return a template's text without its valid placeholders."""
    return _PLACEHOLDER.sub("", text)


class MissingTag(ValueError):
    """A node's tag is missing, or has a value that may not be written."""


class Template:
    """Text with placeholders for a `server` line. It is validated once and filled in for each node."""

    __slots__ = ("_parts", "needs_tags", "same_for_role", "text")

    def __init__(self, text: str) -> None:
        """Parse `text`. Raises ValueError, with a message for the operator, if it cannot be part of a line."""
        if not (text.isascii() and text.isprintable()) or "#" in text:
            raise ValueError("not printable ASCII, or contains '#'")
        rest = remove_placeholders(text)
        if "{" in rest or "}" in rest:
            raise ValueError(f"a brace outside of {PLACEHOLDERS}")
        self.text = text.strip()
        self._parts = _PLACEHOLDER.search(text) is not None
        self.needs_tags = "{tag:" in text
        self.same_for_role = not self.needs_tags and "{name}" not in text and "{server}" not in text

    @property
    def constant(self) -> bool:
        """Whether it has no placeholders."""
        return not self._parts

    def fill(self, values: Mapping[str, str], tags: Mapping[str, str], allowed: re.Pattern[str] = TAG_VALUE) -> str:
        """Return the text for one node. `allowed` matches valid tag values. Raises MissingTag."""
        if self.constant:
            return self.text

        def value(found: re.Match[str]) -> str:
            word, tag, default = found.group(1), found.group(2), found.group(3)
            if not tag:
                return values[word]
            # An empty value would make HAProxy read the next word as the value of the keyword before it.
            given: str | None = values["role"] if tag == "role" else tags.get(tag) or default
            if given is None:
                raise MissingTag(f"its tag {tag!r} is not set")
            if given != default and not allowed.fullmatch(given):
                raise MissingTag(f"its tag {tag!r} is invalid: {given[:40]!r}; use {TAG_RULE}")
            return given

        return _PLACEHOLDER.sub(value, self.text)


class Service(NamedTuple):
    """The port of a service on its nodes, and its HAProxy server options."""

    name: str
    port: Template
    options: Template = Template(DEFAULT_OPTIONS)

    def find_port(self, values: Mapping[str, str], tags: Mapping[str, str]) -> int:
        """Return the port on one node. Raises MissingTag."""
        text = self.port.fill(values, tags)
        port = parse_port(text, LARGEST_PORT)
        if port is None:
            raise MissingTag(f"invalid port {text[:40]!r}; use 1 to {LARGEST_PORT}")
        return port


class Role(NamedTuple):
    """The services of a role's nodes, by section."""

    name: str
    sections: Mapping[str, tuple[str, ...]]
    interval: str = DEFAULT_INTERVAL
    networks: tuple[str, ...] = ()
    options: Template | None = None
    remove_failed: bool = False
    max: int = DEFAULT_MAX
    address: Template | None = None
    """Template for a node's address; None: the address that Serf advertises."""
    drain: bool = False
    """Whether a paused node keeps its line with weight 0, so that existing clients can finish."""

    @property
    def has_services(self) -> bool:
        """Whether nodes of this role are servers."""
        return any(self.sections.values())

    def build_values(self, node: str, server: str = "") -> dict[str, str]:
        """Return the values of the placeholders, without tags, for a node whose HAProxy server is called `server`."""
        return {"name": node, "role": self.name, "interval": self.interval, "server": server or node}

    def find_address(self, node: str, advertised: str, tags: Mapping[str, str]) -> str:
        """Return the canonical address of a node that Serf advertises at `advertised`. Raises MissingTag."""
        if self.address is None:
            return advertised
        text = self.address.fill(self.build_values(node), tags, _ADDRESS_TAG)
        address = canonical_address(text)
        if address is None:
            raise MissingTag(f"address {text[:60]!r} is not an IP address")
        return address


class HaproxySettings(NamedTuple):
    """The `haproxy:` part of roles.yml."""

    config: tuple[str, ...] = (DEFAULT_CONFIG,)
    reload: tuple[str, ...] | None = None
    runtime: bool = True
    timeout: float = 30.0
    """Seconds that `haproxy -c`, the reload command and the confirmation may each take."""
    min_reload_interval: float = 2.0


class Pair(NamedTuple):
    """The section and service of a marker `# additional-<section>-<service>-server`."""

    section: str
    service: str

    @property
    def middle(self) -> str:
        """`<section>-<service>`, as in the marker."""
        return f"{self.section}-{self.service}"

    def __str__(self) -> str:
        return f"section {self.section}, service {self.service}"


class Roles(NamedTuple):
    """A valid roles.yml."""

    haproxy: HaproxySettings
    services: Mapping[str, Service]
    roles: Mapping[str, Role]
    digest: str

    def find_roles(self, tag: str) -> tuple[Role, ...]:
        """Return the roles of a member with this `role` tag, in the order of the tag."""
        return tuple(self.roles[name] for name in role_names(tag) if name in self.roles)

    def list_pairs(self) -> dict[str, Pair]:
        """Return every section and service that a role has, by `<section>-<service>`."""
        return {pair.middle: pair for pair in self.map_pairs_to_roles()}

    def map_pairs_to_roles(self) -> dict[Pair, tuple[Role, ...]]:
        """Return, for every section and service, the roles whose nodes belong at its marker."""
        serving: dict[Pair, tuple[Role, ...]] = {}
        for role in self.roles.values():
            for section, services in role.sections.items():
                for pair in (Pair(section, service) for service in services):
                    serving[pair] = (*serving.get(pair, ()), role)
        return serving


def serialize_roles(roles: Roles) -> dict[str, Any]:
    """Return roles as JSON values, for `deserialize_roles`."""
    return {
        "haproxy": _serialize_fields(roles.haproxy),
        "services": {name: _serialize_fields(service) for name, service in roles.services.items()},
        "roles": {name: _serialize_fields(role) for name, role in roles.roles.items()},
        "digest": roles.digest,
    }


def deserialize_roles(state: dict[str, Any]) -> Roles:
    """Return the roles from JSON values. Raises ValueError, TypeError or KeyError if `state` is something else."""
    try:
        service, role = Service("", Template("1"), Template("")), Role("", {})
        return Roles(
            _check_types(HaproxySettings(**_deserialize_fields(state["haproxy"])), HaproxySettings()),
            {
                name: _check_types(Service(**_deserialize_fields(fields)), service)
                for name, fields in state["services"].items()
            },
            {name: _check_types(Role(**_deserialize_fields(fields)), role) for name, fields in state["roles"].items()},
            state["digest"],
        )
    except (AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a cached roles.yml: {error}") from error


def _check_types(made: Any, model: Any) -> Any:  # noqa: ANN401  # a HaproxySettings, Service or Role, as the model is
    """Return `made` if its fields have the types of those of `model`. Raises ValueError.

    A field that is None in `model` may be a template, a list or None.
    """
    for name, given, expected in zip(made._fields, made, model, strict=True):
        right = (Template, tuple, type(None)) if expected is None else (type(expected),)
        if type(given) not in right:
            raise ValueError(f"not a cached roles.yml: {name} is {given!r}")
    return made


def _serialize_fields(value: HaproxySettings | Service | Role) -> dict[str, Any]:
    fields = value._asdict()
    return {name: {_TEMPLATE: one.text} if isinstance(one, Template) else one for name, one in fields.items()}


def _deserialize_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _deserialize_value(one) for name, one in fields.items()}


def _deserialize_value(one: Any) -> Any:  # noqa: ANN401  # what JSON held
    if isinstance(one, list):
        return tuple(one)
    if not isinstance(one, dict):
        return one
    if one.keys() == {_TEMPLATE} and isinstance(one[_TEMPLATE], str):
        return Template(one[_TEMPLATE])
    return {section: tuple(services) for section, services in one.items()}
