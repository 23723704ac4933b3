"""`lbagent check` with a real HAProxy and a real Serf agent: what is amiss is told, and nothing is touched."""

# ruff: noqa: E501  # a line that is told stands as it is told

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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from lbagent.checks import files
from lbagent.checks.finding import Finding, Kind
from lbagent.checks.run import findings
from lbagent.settings import Settings
from lbagent.system.log import Log
from tests.helpers.faults import tree, without_haproxy
from tests.helpers.real_programs import (
    LBAGENT,
    PATIENCE,
    Haproxy,
    Lb,
    SerfAgent,
    _children,
    binaries,
    default_binary,
    eventually,
    haproxy_version,
    member,
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
    """A real agent that is started from files, as Debian's unit starts it."""

    def __init__(self, lb: Lb, name: str = "lb01", **changed: object) -> None:
        """All that a load balancer needs, but for what is `changed` (None: not set)."""
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

    def also(self, *words: str, **given: str) -> Self:
        """With these words on its command line, and these variables in its environment."""
        self._argv, self._given = list(words), given
        return self

    @property
    def log(self) -> str:
        """What it has said so far."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    @property
    def handlers(self) -> list[Path]:
        """Its children in /proc: handlers under way."""
        return [*_children(self._process.pid)] if self._process else []

    def start(self) -> None:
        """Write the file, start the agent, and wait until it can be asked and its own join is no event that waits."""
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
        eventually(self._answers)
        handlers = len(self.settings["event_handlers"] or [])  # each hears of a join
        eventually(lambda: self.log.count("Event 'member-join' script output") >= handlers)


def checked(lb: Lb, agent: SerfAgent | None = None, **env: str) -> tuple[int, list[str]]:
    """How `lbagent check` ends, and its lines, with paths, ports and pids of this run made plain."""
    asking = {"SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN} if agent else {}
    done = lb.run("check", env={**asking, **env})
    assert done.stderr == b""
    text = done.stdout.decode().replace(str(lb.folder), "/lb").replace(str(LBAGENT), "lbagent")
    text = re.sub(r"127\.0\.0\.1:[0-9]+", "RPC", re.sub(r"\b(master|worker|pid) [0-9]+", r"\1 N", text))
    *lines, summary = [" ".join(line.split()) for line in text.splitlines()]
    counts = [sum(line.startswith(f"{severity} ") for line in lines) for severity in ("error", "warning", "ok")]
    assert re.sub("(errors?|warnings?|ok)", "", summary).replace(",", "").split() == [str(count) for count in counts]
    return done.returncode, lines


def amiss(lb: Lb, agent: SerfAgent | None = None, **env: str) -> list[str]:
    """The lines that are not ok; the exit status is what they make it."""
    status, lines = checked(lb, agent, **env)
    found = [line for line in lines if not line.startswith("ok ")]
    assert status == any(line.startswith("error ") for line in found)
    return found


def version() -> str:
    """The HAProxy that `haproxy` is."""
    return haproxy_version(default_binary())


@pytest.fixture
def lb() -> Iterator[Lb]:
    """A load balancer with a good haproxy.cfg; what is amiss is each test's own."""
    with Lb(CFG) as lb:
        yield lb


@pytest.fixture
def well(lb: Lb) -> Iterator[tuple[Lb, Agent]]:
    """A load balancer to which nothing is amiss: HAProxy, Serf, and a server that has joined."""
    with Haproxy(lb), Agent(lb) as agent:
        assert lb.join(member("web01", "127.0.0.11")).returncode == 0
        # The agent's own join comes a second later.
        eventually(lambda: "Received event: member-join" in agent.log)
        time.sleep(0.2)  # its handler is started a moment after it is logged
        eventually(lambda: not agent.handlers and lb.idle)
        yield lb, agent


# --- all is well ----------------------------------------------------------------------------------------------------

WELL = """\
ok lbagent: version X
ok daemon: no `lbagent watch`: `lbagent handle` applies events itself
ok roles: /lb/etc/roles.yml: 1 role, 1 service
ok networks: /lb/etc/roles.yml:7: role web comes from 127.0.0.0/8
ok markers: /lb/etc/haproxy.cfg: every section and service has its marker (1 marker)
ok service-line: HAProxy accepts the lines that each role and service would make
ok haproxy: HAProxy X
ok process: HAProxy runs it: master N, worker N
ok haproxy-cfg: /lb/etc/haproxy.cfg: accepted by `haproxy -c`, without a warning
ok time-limit: `haproxy -c` keeps well within 15 s
ok stats-socket: /lb/etc/haproxy.cfg:2: a stats socket with level admin
ok hand-over: /lb/etc/haproxy.cfg:2: listeners are handed over at a reload
ok hard-stop: /lb/etc/haproxy.cfg:3: old workers end by `hard-stop-after 30s`
ok idle-close: a reload lets idle clients send their next request
ok timeouts: every proxy has its timeouts
ok server-state: no server state is loaded from a file
ok stats-answer: /lb/stats.sock: worker N answers an admin there
ok drift: the managed lines are what they should be (1 line)
ok permissions: only root writes what lbagent believes (6 paths)
ok disk: there is room to write
ok state: /lb/state: 1 member remembered
ok serf: the agent lb01 answers
ok encryption: what the agents say is encrypted
ok handlers: serf info: 'lbagent handle' is called for all that lbagent needs
ok replay: /lb/etc/serf-lb01/lb.json: what was sent while this load balancer was down is heard afterwards
ok leave: /lb/etc/serf-lb01/lb.json: ended by SIGTERM, the agent leaves
ok key: /lb/etc/serf-lb01/lb.json: others cannot read the key
ok rpc: /lb/etc/serf-lb01/lb.json: RPC asks for a token
ok role-tag: lb01: its role is lb
ok peers: serf members: 0 other load balancers there
"""


@pytest.mark.parametrize("binary", binaries().values(), ids=binaries())
def test_a_load_balancer_to_which_nothing_is_amiss_is_ok_throughout(binary: Path) -> None:
    with Lb(CFG, binary=binary) as lb, Haproxy(lb), Agent(lb) as agent:
        lb.join(member("web01", "127.0.0.11"))
        # The agent's own join comes a second later: an event that is dealt with at this moment is told of, too.
        eventually(lambda: "Received event: member-join" in agent.log and lb.idle)

        status, lines = checked(lb, agent)

    assert status == 0
    plain = [re.sub(r"^(ok lbagent: version|ok haproxy: HAProxy) .*", r"\1 X", line) for line in lines]
    assert "\n".join([*plain, ""]) == WELL


def test_nothing_is_changed_and_no_lock_is_needed(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    lb.text = lb.text.replace(b"rise 2", b"rise 9")
    (lb.state / "spool" / "1").write_bytes(b"no record")
    (lb.state / "spool" / "foreign").write_bytes(b"")
    before, worker = (tree(lb.etc), tree(lb.state)), Path(lb.folder / "haproxy.pid").read_text()

    with (lb.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, lines = checked(lb, agent)

    assert (status, (tree(lb.etc), tree(lb.state))) == (0, before)
    assert Path(lb.folder / "haproxy.pid").read_text() == worker
    assert [line for line in lines if not line.startswith("ok ")] == [
        "warning pending: 2 events in the spool: the next event takes them in, or `lbagent apply`"
    ]


def test_no_state_directory_is_made_by_looking(lb: Lb) -> None:
    assert [line for line in amiss(lb) if " state: " in line] == [
        (
            "warning state: /lb/state: is not there yet: no event has been heard"
            ": start Serf with its handler, or `lbagent apply` makes it"
        )
    ]
    assert not lb.state.exists()


# --- one thing broken does not hide the others ----------------------------------------------------------------------


def test_what_is_broken_does_not_hide_what_else_is(lb: Lb) -> None:
    lb.roles.write_text(lb.roles.read_text().replace("port:", "prot:"))
    lb.state.write_text("no folder")

    found = amiss(lb)

    assert found[0] == (
        "error roles: /lb/etc/roles.yml:5:9: services.iis.prot: unknown key; did you mean port?"
        ": until it loads no event changes anything"
    )
    assert {line.split()[1] for line in found} >= {"roles:", "drift:", "state:", "serf:"}


def test_where_roles_yml_is_refused_the_haproxy_of_the_last_good_one_is_looked_at(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    lb.roles.write_text("roles: [")

    status, lines = checked(lb, agent)

    assert status == 1
    assert "ok process: HAProxy runs it: master N, worker N" in lines
    assert [line for line in lines if not line.startswith("ok ")] == [
        "error roles: /lb/etc/roles.yml:1:8: roles: the list is not closed; add ]: until it loads no event changes anything",
        (
            "error roles: /lb/etc/roles.yml:1:8: roles: is a list, not a mapping of keys to values;"
            " write ROLE: {SECTION: [SERVICE]} below it: until it loads no event changes anything"
        ),
        "warning markers: /lb/etc/haproxy.cfg: only doubled ones can be looked for: roles.yml cannot be used: mend roles.yml",
        "warning drift: cannot be looked at, without a plan: roles.yml cannot be used: mend that, and check again",
    ]


def test_where_only_roles_yml_knew_which_haproxy_cfg_none_is_judged(lb: Lb) -> None:
    lb.roles.write_text("roles: [")

    found = amiss(lb)

    assert [line for line in found if not line.startswith(("error roles: ", "error serf: ", "warning state: "))] == [
        (
            "warning haproxy-cfg: cannot be looked at, nor who runs it: which file it is stands in roles.yml,"
            " which cannot be used: mend roles.yml, and check again"
        ),
        "warning drift: cannot be looked at, without a plan: haproxy.cfg cannot be read: mend that, and check again",
    ]


def test_what_hinders_a_plan_is_told_as_it_is(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    (lb.state / "members.json").unlink()
    (lb.state / "members.json").mkdir()

    found = amiss(lb, agent)
    lb.text = lb.text.replace(b"    # additional", b"    # additional-lb-iis-server\n    # additional", 1)
    doubled = amiss(lb, agent)

    assert found == [
        "warning drift: cannot be looked at, without a plan: /lb/state/members.json: not a regular file: mend that, and check again",
        "warning state: /lb/state/members.json: cannot be looked at: not a regular file: run this as root",
    ]
    assert [line.partition(" stands in ")[0] for line in doubled if " drift: " in line] == [
        "warning drift: cannot be looked at, without a plan: /lb/state/members.json: not a regular file: mend that, and check again"
    ]


def test_a_look_that_ends_in_a_defect_does_not_hide_the_others(
    well: tuple[Lb, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> Iterator[Finding]:
        raise RuntimeError("no\nidea")

    lb, agent = well
    whole = len(checked(lb, agent)[1])
    for name, value in {**lb.env, "SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(files, "owned", defect)

    found = [*findings(Settings(str(lb.roles), str(lb.state)), Log())]

    assert len(found) == whole - 1  # permissions and disk are one look
    assert [one.words for one in found if one.severity != "ok"] == [
        "permissions: cannot be looked at, by a defect of lbagent: RuntimeError: no?idea: please report it"
    ]


def test_without_anything_all_is_said(lb: Lb) -> None:
    lb.cfg.unlink()
    (lb.bin / "haproxy").unlink()
    with without_haproxy() as words:
        done = subprocess.run([*words, LBAGENT, "check"], env=lb.env, capture_output=True, text=True, check=False)

    lines = [" ".join(line.split()).replace(str(lb.folder), "/lb") for line in done.stdout.splitlines()[:-1]]
    assert done.returncode == 1
    assert [line for line in lines if not line.startswith("ok ")] == [
        (
            "error haproxy: haproxy cannot be run (no such program): no change of haproxy.cfg can be validated"
            ": install it, or have it in PATH"
        ),
        (
            "error haproxy-cfg: /lb/etc/haproxy.cfg: No such file or directory"
            ": name the file in roles.yml: `haproxy: {config: …}`"
        ),
        NONE,
        ("warning drift: cannot be looked at, without a plan: haproxy.cfg cannot be read: mend that, and check again"),
        (
            "warning state: /lb/state: is not there yet: no event has been heard"
            ": start Serf with its handler, or `lbagent apply` makes it"
        ),
        (
            "error serf: Serf agent: `serf info` failed: Error connecting to Serf agent: dial tcp 127.0.0.1:1"
            ": connect: connection refused: start the agent, or set SERF_RPC_ADDR (127.0.0.1:7373 without it)"
        ),
    ]


def test_a_haproxy_that_cannot_be_run_leaves_its_verdict_open(lb: Lb) -> None:
    (lb.bin / "haproxy").unlink()
    with without_haproxy() as words:
        done = subprocess.run([*words, LBAGENT, "check"], env=lb.env, capture_output=True, text=True, check=False)

    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if " haproxy-cfg: " in line]
    assert lines == [
        (
            "warning haproxy-cfg: cannot be looked at: haproxy -c cannot be run: no such program: haproxy"
            ": mend that, and check again"
        )
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "balance roundrobin",
            "balanse roundrobin",
            (
                "error haproxy-cfg: /lb/etc/haproxy.cfg:15: unknown keyword 'balanse' in 'listen' section; did you mean"
                " 'balance' maybe ?: until it is mended no node gets in or out"
            ),
        ),
        (
            "    timeout connect",
            "    log-format x\n    timeout connect",
            (
                "warning haproxy-cfg: /lb/etc/haproxy.cfg: log format ignored for proxy 'lb-iis' since it has no log"
                " address.: HAProxy's own warning"
            ),
        ),
    ],
)
def test_haproxys_own_complaints_are_told(lb: Lb, old: str, new: str, line: str) -> None:
    lb.text = lb.text.replace(old.encode(), new.encode())

    assert line in amiss(lb)


def test_a_haproxy_cfg_that_is_not_there_is_an_error(lb: Lb) -> None:
    lb.cfg.unlink()

    assert (
        "error haproxy-cfg: /lb/etc/haproxy.cfg: No such file or directory"
        ": name the file in roles.yml: `haproxy: {config: …}`"
    ) in amiss(lb)


# --- HAProxy --------------------------------------------------------------------------------------------------------

NONE = "error process: no HAProxy runs this haproxy.cfg: lines are written, and nobody serves them: start it"


def test_a_haproxy_that_does_not_run_is_told(lb: Lb) -> None:
    assert [line for line in amiss(lb) if " process: " in line] == [NONE]


@pytest.mark.every_haproxy
def test_without_a_master_listeners_have_to_be_handed_over(lb: Lb) -> None:
    lb.text = lb.text.replace(b" expose-fd listeners", b"")
    with Haproxy(lb, "-D"):
        status, lines = checked(lb)

    assert status == 1  # no Serf
    assert [line for line in lines if " process: " in line or " hand-over: " in line] == [
        "ok process: HAProxy runs it: pid N, without a master",
        (
            "warning hand-over: /lb/etc/haproxy.cfg:2: without a master, a reload loses the connections that wait to be"
            " accepted: write `expose-fd listeners`, or run HAProxy with -W"
        ),
    ]


@pytest.mark.every_haproxy
def test_a_haproxy_that_nobody_could_reload_is_an_error(lb: Lb) -> None:
    with Haproxy(lb, "-db"):
        found = [line for line in amiss(lb) if " process: " in line]
        lb.roles.write_text(lb.roles.read_text().replace("haproxy:\n", "haproxy:\n  reload: [/no/such/reload]\n"))
        with_command = [line for line in amiss(lb) if " process: " in line]

    assert found == [
        "error process: pid N: HAProxy runs in the foreground without a master; run it with -W, or set haproxy.reload"
    ]
    assert with_command == [
        "error process: pid N: its reload command cannot be run: /no/such/reload: no such program: mend `haproxy.reload` in roles.yml"
    ]


def test_two_masters_on_one_haproxy_cfg_are_an_error(lb: Lb) -> None:
    lb.text = re.sub(rb"    stats socket.*\n", b"", lb.text)
    argv = [str(lb.bin / "haproxy"), "-W", "-f", str(lb.cfg)]
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            started = subprocess.Popen(argv, env=lb.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(started.wait, PATIENCE)
            stack.callback(started.send_signal, signal.SIGTERM)
        found = eventually(lambda: [line for line in amiss(lb) if line.startswith("error process: ")])

    assert re.sub("[0-9]+", "N", found[0]) == (
        "error process: several HAProxy masters run this haproxy.cfg (pids N, N): give it a stats socket of its own"
    )


def test_a_stats_socket_that_does_not_answer_is_an_error(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    lb.socket.unlink()

    assert amiss(lb, agent) == [
        (
            "error stats-answer: /lb/stats.sock: does not answer, though HAProxy runs (pid N): No such file or directory"
            ": reload HAProxy, or mend the path of its `stats socket`"
        )
    ]


def test_a_stats_socket_that_answers_no_admin_is_told(lb: Lb) -> None:
    good = lb.text
    lb.text = good.replace(b"level admin", b"level user")
    with Haproxy(lb), Agent(lb) as agent:
        lb.text = good

        assert [line for line in amiss(lb, agent) if " stats-answer: " in line] == [
            (
                "warning stats-answer: /lb/stats.sock: the running HAProxy answers with level 'user' there"
                ": write `level admin`, and reload HAProxy"
            )
        ]


@pytest.mark.every_haproxy
def test_a_stats_socket_of_another_haproxy_is_an_error(lb: Lb) -> None:
    with Lb(CFG) as other, Haproxy(lb), Haproxy(other):
        lb.text = lb.text.replace(str(lb.socket).encode(), str(other.socket).encode())

        found = [line.replace(str(other.folder), "/other") for line in amiss(lb) if " stats-answer: " in line]

    assert found == [
        (
            "error stats-answer: /other/stats.sock: pid N answers there, not the worker N that runs this haproxy.cfg"
            ": give each HAProxy a stats socket of its own"
        )
    ]


def test_a_check_that_takes_too_long_is_told(lb: Lb) -> None:
    lb.roles.write_text(lb.roles.read_text().replace("timeout: 15s", "timeout: 300ms"))
    lb.count_checks("sleep 5")

    assert [line for line in amiss(lb) if " time-limit: " in line] == [
        (
            "error time-limit: `haproxy -c` did not end within `haproxy.timeout`, 0.3 s"
            ": make `haproxy.timeout` in roles.yml longer"
        )
    ]


# --- lines and state ------------------------------------------------------------------------------------------------


def test_a_managed_line_edited_by_hand_is_named(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    lb.text = lb.text.replace(b"rise 2", b"rise 9")
    fix = "`lbagent apply` puts it right; without its comment a line is yours"
    line = lb.server("web01", "127.0.0.11")

    assert amiss(lb, agent) == [
        (
            f"warning drift: /lb/etc/haproxy.cfg:16: 'listen lb-iis: {line.replace('rise 2', 'rise 9')}'"
            f" is not what lbagent wrote: {fix}"
        ),
        f"warning drift: 'listen lb-iis: {line}' is missing: {fix}",
    ]


def test_what_lies_about_in_the_state_directory_is_told(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    (lb.state / "members.json.damaged-20260101T000000.1").write_bytes(b"")
    (lb.state / "spool" / "bad").mkdir()
    assert amiss(lb, agent) == [
        (
            "warning damaged: /lb/state/members.json.damaged-20260101T000000.1: a members.json that was damaged, kept aside"
            ": look why (a full disk?), and remove it"
        )
    ]
    (lb.state / "spool" / "bad" / "1-x").write_bytes(b"")

    assert amiss(lb, agent)[1:] == [
        (
            "warning bad-records: /lb/state/spool/bad: 1 file set aside that no event could be made of"
            ": see who put them into the spool, and remove them"
        )
    ]


def test_a_damaged_membership_is_told_and_left_alone(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    (lb.state / "members.json").write_bytes(b"{")

    found = [line for line in amiss(lb, agent) if " damaged: " in line]

    assert found == [
        (
            "warning damaged: /lb/state/members.json: is damaged (JSONDecodeError: Expecting property name enclosed in"
            " double quotes: line 1 column 2 (char 1)); the next event rebuilds it from the managed lines"
            ": `lbagent apply`, and see what damaged it"
        )
    ]
    assert (lb.state / "members.json").read_bytes() == b"{"


def test_a_node_in_quarantine_is_told_and_its_line_is_no_drift(lb: Lb) -> None:
    text = lb.roles.read_text().replace(f"port: {lb.port}", f"port: {lb.port}, options: 'check weight {{tag:w|1}}'")
    lb.roles.write_text(text)
    with Haproxy(lb), Agent(lb) as agent:
        lb.join(member("web01", "127.0.0.11"), member("web02", "127.0.0.12", w="999"))
        eventually(lambda: lb.idle)
        found = amiss(lb, agent)

    assert len(lb.managed) == 1
    assert re.sub("line: .*?: mend", "line: …: mend", found[0]) == (
        "error quarantine: web02: HAProxy refuses its line: …: mend its tags, or roles.yml; it is tried again"
    )
    assert found[1:] == []


def test_a_quarantine_that_an_edit_has_ended_is_none(lb: Lb) -> None:
    text = lb.roles.read_text().replace(f"port: {lb.port}", f"port: {lb.port}, options: 'check weight {{tag:w|1}}'")
    lb.roles.write_text(text)
    with Haproxy(lb), Agent(lb) as agent:
        lb.join(member("web01", "127.0.0.11"), member("web02", "127.0.0.12", w="999"))
        eventually(lambda: lb.idle)
        lb.roles.write_text(text.replace("weight", "maxconn"))
        found = amiss(lb, agent)

    assert found == [
        "warning pending: 3 lines would change, of roles.yml or the text: `lbagent plan` shows it, `lbagent apply` does it"
    ]


@pytest.mark.every_haproxy
def test_a_reload_that_failed_is_told(lb: Lb) -> None:
    lb.roles.write_text(lb.roles.read_text().replace("haproxy:\n", "haproxy:\n  runtime: off\n  reload: ['false']\n"))
    with Haproxy(lb), Agent(lb) as agent:
        lb.join(member("web01", "127.0.0.11"))
        eventually(lambda: lb.idle)

        assert amiss(lb, agent) == [
            (
                "error pending: the last reload failed: false ended with 1: no output"
                ": mend it, then `lbagent apply --force`"
            )
        ]


@pytest.mark.parametrize(
    "what", ["etc/roles.yml", "etc/haproxy.cfg", "etc", "state", "state/spool", "state/members.json"]
)
def test_what_every_user_can_write_is_an_error(well: tuple[Lb, Agent], what: str) -> None:
    lb, agent = well
    path = lb.folder / what
    path.chmod(path.stat().st_mode | 0o002)

    assert amiss(lb, agent) == [
        (
            f"error permissions: /lb/{what}: every user of this host can write it (mode {path.stat().st_mode & 0o7777:04o})"
            ": chmod o-w"
        )
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_look_is_told_what_he_cannot_see(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
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
        "warning user: not run as root, and not readable for this user: /lb/etc/roles.yml, /lb/state/spool, /lb/state/members.json, /lb/state, Serf's settings: run `lbagent check` as root; nothing is said of these",
        lines[-1],
    ]


# --- Serf -----------------------------------------------------------------------------------------------------------


def test_an_agent_that_does_not_run_is_an_error(lb: Lb) -> None:
    assert [line for line in amiss(lb) if " serf: " in line] == [
        (
            "error serf: Serf agent: `serf info` failed: Error connecting to Serf agent: dial tcp RPC: connect:"
            " connection refused: start the agent, or set SERF_RPC_ADDR (RPC without it)"
        )
    ]


def test_a_serf_that_is_not_installed_is_told(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
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
        "error serf: serf: the program is not there: nothing is heard of the cluster: install Serf, or have it in PATH"
    ]


def test_who_has_no_token_is_told(well: tuple[Lb, Agent]) -> None:
    lb, agent = well

    assert amiss(lb, agent, SERF_RPC_AUTH="") == [
        (
            "error serf: SERF_RPC_AUTH: a token is needed: no sync is possible (Serf agent: "
            "`serf info` failed: Error querying agent: Authentication required): set SERF_RPC_AUTH to the agent's `rpc_auth`"
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
                    "error encryption: the cluster is not encrypted: whoever reaches it can enrol a server, pause one, or"
                    " call it failed: make a key with `serf keygen`, and set `encrypt_key` on every node"
                )
            ],
        ),
        (
            {"tags": None},
            [
                (
                    "warning role-tag: lb01: the agent has no role: the other load balancers cannot be told from any node"
                    ': write `"tags": {"role": "lb"}`'
                )
            ],
        ),
        (
            {"tags": {"role": "web"}},
            [
                (
                    "error role-tag: lb01: its role web is one that roles.yml serves: the other load balancer becomes a"
                    " server: give the load balancers a role of their own, as `lb`"
                )
            ],
        ),
        (
            {"event_handlers": [f"member-join,member-leave,user:pause={LBAGENT} handle"]},
            [
                (
                    "error handlers: serf info: lbagent is not called for member-failed, member-update, member-reap,"
                    " user:resume, query:pause, query:resume, query:lbagent-status, query:lbagent-forget: call it for all, without a filter:"
                    " `lbagent handle`"
                )
            ],
        ),
        (
            {"event_handlers": ["/nowhere/lbagent handle"]},
            [
                (
                    "error handlers: serf info: the handler '/nowhere/lbagent handle' cannot be run: '/nowhere/lbagent' is"
                    " no program in the agent's PATH: give its whole path"
                )
            ],
        ),
        ({"event_handlers": ["cat >/dev/null", f"*={LBAGENT} --state-dir=/x handle", "true"]}, []),
        (
            {"event_handlers": None},
            [
                (
                    "error handlers: serf info: no handler of the agent calls lbagent: nothing that happens is heard of"
                    ': write `"event_handlers": ["lbagent handle"]`'
                )
            ],
        ),
        (
            {"rpc_auth": None},
            [
                (
                    f"warning rpc: {AT}: every user of this host commands the agent through RPC"
                    ': write `"rpc_auth": "TOKEN"`, and give the agent SERF_RPC_AUTH=TOKEN for its handlers'
                )
            ],
        ),
        (
            {"replay_on_join": False},
            [
                (
                    f"warning replay: {AT}: no `replay_on_join`: pauses sent while the load balancer was down are lost"
                    ' without it: write `"replay_on_join": true`'
                )
            ],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_is_amiss_with_a_real_agent_is_told(lb: Lb, changed: dict[str, Any], lines: list[str]) -> None:
    with Haproxy(lb), Agent(lb, **changed) as agent:
        (lb.state / "spool").mkdir(parents=True, exist_ok=True)
        eventually(lambda: lb.idle)

        assert amiss(lb, agent, SERF_RPC_AUTH=str(agent.settings["rpc_auth"] or "")) == lines


def test_a_script_that_calls_lbagent_is_a_handler_too(lb: Lb) -> None:
    script = lb.folder / "events.sh"
    script.write_text(f"#!/bin/sh\nexec {LBAGENT} handle\n")
    script.chmod(0o755)
    with Haproxy(lb), Agent(lb, event_handlers=[str(script)]) as agent:
        lines = [line for line in checked(lb, agent)[1] if " handlers: " in line]

    assert lines == ["ok handlers: serf info: '/lb/events.sh' is called for all that lbagent needs"]


def test_handlers_that_inherit_neither_token_nor_address_are_told(lb: Lb) -> None:
    with Haproxy(lb), Agent(lb).also(SERF_RPC_AUTH="", SERF_RPC_ADDR="") as agent:
        found = [line for line in amiss(lb, agent) if " rpc: " in line]

    assert found == [
        "warning rpc: pid N: its handlers cannot ask the agent: they inherit no SERF_RPC_AUTH from it: start the agent with SERF_RPC_AUTH=TOKEN, the value of `rpc_auth`",
        "warning rpc: pid N: its handlers cannot ask the agent: they inherit no SERF_RPC_ADDR=RPC from it: start the agent with SERF_RPC_ADDR=RPC",
    ]


def test_a_handler_is_looked_for_in_the_path_of_the_agent(lb: Lb) -> None:
    (lb.folder / "elsewhere").mkdir()
    (lb.folder / "elsewhere" / "lbagent").symlink_to(LBAGENT)
    path = f"{lb.folder}/elsewhere:/usr/bin:/bin"
    with Haproxy(lb), Agent(lb, event_handlers=["lbagent handle"]).also(PATH=path) as agent:
        found = checked(lb, agent, PATH=f"{lb.bin}:/usr/sbin:/usr/bin:/bin")[1]
    with Haproxy(lb), Agent(lb, event_handlers=["lbagent handle"]).also(PATH="/usr/bin:/bin") as agent:
        missing = checked(lb, agent, PATH=f"{lb.folder}/elsewhere:{lb.bin}:/usr/sbin:/usr/bin:/bin")[1]

    assert [line for line in found if " handlers: " in line] == [
        "ok handlers: serf info: 'lbagent handle' is called for all that lbagent needs"
    ]
    assert [line for line in missing if " handlers: " in line] == [
        "error handlers: serf info: the handler 'lbagent handle' cannot be run: 'lbagent' is no program in the agent's PATH: give its whole path"
    ]


def test_an_agent_is_found_by_whatever_name_its_address_has(well: tuple[Lb, Agent]) -> None:
    lb, agent = well

    assert amiss(lb, agent, SERF_RPC_ADDR=agent.rpc.replace("127.0.0.1", "localhost")) == []


@contextlib.contextmanager
def impostor(lb: Lb, user: int, *words: str) -> Iterator[None]:
    """A process called `serf agent` with these words, and the address that is asked."""
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
    [(0, ["warning agent-files: /lb/FILE: cannot be read: not a regular file: run this as root"]), (65533, [])],
    ids=["root", "stranger"],
)
def test_what_never_ends_ends_no_check_and_of_strangers_nothing_is_read(
    lb: Lb, user: int, endless: str, lines: list[str]
) -> None:
    os.mkfifo(lb.folder / "pipe")
    (lb.folder / "zero").symlink_to("/dev/zero")

    with impostor(lb, user, f"-config-file={lb.folder}/{endless}"):
        found = [line for line in amiss(lb) if " agent-files: " in line]

    assert found == [line.replace("FILE", endless) for line in lines]


def test_a_file_that_is_too_large_for_an_agents_is_not_read(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    (agent.file.parent / "more.json").write_text(f'{{"tags": "{"x" * (1 << 20)}"}}')

    assert amiss(lb, agent) == [
        "warning agent-files: /lb/etc/serf-lb01/more.json: not read: larger than 1048576 bytes: see whether it is the agent's"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_look_at_the_agent_is_not_told_that_its_handler_is_missing(lb: Lb) -> None:
    lb.folder.chmod(0o755)
    with Haproxy(lb), Agent(lb, event_handlers=["lbagent handle", "events.sh"]) as agent:
        agent.also(f"-rpc-addr={agent.rpc}").kill()
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


def test_a_keyring_that_others_can_read_is_an_error(lb: Lb) -> None:
    keyring = lb.folder / "keyring"
    keyring.write_text(json.dumps([KEY]))
    keyring.chmod(0o644)
    with Haproxy(lb), Agent(lb, encrypt_key=None, keyring_file=str(keyring)) as agent:
        found = [line for line in amiss(lb, agent) if " key: " in line]

    assert found == [
        "error key: /lb/keyring: the key can be read by every user of this host (mode 0644): chmod 0600, and change the key"
    ]


def test_a_key_on_the_command_line_is_an_error_and_not_said(lb: Lb) -> None:
    with Haproxy(lb), Agent(lb, encrypt_key=None).also(f"-encrypt={KEY}") as agent:
        status, lines = checked(lb, agent)

    assert status == 1
    assert KEY not in "".join(lines)
    assert [line for line in lines if " key: " in line] == [
        (
            "error key: serf agent -encrypt: the key stands on the agent's command line, where every user of this host sees"
            " it: put `encrypt_key` into a file of mode 0600"
        )
    ]


def test_a_key_that_others_can_read_is_an_error(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    agent.file.chmod(0o644)

    assert amiss(lb, agent) == [
        f"error key: {AT}: the key can be read by every user of this host (mode 0644): chmod 0600, and change the key"
    ]


def test_a_file_of_the_agent_that_was_broken_since_is_told(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    (agent.file.parent / "more.json").write_text("[")

    assert [line for line in amiss(lb, agent) if " agent-files: " in line] == [
        (
            "error agent-files: /lb/etc/serf-lb01/more.json: invalid JSON: Expecting value: line 1 column 2 (char 1)"
            ": fix it: the agent does not start again with it"
        )
    ]


def test_a_handler_with_which_the_agent_would_not_start_again_is_told(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    (agent.file.parent / "more.json").write_text('{"event_handlers": ["lbagent --roles=/x handle"]}')

    assert amiss(lb, agent) == [
        (
            "error handler-spec: /lb/etc/serf-lb01/more.json: the agent does not start with the handler"
            " 'lbagent --roles=/x handle': 'lbagent --roles' is no event: write EVENT,EVENT=COMMAND without blanks;"
            " a command that holds a `=` needs `*=` in front"
        )
    ]
    again = subprocess.run(
        ["serf", "agent", f"-config-dir={agent.file.parent}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Invalid event script: Event 'lbagent --roles' invoking '/x handle'" in again.stdout + again.stderr


def test_another_load_balancer_is_told_and_one_that_failed(well: tuple[Lb, Agent]) -> None:
    lb, agent = well
    with Agent(lb, "lb02", event_handlers=None) as other:
        other.join(agent)
        eventually(lambda: agent.members().get("lb02") == "alive")
        there = [line for line in checked(lb, agent)[1] if " peers: " in line]

        other.kill()
        eventually(lambda: agent.members()["lb02"] == "failed", 30)
        failed = [line for line in amiss(lb, agent) if " peers: " in line]

    assert there == ["ok peers: serf members: 1 other load balancer there: lb02"]
    assert failed == [
        "error peers: serf members: 1 other load balancer failed: lb02: start its agent, or `serf force-leave` it"
    ]


# --- what is hostile, and what is shown -----------------------------------------------------------------------------


def test_whatever_files_and_agents_hold_is_one_printable_line(lb: Lb) -> None:
    evil = "\x1b[2J\x07evil\x9b\u202e"
    lb.text = lb.text.replace(b"    # additional", f"    # additional-{evil}-server\n    # additional".encode())
    lb.text = lb.text.replace(b"balance", f"balance{evil} \xff".encode("latin-1", "replace"))
    with Agent(lb, f"lb{evil}", event_handlers=[f"echo {evil}", f"*=lbagent{evil} handle"]) as agent:
        done = lb.run("check", env={"SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN})

    lines = done.stdout.decode().split("\n")
    assert all(line.isprintable() for line in lines)
    assert all(re.match("(ok     |warning|error  )  [a-z-]+: ", line) for line in lines[:-2])
    assert "evil" in done.stdout.decode()


def on_a_terminal(lb: Lb, **env: str) -> str:
    """What `check` shows on a terminal."""
    leader, follower = pty.openpty()
    try:
        subprocess.run([LBAGENT, "check"], env={**lb.env, **env}, stdout=follower, stderr=follower, check=False)
        os.close(follower)
        said = b""
        with contextlib.suppress(OSError):  # EIO is its end
            while piece := os.read(leader, 1 << 16):
                said += piece
        return said.decode()
    finally:
        os.close(leader)


def test_colour_is_for_terminals_whose_user_wants_it(lb: Lb) -> None:
    shown, plain, piped = on_a_terminal(lb), on_a_terminal(lb, NO_COLOR="1"), lb.run("check").stdout.decode()

    assert "\x1b[32mok     \x1b[0m  lbagent: " in shown
    assert "\x1b[31merror  \x1b[0m  serf: " in shown
    assert "\x1b" not in plain + piped


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_finding_is_tested(kind: Kind) -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.parent.rglob("test_*.py"))

    assert re.search(rf"(ok|warning|error) {kind}: ", tests)
