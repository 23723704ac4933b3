"""`check` reports what `haproxy -c` and `haproxy -v` print."""

# ruff: noqa: E501  # a case of a table is on one line

from __future__ import annotations

import pytest

from lbagent.checks import haproxy
from lbagent.checks.haproxy import ValidationResult
from tests.checks.helpers import list_lines

REFUSED = """\
[NOTICE]   (13092) : haproxy version is 2.6.12-1+deb12u4
[WARNING]  (13092) : config : missing timeouts for proxy 'b'.
   | While not properly invalid, you will certainly encounter various problems
[ALERT]    (13092) : config : parsing [h.cfg:12] : unknown proxy mode 'tpc'.
[ALERT]    (13092) : config : parsing [h.cfg:13] : unknown keyword 'foo' in 'listen' section
[ALERT]    (13092) : config : Error(s) found in configuration file : h.cfg
[ALERT]    (13092) : config : Fatal errors found in configuration.
"""
FAST = "ok time-limit: `haproxy -c` takes less than half of 30 s"


def accepted(words: str, seconds: float = 0.1) -> ValidationResult:
    """A haproxy -c that ended with 0."""
    return ValidationResult(accepted=True, output=words, seconds=seconds, limit=30)


def refused(words: str) -> ValidationResult:
    """One that did not."""
    return ValidationResult(accepted=False, output=words, seconds=0.1, limit=30)


FIX = "fix haproxy.cfg; until then no server line can be added or removed"


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        (accepted("Configuration file is valid"), ["ok haproxy-cfg: h.cfg: `haproxy -c` accepts it without a warning", FAST]),
        (
            refused(REFUSED),
            [
                f"error haproxy-cfg: h.cfg:12: unknown proxy mode 'tpc'.; {FIX}",
                f"error haproxy-cfg: h.cfg:13: unknown keyword 'foo' in 'listen' section; {FIX}",
                "warning haproxy-cfg: h.cfg: missing timeouts for proxy 'b'.; this is a warning of HAProxy; see its manual",
                FAST,
            ],
        ),
        (refused("[ALERT] 12 (3) : config : Fatal errors found in configuration."), [f"error haproxy-cfg: h.cfg: [ALERT] 12 (3) : config : Fatal errors found in configuration.; {FIX}", FAST]),
        (refused("[ALERT]    (3) : config : Fatal errors found in configuration."), [f"error haproxy-cfg: h.cfg: Fatal errors found in configuration.; {FIX}", FAST]),
        (refused("killed\nagain"), [f"error haproxy-cfg: h.cfg: killed; {FIX}", FAST]),
        (refused(""), [f"error haproxy-cfg: h.cfg: HAProxy refuses it without a reason; {FIX}", FAST]),
        (refused("[ALERT]    (3) : \x1b[2J\r evil"), [f"error haproxy-cfg: h.cfg: ?[2J? evil; {FIX}", FAST]),
        (accepted("", 15), ["ok haproxy-cfg: h.cfg: `haproxy -c` accepts it without a warning", FAST]),
        (
            accepted("", 16),
            ["ok haproxy-cfg: h.cfg: `haproxy -c` accepts it without a warning", "warning time-limit: `haproxy -c` took 16.0 s; `haproxy.timeout` in roles.yml is 30 s; set `haproxy.timeout` to four times that duration"],
        ),
    ],
)  # fmt: skip
def test_each_message_of_haproxy_is_a_finding_with_its_line(result: ValidationResult, lines: list[str]) -> None:
    assert list_lines(haproxy.check_verdict(result, "h.cfg")) == lines


def test_ten_messages_are_listed_and_the_rest_counted() -> None:
    words = "".join(f"[WARNING]  (1) : config : number {number}\n" for number in range(12))

    lines = list_lines(haproxy.check_verdict(accepted(words), "h.cfg"))

    assert len(lines) == 12
    assert lines[10] == "warning haproxy-cfg: h.cfg: 2 more messages of HAProxy; run `haproxy -c`"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "ok haproxy: HAProxy 2.6.12-1+deb12u4"),
        ("HAProxy version 2.8.25 2026", "ok haproxy: HAProxy 2.8.25"),
        ("HAProxy version 3.0.1-1 2026", "ok haproxy: HAProxy 3.0.1-1"),
        ("HAProxy version 3.1.5 2026", "ok haproxy: HAProxy 3.1.5 (not tested; tested are 2.6, 2.8, 3.0 and 3.2)"),
        ("HAProxy version 3.2.26-1 2026", "ok haproxy: HAProxy 3.2.26-1"),
        ("HAProxy version 3.3-dev5-a1b2c3 2026", "warning haproxy: HAProxy 3.3-dev5-a1b2c3 is newer than the newest tested version, 3.2; use 3.2, or try changes on a test system first"),
        ("HAProxy version 4.0.0 2027", "warning haproxy: HAProxy 4.0.0 is newer than the newest tested version, 3.2; use 3.2, or try changes on a test system first"),
        ("HAProxy version 2.10.0 2027", "ok haproxy: HAProxy 2.10.0 (not tested; tested are 2.6, 2.8, 3.0 and 3.2)"),
        ("HA-Proxy version 2.2.9-2 2021/05/15", "warning haproxy: HAProxy 2.2.9-2 is older than the oldest supported version, 2.6; each change needs a reload; use 2.6, 2.8, 3.0 or 3.2"),
        ("not haproxy\nat all", "warning haproxy: haproxy -v: the output is not a version: 'not haproxy'; install HAProxy"),
    ],
)  # fmt: skip
def test_the_version_is_compared_with_the_tested_ones(words: str, line: str) -> None:
    assert list_lines([haproxy.check_version(words)]) == [line]
