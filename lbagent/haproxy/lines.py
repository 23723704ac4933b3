"""The lines of haproxy.cfg that matter here: markers, managed lines, `server` lines by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lbagent.haproxy.server import endpoint, is_drained
from lbagent.names import IPV4, NAME, SERVICE, canonical_address
from lbagent.tuples import NamedTuple

BLANK = " \t\r"
PAUSED = "# lbagent paused "

_NAMED = rf"(?:{NAME.pattern}|{NAME.pattern}\.{SERVICE.pattern})"
_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_OF_SERVER = rf"server[ \t]+{_NAMED}[ \t]+"
SERVER_HEAD = re.compile(rf"{_OF_SERVER}{IPV4}:{_PORT}")
"""The beginning of a managed line that has an IPv4 address: `server NAME ADDRESS:PORT`."""
_REST = rf"[ \t](?:[\t -\"$-~]*[ \t])?# lbagent (?:paused )?role={NAME.pattern}"
_SERVER = re.compile(rf"{_OF_SERVER}{IPV4}:{_PORT}({_REST})")
_SERVER_V6 = re.compile(rf"{_OF_SERVER}\[([0-9a-f:.]+)\]:{_PORT}({_REST})")
_SHOWN = 1000
_ROLE = re.compile(rf"# lbagent (?:paused )?role={NAME.pattern}")
_NUMBER = re.compile("[0-9]{1,9}")
_COMMENT = re.compile(r"#[ \t]*lbagent(?:[ \t]*$|[ \t]+(?:\w+[ \t]*=|role|paused)).*", re.IGNORECASE)


class Marker(NamedTuple):
    """A line `# additional-<section>-<service>-server`."""

    at: int
    middle: str
    indent: str
    ending: str
    """`\\r` where lines end in CRLF, else nothing: the LF is what lines were cut at."""


class Line(NamedTuple):
    """A managed line: a server, or the comment of a paused node."""

    at: int
    marker: int
    """Number, within its proxy, of the next marker below it; as many as there are where none follows."""
    text: str
    """Without indentation and line ending."""

    @property
    def pauses(self) -> bool:
        """Whether it is the comment of a paused node, which has no server."""
        return self.text.startswith("#")

    @property
    def paused(self) -> bool:
        """Whether its node is paused: it has only this comment, or drains."""
        return self.pauses or is_drained(self.text)

    @property
    def name(self) -> str:
        """The name of the server, of a paused one the name of the node."""
        return [*self.text.split(None, 4), "", ""][3 if self.pauses else 1]

    @property
    def endpoint(self) -> str:
        """ADDRESS:PORT of a server, nothing of a paused one."""
        return endpoint_of(self.text)

    @property
    def address(self) -> str:
        """The address alone, without port and brackets."""
        return self.text.split(None, 5)[4] if self.pauses else self.endpoint.rpartition(":")[0].strip("[]")

    @property
    def role(self) -> str:
        """The role that its comment tells."""
        return self.text.rpartition("role=")[2]


class HandWritten(NamedTuple):
    """A `server` line that the operator wrote."""

    at: int
    marker: int
    text: str
    name: str
    endpoint: str
    id: int | None


class Template(NamedTuple):
    """A `server-template` line: servers that HAProxy names by a prefix and a number."""

    at: int
    prefix: str
    first: int
    last: int
    endpoint: str

    def names(self, name: str) -> bool:
        """Whether one of its servers is called so, in any case."""
        number = name[len(self.prefix) :]
        if name[: len(self.prefix)].lower() != self.prefix.lower() or not _NUMBER.fullmatch(number):
            return False
        return number == str(int(number)) and self.first <= int(number) <= self.last

    def servers(self) -> Iterator[HandWritten]:
        """Its servers, of a large number the first ones, as if each had a line of its own."""
        for number in range(self.first, min(self.last, self.first + _SHOWN) + 1):
            yield HandWritten(self.at, 0, "", f"{self.prefix}{number}", self.endpoint, None)


class Damaged(NamedTuple):
    """A line that looks like a managed one, but was not written by lbagent as it is."""

    at: int
    text: str
    why: str


def managed_tail(text: str) -> str:
    """What follows ADDRESS:PORT in a `server` line that lbagent could have written, its blanks aside; else nothing."""
    if found := _SERVER.fullmatch(text):
        return found.group(1)
    found = _SERVER_V6.fullmatch(text)
    return found.group(2) if found and canonical_address(found.group(1)) == found.group(1) else ""


def is_paused(text: str) -> bool:
    """Whether lbagent could have written this comment that replaces the line of a paused node."""
    name, _, rest = text.removeprefix(PAUSED).partition(" ")
    address, _, role = rest.partition(" role=")
    return bool(NAME.fullmatch(name) and canonical_address(address) == address and NAME.fullmatch(role))


def seems_managed(text: str) -> str:
    """What keeps an operator's `server` line from being a managed one; nothing where it does not look like one."""
    comment = _COMMENT.search(text) if "lbagent" in text.lower() else None
    if comment is None:
        return ""
    if not _ROLE.fullmatch(comment.group()):
        return "its comment is not `# lbagent role=ROLE`"
    return "it is not `server NAME IP-ADDRESS:PORT OPTIONS`"


def endpoint_of(text: str) -> str:
    """ADDRESS:PORT in the text of a managed line; nothing in that of a paused one."""
    return "" if text.startswith("#") else [*text.split(None, 3), "", "", ""][2]


def indentation(line: str) -> str:
    """The blanks a line begins with."""
    return line[: len(line) - len(line.lstrip(" \t"))]


def hand_written(at: int, marker: int, line: str, words: list[str]) -> HandWritten:
    """The `server` line that consists of `words`."""
    number = words[words.index("id", 3) + 1] if "id" in words[3:-1] else ""
    named = int(number) if _NUMBER.fullmatch(number) else None
    return HandWritten(at, marker, line.strip(BLANK), words[1], _endpoint(words[2]), named)


def template(at: int, words: list[str]) -> Template:
    """The `server-template` line that consists of `words`."""
    first, dash, last = words[2].partition("-")
    low, high = (first, last) if dash else ("1", first)
    known = bool(_NUMBER.fullmatch(low) and _NUMBER.fullmatch(high))
    return Template(at, words[1], int(low) if known else 1, int(high) if known else 0, _endpoint(words[3]))


def _endpoint(written: str) -> str:
    """ADDRESS:PORT as a managed line would write it, where HAProxy means the same by `written`."""
    host, _, port = written.removeprefix("ipv4@").removeprefix("ipv6@").rpartition(":")
    address = canonical_address(host.strip("[]"))
    return written if address is None else endpoint(address, port)
