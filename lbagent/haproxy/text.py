"""haproxy.cfg as text: its proxies, the markers in them, managed and hand-written `server` lines.

Lines are cut at LF only, and every one comes back as it was: CRLF, tabs, Shift-JIS and all.
HAProxy's grammar is not copied here; `haproxy -c` judges what we write.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lbagent.names import NAME

_SECTIONS = frozenset(
    "global defaults frontend backend listen peers resolvers mailers userlist program http-errors ring cache"
    " log-forward fcgi-app crt-store traces log-profile acme".split()
)
_HASHING = ("source", "uri", "url_param", "hdr", "rdp-cookie", "random", "hash")
_MANAGED = re.compile(r"server[ \t]+(\S+)[ \t]+(\S+)(?:[ \t].*)?[ \t]# lbagent role=([A-Za-z0-9][A-Za-z0-9._-]*)")
_PAUSED = re.compile(r"# lbagent paused (\S+) (\S+) role=([A-Za-z0-9][A-Za-z0-9._-]*)")
_MARKER = re.compile(r"# additional-(\S+)-server")
_BLANK = " \t\r"


class Proxy:
    """A section of haproxy.cfg (`backend`, `listen`, …), with what stands in it."""

    __slots__ = ("balance", "entries", "hand_written", "kind", "markers", "name")

    def __init__(self, kind: str, name: str, balance: str | None) -> None:
        self.kind, self.name = kind, name
        self.balance = balance
        self.markers: list[Marker] = []
        self.entries: list[Entry] = []
        """Managed lines, in the order of the text."""
        self.hand_written: list[HandWritten] = []

    @property
    def hashes(self) -> bool:
        """Whether its `balance` chooses servers by a hash, which servers' ids keep stable."""
        return (self.balance or "").partition("(")[0] in _HASHING

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


class Marker(NamedTuple):
    """A line `# additional-<section>-<service>-server`."""

    at: int
    middle: str
    indent: str
    ending: str
    """`\\r` where the file's lines end in CRLF, else nothing: the LF is what lines were cut at."""


class Entry(NamedTuple):
    """A managed line: a server, or the comment that stands for a paused one."""

    at: int
    name: str
    address: str
    """As it stands in the line: ADDRESS:PORT of a server, ADDRESS of a paused one."""
    role: str
    paused: bool
    marker: int
    """Number, within its proxy, of the next marker below it; as many as there are where none follows."""

    @property
    def host(self) -> str:
        """The address alone, without port and brackets."""
        return self.address if self.paused else self.address.rpartition(":")[0].strip("[]")


class HandWritten(NamedTuple):
    """A `server` line that the operator wrote."""

    at: int
    name: str
    endpoint: str
    id: int | None
    marker: int


class Document:
    """The files of haproxy.cfg, read as one sequence of lines, in HAProxy's order."""

    def __init__(self, files: Sequence[tuple[str, str]]) -> None:
        """`files` are (name, text) pairs; names are for messages only."""
        self.lines: list[str] = []
        self.proxies: list[Proxy] = []
        self.settings: list[list[str]] = []
        """The words of each line of `global`."""
        self._starts: list[tuple[int, str]] = []
        self._defaults: dict[str, str | None] = {}
        for name, text in files:
            self._starts.append((len(self.lines), name))
            self._read(text)

    def where(self, at: int) -> str:
        """FILE:LINE of a line, counted from 1 in its own file."""
        start, name = max(entry for entry in self._starts if entry[0] <= at)
        return f"{name}:{at - start + 1}"

    def texts(self, lines: Mapping[int, Sequence[str] | None] = {}) -> list[str]:
        """Every file's text again, with `lines` in place of the lines at these numbers (None: none)."""
        ends = [start for start, _ in self._starts[1:]] + [len(self.lines)]
        return [self._text(start, end, lines) for (start, _), end in zip(self._starts, ends, strict=True)]

    def managed(self) -> list[str]:
        """The managed lines with the proxy they stand in: all that can differ between two runs of ours."""
        return [f"{proxy}: {self.lines[entry.at].strip(_BLANK)}" for proxy in self.proxies for entry in proxy.entries]

    def digest(self) -> str:
        """The digest of the managed lines; equal on load balancers that serve the same."""
        return _digest(self.managed())

    def operator_digest(self) -> str:
        """The digest of everything else: what the operator wrote."""
        ours = {entry.at for proxy in self.proxies for entry in proxy.entries}
        return _digest(line for at, line in enumerate(self.lines) if at not in ours)

    def _text(self, start: int, end: int, lines: Mapping[int, Sequence[str] | None]) -> str:
        text: list[str] = []
        for at in range(start, end) if lines else ():
            if at in lines:
                text += lines[at] or ()
            else:
                text.append(self.lines[at])
        return "\n".join(text if lines else self.lines[start:end])

    def _read(self, text: str) -> None:
        proxy = Proxy("", "", None)
        for at, line in enumerate(text.split("\n"), len(self.lines)):
            self.lines.append(line)
            words = line.split(None, 3)
            if not words:
                continue
            first = words[0]
            if first == "server":
                self._server(proxy, at, line, words)
            elif first[0] == "#":
                self._comment(proxy, at, line)
            elif first in _SECTIONS:
                proxy = self._section(line.split("#")[0].split())
            elif proxy.kind == "global":
                self.settings.append(line.split("#")[0].split())
            elif first == "balance" and len(words) > 1:
                proxy.balance = words[1]
                if proxy.kind == "defaults":
                    self._defaults[proxy.name] = self._defaults[""] = proxy.balance

    def _section(self, words: list[str]) -> Proxy:
        kind, name = words[0], words[1] if len(words) > 1 else ""
        base = words[words.index("from") + 1] if "from" in words[:-1] else ""
        proxy = Proxy(kind, name, self._defaults.get(base))
        if kind == "defaults":
            proxy.balance = self._defaults.get(base) if base else None
            self._defaults[name] = self._defaults[""] = proxy.balance
        self.proxies.append(proxy)
        return proxy

    def _server(self, proxy: Proxy, at: int, line: str, words: list[str]) -> None:
        if "# lbagent " in line and (found := _MANAGED.fullmatch(line.strip(_BLANK))):
            name, address, role = found.groups()
            proxy.entries.append(Entry(at, name, address, role, paused=False, marker=len(proxy.markers)))
        elif len(words) > 2:  # noqa: PLR2004  # server NAME ADDRESS
            rest = line.split("#")[0].split()
            number = rest[rest.index("id") + 1] if "id" in rest[3:-1] else ""
            name, endpoint = (word.strip("\"'") for word in words[1:3])
            proxy.hand_written.append(HandWritten(at, name, endpoint, int(number) if number.isdigit() else None, len(proxy.markers)))

    def _comment(self, proxy: Proxy, at: int, line: str) -> None:
        text = line.strip(_BLANK)
        if found := _MARKER.fullmatch(text):
            proxy.markers.append(Marker(at, found.group(1), line[: len(line) - len(line.lstrip(_BLANK))], self._ending(line)))
        elif found := _PAUSED.fullmatch(text):
            name, address, role = found.groups()
            if NAME.fullmatch(name):
                proxy.entries.append(Entry(at, name, address, role, paused=True, marker=len(proxy.markers)))

    def _ending(self, line: str) -> str:
        # The marker may be the last line, without any ending; the first line of the text shows the file's own.
        return "\r" if line.endswith("\r") or self.lines[self._starts[-1][0]].endswith("\r") else ""


def completed(text: str) -> str:
    """`text` with its final line ending, without which HAProxy refuses it."""
    if not text or text.endswith("\n"):
        return text
    return text + ("\r\n" if "\r\n" in text and not text.endswith("\r") else "\n")


def _digest(lines: Iterable[str]) -> str:
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    # Two checksums, of which no change that a person or lbagent makes leaves both alone: not a seal, 1 ms less to load.
    return f"{zlib.crc32(text):08x}{zlib.adler32(text):08x}"
