"""What a server added through the runtime API accepts, needs and does not inherit: one table per HAProxy version.

Each keyword in a table makes the same server through `add server` as the same line after a reload;
`tests/real/test_differential.py` verifies that against real HAProxys. Anything not listed needs a reload. What a line
in the file inherits from its proxy and its `defaults` is read only when a server is to be added. Keywords: HAProxy
configuration manual, section 5.2 "Server and default-server options".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from lbagent.haproxy.config import Document
from lbagent.haproxy.reader import ANYWHERE, NOWHERE, Directive
from lbagent.names import canonical_address

_CHECK_OPTIONS = frozenset(
    ("httpchk", "ssl-hello-chk", "smtpchk", "mysql-check", "pgsql-check", "redis-check", "ldap-check")
)
_CHECK_OPTIONS |= {"tcp-check", "spop-check", "external-check"}


_SAFE_WORD = re.compile(r"[A-Za-z0-9._:,/@%+=()-]+")
"""Words with the same meaning in haproxy.cfg and on the stats socket: no quotes, `;`, backslashes, variables."""

_TIME = re.compile(r"([0-9]+)(us|ms|s|m|h|d|)")
_SECONDS_PER_UNIT = {"us": 1e-6, "ms": 1e-3, "": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PORT = re.compile(r"[0-9]{1,5}")
_HIGHEST_PORT = 65535

Keywords = Mapping[str, str]
"""Keywords with their values; empty if they take none. Values of an additive keyword are joined by a newline."""


class Capabilities(NamedTuple):
    """What `add server` of one HAProxy version can do."""

    version: tuple[int, int]
    flags: frozenset[str]
    """Keywords without a value."""
    values: frozenset[str]
    """Keywords with one value; the last one applies."""
    additive: frozenset[str]
    """Keywords with one value; all apply."""
    always: Mapping[str, str]
    """Keywords sent with every server: defaults that a dynamic server does not have."""
    with_observe: Mapping[str, str]
    """Keywords sent with every server with `observe`."""
    reload_options: frozenset[str]
    """Check options of a proxy, such as `external-check`, that make a server with `check` need a reload."""
    takes_cookies: bool
    """Whether `add server` accepts `cookie`."""
    deletes: bool
    """Whether a server can be deleted safely: `wait … srv-removable` exists, and `del server` leaves nothing behind."""


CANCELS: Mapping[str, str] = MappingProxyType(
    {
        "enabled": "disabled",
        "no-backup": "backup",
        "no-check": "check",
        "no-check-send-proxy": "check-send-proxy",
        "no-send-proxy": "send-proxy",
        "no-send-proxy-v2": "send-proxy-v2",
        "no-tfo": "tfo",
        "no-verifyhost": "verifyhost",
        "ssl-reuse": "no-ssl-reuse",
        "tls-tickets": "no-tls-tickets",
    }
)
"""Keywords that cancel another one, which then is not sent."""

CANCELS_PROXY_V2 = frozenset(("send-proxy-v2-ssl", "send-proxy-v2-ssl-cn", "proxy-v2-options"))
"""Keywords of which `no-send-proxy-v2` cancels a part, which no keyword can express."""

IMPLIED_BY_CHECK: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "check-ssl": frozenset(("ssl",)),
        "check-send-proxy": frozenset(
            (
                "proxy-v2-options",
                "send-proxy",
                "send-proxy-v2",
                "send-proxy-v2-ssl",
                "send-proxy-v2-ssl-cn",
            )
        ),
    }
)
"""What checks of a server in haproxy.cfg inherit from its traffic if neither `port` nor `addr` is set."""

_FLAGS = frozenset((
    "allow-0rtt", "backup", "check", "check-send-proxy", "check-ssl", "check-via-socks4", "force-sslv3",
    "force-tlsv10", "force-tlsv11", "force-tlsv12", "force-tlsv13", "no-ssl-reuse", "no-sslv3", "no-tls-tickets",
    "no-tlsv10", "no-tlsv11", "no-tlsv12", "no-tlsv13", "send-proxy", "send-proxy-v2", "send-proxy-v2-ssl",
    "send-proxy-v2-ssl-cn", "ssl", "tfo",
))  # fmt: skip
_VALUES = frozenset((
    "addr", "ca-file", "check-sni", "ciphers", "ciphersuites", "crl-file", "crt", "downinter", "error-limit", "fall",
    "fastinter", "id", "inter", "maxconn", "maxqueue", "minconn", "observe", "on-error", "on-marked-down",
    "on-marked-up", "pool-low-conn", "pool-max-conn", "pool-purge-delay", "port", "rise", "sni", "source",
    "ssl-max-ver", "ssl-min-ver", "verify", "verifyhost", "weight",
))  # fmt: skip
_POOL: Mapping[str, str] = MappingProxyType({"pool-max-conn": "-1", "pool-purge-delay": "5s"})
"""Without both, a dynamic server of 2.6 never reuses connections."""

_V2_6 = Capabilities(
    version=(2, 6),
    flags=_FLAGS,
    values=_VALUES,
    additive=frozenset(("proxy-v2-options",)),
    always=_POOL,
    with_observe=MappingProxyType({"error-limit": "10", "on-error": "fail-check"}),
    # External checks of a dynamic server run on the wrong thread: the worker aborts.
    reload_options=frozenset(("external-check",)),
    takes_cookies=False,
    deletes=False,
)
_V2_8 = _V2_6._replace(version=(2, 8))
_V3_0 = _V2_8._replace(
    version=(3, 0),
    flags=_FLAGS,
    values=_VALUES | {"cookie", "hash-key"},
    takes_cookies=True,
    deletes=True,
)
_V3_2 = _V3_0._replace(
    version=(3, 2),
    flags=_V3_0.flags | {"check-reuse-pool", "strict-maxconn"},
    values=_V3_0.values | {"check-pool-conn-name", "idle-ping", "init-state"},
)
_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")
TABLES = (_V2_6, _V2_8, _V3_0, _V3_2)
"""All tables, the oldest version first."""


def find_capabilities(version: str) -> Capabilities | None:
    """Return the table for a version such as `2.6.12-1+deb12u4`: the newest one not above it; None below 2.6."""
    found = _VERSION.match(version)
    number = (int(found[1]), int(found[2])) if found else ()
    return next((table for table in reversed(TABLES) if table.version <= number), None)


class Inherited(NamedTuple):
    """The inherited settings of a proxy."""

    default_server: tuple[str, ...] = ()
    """The words of its `default-server` lines; later ones win."""
    hash_type: tuple[str, ...] = ()
    cookie: tuple[str, ...] = ()
    mode: str = ""
    unbalanced: frozenset[str] = frozenset()
    """The directives for which HAProxy balances none of its servers: `dispatch`, `option transparent`."""
    check_options: frozenset[str] = frozenset()
    """Options that make its checks more than a TCP connection."""
    doubt: str = ""
    """Why the settings cannot be known; empty if they are."""


class NeedsReload(ValueError):
    """Why a change cannot be made through the runtime API."""


def find_inherited(document: Document) -> Mapping[int, Inherited]:
    """Return the inherited settings of each section, by the line it begins at."""
    # A `default-server` below the first marker or managed line applies to some servers only.
    firsts = {
        proxy.start: min(one.at for ones in (proxy.markers, proxy.managed) for one in ones)
        for proxy in document.proxies
        if proxy.markers or proxy.managed
    }
    found: dict[int, Inherited] = {}
    defaults: dict[str, int] = {}
    odd = ""
    for directive, section in document.read_directives():
        if section is None:
            doubt = f"only HAProxy knows the section of {document.locate(directive.at)}"
            odd = odd or (doubt if ANYWHERE in directive.place.sections else "")
            found |= {at: found[at]._replace(doubt=doubt) for at in directive.place.sections if at in found}
            continue
        if directive.at == section.at:
            base = defaults.get(section.base, NOWHERE) if section.kind != "defaults" or section.base else NOWHERE
            found[section.at] = found.get(base, Inherited())
            if section.kind == "defaults":
                defaults[section.name] = defaults[""] = section.at
            if directive.place.active is None or not directive.sure:
                found[section.at] = found[section.at]._replace(doubt=_explain_doubt(document, directive))
            continue
        here = found.get(section.at, Inherited())
        there = _apply_directive(here, [*directive.words], late=directive.at > firsts.get(section.at, directive.at))
        if (directive.place.active is None or not directive.sure) and there is not here:
            there = here._replace(doubt=_explain_doubt(document, directive))
        found[section.at] = there
    for at in defaults.values():
        found.pop(at, None)
    return {at: one._replace(doubt=odd) for at, one in found.items()} if odd else found


def _explain_doubt(document: Document, directive: Directive) -> str:
    return f"only HAProxy knows the result of {document.locate(directive.at)}"


def _apply_directive(what: Inherited, words: list[str], *, late: bool) -> Inherited:
    changes: dict[str, Any] = {}
    match words:
        case ["default-server", *more] if late:
            changes["doubt"] = f"`default-server {' '.join(more)}` is below a marker"
        case ["default-server", *more]:
            changes["default_server"] = (*what.default_server, *more)
        case ["hash-type", *more]:
            changes["hash_type"] = tuple(more)
        case ["mode", mode, *_]:
            changes["mode"] = mode
        case ["cookie", *more]:
            changes["cookie"] = tuple(more)
        case ["dispatch", *_]:
            changes["unbalanced"] = what.unbalanced | {"dispatch"}
        case ["option", "transparent", *_]:
            changes["unbalanced"] = what.unbalanced | {"option transparent"}
        case ["option", name, *_] if name in _CHECK_OPTIONS or "$" in name:
            changes["check_options"] = what.check_options | {name}
        case ["no", "option", name, *_]:
            changes["check_options"] = what.check_options - {name}
            changes["unbalanced"] = what.unbalanced - {f"option {name}"}
        case _:
            return what
    return what._replace(**changes)


def resolve_keywords(words: Iterable[str], capabilities: Capabilities) -> Keywords:
    """Return the keywords of a server from `words`: its `default-server` lines, then its own; later ones win.

    Raises NeedsReload if `add server` cannot make that server.
    """
    found: dict[str, str] = {}
    left = iter(words)
    for word in left:
        if word == "no-check-ssl":
            found.pop("check-ssl", None)
            found[word] = ""  # checks do not inherit it either
        elif word in CANCELS:
            if word == "no-send-proxy-v2" and CANCELS_PROXY_V2 & found.keys():
                raise NeedsReload(f"`{word}` cancels a part of other keywords")
            found.pop(CANCELS[word], None)
        elif word in capabilities.flags or word == "disabled":
            if word == "check-ssl":
                found.pop("no-check-ssl", None)
            found[word] = ""
        elif word in capabilities.values or word in capabilities.additive:
            value = next(left, "")
            if not _SAFE_WORD.fullmatch(value):
                raise NeedsReload(f"`{word} {value}` contains characters that the stats socket reads differently")
            found[word] = f"{found[word]}\n{value}" if word in capabilities.additive and word in found else value
        else:
            raise NeedsReload(f"`{word}` cannot be set through the runtime API")
    return found


def format_keywords(keywords: Keywords, capabilities: Capabilities) -> str:
    """Format keywords for `add server`, with those that the line implies after a reload.

    Raises NeedsReload for a `disabled` server: the runtime API cannot add it as a reload does.
    """
    if "disabled" in keywords:
        raise NeedsReload("`disabled` cannot be set through the runtime API")
    whole = {**capabilities.always, **keywords}
    if "observe" in whole:
        whole = {**capabilities.with_observe, **whole}
    if "check" in whole and not {"port", "addr"} & whole.keys():
        for implied, by in IMPLIED_BY_CHECK.items():
            if by & whole.keys() and f"no-{implied}" not in whole:
                whole[implied] = ""
    whole.pop("no-check-ssl", None)
    words = ((word, one) for word, values in whole.items() for one in values.split("\n"))
    return "".join(f" {word} {value}" if value else f" {word}" for word, value in words)


def find_check_endpoint(keywords: Keywords, address: str, port: int) -> tuple[str, int] | None:
    """Return address and port that the checks of a server connect to; None if only HAProxy knows."""
    host, number = keywords.get("addr", address), keywords.get("port", str(port))
    plain = host == canonical_address(host) and _PORT.fullmatch(number)
    return (host, int(number)) if plain and 0 < int(number) <= _HIGHEST_PORT else None


def parse_time(time: str) -> float:
    """Convert an HAProxy time to seconds; a bare number is milliseconds. Returns 1e9 if it is invalid."""
    found = _TIME.fullmatch(time)
    return int(found.group(1)) * _SECONDS_PER_UNIT[found.group(2)] if found else 1e9
