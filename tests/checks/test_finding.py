"""Each finding is one printable line with kind, object, problem and fix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.checks.finding import Finding, Kind, Severity, has_error, join_names, ok, warning
from tests.helpers.builders import POISON


@given(st.text(), st.text(), st.text())
def test_a_finding_is_one_printable_line(where: str, what: str, fix: str) -> None:
    words = Finding(Severity.ERROR, Kind.SERF, where, what, fix).line

    assert words.isprintable()
    assert len(words) <= 602


@pytest.mark.parametrize("hostile", POISON)
def test_terminal_control_characters_are_not_printed(hostile: str) -> None:
    assert warning(Kind.NODE, hostile, hostile, hostile).line.isprintable()


def test_more_than_five_names_are_counted() -> None:
    assert join_names([f"web{number}" for number in range(9)]) == "web0, web1, web2, web3, web4 and 4 more"
    assert join_names([f"web{number}" for number in range(5)]) == "web0, web1, web2, web3, web4"
    assert join_names(["a", "b"]) == "a, b"


def test_a_line_over_600_characters_is_cut() -> None:
    fits = "x" * (600 - len("serf: "))

    assert ok(Kind.SERF, "", fits).line == f"serf: {fits}"
    assert ok(Kind.SERF, "", f"{fits}y").line == f"serf: {fits} …"


def test_only_an_error_counts_as_one() -> None:
    assert not has_error([ok(Kind.SERF, "", ""), warning(Kind.SERF, "", "", "")])
    assert has_error([ok(Kind.SERF, "", ""), Finding(Severity.ERROR, Kind.SERF, "", "")])
