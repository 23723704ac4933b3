"""Roles and services: what a node of a role is to HAProxy. Values only; `rolesfile` reads them from YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lbagent.names import TAG_VALUE, canonical_address, role_names
from lbagent.system.tuples import NamedTuple

DEFAULT_OPTIONS = "check inter {interval} rise 2 fall 2"
DEFAULT_INTERVAL = "2s"
DEFAULT_MAX = 1_000
DEFAULT_CONFIG = "/etc/haproxy/haproxy.cfg"

_PLACEHOLDER = re.compile(r"\{(interval|name|role|server|tag:([A-Za-z0-9._-]{1,64})(?:\|([A-Za-z0-9._:-]{0,64}))?)\}")
PLACEHOLDERS = "{interval}, {name}, {role}, {server}, {tag:NAME} and {tag:NAME|default}"
_ADDRESS_TAG = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""A Serf tag that may be part of an address: IPv6 has colons."""

_NUMBER = re.compile("[1-9][0-9]{0,8}")
LARGEST_PORT = 65535


def parse_port(text: str, most: int) -> int | None:
    """The number from 1 to `most` that `text` is; None where it is anything else, a leading zero included."""
    found = int(text) if _NUMBER.fullmatch(text) else None
    return found if found is not None and found <= most else None


class MissingTag(ValueError):
    """A node lacks a tag that its line needs, or has one that may not stand there."""


class Template:
    """Options or a port with placeholders, checked once, filled in for each node."""

    __slots__ = ("_parts", "needs_tags", "same_for_role", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError, in the words an operator needs, where `text` could not stand in a line."""
        if not (text.isascii() and text.isprintable()) or "#" in text:
            msg = "only printable ASCII without '#' can stand in a server line"
            raise ValueError(msg)
        rest = _PLACEHOLDER.sub("", text)
        if "{" in rest or "}" in rest:
            msg = f"a brace outside of {PLACEHOLDERS}"
            raise ValueError(msg)
        self.text = " ".join(text.split(" ")).strip()
        self._parts = _PLACEHOLDER.search(text) is not None
        self.needs_tags = "{tag:" in text
        self.same_for_role = not self.needs_tags and "{name}" not in text and "{server}" not in text

    @property
    def constant(self) -> bool:
        """Whether it is the same for every node."""
        return not self._parts

    def fill(self, values: Mapping[str, str], tags: Mapping[str, str], allowed: re.Pattern[str] = TAG_VALUE) -> str:
        """The text for one node; `allowed` is what the value of a tag may be. Raises Missing."""
        if self.constant:
            return self.text

        def value(found: re.Match[str]) -> str:
            word, tag, default = found.group(1), found.group(2), found.group(3)
            if not tag:
                return values[word]
            # Without a value a tag would leave its keyword the next word for one.
            given: str | None = values["role"] if tag == "role" else tags.get(tag) or default
            if given is None:
                msg = f"its tag {tag!r} is not set"
                raise MissingTag(msg)
            if given != default and not allowed.fullmatch(given):
                msg = f"its tag {tag!r} is {given[:40]!r}, not {allowed.pattern}"
                raise MissingTag(msg)
            return given

        return _PLACEHOLDER.sub(value, self.text)


class Service(NamedTuple):
    """Where a service listens on its nodes, and how HAProxy is to check it."""

    name: str
    port: Template
    options: Template

    def find_port(self, values: Mapping[str, str], tags: Mapping[str, str]) -> int:
        """The port on one node. Raises Missing."""
        text = self.port.fill(values, tags)
        port = parse_port(text, LARGEST_PORT)
        if port is None:
            msg = f"port {text[:40]!r} is not 1 to {LARGEST_PORT}"
            raise MissingTag(msg)
        return port


class Role(NamedTuple):
    """What the nodes of a role serve, section by section."""

    name: str
    sections: Mapping[str, tuple[str, ...]]
    interval: str = DEFAULT_INTERVAL
    networks: tuple[str, ...] = ()
    options: Template | None = None
    remove_failed: bool = False
    max: int = DEFAULT_MAX
    address: Template | None = None
    """Where its nodes are reached; None: at the address that Serf advertises."""
    drain: bool = False
    """Whether a paused node keeps its line, with weight 0, so that clients that are bound to it can finish."""

    def build_values(self, node: str, server: str = "") -> dict[str, str]:
        """The values of the placeholders, apart from tags, for a node whose server in HAProxy is called `server`."""
        return {"name": node, "role": self.name, "interval": self.interval, "server": server or node}

    def find_address(self, node: str, advertised: str, tags: Mapping[str, str]) -> str:
        """The address of a node that Serf advertises at `advertised`, in its one spelling. Raises Missing."""
        if self.address is None:
            return advertised
        text = self.address.fill(self.build_values(node), tags, _ADDRESS_TAG)
        address = canonical_address(text)
        if address is None:
            msg = f"address {text[:60]!r} is not an IP address"
            raise MissingTag(msg)
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
    """What a marker `# additional-<section>-<service>-server` names."""

    section: str
    service: str

    @property
    def middle(self) -> str:
        """The middle of its marker."""
        return f"{self.section}-{self.service}"

    def __str__(self) -> str:
        return f"section {self.section}, service {self.service}"


class Roles(NamedTuple):
    """roles.yml, checked."""

    haproxy: HaproxySettings
    services: Mapping[str, Service]
    roles: Mapping[str, Role]
    digest: str

    def find_roles(self, tag: str) -> tuple[Role, ...]:
        """The roles that a member with this `role` tag has here, in the order of the tag."""
        return tuple(self.roles[name] for name in role_names(tag) if name in self.roles)

    def list_pairs(self) -> dict[str, Pair]:
        """Every pair a role asks for, by the middle of its marker."""
        return {pair.middle: pair for pair in self.map_pairs_to_roles()}

    def map_pairs_to_roles(self) -> dict[Pair, tuple[Role, ...]]:
        """For every pair the roles whose nodes belong above its marker."""
        serving: dict[Pair, tuple[Role, ...]] = {}
        for role in self.roles.values():
            for section, services in role.sections.items():
                for pair in (Pair(section, service) for service in services):
                    serving[pair] = (*serving.get(pair, ()), role)
        return serving
