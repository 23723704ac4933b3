"""The managed lines of haproxy.cfg: their nodes, the services that only a node serves, and the order of names."""

# ruff: noqa: E501  # a case of a table is on one line

from __future__ import annotations

import pytest

from lbagent.haproxy.config import Document
from lbagent.haproxy.runtime.state import ServerStats
from lbagent.membership.model import ALIVE, FAILED, LEFT, LOST, Member, Quarantine
from lbagent.planning.desired import DesiredServer, DesiredServers, list_serving_ports
from lbagent.planning.lines import (
    ProxyLines,
    ServingServers,
    count_servers,
    find_unserved,
    format_last_server,
    list_managed_lines,
    replace_address,
    sort_by_name,
)
from lbagent.roles.model import Pair
from tests.helpers.builders import NOW, dedent, member, membership_of, parse_roles_text, paused_member, plan_for

ROLES = parse_roles_text("""
    services:
      iis: {port: 80}
      api: {port: "{tag:port}"}
    roles:
      web: {lb: [iis]}
      app: {lb: [iis, api], on_pause: drain}
      idle: {lb: [none]}
""")

CFG = dedent("""
    backend farm
        server web1 10.0.0.1:80 check # lbagent role=web
        server web2 10.0.0.2:80 check # lbagent role=web
        # additional-lb-iis-server
""")
WEB = (member("web1"), member("web2", "10.0.0.2"))


def with_lines(*lines: str) -> str:
    """haproxy.cfg with more lines above the marker."""
    return CFG.replace("    # additional", "".join(f"    {line}\n" for line in lines) + "    # additional")


def unserved(
    text: str, *members: Member, states: dict[str, str | None] | None = None, if_paused: bool = True
) -> list[str]:
    """Return the services that no other server than web1 serves; `states` are HAProxy's, by server."""
    found = {("farm", name): ServerStats(state, None, 1) for name, state in (states or {}).items()}
    now = ServingServers(Document([("haproxy.cfg", text)]), found)
    return find_unserved(now, ROLES, membership_of(*members), ["web1"], if_paused=if_paused)


@pytest.mark.parametrize(
    ("text", "members", "services"),
    [
        (CFG, WEB, []),
        (CFG, (WEB[0],), []),
        (CFG, (WEB[0], WEB[1]._replace(status=FAILED)), ["iis"]),
        (CFG, (WEB[0], WEB[1]._replace(status=LEFT)), ["iis"]),
        (CFG, (WEB[0], paused_member(WEB[1])), ["iis"]),
        (CFG, (paused_member(WEB[0]), paused_member(WEB[1])), []),
        (CFG, (WEB[0]._replace(status=FAILED), paused_member(WEB[1])), []),
        (CFG.replace("server web2 10.0.0.2:80 check # lbagent", "# lbagent paused web2 10.0.0.2"), WEB, ["iis"]),
        (CFG.replace("check # lbagent role=web\n    # add", "weight 0 # lbagent paused role=web\n    # add"), WEB, ["iis"]),
        (with_lines("server mine 10.0.0.9:80"), (WEB[0], paused_member(WEB[1])), []),
        (with_lines(".if 0", "server mine 10.0.0.9:80", ".endif"), (WEB[0], paused_member(WEB[1])), ["iis"]),
        (with_lines("server mine 10.0.0.9:80 backup"), (WEB[0], paused_member(WEB[1])), ["iis"]),
        (with_lines("server mine 10.0.0.9:80 disabled"), (WEB[0], paused_member(WEB[1])), ["iis"]),
        (with_lines("server mine 10.0.0.9:80 # backup"), (WEB[0], paused_member(WEB[1])), []),
        (with_lines("server-template more 1-2 10.0.0.9:80"), (WEB[0], paused_member(WEB[1])), []),
        (CFG.replace("lb-iis", "lb-other"), (WEB[0], paused_member(WEB[1])), []),
        (CFG.replace("    server web1 10.0.0.1:80 check # lbagent role=web\n", ""), (WEB[0], paused_member(WEB[1])), []),
        (f".if 0\n{CFG}.endif\n", (WEB[0], paused_member(WEB[1])), []),
        (f".if 1\n{CFG}.endif\n", (WEB[0], paused_member(WEB[1])), ["iis"]),
    ],
)  # fmt: skip
def test_without_states_serf_decides_which_server_is_the_last(
    text: str, members: tuple[Member, ...], services: list[str]
) -> None:
    assert unserved(text, *members) == services


@pytest.mark.parametrize(
    ("states", "services"),
    [
        ({"web1": "UP", "web2": "UP"}, []),
        ({"web1": "UP", "web2": "no check"}, []),
        ({"web1": "UP", "web2": "UP 1/2"}, []),
        ({"web1": "UP", "web2": "DOWN"}, ["iis"]),
        ({"web1": "UP", "web2": "DOWN 1/2"}, ["iis"]),
        ({"web1": "UP", "web2": "MAINT (via x)"}, ["iis"]),
        ({"web1": "UP", "web2": "DRAIN"}, ["iis"]),
        ({"web1": "UP", "web2": "NOLB"}, ["iis"]),
        ({"web1": "UP"}, ["iis"]),
        ({"web1": "DOWN", "web2": "DOWN"}, []),
    ],
)
def test_the_states_of_haproxy_decide_which_server_is_the_last(
    states: dict[str, str | None], services: list[str]
) -> None:
    assert unserved(CFG, *WEB, states=states) == services


def test_a_failed_node_whose_server_is_up_counts() -> None:
    members = (WEB[0], WEB[1]._replace(status=FAILED))

    assert unserved(CFG, *members, states={"web1": "UP", "web2": "UP"}) == []
    assert unserved(CFG, *members, states={"web1": "UP", "web2": "no check"}) == ["iis"]


def test_a_node_that_serves_nothing_is_the_last_one_where_this_is_asked() -> None:
    members = (paused_member(WEB[0]), paused_member(WEB[1]))

    assert unserved(CFG, *members, if_paused=False) == ["iis"]
    assert unserved(CFG, WEB[0], WEB[1], if_paused=False) == []


@pytest.mark.parametrize(
    ("services", "note"),
    [
        (["a"], "no other server of a serves"),
        (["a", "b"], "no other server of a and b serves"),
        (["a", "b", "c"], "no other server of a, b and c serves"),
    ],
)
def test_the_note_about_the_last_server_names_its_services(services: list[str], note: str) -> None:
    assert format_last_server(services) == note


def test_the_managed_lines_are_listed_by_marker_also_where_there_is_none() -> None:
    text = CFG + "    server old.api 10.0.0.3:81 # lbagent role=app\nbackend empty\n    # additional-lb-api-server\n"

    assert list_managed_lines(Document([("haproxy.cfg", text)])) == {
        "lb-iis": [
            "server web1 10.0.0.1:80 check # lbagent role=web",
            "server web2 10.0.0.2:80 check # lbagent role=web",
        ],
        "": ["server old.api 10.0.0.3:81 # lbagent role=app"],
        "lb-api": [],
    }


@pytest.mark.parametrize("names", [[], ["web1", "web2", "web10"], ["web10", "web2", "web1", "web2"]])
def test_items_are_sorted_by_name_in_natural_order(names: list[str]) -> None:
    items = list(enumerate(names))

    assert sort_by_name(items, lambda item: item[1]) == sorted(items, key=lambda item: int(item[1][3:]))


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("server web1 10.0.0.1:80 check addr 10.0.0.1:80 # lbagent role=web", "server web1 10.0.0.9:80 check addr 10.0.0.1:80 # lbagent role=web"),
        ("# lbagent paused web1 10.0.0.1 role=web", "# lbagent paused web1 10.0.0.1 role=web"),
    ],
)  # fmt: skip
def test_only_the_address_of_the_server_is_replaced(text: str, after: str) -> None:
    [proxy] = Document([("haproxy.cfg", f"backend farm\n    {text}\n    # additional-lb-iis-server\n")]).proxies

    assert replace_address(proxy.managed[0], "10.0.0.9") == after


@pytest.mark.parametrize(
    ("markers", "known", "name", "node"),
    [
        (["iis"], ["web1"], "web1", "web1"),
        (["iis"], ["web1"], "web1.iis", "web1"),
        (["iis"], ["web1", "web1.iis"], "web1.iis", "web1.iis"),
        (["iis"], [], "web1.iis", "web1.iis"),
        (["iis"], ["web1"], "web1.other", "web1.other"),
        (["iis", "api"], [], "web1.iis", "web1"),
        (["iis", "api"], [], "web1", "web1"),
    ],
)
def test_a_server_may_be_called_after_its_node_and_service(
    markers: list[str], known: list[str], name: str, node: str
) -> None:
    line = f"    server {name} 10.0.0.1:80 # lbagent role=app\n"
    text = "backend farm\n" + line + "".join(f"    # additional-lb-{marker}-server\n" for marker in markers)
    [proxy] = Document([("haproxy.cfg", text)]).proxies

    lines = ProxyLines(proxy, ROLES, ROLES.list_pairs(), {one: member(one) for one in known})

    assert lines.find_node(proxy.managed[0]) == node


@pytest.mark.parametrize(("status", "count"), [(ALIVE, 1), (FAILED, 1), (LOST, 0)])
def test_only_a_present_node_counts_as_quarantined(status: str, count: int) -> None:
    one = member("web9", "10.0.0.9", status=status, quarantine=Quarantine(NOW, "x", "key"))

    counts = count_servers(list_managed_lines(Document([("haproxy.cfg", CFG)])), ROLES, membership_of(*WEB, one))

    assert counts[Pair("lb", "iis")] == {"in": 2, "paused": 0, "failed": 0, "quarantined": count}


def test_drained_servers_and_comments_count_as_paused() -> None:
    lines = {
        "lb-iis": [
            "# lbagent paused web3 10.0.0.3 role=web",
            "server app1 10.0.0.4:80 weight 0 # lbagent paused role=app",
            "server web1 10.0.0.1:80 check # lbagent role=web",
        ]
    }

    counts = count_servers(lines, ROLES, membership_of(*WEB))

    assert counts[Pair("lb", "iis")] == {"in": 1, "paused": 2, "failed": 0, "quarantined": 0}


def test_the_lines_of_another_marker_serve_another_service() -> None:
    text = dedent("""
        backend farm
            server web1.iis 10.0.0.1:80 check # lbagent role=app
            # additional-lb-iis-server
            server web2.api 10.0.0.2:81 check # lbagent role=app
            # additional-lb-api-server
    """)

    assert unserved(text, member("web1", role="app"), member("web2", "10.0.0.2", "app")) == ["iis"]


@pytest.mark.parametrize(("proxy", "services"), [("farm", ["iis"]), ("other", []), (None, ["iis"])])
def test_a_proxy_that_haproxy_may_not_have_counts_where_its_states_show_it(
    proxy: str | None, services: list[str]
) -> None:
    now = ServingServers(
        Document([("haproxy.cfg", f".if defined(LBAGENT_UNKNOWN)\n{CFG}.endif\n")]),
        {(proxy, "web1"): ServerStats("UP", None, 1)} if proxy else {},
    )
    members = WEB if proxy else map(paused_member, WEB)

    assert find_unserved(now, ROLES, membership_of(*members), ["web1"]) == services


# --- desired servers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "options"),
    [
        ("10.0.0.01", 80, "check"),
        ("10.0.0.1", 65536, "check"),
        ("10.0.0.1", 80, "check\nserver evil"),
        ("10.0.0.1", 80, "#"),
    ],
)
def test_a_line_that_is_not_in_haproxy_cfg_yet_is_validated(address: str, port: int, options: str) -> None:
    server = DesiredServer(
        *("web1", ROLES.roles["web"], address, f"{address}:{port}", port, options),
        paused=False,
        failed=False,
        advertised=address,
    )

    with pytest.raises(ValueError):  # noqa: PT011  # each field has its own message
        server.format_line("web1", None, ())


def test_the_address_of_a_node_is_that_of_its_role() -> None:
    roles = parse_roles_text("""
        services: {iis: {port: 80}}
        roles: {web: {lb: [iis], networks: [10.0.0.0/8]}, app: {lb: [iis], address: "{tag:ip}"}}
    """)
    nodes = [
        member("web1"),
        member("web2", "192.168.0.1"),
        member("app1", "10.0.0.3", "app", {"ip": "10.9.9.9"}),
        member("app2", "10.0.0.4", "app"),
        member("old", "10.0.0.1", status=FAILED),
        member("gone", "10.0.0.5", status=LEFT),
    ]
    desired = DesiredServers(roles, membership_of(*nodes))

    assert [desired.find_allowed_address(one.name, one.role) for one in nodes] == [
        "10.0.0.1",
        None,
        "10.9.9.9",
        None,
        None,
        None,
    ]
    assert desired.find_allowed_address("web1", "app") is None
    assert desired.find_allowed_address("web1", "unheard") is None


def test_a_drained_server_keeps_its_line_with_weight_0() -> None:
    desired = DesiredServers(ROLES, membership_of(paused_member(member("app1", role="app", tags={"port": "81"}))))

    [server] = desired.list_servers(Pair("lb", "api"), list).servers

    assert server.format_line("app1.api", None, ()) == (
        "server app1.api 10.0.0.1:81 check inter 2s rise 2 fall 2 weight 0 # lbagent paused role=app"
    )


@pytest.mark.parametrize(
    ("options", "line"), [("cookie {server}", "cookie web1.iis"), ("cookie {name}", "cookie web1")]
)
def test_options_have_the_name_of_the_server_or_of_the_node(options: str, line: str) -> None:
    roles = parse_roles_text(f"""
        services: {{iis: {{port: 80, options: "{options}"}}, api: {{port: 81}}}}
        roles: {{web: {{lb: [iis, api]}}}}
    """)
    text = "backend farm\n    # additional-lb-iis-server\n    # additional-lb-api-server\n"

    after = plan_for(text, roles, membership_of(member("web1"))).after[0]

    assert f"    server web1.iis 10.0.0.1:80 {line} # lbagent role=web\n" in after


@pytest.mark.parametrize(
    ("one", "ports"),
    [
        (member("web1"), {80}),
        (member("app1", role="app", tags={"port": "81"}), {80, 81}),
        (member("app1", role="app"), {80}),
        (member("app1", role="app")._replace(tags=None), {80}),
        (member("both", role="idle,web"), {80}),
        (member("idle", role="idle"), set()),
        (member("none", role=""), set()),
    ],
)
def test_the_ports_of_a_node_are_those_of_its_services(one: Member, ports: set[int]) -> None:
    assert list_serving_ports(ROLES, one) == ports
