"""`lbagent check` reports why events have no effect: hung processes, other files, other agents, full disks."""

# ruff: noqa: E501  # expected lines are whole

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbagent.checks import serf
from lbagent.serf.agent import find_running_agent
from lbagent.serf.member_list import AgentInfo
from tests.helpers.daemon import run_watch
from tests.helpers.real_programs import LBAGENT, Haproxy, LoadBalancer, SerfAgent, binaries, member_line, wait_until
from tests.helpers.two_users import SERF
from tests.real.test_check import CFG, KEY, TOKEN, Agent
from tests.real.test_check_errors import run_check, select_kind

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not binaries() or shutil.which("serf") is None, reason="a real haproxy and a real serf are needed"
    ),
]


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer with a valid haproxy.cfg."""
    with LoadBalancer(CFG) as one:
        yield one


@contextlib.contextmanager
def run_process(*argv: str | Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that has printed a line; it is killed at the end."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, **env}) as one:
        assert one.stdout
        one.stdout.readline()
        try:
            yield one
        finally:
            one.kill()


# --- processes that hang --------------------------------------------------------------------------------------------


def test_a_stopped_process_that_holds_the_lock_is_an_error(lb: LoadBalancer) -> None:
    lb.join(member_line("web01", "127.0.0.11"))
    code = "import fcntl, sys, time; lock = open(sys.argv[1]); fcntl.flock(lock, 2); print(flush=True); time.sleep(600)"
    with run_process(sys.executable, "-c", code, lb.state / "lock") as holder:
        running = select_kind(run_check(lb)[1], "lock")
        holder.send_signal(signal.SIGSTOP)
        status, lines, _ = run_check(lb)

    assert running == []
    assert status == 1
    assert select_kind(lines, "lock") == [
        f"error lock: /lb/state/lock: pid {holder.pid} (python) holds it and is stopped by a signal; no event takes effect; run `kill -CONT {holder.pid}`, or end that process"
    ]


def test_a_stopped_daemon_is_an_error_although_its_lock_is_held(lb: LoadBalancer) -> None:
    with Haproxy(lb), run_watch(lb) as daemon:
        running = select_kind(run_check(lb)[1], "daemon")
        os.kill(daemon.pid, signal.SIGSTOP)
        status, lines, _ = run_check(lb)

    assert running == []
    assert status == 1
    assert select_kind(lines, "daemon") == [
        f"error daemon: `lbagent watch` (pid {daemon.pid}) is stopped by a signal; no event takes effect; run `kill -CONT {daemon.pid}`, or `systemctl restart lbagent`"
    ]


def test_an_event_handler_that_hangs_is_an_error_because_serf_runs_no_other_one(
    lb: LoadBalancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serf, "HANDLER_LATE", 0.0)
    with SerfAgent("lb01", "127.0.0.9", "lb", handler="exec sleep 600", env=lb.env) as agent:
        monkeypatch.setenv("SERF_RPC_ADDR", agent.rpc)
        [found] = wait_until(lambda: [*serf.check_running_handlers(find_running_agent())])
        os.kill(int(found.where.split()[1]), signal.SIGKILL)

    assert re.sub("[0-9]+ s;", "N s;", re.sub("pid [0-9]+", "pid N", found.line)) == (
        "handlers: pid N (sleep 600): this event handler has run for N s; Serf runs handlers one after another, so no event reaches lbagent; end that process, and correct its handler"
    )


# --- other files, programs and agents -------------------------------------------------------------------------------


def test_a_daemon_with_another_roles_yml_is_an_error(lb: LoadBalancer) -> None:
    other = lb.etc / "other.yml"
    shutil.copy(lb.roles, other)
    with Haproxy(lb), run_watch(lb, LBAGENT_ROLES=str(other)) as daemon:
        status, lines, _ = run_check(lb)
        candidate = run_check(lb, None, "--roles", str(other))[1]

    assert status == 1
    assert select_kind(lines, "settings") == [
        f"error settings: `lbagent watch` (pid {daemon.pid}): reads /lb/etc/other.yml, this command reads /lb/etc/roles.yml; use one `--roles` or LBAGENT_ROLES for Serf's agent, `lbagent watch` and this command"
    ]
    assert select_kind(candidate, "settings") == []


def test_a_handler_with_another_roles_yml_or_state_directory_is_an_error(lb: LoadBalancer) -> None:
    with Haproxy(lb), Agent(lb, event_handlers=[f"*={LBAGENT} --roles=other.yml handle"]) as agent:
        lines = select_kind(run_check(lb, agent)[1], "settings")

    assert len(lines) == 1
    assert " --roles=other.yml handle': reads /" in lines[0]


def test_a_handler_of_another_version_is_a_warning_and_a_broken_one_an_error(lb: LoadBalancer) -> None:
    program = lb.folder / "lbagent"
    program.write_text(f'#!/bin/sh\n[ "$1" = handle ] && exec {LBAGENT} handle\necho lbagent 0.0.9\n')
    program.chmod(0o755)
    with Haproxy(lb), Agent(lb, event_handlers=[f"{program} handle"]) as agent:
        old = run_check(lb, agent)
        program.write_text("#!/bin/sh\necho 'ModuleNotFoundError: No module named yaml' >&2\nexit 1\n")
        broken = run_check(lb, agent)

    assert [line.partition(", this command is ")[0] for line in select_kind(old[1], "handlers")] == [
        "warning handlers: serf info: Serf's handler /lb/lbagent is lbagent 0.0.9"
    ]
    assert broken[0] == 1
    assert select_kind(broken[1], "handlers") == [
        "error handlers: serf info: /lb/lbagent fails as user 0 (ended with 1: ModuleNotFoundError: No module named yaml); Serf events have no effect; install lbagent again, or fix its permissions"
    ]


def test_an_agent_without_lbagent_at_serf_rpc_addr_is_an_error(lb: LoadBalancer) -> None:
    with (
        Haproxy(lb),
        Agent(lb),
        SerfAgent("web01", "127.0.0.9", "web", more=[f"-encrypt={KEY}"]) as other,
    ):
        status, lines, _ = run_check(lb, other, SERF_RPC_AUTH="")

    assert status == 1
    assert select_kind(lines, "handlers") == [
        'error handlers: serf info: no event handler calls lbagent; Serf events have no effect; add `"event_handlers": ["lbagent handle"]` to the agent\'s settings'
    ]


def test_a_handler_that_is_not_in_serf_info_but_in_the_settings_needs_a_restart(lb: LoadBalancer) -> None:
    with Haproxy(lb), Agent(lb, event_handlers=None) as agent:
        write_settings(agent, event_handlers=[f"{LBAGENT} handle"])
        status, lines, _ = run_check(lb, agent)

    assert status == 1
    assert select_kind(lines, "handlers") == [
        "error handlers: serf info: no event handler called lbagent when the agent started, but its settings have one now; restart the agent"
    ]


def test_a_handler_that_is_not_in_the_settings_any_more_is_an_error_before_the_restart(lb: LoadBalancer) -> None:
    with Haproxy(lb), Agent(lb) as agent:
        write_settings(agent, event_handlers=["cat >/dev/null"])
        status, lines, _ = run_check(lb, agent)

    assert status == 1
    assert select_kind(lines, "handlers") == [
        'error handlers: event_handlers: the agent\'s settings have no handler for lbagent any more; from its next reload or restart, Serf events have no effect; add `"event_handlers": ["lbagent handle"]` to the agent\'s settings'
    ]


def write_settings(agent: Agent, **changed: object) -> None:
    """Change the settings file of a running agent."""
    settings = {**agent.settings, **changed}
    agent.file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def test_an_agent_of_another_host_at_serf_rpc_addr_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERF_RPC_ADDR", "192.0.2.1:7373")
    info = AgentInfo("lb02", "lb", encrypted=True, clocks={}, handlers={})

    [found] = serf.check_agent_process(None, info)

    assert (found.severity, found.text) == (
        "error",
        "the agent at SERF_RPC_ADDR=192.0.2.1:7373 runs on another host; its handlers do not call this lbagent",
    )


def test_a_haproxy_that_runs_another_file_is_named(lb: LoadBalancer) -> None:
    with Haproxy(lb):
        other = lb.etc / "other.cfg"
        other.write_bytes(lb.text)
        lb.roles.write_text(lb.roles.read_text().replace(str(lb.cfg), str(other)))
        [line] = select_kind(run_check(lb)[1], "process")
        pid = (lb.folder / "haproxy.pid").read_text().split()[0]

    assert line.startswith("error process: no HAProxy runs /lb/etc/other.cfg; server lines have no effect (")
    assert f"pid {pid} runs /lb/etc/haproxy.cfg" in line
    assert line.endswith("; set `haproxy.config` in roles.yml to the `-f` files of your HAProxy, or start it")


# --- disks ----------------------------------------------------------------------------------------------------------


def run_check_in_mounts(lb: LoadBalancer, script: str) -> list[str]:
    """Return the lines of `check` after the shell commands of `script`, in a separate mount namespace."""
    words = ["unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh"]
    if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare is not allowed here")
    done = subprocess.run([*words, LBAGENT, "check"], env=lb.env, capture_output=True, text=True, check=False)
    lines = [" ".join(line.split()) for line in done.stdout.replace(str(lb.folder), "/lb").splitlines()]
    return [line for line in lines if not line.startswith("ok ")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_is_an_error(lb: LoadBalancer) -> None:
    lb.join(member_line("web01", "127.0.0.11"))
    full = f"mount -t tmpfs -o size=64k,mode=0700 none {lb.state}"

    lines = run_check_in_mounts(lb, full)

    assert select_kind(lines, "disk") == [
        "error disk: /lb/state: 64 KiB are free; events cannot be stored; free disk space, then run `lbagent sync`"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_disk_without_inodes_is_an_error(lb: LoadBalancer) -> None:
    lb.join(member_line("web01", "127.0.0.11"))

    lines = run_check_in_mounts(lb, f"mount -t tmpfs -o size=64m,nr_inodes=1,mode=0700 none {lb.state}")

    assert select_kind(lines, "disk") == [
        "error disk: /lb/state: no free inodes; events cannot be stored; delete files on this disk"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_folder_that_the_unit_of_the_daemon_mounts_read_only_is_an_error(lb: LoadBalancer) -> None:
    (lb.state / "spool").mkdir(parents=True)
    (lb.state / "watch.lock").touch()
    code = "import fcntl, sys, time; lock = open(sys.argv[1]); fcntl.flock(lock, 2); print(flush=True); time.sleep(600)"
    script = f'mount --bind {lb.etc} {lb.etc}; mount -o remount,bind,ro {lb.etc}; exec "$@"'
    with run_process(
        "unshare", "--mount", "sh", "-ec", script, "sh", sys.executable, "-c", code, lb.state / "watch.lock"
    ) as daemon:
        lines = select_kind(run_check(lb)[1], "state")

    assert lines == [
        f"error state: /lb/etc: not writable for `lbagent watch` (pid {daemon.pid}); add it to `ReadWritePaths=` of lbagent.service: `systemctl edit lbagent`"
    ]


# --- Serf's user ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run an agent as another user")
def test_a_missing_spool_that_serfs_user_cannot_create_is_an_error(lb: LoadBalancer) -> None:
    lb.folder.chmod(0o755)
    lb.etc.chmod(0o755)
    agent = Agent(lb, snapshot_path=None)
    with agent:
        agent.kill()
        agent.file.parent.chmod(0o755)
        agent.file.chmod(0o644)
        shutil.rmtree(lb.state)
        argv = ["setpriv", f"--reuid={SERF}", f"--regid={SERF}", "--clear-groups", "--"]
        process = subprocess.Popen(
            [*argv, "serf", "agent", f"-config-dir={agent.file.parent}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**lb.env, "SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN},
        )
        try:
            wait_until(
                lambda: (
                    subprocess.run(
                        ["serf", "info"],
                        env={**os.environ, "SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN},
                        capture_output=True,
                        check=False,
                    ).returncode
                    == 0
                )
            )
            status, lines, _ = run_check(lb, agent)
        finally:
            process.terminate()
            process.wait()

    assert status == 1
    assert (
        f"error access: /lb: user {SERF}, which runs Serf's event handlers, cannot write it; no event is stored; set the group `lbagent` and the modes of /usr/lib/tmpfiles.d/lbagent.conf"
        in lines
    )


def test_the_lock_of_a_running_process_is_not_a_finding(lb: LoadBalancer) -> None:
    lb.join(member_line("web01", "127.0.0.11"))
    with (lb.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert select_kind(run_check(lb)[1], "lock") == []
