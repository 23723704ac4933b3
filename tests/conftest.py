"""What all tests share: the same examples on every run, and no variable of the caller's environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "steady", deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SERF_", "LBAGENT_", "HAPROXY_", "STATE_DIRECTORY"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def lbagent() -> str:
    """The console script as it is installed."""
    return str(Path(sys.executable).parent / "lbagent")
