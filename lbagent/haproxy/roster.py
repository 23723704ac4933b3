"""The managed servers of haproxy.cfg, as a running HAProxy knows them: by the names of proxy and server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lbagent.haproxy.text import Document

Key = tuple[str, str]
"""The names of a proxy and of a server in it."""
Lines = Mapping[Key, str]

NAME = re.compile("[A-Za-z0-9_.:-]+")
"""What HAProxy lets proxies and servers be called; whatever else may stand in the file is never said."""
_OURS = " # lbagent "


def target(key: Key) -> str:
    """PROXY/SERVER."""
    return "/".join(key)


def standing(document: Document) -> Lines:
    """The managed servers of a text that HAProxy certainly has, in proxies whose names are known."""
    found: dict[Key, str] = {}
    for proxy in document.proxies:
        if document.conditional:
            there = ((document.server(line.at), line) for line in proxy.managed if not line.pauses)
            found |= {(name, line.name): line.text for (name, has), line in there if has and name and _speakable(name)}
        elif _speakable(proxy.name):
            found |= {(proxy.name, line.name): line.text for line in proxy.managed if not line.pauses}
    return found


def doubtful(document: Document) -> Lines:
    """The managed servers of a text of which only HAProxy knows the proxy, or whether it has them at all."""
    lines = (
        (proxy, line)
        for proxy in document.proxies
        if document.conditional or not _speakable(proxy.name)
        for line in proxy.managed
        if not line.pauses
    )
    return {
        (proxy.name, line.name): line.text
        for proxy, line in lines
        if not document.conditional or document.server(line.at)[1] is None
    }


def _speakable(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def entry(text: str) -> tuple[Key, str]:
    """Key and line of `PROXY: LINE`, as a plan tells its changes; of a paused node an empty line."""
    section, _, line = text.partition(": ")
    paused = line.startswith("#")
    name = [*line.split(None, 4), "", ""][3 if paused else 1]
    return (section.partition(" ")[2], name), "" if paused else line


def after(document: Document, texts: Sequence[str], changed: tuple[Iterable[str], Iterable[str]]) -> Lines:
    """The managed servers once the files read as `texts`, which adds and removes lines as a plan has them."""
    if document.conditional:
        return standing(document.reread(texts))
    added, removed = changed
    after = dict(standing(document))
    for key, line in map(entry, removed):
        if line:
            after.pop(key, None)
    after.update((key, line) for key, line in map(entry, added) if line)
    return after


def parts(line: str) -> tuple[str, int, list[str]]:
    """Address, port and the words of the options of a managed line; port 0 where somebody has made it another."""
    _, _, endpoint, *options = [*line.partition(_OURS)[0].split(), "", ""]
    address, _, port = endpoint.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() else 0
    return address.strip("[]"), number, [word for word in options if word]
