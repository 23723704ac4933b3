"""Nodes with one address: a paused host has one comment, and a failed node loses its lines to the alive node there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from lbagent.haproxy.config import Document
from lbagent.membership.model import FAILED, Membership
from lbagent.planning.plan import Plan, PlanOptions, make_plan
from lbagent.serf.raw_event import RawEvent
from tests.helpers.builders import (
    command_event,
    join_event,
    managed_lines,
    member,
    member_event,
    membership_of,
    parse_roles_text,
    paused_member,
    plan_for,
    planned_text,
    updated_membership,
)
from tests.helpers.real_programs import ROLES as WORLD_ROLES
from tests.helpers.real_programs import LoadBalancer
from tests.helpers.real_programs import member_line as line

ROLES = parse_roles_text("services: {iis: {port: 80}, db: {port: 81}}\nroles: {web: {lb: [iis]}, db: {data: [db]}}\n")
CONFIG = "backend farm\n    # additional-lb-iis-server\n\nbackend data\n    # additional-data-db-server\n"
WEB01, WEB02 = "web01\t10.0.0.5\tweb\t", "web02\t10.0.0.5\tweb\t"

EVENTS = [
    join_event(WEB02),
    command_event("pause", "web02", 5),
    member_event("member-failed", WEB02),
    join_event(WEB01),
]


def lived(batches: Sequence[Sequence[RawEvent]]) -> str:
    """haproxy.cfg after these batches, one plan after each."""
    text, membership = CONFIG, membership_of()
    for batch in batches:
        membership = updated_membership(membership, *batch)
        text = planned_text(text, ROLES, membership)
    return text


@pytest.mark.parametrize("cuts", [cuts for size in range(4) for cuts in itertools.combinations(range(1, 4), size)])
def test_a_paused_host_has_one_comment_in_any_split_of_its_events_into_batches(cuts: tuple[int, ...]) -> None:
    bounds = [0, *cuts, len(EVENTS)]

    text = lived([EVENTS[one:two] for one, two in itertools.pairwise(bounds)])

    assert managed_lines(text) == ["# lbagent paused web01 10.0.0.5 role=web"]


def test_of_two_alive_nodes_at_one_address_the_first_by_name_has_the_comment() -> None:
    both = [join_event(WEB02), command_event("pause", "web02", 5), join_event(WEB01)]

    assert managed_lines(lived([[one] for one in both])) == managed_lines(lived([both]))
    assert managed_lines(lived([both])) == ["# lbagent paused web01 10.0.0.5 role=web"]


@pytest.mark.parametrize("role", ["db", "web", "nobody-knows"])
def test_a_failed_node_whose_address_belongs_to_an_alive_node_loses_its_lines(role: str) -> None:
    membership = membership_of(member("web01", "10.0.0.5"), member("web02", "10.0.0.6"))
    text = planned_text(CONFIG, ROLES, membership)
    failed = membership_of(
        member("web01", "10.0.0.5", status=FAILED), member("web02", "10.0.0.6"), member("db01", "10.0.0.5", role)
    )

    done = plan_for(text, ROLES, failed)

    assert not any("web01" in one for one in managed_lines(done.after[0]))
    assert "web01: no line: it has failed, and db01 has its address 10.0.0.5 now" in done.notes


def test_the_safety_guard_does_not_block_that_removal() -> None:
    text = planned_text(CONFIG, ROLES, membership_of(member("web01", "10.0.0.5")))
    failed = membership_of(member("web01", "10.0.0.5", status=FAILED), member("db01", "10.0.0.5", "db"))

    done = plan_for(text, ROLES, failed)

    assert done.blocked == ()
    assert [one.split()[1] for one in managed_lines(done.after[0])] == ["db01"]


def test_it_also_loses_a_line_without_its_marker() -> None:
    text = planned_text(CONFIG, ROLES, membership_of(member("web01", "10.0.0.5"))).replace(
        "    # additional-lb-iis-server\n", ""
    )
    failed = membership_of(member("web01", "10.0.0.5", status=FAILED), member("db01", "10.0.0.5", "db"))

    assert [one.split()[1] for one in managed_lines(planned_text(text, ROLES, failed))] == ["db01"]


def test_a_failed_node_with_an_address_of_its_own_keeps_its_line() -> None:
    membership = membership_of(member("web01", "10.0.0.5", status=FAILED), member("web02", "10.0.0.5", status=FAILED))

    assert [one.split()[1] for one in managed_lines(planned_text(CONFIG, ROLES, membership))] == ["web01"]


def test_the_pause_of_a_failed_node_moves_to_the_alive_node_at_its_address() -> None:
    failed = paused_member(member("web01", "10.0.0.5", status=FAILED))

    assert managed_lines(planned_text(CONFIG, ROLES, membership_of(failed, member("db01", "10.0.0.5", "db")))) == [
        "# lbagent paused db01 10.0.0.5 role=db"
    ]


def test_the_handler_removes_the_line_with_the_join() -> None:
    roles = WORLD_ROLES + "  db: {{lb: [none], monitor: [none]}}\n"
    with LoadBalancer(roles=roles) as lb:
        lb.join(line("web01", "127.0.0.11"), line("web02", "127.0.0.12"))
        lb.handle("member-failed", line("web01", "127.0.0.11"))
        assert len(lb.managed) == 2

        done = lb.join(line("db01", "127.0.0.11", "db"))

        assert done.returncode == 0
        assert lb.managed == [lb.server("web02", "127.0.0.12")]
        assert b"web01: no line: it has failed, and db01 has its address 127.0.0.11 now" in done.stderr


# --- after a rebuild ------------------------------------------------------------------------------------------------

TAGGED = parse_roles_text("services: {iis: {port: '{tag:port}'}}\nroles: {web: {lb: [iis]}}\n")
UNKNOWN_TAGS = "web01: no line for iis: its tags are unknown until Serf reports them"


def resumed(membership: Membership) -> Plan:
    """The plan for a node whose comment is in haproxy.cfg, and which is not paused any more."""
    text = "backend farm\n    # lbagent paused web01 10.0.0.5 role=web\n    # additional-lb-iis-server\n"
    return make_plan(Document([("haproxy.cfg", text)]), TAGGED, membership, PlanOptions())


def test_a_resumed_node_with_unknown_tags_has_no_line_and_a_note() -> None:
    done = resumed(membership_of(member("web01", "10.0.0.5")._replace(tags=None)))

    assert managed_lines(done.after[0]) == []
    assert UNKNOWN_TAGS in done.notes
