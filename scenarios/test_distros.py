"""On a bare Debian of each release, the README's commands work and all tests pass.

RELEASES names the releases, each with its own HAProxy, Serf and Python. Packages are installed with the host's network;
the tests run with loopback only. `make test-distros` runs test_deb.py on the same releases.
"""

from __future__ import annotations

import collections
import os
import re
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios.machine import HERE, Machine

CHECKOUT = HERE.parent
LOGS = CHECKOUT / "build" / "distros"
HOURS = 2.0 * 3600

INSTALLS = {
    "make demo": "make .venv/.demo",
    "make test": ".ci/install --tests && .ci/haproxy --retry && make .venv/.dev",
    "make deb": "make .venv/.pages",
}
"""For each command, its installation step, which needs a network."""

VERSIONS = """
haproxy -v | sed -n '1s/.*version \\([^ ]*\\).*/HAProxy \\1/p'
dpkg-query -W -f 'Serf ${Version}\\n' serf
python3 --version
"""

FIGURES: dict[str, str] = {}
"""Measured figures, by their description."""


@pytest.fixture(scope="module", params=os.environ.get("RELEASES", "trixie sid").split())
def debian(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Create a bare machine of each release, with a clone of the checkout in /opt/lbagent."""
    if os.geteuid() != 0:
        pytest.skip("a separate machine needs root")
    machine = Machine(request.param)
    FIGURES.clear()
    LOGS.mkdir(parents=True, exist_ok=True)
    log_file(machine).unlink(missing_ok=True)
    try:
        started = time.monotonic()
        machine.make()
        clone_checkout(machine.root / "opt/lbagent")
        FIGURES[f"Debian {request.param}, created"] = f"{time.monotonic() - started:.0f} s"
        yield machine
    finally:
        machine.discard()
        print("\n" + "\n".join(f"{what:.<60} {figure}" for what, figure in FIGURES.items()))


def clone_checkout(folder: Path) -> None:
    """Clone the checkout, and copy its uncommitted files."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", CHECKOUT, folder], check=True)
    listing = ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=CHECKOUT, capture_output=True, check=True).stdout
    pack = ["tar", "-c", "--null", "--ignore-failed-read", "-T", "-"]
    archive = subprocess.run(pack, cwd=CHECKOUT, input=names, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "--no-same-owner"], cwd=folder, input=archive, check=True)


def log_file(machine: Machine) -> Path:
    """Return the path of the log with the output of all commands."""
    return LOGS / f"{machine.release}.log"


def run_offline(machine: Machine, command: str) -> str:
    """Run a shell command in the clone, with loopback only; it must exit with 0. Returns its output."""
    begin = log_file(machine).stat().st_size if log_file(machine).exists() else 0
    status = machine.run_offline("sh", "-c", f"cd /opt/lbagent && {command}", seconds=HOURS, log=log_file(machine))
    output = log_file(machine).read_bytes()[begin:].decode("utf-8", "replace")
    assert status == 0, f"{command}: exit status {status}; {log_file(machine)}: {output[-3000:]}"
    return output


def run_online(machine: Machine, command: str) -> str:
    """Run a shell command in the clone, with the host's network. Returns stdout."""
    return machine.run_online("sh", "-c", f"cd /opt/lbagent && {command}")


def check_readme(command: str) -> str:
    """Return the command. Fails if it is not in a code block of the README."""
    assert re.search(rf"^\S*[$#] {re.escape(command)}( |$)", (CHECKOUT / "README.md").read_text(), re.MULTILINE)
    return command


@pytest.mark.timeout(HOURS)
def test_a_bare_machine_runs_the_demo_without_a_reload(debian: Machine) -> None:
    run_online(debian, "apt-get install -y git make")
    run_online(debian, INSTALLS["make demo"])

    output = run_offline(debian, check_readme("make demo"))

    FIGURES["with"] = ", ".join(run_online(debian, VERSIONS).splitlines())
    (figures,) = re.findall(r"(\d+ requests through \d+ changes and (\d+) reloads of HAProxy: (\d+) failed)", output)
    FIGURES["make demo"] = figures[0]
    assert figures[1:] == ("0", "0")


@pytest.mark.timeout(HOURS)
def test_every_test_passes(debian: Machine) -> None:
    run_online(debian, INSTALLS["make test"])
    started = time.monotonic()

    try:
        # The log names each test as soon as it has ended.
        options = "LBAGENT_REQUIRE_REAL=1 PYTEST_ADDOPTS='-v --junit-xml=/root/report.xml'"
        run_offline(debian, f"{options} {check_readme('make test')}")
    finally:
        FIGURES["make test"] = f"{summarize_report(debian)}, {(time.monotonic() - started) / 60:.1f} min"


def summarize_report(machine: Machine) -> str:
    """Return the numbers of passed, failed and skipped tests, with the reasons of the skipped ones."""
    report = machine.path("/root/report.xml")
    if not report.exists():
        return "no report"
    (suite,) = ET.parse(report).getroot().iter("testsuite")  # a trusted file, from pytest
    total, skipped = int(suite.get("tests", "0")), int(suite.get("skipped", "0"))
    failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
    reasons = collections.Counter(one.get("message", "") for one in suite.iter("skipped"))
    listed = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{total - skipped - failed} passed, {failed} failed, {skipped} skipped{f' ({listed})' if listed else ''}"


def test_a_bare_machine_builds_installs_and_purges_the_package(debian: Machine) -> None:
    run_online(debian, INSTALLS["make deb"])
    run_offline(debian, "make deb")
    package = next(debian.path("/opt/lbagent/build").glob("lbagent_*_all.deb")).name
    debian.path("/usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    debian.path("/usr/sbin/policy-rc.d").chmod(0o755)

    run_online(debian, f"apt-get install -y --no-install-recommends ./build/{package}")

    assert run_offline(debian, "/usr/bin/lbagent --version").startswith("lbagent 0.1.0")
    run_online(debian, "apt-get purge -y lbagent")
    left = run_offline(debian, "find /etc /usr/bin /usr/lib /usr/share /usr/sbin /var/lib -name '*lbagent*'").split()
    assert [path for path in left if not path.startswith(("/var/lib/dpkg", "/var/lib/apt"))] == []
