"""Lines whose marker is gone: they stay while their node stays, follow its pause and address, and never come back."""

from __future__ import annotations

from lbagent.haproxy.lines import Line
from lbagent.haproxy.server import Server, Unsafe, paused_line


def remaining(line: Line, node: str, address: str, *, paused: bool) -> tuple[str, str]:
    """The text that stands in the line's place from now on (or nothing), and what an operator should know of it.

    `address` is where the node may be reached now: what its role does not allow is none of them.
    """
    if paused:
        comment = comment_for(line, node, address)
        if comment == line.text and not line.pauses:
            return comment, f"{line.name} can't be paused: its line is not one that lbagent writes; remove the line"
        return comment, f"{line.name} is paused without its marker"
    if line.pauses:
        return "", f"{node} cannot be put back, its marker is gone"
    return moved(line, address), f"{line.name} stands without its marker"


def moved(line: Line, address: str) -> str:
    """The text of a line, its server at another address."""
    port = line.endpoint.rpartition(":")[2]
    if not port.isdigit():
        return line.text
    try:
        there = Server(line.name, address, int(port), "", line.role).endpoint
    except Unsafe:
        return line.text  # whoever wrote that, it was not lbagent
    return line.text.replace(line.endpoint, there, 1)


def comment_for(line: Line, node: str, address: str) -> str:
    """The comment that stands for a line while its node is paused; the line itself where no comment can."""
    try:
        return paused_line(node, address, line.role)
    except Unsafe:
        return line.text
