"""`check` compares the managed lines with the plan: edits by hand, unfinished work, quarantine, cookies."""

# ruff: noqa: E501  # a case of a table is on one line

from __future__ import annotations

import pytest

from lbagent.checks import markers
from lbagent.checks.markers import PendingWork
from lbagent.haproxy.config import Document
from lbagent.membership.model import Membership
from tests.checks.helpers import list_lines
from tests.helpers.builders import member, membership_of, parse_roles_text, plan_for

ROLES = """
    services: {iis: {port: 80}, mongo: {port: 27017}}
    roles:
      web: {lb: [iis], networks: [10.0.0.0/8]}
      data: {db: [mongo], networks: [10.0.0.0/8]}
"""
WEB01 = "    server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web\n"
SERVING = f"listen lb\n{WEB01}    # additional-lb-iis-server\nlisten db\n    # additional-db-mongo-server\n"
QUIET = PendingWork(0, 0, Document([("", SERVING)]).compute_digest(), "", ())


def check(text: str, state: PendingWork = QUIET, membership: Membership | None = None) -> list[str]:
    """Return the findings about the managed lines of a haproxy.cfg."""
    document = Document([("haproxy.cfg", text)])
    return list_lines(
        markers.check_managed_lines(
            document, plan_for(text, parse_roles_text(ROLES), membership or membership_of(member("web01"))), state
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
