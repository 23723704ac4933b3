"""haproxy.cfg as text: its proxies, markers, managed lines and the operator's `server` lines.

Lines are split at LF only and returned byte for byte: CRLF, tabs, Shift-JIS. HAProxy's grammar is not reimplemented:
`haproxy -c` validates the result.
"""

from __future__ import annotations

import copy
import re
import socket
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple

from lbagent.haproxy.reader import (
    COMMANDS,
    NOWHERE,
    SECTIONS,
    SERVERS,
    Directive,
    EffectiveConfig,
    Environment,
    Reader,
    Section,
    Words,
    are_exclusive,
    read_directives,
    split_words,
)
from lbagent.haproxy.server_line import format_endpoint, is_drained
from lbagent.names import IPV4, NAME, SERVICE, canonical_address

BLANK = " \t\r"
PAUSED = "# lbagent paused "
"""Start of the comment of a paused node."""

_NAMED = rf"(?:{NAME.pattern}|{NAME.pattern}\.{SERVICE.pattern})"
_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_SERVER_NAME = rf"server[ \t]+{_NAMED}[ \t]+"
_SERVER_TAIL = rf"[ \t](?:[\t -\"$-~]*[ \t])?# lbagent (?:paused )?role={NAME.pattern}"
_SERVER_V4 = re.compile(rf"{_SERVER_NAME}{IPV4}:{_PORT}({_SERVER_TAIL})")
_SERVER_V6 = re.compile(rf"{_SERVER_NAME}\[([0-9a-f:.]+)\]:{_PORT}({_SERVER_TAIL})")
_NO_TAIL = "\n"
"""In place of the tail of a managed line: no line ends with it."""

SERVER_HEAD = re.compile(rf"{_SERVER_NAME}{IPV4}:{_PORT}")
"""Start of a managed line with an IPv4 address: `server NAME ADDRESS:PORT`."""

_MANAGED_COMMENT = "# lbagent "
_ROLE_COMMENT = re.compile(rf"# lbagent (?:paused )?role={NAME.pattern}")
_SIMILAR_COMMENT = re.compile(r"#[ \t]*lbagent(?:[ \t]*$|[ \t]+(?:\w+[ \t]*=|role|paused)).*", re.IGNORECASE)
"""A comment that may be meant as that of a managed line."""

_MARKER_ENDS = "# additional-", "-server"
_NEAR_MARKER = re.compile(r"#+[ \t]*additional(?:[-_]|[ \t]+\S+[-_]server\b).*", re.IGNORECASE)
"""A comment that may be meant as a marker."""

_SERVER_WORDS = "server ", "server\t"
_RELEVANT_WORDS = SECTIONS | {"server", "server-template", "balance", "disabled", "enabled"}
_FIRST_WORD = re.compile(r"[!$-&(-\[\]-~]+(?=[ \t]|$)")
"""A first word without quotes, backslashes and `#`."""

_HASHING = ("source", "uri", "url_param", "hdr", "rdp-cookie", "random", "hash")
_NUMBER = re.compile("[0-9]{1,9}")
_NUMERIC_HOST = re.compile(r"[0-9][0-9a-fA-FxX]*(?:\.[0-9][0-9a-fA-FxX]*){0,3}")
_TEMPLATE_LIMIT = 1000
"""Servers of one `server-template` that are listed."""

Key = tuple[str, str]
"""Names of a proxy and of a server in it."""

Lines = Mapping[Key, str]
"""The managed line of each server."""

RUNTIME_NAME = re.compile("[A-Za-z0-9_.:-]+")
"""Valid names of proxies and servers in HAProxy; others are never sent to the runtime API."""


class Marker(NamedTuple):
    """A marker: the line `# additional-<section>-<service>-server`."""

    at: int
    middle: str
    indent: str
    ending: str
    """`\\r` if lines end in CRLF, else empty: the LF is where lines are split."""


class ManagedLine(NamedTuple):
    """A managed line: a `server` line, or the comment of a paused node."""

    at: int
    marker: int
    """Number, within its proxy, of the next marker below the line; the number of markers if none follows."""
    text: str
    """Without indentation and line ending."""

    @property
    def is_comment(self) -> bool:
        """Whether it is the comment of a paused node, without a server."""
        return self.text.startswith("#")

    @property
    def is_paused(self) -> bool:
        """Whether its node is paused: the line is a comment, or drains."""
        return self.is_comment or is_drained(self.text)

    @property
    def name(self) -> str:
        """Name of the server; of a paused one, name of the node."""
        if self.text.startswith("#"):
            return self.text.split()[3]
        return self.text.split(None, 2)[1]

    @property
    def endpoint(self) -> str:
        """ADDRESS:PORT of a server; empty for a comment."""
        return find_endpoint(self.text)

    @property
    def address(self) -> str:
        """The address without port and brackets."""
        return self.text.split()[4] if self.is_comment else self.endpoint.rpartition(":")[0].strip("[]")

    @property
    def role(self) -> str:
        """The role in its comment."""
        return self.text.rpartition("role=")[2]


class OperatorServer(NamedTuple):
    """A `server` line that is the operator's."""

    at: int
    marker: int
    text: str
    name: str
    endpoint: str
    id: int | None


class ServerTemplate(NamedTuple):
    """A `server-template` line: servers named by a prefix and a number."""

    at: int
    prefix: str
    first: int
    last: int
    endpoint: str

    def names(self, name: str) -> bool:
        """Return whether one of its servers has this name, ignoring case."""
        number = name[len(self.prefix) :]
        if name[: len(self.prefix)].lower() != self.prefix.lower() or not _NUMBER.fullmatch(number):
            return False
        return number == str(int(number)) and self.first <= int(number) <= self.last

    def servers(self) -> Iterator[OperatorServer]:
        """Yield its servers as if each had a line of its own, at most the first 1001."""
        for number in range(self.first, min(self.last, self.first + _TEMPLATE_LIMIT) + 1):
            yield OperatorServer(self.at, 0, "", f"{self.prefix}{number}", self.endpoint, None)


class DamagedLine(NamedTuple):
    """A line that looks like a managed one, but is not exactly what lbagent writes."""

    at: int
    text: str
    why: str


_make_managed_line: Callable[[tuple[int, int, str]], ManagedLine] = partial(tuple.__new__, ManagedLine)
"""Constructor of ManagedLine at half the cost, as a file may have ten thousand of them."""


class Proxy:
    """A section of haproxy.cfg (`backend`, `listen`, …), with its markers and servers."""

    __slots__ = ("balance", "kind", "managed", "markers", "name", "operator_servers", "start", "templates")

    def __init__(self, kind: str, name: str, balance: str | None, start: int = NOWHERE) -> None:
        """Create an empty section that begins at the line `start`; `balance` is that of its `defaults`.

        A variable in `name` that only the running HAProxy knows stays as written.
        """
        self.kind, self.name, self.balance, self.start = kind, name, balance, start
        self.markers: list[Marker] = []
        self.templates: list[ServerTemplate] = []
        self.managed: list[ManagedLine] = []
        self.operator_servers: list[OperatorServer] = []

    @property
    def hashes(self) -> bool:
        """Whether its `balance` selects servers by a hash, which stable ids keep stable."""
        return self.balance is not None and self.balance.partition("(")[0] in _HASHING

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


class Edit(NamedTuple):
    """Replaces the lines from `start` to before `end` by `lines`."""

    start: int
    end: int
    lines: Sequence[str]


class Document:
    """All files of haproxy.cfg, as one sequence of lines in HAProxy's order."""

    def __init__(
        self,
        files: Sequence[tuple[str, str]],
        read_environment: Callable[[], Environment] = Environment,
    ) -> None:
        """`files` are pairs of name and text; names are used in messages only.

        `read_environment` returns the environment of the running HAProxy. It is called only if the text depends on it.
        What is written never depends on it, only what is queried from and sent to HAProxy.
        """
        self.lines: list[str] = []
        self.proxies: list[Proxy] = []
        self.misplaced: list[tuple[int, str]] = []
        """Markers where no server can be, with the reason."""
        self.near_markers: list[int] = []
        """Comments that are almost markers."""
        self.damaged: list[DamagedLine] = []
        """Lines that look like managed ones, but are the operator's."""
        self.is_conditional = False
        """Whether HAProxy may not read all lines in order: `.if`, `disabled`, variables."""
        self._digest: str | None = None
        self._read_running = read_environment
        self._files: list[tuple[int, str, str]] = []
        self._defaults: dict[str, str | None] = {}
        self._environment = Environment()
        self._reader = Reader(self._environment)
        self._skeleton: list[int] = []
        """The lines that determine how HAProxy reads the rest."""
        self._open = False
        """Whether any of them depends on HAProxy's environment."""
        for name, text in files:
            self._files.append((len(self.lines), name, text))
            self._read_lines(text.split("\n"))

    @property
    def settings(self) -> list[list[str]]:
        """The words of each line of `global`, as the running HAProxy reads them."""
        return self._effective_config.settings

    def find_server(self, line: int) -> tuple[str | None, bool | None]:
        """Return the proxy of a `server` line, and whether HAProxy has that server.

        Either is None where only HAProxy knows.
        """
        return self._effective_config.find_server(line)

    def resolve_operator_server(self, server: OperatorServer) -> OperatorServer:
        """Return an operator's line with the variables of the running HAProxy; as written where they are unknown."""
        environment = self._read_running()
        self._read_with(environment)  # `setenv` in `global`
        words, sure = split_words(self.lines[server.at], environment)
        if not sure or len(words) <= 2:  # noqa: PLR2004  # server NAME ADDRESS
            return server
        return parse_operator_server(server.at, server.marker, server.text, words)

    def bind_environment(self, read_environment: Callable[[], Environment]) -> Document:
        """Return this document as the HAProxy reads it whose environment `read_environment` returns."""
        if not self._open and not any("$" in line.endpoint for one in self.proxies for line in one.operator_servers):
            return self
        fresh = copy.copy(self)
        fresh._read_running = read_environment  # noqa: SLF001  # the same class
        for name in ("_effective_config", "managed_servers"):
            fresh.__dict__.pop(name, None)
        return fresh

    def reread(self, texts: Sequence[str]) -> Document:
        """Return a document of the same files with other texts."""
        names = (name for _, name, _ in self._files)
        return Document([*zip(names, texts, strict=True)], self._read_running)

    def find_proxies(self, name: str) -> list[Proxy]:
        """Return the proxies with servers that the running HAProxy calls `name`."""
        if not self.is_conditional:
            return self._proxies_by_name.get(name, [])
        return [one for one in self.proxies if self._effective_config.find_server(one.start) == (name, True)]

    @cached_property
    def managed_servers(self) -> Lines:
        """The managed servers that HAProxy certainly has, in proxies whose names are known."""
        return {key: line for proxy in self.proxies for key, line in _list_servers_of(self, proxy).items()}

    @cached_property
    def _proxies_by_name(self) -> Mapping[str, list[Proxy]]:
        found: dict[str, list[Proxy]] = {}
        for one in self.proxies:
            if one.kind in SERVERS:
                found.setdefault(one.name, []).append(one)
        return found

    def find_name(self, proxy: Proxy) -> str:
        """Return what the running HAProxy calls this proxy; the name as written where only HAProxy knows."""
        return (self.find_server(proxy.start)[0] if self.is_conditional else None) or proxy.name

    def are_exclusive(self, one: int, other: int) -> bool:
        """Return whether HAProxy never reads both lines.

        They are in two branches of one `.if`, or one of them is in `.if 0`.
        """
        if not self.is_conditional:
            return False
        here, there = self._reader.find_place(one), self._reader.find_place(other)
        return are_exclusive(here.path, there.path) or (here.active is False) is not (there.active is False)

    def is_never_read(self, line: int) -> bool:
        """Return whether a line never makes a server, whatever the environment: in `.if 0`, in a disabled proxy."""
        return self.is_conditional and self._config_without_environment.find_server(line)[1] is False

    def read_directives(self) -> Iterator[tuple[Directive, Section | None]]:
        """Yield every line that HAProxy may read, except `server` lines, with its section.

        The section is None where only HAProxy knows. A section's own line is included.
        """
        environment = self._read_environment()
        reader = Reader(environment)
        wanted = (
            (at, line) for at, line in enumerate(self.lines) if not line.lstrip(BLANK).startswith(("server ", "#"))
        )
        for one in read_directives(wanted, [start for start, _, _ in self._files], reader, environment):
            if one.place.active is not False and one.place.sections != (NOWHERE,) and one.words[0][0] != ".":
                yield one, reader.sections.get(one.place.section) if one.place.section is not None else None

    @cached_property
    def _effective_config(self) -> EffectiveConfig:
        return self._read_with(self._read_environment()) if self._open else self._config_without_environment

    @cached_property
    def _config_without_environment(self) -> EffectiveConfig:
        return self._read_with(Environment())

    def _read_with(self, environment: Environment) -> EffectiveConfig:
        lines = ((at, self.lines[at]) for at in self._skeleton)
        return EffectiveConfig(lines, [start for start, _, _ in self._files], environment)

    def _read_environment(self) -> Environment:
        return self._read_running() if self._open else Environment()

    def locate(self, at: int) -> str:
        """Return FILE:LINE of a line, counted from 1 in its own file."""
        start, name, _ = max(file for file in self._files if file[0] <= at)
        return f"{name}:{at - start + 1}"

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of every file, as it was read."""
        return tuple(text for _, _, text in self._files)

    def apply_edits(self, edits: Iterable[Edit]) -> tuple[str, ...]:
        """Return the text of every file after edits, which may not overlap."""
        ordered = sorted(edits, key=lambda edit: edit.start)
        ends = [start for start, _, _ in self._files[1:]] + [len(self.lines)]
        return tuple(self._edit_file(file, end, ordered) for file, end in zip(self._files, ends, strict=True))

    @property
    def has_managed_lines(self) -> bool:
        """Whether there is any managed line."""
        return any(proxy.managed for proxy in self.proxies)

    def compute_digest(self) -> str:
        """Return the digest of the managed lines; equal on load balancers with the same servers."""
        if self._digest is None:
            serving = (proxy for proxy in self.proxies if proxy.managed)
            self._digest = digest_lines((str(proxy), [line.text for line in proxy.managed]) for proxy in serving)
        return self._digest

    def compute_operator_digest(self) -> str:
        """Return the digest of all other lines, the operator's."""
        ours = {line.at for proxy in self.proxies for line in proxy.managed}
        return _checksum(line for at, line in enumerate(self.lines) if at not in ours)

    def _edit_file(self, file: tuple[int, str, str], end: int, edits: Sequence[Edit]) -> str:
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
        # HAProxy rejects a last line without its ending; add it when writing anyway.
        return text + ("\r\n" if "\r\n" in old and not text.endswith("\r") else "\n")

    def _read_lines(self, lines: list[str]) -> None:
        start = len(self.lines)
        self.lines += lines
        self._reader.begin_file(start)
        proxy, tail = Proxy("", "", None), _NO_TAIL
        managed, below = proxy.managed, len(proxy.markers)
        for at, line in enumerate(lines, start):
            # Fast path: most lines of a large file are managed lines with the same end as the one above.
            text = line.strip(BLANK)
            if text.endswith(tail) and SERVER_HEAD.fullmatch(text.removesuffix(tail)):
                managed.append(_make_managed_line((at, below, text)))
            elif text:
                servers = proxy.kind in SERVERS and text.startswith(_SERVER_WORDS)
                if servers and _MANAGED_COMMENT in text and (found := find_managed_tail(text)):
                    managed.append(_make_managed_line((at, below, text)))
                    tail = found
                    continue
                proxy = self._read_other(proxy, at, line, text)
                managed, below = proxy.managed, len(proxy.markers)
                tail = tail if proxy.kind in SERVERS else _NO_TAIL

    def _read_other(self, proxy: Proxy, at: int, line: str, text: str) -> Proxy:
        """Read a line that is not a managed server; return the section of the next line."""
        if text[0] == "#":
            self._read_comment(proxy, at, line, text)
            return proxy
        # Most directives are irrelevant, which their first word shows.
        first = _FIRST_WORD.match(text)
        if first and text[0] != "." and proxy.kind != "global" and first.group() not in _RELEVANT_WORDS:
            return proxy
        found = split_words(line, self._environment)
        if not found.words:
            return proxy
        if found.words[0] == "server" and (why := explain_damage(text)):
            self._add_damaged(proxy, at, text, why)
        return self._read_directive(proxy, at, line, found)

    def _read_directive(self, proxy: Proxy, at: int, line: str, found: Words) -> Proxy:
        words, sure = found
        first = words[0]
        doubtful = not sure and "$" in first
        if first in SECTIONS or first[0] == "." or doubtful or first in ("disabled", "enabled"):
            return self._read_section_change(proxy, at, found)
        if proxy.kind == "global":
            self._skeleton.append(at)
            self._open = self._open or not sure
            if first in COMMANDS:
                self._reader.read_line(at, found)
        elif self._reader.place.active is False and first != "server":
            pass
        elif first == "server" and len(words) > 2:  # noqa: PLR2004  # server NAME ADDRESS
            proxy.operator_servers.append(parse_operator_server(at, len(proxy.markers), line, words))
        elif first == "server-template" and len(words) > 3:  # noqa: PLR2004  # server-template PREFIX RANGE ADDRESS
            proxy.templates.append(parse_server_template(at, words))
        elif first == "balance" and len(words) > 1:
            proxy.balance = words[1]
            if proxy.kind == "defaults":
                self._defaults[proxy.name] = self._defaults[""] = proxy.balance
        return proxy

    def _read_section_change(self, proxy: Proxy, at: int, found: Words) -> Proxy:
        """Read a line after which HAProxy may be in another section, or skip lines."""
        self._skeleton.append(at)
        words, sure = found
        self.is_conditional = (
            self.is_conditional or words[0] not in SECTIONS or (not sure and any("$" in word for word in words[:2]))
        )
        place = self._reader.read_line(at, found).place
        self._open = self._open or not sure or place.active is None
        if place.start == at and place.sections == (at,) and words[0] in SECTIONS:
            return self._add_section(self._reader.sections[at])
        known = {one.start: one for one in self.proxies}
        return known.get(max(place.sections), proxy if place.sections != (NOWHERE,) else Proxy("", "", None))

    def _add_section(self, found: Section) -> Proxy:
        proxy = Proxy(found.kind, found.name, self._defaults.get(found.base), found.at)
        if found.kind == "defaults" and self._reader.place.active is not False:
            proxy.balance = self._defaults.get(found.base) if found.base else None
            self._defaults[found.name] = self._defaults[""] = proxy.balance
        self.proxies.append(proxy)
        return proxy

    def _read_comment(self, proxy: Proxy, at: int, line: str, text: str) -> None:
        if text.startswith(PAUSED):
            if is_paused_comment(text) and proxy.kind in SERVERS:
                proxy.managed.append(ManagedLine(at, len(proxy.markers), text))
            else:
                self._add_damaged(proxy, at, text, "not NAME ADDRESS role=ROLE")
        elif (
            text.startswith(_MARKER_ENDS[0])
            and text.endswith(_MARKER_ENDS[1])
            and not re.search(r"\s", middle := text[len(_MARKER_ENDS[0]) : -len(_MARKER_ENDS[1])])
        ):
            if why := self._explain_misplaced(proxy):
                self.misplaced.append((at, why))
                return
            # The marker may be the last line, without an ending; then the first line shows the ending of the file.
            ending = "\r" if line.endswith("\r") or self.lines[self._files[-1][0]].endswith("\r") else ""
            proxy.markers.append(Marker(at, middle, find_indentation(line), ending))
        elif _NEAR_MARKER.fullmatch(text):
            self.near_markers.append(at)

    def _add_damaged(self, proxy: Proxy, at: int, text: str, why: str) -> None:
        why = (
            why
            if proxy.kind in SERVERS
            else f"it is in {proxy}, which cannot hold servers"
            if proxy.kind
            else "it is in no section"
        )
        self.damaged.append(DamagedLine(at, text, why))

    def _explain_misplaced(self, proxy: Proxy) -> str:
        """Return why no server can be at the next line; empty if one can."""
        if not proxy.kind:
            return "it is in no section"
        others = {one.start: one for one in self.proxies}
        there = [others[at] for at in self._reader.place.sections if at in others] if self.is_conditional else [proxy]
        wrong = next((one for one in there or [proxy] if one.kind not in SERVERS), None)
        return f"it is in {wrong}, which cannot hold servers" if wrong else ""


def find_managed_tail(text: str) -> str:
    """Return what follows ADDRESS:PORT in a valid managed `server` line, else an empty string."""
    if found := _SERVER_V4.fullmatch(text):
        return found.group(1)
    found = _SERVER_V6.fullmatch(text)
    return found.group(2) if found and canonical_address(found.group(1)) == found.group(1) else ""


def is_paused_comment(text: str) -> bool:
    """Return whether this is a valid comment of a paused node."""
    name, _, rest = text.removeprefix(PAUSED).partition(" ")
    address, _, role = rest.partition(" role=")
    return bool(NAME.fullmatch(name) and canonical_address(address) == address and NAME.fullmatch(role))


def explain_damage(text: str) -> str:
    """Return why a `server` line that looks like a managed one is not; empty if it does not look like one."""
    comment = _SIMILAR_COMMENT.search(text) if "lbagent" in text.lower() else None
    if comment is None:
        return ""
    if not _ROLE_COMMENT.fullmatch(comment.group()):
        return "its comment is not `# lbagent role=ROLE`"
    return "it is not `server NAME IP-ADDRESS:PORT OPTIONS`"


def find_endpoint(text: str) -> str:
    """Return ADDRESS:PORT of a managed line; empty for the comment of a paused node."""
    return "" if text.startswith("#") else [*text.split(None, 3), "", "", ""][2]


def find_indentation(line: str) -> str:
    """Return the blanks at the start of a line."""
    return line[: len(line) - len(line.lstrip(" \t"))]


def parse_operator_server(at: int, marker: int, line: str, words: list[str]) -> OperatorServer:
    """Return the operator's `server` line that consists of `words`."""
    number = words[words.index("id", 3) + 1] if "id" in words[3:-1] else ""
    named = int(number) if _NUMBER.fullmatch(number) else None
    return OperatorServer(at, marker, line.strip(BLANK), words[1], _normalize_endpoint(words[2]), named)


def parse_server_template(at: int, words: list[str]) -> ServerTemplate:
    """Return the `server-template` line that consists of `words`."""
    first, dash, last = words[2].partition("-")
    low, high = (first, last) if dash else ("1", first)
    known = bool(_NUMBER.fullmatch(low) and _NUMBER.fullmatch(high))
    return ServerTemplate(
        at, words[1], int(low) if known else 1, int(high) if known else 0, _normalize_endpoint(words[3])
    )


def _normalize_endpoint(written: str) -> str:
    """Return ADDRESS:PORT as a managed line writes it, if it means the same; else `written` itself."""
    host, _, port = written.removeprefix("ipv4@").removeprefix("ipv6@").rpartition(":")
    address = canonical_address(host.strip("[]")) or _expand_ipv4(host)
    return written if address is None else format_endpoint(address, port)


def _expand_ipv4(host: str) -> str | None:
    """Return the address of a short, hexadecimal or octal form, read as inet_aton(3) does; None for a name."""
    if not _NUMERIC_HOST.fullmatch(host):
        return None
    try:
        return canonical_address(socket.inet_ntoa(socket.inet_aton(host)))
    except OSError:
        return None


def digest_lines(managed: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return the digest of managed lines, given as pairs of proxy and lines."""
    return _checksum(text for proxy, texts in managed for text in (proxy, *texts))


def _checksum(lines: Iterable[str]) -> str:
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    # Any likely change alters at least one of the two checksums. It is not a signature; hashlib takes 1 ms to import.
    return f"{zlib.crc32(text):08x}{zlib.adler32(text):08x}"


def format_target(key: Key) -> str:
    """Format PROXY/SERVER, as the runtime API names a server."""
    return "/".join(key)


def _list_servers_of(document: Document, proxy: Proxy) -> Lines:
    if document.is_conditional:
        there = ((document.find_server(line.at), line) for line in proxy.managed if not line.is_comment)
        return {
            (name, line.name): line.text for (name, has), line in there if has and name and RUNTIME_NAME.fullmatch(name)
        }
    if not RUNTIME_NAME.fullmatch(proxy.name):
        return {}
    return {(proxy.name, line.name): line.text for line in proxy.managed if not line.is_comment}


def list_uncertain_servers(document: Document) -> Lines:
    """Return the managed servers where only HAProxy knows the proxy, or whether it has the server at all."""
    lines = (
        (proxy, line)
        for proxy in document.proxies
        if document.is_conditional or not RUNTIME_NAME.fullmatch(proxy.name)
        for line in proxy.managed
        if not line.is_comment
    )
    return {
        (proxy.name, line.name): line.text
        for proxy, line in lines
        if not document.is_conditional or document.find_server(line.at)[1] is None
    }


def is_stray(document: Document, key: Key) -> bool:
    """Return whether no line of `document` declares this server, in a proxy where lbagent manages servers."""
    proxies = document.find_proxies(key[0])
    if not any(proxy.markers or proxy.managed for proxy in proxies):
        return False
    return not any(
        any(line.name == key[1] for line in proxy.operator_servers)
        or any(line.name == key[1] and not line.is_comment for line in proxy.managed)
        or any(template.names(key[1]) for template in proxy.templates)
        for proxy in proxies
    )


def parse_change(text: str) -> tuple[Key, str]:
    """Parse a plan's change `PROXY: LINE` into key and line; the line is empty for a paused node."""
    section, _, line = text.partition(": ")
    paused = line.startswith("#")
    name = line.split()[3 if paused else 1]
    return (section.partition(" ")[2], name), "" if paused else line


def find_paused_servers(document: Document, changed: tuple[Iterable[str], Iterable[str]]) -> set[Key]:
    """Return the paused nodes after lines are added and removed, as keys of proxy and node."""
    here = [(proxy.name, line.name) for proxy in document.proxies for line in proxy.managed if line.is_comment]
    added, removed = ([key for key, line in map(parse_change, lines) if not line] for lines in changed)
    return {*here, *added} - ({*removed} - {*added})


def is_paused_server(key: Key, paused: Container[Key]) -> bool:
    """Return whether a server, called NODE or NODE.SERVICE, belongs to one of the paused nodes."""
    return key in paused or (key[0], key[1].rpartition(".")[0]) in paused


def predict_servers(document: Document, texts: Sequence[str], changed: tuple[Iterable[str], Iterable[str]]) -> Lines:
    """Return the managed servers after the files have changed to `texts`, by the plan's changes (added, removed)."""
    if document.is_conditional:
        return document.reread(texts).managed_servers
    added, removed = changed
    if not added and not removed:
        return document.managed_servers
    after = dict(document.managed_servers)
    for key, line in map(parse_change, removed):
        if line:
            after.pop(key, None)
    after.update((key, line) for key, line in map(parse_change, added) if line)
    return after


def split_server_line(line: str) -> tuple[str, int, list[str]]:
    """Return address, port and option words of a managed line; the port is 0 if it is not a number."""
    _, _, endpoint, *options = [*line.partition(f" {_MANAGED_COMMENT}")[0].split(), "", ""]
    address, _, port = endpoint.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() else 0
    return address.strip("[]"), number, [word for word in options if word]
