"""A node may have several roles in one tag, an address from a tag, and its server name in a template."""

# haproxy.cfg in one string

from __future__ import annotations

from pathlib import Path

import pytest

from lbagent.haproxy.config import Document
from lbagent.membership import model
from lbagent.membership.model import FAILED, Pause
from lbagent.names import TAG_RULE
from lbagent.planning.desired import list_serving_ports
from lbagent.planning.lines import rebuild_membership
from lbagent.roles import loader
from tests.helpers.builders import (
    NOW,
    dedent,
    managed_lines,
    member,
    membership_of,
    parse_roles_text,
    plan_for,
    planned_text,
)
from tests.helpers.load_balancer_files import build_files
from tests.helpers.real_programs import LBAGENT, binaries

ROLES = parse_roles_text(
    """
    services: {iis: {port: 80}, api: {port: 8080, options: "check inter {interval}"}}
    roles:
      web: {lb: [iis], interval: 60s}
      api: {lb: [iis, api], interval: 5s, options: "check inter {interval}"}
    """
)
TEXT = dedent(
    """
    backend web
        # additional-lb-iis-server
    backend api
        # additional-lb-api-server
    """
)


def lines(role: str, **others: str) -> list[str]:
    """The managed lines of web01 with that role tag."""
    return managed_lines(planned_text(TEXT, ROLES, membership_of(member("web01", "10.0.0.1", role, others))))


@pytest.mark.parametrize("role", ["web,api", "web, api", " web ,api,", "web,,api", "web,api,web", "web,unknown,api"])
def test_a_node_with_several_roles_has_the_lines_of_each(role: str) -> None:
    assert lines(role) == [
        "server web01 10.0.0.1:80 check inter 60s rise 2 fall 2 # lbagent role=web",
        "server web01 10.0.0.1:8080 check inter 5s # lbagent role=api",
    ]


def test_where_two_roles_have_a_line_the_first_in_the_tag_is_used() -> None:
    assert lines("api,web") == [
        "server web01 10.0.0.1:80 check inter 5s # lbagent role=api",
        "server web01 10.0.0.1:8080 check inter 5s # lbagent role=api",
    ]


def test_role_names_are_case_sensitive() -> None:
    assert lines("Web,api") == [
        "server web01 10.0.0.1:80 check inter 5s # lbagent role=api",
        "server web01 10.0.0.1:8080 check inter 5s # lbagent role=api",
    ]


def test_a_role_whose_networks_exclude_the_node_leaves_the_line_to_the_next_role() -> None:
    roles = parse_roles_text(
        """
        services: {iis: {port: 80}}
        roles:
          web: {lb: [iis], networks: [192.168.0.0/16]}
          api: {lb: [iis]}
        """
    )

    plan = plan_for(TEXT, roles, membership_of(member("web01", "10.0.0.1", "web,api")))

    assert managed_lines(plan.after[0]) == ["server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=api"]
    assert "web01: no line for role web: 10.0.0.1 is outside the role's networks" in plan.notes


def test_removing_a_role_from_the_tag_removes_only_its_lines() -> None:
    before = planned_text(TEXT, ROLES, membership_of(member("web01", "10.0.0.1", "web,api")))

    plan = plan_for(before, ROLES, membership_of(member("web01", "10.0.0.1", "web")))

    assert plan.blocked == ()
    assert managed_lines(plan.after[0]) == ["server web01 10.0.0.1:80 check inter 60s rise 2 fall 2 # lbagent role=web"]


def test_a_paused_node_has_a_comment_at_each_of_its_markers() -> None:
    paused = member("web01", "10.0.0.1", "web,api", pause=Pause(NOW, "me"))

    text = planned_text(TEXT, ROLES, membership_of(paused))

    assert managed_lines(text) == [
        "# lbagent paused web01 10.0.0.1 role=web",
        "# lbagent paused web01 10.0.0.1 role=api",
    ]
    assert planned_text(text, ROLES, membership_of(paused)) == text
    assert lines("web,api") == managed_lines(planned_text(text, ROLES, membership_of(paused._replace(pause=None))))


def test_all_roles_of_a_node_can_be_rebuilt_from_haproxy_cfg() -> None:
    text = planned_text(TEXT, ROLES, membership_of(member("web01", "10.0.0.1", "web,api")))
    rebuilt = rebuild_membership(Document([("haproxy.cfg", text)]), ROLES, NOW)

    assert rebuilt.members["web01"].role == "web,api"
    assert planned_text(text, ROLES, rebuilt) == text


def test_both_load_balancers_write_the_same_lines_in_any_order_of_events() -> None:
    nodes = [
        member(f"web{at:02}", f"10.0.0.{at}", role) for at, role in enumerate(["web,api", "api,web", "web", "api"])
    ]

    assert planned_text(TEXT, ROLES, membership_of(*nodes)) == planned_text(
        TEXT, ROLES, membership_of(*reversed(nodes))
    )


def test_max_counts_the_nodes_that_have_a_line_through_the_role() -> None:
    roles = parse_roles_text(
        """
        services: {iis: {port: 80}}
        roles: {web: {lb: [iis], max: 1}, api: {lb: [iis], max: 1}}
        """
    )
    nodes = [member("a", "10.0.0.1", "web"), member("b", "10.0.0.2", "api,web"), member("c", "10.0.0.3", "web,api")]

    assert [
        line.split()[1] + line.split()[-1] for line in managed_lines(planned_text(TEXT, roles, membership_of(*nodes)))
    ] == [
        "arole=web",
        "brole=api",
    ]


def test_on_failed_applies_to_the_role_whose_line_it_is() -> None:
    roles = parse_roles_text(
        """
        services: {iis: {port: 80}, api: {port: 8080}}
        roles: {web: {lb: [iis], on_failed: remove}, api: {lb: [api]}}
        """
    )
    nodes = [member(f"web0{at}", f"10.0.0.{at}", "web,api") for at in range(1, 4)]
    text = planned_text(TEXT, roles, membership_of(*nodes))
    failed = membership_of(nodes[0]._replace(status=FAILED), *nodes[1:])

    assert [line.split()[1:3] for line in managed_lines(planned_text(text, roles, failed))] == [
        ["web02", "10.0.0.2:80"],
        ["web03", "10.0.0.3:80"],
        ["web01", "10.0.0.1:8080"],
        ["web02", "10.0.0.2:8080"],
        ["web03", "10.0.0.3:8080"],
    ]


def test_sessions_are_counted_at_the_ports_of_all_roles() -> None:
    assert list_serving_ports(ROLES, member("web01", "10.0.0.1", "web,api")) == {80, 8080}
    assert list_serving_ports(ROLES, member("web01", "10.0.0.1", "web")) == {80}


# --- {server} -----------------------------------------------------------------------------------------------------


def test_the_server_placeholder_is_the_name_in_the_proxy() -> None:
    roles = parse_roles_text(
        """
        services:
          iis: {port: 80, options: "check cookie {server}"}
          api: {port: 81, options: "cookie {server}-{name}"}
        roles: {web: {lb: [iis, api]}}
        """
    )
    one, two = "backend one\n    # additional-lb-iis-server\n", "    # additional-lb-api-server\n"

    assert managed_lines(planned_text(one, roles, membership_of(member("web01")))) == [
        "server web01 10.0.0.1:80 check cookie web01 # lbagent role=web"
    ]
    assert managed_lines(
        planned_text(one + two, roles, membership_of(member("web01"), member("web02", "10.0.0.2")))
    ) == [
        "server web01.iis 10.0.0.1:80 check cookie web01.iis # lbagent role=web",
        "server web02.iis 10.0.0.2:80 check cookie web02.iis # lbagent role=web",
        "server web01.api 10.0.0.1:81 cookie web01.api-web01 # lbagent role=web",
        "server web02.api 10.0.0.2:81 cookie web02.api-web02 # lbagent role=web",
    ]


# --- address ------------------------------------------------------------------------------------------------------

BY_TAG = parse_roles_text(
    """
    services: {iis: {port: 80}}
    roles: {web: {lb: [iis], address: "{tag:ip}", networks: [192.168.0.0/16, "fd00::/8", 127.0.0.0/8]}}
    """
)


def by_tag(tags: dict[str, str], text: str = TEXT) -> tuple[list[str], tuple[str, ...]]:
    """The managed lines of web01 with these tags, and the notes about it."""
    plan = plan_for(text, BY_TAG, membership_of(member("web01", "10.0.0.1", "web", tags)))
    return managed_lines(plan.after[0]), tuple(note for note in plan.notes if "web01" in note)


@pytest.mark.parametrize(
    ("tag", "written"),
    [
        ("192.168.7.5", "192.168.7.5:80"),
        ("fd00::5", "[fd00::5]:80"),
        ("FD00:0:0:0::5", "[fd00::5]:80"),
        ("::ffff:192.168.7.5", "192.168.7.5:80"),
        ("127.0.0.1", "127.0.0.1:80"),
    ],
)
def test_an_address_can_come_from_a_tag(tag: str, written: str) -> None:
    assert by_tag({"ip": tag}) == ([f"server web01 {written} check inter 2s rise 2 fall 2 # lbagent role=web"], ())


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({}, "web01: no line for iis: its tag 'ip' is not set"),
        ({"ip": ""}, "web01: no line for iis: its tag 'ip' is not set"),
        ({"ip": "web01"}, "web01: no line for iis: address 'web01' is not an IP address"),
        ({"ip": "192.168.7"}, "web01: no line for iis: address '192.168.7' is not an IP address"),
        ({"ip": "192.168.7.5:80"}, "web01: no line for iis: address '192.168.7.5:80' is not an IP address"),
        ({"ip": "192.168.07.5"}, "web01: no line for iis: address '192.168.07.5' is not an IP address"),
        (
            {"ip": "192.168.7.5 backup"},
            f"web01: no line for iis: its tag 'ip' is invalid: '192.168.7.5 backup'; use {TAG_RULE}",
        ),
        ({"ip": "10.0.0.1"}, "web01: no line for role web: 10.0.0.1 is outside the role's networks"),
        ({"ip": "0.0.0.0"}, "web01: no line for role web: 0.0.0.0 is an unspecified address"),
        ({"ip": "169.254.0.1"}, "web01: no line for role web: 169.254.0.1 is a link-local address"),
    ],
)
def test_an_address_from_a_tag_follows_the_same_rules_as_serfs(tags: dict[str, str], why: str) -> None:
    assert by_tag(tags) == ([], (why,))


def test_an_invalid_address_tag_keeps_the_line() -> None:
    before = planned_text(TEXT, BY_TAG, membership_of(member("web01", "10.0.0.1", "web", {"ip": "192.168.7.5"})))

    assert by_tag({"ip": "oops"}, before) == (
        ["server web01 192.168.7.5:80 check inter 2s rise 2 fall 2 # lbagent role=web"],
        ("web01: keeps its line in backend web: address 'oops' is not an IP address",),
    )


def test_a_pause_by_serfs_address_applies_to_a_node_with_an_address_tag() -> None:
    nodes = membership_of(
        member("web01", "10.0.0.1", "web", {"ip": "192.168.7.5"}, pause=Pause(NOW, "me")),
        member("old", "10.0.0.1", "web", {"ip": "192.168.7.6"}),
    )

    assert model.find_paused(nodes) == {"web01", "old"}
    assert managed_lines(planned_text(TEXT, BY_TAG, nodes)) == [
        "# lbagent paused old 10.0.0.1 role=web",
        "# lbagent paused web01 10.0.0.1 role=web",
    ]


def test_two_nodes_with_one_address_tag_have_one_line() -> None:
    nodes = membership_of(*(member(f"web0{at}", f"10.0.0.{at}", "web", {"ip": "192.168.7.5"}) for at in (1, 2)))

    assert [line.split()[1] for line in managed_lines(planned_text(TEXT, BY_TAG, nodes))] == ["web01"]


def test_the_default_of_an_address_tag_may_be_an_address() -> None:
    roles = loader.parse_roles(
        b'services: {iis: {port: 80}}\nroles: {web: {lb: [iis], address: "{tag:ip|fd00::1}"}}\n', "roles.yml"
    )

    assert managed_lines(planned_text(TEXT, roles, membership_of(member("web01")))) == [
        "server web01 [fd00::1]:80 check inter 2s rise 2 fall 2 # lbagent role=web"
    ]


# --- through the program, with a real HAProxy ----------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("version", sorted(binaries()))
def test_a_real_haproxy_accepts_the_lines_of_a_node_with_several_roles(tmp_path: Path, version: str) -> None:
    config = (
        "defaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"
        "listen web\n    bind 127.0.0.1:1\n    cookie C insert\n"
        "    # additional-lb-iis-server\n    # additional-lb-api-server\n"
    )
    roles = """
services:
  iis: {port: 80, options: "check cookie {server}"}
  api: {port: 8080, options: "check cookie {server}"}
roles:
  web: {lb: [iis]}
  api: {lb: [api], address: "{tag:ip}", networks: [192.168.0.0/16]}
"""
    stage = build_files(tmp_path, str(LBAGENT), config, roles, str(binaries()[version]))

    joined = stage.handle("member-join", b"web01\t10.0.0.1\tweb,api\trole=web,api,ip=192.168.7.5\n")
    written = stage.managed
    paused = stage.send_event("pause", "WEB01", 5)
    comments = stage.managed
    resumed = stage.send_event("resume", "web01", 6)

    assert [one.status for one in (joined, paused, resumed)] == [0, 0, 0]
    assert written == [
        "server web01.iis 10.0.0.1:80 check cookie web01.iis # lbagent role=web",
        "server web01.api 192.168.7.5:8080 check cookie web01.api # lbagent role=api",
    ]
    assert comments == ["# lbagent paused web01 10.0.0.1 role=web", "# lbagent paused web01 10.0.0.1 role=api"]
    assert stage.managed == written
