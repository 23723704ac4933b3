"""YAML as nodes that know their lines: read strictly, refused with file, line, key path and what would be right.

The text is composed to nodes, not loaded to values: doubled keys are seen, and a role called `no` or a
port written `080` is what the operator typed, not what YAML 1.1 makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import yaml

from lbagent.errors import RolesRefused

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCALAR_LIMIT = 2000
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_ON = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


class Nodes:
    """The nodes of one YAML file."""

    def __init__(self, where: str) -> None:
        """`where` names the file in refusals."""
        self._where = where

    def composed(self, content: bytes) -> yaml.Node:
        """The root node. Raises RolesRefused."""
        try:
            root: yaml.Node | None = yaml.compose(content, Loader=_LOADER)
        except (yaml.YAMLError, ValueError) as error:
            raise RolesRefused(f"{self._where}{_yaml_words(error)}") from error
        if root is None:
            raise RolesRefused(f"{self._where}: is empty (a `roles:` with at least one role is needed)")
        return root

    def seconds(self, node: yaml.Node | None, path: str, default: float) -> float:
        """A time in seconds; `default` where there is no node. Raises RolesRefused, as all here do."""
        if node is None:
            return default
        text = self.scalar(node, path, "a time such as 30s")
        digits = text.rstrip("msh")
        unit = text[len(digits) :]
        if not (digits.isascii() and digits.isdigit() and 0 < len(digits) < 9 and unit in _SECONDS):  # noqa: PLR2004
            self.refuse(node, path, f"{text!r} is not a time with its unit, as in 30s")
        return int(digits) * _SECONDS[unit]

    def switch(self, node: yaml.Node | None, path: str, *, default: bool) -> bool:
        """On or off."""
        text = self.text(node, path, "on" if default else "off").lower()
        if text not in _ON:
            self.refuse(node, path, f"{text!r} is not on or off")
        return _ON[text]

    def words(self, node: yaml.Node, path: str, right: str, least: int = 1) -> tuple[str, ...]:
        """A list of texts, `least` of them at the least; `right` says what one looks like."""
        if not isinstance(node, yaml.SequenceNode) or len(node.value) < least:
            self.refuse(node, path, f"is not {right}")
        return tuple(self.scalar(item, path, right) for item in node.value)

    def text(self, node: yaml.Node | None, path: str, default: str) -> str:
        """A text; `default` where there is no node."""
        return default if node is None else self.scalar(node, path, "text")

    def scalar(self, node: yaml.Node, path: str, right: str) -> str:
        """A text that is not empty."""
        if not isinstance(node, yaml.ScalarNode) or (node.tag.endswith(":null") and not node.style):
            self.refuse(node, path, f"is not {right}")
        text: str = node.value
        if len(text) > _SCALAR_LIMIT or not text.strip() or any(character < " " for character in text):
            if path.endswith(".options") and not text.strip():
                return ""
            self.refuse(node, path, f"{text[:40]!r} is empty, too long or holds control characters")
        return text

    def mapping(self, node: yaml.Node, path: str) -> dict[str, yaml.Node]:
        """Keys and their nodes; a key that stands twice is refused."""
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, path or "the file", "is not a mapping of keys to values")
        return dict(self._items(node, path))

    def _items(self, node: yaml.MappingNode, path: str) -> Iterator[tuple[str, yaml.Node]]:
        seen: set[str] = set()
        for key, value in node.value:
            name = self.scalar(key, path or "the file", "a mapping whose keys are words")
            if name in seen:
                self.refuse(key, f"{path}.{name}".lstrip("."), "stands twice")
            seen.add(name)
            yield name, value

    def only(self, keys: dict[str, yaml.Node], known: tuple[str, ...], path: str, said: tuple[str, ...] = ()) -> None:
        """Refuse keys other than `known`; `path` ends in a dot."""
        for key, node in keys.items():
            if key not in known:
                self.refuse(node, f"{path}{key}", f"unknown key (known: {', '.join(said or known)})")

    def refuse(self, node: yaml.Node | None, path: str, what: str) -> NoReturn:
        """Say what is wrong, and where."""
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        raise RolesRefused(f"{self._where}{line}: {path}: {what}")


def _yaml_words(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    words = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return f"{line}: is not YAML: {' '.join(str(words).split())}"
