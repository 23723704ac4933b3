"""The lines that belong together at one spot of haproxy.cfg: what stands there, and what is to stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lbagent.haproxy.lines import HandWritten, Line, indentation
from lbagent.haproxy.text import Document, Edit, Proxy
from lbagent.names import natural
from lbagent.tuples import NamedTuple

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
    added: Mapping[str, str]
    """The lines in `after` that do not stand there yet, with their nodes."""
    removed: Sequence[Line | HandWritten]
    """The lines in `before` that do not stand there any more."""

    def middle(self, proxy: Proxy) -> str:
        """The middle of its marker; nothing where that is gone."""
        return "" if self.marker is None else proxy.markers[self.marker].middle

    def edits(self, document: Document, proxy: Proxy) -> Iterator[Edit]:
        """What turns `before` into `after`."""
        if self.marker is None:
            # Without a marker a line can only be replaced where it stands, or go.
            for line in self.before if self.added or self.removed else ():
                old = document.lines[line.at]
                ending = "\r" if old.endswith("\r") else ""
                yield Edit(line.at, line.at + 1, [f"{indentation(old)}{text}{ending}" for text in self.after])
            return
        marker = proxy.markers[self.marker]
        wanted = [f"{marker.indent}{text}{marker.ending}" for text in self.after]
        first = marker.at - len(self.before)
        if not self.before or self.before[0].at == first:
            if document.lines[first : marker.at] != wanted:
                yield Edit(first, marker.at, wanted)
            return
        # The operator's lines stand among ours: his stay, ours move together.
        yield from (Edit(line.at, line.at + 1, ()) for line in self.before)
        yield Edit(marker.at, marker.at, wanted)

    def enter(self, proxy: Proxy, node: Callable[[Line | HandWritten], str], changes: Changes) -> None:
        """Enter into `changes` what differs, by node."""
        for line in self.removed:
            changes.setdefault(node(line), ([], []))[1].append(f"{proxy}: {line.text}")
        for text, owner in self.added.items():
            changes.setdefault(owner, ([], []))[0].append(f"{proxy}: {text}")


def in_order(lines: Iterable[Planned]) -> list[Planned]:
    """The lines as they are to stand: by the names of their servers, in natural order."""
    return sorted(lines, key=lambda line: natural(line.name))


def spot(marker: int | None, before: Sequence[Line | HandWritten], after: Sequence[Planned]) -> Spot:
    """A spot, its differences found."""
    old = {line.text for line in before if not isinstance(line, HandWritten)}
    new = {line.text for line in after}
    added = {line.text: line.node for line in after if line.text not in old}
    removed = [line for line in before if line.text not in new or isinstance(line, HandWritten)]
    return Spot(marker, before, [line.text for line in after], added, removed)
