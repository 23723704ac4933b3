"""Debian releases on which lbagent is tested: on a bare one the README's commands work, and the tests pass.

RELEASES names them, each with its own HAProxy, Serf and Python. Installs come first; the tests have loopback alone.
`make test-distros` runs test_deb.py on the same releases.
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
"""For each command, the part of it that needs a network."""

VERSIONS = """
haproxy -v | sed -n '1s/.*version \\([^ ]*\\).*/HAProxy \\1/p'
dpkg-query -W -f 'Serf ${Version}\\n' serf
python3 --version
"""

FIGURES: dict[str, str] = {}
"""What was measured."""


@pytest.fixture(scope="module", params=os.environ.get("RELEASES", "trixie sid").split())
def debian(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A bare machine of each release with a fresh clone in /opt/lbagent."""
    if os.geteuid() != 0:
        pytest.skip("a machine of its own takes root")
    machine = Machine(request.param)
    FIGURES.clear()
    LOGS.mkdir(parents=True, exist_ok=True)
    log(machine).unlink(missing_ok=True)
    try:
        started = time.monotonic()
        machine.make()
        clone(machine.root / "opt/lbagent")
        FIGURES[f"Debian {request.param}, made"] = f"{time.monotonic() - started:.0f} s"
        yield machine
    finally:
        machine.discard()
        print("\n" + "\n".join(f"{what:.<60} {figure}" for what, figure in FIGURES.items()))


def clone(folder: Path) -> None:
    """Clone the checkout, with what is not committed yet."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", CHECKOUT, folder], check=True)
    listing = ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=CHECKOUT, capture_output=True, check=True).stdout
    pack = ["tar", "-c", "--null", "--ignore-failed-read", "-T", "-"]
    archive = subprocess.run(pack, cwd=CHECKOUT, input=names, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "--no-same-owner"], cwd=folder, input=archive, check=True)


def log(machine: Machine) -> Path:
    """Everything that the commands print."""
    return LOGS / f"{machine.release}.log"


def apart(machine: Machine, command: str) -> str:
    """The output of a shell command in the clone, which has to end well, with loopback alone."""
    begin = log(machine).stat().st_size if log(machine).exists() else 0
    status = machine.apart("sh", "-c", f"cd /opt/lbagent && {command}", seconds=HOURS, log=log(machine))
    output = log(machine).read_bytes()[begin:].decode("utf-8", "replace")
    assert status == 0, f"{command} ended with {status}; {log(machine)}: {output[-3000:]}"
    return output


def online(machine: Machine, command: str) -> str:
    """The same with the network of this machine, for installs."""
    return machine.online("sh", "-c", f"cd /opt/lbagent && {command}")


def readme(command: str) -> str:
    """The command, which the README tells the reader to type."""
    assert re.search(rf"^\S*[$#] {re.escape(command)}( |$)", (CHECKOUT / "README.md").read_text(), re.MULTILINE)
    return command


@pytest.mark.timeout(HOURS)
def test_a_bare_machine_runs_the_demo_without_a_reload(debian: Machine) -> None:
    online(debian, "apt-get install -y git make")
    online(debian, INSTALLS["make demo"])

    output = apart(debian, readme("make demo"))

    FIGURES["with"] = ", ".join(online(debian, VERSIONS).splitlines())
    (figures,) = re.findall(r"(\d+ requests through \d+ changes and (\d+) reloads of HAProxy: (\d+) failed)", output)
    FIGURES["make demo"] = figures[0]
    assert figures[1:] == ("0", "0")


@pytest.mark.timeout(HOURS)
def test_every_test_passes(debian: Machine) -> None:
    online(debian, INSTALLS["make test"])
    started = time.monotonic()

    try:
        options = "LBAGENT_REQUIRE_REAL=1 PYTEST_ADDOPTS=--junit-xml=/root/report.xml"
        apart(debian, f"{options} {readme('make test')}")
    finally:
        FIGURES["make test"] = f"{summary(debian)}, {(time.monotonic() - started) / 60:.1f} min"


def summary(machine: Machine) -> str:
    """How many tests passed, failed and were skipped, and why these were."""
    report = machine.path("/root/report.xml")
    if not report.exists():
        return "no report"
    (suite,) = ET.parse(report).getroot().iter("testsuite")  # our own pytest wrote it
    total, skipped = int(suite.get("tests", "0")), int(suite.get("skipped", "0"))
    failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
    reasons = collections.Counter(one.get("message", "") for one in suite.iter("skipped"))
    listed = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{total - skipped - failed} passed, {failed} failed, {skipped} skipped{f' ({listed})' if listed else ''}"


def test_the_package_of_a_bare_machine_is_built_installed_and_purged(debian: Machine) -> None:
    online(debian, INSTALLS["make deb"])
    apart(debian, "make deb")
    package = next(debian.path("/opt/lbagent/build").glob("lbagent_*_all.deb")).name
    debian.path("/usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    debian.path("/usr/sbin/policy-rc.d").chmod(0o755)

    online(debian, f"apt-get install -y --no-install-recommends ./build/{package}")

    assert apart(debian, "/usr/bin/lbagent --version").startswith("lbagent 0.1.0")
    online(debian, "apt-get purge -y lbagent")
    left = apart(debian, "find /etc /usr/bin /usr/lib /usr/share /usr/sbin /var/lib -name '*lbagent*'").split()
    assert [path for path in left if not path.startswith(("/var/lib/dpkg", "/var/lib/apt"))] == []
