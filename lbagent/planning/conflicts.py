"""The names and endpoints in a proxy, and their order: operator's lines, alive nodes, failed nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lbagent.haproxy.config import Document, ManagedLine, OperatorServer, Proxy
from lbagent.membership.model import FAILED
from lbagent.names import natural_key
from lbagent.planning.desired import DesiredServer, Note, OperatorLineNote

NameServer = Callable[[str, int], str]
"""Returns the name of a node's server at a marker."""


class Conflicts:
    """The names and endpoints of one proxy, assigned one by one.

    Two lines of which HAProxy never reads both, as in `.if` and `.else`, do not compete.
    """

    def __init__(
        self, document: Document, proxy: Proxy, name_server: NameServer, has_line: Callable[[str, int], bool]
    ) -> None:
        """At first only operator's lines are assigned. `has_line` returns whether a node has a line at a marker."""
        self._document, self._proxy, self._name_server, self._has_line = document, proxy, name_server, has_line
        self._taken: dict[str, list[tuple[str, int]]] = {}
        """Managed servers by endpoint, each with a line number that shows its branch of `.if`."""
        self._accepted: dict[str, list[int]] = {}
        """Line numbers of accepted servers, by name."""
        self.adopted: dict[int, str] = {}
        """The nodes of operator's lines that become managed, by line number."""
        self.refused: set[str] = set()
        """Nodes that can have no line here: an operator's line or another node has their name or endpoint."""
        self.notes: list[str] = []

    def adopt(self, desired: Sequence[Sequence[DesiredServer]], kept: frozenset[str]) -> None:
        """Make operator's lines above a marker managed where they have the name or endpoint of a desired server.

        Each node gets one line. A line with its name comes before a line with its endpoint only.
        """
        for number, servers in enumerate(desired):
            above = [line for line in self._proxy.operator_servers if line.marker == number]
            for server in servers if above else ():
                node = server.member.name
                if node in kept or self._has_line(node, number):
                    continue
                names = (node.lower(), self._name_server(node, number).lower())
                left = [line for line in above if line.at not in self.adopted]
                alike = [line for line in left if line.name.lower() in names]
                alike += [line for line in left if line.endpoint == server.endpoint and line not in alike]
                if alike:
                    self.adopted[alike[0].at] = node

    def merge_adopted(self, present: Sequence[ManagedLine], number: int) -> Sequence[ManagedLine | OperatorServer]:
        """Return the managed lines of a marker and its adopted lines, in the order of the text."""
        adopted = [line for line in self._proxy.operator_servers if line.at in self.adopted and line.marker == number]
        return sorted([*present, *adopted], key=lambda line: line.at) if adopted else present

    def reserve_kept(self, lines: Iterable[ManagedLine]) -> None:
        """Reserve the names and endpoints of lines that stay unchanged."""
        for line in lines:
            self._reserve(line.name, line.endpoint, line.at, accept=False)

    def reserve(self, names: Iterable[str], endpoints: Iterable[str], at: int) -> None:
        """Assign names and endpoints to accepted servers in the branch of the line `at`."""
        for name, endpoint in zip(names, endpoints, strict=True):
            self._reserve(name, endpoint, at)

    def is_free(self, endpoint: str, at: int) -> bool:
        """Return whether no other server has this endpoint, seen from the line `at`."""
        return self._find_holder(endpoint, at) is None and not any(
            line.endpoint == endpoint for line in self._list_operator_lines(at)
        )

    def grant_servers(
        self, desired: Sequence[Sequence[DesiredServer]], kept: frozenset[str]
    ) -> dict[int, Sequence[DesiredServer]]:
        """Return the desired servers that get a line, by marker.

        No operator's line has their name, and each endpoint is assigned once in the proxy.
        """
        order = [(number, server) for number, servers in enumerate(desired) for server in servers]
        order.sort(key=lambda one: (one[1].member.status == FAILED, natural_key(one[1].member.name)))
        may = {
            (number, server.member.name)
            for number, server in order
            if server.member.name not in kept
            and self._claim_name_and_address(self._name_server(server.member.name, number), number, server)
        }
        return {
            number: [server for server in servers if (number, server.member.name) in may]
            for number, servers in enumerate(desired)
        }

    def is_replaced(self, line: ManagedLine) -> bool:
        """Return whether another server has the name or endpoint of the line now: its removal loses nothing."""
        if self._is_operator_name(line.name, line.at) or any(
            not self._document.are_exclusive(line.at, at) for at in self._accepted.get(line.name, ())
        ):
            return True
        return bool(line.endpoint) and not self.is_free(line.endpoint, line.at)

    def _reserve(self, name: str, endpoint: str, at: int, *, accept: bool = True) -> None:
        self._taken.setdefault(endpoint, []).append((name, at))
        if accept:
            self._accepted.setdefault(name, []).append(at)

    def _find_holder(self, endpoint: str, at: int) -> str | None:
        """Return the managed server that has this endpoint, seen from the line `at`."""
        there = self._taken.get(endpoint, ())
        return next((name for name, other in there if not self._document.are_exclusive(at, other)), None)

    def _list_operator_lines(self, at: int) -> Iterable[OperatorServer]:
        """Return the operator's lines that compete with a line at `at`."""
        return (
            line
            for line in self._proxy.operator_servers
            if line.at not in self.adopted and not self._document.are_exclusive(at, line.at)
        )

    def _is_operator_name(self, name: str, at: int) -> bool:
        if any(line.name.lower() == name.lower() for line in self._list_operator_lines(at)):
            return True
        return any(one.names(name) and not self._document.are_exclusive(at, one.at) for one in self._proxy.templates)

    def _claim_name_and_address(self, name: str, number: int, server: DesiredServer) -> bool:
        at, node, where = self._proxy.markers[number].at, server.member.name, server.endpoint
        holder = self._find_holder(where, at)
        beside = any(line.endpoint == where for line in self._list_operator_lines(at)) or any(
            one.endpoint == where and not self._document.are_exclusive(at, one.at) for one in self._proxy.templates
        )
        # A present line stays beside an operator's line with the same endpoint: `--adopt` may leave both.
        if self._is_operator_name(name, at) or (
            beside and not self._has_line(node, number) and node not in self._adopted_nodes
        ):
            why = f"in {self._proxy} by hand: none is written beside it"
            self.notes.append(OperatorLineNote(node, f"{name} stands ", why))
        elif holder is not None:
            why = f"in {self._proxy}: {holder} has {where}"
            self.notes.append(Note(node, f"{name} has no line ", why))
        else:
            self._reserve(name, where, at)
            return True
        self.refused.add(server.member.name)
        return False

    @property
    def _adopted_nodes(self) -> Iterable[str]:
        return self.adopted.values()
