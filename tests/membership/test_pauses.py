"""The last commands of a node: which are kept, how two load balancers merge theirs, and what a new cluster changes."""

from __future__ import annotations

import pytest

from lbagent.membership.model import LEGACY_DIGEST, LastCommands, Member, Pause, PauseCommand
from lbagent.membership.pauses import (
    Clocks,
    RequestedPause,
    fill_addresses,
    find_last_activity,
    find_requested_pause,
    may_contain_replay,
    merge_addresses,
    merge_clock,
    restart_clock,
    resume_hosts,
    update_pause,
)
from lbagent.serf.events import Command, parse_event
from lbagent.serf.raw_event import RawEvent
from tests.helpers.builders import (
    NOW,
    command_event,
    join_event,
    member,
    membership_of,
    paused_names,
    updated_membership,
)

HOUR = 3600
PAUSE = PauseCommand("a", pauses=True, address="10.0.0.1", at=NOW)
RESUME = PauseCommand("b", pauses=False, address="10.0.0.1", at=NOW)


def commanded(
    name: str, ltime: int, *commands: PauseCommand, clock: str = "user", pause: Pause | None = None
) -> Member:
    """A member with these last commands on one clock."""
    return member(name, pause=pause)._replace(last_commands={clock: LastCommands(ltime, commands)})


# --- which are kept -----------------------------------------------------------------------------------------------


def test_of_two_ltimes_the_higher_is_kept() -> None:
    old, new = LastCommands(5, (PAUSE,)), LastCommands(6, (RESUME,))

    assert merge_clock(old, new) == merge_clock(new, old) == merge_clock(None, new) == merge_clock(new, None) == new


def test_one_command_that_arrived_twice_has_the_earlier_end_and_arrival_and_all_that_came_before_it() -> None:
    one = PauseCommand("a", pauses=True, until=NOW + 90, after=(("query", 3),), address="", at=NOW + 30)
    other = PauseCommand("a", pauses=True, until=NOW + 60, after=(("query", 2), ("typed@lb01", 9)), at=NOW)

    merged = merge_clock(LastCommands(5, (one,)), LastCommands(5, (other._replace(address="10.0.0.1"),)))

    after = (("query", 3), ("typed@lb01", 9))
    assert merged == LastCommands(5, (PauseCommand("a", True, NOW + 60, after, "10.0.0.1", NOW),))  # noqa: FBT003


def test_of_more_than_eight_commands_with_one_ltime_the_pauses_are_kept_first() -> None:
    resumes = [RESUME._replace(digest=f"a{number}") for number in range(8)]
    pauses = [PAUSE._replace(digest=f"p{number}") for number in range(3)]

    merged = merge_clock(LastCommands(5, tuple(resumes)), LastCommands(5, tuple(pauses)))

    assert [one.digest for one in merged.commands] == ["a0", "a1", "a2", "a3", "a4", "p0", "p1", "p2"]


def test_a_command_without_a_digest_is_replaced_by_the_command_itself() -> None:
    legacy = LastCommands(5, (PAUSE._replace(digest=LEGACY_DIGEST),))

    assert merge_clock(legacy, LastCommands(5, (PAUSE,))) == LastCommands(5, (PAUSE,))
    assert merge_clock(legacy, legacy) == legacy


def test_of_commands_without_a_digest_a_pause_is_kept() -> None:
    pause, resume = (LastCommands(5, (one._replace(digest=LEGACY_DIGEST),)) for one in (PAUSE, RESUME))

    assert merge_clock(pause, resume) == merge_clock(resume, pause) == pause


@pytest.mark.parametrize("address", ["", "10.0.0.9"])
def test_commands_with_an_address_are_kept_as_they_are(address: str) -> None:
    known = {"user": LastCommands(5, (PAUSE,)), "query": LastCommands(3, (RESUME,))}

    assert fill_addresses(known, address) is known


def test_at_most_four_addresses_are_kept() -> None:
    assert merge_addresses(["10.0.0.5", "", "10.0.0.1"], ["10.0.0.1", *(f"10.0.0.{n}" for n in (2, 3, 4))]) == (
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.4",
    )


@pytest.mark.parametrize(
    ("until", "now", "at"), [(None, NOW, NOW), (NOW + 60, NOW + 59, NOW), (NOW + 60, NOW + 60, NOW + 60)]
)
def test_the_end_of_a_pause_is_its_last_activity_once_it_has_come(until: int | None, now: int, at: int) -> None:
    assert find_last_activity({"user": LastCommands(5, (PAUSE._replace(until=until),))}, now) == at


def test_a_node_without_commands_has_no_activity() -> None:
    assert find_last_activity({}, NOW) == 0


# --- which pause they request ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "until"), [((NOW + 60, NOW + 90), NOW + 90), ((NOW + 60, None), None), ((None, None), None)]
)
def test_of_several_pauses_with_one_ltime_the_longest_is_in_effect_from_the_first_arrival(
    ends: tuple[int | None, int | None], until: int | None
) -> None:
    commands = [PauseCommand(digest, True, end, at=at) for digest, end, at in zip("ab", ends, (9, 7), strict=True)]  # noqa: FBT003

    requested = find_requested_pause({"user": LastCommands(5, tuple(commands))})

    assert requested == RequestedPause(7, until, frozenset("ab"))


@pytest.mark.parametrize(
    ("ltime", "pause_after", "resume_after", "paused"),
    [
        (7, (), (("user", 7),), False),
        (7, (("query", 3),), (("user", 7),), True),
        (1, (), (), True),
        (7, (("query", 3),), (), True),
    ],
)
def test_a_third_command_without_an_order_does_not_change_which_of_two_is_in_effect(
    ltime: int,
    pause_after: tuple[tuple[str, int], ...],
    resume_after: tuple[tuple[str, int], ...],
    paused: bool,  # noqa: FBT001
) -> None:
    known = {
        "user": LastCommands(ltime, (PAUSE._replace(after=pause_after),)),
        "query": LastCommands(3, (RESUME._replace(after=resume_after),)),
        "typed@lb01": LastCommands(9, (RESUME,)),
    }

    assert bool(find_requested_pause(known)) is paused


def test_a_command_overrules_what_was_known_when_it_arrived() -> None:
    pause = LastCommands(7, (PAUSE,))

    assert (
        find_requested_pause({"user": pause, "query": LastCommands(3, (RESUME._replace(after=(("user", 7),)),))})
        is None
    )
    assert find_requested_pause({"user": pause, "query": LastCommands(3, (RESUME._replace(after=(("user", 6),)),))})
    assert find_requested_pause({"@user": pause, "user": LastCommands(3, (RESUME,))}) is None


# --- replays of pauses with a length --------------------------------------------------------------------------------


@pytest.mark.parametrize(("ltime", "end"), [(9, NOW + HOUR), (5, NOW + HOUR // 2 + HOUR)])
def test_a_late_replay_of_a_pause_ends_when_the_pause_would_have_ended(ltime: int, end: int) -> None:
    members = membership_of(member("web01"), member("web02", "10.0.0.2"))
    later = command_event("pause", "web02", ltime)

    membership = updated_membership(members, later, command_event("pause", "web01 for=1h", 5, at=NOW + HOUR // 2))

    assert membership.marks == ((ltime, NOW),)
    assert membership.members["web01"].pause == Pause(NOW + HOUR // 2, "user event", "", end)


@pytest.mark.parametrize("clock", ["query", "typed"])
def test_a_pause_that_is_no_user_event_counts_from_its_arrival(clock: str) -> None:
    members = membership_of(member("web01"), member("web02", "10.0.0.2"))
    later, pause = command_event("pause", "web02", 9), command_event("pause", "web01 for=1h", 5, clock, NOW + 60)

    membership = updated_membership(members, later, pause if clock == "query" else pause._replace(ltime=None))

    assert membership.marks == ((9, NOW),)
    assert membership.members["web01"].pause is not None
    assert membership.members["web01"].pause.until == NOW + 60 + HOUR


def test_the_arrivals_of_the_last_16_user_events_are_kept() -> None:
    events = [command_event("pause", "web01", ltime, at=NOW + ltime) for ltime in (*range(1, 21), 20, 7)]

    marks = updated_membership(membership_of(member("web01")), *events).marks

    assert marks == tuple((ltime, NOW + ltime) for ltime in range(5, 21))


LISTED = updated_membership(
    membership_of(member("web01"), member("web02", "10.0.0.2")), command_event("pause", "web01", 5)
)


@pytest.mark.parametrize(
    ("event", "may"),
    [
        (command_event("pause", "web01", 5), False),
        (command_event("resume", "web01", 5), True),
        (command_event("pause", "web01", 4), False),
        (command_event("pause", "web01", 6), True),
        (command_event("pause", "web02", 4), True),
        (command_event("pause", "web03", 4), True),
        (command_event("pause", "web02", 4, "query"), False),
        (command_event("pause", "web02", None, "typed"), False),
        (join_event("web02\t10.0.0.2\tweb\t"), False),
    ],
)
def test_a_user_event_that_is_not_known_may_be_a_replay(event: RawEvent, may: bool) -> None:  # noqa: FBT001
    assert may_contain_replay(LISTED, [parse_event(event)]) is may


# --- a new cluster ---------------------------------------------------------------------------------------------------


def test_in_a_new_cluster_commands_move_to_the_former_clock() -> None:
    known = {
        "user": LastCommands(5, (PAUSE._replace(after=(("query", 3),)),)),
        "query": LastCommands(3, (RESUME._replace(after=(("user", 4),)),)),
    }

    once = restart_clock(known, "user")
    twice = restart_clock({**once, "user": LastCommands(2, (RESUME,))}, "user")

    assert once == {
        "query": LastCommands(3, (RESUME._replace(after=(("@user", 4),)),)),
        "@user": LastCommands(5, (PAUSE._replace(after=(("query", 3),)),)),
    }
    assert twice == {"query": once["query"], "@user": LastCommands(7, (RESUME,))}
    assert restart_clock(known, "typed@lb01") is known


@pytest.mark.parametrize(("clock", "marks"), [("user", ((2, NOW),)), ("query", ((50, NOW),))])
def test_a_new_cluster_forgets_when_user_events_arrived_in_the_earlier_one(
    clock: str, marks: tuple[tuple[int, int], ...]
) -> None:
    web01 = membership_of(member("web01"))
    before = updated_membership(
        web01, command_event("pause", "web01", 50), command_event("pause", "web01", 50, "query")
    )

    after = updated_membership(before, command_event("resume", "web01", 2, clock), clocks={"user": 50, "query": 50})

    assert (paused_names(after), after.clocks, after.marks) == ([], {"user": 50, "query": 50, clock: 2}, marks)


@pytest.mark.parametrize(
    ("highest", "ltime", "serf_ltime", "is_new"),
    [
        (50, 50, 50, True),
        (50, 2, 3, True),
        (50, 2, 51, False),
        (50, 51, 3, False),
        (50, 2, None, False),
        (50, None, 3, False),
        (0, 1, 1, False),
    ],
)
def test_a_cluster_is_new_where_neither_command_nor_agent_has_a_higher_ltime_than_known(
    highest: int,
    ltime: int | None,
    serf_ltime: int | None,
    is_new: bool,  # noqa: FBT001
) -> None:
    command = parse_event(command_event("pause", "web01", ltime))
    assert isinstance(command, Command)
    clocks = Clocks({"user": highest} if highest else {}, ())

    assert clocks.has_started_over(command, {} if serf_ltime is None else {"user": serf_ltime}) is is_new


# --- names of one host -----------------------------------------------------------------------------------------------


def test_a_pause_from_haproxy_cfg_ends_where_a_command_for_its_address_is_known() -> None:
    rebuilt = Pause(NOW, "haproxy.cfg")
    old, other = member("old", pause=rebuilt), member("other", "10.0.0.2", pause=rebuilt)
    nowhere, elsewhere = member("nowhere", "", pause=rebuilt), commanded("new2", 5, RESUME._replace(address=""))

    found = list(resume_hosts([nowhere, other, old, elsewhere, commanded("new", 5, RESUME)]))

    assert found == [old._replace(pause=None)]


@pytest.mark.parametrize(
    ("ltime", "address", "ends"), [(6, "10.0.0.1", True), (5, "10.0.0.1", False), (6, "10.0.0.2", False)]
)
def test_a_later_resume_of_another_name_of_the_host_ends_a_pause(ltime: int, address: str, ends: bool) -> None:  # noqa: FBT001
    paused = commanded("old", 5, PAUSE, pause=Pause(NOW, "user event"))
    resume = RESUME._replace(address=address, after=(("query", 9),))

    found = list(
        resume_hosts(
            [member("lone", "10.0.0.9", pause=Pause(NOW, "haproxy.cfg")), paused, commanded("new", ltime, resume)]
        )
    )

    ended = paused._replace(last_commands={"user": LastCommands(ltime, (resume._replace(after=()),))})
    assert found == ([ended] if ends else [])


def test_what_a_pause_had_overruled_stays_overruled_where_another_name_of_the_host_is_resumed() -> None:
    hour = PAUSE._replace(digest="hour", until=NOW + HOUR, after=(("user", 5),))
    known = {"user": LastCommands(5, (PAUSE,)), "query": LastCommands(3, (hour,))}
    old = member("old", pause=Pause(NOW, "query", "", NOW + HOUR))._replace(last_commands=known)

    (ended,) = resume_hosts([old, commanded("new", 9, RESUME, clock="query")])

    assert ended.last_commands["query"] == LastCommands(9, (RESUME._replace(after=(("user", 5),)),))
    assert update_pause(ended, NOW, "query").pause is None
