"""Plans for unusual files: damaged lines, lines without their marker, comments that resemble managed ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbagent.haproxy.config import Document
from lbagent.membership.model import ALIVE, FAILED, LEFT, Membership
from lbagent.planning.lines import rebuild_membership
from tests.helpers.builders import (
    NOW,
    command_event,
    drop_expired_of,
    join_event,
    managed_lines,
    member,
    member_event,
    membership_of,
    parse_roles_text,
    paused_member,
    paused_names,
    plan_for,
    planned_text,
    updated_membership,
)

ROLES = parse_roles_text("""
    services: {iis: {port: 80}, api: {port: 81}}
    roles: {web: {lb: [iis], networks: [10.0.0.0/8]}, app: {mon: [iis]}}
""")


def line(name: str, address: str, role: str = "web", port: int = 80) -> str:
    return f"server {name} {address}:{port} check inter 2s rise 2 fall 2 # lbagent role={role}"


@pytest.mark.parametrize(
    "odd",
    [
        "# lines ending in # lbagent role=web are lbagent's",
        f"    # {line('web09', '10.0.0.9')} (moved)",
        "    server hand 10.0.0.9:80 check# lbagent role=web",
        "    server hand 10.0.0.9:80 check # lbagent role=we b",
        "    server hand 10.0.0.9:80 # lbagent role=",
    ],
)
def test_a_damaged_line_hides_no_managed_line_below_it(odd: str) -> None:
    text = f"backend b\n{odd}\n    {line('web01', '10.0.0.1')}\n    {line('web02', '10.0.0.2')}\n"
    text += "    # additional-lb-iis-server\n"
    members = membership_of(paused_member(member("web01", "10.0.0.1")), member("web02", "10.0.0.2", status=LEFT))

    after = planned_text(text, ROLES, members)

    assert after == f"backend b\n{odd}\n    # lbagent paused web01 10.0.0.1 role=web\n    # additional-lb-iis-server\n"
    assert sorted(rebuild_membership(Document([("h", text)]), ROLES, NOW).members) == ["web01", "web02"]


@pytest.mark.parametrize("address", ["6.6.6.6", "127.0.0.1", "169.254.1.1", "0.0.0.0", "255.255.255.255"])
@pytest.mark.parametrize("role", ["web", "zzz"])
def test_a_line_without_its_marker_never_follows_its_node_to_a_forbidden_address(address: str, role: str) -> None:
    text = f"backend b\n    {line('web01', '10.0.0.1')}\n"
    members = updated_membership(
        membership_of(member("web01", "10.0.0.1")), join_event(f"web01\t{address}\t{role}\trole={role}")
    )

    assert planned_text(text, ROLES, members) == text


def test_the_safety_guard_never_keeps_a_paused_node_in_service() -> None:
    text = f"backend b\n    {line('web01', '10.0.0.1')}\n    # additional-lb-iis-server\n"
    before = updated_membership(
        membership_of(member("web01", "10.0.0.1")), member_event("member-update", "web01\t169.254.0.1\tweb\trole=web")
    )

    done = plan_for(text, ROLES, updated_membership(before, command_event("pause", "web01", 1)))

    assert managed_lines(done.after[0]) == ["# lbagent paused web01 10.0.0.1 role=web"]
    assert done.blocked == ()


def test_the_safety_guard_blocks_no_removal_of_a_name_that_is_used_elsewhere_in_the_proxy() -> None:
    text = f"backend b\n    {line('web01', '10.0.0.1', port=81)}\n    # additional-lb-api-server\n"
    text += "    # additional-lb-iis-server\n"

    done = plan_for(text, ROLES, membership_of(member("web01", "10.0.0.1")))

    assert managed_lines(done.after[0]) == [line("web01", "10.0.0.1")]
    assert done.blocked == ()


def test_an_address_and_port_is_used_once_also_below_the_marker() -> None:
    text = (
        f"backend b\n    {line('web01', '10.0.0.1')}\n    # additional-lb-iis-server\n    {line('old', '10.0.0.1')}\n"
    )

    done = plan_for(text, ROLES, membership_of(member("web01", "10.0.0.1")))

    assert managed_lines(done.after[0]) == [line("web01", "10.0.0.1")]
    assert done.blocked == ()


def test_a_line_without_its_marker_never_takes_the_address_of_another_node() -> None:
    text = "backend b\n    # additional-lb-iis-server\n    server x 10.0.0.9:80 check # lbagent role=web\n"
    members = membership_of(member("w1", "10.0.0.2"), member("x", "10.0.0.2", role="app"))

    once = planned_text(text, ROLES, members)

    assert planned_text(once, ROLES, members) == once
    assert managed_lines(once) == [line("w1", "10.0.0.2"), "server x 10.0.0.9:80 check # lbagent role=web"]


def test_a_paused_line_without_its_marker_is_stable() -> None:
    roles = parse_roles_text("""
        services: {iis: {port: 80}, api: {port: 81}}
        roles: {web: {lb: [iis, api]}, app: {lb: [iis]}}
    """)
    text = "backend b\n    server w1.iis 10.0.0.1:80 check # lbagent role=app\n    # additional-lb-api-server\n"
    members = membership_of(paused_member(member("w1", "10.0.0.1")))

    once = planned_text(text, roles, members)

    assert planned_text(once, roles, members) == once


@pytest.mark.parametrize("words", ["10.0.0.5", "web99 10.0.0.5"])
def test_a_pause_by_address_belongs_to_the_node_that_joins_there(words: str) -> None:
    joined = updated_membership(
        membership_of(), command_event("pause", words, 1), join_event("web05\t10.0.0.5\tweb\trole=web")
    )

    assert paused_names(joined) == ["web05"]
    assert paused_names(drop_expired_of(joined, NOW + 86401)) == ["web05"]


@pytest.mark.parametrize("words", ["  role=web", "web01 10.0.0.1 role=", " web01 10.0.0.1 role=web"])
def test_a_comment_that_resembles_a_paused_node_is_the_operators(words: str) -> None:
    text = f"backend b\n    # lbagent paused {words}\n    # additional-lb-iis-server\n"

    assert dict(rebuild_membership(Document([("h", text)]), ROLES, NOW).members) == {}


@st.composite
def nodes(draw: st.DrawFn) -> Membership:
    """Up to eight nodes, some of them at one address, of another role, failed, gone or paused."""
    names = draw(st.lists(st.sampled_from(["web1", "web2", "web02", "web10", "Web3", "a", "b-1", "c.d"]), unique=True))
    found = []
    for name in names:
        address = f"10.0.0.{draw(st.integers(1, 5))}"
        role, status = draw(st.sampled_from(["web", "web", "app"])), draw(st.sampled_from([ALIVE, ALIVE, FAILED, LEFT]))
        one = member(name, address, role, status=status)
        found.append(paused_member(one) if draw(st.integers(0, 5)) == 0 else one)
    return membership_of(*found)


@given(first=nodes(), second=nodes(), below=st.sampled_from(["", "web1", "old"]))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_plan_is_stable_and_has_the_digest_of_its_text(first: Membership, second: Membership, below: str) -> None:
    last = f"    {line(below, '10.0.0.2')}\n" if below else ""
    empty = f"backend b\n    # additional-lb-iis-server\n{last}backend c\n    # additional-mon-iis-server\n"
    text = planned_text(empty, ROLES, first)

    plan = plan_for(text, ROLES, second)

    assert plan.digest == Document([("h", plan.after[0])]).compute_digest()
    assert planned_text(plan.after[0], ROLES, second) == plan.after[0]
