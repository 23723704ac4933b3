"""accord: what load balancers tell each other of pauses, and whose word is the later one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.accord import Page, Word, agreed, digest, page, read
from lbagent.membership import REMEMBERED, TOLD, UNKNOWN, Heard, Member, Membership, Pause
from tests.building import NOW, folded, joining, known, member, paused, poisoned, saying

ROOM = 900
CLOCKS = {"user": 100, "query": 100}


def knowing(name: str, *, out: bool, user: int = 0, query: int = 0, until: int | None = None) -> Member:
    """A member of whose pause that much was heard."""
    heard = {clock: Heard(ltime, (), out) for clock, ltime in (("user", user), ("query", query)) if ltime}
    pause = Pause(NOW, "query", "", until) if out else None
    return member(name)._replace(pause=pause, heard=heard)


def told(membership: Membership) -> tuple[Word, ...]:
    """What a load balancer with that membership tells."""
    found = read(page(membership, "", ROOM, NOW))
    assert found is not None
    return found.words


def learning(mine: Membership, theirs: Membership) -> Membership:
    """Mine after they have told me."""
    return agreed(mine, told(theirs), "lb02", CLOCKS, NOW).membership


def test_what_is_told_is_what_is_read() -> None:
    membership = known(
        knowing("web02", out=False, user=7),
        knowing("web01", out=True, query=3, until=NOW + 60),
        member("web03"),
    )

    said = page(membership, "", ROOM, NOW)

    assert said == f"pauses={digest(membership, NOW)} more=0 web01,p,0,3,{NOW},{NOW + 60} web02,r,7,0,0,"
    assert read(said) == Page(
        digest(membership, NOW),
        more=False,
        words=(
            Word("web01", paused=True, ltimes=(0, 3), since=NOW, until=NOW + 60),
            Word("web02", paused=False, ltimes=(7, 0), since=0, until=None),
        ),
    )


def test_what_does_not_fit_follows() -> None:
    membership = known(*(knowing(f"web{at:03}", out=True, user=at + 1) for at in range(100)))

    words: list[Word] = []
    pages = 0
    more = True
    while more:
        said = page(membership, words[-1].name if words else "", ROOM, NOW)
        found = read(said)
        assert found is not None
        assert len(said) <= ROOM
        words += found.words
        more, pages = found.more, pages + 1

    assert [word.name for word in words] == [f"web{at:03}" for at in range(100)]
    assert pages == 3


def test_a_page_without_room_says_that_there_is_more() -> None:
    assert page(known(knowing("web01", out=True)), "", 30, NOW).endswith(" more=1")


def test_the_digest_is_of_what_is_known_and_not_of_when() -> None:
    one = known(knowing("web01", out=True, query=3, until=NOW + 60))
    same = known(knowing("web01", out=True, query=3, until=NOW + 61))
    other = known(knowing("web01", out=True, query=4, until=NOW + 60))

    assert digest(one, NOW) == digest(same, NOW) != digest(other, NOW)


def test_a_pause_that_has_run_out_is_not_told() -> None:
    membership = known(knowing("web01", out=True, query=3, until=NOW))

    assert told(membership) == (Word("web01", paused=False, ltimes=(0, 3), since=0, until=None),)


@pytest.mark.parametrize(
    ("mine", "theirs", "after"),
    [
        # Who has heard more is believed.
        (knowing("web01", out=False), knowing("web01", out=True, query=3), True),
        (knowing("web01", out=True, query=3), knowing("web01", out=False, query=4), False),
        (knowing("web01", out=True, user=3), knowing("web01", out=False, user=3, query=4), False),
        (knowing("web01", out=False, query=4), knowing("web01", out=True, query=3), False),
        (knowing("web01", out=True, query=4), knowing("web01", out=False, query=3), True),
        # Neither has: the same two clocks in another order, or typed where nobody else heard of it.
        (knowing("web01", out=False, user=3, query=4), knowing("web01", out=True, user=3, query=4), True),
        (knowing("web01", out=True, user=3, query=4), knowing("web01", out=False, user=3, query=4), True),
        (knowing("web01", out=False), knowing("web01", out=True), True),
        # Each has heard something else.
        (knowing("web01", out=True, user=9, query=3), knowing("web01", out=False, user=2, query=8), True),
        (knowing("web01", out=False, user=9, query=3), knowing("web01", out=True, user=2, query=8), True),
        # Heard in a cluster that is no more.
        (knowing("web01", out=True, query=3), knowing("web01", out=False, query=101), True),
        (knowing("web01", out=True, query=500), knowing("web01", out=False, query=3), False),
    ],
)
def test_the_later_word_counts(mine: Member, theirs: Member, after: bool) -> None:  # noqa: FBT001
    assert bool(paused(learning(known(mine), known(theirs)))) is after


def test_what_is_learned_is_remembered_with_its_clock_and_end() -> None:
    membership = learning(known(member("web01")), known(knowing("web01", out=True, query=3, until=NOW + 60)))

    assert membership == known(
        member("web01")._replace(
            pause=Pause(NOW, "told by lb02", "", NOW + 60), heard={"query": Heard(3, (TOLD,), paused=True)}
        )
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "after"),
    [(60, 59, 60), (60, 61, 61), (None, 61, None), (60, None, None)],
)
def test_of_two_pauses_none_of_which_is_the_newer_the_longer_holds(
    mine: int | None, theirs: int | None, after: int | None
) -> None:
    def lasting(seconds: int | None) -> Member:
        return knowing("web01", out=True, query=3, until=seconds and NOW + seconds)

    pause = learning(known(lasting(mine)), known(lasting(theirs))).members["web01"].pause

    assert pause is not None
    assert pause.until == (after and NOW + after)


def test_a_newer_pause_is_taken_with_its_end() -> None:
    mine, theirs = (knowing("web01", out=True, query=ltime, until=NOW + 90 - ltime) for ltime in (3, 4))

    assert learning(known(mine), known(theirs)).members["web01"].pause == Pause(NOW, "told by lb02", "", NOW + 86)


def test_a_replay_of_what_was_learned_is_one() -> None:
    learned = learning(known(member("web01")), known(knowing("web01", out=True, user=5)))
    resumed = folded(learned, saying("resume", "web01", 2, "query"))

    assert paused(folded(resumed, saying("pause", "web01", 5))) == []


def test_a_name_of_the_host_that_has_heard_more_keeps_its_pause() -> None:
    mine = known(knowing("web01", out=True, query=3), knowing("WEB-01", out=True, query=9))

    after = learning(mine, known(knowing("web01", out=False, query=4)))

    assert [name for name, one in after.members.items() if one.pause] == ["WEB-01"]


def test_an_address_nobody_has_yet_is_waited_for_by_its_address() -> None:
    theirs = known(Member("10.0.0.7", "10.0.0.7", "", None, UNKNOWN, NOW, Pause(NOW, "query")))

    after = folded(learning(known(), theirs), joining("web07\t10.0.0.7\tweb\t"))

    assert paused(after) == ["web07"]


def test_a_resume_holds_for_the_whole_host() -> None:
    mine = known(knowing("web01", out=True, query=3), member("WEB-01")._replace(pause=Pause(NOW, "query")))

    assert paused(learning(mine, known(knowing("web01", out=False, query=4)))) == []


def test_a_pause_of_a_node_nobody_knows_here_waits_for_it() -> None:
    theirs = known(Member("web99", "", "", None, UNKNOWN, NOW, Pause(NOW, "query"), {"query": Heard(3, (), True)}))  # noqa: FBT003

    mine = learning(known(), theirs)

    assert mine == known(
        Member("web99", "", "", None, UNKNOWN, NOW, Pause(NOW, "told by lb02"), {"query": Heard(3, (TOLD,), True)})  # noqa: FBT003
    )


def test_what_was_remembered_for_a_day_is_not_learned_again() -> None:
    old = Pause(NOW - REMEMBERED, "query")
    theirs = known(Member("web99", "", "", None, UNKNOWN, NOW, old))

    assert learning(known(), theirs) == known()


def test_a_pause_that_has_run_out_here_is_not_learned() -> None:
    word = Word("web01", paused=True, ltimes=(0, 3), since=NOW - 60, until=NOW)

    assert agreed(known(member("web01")), [word], "lb02", CLOCKS, NOW).membership == known(member("web01"))


def test_what_is_learned_is_told() -> None:
    mine = known(knowing("web01", out=True, query=3), member("web02", "10.0.0.2"))
    theirs = known(knowing("web01", out=False, query=4), knowing("web02", out=True, user=1))

    causes = agreed(mine, told(theirs), "lb02", CLOCKS, NOW).causes

    assert causes == ("sync: web01 was resumed on lb02", "sync: web02 is paused on lb02")


KNOWN = st.builds(
    knowing,
    st.sampled_from(["web01", "web02"]),
    out=st.booleans(),
    user=st.integers(0, 3),
    query=st.integers(0, 3),
)


@given(st.lists(st.lists(KNOWN, max_size=4), min_size=2, max_size=3))
def test_load_balancers_that_tell_each_other_agree(all_known: list[list[Member]]) -> None:
    memberships = [known(*members) for members in all_known]
    present = {name for one in memberships for name in one.members}
    memberships = [known(*(one.members.get(name, member(name)) for name in sorted(present))) for one in memberships]

    for _ in range(3):
        for mine, theirs in itertools.permutations(range(len(memberships)), 2):
            memberships[mine] = learning(memberships[mine], memberships[theirs])

    assert len({tuple(paused(one)) for one in memberships}) == 1
    assert len({digest(one, NOW) for one in memberships}) == 1


@given(poisoned(st.just(f"pauses=12345678 more=0 web01,p,0,3,{NOW},{NOW + 60} web02,r,7,0,0,")))
def test_a_word_that_is_none_is_left_out(said: str) -> None:
    found = read(said)

    for word in found.words if found else ():
        assert f" {word}" in f" {' '.join(said.split())}"
        agreed(known(member("web01")), [word], "lb02", CLOCKS, NOW)
