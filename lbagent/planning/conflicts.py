"""The server that gets a name and an ADDRESS:PORT in a proxy: operator's lines first, then alive, then failed nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lbagent.haproxy.config import Document, ManagedLine, OperatorServer, Proxy
from lbagent.membership.model import FAILED
from lbagent.names import natural_key
from lbagent.planning.desired import DesiredServer, Note, OperatorLineNote

Named = Callable[[str, int], str]
"""The name of a node's server at a marker."""


class Conflicts:
    """The names and addresses of one proxy, given out one by one.

    Two lines of which HAProxy never reads both, as in `.if` and `.else`, do not compete.
    """

    def __init__(self, document: Document, proxy: Proxy, named: Named, stands: Callable[[str, int], bool]) -> None:
        """So far, only what the operator wrote is taken; `stands` tells whether a node has a line at a marker."""
        self._document, self._proxy, self._named, self._stands = document, proxy, named, stands
        self._taken: dict[str, list[tuple[str, int]]] = {}
        """The managed servers at an ADDRESS:PORT, each with the line that shows which branch of `.if` it is in."""
        self._granted: dict[str, list[int]] = {}
        """Names of servers that are to stand, with such lines."""
        self.adopted: dict[int, str] = {}
        """The nodes of operator's lines that become managed, by line."""
        self.refused: set[str] = set()
        """Nodes that cannot have a line here, because a line by hand or another node has their name or address."""
        self.notes: list[str] = []

    def adopt(self, wished: Sequence[Sequence[DesiredServer]], kept: frozenset[str]) -> None:
        """Have operator's lines above a marker become managed that name a node wished for there, or have its address.

        One for each node: a line with its name rather than one with its address alone.
        """
        for number, wishes in enumerate(wished):
            above = [line for line in self._proxy.operator_servers if line.marker == number]
            for wish in wishes if above else ():
                node = wish.member.name
                if node in kept or self._stands(node, number):
                    continue
                names = (node.lower(), self._named(node, number).lower())
                left = [line for line in above if line.at not in self.adopted]
                alike = [line for line in left if line.name.lower() in names]
                alike += [line for line in left if line.endpoint == wish.endpoint and line not in alike]
                if alike:
                    self.adopted[alike[0].at] = node

    def with_adopted(self, standing: Sequence[ManagedLine], number: int) -> Sequence[ManagedLine | OperatorServer]:
        """The managed lines of a marker with the operator's lines that become managed, in the order of the text."""
        adopted = [line for line in self._proxy.operator_servers if line.at in self.adopted and line.marker == number]
        return sorted([*standing, *adopted], key=lambda line: line.at) if adopted else standing

    def keep(self, lines: Iterable[ManagedLine]) -> None:
        """Give lines that stay as they are what they have."""
        for line in lines:
            self._take(line.name, line.endpoint, line.at, granted=False)

    def take(self, names: Iterable[str], endpoints: Iterable[str], at: int) -> None:
        """Give these to servers that are to stand in the branch of the line `at`."""
        for name, endpoint in zip(names, endpoints, strict=True):
            self._take(name, endpoint, at)

    def free(self, endpoint: str, at: int) -> bool:
        """Whether no other server has this ADDRESS:PORT, seen from the line `at`."""
        return self._holder(endpoint, at) is None and not any(line.endpoint == endpoint for line in self._by_hand(at))

    def grant(
        self, wished: Sequence[Sequence[DesiredServer]], kept: frozenset[str]
    ) -> dict[int, Sequence[DesiredServer]]:
        """The wishes that come true: no operator's line in their way, each address:port once in the proxy."""
        order = [(number, wish) for number, wishes in enumerate(wished) for wish in wishes]
        order.sort(key=lambda one: (one[1].member.status == FAILED, natural_key(one[1].member.name)))
        may = {
            (number, wish.member.name)
            for number, wish in order
            if wish.member.name not in kept and self._claim(self._named(wish.member.name, number), number, wish)
        }
        return {
            number: [wish for wish in wishes if (number, wish.member.name) in may]
            for number, wishes in enumerate(wished)
        }

    def replaced(self, line: ManagedLine) -> bool:
        """Whether another server has the line's name or address now: it goes, but nothing is lost."""
        if self._names_by_hand(line.name, line.at) or any(
            not self._document.are_exclusive(line.at, at) for at in self._granted.get(line.name, ())
        ):
            return True
        return bool(line.endpoint) and not self.free(line.endpoint, line.at)

    def _take(self, name: str, endpoint: str, at: int, *, granted: bool = True) -> None:
        self._taken.setdefault(endpoint, []).append((name, at))
        if granted:
            self._granted.setdefault(name, []).append(at)

    def _holder(self, endpoint: str, at: int) -> str | None:
        """The managed server that has this ADDRESS:PORT, seen from the line `at`."""
        there = self._taken.get(endpoint, ())
        return next((name for name, other in there if not self._document.are_exclusive(at, other)), None)

    def _by_hand(self, at: int) -> Iterable[OperatorServer]:
        """The operator's lines that compete with one at the line `at`."""
        return (
            line
            for line in self._proxy.operator_servers
            if line.at not in self.adopted and not self._document.are_exclusive(at, line.at)
        )

    def _names_by_hand(self, name: str, at: int) -> bool:
        if any(line.name.lower() == name.lower() for line in self._by_hand(at)):
            return True
        return any(one.names(name) and not self._document.are_exclusive(at, one.at) for one in self._proxy.templates)

    def _claim(self, name: str, number: int, wish: DesiredServer) -> bool:
        at, node, where = self._proxy.markers[number].at, wish.member.name, wish.endpoint
        holder = self._holder(where, at)
        beside = any(line.endpoint == where for line in self._by_hand(at)) or any(
            one.endpoint == where and not self._document.are_exclusive(at, one.at) for one in self._proxy.templates
        )
        # A line that stands beside an operator's one with its address, as `--adopt` may leave it, stays.
        if self._names_by_hand(name, at) or (beside and not self._stands(node, number) and node not in self._adopts):
            why = f"in {self._proxy} by hand: none is written beside it"
            self.notes.append(OperatorLineNote(node, f"{name} stands ", why))
        elif holder is not None:
            why = f"in {self._proxy}: {holder} has {where}"
            self.notes.append(Note(node, f"{name} has no line ", why))
        else:
            self._take(name, where, at)
            return True
        self.refused.add(wish.member.name)
        return False

    @property
    def _adopts(self) -> Iterable[str]:
        return self.adopted.values()
