"""A sync makes membership equal to the member list of Serf; a member has to be missing twice to be lost."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from pytest_mock import MockerFixture

from lbagent.membership import updates
from lbagent.membership.model import ALIVE, FAILED, LEFT, LOST, UNKNOWN, Member, Membership, Pause
from lbagent.membership.updates import CONFIRM_AFTER, UpdateResult, lists_no_known_role, merge_member_list
from lbagent.serf.member_list import ListedMember, MemberList
from tests.helpers.builders import (
    NOW,
    member,
    member_event,
    membership_of,
    parse_roles_text,
    paused_member,
    updated_membership,
)

ROLES = parse_roles_text(
    """
    services: {iis: {port: 80}}
    roles: {web: {lb: [iis]}, idle: {lb: [none]}}
    """
)


def listed(name: str, status: str = "alive", address: str = "10.0.0.1", role: str = "web", **tags: str) -> ListedMember:
    """A member of Serf's list."""
    return ListedMember(name, address, role, tags, status)


def listing(*members: ListedMember) -> MemberList:
    """Serf's list."""
    return MemberList(members, frozenset(one.name for one in members), ())


def synced(before: Membership, *members: ListedMember, at: int = NOW, force: bool = False) -> Membership:
    """Membership after a sync."""
    return done(before, *members, at=at, force=force).membership


def done(before: Membership, *members: ListedMember, at: int = NOW, force: bool = False) -> UpdateResult:
    """What comes of a sync on lb01."""
    return merge_member_list(before, listing(*members), "lb01", at, force=force)


def statuses(membership: Membership) -> Mapping[str, str]:
    """Every member's status."""
    return {name: one.status for name, one in membership.members.items()}


@pytest.mark.parametrize("before", [ALIVE, FAILED, LEFT, LOST])
@pytest.mark.parametrize(
    ("listing_says", "after"), [("alive", ALIVE), ("leaving", ALIVE), ("left", LEFT), ("failed", FAILED)]
)
def test_membership_follows_the_list(before: str, listing_says: str, after: str) -> None:
    membership = synced(membership_of(member("web01", status=before)), listed("web01", listing_says))

    # A member that left, or was forgotten, does not return by failing.
    assert statuses(membership) == {"web01": LEFT if (before, listing_says) == (LEFT, "failed") else after}


def test_a_new_member_is_added_unless_it_has_left() -> None:
    members = [listed("web01"), listed("web02", "failed"), listed("web03", "left")]

    assert statuses(synced(membership_of(), *members)) == {"web01": ALIVE, "web02": FAILED}


def test_an_unknown_status_changes_nothing() -> None:
    assert statuses(synced(membership_of(member("web01")), listed("web01", "none", role="db"))) == {"web01": ALIVE}


def test_role_address_and_tags_follow_the_list() -> None:
    membership = synced(membership_of(member("web01")), listed("web01", address="10.0.0.7", role="db", port="81,x=y"))

    assert membership.members["web01"] == member("web01", "10.0.0.7", "db", {"port": "81,x=y"})


def test_changed_tags_alone_are_a_change() -> None:
    assert synced(membership_of(member("web01")), listed("web01", port="81")) == membership_of(
        member("web01", tags={"port": "81"})
    )


def test_a_listed_node_is_only_where_it_is_listed() -> None:
    before = membership_of(member("web01", tags={"a": "1"})._replace(elsewhere=("10.0.0.7",)))

    assert synced(before, listed("web01", a="1")) == membership_of(member("web01", tags={"a": "1"}))


def test_no_event_is_made_of_a_member_that_is_known_as_it_is_listed(mocker: MockerFixture) -> None:
    lines = mocker.spy(updates, "MemberLine")
    before = membership_of(member("web01"), member("web02", tags={"a": "1"}), member("web03", status=FAILED))

    done(before, listed("web01"), listed("web02", a="1"), listed("web03", "failed"))

    assert [call.args[0] for call in lines.call_args_list] == ["web03"]


def test_the_tags_of_the_list_are_exact() -> None:
    membership = synced(membership_of(member("web01", tags={"a": "1,b=2"})), listed("web01", a="1", b="2"))

    assert membership.members["web01"].tags == {"a": "1", "b": "2"}


def test_the_load_balancer_itself_is_not_a_member() -> None:
    assert synced(membership_of(), listed("lb01", role="lb"), listed("web01")) == membership_of(member("web01"))


def test_a_pause_of_an_unknown_node_applies_when_it_is_listed() -> None:
    pause = Pause(NOW, "query")
    waiting = Member("WEB01", "", "", None, UNKNOWN, NOW, pause)

    assert synced(membership_of(waiting), listed("web01")) == membership_of(member("web01", pause=pause))


def test_a_pause_survives_a_sync() -> None:
    before = membership_of(paused_member(member("web01")), member("web02", "10.0.0.2", "db"))

    membership = synced(before, listed("web01", "left"), listed("web02", address="10.0.0.2", role="web"))

    assert membership == membership_of(paused_member(member("web01", status=LEFT)), member("web02", "10.0.0.2"))


def test_a_list_without_news_changes_nothing() -> None:
    before = membership_of(member("web01"), member("web02", "10.0.0.2", status=FAILED))

    same = done(before, listed("web01"), listed("web02", "failed", "10.0.0.2"), at=NOW + 60)

    assert (same.membership, same.causes) == (before, ())


def test_a_member_missing_from_one_list_stays() -> None:
    membership = synced(membership_of(member("web01"), member("web02", "10.0.0.2")), listed("web01"))

    assert statuses(membership) == {"web01": ALIVE, "web02": ALIVE}
    assert membership.missed == {"web02": NOW}


@pytest.mark.parametrize(("later", "status"), [(29, ALIVE), (30, LOST), (86400, LOST)])
def test_a_member_missing_from_two_lists_30_s_apart_is_lost(later: int, status: str) -> None:
    once = synced(membership_of(member("web01"), member("web02", "10.0.0.2")), listed("web01"))

    twice = synced(once, listed("web01"), at=NOW + later)

    assert statuses(twice) == {"web01": ALIVE, "web02": status}
    assert twice.missed == ({"web02": NOW} if status == ALIVE else {})


def test_with_force_a_missing_member_is_lost_at_once() -> None:
    membership = synced(membership_of(member("web01"), member("web02", "10.0.0.2")), listed("web01"), force=True)

    assert (statuses(membership), membership.missed) == ({"web01": ALIVE, "web02": LOST}, {})


def test_a_member_listed_in_between_is_missed_from_then_on() -> None:
    once = synced(membership_of(member("web01"), member("web02", "10.0.0.2")), listed("web01"))
    seen = synced(once, listed("web01"), listed("web02", address="10.0.0.2"), at=NOW + 20)
    heard = updated_membership(once, member_event("member-update", "web02\t10.0.0.2\tweb\t", at=NOW + 20))

    assert seen.missed == heard.missed == {}
    assert statuses(synced(seen, listed("web01"), at=NOW + 40)) == {"web01": ALIVE, "web02": ALIVE}
    assert statuses(synced(heard, listed("web01"), at=NOW + 40)) == {"web01": ALIVE, "web02": ALIVE}


def test_a_clock_that_was_set_back_does_not_keep_a_missing_member() -> None:
    once = synced(membership_of(member("web01"), member("web02", "10.0.0.2")), listed("web01"), at=NOW + 86400)

    again = synced(once, listed("web01"))

    assert again.missed == {"web02": NOW}
    assert statuses(synced(again, listed("web01"), at=NOW + CONFIRM_AFTER))["web02"] == LOST


def test_a_member_listed_with_an_invalid_address_is_not_missing() -> None:
    before = membership_of(member("web01"), member("web02", "10.0.0.2"))
    odd = MemberList((listed("web01"),), frozenset({"web01", "web02"}), ("serf members: node web02: '<nil>' is not …",))

    assert merge_member_list(before, odd, "lb01", NOW, force=True).membership == before


def test_every_change_is_a_cause_in_the_history() -> None:
    before = membership_of(*(member(f"web0{at}", f"10.0.0.{at}") for at in range(1, 5)))

    told = done(before, listed("web05", address="10.0.0.5"), listed("web04", "left", "10.0.0.4"), force=True).causes

    assert told == (
        "sync: member-leave web04",
        "sync: member-join web05",
        "sync: no longer listed by Serf: web01 and 2 more",
    )


@pytest.mark.parametrize(
    ("members", "nothing"),
    [
        ([], True),
        ([listed("lb01", role="lb")], True),
        ([listed("lb01", role="lb"), listed("lb02", role="lb")], True),
        ([listed("lb01", role="web")], True),
        ([listed("web01", role="idle")], True),
        ([listed("web01")], False),
        ([listed("web01", "left")], False),
    ],
)
def test_a_list_without_a_node_of_a_known_role_is_detected(members: list[ListedMember], nothing: bool) -> None:  # noqa: FBT001
    assert lists_no_known_role(listing(*members), "lb01", ROLES) is nothing
