"""The time limit of all scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

LIMIT = 3600.0
"""Seconds that a test of a scenario may take, including the downloads and builds of its fixtures."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test of a scenario more time than those of `tests/`."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT))
