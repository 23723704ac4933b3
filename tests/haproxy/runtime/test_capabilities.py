"""Each keyword of HAProxy's manual is sent with `add server` where the version accepts it; any other needs a reload."""

from __future__ import annotations

import pytest

from lbagent.haproxy.config import Document
from lbagent.haproxy.runtime.capabilities import (
    Capabilities,
    Inherited,
    NeedsReload,
    find_capabilities,
    find_check_endpoint,
    find_inherited,
    format_keywords,
    parse_time,
    resolve_keywords,
)
from tests.helpers.builders import dedent
from tests.helpers.differential_cases import KEYWORDS

VERSIONS = ("2.6", "2.8", "3.0", "3.2")

NEVER = {
    "agent-addr", "agent-check", "agent-inter", "agent-port", "agent-send", "alpn", "check-alpn", "check-proto",
    "client-sigalgs", "curves", "guid", "init-addr", "log-bufsize", "log-proto", "max-reuse", "namespace",
    "no-agent-check", "no-check-reuse-pool", "no-send-proxy-v2-ssl", "no-send-proxy-v2-ssl-cn", "no-ssl", "non-stick",
    "npn", "pool-conn-name", "proto", "redir", "resolve-net", "resolve-opts", "resolve-prefer", "resolvers",
    "set-proxy-v2-tlv-fmt", "shard", "sigalgs", "slowstart", "socks4", "stick", "tcp-ut", "track", "ws",
}  # fmt: skip
SINCE_3_0 = {"cookie", "hash-key"}
SINCE_3_2 = {"check-pool-conn-name", "check-reuse-pool", "idle-ping", "init-state", "strict-maxconn"}

CANCELLED = [
    ("disabled", "enabled"),
    ("backup", "no-backup"),
    ("check", "no-check"),
    ("check-send-proxy", "no-check-send-proxy"),
    ("send-proxy", "no-send-proxy"),
    ("send-proxy-v2", "no-send-proxy-v2"),
    ("tfo", "no-tfo"),
    ("no-ssl-reuse", "ssl-reuse"),
    ("no-tls-tickets", "tls-tickets"),
]

CHECK_OPTIONS = (
    *("httpchk", "ssl-hello-chk", "smtpchk", "mysql-check", "pgsql-check", "redis-check", "ldap-check", "tcp-check"),
    *("spop-check", "external-check"),
)


def table(version: str) -> Capabilities:
    """Return the table of a version."""
    found = find_capabilities(version)
    assert found
    return found


def list_accepted(version: str) -> set[str]:
    """Return the keywords that need no reload."""
    accepted = set()
    for keyword, options in KEYWORDS.items():
        try:
            resolve_keywords(options.split(), table(version))
        except NeedsReload:
            continue
        accepted.add(keyword)
    return accepted


@pytest.mark.parametrize("version", VERSIONS)
def test_a_keyword_is_accepted_since_the_version_that_can_apply_it(version: str) -> None:
    later = {"2.6": SINCE_3_0 | SINCE_3_2, "2.8": SINCE_3_0 | SINCE_3_2, "3.0": SINCE_3_2, "3.2": set()}[version]

    assert list_accepted(version) == KEYWORDS.keys() - NEVER - later


def test_a_value_may_be_named_like_a_keyword() -> None:
    assert resolve_keywords(["hash-key", "addr"], table("3.0")) == {"hash-key": "addr"}


@pytest.mark.parametrize("keyword", sorted(KEYWORDS.keys() - NEVER - {"hash-key"}))
def test_a_keyword_keeps_its_value(keyword: str) -> None:
    words = KEYWORDS[keyword].split()
    found = resolve_keywords(words, table("3.2"))
    cancelling = {"enabled", "ssl-reuse", "tls-tickets"} | {word for _, word in CANCELLED}

    expected = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in KEYWORDS or word == "no-verifyhost":
            expected[word] = "" if following in KEYWORDS or not following else following
    if keyword == "no-verifyhost" or keyword in cancelling:
        expected.pop(keyword)
    assert found == expected


@pytest.mark.parametrize(("keyword", "cancelled_by"), CANCELLED)
def test_a_keyword_is_cancelled_by_its_opposite(keyword: str, cancelled_by: str) -> None:
    both = [keyword, cancelled_by, "weight", "3"]

    assert resolve_keywords(both, table("2.6")) == {"weight": "3"}
    assert resolve_keywords([cancelled_by, keyword], table("2.6")) == {keyword: ""}


def test_verifyhost_is_cancelled_with_its_value() -> None:
    assert resolve_keywords(["verifyhost", "a.test", "no-verifyhost"], table("2.6")) == {}


@pytest.mark.parametrize("keyword", ["send-proxy-v2-ssl", "send-proxy-v2-ssl-cn", "proxy-v2-options crc32c"])
def test_a_part_of_a_proxy_header_cannot_be_cancelled(keyword: str) -> None:
    with pytest.raises(NeedsReload) as refused:
        resolve_keywords([*keyword.split(), "no-send-proxy-v2"], table("2.6"))

    assert str(refused.value) == "`no-send-proxy-v2` cancels a part of other keywords"


@pytest.mark.parametrize(
    ("options", "implied"),
    [
        ("check ssl", " check-ssl"),
        ("check ssl no-check-ssl", ""),
        ("check ssl no-check-ssl check-ssl", ""),
        ("check ssl port 1", ""),
        ("check ssl addr 10.0.0.9", ""),
        ("ssl", ""),
        ("check send-proxy", " check-send-proxy"),
        ("check send-proxy-v2", " check-send-proxy"),
        ("check send-proxy-v2-ssl", " check-send-proxy"),
        ("check send-proxy-v2-ssl-cn", " check-send-proxy"),
        ("check proxy-v2-options crc32c", " check-send-proxy"),
    ],
)
def test_checks_inherit_from_the_traffic(options: str, implied: str) -> None:
    sent = format_keywords(resolve_keywords(options.split(), table("3.0")), table("3.0"))

    own = options.replace(" no-check-ssl", "")
    assert sent == f" pool-max-conn -1 pool-purge-delay 5s {own}{implied}"


def test_options_of_the_proxy_header_are_sent_one_by_one() -> None:
    words = ["proxy-v2-options", "crc32c", "proxy-v2-options", "unique-id"]

    assert resolve_keywords(words, table("2.6")) == {"proxy-v2-options": "crc32c\nunique-id"}
    sent = format_keywords(resolve_keywords(words, table("2.6")), table("2.6"))
    assert sent == " pool-max-conn -1 pool-purge-delay 5s proxy-v2-options crc32c proxy-v2-options unique-id"


def test_a_server_that_observes_has_the_limits_of_the_file() -> None:
    for version in VERSIONS:
        sent = format_keywords({"observe": "layer7"}, table(version))
        assert sent == " error-limit 10 on-error fail-check pool-max-conn -1 pool-purge-delay 5s observe layer7"


def test_a_disabled_server_is_not_added() -> None:
    with pytest.raises(NeedsReload) as refused:
        format_keywords(resolve_keywords(["disabled"], table("3.2")), table("3.2"))

    assert str(refused.value) == "`disabled` cannot be set through the runtime API"


@pytest.mark.parametrize("value", ["", "a;b", 'a"b', "a\\b", "$x", "a'b", "é", "a#b"])
def test_a_value_that_the_socket_reads_differently_needs_a_reload(value: str) -> None:
    with pytest.raises(NeedsReload) as refused:
        resolve_keywords(["sni", value], table("3.2"))

    assert str(refused.value) == f"`sni {value}` contains characters that the stats socket reads differently"


def test_a_keyword_without_its_value_needs_a_reload() -> None:
    with pytest.raises(NeedsReload) as refused:
        resolve_keywords(["check", "sni"], table("3.2"))

    assert str(refused.value) == "`sni ` contains characters that the stats socket reads differently"


def test_a_word_of_all_safe_characters_is_a_value() -> None:
    assert resolve_keywords(["sni", "aZ09._:,/@%+=()-"], table("2.6")) == {"sni": "aZ09._:,/@%+=()-"}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_version_can_do(version: str) -> None:
    found = table(version)

    assert found.takes_cookies == found.deletes == (version >= "3.0")
    assert found.reload_options == {"external-check"}
    assert found.additive == {"proxy-v2-options"}


@pytest.mark.parametrize("name", CHECK_OPTIONS)
def test_the_check_options_of_a_proxy_are_known(name: str) -> None:
    text = f"listen a\n    option {name} x\nlisten b\n    option {name}\n    no option {name}\n"
    text += "listen c\n    option dontlog\n"
    inherited = find_inherited(Document([("haproxy.cfg", text)]))

    assert [inherited[at].check_options for at in sorted(inherited)] == [{name}, set(), set()]


SECTION = "only HAProxy knows the section of haproxy.cfg:"
RESULT = "only HAProxy knows the result of haproxy.cfg:"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen a\n  mode tcp\n  mode http x\n", {0: Inherited(mode="http")}),
        ("listen a\n  dispatch 127.0.0.1:1\n", {0: Inherited(unbalanced=frozenset(("dispatch",)))}),
        (
            "listen a\n  option transparent\n  dispatch 127.0.0.1:1\n",
            {0: Inherited(unbalanced=frozenset(("dispatch", "option transparent")))},
        ),
        (
            "defaults\n  option transparent\nlisten a\n  no option transparent\nlisten b\n  no option httpchk\n",
            {2: Inherited(), 4: Inherited(unbalanced=frozenset(("option transparent",)))},
        ),
        # Only `defaults` with this name, or the last ones before it.
        ("# x\nlisten a\n  cookie C\nlisten b from gone\n", {1: Inherited(cookie=("C",)), 3: Inherited()}),
        ("# x\ndefaults a\n  cookie C\ndefaults b\n  mode tcp\nlisten c from b\n", {5: Inherited(mode="tcp")}),
        # The servers of a proxy begin at its first marker or managed line.
        (
            "listen a\n  # additional-lb-iis-server\n  default-server fall 3\n  # additional-lb-b-server\n",
            {0: Inherited(doubt="`default-server fall 3` is below a marker")},
        ),
        (
            """
            listen a
              default-server fall 2
              server web1 10.0.0.1:80 # lbagent role=web
              default-server fall 3
              server web2 10.0.0.2:80 # lbagent role=web
              # additional-lb-iis-server
            """,
            {0: Inherited(default_server=("fall", "2"), doubt="`default-server fall 3` is below a marker")},
        ),
    ],
)
def test_a_proxy_has_its_own_settings_and_those_of_its_defaults(text: str, expected: dict[int, Inherited]) -> None:
    assert find_inherited(Document([("haproxy.cfg", dedent(text))])) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            """
            .if feature(X)
            listen a
              cookie C
            .else
            listen b
            .endif
              timeout connect 1s
            listen c
              mode http
            """,
            {
                1: Inherited(doubt=f"{SECTION}7"),
                4: Inherited(doubt=f"{SECTION}7"),
                7: Inherited(mode="http"),
            },
        ),
        (
            ".if feature(X)\nlisten a\n.endif\n  retries 5\n  retries 6\nlisten c\n",
            {1: Inherited(doubt=f"{SECTION}5"), 5: Inherited()},
        ),
        # A variable may expand to the name of a section.
        (
            'listen a\nlisten b\n  "$X" y\nlisten c\n  "$X" y\n',
            {0: Inherited(doubt=f"{SECTION}3"), 1: Inherited(doubt=f"{SECTION}3"), 3: Inherited(doubt=f"{SECTION}3")},
        ),
        (
            'listen "$X"\nlisten b\n.if feature(X)\nlisten c\n  retries 5\n.endif\n',
            {0: Inherited(doubt=f"{RESULT}1"), 1: Inherited(), 3: Inherited(doubt=f"{RESULT}4")},
        ),
        (
            'listen a\n  option "$X"\nlisten b\n  option dontlog "$X"\n  cookie "$X"\n',
            {0: Inherited(doubt=f"{RESULT}2"), 2: Inherited(doubt=f"{RESULT}5")},
        ),
        (
            "listen a\n  .if feature(X)\n  mode tcp\n  .endif\n  cookie C\n",
            {0: Inherited(cookie=("C",), doubt=f"{RESULT}3")},
        ),
    ],
)
def test_settings_that_depend_on_the_running_haproxy_are_in_doubt(text: str, expected: dict[int, Inherited]) -> None:
    assert find_inherited(Document([("haproxy.cfg", dedent(text))])) == expected


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, ("10.0.0.1", 80)),
        ({"port": "1"}, ("10.0.0.1", 1)),
        ({"port": "65535"}, ("10.0.0.1", 65535)),
        ({"port": "65536"}, None),
        ({"port": "0"}, None),
        ({"port": "x"}, None),
        ({"port": "000080"}, None),
        ({"port": "9" * 5000}, None),
        ({"port": "\u0661"}, None),
        ({"addr": "10.0.0.2"}, ("10.0.0.2", 80)),
        ({"addr": "10.2"}, None),
        ({"addr": "host.test"}, None),
    ],
)
def test_where_checks_connect_to(keywords: dict[str, str], expected: tuple[str, int] | None) -> None:
    assert find_check_endpoint(keywords, "10.0.0.1", 80) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("250us", 0.00025), ("250ms", 0.25), ("250", 0.25), ("2s", 2.0), ("2m", 120.0), ("2h", 7200.0)),
        *(("2d", 172_800.0), ("", 1e9), ("x", 1e9), ("2w", 1e9), ("2 s", 1e9)),
    ],
)
def test_times_have_the_units_of_haproxy(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds, rel=1e-12)


def test_the_last_word_on_tls_of_checks_wins() -> None:
    assert resolve_keywords(["no-check-ssl", "check-ssl"], table("2.6")) == {"check-ssl": ""}
    assert resolve_keywords(["check-ssl", "no-check-ssl"], table("2.6")) == {"no-check-ssl": ""}
