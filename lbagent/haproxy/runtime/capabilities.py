"""What a server added through the runtime API accepts, needs and does not inherit: one table per HAProxy version.

Only data; `tests/real/test_differential.py` verifies it against real HAProxys. Each keyword listed here makes the same
server through `add server` as the same line after a reload. Anything not listed needs a reload.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


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
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    return next((table for table in reversed(TABLES) if table.version <= number), None)
