"""The keywords of a `server` line, as far as `add server` takes them: a dynamic server has what is said, no more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lbagent.names import canonical_address

_FLAGS = frozenset((
    "allow-0rtt", "backup", "check", "check-send-proxy", "check-ssl", "no-ssl-reuse", "no-sslv3", "no-tls-tickets",
    "no-tlsv10", "no-tlsv11", "no-tlsv12", "no-tlsv13", "send-proxy", "send-proxy-v2", "send-proxy-v2-ssl",
    "send-proxy-v2-ssl-cn", "ssl", "tfo",
))  # fmt: skip
_VALUED = frozenset((
    "addr", "alpn", "ca-file", "check-alpn", "check-proto", "check-sni", "ciphers", "ciphersuites", "crt", "downinter",
    "error-limit", "fall", "fastinter", "id", "inter", "maxconn", "maxqueue", "minconn", "observe", "on-error",
    "on-marked-down", "on-marked-up", "pool-low-conn", "pool-max-conn", "pool-purge-delay", "port", "proto",
    "proxy-v2-options", "rise", "slowstart", "sni", "ssl-max-ver", "ssl-min-ver", "verify", "verifyhost", "weight",
    "ws",
))  # fmt: skip
"""What 2.6 and 2.8 were seen to take; agent-check and track are left to a reload, as they need more than a line."""
_CANCEL = {
    f"no-{flag}": flag for flag in ("backup", "check", "check-send-proxy", "ssl", "send-proxy", "send-proxy-v2", "tfo")
}
_CANCEL |= {"tls-tickets": "no-tls-tickets", "ssl-reuse": "no-ssl-reuse", "enabled": "disabled"}

_POOL = {"pool-max-conn": "-1", "pool-purge-delay": "5s"}
"""Without both, a dynamic server of 2.6 never reuses a connection."""

_PLAIN = re.compile(r"[A-Za-z0-9._:,/@%+=()-]+")
"""Words that haproxy.cfg and the stats socket read alike: without quotes, `;`, backslashes and variables."""

_TIME = re.compile(r"([0-9]+)(us|ms|s|m|h|d|)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_HIGHEST_PORT = 65535

Keywords = Mapping[str, str]
"""Each with its value, nothing where it takes none."""


class Unsayable(ValueError):
    """Why something cannot be said to a running HAProxy."""


def expanded(words: Iterable[str]) -> Keywords:
    """What a server has whose `default-server` lines and own line hold `words`, the later ones winning.

    Raises Unsayable where that is no dynamic server.
    """
    found: dict[str, str] = {}
    left = iter(words)
    for word in left:
        if word in _CANCEL:
            found.pop(_CANCEL[word], None)
        elif word in _FLAGS or word == "disabled":
            found[word] = ""
        elif word in _VALUED:
            found[word] = value = next(left, "")
            if not _PLAIN.fullmatch(value):
                raise Unsayable(f"`{word} {value}` holds what the stats socket might read otherwise")
        else:
            raise Unsayable(f"`{word}` cannot be said to a running HAProxy")
    if "disabled" in found:
        raise Unsayable("`disabled` cannot be said to a running HAProxy")
    return found


def said(keywords: Keywords) -> str:
    """The keywords as `add server` takes them, and those without which it would make a worse server than a reload."""
    whole = {**_POOL, **keywords}
    return "".join(f" {word} {value}" if value else f" {word}" for word, value in whole.items())


def endpoint(keywords: Keywords, address: str, port: int) -> tuple[str, int] | None:
    """Where the checks of a server at this address and port connect to; None where only HAProxy can tell."""
    host, number = keywords.get("addr", address), keywords.get("port", str(port))
    plain = host == canonical_address(host) and number.isascii() and number.isdigit()
    return (host, int(number)) if plain and 0 < int(number[:9]) <= _HIGHEST_PORT else None


def seconds(time: str) -> float:
    """A time of HAProxy's, whose bare numbers are milliseconds; far too long where it is none."""
    found = _TIME.fullmatch(time)
    return int(found.group(1)) * _SECONDS[found.group(2)] if found else 1e9
