"""The difference between two texts gives the runtime API commands, or the reason for a reload."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.haproxy import config
from lbagent.haproxy.config import Document, Key
from lbagent.haproxy.runtime import capabilities, session, state
from lbagent.haproxy.runtime.capabilities import Capabilities, NeedsReload, find_capabilities, find_inherited
from lbagent.haproxy.runtime.servers import Join, KnownServers, ServerChanges
from lbagent.haproxy.server_line import drain_line
from lbagent.run.rollout import RuntimeChanges
from lbagent.settings import Paths
from lbagent.state.store import Store
from tests.helpers.builders import POISON, dedent

WEB1 = "server web1 10.0.0.1:80 check inter 2s # lbagent role=web"
WEB2 = "server web2 10.0.0.2:80 check inter 2s # lbagent role=web"
POOL = " pool-max-conn -1 pool-purge-delay 5s"


def document(*lines: str, defaults: str = "") -> Document:
    text = dedent(defaults) + "".join(f"{line}\n" for line in ("listen lb", *lines, "    # additional-lb-iis-server"))
    return Document([("haproxy.cfg", text)])


def table(version: str) -> Capabilities:
    found = find_capabilities(version)
    assert found
    return found


def difference(
    text: Document,
    wanted: dict[str, str],
    left: dict[str, str] | None = None,
    *,
    sure: bool = True,
    version: str = "2.6.12-1+deb12u4",
) -> ServerChanges:
    """From the lines of `text`, without those in `left`, to `wanted`; all in `listen lb`."""
    behind = _keyed(left or {})
    lines = {key: line for key, line in text.managed_servers.items() if key not in behind}
    return ServerChanges(text, KnownServers(lines, behind, sure), _keyed(wanted), table(version))


def _keyed(lines: dict[str, str]) -> dict[Key, str]:
    return {("lb", name): line for name, line in lines.items()}


def commands(text: Document, line: str = WEB1, version: str = "2.6") -> list[str]:
    """What makes web1, in a proxy where it is not."""
    found = difference(text, {"web1": line}, version=version)
    assert found.needs_reload == {}
    return [command for join in found.joins for command in join.commands] + found.dynamic_cookies


def reason(text: Document, line: str = WEB1, version: str = "2.6") -> str:
    """Why web1 takes a reload."""
    found = difference(text, {"web1": line}, version=version)
    assert found.joins == []
    return found.needs_reload["lb", "web1"]


def test_an_added_server_equals_one_of_the_file() -> None:
    assert commands(document()) == [
        f"add server lb/web1 10.0.0.1:80{POOL} check inter 2s",
        "enable health lb/web1",
    ]


def test_an_ipv6_address_has_brackets_in_add_server_and_none_in_set_server_addr() -> None:
    line = WEB1.replace("10.0.0.1", "[2001:db8::1]")

    [join] = difference(document(f"    {line}"), {"web1": line.replace("::1]:80", "::2]:81")}).joins

    assert commands(document(), line)[0] == f"add server lb/web1 [2001:db8::1]:80{POOL} check inter 2s"
    assert join.commands[0] == "set server lb/web1 addr 2001:db8::2 port 81"
    assert join.endpoint == ("2001:db8::2", 81)


def test_without_check_no_result_is_awaited() -> None:
    [join] = difference(document(), {"web1": "server web1 10.0.0.1:80 weight 5 # lbagent role=web"}).joins

    assert join.commands == (f"add server lb/web1 10.0.0.1:80{POOL} weight 5",)
    assert (join.endpoint, join.check_wait) == (None, None)


def test_pool_keywords_of_the_line_are_kept() -> None:
    line = WEB1.replace("check", "check pool-max-conn 7 pool-purge-delay 1s")

    assert commands(document(), line)[0] == (
        "add server lb/web1 10.0.0.1:80 pool-max-conn 7 pool-purge-delay 1s check inter 2s"
    )


@pytest.mark.parametrize(
    ("defaults", "lines", "expected"),
    [
        ("defaults\n    default-server inter 9s weight 5\n", (), "inter 2s weight 5 check"),
        ("defaults\n    default-server fall 7\n", ("    default-server rise 4",), "fall 7 rise 4 check inter 2s"),
        ("defaults a\n    default-server fall 7\ndefaults\n    timeout connect 1s\n", (), "check inter 2s"),
        (
            "defaults a\n    default-server fall 7\ndefaults b from a\n    default-server rise 2\n",
            (),
            "fall 7 rise 2 check inter 2s",
        ),
        ("defaults\n    default-server check enabled\n", (), "check inter 2s"),
        (
            "defaults\n    default-server ssl verify none\n",
            (),
            "ssl verify none check inter 2s check-ssl",
        ),
        ("defaults\n    default-server disabled\n", ("    default-server enabled # back",), "check inter 2s"),
    ],
)
def test_default_server_keywords_are_sent_as_a_dynamic_server_does_not_inherit_them(
    defaults: str, lines: tuple[str, ...], expected: str
) -> None:
    assert commands(document(*lines, defaults=defaults))[0] == f"add server lb/web1 10.0.0.1:80{POOL} {expected}"


def test_a_proxy_inherits_from_its_named_defaults_or_the_last_before_it() -> None:
    text = dedent("""
        defaults one
            default-server fall 7
        defaults two
            option httpchk
        listen a from one
            cookie C insert dynamic
        listen b
            no option httpchk
        listen c
            hash-type consistent
    """)

    found = find_inherited(Document([("haproxy.cfg", text)]))

    assert [(one.default_server, one.cookie, one.hash_type, sorted(one.check_options)) for one in found.values()] == [
        (("fall", "7"), ("C", "insert", "dynamic"), (), []),
        ((), (), (), []),
        ((), (), ("consistent",), ["httpchk"]),
    ]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (("    balance source",), "`balance source` does not support dynamic servers"),
        (("    balance static-rr",), "`balance static-rr` does not support dynamic servers"),
        (("    balance hdr(host)",), "`balance hdr` does not support dynamic servers"),
        (("    balance first",), "`balance first` needs an `id` to place a server as a reload does"),
        (("    balance random",), "`balance random` needs an `id` to place a server as a reload does"),
        (("    balance uri", "    hash-type map-based"), "`balance uri` does not support dynamic servers"),
        (("    mode log",), "`mode log` does not support dynamic servers"),
        (("    dispatch 10.0.0.1:1",), "`dispatch` does not support dynamic servers"),
        (
            ("    option transparent", "    dispatch 10.0.0.1:1"),
            "`dispatch` does not support dynamic servers",
        ),
        (
            ("    balance uri", "    hash-type consistent"),
            "`balance uri` needs an `id` to place a server as a reload does",
        ),
        (("    cookie C insert",), "`cookie` without `dynamic` gives no cookie to dynamic servers"),
        (("    default-server cookie x",), "`cookie` cannot be set through the runtime API"),
        (("    default-server no-ssl",), "`no-ssl` cannot be set through the runtime API"),
        (("    default-server slowstart 9s",), "`slowstart` cannot be set through the runtime API"),
        (("    default-server proto h2",), "`proto` cannot be set through the runtime API"),
        (("    default-server ssl alpn h2",), "`alpn` cannot be set through the runtime API"),
        (("    default-server ws h1",), "`ws` cannot be set through the runtime API"),
        (
            ("    default-server send-proxy-v2-ssl no-send-proxy-v2",),
            "`no-send-proxy-v2` cancels a part of other keywords",
        ),
        (
            ("    option external-check", "    external-check command /bin/true"),
            "`option external-check` does not support checks of dynamic servers",
        ),
        (("    default-server resolvers r",), "`resolvers` cannot be set through the runtime API"),
        (("    default-server agent-check agent-port 1",), "`agent-check` cannot be set through the runtime API"),
        (("    default-server disabled",), "`disabled` cannot be set through the runtime API"),
        (
            ("    default-server weight ${W}",),
            "`weight ${W}` contains characters that the stats socket reads differently",
        ),
        (
            ("    .if feature(x)", "    default-server weight 3", "    .endif"),
            "only HAProxy knows the result of haproxy.cfg:3",
        ),
        (
            ("    # additional-lb-x-server", "    default-server weight 3"),
            "`default-server weight 3` is below a marker",
        ),
    ],
)
def test_changes_that_the_runtime_api_cannot_make_need_a_reload(lines: tuple[str, ...], why: str) -> None:
    assert reason(document(*lines)) == why


@pytest.mark.parametrize("bad", [";show info", "a;b", "x\\", "'q'", '"q"', "$HOME", "{x}", "a`b", "<<"])
def test_no_word_can_inject_another_command(bad: str) -> None:
    assert reason(document(), WEB1.replace("inter 2s", f"inter {bad}")).startswith("`inter ")
    assert reason(document(), WEB1.replace("check", bad)).endswith("cannot be set through the runtime API")


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["check", "inter", "2s", "weight", "no-check", "ssl", "proxy-v2-options", *POISON]),
            st.text(),
        )
    )
)
def test_any_words_give_keywords_or_need_a_reload(words: list[str]) -> None:
    try:
        said = capabilities.format_keywords(capabilities.resolve_keywords(words, table("3.2")), table("3.2"))
    except NeedsReload:
        return
    assert set(said) & set(";\n\r\\\"'$") == set()


@pytest.mark.parametrize("balance", ["source", "uri", "url_param u", "hdr(host)", "rdp-cookie(x)", "hash x"])
def test_a_consistent_hash_accepts_servers_with_an_id(balance: str) -> None:
    text = document(f"    balance {balance}", "    hash-type consistent sdbm")

    assert commands(text, WEB1.replace("check", "check id 77"))[0] == (
        f"add server lb/web1 10.0.0.1:80{POOL} check id 77 inter 2s"
    )


@pytest.mark.parametrize("line", ["balance roundrobin", "balance leastconn", "mode http", "mode tcp", "cookie C"])
def test_a_proxy_without_a_hash_accepts_any_server(line: str) -> None:
    assert commands(document(f"    {line}"), version="3.0")[0] == f"add server lb/web1 10.0.0.1:80{POOL} check inter 2s"


@pytest.mark.parametrize("balance", ["random", "first"])
def test_servers_with_an_id_are_placed_as_after_a_reload(balance: str) -> None:
    line = WEB1.replace("check", "id 77")

    assert (
        commands(document(f"    balance {balance}"), line)[0] == f"add server lb/web1 10.0.0.1:80{POOL} id 77 inter 2s"
    )


def test_added_servers_get_dynamic_cookies() -> None:
    assert commands(document("    cookie C insert indirect nocache dynamic"))[2:] == [
        "enable dynamic-cookie backend lb"
    ]


def test_an_unchanged_server_needs_no_command() -> None:
    found = difference(document(f"    {WEB1}", f"    {WEB2}"), {"web2": WEB2})

    assert (found.joins, found.needs_reload) == ([], {})


def test_another_role_alone_needs_no_command() -> None:
    assert difference(document(f"    {WEB1}"), {"web1": WEB1.replace("role=web", "role=app")}).joins == []


@pytest.mark.parametrize("balance", ["roundrobin", "source", "static-rr"])
@pytest.mark.parametrize("cookie", ["", "    cookie C insert"])
def test_a_server_left_in_maintenance_is_reused_with_any_balance(balance: str, cookie: str) -> None:
    text = document(f"    balance {balance}", cookie)

    [join] = difference(text, {"web1": WEB1}, left={"web1": WEB1}).joins

    assert join.commands == ("set server lb/web1 addr 10.0.0.1 port 80", "enable health lb/web1")


def test_a_server_left_in_maintenance_with_other_options_needs_a_reload() -> None:
    found = difference(document(), {"web1": WEB1}, left={"web1": WEB1.replace("inter 2s", "inter 3s")})

    assert found.needs_reload == {("lb", "web1"): "lb/web1 has other options in HAProxy"}


def test_a_server_left_in_maintenance_with_an_unknown_line_needs_a_reload() -> None:
    bare = "server web1 10.0.0.1:80 # lbagent role=web"

    found = difference(document(), {"web1": bare}, left={"web1": ""})

    assert found.needs_reload == {("lb", "web1"): "lb/web1 has other options in HAProxy"}


def test_other_options_of_a_present_server_need_a_reload() -> None:
    found = difference(document(f"    {WEB1}"), {"web1": WEB1.replace("inter 2s", "inter 3s")})

    assert found.needs_reload == {("lb", "web1"): "lb/web1 has other options in HAProxy"}


def test_while_the_servers_of_haproxy_are_unknown_none_is_added() -> None:
    found = difference(document(f"    {WEB1}"), {"web1": WEB1, "web2": WEB2}, sure=False)

    assert found.joins == []
    assert found.needs_reload == {("lb", "web2"): "HAProxy may not run the servers of haproxy.cfg"}


@pytest.mark.parametrize(
    ("lines", "options", "due"),
    [
        ((), "check inter 1s", None),
        (("    option httpchk",), "check inter 1s", 1.0),
        (("    option httpchk",), "check inter 60s", None),
        (("    option httpchk",), "check inter 60s fastinter 500ms", 0.5),
        (("    option httpchk",), "check inter 1500", 1.5),
        (("    option httpchk",), "check", 2.0),
        (("    option httpchk",), "check inter 2001ms", None),
        ((), "check inter 1s check-ssl verify none", 1.0),
        ((), "check inter 1s ssl verify none", 1.0),
    ],
)
def test_a_check_result_is_awaited_where_it_is_more_than_a_connection_and_soon(
    lines: tuple[str, ...], options: str, due: float | None
) -> None:
    [join] = difference(document(*lines), {"web1": f"server web1 10.0.0.1:80 {options} # lbagent role=web"}).joins

    assert join.check_wait == due


def test_the_check_endpoint_follows_port_and_addr() -> None:
    [join] = difference(document(), {"web1": WEB1.replace("check", "check port 8080 addr 10.9.9.9")}).joins

    assert join.endpoint == ("10.9.9.9", 8080)


def test_the_changes_of_a_plan_are_parsed() -> None:
    text = document(f"    {WEB1}")
    added = (f"listen lb: {WEB2}", "listen lb: # lbagent paused web1 10.0.0.1 role=web")

    assert config.predict_servers(text, text.texts, (added, (f"listen lb: {WEB1}",))) == {("lb", "web2"): WEB2}


@pytest.mark.parametrize(
    "odd",
    [
        "    server a;quit 10.0.0.9:80 # lbagent role=web",
        "    server x/y 10.0.0.9:80 # lbagent role=web",
        "    server # lbagent role=web",
    ],
)
def test_an_invalid_server_name_is_never_sent(odd: str) -> None:
    assert document(odd, f"    {WEB2}").managed_servers == {("lb", "web2"): WEB2}


@pytest.mark.parametrize("section", ["defaults", "backend", "listen l;b", "frontend lb"])
def test_lines_where_no_server_can_be_are_ignored(section: str) -> None:
    text = Document([("haproxy.cfg", f"{section}\n    {WEB1}\n    # additional-lb-iis-server\n")])

    after = config.predict_servers(text, text.texts, ((f"{section}: {WEB2}",), ()))

    name = section.partition(" ")[2]
    key = name, "web2"
    found = ServerChanges(text, KnownServers({}, {}, sure=True), {key: after[key]}, table("3.0"))
    assert found.needs_reload == {key: f"proxy {name!r} cannot be named on the stats socket"}
    assert found.list_keywords(key, WEB2) == ["check", "inter", "2s"]


@pytest.mark.parametrize("endpoint", ["host:80", "1.2.3:80", "10.0.0.1;quit:80", "10.0.0.1:0"])
def test_a_server_without_an_address_is_never_sent(endpoint: str) -> None:
    line = f"server web1 {endpoint} check # lbagent role=web"

    assert difference(document(), {"web1": line}, left={"web1": line}).needs_reload == {
        ("lb", "web1"): "its line has no IP address and port"
    }


@pytest.mark.parametrize("endpoint", ["host:80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:8x", ":80", "/run/x", "10.0.0.1:²"])
def test_an_edited_line_is_not_a_difference_of_address(endpoint: str) -> None:
    wanted = {("lb", "web1"): f"server web1 {endpoint} check # lbagent role=web"}

    found = state.find_differences(state.parse_states(ROWS.replace("10.0.0.1 ", "10.9.9.9 ")), wanted, [])

    assert found == {}


ROWS = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state …
2 lb 1 web1 10.0.0.1 2 0 1 1 1 6 3 4 6 0 0 0 - 80 - 0 0 - - 0
2 lb 2 web2 10.0.0.9 2 0 1 1 1 6 3 4 6 0 0 0 - 80 - 0 0 - - 0
2 lb 3 web3 10.0.0.3 0 1 1 1 1 6 3 0 14 0 0 0 - 80 - 0 0 - - 0
2 lb 4 web4 10.0.0.4 0 1 1 1 1 6 3 0 14 0 0 0 - 80 - 0 0 - - 0
2 lb 5 old 10.0.0.5 2 0 1 1 1 6 3 4 6 0 0 0 - 80 - 0 0 - - 0
2 lb 6 agent 10.0.0.6 0 1 1 1 1 6 3 4 6 0 0 0 - 80 - 0 0 - - 0
"""


def test_differences_between_haproxy_and_the_wanted_servers_are_found() -> None:
    names = ("web1", "web2", "web3", "gone", "agent")
    wanted = {("lb", name): f"server {name} 10.0.0.{at}:80 # lbagent role=web" for at, name in enumerate(names, 1)}
    wanted["lb", "agent"] = "server agent 10.0.0.6:80 agent-check # lbagent role=web"

    left = [("lb", "web4"), ("lb", "old")]
    assert state.find_differences(state.parse_states(ROWS), wanted, left, lambda key, _: key == ("lb", "agent")) == {
        ("lb", "web2"): "lb/web2 is at 10.0.0.9 port 80",
        ("lb", "web3"): "lb/web3 is out of balancing",
        ("lb", "gone"): "lb/gone is missing",
        ("lb", "old"): "lb/old still gets traffic",
    }


@pytest.mark.parametrize("answer", ["", "Permission denied", "1\n2 lb 1 web1", "2\n", f"1\n{'x ' * 25}\n"])
def test_an_unexpected_answer_is_not_parsed_as_servers(answer: str) -> None:
    with pytest.raises(ValueError, match=r"unexpected answer|truncated|invalid literal"):
        state.parse_states(answer)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", []),
        ("\n", [""]),
        ("\nNo such server.\n\n\n", ["", "No such server.", ""]),
        ("a\nb\n\nc\n\n", ["a\nb", "c"]),
        ("New server registered.\n\nhal", ["New server registered."]),
        ("New server registered.\n", []),
    ],
)
def test_answers_are_split_at_empty_lines(said: str, expected: list[str]) -> None:
    assert session.split_answers(said) == expected


# --- what the same line has after a reload without naming it ------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("check ssl verify none", "check ssl verify none check-ssl"),
        ("check send-proxy", "check send-proxy check-send-proxy"),
        ("check send-proxy-v2-ssl", "check send-proxy-v2-ssl check-send-proxy"),
        ("check ssl verify none send-proxy-v2", "check ssl verify none send-proxy-v2 check-ssl check-send-proxy"),
        ("check ssl verify none port 81", "check ssl verify none port 81"),
        ("check ssl verify none addr 10.9.9.9", "check ssl verify none addr 10.9.9.9"),
        ("check ssl verify none no-check-ssl", "check ssl verify none"),
        ("check no-check-ssl ssl verify none check-ssl", "check ssl verify none check-ssl"),
        ("ssl verify none", "ssl verify none"),
        ("send-proxy no-send-proxy check", "check"),
    ],
)
@pytest.mark.parametrize("version", ["2.6", "2.8", "3.0", "3.2"])
def test_checks_use_tls_and_proxy_protocol_as_the_traffic_does(options: str, expected: str, version: str) -> None:
    line = f"server web1 10.0.0.1:80 {options} # lbagent role=web"

    assert commands(document(), line, version)[0] == f"add server lb/web1 10.0.0.1:80{POOL} {expected}"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("observe layer7", "error-limit 10 on-error fail-check pool-max-conn -1 pool-purge-delay 5s observe layer7"),
        (
            "observe layer7 error-limit 3",
            "error-limit 3 on-error fail-check pool-max-conn -1 pool-purge-delay 5s observe layer7",
        ),
    ],
)
def test_observe_gets_the_limits_that_2_6_lacks(options: str, expected: str) -> None:
    line = f"server web1 10.0.0.1:80 {options} # lbagent role=web"

    assert commands(document(), line)[0] == f"add server lb/web1 10.0.0.1:80 {expected}"


def test_options_of_the_proxy_header_are_all_kept() -> None:
    text = document("    default-server proxy-v2-options crc32c")
    line = WEB1.replace("check", "check send-proxy-v2 proxy-v2-options unique-id")

    assert commands(text, line)[0] == (
        f"add server lb/web1 10.0.0.1:80{POOL} proxy-v2-options crc32c proxy-v2-options unique-id"
        " check send-proxy-v2 inter 2s check-send-proxy"
    )


@pytest.mark.parametrize(("version", "takes"), [("2.6", False), ("2.8", False), ("3.0", True), ("3.2", True)])
def test_a_cookie_is_sent_where_haproxy_accepts_it(version: str, takes: bool) -> None:  # noqa: FBT001
    text, line = document("    cookie C insert"), WEB1.replace("check", "check cookie web1")

    if takes:
        assert commands(text, line, version)[0] == f"add server lb/web1 10.0.0.1:80{POOL} check cookie web1 inter 2s"
    else:
        assert reason(text, line, version) == "`cookie` cannot be set through the runtime API"


def test_a_server_with_init_state_is_only_enabled() -> None:
    [join] = difference(
        document(), {"web1": WEB1.replace("check", "check init-state fully-down")}, version="3.2.26"
    ).joins

    assert join.commands[1:] == ("enable health lb/web1",)
    assert (join.endpoint, join.check_wait, join.ready) == (None, None, True)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.6.12-1+deb12u4", (2, 6)),
        ("2.7.1", (2, 6)),
        ("2.8.25-5cf5d0683", (2, 8)),
        ("3.0.11-1+deb13u4", (3, 0)),
        ("3.1-dev3", (3, 0)),
        ("3.2.26-1", (3, 2)),
        ("4.0", (3, 2)),
        ("2.4.3", None),
        ("1.8", None),
        ("", None),
        ("x.y", None),
    ],
)
def test_the_table_is_that_of_the_newest_tested_version(version: str, expected: tuple[int, int] | None) -> None:
    found = find_capabilities(version)

    assert (found and found.version) == expected


def test_tables_hold_each_keyword_in_one_place() -> None:
    for one in capabilities.TABLES:
        assert not one.flags & one.values
        assert not one.additive & (one.flags | one.values)
        assert {*one.always, *one.with_observe} <= one.values
        assert ("cookie" in one.values) == one.takes_cookies


# --- changed weights, and servers that stay out -------------------------------------------------------------------


def test_a_new_weight_alone_is_set() -> None:
    heavy, light = (WEB1.replace("check", f"check weight {number}") for number in (5, 3))

    [join] = difference(document(f"    {heavy}"), {"web1": light}).joins

    assert (join.commands, join.ready) == (("set server lb/web1 weight 3",), False)


def test_a_removed_weight_becomes_the_inherited_one() -> None:
    heavy = WEB1.replace("check", "check weight 5")

    [plain] = difference(document(f"    {heavy}"), {"web1": WEB1}).joins
    [inherited_one] = difference(document("    default-server weight 9", f"    {heavy}"), {"web1": WEB1}).joins

    assert plain.commands == ("set server lb/web1 weight 1",)
    assert inherited_one.commands == ("set server lb/web1 weight 9",)


def test_a_paused_node_returns_with_its_new_weight() -> None:
    heavy = WEB1.replace("check", "check weight 5")

    [join] = difference(document(), {"web1": heavy}, left={"web1": WEB1}).joins

    assert join.commands == (
        "set server lb/web1 weight 5",
        "set server lb/web1 addr 10.0.0.1 port 80",
        "enable health lb/web1",
    )
    assert join.ready


@pytest.mark.parametrize("balance", ["static-rr", "source"])
def test_a_new_weight_needs_a_reload_where_weights_are_fixed(balance: str) -> None:
    text = document(f"    balance {balance}", f"    {WEB1}")

    found = difference(text, {"web1": WEB1.replace("check", "check weight 5")})

    assert found.needs_reload == {("lb", "web1"): f"`balance {balance}` does not allow a change of weight"}


def test_a_server_that_haproxy_cfg_disables_stays_out_when_its_node_returns() -> None:
    text = document("    default-server disabled")

    [same] = difference(text, {"web1": WEB1}, left={"web1": WEB1}).joins
    [moved] = difference(text, {"web1": WEB1.replace("0.1:80", "0.2:80")}, left={"web1": WEB1}).joins

    assert (same.commands, same.ready) == ((), False)
    assert (moved.commands, moved.ready) == (("set server lb/web1 addr 10.0.0.2 port 80",), False)


def test_a_weight_that_is_not_a_number_needs_a_reload() -> None:
    found = difference(document(f"    {WEB1}"), {"web1": WEB1.replace("check", "check weight 5%")})

    assert found.needs_reload == {("lb", "web1"): "`weight 5%` is not a number"}


def test_a_server_with_an_agent_check_keeps_its_address_and_may_change_its_port() -> None:
    line = WEB1.replace("check", "agent-check agent-port 9")
    text = document(f"    {line}")

    elsewhere = difference(text, {"web1": line.replace("10.0.0.1:80", "10.0.0.2:80")})
    [join] = difference(text, {"web1": line.replace("10.0.0.1:80", "10.0.0.1:81")}).joins

    assert elsewhere.needs_reload == {("lb", "web1"): "its agent check keeps the old address"}
    assert join.commands == ("set server lb/web1 addr 10.0.0.1 port 81",)
    assert (join.endpoint, join.check_wait, join.ready) == (None, None, True)


def test_a_server_that_drains_only_becomes_ready_when_its_node_is_resumed() -> None:
    text, key = document(), ("lb", "web1")
    drained = drain_line(WEB1)

    def resume(draining: frozenset[Key]) -> list[Join]:
        known = KnownServers({key: drained}, {}, sure=True, draining=draining)
        return ServerChanges(text, known, {key: WEB1}, table("3.0")).joins

    assert resume(frozenset((key,))) == [Join(key, WEB1, ("set server lb/web1 weight 1",))]
    assert resume(frozenset()) == [
        Join(
            key,
            WEB1,
            ("set server lb/web1 weight 1", "set server lb/web1 addr 10.0.0.1 port 80", "enable health lb/web1"),
            ("10.0.0.1", 80),
        )
    ]


@pytest.mark.parametrize(
    ("line", "expected", "without_line"),
    [
        ("", True, True),
        ("    balance source", False, False),
        ("    balance first", False, True),
        ("    default-server slowstart 9s", False, True),
    ],
)
def test_only_a_server_that_can_be_added_again_may_be_deleted(line: str, expected: bool, without_line: bool) -> None:  # noqa: FBT001
    found = difference(document(line), {}, version="3.0")

    assert found.can_return(("lb", "web1"), WEB1) is expected
    assert found.can_return(("lb", "web1"), "") is without_line


@pytest.mark.parametrize(("count", "expected"), [(99, False), (100, True)])
def test_a_hundred_servers_left_in_maintenance_are_cleared_by_a_reload(
    count: int,
    expected: bool,  # noqa: FBT001  # a case
    tmp_path: Path,
) -> None:
    left, worker = {("lb", f"web{number}"): WEB1 for number in range(count)}, session.Worker(1, 2)
    talk = session.Session("/socket", worker, 1000)

    changes = RuntimeChanges(Store(Paths(str(tmp_path))), worker, talk, table("2.6"), left, in_sync=True)

    assert changes.has_too_many_in_maintenance is expected


@pytest.mark.parametrize(
    ("defaults", "options", "expected"),
    [
        ("", "check", False),
        ("", "check disabled", True),
        ("", "disabled enabled", False),
        ("", "enabled disabled", True),
        ("    default-server disabled", "check", True),
        ("    default-server disabled", "enabled", False),
        ("    default-server agent-check agent-port 9", "check", True),
        ("", "agent-check no-agent-check", False),
    ],
)
def test_a_server_may_be_out_of_balancing_where_haproxy_cfg_or_an_agent_disables_it(
    defaults: str,
    options: str,
    expected: bool,  # noqa: FBT001  # a case
) -> None:
    line = f"server web1 10.0.0.1:80 {options} # lbagent role=web"
    text = document(*([defaults] if defaults else []), f"    {line}")
    changes = difference(text, {"web1": line})

    assert changes.may_be_disabled(("lb", "web1"), line) is expected
