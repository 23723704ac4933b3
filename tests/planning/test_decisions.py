"""Every reason why a node gets no line, and why a present line is kept or removed, is in the plan."""

from __future__ import annotations

import pytest

from lbagent.membership.model import FAILED, LEFT, LOST, Member, Quarantine
from lbagent.planning.decisions import explain_no_server
from lbagent.planning.plan import PlanOptions
from tests.helpers.builders import (
    NOW,
    dedent,
    member,
    membership_of,
    parse_roles_text,
    paused_member,
    plan_for,
    planned_text,
)

ROLES = parse_roles_text("""
    services:
      iis: {port: 80}
      mongo: {port: "{tag:port}"}
    roles:
      web: {lb: [iis], networks: [10.0.0.0/8]}
      api: {lb: [iis], max: 1, on_failed: remove}
      db: {data: [mongo]}
      idle: {lb: [none]}
""")

REASON = "unknown keyword 'chek'"

CFG = dedent("""
    backend farm
        # additional-lb-iis-server
    backend data
        # additional-data-mongo-server
""")

WEB1 = "server web1 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web"


def with_line(text: str) -> str:
    """haproxy.cfg with one more line above the marker of `iis`."""
    return CFG.replace("    # additional-lb-iis", f"    {text}\n    # additional-lb-iis")


@pytest.mark.parametrize(
    ("text", "members", "reason"),
    [
        (
            CFG,
            [member("web1", status=FAILED), member("web2")],
            "it has failed, and web2 has its address 10.0.0.1 now",
        ),
        (CFG, [member("web1", "192.168.0.1")], "192.168.0.1 is outside the role's networks"),
        (
            CFG,
            [member("api1", "10.0.0.2", "api"), member("web1", role="api")],
            "iis: role api has reached its maximum of 1",
        ),
        (
            CFG,
            [member("web1", role="api", status=FAILED), member("web2", "10.0.0.2"), member("web3", "10.0.0.3")],
            "iis: it has failed, and `on_failed` is `remove`",
        ),
        (CFG, [member("web1", role="db")], "mongo: its tag 'port' is not set"),
        (CFG, [member("web1", role="db")._replace(tags=None)], "mongo: its tags are unknown until Serf reports them"),
        (
            with_line("server WEB1 10.9.9.9:80"),
            [member("web1")],
            "in backend farm: an operator's line has its name or address, pauses do not affect it",
        ),
        (
            with_line("server mine 10.0.0.1:80"),
            [member("web1")],
            "in backend farm: an operator's line has its name or address, pauses do not affect it",
        ),
        (CFG, [member("web1"), member("web0")], "in backend farm: web0 has 10.0.0.1:80"),
    ],
)
def test_a_node_without_a_line_has_the_reason(text: str, members: list[Member], reason: str) -> None:
    plan = plan_for(text, ROLES, membership_of(*members))

    assert plan.reasons["web1"] == (reason,)
    assert " web1 " not in plan.after[0]


def test_a_quarantined_node_has_the_reason_of_its_quarantine() -> None:
    members = membership_of(member("web1", quarantine=Quarantine(NOW, REASON, "key")))

    plan = plan_for(CFG, ROLES, members, PlanOptions(kept=frozenset({"web1"})))

    assert plan.reasons == {"web1": (REASON,)}
    assert plan.after == (CFG,)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("web1", status=LEFT)], "the node has left"),
        ([member("web1", status=LOST)], "Serf does not list the node any more"),
        ([], "Serf has not reported the node"),
        ([member("web1", "192.168.0.1")], "192.168.0.1 is outside the role's networks"),
        ([member("web1", role="idle")], "its role is 'idle' now"),
        ([member("web1", role="")], "it has no role now"),
        ([member("web0"), member("web1", role="idle")], "another server has its name or endpoint"),
    ],
)
def test_a_line_that_is_removed_has_the_reason(members: list[Member], reason: str) -> None:
    before = with_line(WEB1)

    plan = plan_for(before, ROLES, membership_of(*members), PlanOptions(force=True))

    assert plan.changes["web1"].removed == (f"backend farm: {WEB1}",)
    assert plan.changes["web1"].reasons == (reason,)


def test_a_line_that_is_replaced_needs_no_reason() -> None:
    plan = plan_for(with_line(WEB1), ROLES, membership_of(paused_member(member("web1"))))

    assert plan.changes["web1"].added == ("backend farm: # lbagent paused web1 10.0.0.1 role=web",)
    assert plan.changes["web1"].reasons == ()
    assert plan.reasons == {}


@pytest.mark.parametrize(
    ("text", "after", "reason"),
    [
        (
            with_line(WEB1),
            member("web1", role="we b"),
            "in backend farm: its role 'we b' is not [A-Za-z0-9][A-Za-z0-9._-]{0,62}",
        ),
        (
            with_line(WEB1).replace("    # additional-lb-iis-server\n", ""),
            member("web1"),
            "the marker of server web1 is missing",
        ),
    ],
)
def test_a_line_that_is_kept_although_its_node_is_not_desired_has_the_reason(
    text: str, after: Member, reason: str
) -> None:
    plan = plan_for(text, ROLES, membership_of(after))

    assert plan.reasons == {"web1": (reason,)}
    assert plan.after == (text,)


def test_a_line_whose_node_lost_a_tag_is_kept_with_the_reason() -> None:
    before = planned_text(CFG, ROLES, membership_of(member("web1", role="db", tags={"port": "1"})))

    plan = plan_for(before, ROLES, membership_of(member("web1", role="db")))

    assert plan.reasons == {"web1": ("in backend data: its tag 'port' is not set",)}
    assert plan.after == (before,)


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("web", ""),
        ("web,unheard", ""),
        ("", "it has no role"),
        ("unheard", "roles.yml has no role unheard"),
        ("idle", "its role has no service"),
        ("db", "haproxy.cfg has no marker of its role"),
    ],
)
def test_a_node_that_is_desired_at_no_marker_has_the_reason(role: str, reason: str) -> None:
    assert explain_no_server(member("web1", role=role), ROLES, {"lb-iis"}) == reason
