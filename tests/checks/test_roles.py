"""`check` finds the gaps of a valid roles.yml, with FILE:LINE and the fix."""

# ruff: noqa: E501  # a case of a table is on one line

from __future__ import annotations

import pytest

from lbagent.checks import roles
from lbagent.checks.roles import find_key_lines
from tests.checks.helpers import list_lines
from tests.helpers.builders import dedent, parse_roles_text


def check(text: str) -> list[str]:
    """Return the findings about a roles.yml."""
    return list_lines(roles.check_roles(parse_roles_text(text), "roles.yml", find_key_lines(dedent(text).encode())))


def test_roles_with_networks_and_services_are_ok() -> None:
    assert check("""
        services: {iis: {port: 80}}
        roles:
          web: {lb: [iis], networks: [10.0.0.0/8, fd00::/8]}
    """) == [
        "ok roles: roles.yml: 1 role, 1 service",
        "ok networks: roles.yml:3: role web accepts addresses in 10.0.0.0/8, fd00::/8",
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            """
                services: {iis: {port: 80}}
                roles:
                  web: {lb: [iis]}
            """,
            ["warning networks: roles.yml:3: role web accepts any address; add the networks of its nodes, as in `networks: [10.0.0.0/8]`"],
        ),
        (
            """
                services: {iis: {port: 80}}
                web: {lb: [iis]}
            """,
            ["warning networks: roles.yml:2: role web accepts any address; add the networks of its nodes, as in `networks: [10.0.0.0/8]`"],
        ),
        (
            """
                services:
                  iis: {port: 80}
                  mongo: {port: 27017}
                roles:
                  web: {lb: [iis], networks: [10.0.0.0/8]}
                  idle: {lb: [none]}
            """,
            [
                "warning role-empty: roles.yml:6: role idle has no service; its nodes get no server lines; add a section, as in `lb: [iis]`, or delete the role",
                "warning service-unused: roles.yml:3: no role uses service mongo; name it in a section of a role, or delete it",
            ],
        ),
    ],
)  # fmt: skip
def test_a_gap_in_a_valid_roles_yml_is_found_with_its_line(text: str, lines: list[str]) -> None:
    assert [line for line in check(text) if not line.startswith("ok ")] == lines
