"""Load balancers report their pauses to each other, and agree after each has asked the other."""

# ruff: noqa: E501, FBT003  # a case of a table is a whole value

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.membership import peers
from lbagent.membership.model import (
    ALIVE,
    FAILED,
    FORGET_AFTER,
    LEFT,
    LEGACY_DIGEST,
    UNKNOWN,
    LastCommands,
    Member,
    Membership,
    Pause,
    PauseCommand,
)
from lbagent.membership.peers import (
    Observer,
    Page,
    PauseReport,
    Peer,
    Peers,
    digest_reports,
    drop_rebuilt_pauses,
    format_page,
    list_current_peers,
    merge_reports,
    parse_page,
    parse_peers,
    serialize_peers,
    update_peers,
)
from lbagent.serf.member_list import AgentInfo, ListedMember
from lbagent.serf.raw_event import RawEvent
from tests.helpers.builders import (
    NOW,
    command_event,
    drop_expired_of,
    join_event,
    member,
    membership_of,
    nearly_valid,
    paused_names,
    updated_membership,
)

ROOM = 900
CLOCKS = {"user": 100, "query": 100}
WEB01 = "web01\t10.0.0.1\tweb\t"


def hearing(*raws: RawEvent) -> Membership:
    """What a load balancer knows that has web01 and web02 and heard these, in this order."""
    return updated_membership(membership_of(member("web01"), member("web02", "10.0.0.2")), *raws)


def learning(mine: Membership, theirs: Membership, now: int = NOW, version: int = peers.VERSION) -> Membership:
    """Return `mine` merged with all reports of `theirs`."""
    after, more = "", True
    while more:
        found = parse_page(format_page(theirs, after, ROOM, now, version))
        assert found is not None
        mine = merge_reports(mine, found.reports, "lb02", CLOCKS, now).membership
        after, more = found.reports[-1].name if found.reports else "", found.more
    return mine


PAUSE, RESUME = command_event("pause", "web01", 5), command_event("resume", "web01", 6)
BY_QUERY = command_event("resume", "web01", 3, "query")


def test_a_page_is_parsed_into_the_reports_it_was_made_of() -> None:
    membership = hearing(
        command_event("pause", f"web01 until={NOW + 60}", 3, "query"), command_event("resume", "web02", 7)
    )

    said = format_page(membership, "", ROOM, NOW)

    (web01, web02) = membership.members["web01"], membership.members["web02"]
    [[pause], [resume]] = (one.commands for member in (web01, web02) for one in member.last_commands.values())
    assert said == (
        f"pauses={digest_reports(membership, NOW)} more=0 v=2 whole=0"
        f" web01,s,10.0.0.1,query/3/{pause.digest};p{NOW + 60};{NOW};=;"
        f" web02,s,10.0.0.2,user/7/{resume.digest};r;{NOW};=;"
    )
    found = parse_page(said)
    assert found is not None
    assert [(word.name, word.last_commands) for word in found.reports] == [
        ("web01", web01.last_commands),
        ("web02", web02.last_commands),
    ]


def test_an_older_load_balancer_gets_its_own_format() -> None:
    membership = hearing(
        command_event("pause", f"web01 until={NOW + 60}", 3, "query"), command_event("resume", "web02", 7)
    )

    said = format_page(membership, "", ROOM, NOW, 1)

    assert said == f"pauses={digest_reports(membership, NOW, 1)} more=0 web01,p,0,3,{NOW},{NOW + 60} web02,r,7,0,0,"


def test_reports_that_do_not_fit_are_on_the_next_page() -> None:
    membership = updated_membership(
        membership_of(*(member(f"web{at:03}", f"10.0.1.{at}") for at in range(100))),
        *(command_event("pause", f"web{at:03}", at + 1) for at in range(100)),
    )

    after, pages, names = "", 0, []
    while True:
        said = format_page(membership, after, ROOM, NOW)
        found = parse_page(said)
        assert found is not None
        assert len(said) <= ROOM
        names += [word.name for word in found.reports]
        after, pages = names[-1], pages + 1
        if not found.more:
            break

    assert names == [f"web{at:03}" for at in range(100)]
    assert pages == 7


def test_a_report_longer_than_a_page_is_shortened() -> None:
    commands = tuple(PauseCommand(f"{at:08x}", pauses=True, until=None, address="10.0.0.1", at=NOW) for at in range(8))
    clocks = ["user", "query", *(f"typed@{'x' * 60}{at}" for at in range(3))]
    membership = membership_of(
        member("web01")._replace(last_commands={clock: LastCommands(9, commands) for clock in clocks})
    )

    found = parse_page(format_page(membership, "", ROOM, NOW))

    assert found is not None
    assert [word.name for word in found.reports] == ["web01"]


def test_the_digest_does_not_depend_on_times_of_arrival() -> None:
    one, same = hearing(PAUSE), hearing(PAUSE._replace(at=PAUSE.at + 5000))

    assert digest_reports(one, NOW) == digest_reports(same, NOW) != digest_reports(hearing(PAUSE, RESUME), NOW)


def test_a_load_balancer_that_was_down_gets_the_pause() -> None:
    assert paused_names(learning(hearing(), hearing(PAUSE))) == ["web01"]
    assert paused_names(learning(hearing(PAUSE), hearing(PAUSE, RESUME))) == []
    assert paused_names(learning(hearing(PAUSE), hearing(PAUSE, BY_QUERY))) == []


def test_a_load_balancer_that_was_down_overrules_nothing() -> None:
    assert paused_names(learning(hearing(PAUSE, RESUME), hearing(PAUSE))) == []
    assert paused_names(learning(hearing(PAUSE, BY_QUERY), hearing(PAUSE))) == []


def test_after_commands_on_two_clocks_in_different_orders_the_pause_wins() -> None:
    one, other = hearing(PAUSE, BY_QUERY), hearing(BY_QUERY, PAUSE)

    assert paused_names(learning(one, other)) == paused_names(learning(other, one)) == ["web01"]


def test_a_command_typed_without_serf_is_reported() -> None:
    typed = command_event("resume", "web01", None, "typed")

    assert paused_names(learning(hearing(PAUSE), hearing(PAUSE, typed))) == []


def test_a_replay_does_not_revive_an_ended_pause() -> None:
    pause = command_event("pause", "web01 for=10s", 5)
    healthy = drop_expired_of(hearing(pause), NOW + 60)
    new = hearing(pause._replace(at=(NOW + 60) * 1000))
    assert paused_names(new) == ["web01"]

    assert paused_names(learning(healthy, new, NOW + 61)) == []
    assert paused_names(learning(new, healthy, NOW + 61)) == []
    assert (
        paused_names(updated_membership(learning(hearing(), healthy, NOW + 61), pause._replace(at=(NOW + 62) * 1000)))
        == []
    )


def test_of_two_pauses_with_one_ltime_the_longer_wins() -> None:
    one, other = (
        hearing(command_event("pause", f"web01 until={NOW + 60}", 5)),
        hearing(command_event("pause", "web01", 5)),
    )

    for membership in (learning(one, other), learning(other, one)):
        assert membership.members["web01"].pause == Pause(
            NOW, membership.members["web01"].pause.by if membership.members["web01"].pause else "", "", None
        )


def test_a_reinstalled_host_is_paused_on_a_load_balancer_that_never_knew_its_old_name() -> None:
    first = updated_membership(
        membership_of(),
        join_event("web10\t10.0.0.5\tweb\t"),
        command_event("pause", "web10", 5),
        RawEvent("l", NOW * 1000, "member-leave", "", None, "lb01", b"web10\t10.0.0.5\tweb\t\n"),
        join_event("web01\t10.0.0.5\tweb\t"),
    )
    second = updated_membership(membership_of(), join_event("web01\t10.0.0.5\tweb\t"))
    assert "web01" in paused_names(first)

    learned = learning(second, first)

    assert paused_names(learned) == paused_names(first) == ["web01", "web10"]
    assert learned.members["web10"].status == LEFT
    assert paused_names(updated_membership(learned, command_event("resume", "web01", 6))) == []


def test_a_resume_that_arrives_before_its_pause_is_remembered_for_an_unknown_node() -> None:
    resume, pause = command_event("resume", "web09", 6), command_event("pause", "web09", 5)

    assert paused_names(updated_membership(membership_of(), resume, pause, join_event("web09\t10.0.0.9\tweb\t"))) == []
    assert paused_names(updated_membership(membership_of(), pause, resume, join_event("web09\t10.0.0.9\tweb\t"))) == []


def test_a_pause_of_a_node_unknown_here_applies_when_it_joins() -> None:
    learned = learning(membership_of(), updated_membership(membership_of(), command_event("pause", "web99", 5)))

    assert learned.members["web99"].status == UNKNOWN
    assert paused_names(updated_membership(learned, join_event("web99\t10.0.0.9\tweb\t"))) == ["web99"]


def test_a_pause_of_an_unknown_address_applies_when_a_node_joins_there() -> None:
    learned = learning(membership_of(), updated_membership(membership_of(), command_event("pause", "10.0.0.7", 5)))

    assert paused_names(updated_membership(learned, join_event("web07\t10.0.0.7\tweb\t"))) == ["web07"]


def test_what_was_forgotten_after_a_day_is_not_added_again() -> None:
    theirs = updated_membership(membership_of(), command_event("pause", "web99", 5))

    assert learning(membership_of(), theirs, NOW + FORGET_AFTER).members == {}


def test_a_reported_pause_is_a_cause_in_the_history() -> None:
    found = parse_page(format_page(hearing(RESUME, command_event("pause", "web02", 7)), "", ROOM, NOW))
    assert found is not None

    causes = merge_reports(hearing(PAUSE), found.reports, "lb02", CLOCKS, NOW).causes

    assert causes == ("sync: web01 was resumed on lb02", "sync: web02 is paused on lb02")


# --- a comment in haproxy.cfg, and nothing else ---------------------------------------------------------------------

COMMENTED = membership_of(member("web01", pause=Pause(NOW, "haproxy.cfg")), member("web02", "10.0.0.2"))


def test_a_pause_from_a_comment_counts_where_no_command_is_known() -> None:
    assert paused_names(learning(hearing(), COMMENTED)) == ["web01"]
    assert paused_names(learning(COMMENTED, hearing())) == ["web01"]


def test_a_command_overrules_a_pause_from_a_comment() -> None:
    assert paused_names(learning(COMMENTED, hearing(PAUSE, RESUME))) == []
    assert paused_names(learning(hearing(PAUSE, RESUME), COMMENTED)) == []


def test_a_load_balancer_with_complete_knowledge_ignores_and_ends_pauses_from_comments() -> None:
    whole = hearing()._replace(peers_asked_at=NOW)

    assert paused_names(learning(whole, COMMENTED)) == []
    found = parse_page(format_page(whole, "", ROOM, NOW))
    assert found is not None
    assert found.is_complete is True
    assert paused_names(drop_rebuilt_pauses(COMMENTED)) == []


# --- an older version at the other end ------------------------------------------------------------------------------


def test_an_older_load_balancer_counts_where_it_has_a_newer_command() -> None:
    assert paused_names(learning(hearing(), hearing(PAUSE), version=1)) == ["web01"]
    assert paused_names(learning(hearing(PAUSE), hearing(PAUSE, RESUME), version=1)) == []
    assert paused_names(learning(hearing(PAUSE), hearing(PAUSE, BY_QUERY), version=1)) == []


def test_an_older_load_balancer_revives_no_pause_with_a_known_ltime() -> None:
    pause = command_event("pause", "web01 for=10s", 5)
    healthy, revived = drop_expired_of(hearing(pause), NOW + 60), hearing(pause._replace(at=(NOW + 60) * 1000))

    assert paused_names(learning(healthy, revived, NOW + 61, version=1)) == []
    assert (
        paused_names(learning(hearing(PAUSE, RESUME), hearing(PAUSE, command_event("pause", "web01", 6)), version=1))
        == []
    )


def test_a_replay_of_a_command_reported_by_an_older_load_balancer_is_ignored() -> None:
    learned = learning(hearing(), hearing(PAUSE, RESUME), version=1)

    assert learned.members["web01"].last_commands["user"].commands == (
        PauseCommand(LEGACY_DIGEST, pauses=False, address="10.0.0.1"),
    )
    assert paused_names(updated_membership(learned, command_event("pause", "web01", 6))) == []


# --- clocks of an earlier cluster ----------------------------------------------------------------------------


def test_commands_of_an_earlier_cluster_come_before_all_of_the_new_one() -> None:
    old = hearing(command_event("pause", "web01", 500))
    new = hearing(command_event("resume", "web01", 3))

    for mine, theirs in ((old, new), (new, old)):
        assert paused_names(learning(mine, theirs)) == []
    assert (
        paused_names(
            updated_membership(learning(old, hearing()), command_event("resume", "web01", 3), clocks={"user": 4})
        )
        == []
    )


@given(
    nearly_valid(
        st.sampled_from(
            [
                f"pauses=12345678 more=0 web01,p,0,3,{NOW},{NOW + 60} web02,r,7,0,0,",
                format_page(
                    hearing(PAUSE, BY_QUERY, command_event("pause", "web02 for=1h", None, "typed")), "", ROOM, NOW
                ),
            ]
        )
    )
)
def test_an_invalid_report_is_left_out(said: str) -> None:
    found = parse_page(said)

    for word in found.reports if found else ():
        membership = merge_reports(membership_of(member("web01")), [word], "lb02", CLOCKS, NOW).membership
        assert membership.members["web01"].status == ALIVE
        assert parse_page(format_page(membership, "", ROOM, NOW)) is not None


@pytest.mark.parametrize("said", ["", "pauses=1", "pauses=1 more=2", "refused: x", "more=0 pauses=1", "queued"])
def test_an_answer_that_is_not_a_page_gives_none(said: str) -> None:
    assert parse_page(said) is None


def test_a_member_known_from_a_report_has_no_line() -> None:
    learned = learning(membership_of(), hearing(PAUSE)).members["web01"]

    assert learned._replace(last_commands={}) == Member(
        "web01", "10.0.0.1", "", None, LEFT, NOW, Pause(NOW, "reported by lb02"), {}, None
    )


# --- pages and reports as text ---------------------------------------------------------------------------------------

COMMAND = PauseCommand("0000abcd", pauses=True, until=NOW + 60, after=(("user", 5),), address="10.0.0.1", at=NOW)


def parse_reports(text: str) -> tuple[PauseReport, ...]:
    """Return the valid reports of a page with this text."""
    found = parse_page(f"pauses=12345678 more=0 v=2 whole=1 {text}")
    assert found is not None
    return found.reports


@pytest.mark.parametrize(
    ("text", "report"),
    [
        (
            f"web01,s,10.0.0.1,query/3/0000abcd;p{NOW + 60};{NOW};=;user=5",
            PauseReport("web01", True, ("10.0.0.1",), {"query": LastCommands(3, (COMMAND,))}),
        ),
        (
            f"web01,u,10.0.0.1+10.0.0.2,@user/3/told;r;{NOW};10.0.0.2;typed@lb01=5+query=6|0000abcd;p;7;;",
            PauseReport(
                "web01",
                False,
                ("10.0.0.1", "10.0.0.2"),
                {
                    "@user": LastCommands(
                        3,
                        (
                            PauseCommand("0000abcd", pauses=True, at=7),
                            PauseCommand(LEGACY_DIGEST, False, None, (("query", 6), ("typed@lb01", 5)), "10.0.0.2", NOW),
                        ),
                    )
                },
            ),
        ),
        (f"web01,sp{NOW}:{NOW + 9},", PauseReport("web01", True, (), {}, Pause(NOW, "", "", NOW + 9))),
        (f"web01,sp{NOW},", PauseReport("web01", True, (), {}, Pause(NOW, ""))),
        ("web01,s,", PauseReport("web01", True, (), {})),
        (
            "web01,s,,typed@/3/0000abcd;p7;5;;",
            PauseReport("web01", True, (), {"typed@": LastCommands(3, (PauseCommand("0000abcd", True, 7, at=5),))}),
        ),
        (
            "web01,s,,query/3/" + "|".join(f"0000000{number};r;5;;" for number in range(8)),
            PauseReport("web01", True, (), {"query": LastCommands(3, tuple(PauseCommand(f"0000000{number}", False, at=5) for number in range(8)))}),
        ),
        (
            "web01,s,," + ",".join(f"typed@lb{number}/{'9' * 20}/0000abcd;r;{'9' * 11};;" for number in range(16)),
            PauseReport(
                "web01",
                True,
                (),
                {
                    f"typed@lb{number}": LastCommands(
                        10**20 - 1, (PauseCommand("0000abcd", pauses=False, at=10**11 - 1),)
                    )
                    for number in range(16)
                },
            ),
        ),
    ],
)  # fmt: skip
def test_a_report_is_parsed(text: str, report: PauseReport) -> None:
    assert parse_reports(text) == (report,)


@pytest.mark.parametrize(
    "text",
    [
        "web/1,s,",
        ",s,",
        "web01,x,",
        "web01,s",
        "web01,sp,",
        "web01,spx,",
        "web01,sx5,",
        "web01,s,2001:DB8::5",
        "web01,s,10.0.0.1x",
        "web01,s,010.0.0.1",
        "web01,s,,query/3",
        "web01,s,,query/x/0000abcd;r;5;;",
        "web01,s,,query/-3/0000abcd;r;5;;",
        "web01,s,,query/\u0663/0000abcd;r;5;;",
        f"web01,s,,query/{'1' * 21}/0000abcd;r;5;;",
        "web01,s,,other/3/0000abcd;r;5;;",
        "web01,s,,@other/3/0000abcd;r;5;;",
        "web01,s,,lb01/3/0000abcd;r;5;;",
        "web01,s,,typed@l/b/3/0000abcd;r;5;;",
        "web01,s,,typed@l=b/3/0000abcd;r;5;;",
        "web01,s,,@typed@lb01/3/0000abcd;r;5;;",
        "web01,s,,@@user/3/0000abcd;r;5;;",
        "web01,s,,query/3/0000abc;r;5;;",
        "web01,s,,query/3/0000abcg;r;5;;",
        "web01,s,,query/3/0000abcX;r;5;;",
        "web01,s,,query/3/0000abcd;x;5;;",
        "web01,s,,query/3/0000abcd;;5;;",
        "web01,s,,query/3/0000abcd;r9;5;;",
        "web01,s,,query/3/0000abcd;p1x;5;;",
        f"web01,s,,query/3/0000abcd;p{'1' * 12};5;;",
        f"web01,s,,query/3/0000abcd;r;{'1' * 12};;",
        "web01,s,,query/3/0000abcd;r;5;10.0.0;",
        "web01,s,,query/3/0000abcd;r;5;;other=5",
        "web01,s,,query/3/0000abcd;r;5;;user=x",
        "web01,s,,query/3/0000abcd;r;5;;|0000abcd;r;5;;",
        "web01,s,,query/3/" + "|".join(f"0000000{number};r;5;;" for number in range(9)),
        "web01,s,," + ",".join(f"typed@lb{number}/3/0000abcd;r;5;;" for number in range(17)),
    ],
)
def test_a_report_that_is_not_valid_is_left_out_and_the_next_one_is_parsed(text: str) -> None:
    assert parse_reports(f"{text} web02,u,") == (PauseReport("web02", False, (), {}),)


@pytest.mark.parametrize(
    ("text", "report"),
    [
        (
            f"web01,p,7,3,{NOW},{NOW + 60}",
            PauseReport(
                "web01",
                False,
                (),
                {
                    "user": LastCommands(
                        7, (PauseCommand(LEGACY_DIGEST, True, NOW + 60, (("query", 3),), "", NOW),)
                    ),
                    "query": LastCommands(
                        3, (PauseCommand(LEGACY_DIGEST, True, NOW + 60, (("user", 7),), "", NOW),)
                    ),
                },
            ),
        ),
        (
            f"web01,r,{'9' * 19},0,0,5",
            PauseReport(
                "web01", False, (), {"user": LastCommands(10**19 - 1, (PauseCommand(LEGACY_DIGEST, pauses=False),))}
            ),
        ),
        (
            f"web01,r,0,{'9' * 19},0,",
            PauseReport(
                "web01", False, (), {"query": LastCommands(10**19 - 1, (PauseCommand(LEGACY_DIGEST, pauses=False),))}
            ),
        ),
        (f"10.0.0.7,p,0,0,{NOW},", PauseReport("10.0.0.7", False, ("10.0.0.7",), {}, Pause(NOW, ""))),
        ("web01,r,0,0,0,", PauseReport("web01", False, (), {})),
    ],
)  # fmt: skip
def test_a_report_of_an_older_version_is_parsed(text: str, report: PauseReport) -> None:
    assert parse_page(f"pauses=12345678 more=1 {text}") == Page("12345678", True, (report,), 1)


@pytest.mark.parametrize(
    "text", ["web01,x,7,3,0,", "web/1,p,7,3,0,", f"web01,p,{'1' * 20},3,0,", f"web01,p,1,{'1' * 20},0,", "web01,p,7,3,x,"]
)  # fmt: skip
def test_an_invalid_report_of_an_older_version_is_left_out(text: str) -> None:
    assert parse_page(f"pauses=12345678 more=0 {text}") == Page("12345678", False, (), 1)


def test_a_page_may_have_no_report() -> None:
    assert parse_page("pauses=12345678 more=0") == Page("12345678", False, (), 1)
    assert parse_page("pauses=12345678 more=0 v=2 whole=1") == Page("12345678", False, (), 2, True)
    assert parse_page("pauses=12345678 more=0 v=2 whole=0") == Page("12345678", False, (), 2, False)


def test_a_page_with_reports_may_be_complete() -> None:
    node = PauseReport("web01", True, (), {})

    assert parse_page("pauses=12345678 more=0 v=2 whole=1 web01,s,") == Page("12345678", False, (node,), 2, True)


def test_the_digest_is_that_of_the_reports_without_times_of_arrival() -> None:
    membership = hearing(PAUSE)
    [command] = membership.members["web01"].last_commands["user"].commands

    assert (
        digest_reports(membership, NOW)
        == f"{zlib.crc32(f'web01,s,10.0.0.1,user/5/{command.digest};p;0;=;'.encode()):08x}"
    )
    assert digest_reports(COMMENTED, NOW) == f"{zlib.crc32(b'web01,sp0,10.0.0.1'):08x}"


def test_the_digest_for_an_older_version_is_that_of_its_reports() -> None:
    membership = hearing(PAUSE, command_event("resume", "web02", 7))

    assert (
        digest_reports(membership, NOW, 1)
        == f"{zlib.crc32(b'web01 True (5, 0)' + bytes([10]) + b'web02 False (7, 0)'):08x}"
    )


def test_the_request_of_a_page_is_understood_by_an_older_version() -> None:
    assert peers.REQUEST.format(after="web01") == "pauses after=web01 v=2"


def test_a_report_is_formatted_with_all_addresses_and_commands() -> None:
    commands = (
        PauseCommand("0000000a", True, NOW + 60, (("query", 3), ("typed@lb01", 5)), "10.0.0.1", NOW),
        PauseCommand("0000000b", False, None, (), "10.0.0.2", NOW),
        PauseCommand("0000000c", True, None, (), "", NOW),
    )
    known = {"user": LastCommands(5, commands), "@user": LastCommands(9, commands[1:2])}
    membership = membership_of(member("web01", status=LEFT)._replace(last_commands=known, elsewhere=("10.0.0.2",)))

    text = (
        f"web01,s,10.0.0.1+10.0.0.2,@user/9/0000000b;r;{NOW};10.0.0.2;"
        f",user/5/0000000a;p{NOW + 60};{NOW};=;query=3+typed@lb01=5|0000000b;r;{NOW};10.0.0.2;|0000000c;p;{NOW};;"
    )
    assert format_page(membership, "", ROOM, NOW).partition(" whole=0 ")[2] == text
    assert parse_reports(text) == (PauseReport("web01", True, ("10.0.0.1", "10.0.0.2"), known),)
    assert format_page(membership, "", len(text) + 64, NOW).endswith(f" {text}")
    assert format_page(membership, "", len(text) + 63, NOW).endswith(
        f" {text.rpartition('|0000000b')[0]}|0000000c;p;{NOW};;"
    )


@pytest.mark.parametrize(
    ("status", "tags", "pause", "arrival", "reported"),
    [
        (ALIVE, {"a": "1"}, None, None, False),
        (ALIVE, {}, None, NOW - FORGET_AFTER, True),
        (FAILED, {}, None, NOW - FORGET_AFTER, True),
        (LEFT, {}, None, NOW - FORGET_AFTER, False),
        (LEFT, {}, None, NOW - FORGET_AFTER + 1, True),
        (LEFT, {}, Pause(NOW - 2 * FORGET_AFTER, ""), NOW - 2 * FORGET_AFTER, True),
        (LEFT, {}, Pause(NOW - 9, "", "", NOW), None, False),
        (LEFT, {}, Pause(NOW - 9, "", "", NOW + 1), None, True),
        (LEFT, {}, Pause(NOW - 9, ""), None, True),
    ],
)
def test_a_node_is_reported_while_it_is_paused_or_its_commands_may_be_replayed(
    status: str,
    tags: dict[str, str],
    pause: Pause | None,
    arrival: int | None,
    reported: bool,  # noqa: FBT001
) -> None:
    known = {} if arrival is None else {"user": LastCommands(5, (COMMAND._replace(until=None, at=arrival),))}
    membership = membership_of(member("web01", tags=tags, status=status, pause=pause)._replace(last_commands=known))

    assert (" web01," in format_page(membership, "", ROOM, NOW)) is reported


def test_a_rebuilt_pause_is_reported_with_its_begin_and_end() -> None:
    membership = membership_of(member("web01", pause=Pause(NOW, "haproxy.cfg", "", NOW + 60)))

    assert format_page(membership, "", ROOM, NOW).endswith(f" web01,sp{NOW}:{NOW + 60},10.0.0.1")


@pytest.mark.parametrize(
    ("membership", "complete"),
    [
        (membership_of(member("web01", tags={"a": "1"})), True),
        (hearing(PAUSE), True),
        (COMMENTED, False),
    ],
)
def test_knowledge_is_complete_once_the_others_have_reported_and_all_pauses_have_commands(
    membership: Membership,
    complete: bool,  # noqa: FBT001
) -> None:
    assert peers.is_complete(membership._replace(peers_asked_at=NOW)) is complete
    assert peers.is_complete(membership) is False


@pytest.mark.parametrize(
    ("text", "report"),
    [
        (f"web01,s,10.0.0.1,user/100/0000abcd;p;{NOW};=;", "user"),
        (f"web01,s,10.0.0.1,user/101/0000abcd;p;{NOW};=;", "@user"),
    ],
)
def test_a_report_with_a_higher_ltime_than_that_of_serf_is_from_an_earlier_cluster(text: str, report: str) -> None:
    after = merge_reports(membership_of(member("web01")), parse_reports(text), "lb02", CLOCKS, NOW)

    assert list(after.membership.members["web01"].last_commands) == [report]
    assert after.causes == ("sync: web01 is paused on lb02",)


def test_a_load_balancer_without_commands_is_in_no_new_cluster() -> None:
    assert merge_reports(membership_of(), (), "lb02", {"user": 0, "query": 0}, NOW).causes == ()


def test_a_report_with_too_many_clocks_has_only_the_node() -> None:
    known = {f"typed@{'x' * 58}{at}": LastCommands(9, (COMMAND,)) for at in range(16)}
    membership = membership_of(member("web01")._replace(last_commands=known))

    assert format_page(membership, "", ROOM, NOW).endswith(" more=0 v=2 whole=0 web01,s,")


@pytest.mark.parametrize("version", [1, peers.VERSION])
def test_a_report_that_just_fits_is_on_the_page(version: int) -> None:
    membership = hearing(PAUSE, command_event("pause", "web02", 7))
    whole = format_page(membership, "", 10_000, NOW, version)

    assert format_page(membership, "", len(whole), NOW, version) == whole
    assert format_page(membership, "", len(whole) - 1, NOW, version) == (
        whole.rpartition(" ")[0].replace("more=0", "more=1")
    )


@pytest.mark.parametrize(
    ("room", "digests"), [(100, ["00000000", "00000006", "00000007"]), (50, ["00000006"]), (40, [])]
)
def test_of_many_commands_a_short_report_has_the_pauses_first(room: int, digests: list[str]) -> None:
    commands = [PauseCommand(f"{number:08x}", pauses=number > 5, at=NOW) for number in range(8)]
    membership = membership_of(member("web01")._replace(last_commands={"user": LastCommands(9, tuple(commands))}))

    found = parse_page(format_page(membership, "", 64 + room, NOW))

    assert found is not None
    [report] = found.reports
    assert [one.digest for last in report.last_commands.values() for one in last.commands] == digests


# --- what a report changes -------------------------------------------------------------------------------------------


def report(name: str, *addresses: str, seen: bool = True, pauses: bool = True, at: int = NOW) -> PauseReport:
    """Return a report with one command."""
    command = PauseCommand("0000abcd", pauses, address=addresses[0] if addresses else "", at=at)
    return PauseReport(name, seen, addresses, {"user": LastCommands(5, (command,))})


def merged(mine: Membership, *reports: PauseReport, now: int = NOW) -> Membership:
    """Return `mine` merged with reports of lb02."""
    return merge_reports(mine, reports, "lb02", CLOCKS, now).membership


def test_a_pause_of_an_unknown_node_is_a_cause_once() -> None:
    done = merge_reports(membership_of(), [report("web09", seen=False)], "lb02", CLOCKS, NOW)

    assert done.causes == ("sync: web09 (unknown node) is paused on lb02", "sync: web09 is paused on lb02")
    assert done.membership.members["web09"].status == UNKNOWN


@pytest.mark.parametrize("name", ["web09", "WEB09"])
@pytest.mark.parametrize("addresses", [(), ("10.0.0.9",)])
def test_a_reported_node_takes_over_what_is_known_of_its_name(name: str, addresses: tuple[str, ...]) -> None:
    unknown = updated_membership(membership_of(), command_event("resume", name, 6))

    [after] = merged(unknown, report("web09", *addresses)).members.values()

    assert (after.name, after.status, after.address) == ("web09", LEFT, "".join(addresses))
    assert (after.last_commands["user"].ltime, after.pause) == (6, None)


def test_an_old_report_of_a_node_adds_its_commands_to_those_of_the_unknown_name() -> None:
    unknown = updated_membership(membership_of(), command_event("resume", "web09", 6))
    old = report("web09", pauses=False, at=NOW - FORGET_AFTER)

    [after] = merged(unknown, old._replace(last_commands={"query": old.last_commands["user"]})).members.values()

    assert (after.status, {clock: last.ltime for clock, last in after.last_commands.items()}) == (
        UNKNOWN,
        {"query": 5, "user": 6},
    )


def test_an_unknown_node_is_remembered_as_it_is_reported() -> None:
    [after] = merged(membership_of(), report("web09", pauses=False, seen=False)).members.values()

    assert after._replace(last_commands={}) == Member("web09", "", "", None, UNKNOWN, NOW)


def test_an_unknown_node_has_the_address_of_a_report() -> None:
    unknown = updated_membership(membership_of(), command_event("resume", "web09", 6))

    assert merged(unknown, report("web09", "10.0.0.9", seen=False)).members["web09"].address == "10.0.0.9"


def test_of_two_reports_in_one_page_the_node_comes_before_its_name_in_another_case() -> None:
    after = merged(membership_of(), report("WEB09", seen=False), report("web09", "10.0.0.9"))

    assert [(one.name, one.status) for one in after.members.values()] == [("web09", LEFT)]


def test_a_reported_resume_ends_the_pause_of_the_other_name_of_its_host() -> None:
    mine = updated_membership(
        membership_of(member("old", status=LEFT), member("new")), command_event("pause", "old", 4)
    )

    assert paused_names(merged(mine, report("new", "10.0.0.1", pauses=False))) == []


def test_after_a_new_cluster_its_clocks_start_from_0() -> None:
    assert merged(hearing(command_event("pause", "web01", 500))).clocks == {"user": 0}


@pytest.mark.parametrize(
    ("mine", "theirs", "causes"),
    [
        (None, PAUSE, ("sync: web01 is paused on lb02",)),
        (None, RESUME, ()),
        (PAUSE, PAUSE, ()),
        (PAUSE, RESUME, ("sync: web01 was resumed on lb02",)),
        (command_event("pause", f"web01 until={NOW + 60}", 5), PAUSE, ("sync: web01 is paused on lb02",)),
        (
            command_event("pause", f"web01 until={NOW + 60}", 5),
            command_event("pause", f"web01 until={NOW + 60}", 6),
            (),
        ),
    ],
)
def test_only_a_change_of_a_pause_is_a_cause(mine: RawEvent | None, theirs: RawEvent, causes: tuple[str, ...]) -> None:
    found = parse_page(format_page(hearing(theirs), "", ROOM, NOW))
    assert found is not None

    assert merge_reports(hearing(*[mine] if mine else []), found.reports, "lb02", CLOCKS, NOW).causes == causes


@pytest.mark.parametrize("status", [ALIVE, LEFT])
def test_only_a_node_that_is_gone_has_the_addresses_of_other_load_balancers(status: str) -> None:
    mine = updated_membership(membership_of(member("web01")), command_event("pause", "web01", 5))
    gone = mine._replace(members={"web01": mine.members["web01"]._replace(status=status)})

    after = merged(gone, report("web01", "10.0.0.7", "10.0.0.8")).members["web01"]

    assert after.address == "10.0.0.1"
    assert after.elsewhere == (() if status == ALIVE else ("10.0.0.7", "10.0.0.8"))


def test_the_addresses_of_another_name_are_not_those_of_the_node() -> None:
    gone = membership_of(member("web01", pause=Pause(NOW, "query"))._replace(status=LEFT))

    [after] = merged(gone, report("WEB01", "10.0.0.7", seen=False)).members.values()

    assert (after.name, after.address, after.elsewhere) == ("web01", "10.0.0.1", ())


@pytest.mark.parametrize(("now", "known"), [(NOW + FORGET_AFTER - 1, True), (NOW + FORGET_AFTER, False)])
@pytest.mark.parametrize("seen", [True, False])
def test_a_resume_is_remembered_for_a_day(now: int, known: bool, seen: bool) -> None:  # noqa: FBT001
    assert ("web09" in merged(membership_of(), report("web09", seen=seen, pauses=False), now=now).members) is known


def test_a_pause_of_a_node_that_left_is_added_however_old() -> None:
    after = merged(membership_of(), report("web09", "10.0.0.9"), now=NOW + 10 * FORGET_AFTER).members["web09"]

    assert (after.status, after.changed, after.address) == (LEFT, NOW + 10 * FORGET_AFTER, "10.0.0.9")


@pytest.mark.parametrize(("until", "changed"), [(NOW, NOW - 9), (NOW + 1, NOW), (None, NOW)])
def test_a_node_that_left_is_as_old_as_its_pause_unless_that_is_in_effect(until: int | None, changed: int) -> None:
    pause = Pause(NOW - 9, "", "", until)

    after = merged(membership_of(), PauseReport("web09", True, (), {}, pause)).members["web09"]

    assert after == Member("web09", "", "", None, LEFT, changed, pause._replace(by="reported by lb02"))


# --- the statuses of the other load balancers -----------------------------------------------------------------------

INFO = AgentInfo("lb01", "lb", encrypted=True, clocks={}, handlers={})
LB02 = ListedMember("lb02", "10.0.0.2", "lb", {}, "alive")


def test_a_load_balancer_keeps_its_last_answer_while_it_does_not_answer() -> None:
    line = "lb02 nodes=3 digest=abc outcome=applied"

    once = update_peers(None, Observer(NOW, INFO, "abc"), [LB02], {"lb02": line})
    later = update_peers(once, Observer(NOW + 60, INFO, "xyz"), [LB02._replace(status="failed")], {"lb02": "queued"})

    assert once == Peers(NOW, "lb", (Peer("lb02", "10.0.0.2", "alive", "abc", True, NOW, True, line),))
    assert later == Peers(NOW + 60, "lb", (Peer("lb02", "10.0.0.2", "failed", "abc", True, NOW, False, line),))


def test_an_answer_with_other_lines_is_different_and_cut_at_1024_characters() -> None:
    [peer] = update_peers(
        None, Observer(NOW, INFO._replace(role=""), "abc"), [LB02], {"lb02": f"digest=xyz\n{'x' * 2000}"}
    ).peers

    assert (peer.digest, peer.equal, peer.status_line) == ("xyz", False, f"digest=xyz?{'x' * 1013}")


def test_without_a_role_of_its_own_the_load_balancers_have_the_role_lb() -> None:
    assert update_peers(None, Observer(NOW, INFO._replace(role=""), ""), [], {}).role == "lb"
    assert update_peers(None, Observer(NOW, INFO._replace(role="edge"), ""), [], {}).role == "edge"


def test_the_newer_of_sync_and_event_gives_the_status() -> None:
    known = Peers(NOW, "lb", (Peer("lb02", "10.0.0.2", "alive"), Peer("lb03", "10.0.0.3", "alive")))
    older = member("lb02", "10.0.9.9", "lb", status=FAILED)
    newer = member("lb03", "10.0.9.9", "lb", status=FAILED)._replace(changed=NOW + 1)

    assert list_current_peers(known, membership_of(newer, older).members, []) == [
        Peer("lb02", "10.0.0.2", "alive"),
        Peer("lb03", "10.0.9.9", "failed"),
    ]


def test_a_load_balancer_that_left_is_not_listed_and_one_without_an_event_is() -> None:
    known = Peers(NOW, "lb", (Peer("lb02", "10.0.0.2", "alive"), Peer("lb03", "10.0.0.3", "alive")))

    assert list_current_peers(known, membership_of(member("lb02", "10.0.0.2", "lb", status=LEFT)).members, []) == [
        Peer("lb03", "10.0.0.3", "alive")
    ]


def test_before_the_first_sync_members_with_the_role_lb_are_the_load_balancers() -> None:
    members = membership_of(
        member("web01"), member("lb03", "10.0.0.3", "lb", status=FAILED), member("lb02", "10.0.0.2", "lb")
    ).members

    assert list_current_peers(None, members, ["web"]) == [
        Peer("lb02", "10.0.0.2", "alive", answers=False),
        Peer("lb03", "10.0.0.3", "failed", answers=False),
    ]
    assert list_current_peers(None, members, ["web", "lb"]) == []


def test_a_load_balancer_that_joined_since_the_last_sync_is_listed() -> None:
    members = membership_of(member("lb02", "10.0.0.2", "lb")).members

    assert list_current_peers(Peers(NOW, "lb"), members, []) == [Peer("lb02", "10.0.0.2", "alive")]


@pytest.mark.parametrize(
    "found",
    [
        Peers(NOW, "lb", (Peer("lb02", "10.0.0.2", "alive", "abc", False, NOW, True, "lb02 digest=abc"),)),
        Peers(NOW, "edge", (Peer("lb02", "10.0.0.2", "failed"),)),
        Peers(NOW, "lb"),
    ],
)
def test_peers_json_is_parsed_into_the_same_load_balancers(found: Peers) -> None:
    assert parse_peers(serialize_peers(found)) == found
