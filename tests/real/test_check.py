"""`lbagent check` with a real HAProxy and a real Serf agent: it reports each fault and changes nothing."""

# ruff: noqa: E501  # expected lines are whole

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from lbagent.checks import files
from lbagent.checks.finding import Finding, Kind
from lbagent.checks.run import run_checks
from lbagent.settings import Settings
from lbagent.system.log import Log
from tests.helpers.faults import hide_haproxy, read_folder
from tests.helpers.real_programs import (
    LBAGENT,
    PATIENCE,
    Haproxy,
    LoadBalancer,
    SerfAgent,
    _children,
    binaries,
    default_binary,
    haproxy_version,
    member_line,
    wait_until,
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not binaries() or shutil.which("serf") is None, reason="a real haproxy and a real serf are needed"
    ),
]

CFG = """\
global
    stats socket {socket} mode 600 level admin expose-fd listeners
    hard-stop-after 30s

defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    timeout http-keep-alive 5s
    option idle-close-on-response

listen lb-iis
    bind 127.0.0.1:{front}
    balance roundrobin
    # additional-lb-iis-server
"""
TOKEN = "a-token"
KEY = "c2l4dGVlbiBieXRlcyEhIQ=="


class Agent(SerfAgent):
    """A real Serf agent that is started from settings files, as Debian's unit starts it."""

    def __init__(self, lb: LoadBalancer, name: str = "lb01", **changed: object) -> None:
        """Prepare complete settings of a load balancer; `changed` replaces some of them (None: not set)."""
        super().__init__(name, "127.0.0.5", env={**lb.env, "SERF_RPC_AUTH": str(changed.get("rpc_auth", TOKEN) or "")})
        self._folder, self._argv, self._given = lb.etc / f"serf-{name}", list[str](), dict[str, str]()
        self.file = self._folder / "lb.json"
        self.settings: dict[str, Any] = {
            "node_name": name,
            "bind": self.bind,
            "rpc_addr": self.rpc,
            "rpc_auth": TOKEN,
            "encrypt_key": KEY,
            "profile": "local",
            "log_level": "debug",
            "tags": {"role": "lb"},
            "event_handlers": [f"{LBAGENT} handle"],
            "snapshot_path": str(lb.folder / f"snapshot-{name}"),
            "replay_on_join": True,
            "rejoin_after_leave": True,
            "leave_on_terminate": True,
            **changed,
        }

    def add_options(self, *words: str, **given: str) -> Self:
        """Add words to the command line and variables to the environment; returns the agent."""
        self._argv, self._given = list(words), given
        return self

    @property
    def log(self) -> str:
        """The output of the agent so far."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    @property
    def handlers(self) -> list[Path]:
        """The folders in /proc of the running event handlers."""
        return [*_children(self._process.pid)] if self._process else []

    def start(self) -> None:
        """Write the settings, start the agent, wait until it answers and the event of its own join is applied."""
        self._folder.mkdir(exist_ok=True)
        self.file.write_text(json.dumps({key: value for key, value in self.settings.items() if value is not None}))
        self.file.chmod(0o600)
        self._process = subprocess.Popen(
            ["serf", "agent", f"-config-dir={self._folder}", *self._argv],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**self._env, **self._given},
        )
        wait_until(self._answers)
        handlers = len(self.settings["event_handlers"] or [])  # each is called for a join
        wait_until(lambda: self.log.count("Event 'member-join' script output") >= handlers)


def drop_other_haproxys(text: str) -> str:
    """Return the output without the HAProxys of other tests: `check` lists those that run other files."""
    return re.sub(r" \(pid [^)]* runs [^)]*\); set `haproxy.config`.*", "; start HAProxy", text)


def run_check(lb: LoadBalancer, agent: SerfAgent | None = None, **env: str) -> tuple[int, list[str]]:
    """Return exit status and lines of `lbagent check`, with placeholders for paths, ports and pids."""
    asking = {"SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN} if agent else {}
    done = lb.run("check", env={**asking, **env})
    assert done.stderr == b""
    text = drop_other_haproxys(done.stdout.decode().replace(str(lb.folder), "/lb").replace(str(LBAGENT), "lbagent"))
    text = re.sub(r"127\.0\.0\.1:[0-9]+", "RPC", re.sub(r"\b(master|worker|pid) [0-9]+", r"\1 N", text))
    *lines, summary = [" ".join(line.split()) for line in text.splitlines()]
    counts = [sum(line.startswith(f"{severity} ") for line in lines) for severity in ("error", "warning", "ok")]
    assert re.sub("(errors?|warnings?|ok)", "", summary).replace(",", "").split() == [str(count) for count in counts]
    return done.returncode, lines


def list_problems(lb: LoadBalancer, agent: SerfAgent | None = None, **env: str) -> list[str]:
    """Return the lines that are not ok; fails if the exit status does not match them."""
    status, lines = run_check(lb, agent, **env)
    found = [line for line in lines if not line.startswith("ok ")]
    assert status == any(line.startswith("error ") for line in found)
    return found


def read_version() -> str:
    """Return the version of `haproxy`."""
    return haproxy_version(default_binary())


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer with a valid haproxy.cfg; each test adds its fault."""
    with LoadBalancer(CFG) as lb:
        yield lb


@pytest.fixture
def healthy(lb: LoadBalancer) -> Iterator[tuple[LoadBalancer, Agent]]:
    """A load balancer without a fault, and its agent: HAProxy and Serf run, one server has joined."""
    with Haproxy(lb), Agent(lb) as agent:
        assert lb.join(member_line("web01", "127.0.0.11")).returncode == 0
        wait_until(lambda: not agent.handlers and lb.idle)
        yield lb, agent


# --- no fault ----------------------------------------------------------------------------------------------------

WELL = """\
ok lbagent: version X
ok settings: Serf's handler and `lbagent watch` use the same files
ok daemon: `lbagent handle` applies events itself (no `lbagent watch`)
ok roles: /lb/etc/roles.yml: 1 role, 1 service
ok networks: /lb/etc/roles.yml:7: role web accepts addresses in 127.0.0.0/8
ok markers: /lb/etc/haproxy.cfg: every section and service has its marker (1 marker)
ok service-line: HAProxy accepts the server lines of each role and service
ok haproxy: HAProxy X
ok process: HAProxy runs this haproxy.cfg (master N, worker N)
ok haproxy-cfg: /lb/etc/haproxy.cfg: `haproxy -c` accepts it without a warning
ok time-limit: `haproxy -c` takes less than half of 15 s
ok stats-socket: /lb/etc/haproxy.cfg:2: stats socket with level admin
ok hand-over: /lb/etc/haproxy.cfg:2: the new process takes over the listeners at a reload
ok hard-stop: /lb/etc/haproxy.cfg:3: old workers end after `hard-stop-after 30s`
ok idle-close: a reload does not cut off requests of idle clients
ok timeouts: every proxy has its timeouts
ok server-state: HAProxy loads no server-state file
ok stats-answer: /lb/stats.sock: worker N answers with level admin
ok drift: the managed lines match the plan (1 line)
ok permissions: only root can write lbagent's files (6 paths)
ok disk: the disks have free space
ok state: /lb/state: 1 member known
ok serf: the agent lb01 answers
ok encryption: the cluster is encrypted
ok handlers: serf info: 'lbagent handle' receives all events that lbagent needs
ok replay: /lb/etc/serf-lb01/lb.json: after a restart the agent receives the events it has missed
ok leave: /lb/etc/serf-lb01/lb.json: the agent leaves the cluster on SIGTERM
ok key: /lb/etc/serf-lb01/lb.json: other users cannot read the key
ok rpc: /lb/etc/serf-lb01/lb.json: RPC requires a token
ok role-tag: lb01: its role is lb
ok peers: serf members: 0 other load balancers
"""


@pytest.mark.parametrize("binary", binaries().values(), ids=binaries())
def test_on_a_healthy_load_balancer_everything_is_ok(binary: Path) -> None:
    with LoadBalancer(CFG, binary=binary) as lb, Haproxy(lb), Agent(lb) as agent:
        lb.join(member_line("web01", "127.0.0.11"))
        # The agent's own join arrives a second later: `check` also reports an event that is being handled.
        wait_until(lambda: "Received event: member-join" in agent.log and lb.idle)

        status, lines = run_check(lb, agent)

    assert status == 0
    plain = [re.sub(r"^(ok lbagent: version|ok haproxy: HAProxy) .*", r"\1 X", line) for line in lines]
    assert "\n".join([*plain, ""]) == WELL


def test_check_changes_nothing_and_takes_no_lock(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    lb.text = lb.text.replace(b"rise 2", b"rise 9")
    (lb.state / "spool" / "1").write_bytes(b"no record")
    (lb.state / "spool" / "foreign").write_bytes(b"")
    before, worker = (read_folder(lb.etc), read_folder(lb.state)), Path(lb.folder / "haproxy.pid").read_text()

    with (lb.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, lines = run_check(lb, agent)

    assert (status, (read_folder(lb.etc), read_folder(lb.state))) == (0, before)
    assert Path(lb.folder / "haproxy.pid").read_text() == worker
    assert [line for line in lines if not line.startswith("ok ")] == [
        "warning pending: 2 events in the spool; run `lbagent apply`, or wait for the next event"
    ]


def test_check_creates_no_state_directory(lb: LoadBalancer) -> None:
    assert [line for line in list_problems(lb) if " state: " in line] == [
        (
            "warning state: /lb/state: does not exist; no event has arrived yet; start Serf with its event handler, or run `lbagent apply`"
        )
    ]
    assert not lb.state.exists()


# --- one fault does not hide the others ----------------------------------------------------------------------


def test_one_fault_does_not_hide_the_others(lb: LoadBalancer) -> None:
    lb.roles.write_text(lb.roles.read_text().replace("port:", "prot:"))
    lb.state.write_text("no folder")

    found = list_problems(lb)

    assert found[0] == (
        "error roles: /lb/etc/roles.yml:5:9: services.iis.prot: unknown key; did you mean port?; fix roles.yml; until then no event takes effect"
    )
    assert {line.split()[1] for line in found} >= {"roles:", "drift:", "state:", "serf:"}


def test_with_an_invalid_roles_yml_the_haproxy_of_its_last_valid_version_is_checked(
    healthy: tuple[LoadBalancer, Agent],
) -> None:
    lb, agent = healthy
    lb.roles.write_text("roles: [")

    status, lines = run_check(lb, agent)

    assert status == 1
    assert "ok process: HAProxy runs this haproxy.cfg (master N, worker N)" in lines
    assert [line for line in lines if not line.startswith("ok ")] == [
        "error roles: /lb/etc/roles.yml:1:8: roles: the list is not closed; add ]; fix roles.yml; until then no event takes effect",
        (
            "error roles: /lb/etc/roles.yml:1:8: roles: is a list, not a mapping of keys to values; write ROLE: {SECTION: [SERVICE]} below it; fix roles.yml; until then no event takes effect"
        ),
        "warning markers: /lb/etc/haproxy.cfg: markers not checked: roles.yml is invalid; fix roles.yml",
        "warning drift: managed lines not checked: roles.yml is invalid; fix that, then run `lbagent check` again",
    ]


def test_without_a_valid_roles_yml_ever_no_haproxy_cfg_is_checked(lb: LoadBalancer) -> None:
    lb.roles.write_text("roles: [")

    found = list_problems(lb)

    assert [line for line in found if not line.startswith(("error roles: ", "error serf: ", "warning state: "))] == [
        (
            "warning haproxy-cfg: haproxy.cfg and its HAProxy are not checked: only roles.yml, which is invalid, names the file; fix roles.yml, then run `lbagent check` again"
        ),
        "warning drift: managed lines not checked: haproxy.cfg cannot be read; fix that, then run `lbagent check` again",
    ]


def test_the_reason_why_there_is_no_plan_is_reported(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    (lb.state / "members.json").unlink()
    (lb.state / "members.json").mkdir()

    found = list_problems(lb, agent)
    lb.text = lb.text.replace(b"    # additional", b"    # additional-lb-iis-server\n    # additional", 1)
    doubled = list_problems(lb, agent)

    assert found == [
        "warning drift: managed lines not checked: /lb/state/members.json: not a regular file; fix that, then run `lbagent check` again",
        "error state: /lb/state/members.json: cannot be read: not a regular file; no event takes effect; move it away, then run `lbagent apply`",
    ]
    assert [line.partition(" stands in ")[0] for line in doubled if " drift: " in line] == [
        "warning drift: managed lines not checked: /lb/state/members.json: not a regular file; fix that, then run `lbagent check` again"
    ]


def test_a_defect_in_one_check_does_not_hide_the_others(
    healthy: tuple[LoadBalancer, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> Iterator[Finding]:
        raise RuntimeError("no\nidea")

    lb, agent = healthy
    whole = len(run_check(lb, agent)[1])
    for name, value in {**lb.env, "SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(files, "check_permissions", defect)

    found = [*run_checks(Settings(str(lb.roles), str(lb.state)), Log())]

    assert len(found) == whole - 1  # permissions and disk are one check
    assert [one.line for one in found if one.severity != "ok"] == [
        "permissions: not checked, because of a defect of lbagent: RuntimeError: no?idea; report it to the developers"
    ]


def test_without_haproxy_and_serf_each_missing_part_is_an_error(lb: LoadBalancer) -> None:
    lb.cfg.unlink()
    (lb.bin / "haproxy").unlink()
    with hide_haproxy() as words:
        done = subprocess.run([*words, LBAGENT, "check"], env=lb.env, capture_output=True, text=True, check=False)

    text = drop_other_haproxys(done.stdout.replace(str(lb.folder), "/lb"))
    lines = [" ".join(line.split()) for line in text.splitlines()[:-1]]
    assert done.returncode == 1
    assert [line for line in lines if not line.startswith("ok ")] == [
        (
            "error haproxy: the haproxy program cannot be run (no such program); changes of haproxy.cfg cannot be validated; install HAProxy, or add it to PATH"
        ),
        (
            "error haproxy-cfg: /lb/etc/haproxy.cfg: No such file or directory; set its path in roles.yml: `haproxy: {config: PATH}`"
        ),
        NONE,
        (
            "warning drift: managed lines not checked: haproxy.cfg cannot be read; fix that, then run `lbagent check` again"
        ),
        (
            "warning state: /lb/state: does not exist; no event has arrived yet; start Serf with its event handler, or run `lbagent apply`"
        ),
        (
            "error serf: Serf agent: `serf info` failed: Error connecting to Serf agent: dial tcp 127.0.0.1:1: connect: connection refused; start the agent, or set SERF_RPC_ADDR to its `rpc_addr` (now 127.0.0.1:1)"
        ),
    ]


def test_without_the_haproxy_program_the_validity_of_haproxy_cfg_is_unknown(lb: LoadBalancer) -> None:
    (lb.bin / "haproxy").unlink()
    with hide_haproxy() as words:
        done = subprocess.run([*words, LBAGENT, "check"], env=lb.env, capture_output=True, text=True, check=False)

    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if " haproxy-cfg: " in line]
    assert lines == [
        (
            "warning haproxy-cfg: not checked: haproxy -c cannot be run: no such program: haproxy; fix that, then run `lbagent check` again"
        )
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "balance roundrobin",
            "balanse roundrobin",
            (
                "error haproxy-cfg: /lb/etc/haproxy.cfg:15: unknown keyword 'balanse' in 'listen' section; did you mean 'balance' maybe ?; fix haproxy.cfg; until then no server line can be added or removed"
            ),
        ),
        (
            "    timeout connect",
            "    log-format x\n    timeout connect",
            (
                "warning haproxy-cfg: /lb/etc/haproxy.cfg: log format ignored for proxy 'lb-iis' since it has no log address.; this is a warning of HAProxy; see its manual"
            ),
        ),
    ],
)
def test_messages_of_haproxy_are_reported(lb: LoadBalancer, old: str, new: str, line: str) -> None:
    lb.text = lb.text.replace(old.encode(), new.encode())

    assert line in list_problems(lb)


def test_a_missing_haproxy_cfg_is_an_error(lb: LoadBalancer) -> None:
    lb.cfg.unlink()

    assert (
        "error haproxy-cfg: /lb/etc/haproxy.cfg: No such file or directory; set its path in roles.yml: `haproxy: {config: PATH}`"
    ) in list_problems(lb)


# --- HAProxy --------------------------------------------------------------------------------------------------------

NONE = "error process: no HAProxy runs /lb/etc/haproxy.cfg; server lines have no effect; start HAProxy"


def test_a_haproxy_that_does_not_run_is_an_error(lb: LoadBalancer) -> None:
    assert [line for line in list_problems(lb) if " process: " in line] == [NONE]


@pytest.mark.every_haproxy
def test_without_a_master_listeners_have_to_be_handed_over(lb: LoadBalancer) -> None:
    lb.text = lb.text.replace(b" expose-fd listeners", b"")
    with Haproxy(lb, "-D"):
        status, lines = run_check(lb)

    assert status == 1  # no Serf
    assert [line for line in lines if " process: " in line or " hand-over: " in line] == [
        "ok process: HAProxy runs this haproxy.cfg (pid N, without a master)",
        (
            "warning hand-over: /lb/etc/haproxy.cfg:2: HAProxy runs without a master; a reload loses connections that wait to be accepted; add `expose-fd listeners`, or run HAProxy with -W"
        ),
    ]


@pytest.mark.every_haproxy
def test_a_haproxy_that_cannot_be_reloaded_is_an_error(lb: LoadBalancer) -> None:
    with Haproxy(lb, "-db"):
        found = [line for line in list_problems(lb) if " process: " in line]
        lb.roles.write_text(lb.roles.read_text().replace("haproxy:\n", "haproxy:\n  reload: [/no/such/reload]\n"))
        with_command = [line for line in list_problems(lb) if " process: " in line]

    assert found == [
        "error process: HAProxy pid N: HAProxy runs in the foreground without a master; run it with -W, or set haproxy.reload"
    ]
    assert with_command == [
        "error process: HAProxy pid N: the reload command cannot be run: /no/such/reload: no such program; fix `haproxy.reload` in roles.yml"
    ]


def test_two_masters_on_one_haproxy_cfg_are_an_error(lb: LoadBalancer) -> None:
    lb.text = re.sub(rb"    stats socket.*\n", b"", lb.text)
    argv = [str(lb.bin / "haproxy"), "-W", "-f", str(lb.cfg)]
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            started = subprocess.Popen(argv, env=lb.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(started.wait, PATIENCE)
            stack.callback(started.send_signal, signal.SIGTERM)
        found = wait_until(lambda: [line for line in list_problems(lb) if line.startswith("error process: ")])

    assert re.sub("[0-9]+", "N", found[0]) == (
        "error process: several HAProxy masters run this haproxy.cfg (pids N, N); give it a stats socket of its own"
    )


def test_a_stats_socket_that_does_not_answer_is_an_error(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    lb.socket.unlink()

    assert list_problems(lb, agent) == [
        (
            "error stats-answer: /lb/stats.sock: no answer, although HAProxy runs (pid N): No such file or directory; reload HAProxy, or fix the path of its `stats socket`"
        )
    ]


def test_a_stats_socket_without_level_admin_is_a_warning(lb: LoadBalancer) -> None:
    good = lb.text
    lb.text = good.replace(b"level admin", b"level user")
    with Haproxy(lb), Agent(lb) as agent:
        lb.text = good

        assert [line for line in list_problems(lb, agent) if " stats-answer: " in line] == [
            (
                "warning stats-answer: /lb/stats.sock: the running HAProxy answers with level 'user'; set `level admin`, and reload HAProxy"
            )
        ]


@pytest.mark.every_haproxy
def test_a_stats_socket_of_another_haproxy_is_an_error(lb: LoadBalancer) -> None:
    with LoadBalancer(CFG) as other, Haproxy(lb), Haproxy(other):
        lb.text = lb.text.replace(str(lb.socket).encode(), str(other.socket).encode())

        found = [line.replace(str(other.folder), "/other") for line in list_problems(lb) if " stats-answer: " in line]

    assert found == [
        (
            "error stats-answer: /other/stats.sock: pid N answers, not worker N, which runs this haproxy.cfg; give each HAProxy its own stats socket"
        )
    ]


def test_a_haproxy_c_that_takes_too_long_is_an_error(lb: LoadBalancer) -> None:
    lb.roles.write_text(lb.roles.read_text().replace("timeout: 15s", "timeout: 300ms"))
    lb.count_checks("sleep 5")

    assert [line for line in list_problems(lb) if " time-limit: " in line] == [
        (
            "error time-limit: `haproxy -c` did not end within `haproxy.timeout` (0.3 s); set a longer `haproxy.timeout` in roles.yml"
        )
    ]


# --- lines and state ------------------------------------------------------------------------------------------------


def test_a_managed_line_edited_by_hand_is_found(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    lb.text = lb.text.replace(b"rise 2", b"rise 9")
    fix = "run `lbagent apply` to restore it; a line without its `# lbagent` comment is yours"
    line = lb.server("web01", "127.0.0.11")

    assert list_problems(lb, agent) == [
        (
            f"warning drift: /lb/etc/haproxy.cfg:16: 'listen lb-iis: {line.replace('rise 2', 'rise 9')}' was edited by hand; {fix}"
        ),
        f"warning drift: 'listen lb-iis: {line}' is missing; {fix}",
    ]


def test_files_set_aside_in_the_state_directory_are_found(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    (lb.state / "members.json.damaged-20260101T000000.1").write_bytes(b"")
    (lb.state / "spool" / "bad").mkdir()
    assert list_problems(lb, agent) == [
        (
            "warning damaged: /lb/state/members.json.damaged-20260101T000000.1: a copy of a damaged members.json; find the cause, for example a full disk, then delete the copy"
        )
    ]
    (lb.state / "spool" / "bad" / "1-x").write_bytes(b"")

    assert list_problems(lb, agent)[1:] == [
        (
            "warning bad-events: /lb/state/spool/bad: 1 file set aside because they are not valid events; find which program writes into the spool, and delete them"
        )
    ]


def test_a_spool_and_a_lock_of_the_wrong_kind_are_errors(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    shutil.rmtree(lb.state / "spool")
    (lb.state / "spool").write_bytes(b"")
    (lb.state / "lock").unlink(missing_ok=True)
    (lb.state / "lock").mkdir()

    problems = list_problems(lb, agent)
    assert [line for line in problems if line.startswith("error state: ")] == [
        "error state: /lb/state/spool: not a directory; no event takes effect; move it away; lbagent makes another one",
        "error state: /lb/state/lock: not a file; no event takes effect; move it away; lbagent makes another one",
    ]


def test_a_damaged_membership_is_found_and_not_changed(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    (lb.state / "members.json").write_bytes(b"{")

    found = [line for line in list_problems(lb, agent) if " damaged: " in line]

    assert found == [
        (
            "warning damaged: /lb/state/members.json: is damaged (JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); the next event rebuilds it from the managed lines; run `lbagent apply`, and find what damaged it"
        )
    ]
    assert (lb.state / "members.json").read_bytes() == b"{"


def test_a_node_in_quarantine_is_found_and_its_line_is_not_an_edit(lb: LoadBalancer) -> None:
    text = lb.roles.read_text().replace(f"port: {lb.port}", f"port: {lb.port}, options: 'check weight {{tag:w|1}}'")
    lb.roles.write_text(text)
    with Haproxy(lb), Agent(lb) as agent:
        lb.join(member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12", w="999"))
        wait_until(lambda: lb.idle)
        found = list_problems(lb, agent)

    assert len(lb.managed) == 1
    assert re.sub("line: .*; fix", "line: …; fix", found[0]) == (
        "error quarantine: web02: in quarantine, HAProxy refuses its server line: …; fix its tags or roles.yml; lbagent retries it"
    )
    assert found[1:] == []


def test_a_quarantine_that_an_edit_has_ended_is_not_found(lb: LoadBalancer) -> None:
    text = lb.roles.read_text().replace(f"port: {lb.port}", f"port: {lb.port}, options: 'check weight {{tag:w|1}}'")
    lb.roles.write_text(text)
    with Haproxy(lb), Agent(lb) as agent:
        lb.join(member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12", w="999"))
        wait_until(lambda: lb.idle)
        lb.roles.write_text(text.replace("weight", "maxconn"))
        found = list_problems(lb, agent)

    assert found == [
        "warning pending: 3 lines would change after an edit of roles.yml or haproxy.cfg; run `lbagent plan` to see the change, `lbagent apply` to make it"
    ]


@pytest.mark.every_haproxy
def test_a_failed_reload_is_an_error(lb: LoadBalancer) -> None:
    lb.roles.write_text(lb.roles.read_text().replace("haproxy:\n", "haproxy:\n  runtime: off\n  reload: ['false']\n"))
    with Haproxy(lb), Agent(lb) as agent:
        lb.join(member_line("web01", "127.0.0.11"))
        wait_until(lambda: lb.idle)

        assert list_problems(lb, agent) == [
            (
                "error pending: the last reload failed: false ended with 1: no output; fix the cause, then run `lbagent apply --force`"
            )
        ]


@pytest.mark.parametrize(
    "what", ["etc/roles.yml", "etc/haproxy.cfg", "etc", "state", "state/spool", "state/members.json"]
)
def test_what_every_user_can_write_is_an_error(healthy: tuple[LoadBalancer, Agent], what: str) -> None:
    lb, agent = healthy
    path = lb.folder / what
    path.chmod(path.stat().st_mode | 0o002)

    assert list_problems(lb, agent) == [
        (
            f"error permissions: /lb/{what}: every user of this host can write it (mode {path.stat().st_mode & 4095:04o}); run `chmod o-w /lb/{what}`"
        )
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_gets_a_list_of_what_is_not_readable(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    lb.folder.chmod(0o755)
    lb.roles.chmod(0o600)
    lb.cfg.chmod(0o600)
    lb.state.chmod(0o700)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", LBAGENT, "check"],
        env={**lb.env, "SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN},
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout:
        pytest.skip("another user cannot start this lbagent here")
    lines = [" ".join(line.split()).replace(str(lb.folder), "/lb") for line in done.stdout.splitlines()]

    assert done.returncode == 0
    assert [line for line in lines if not line.startswith("ok ")] == [
        "warning user: not run as root; not readable for this user and not checked: /lb/etc/roles.yml, /lb/state/spool, /lb/state/members.json, /lb/state, Serf's settings; run `lbagent check` as root",
        lines[-1],
    ]


# --- Serf -----------------------------------------------------------------------------------------------------------


def test_an_agent_that_does_not_run_is_an_error(lb: LoadBalancer) -> None:
    assert [line for line in list_problems(lb) if " serf: " in line] == [
        (
            "error serf: Serf agent: `serf info` failed: Error connecting to Serf agent: dial tcp RPC: connect: connection refused; start the agent, or set SERF_RPC_ADDR to its `rpc_addr` (now RPC)"
        )
    ]


def test_a_serf_that_is_not_installed_is_an_error(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    for program in ("haproxy", "serf"):
        assert shutil.which(program)
    hidden = [
        "unshare",
        "--mount",
        "sh",
        "-ec",
        f'mount --bind /dev/null {os.path.realpath("/usr/bin/serf")}; exec "$@"',
        "sh",
    ]
    if subprocess.run([*hidden, "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare is not allowed here")
    env = {**lb.env, "SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN}

    done = subprocess.run([*hidden, LBAGENT, "check"], env=env, capture_output=True, text=True, check=False)

    assert [" ".join(line.split()) for line in done.stdout.splitlines()[:-1] if not line.startswith("ok ")] == [
        "error serf: serf: the program is not installed; no events arrive; install Serf, or add it to PATH"
    ]


def test_a_missing_token_is_an_error(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy

    assert list_problems(lb, agent, SERF_RPC_AUTH="") == [
        (
            "error serf: SERF_RPC_AUTH: the agent requires an RPC token; no sync is possible (Serf agent: `serf info` failed: Error querying agent: Authentication required); set SERF_RPC_AUTH to the `rpc_auth` of the agent"
        )
    ]


AT = "/lb/etc/serf-lb01/lb.json"


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        (
            {"encrypt_key": None},
            [
                (
                    "error encryption: the cluster is not encrypted; anyone who can reach it can add, pause or fail servers; create a key with `serf keygen`, and set it as `encrypt_key` on every node"
                )
            ],
        ),
        (
            {"tags": None},
            [
                (
                    'warning role-tag: lb01: the agent has no role tag; the load balancers cannot find each other; add `"tags": {"role": "lb"}` to its settings'
                )
            ],
        ),
        (
            {"tags": {"role": "web"}},
            [
                (
                    "error role-tag: lb01: roles.yml has services for its role web; the other load balancer becomes a server; give the load balancers their own role, for example `lb`"
                )
            ],
        ),
        (
            {"event_handlers": [f"member-join,member-leave,user:pause={LBAGENT} handle"]},
            [
                (
                    "error handlers: serf info: lbagent does not receive member-failed, member-update, member-reap, user:resume, query:pause, query:resume, query:lbagent-status, query:lbagent-forget; these events have no effect; write the handler without a filter: `lbagent handle`"
                )
            ],
        ),
        (
            {"event_handlers": ["/nowhere/lbagent handle"]},
            [
                (
                    "error handlers: serf info: the handler '/nowhere/lbagent handle' cannot run: Serf's PATH has no program '/nowhere/lbagent'; Serf events have no effect; write its full path in `event_handlers`"
                )
            ],
        ),
        (
            {"event_handlers": ["cat >/dev/null", f"*={LBAGENT} --state-dir=/x handle", "true"]},
            [
                "error settings: handler 'lbagent --state-dir=/x handle': uses the state directory /x, this command uses /lb/state; use one `--state-dir` or LBAGENT_STATE_DIR for Serf's agent, `lbagent watch` and this command"
            ],
        ),
        (
            {"event_handlers": None},
            [
                (
                    'error handlers: serf info: no event handler calls lbagent; Serf events have no effect; add `"event_handlers": ["lbagent handle"]` to the agent\'s settings'
                )
            ],
        ),
        (
            {"rpc_auth": None},
            [
                (
                    f'warning rpc: {AT}: every user of this host can control the agent through RPC; set `"rpc_auth": "TOKEN"`, and start the agent with SERF_RPC_AUTH=TOKEN for its handlers'
                )
            ],
        ),
        (
            {"replay_on_join": False},
            [
                (
                    f'warning replay: {AT}: no `replay_on_join`; pauses that were sent while this load balancer was down are lost; add `"replay_on_join": true`'
                )
            ],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_each_fault_of_a_real_agent_is_found(lb: LoadBalancer, changed: dict[str, Any], lines: list[str]) -> None:
    with Haproxy(lb), Agent(lb, **changed) as agent:
        (lb.state / "spool").mkdir(parents=True, exist_ok=True)
        wait_until(lambda: lb.idle)

        assert list_problems(lb, agent, SERF_RPC_AUTH=str(agent.settings["rpc_auth"] or "")) == lines


def test_a_script_that_calls_lbagent_is_a_handler_too(lb: LoadBalancer) -> None:
    script = lb.folder / "events.sh"
    script.write_text(f"#!/bin/sh\nexec {LBAGENT} handle\n")
    script.chmod(0o755)
    with Haproxy(lb), Agent(lb, event_handlers=[str(script)]) as agent:
        lines = [line for line in run_check(lb, agent)[1] if " handlers: " in line]

    assert lines == ["ok handlers: serf info: '/lb/events.sh' receives all events that lbagent needs"]


def test_handlers_without_token_and_address_are_found(lb: LoadBalancer) -> None:
    with Haproxy(lb), Agent(lb).add_options(SERF_RPC_AUTH="", SERF_RPC_ADDR="") as agent:
        found = [line for line in list_problems(lb, agent) if " rpc: " in line]

    assert found == [
        "warning rpc: serf agent (pid N): no SERF_RPC_AUTH in its environment; handlers cannot ask the agent; start the agent with SERF_RPC_AUTH=TOKEN, the value of `rpc_auth`",
        "warning rpc: serf agent (pid N): no SERF_RPC_ADDR=RPC in its environment; handlers cannot ask the agent; start the agent with SERF_RPC_ADDR=RPC",
    ]


def test_a_handler_is_searched_in_the_path_of_the_agent(lb: LoadBalancer) -> None:
    (lb.folder / "elsewhere").mkdir()
    (lb.folder / "elsewhere" / "lbagent").symlink_to(LBAGENT)
    path = f"{lb.folder}/elsewhere:/usr/bin:/bin"
    with Haproxy(lb), Agent(lb, event_handlers=["lbagent handle"]).add_options(PATH=path) as agent:
        found = run_check(lb, agent, PATH=f"{lb.bin}:/usr/sbin:/usr/bin:/bin")[1]
    with Haproxy(lb), Agent(lb, event_handlers=["lbagent handle"]).add_options(PATH="/usr/bin:/bin") as agent:
        missing = run_check(lb, agent, PATH=f"{lb.folder}/elsewhere:{lb.bin}:/usr/sbin:/usr/bin:/bin")[1]

    assert [line for line in found if " handlers: " in line] == [
        "ok handlers: serf info: 'lbagent handle' receives all events that lbagent needs"
    ]
    assert [line for line in missing if " handlers: " in line] == [
        "error handlers: serf info: the handler 'lbagent handle' cannot run: Serf's PATH has no program 'lbagent'; Serf events have no effect; write its full path in `event_handlers`"
    ]


def test_an_agent_is_found_by_every_form_of_its_address(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy

    assert list_problems(lb, agent, SERF_RPC_ADDR=agent.rpc.replace("127.0.0.1", "localhost")) == []


@contextlib.contextmanager
def run_fake_agent(lb: LoadBalancer, user: int, *words: str) -> Iterator[None]:
    """Run a process called `serf agent` with these words, and use its RPC address."""
    lb.folder.chmod(0o755)
    (lb.folder / "agent").write_text("print(flush=True)\nimport time\ntime.sleep(600)\n")
    (lb.folder / "serf").symlink_to("/usr/bin/python3")
    argv = [str(lb.folder / "serf"), "agent", f"-rpc-addr={lb.env['SERF_RPC_ADDR']}", *words]
    with subprocess.Popen(argv, user=user, group=user, extra_groups=[], cwd=lb.folder, stdout=subprocess.PIPE) as one:
        assert one.stdout
        one.stdout.readline()
        yield
        one.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("endless", ["pipe", "zero"])
@pytest.mark.parametrize(
    ("user", "lines"),
    [
        (0, ["warning agent-files: /lb/FILE: cannot be read: not a regular file; run `lbagent check` as root"]),
        (65533, []),
    ],
    ids=["root", "stranger"],
)
def test_endless_files_do_not_stop_a_check_and_files_of_other_users_are_not_read(
    lb: LoadBalancer, user: int, endless: str, lines: list[str]
) -> None:
    os.mkfifo(lb.folder / "pipe")
    (lb.folder / "zero").symlink_to("/dev/zero")

    with run_fake_agent(lb, user, f"-config-file={lb.folder}/{endless}"):
        found = [line for line in list_problems(lb) if " agent-files: " in line]

    assert found == [line.replace("FILE", endless) for line in lines]


def test_a_file_of_the_agent_that_is_too_large_is_not_read(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    (agent.file.parent / "more.json").write_text(f'{{"tags": "{"x" * (1 << 20)}"}}')

    assert list_problems(lb, agent) == [
        "warning agent-files: /lb/etc/serf-lb01/more.json: not read: larger than 1048576 bytes; make sure that it is a settings file of the agent"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_gets_no_false_claim_about_the_handler(lb: LoadBalancer) -> None:
    lb.folder.chmod(0o755)
    with Haproxy(lb), Agent(lb, event_handlers=["lbagent handle", "events.sh"]) as agent:
        agent.add_options(f"-rpc-addr={agent.rpc}").kill()
        agent.start()
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", LBAGENT, "check"],
            env={**lb.env, "SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
    if not done.stdout:
        pytest.skip("another user cannot start this lbagent here")
    lines = [" ".join(re.sub("pid [0-9]+", "pid N", line).split()) for line in done.stdout.splitlines()]

    assert [line for line in lines if " handlers: " in line or " rpc: " in line] == []
    assert [line.partition(": ")[0] for line in lines if "not readable" in line] == ["warning user"]


def test_a_keyring_that_other_users_can_read_is_an_error(lb: LoadBalancer) -> None:
    keyring = lb.folder / "keyring"
    keyring.write_text(json.dumps([KEY]))
    keyring.chmod(0o644)
    with Haproxy(lb), Agent(lb, encrypt_key=None, keyring_file=str(keyring)) as agent:
        found = [line for line in list_problems(lb, agent) if " key: " in line]

    assert found == [
        "error key: /lb/keyring: every user of this host can read the key (mode 0644); run `chmod 0600` on the file, and change the key"
    ]


def test_a_key_on_the_command_line_is_an_error_and_not_printed(lb: LoadBalancer) -> None:
    with Haproxy(lb), Agent(lb, encrypt_key=None).add_options(f"-encrypt={KEY}") as agent:
        status, lines = run_check(lb, agent)

    assert status == 1
    assert KEY not in "".join(lines)
    assert [line for line in lines if " key: " in line] == [
        (
            "error key: serf agent -encrypt: the key is on the agent's command line; every user of this host can read it; move it to `encrypt_key` in a file of mode 0600"
        )
    ]


def test_a_key_that_other_users_can_read_is_an_error(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    agent.file.chmod(0o644)

    assert list_problems(lb, agent) == [
        f"error key: {AT}: every user of this host can read the key (mode 0644); run `chmod 0600` on the file, and change the key"
    ]


def test_a_file_of_the_agent_that_has_become_invalid_is_an_error(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    (agent.file.parent / "more.json").write_text("[")

    assert [line for line in list_problems(lb, agent) if " agent-files: " in line] == [
        (
            "error agent-files: /lb/etc/serf-lb01/more.json: invalid JSON: Expecting value: line 1 column 2 (char 1); fix the file; the agent does not start again with it"
        )
    ]


def test_a_handler_that_keeps_the_agent_from_starting_again_is_an_error(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    (agent.file.parent / "more.json").write_text('{"event_handlers": ["lbagent --roles=/x handle"]}')

    assert list_problems(lb, agent) == [
        (
            "error handler-spec: /lb/etc/serf-lb01/more.json: the agent does not start with the handler 'lbagent --roles=/x handle': 'lbagent --roles' is not an event; write EVENT,EVENT=COMMAND without blanks; if the command contains `=`, put `*=` before it"
        )
    ]
    again = subprocess.run(
        ["serf", "agent", f"-config-dir={agent.file.parent}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Invalid event script: Event 'lbagent --roles' invoking '/x handle'" in again.stdout + again.stderr


def test_another_load_balancer_is_listed_and_a_failed_one_is_an_error(healthy: tuple[LoadBalancer, Agent]) -> None:
    lb, agent = healthy
    with Agent(lb, "lb02", event_handlers=None) as other:
        other.join(agent)
        wait_until(lambda: agent.members().get("lb02") == "alive")
        there = [line for line in run_check(lb, agent)[1] if " peers: " in line]

        other.kill()
        wait_until(lambda: agent.members()["lb02"] == "failed", 30)
        failed = [line for line in list_problems(lb, agent) if " peers: " in line]

    assert there == ["ok peers: serf members: 1 other load balancer: lb02"]
    assert failed == [
        "error peers: serf members: 1 other load balancer failed: lb02; start its agent, or remove it with `serf force-leave`"
    ]


# --- hostile input, and the output ----------------------------------------------------------------------------------


def test_hostile_files_and_agents_give_printable_lines(lb: LoadBalancer) -> None:
    evil = "\x1b[2J\x07evil\x9b\u202e"
    lb.text = lb.text.replace(b"    # additional", f"    # additional-{evil}-server\n    # additional".encode())
    lb.text = lb.text.replace(b"balance", f"balance{evil} \xff".encode("latin-1", "replace"))
    with Agent(lb, f"lb{evil}", event_handlers=[f"echo {evil}", f"*=lbagent{evil} handle"]) as agent:
        done = lb.run("check", env={"SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN})

    lines = done.stdout.decode().split("\n")
    assert all(line.isprintable() for line in lines)
    assert all(re.match("(ok     |warning|error  )  [a-z-]+: ", line) for line in lines[:-2])
    assert "evil" in done.stdout.decode()


def run_check_on_terminal(lb: LoadBalancer, **env: str) -> str:
    """Return the output of `check` on a terminal."""
    leader, follower = pty.openpty()
    try:
        subprocess.run([LBAGENT, "check"], env={**lb.env, **env}, stdout=follower, stderr=follower, check=False)
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the end of the output
            while piece := os.read(leader, 1 << 16):
                shown += piece
        return shown.decode()
    finally:
        os.close(leader)


def test_colour_is_used_on_terminals_unless_it_is_disabled(lb: LoadBalancer) -> None:
    shown, plain, piped = (
        run_check_on_terminal(lb),
        run_check_on_terminal(lb, NO_COLOR="1"),
        lb.run("check").stdout.decode(),
    )

    assert "\x1b[32mok     \x1b[0m  lbagent: " in shown
    assert "\x1b[31merror  \x1b[0m  serf: " in shown
    assert "\x1b" not in plain + piped


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_finding_is_tested(kind: Kind) -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.parent.rglob("test_*.py"))

    assert re.search(rf"(ok|warning|error) {kind}: ", tests)
