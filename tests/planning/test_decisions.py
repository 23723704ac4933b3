"""Every reason why a node gets no line, and why a present line is kept or removed, is in the plan."""

# ruff: noqa: ISC004  # a long sentence of a list

from __future__ import annotations

import pytest

from lbagent.haproxy.config import Document, digest_lines
from lbagent.membership.model import FAILED, LEFT, LOST, Member, Quarantine
from lbagent.planning.decisions import explain_no_server
from lbagent.planning.plan import Change, PlanOptions, make_preview
from lbagent.planning.quarantine import fingerprint_context, quarantine_nodes
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


def test_a_node_that_a_trial_leaves_out_has_the_reason() -> None:
    plan = plan_for(CFG, ROLES, membership_of(member("web1")), PlanOptions(kept=frozenset({"web1"})))

    assert (plan.reasons, plan.after) == ({"web1": ("this trial leaves it out",)}, (CFG,))


def test_the_line_of_a_kept_node_keeps_its_endpoint() -> None:
    before = with_line(WEB1)

    plan = plan_for(before, ROLES, membership_of(member("web1"), member("web0")), PlanOptions(kept=frozenset({"web1"})))

    assert plan.reasons["web0"] == ("in backend farm: web1 has 10.0.0.1:80",)
    assert plan.after == (before,)


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


@pytest.mark.parametrize(
    ("line", "one", "reason"),
    [
        (
            WEB1.replace("role=web", "role=idle"),
            member("web1", role="idle"),
            "roles.yml has no server for it at this marker",
        ),
        (
            "# lbagent paused web1 10.0.0.1 role=web",
            member("web1", role="we b"),
            "it is resumed, and its role 'we b' is not [A-Za-z0-9][A-Za-z0-9._-]{0,62}",
        ),
    ],
)
def test_a_line_that_its_role_does_not_give_is_removed_with_the_reason(line: str, one: Member, reason: str) -> None:
    plan = plan_for(with_line(line), ROLES, membership_of(one), PlanOptions(force=True))

    assert plan.changes == {"web1": Change((), (f"backend farm: {line}",), (reason,))}


def test_the_comment_of_a_paused_node_is_removed_where_an_operators_line_has_its_name() -> None:
    operators = "server WEB1 10.9.9.9:80"

    plan = plan_for(
        with_line(f"{operators}\n    # lbagent paused web1 10.0.0.1 role=web"),
        ROLES,
        membership_of(paused_member(member("web1"))),
    )

    assert plan.after == (with_line(operators),)


def test_a_node_of_several_roles_that_left_has_no_line() -> None:
    assert plan_for(CFG, ROLES, membership_of(member("web1", role="web,api", status=LEFT))).after == (CFG,)


def test_failed_nodes_whose_tags_make_the_line_are_removed_too() -> None:
    roles = parse_roles_text("""
        services: {iis: {port: "{tag:port|80}"}}
        roles: {web: {lb: [iis], on_failed: remove}}
    """)
    nodes = [member("web1", status=FAILED), member("web2", "10.0.0.2"), member("web3", "10.0.0.3")]

    plan = plan_for(CFG, roles, membership_of(*nodes))

    assert list(plan.changes) == ["web2", "web3"]
    assert plan.reasons == {"web1": ("iis: it has failed, and `on_failed` is `remove`",)}


def test_of_two_nodes_with_one_address_by_tag_the_alive_one_comes_before_the_failed_one() -> None:
    roles = parse_roles_text("""
        services: {iis: {port: 80}}
        roles: {web: {lb: [iis], address: "{tag:ip}"}}
    """)
    tags = {"ip": "10.9.9.9"}
    nodes = [member("web1", tags=tags, status=FAILED), member("web2", "10.0.0.2", tags=tags)]

    plan = plan_for(CFG, roles, membership_of(*nodes))

    assert list(plan.changes) == ["web2"]
    assert plan.reasons == {"web1": ("in backend farm: web2 has 10.9.9.9:80",)}


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


def test_a_long_invalid_role_is_cut_in_the_reason() -> None:
    plan = plan_for(with_line(WEB1), ROLES, membership_of(member("web1", role=f"/{'x' * 99}")))

    why = f"in backend farm: its role '/{'x' * 39}' is not [A-Za-z0-9][A-Za-z0-9._-]{{0,62}}"
    assert plan.reasons == {"web1": (why,)}


def test_a_line_whose_address_is_a_tag_stays_where_the_role_becomes_invalid() -> None:
    roles = parse_roles_text("""
        services: {iis: {port: 80}}
        roles: {web: {lb: [iis], address: "{tag:ip}"}}
    """)
    before = with_line(WEB1.replace("10.0.0.1", "10.9.9.9"))

    plan = plan_for(before, roles, membership_of(member("web1", role="we b")), PlanOptions(force=True))

    assert plan.after == (before,)


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


# --- lines without a marker -----------------------------------------------------------------------------------------

COMMENT = "# lbagent paused web1 10.0.0.1 role=web"
MISSING = "haproxy.cfg:2: the marker of server web1 is missing"
MISSING_PAUSED = "haproxy.cfg:2: the marker of the paused node web1 is missing"
AFTER_MARKER = CFG.replace("backend data", f"    {WEB1}\nbackend data")
HAS_ANOTHER = "it has its line at another marker of the proxy"
REPLACED = "another server has its name or endpoint"


@pytest.mark.parametrize(
    ("line", "members", "after", "note"),
    [
        (WEB1, [member("web1")], WEB1, MISSING),
        (WEB1, [member("web1", status=FAILED)], WEB1, MISSING),
        (WEB1, [member("web1", "10.0.0.9")], WEB1.replace("10.0.0.1", "10.0.0.9"), MISSING),
        (WEB1, [member("web1", "192.168.0.1")], WEB1, MISSING),
        (WEB1, [member("web1", role="idle")], WEB1, MISSING),
        (WEB1, [paused_member(member("web1"))], COMMENT, MISSING_PAUSED),
        (COMMENT, [paused_member(member("web1"))], COMMENT, MISSING_PAUSED),
        (COMMENT, [member("web1")], None, "haproxy.cfg:2: web1 is resumed, but gets no line: the marker is missing"),
        (WEB1, [member("web1", status=LEFT)], None, None),
        (WEB1, [member("web1", status=FAILED), member("web2")], None, None),
    ],
)  # fmt: skip
def test_a_line_without_a_marker_stays_while_its_node_is_present(
    line: str, members: list[Member], after: str | None, note: str | None
) -> None:
    plan = plan_for(f"backend farm\n    {line}\n", ROLES, membership_of(*members))

    assert plan.after == (f"backend farm\n    {after}\n" if after else "backend farm\n",)
    assert [str(one) for one in plan.notes if str(one).startswith("haproxy.cfg:")] == ([note] if note else [])


@pytest.mark.parametrize(
    ("text", "members", "reason"),
    [
        (AFTER_MARKER, [member("web1")], HAS_ANOTHER),
        (AFTER_MARKER, [member("web1", "10.0.0.2"), member("web0")], HAS_ANOTHER),
        (f"backend farm\n    server WEB1 10.9.9.9:80\n    {WEB1}\n", [member("web1")], REPLACED),
        (f"backend farm\n    server mine 10.0.0.1:80\n    {WEB1}\n", [member("web1")], REPLACED),
    ],
)  # fmt: skip
def test_a_line_without_a_marker_is_removed_where_another_server_replaces_it(
    text: str, members: list[Member], reason: str
) -> None:
    plan = plan_for(text, ROLES, membership_of(*members))

    assert plan.changes["web1"].removed == (f"backend farm: {WEB1}",)
    assert plan.changes["web1"].reasons == (reason,)
    assert plan.changed == (plan.added, plan.removed)


# --- operator's lines beside managed ones ---------------------------------------------------------------------------


def test_a_present_line_stays_beside_an_operators_line_with_its_endpoint() -> None:
    text = with_line(f"server mine 10.0.0.1:80\n    {WEB1}")

    assert plan_for(text, ROLES, membership_of(member("web1"))).after == (text,)


@pytest.mark.parametrize(("name", "at"), [("web1", 2), ("WEB1", 2), ("web1.iis", None), ("web2", 2), ("other", None)])
def test_an_operators_line_is_adopted_by_name_then_by_endpoint(name: str, at: int | None) -> None:
    text = with_line(f"server {name} 10.0.0.{1 if at else 7}:80")

    plan = plan_for(text, ROLES, membership_of(member("web1")), PlanOptions(adopt=True))

    removed = (f"backend farm: server {name} 10.0.0.1:80",) if at else ()
    assert plan.changes["web1"] == Change((f"backend farm: {WEB1}",), removed)
    assert [one.strip() for one in plan.after[0].split("\n") if "lbagent" in one] == [WEB1]


@pytest.mark.parametrize(("endpoint", "there"), [("10.0.0.1:80", 0), ("10.0.0.1:81", 1)])
def test_a_server_template_with_its_endpoint_has_priority(endpoint: str, there: int) -> None:
    text = with_line(f"server-template more 1-2 {endpoint}")

    assert len(plan_for(text, ROLES, membership_of(member("web1"))).added) == there


def test_a_node_with_a_line_does_not_keep_another_from_being_adopted() -> None:
    text = with_line(f"server WEB2 10.0.0.2:80\n    {WEB1}")

    plan = plan_for(text, ROLES, membership_of(member("web1"), member("web2", "10.0.0.2")), PlanOptions(adopt=True))

    assert plan.after == (with_line(f"{WEB1}\n    {WEB1.replace('web1 10.0.0.1', 'web2 10.0.0.2')}"),)


def test_two_operators_lines_of_one_node_leave_one() -> None:
    text = with_line("server mine 10.0.0.1:80\n    server web1 10.0.0.7:80")

    plan = plan_for(text, ROLES, membership_of(member("web1")), PlanOptions(adopt=True))

    assert plan.after == (with_line(f"server mine 10.0.0.1:80\n    {WEB1}"),)


# --- invalid roles, and limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "one", "after"),
    [
        (WEB1, member("web1", role="we b"), WEB1),
        (WEB1, paused_member(member("web1", role="we b")), COMMENT),
        (COMMENT, paused_member(member("web1", role="we b")), COMMENT),
        (COMMENT, member("web1", role="we b"), None),
        (WEB1, member("web1", "10.0.0.2", "we b"), None),
    ],
)
def test_a_line_of_a_node_with_an_invalid_role_stays_at_its_address(line: str, one: Member, after: str | None) -> None:
    beside = "server web9 10.0.0.9:80 check inter 2s rise 2 fall 2 # lbagent role=web"
    before = with_line(f"{line}\n    {beside}")

    plan = plan_for(before, ROLES, membership_of(one, member("web9", "10.0.0.9")), PlanOptions(force=True))

    assert plan.after == (with_line(f"{after}\n    {beside}" if after else beside),)


def test_failed_nodes_beyond_the_maximum_do_not_count_as_failed() -> None:
    line = "server api1 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=api"
    nodes = [member("api1", role="api"), *(member(f"api{at}", f"10.0.0.{at}", "api", status=FAILED) for at in (2, 3))]

    plan = plan_for(with_line(line), ROLES, membership_of(*nodes))

    assert plan.after == (with_line(line),)
    assert plan.reasons == {f"api{at}": ("iis: role api has reached its maximum of 1",) for at in (2, 3)}


def test_a_line_whose_node_lost_a_tag_keeps_its_endpoint() -> None:
    before = planned_text(CFG, ROLES, membership_of(member("web1", role="db", tags={"port": "1"})))

    plan = plan_for(
        before, ROLES, membership_of(member("web1", role="db"), member("web2", role="db", tags={"port": "1"}))
    )

    assert plan.after == (before,)
    assert plan.reasons["web2"] == ("in backend data: web1 has 10.0.0.1:1",)


def test_lines_without_a_marker_are_guarded_together() -> None:
    text = f"backend farm\n    {WEB1}\n"

    plan = plan_for(text, ROLES, membership_of(member("web1", status=LOST)))

    assert plan.after == (text,)
    assert [str(one) for one in plan.blocked] == [
        "1 of 1 lines without a marker in backend farm would be removed: web1"
    ]


@pytest.mark.parametrize("text", [f".if 0\n{CFG}.endif\n", CFG.replace("farm\n", "farm\n    disabled\n")])
def test_a_marker_that_haproxy_does_not_read_is_a_note(text: str) -> None:
    notes = plan_for(text, ROLES, membership_of()).notes

    assert notes[0] == "haproxy.cfg:3: HAProxy does not read the lines at this marker (`.if`, or `disabled`)"


def test_nodes_with_a_refused_address_do_not_count_for_the_maximum() -> None:
    nodes = [member("api0", "127.0.0.1", "api"), member("api1", "10.0.0.1", "api"), member("api2", "10.0.0.2", "api")]

    plan = plan_for(CFG, ROLES, membership_of(*nodes))

    assert list(plan.changes) == ["api1"]
    assert plan.reasons["api2"] == ("iis: role api has reached its maximum of 1",)


@pytest.mark.parametrize(("web", "api"), [("a", "b"), ("b", "a")])
def test_of_two_roles_at_one_marker_the_first_name_has_a_common_address(web: str, api: str) -> None:
    plan = plan_for(CFG, ROLES, membership_of(member(web), member(api, role="api")))

    assert list(plan.changes) == ["a"]
    assert plan.reasons == {"b": ("in backend farm: a has 10.0.0.1:80",)}


def test_a_second_line_of_a_node_is_removed_without_a_reason() -> None:
    old = WEB1.replace("2s", "9s")

    plan = plan_for(with_line(f"{WEB1}\n    {old}"), ROLES, membership_of(member("web1")))

    assert plan.after == (with_line(WEB1),)
    assert plan.changes == {"web1": Change((), (f"backend farm: {old}",))}


def test_a_paused_node_keeps_its_place_below_the_maximum() -> None:
    api1 = paused_member(member("api1", role="api"))
    before = with_line("# lbagent paused api1 10.0.0.1 role=api")

    plan = plan_for(before, ROLES, membership_of(api1, member("api0", "10.0.0.2", "api")))

    assert plan.after == (before,)
    assert plan.reasons == {"api0": ("iis: role api has reached its maximum of 1",)}


def test_a_line_without_a_marker_keeps_its_line_end() -> None:
    text = f"backend farm\r\n\t{WEB1}\r\n"

    plan = plan_for(text, ROLES, membership_of(member("web1", "10.0.0.9")))

    assert plan.after == (text.replace("10.0.0.1", "10.0.0.9"),)


def test_of_two_lines_without_a_marker_one_gets_the_common_new_address() -> None:
    lines = [WEB1, WEB1.replace("web1 10.0.0.1", "web2 10.0.0.2")]
    text = "backend farm\n    {}\n    {}\n"

    plan = plan_for(text.format(*lines), ROLES, membership_of(member("web1", "10.0.0.9"), member("web2", "10.0.0.9")))

    assert plan.after == (text.format(WEB1.replace("10.0.0.1", "10.0.0.9"), lines[1]),)


# --- the parts of a plan --------------------------------------------------------------------------------------------


def test_a_plan_has_its_managed_lines_by_marker_and_their_digest() -> None:
    without = WEB1.replace("web1 10.0.0.1", "web2 10.0.0.2")
    text = f"backend old\n    {without}\n{CFG}"

    plan = plan_for(text, ROLES, membership_of(member("web1"), member("web2", "10.0.0.2")._replace(role="idle")))

    assert plan.managed_lines == {"": [without], "lb-iis": [WEB1], "data-mongo": []}
    assert plan.digest == digest_lines([("backend old", [without]), ("backend farm", [WEB1])])
    assert plan_for(CFG, ROLES, membership_of()).digest == digest_lines([])


def test_ignored_lines_are_notes() -> None:
    text = dedent("""
        frontend in
            # additional-lb-iis-server
        backend farm
            # additional-lb-iis-servers
            server web1 10.0.0.1:80 # lbagent role=web/1
            # additional-lb-iis-server
            # additional-data-mongo-server
    """)

    assert [str(note) for note in plan_for(text, ROLES, membership_of()).notes] == [
        "haproxy.cfg:2: marker ignored: it is in frontend in, which cannot hold servers",
        "haproxy.cfg:4: almost a marker, and ignored; write '# additional-SECTION-SERVICE-server'",
        "haproxy.cfg:5: looks like a managed line, but its comment is not `# lbagent role=ROLE`; "
        "treated as an operator's line",
    ]


def test_a_preview_names_the_nodes_whose_lines_the_guard_keeps() -> None:
    lines = {number: WEB1.replace("web1 10.0.0.1", f"web{number} 10.0.0.{number}") for number in range(1, 4)}
    before = with_line("\n    ".join(lines.values()))
    members = [member("web1", status=LEFT), *(member(f"web{at}", f"10.0.0.{at}", status=LOST) for at in (2, 3))]

    preview = make_preview(Document([("haproxy.cfg", before)]), ROLES, membership_of(*members))

    assert preview.plan is not None
    assert preview.plan.after == (before.replace(f"    {WEB1}\n", ""),)
    assert (preview.blocked, preview.quarantined) == (frozenset({"web2", "web3"}), frozenset())
    assert preview.change("web1") == Change((), (f"backend farm: {WEB1}",), ("the node has left",))
    assert preview.change("web2") == Change()


def test_a_preview_without_blocked_removals_has_the_quarantined_nodes() -> None:
    document = Document([("haproxy.cfg", CFG)])
    context = fingerprint_context(document, ROLES)
    members = quarantine_nodes(membership_of(member("web1")), {"web1": REASON}, context, NOW)

    preview = make_preview(document, ROLES, members)

    assert (preview.blocked, preview.quarantined) == (frozenset(), frozenset({"web1"}))
    assert preview.notes == ()
