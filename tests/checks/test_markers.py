"""`check` finds wrong markers, and compares the managed lines with the plan: edits, unfinished work, quarantine, cookies."""
# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

import pytest

from lbagent.checks import markers
from lbagent.checks.markers import PendingWork
from lbagent.haproxy.config import Document
from lbagent.membership.model import Membership
from tests.checks.helpers import list_lines
from tests.helpers.builders import dedent, member, membership_of, parse_roles_text, plan_for

FARM_ROLES = """
    services: {iis: {port: 80}, mongo: {port: 27017}}
    roles:
      web: {lb: [iis], networks: [10.0.0.0/8]}
      data: {db: [mongo], networks: [10.0.0.0/8]}
"""
WEB01 = "    server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web\n"
SERVING = f"listen lb\n{WEB01}    # additional-lb-iis-server\nlisten db\n    # additional-db-mongo-server\n"
QUIET = PendingWork(0, 0, Document([("", SERVING)]).compute_digest(), "", ())

ROLES = """
    services: {iis: {port: 80}, mongo: {port: 27017}}
    roles:
      web: {lb: [iis], networks: [10.0.0.0/8]}
      data: {db: [mongo], networks: [10.0.0.0/8]}
"""
BOTH = """
    listen lb
        # additional-lb-iis-server
    listen db
        # additional-db-mongo-server
"""


def marked(text: str, membership: Membership | None = None) -> list[str]:
    """Return the findings about the markers of a haproxy.cfg, and the notes of the plan for these members."""
    document, roles = Document([("haproxy.cfg", dedent(text))]), parse_roles_text(ROLES)
    found = [*markers.check_markers(document, roles)]
    if membership:
        found += markers.check_notes(document, plan_for(dedent(text), roles, membership).notes)
    return list_lines(found)


def test_a_marker_for_each_section_and_service_is_ok() -> None:
    assert marked(BOTH, membership_of(member("web01"))) == [
        "ok markers: haproxy.cfg: every section and service has its marker (2 markers)"
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            BOTH + "    # additional-lb-isi-server\n",
            ["warning marker-unknown: haproxy.cfg:5: unknown marker '# additional-lb-isi-server'; did you mean '# additional-lb-iis-server'?"],
        ),
        (
            BOTH + "    # additional-something-else-server\n",
            ["warning marker-unknown: haproxy.cfg:5: unknown marker '# additional-something-else-server'; add its section and service to a role of roles.yml, or delete the marker"],
        ),
        (
            "listen lb\n    # additional-lb-iis-server\n",
            [
                "error role-without-marker: haproxy.cfg: no marker of role data; its nodes get no server lines; insert '# additional-db-mongo-server' where its servers belong",
            ],
        ),
        (
            BOTH + "    # additional-db-mongo-server\n",
            ["error marker-duplicate: haproxy.cfg:5: '# additional-db-mongo-server' is in listen db twice, first at haproxy.cfg:4; delete one of them"],
        ),
    ],
)  # fmt: skip
def test_a_wrong_marker_is_found_with_its_line(text: str, lines: list[str]) -> None:
    assert marked(text) == lines


def test_duplicate_markers_are_found_without_roles_yml() -> None:
    text = dedent(BOTH) + "    # additional-db-mongo-server\n"

    assert list_lines(markers.check_markers(Document([("haproxy.cfg", text)]), None)) == [
        "error marker-duplicate: haproxy.cfg:5: '# additional-db-mongo-server' is in listen db twice, first at haproxy.cfg:4; delete one of them",
        "warning markers: haproxy.cfg: markers not checked: roles.yml is invalid; fix roles.yml",
    ]


def test_a_managed_line_without_its_marker_is_found() -> None:
    text = BOTH + "listen old\n    server web01 10.0.0.1:80 check # lbagent role=web\n"

    assert bad_of(text, membership_of(member("web01"))) == [
        "warning line-without-marker: haproxy.cfg:6: the marker of server web01 is missing; restore the marker below the line, or delete the line",
    ]


def bad_of(text: str, membership: Membership) -> list[str]:
    """Return the findings that are not ok."""
    return [line for line in marked(text, membership) if not line.startswith("ok ")]


def test_an_operators_line_in_place_of_a_managed_one_is_found() -> None:
    text = BOTH.replace("        # additional-lb", "        server WEB01 10.9.9.9:80\n        # additional-lb")

    assert bad_of(text, membership_of(member("web01"))) == [
        "warning migration: haproxy.cfg:2: 1 server line above the marker is not managed (WEB01); pauses and leaves of these nodes do not affect them; run `lbagent apply --adopt` after the nodes have joined, or keep them as your own; see docs/how-to/from-handler-rb.md",
        "error operator-line: haproxy.cfg:2: web01: no managed line in listen lb: an operator's line has its name or address, pauses do not affect it; `lbagent apply --adopt` turns it into a managed line",
    ]


def test_a_node_without_a_line_is_found() -> None:
    assert bad_of(BOTH, membership_of(member("web01", "192.168.0.1"))) == [
        "warning node: web01: no line for role web: 192.168.0.1 is outside the role's networks; fix the node's tags or address, or roles.yml"
    ]


def test_a_note_about_a_marker_is_not_a_second_finding() -> None:
    text = "listen lb\n    # additional-lb-isi-server\n"

    assert [line.split(":")[0] for line in marked(text, membership_of(member("web01")))] == [
        "warning marker-unknown",
        "error role-without-marker",
        "error role-without-marker",
    ]


MALFORMED = [
    ("#additional-lb-iis-server", "lb-iis"),
    ("# additional-lb-iis-server # mine", "lb-iis"),
    ("# ADDITIONAL-LB-IIS-SERVER", "lb-iis"),
    ("#\tadditional_lb-iis-server", "lb-iis"),
    ("# additional-monitor-ii-server x", "monitor-iis"),
]


@pytest.mark.parametrize(("text", "meant"), MALFORMED)
def test_a_malformed_marker_is_found_with_its_correct_form(text: str, meant: str) -> None:
    roles = parse_roles_text("services: {iis: {port: 80}}\nroles: {web: {lb: [iis], monitor: [iis]}}\n")
    found = [one.line for one in markers.check_markers(Document([("a.cfg", f"listen l\n    {text}\n")]), roles)]

    fix = f"write '# additional-{meant}-server', and nothing else in that line"
    assert f"marker-malformed: a.cfg:2: {text!r} is not a marker; {fix}" in found


def test_the_suggested_marker_is_of_the_same_section() -> None:
    roles = parse_roles_text("services: {iis: {port: 80}, is: {port: 81}}\nroles: {web: {lb: [is], monitor: [iis]}}\n")
    text = "listen l\n    # additional-monitor-is-server\n"
    found = [
        one.line for one in markers.check_markers(Document([("a.cfg", text)]), roles) if one.kind == "marker-unknown"
    ]

    assert [one.endswith("did you mean '# additional-monitor-iis-server'?") for one in found] == [True]


def test_a_role_that_has_another_marker_gets_a_warning() -> None:
    roles = parse_roles_text("services: {iis: {port: 80}}\nroles: {web: {lb: [iis], monitor: [iis]}}\n")
    text = "listen l\n    # additional-lb-iis-server\n"

    assert list_lines(markers.check_markers(Document([("a.cfg", text)]), roles)) == [
        "warning marker-missing: a.cfg: section monitor, service iis of role web has no marker; insert '# additional-monitor-iis-server' where its servers belong"
    ]


def check(text: str, state: PendingWork = QUIET, membership: Membership | None = None) -> list[str]:
    """Return the findings about the managed lines of a haproxy.cfg."""
    document = Document([("haproxy.cfg", text)])
    return list_lines(
        markers.check_managed_lines(
            document, plan_for(text, parse_roles_text(FARM_ROLES), membership or membership_of(member("web01"))), state
        )
    )


MANY = membership_of(*(member(f"web{number:02}", f"10.0.0.{number}") for number in range(1, 31)))


@pytest.mark.parametrize(
    ("text", "state", "lines"),
    [
        (SERVING, QUIET, ["ok drift: the managed lines match the plan (1 line)"]),
        (SERVING, QUIET._replace(digest=""), ["ok drift: the managed lines match the plan (1 line)"]),
        (
            SERVING.replace("rise 2", "rise 9"),
            QUIET,
            [
                "warning drift: haproxy.cfg:2: 'listen lb: server web01 10.0.0.1:80 check inter 2s rise 9 fall 2 # lbagent role=web' was edited by hand; run `lbagent apply` to restore it; a line without its `# lbagent` comment is yours",
                "warning drift: 'listen lb: server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web' is missing; run `lbagent apply` to restore it; a line without its `# lbagent` comment is yours",
            ],
        ),
        (
            SERVING.replace(WEB01, ""),
            QUIET,
            ["warning drift: 'listen lb: server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web' is missing; run `lbagent apply` to restore it; a line without its `# lbagent` comment is yours"],
        ),
        (
            SERVING.replace("    server", "  server"),
            QUIET,
            ["warning drift: managed lines were moved or indented by hand; run `lbagent plan` to see the change, `lbagent apply` to make it"],
        ),
        (
            SERVING,
            QUIET._replace(digest="other"),
            ["error pending: the managed lines match the plan, but HAProxy has not confirmed them; run `lbagent apply`"],
        ),
        (
            SERVING,
            QUIET._replace(events=2, failed_reload="port in use"),
            [
                "warning pending: 2 events in the spool; run `lbagent apply`, or wait for the next event",
                "error pending: the last reload failed: port in use; fix the cause, then run `lbagent apply --force`",
            ],
        ),
        (
            SERVING,
            QUIET._replace(quarantined=(("web07", "unknown keyword"),)),
            [
                "error quarantine: web07: in quarantine, HAProxy refuses its server line: unknown keyword; fix its tags or roles.yml; lbagent retries it",
                "ok drift: the managed lines match the plan (1 line)",
            ],
        ),
    ],
)  # fmt: skip
def test_a_difference_between_file_and_plan_is_found_with_its_cause(
    text: str, state: PendingWork, lines: list[str]
) -> None:
    assert check(text, state) == lines


def test_an_edit_of_roles_yml_is_not_an_edit_of_managed_lines() -> None:
    assert check(SERVING, QUIET, membership_of(member("web01"), member("web02", "10.0.0.2"))) == [
        "warning pending: 1 line would change after an edit of roles.yml or haproxy.cfg; run `lbagent plan` to see the change, `lbagent apply` to make it"
    ]


def test_removals_blocked_by_the_safety_guard_are_found() -> None:
    assert check(SERVING, QUIET, membership_of(member("other", role="gone"))) == [
        "warning blocked: removals blocked by the safety guard: 1 of 1 lines at '# additional-lb-iis-server' in listen lb would be removed: web01; run `lbagent apply --force` to apply them",
        "ok drift: the managed lines match the plan (1 line)",
    ]


def test_twenty_edited_lines_are_listed_and_the_rest_counted() -> None:
    lines = check(SERVING, QUIET._replace(digest="other"), MANY)

    assert len(lines) == 21
    assert (
        lines[-1]
        == "warning drift: 9 more lines edited by hand; run `lbagent plan` to see the change, `lbagent apply` to make it"
    )


@pytest.mark.parametrize(("second", "told"), [("a", 1), ("b", 0)])
def test_two_servers_with_the_same_cookie_are_found(second: str, told: int) -> None:
    lines = (
        f"    server web01.{one} 10.0.0.1:8{at} cookie {c} # lbagent role=web\n"
        for at, (one, c) in enumerate((("x", "a"), ("y", second)), 1)
    )
    found = [one.line for one in markers.check_cookies(Document([("a.cfg", f"listen l\n{''.join(lines)}")]))]

    assert len(found) == told
    assert all(
        one.startswith("cookie: a.cfg:1: web01.x and web01.y in listen l have the same cookie 'a'") for one in found
    )
