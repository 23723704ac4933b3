"""The lines of haproxy.cfg that matter here: markers, managed lines, `server` lines by hand."""

from __future__ import annotations

from lbagent.haproxy.server import endpoint, is_drained
from lbagent.names import canonical_address
from lbagent.tuples import NamedTuple

BLANK = " \t\r"


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


def endpoint_of(text: str) -> str:
    """ADDRESS:PORT in the text of a managed line; nothing in that of a paused one."""
    return "" if text.startswith("#") else [*text.split(None, 3), "", "", ""][2]


def indentation(line: str) -> str:
    """The blanks a line begins with."""
    return line[: len(line) - len(line.lstrip(" \t"))]


def hand_written(at: int, marker: int, line: str, words: list[str]) -> HandWritten:
    """The `server` line whose first words are `words`, as HAProxy would read it: quotes stripped, comment dropped."""
    rest = line.split("#", maxsplit=1)[0].split()
    number = rest[rest.index("id") + 1] if "id" in rest[3:-1] else ""
    name, address = (word.strip("\"'") for word in words[1:3])
    return HandWritten(
        at, marker, line.strip(BLANK), name, _endpoint(address), int(number) if number.isdigit() else None
    )


def _endpoint(written: str) -> str:
    """ADDRESS:PORT as a managed line would write it, where HAProxy means the same by `written`."""
    host, _, port = written.removeprefix("ipv4@").removeprefix("ipv6@").rpartition(":")
    address = canonical_address(host.strip("[]"))
    return written if address is None else endpoint(address, port)
