"""`check` reports what HAProxy prints, and settings that cost requests at a reload or make each change a reload."""
# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.checks import haproxy
from lbagent.checks.haproxy import ValidationResult
from lbagent.haproxy.config import Document
from tests.checks.helpers import list_lines, list_problems
from tests.helpers.builders import dedent

CFG = """
    global
        stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners
        hard-stop-after 1m   # old workers
    defaults
        mode http
        timeout client 10s
        timeout connect 1s
        timeout server 10s
        option idle-close-on-response
    listen lb
        bind :80
        balance roundrobin
        server web01 10.0.0.1:80
        # additional-lb-iis-server
    backend api
"""

REFUSED = """\
[NOTICE]   (13092) : haproxy version is 2.6.12-1+deb12u4
[WARNING]  (13092) : config : missing timeouts for proxy 'b'.
   | While not properly invalid, you will certainly encounter various problems
[ALERT]    (13092) : config : parsing [h.cfg:12] : unknown proxy mode 'tpc'.
[ALERT]    (13092) : config : parsing [h.cfg:13] : unknown keyword 'foo' in 'listen' section
[ALERT]    (13092) : config : Error(s) found in configuration file : h.cfg
[ALERT]    (13092) : config : Fatal errors found in configuration.
"""
FAST = "ok time-limit: `haproxy -c` takes less than half of 30 s"


def accepted(words: str, seconds: float = 0.1) -> ValidationResult:
    """A haproxy -c that ended with 0."""
    return ValidationResult(accepted=True, output=words, seconds=seconds, limit=30)


def refused(words: str) -> ValidationResult:
    """One that did not."""
    return ValidationResult(accepted=False, output=words, seconds=0.1, limit=30)


FIX = "fix haproxy.cfg; until then no server line can be added or removed"


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        (accepted("Configuration file is valid"), ["ok haproxy-cfg: h.cfg: `haproxy -c` accepts it without a warning", FAST]),
        (
            refused(REFUSED),
            [
                f"error haproxy-cfg: h.cfg:12: unknown proxy mode 'tpc'.; {FIX}",
                f"error haproxy-cfg: h.cfg:13: unknown keyword 'foo' in 'listen' section; {FIX}",
                "warning haproxy-cfg: h.cfg: missing timeouts for proxy 'b'.; this is a warning of HAProxy; see its manual",
                FAST,
            ],
        ),
        (refused("[ALERT] 12 (3) : config : Fatal errors found in configuration."), [f"error haproxy-cfg: h.cfg: [ALERT] 12 (3) : config : Fatal errors found in configuration.; {FIX}", FAST]),
        (refused("[ALERT]    (3) : config : Fatal errors found in configuration."), [f"error haproxy-cfg: h.cfg: Fatal errors found in configuration.; {FIX}", FAST]),
        (refused("killed\nagain"), [f"error haproxy-cfg: h.cfg: killed; {FIX}", FAST]),
        (refused(""), [f"error haproxy-cfg: h.cfg: HAProxy refuses it without a reason; {FIX}", FAST]),
        (refused("[ALERT]    (3) : \x1b[2J\r evil"), [f"error haproxy-cfg: h.cfg: ?[2J? evil; {FIX}", FAST]),
        (accepted("", 15), ["ok haproxy-cfg: h.cfg: `haproxy -c` accepts it without a warning", FAST]),
        (
            accepted("", 16),
            ["ok haproxy-cfg: h.cfg: `haproxy -c` accepts it without a warning", "warning time-limit: `haproxy -c` took 16.0 s; `haproxy.timeout` in roles.yml is 30 s; set `haproxy.timeout` to four times that duration"],
        ),
    ],
)  # fmt: skip
def test_each_message_of_haproxy_is_a_finding_with_its_line(result: ValidationResult, lines: list[str]) -> None:
    assert list_lines(haproxy.check_verdict(result, "h.cfg")) == lines


def test_ten_messages_are_listed_and_the_rest_counted() -> None:
    words = "".join(f"[WARNING]  (1) : config : number {number}\n" for number in range(12))

    lines = list_lines(haproxy.check_verdict(accepted(words), "h.cfg"))

    assert len(lines) == 12
    assert lines[10] == "warning haproxy-cfg: h.cfg: 2 more messages of HAProxy; run `haproxy -c`"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "ok haproxy: HAProxy 2.6.12-1+deb12u4"),
        ("HAProxy version 2.8.25 2026", "ok haproxy: HAProxy 2.8.25"),
        ("HAProxy version 3.0.1-1 2026", "ok haproxy: HAProxy 3.0.1-1"),
        ("HAProxy version 3.1.5 2026", "ok haproxy: HAProxy 3.1.5 (not tested; tested are 2.6, 2.8, 3.0 and 3.2)"),
        ("HAProxy version 3.2.26-1 2026", "ok haproxy: HAProxy 3.2.26-1"),
        ("HAProxy version 3.3-dev5-a1b2c3 2026", "warning haproxy: HAProxy 3.3-dev5-a1b2c3 is newer than the newest tested version, 3.2; use 3.2, or try changes on a test system first"),
        ("HAProxy version 4.0.0 2027", "warning haproxy: HAProxy 4.0.0 is newer than the newest tested version, 3.2; use 3.2, or try changes on a test system first"),
        ("HAProxy version 2.10.0 2027", "ok haproxy: HAProxy 2.10.0 (not tested; tested are 2.6, 2.8, 3.0 and 3.2)"),
        ("HA-Proxy version 2.2.9-2 2021/05/15", "warning haproxy: HAProxy 2.2.9-2 is older than the oldest supported version, 2.6; each change needs a reload; use 2.6, 2.8, 3.0 or 3.2"),
        ("not haproxy\nat all", "warning haproxy: haproxy -v: the output is not a version: 'not haproxy'; install HAProxy"),
    ],
)  # fmt: skip
def test_the_version_is_compared_with_the_tested_ones(words: str, line: str) -> None:
    assert list_lines([haproxy.check_version(words)]) == [line]


def check(text: str, *, master: bool = True) -> list[str]:
    """Return the findings about the sections of a haproxy.cfg."""
    found = haproxy.read_sections(Document([("haproxy.cfg", dedent(text))]))
    document = Document([("haproxy.cfg", dedent(text))])
    in_markers = frozenset(str(proxy) for proxy in document.proxies if proxy.markers)
    return list_lines(haproxy.check_sections(found, "haproxy.cfg", in_markers, has_master=master))


def test_a_complete_haproxy_cfg_is_ok() -> None:
    assert check(CFG) == [
        "ok stats-socket: haproxy.cfg:2: stats socket with level admin",
        "ok hand-over: haproxy.cfg:2: the new process takes over the listeners at a reload",
        "ok hard-stop: haproxy.cfg:3: old workers end after `hard-stop-after 1m`",
        "ok idle-close: a reload does not cut off requests of idle clients",
        "ok timeouts: every proxy has its timeouts",
        "ok server-state: HAProxy loads no server-state file",
    ]


IDLE = "a reload closes idle connections of {}; a request that is on its way is lost; add `option idle-close-on-response` to it or its defaults"
EFFECTS = {
    "client": "connections of vanished clients, and old workers, never end",
    "connect": "a server that does not answer blocks a request forever",
    "server": "connections to servers that never respond, and old workers, never end",
}


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        (
            "    stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners\n", "",
            ["warning stats-socket: haproxy.cfg:1: no stats socket; each change needs a reload, and `lbagent status` cannot show server states; add `stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners`"],
        ),
        (
            "level admin", "level user",
            ["warning stats-socket: haproxy.cfg:2: the stats socket has level user; servers cannot be changed through it; set `level admin`"],
        ),
        (
            " level admin", "",
            ["warning stats-socket: haproxy.cfg:2: the stats socket has level operator; servers cannot be changed through it; set `level admin`"],
        ),
        (
            "    hard-stop-after 1m   # old workers\n", "",
            ["warning hard-stop: haproxy.cfg:1: no `hard-stop-after`; after each reload an old worker stays until its last connection ends; add `hard-stop-after` with a time longer than any request takes"],
        ),
        (
            "hard-stop-after 1m", "hard-stop-after 10s",
            [
                "warning hard-stop: haproxy.cfg:10: `hard-stop-after 10s` cuts off idle clients of listen lb (timeout client 10s) after a reload; set a shorter `timeout http-keep-alive`",
                "warning hard-stop: haproxy.cfg:10: `hard-stop-after 10s` cuts off slow responses of listen lb, backend api (timeout server 10s) after a reload; set a longer `hard-stop-after`",
            ],
        ),
        (
            "timeout client 10s", "timeout client 1h\n    timeout http-keep-alive 300000",
            ["warning hard-stop: haproxy.cfg:11: `hard-stop-after 1m` cuts off idle clients of listen lb (timeout http-keep-alive 300000) after a reload; set a shorter `timeout http-keep-alive`"],
        ),
        ("timeout client 10s", "timeout client 1h\n    timeout http-request 5s", []),
        ("hard-stop-after 1m", "hard-stop-after ${LONG}", []),
        ("    option idle-close-on-response\n", "", [f"warning idle-close: haproxy.cfg:9: {IDLE.format('listen lb')}"]),
        ("    bind :80\n", "    bind :80\n    no option idle-close-on-response\n", [f"warning idle-close: haproxy.cfg:10: {IDLE.format('listen lb')}"]),
        ("option idle-close-on-response", "option httpclose", []),
        ("    option idle-close-on-response\n", "    mode tcp\n", []),
        ("    timeout client 10s\n", "", [f"warning timeouts: haproxy.cfg:9: no `timeout client` in listen lb; {EFFECTS['client']}; add `timeout client` to it or its defaults"]),
        ("timeout client 10s", "timeout client 0", [f"warning timeouts: haproxy.cfg:10: no `timeout client` in listen lb; {EFFECTS['client']}; add `timeout client` to it or its defaults"]),
        ("    timeout connect 1s\n", "", [f"warning timeouts: haproxy.cfg:9: no `timeout connect` in listen lb, backend api; {EFFECTS['connect']}; add `timeout connect` to it or its defaults"]),
        ("    timeout server 10s\n", "", [f"warning timeouts: haproxy.cfg:9: no `timeout server` in listen lb, backend api; {EFFECTS['server']}; add `timeout server` to it or its defaults"]),
        (
            "    mode http\n", "    mode http\n    load-server-state-from-file global\n",
            ["warning server-state: haproxy.cfg:6: a server-state file restores old ports of servers that have changed since; remove `load-server-state-from-file`; pauses are kept in haproxy.cfg"],
        ),
        ("    mode http\n", "    mode http\n    load-server-state-from-file none\n", []),
        ("    bind :80\n", "    bind :80\n    load-server-state-from-file none\n", []),
        ("    bind :80\n", "    no option idle-close-on-response\n", []),
        ("timeout client 10s", "timeout client", [f"warning timeouts: haproxy.cfg:10: no `timeout client` in listen lb; {EFFECTS['client']}; add `timeout client` to it or its defaults"]),
        ("balance roundrobin", "balance", []),
        ("defaults\n", "defaults base\n    timeout connect 1s\ndefaults from base\n", []),
    ],
)  # fmt: skip
def test_a_setting_that_costs_requests_at_a_reload_is_found_with_its_line(old: str, new: str, lines: list[str]) -> None:
    text = dedent(CFG)
    assert old in text

    assert [line for line in check(text.replace(old, new)) if not line.startswith("ok ")] == lines


@pytest.mark.parametrize(
    ("master", "line"),
    [
        (True, "ok hand-over: haproxy.cfg:2: the master passes the listeners on at a reload"),
        (False, "warning hand-over: haproxy.cfg:2: HAProxy runs without a master; a reload loses connections that wait to be accepted; add `expose-fd listeners`, or run HAProxy with -W"),
    ],
)  # fmt: skip
def test_without_a_master_listeners_must_be_handed_over(master: bool, line: str) -> None:  # noqa: FBT001
    lines = check(CFG.replace(" expose-fd listeners", ""), master=master)

    assert [one for one in lines if " hand-over: " in one] == [line]


@pytest.mark.parametrize(
    ("said_of_it", "why"),
    [
        ("balance roundrobin", ""),
        ("balance leastconn", ""),
        ("balance random(3)", ""),
        ("balance static-rr", "`balance static-rr` (`roundrobin` can be changed at run time)"),
        ("balance source", "`balance source` (with `hash-type consistent` it can be changed at run time)"),
        ("balance hdr(host)", "`balance hdr(host)` (with `hash-type consistent` it can be changed at run time)"),
        ("balance source\n    hash-type consistent", ""),
        ("cookie IP insert", "`cookie IP` (with `dynamic` it can be changed at run time)"),
        ("cookie IP insert dynamic", ""),
    ],
)
def test_a_proxy_that_only_a_reload_can_change_is_listed_and_needs_no_fix(said_of_it: str, why: str) -> None:
    lines = check(dedent(CFG).replace("balance roundrobin", said_of_it))

    expected = [f"ok runtime-api: haproxy.cfg:10: listen lb can only be changed by a reload: {why}"] if why else []
    assert [line for line in lines if " runtime-api: " in line] == expected
    assert [line for line in lines if not line.startswith("ok ")] == []


def test_a_proxy_without_a_marker_is_not_listed() -> None:
    lines = check(dedent(CFG) + "    balance source\n")

    assert [line for line in lines if " runtime-api: " in line] == []


def test_a_proxy_inherits_from_the_defaults_that_it_names() -> None:
    text = """
        defaults fine
            mode http
            timeout client 1s
            timeout connect 1s
            timeout server 1s
        defaults bare
        listen one from fine
            bind :80
            option idle-close-on-response
        listen two
            bind :81
        defaults more from fine
        listen three
            bind :82
            option idle-close-on-response
    """
    found = haproxy.read_sections(Document([("a.cfg", dedent(text))]))

    assert [str(section) for section in found] == [
        "defaults fine",
        "defaults bare",
        "listen one",
        "listen two",
        "defaults more",
        "listen three",
    ]
    assert [
        line
        for line in list_problems(haproxy.check_sections(found, "a.cfg", frozenset(), has_master=True))
        if " timeouts: " in line or " idle-close: " in line
    ] == [
        f"warning timeouts: a.cfg:10: no `timeout {name}` in listen two; {EFFECTS[name]}; add `timeout {name}` to it or its defaults"
        for name in ("client", "connect", "server")
    ]


def test_defaults_inherit_from_the_defaults_that_they_name() -> None:
    found = haproxy.read_sections(
        Document([("a", "defaults a\n    mode http\ndefaults from a\nlisten x\n    bind :80\n")])
    )

    assert [(str(one), one.is_http) for one in found] == [("defaults a", True), ("defaults", True), ("listen x", True)]


def test_lines_are_counted_in_each_file() -> None:
    found = haproxy.read_sections(
        Document([("a.cfg", "defaults\n    mode http\n"), ("b.cfg", "\nlisten x\n    bind :80\n")])
    )

    assert [(str(one), one.where) for one in found] == [("defaults", "a.cfg:1"), ("listen x", "b.cfg:2")]
    problems = list_problems(haproxy.check_sections(found, "a.cfg", frozenset(), has_master=True))
    assert [line for line in problems if " idle-close: " in line] == [
        f"warning idle-close: b.cfg:2: {IDLE.format('listen x')}"
    ]


@given(st.text(alphabet=st.sampled_from("abc \n\t#'\"\r\0globalistentimeoutdefaultsfrom1"), max_size=200))
def test_any_text_can_be_checked(text: str) -> None:
    found = haproxy.read_sections(Document([("a", text)]))

    assert list_lines(haproxy.check_sections(found, "a", frozenset(), has_master=False))


@pytest.mark.parametrize(
    ("text", "time"),
    [("10", 10), ("10us", 0.01), ("10ms", 10), ("2s", 2000), ("1m", 60000), ("1h", 3600000), ("1d", 86400000), ("x", None), ("1w", None), ("", None)],
)  # fmt: skip
def test_a_time_without_a_unit_is_in_milliseconds(text: str, time: float | None) -> None:
    assert haproxy.parse_milliseconds(text) == time


def test_while_haproxy_does_not_run_nothing_is_said_about_its_master() -> None:
    text = dedent(CFG).replace(" expose-fd listeners", "")
    document = Document([("haproxy.cfg", text)])
    found = haproxy.check_sections(haproxy.read_sections(document), "haproxy.cfg", frozenset(), has_master=None)

    assert [line for line in list_lines(found) if " hand-over: " in line] == []
