"""haproxy.cfg as text: its proxies, the markers in them, managed and hand-written `server` lines.

Lines are cut at LF only, and every one comes back as it was: CRLF, tabs, Shift-JIS and all.
HAProxy's grammar is not copied here; `haproxy -c` judges what we write.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from lbagent.haproxy.lines import BLANK, HandWritten, Line, Marker, hand_written, indentation
from lbagent.haproxy.server import PAUSED_OURS, is_drained
from lbagent.tuples import NamedTuple

SECTIONS = frozenset(
    {"global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "program"}
    | {"http-errors", "ring", "cache", "log-forward", "fcgi-app", "crt-store", "traces", "log-profile", "acme"}
)
_HASHING = ("source", "uri", "url_param", "hdr", "rdp-cookie", "random", "hash")
_OURS = "# lbagent role="
_NOBODYS = "\n"  # what no line ends with
_SERVER = "server ", "server\t"
PAUSED = "# lbagent paused "
_MARKER = "# additional-", "-server"

_line: Callable[[tuple[int, int, str]], Line] = partial(tuple.__new__, Line)
"""Line, at half its price: ten thousand are made before anything can be done."""


class Proxy:
    """A section of haproxy.cfg (`backend`, `listen`, …), with what stands in it."""

    __slots__ = ("balance", "hand_written", "kind", "managed", "markers", "name")

    def __init__(self, kind: str, name: str, balance: str | None) -> None:
        """An empty section; `balance` is what its `defaults` say."""
        self.kind, self.name, self.balance = kind, name, balance
        self.markers: list[Marker] = []
        self.managed: list[Line] = []
        self.hand_written: list[HandWritten] = []

    @property
    def hashes(self) -> bool:
        """Whether its `balance` chooses servers by a hash, which servers' ids keep stable."""
        return (self.balance or "").partition("(")[0] in _HASHING

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


class Edit(NamedTuple):
    """Lines `start` up to, not including, `end` become `lines`."""

    start: int
    end: int
    lines: Sequence[str]


class Document:
    """The files of haproxy.cfg, read as one sequence of lines, in HAProxy's order."""

    def __init__(self, files: Sequence[tuple[str, str]]) -> None:
        """`files` are (name, text) pairs; names are for messages only."""
        self.lines: list[str] = []
        self.proxies: list[Proxy] = []
        self.settings: list[list[str]] = []
        """The words of each line of `global`."""
        self._digest: str | None = None
        self._files: list[tuple[int, str, str]] = []
        self._defaults: dict[str, str | None] = {}
        for name, text in files:
            self._files.append((len(self.lines), name, text))
            self._read(text.split("\n"))

    def where(self, at: int) -> str:
        """FILE:LINE of a line, counted from 1 in its own file."""
        start, name, _ = max(file for file in self._files if file[0] <= at)
        return f"{name}:{at - start + 1}"

    @property
    def texts(self) -> tuple[str, ...]:
        """Every file's text as it was read."""
        return tuple(text for _, _, text in self._files)

    def edited(self, edits: Iterable[Edit]) -> tuple[str, ...]:
        """Every file's text after edits, which do not overlap."""
        ordered = sorted(edits, key=lambda edit: edit.start)
        ends = [start for start, _, _ in self._files[1:]] + [len(self.lines)]
        return tuple(self._edited(file, end, ordered) for file, end in zip(self._files, ends, strict=True))

    @property
    def serves(self) -> bool:
        """Whether there is any managed line."""
        return any(proxy.managed for proxy in self.proxies)

    def digest(self) -> str:
        """The digest of the managed lines; equal on load balancers that serve the same."""
        if self._digest is None:
            serving = (proxy for proxy in self.proxies if proxy.managed)
            self._digest = digest((str(proxy), [line.text for line in proxy.managed]) for proxy in serving)
        return self._digest

    def operator_digest(self) -> str:
        """The digest of everything else: what the operator wrote."""
        ours = {line.at for proxy in self.proxies for line in proxy.managed}
        return _checksum(line for at, line in enumerate(self.lines) if at not in ours)

    def _edited(self, file: tuple[int, str, str], end: int, edits: Sequence[Edit]) -> str:
        start, _, old = file
        lines: list[str] = []
        done = start
        for edit in edits:
            if start <= edit.start < end:
                lines += self.lines[done : edit.start]
                lines += edit.lines
                done = edit.end
        text = "\n".join(lines + self.lines[done:end])
        if text == old or old.endswith("\n"):
            return text
        # HAProxy refuses a last line without its ending; who left it out is helped when we write anyway.
        return text + ("\r\n" if "\r\n" in old and not text.endswith("\r") else "\n")

    def _read(self, lines: list[str]) -> None:
        start = len(self.lines)
        self.lines += lines
        proxy, tail = Proxy("", "", None), _NOBODYS
        managed, below = proxy.managed, 0
        for at, line in enumerate(lines, start):
            # First what most lines of a large file are, and they mostly end as the one above them.
            text = line.strip(BLANK)
            if not text.endswith(tail) and _OURS in text:
                tail = _tail(text) or _NOBODYS
            if text.endswith(tail) and text.startswith(_SERVER) and text.count("#") == 1:
                managed.append(_line((at, below, text)))
            elif words := line.split(None, 3):
                proxy = self._directive(proxy, at, line, words)
                managed, below = proxy.managed, len(proxy.markers)

    def _directive(self, proxy: Proxy, at: int, line: str, words: list[str]) -> Proxy:
        first = words[0]
        if first in SECTIONS:
            return self._section(line.split("#", maxsplit=1)[0].split())
        if first[0] == "#":
            self._comment(proxy, at, line)
        elif first == "server" and len(words) > 2:  # noqa: PLR2004  # server NAME ADDRESS
            if is_drained(text := line.strip(BLANK)) and _has_role(text):
                proxy.managed.append(Line(at, len(proxy.markers), text))
                return proxy
            proxy.hand_written.append(hand_written(at, len(proxy.markers), line, words))
        elif proxy.kind == "global":
            self.settings.append(line.split("#", maxsplit=1)[0].split())
        elif first == "balance" and len(words) > 1:
            proxy.balance = words[1]
            if proxy.kind == "defaults":
                self._defaults[proxy.name] = self._defaults[""] = proxy.balance
        return proxy

    def _section(self, words: list[str]) -> Proxy:
        kind, name = words[0], words[1] if len(words) > 1 else ""
        base = words[words.index("from") + 1] if "from" in words[:-1] else ""
        proxy = Proxy(kind, name, self._defaults.get(base))
        if kind == "defaults":
            proxy.balance = self._defaults.get(base) if base else None
            self._defaults[name] = self._defaults[""] = proxy.balance
        self.proxies.append(proxy)
        return proxy

    def _comment(self, proxy: Proxy, at: int, line: str) -> None:
        text = line.strip(BLANK)
        if text.startswith(PAUSED) and _is_paused(text):
            proxy.managed.append(Line(at, len(proxy.markers), text))
        elif text.startswith(_MARKER[0]) and text.endswith(_MARKER[1]) and " " not in (middle := _middle(text)):
            # The marker may be the last line, without any ending; the first line shows the file's own.
            ending = "\r" if line.endswith("\r") or self.lines[self._files[-1][0]].endswith("\r") else ""
            proxy.markers.append(Marker(at, middle, indentation(line), ending))


def _tail(text: str) -> str:
    """What makes a line ours: its last words, a comment that tells its role; nothing where that is not so."""
    head, _, role = text.rpartition(_OURS)
    ours = bool(role) and not set(role) & set(" \t") and head[-1:] in (" ", "\t")
    return f"{head[-1:]}{_OURS}{role}" if ours else ""


def _has_role(text: str) -> bool:
    """Whether the last words of a drained line are a comment that tells its role."""
    role = text.rpartition(PAUSED_OURS)[2]
    return bool(role) and not set(role) & set(" \t#") and text.count("#") == 1


def _middle(text: str) -> str:
    return text[len(_MARKER[0]) : -len(_MARKER[1])]


def _is_paused(text: str) -> bool:
    words = text.split(" ")
    return len(words) == 6 and all(words) and words[5].removeprefix("role=") not in ("", words[5])  # noqa: PLR2004  # # lbagent paused NAME ADDRESS role=ROLE


def digest(managed: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The digest of managed lines, given with the proxies they stand in."""
    return _checksum(text for proxy, texts in managed for text in (proxy, *texts))


def _checksum(lines: Iterable[str]) -> str:
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    # Two checksums, of which no change that a person or lbagent makes leaves both alone: not a seal, 1 ms less to load.
    return f"{zlib.crc32(text):08x}{zlib.adler32(text):08x}"
