"""Compares what the load balancers have with the model, and finds the reason of each failed request."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scenarios.chaos.clients import Failure, LogLine
from scenarios.chaos.model import Fault, Model
from scenarios.chaos.site import PROXIES, Server

GRACE = 6.0
"""Seconds after the end of a fault in which a request that waits for it may still fail."""


class Seen(NamedTuple):
    """What a load balancer has: the text of haproxy.cfg, and the servers of the running HAProxy by proxy and name."""

    text: str
    servers: Mapping[str, Mapping[str, Server]]


def find_differences(model: Model, seen: Mapping[str, Seen]) -> list[str]:
    """Return a line for each node that model, files and running HAProxys do not agree on, and a diff of other lines."""
    rows, expected, servers = list[str](), model.render_config(), model.list_servers()
    for service, proxy in PROXIES.items():
        running = {lb: _list_used(one.servers.get(proxy, {})) for lb, one in seen.items()}
        for name in sorted({*model.nodes, *(server for found in running.values() for server in found)}):
            wanted = _describe(_find_line(expected, name, service), servers[proxy].get(name))
            found = {
                lb: _describe(_find_line(one.text, name, service), running[lb].get(name)) for lb, one in seen.items()
            }
            if set(found.values()) != {wanted}:
                columns = "  ".join(f"{lb}: {words}" for lb, words in found.items())
                rows.append(f"  {name} in {proxy}: model: {wanted}  {columns}")
    if not rows:
        for lb, one in seen.items():
            lines = difflib.unified_diff(expected.splitlines(), one.text.splitlines(), "model", lb, lineterm="")
            rows += [f"  {line}" for line in lines]
    return rows


def explain_failure(failure: Failure, logged: LogLine | None, faults: Sequence[Fault]) -> str:
    """Return the fault that explains a failed request; nothing if a change must have caused it.

    A request for which HAProxy has logged an error failed at its server. Otherwise the client has lost HAProxy, or
    HAProxy has closed its connection as the server's connection ended at this moment.
    """
    subjects = {logged.server} if logged and logged.status.startswith("5") else {"lb01", "lb02"}
    for fault in faults:
        if failure.reason == "RemoteDisconnected" and failure.begin - 0.5 <= fault.begin <= failure.end + 0.5:
            return fault.reason
        if fault.subject in subjects and fault.begin <= failure.end and failure.begin <= fault.end + GRACE:
            return fault.reason
    return ""


def _list_used(servers: Mapping[str, Server]) -> dict[str, Server]:
    """Return the servers that are not in maintenance: HAProxy 2.6 keeps removed servers there."""
    return {name: server for name, server in servers.items() if server.state != "MAINT"}


def _find_line(text: str, name: str, service: str) -> str:
    """Return the managed lines of the node above the marker of the service."""
    lines = text.partition(f"# additional-lb-{service}-server")[0].splitlines()
    start = max((number for number, line in enumerate(lines) if line.startswith("listen")), default=0)
    return " | ".join(line.strip() for line in lines[start:] if f" {name} " in line)


def _describe(line: str, server: Server | None) -> str:
    return f"[{line or 'no line'}, {f'{server.state} {server.address}' if server else 'absent'}]"
