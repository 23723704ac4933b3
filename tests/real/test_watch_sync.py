"""The daemon: a new token is used at once, a failing sync is visible, and a repeated line is logged once."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbagent.system.log import Repeats
from tests.helpers.daemon import run_watch
from tests.helpers.real_programs import (
    LBAGENT,
    Haproxy,
    LoadBalancer,
    SerfAgent,
    binaries,
    clean_environment,
    member_line,
    wait_until,
)

pytestmark = pytest.mark.skipif(
    not binaries() or shutil.which("serf") is None, reason="a real haproxy and a real serf are needed"
)


def read_last_json(lb: LoadBalancer) -> dict[str, object]:
    """Return the content of last.json; empty if it is missing."""
    path = lb.state / "last.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def read_metric(lb: LoadBalancer, name: str) -> str | None:
    """Return the value of a metric without labels."""
    found = re.search(rf"^{name} (\S+)$", (lb.state / "metrics.prom").read_text(), re.MULTILINE)
    return found and found[1]


def write_env(lb: LoadBalancer, agent: SerfAgent, token: str) -> None:
    """Replace serf.env as configuration management does."""
    fresh = lb.etc / "serf.env.new"
    fresh.write_text(f"SERF_RPC_ADDR={agent.rpc}\nSERF_RPC_AUTH={token}\n")
    fresh.rename(lb.etc / "serf.env")


@pytest.fixture
def lb_with_token(tmp_path: Path) -> Iterator[tuple[LoadBalancer, SerfAgent]]:
    """A load balancer whose agent requires a token, and a serf.env with this token."""
    settings = tmp_path / "rpc.json"
    settings.write_text('{"rpc_auth": "right"}')
    token = {**clean_environment(), "SERF_RPC_AUTH": "right"}
    with (
        LoadBalancer() as lb,
        SerfAgent("lb01", "127.0.0.5", "lb", more=[f"-config-file={settings}"], env=token) as agent,
    ):
        write_env(lb, agent, "right")
        yield lb, agent


def test_a_new_token_in_serf_env_is_used_at_once(lb_with_token: tuple[LoadBalancer, SerfAgent]) -> None:
    lb, agent = lb_with_token
    write_env(lb, agent, "wrong")
    with Haproxy(lb), run_watch(lb, SERF_RPC_ADDR=""):
        wait_until(lambda: read_last_json(lb).get("sync_failing"))
        # metrics.prom is written after last.json.
        wait_until(lambda: read_metric(lb, "lbagent_last_sync_success") == "0")
        assert read_metric(lb, "lbagent_daemon_running") == "1"
        assert "authenticat" in str(read_last_json(lb)["sync_words"])

        write_env(lb, agent, "right")

        wait_until(lambda: read_last_json(lb).get("sync"))
        wait_until(lambda: read_metric(lb, "lbagent_last_sync_success") == "1")
        assert read_last_json(lb)["sync_failing"] is None
        synced = read_last_json(lb)["sync"]
        write_env(lb, agent, "stale")
        wait_until(lambda: read_last_json(lb).get("sync_failing"))
        assert read_last_json(lb)["sync"] == synced

    assert read_metric(lb, "lbagent_daemon_running") == "0"


def test_only_runs_of_the_daemon_are_its_heartbeat(lb_with_token: tuple[LoadBalancer, SerfAgent]) -> None:
    lb, _ = lb_with_token
    heartbeat = "lbagent_daemon_heartbeat_timestamp_seconds"
    lb.join(member_line("web01", "127.0.0.11"))
    before = read_metric(lb, heartbeat)
    with run_watch(lb, SERF_RPC_ADDR=""):
        wait_until(lambda: read_metric(lb, heartbeat))
    (lb.state / "last.json").write_text(json.dumps({**read_last_json(lb), "heartbeat": 1_700_000_000}))

    lb.run("apply")

    assert (before, read_metric(lb, heartbeat)) == (None, "1700000000")


def test_an_empty_new_cluster_is_not_a_failure(lb_with_token: tuple[LoadBalancer, SerfAgent]) -> None:
    lb, agent = lb_with_token
    env = {"SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": "right"}

    with Haproxy(lb):
        first = lb.run("sync", env=env)
    lb.join(member_line("web01", "127.0.0.11"))
    known = lb.run("sync", env=env)

    assert (first.returncode, first.stdout, first.stderr) == (0, b"No changes: 0 nodes, 0 lines.\n", b"")
    assert known.returncode == 75
    assert lb.managed == [lb.server("web01", "127.0.0.11")]


# --- the journal ----------------------------------------------------------------------------------------------------


class Journal:
    """The messages to the journal and to syslog in a separate mount namespace."""

    def __init__(self, folder: Path) -> None:
        """Listen on both sockets below `folder`."""
        self.entries: list[dict[str, str]] = []
        self.syslog: list[str] = []
        self._folder = folder
        self._sockets = [self._listen("journal", self._add_entry), self._listen("log", self._add_line)]

    def make_command(self, *words: object) -> list[str]:
        """Return the command line that runs a command in the namespace."""
        devices = "null zero random urandom tty ptmx"
        script = f"""
            mkdir -p {self._folder}/dev {self._folder}/run/systemd/journal
            for one in {devices}; do touch {self._folder}/dev/$one; mount --bind /dev/$one {self._folder}/dev/$one; done
            ln -sf {self._folder}/log {self._folder}/dev/log
            ln -sf {self._folder}/journal {self._folder}/run/systemd/journal/socket
            mount --bind {self._folder}/dev /dev; mount --bind {self._folder}/run /run; exec "$@"
        """
        return ["unshare", "--mount", "sh", "-ec", script, "sh", *map(str, words)]

    def close(self) -> None:
        """Close both sockets."""
        for one in self._sockets:
            one.close()

    def _listen(self, name: str, take: object) -> socket.socket:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.bind(str(self._folder / name))

        def listen() -> None:
            while True:
                try:
                    message = one.recv(1 << 16)
                except OSError:
                    return
                take(message.decode())  # type: ignore[operator]

        threading.Thread(target=listen, daemon=True).start()
        return one

    def _add_entry(self, message: str) -> None:
        self.entries.append(dict(line.partition("=")[::2] for line in message.splitlines()))

    def _add_line(self, message: str) -> None:
        self.syslog.append(message.partition("]: ")[2].rstrip("\0"))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal for one test."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare is not allowed here")
    one = Journal(tmp_path)
    yield one
    one.close()


def run_lbagent(
    lb: LoadBalancer, journal: Journal, *words: str, service: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Run `lbagent` in the namespace; as a `service` its stderr is the journal."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = os.fstat(theirs.fileno())
        env = {**lb.env, **({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"} if service else {})}
        stderr = theirs.fileno() if service else subprocess.PIPE
        argv = journal.make_command(LBAGENT, *words)
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=stderr, check=False)
        if service:
            theirs.shutdown(socket.SHUT_RDWR)
            done.stderr = ours.recv(1 << 16)
        return done


def test_a_service_logs_each_thing_once_with_fields(journal: Journal) -> None:
    with LoadBalancer() as lb:
        lb.join(member_line("web01", "127.0.0.11"))
        lb.text = lb.text.replace(b"balance ", b"balanse ")
        done = run_lbagent(lb, journal, "apply", service=True)

        assert (done.returncode, done.stderr, journal.syslog) == (4, b"", [])
        wait_until(lambda: journal.entries)
        [entry] = journal.entries
        assert entry["MESSAGE"].startswith("haproxy.cfg is invalid, not because of lbagent")
        assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"], entry["LBAGENT_EXIT_STATUS"]) == ("3", "lbagent", "4")


def test_a_run_of_a_user_logs_to_stderr_and_once_to_syslog(journal: Journal) -> None:
    with LoadBalancer() as lb:
        lb.join(member_line("web01", "127.0.0.11"))
        lb.text = lb.text.replace(b"balance ", b"balanse ")
        done = run_lbagent(lb, journal, "apply")

        assert done.returncode == 4
        wait_until(lambda: journal.syslog)
        assert done.stderr.decode() == "".join(f"lbagent: {line}\n" for line in journal.syslog)
        assert journal.entries == []


@pytest.mark.parametrize("words", [["plan"], ["check"], ["status"], ["sync", "--dry-run"]])
def test_a_command_that_changes_nothing_writes_no_journal(journal: Journal, words: list[str]) -> None:
    with LoadBalancer() as lb:
        lb.join(member_line("web01", "127.0.0.11"))
        lb.text = lb.text.replace(b"balance ", b"balanse ")
        trial = lb.folder / "trial.yml"
        trial.write_text(lb.roles.read_text().replace("port:", "prot:"))
        for given in ([], ["--roles", str(trial)]):
            run_lbagent(lb, journal, *words, *given)
        run_lbagent(lb, journal, "apply")  # which does, so that all before it has arrived

        wait_until(lambda: journal.syslog)
        assert len(journal.syslog) == 1


def test_a_repeated_line_is_logged_as_a_count_once_an_hour() -> None:
    now = 0.0
    repeats = Repeats(lambda: now)
    lines = []
    for minute in range(180):
        now = 60.0 * minute
        lines.append(repeats.next_line(f"HAProxy: not reloaded yet; again in {300 - minute} s"))

    assert [line for line in lines if line] == [
        "HAProxy: not reloaded yet; again in 300 s",
        "HAProxy: not reloaded yet; again in 240 s (repeated 60 times in the last 60 minutes)",
        "HAProxy: not reloaded yet; again in 180 s (repeated 60 times in the last 60 minutes)",
    ]
    assert repeats.next_line("another") == "another"
    now += 1000
    assert repeats.next_line("another") == "another"
