"""lbagent asks Serf through the `serf` program, finds the agent's process, and reads serf.env and the agent's files."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from pytest_mock import MockerFixture

from lbagent.errors import TryAgain
from lbagent.serf import agent
from lbagent.serf.agent import Agent, File, SerfEnv, Unreadable
from lbagent.serf.member_list import AgentInfo
from lbagent.system.processes import read_process
from lbagent.system.subprocess import ProgramResult
from tests.helpers.real_programs import free_port, wait_until

INFO = '{"agent": {"name": "lb01"}, "tags": {"role": "l.b"}, "serf": {"event_time": "7", "query_time": "9"}}'
MEMBERS = """{"members": [
    {"name": "lb01", "addr": "10.0.0.1:1", "tags": {"role": "l.b"}, "status": "alive"},
    {"name": "lb02", "addr": "10.0.0.2:1", "tags": {"role": "web,l.b"}, "status": "alive"}
]}"""

Script = Callable[[str], None]


@pytest.fixture
def serf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return a function that makes `serf` a shell script; its working directory is the folder of the test."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(body: str) -> None:
        program = tmp_path / "serf"
        program.write_text(f'#!/bin/sh\ncd {tmp_path}\necho "$@" >>asked\n{body}\n')
        program.chmod(0o755)

    return write


# --- questions ----------------------------------------------------------------------------------------------------


def test_the_agent_gives_its_members_its_clocks_and_the_other_load_balancers(serf: Script, tmp_path: Path) -> None:
    serf(f"case $1 in info) echo '{INFO}';; members) echo '{MEMBERS}';; esac")

    assert agent.fetch_info() == AgentInfo("lb01", "l.b", encrypted=False, clocks={"user": 7, "query": 9}, handlers={})
    assert agent.fetch_clocks() == {"user": 7, "query": 9}
    assert [one.name for one in agent.fetch_members().members] == ["lb01", "lb02"]
    assert [one.name for one in agent.fetch_peers()] == ["lb02"]
    assert (tmp_path / "asked").read_text().splitlines()[2:] == [
        "members -format=json",
        "info -format=json",
        r"members -format=json -tag=role=.*l\.b.*",
    ]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo 5", "Serf agent: invalid answer to `serf members`: '5' is not a JSON object"),
        ("echo refused; echo more; exit 1", "Serf agent: `serf members` failed: refused"),
    ],
)
def test_an_agent_without_a_valid_answer_is_asked_again_later(serf: Script, body: str, why: str) -> None:
    serf(body)

    with pytest.raises(TryAgain) as raised:
        agent.fetch_members()

    assert str(raised.value) == why
    assert agent.fetch_clocks() == {}


def test_serf_has_10_s_for_an_answer_and_2_s_more_than_the_query_for_those_of_nodes(mocker: MockerFixture) -> None:
    run = mocker.patch("lbagent.system.subprocess.run_program", return_value=ProgramResult(0, INFO))

    agent.fetch_info()
    agent.send_query("pause", "web01", ["lb02"], (1, 2))

    assert [call.args[1] for call in run.call_args_list] == [10, 3, 4]


def test_another_load_balancer_has_10_s_for_its_answer_to_a_command() -> None:
    assert sum(agent.COMMAND_TIMEOUTS) == 10


def test_a_host_without_serf_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbagent.system.subprocess._DEFAULT_FOLDERS", ())
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(TryAgain) as raised:
        agent.fetch_info()

    assert str(raised.value) == "serf: cannot be started: no such program; install it"


def test_serf_that_cannot_be_started_now_is_tried_again(mocker: MockerFixture) -> None:
    mocker.patch("lbagent.system.subprocess.run_program", side_effect=OSError(errno.EMFILE, "Too many open files"))

    with pytest.raises(TryAgain) as raised:
        agent.fetch_info()

    assert str(raised.value) == "serf: cannot be started: Too many open files; try again"


# --- queries ------------------------------------------------------------------------------------------------------


def test_only_nodes_without_an_answer_are_asked_again(serf: Script, tmp_path: Path) -> None:
    answers: list[tuple[str, str]] = []
    serf("""
        case $* in *node=lb02*) echo "Response from 'lb02': done";; *) echo "Response from 'lb03': queued";; esac
    """)

    found = agent.send_query("pause", "web01", ["lb02", "lb03"], (1, 2, 3), lambda *answer: answers.append(answer))

    assert found == {"lb02": "done", "lb03": "queued"}
    assert answers == [("lb02", "done"), ("lb03", "queued")]
    assert (tmp_path / "asked").read_text().splitlines() == [
        "query -no-ack -relay-factor=2 -timeout=1s -node=lb02 -node=lb03 pause web01",
        "query -no-ack -relay-factor=2 -timeout=2s -node=lb03 pause web01",
    ]


def test_a_query_ends_once_all_nodes_have_answered_and_each_answer_is_reported_once(serf: Script) -> None:
    answers: list[tuple[str, str]] = []
    serf("""
        echo "Response from 'lb02': done"
        until [ -e reported ]; do sleep 0.01; done
        printf "Response from 'lb03': queued"
        sleep 60
    """)

    def report(node: str, answer: str) -> None:
        answers.append((node, answer))
        Path(os.environ["PATH"].split(":")[0], "reported").touch()

    assert agent.send_query("pause", "web01", ["lb02", "lb03"], (20,), report) == {"lb02": "done", "lb03": "queued"}
    assert answers == [("lb02", "done"), ("lb03", "queued")]


def test_a_query_whose_program_hangs_is_sent_again_and_its_answers_count(
    serf: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_MORE", 0)
    answers: list[tuple[str, str]] = []
    serf("""
        case $* in *node=lb02*) echo "Response from 'lb02': done"; sleep 60;; esac
        echo "Response from 'lb03': queued"
    """)

    found = agent.send_query("pause", "web01", ["lb02", "lb03"], (1, 1), lambda *answer: answers.append(answer))

    assert found == {"lb02": "done", "lb03": "queued"}
    assert answers == [("lb02", "done"), ("lb03", "queued")]


def test_a_query_whose_program_always_hangs_is_a_timeout(serf: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_MORE", 0)
    serf("sleep 60")

    with pytest.raises(agent.SerfTimedOut) as raised:
        agent.send_query("pause", "web01", ["lb02"], (1, 1))

    assert str(raised.value) == "Serf agent: `serf query` did not end within 1 s"


# --- serf.env -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("SERF_RPC_AUTH=token", "token"),
        (" SERF_RPC_AUTH=token \r", "token"),
        ("SERF_RPC_AUTH='to ken'", "to ken"),
        ('SERF_RPC_AUTH="token"', "token"),
        ("SERF_RPC_AUTH=\"token'", "\"token'"),
        ('SERF_RPC_AUTH="', '"'),
        ("SERF_RPC_AUTH=XtokenX", "XtokenX"),
        ('SERF_RPC_AUTH=""', None),
        ("SERF_RPC_AUTH=", None),
        ("SERF_RPC_AUTH=a=b\nSERF_RPC_AUTH=c", "a=b"),
        ("# SERF_RPC_AUTH=token\nPATH=/x", None),
        ("# \udc83E\nSERF_RPC_AUTH=token", "token"),
    ],
)
def test_a_value_of_serf_env_is_read_as_systemd_reads_it(tmp_path: Path, line: str, value: str | None) -> None:
    environ: dict[str, str] = {}
    (tmp_path / "serf.env").write_text(line, errors="surrogateescape")

    assert SerfEnv([str(tmp_path)], environ).load() is True
    assert environ == ({} if value is None else {"SERF_RPC_AUTH": value})


def test_a_changed_serf_env_replaces_its_own_variables_only(tmp_path: Path) -> None:
    path, environ = tmp_path / "serf.env", {"SERF_RPC_ADDR": "127.0.0.1:9"}
    path.write_text("SERF_RPC_ADDR=127.0.0.1:1\nSERF_RPC_AUTH=old\n")
    env = SerfEnv([f"{tmp_path}/missing", str(tmp_path)], environ)

    assert (env.found, env.error) == ("", "")
    assert (env.load(), env.load(), env.changed) == (True, False, False)
    assert (env.found, environ) == (str(path), {"SERF_RPC_ADDR": "127.0.0.1:9", "SERF_RPC_AUTH": "old"})

    path.write_text("SERF_RPC_AUTH=new")

    assert (env.changed, env.load(), env.changed) == (True, True, False)
    assert environ == {"SERF_RPC_ADDR": "127.0.0.1:9", "SERF_RPC_AUTH": "new"}

    path.unlink()

    assert (env.load(), env.found, env.error) == (True, "", "")
    assert environ == {"SERF_RPC_ADDR": "127.0.0.1:9"}


def test_a_serf_env_that_cannot_be_read_is_an_error_and_sets_nothing(tmp_path: Path) -> None:
    path, environ = tmp_path / "serf.env", dict[str, str]()
    path.write_text("SERF_RPC_AUTH=old")
    env = SerfEnv([str(tmp_path)], environ)
    env.load()
    path.unlink()
    path.mkdir()

    assert env.load() is True
    assert env.error == f"{tmp_path}/serf.env: cannot be read: Is a directory"
    assert environ == {}

    path.rmdir()

    assert (env.changed, env.load(), env.error) == (False, False, "")


def test_serf_env_sets_the_address_and_the_token(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    (tmp_path / "serf.env").write_text("SERF_RPC_ADDR=10.0.0.1:1\nSERF_RPC_AUTH=token\nSERF_EVENT=user\n")

    SerfEnv([str(tmp_path)], environ).load()

    assert environ == {"SERF_RPC_ADDR": "10.0.0.1:1", "SERF_RPC_AUTH": "token"}


@pytest.mark.parametrize(
    ("environ", "folders"),
    [
        ({"LBAGENT_ROLES": "/b/roles.yml"}, ["/a", "/b", "/etc/lbagent"]),
        ({"LBAGENT_ROLES": ""}, ["/a", "/etc/lbagent", "/etc/lbagent"]),
    ],
)
def test_serf_env_is_beside_a_roles_yml(environ: dict[str, str], folders: list[str]) -> None:
    assert agent.list_serf_env_folders("/a/roles.yml", environ, "/etc/lbagent/roles.yml") == folders


# --- the process of the agent ---------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like `serf agent` with some files."""
    rpc = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("SERF_RPC_ADDR", rpc)
    monkeypatch.setattr(agent, "_known_agent", None)
    (tmp_path / "serf").symlink_to("/bin/sh")
    (tmp_path / "agent").write_text("read never")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/b.json").write_text('{"tags": {"role": "lb"}, "event_handlers": ["two"]}')
    (tmp_path / "conf.d/a.json").write_text(f'{{"event_handlers": ["one"], "keyring_file": "{tmp_path}/keyring"}}')
    (tmp_path / "conf.d/notes.txt").write_text('{"event_handlers": ["three"]}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "long.json").write_text("x" * ((1 << 20) + 1))
    (tmp_path / "keyring").write_text("[]")
    for name in ("keyring", "conf.d/a.json", "conf.d/b.json", "broken.json"):
        (tmp_path / name).chmod(0o600)
    files = ("-config-dir=conf.d", "-config-file", "broken.json", "-config-file=long.json", "-config-file=missing.json")
    words = [str(tmp_path / "serf"), "agent", f"-rpc-addr={rpc}", "-node=x", *files]
    with subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE) as started:
        wait_until(lambda: (one := read_process(started.pid)) is not None and one.program == "serf")
        yield started
        started.kill()


def test_the_running_agent_has_its_files_in_order_and_what_is_wrong_with_them(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    found = agent.find_running_agent()

    assert found is not None
    assert found.process.pid == process.pid
    assert found.files == [
        File(f"{tmp_path}/conf.d/a.json", (tmp_path / "conf.d/a.json").read_bytes(), 0o100600),
        File(f"{tmp_path}/conf.d/b.json", (tmp_path / "conf.d/b.json").read_bytes(), 0o100600),
        File(f"{tmp_path}/broken.json", b"{", 0o100600),
        File(f"{tmp_path}/keyring", b"", 0o100600),
    ]
    assert found.settings["event_handlers"] == ["one", "two"]
    assert found.unreadable == [
        Unreadable(f"{tmp_path}/long.json", "not read: larger than 1048576 bytes", hidden=False, broken=False),
        Unreadable(f"{tmp_path}/missing.json", "cannot be read: No such file or directory", hidden=True),
        Unreadable(
            f"{tmp_path}/broken.json",
            "invalid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
            broken=True,
        ),
    ]
    assert (found.complete, found.open) == (False, True)
    assert found._replace(unreadable=[found.unreadable[0]]).complete is True


def test_an_agent_at_another_address_is_not_asked_for(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = agent.find_start_time()
    monkeypatch.setenv("SERF_RPC_ADDR", f"127.0.0.1:{free_port()}")

    assert start == Agent(read_process(process.pid), [], {}, []).process.start_time  # type: ignore[arg-type]
    assert agent.find_start_time() is None


class FakeProcess(NamedTuple):
    """What is read of a process to find the agent."""

    user: int = 1000
    shares_network: bool | None = True
    argv: Sequence[str] = ["serf", "agent"]
    cwd: str | None = "/"


@pytest.mark.parametrize(
    ("process", "found"),
    [
        (FakeProcess(), True),
        (FakeProcess(user=0), True),
        (FakeProcess(user=1), False),
        (FakeProcess(argv=["serf", "members"]), False),
        (FakeProcess(shares_network=None), True),
        (FakeProcess(shares_network=False), False),
    ],
)
def test_only_an_agent_of_root_or_this_user_in_this_network_namespace_is_trusted(
    monkeypatch: pytest.MonkeyPatch,
    process: FakeProcess,
    found: bool,  # noqa: FBT001
) -> None:
    monkeypatch.delenv("SERF_RPC_ADDR", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("lbagent.system.processes.find_listening_users", lambda _: ())
    monkeypatch.setattr("lbagent.system.processes.find_processes", lambda _: [process])

    assert (agent.find_running_agent() is not None) is found


def test_files_of_an_agent_whose_working_directory_is_not_known_are_looked_for_in_the_root_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = FakeProcess(
        argv=["serf", "agent", "-config-file=missing/a.json", "-keyring-file=/missing/keyring"], cwd=None
    )
    monkeypatch.delenv("SERF_RPC_ADDR", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("lbagent.system.processes.find_processes", lambda _: [process])

    found = agent.find_running_agent()

    assert found is not None
    assert found.unreadable == [Unreadable("/missing/a.json", "cannot be read: No such file or directory", hidden=True)]
    assert (found.files, found.open) == ([], False)


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that run until the test ends."""
    with subprocess.Popen(["sleep", "60"]) as first, subprocess.Popen(["sleep", "60"]) as second:
        yield [first, second]
        first.kill()
        second.kill()


def test_an_agent_is_looked_for_again_only_after_its_end(
    sleepers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [one for sleeper in sleepers if (one := read_process(sleeper.pid))]
    looked_for = iter([Agent(process, [], {}, []) for process in found])
    monkeypatch.setattr(agent, "find_running_agent", lambda: next(looked_for))
    monkeypatch.setattr(agent, "_known_agent", None)

    starts = [agent.find_start_time(), agent.find_start_time()]
    sleepers[0].kill()
    sleepers[0].wait()
    starts.append(agent.find_start_time())

    assert starts == [found[0].start_time, found[0].start_time, found[1].start_time]
    assert next(looked_for, None) is None
