"""Read YAML nodes strictly; each mistake is noted with its place, key path and fix.

The text is composed into nodes, not loaded into values. So duplicate keys are detected, and a role called `no` or a
port written `080` stays what the operator typed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

import yaml

from lbagent.roles.yaml_text import Mistake

_SCALAR_LIMIT = 2000
_MOST = 200
"""Maximum number of mistakes: a file of another format has one in each line."""

_SHORT = 60
_GLUED = re.compile(r"([A-Za-z0-9._-]+):([{\[].*)", re.DOTALL)


class Reader:
    """Reads the nodes of one file and notes its mistakes."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.unread: set[str] = set()
        """Keys whose values could not be read; references to them are not further mistakes."""

    @property
    def is_full(self) -> bool:
        """Whether the maximum number of mistakes is reached."""
        return len(self.mistakes) >= _MOST

    def note(self, node: yaml.Node | None, path: str, problem: str, fix: str = "") -> None:
        """Note a mistake at a node, or in the file as a whole (None)."""
        line, column = (node.start_mark.line + 1, node.start_mark.column + 1) if node is not None else (0, 0)
        if not self.is_full:
            self.mistakes.append(Mistake(line, column, path, problem, fix))

    def read_text(self, node: yaml.Node, path: str, fix: str, *, empty: bool = False) -> str | None:
        """Return the text of a scalar; None if it is not a valid one. `empty` allows an empty text."""
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null") and not node.style:
            self.note(node, path, "has no value", fix)
            return None
        if not isinstance(node, yaml.ScalarNode):
            quoted = find_unquoted_placeholder(node)
            if quoted:
                self.note(node, path, f"{quoted} needs quotes", f'write "{quoted}"')
            else:
                kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
                self.note(node, path, f"is {kind}, not a single value", fix)
            return None
        text: str = node.value
        if any(character < " " for character in text):
            self.note(node, path, f"{text[:_SHORT]!r} contains a control character", fix)
        elif len(text) > _SCALAR_LIMIT:
            self.note(node, path, f"has {len(text)} characters", f"use at most {_SCALAR_LIMIT}")
        elif not text.strip() and not empty:
            self.note(node, path, "is empty", fix)
        else:
            return text.strip() if empty else text
        return None

    def read_texts(self, node: yaml.Node, path: str, fix: str) -> list[tuple[yaml.Node, str]] | None:
        """Return the texts of a list with their nodes; None if it is not a list of texts."""
        if not isinstance(node, yaml.SequenceNode):
            shown = f"{node.value[:_SHORT]!r} is" if isinstance(node, yaml.ScalarNode) and node.value else "is"
            self.note(node, path, f"{shown} not a list", fix)
            return None
        found = [(item, self.read_text(item, path, fix)) for item in node.value]
        return [(item, text) for item, text in found if text is not None] if all(text for _, text in found) else None

    def read_items(self, node: yaml.Node, path: str, fix: str) -> dict[str, tuple[yaml.Node, yaml.Node]] | None:
        """Return the nodes of each key and its value, by key; None if it is not a mapping."""
        if not isinstance(node, yaml.MappingNode):
            empty = isinstance(node, yaml.ScalarNode) and (not node.value or node.tag.endswith(":null"))
            shown = f"{node.value[:_SHORT]!r} is" if isinstance(node, yaml.ScalarNode) else "is a list,"
            self.note(node, path, "has no keys" if empty else f"{shown} not a mapping of keys to values", fix)
            return None
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.note(key, path, "invalid key", "write KEY: VALUE")
                continue
            name = str(key.value)
            if not name.strip() or any(character < " " for character in name) or len(name) > _SCALAR_LIMIT:
                self.note(key, path, f"invalid key {name[:_SHORT]!r}", "write KEY: VALUE")
                continue
            glued = _GLUED.match(name)
            if glued:
                self.note(
                    key,
                    f"{path}.{glued[1]}".lstrip("."),
                    "missing space after ':'",
                    f"write {glued[1]}: with a space after it",
                )
                self.unread.add(glued[1])
                continue
            if name in found:
                first = found[name][0].start_mark.line + 1
                self.note(
                    key, f"{path}.{name}".lstrip("."), "duplicate key", f"remove one, the first is in line {first}"
                )
                continue
            found[name] = (key, value)
        return found

    def note_unknown_key(self, key: yaml.Node, path: str, known: Sequence[str]) -> None:
        """Note an unknown key; `known` are the valid ones."""
        name = str(key.value)
        before, colon, behind = name.partition(":")
        if colon and before in known:
            self.note(key, path, "missing space after ':'", f"write {before}: {behind}")
            return
        near = find_nearest(name, known)
        fix = f"did you mean {near}?" if near else f"use one of: {', '.join(known)}"
        self.note(key, path, "unknown key", fix)


def find_unquoted_placeholder(node: yaml.Node) -> str:
    """Return the placeholders that YAML read as a mapping, because they lack quotes; empty if it is not that."""
    if not isinstance(node, yaml.MappingNode) or not node.flow_style or not node.value:
        return ""
    if any(not isinstance(key, yaml.ScalarNode) or value.value not in ("", None) for key, value in node.value):
        return ""
    return "{" + ", ".join(str(key.value) for key, _ in node.value) + "}"


def find_nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` was probably meant to be; None if none is close."""
    candidates = {_normalize(one): one for one in known}
    plain = _normalize(word)
    if plain in candidates:
        return candidates[plain]
    close = difflib.get_close_matches(plain, candidates, 1, 0.75)
    if close:
        return candidates[close[0]]
    starts = [one for one in candidates if len(plain) >= 3 and (one.startswith(plain) or plain.startswith(one))]  # noqa: PLR2004
    return candidates[starts[0]] if len(starts) == 1 else None


def is_nearly_equal(word: str, other: str) -> bool:
    """Return whether two words differ only in case, `-` and `_`, a doubled letter or a plural `s`."""
    return word != other and _normalize(word) == _normalize(other)


def _normalize(word: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", word.lower())
    return re.sub(r"(.)\1+", r"\1", letters).removesuffix("s")
