"""The lines that belong together at one spot of haproxy.cfg: what stands there, and what is to stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lbagent.haproxy.lines import HandWritten, Line, indentation
from lbagent.haproxy.text import Document, Proxy

Changes = dict[str, tuple[list[str], list[str]]]
"""Lines added and removed, by node."""


class Planned(NamedTuple):
    """A line that is to stand."""

    node: str
    name: str
    """Of the server."""
    text: str


class Spot(NamedTuple):
    """The lines above one marker (its number in the proxy), or one that has none."""

    marker: int | None
    before: Sequence[Line | HandWritten]
    after: Sequence[str]
    owners: Mapping[str, str]
    """The nodes of the lines in `after`, at least of those that do not stand there yet."""

    def rewrite(self, document: Document, proxy: Proxy, edits: dict[int, Sequence[str]]) -> None:
        """Enter into `edits` (see Document.edited) what turns `before` into `after`."""
        if self.marker is None:
            # Without a marker a line can only be replaced where it stands, or go.
            for line in self.before:
                old = document.lines[line.at]
                ending = "\r" if old.endswith("\r") else ""
                edits[line.at] = [f"{indentation(old)}{text}{ending}" for text in self.after]
            return
        marker = proxy.markers[self.marker]
        wanted = [f"{marker.indent}{text}{marker.ending}" for text in self.after]
        first = marker.at - len(self.before)
        if document.lines[first : marker.at] == wanted and (not self.before or self.before[0].at == first):
            return
        edits.update((line.at, ()) for line in self.before)
        edits[marker.at] = [*wanted, document.lines[marker.at]]

    def compare(self, proxy: Proxy, node: Callable[[Line | HandWritten], str], changes: Changes) -> None:
        """Enter into `changes` what differs, by node."""
        old = {line.text for line in self.before}
        new = set(self.after)
        for line in self.before if not old <= new else ():
            if line.text not in new:
                changes.setdefault(node(line), ([], []))[1].append(f"{proxy}: {line.text}")
        for text in self.after if not new <= old else ():
            if text not in old:
                changes.setdefault(self.owners[text], ([], []))[0].append(f"{proxy}: {text}")


def owners(lines: Sequence[Planned]) -> Mapping[str, str]:
    """Whose line each text is."""
    return {line.text: line.node for line in lines}
