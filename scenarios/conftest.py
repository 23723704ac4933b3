"""What all scenarios share."""

from __future__ import annotations

from pathlib import Path

import pytest

LIMIT = 3600.0
"""Seconds that a scenario's test may take, with what its fixtures download and build."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each scenario more time than a test of `tests/` has."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT))
