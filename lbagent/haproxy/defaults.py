"""What a proxy gives to all its servers, by itself or by its `defaults`: a dynamic server inherits nothing of it.

Read from the text only when a server is to be added to a running HAProxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lbagent.haproxy.reading import ANYWHERE, Directive
from lbagent.haproxy.text import Document, Proxy
from lbagent.tuples import NamedTuple

_DEEP = frozenset(("httpchk", "ssl-hello-chk", "smtpchk", "mysql-check", "pgsql-check", "redis-check", "ldap-check"))
_DEEP |= {"tcp-check", "spop-check", "external-check"}


class Inherited(NamedTuple):
    """What stands in a proxy and in its `defaults`."""

    default_server: tuple[str, ...] = ()
    """The words of its `default-server` lines, the later ones winning."""
    hash_type: tuple[str, ...] = ()
    cookie: tuple[str, ...] = ()
    deep: frozenset[str] = frozenset()
    """The options that make its checks more than a connection."""
    odd: str = ""
    """Why this cannot be known."""


def inherited(document: Document) -> Mapping[int, Inherited]:
    """What each section gives to the servers at its markers, by the line it begins at."""
    firsts = {proxy.start: _first(proxy) for proxy in document.proxies}
    found: dict[int, Inherited] = {}
    defaults: dict[str, int] = {}
    odd = ""
    for directive, section in document.directives():
        if section is None:
            doubt = f"only HAProxy knows the section of {document.where(directive.at)}"
            odd = odd or (doubt if ANYWHERE in directive.place.sections else "")
            found |= {at: found[at]._replace(odd=doubt) for at in directive.place.sections if at in found}
            continue
        if directive.at == section.at:
            base = defaults.get(section.base, -1) if section.kind != "defaults" or section.base else -1
            found[section.at] = found.get(base, Inherited())
            if section.kind == "defaults":
                defaults[section.name] = defaults[""] = section.at
            if directive.place.active is None or not directive.sure:
                found[section.at] = found[section.at]._replace(odd=_doubt(document, directive))
            continue
        here = found.get(section.at, Inherited())
        there = _with(here, [*directive.words], late=directive.at > firsts.get(section.at, float("inf")))
        if (directive.place.active is None or not directive.sure) and (there is not here or "$" in directive.words[0]):
            there = here._replace(odd=_doubt(document, directive))
        found[section.at] = there
    for at in defaults.values():
        found.pop(at, None)
    return {at: one._replace(odd=odd) for at, one in found.items()} if odd else found


def _doubt(document: Document, directive: Directive) -> str:
    return f"only HAProxy knows what {document.where(directive.at)} comes to"


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
        case ["cookie", *more]:
            changes["cookie"] = tuple(more)
        case ["option", name, *_] if name in _DEEP:
            changes["deep"] = what.deep | {name}
        case ["no", "option", name, *_]:
            changes["deep"] = what.deep - {name}
        case _:
            return what
    return what._replace(**changes)
