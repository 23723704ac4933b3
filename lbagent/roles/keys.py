"""Every key of roles.yml: its values, how they are read, and its JSON schema.

Each key is a row of a table. The loader, the JSON schema, the suggestions for misspelled keys and the cached copy all
follow from it. `python -m lbagent.roles.keys` prints the schema.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import yaml

from lbagent.names import NAME, SERVICE, TAG_RULE
from lbagent.roles.model import (
    DEFAULT_CONFIG,
    DEFAULT_INTERVAL,
    DEFAULT_MAX,
    DEFAULT_OPTIONS,
    LARGEST_PORT,
    PLACEHOLDERS,
    Template,
    parse_port,
    remove_placeholders,
)
from lbagent.roles.yaml_text import Reader, find_nearest

Schema = dict[str, object]

LARGEST_MAX = 20_000
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_ON = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
_INTERVAL = re.compile("[0-9]+(us|ms|s|m|h|d)")
_LIMIT = re.compile("([0-9]{1,8})(ms|s|m|h)")


class Kind(Protocol):
    """A type of values."""

    def read(self, reader: Reader, node: yaml.Node, path: str) -> object | None:
        """Read a value; None if it is invalid, with the mistake noted in `reader`."""

    @property
    def schema(self) -> Schema:
        """The JSON schema of such a value."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A time for HAProxy, kept as it is written."""

    right: str = "write a time with its unit, such as 60s"

    def read(self, reader: Reader, node: yaml.Node, path: str) -> str | None:
        """Read the text of the time."""
        text = reader.read_text(node, path, self.right)
        if text is None or _INTERVAL.fullmatch(text):
            return text
        # HAProxy reads a bare number as milliseconds: 60 would mean sixteen checks per second.
        reader.note(node, path, *_explain_invalid_time(text, self.right))
        return None

    @property
    def schema(self) -> Schema:
        """A string."""
        return {"type": "string", "pattern": f"^{_INTERVAL.pattern}$"}


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time for lbagent, in seconds."""

    right: str = "write a time with its unit, such as 30s"
    may_be_zero: bool = True

    def read(self, reader: Reader, node: yaml.Node, path: str) -> float | None:
        """Read the time and convert it to seconds."""
        text = reader.read_text(node, path, self.right)
        found = _LIMIT.fullmatch(text) if text is not None else None
        if found and not self.may_be_zero and not int(found[1]):
            reader.note(node, path, f"{text!r} is too short", self.right)
        elif found:
            return int(found[1]) * _SECONDS[found[2]]
        elif text is not None:
            reader.note(node, path, *_explain_invalid_time(text, self.right))
        return None

    @property
    def schema(self) -> Schema:
        """A string."""
        return {"type": "string", "pattern": f"^{'' if self.may_be_zero else '(?!0+[a-z])'}{_LIMIT.pattern}$"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several words."""

    values: Mapping[str, object]
    right: str
    ignore_case: bool = False

    def read(self, reader: Reader, node: yaml.Node, path: str) -> object | None:
        """Read the word and return its value."""
        right = f"write {self.right}"
        text = reader.read_text(node, path, right)
        if text is None:
            return None
        word = text.lower() if self.ignore_case else text
        if word not in self.values:
            near = find_nearest(text, self.values)
            reader.note(node, path, f"unknown value {text[:40]!r}", f"did you mean {near}?" if near else right)
            return None
        return self.values[word]

    @property
    def schema(self) -> Schema:
        """The words. YAML 1.1 reads some of them as true and false."""
        if not self.ignore_case:
            return {"enum": list(self.values)}
        cases = (word for one in self.values for word in (one, one.capitalize(), one.upper()))
        return {"enum": [True, False, *cases]}


@dataclass(frozen=True, slots=True)
class Count:
    """A number from 1 to `most`."""

    most: int

    def read(self, reader: Reader, node: yaml.Node, path: str) -> int | None:
        """Read the number."""
        right = f"write a number from 1 to {self.most}"
        text = reader.read_text(node, path, right)
        count = parse_port(text, self.most) if text is not None else None
        if text is not None and count is None:
            number_of_a_kind = text.isascii() and text.lstrip("+-").isdigit()
            reader.note(node, path, f"{text[:40]!r} is {'out of range' if number_of_a_kind else 'not a number'}", right)
        return count

    @property
    def schema(self) -> Schema:
        """A number, or its digits in quotes."""
        digits = {"type": "string", "pattern": "^[1-9][0-9]{0,4}$"}
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": self.most}, digits]}


@dataclass(frozen=True, slots=True)
class Paths:
    """An absolute path, or a list of them."""

    right: str = "write an absolute path, or a list of them"

    def read(self, reader: Reader, node: yaml.Node, path: str) -> tuple[str, ...] | None:
        """Read the paths."""
        if isinstance(node, yaml.SequenceNode):
            items = reader.read_texts(node, path, self.right, self.right)
        else:
            text = reader.read_text(node, path, self.right)
            items = None if text is None else [(node, text)]
        wrong = [(item, text) for item, text in items or () if not text.startswith("/")]
        for item, text in wrong:
            reader.note(item, path, f"{text[:80]!r} is not an absolute path", f"write /etc/haproxy/{text[:80]}")
        return None if wrong or not items else tuple(text for _, text in items)

    @property
    def schema(self) -> Schema:
        """A string or a list."""
        one = {"type": "string", "pattern": "^/"}
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


@dataclass(frozen=True, slots=True)
class Words:
    """A command as a list of words."""

    right: str = "write a list of words, such as [systemctl, reload, haproxy]"

    def read(self, reader: Reader, node: yaml.Node, path: str) -> tuple[str, ...] | None:
        """Read the words."""
        right = self.right
        if isinstance(node, yaml.ScalarNode) and node.value.strip():
            right = f"write [{', '.join(node.value.split()[:8])}]"
        items = reader.read_texts(node, path, right, self.right)
        return tuple(text for _, text in items) if items else None

    @property
    def schema(self) -> Schema:
        """A list of strings."""
        return {"type": "array", "items": {"type": ["string", "number"]}, "minItems": 1}


@dataclass(frozen=True, slots=True)
class Networks:
    """A list of IP networks."""

    right: str = "write a list of networks, such as [10.0.0.0/8]"

    def read(self, reader: Reader, node: yaml.Node, path: str) -> tuple[str, ...] | None:
        """Read the networks and return their canonical forms."""
        right = self.right
        if isinstance(node, yaml.ScalarNode) and node.value.strip():
            right = f"write [{node.value[:60].strip()}]"
        items = reader.read_texts(node, path, right)
        if items is not None and not items:
            reader.note(node, path, "is an empty list, so no address is allowed", "list networks, or remove the key")
        networks: list[str] = []
        for item, text in items or ():
            try:
                networks.append(str(ipaddress.ip_network(text)))
            except ValueError:
                reader.note(item, path, f"{text[:60]!r} is not a network", _suggest_network(text, self.right))
        return tuple(networks) if items and len(networks) == len(items) else None

    @property
    def schema(self) -> Schema:
        """A list of strings."""
        return {
            "type": "array",
            "items": {"type": "string", "pattern": "^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$"},
            "minItems": 1,
        }


@dataclass(frozen=True, slots=True)
class Text:
    """A text with placeholders that becomes part of a `server` line."""

    right: str = "write HAProxy's words for a server, such as check"
    empty: bool = True

    def read(self, reader: Reader, node: yaml.Node, path: str) -> Template | None:
        """Read the template."""
        text = reader.read_text(node, path, self.right, empty=self.empty)
        if text is None:
            return None
        try:
            return Template(text)
        except ValueError:
            problem, fix = _explain_invalid_template(text)
            reader.note(node, path, f"{text[:60]!r} {problem}", fix)
        return None

    @property
    def schema(self) -> Schema:
        """A string of printable ASCII without `#`, and without braces other than those of placeholders."""
        tag = r"tag:[A-Za-z0-9._-]{1,64}(\|[A-Za-z0-9._:-]{0,64})?"
        part = rf"[ !\"$-z|~]|\{{(interval|name|role|server|{tag})\}}"
        return {"type": ["string", "number"], "pattern": f"^({part}){'*' if self.empty else '+'}$"}


@dataclass(frozen=True, slots=True)
class Port:
    """A port, or a template for one."""

    right: str = 'write 1 to 65535, or "{tag:port|8080}"'

    def read(self, reader: Reader, node: yaml.Node, path: str) -> Template | None:
        """Read the template."""
        port = Text(self.right, empty=False).read(reader, node, path)
        if port is not None and port.constant and parse_port(port.text, LARGEST_PORT) is None:
            reader.note(node, path, f"{port.text[:40]!r} is not a port", self.right)
            return None
        return port

    @property
    def schema(self) -> Schema:
        """A number, or a string with a placeholder."""
        text = Text(empty=False).schema
        templates = {"type": "string", "allOf": [{"pattern": text["pattern"]}, {"pattern": r"\{|^[1-9][0-9]{0,4}$"}]}
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": LARGEST_PORT}, templates]}


@dataclass(frozen=True, slots=True)
class Address:
    """A template for an IP address, made from a node's tags."""

    right: str = 'write a Serf tag, such as "{tag:ip}"'

    def read(self, reader: Reader, node: yaml.Node, path: str) -> Template | None:
        """Read the template."""
        address = Text(self.right, empty=False).read(reader, node, path)
        if address is not None and not address.needs_tags:
            reader.note(node, path, f"{address.text[:60]!r} is the same for every node", self.right)
            return None
        return address

    @property
    def schema(self) -> Schema:
        """A string with a tag."""
        text = Text(empty=False).schema
        return {"type": "string", "allOf": [{"pattern": text["pattern"]}, {"pattern": r"\{tag:"}]}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of roles.yml."""

    name: str
    kind: Kind
    meaning: str
    default: object = None
    """The default, as it would be written."""
    required: bool = False
    attribute: str = field(default="")
    """The attribute of Role, Service or HaproxySettings; empty if it equals the name."""

    @property
    def target(self) -> str:
        """The attribute that the value is stored in."""
        return self.attribute or self.name


HAPROXY_KEYS = (
    Key("config", Paths(), "absolute path of haproxy.cfg, or a list in the order of HAProxy's -f", DEFAULT_CONFIG),
    Key("reload", Words(), "the command that reloads HAProxy; detected if it is left out"),
    Key("runtime", Choice(_ON, "on or off", ignore_case=True), "off: every change is applied by a reload", "on"),
    Key(
        "timeout",
        Seconds(may_be_zero=False),
        "how long haproxy -c, the reload and its confirmation may each take",
        "30s",
    ),
    Key("min_reload_interval", Seconds(), "lbagent watch: the least time between two reloads", "2s"),
)

SERVICE_KEYS = (
    Key("port", Port(), "where the service listens on its nodes", required=True),
    Key("options", Text(), "what follows ADDRESS:PORT in the server line", DEFAULT_OPTIONS),
)

ROLE_KEYS = (
    Key("interval", Interval(), "the value of {interval} in options", DEFAULT_INTERVAL),
    Key("networks", Networks(), "the networks that this role's addresses may be in"),
    Key("options", Text(), "options of all services of this role, instead of the services' own"),
    Key("address", Address(), "a Serf tag that holds the address; without it, the address that Serf advertises"),
    Key(
        "on_failed",
        Choice({"keep": False, "remove": True}, "keep or remove"),
        "remove: a failed node loses its lines while at least half of its service are alive",
        "keep",
        attribute="remove_failed",
    ),
    Key(
        "on_pause",
        Choice({"remove": False, "drain": True}, "remove or drain"),
        "drain: a paused node keeps its line with weight 0, so that clients that are bound to it finish",
        "remove",
        attribute="drain",
    ),
    Key("max", Count(LARGEST_MAX), "servers of this role that one service may have", DEFAULT_MAX),
)
"""The keys of a role; every other key of a role is a section."""

TOP_KEYS = ("haproxy", "services", "roles")


def build_schema() -> Schema:
    """Return the JSON schema of roles.yml."""
    service = _build_table_schema(SERVICE_KEYS) | {"additionalProperties": False}
    section = {
        "description": "a section: the services that have a marker # additional-<section>-<service>-server",
        "type": ["array"],
        "items": {"type": ["string", "number", "boolean", "null"]},
        "uniqueItems": True,
    }
    role = _build_table_schema(ROLE_KEYS) | {
        "propertyNames": {"pattern": f"^{NAME.pattern}$"},
        "additionalProperties": section,
    }
    roles = {"type": "object", "minProperties": 1, "propertyNames": {"pattern": f"^{NAME.pattern}$"}}
    top = {
        "haproxy": _build_table_schema(HAPROXY_KEYS) | {"additionalProperties": False},
        "services": {
            "type": "object",
            "description": "what listens on the nodes, by name",
            "propertyNames": {"pattern": f"^{SERVICE.pattern}$", "not": {"const": "none"}},
            "additionalProperties": service,
        },
    }
    by_name = {"description": "by the Serf tag `role`, what its nodes serve", **roles, "additionalProperties": role}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "roles.yml of lbagent",
        "type": "object",
        "if": {"required": ["roles"]},
        "then": {"properties": {**top, "roles": by_name}, "additionalProperties": False},
        "else": {
            **roles,
            "properties": top,
            "additionalProperties": role,
            "not": {"propertyNames": {"enum": list(top)}},
        },
    }


def _build_table_schema(keys: tuple[Key, ...]) -> Schema:
    properties: dict[str, object] = {}
    for key in keys:
        properties[key.name] = {"description": key.meaning, **key.kind.schema}
        if key.default is not None:
            properties[key.name] |= {"default": key.default}  # type: ignore[operator]
    required = [key.name for key in keys if key.required]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _explain_invalid_time(text: str, right: str) -> tuple[str, str]:
    shown = text[:40]
    if text.isascii() and text.isdigit():
        return f"{shown!r} has no unit", f"write {shown}s"
    return f"{shown!r} is not a time", right


def _suggest_network(text: str, right: str) -> str:
    try:
        return f"write {ipaddress.ip_network(text, strict=False)}"
    except ValueError:
        return right


def _explain_invalid_template(text: str) -> tuple[str, str]:
    if "#" in text:
        return "contains #, which begins a comment in haproxy.cfg", "remove the #"
    if not (text.isascii() and text.isprintable()):
        return "contains a character that is not printable ASCII", "remove it"
    braces = re.search(r"\{([^{}|:]*)(?::([^{}|]*))?(\|[^{}]*)?\}", remove_placeholders(text))
    if braces is None:
        return "contains an unmatched brace", "write it as in {tag:port|8080}"
    problem = "contains an unknown placeholder"
    word, tag, default = braces.groups("")
    if braces[2] is None:
        near = find_nearest(word, ("interval", "name", "role", "server"))
        return problem, f"did you mean {{{near}}}?" if near else f"use {PLACEHOLDERS}"
    if word == "tag":
        return problem, f"for a tag and its default, use {TAG_RULE}"
    is_near = find_nearest(word, ("tag",)) is not None
    return problem, f"did you mean {{tag:{tag}{default}}}?" if is_near else f"use {PLACEHOLDERS}"


def format_schema() -> str:
    """Return the content of roles.schema.json."""
    return json.dumps(build_schema(), indent=2) + "\n"


if __name__ == "__main__":  # python -m lbagent.roles.keys > lbagent/roles.schema.json
    print(format_schema(), end="")
