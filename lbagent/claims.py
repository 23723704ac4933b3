"""Who may have a name and an ADDRESS:PORT in one proxy: lines by hand first, then the living, then the failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lbagent.haproxy.lines import HandWritten, Line
from lbagent.haproxy.text import Proxy
from lbagent.membership import FAILED
from lbagent.names import natural
from lbagent.wishes import ByHand, Note, Wish

_BY_HAND = "by hand"

Named = Callable[[str, int], str]
"""The name of a node's server at a marker."""


class Claims:
    """The names and addresses of one proxy, given out one by one."""

    def __init__(self, proxy: Proxy, named: Named) -> None:
        """So far, only what the operator wrote is taken."""
        self._proxy, self._named = proxy, named
        self._names = {line.name.lower() for line in proxy.hand_written}
        self._taken = {line.endpoint: _BY_HAND for line in proxy.hand_written}
        self._granted: set[str] = set()
        """Names of servers that are to stand, at whatever marker."""
        self.adopted: dict[int, str] = {}
        """The nodes of hand-written lines that become managed, by line."""
        self.refused: set[str] = set()
        """Nodes that cannot have a line here, because a line by hand or another node has their name or address."""
        self.notes: list[str] = []

    def adopt(self, wished: Sequence[Sequence[Wish]], kept: frozenset[str]) -> None:
        """Take over hand-written lines above a marker that name a node wished for there, or have its address:port."""
        for line in self._proxy.hand_written:
            for wish in wished[line.marker] if line.marker < len(wished) else ():
                node = wish.member.name
                names = (node.lower(), self._named(node, line.marker).lower())
                if node not in kept and (line.name.lower() in names or line.endpoint == wish.endpoint):
                    self.adopted[line.at] = node
                    self._names.discard(line.name.lower())
                    self._taken.pop(line.endpoint, None)
                    break

    def with_adopted(self, standing: Sequence[Line], number: int) -> Sequence[Line | HandWritten]:
        """The managed lines of a marker with the hand-written ones that become managed, in the order of the text."""
        adopted = [line for line in self._proxy.hand_written if line.at in self.adopted and line.marker == number]
        return sorted([*standing, *adopted], key=lambda line: line.at) if adopted else standing

    def keep(self, lines: Iterable[Line]) -> None:
        """Lines that stay as they are have what they have."""
        self._taken.update((line.endpoint, line.name) for line in lines)

    def take(self, names: Iterable[str], endpoints: Iterable[str]) -> None:
        """Others have these."""
        self._granted.update(names)
        self._taken.update(dict.fromkeys(endpoints, ""))

    def free(self, endpoint: str) -> bool:
        """Whether nobody has this ADDRESS:PORT."""
        return endpoint not in self._taken

    def grant(self, wished: Sequence[Sequence[Wish]], kept: frozenset[str]) -> dict[int, Sequence[Wish]]:
        """The wishes that come true: no line by hand in their way, each address:port once in the proxy."""
        order = [(number, wish) for number, wishes in enumerate(wished) for wish in wishes]
        order.sort(key=lambda one: (one[1].member.status == FAILED, natural(one[1].member.name)))
        may = {
            (number, wish.member.name)
            for number, wish in order
            if wish.member.name not in kept and self._claim(self._named(wish.member.name, number), wish)
        }
        return {
            number: [wish for wish in wishes if (number, wish.member.name) in may]
            for number, wishes in enumerate(wished)
        }

    def replaced(self, line: Line) -> bool:
        """Whether somebody else has the line's name or address now: it goes, but nothing is lost."""
        if line.name.lower() in self._names or line.name in self._granted:
            return True
        return bool(line.endpoint) and not self.free(line.endpoint)

    def _claim(self, name: str, wish: Wish) -> bool:
        holder = self._taken.get(wish.endpoint)
        if name.lower() in self._names or holder == _BY_HAND:
            why = f"in {self._proxy} by hand: none is written beside it"
            self.notes.append(ByHand(wish.member.name, f"{name} stands ", why))
        elif holder is not None:
            why = f"in {self._proxy}: {holder} has {wish.endpoint}"
            self.notes.append(Note(wish.member.name, f"{name} has no line ", why))
        else:
            self.take([name], [wish.endpoint])
            self._taken[wish.endpoint] = name
            return True
        self.refused.add(wish.member.name)
        return False
