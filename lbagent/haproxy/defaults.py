"""What a proxy gives to all its servers, by itself or by its `defaults`: a dynamic server inherits nothing of it.

Read from the text only when a server is to be added to a running HAProxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lbagent.haproxy.text import SECTIONS, Document, Proxy
from lbagent.tuples import NamedTuple

_DEEP = frozenset(("httpchk", "ssl-hello-chk", "smtpchk", "mysql-check", "pgsql-check", "redis-check", "ldap-check"))
_DEEP |= {"tcp-check", "spop-check", "external-check"}


class Inherited(NamedTuple):
    """What stands in a proxy and in its `defaults`."""

    default_server: tuple[str, ...] = ()
    """The words of its `default-server` lines, the later ones winning."""
    hash_type: tuple[str, ...] = ()
    cookie: tuple[str, ...] = ()
    mode: str = ""
    deep: frozenset[str] = frozenset()
    """The options that make its checks more than a connection."""
    odd: str = ""
    """Why this cannot be known."""


def inherited(document: Document) -> Mapping[str, Inherited]:
    """What each proxy gives to the servers at its markers, by `str(proxy)`."""
    return _Reading(document).found


class _Reading:
    def __init__(self, document: Document) -> None:
        self.found: dict[str, Inherited] = {}
        self._defaults: dict[str, Inherited] = {}
        self._odd = ""
        sections = iter(document.proxies)
        proxy = Proxy("", "", None)
        for at, line in enumerate(document.lines):
            words = [] if line.lstrip(" \t").startswith(("server ", "#")) else line.partition("#")[0].split()
            if words and words[0] in SECTIONS:
                proxy = next(sections)
                self._section(proxy, words)
            elif words and words[0].startswith("."):
                self._odd = "haproxy.cfg has conditional blocks"
            elif words:
                self._keep(proxy, _with(self._here(proxy), words, late=at > _first(proxy)))
        if self._odd:
            self.found = {name: one._replace(odd=self._odd) for name, one in self.found.items()}

    def _section(self, proxy: Proxy, words: list[str]) -> None:
        base = words[words.index("from") + 1] if "from" in words[:-1] else ""
        # A new `defaults` begins with HAProxy's own ones, every other section with the last before it.
        none = proxy.kind == "defaults" and not base
        self._keep(proxy, Inherited() if none else self._defaults.get(base, Inherited()))

    def _here(self, proxy: Proxy) -> Inherited:
        return (self._defaults if proxy.kind == "defaults" else self.found).get(_key(proxy), Inherited())

    def _keep(self, proxy: Proxy, what: Inherited) -> None:
        if proxy.kind == "defaults":
            self._defaults[proxy.name] = self._defaults[""] = what
        else:
            self.found[_key(proxy)] = what


def _key(proxy: Proxy) -> str:
    return proxy.name if proxy.kind == "defaults" else str(proxy)


def _first(proxy: Proxy) -> float:
    """Where its servers begin: a `default-server` below that holds for some of them only."""
    return min((one.at for ones in (proxy.markers[:1], proxy.managed[:1]) for one in ones), default=float("inf"))


def _with(what: Inherited, words: list[str], *, late: bool) -> Inherited:
    changes: dict[str, Any] = {}
    match words:
        case ["default-server", *more] if late:
            changes["odd"] = f"`default-server {' '.join(more)}` stands below a marker"
        case ["default-server", *more]:
            changes["default_server"] = (*what.default_server, *more)
        case ["hash-type", *more]:
            changes["hash_type"] = tuple(more)
        case ["mode", mode, *_]:
            changes["mode"] = mode
        case ["cookie", *more]:
            changes["cookie"] = tuple(more)
        case ["option", name, *_] if name in _DEEP:
            changes["deep"] = what.deep | {name}
        case ["no", "option", name, *_]:
            changes["deep"] = what.deep - {name}
        case _:
            return what
    return what._replace(**changes)
