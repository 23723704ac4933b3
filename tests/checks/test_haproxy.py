"""doctor: what is found in roles.yml, in haproxy.cfg, in what HAProxy says, and on disk, said in exact lines."""

# ruff: noqa: E501  # a case of a table stands on one line

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.checks import files, haproxy, markers
from lbagent.checks import roles as checks_roles
from lbagent.checks.files import Owned
from lbagent.checks.finding import Finding, Kind, Severity, enumerated, failed, ok, warning
from lbagent.checks.haproxy import Checked
from lbagent.checks.markers import Known
from lbagent.checks.roles import key_lines
from lbagent.haproxy.config import Document
from lbagent.membership.model import Membership
from tests.helpers.builders import POISON, dedent, known, member, planning, reading


def told(findings: Iterable[Finding]) -> list[str]:
    """The findings as lines."""
    return [f"{found.severity} {found.words}" for found in findings]


def bad(findings: Iterable[Finding]) -> list[str]:
    """Those that are not ok, as lines."""
    return [line for line in told(findings) if not line.startswith("ok ")]


# --- a finding ------------------------------------------------------------------------------------------------------


@given(st.text(), st.text(), st.text())
def test_whatever_is_found_is_one_printable_line(where: str, what: str, fix: str) -> None:
    words = Finding(Severity.ERROR, Kind.SERF, where, what, fix).words

    assert words.isprintable()
    assert len(words) <= 602


@pytest.mark.parametrize("hostile", POISON)
def test_what_a_terminal_would_obey_is_not_said(hostile: str) -> None:
    assert warning(Kind.NODE, hostile, hostile, hostile).words.isprintable()


def test_the_many_are_counted() -> None:
    assert enumerated([f"web{number}" for number in range(9)]) == "web0, web1, web2, web3, web4 and 4 more"
    assert enumerated([f"web{number}" for number in range(5)]) == "web0, web1, web2, web3, web4"
    assert enumerated(["a", "b"]) == "a, b"


def test_a_long_line_is_cut_and_one_that_just_fits_is_not() -> None:
    fits = "x" * (600 - len("serf: "))

    assert ok(Kind.SERF, "", fits).words == f"serf: {fits}"
    assert ok(Kind.SERF, "", f"{fits}y").words == f"serf: {fits} …"


def test_only_an_error_fails() -> None:
    assert not failed([ok(Kind.SERF, "", ""), warning(Kind.SERF, "", "", "")])
    assert failed([ok(Kind.SERF, "", ""), Finding(Severity.ERROR, Kind.SERF, "", "")])


# --- roles.yml ------------------------------------------------------------------------------------------------------


def of_roles(text: str) -> list[str]:
    """What is found in a roles.yml."""
    return told(checks_roles.judge(reading(text), "roles.yml", key_lines(dedent(text).encode())))


def test_roles_with_networks_and_sections_are_ok() -> None:
    assert of_roles("""
        services: {iis: {port: 80}}
        roles:
          web: {lb: [iis], networks: [10.0.0.0/8, fd00::/8]}
    """) == [
        "ok roles: roles.yml: 1 role, 1 service",
        "ok networks: roles.yml:3: role web comes from 10.0.0.0/8, fd00::/8",
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            """
                services: {iis: {port: 80}}
                roles:
                  web: {lb: [iis]}
            """,
            ["warning networks: roles.yml:3: role web lets any address in: name where its nodes live, as in `networks: [10.0.0.0/8]`"],
        ),
        (
            """
                services: {iis: {port: 80}}
                web: {lb: [iis]}
            """,
            ["warning networks: roles.yml:2: role web lets any address in: name where its nodes live, as in `networks: [10.0.0.0/8]`"],
        ),
        (
            """
                services:
                  iis: {port: 80}
                  mongo: {port: 27017}
                roles:
                  web: {lb: [iis], networks: [10.0.0.0/8]}
                  idle: {lb: [none]}
            """,
            [
                "warning role-empty: roles.yml:6: role idle serves nothing: its nodes get no line anywhere: give it a section, as in `lb: [iis]`, or take it out",
                "warning service-unused: roles.yml:3: no role uses service mongo: name it in a section of a role, or take it out",
            ],
        ),
    ],
)  # fmt: skip
def test_what_a_roles_yml_may_be_wrong_about_is_told_with_its_line(text: str, lines: list[str]) -> None:
    assert [line for line in of_roles(text) if not line.startswith("ok ")] == lines


# --- markers --------------------------------------------------------------------------------------------------------

ROLES = """
    services: {iis: {port: 80}, mongo: {port: 27017}}
    roles:
      web: {lb: [iis], networks: [10.0.0.0/8]}
      data: {db: [mongo], networks: [10.0.0.0/8]}
"""
BOTH = """
    listen lb
        # additional-lb-iis-server
    listen db
        # additional-db-mongo-server
"""


def marked(text: str, membership: Membership | None = None) -> list[str]:
    """What is found of markers in a haproxy.cfg, the plan's notes included where there are members."""
    document, roles = Document([("haproxy.cfg", dedent(text))]), reading(ROLES)
    found = [*markers.judge(document, roles)]
    if membership:
        found += markers.notes(document, planning(dedent(text), roles, membership).notes)
    return told(found)


def test_markers_for_all_are_ok() -> None:
    assert marked(BOTH, known(member("web01"))) == [
        "ok markers: haproxy.cfg: every section and service has its marker (2 markers)"
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            BOTH + "    # additional-lb-isi-server\n",
            ["warning marker-unknown: haproxy.cfg:5: no role of roles.yml has a section and service for '# additional-lb-isi-server': '# additional-lb-iis-server' (section lb, service iis) is the nearest that is known"],
        ),
        (
            BOTH + "    # additional-something-else-server\n",
            ["warning marker-unknown: haproxy.cfg:5: no role of roles.yml has a section and service for '# additional-something-else-server': give a role that section and service, or take it out of listen db"],
        ),
        (
            "listen lb\n    # additional-lb-iis-server\n",
            [
                "warning marker-missing: haproxy.cfg: section db, service mongo of role data has no marker: put '# additional-db-mongo-server' where the servers are to stand",
                "warning role-nowhere: haproxy.cfg: none of the markers of role data stands anywhere: its nodes get no line: put '# additional-db-mongo-server' where they are to stand",
            ],
        ),
        (
            BOTH + "    # additional-db-mongo-server\n",
            ["error marker-twice: haproxy.cfg:5: '# additional-db-mongo-server' stands in listen db twice, first at haproxy.cfg:4: delete one"],
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_markers_is_told_with_its_line(text: str, lines: list[str]) -> None:
    assert marked(text) == lines


def test_without_roles_doubled_markers_are_told_all_the_same() -> None:
    text = dedent(BOTH) + "    # additional-db-mongo-server\n"

    assert told(markers.alone(Document([("haproxy.cfg", text)]))) == [
        "error marker-twice: haproxy.cfg:5: '# additional-db-mongo-server' stands in listen db twice, first at haproxy.cfg:4: delete one",
        "warning markers: haproxy.cfg: only doubled ones can be looked for: roles.yml cannot be used: mend roles.yml",
    ]


def test_a_line_without_its_marker_is_told() -> None:
    text = BOTH + "listen old\n    server web01 10.0.0.1:80 check # lbagent role=web\n"

    assert bad_of(text, known(member("web01"))) == [
        "warning marker-gone: haproxy.cfg:6: the marker of server web01 is missing: put the marker back below the line, or delete the line",
    ]


def bad_of(text: str, membership: Membership) -> list[str]:
    """What is not ok."""
    return [line for line in marked(text, membership) if not line.startswith("ok ")]


def test_a_line_by_hand_that_wins_is_told() -> None:
    text = BOTH.replace("        # additional-lb", "        server WEB01 10.9.9.9:80\n        # additional-lb")

    assert bad_of(text, known(member("web01"))) == [
        "warning migration: haproxy.cfg:2: 1 server line above the marker (WEB01) is not managed: pauses and leaves of these nodes have no effect: `lbagent apply --adopt` once they have joined; lines that are to stay yours can stay",
        "error by-hand: haproxy.cfg:2: web01: no managed line in listen lb: an operator's line has its name or address, pauses do not affect it: `lbagent apply --adopt` makes it a managed line",
    ]


def test_a_node_without_a_line_is_told() -> None:
    assert bad_of(BOTH, known(member("web01", "192.168.0.1"))) == [
        "warning node: web01: no line for role web: 192.168.0.1 is outside the role's networks: fix the tags or the address of the node, or roles.yml"
    ]


def test_what_the_markers_have_told_is_not_told_again_as_a_note() -> None:
    text = "listen lb\n    # additional-lb-isi-server\n"

    assert [line.split(":")[0] for line in marked(text, known(member("web01")))] == [
        "warning marker-unknown",
        "warning marker-missing",
        "warning marker-missing",
        "warning role-nowhere",
        "warning role-nowhere",
    ]


# --- drift ----------------------------------------------------------------------------------------------------------

WEB01 = "    server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web\n"
SERVING = f"listen lb\n{WEB01}    # additional-lb-iis-server\nlisten db\n    # additional-db-mongo-server\n"
QUIET = Known(0, 0, Document([("", SERVING)]).compute_digest(), "", ())


def drifted(text: str, state: Known = QUIET, membership: Membership | None = None) -> list[str]:
    """What is found of drift."""
    document = Document([("haproxy.cfg", text)])
    return told(
        markers.drift_judge(document, planning(text, reading(ROLES), membership or known(member("web01"))), state)
    )


MANY = known(*(member(f"web{number:02}", f"10.0.0.{number}") for number in range(1, 31)))


@pytest.mark.parametrize(
    ("text", "state", "lines"),
    [
        (SERVING, QUIET, ["ok drift: the managed lines are what they should be (1 line)"]),
        (SERVING, QUIET._replace(digest=""), ["ok drift: the managed lines are what they should be (1 line)"]),
        (
            SERVING.replace("rise 2", "rise 9"),
            QUIET,
            [
                "warning drift: haproxy.cfg:2: 'listen lb: server web01 10.0.0.1:80 check inter 2s rise 9 fall 2 # lbagent role=web' is not what lbagent wrote: `lbagent apply` puts it right; without its comment a line is yours",
                "warning drift: 'listen lb: server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web' is missing: `lbagent apply` puts it right; without its comment a line is yours",
            ],
        ),
        (
            SERVING.replace(WEB01, ""),
            QUIET,
            ["warning drift: 'listen lb: server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web' is missing: `lbagent apply` puts it right; without its comment a line is yours"],
        ),
        (
            SERVING.replace("    server", "  server"),
            QUIET,
            ["warning drift: managed lines were moved or indented by hand: `lbagent plan` shows it, `lbagent apply` does it"],
        ),
        (
            SERVING,
            QUIET._replace(digest="other"),
            ["warning pending: the managed lines are as they should be, but HAProxy has not confirmed them: `lbagent apply`"],
        ),
        (
            SERVING,
            QUIET._replace(spooled=2, failure="port in use"),
            [
                "warning pending: 2 events in the spool: the next event takes them in, or `lbagent apply`",
                "error pending: the last reload failed: port in use: mend it, then `lbagent apply --force`",
            ],
        ),
        (
            SERVING,
            QUIET._replace(quarantined=(("web07", "unknown keyword"),)),
            [
                "error quarantine: web07: HAProxy refuses its line: unknown keyword: mend its tags, or roles.yml; it is tried again",
                "ok drift: the managed lines are what they should be (1 line)",
            ],
        ),
    ],
)  # fmt: skip
def test_text_and_plan_are_told_apart(text: str, state: Known, lines: list[str]) -> None:
    assert drifted(text, state) == lines


def test_an_edit_of_roles_yml_that_waits_is_no_drift() -> None:
    assert drifted(SERVING, QUIET, known(member("web01"), member("web02", "10.0.0.2"))) == [
        "warning pending: 1 line would change, of roles.yml or the text: `lbagent plan` shows it, `lbagent apply` does it"
    ]


def test_what_the_guard_holds_is_told() -> None:
    assert drifted(SERVING, QUIET, known(member("other", role="gone"))) == [
        "warning held: held back: 1 of 1 lines at '# additional-lb-iis-server' in listen lb would be removed: web01: `lbagent apply --force` lets them go",
        "ok drift: the managed lines are what they should be (1 line)",
    ]


def test_of_many_edited_lines_twenty_are_told() -> None:
    lines = drifted(SERVING, QUIET._replace(digest="other"), MANY)

    assert len(lines) == 21
    assert lines[-1] == "warning drift: 9 more lines edited by hand: `lbagent plan` shows it, `lbagent apply` does it"


# --- haproxy.cfg ----------------------------------------------------------------------------------------------------

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


def of_sections(text: str, *, master: bool = True) -> list[str]:
    """What is found in the sections of a haproxy.cfg."""
    found = haproxy.sections(Document([("haproxy.cfg", dedent(text))]))
    document = Document([("haproxy.cfg", dedent(text))])
    in_markers = frozenset(str(proxy) for proxy in document.proxies if proxy.markers)
    return told([*haproxy.reloads_judge(found, "haproxy.cfg", master=master), *haproxy.judge(found, in_markers)])


def test_a_haproxy_cfg_with_all_it_needs_is_ok() -> None:
    assert of_sections(CFG) == [
        "ok stats-socket: haproxy.cfg:2: a stats socket with level admin",
        "ok hand-over: haproxy.cfg:2: listeners are handed over at a reload",
        "ok hard-stop: haproxy.cfg:3: old workers end by `hard-stop-after 1m`",
        "ok idle-close: a reload lets idle clients send their next request",
        "ok timeouts: every proxy has its timeouts",
        "ok server-state: no server state is loaded from a file",
    ]


IDLE = "at a reload, {} closes idle connections on which a client may just be sending a request: write `option idle-close-on-response` there, or in its defaults"
GONE = {
    "client": "a client that is gone keeps its connection, and an old worker, for ever",
    "connect": "a server that does not answer holds a request up for ever",
    "server": "an answer that never comes keeps its connection, and an old worker, for ever",
}


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        (
            "    stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners\n", "",
            ["warning stats-socket: haproxy.cfg:1: no stats socket: a reload is confirmed from the process table alone, and nothing can be asked: write `stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners`"],
        ),
        (
            "level admin", "level user",
            ["warning stats-socket: haproxy.cfg:2: the stats socket has level user: servers cannot be changed with it: write `level admin`"],
        ),
        (
            " level admin", "",
            ["warning stats-socket: haproxy.cfg:2: the stats socket has level operator: servers cannot be changed with it: write `level admin`"],
        ),
        (
            "    hard-stop-after 1m   # old workers\n", "",
            ["warning hard-stop: haproxy.cfg:1: no `hard-stop-after`: at every reload an old worker stays until its last connection ends: write `hard-stop-after` with a time longer than any request takes"],
        ),
        (
            "hard-stop-after 1m", "hard-stop-after 10s",
            [
                "warning hard-stop: haproxy.cfg:10: after a reload, idle clients of listen lb (timeout client 10s) are cut off by `hard-stop-after 10s`: make `timeout http-keep-alive` shorter",
                "warning hard-stop: haproxy.cfg:10: after a reload, an answer that listen lb, backend api may wait for (timeout server 10s) is cut off by `hard-stop-after 10s`: make `hard-stop-after` longer",
            ],
        ),
        (
            "timeout client 10s", "timeout client 1h\n    timeout http-keep-alive 300000",
            ["warning hard-stop: haproxy.cfg:11: after a reload, idle clients of listen lb (timeout http-keep-alive 300000) are cut off by `hard-stop-after 1m`: make `timeout http-keep-alive` shorter"],
        ),
        ("timeout client 10s", "timeout client 1h\n    timeout http-request 5s", []),
        ("hard-stop-after 1m", "hard-stop-after ${LONG}", []),
        ("    option idle-close-on-response\n", "", [f"warning idle-close: haproxy.cfg:9: {IDLE.format('listen lb')}"]),
        ("    bind :80\n", "    bind :80\n    no option idle-close-on-response\n", [f"warning idle-close: haproxy.cfg:10: {IDLE.format('listen lb')}"]),
        ("option idle-close-on-response", "option httpclose", []),
        ("    option idle-close-on-response\n", "    mode tcp\n", []),
        ("    timeout client 10s\n", "", [f"warning timeouts: haproxy.cfg:9: no `timeout client` in listen lb: {GONE['client']}: write `timeout client` there, or in its defaults"]),
        ("timeout client 10s", "timeout client 0", [f"warning timeouts: haproxy.cfg:10: no `timeout client` in listen lb: {GONE['client']}: write `timeout client` there, or in its defaults"]),
        ("    timeout connect 1s\n", "", [f"warning timeouts: haproxy.cfg:9: no `timeout connect` in listen lb, backend api: {GONE['connect']}: write `timeout connect` there, or in its defaults"]),
        ("    timeout server 10s\n", "", [f"warning timeouts: haproxy.cfg:9: no `timeout server` in listen lb, backend api: {GONE['server']}: write `timeout server` there, or in its defaults"]),
        (
            "    mode http\n", "    mode http\n    load-server-state-from-file global\n",
            ["warning server-state: haproxy.cfg:6: a state file brings back ports of servers that have changed since, and HAProxy believes it: take `load-server-state-from-file` out; a pause stands in haproxy.cfg"],
        ),
        ("    mode http\n", "    mode http\n    load-server-state-from-file none\n", []),
        ("    bind :80\n", "    bind :80\n    load-server-state-from-file none\n", []),
        ("    bind :80\n", "    no option idle-close-on-response\n", []),
        ("timeout client 10s", "timeout client", [f"warning timeouts: haproxy.cfg:10: no `timeout client` in listen lb: {GONE['client']}: write `timeout client` there, or in its defaults"]),
        ("balance roundrobin", "balance", []),
        ("defaults\n", "defaults base\n    timeout connect 1s\ndefaults from base\n", []),
    ],
)  # fmt: skip
def test_what_costs_requests_at_a_reload_is_told_with_its_line(old: str, new: str, lines: list[str]) -> None:
    text = dedent(CFG)
    assert old in text

    assert [line for line in of_sections(text.replace(old, new)) if not line.startswith("ok ")] == lines


@pytest.mark.parametrize(
    ("master", "line"),
    [
        (True, "ok hand-over: haproxy.cfg:2: the master hands listeners over at a reload"),
        (False, "warning hand-over: haproxy.cfg:2: without a master, a reload loses the connections that wait to be accepted: write `expose-fd listeners`, or run HAProxy with -W"),
    ],
)  # fmt: skip
def test_without_a_master_listeners_have_to_be_passed(master: bool, line: str) -> None:  # noqa: FBT001
    lines = of_sections(CFG.replace(" expose-fd listeners", ""), master=master)

    assert [one for one in lines if " hand-over: " in one] == [line]


@pytest.mark.parametrize(
    ("said_of_it", "why"),
    [
        ("balance roundrobin", ""),
        ("balance leastconn", ""),
        ("balance random(3)", ""),
        ("balance static-rr", "`balance static-rr` (`roundrobin` could be changed at run time)"),
        ("balance source", "`balance source` (with `hash-type consistent` it could be changed at run time)"),
        ("balance hdr(host)", "`balance hdr(host)` (with `hash-type consistent` it could be changed at run time)"),
        ("balance source\n    hash-type consistent", ""),
        ("cookie IP insert", "`cookie IP` (with `dynamic` it could be at run time)"),
        ("cookie IP insert dynamic", ""),
    ],
)
def test_what_rules_the_runtime_api_out_is_told_and_nothing_to_mend(said_of_it: str, why: str) -> None:
    lines = of_sections(dedent(CFG).replace("balance roundrobin", said_of_it))

    expected = [f"ok runtime-api: haproxy.cfg:10: listen lb can only be changed by a reload: {why}"] if why else []
    assert [line for line in lines if " runtime-api: " in line] == expected
    assert [line for line in lines if not line.startswith("ok ")] == []


def test_a_proxy_without_a_marker_is_none_of_our_business() -> None:
    lines = of_sections(dedent(CFG) + "    balance source\n")

    assert [line for line in lines if " runtime-api: " in line] == []


def test_defaults_are_taken_from_where_a_proxy_says() -> None:
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
    found = haproxy.sections(Document([("a.cfg", dedent(text))]))

    assert [str(section) for section in found] == [
        "defaults fine",
        "defaults bare",
        "listen one",
        "listen two",
        "defaults more",
        "listen three",
    ]
    assert bad(haproxy.judge(found, frozenset())) == [
        f"warning timeouts: a.cfg:10: no `timeout {name}` in listen two: {GONE[name]}: write `timeout {name}` there, or in its defaults"
        for name in ("client", "connect", "server")
    ]


def test_defaults_without_a_name_may_take_from_others() -> None:
    found = haproxy.sections(Document([("a", "defaults a\n    mode http\ndefaults from a\nlisten x\n    bind :80\n")]))

    assert [(str(one), one.http) for one in found] == [("defaults a", True), ("defaults", True), ("listen x", True)]


def test_files_are_counted_each_for_itself() -> None:
    found = haproxy.sections(
        Document([("a.cfg", "defaults\n    mode http\n"), ("b.cfg", "\nlisten x\n    bind :80\n")])
    )

    assert [(str(one), one.where) for one in found] == [("defaults", "a.cfg:1"), ("listen x", "b.cfg:2")]
    assert bad(haproxy.judge(found, frozenset()))[0] == f"warning idle-close: b.cfg:2: {IDLE.format('listen x')}"


@given(st.text(alphabet=st.sampled_from("abc \n\t#'\"\r\0globalistentimeoutdefaultsfrom1"), max_size=200))
def test_any_text_is_read_as_some_sections(text: str) -> None:
    found = haproxy.sections(Document([("a", text)]))

    assert told([*haproxy.reloads_judge(found, "a", master=False), *haproxy.judge(found, frozenset())])


@pytest.mark.parametrize(
    ("text", "time"),
    [("10", 10), ("10us", 0.01), ("10ms", 10), ("2s", 2000), ("1m", 60000), ("1h", 3600000), ("1d", 86400000), ("x", None), ("1w", None), ("", None)],
)  # fmt: skip
def test_a_time_is_in_milliseconds_unless_it_says(text: str, time: float | None) -> None:
    assert haproxy.milliseconds(text) == time


# --- what HAProxy says ----------------------------------------------------------------------------------------------

REFUSED = """\
[NOTICE]   (13092) : haproxy version is 2.6.12-1+deb12u4
[WARNING]  (13092) : config : missing timeouts for proxy 'b'.
   | While not properly invalid, you will certainly encounter various problems
[ALERT]    (13092) : config : parsing [h.cfg:12] : unknown proxy mode 'tpc'.
[ALERT]    (13092) : config : parsing [h.cfg:13] : unknown keyword 'foo' in 'listen' section
[ALERT]    (13092) : config : Error(s) found in configuration file : h.cfg
[ALERT]    (13092) : config : Fatal errors found in configuration.
"""
FAST = "ok time-limit: `haproxy -c` keeps well within 30 s"


def accepted(words: str, seconds: float = 0.1) -> Checked:
    """A haproxy -c that ended with 0."""
    return Checked(good=True, words=words, seconds=seconds, limit=30)


def refused(words: str) -> Checked:
    """One that did not."""
    return Checked(good=False, words=words, seconds=0.1, limit=30)


MEND = "until it is mended no node gets in or out"


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        (accepted("Configuration file is valid"), ["ok haproxy-cfg: h.cfg: accepted by `haproxy -c`, without a warning", FAST]),
        (
            refused(REFUSED),
            [
                f"error haproxy-cfg: h.cfg:12: unknown proxy mode 'tpc'.: {MEND}",
                f"error haproxy-cfg: h.cfg:13: unknown keyword 'foo' in 'listen' section: {MEND}",
                "warning haproxy-cfg: h.cfg: missing timeouts for proxy 'b'.: HAProxy's own warning",
                FAST,
            ],
        ),
        (refused("[ALERT] 12 (3) : config : Fatal errors found in configuration."), [f"error haproxy-cfg: h.cfg: [ALERT] 12 (3) : config : Fatal errors found in configuration.: {MEND}", FAST]),
        (refused("[ALERT]    (3) : config : Fatal errors found in configuration."), [f"error haproxy-cfg: h.cfg: Fatal errors found in configuration.: {MEND}", FAST]),
        (refused("killed\nagain"), [f"error haproxy-cfg: h.cfg: killed: {MEND}", FAST]),
        (refused(""), [f"error haproxy-cfg: h.cfg: refused without a word: {MEND}", FAST]),
        (refused("[ALERT]    (3) : \x1b[2J\r evil"), [f"error haproxy-cfg: h.cfg: ?[2J? evil: {MEND}", FAST]),
        (accepted("", 15), ["ok haproxy-cfg: h.cfg: accepted by `haproxy -c`, without a warning", FAST]),
        (
            accepted("", 16),
            ["ok haproxy-cfg: h.cfg: accepted by `haproxy -c`, without a warning", "warning time-limit: `haproxy -c` took 16.0 s, `haproxy.timeout` in roles.yml is 30 s: make it four times as long as the check takes"],
        ),
    ],
)  # fmt: skip
def test_haproxys_words_are_told_with_their_place(result: Checked, lines: list[str]) -> None:
    assert told(haproxy.checked(result, "h.cfg")) == lines


def test_of_many_complaints_ten_are_told() -> None:
    words = "".join(f"[WARNING]  (1) : config : number {number}\n" for number in range(12))

    lines = told(haproxy.checked(accepted(words), "h.cfg"))

    assert len(lines) == 12
    assert lines[10] == "warning haproxy-cfg: h.cfg: 2 more complaints of HAProxy: see `haproxy -c`"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "ok haproxy: HAProxy 2.6.12-1+deb12u4"),
        ("HAProxy version 2.8.25 2026", "ok haproxy: HAProxy 2.8.25"),
        ("HAProxy version 3.0.1-1 2026", "ok haproxy: HAProxy 3.0.1-1"),
        ("HAProxy version 3.1.5 2026", "ok haproxy: HAProxy 3.1.5 (tested are 2.6, 2.8, 3.0 and 3.2)"),
        ("HAProxy version 3.2.26-1 2026", "ok haproxy: HAProxy 3.2.26-1"),
        ("HAProxy version 3.3-dev5-a1b2c3 2026", "warning haproxy: HAProxy 3.3-dev5-a1b2c3 is newer than all that were tested: use 3.2, or try changes on a test system first"),
        ("HAProxy version 4.0.0 2027", "warning haproxy: HAProxy 4.0.0 is newer than all that were tested: use 3.2, or try changes on a test system first"),
        ("HAProxy version 2.10.0 2027", "ok haproxy: HAProxy 2.10.0 (tested are 2.6, 2.8, 3.0 and 3.2)"),
        ("HA-Proxy version 2.2.9-2 2021/05/15", "warning haproxy: HAProxy 2.2.9-2 is older than all that were tested: use 2.6 or newer"),
        ("not haproxy\nat all", "warning haproxy: haproxy -v: tells no version: 'not haproxy': install HAProxy"),
    ],
)  # fmt: skip
def test_the_version_is_told(words: str, line: str) -> None:
    assert told([haproxy.version(words)]) == [line]


# --- who may write --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owned", "lines"),
    [
        (Owned("/f", 0o100640, 0, 0), ["ok permissions: only root writes what lbagent believes (1 path)"]),
        (Owned("/f", 0o100640, 1000, 5), ["ok permissions: only root writes what lbagent believes (1 path)"]),
        (Owned("/f", 0o100660, 0, 0), ["ok permissions: only root writes what lbagent believes (1 path)"]),
        (Owned("/f", 0o100660, 0, 5), ["warning permissions: /f: group 5 can write it (mode 0660): chmod g-w"]),
        (Owned("/d", 0o042770, 0, 5), ["warning permissions: /d: group 5 can write it (mode 2770): chmod g-w"]),
        (Owned("/d", 0o043770, 0, 5), ["ok permissions: only root writes what lbagent believes (1 path)"]),
        (Owned("/f", 0o101660, 0, 5), ["warning permissions: /f: group 5 can write it (mode 1660): chmod g-w"]),
        (Owned("/f", 0o100644, 7, 0), ["warning permissions: /f: belongs to user 7: chown root"]),
        (Owned("/d", 0o041777, 0, 0), ["error permissions: /d: every user of this host can write it (mode 1777): chmod o-w"]),
        (
            Owned("/f", 0o100666, 7, 7),
            [
                "error permissions: /f: every user of this host can write it (mode 0666): chmod o-w",
                "warning permissions: /f: group 7 can write it (mode 0666): chmod g-w",
                "warning permissions: /f: belongs to user 7: chown root",
            ],
        ),
    ],
)  # fmt: skip
def test_who_else_may_write_is_told(owned: Owned, lines: list[str]) -> None:
    assert told(files.judge([owned], 1000)) == lines


def test_a_disk_that_is_nearly_full_is_told() -> None:
    assert files.disk("/var", 16 * 1024 * 1024) is None
    found = files.disk("/var", 16 * 1024 * 1024 - 1)

    assert found is not None
    assert told([found]) == ["warning disk: /var: 16383 KiB are free: make room: what cannot be stored is lost"]


NEARLY = [
    ("#additional-lb-iis-server", "lb-iis"),
    ("# additional-lb-iis-server # mine", "lb-iis"),
    ("# ADDITIONAL-LB-IIS-SERVER", "lb-iis"),
    ("#\tadditional_lb-iis-server", "lb-iis"),
    ("# additional-monitor-ii-server x", "monitor-iis"),
]


@pytest.mark.parametrize(("text", "meant"), NEARLY)
def test_what_is_nearly_a_marker_is_told_with_the_one_that_is_meant(text: str, meant: str) -> None:
    roles = reading("services: {iis: {port: 80}}\nroles: {web: {lb: [iis], monitor: [iis]}}\n")
    found = [one.words for one in markers.judge(Document([("a.cfg", f"listen l\n    {text}\n")]), roles)]

    fix = f"write '# additional-{meant}-server', and nothing else in that line"
    assert f"marker-nearly: a.cfg:2: {text!r} is not a marker, though nearly: {fix}" in found


def test_the_nearest_marker_is_one_of_the_same_section() -> None:
    roles = reading("services: {iis: {port: 80}, is: {port: 81}}\nroles: {web: {lb: [is], monitor: [iis]}}\n")
    text = "listen l\n    # additional-monitor-is-server\n"
    found = [one.words for one in markers.judge(Document([("a.cfg", text)]), roles) if one.kind == "marker-unknown"]

    assert [one.endswith("(section monitor, service iis) is the nearest that is known") for one in found] == [True]


@pytest.mark.parametrize(("second", "told"), [("a", 1), ("b", 0)])
def test_two_servers_with_one_cookie_are_told(second: str, told: int) -> None:
    lines = (
        f"    server web01.{one} 10.0.0.1:8{at} cookie {c} # lbagent role=web\n"
        for at, (one, c) in enumerate((("x", "a"), ("y", second)), 1)
    )
    found = [one.words for one in markers.cookies(Document([("a.cfg", f"listen l\n{''.join(lines)}")]))]

    assert len(found) == told
    assert all(
        one.startswith("cookie: a.cfg:1: web01.x and web01.y in listen l have the same cookie 'a'") for one in found
    )
