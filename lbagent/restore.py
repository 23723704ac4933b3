"""The way back: managed lines of another text put into this one, and membership read off the managed lines."""

from __future__ import annotations

from lbagent.guard import Line
from lbagent.haproxy.text import Document, Proxy
from lbagent.membership import ALIVE, Member, Membership, Pause
from lbagent.names import NAME, canonical_address
from lbagent.place import Place, Spot
from lbagent.plan import rewrite
from lbagent.roles import Roles


def put_back(document: Document, previous: Document) -> list[str]:
    """The texts of `document` with the managed lines that `previous` has at the same markers."""
    there = {
        (str(proxy), marker.middle): lines
        for proxy in previous.proxies
        for marker, lines in zip(proxy.markers, _lines(previous, proxy), strict=True)
    }
    edits: dict[int, list[str] | None] = {}
    for proxy in document.proxies:
        for number, (marker, lines) in enumerate(zip(proxy.markers, _lines(document, proxy), strict=True)):
            after = there.get((str(proxy), marker.middle), lines)
            if [line.text for line in lines] != [line.text for line in after]:
                rewrite(document, proxy, Spot(number, lines, after), edits)
    return document.texts(edits)


def rebuilt(document: Document, roles: Roles, now: int) -> Membership:
    """The membership that the managed lines of haproxy.cfg tell of, pauses included; tags they do not tell."""
    members: dict[str, Member] = {}
    for proxy in document.proxies:
        for line in Place(document, proxy, roles.pairs(), Membership()).standing:
            address = _address(line)
            if NAME.fullmatch(line.node) and canonical_address(address) == address:
                pause = Pause(now, "haproxy.cfg") if line.pauses else None
                members.setdefault(line.node, Member(line.node, address, line.role, None, ALIVE, now, pause))
    return Membership(members)


def _address(line: Line) -> str:
    words = line.text.split()
    return words[4] if line.pauses else line.endpoint.rpartition(":")[0].strip("[]")


def _lines(document: Document, proxy: Proxy) -> list[list[Line]]:
    lines: list[list[Line]] = [[] for _ in proxy.markers]
    for entry in proxy.entries:
        if entry.marker < len(lines):
            text = document.lines[entry.at].strip(" \t\r")
            lines[entry.marker].append(Line(entry.name, entry.name, text, entry.at, entry.role))
    return lines
