"""Quarantine: the lines of a refused node stay unchanged until something changes that may change HAProxy's verdict."""

from __future__ import annotations

import pytest

from lbagent.haproxy.config import Document
from lbagent.membership.model import FAILED, LEFT, Member, Pause, Quarantine
from lbagent.planning.quarantine import find_quarantined, fingerprint_context, lift_quarantines, quarantine_nodes
from tests.helpers.builders import NOW, member, membership_of, parse_roles_text, paused_member

AROUND = "operator's text and roles.yml"


def imposed(one: Member) -> Member:
    """The member in quarantine."""
    return quarantine_nodes(membership_of(one), {one.name: "unknown keyword"}, AROUND, NOW).members[one.name]


def test_a_quarantine_has_its_start_and_reason() -> None:
    quarantine = imposed(member("web01")).quarantine

    assert quarantine is not None
    assert (quarantine.since, quarantine.reason) == (NOW, "unknown keyword")


def test_a_quarantine_applies_while_nothing_changes() -> None:
    assert find_quarantined(membership_of(imposed(member("web01")), member("web02", "10.0.0.2")), lambda: AROUND) == {
        "web01"
    }


def test_a_quarantine_ends_when_the_operator_changes_anything() -> None:
    assert find_quarantined(membership_of(imposed(member("web01"))), lambda: f"{AROUND}, edited") == frozenset()


@pytest.mark.parametrize(
    "changed",
    [
        imposed(member("web01"))._replace(address="10.0.0.2"),
        imposed(member("web01"))._replace(role="app"),
        imposed(member("web01"))._replace(tags={"weight": "5"}),
        imposed(member("web01"))._replace(pause=Pause(NOW, "query")),
        imposed(member("web01"))._replace(status=LEFT),
    ],
)
def test_a_quarantine_ends_when_the_line_would_change(changed: Member) -> None:
    assert find_quarantined(membership_of(changed), lambda: AROUND) == frozenset()


@pytest.mark.parametrize(
    "same",
    [
        imposed(member("web01"))._replace(status=FAILED),
        imposed(member("web01"))._replace(changed=NOW + 60),
        imposed(paused_member(member("web01")))._replace(pause=Pause(NOW + 5, "user event", "other words")),
    ],
)
def test_a_quarantine_applies_while_the_line_would_be_the_same(same: Member) -> None:
    assert find_quarantined(membership_of(same), lambda: AROUND) == {"web01"}


def test_the_order_of_tags_does_not_matter() -> None:
    one = imposed(member("web01", tags={"a": "1", "b": "2"}))

    assert find_quarantined(membership_of(one._replace(tags={"b": "2", "a": "1"})), lambda: AROUND) == {"web01"}


def test_the_context_changes_with_the_operators_lines_and_roles_but_not_with_managed_lines() -> None:
    roles, others = (
        parse_roles_text(f"services: {{iis: {{port: {port}}}}}\nroles: {{web: {{lb: [iis]}}}}") for port in (80, 81)
    )
    text = "backend farm\n    {}\n    # additional-lb-iis-server\n"
    plain, managed, edited = (
        Document([("haproxy.cfg", text.format(line))])
        for line in (
            "balance source",
            "balance source\n    server web01 10.0.0.1:80 # lbagent role=web",
            "balance first",
        )
    )

    context = fingerprint_context(plain, roles)

    assert fingerprint_context(managed, roles) == context
    assert len({context, fingerprint_context(edited, roles), fingerprint_context(plain, others)}) == 3


def test_hostile_tags_do_no_harm() -> None:
    assert find_quarantined(membership_of(imposed(member("web01", tags={"\udc83": "\udcff\n\0"}))), lambda: AROUND) == {
        "web01"
    }


def test_an_unknown_node_is_not_quarantined() -> None:
    assert quarantine_nodes(membership_of(), {"web01": "x"}, AROUND, NOW) == membership_of()


def test_a_quarantine_that_no_longer_applies_is_lifted() -> None:
    over, held = imposed(member("web01")), imposed(member("web02", "10.0.0.2"))
    before = membership_of(over, held, member("web03", "10.0.0.3"))

    after = lift_quarantines(before, frozenset({"web02"}))

    assert [after.members[name].quarantine for name in ("web01", "web02", "web03")] == [None, held.quarantine, None]
    assert lift_quarantines(after, frozenset({"web02"})) is after


def test_other_members_are_unchanged() -> None:
    other = member("web02", "10.0.0.2")._replace(quarantine=Quarantine(1, "old", "key"))

    assert (
        quarantine_nodes(membership_of(member("web01"), other), {"web01": "x"}, AROUND, NOW).members["web02"] == other
    )


def test_a_pause_of_its_address_under_another_name_ends_a_quarantine() -> None:
    old, new = member("old", status=LEFT), imposed(member("new"))

    assert find_quarantined(membership_of(paused_member(old), new), lambda: AROUND) == frozenset()
