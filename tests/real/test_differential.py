"""A server added at run time equals the same line after a reload, on every HAProxy; other changes are reloads.

LBAGENT_SWEEP=1 compares every pair of keywords too (`make test-differential`).
"""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.differential import Case, compare
from tests.helpers.differential_cases import CI, KEYWORDS, SWEEP
from tests.helpers.real_programs import binaries

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

CASES = SWEEP if os.environ.get("LBAGENT_SWEEP") else CI

NEVER = {
    "agent-addr", "agent-check", "agent-inter", "agent-port", "agent-send", "alpn", "check-alpn", "check-proto",
    "client-sigalgs", "curves", "disabled", "guid", "init-addr", "log-bufsize", "log-proto", "max-reuse", "namespace",
    "no-agent-check", "no-check-reuse-pool", "no-send-proxy-v2-ssl", "no-send-proxy-v2-ssl-cn", "no-ssl", "non-stick",
    "npn", "pool-conn-name", "proto", "redir", "resolve-net", "resolve-opts", "resolve-prefer", "resolvers",
    "set-proxy-v2-tlv-fmt(0xE1)", "shard", "sigalgs", "slowstart", "socks4", "stick", "tcp-ut", "track", "ws",
}  # fmt: skip
"""Keywords that need a reload on every version: `add server` refuses them or creates a different server.

`proto`, `alpn` and `ws` change the reuse of connections, `slowstart` would begin with the join, `no-ssl` and
`disabled` leave other states than after a reload, `guid` may be given once only. `curves`, `sigalgs` and
`client-sigalgs` are not inherited from `default-server` by a server of the file either.
"""

BY_VERSION: Mapping[str, set[str]] = {
    "2.6": {"cookie"},
    "2.8": {"cookie"},
    "3.0": set(),
    "3.2": set(),
}
"""Keywords that need a reload on some versions."""

BY_PROXY = {
    "`balance first` needs an `id` to place a server as a reload does",
    "`balance hdr` does not support dynamic servers",
    "`balance random` needs an `id` to place a server as a reload does",
    "`balance source` does not support dynamic servers",
    "`balance static-rr` does not support dynamic servers",
    "`balance uri` does not support dynamic servers",
    "`balance url_param` does not support dynamic servers",
    "`dispatch` does not support dynamic servers",
    "`mode log` does not support dynamic servers",
    "`no-send-proxy-v2` cancels a part of other keywords",
    "`option external-check` does not support checks of dynamic servers",
    "`option transparent` does not support dynamic servers",
}
"""Other reasons for a reload."""

NO_COOKIES = "`cookie` without `dynamic` gives no cookie to dynamic servers"


@pytest.mark.parametrize("version", binaries())
def test_a_server_joined_at_run_time_is_the_same_line_after_a_reload(version: str) -> None:
    result = compare(binaries()[version], CASES)

    reasons = Counter(result.by_reload.values())
    print(
        f"\nHAProxy {version}: {len(CASES)} combinations, {result.compared} at run time, {len(result.by_reload)} by"
        f" reload, {len(result.refused)} not accepted in haproxy.cfg, {len(result.differences)} differences"
    )
    words = {
        found[1] for why in reasons if (found := re.fullmatch(r"`(\S+)` cannot be set through the runtime API", why))
    }
    assert {str(case): what for case, what in result.differences.items()} == {}
    assert words <= NEVER | BY_VERSION.get(version, set())
    others = {why for why in reasons if not why.endswith("cannot be set through the runtime API")}
    assert others - BY_PROXY - ({NO_COOKIES} if "cookie" in BY_VERSION.get(version, ()) else set()) == set()


def manual_keywords(version: str) -> set[str]:
    """Return the keywords of section 5.2 of this HAProxy's manual; empty if the manual is not installed."""
    folders = [Path("/usr/share/doc/haproxy"), binaries()[version].resolve().parent / "usr/share/doc/haproxy"]
    for folder in folders:
        path = folder / "configuration.txt.gz"
        if not path.exists():
            continue
        text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        if not re.search(rf"(?m)^ *version {re.escape(version)}$", text):
            continue
        section = re.split(r"(?m)^5\.\d\. .*\n-+$", text)[2]
        found = re.findall(r"(?m)^([a-z][a-z0-9-]+)(?: [<\[{a-z].*)?\n  (?:May be used|[A-Z])", section)
        return set(found)
    return set()


@pytest.mark.parametrize("version", binaries())
def test_every_keyword_of_the_manual_is_compared(version: str) -> None:
    keywords = manual_keywords(version)
    if not keywords:
        pytest.skip(f"no manual of HAProxy {version} on this machine")

    assert len(keywords) > 80
    assert keywords - KEYWORDS.keys() == set()


def test_a_difference_is_detected() -> None:
    """The comparison itself: two lines that are not the same server."""
    version = next(iter(binaries()))
    same = Case("check inter 1s weight 5")

    result = compare(binaries()[version], [same], joined=[Case("check inter 1s weight 6")])

    assert list(result.differences) == [same]
    assert "show stat" in " ".join(result.differences[same])
