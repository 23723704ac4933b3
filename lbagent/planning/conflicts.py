"""The names and endpoints in one proxy: those of operator's lines, and those that managed servers have so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lbagent.haproxy.config import Document, ManagedLine, OperatorServer, Proxy
from lbagent.planning.desired import DesiredServer


class Conflicts:
    """The names and endpoints in use in one proxy.

    Two lines of which HAProxy never reads both, as in `.if` and `.else`, do not compete.
    """

    def __init__(self, document: Document, proxy: Proxy) -> None:
        """At first only operator's lines have names and endpoints."""
        self._document, self._proxy = document, proxy
        self._operator_names: dict[str, list[OperatorServer]] = {}
        """Operator's lines by name in lower case."""
        self._operator_endpoints: dict[str, list[OperatorServer]] = {}
        for line in proxy.operator_servers:
            self._operator_names.setdefault(line.name.lower(), []).append(line)
            self._operator_endpoints.setdefault(line.endpoint, []).append(line)
        self.has_operator_lines = bool(proxy.operator_servers or proxy.templates)
        self._endpoints: dict[str, list[tuple[str, int]]] = {}
        """Managed servers by endpoint, each with a line number that shows its branch of `.if`."""
        self._names: dict[str, list[int]] = {}
        """Line numbers of the managed servers, by name; without those of quarantined nodes."""
        self.adopted: dict[int, str] = {}
        """The nodes of operator's lines that become managed, by line number."""

    def adopt_lines(
        self,
        desired: Sequence[Sequence[DesiredServer]],
        name_server: Callable[[str, int], str],
        is_excluded: Callable[[str, int], bool],
    ) -> None:
        """Make operator's lines above a marker managed where they have the name or endpoint of a desired server.

        Each node gets one line. A line with its name comes before a line with its endpoint only. `name_server` returns
        the name of a node's server at a marker; `is_excluded` returns whether the node needs no line there.
        """
        for number, servers in enumerate(desired):
            above = [line for line in self._proxy.operator_servers if line.marker == number]
            for server in servers if above else ():
                if is_excluded(server.node, number):
                    continue
                names = (server.node.lower(), name_server(server.node, number).lower())
                left = [line for line in above if line.at not in self.adopted]
                alike = [line for line in left if line.name.lower() in names]
                alike += [line for line in left if line.endpoint == server.endpoint and line not in alike]
                if alike:
                    self.adopted[alike[0].at] = server.node

    def merge_adopted(self, present: Sequence[ManagedLine], number: int) -> Sequence[ManagedLine | OperatorServer]:
        """Return the managed lines of a marker and its adopted lines, in the order of the text."""
        adopted = [line for line in self._proxy.operator_servers if line.at in self.adopted and line.marker == number]
        return sorted([*present, *adopted], key=lambda line: line.at) if adopted else present

    def assign(self, name: str, endpoint: str, at: int) -> None:
        """Assign name and endpoint to a managed server in the branch of the line `at`."""
        self._endpoints.setdefault(endpoint, []).append((name, at))
        self._names.setdefault(name, []).append(at)

    def reserve(self, lines: Iterable[ManagedLine]) -> None:
        """Assign the endpoints of lines that stay unchanged whatever else is planned."""
        for line in lines:
            self._endpoints.setdefault(line.endpoint, []).append((line.name, line.at))

    def find_holder(self, endpoint: str, at: int) -> str | None:
        """Return the managed server that has this endpoint, seen from the line `at`; None where none has."""
        holders = self._endpoints.get(endpoint)
        if holders is None:
            return None
        return next((name for name, other in holders if not self._document.are_exclusive(at, other)), None)

    def find_operator_name(self, name: str, at: int) -> int | None:
        """Return the operator's line that has this name (in any case), seen from the line `at`; None where none has."""
        lines = self._operator_names.get(name.lower(), ())
        templates = (one for one in self._proxy.templates if one.names(name))
        return next((line.at for line in (*lines, *templates) if self._competes(line.at, at)), None)

    def find_operator_endpoint(self, endpoint: str, at: int) -> int | None:
        """Return the operator's line that has this endpoint, seen from the line `at`; None where none has."""
        lines = self._operator_endpoints.get(endpoint, ())
        templates = (one for one in self._proxy.templates if one.endpoint == endpoint)
        return next((line.at for line in (*lines, *templates) if self._competes(line.at, at)), None)

    def is_free(self, endpoint: str, at: int) -> bool:
        """Return whether no other server has this endpoint, seen from the line `at`."""
        operators = self._operator_endpoints.get(endpoint, ())
        return self.find_holder(endpoint, at) is None and not any(self._competes(line.at, at) for line in operators)

    def is_replaced(self, line: ManagedLine) -> bool:
        """Return whether another server has the name or endpoint of the line now: its removal loses nothing."""
        if self.find_operator_name(line.name, line.at) is not None:
            return True
        if any(not self._document.are_exclusive(line.at, at) for at in self._names.get(line.name, ())):
            return True
        return bool(line.endpoint) and not self.is_free(line.endpoint, line.at)

    def _competes(self, operator_line: int, at: int) -> bool:
        """Return whether an operator's line is not adopted, and HAProxy may read it together with the line `at`."""
        return operator_line not in self.adopted and not self._document.are_exclusive(at, operator_line)
