"""The last serving node of a service: the services that would be left, or are left, without a serving server."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from lbagent.haproxy.config import Document, ManagedLine, OperatorServer, Proxy
from lbagent.haproxy.runtime.state import Stats
from lbagent.membership.model import ALIVE, Membership, find_paused
from lbagent.planning.proxy import ProxyPlanner
from lbagent.roles.model import Roles

LAST_SERVER_WARNING = "no other server of "
"""First words of the note that a pause took the last server of a service."""

_STATES_WITHOUT_TRAFFIC = ("DOWN", "MAINT", "DRAIN", "NOLB")
"""Prefixes of HAProxy's server states in which a server gets no new requests."""


class Serving(NamedTuple):
    """haproxy.cfg, and the states of its servers in HAProxy."""

    document: Document
    states: Stats
    """Empty where HAProxy gives none: then Serf's statuses decide."""


def find_unserved(
    now: Serving, roles: Roles, membership: Membership, nodes: Collection[str], *, if_paused: bool = False
) -> list[str]:
    """Return the services of `nodes` that no other server serves, in any of their proxies.

    With `if_paused`, only services that one of `nodes` still serves: pausing them would leave no server.
    """
    view = _View(now, roles, membership)
    found: dict[str, None] = {}
    for proxy in (one for one in now.document.proxies if one.managed and one.markers):
        found.update(dict.fromkeys(view.list_unserved(proxy, nodes, if_paused=if_paused)))
    return list(found)


def join_words(services: Iterable[str]) -> str:
    """Return the services as a phrase: `iis`, `iis and mongo`, `a, b and c`."""
    *others, last = services
    return f"{', '.join(others)} and {last}" if others else last


class _View:
    def __init__(self, now: Serving, roles: Roles, membership: Membership) -> None:
        self._now, self._roles, self._members = now, roles, membership.members
        self._pairs, self._paused = roles.list_pairs(), find_paused(membership)

    def list_unserved(self, proxy: Proxy, nodes: Collection[str], *, if_paused: bool) -> Iterable[str]:
        """Yield the services in this proxy that only `nodes` have."""
        planner = ProxyPlanner(self._now.document, proxy, self._roles, self._pairs, self._members)
        by_hand = any(self._operator_line_serves(proxy, line) for line in proxy.operator_servers)
        for number, marker in enumerate(proxy.markers):
            pair = self._pairs.get(marker.middle)
            lines = [(planner.find_node(line), line) for line in proxy.managed if line.marker == number]
            mine = [
                line for node, line in lines if node in nodes and (not if_paused or self._serves(proxy, node, line))
            ]
            others = (self._serves(proxy, node, line) for node, line in lines if node not in nodes)
            if pair and mine and not by_hand and not any(others):
                yield pair.service

    def _serves(self, proxy: Proxy, node: str, line: ManagedLine) -> bool:
        member = self._members.get(node)
        alive = member is None or member.status == ALIVE
        return alive and not line.paused and node not in self._paused and self._is_up(proxy, line.name)

    def _operator_line_serves(self, proxy: Proxy, line: OperatorServer) -> bool:
        words = line.text.partition("#")[0].split()
        return not {"backup", "disabled"} & set(words) and self._is_up(proxy, line.name)

    def _is_up(self, proxy: Proxy, server: str) -> bool:
        if not self._now.states:
            return True
        found = self._now.states.get((proxy.name, server))
        return found is not None and not (found.state or "").startswith(_STATES_WITHOUT_TRAFFIC)
