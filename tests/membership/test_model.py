"""Members are found by name or address, pauses apply to a whole host, and members and pauses expire."""

from __future__ import annotations

import json

import pytest

from lbagent.membership.model import (
    ALIVE,
    FAILED,
    LEFT,
    UNKNOWN,
    MemberEdits,
    Membership,
    Pause,
    Quarantine,
    as_table,
    count_paused,
    count_quarantined,
    count_statuses,
    find_pause_starts,
)
from lbagent.state import store
from tests.helpers.builders import (
    NOW,
    drop_expired_of,
    member,
    membership_of,
    paused_member,
    paused_names,
    search_member,
)

HOUR = 3600


@pytest.mark.parametrize(("status", "present"), [(ALIVE, True), (FAILED, True), (LEFT, False), (UNKNOWN, False)])
def test_alive_and_failed_members_are_present(status: str, present: bool) -> None:  # noqa: FBT001
    assert member("web01", status=status).present is present


@pytest.mark.parametrize(("status", "elsewhere"), [(ALIVE, ()), (FAILED, ()), (LEFT, ("10.0.0.7", "10.0.0.8"))])
def test_the_pause_of_a_node_that_is_gone_applies_to_all_its_addresses(status: str, elsewhere: tuple[str, ...]) -> None:
    one = member("web01", status=status)._replace(elsewhere=("10.0.0.7", "10.0.0.8", "10.0.0.1"))

    assert one.addresses == ("10.0.0.1", *elsewhere)


def test_a_member_that_was_removed_is_not_among_the_edits() -> None:
    edits = MemberEdits(as_table(membership_of(member("web01"), member("web02", "10.0.0.2")).members))

    edits.remove("web01")

    assert ("web01" in edits, "web02" in edits, len(edits)) == (False, True, 1)


def test_a_name_is_found_exactly() -> None:
    membership = membership_of(member("web01"), member("WEB01", "10.0.0.2"))

    assert search_member(membership, "WEB01") == membership.members["WEB01"]


def test_a_name_is_found_in_any_case() -> None:
    membership = membership_of(member("vm"), member("vm2", "10.0.0.2"))

    assert search_member(membership, "VM") == membership.members["vm"]


def test_a_member_that_left_comes_before_a_name_that_is_known_from_a_command_only() -> None:
    membership = membership_of(member("Vm", status=UNKNOWN), member("vm", status=LEFT))

    assert search_member(membership, "VM") == membership.members["vm"]


def test_of_two_names_that_differ_in_case_only_the_address_decides() -> None:
    membership = membership_of(member("web01"), member("WEB01", "10.0.0.2"))

    assert search_member(membership, "Web01", "10.0.0.2") == membership.members["WEB01"]
    assert search_member(membership, "Web01") is None


def test_an_exact_name_comes_before_the_address() -> None:
    membership = membership_of(member("web01"), member("web02", "10.0.0.2"))

    assert search_member(membership, "web01", "10.0.0.2") == membership.members["web01"]


def test_an_unknown_name_is_found_by_its_address() -> None:
    # NetBIOS cuts a computer's name at 15 characters: Serf's is longer.
    membership = membership_of(member("webserver-tokyo-01", "10.0.0.2"), member("web02", "10.0.0.3"))

    assert search_member(membership, "WEBSERVER-TOKYO", "10.0.0.2") == membership.members["webserver-tokyo-01"]


def test_the_address_may_be_given_for_the_name() -> None:
    membership = membership_of(member("web01", "2001:db8::5"))

    assert search_member(membership, "2001:DB8::5") == membership.members["web01"]


def test_an_address_of_two_members_means_none_of_them() -> None:
    assert search_member(membership_of(member("web01"), member("web02")), "other", "10.0.0.1") is None


def test_an_address_means_its_only_present_member() -> None:
    membership = membership_of(member("old", status=LEFT), member("new"))

    assert search_member(membership, "10.0.0.1") == membership.members["new"]


def test_an_empty_address_finds_no_member() -> None:
    assert search_member(membership_of(member("web01", "")), "web02") is None


def test_a_pause_applies_to_every_member_with_the_address() -> None:
    membership = membership_of(paused_member(member("old", status=LEFT)), member("new"), member("other", "10.0.0.2"))

    assert paused_names(membership) == ["new", "old"]


def test_only_the_tag_value_paused_pauses() -> None:
    tagged = [
        member("a", "10.0.0.1", tags={"lbagent": "paused"}),
        member("b", "10.0.0.2", tags={"lbagent": "on"}),
        member("c", "10.0.0.3"),
    ]

    assert paused_names(membership_of(*tagged)) == ["a"]


def test_members_without_an_address_share_no_pause() -> None:
    membership = membership_of(paused_member(member("a", "", status=UNKNOWN)), member("b", ""))

    assert paused_names(membership) == ["a"]


@pytest.mark.parametrize(("at", "still"), [(NOW + 59, True), (NOW + 60, False), (NOW + 61, False)])
def test_a_pause_with_an_end_expires(at: int, still: bool) -> None:  # noqa: FBT001
    membership = membership_of(member("web01", pause=Pause(NOW, "query", "", NOW + 60)))

    assert bool(paused_names(drop_expired_of(membership, at))) is still


@pytest.mark.parametrize(
    ("statuses", "counts"),
    [([], {ALIVE: 0}), ([ALIVE, ALIVE], {ALIVE: 2}), ([ALIVE, FAILED, LEFT, FAILED], {ALIVE: 1, FAILED: 2, LEFT: 1})],
)
def test_members_are_counted_by_status(statuses: list[str], counts: dict[str, int]) -> None:
    assert count_statuses(membership_of(*(member(f"n{at}", status=one) for at, one in enumerate(statuses)))) == counts


def test_only_present_members_count_as_paused_and_have_a_start() -> None:
    gone, tagged = paused_member(member("gone", "10.0.0.2", status=LEFT)), member("c", tags={"lbagent": "paused"})
    membership = membership_of(paused_member(member("a", "10.0.0.1")), gone, tagged, member("d", "10.0.0.4"))

    assert count_paused(membership) == 2
    assert find_pause_starts(membership) == {"a": NOW}


def test_quarantined_members_are_counted() -> None:
    held, tagged = member("a", quarantine=Quarantine(NOW, "x", "key")), member("b", tags={"x": "y"})

    assert count_quarantined(membership_of(held, tagged, tagged._replace(name="c"), member("d"))) == 1


def test_a_pause_without_an_end_never_expires() -> None:
    membership = membership_of(paused_member(member("web01")), paused_member(member("gone", "10.0.0.2", status=LEFT)))

    assert drop_expired_of(membership, NOW + 1000 * 24 * HOUR) == membership


@pytest.mark.parametrize(("at", "held"), [(NOW - 1, False), (NOW, True), (NOW + 599, True), (NOW + 600, False)])
def test_a_quarantine_expires_after_ten_minutes(at: int, held: bool) -> None:  # noqa: FBT001
    membership = membership_of(member("web01", quarantine=Quarantine(NOW, "refused", "key")))

    assert (drop_expired_of(membership, at).members["web01"].quarantine is not None) is held


def test_removals_that_were_not_requested_count_for_an_hour() -> None:
    nodes = {"past": NOW - HOUR, "first": NOW - HOUR + 1, "last": NOW, "future": NOW + 1}
    membership = Membership(removals={"lb-iis": nodes, "lb-old": {"past": NOW - HOUR}})

    assert drop_expired_of(membership, NOW).removals == {"lb-iis": {"first": NOW - HOUR + 1, "last": NOW}}


@pytest.mark.parametrize("status", [LEFT, UNKNOWN])
@pytest.mark.parametrize(("at", "kept"), [(NOW + 24 * HOUR - 1, True), (NOW + 24 * HOUR, False)])
def test_members_that_left_and_unknown_nodes_are_remembered_for_a_day(status: str, at: int, kept: bool) -> None:  # noqa: FBT001
    pause = Pause(NOW, "user event") if status == UNKNOWN else None

    assert ("web01" in drop_expired_of(membership_of(member("web01", status=status, pause=pause)), at).members) is kept


def test_an_unknown_node_whose_pause_expired_is_forgotten() -> None:
    membership = membership_of(member("web01", status=UNKNOWN, pause=Pause(NOW, "query", "", NOW + 60)))

    assert drop_expired_of(drop_expired_of(membership, NOW + 60), NOW + 61) == Membership()


def test_a_member_that_is_forgotten_leaves_the_others_as_they_are() -> None:
    kept = paused_member(member("web02", "10.0.0.2", tags={"a": "1"}))
    gone = member("web01", status=LEFT)

    assert drop_expired_of(membership_of(gone, kept), NOW + 24 * HOUR) == membership_of(kept)


@pytest.mark.parametrize("status", [ALIVE, FAILED])
def test_a_present_member_is_never_forgotten(status: str) -> None:
    membership = membership_of(member("web01", status=status))

    assert drop_expired_of(membership, NOW + 1000 * 24 * HOUR) == membership


def test_clocks_and_applied_records_do_not_expire() -> None:
    membership = Membership({}, {"user": 5}, frozenset({"a"}))

    assert drop_expired_of(membership, NOW) == membership


def test_missed_members_are_stored() -> None:
    membership = membership_of(member("web01"))._replace(missed={"web01": NOW})

    assert store.parse_membership(store.serialize_membership(membership)).missed == {"web01": NOW}
    assert (
        store.parse_membership(
            store.serialize_membership(membership).replace(b'"missed":{"web01":1700000000},', b"")
        ).missed
        == {}
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"address": ""},
        {"tags": []},
        {"tags": ""},
        {"tags": 0},
        {"tags": {"a": 1}},
        {"address": "10.0.0.999"},
        {"status": "gone"},
    ],
)
def test_a_member_that_lbagent_never_writes_is_reported_as_damage(damage: dict[str, object]) -> None:
    state = json.loads(store.serialize_membership(membership_of(member("web01", tags={"weight": "5"}))))
    for key, value in damage.items():
        if key in state["members"]:
            state["members"][key] = [value]
        else:
            state["more"]["web01"][key] = value

    with pytest.raises(store.Damaged):
        store.parse_membership(json.dumps(state).encode())


def test_an_unknown_node_may_have_no_address() -> None:
    waiting = membership_of(member("web01", "", status=UNKNOWN, pause=Pause(NOW, "me")))

    assert store.parse_membership(store.serialize_membership(waiting)).members["web01"] == waiting.members["web01"]
