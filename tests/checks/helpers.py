"""Findings as the lines that `lbagent check` prints without a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from lbagent.checks.finding import Finding


def list_lines(findings: Iterable[Finding]) -> list[str]:
    """Return the findings as lines."""
    return [f"{finding.severity} {finding.line}" for finding in findings]


def list_problems(findings: Iterable[Finding]) -> list[str]:
    """Return the findings that are not ok, as lines."""
    return [line for line in list_lines(findings) if not line.startswith("ok ")]
