"""Set-up of all tests: the same Hypothesis examples in every run, a clean environment, signals at their defaults.

With $LBAGENT_REQUIRE_REAL, as in CI, a missing program ends the run with its name, and no test is skipped for it.
A test marked `every_haproxy` is repeated for each HAProxy version on the machine. Of the tests that have a version only
a part runs, in which each combination of other parameters and each version occurs. All of them run with
$LBAGENT_MATRIX, with -k, where tests are named on the command line, and where a test is marked `all_versions`.

$LBAGENT_COMMAND is the path of another `lbagent` to test, such as an installed package or another release. The tests
that run `lbagent` as a program then test that one; those of functions still test this checkout.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.real_programs import (
    LBAGENT,
    TESTED,
    LoadBalancer,
    binaries,
    default_haproxy,
    fetched_haproxies,
    haproxy_release,
    haproxy_version,
)
from tests.helpers.slices import choose_slice

REQUIRED = bool(os.environ.get("LBAGENT_REQUIRE_REAL"))
"""Read here, because the tests run without this variable."""

MATRIX = bool(os.environ.get("LBAGENT_MATRIX"))

# Else each of the thousands of `lbagent` processes would compile all modules again, 0.4 s of processor time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

PROGRAMS = (
    *("haproxy", "serf", "mount", "unshare", "promtool", "mandoc", "zsh", "setpriv", "dpkg-deb"),
    *("systemd-analyze", "systemd-tmpfiles", "strace"),
    *("keepalived", "rsyslogd", "logrotate", "ip", "curl"),  # of the examples
)

settings.register_profile(
    "steady", deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


def reset_signals() -> None:
    """Give every signal that the caller ignores or blocks its default action again.

    A shell without job control starts `make test &` with SIGINT ignored, nohup with SIGHUP; children inherit this,
    and a test that sends such a signal would wait until its time limit. Python itself ignores SIGPIPE and SIGXFSZ.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


reset_signals()


def on_debian_12() -> bool:
    """Return whether this machine runs Debian 12, for which `.ci/haproxy` fetches the other HAProxy versions."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME") == "bookworm"


def missing_versions() -> list[str]:
    """Return the HAProxy versions that are tested on this release of Debian and are not installed."""
    return [version for version in TESTED if version not in binaries()] if on_debian_12() else []


def pytest_sessionstart() -> None:
    """Raise UsageError (exit status 4) if a required program is missing."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    missing += [f"haproxy {version}" for version in missing_versions() if version != TESTED[-1]]
    if REQUIRED and missing:
        raise pytest.UsageError(f"LBAGENT_REQUIRE_REAL is set, and these are missing: {', '.join(missing)}")


def pytest_report_header() -> list[str]:
    """Return the versions of all programs that the tests run with, and the tested lbagent if it is another one."""
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    haproxy = ", ".join(haproxy_version(binary) for binary in binaries().values()) or "none"
    lines = [f"lbagent: {LBAGENT}"] if "LBAGENT_COMMAND" in os.environ else []
    lines += [f"HAProxy {haproxy}; Serf {_serf_version()}; Python {platform.python_version()}; {release}"]
    lines += [f"HAProxy {version}: missing, not tested; .ci/haproxy fetches it" for version in missing_versions()]
    untested = sorted({haproxy_release(path) for path in fetched_haproxies()} - set(TESTED) - set(binaries()))
    return lines + [f"HAProxy {version}: fetched, but not supported yet; not tested" for version in untested]


def _serf_version() -> str:
    """Return the version of Debian's package: `serf version` prints 0.8.2-dev for every version."""
    argv = ["dpkg-query", "--show", "--showformat=${Version}", "serf"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False) if shutil.which(argv[0]) else None
    return (done and done.stdout) or ("unknown" if shutil.which("serf") else "none")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat each test marked `every_haproxy` for each version."""
    if metafunc.definition.get_closest_marker("every_haproxy"):
        metafunc.fixturenames.insert(0, "every_haproxy")  # before the fixtures that make a LoadBalancer
        metafunc.parametrize("every_haproxy", list(binaries().values()), ids=list(binaries()), indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that are not in the slice."""
    named = config.option.keyword or any("::" in word for word in config.args)
    if MATRIX or named:
        return
    modules: dict[Path, list[tuple[pytest.Item, tuple[str, str, str]]]] = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("all_versions") and (found := _find_version(item)):
            modules[item.path].append((item, (item.nodeid.partition("[")[0], *found)))
    left_out = set()
    for path, pairs in modules.items():
        start = zlib.crc32(path.stem.encode()) % len(TESTED)
        chosen = choose_slice([case for _, case in pairs], list(binaries()), start)
        left_out |= {item for position, (item, _) in enumerate(pairs) if position not in chosen}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _find_version(item: pytest.Item) -> tuple[str, str] | None:
    """Return (other parameters, HAProxy version) of a test, or None if it has no version."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return None
    versions = {path: version for version, path in binaries().items()}
    for value in callspec.params.values():
        version = getattr(value, "version", versions.get(value) if isinstance(value, Path) else value)
        if isinstance(version, str) and version in binaries():
            return " ".join(callspec.id.replace(version, "").split()), version
    return None


@pytest.fixture
def every_haproxy(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The `haproxy` program of every `LoadBalancer` of the test."""
    with default_haproxy(request.param):
        yield request.param


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def binary(request: pytest.FixtureRequest) -> Path:
    """The `haproxy` program of each version in turn."""
    path: Path = request.param
    return path


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer without nodes whose HAProxy does not run."""
    with LoadBalancer() as made:
        yield made


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SERF_", "LBAGENT_", "HAPROXY_", "STATE_DIRECTORY"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def lbagent() -> str:
    """The path of the tested `lbagent`."""
    return str(LBAGENT)
