"""The safety guard: paused nodes do not count, and a pause does not unblock removals."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from lbagent.membership.model import LOST, Member, Membership
from lbagent.planning.guard import Removals, remember_removals
from tests.helpers.builders import (
    NOW,
    dedent,
    managed_lines,
    member,
    membership_of,
    parse_roles_text,
    paused_member,
    plan_for,
    planned_text,
)

ROLES = parse_roles_text(
    """
    services: {iis: {port: 80}}
    roles: {web: {lb: [iis]}, api: {lb: [iis]}, gone: {lb: [none]}}
    """
)
TEXT = dedent(
    """
    backend farm
        # additional-lb-iis-server
    """
)


def web(number: int) -> Member:
    """A web node."""
    return member(f"web0{number}", f"10.0.0.{number}")


def enrolled(*members: Member) -> str:
    """haproxy.cfg with the lines of these."""
    return planned_text(TEXT, ROLES, membership_of(*members))


def test_paused_nodes_do_not_count_for_the_safety_guard() -> None:
    nodes = [web(0), web(1), paused_member(web(2)), paused_member(web(3))]
    before = enrolled(*nodes)

    plan = plan_for(
        before, ROLES, membership_of(*(one._replace(status=one.status if one.pause else LOST) for one in nodes))
    )

    assert [str(held) for held in plan.blocked] == [
        "2 of 2 lines at '# additional-lb-iis-server' in backend farm would be removed: web00, web01"
    ]
    assert plan.after == plan.before


def test_a_pause_does_not_unblock_removals() -> None:
    # The comment stays: its role has no marker any more, and its node is present.
    api = member("api", "10.0.0.9", "api")
    text = enrolled(api, *map(web, range(3)))
    roles = parse_roles_text("services: {iis: {port: 80}}\nroles: {api: {lb: [iis]}}")

    once = plan_for(text, roles, membership_of(api, web(0), paused_member(web(1)), web(2)))
    again = plan_for(once.after[0], roles, membership_of(api, web(0), paused_member(web(1)), web(2)))

    held = "2 of 3 lines at '# additional-lb-iis-server' in backend farm would be removed: web00, web02"
    assert [str(one) for one in (*once.blocked, *again.blocked)] == [held, held]
    assert again.after == once.after
    assert [line.split(" #")[0] for line in managed_lines(once.after[0])] == [
        "server api 10.0.0.9:80 check inter 2s rise 2 fall 2",
        "server web00 10.0.0.0:80 check inter 2s rise 2 fall 2",
        "# lbagent paused web01 10.0.0.1 role=web",
        "server web02 10.0.0.2:80 check inter 2s rise 2 fall 2",
    ]


def make_lost_names(count: int) -> str:
    """Return the nodes that the report of a service names, after `count` nodes of it were lost."""
    nodes = [member(f"web{number:02}", f"10.0.1.{number}") for number in range(count)]
    lost = membership_of(*(one._replace(status=LOST) for one in nodes))
    [blocked] = plan_for(enrolled(*nodes), ROLES, lost).blocked
    return str(blocked).partition(" would be removed: ")[2]


def test_twenty_nodes_are_named_and_more_are_not() -> None:
    names = ", ".join(f"web{number:02}" for number in range(20))

    assert make_lost_names(20) == names
    assert make_lost_names(21) == f"{names}, …"


# --- removals that are remembered -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "removals", "after"),
    [
        ({}, Removals({"at A": ("web1", "web2")}), {"at A": {"web1": NOW, "web2": NOW}}),
        ({"at A": {"web1": NOW - 9}}, Removals({"at A": ("web2",)}), {"at A": {"web1": NOW - 9, "web2": NOW}}),
        ({"at A": {"web1": NOW - 9}}, Removals(), {"at A": {"web1": NOW - 9}}),
        ({"at A": {"web1": NOW - 9}}, Removals(blocked=frozenset({"at B"})), {"at A": {"web1": NOW - 9}}),
    ],
)
def test_allowed_removals_are_remembered_by_place(
    before: Mapping[str, Mapping[str, int]], removals: Removals, after: Mapping[str, Mapping[str, int]]
) -> None:
    assert remember_removals(Membership(removals=before), removals, NOW, force=False).removals == after


@pytest.mark.parametrize(("age", "after"), [(1799, 1799), (1800, 0), (3599, 0)])
def test_while_something_is_blocked_earlier_removals_are_remembered_longer(age: int, after: int) -> None:
    before = Membership(removals={"at A": {"web1": NOW - age, "web2": NOW - 5}})

    found = remember_removals(before, Removals(blocked=frozenset({"at A"})), NOW, force=False).removals

    assert found == {"at A": {"web1": NOW - after, "web2": NOW - 5 if after else NOW}}


def test_without_news_the_membership_is_the_same() -> None:
    before = Membership(removals={"at A": {"web1": NOW}})

    assert remember_removals(before, Removals({"at A": ("web1",)}), NOW, force=False) is before
    assert remember_removals(Membership(), Removals(), NOW, force=True) == Membership()


def test_force_forgets_all_removals() -> None:
    before = Membership(removals={"at A": {"web1": NOW}})

    assert remember_removals(before, Removals({"at A": ("web2",)}), NOW, force=True) == Membership()
