"""A pair and a server set up by the commands of the documentation alone; then what each fault looks like, and how soon.

Three booted Debians of one release, each a machine of its own on one switch. What is typed is read from
docs/get-started, so that the pages cannot differ from what works. RELEASES names the releases. The tables are in
build/setup/.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from scenarios.machine import Machine
from scenarios.machines import Switch
from tests.helpers.real_programs import wait_until

HERE = Path(__file__).resolve().parent.parent
DOCS = HERE / "docs"
FIRST, SECOND, SERVER = (
    f"get-started/{name}.md" for name in ("first-load-balancer", "second-load-balancer", "linux-server")
)
RESULTS = HERE / "build" / "setup"

ADDRESSES = {"lb01": "10.0.0.1", "lb02": "10.0.0.2", "web01": "10.0.0.5"}
PLACEHOLDER = "… the key …"
"""What the reader replaces in node.json."""

LONGEST = 120.0
"""Seconds within which each fault has to be seen."""


class Step(NamedTuple):
    """Something that the reader does: types a command, or writes a file."""

    machine: str
    command: str
    path: str = ""
    text: str = ""


def read_steps(page: str, machine: str) -> list[Step]:
    """The steps of a page, in order; files are written on `machine`."""
    content = (DOCS / page).read_text(encoding="utf-8")
    console = r"^```console\n(?P<console>.*?)^```$"
    written = r"^Write `(?P<path>/[^`]+)`[^\n]*:\n\n```\w+\n(?P<text>.*?)^```$"
    found: list[Step] = []
    for block in re.finditer(f"{console}|{written}", content, re.DOTALL | re.MULTILINE):
        if block["path"]:
            found.append(Step(machine, "", block["path"], block["text"]))
        else:
            prompts = re.findall(r"^(\w+)# (.*)$", block["console"], re.MULTILINE)
            found += [Step(name, command) for name, command in prompts]
    return found


class Site:
    """The three machines, and the reader's work on them."""

    def __init__(self, release: str) -> None:
        """Nothing is made yet."""
        self.release = release
        self.machines = {name: Machine(release, name) for name in ADDRESSES}
        self.switch = Switch()
        self.typed, self.written = 0, 0
        self.seconds = 0.0
        self.figures: list[tuple[str, str]] = []

    def make(self) -> None:
        """Make a machine with what a server has before, and with the packages downloaded; then copies of it."""
        base = Machine(self.release, "base")
        try:
            base.make()
            [package] = (HERE / "build").glob("lbagent_*_all.deb")
            shutil.copy(package, base.root / "root")
            before = ["openssh-server", "openssh-client", "python3"]
            base.run_online("apt-get", "-qqy", "install", "--no-install-recommends", *before)
            base.run_online("sh", "-c", f"cd /root && apt-get -qqy install --download-only ./{package.name}")
            # Root of one load balancer may log in to the other.
            base.run_online("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
            shutil.copy(base.path("/root/.ssh/id_ed25519.pub"), base.path("/root/.ssh/authorized_keys"))
            base.path("/etc/ssh/ssh_config.d/trust.conf").write_text("StrictHostKeyChecking accept-new\n")
            base.path("/etc/systemd/system/site.service").write_text(
                "[Service]\nWorkingDirectory=/srv\nExecStart=/usr/bin/python3 -m http.server 80\n"
            )
            for machine in self.machines.values():
                machine.copy(base)
        finally:
            base.discard()

    def do(self, step: Step) -> subprocess.CompletedProcess[str]:
        """Do what the page says, and count it."""
        machine = self.machines[step.machine]
        started = time.monotonic()
        if step.path:
            self.written += 1
            path = machine.path(step.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text.replace(PLACEHOLDER, self.key), encoding="utf-8")
            return subprocess.CompletedProcess([], 0, "", "")
        self.typed += 1
        done = machine.run("sh", "-c", f"cd /root && {step.command}", stdin="y\n")
        self.seconds += time.monotonic() - started
        print(f"{step.machine}# {step.command}\n{done.stdout}{done.stderr}", flush=True)
        return done

    @property
    def key(self) -> str:
        """The key of the cluster, once lb01 has it."""
        path = self.machines["lb01"].path("/etc/serf/lbagent.json")
        return str(json.loads(path.read_text())["encrypt_key"]) if path.exists() else PLACEHOLDER


@pytest.fixture(scope="module", params=os.environ.get("RELEASES", "bookworm trixie").split())
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Three booted machines of each release, on which nothing of the documentation is done yet."""
    if os.geteuid() != 0:
        pytest.skip("machines of their own need root")
    one = Site(request.param)
    try:
        one.make()
        with one.switch:
            try:
                for name, machine in one.machines.items():
                    machine.__enter__()
                    one.switch.plug(machine, f"{ADDRESSES[name]}/24")
                one.machines["web01"].run_successfully("systemctl", "start", "site")
                yield one
            finally:
                for machine in one.machines.values():
                    machine.__exit__()
    finally:
        for machine in one.machines.values():
            machine.discard()


def check(machine: Machine) -> tuple[int, list[dict[str, str]]]:
    """Exit status of `lbagent check` and its errors and warnings."""
    done = machine.run("lbagent", "check", "--quiet", "--json")
    return done.returncode, json.loads(done.stdout)["findings"]


def errors(machine: Machine) -> list[str]:
    """The kinds of the errors of `lbagent check`."""
    return [finding["kind"] for finding in check(machine)[1] if finding["severity"] == "error"]


def is_healthy(machine: Machine) -> bool:
    """Whether `lbagent check` and `lbagent status` show nothing that is wrong."""
    shown = machine.run("lbagent", "status", "--json")
    return check(machine) == (0, []) and shown.returncode == 0 and json.loads(shown.stdout)["wrong"] == []


def managed(machine: Machine) -> list[str]:
    """The managed lines."""
    lines = machine.path("/etc/haproxy/haproxy.cfg").read_text().splitlines()
    return [line.strip() for line in lines if "# lbagent " in line]


def test_the_pair_is_set_up_by_the_commands_of_the_pages(site: Site) -> None:
    first, second = site.machines["lb01"], site.machines["lb02"]

    printed: dict[str, str] = {}
    for page, name in ((FIRST, "lb01"), (SECOND, "lb02")):
        for step in read_steps(page, name):
            done = site.do(step)
            if "lbagent-serf-setup" in step.command:
                printed[name] = done.stdout
            # Alone, the first load balancer has the error that its page announces.
            alone = (name, step.command) == ("lb01", "lbagent check")
            assert done.returncode == (1 if alone else 0), (step, done.stdout, done.stderr)
            if alone:
                assert errors(first) == ["peers"]
    site.figures.append(("pair: commands, files", f"{site.typed}, {site.written}"))
    site.figures.append(("pair: time of the commands", f"{site.seconds / 60:.1f} min"))

    for machine in (first, second):
        # Each sees the other after a few seconds.
        wait_until(lambda: check(machine) == (0, []), 60)  # noqa: B023
    # The pages and the command itself name the same next commands.
    typed = [step.command for step in read_steps(FIRST, "lb01")]
    here, there = (
        re.findall(r"^    (.*)$", part, re.MULTILINE) for part in printed["lb01"].split("next, on the other")
    )
    assert here == ["editor /etc/lbagent/roles.yml /etc/haproxy/haproxy.cfg", *typed[-5:]]
    assert there[0] in [step.command for step in read_steps(SECOND, "lb02")]


def test_the_setup_again_ends_with_a_check_and_refuses_other_values(site: Site) -> None:
    machine = site.machines["lb01"]

    again = machine.run("lbagent-serf-setup", "10.0.0.1", "10.0.0.2")
    refused = [machine.run("lbagent-serf-setup", *words) for words in (("10.0.0.1", "10.0.0.9"), ("10.0.0.2",))]

    lines = again.stdout.splitlines()
    assert (again.returncode, [line.split()[0] for line in lines[:2]]) == (0, ["kept", "kept"])
    assert re.fullmatch(r"0 errors, 0 warnings, \d+ ok", lines[-1])
    json_file = "/etc/serf/lbagent.json"
    assert [(done.returncode, done.stderr) for done in refused] == [
        (
            1,
            (
                f"lbagent-serf-setup: {json_file}: has other values: retry_join 10.0.0.1,10.0.0.2; "
                "to replace them, run the same command with --replace\n"
            ),
        ),
        (
            2,
            (
                "lbagent-serf-setup: 10.0.0.2: not an address of this host; "
                "give the address of this load balancer first, then that of the other\n"
            ),
        ),
    ]


def test_a_server_is_added_by_the_commands_of_its_page(site: Site) -> None:
    balancers = [site.machines[name] for name in ("lb01", "lb02")]
    typed, seconds = site.typed, site.seconds
    steps = read_steps(SERVER, "web01")
    shown = [step for step in steps if step.command.startswith(("lbagent status", "grep lbagent"))]

    for step in steps:
        if step not in shown:
            done = site.do(step)
            assert done.returncode == 0, (step, done.stdout, done.stderr)
    started = time.monotonic()
    wait_until(lambda: all(len(managed(one)) == 1 for one in balancers), 60)
    site.figures.append(("server: from its start to its line on both", f"{time.monotonic() - started:.1f} s"))
    for step in shown:
        assert "web01" in site.do(step).stdout

    site.figures.append(("server: commands", f"{site.typed - typed}"))
    site.figures.append(("server: time of the commands", f"{(site.seconds - seconds) / 60:.1f} min"))
    assert [managed(one) for one in balancers] == [
        ["server web01 10.0.0.5:80 check inter 60s rise 2 fall 2 # lbagent role=web"]
    ] * 2
    for machine in balancers:
        code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1/', timeout=5).status)"
        wait_until(lambda: machine.run("python3", "-c", code).stdout == "200\n", 30)  # noqa: B023
        wait_until(lambda: check(machine) == (0, []), 60)  # noqa: B023


def test_a_second_load_balancer_with_a_key_of_its_own_is_fixed_by_the_commands_of_the_page(site: Site) -> None:
    first, second = site.machines["lb01"], site.machines["lb02"]
    wait_until(lambda: is_healthy(first) and is_healthy(second), LONGEST)
    second.run_successfully("sh", "-c", "serf keygen | lbagent-serf-setup --replace --key-from - 10.0.0.2 10.0.0.1")
    second.run_successfully("systemctl", "restart", "serf")
    wait_until(lambda: "peers" in errors(first) and "peers" in errors(second), LONGEST)

    for step in read_steps("troubleshooting.md", "lb02"):
        if step.machine == "lb02":
            done = site.do(step)
            assert done.returncode == 0, (step, done.stdout, done.stderr)

    started = time.monotonic()
    wait_until(lambda: is_healthy(first) and is_healthy(second), LONGEST)
    site.figures.append(("another key on lb02: healthy after the fix", f"{time.monotonic() - started:.0f} s"))


class Fault(NamedTuple):
    """Something that breaks on lb01."""

    name: str
    command: str
    kind: str
    """The kind of error that `lbagent check` finds."""
    wrong: str
    """The kind of line on top of `lbagent status`; empty where it ends with 2, as no roles.yml can be read."""
    repair: str


CONFIG, ROLES, ENV = "/etc/haproxy/haproxy.cfg", "/etc/lbagent/roles.yml", "/etc/lbagent/serf.env"

FAULTS = (
    Fault("stop the daemon", "systemctl stop lbagent", "daemon", "daemon", "systemctl start lbagent"),
    Fault("stop HAProxy", "systemctl stop haproxy", "process", "haproxy", "systemctl start haproxy"),
    Fault("stop Serf", "systemctl stop serf", "serf", "sync", "systemctl start serf"),
    Fault(
        "change the RPC token",
        f"cp -p {ENV} /root/; sed -i s/^SERF_RPC_AUTH=./SERF_RPC_AUTH=x/ {ENV}",
        "serf",
        "sync",
        f"cp -p /root/serf.env {ENV}",
    ),
    Fault(
        "break haproxy.cfg",
        f"sed -i 's/balance roundrobin/balanse roundrobin/' {CONFIG}",
        "haproxy-cfg",
        "last run",
        f"sed -i 's/balanse roundrobin/balance roundrobin/' {CONFIG}",
    ),
    Fault(
        "break roles.yml",
        f"sed -i 's/interval:/intervall:/' {ROLES}",
        "roles",
        "",
        f"sed -i 's/intervall:/interval:/' {ROLES}",
    ),
    Fault("cut the pair", "", "peers", "peer", ""),
)


class Seen(NamedTuple):
    """What a command says of a fault, and how many seconds after it."""

    words: str
    seconds: float


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_check_and_status_show_a_fault(site: Site, fault: Fault) -> None:
    machine, other = site.machines["lb01"], site.machines["lb02"]
    wait_until(lambda: is_healthy(machine), LONGEST)
    try:
        machine.run_successfully("sh", "-c", fault.command) if fault.command else site.switch.unplug(other)
        started = time.monotonic()
        seen: dict[str, Seen] = {}
        while len(seen) < 2 and time.monotonic() - started < LONGEST:
            for name, look in (("check", look_at_check), ("status", look_at_status)):
                if name not in seen and (words := look(machine, fault)):
                    seen[name] = Seen(words, time.monotonic() - started)
            time.sleep(0.5)
    finally:
        machine.run_successfully("sh", "-c", fault.repair) if fault.repair else site.switch.replug(other)
    started = time.monotonic()
    wait_until(lambda: is_healthy(machine), LONGEST, 0.5)
    healthy = time.monotonic() - started

    assert set(seen) == {"check", "status"}
    cells = [cell for name in ("check", "status") for cell in (seen[name].words, f"{seen[name].seconds:.0f} s")]
    row = [fault.name, *cells, f"{healthy:.0f} s"]
    table = RESULTS / f"{site.release}.md"
    with table.open("a", encoding="utf-8") as file:
        file.write("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n")


def look_at_check(machine: Machine, fault: Fault) -> str:
    """The error of `lbagent check` that the fault has to cause; empty while there is none."""
    status, findings = check(machine)
    found = [one for one in findings if one["severity"] == "error" and one["kind"] == fault.kind]
    if status != 1 or not found:
        return ""
    one = found[0]
    return "; ".join(
        part for part in (": ".join(part for part in (one["where"], one["what"]) if part), one["fix"]) if part
    )


def look_at_status(machine: Machine, fault: Fault) -> str:
    """The line on top of `lbagent status` that the fault has to cause; empty while there is none."""
    if not fault.wrong:
        done = machine.run("lbagent", "status")
        return done.stderr.strip() if done.returncode == 2 else ""  # roles.yml refused
    wrong = json.loads(machine.run_successfully("lbagent", "status", "--json"))["wrong"]
    found = [f"{one['kind']}: {one['what']}" for one in wrong if one["kind"] == fault.wrong]
    return found[0] if found else ""


@pytest.fixture(scope="module", autouse=True)
def _figures(site: Site) -> Iterator[None]:
    """Begin the table, and print it with the figures."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = RESULTS / f"{site.release}.md"
    head = "| fault | `lbagent check` | after | `lbagent status` | after | healthy again |\n|---|---|---|---|---|---|\n"
    table.write_text(head, encoding="utf-8")
    yield
    text = "".join(f"{what:.<60} {figure}\n" for what, figure in site.figures)
    table.write_text(f"Debian {site.release}\n\n{text}\n{table.read_text(encoding='utf-8')}", encoding="utf-8")
    print(f"\n{table.read_text(encoding='utf-8')}")
