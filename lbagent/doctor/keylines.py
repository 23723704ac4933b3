"""Where the keys of a YAML file stand: the lines that a loaded roles.yml no longer knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import yaml

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
