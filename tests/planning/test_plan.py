"""A plan gives the right haproxy.cfg for every membership and every text of the operator."""

# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lbagent.errors import Refused
from lbagent.haproxy.config import Document
from lbagent.membership.model import ALIVE, FAILED, LEFT, LOST, UNKNOWN, Member, Membership
from lbagent.outcome import BlockedRemoval
from lbagent.planning.decisions import MissingMarkerNote
from lbagent.planning.lines import rebuild_membership
from lbagent.planning.plan import Plan, PlanOptions, make_plan
from lbagent.planning.proxy import restore_managed_lines
from lbagent.roles.model import Roles
from tests.helpers.builders import (
    MANAGED,
    NOW,
    command_event,
    dedent,
    join_event,
    managed_lines,
    member,
    member_event,
    membership_of,
    nearly_valid,
    parse_roles_text,
    paused_member,
    plan_for,
    planned_text,
    reorder_members,
    unmanaged_lines,
    updated_membership,
)

ROLES = parse_roles_text("""
    services:
      iis: {port: 80}
      web_service-a: {port: 1111, options: "check inter {interval} rise 2 fall 2"}
      mongo: {port: "{tag:port|27017}", options: "check weight {tag:weight|100}"}
    roles:
      web: {lb: [iis], monitor: [none], interval: 60s}
      app: {lb: [iis, web_service-a], interval: 5s}
      db: {data-lb: [mongo], max: 4, networks: [10.0.0.0/8, "2001:db8::/32"]}
      batch: {lb: [iis], on_failed: remove}
      local: {lb: [iis], networks: [127.0.0.0/8, "::1"]}
""")

ONE = dedent("""
    backend farm
        balance roundrobin
        # additional-lb-iis-server
""")
"""One proxy with one marker."""


def line(
    name: str,
    address: str = "10.0.0.1",
    role: str = "web",
    port: int = 80,
    options: str = "check inter 60s rise 2 fall 2",
) -> str:
    """A managed line of the role `web`."""
    return f"server {name} {address}:{port} {options} # lbagent role={role}"


# --- one marker, exact texts ---------------------------------------------------------------------------------------


def test_a_node_that_joins_gets_a_line_above_the_marker() -> None:
    text = planned_text(ONE, ROLES, membership_of(member("web01", "10.0.0.5")))

    assert text == dedent("""
        backend farm
            balance roundrobin
            server web01 10.0.0.5:80 check inter 60s rise 2 fall 2 # lbagent role=web
            # additional-lb-iis-server
    """)


def test_without_members_the_text_is_unchanged() -> None:
    assert planned_text(ONE, ROLES, membership_of()) == ONE


def test_names_are_in_natural_order() -> None:
    names = ["web10", "web9", "web1", "web01", "Web2", "web", "web1a", "10", "9"]

    text = planned_text(ONE, ROLES, membership_of(*(member(name, f"10.0.0.{at}") for at, name in enumerate(names, 1))))

    assert [one.split()[1] for one in managed_lines(text)] == [
        "9",
        "10",
        "Web2",
        "web",
        "web01",
        "web1",
        "web1a",
        "web9",
        "web10",
    ]


def test_roles_at_one_marker_are_sorted_together() -> None:
    members = membership_of(member("c", "10.0.0.3"), member("b", "10.0.0.2", "batch"), member("a", "10.0.0.1", "web"))

    text = planned_text(ONE, ROLES, members)

    assert managed_lines(text) == [
        line("a", "10.0.0.1"),
        line("b", "10.0.0.2", "batch", options="check inter 2s rise 2 fall 2"),
        line("c", "10.0.0.3"),
    ]


def test_a_role_without_an_entry_has_no_lines() -> None:
    assert (
        planned_text(
            ONE, ROLES, membership_of(member("w1", role="Web"), member("w2", role=""), member("w3", role="unheard"))
        )
        == ONE
    )


def test_a_section_of_none_has_no_lines() -> None:
    text = "backend m\n    # additional-monitor-iis-server\n"

    assert planned_text(text, ROLES, membership_of(member("web01"))) == text


@pytest.mark.parametrize("status", [LEFT, UNKNOWN])
def test_an_absent_node_has_no_line(status: str) -> None:
    assert planned_text(ONE, ROLES, membership_of(member("web01", status=status))) == ONE


def test_a_failed_node_keeps_its_line() -> None:
    text = planned_text(ONE, ROLES, membership_of(member("web01", status=FAILED)))

    assert managed_lines(text) == [line("web01")]


def test_a_paused_node_has_a_comment() -> None:
    text = planned_text(
        ONE, ROLES, membership_of(member("web01", "10.0.0.5"), paused_member(member("web02", "10.0.0.6")))
    )

    assert text == dedent("""
        backend farm
            balance roundrobin
            server web01 10.0.0.5:80 check inter 60s rise 2 fall 2 # lbagent role=web
            # lbagent paused web02 10.0.0.6 role=web
            # additional-lb-iis-server
    """)


def test_a_pause_replaces_the_server_line_by_a_comment() -> None:
    before = planned_text(ONE, ROLES, membership_of(member("web01", "10.0.0.5")))

    done = plan_for(before, ROLES, membership_of(paused_member(member("web01", "10.0.0.5"))))

    assert managed_lines(done.after[0]) == ["# lbagent paused web01 10.0.0.5 role=web"]
    assert done.removed == (f"backend farm: {line('web01', '10.0.0.5')}",)
    assert done.added == ("backend farm: # lbagent paused web01 10.0.0.5 role=web",)


def test_a_pause_applies_to_every_member_at_the_address() -> None:
    # The second one would have no line anyhow: its address:port is taken.
    text = planned_text(
        ONE, ROLES, membership_of(paused_member(member("old", "10.0.0.5", "unheard")), member("new", "10.0.0.5"))
    )

    assert managed_lines(text) == ["# lbagent paused new 10.0.0.5 role=web"]


def test_the_tag_pauses_its_node() -> None:
    text = planned_text(
        ONE,
        ROLES,
        membership_of(
            member("web01", tags={"lbagent": "paused"}), member("web02", "10.0.0.2", tags={"lbagent": "Paused"})
        ),
    )

    assert managed_lines(text) == ["# lbagent paused web01 10.0.0.1 role=web", line("web02", "10.0.0.2")]


def test_an_ipv6_address_is_bracketed() -> None:
    text = planned_text(
        ONE, ROLES, membership_of(member("w1", "2001:db8::5"), paused_member(member("w2", "2001:db8::6")))
    )

    assert managed_lines(text) == [
        "server w1 [2001:db8::5]:80 check inter 60s rise 2 fall 2 # lbagent role=web",
        "# lbagent paused w2 2001:db8::6 role=web",
    ]


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.9.9.9",
        "224.0.0.1",
        "255.255.255.255",
        "169.254.10.20",
        "::",
        "::1",
        "ff02::1",
        "fe80::1",
    ],
)
def test_special_addresses_are_never_written(address: str) -> None:
    done = plan_for(ONE, ROLES, membership_of(member("web01", address)))

    assert done.after == (ONE,)
    assert [note for note in done.notes if "web01" in note] != []


@pytest.mark.parametrize("address", ["127.0.0.2", "::1"])
def test_loopback_is_written_where_networks_include_it(address: str) -> None:
    text = planned_text(ONE, ROLES, membership_of(member("web01", address, "local")))

    assert [one.split()[1] for one in managed_lines(text)] == ["web01"]


@pytest.mark.parametrize(
    ("address", "there"), [("10.255.0.1", 1), ("11.0.0.1", 0), ("2001:db8:ffff::1", 1), ("2001:db9::1", 0)]
)
def test_a_role_accepts_only_addresses_of_its_networks(address: str, there: int) -> None:
    text = planned_text(
        "backend m\n# additional-data-lb-mongo-server\n", ROLES, membership_of(member("d1", address, "db"))
    )

    assert len(managed_lines(text)) == there


def test_tags_fill_options_and_port() -> None:
    text = planned_text(
        "backend m\n\t# additional-data-lb-mongo-server\n",
        ROLES,
        membership_of(member("d1", "10.0.0.1", "db", {"port": "8080", "weight": "5"}), member("d2", "10.0.0.2", "db")),
    )

    assert text == (
        "backend m\n"
        "\tserver d1 10.0.0.1:8080 check weight 5 # lbagent role=db\n"
        "\tserver d2 10.0.0.2:27017 check weight 100 # lbagent role=db\n"
        "\t# additional-data-lb-mongo-server\n"
    )


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("port", "0"),
        ("port", "65536"),
        ("port", "-1"),
        ("port", "80 "),
        ("port", "8O"),
        ("port", "\u0668\u0660"),
        ("port", "80\nserver evil 6.6.6.6:80"),
        ("port", "0000099999"),
        ("port", "0000065536"),
        ("port", "00001" + "0" * 50),
        ("weight", "5 backup"),
        ("weight", "5#"),
        ("weight", "1" * 65),
        ("weight", "\u2028"),
        ("weight", "${HOME}"),
        ("weight", "5\r"),
    ],
)
def test_an_invalid_tag_prevents_only_the_line_of_its_own_node(tag: str, value: str) -> None:
    done = plan_for(
        "backend m\n# additional-data-lb-mongo-server\n",
        ROLES,
        membership_of(member("d1", "10.0.0.1", "db", {tag: value}), member("d2", "10.0.0.2", "db")),
    )

    assert [one.split()[1] for one in managed_lines(done.after[0])] == ["d2"]
    assert [note for note in done.notes if "d1" in note] != []


def test_an_empty_tag_counts_as_missing() -> None:
    roles = parse_roles_text("""
        services: {iis: {port: 80, options: "check weight {tag:weight|100} rise 2"}}
        roles: {web: {lb: [iis]}}
    """)

    text = planned_text(ONE, roles, membership_of(member("web01", tags={"weight": ""})))

    assert managed_lines(text) in ([], ["server web01 10.0.0.1:80 check weight 100 rise 2 # lbagent role=web"])
    assert unmanaged_lines(text) == unmanaged_lines(ONE)


# --- the operator's text ------------------------------------------------------------------------------------------


def test_crlf_stays_crlf() -> None:
    before = ONE.replace("\n", "\r\n")

    text = planned_text(before, ROLES, membership_of(member("web01"), paused_member(member("web02", "10.0.0.2"))))

    assert text == (
        "backend farm\r\n    balance roundrobin\r\n"
        "    server web01 10.0.0.1:80 check inter 60s rise 2 fall 2 # lbagent role=web\r\n"
        "    # lbagent paused web02 10.0.0.2 role=web\r\n"
        "    # additional-lb-iis-server\r\n"
    )


def test_crlf_stays_crlf_where_the_marker_is_the_last_line_without_an_end() -> None:
    text = planned_text("backend farm\r\n# additional-lb-iis-server", ROLES, membership_of(member("web01")))

    assert text == f"backend farm\r\n{line('web01')}\r\n# additional-lb-iis-server\r\n"


def test_a_missing_final_line_end_is_completed_when_something_is_written() -> None:
    text = planned_text(ONE.removesuffix("\n"), ROLES, membership_of(member("web01")))

    assert text == planned_text(ONE, ROLES, membership_of(member("web01")))


def test_a_missing_final_line_end_stays_missing_when_nothing_is_written() -> None:
    before = planned_text(ONE, ROLES, membership_of(member("web01"))).removesuffix("\n")

    assert planned_text(before, ROLES, membership_of(member("web01"))) == before


def test_removing_a_last_managed_line_without_an_end_changes_nothing_else() -> None:
    before = f"backend farm\n\n    {line('web01')}"

    assert planned_text(before, ROLES, membership_of(member("web01", status=LEFT))) == "backend farm\n\n"


def test_a_line_has_the_indentation_of_its_marker() -> None:
    text = planned_text("backend farm\n\t  \t# additional-lb-iis-server\n", ROLES, membership_of(member("web01")))

    assert text == f"backend farm\n\t  \t{line('web01')}\n\t  \t# additional-lb-iis-server\n"


def test_shift_jis_and_invalid_utf8_are_preserved() -> None:
    comment = "負荷分散 ソ\\表".encode("cp932") + b" \xff\xfe\x00\x0b\x0c\x1c\x85\xc2\x85\xe2\x80\xa8"
    before = (b"# " + comment + b"\n" + ONE.encode() + b"# " + comment).decode("utf-8", "surrogateescape")

    after = planned_text(before, ROLES, membership_of(member("web01"))).encode("utf-8", "surrogateescape")

    assert after == (
        b"# "
        + comment
        + b"\nbackend farm\n    balance roundrobin\n    "
        + line("web01").encode()
        + b"\n    # additional-lb-iis-server\n# "
        + comment
        + b"\n"
    )


@given(st.binary(max_size=300) | st.text("ab# \t\r\n\x0b\u2028", max_size=300).map(str.encode))
def test_a_document_preserves_any_bytes(content: bytes) -> None:
    text = content.decode("utf-8", "surrogateescape")

    (back,) = plan_for(text, ROLES, membership_of()).before

    assert back.encode("utf-8", "surrogateescape") == content


@given(
    st.lists(
        st.sampled_from(["", "\n", "\r\n", "a", "backend x\n", "# additional-lb-iis-server", "\ufeff"]),
        min_size=1,
        max_size=5,
    )
)
def test_a_document_preserves_each_of_several_files(texts: list[str]) -> None:
    document = Document([(f"{at}.cfg", text) for at, text in enumerate(texts)])

    assert make_plan(document, ROLES, membership_of(), PlanOptions()).after == tuple(texts)


def test_a_proxy_in_a_second_file_is_changed_there() -> None:
    document = Document([("a.cfg", "global\n    daemon"), ("b.cfg", ONE)])

    done = make_plan(document, ROLES, membership_of(member("web01")), PlanOptions())

    assert done.before == ("global\n    daemon", ONE)
    assert done.after == ("global\n    daemon", planned_text(ONE, ROLES, membership_of(member("web01"))))


def test_a_line_whose_comment_was_deleted_belongs_to_the_operator() -> None:
    taken_back = ONE.replace("    # add", "    server web01 10.0.0.1:80 check weight 7\n    # add")

    assert planned_text(taken_back, ROLES, membership_of(member("web01"))) == taken_back
    assert planned_text(taken_back, ROLES, membership_of()) == taken_back


@pytest.mark.parametrize(
    "reformatted",
    [
        "server\tweb01\t10.0.0.1:80\tcheck # lbagent role=web",
        "server  web01   10.0.0.1:80  check # lbagent role=web",
        "server web01 10.0.0.1:80 check\t# lbagent role=web",
        "server web01 10.0.0.1:80 check   # lbagent role=web \t",
    ],
)
def test_a_reformatted_managed_line_is_still_managed(reformatted: str) -> None:
    before = f"backend farm\n    {reformatted}\n    # additional-lb-iis-server\n"

    assert (
        planned_text(before, ROLES, membership_of(member("web01", status=LEFT)))
        == "backend farm\n    # additional-lb-iis-server\n"
    )


def test_operators_lines_between_managed_lines_and_marker_stay() -> None:
    before = planned_text(ONE, ROLES, membership_of(member("web01"))).replace(
        "    # add", "\n    # keep me\n    option httpchk\n    # add"
    )

    text = planned_text(before, ROLES, membership_of(member("web01"), member("web02", "10.0.0.2")))

    assert text == dedent("""
        backend farm
            balance roundrobin

            # keep me
            option httpchk
            server web01 10.0.0.1:80 check inter 60s rise 2 fall 2 # lbagent role=web
            server web02 10.0.0.2:80 check inter 60s rise 2 fall 2 # lbagent role=web
            # additional-lb-iis-server
    """)


@pytest.mark.parametrize(
    "nearly",
    [
        "# additional-lb-iis-server # note",
        "#additional-lb-iis-server",
        "## additional-lb-iis-server",
        "# additional-lb-iis-servers",
        "# additional-LB-iis-server",
        "#  additional-lb-iis-server",
        "option x # additional-lb-iis-server",
        "# additional-lb iis-server",
        "\u3000# additional-lb-iis-server",
        "\x0b# additional-lb-iis-server",
    ],
)
def test_only_a_whole_line_is_a_marker(nearly: str) -> None:
    text = f"backend farm\n    {nearly}\n"

    assert planned_text(text, ROLES, membership_of(member("web01"))) == text


def test_a_marker_may_have_trailing_blanks() -> None:
    text = planned_text("backend farm\n  # additional-lb-iis-server \t\n", ROLES, membership_of(member("web01")))

    assert text == f"backend farm\n  {line('web01')}\n  # additional-lb-iis-server \t\n"


# --- several markers ----------------------------------------------------------------------------------------------


def test_a_service_name_may_contain_hyphens_and_underscores() -> None:
    text = planned_text(
        "backend a\n    # additional-lb-web_service-a-server\n", ROLES, membership_of(member("a1", role="app"))
    )

    assert managed_lines(text) == [line("a1", role="app", port=1111, options="check inter 5s rise 2 fall 2")]


def test_a_section_name_may_contain_hyphens() -> None:
    text = planned_text(
        "backend a\n    # additional-data-lb-mongo-server\n", ROLES, membership_of(member("d1", role="db"))
    )

    assert managed_lines(text) == ["server d1 10.0.0.1:27017 check weight 100 # lbagent role=db"]


def test_the_same_marker_in_two_proxies_gets_lines_in_both() -> None:
    text = planned_text(
        "listen a\n# additional-lb-iis-server\n\nbackend b\n  # additional-lb-iis-server\n",
        ROLES,
        membership_of(member("w1")),
    )

    assert (
        text
        == f"listen a\n{line('w1')}\n# additional-lb-iis-server\n\nbackend b\n  {line('w1')}\n  # additional-lb-iis-server\n"
    )


def test_servers_of_several_services_in_one_proxy_are_named_node_service() -> None:
    text = planned_text(
        dedent("""
            backend farm
                # additional-lb-iis-server
                # additional-lb-web_service-a-server
        """),
        ROLES,
        membership_of(
            member("web01"), member("app.1", "10.0.0.2", "app"), paused_member(member("app2", "10.0.0.3", "app"))
        ),
    )

    assert text == dedent("""
        backend farm
            # lbagent paused app2 10.0.0.3 role=app
            server app.1.iis 10.0.0.2:80 check inter 5s rise 2 fall 2 # lbagent role=app
            server web01.iis 10.0.0.1:80 check inter 60s rise 2 fall 2 # lbagent role=web
            # additional-lb-iis-server
            # lbagent paused app2 10.0.0.3 role=app
            server app.1.web_service-a 10.0.0.2:1111 check inter 5s rise 2 fall 2 # lbagent role=app
            # additional-lb-web_service-a-server
    """)


def test_a_second_service_in_a_proxy_renames_the_present_servers() -> None:
    before = planned_text(ONE, ROLES, membership_of(member("web01")))

    text = planned_text(before + "    # additional-lb-web_service-a-server\n", ROLES, membership_of(member("web01")))

    assert text == dedent("""
        backend farm
            balance roundrobin
            server web01.iis 10.0.0.1:80 check inter 60s rise 2 fall 2 # lbagent role=web
            # additional-lb-iis-server
            # additional-lb-web_service-a-server
    """)


def test_removing_the_second_service_removes_the_suffix() -> None:
    before = planned_text(ONE + "    # additional-lb-web_service-a-server\n", ROLES, membership_of(member("web01")))

    text = planned_text(
        before.replace("    # additional-lb-web_service-a-server\n", ""), ROLES, membership_of(member("web01"))
    )

    assert text == planned_text(ONE, ROLES, membership_of(member("web01")))


def test_a_duplicate_marker_in_a_proxy_is_refused_with_both_lines() -> None:
    text = ONE + "    server x 10.9.9.9:80\n\t# additional-lb-iis-server\n"

    with pytest.raises(Refused) as refused:
        plan_for(text, ROLES, membership_of(member("web01")))

    assert str(refused.value) == (
        "haproxy.cfg:5: marker '# additional-lb-iis-server' appears twice in backend farm, first at haproxy.cfg:3; delete one"
    )


def test_an_unknown_marker_is_ignored_and_reported() -> None:
    text = "backend farm\n    # additional-lb-oracle-server\n    # additional-lb-iis-server\n"

    done = plan_for(text, ROLES, membership_of(member("web01")))

    assert done.after == (text.replace("    # additional-lb-iis", f"    {line('web01')}\n    # additional-lb-iis"),)
    assert (
        "haproxy.cfg:2: unknown marker '# additional-lb-oracle-server': no role of roles.yml has its section and service"
        in done.notes
    )


def test_a_missing_marker_is_reported() -> None:
    done = plan_for("backend farm\n", ROLES, membership_of())

    assert done.notes == (
        "haproxy.cfg has no marker '# additional-lb-iis-server'",
        "haproxy.cfg has no marker '# additional-lb-web_service-a-server'",
        "haproxy.cfg has no marker '# additional-data-lb-mongo-server'",
    )


def test_a_line_without_marker_stays_while_its_node_is_present() -> None:
    before = planned_text(ONE, ROLES, membership_of(member("web01"), member("web02", "10.0.0.2"))).replace(
        "    # additional-lb-iis-server\n", ""
    )

    done = plan_for(
        before,
        ROLES,
        membership_of(member("web01"), member("web02", "10.0.0.2", status=LEFT), member("web03", "10.0.0.3")),
    )

    assert done.after == (f"backend farm\n    balance roundrobin\n    {line('web01')}\n",)
    assert "haproxy.cfg:3: the marker of server web01 is missing" in done.notes


def test_a_line_without_marker_follows_a_pause_and_a_new_address() -> None:
    before = planned_text(ONE, ROLES, membership_of(member("web01"), member("web02", "10.0.0.2"))).replace(
        "    # additional-lb-iis-server\n", ""
    )

    text = planned_text(before, ROLES, membership_of(paused_member(member("web01")), member("web02", "10.0.0.22")))

    assert (
        text
        == f"backend farm\n    balance roundrobin\n    # lbagent paused web01 10.0.0.1 role=web\n    {line('web02', '10.0.0.22')}\n"
    )


def test_a_paused_line_without_marker_stays_paused() -> None:
    both = "backend farm\n    # additional-lb-iis-server\n    # additional-data-lb-mongo-server\n"
    dbs = [member(f"d{at}", f"10.0.1.{at}", "db") for at in (1, 2, 3)]
    before = planned_text(both, ROLES, membership_of(member("web1"), *dbs)).replace(
        "    # additional-lb-iis-server\n", ""
    )
    members = membership_of(paused_member(member("web1")), *dbs)

    once = planned_text(before, ROLES, members)
    again = planned_text(once, ROLES, members)

    assert "    # lbagent paused web1 10.0.0.1 role=web\n" in once
    assert again == once


def test_a_draining_line_without_marker_stays_drained_where_the_new_address_of_its_node_is_used() -> None:
    roles = parse_roles_text("""
        services: {iis: {port: 80}, mongo: {port: 80}}
        roles: {web: {lb: [iis, mongo], on_pause: drain}}
    """)
    before = dedent("""
        backend farm
            server web1.mongo 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web
            server web2 10.0.0.2:80 check inter 2s rise 2 fall 2 # lbagent role=web
            # additional-lb-iis-server
    """)
    members = membership_of(paused_member(member("web1", "10.0.0.2")), member("web2", "10.0.0.2"))

    text = planned_text(before, roles, members)

    assert "    server web1.mongo 10.0.0.1:80 check inter 2s rise 2 fall 2 weight 0 # lbagent paused role=web\n" in text


# --- operator's lines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web01", "WEB01", "Web01"])
@pytest.mark.parametrize("where", ["above", "below"])
def test_an_operators_line_with_the_name_has_priority(name: str, where: str) -> None:
    by_hand = f"    server {name} 10.9.9.9:8080 check\n"
    text = ONE.replace("    # add", f"{by_hand}    # add") if where == "above" else ONE + by_hand

    done = plan_for(text, ROLES, membership_of(member("web01")))

    assert done.after == (text,)
    assert (
        "web01: no managed line in backend farm: an operator's line has its name or address, pauses do not affect it"
        in done.notes
    )


@pytest.mark.parametrize(
    "endpoint",
    [
        "10.0.0.1:80",
        '"10.0.0.1:80"',
        "ipv4@10.0.0.1:80",
    ],
)
def test_an_operators_line_with_the_endpoint_has_priority(endpoint: str) -> None:
    text = ONE + f"    server other {endpoint} check\n"

    assert planned_text(text, ROLES, membership_of(member("web01"))) == text


@pytest.mark.parametrize(
    "endpoint",
    [
        "[2001:db8::1]:80",
        "[2001:DB8::1]:80",
        "2001:db8::1:80",
    ],
)
def test_an_operators_line_with_the_ipv6_endpoint_has_priority(endpoint: str) -> None:
    text = ONE + f"    server other {endpoint} check\n"

    assert planned_text(text, ROLES, membership_of(member("web01", "2001:db8::1"))) == text


def test_an_operators_line_in_another_proxy_does_not_matter() -> None:
    text = ONE + "backend other\n    server web01 10.0.0.1:80\n"

    assert managed_lines(planned_text(text, ROLES, membership_of(member("web01")))) == [line("web01")]


def test_a_new_operators_line_replaces_the_managed_one() -> None:
    text = planned_text(ONE, ROLES, membership_of(member("web01"))) + "    server web01 10.0.0.1:80 check weight 5\n"

    assert (
        planned_text(text, ROLES, membership_of(member("web01")))
        == ONE + "    server web01 10.0.0.1:80 check weight 5\n"
    )


def test_adopt_makes_operators_lines_above_a_marker_managed() -> None:
    text = dedent("""
        backend farm
            server WEB01 10.0.0.1:80 check
            server older 10.0.0.2:80 check
            server static 10.0.0.9:80 check
            # additional-lb-iis-server
            server web03 10.0.0.3:80 check
    """)
    members = membership_of(member("web01"), member("web02", "10.0.0.2"), member("web03", "10.0.0.3"))

    done = plan_for(text, ROLES, members, PlanOptions(adopt=True))

    assert done.after == (
        dedent("""
            backend farm
                server static 10.0.0.9:80 check
                server web01 10.0.0.1:80 check inter 60s rise 2 fall 2 # lbagent role=web
                server web02 10.0.0.2:80 check inter 60s rise 2 fall 2 # lbagent role=web
                # additional-lb-iis-server
                server web03 10.0.0.3:80 check
        """),
    )


# --- one address:port once ----------------------------------------------------------------------------------------


def test_of_two_nodes_at_one_address_the_alive_one_has_the_line() -> None:
    text = planned_text(ONE, ROLES, membership_of(member("web01", status=FAILED), member("web02")))

    assert managed_lines(text) == [line("web02")]


def test_of_two_alive_nodes_at_one_address_the_first_name_has_the_line() -> None:
    done = plan_for(ONE, ROLES, membership_of(member("web10"), member("web9")))

    assert managed_lines(done.after[0]) == [line("web9")]
    assert "web10: no line in backend farm: web9 has 10.0.0.1:80" in done.notes


def test_of_two_names_of_one_host_at_two_markers_the_first_name_has_the_line() -> None:
    roles = parse_roles_text("""
        services: {one: {port: 80, options: check}, two: {port: 80, options: check}}
        roles: {web: {lb: [one]}, app: {lb: [two]}}
    """)
    text = "backend farm\n# additional-lb-one-server\n# additional-lb-two-server\n"

    after = planned_text(text, roles, membership_of(member("web10"), member("web2", role="app")))

    assert managed_lines(after) == ["server web2.two 10.0.0.1:80 check # lbagent role=app"]


# --- max, on_failed, guard ----------------------------------------------------------------------------------------


def mongos(*numbers: int) -> Membership:
    """Members of the role `db`, which has a `max` of four."""
    return membership_of(*(member(f"d{number}", f"10.0.0.{number}", "db") for number in numbers))


def test_new_nodes_beyond_max_are_refused_and_known_ones_stay() -> None:
    text = "backend m\n# additional-data-lb-mongo-server\n"
    before = planned_text(text, ROLES, mongos(5, 6, 7))

    done = plan_for(before, ROLES, mongos(1, 2, 5, 6, 7))

    assert [one.split()[1] for one in managed_lines(done.after[0])] == ["d1", "d5", "d6", "d7"]
    assert [note for note in done.notes if "d2: no line for mongo" in note] != []


def test_a_smaller_max_removes_no_line() -> None:
    roles = ROLES._replace(roles={**ROLES.roles, "db": ROLES.roles["db"]._replace(max=2)})
    before = planned_text("backend m\n# additional-data-lb-mongo-server\n", ROLES, mongos(1, 2, 3, 4))

    assert planned_text(before, roles, mongos(1, 2, 3, 4)) == before


@pytest.mark.parametrize(("failed", "there"), [(0, 4), (1, 3), (2, 2), (3, 4), (4, 4)])
def test_on_failed_remove_acts_only_while_half_is_alive(failed: int, there: int) -> None:
    members = membership_of(
        *(member(f"b{at}", f"10.0.0.{at}", "batch", status=FAILED if at <= failed else ALIVE) for at in range(1, 5))
    )

    assert len(managed_lines(planned_text(ONE, ROLES, members))) == there


def test_on_failed_remove_does_not_count_paused_nodes() -> None:
    alive = [
        paused_member(member("b1", "10.0.0.1", "batch")),
        paused_member(member("b2", "10.0.0.2", "batch")),
        member("b3", "10.0.0.3", "batch"),
    ]
    failed = [member("b4", "10.0.0.4", "batch", status=FAILED), member("b5", "10.0.0.5", "batch", status=FAILED)]

    text = planned_text(ONE, ROLES, membership_of(*alive, *failed))

    assert [one.split()[1] for one in managed_lines(text) if one.startswith("server")] == ["b3", "b4", "b5"]


def webs(*numbers: int) -> list[Member]:
    """Living members of the role `web`."""
    return [member(f"web{number}", f"10.0.0.{number}") for number in numbers]


@pytest.mark.parametrize(("lost", "held"), [(1, False), (2, False), (3, True), (4, True)])
def test_the_safety_guard_blocks_removals_of_more_than_half(lost: int, held: bool) -> None:  # noqa: FBT001
    before = planned_text(ONE, ROLES, membership_of(*webs(1, 2, 3, 4)))

    done = plan_for(before, ROLES, membership_of(*webs(1, 2, 3, 4)[lost:]))

    assert (done.after[0] == before) is held
    assert bool(done.blocked) is held


def test_the_message_of_the_safety_guard_has_marker_proxy_and_nodes() -> None:
    before = planned_text(ONE, ROLES, membership_of(*webs(1, 2, 3)))

    done = plan_for(before, ROLES, membership_of(*webs(9)))

    words = "3 of 4 lines at '# additional-lb-iis-server' in backend farm would be removed: web1, web2, web3"
    assert done.blocked == (BlockedRemoval(3, words),)
    assert str(done.blocked[0]) == words
    assert [one.split()[1] for one in managed_lines(done.after[0])] == ["web1", "web2", "web3", "web9"]


def test_the_safety_guard_does_not_block_the_rest_of_the_plan() -> None:
    text = ONE + "backend m\n# additional-data-lb-mongo-server\n"
    before = planned_text(text, ROLES, membership_of(*webs(1, 2, 3), *mongos(1, 2, 3).members.values()))

    done = plan_for(before, ROLES, mongos(2, 3, 4))

    assert [one.split()[1] for one in managed_lines(done.after[0])] == ["web1", "web2", "web3", "d2", "d3", "d4"]


def test_blocked_removals_are_blocked_in_the_next_run_too() -> None:
    before = planned_text(ONE, ROLES, membership_of(*webs(1, 2, 3)))
    once = planned_text(before, ROLES, membership_of(*webs(8, 9)))

    again = plan_for(once, ROLES, membership_of(*webs(8, 9)))

    assert again.after == (once,)
    assert len(again.blocked) == 1


def test_new_nodes_count_for_the_safety_guard_at_once() -> None:
    before = planned_text(ONE, ROLES, membership_of(*webs(1, 2)))

    done = plan_for(before, ROLES, membership_of(*webs(8, 9)))

    assert [one.split()[1] for one in managed_lines(done.after[0])] == ["web8", "web9"]
    assert done.blocked == ()


def test_force_applies_blocked_removals() -> None:
    before = planned_text(ONE, ROLES, membership_of(*webs(1, 2, 3)))

    done = plan_for(before, ROLES, membership_of(), PlanOptions(force=True))

    assert done.after == (ONE,)
    assert done.blocked == ()


def test_the_safety_guard_does_not_block_requested_removals() -> None:
    before = planned_text(ONE, ROLES, membership_of(*webs(1, 2, 3)))
    gone = [one._replace(status=LEFT) for one in webs(1, 2)]

    done = plan_for(before, ROLES, membership_of(*gone, *(one._replace(role="other") for one in webs(3))))

    assert done.after == (ONE,)
    assert done.blocked == ()


def test_a_role_missing_from_roles_yml_is_blocked() -> None:
    roles = ROLES._replace(roles={name: role for name, role in ROLES.roles.items() if name != "web"})
    before = planned_text(ONE, ROLES, membership_of(*webs(1, 2)))

    done = plan_for(before, roles, membership_of(*webs(1, 2)))

    assert done.after == (before,)
    assert len(done.blocked) == 1


def test_lines_of_kept_nodes_are_unchanged() -> None:
    before = planned_text(ONE, ROLES, membership_of(*webs(1, 2)))
    moved = [one._replace(address="10.0.1.1") for one in webs(1, 2)]

    text = planned_text(before, ROLES, membership_of(*moved, *webs(3)), PlanOptions(kept=frozenset({"web1", "web3"})))

    assert managed_lines(text) == [line("web1", "10.0.0.1"), line("web2", "10.0.1.1")]


# --- ids ----------------------------------------------------------------------------------------------------------


def ids(text: str) -> dict[str, int]:
    """The id of each managed server, by name."""
    words = [one.split() for one in managed_lines(text) if " id " in one]
    return {one[1]: int(one[one.index("id") + 1]) for one in words}


@pytest.mark.parametrize(
    "balance", ["source", "uri whole", "url_param u", "hdr(host)", "random", "random(2)", "rdp-cookie", "hash src"]
)
def test_servers_of_a_hashing_balance_have_ids(balance: str) -> None:
    text = planned_text(ONE.replace("roundrobin", balance), ROLES, membership_of(*webs(1)))

    assert list(ids(text)) == ["web1"]
    assert managed_lines(text)[0].startswith("server web1 10.0.0.1:80 check inter 60s rise 2 fall 2 id ")


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "static-rr", "first"])
def test_other_servers_have_no_ids(balance: str) -> None:
    assert ids(planned_text(ONE.replace("roundrobin", balance), ROLES, membership_of(*webs(1)))) == {}


def test_balance_is_inherited_from_defaults() -> None:
    text = dedent("""
        defaults
            balance source
        defaults plain
            balance roundrobin
        backend a from plain
            # additional-lb-iis-server
        defaults hashing
            balance uri
        backend b
            # additional-lb-iis-server
        backend c
            balance first
            # additional-lb-iis-server
    """)

    after = planned_text(text, ROLES, membership_of(*webs(1)))

    assert [" id " in one for one in managed_lines(after)] == [False, True, False]


@given(st.sets(st.integers(1, 250), min_size=1, max_size=60), st.integers(1, 250))
@settings(max_examples=30)
def test_ids_do_not_change_when_other_nodes_join_or_leave(numbers: set[int], other: int) -> None:
    text = ONE.replace("roundrobin", "source")

    before = ids(planned_text(text, ROLES, membership_of(*webs(*numbers))))
    after = ids(planned_text(text, ROLES, membership_of(*webs(*numbers, other))))

    assert {name: number for name, number in after.items() if name in before} == before
    assert len({number % (1 << 20) for number in after.values()}) == len(after)


def test_a_new_server_never_has_the_id_of_a_line_that_stays() -> None:
    # Both names have the same hash.
    first, second = "web1919", "web2414"
    text = ONE.replace("roundrobin", "source")
    before = planned_text(text, ROLES, membership_of(member(first, "10.0.0.1"), member("zz", "10.0.0.2")))

    gone = [member(first, "10.0.0.1", status=LOST), member("zz", "10.0.0.2", status=LOST)]
    after = planned_text(before, ROLES, membership_of(*gone, member(second, "10.0.0.3")))

    assert sorted(ids(after)) == sorted([first, second, "zz"])
    assert len(set(ids(after).values())) == 3


def test_ids_are_unique_among_a_thousand_servers_and_operators_lines() -> None:
    free = planned_text(ONE.replace("roundrobin", "source"), ROLES, membership_of(*webs(1)))
    taken = ids(free)["web1"]
    by_hand = f"    server static 10.9.9.9:80 id {taken + (1 << 20)}\n"
    members = membership_of(*(member(f"web{at}", f"10.1.{at // 250}.{at % 250 + 1}") for at in range(1000)))

    found = ids(planned_text(ONE.replace("roundrobin", "source") + by_hand, ROLES, members))

    assert len(found) == 1000
    assert len({number % (1 << 20) for number in found.values()} | {taken}) == 1001


# --- rebuilt, restored --------------------------------------------------------------------------------------------


def test_membership_is_rebuilt_from_the_managed_lines_pauses_included() -> None:
    members = membership_of(
        member("web1"), paused_member(member("web2", "2001:db8::2")), member("app1", "10.0.0.3", "app")
    )
    text = planned_text(
        ONE + "backend b\n# additional-lb-iis-server\n# additional-lb-web_service-a-server\n", ROLES, members
    )

    again = rebuild_membership(Document([("haproxy.cfg", text)]), ROLES, NOW)

    assert {
        (one.name, one.address, one.role, one.tags, one.status, bool(one.pause)) for one in again.members.values()
    } == {
        ("web1", "10.0.0.1", "web", None, ALIVE, False),
        ("web2", "2001:db8::2", "web", None, ALIVE, True),
        ("app1", "10.0.0.3", "app", None, ALIVE, False),
    }
    assert planned_text(text, ROLES, again) == text


def test_lines_of_nodes_with_unknown_tags_are_unchanged() -> None:
    text = "backend m\n  # additional-data-lb-mongo-server\n"
    members = membership_of(
        member("d1", role="db", tags={"port": "8080", "weight": "5"}), paused_member(member("d2", "10.0.0.2", "db"))
    )
    before = planned_text(text, ROLES, members)

    done = plan_for(before, ROLES, rebuild_membership(Document([("haproxy.cfg", before)]), ROLES, NOW))

    assert done.after == (before,)
    assert done.blocked == ()


def test_a_rebuilt_node_follows_its_tags_once_they_are_known() -> None:
    text = "backend m\n  # additional-data-lb-mongo-server\n"
    before = planned_text(text, ROLES, membership_of(member("d1", role="db", tags={"port": "8080"})))
    again = rebuild_membership(Document([("haproxy.cfg", before)]), ROLES, NOW)

    after = planned_text(before, ROLES, updated_membership(again, join_event("d1\t10.0.0.1\tdb\trole=db,port=9090")))

    assert managed_lines(after) == ["server d1 10.0.0.1:9090 check weight 100 # lbagent role=db"]


def test_invalid_managed_lines_add_no_member() -> None:
    text = dedent("""
        backend farm
            server we$b 10.0.0.1:80 check # lbagent role=web
            server web2 300.0.0.1:80 check # lbagent role=web
            server web3 db.example.com:80 check # lbagent role=web
            # lbagent paused web4 nowhere role=web
            # lbagent paused web5 10.0.0.5 role=web
            server LONG 10.0.0.6:80 check # lbagent role=web
            # additional-lb-iis-server
    """).replace("LONG", f"{'x' * 60}.unheard")

    again = rebuild_membership(Document([("haproxy.cfg", text)]), ROLES, NOW)

    assert list(again.members) == ["web5"]


def test_restoring_puts_the_previous_managed_lines_into_the_present_text() -> None:
    before = planned_text(ONE, ROLES, membership_of(*webs(1, 2)))
    now = (
        planned_text(before, ROLES, membership_of(*webs(2, 3))).replace("balance roundrobin", "balance leastconn")
        + "# new\n"
    )

    (text,) = restore_managed_lines(Document([("haproxy.cfg", now)]), Document([("haproxy.cfg", before)]))

    assert text == before.replace("balance roundrobin", "balance leastconn") + "# new\n"


def test_restoring_the_present_lines_changes_nothing() -> None:
    text = planned_text(ONE, ROLES, membership_of(*webs(1, 2)))

    assert list(restore_managed_lines(Document([("haproxy.cfg", text)]), Document([("haproxy.cfg", text)]))) == [text]


# --- properties ----------------------------------------------------------------------------------------------------

names = st.sampled_from(["web1", "web2", "WEB2", "web10", "app.1", "a", "0", "w-_.", "web1.iis", "x" * 63])
addresses = st.sampled_from(
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.200.0.4", "192.0.2.5", "127.0.0.6", "2001:db8::7", "2001:db8::8", "::1"]
)
role_names = st.sampled_from(["web", "app", "db", "batch", "local", "unheard"])
tag_texts = st.dictionaries(
    st.sampled_from(["port", "weight", "lbagent", "role", "x"]),
    st.sampled_from(["80", "8080", "5", "paused", "a b", "web"]),
    max_size=3,
)


@st.composite
def members(draw: st.DrawFn) -> Membership:
    """Any well-formed members."""
    found = draw(
        st.lists(
            st.tuples(
                names, addresses, role_names, tag_texts, st.sampled_from([ALIVE, ALIVE, FAILED, LEFT]), st.booleans()
            ),
            max_size=8,
        )
    )
    made = (member(name, address, role, tags, status) for name, address, role, tags, status, _ in found)
    return membership_of(*(paused_member(one) if flag else one for one, (*_, flag) in zip(made, found, strict=True)))


operator_lines = st.sampled_from(
    [
        "backend a",
        "backend b",
        "listen c",
        "frontend f",
        "defaults",
        "global",
        "    balance source",
        "balance leastconn",
        "    server hand1 10.0.0.1:80 check",
        "\tserver WEB1 10.0.0.9:8080",
        "    server static 10.9.9.9:80 id 12 # note",
        "",
        "   # a comment",
        "# \udc95\\ \u2028 \x0b",
        "    option httpchk GET / # lbagent role=web",
    ]
)
markers = st.sampled_from(
    [
        "    # additional-lb-iis-server",
        "# additional-lb-web_service-a-server",
        "\t# additional-data-lb-mongo-server",
        "# additional-lb-oracle-server",
    ]
)
stale_lines = st.sampled_from(
    [
        "    server web1 10.0.0.1:80 check inter 60s rise 2 fall 2 # lbagent role=web",
        "server web1.iis 10.0.0.1:80 check # lbagent role=web",
        "  server gone 10.0.0.77:80 check id 5 # lbagent role=web",
        "    # lbagent paused web2 10.0.0.2 role=web",
        "    # lbagent paused gone2 10.0.0.78 role=db",
        "    server web10 [2001:db8::7]:27017 check weight 1 # lbagent role=db",
    ]
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A haproxy.cfg as operators, other tools and time leave it."""
    body = draw(st.lists(st.one_of(operator_lines, markers, stale_lines), max_size=14))
    ending = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    text = ending.join(["backend first", *body])
    # A managed last line without an end has a test of its own.
    return text + (ending if body and MANAGED.fullmatch(body[-1]) else draw(st.sampled_from([ending, ""])))


def planning_anything(text: str, membership: Membership, rules: PlanOptions | None = None) -> Plan:
    """Return a plan; examples with a duplicate marker are skipped."""
    try:
        return plan_for(text, ROLES, membership, rules)
    except Refused:
        assume(False)  # noqa: FBT003
        raise


def _orphans(done: Plan) -> bool:
    return any(isinstance(note, MissingMarkerNote) for note in done.notes)


@given(texts(), members(), st.booleans())
@settings(max_examples=300)
def test_outside_the_managed_lines_no_byte_changes(text: str, membership: Membership, force: bool) -> None:  # noqa: FBT001
    (after,) = planning_anything(text, membership, PlanOptions(force=force)).after

    completed = text if after == text or text.endswith("\n") else text + ("\r\n" if "\r\n" in text else "\n")
    assert unmanaged_lines(after) == unmanaged_lines(completed)


@given(texts(), members())
@settings(max_examples=300)
def test_a_plan_for_its_own_result_changes_nothing(text: str, membership: Membership) -> None:
    first = planning_anything(text, membership)
    assume(not first.blocked and not _orphans(first))

    again = plan_for(first.after[0], ROLES, membership)

    assert again.after == first.after
    assert again.changes == {}


@given(texts(), members(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_the_order_in_which_members_became_known_does_not_matter(
    text: str, membership: Membership, dice: random.Random
) -> None:
    order = list(membership.members)
    dice.shuffle(order)

    one, other = planning_anything(text, membership), planning_anything(text, reorder_members(membership, order))

    assert one.after == other.after


@given(texts(), members(), addresses, role_names)
@settings(max_examples=300)
def test_leaving_undoes_joining(text: str, membership: Membership, address: str, role: str) -> None:
    first = planning_anything(text + "\n", membership, PlanOptions(force=True))
    assume(not _orphans(first))
    (settled,) = first.after
    newcomer = member("web3", address, role)

    (joined,) = plan_for(settled, ROLES, membership_of(*membership.members.values(), newcomer)).after
    left = plan_for(joined, ROLES, membership_of(*membership.members.values(), newcomer._replace(status=LEFT)))

    assert left.after == (settled,)


def _by_proxy(text: str) -> list[tuple[int, str]]:
    """Return the managed lines, each with the number of its section."""
    found, number = [], 0
    for one in text.split("\n"):
        number += one.split()[:1] != [] and one.split()[0] in ("backend", "listen", "frontend", "defaults", "global")
        if MANAGED.fullmatch(one):
            found.append((number, one.strip()))
    return found


@given(texts(), members())
@settings(max_examples=200)
def test_the_digest_depends_on_the_managed_lines_only(text: str, membership: Membership) -> None:
    (after,) = planning_anything(text, membership).after

    same = _by_proxy(text) == _by_proxy(after)
    digests = [Document([("haproxy.cfg", one)]).compute_digest() for one in (text, after)]

    assert (digests[0] == digests[1]) is same


@given(texts(), members())
@settings(max_examples=150)
def test_the_digest_of_a_plan_is_that_of_its_text(text: str, membership: Membership) -> None:
    done = planning_anything(text, membership)

    assert done.digest == Document([("haproxy.cfg", done.after[0])]).compute_digest()


@given(texts(), members())
@settings(max_examples=150)
def test_changes_list_exactly_the_added_and_removed_lines(text: str, membership: Membership) -> None:
    done = planning_anything(text, membership)

    old, new = managed_lines(text), managed_lines(done.after[0])
    assert {one.partition(": ")[2] for one in done.added} >= set(new) - set(old)
    assert {one.partition(": ")[2] for one in done.removed} >= set(old) - set(new)
    assert {one.partition(": ")[2] for one in done.added} <= set(new)
    assert {one.partition(": ")[2] for one in done.removed} <= set(old)


@given(texts(), members())
@settings(max_examples=200)
def test_names_and_endpoints_are_unique_in_a_proxy(text: str, membership: Membership) -> None:
    (after,) = planning_anything(text, membership_of(*membership.members.values()), PlanOptions(force=True)).after
    (clean,) = plan_for("\n".join(unmanaged_lines(after)), ROLES, membership).after

    proxy: list[str] = []
    for one in [*clean.split("\n"), "backend end"]:
        if one.split()[:1] and one.split()[0] in ("backend", "listen", "frontend", "defaults", "global"):
            assert len({words.split()[1] for words in proxy}) == len(proxy)
            assert len({words.split()[2] for words in proxy}) == len(proxy)
            proxy = []
        elif MANAGED.fullmatch(one) and one.strip().startswith("server"):
            proxy.append(one.strip())


@given(texts(), members())
@settings(max_examples=150)
def test_a_rebuilt_membership_keeps_the_lines(text: str, membership: Membership) -> None:
    (before,) = planning_anything("\n".join(unmanaged_lines(text)), membership).after
    assume(all(member.tags is None or not member.tags for member in membership.members.values()))

    again = rebuild_membership(Document([("haproxy.cfg", before)]), ROLES, NOW)

    (after,) = plan_for(before, ROLES, again).after
    assert managed_lines(after) == managed_lines(before)


@given(texts(), members(), members())
@settings(max_examples=150)
def test_restoring_after_a_plan_gives_the_text_before_it(text: str, first: Membership, second: Membership) -> None:
    (before,) = planning_anything("\n".join(unmanaged_lines(text)) + "\n", first).after
    (after,) = plan_for(before, ROLES, second, PlanOptions(force=True)).after

    assert list(restore_managed_lines(Document([("haproxy.cfg", after)]), Document([("haproxy.cfg", before)]))) == [
        before
    ]


WORLD = dedent("""
    backend a
        # additional-lb-iis-server
        # additional-lb-web_service-a-server
    backend b
        balance source
        # additional-lb-iis-server
        # additional-data-lb-mongo-server
""")

good_lines = st.builds(
    lambda *fields: "\t".join(fields),
    names,
    addresses,
    role_names,
    st.builds(
        lambda role, *pairs: ",".join([f"role={role}", *pairs]),
        role_names,
        st.builds("port={}".format, st.sampled_from(["80", "8080"])),
        st.just("weight=5"),
    ),
)


@st.composite
def field_poisoned(draw: st.DrawFn) -> str:
    """A member line with one bad character in one of its fields."""
    tags = st.builds(
        "role={},port={},weight={}".format, role_names, st.sampled_from(["80", "8080"]), st.sampled_from(["5", "100"])
    )
    fields = [draw(one) for one in (names, addresses, role_names, tags)]
    at = draw(st.integers(0, 3))
    fields[at] = draw(nearly_valid(st.just(fields[at])))
    return "\t".join(fields)


@given(
    st.lists(st.one_of(field_poisoned(), nearly_valid(good_lines), good_lines), max_size=6),
    st.lists(nearly_valid(names | addresses), max_size=2),
)
@settings(max_examples=500)
def test_any_event_adds_only_well_formed_lines_of_known_roles(lines: list[str], paused: list[str]) -> None:
    membership = updated_membership(
        membership_of(),
        member_event("member-join", *lines),
        *(command_event("pause", payload, at) for at, payload in enumerate(paused, 1)),
    )

    (after,) = planned_world(membership)

    assert unmanaged_lines(after) == unmanaged_lines(WORLD)
    assert all(one.rpartition("role=")[2] in ROLES.roles for one in managed_lines(after))
    assert "evil" not in after
    assert all(one.isascii() and one.isprintable() for one in managed_lines(after))


def planned_world(membership: Membership, roles: Roles = ROLES) -> tuple[str, ...]:
    """What becomes of a haproxy.cfg with four markers in two proxies."""
    return plan_for(WORLD, roles, membership).after


@given(nearly_valid(st.sampled_from(["80", "8080", "100", "5"])), st.sampled_from(["port", "weight"]))
@settings(max_examples=200)
def test_a_hostile_tag_never_stops_the_plan(value: str, tag: str) -> None:
    membership = membership_of(member("d1", "10.0.0.1", "db", {tag: value}), member("d2", "10.0.0.2", "db"))

    (after,) = planned_world(membership)

    assert [one.split()[1] for one in managed_lines(after) if " d2" in one] == ["d2.mongo"]
    assert unmanaged_lines(after) == unmanaged_lines(WORLD)
