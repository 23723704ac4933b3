"""Lines whose marker is gone: they stay while their node stays, follow its pause and address, and never come back."""

from __future__ import annotations

from lbagent.haproxy.lines import Line
from lbagent.haproxy.server import Server, drain_line, paused_line, undrain_line


def remaining(line: Line, node: str, address: str, *, paused: bool, drain: bool) -> tuple[str, str]:
    """The text that stands in the line's place from now on (or nothing), and what an operator should know of it.

    `address` is where the node may be reached now: what its role does not allow is none of them. With `drain` the
    line of a paused node stays, with weight 0.
    """
    if paused and drain and not line.pauses:
        return drain_line(moved(line, address)), f"{line.name} is paused without its marker"
    if paused:
        return paused_line(node, address, line.role), f"{line.name} is paused without its marker"
    if line.pauses:
        return "", f"{node} cannot be put back, its marker is gone"
    return undrain_line(moved(line, address)), f"{line.name} stands without its marker"


def moved(line: Line, address: str) -> str:
    """The text of a line, its server at another address."""
    port = line.endpoint.rpartition(":")[2]
    if not port.isdigit():
        return line.text
    there = Server(line.name, address, int(port), "", line.role).endpoint
    return line.text.replace(line.endpoint, there, 1)
