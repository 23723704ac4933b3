"""A command is answered `done` only if it is in effect; otherwise the answer is the obstacle."""

from __future__ import annotations

import pytest

from lbagent.membership.model import LEFT, UNKNOWN, Member, Membership
from lbagent.run.replies import judge_command
from lbagent.serf.events import Command, parse_command
from tests.helpers.builders import (
    command_event,
    dedent,
    member,
    membership_of,
    parse_roles_text,
    paused_member,
    plan_for,
)

ROLES = parse_roles_text(
    """
    services: {iis: {port: 80}}
    roles: {web: {lb: [iis], networks: [10.0.0.0/8]}, db: {}}
    """
)
TEXT = dedent(
    """
    backend farm
        # additional-lb-iis-server
    """
)
BY_HAND = TEXT.replace("    #", "    server old 10.0.0.1:80\n    #")
ELSEWHERE = "web01: no line for role web: 192.0.2.1 is outside the role's networks"
TAGGED = member("web01", tags={"lbagent": "paused"})


def told(verb: str, name: str) -> Command:
    """A command about a node."""
    found = parse_command(command_event(verb, name, 3, "query"), name)
    assert isinstance(found, Command)
    return found


def answer(verb: str, name: str, membership: Membership, text: str = TEXT) -> str:
    """What is answered when that is so."""
    return judge_command(told(verb, name), membership, plan_for(text, ROLES, membership))


@pytest.mark.parametrize(
    ("verb", "node", "words"),
    [
        ("pause", paused_member(member("web01")), "done"),
        ("pause", TAGGED, "done"),
        ("pause", member("web01"), "refused: a later resume was received"),
        ("pause", paused_member(member("web01", status=UNKNOWN)), "unknown node, remembered"),
        ("resume", member("web01"), "done"),
        ("resume", member("web01", role="db"), "done"),
        ("resume", TAGGED, "still paused by its tag"),
        ("resume", TAGGED._replace(status=LEFT), "done"),
        ("resume", paused_member(member("web01")), "refused: a later pause was received"),
        ("resume", paused_member(member("web01", status=UNKNOWN)), "unknown node"),
        ("resume", member("web01", "192.0.2.1"), f"not applied yet: {ELSEWHERE}"),
        ("forget", member("web01"), "refused: web01 is alive"),
        ("forget", member("web01", status=LEFT), "done"),
        ("forget", member("other", "10.0.0.2"), "unknown node"),
        ("pause", member("other", "10.0.0.2"), "unknown node"),
    ],
)  # fmt: skip
def test_the_answer_is_done_or_the_obstacle(verb: str, node: Member, words: str) -> None:
    assert answer(verb, "web01", membership_of(node)) == words


@pytest.mark.parametrize("name", ["web01", "web02"])
def test_a_line_by_hand_is_not_paused(name: str) -> None:
    words = "not applied yet: web01: no managed line in backend farm: "
    words += "an operator's line has its name or address, pauses do not affect it"

    assert (
        answer("pause", name, membership_of(paused_member(member("web01")), member("web02", role="db")), BY_HAND)
        == words
    )


def test_a_node_with_an_operators_line_is_in_balancing() -> None:
    assert answer("resume", "web01", membership_of(member("web01")), BY_HAND) == "done"


def test_a_node_is_paused_by_the_tag_of_another_name_of_its_host() -> None:
    membership = membership_of(member("web01"), TAGGED._replace(name="WEB-01"))

    assert answer("resume", "web01", membership) == "still paused by its tag"
