"""Events change membership: joins, leaves and failures, and pauses and resumes in Lamport order."""

# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbagent.membership.model import (
    ALIVE,
    FAILED,
    LEFT,
    MEMBERS_LIMIT,
    UNKNOWN,
    UNKNOWN_LIMIT,
    LastCommands,
    Member,
    Membership,
    Pause,
    PauseCommand,
)
from lbagent.membership.pauses import needs_serf_clocks
from lbagent.membership.updates import apply_events, has_no_serving_member, is_confirmation
from lbagent.serf.events import parse_event
from lbagent.serf.raw_event import RawEvent
from tests.helpers.builders import (
    NOW,
    command_event,
    join_event,
    member,
    member_event,
    membership_of,
    parse_roles_text,
    paused_member,
    paused_names,
    update_membership,
    updated_membership,
)

WEB01 = "web01\t10.0.0.1\tweb\tdc=tokyo"
WEB02 = "web02\t10.0.0.2\tweb\tdc=tokyo"


def statuses(membership: Membership) -> dict[str, str]:
    """Every member's status, by name."""
    return {name: one.status for name, one in membership.members.items()}


# --- members ------------------------------------------------------------------------------------------------------


def test_every_line_of_a_join_is_added() -> None:
    done = update_membership(membership_of(), join_event(WEB01, WEB02))

    assert done.membership == membership_of(
        member("web01", tags={"dc": "tokyo"}), member("web02", "10.0.0.2", tags={"dc": "tokyo"})
    )
    assert done.causes == ("member-join web01 and 1 more",)


def test_an_update_adds_a_member_as_a_join_does() -> None:
    assert updated_membership(membership_of(), member_event("member-update", WEB01)) == updated_membership(
        membership_of(), join_event(WEB01)
    )


def test_a_join_changes_address_role_and_tags() -> None:
    done = update_membership(membership_of(member("web01", "10.0.0.9", "db", {"port": "1"})), join_event(WEB01))

    assert done.membership == membership_of(member("web01", tags={"dc": "tokyo"}))
    assert done.causes == ("member-join web01",)


def test_a_repeated_update_changes_nothing_and_is_not_recorded() -> None:
    # Serf sends an update again with every later member event (serf#555).
    once = updated_membership(membership_of(), join_event(WEB01))

    done = update_membership(once, member_event("member-update", WEB01, at=NOW + 60))

    assert done.membership == once
    assert done.causes == ()


@pytest.mark.parametrize("kind", ["member-leave", "member-reap"])
def test_a_member_that_leaves_is_not_present(kind: str) -> None:
    membership = updated_membership(membership_of(), join_event(WEB01, WEB02), member_event(kind, WEB01, at=NOW + 60))

    assert statuses(membership) == {"web01": LEFT, "web02": ALIVE}
    assert membership.members["web01"].changed == NOW + 60


@pytest.mark.parametrize("kind", ["member-leave", "member-reap"])
def test_a_leave_of_an_unknown_node_changes_nothing(kind: str) -> None:
    done = update_membership(membership_of(), member_event(kind, WEB01))

    assert done.membership == membership_of()
    assert done.causes == ()


def test_a_member_that_fails_stays_present() -> None:
    assert statuses(updated_membership(membership_of(), join_event(WEB01), member_event("member-failed", WEB01))) == {
        "web01": FAILED
    }


def test_a_failed_member_that_joins_is_alive() -> None:
    assert statuses(updated_membership(membership_of(), member_event("member-failed", WEB01), join_event(WEB01))) == {
        "web01": ALIVE
    }


def test_a_failure_keeps_the_pause_and_the_last_commands() -> None:
    before = updated_membership(membership_of(), join_event(WEB01), command_event("pause", "web01", 5))

    assert updated_membership(before, member_event("member-failed", WEB01)).members["web01"] == before.members[
        "web01"
    ]._replace(status=FAILED)


@pytest.mark.parametrize("kind", ["member-leave", "member-reap", "member-failed"])
def test_a_pause_survives_a_leave_a_failure_and_a_return(kind: str) -> None:
    membership = updated_membership(
        membership_of(),
        join_event(WEB01),
        command_event("pause", "web01", 1),
        member_event(kind, WEB01),
        join_event(WEB01),
    )

    assert statuses(membership) == {"web01": ALIVE}
    assert paused_names(membership) == ["web01"]


def test_a_leave_ends_a_quarantine() -> None:
    from lbagent.membership.model import Quarantine  # noqa: PLC0415

    membership = updated_membership(
        membership_of(member("web01", quarantine=Quarantine(NOW, "x", "y"))), member_event("member-leave", WEB01)
    )

    assert membership.members["web01"].quarantine is None


def test_an_invalid_line_is_a_warning_and_the_next_one_is_applied() -> None:
    done = update_membership(membership_of(), join_event("we b\t10.0.0.9\tweb\t", WEB01))

    assert statuses(done.membership) == {"web01": ALIVE}
    assert done.warnings == (
        "member-join: invalid node name 'we b'; use at most 63 letters, digits, '.', '-' and '_', beginning with a letter or digit",
    )


def full(status: str = ALIVE) -> Membership:
    """As many members as there may be."""
    return membership_of(*(member(f"n{at}", "10.0.0.1", status=status) for at in range(MEMBERS_LIMIT)))


def test_beyond_20000_members_new_nodes_are_refused_and_known_ones_kept() -> None:
    done = update_membership(full(), join_event(WEB01, "n7\t10.0.0.7\tweb\t"))

    assert list(done.membership.members) == list(full().members)
    assert done.membership.members["n7"].address == "10.0.0.7"
    assert done.causes == ("member-join n7",)
    assert done.warnings == (
        "node web01: not added, as 20000 members are known; run `lbagent forget` for nodes that no longer exist",
    )


def test_a_member_that_left_makes_room_unless_it_is_paused() -> None:
    kept, gone = paused_member(member("n0", status=LEFT)), member("n1", status=LEFT)

    membership = updated_membership(
        full()._replace(members={**full().members, "n0": kept, "n1": gone}), join_event(WEB01)
    )

    assert "web01" in membership.members
    assert "n0" in membership.members
    assert "n1" not in membership.members


@pytest.mark.parametrize(
    ("known", "added"),
    [
        ([], ["web01", "web02", "web03"]),
        ([member("n0"), member("u0", "", status=UNKNOWN, pause=Pause(NOW, "query"))], ["web01", "web02"]),
        ([member("n0"), member("n1", status=LEFT)], ["web01", "web02"]),
        ([member("n0"), member("n1", status=LEFT), member("n2", status=FAILED)], ["web01"]),
        ([member("n0"), member("n1", status=LEFT), member("n2", status=LEFT)], ["web01", "web02"]),
    ],
)
def test_nodes_are_added_until_the_limit_and_then_replace_those_that_left(
    known: list[Member], added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbagent.membership.updates.MEMBERS_LIMIT", 3)

    done = update_membership(membership_of(*known), join_event(*(f"web0{at}\t10.0.1.{at}\tweb\t" for at in (1, 2, 3))))

    assert [name for name in done.membership.members if name.startswith("web")] == added


# --- pause and resume ---------------------------------------------------------------------------------------------


def test_a_pause_is_stored_with_sender_time_reason_and_end() -> None:
    membership = updated_membership(
        membership_of(member("web01")), command_event("pause", "web01 until=1700009999 reason=patch day", 1)
    )

    assert membership.members["web01"].pause == Pause(NOW, "user event", "patch day", 1_700_009_999)


def test_a_resume_ends_a_pause() -> None:
    assert (
        paused_names(
            updated_membership(
                membership_of(member("web01")), command_event("pause", "web01", 1), command_event("resume", "web01", 2)
            )
        )
        == []
    )


def test_every_query_is_answered_with_its_result() -> None:
    done = update_membership(
        membership_of(member("web01"), member("web02", "10.0.0.2", tags={"lbagent": "paused"})),
        command_event("pause", "web01", 1, "query"),
        command_event("pause", "nobody", 2, "query"),
        command_event("resume", "nobody2", 3, "query"),
        command_event("resume", "web02", 4, "query"),
        command_event("pause", "", 5, "query"),
        command_event("pause", "no/name", 6, "query"),
        command_event("resume", "no/name", 7, "query"),
        command_event("pause", "2001:db8::5", 8, "query"),
        command_event("pause", f"/{'x' * 99}", 9, "query"),
    )

    assert list(done.answers.values()) == [
        "done",
        "unknown node, remembered",
        "unknown node",
        "still paused by its tag",
        "refused: pause: invalid payload ''; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]",
        "refused: invalid node name",
        "unknown node",
        "refused: no node has the address 2001:db8::5",
        "refused: invalid node name",
    ]
    assert done.warnings == (
        "pause: invalid payload ''; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]",
        "pause of 'no/name': invalid node name",
        "pause of '2001:db8::5': no node has the address 2001:db8::5",
        f"pause of '/{'x' * 79}': invalid node name",
    )


def test_a_resume_never_adds_a_member() -> None:
    membership = updated_membership(membership_of(), command_event("resume", "web01 10.0.0.1 web", 1))

    assert statuses(membership) == {"web01": UNKNOWN}
    assert paused_names(membership) == []


def test_a_pause_never_adds_a_member() -> None:
    membership = updated_membership(membership_of(), command_event("pause", "web01 10.0.0.1 web", 1))

    assert statuses(membership) == {"web01": UNKNOWN}
    assert not membership.members["web01"].present


@pytest.mark.parametrize("name", ["web01", "WEB01"])
def test_a_pause_of_an_unknown_node_applies_when_it_joins(name: str) -> None:
    membership = updated_membership(membership_of(), command_event("pause", name, 1), join_event(WEB01))

    assert statuses(membership) == {"web01": ALIVE}
    assert paused_names(membership) == ["web01"]


def test_a_pause_of_an_unknown_node_by_its_address_applies_when_it_joins() -> None:
    membership = updated_membership(membership_of(), command_event("pause", "10.0.0.1", 1), join_event(WEB01))

    assert "web01" in paused_names(membership)


def test_a_pause_of_an_unknown_name_with_an_address_applies_to_the_node_that_joins_there() -> None:
    membership = updated_membership(
        membership_of(), command_event("pause", "WEBSERVER-TOKYO 10.0.0.1", 1), join_event(WEB01)
    )

    assert "web01" in paused_names(membership)


def test_a_pause_remembered_for_an_address_ends_with_the_resume_of_the_node_there() -> None:
    membership = updated_membership(
        membership_of(),
        command_event("pause", "WEBSERVER-TOKYO 10.0.0.1", 1),
        join_event(WEB01),
        command_event("resume", "web01", 2),
    )

    assert paused_names(membership) == []


def test_a_pause_of_an_unknown_node_can_be_resumed() -> None:
    membership = updated_membership(
        membership_of(), command_event("pause", "web01", 1), command_event("resume", "WEB01", 2), join_event(WEB01)
    )

    assert paused_names(membership) == []


def test_at_most_a_thousand_pauses_of_unknown_nodes_are_remembered() -> None:
    waiting = [paused_member(member(f"u{at}", "", "", status=UNKNOWN)) for at in range(UNKNOWN_LIMIT)]

    done = update_membership(
        membership_of(*waiting), command_event("pause", "one-more", 1), command_event("pause", "u5", 2)
    )

    assert len(done.membership.members) == 1000
    assert list(done.answers.values()) == ["refused: too many unknown nodes are paused", "unknown node, remembered"]


def test_resumes_of_unknown_nodes_leave_room_for_as_many_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbagent.membership.updates.UNKNOWN_LIMIT", 2)
    resumes = [command_event("resume", f"web0{at}", at) for at in (1, 2)]

    done = update_membership(membership_of(), *resumes, *(command_event("pause", f"web0{at}", at) for at in (3, 4, 5)))

    assert sorted(done.membership.members) == ["web01", "web02", "web03", "web04"]


def test_a_resume_is_recorded_for_all_names_of_the_host_that_have_a_pause_or_commands() -> None:
    before = updated_membership(
        membership_of(
            member("paused", status=LEFT),
            member("resumed", status=LEFT),
            member("other", tags={"a": "1"}),
            member("elsewhere", "10.0.0.2"),
        ),
        command_event("resume", "resumed", 2, "query"),
        command_event("pause", "paused", 3, "query"),
        command_event("pause", "elsewhere", 4, "query"),
        join_event("new\t10.0.0.1\tweb\t"),
    )

    after = updated_membership(before, command_event("resume", "new", 6))

    assert paused_names(after) == ["elsewhere"]
    assert {
        name: {clock: last.ltime for clock, last in one.last_commands.items()} for name, one in after.members.items()
    } == {
        "paused": {"query": 3, "user": 6},
        "resumed": {"query": 2, "user": 6},
        "other": {},
        "elsewhere": {"query": 4},
        "new": {"user": 6},
    }


def test_a_pause_is_recorded_for_its_own_name_only() -> None:
    before = updated_membership(
        membership_of(member("old", status=LEFT), member("new")), command_event("resume", "old", 1)
    )

    after = updated_membership(before, command_event("pause", "new", 2))

    assert after.members["old"] == before.members["old"]
    assert paused_names(after) == ["new", "old"]


def test_a_late_pause_of_another_name_of_a_host_that_was_resumed_has_no_effect() -> None:
    before = updated_membership(
        membership_of(member("old", status=LEFT), member("new")), command_event("resume", "new", 6)
    )

    assert paused_names(updated_membership(before, command_event("pause", "old", 5))) == []


def test_a_late_pause_of_an_unknown_name_of_a_host_that_was_resumed_has_no_effect() -> None:
    before = updated_membership(
        membership_of(member("a", status=LEFT)),
        command_event("resume", "a", 6),
        join_event("b\t10.0.0.1\tweb\t"),
        member_event("member-leave", "b\t10.0.0.1\tweb\t"),
    )

    after = updated_membership(before, command_event("pause", "c 10.0.0.1", 5))

    assert statuses(after) == {"a": LEFT, "b": LEFT, "c": UNKNOWN}
    assert paused_names(after) == []


def test_a_node_that_returns_to_the_address_of_its_pause_has_the_resume_of_its_host() -> None:
    moved = updated_membership(
        membership_of(member("old")),
        command_event("pause", "old", 5),
        member_event("member-update", "old\t10.0.0.2\tweb\t"),
        join_event("new\t10.0.0.1\tweb\t"),
        command_event("resume", "new", 6),
    )

    after = updated_membership(moved, member_event("member-update", "old\t10.0.0.1\tweb\t"))

    assert (paused_names(moved), paused_names(after)) == (["old"], [])


def test_a_resume_ends_the_pause_of_every_member_with_the_address() -> None:
    membership = updated_membership(
        membership_of(paused_member(member("old", status=LEFT)), paused_member(member("new"))),
        command_event("resume", "new", 1),
    )

    assert paused_names(membership) == []


def test_a_resume_of_a_node_at_the_former_address_of_a_paused_node_does_not_end_its_pause() -> None:
    before = updated_membership(
        membership_of(member("web01", "10.0.0.1"), member("web02", "10.0.0.2")),
        command_event("pause", "web02", 1),
        member_event("member-update", "web01\t10.0.0.2\tweb\t", "web02\t10.0.0.1\tweb\t"),
    )

    for after in (
        updated_membership(before, command_event("resume", "web01", 2)),
        updated_membership(before, command_event("pause", "web01", 2), command_event("resume", "web01", 3)),
        updated_membership(
            before, member_event("member-leave", "web02\t10.0.0.1\tweb\t"), command_event("resume", "web01", 2)
        ),
    ):
        assert paused_names(after) == ["web02"]


def test_a_pause_applies_to_a_node_that_joined_in_the_same_batch() -> None:
    done = update_membership(
        membership_of(),
        join_event("webserver-tokyo-01\t10.0.0.1\tweb\t"),
        command_event("pause", "WEBSERVER-TOKYO 10.0.0.1", 1),
    )

    assert paused_names(done.membership) == ["webserver-tokyo-01"]
    assert list(done.answers.values()) == ["done"]


# --- order within a clock -----------------------------------------------------------------------------------------


def test_an_older_event_is_a_replay() -> None:
    membership = updated_membership(
        membership_of(member("web01")),
        command_event("pause", "web01", 5),
        command_event("resume", "web01", 6),
        command_event("pause", "web01", 5),
    )

    assert paused_names(membership) == []


@pytest.mark.parametrize("verb", ["pause", "resume", "lbagent-forget"])
def test_the_same_event_twice_changes_nothing_more(verb: str) -> None:
    command = command_event(verb, "web01", 6, "query")
    once = updated_membership(membership_of(member("web01", status=FAILED)), command)

    done = update_membership(once, command)

    assert (done.membership, done.answers, done.causes) == (once, {"0": "done"}, ())


def test_at_an_equal_ltime_pause_wins() -> None:
    forth = updated_membership(
        membership_of(member("web01")), command_event("pause", "web01", 5), command_event("resume", "web01", 5)
    )
    back = updated_membership(
        membership_of(member("web01")), command_event("resume", "web01", 5), command_event("pause", "web01", 5)
    )

    assert paused_names(forth) == paused_names(back) == ["web01"]


def test_a_replay_of_a_pause_at_an_equal_ltime_after_a_resume_of_another_clock_is_dropped() -> None:
    membership = updated_membership(
        membership_of(member("web01")),
        command_event("pause", "web01", 5),
        command_event("resume", "web01", 1, "query"),
        command_event("pause", "web01", 5),
    )

    assert paused_names(membership) == []


def test_between_clocks_the_arrival_decides() -> None:
    membership = updated_membership(
        membership_of(member("web01")),
        command_event("pause", "web01", 50),
        command_event("resume", "web01", 2, "query"),
    )

    assert paused_names(membership) == []


def test_the_example_of_the_module_docstring_holds() -> None:
    """membership/pauses.py explains the order of commands with it."""
    received = [
        command_event("pause", "web01", 7),
        command_event("resume", "web01", 3, "query"),
        command_event("pause", "web01", 7),
        command_event("pause", "web01", 8),
    ]
    web01 = membership_of(member("web01"))

    in_effect = [paused_names(updated_membership(web01, *received[:count])) == ["web01"] for count in (1, 2, 3, 4)]

    assert in_effect == [True, False, False, True]
    heard = updated_membership(web01, *received).members["web01"].last_commands
    assert {clock: (last.ltime, last.commands[0].after) for clock, last in heard.items()} == {
        "user": (8, (("query", 3),)),
        "query": (3, (("user", 7),)),
    }


def test_a_typed_command_overrules_earlier_commands() -> None:
    typed = command_event("resume", "web01", None, "typed")

    membership = updated_membership(membership_of(member("web01")), command_event("pause", "web01", 50), typed)

    assert paused_names(membership) == []


def test_typed_commands_have_a_clock_of_their_own_that_starts_from_the_time() -> None:
    typed = command_event("pause", "web01", None, "typed")

    membership = updated_membership(membership_of(member("web01")), typed, typed)

    assert membership.clocks == {"typed@lb01": NOW + 1}
    assert membership.members["web01"].last_commands["typed@lb01"].ltime == NOW + 1


def test_ltimes_order_only_the_commands_of_one_node() -> None:
    members = membership_of(member("web01"), member("web02", "10.0.0.2"))

    membership = updated_membership(
        members, command_event("pause", "web01", 50), command_event("pause", "web02", 3), clocks={"user": 60}
    )

    assert paused_names(membership) == ["web01", "web02"]


def test_a_command_at_or_below_the_highest_ltime_asks_serf() -> None:
    before = updated_membership(membership_of(member("web01")), command_event("pause", "web01", 50))

    assert needs_serf_clocks(before, [parse_event(command_event("pause", "web01", 51))]) is False
    assert needs_serf_clocks(before, [parse_event(command_event("pause", "web01", 50))]) is True
    assert needs_serf_clocks(before, [parse_event(command_event("pause", "web01", 1, "query"))]) is False
    assert needs_serf_clocks(before, [parse_event(command_event("pause", "web01", None, "typed"))]) is False
    assert needs_serf_clocks(before, [parse_event(join_event(WEB01))]) is False


def test_in_a_new_cluster_the_clock_starts_over() -> None:
    before = updated_membership(membership_of(member("web01")), command_event("pause", "web01", 50))

    done = update_membership(before, command_event("resume", "web01", 2), clocks={"user": 3})

    assert paused_names(done.membership) == []
    assert done.membership.clocks == {"user": 2}
    assert done.causes == ("new Serf cluster: its user clock starts over", "resume web01 by user event")


def test_in_the_same_cluster_an_old_ltime_is_a_replay() -> None:
    before = updated_membership(membership_of(member("web01")), command_event("pause", "web01", 50))

    assert paused_names(updated_membership(before, command_event("resume", "web01", 2), clocks={"user": 51})) == [
        "web01"
    ]


def test_without_an_answer_from_serf_an_old_ltime_is_a_replay() -> None:
    before = updated_membership(membership_of(member("web01")), command_event("pause", "web01", 50))

    assert paused_names(updated_membership(before, command_event("resume", "web01", 2))) == ["web01"]


def test_a_new_cluster_resets_one_clock_only() -> None:
    before = updated_membership(
        membership_of(member("web01")),
        command_event("pause", "web01", 50),
        command_event("pause", "web01", 70, "query"),
    )

    membership = updated_membership(before, command_event("resume", "web01", 2), clocks={"user": 3, "query": 71})

    assert set(membership.members["web01"].last_commands) == {"user", "query", "@user"}
    assert membership.members["web01"].last_commands["query"].ltime == 70


def test_a_command_before_its_node_is_known_counts() -> None:
    membership = updated_membership(
        membership_of(),
        command_event("pause", "web01", 5),
        join_event(WEB01),
        command_event("resume", "web01", 4),
        clocks={"user": 9},
    )

    assert paused_names(membership) == ["web01"]


def test_a_record_is_applied_once() -> None:
    raw = join_event(WEB01)
    membership = Membership({}, {}, frozenset({raw.id}))
    batch = [(raw, parse_event(raw)), (raw._replace(id="b"), parse_event(join_event(WEB02)))]

    assert statuses(apply_events(membership, batch, {}).membership) == {"web02": ALIVE}


# --- of all -------------------------------------------------------------------------------------------------------

events = st.lists(
    st.one_of(
        st.builds(member_event, st.sampled_from(["member-join", "member-leave", "member-failed", "member-update", "member-reap"]), st.sampled_from([WEB01, WEB02])),
        st.builds(command_event, st.sampled_from(["pause", "resume"]), st.sampled_from(["web01", "WEB01", "web02", "10.0.0.1", "web03"]), st.integers(1, 9),
                  st.sampled_from(["user", "query"])),
    ),
    max_size=10,
)  # fmt: skip


def numbered(raws: list[RawEvent]) -> list[RawEvent]:
    """Each with an id of its own."""
    return [raw._replace(id=f"r{at}") for at, raw in enumerate(raws)]


@given(events)
def test_a_batch_gives_the_same_as_its_events_one_by_one(raws: list[RawEvent]) -> None:
    at_once = apply_events(membership_of(), [(raw, parse_event(raw)) for raw in numbered(raws)], {}).membership
    one_by_one = membership_of()
    for raw in numbered(raws):
        one_by_one = apply_events(one_by_one, [(raw, parse_event(raw))], {}).membership

    assert at_once == one_by_one


@given(events)
def test_a_replayed_history_of_commands_changes_nothing(raws: list[RawEvent]) -> None:
    commands = sorted((raw for raw in raws if raw.ltime is not None), key=lambda raw: (raw.kind, raw.ltime or 0))
    membership = updated_membership(
        membership_of(member("web01"), member("web02", "10.0.0.2"), member("web03", "10.0.0.3")), *commands
    )

    again = updated_membership(membership, *commands)

    assert paused_names(again) == paused_names(membership)


@given(
    st.lists(st.tuples(st.sampled_from(["pause", "resume"]), st.integers(1, 6)), max_size=8),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200)
def test_commands_on_one_clock_give_the_same_in_any_order(commands: list[tuple[str, int]], dice: random.Random) -> None:
    raws = [command_event(verb, "web01", ltime) for verb, ltime in commands]
    mixed = raws.copy()
    dice.shuffle(mixed)

    assert paused_names(updated_membership(membership_of(member("web01")), *raws)) == paused_names(
        updated_membership(membership_of(member("web01")), *mixed)
    )


# --- forget, and what else commands carry -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [FAILED, LEFT])
def test_a_forgotten_member_has_left_without_a_pause(status: str) -> None:
    before = membership_of(paused_member(member("web01", status=status)))

    done = update_membership(before, command_event("lbagent-forget", "web01", 3, "query", NOW + 9))

    [one] = done.membership.members.values()
    assert (one.status, one.changed, one.pause) == (LEFT, NOW + 9, None)
    assert (done.answers, done.causes) == ({"0": "done"}, ("forget web01 by query",))


def test_a_forgotten_member_is_not_missed() -> None:
    before = membership_of(member("web01"), member("web02"))._replace(missed={"web01": NOW, "web02": NOW})

    assert updated_membership(before, command_event("lbagent-forget", "web01 force", 3, "query")).missed == {
        "web02": NOW
    }


def test_an_alive_member_is_forgotten_only_with_force() -> None:
    before = membership_of(paused_member(member("web01")))

    refused = update_membership(before, command_event("lbagent-forget", "web01", 3, "query"))
    forced = update_membership(before, command_event("lbagent-forget", "web01 force", 4, "query"))

    assert (refused.membership.members, refused.answers) == (before.members, {"0": "refused: web01 is alive"})
    assert statuses(forced.membership) == {"web01": LEFT}
    assert paused_names(forced.membership) == []


def test_a_pause_of_an_unknown_node_can_be_forgotten() -> None:
    done = update_membership(
        membership_of(), command_event("pause", "web01", 3), command_event("lbagent-forget", "web01", 4, "query")
    )

    assert statuses(done.membership) == {"web01": UNKNOWN}
    assert paused_names(done.membership) == []
    assert done.answers == {"0": "unknown node, remembered", "1": "done"}


def test_an_unknown_name_cannot_be_forgotten() -> None:
    done = update_membership(
        membership_of(),
        command_event("lbagent-forget", "web0l", 4, "query"),
        command_event("lbagent-forget", "web0l", None, "typed"),
    )

    assert done.membership.members == {}
    assert list(done.answers.values()) == ["unknown node", "unknown node"]


def test_a_forgotten_node_can_be_paused_as_unknown_again() -> None:
    done = update_membership(
        membership_of(),
        command_event("pause", "web01", 3),
        command_event("lbagent-forget", "web01", 4, "query"),
        command_event("pause", "web01", 5),
        join_event(WEB01),
    )

    assert paused_names(done.membership) == ["web01"]


def test_a_user_event_forgets_no_node() -> None:
    before = membership_of(member("web01", status=FAILED))

    assert updated_membership(before, command_event("lbagent-forget", "web01", 3, "user")) == before


def test_a_replayed_pause_does_not_revive_a_forgotten_node() -> None:
    before = updated_membership(
        membership_of(member("web01", status=FAILED)), command_event("pause", "web01", 3, "query")
    )

    after = updated_membership(
        before, command_event("lbagent-forget", "web01", 4, "query"), command_event("pause", "web01", 3, "query")
    )

    assert paused_names(after) == []


def test_a_repeated_pause_keeps_its_begin() -> None:
    once = updated_membership(
        membership_of(member("web01")), command_event("pause", "web01 until=1800000000 reason=patch day", None, "typed")
    )

    again = updated_membership(
        once, command_event("pause", "web01 until=1800000000 by=lb01 reason=patch day", 7, "query", NOW + 60)
    )
    longer = updated_membership(
        once, command_event("pause", "web01 until=1900000000 by=lb01 reason=patch day", 7, "query", NOW + 60)
    )

    assert once.members["web01"].pause == Pause(NOW, "operator on lb01", "patch day", 1_800_000_000)
    assert again.members["web01"].pause == once.members["web01"].pause
    assert longer.members["web01"].pause == Pause(NOW + 60, "operator on lb01, by query", "patch day", 1_900_000_000)


def test_a_pause_from_the_web_page_names_its_user() -> None:
    after = updated_membership(
        membership_of(member("web01")), command_event("pause", "web01 by=alice@lb02 reason=patch day", 7, "query")
    )

    assert after.members["web01"].pause == Pause(NOW, "alice on lb02, by query", "patch day", None)


def test_exact_tags_of_a_sync_are_kept_where_stdin_agrees() -> None:
    exact = {"a": "1,role=lb", "b": "x=y,z"}
    before = membership_of(member("web12", "127.0.0.17", tags=exact))
    # As Serf wrote these very tags to stdin.
    same = updated_membership(
        before, member_event("member-update", "web12\t127.0.0.17\tweb\trole=web,a=1,role=lb,b=x=y,z")
    )
    other = updated_membership(before, member_event("member-update", "web12\t127.0.0.17\tweb\trole=web,a=2"))

    assert same == before
    assert other.members["web12"].tags == {"a": "2"}


def test_nodes_beyond_the_limit_are_reported_in_one_line() -> None:
    full_house = membership_of(*(member(f"n{at}", "10.0.0.1") for at in range(MEMBERS_LIMIT)))

    done = update_membership(full_house, join_event(*(f"late{at}\t10.0.0.2\tweb\t" for at in range(3000))))

    assert done.membership == full_house
    (warning,) = done.warnings
    assert warning.startswith(f"node late0 and 2999 more: not added, as {MEMBERS_LIMIT} members are known; run ")


@pytest.mark.parametrize("verb", ["pause", "resume", "lbagent-forget"])
def test_an_address_of_two_members_means_none_of_them(verb: str) -> None:
    before = membership_of(member("web01"), member("WEB-01"), member("gone", status=LEFT), member("web03", "10.0.0.3"))

    done = update_membership(
        before, command_event(verb, "10.0.0.1", 1, "query"), command_event(verb, "web99 10.0.0.1", 2, "query")
    )

    assert set(done.answers.values()) == {"refused: 2 nodes have the address 10.0.0.1; use the name of one of them"}
    assert done.membership.members == before.members


@pytest.mark.parametrize("verb", ["pause", "resume", "lbagent-forget"])
def test_a_name_that_two_members_have_in_another_case_is_refused(verb: str) -> None:
    before = membership_of(member("web1"), member("Web1", "10.0.0.2"))

    done = update_membership(before, command_event(verb, "WEB1", 1, "query"))

    why = "2 nodes have this name in another case: Web1, web1; use the exact name"
    assert list(done.answers.values()) == [f"refused: {why}"]
    assert done.warnings == (f"{verb.removeprefix('lbagent-')} of 'WEB1': {why}",)
    assert done.membership.members == before.members


def test_a_name_in_another_case_means_the_present_member() -> None:
    before = membership_of(member("Web1", status=LEFT), member("web1", "10.0.0.2"))

    assert paused_names(updated_membership(before, command_event("pause", "WEB1", 1))) == ["web1"]


def test_the_pause_tag_of_a_node_that_left_has_no_effect() -> None:
    gone = member("web01", tags={"lbagent": "paused"}, status=LEFT)

    assert paused_names(membership_of(gone, member("web02"))) == []


def test_a_name_known_from_a_command_does_not_hide_a_member() -> None:
    unknown = updated_membership(membership_of(), command_event("pause", "Web01", 1)).members["Web01"]
    before = membership_of(member("web01"), member("WEB01", "10.0.0.2"), unknown)

    assert statuses(before) == {"web01": ALIVE, "WEB01": ALIVE, "Web01": UNKNOWN}
    assert paused_names(updated_membership(before, command_event("pause", "Web01 10.0.0.2", 2))) == ["WEB01", "Web01"]


# --- causes and warnings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "who"),
    [([NOW], "web01"), ([NOW - 5, NOW - 9], "web01 and 1 more"), ([NOW + 1], None)],
)
def test_a_pause_that_ended_before_it_arrived_is_a_warning(ends: list[int], who: str | None) -> None:
    pauses = [command_event("pause", f"web0{at} until={end}", at) for at, end in enumerate(ends, 1)]

    done = update_membership(membership_of(member("web01"), member("web02", "10.0.0.2")), *pauses)

    why = f"pause of {who}: it ended before it arrived; if it was sent just now, compare the clocks of both hosts"
    assert done.warnings == ((why,) if who else ())
    assert paused_names(done.membership) == ([] if who else ["web01"])


def test_a_pause_of_an_unknown_node_is_a_cause_and_its_resume_is_none() -> None:
    done = update_membership(
        membership_of(), command_event("pause", "web09", 1), command_event("resume", "web08", 2, "query")
    )

    assert done.causes == ("pause web09 (unknown node) by user event",)


def test_a_resumed_unknown_node_cannot_be_forgotten() -> None:
    before = updated_membership(membership_of(), command_event("resume", "web09", 1))

    done = update_membership(before, command_event("lbagent-forget", "web09", 2, "query"))

    assert (done.answers, done.causes) == ({"0": "unknown node"}, ())
    assert done.membership.members == before.members


def test_several_unknown_nodes_can_join_in_one_batch() -> None:
    membership = updated_membership(
        membership_of(),
        command_event("pause", "web01", 1),
        command_event("pause", "web02", 2),
        join_event(WEB01, WEB02),
    )

    assert paused_names(membership) == ["web01", "web02"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["web1", "Web1", "wEb1"], "3 nodes have this name in another case: Web1, wEb1, web1"),
        (["web1", "Web1", "wEb1", "weB1"], "4 nodes have this name in another case: Web1, wEb1, weB1, …"),
    ],
)
def test_more_than_three_names_in_another_case_are_cut_in_the_answer(names: list[str], words: str) -> None:
    before = membership_of(*map(member, names))

    done = update_membership(before, command_event("pause", "WEB1", 1, "query"))

    assert done.answers == {"0": f"refused: {words}; use the exact name"}


def test_a_node_whose_address_becomes_known_has_the_resume_of_its_other_name() -> None:
    pause = LastCommands(5, (PauseCommand("a", pauses=True, at=NOW),))
    old = member("old", "", status=LEFT, pause=Pause(NOW, "reported by lb02"))._replace(last_commands={"user": pause})
    before = updated_membership(membership_of(old, member("new")), command_event("resume", "new", 6))

    after = updated_membership(before, join_event("old\t10.0.0.1\tweb\t"))

    assert paused_names(before) == ["old"]
    assert paused_names(after) == []


@pytest.mark.parametrize(("until", "paused"), [(NOW, []), (NOW + 1, ["new", "old"])])
def test_the_resume_of_another_name_leaves_a_pause_on_another_clock_until_its_end(
    until: int, paused: list[str]
) -> None:
    commands = {
        "user": LastCommands(5, (PauseCommand("a", pauses=True, at=NOW - 9),)),
        "query": LastCommands(3, (PauseCommand("b", pauses=True, until=until, at=NOW - 9),)),
    }
    old = member("old", "", status=LEFT, pause=Pause(NOW - 9, "query"))._replace(last_commands=commands)
    before = updated_membership(membership_of(old, member("new")), command_event("resume", "new", 6))

    assert paused_names(updated_membership(before, join_event("old\t10.0.0.1\tweb\t"))) == paused


def test_an_unknown_node_that_joins_has_the_resume_of_its_other_name() -> None:
    before = updated_membership(
        membership_of(member("new")), command_event("resume", "new", 6), command_event("pause", "old", 5)
    )

    after = updated_membership(before, join_event("old\t10.0.0.1\tweb\t"))

    assert (paused_names(before), paused_names(after)) == (["old"], [])


def test_what_is_remembered_of_an_unknown_node() -> None:
    after = updated_membership(membership_of(), command_event("resume", "web09 10.0.0.9", 6)).members["web09"]

    assert after._replace(last_commands={}) == Member("web09", "10.0.0.9", "", None, UNKNOWN, NOW)


@pytest.mark.parametrize(
    ("answer", "confirms"),
    [
        ("done", True),
        ("done, no other server of iis serves", True),
        ("done, a, b", True),
        ("queued", False),
        ("done1", False),
        ("", False),
    ],
)
def test_an_answer_that_begins_with_done_is_a_confirmation(answer: str, confirms: bool) -> None:  # noqa: FBT001
    assert is_confirmation(answer) is confirms


@pytest.mark.parametrize(
    ("members", "none"),
    [
        ([], True),
        ([member("web01")], False),
        ([member("web01", status=FAILED)], False),
        ([member("web01", status=LEFT)], True),
        ([member("idle", role="idle"), member("lb01", role="lb")], True),
        ([member("idle", role="idle"), member("web01")], False),
    ],
)
def test_a_membership_without_a_present_node_of_a_serving_role_is_detected(members: list[Member], none: bool) -> None:  # noqa: FBT001
    roles = parse_roles_text("services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}, idle: {lb: [none]}}")

    assert has_no_serving_member(membership_of(*members), roles) is none
