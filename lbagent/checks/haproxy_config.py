"""Check what haproxy.cfg sets for reloads and the runtime API: sockets, timeouts, hard-stop-after, balance, cookie.

Defaults are inherited as in HAProxy's configuration manual, section 4: a proxy takes what it does not set itself from
the `defaults` named with `from`, else from the last `defaults` above it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lbagent.checks.finding import Finding, Kind, join_names, ok, warning
from lbagent.haproxy import reader
from lbagent.haproxy.config import Document

_CLIENT_SECTIONS = ("frontend", "listen")
_SERVER_SECTIONS = ("backend", "listen")

_TIME = re.compile(r"([0-9]{1,12})(us|ms|s|m|h|d)?")
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3, "d": 86400e3}

_KEEP_ALIVE_TIMEOUTS = ("http-keep-alive", "http-request", "client")
"""The timeouts that limit an idle client; HAProxy uses the first that is set."""

_STATIC_BALANCE = ("source", "uri", "url_param", "hdr", "rdp-cookie", "hash")
"""Values of `balance` for which servers can only be added at run time with `hash-type consistent`."""

_SOCKET = "`stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners`"


class Directive(NamedTuple):
    """One line of haproxy.cfg, as words."""

    where: str
    """FILE:LINE."""
    words: tuple[str, ...]

    def starts_with(self, *words: str) -> bool:
        """Return whether these are its first words."""
        return self.words[: len(words)] == words

    def find_value(self, word: str) -> str:
        """Return the word after `word`; empty where there is none."""
        at = self.words.index(word) + 1 if word in self.words else len(self.words)
        return self.words[at] if at < len(self.words) else ""


class Section:
    """A section of haproxy.cfg and the `defaults` that it inherits from."""

    def __init__(self, where: str, kind: str, name: str, base: Section | None) -> None:
        """Make a section without directives."""
        self.where, self.kind, self.name, self.base = where, kind, name, base
        self.directives: list[Directive] = []

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()

    def find(self, *words: str) -> Directive | None:
        """Return the directive with these first words that is in effect: the last one, own before inherited."""
        for directive in reversed(self.directives):
            if directive.starts_with(*words):
                return directive
        return self.base.find(*words) if self.base else None

    def has_option(self, name: str) -> bool:
        """Return whether `option NAME` is in effect."""
        for directive in reversed(self.directives):
            if directive.starts_with("option", name):
                return True
            if directive.starts_with("no", "option", name):
                return False
        return self.base.has_option(name) if self.base else False

    def find_timeout(self, *names: str) -> tuple[str, float | None] | None:
        """Return the first of these timeouts that is set: text and milliseconds (None for a variable)."""
        for name in names:
            directive = self.find("timeout", name)
            if directive is not None and len(directive.words) > 2:  # noqa: PLR2004  # timeout NAME TIME
                return " ".join(directive.words[:3]), parse_milliseconds(directive.words[2])
        return None

    @property
    def is_http(self) -> bool:
        """Whether its mode is http."""
        mode = self.find("mode")
        return mode is not None and mode.words[1:2] == ("http",)

    @property
    def has_bind(self) -> bool:
        """Whether clients connect to it."""
        return self.kind in _CLIENT_SECTIONS and any(one.starts_with("bind") for one in self.directives)

    @property
    def keeps_alive(self) -> bool:
        """Whether clients may keep an idle connection between two requests."""
        return self.has_bind and self.is_http and not self.has_option("httpclose")


def parse_milliseconds(text: str) -> float | None:
    """Return a time of haproxy.cfg in milliseconds (the unit where none is given); None if it is not a time."""
    found = _TIME.fullmatch(text)
    return int(found[1]) * _MILLISECONDS[found[2] or ""] if found else None


def read_sections(document: Document) -> list[Section]:
    """Return the sections that HAProxy reads, or may read, in order, with all directives but `server` lines."""
    found: dict[int, Section] = {}
    defaults: dict[str, Section] = {}
    for directive, section in document.read_directives():
        at, where = directive.at, document.locate(directive.at)
        if section is not None and section.at == at:
            found[at] = one = Section(where, section.kind, section.name, _find_base(section, defaults))
            if section.kind == "defaults":
                defaults[section.name] = defaults[""] = one
        elif (own := max(directive.place.sections)) in found:
            found[own].directives.append(Directive(where, tuple(directive.words)))
    return [*found.values()]


def _find_base(section: reader.Section, defaults: Mapping[str, Section]) -> Section | None:
    if section.base or section.kind in (*_CLIENT_SECTIONS, *_SERVER_SECTIONS):
        return defaults.get(section.base)
    return None


def has_peer(sections: Sequence[Section]) -> bool:
    """Return whether a `peers` section names a second load balancer."""
    peers = [section for section in sections if section.kind == "peers"]
    return any(sum(line.starts_with("peer") for line in section.directives) > 1 for section in peers)


def check_sections(
    sections: Sequence[Section], main: str, with_markers: frozenset[str], *, has_master: bool | None
) -> Iterator[Finding]:
    """Check what reloads and the runtime API depend on.

    `main` is the file that is named where a directive is missing, `with_markers` are the proxies with markers (as
    `listen lb-iis`). `has_master`: whether HAProxy runs in master-worker mode; None where it does not run.
    """
    own = [section for section in sections if section.kind == "global"]
    lines = [line for section in own for line in section.directives]
    where = own[0].where if own else main
    sockets = [line for line in lines if line.starts_with("stats", "socket")]
    yield from _check_stats_socket(sockets, where)
    if sockets:
        yield from _check_hand_over(sockets, has_master=has_master)
    yield from _check_hard_stop([line for line in lines if line.starts_with("hard-stop-after")], sections, where)
    proxies = [section for section in sections if section.kind in (*_CLIENT_SECTIONS, *_SERVER_SECTIONS)]
    yield from _check_idle_close(proxies)
    yield from _check_timeouts(proxies)
    yield from _check_server_state(proxies)
    for proxy in proxies:
        if str(proxy) in with_markers and (reason := _explain_static(proxy)):
            text = f"{proxy} can only be changed by a reload: {reason}"
            yield ok(Kind.RUNTIME_API, proxy.where, text)


def _check_stats_socket(sockets: Sequence[Directive], where: str) -> Iterator[Finding]:
    if not sockets:
        text = "no stats socket; each change needs a reload, and `lbagent status` cannot show server states"
        yield warning(Kind.STATS_SOCKET, where, text, f"add {_SOCKET}")
        return
    admin = next((line for line in sockets if line.find_value("level") == "admin"), None)
    if admin is None:
        level = sockets[0].find_value("level") or "operator"
        text = f"the stats socket has level {level}; servers cannot be changed through it"
        yield warning(Kind.STATS_SOCKET, sockets[0].where, text, "set `level admin`")
    else:
        yield ok(Kind.STATS_SOCKET, admin.where, "stats socket with level admin")


def _check_hand_over(sockets: Sequence[Directive], *, has_master: bool | None) -> Iterator[Finding]:
    where = sockets[0].where
    if any("listeners" in line.words for line in sockets):
        yield ok(Kind.HAND_OVER, where, "the new process takes over the listeners at a reload")
    elif has_master:
        yield ok(Kind.HAND_OVER, where, "the master passes the listeners on at a reload")
    elif has_master is False:
        text = "HAProxy runs without a master; a reload loses connections that wait to be accepted"
        yield warning(Kind.HAND_OVER, where, text, "add `expose-fd listeners`, or run HAProxy with -W")


def _check_hard_stop(lines: Sequence[Directive], sections: Sequence[Section], where: str) -> Iterator[Finding]:
    if not lines or len(lines[-1].words) < 2:  # noqa: PLR2004  # hard-stop-after TIME
        text = "no `hard-stop-after`; after each reload an old worker stays until its last connection ends"
        yield warning(Kind.HARD_STOP, where, text, "add `hard-stop-after` with a time longer than any request takes")
        return
    line, limit = lines[-1], parse_milliseconds(lines[-1].words[1])
    setting = " ".join(line.words[:2])
    found = [*_find_cut_off(sections, limit, setting)] if limit is not None else []
    yield from found
    if not found:
        yield ok(Kind.HARD_STOP, line.where, f"old workers end after `{setting}`")


def _find_cut_off(sections: Sequence[Section], limit: float, setting: str) -> Iterator[Finding]:
    """Find proxies whose own timeouts allow longer than `hard-stop-after`."""
    idle = [one for one in sections if one.keeps_alive and one.has_option("idle-close-on-response")]
    answering = [one for one in sections if one.kind in _SERVER_SECTIONS and one.is_http]
    for proxies, names, text, fix in (
        (idle, _KEEP_ALIVE_TIMEOUTS, "idle clients of {} ({})", "set a shorter `timeout http-keep-alive`"),
        (answering, ("server",), "slow responses of {} ({})", "set a longer `hard-stop-after`"),
    ):
        longer = [(one, timeout) for one in proxies if (timeout := _find_longer_timeout(one, names, limit))]
        if longer:
            proxy, timeout = longer[0]
            cut_off = text.format(join_names([str(one) for one, _ in longer]), timeout)
            yield warning(Kind.HARD_STOP, proxy.where, f"`{setting}` cuts off {cut_off} after a reload", fix)


def _find_longer_timeout(proxy: Section, names: Sequence[str], limit: float) -> str:
    """Return the timeout that is in effect if it is `limit` milliseconds or longer, else an empty string."""
    found = proxy.find_timeout(*names)
    return found[0] if found is not None and found[1] is not None and found[1] >= limit else ""


def _check_idle_close(proxies: Sequence[Section]) -> Iterator[Finding]:
    lacking = [one for one in proxies if one.keeps_alive and not one.has_option("idle-close-on-response")]
    yield from _group(
        Kind.IDLE_CLOSE,
        lacking,
        "a reload closes idle connections of {}; a request that is on its way is lost".format,
        "add `option idle-close-on-response` to it or its defaults",
    )
    if not lacking:
        yield ok(Kind.IDLE_CLOSE, "", "a reload does not cut off requests of idle clients")


def _check_timeouts(proxies: Sequence[Section]) -> Iterator[Finding]:
    complete = True
    for name, kinds, effect in (
        ("client", _CLIENT_SECTIONS, "connections of vanished clients, and old workers, never end"),
        ("connect", _SERVER_SECTIONS, "a server that does not answer blocks a request forever"),
        ("server", _SERVER_SECTIONS, "connections to servers that never respond, and old workers, never end"),
    ):
        lacking = [one for one in proxies if one.kind in kinds and not _has_timeout(one, name)]
        complete &= not lacking
        yield from _group(
            Kind.TIMEOUTS,
            lacking,
            lambda names, name=name, effect=effect: f"no `timeout {name}` in {names}; {effect}",  # type: ignore[misc]
            f"add `timeout {name}` to it or its defaults",
        )
    if complete:
        yield ok(Kind.TIMEOUTS, "", "every proxy has its timeouts")


def _has_timeout(proxy: Section, name: str) -> bool:
    found = proxy.find_timeout(name)
    return found is not None and found[1] != 0


def _check_server_state(proxies: Sequence[Section]) -> Iterator[Finding]:
    directives = [one for proxy in proxies if (one := proxy.find("load-server-state-from-file"))]
    places = dict.fromkeys(one.where for one in directives if one.words[1:2] != ("none",))
    for where in places:
        text = "a server-state file restores old ports of servers that have changed since"
        fix = "remove `load-server-state-from-file`; pauses are kept in haproxy.cfg"
        yield warning(Kind.SERVER_STATE, where, text, fix)
    if not places:
        yield ok(Kind.SERVER_STATE, "", "HAProxy loads no server-state file")


def _explain_static(proxy: Section) -> str:
    """Return why HAProxy cannot add servers to the proxy at run time; empty where it can."""
    balance, hash_type = proxy.find("balance"), proxy.find("hash-type")
    words = balance.words if balance is not None else ("balance", "roundrobin")
    algorithm = words[1].partition("(")[0] if len(words) > 1 else ""
    consistent = hash_type is not None and "consistent" in hash_type.words
    if algorithm == "static-rr":
        return "`balance static-rr` (`roundrobin` can be changed at run time)"
    if algorithm in _STATIC_BALANCE and not consistent:
        return f"`{' '.join(words)}` (with `hash-type consistent` it can be changed at run time)"
    cookie = proxy.find("cookie")
    if cookie is not None and "dynamic" not in cookie.words:
        name = cookie.words[1] if len(cookie.words) > 1 else ""
        return f"`cookie {name}` (with `dynamic` it can be changed at run time)"
    return ""


def _group(kind: Kind, proxies: Sequence[Section], text: Callable[[str], str], fix: str) -> Iterator[Finding]:
    """Yield one warning for all proxies with the same defaults, at the first of them."""
    groups: dict[int, list[Section]] = {}
    for proxy in proxies:
        groups.setdefault(id(proxy.base), []).append(proxy)
    for group in groups.values():
        yield warning(kind, group[0].where, text(join_names([str(one) for one in group])), fix)
