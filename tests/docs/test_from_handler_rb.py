"""The page on coming from handler.rb: its own commands take the classic files to managed lines, and back.

The commands run in order on a machine of their own, with real Serf agents and a real HAProxy. `systemctl` is played by
the test, since no systemd runs there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scenarios.machines import Daemon, Machine, Switch
from tests.helpers.page_commands import DOCS, PATH, can_make_machines, list_commands
from tests.helpers.real_programs import wait_until
from tests.helpers.terminal import Terminal

HERE = Path(__file__).resolve().parent
PAGE = DOCS / "how-to" / "from-handler-rb.md"
CLASSIC = HERE / "handler_rb"
KEY = "cg8StVXbQJ0gPvMd9o7yrg=="


pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not can_make_machines(), reason="needs root, namespaces, haproxy and serf"),
]


def list_commands_by_heading() -> dict[str, list[tuple[str, str]]]:
    """The commands of the page by heading, each with the host of its prompt."""
    sections = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {heading: list_commands(text) for heading, text in zip(sections[::2], sections[1::2], strict=True)}


class Site:
    """A classic load balancer lb01, and the nodes web01 and mongo01, with Serf's event handler as it was."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        own = ["/etc/haproxy", "/etc/lbagent", "/etc/serf", "/var/lib/lbagent"]
        self.lb = Machine("lb01", own)
        self.nodes = {"web01": ("10.0.0.5", "web"), "mongo01": ("10.0.0.7", "database")}
        self.machines = {"lb01": self.lb, **{name: Machine(name) for name in self.nodes}}
        environ = {"PATH": PATH}
        self.serf = Daemon(self.lb, "serf", "agent", "-config-dir=/etc/serf", env=environ)
        self.haproxy = Daemon(self.lb, "haproxy", "-Ws", "-f", "/etc/haproxy/haproxy.cfg", env=environ)
        self.watch = Daemon(self.lb, "lbagent", "watch", env=environ)
        self._environ = environ
        self.outputs: list[tuple[str, int, str]] = []
        """Each command that has run, with exit status and output."""

    def start(self) -> None:
        """Start HAProxy, the classic agent of lb01, and those of the nodes."""
        for name, folder in {"role.yml": "serf", "agent.json": "serf", "haproxy.cfg": "haproxy"}.items():
            shutil.copy(CLASSIC / name, self.lb.root / "etc" / folder / name)
        (self.lb.root / "run/haproxy").mkdir()
        self.haproxy.start()
        self.haproxy.wait_until((self.lb.root / "run/haproxy/admin.sock").exists)
        self._start_serf()
        for name in self.nodes:
            self._start_node(name)

    def type(self, host: str, command: str) -> tuple[int, str]:
        """Run one command of the page on a host; exit status and output."""
        systemctl: dict[str, Callable[[], None]] = {
            "systemctl restart serf": self._restart_serf,
            "systemctl enable --now lbagent": self._start_watch,
            "systemctl disable --now lbagent": self.watch.stop,
            "systemctl reload haproxy": lambda: os.kill(min(self.lb.list_processes("haproxy")), signal.SIGUSR2),
        }
        if command.startswith("systemctl "):
            systemctl[command]()
            return 0, ""
        status, output = self._adopt(command) if command.endswith("--adopt") else self._run(host, command)
        self.outputs.append((command, status, output))
        return status, output

    def run_section(self, heading: str) -> list[tuple[int, str]]:
        """Run the commands below a heading, in order."""
        return [self.type(host, command) for host, command in list_commands_by_heading()[heading]]

    @property
    def text(self) -> str:
        """haproxy.cfg."""
        return (self.lb.root / "etc/haproxy/haproxy.cfg").read_text()

    def _run(self, host: str, command: str) -> tuple[int, str]:
        done = self.machines[host].run("sh", "-c", command, env=self._environ, checked=False)
        return done.returncode, done.stdout + done.stderr

    def _adopt(self, command: str) -> tuple[int, str]:
        terminal = Terminal(self.lb.inside("sh", "-c", command), {**os.environ, **self._environ})
        terminal.wait_for("[y/N]")
        terminal.type("y\n")
        return terminal.wait_for_end()

    def _start_node(self, name: str) -> None:
        address, role = self.nodes[name]
        argv = ["serf", "agent", f"-node={name}", f"-bind={address}", f"-encrypt={KEY}", f"-tag=role={role}"]
        agent = Daemon(self.machines[name], *argv, "-join=10.0.0.1", env=self._environ)
        agent.start()
        agent.wait_until(lambda: self._run(name, "serf info")[0] == 0)

    def _start_serf(self) -> None:
        self.serf.start()
        self.serf.wait_until(lambda: self._run("lb01", "serf info")[0] == 0)

    def _restart_serf(self) -> None:
        self.serf.stop()
        self._start_serf()
        wait_until(lambda: self._run("lb01", "serf members -status=alive")[1].count("alive") == 1 + len(self.nodes))

    def _start_watch(self) -> None:
        self.watch.start()
        wait_until((self.lb.root / "var/lib/lbagent/members.json").exists)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The classic site, running, on a network of its own."""
    site = Site()
    with Switch() as switch, contextlib.ExitStack() as stack:
        for name, machine in site.machines.items():
            stack.enter_context(machine)
            switch.plug(machine, f"{'10.0.0.1' if name == 'lb01' else site.nodes[name][0]}/24")
        site.start()
        yield site


def find_migration(output: str) -> list[str]:
    """The places of the findings `migration` in the output of `check`; each of them names the page."""
    found = re.findall(r"^(?:error|warning) +migration: ([^\s:]+(?::\d+)?): (.*)$", output, re.MULTILINE)
    assert [text for _, text in found if not text.endswith(f"; see {PAGE.relative_to(DOCS.parent)}")] == []
    return [place for place, _ in found]


def test_the_page_has_its_steps_in_order() -> None:
    assert [heading.partition(". ")[0] for heading in list_commands_by_heading()] == [*"1234567", "Going back"]


def test_the_classic_files_are_what_the_page_quotes() -> None:
    [quoted] = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    payload = re.findall(r'pause "(.*)"', (CLASSIC / "pause.bat").read_text())

    assert quoted == (CLASSIC / "role.yml").read_text()
    assert payload == ["%1 %2 %3"]


def test_the_classic_files_move_to_lbagent_and_back(site: Site) -> None:
    """One test, as the steps follow each other on one load balancer."""
    classic = site.text

    site.run_section("1. Install lbagent beside the old handler")
    copied, ported = site.run_section("2. Give each service its port")[1:], site.type("lb01", "lbagent check --quiet")
    assert find_migration(copied[0][1]) == ["/etc/lbagent/roles.yml"]
    assert "`services: {iis: {port: 80}, mongo: {port: 27017}}`" in copied[0][1]
    [loaded] = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert (site.lb.root / "etc/lbagent/roles.yml").read_text() == loaded
    assert find_migration(ported[1]) == ["/etc/haproxy/haproxy.cfg:17", "/etc/haproxy/haproxy.cfg:23"]

    site.run_section("3. Give each marker its section")
    marked = site.type("lb01", "lbagent check --quiet")[1]
    assert find_migration(marked) == ["/etc/haproxy/haproxy.cfg:15", "/etc/haproxy/haproxy.cfg:22"]

    before = site.text
    site.run_section("4. Replace the handler")
    assert site.text == before

    adopted = site.run_section("5. Adopt the old lines")
    assert [status for status, _ in adopted] == [0, 0, 0]
    assert [line.strip() for line in site.text.splitlines() if line.strip().startswith("server ")] == [
        "server web01 10.0.0.5:80 check inter 60s rise 2 fall 2 # lbagent role=web",
        "server mongo01 10.0.0.7:27017 check inter 300s rise 2 fall 2 # lbagent role=database",
    ]

    checked, planned = site.run_section("6. Check")
    assert find_migration(checked[1]) == []
    assert planned == (0, "No changes: 2 nodes, 2 lines.\n")
    assert planned[1] in PAGE.read_text(encoding="utf-8")

    (paused, resumed) = list_commands_by_heading()["7. Pause a server"]
    site.type(*paused)
    wait_until(lambda: "# lbagent paused web01 10.0.0.5 role=web\n" in site.text)
    site.type(*resumed)
    wait_until(lambda: "server web01 10.0.0.5:80" in site.text)

    site.run_section("Going back")
    assert site.text == classic
    assert (site.lb.root / "etc/serf/agent.json").read_text() == (CLASSIC / "agent.json").read_text()


def test_no_command_of_the_page_fails_unexpectedly(site: Site) -> None:
    failed = [(command, status) for command, status, _ in site.outputs if status and "check" not in command]

    assert failed == []
