"""A program that lbagent starts has a time limit, captured output, and no effect on lbagent itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lbagent.system.subprocess import Program, ProgramResult, find_program, run_program
from tests.helpers.real_programs import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent


def shell(script: str, timeout: float = 10, **more: str) -> ProgramResult:
    """What a shell script comes to."""
    return run_program(["sh", "-c", script], timeout, environ={"PATH": os.environ["PATH"], **more})


def test_exit_status_0_is_success() -> None:
    assert run_program(["true"], 5) == ProgramResult(0, "")
    assert run_program(["true"], 5).succeeded


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", -9), ("exit 255", 255)])
def test_another_exit_status_or_a_signal_is_no_success(script: str, status: int) -> None:
    assert shell(script).status == status
    assert not shell(script).succeeded


def test_stdout_and_stderr_are_captured_in_order() -> None:
    assert shell("echo one; echo two >&2; echo three").output == "one\ntwo\nthree"


def test_its_output_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    shell("echo out; echo err >&2")

    assert capfd.readouterr() == ("", "")


def test_its_stdin_is_empty() -> None:
    assert shell("cat; echo end").output == "end"


def test_long_output_is_cut() -> None:
    assert len(shell("yes | head -c 20000000").output) <= 16 * 1024 * 1024


def test_output_that_is_not_utf_8_is_decoded() -> None:
    assert shell(r"printf 'a\377b'").output == "a\ufffdb"


def test_at_its_time_limit_a_program_is_killed() -> None:
    result = shell("sleep 60", 0.2)

    assert result == ProgramResult(None, "sh did not end within 0.2 s")


def test_its_children_are_killed_with_it(tmp_path: Path) -> None:
    shell(f"(sleep 60 & echo $! > {tmp_path}/child; wait) & wait", 0.4)

    assert _ends(int((tmp_path / "child").read_text()))


def _ends(pid: int) -> bool:
    return wait_until(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_daemon_that_keeps_its_output_open_is_not_waited_for(tmp_path: Path) -> None:
    result = shell(f"sleep 600 & echo $! > {tmp_path}/daemon; echo started", 60)

    os.kill(int((tmp_path / "daemon").read_text()), 9)
    assert result == ProgramResult(0, "started")


def test_a_daemon_that_it_started_survives(tmp_path: Path) -> None:
    shell(f"setsid sleep 30 & echo $! > {tmp_path}/daemon")

    daemon = int((tmp_path / "daemon").read_text())
    assert _lives(daemon)
    os.kill(daemon, 9)


def test_it_runs_in_the_given_directory(tmp_path: Path) -> None:
    here = os.getcwd()

    assert run_program(["pwd"], 5, cwd=str(tmp_path)).output == str(tmp_path)
    assert run_program(["pwd"], 5, cwd=here).output == here
    assert os.getcwd() == here


def test_a_missing_directory_is_a_failure() -> None:
    assert not run_program(["true"], 5, cwd="/nowhere/at/all").succeeded


@pytest.mark.parametrize("folder", ["a b", "-x", "$(id)", "日本"])
def test_a_directory_name_is_not_interpreted(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()

    assert run_program(
        ["pwd"], 5, cwd=str(tmp_path / folder), environ={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    ).output == str(tmp_path / folder)


def test_no_shell_reads_the_arguments() -> None:
    assert run_program(["printf", "%s|", "a b", "$(id)", ";", ""], 5).output == "a b|$(id)|;||"


def test_its_environment_is_the_given_one() -> None:
    assert shell("echo $LBAGENT_X$HOME", LBAGENT_X="y").output == "y"
    assert run_program(["sh", "-c", "echo $LBAGENT_X"], 5, environ={"LBAGENT_X": "z"}).output == "z"


def test_it_inherits_no_file_descriptors(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        assert not os.get_inheritable(file.fileno())

        assert "secret" not in shell("ls -l /proc/self/fd").output


def test_signals_that_python_ignores_have_their_default_action() -> None:
    ignored = int(shell("grep SigIgn /proc/self/status").output.split()[-1], 16)

    assert [
        ignored >> (number - 1) & 1 for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM)
    ] == [0] * 4


def test_a_program_in_sbin_is_found_with_a_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert find_program("sh") in ("/usr/bin/sh", "/bin/sh")


def test_the_first_program_in_path_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "haproxy").symlink_to("/bin/true")
    (tmp_path / "sh").write_text("not executable")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert find_program("haproxy") == str(tmp_path / "haproxy")
    assert find_program("sh") != str(tmp_path / "sh")
    assert find_program(sys.executable) == sys.executable


@pytest.mark.parametrize("program", ["no-such-program-anywhere", "/no/such/program", "/etc"])
def test_a_missing_program_is_named(program: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        run_program([program], 5)

    assert (error.value.strerror, error.value.filename) == ("no such program", program)


def test_a_file_that_cannot_be_executed_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"\x7fELF broken")
    (tmp_path / "broken").chmod(0o755)

    with pytest.raises(OSError, match="Exec format error"):
        run_program([str(tmp_path / "broken")], 5)


def test_no_descriptor_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        shell("echo x")
        shell("sleep 9", 0.01)

    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("words", [None, "", ":", "::/usr/bin", ".", "bin"])
def test_programs_in_the_working_directory_are_not_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str | None
) -> None:
    (tmp_path / "bin").mkdir()
    for path in (tmp_path / "true", tmp_path / "bin" / "true"):
        path.symlink_to("/bin/false")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PATH") if words is None else monkeypatch.setenv("PATH", words)

    assert run_program(["true"], 5).succeeded


def test_endless_output_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    truncate = os.ftruncate

    def noted(output: int, size: int) -> None:
        truncate(output, size)
        sizes.append(os.fstat(output).st_blocks * 512)

    monkeypatch.setattr(os, "ftruncate", noted)

    # Slowly, so that this test itself costs little.
    command = ["sh", "-c", "while :; do head -c 1000000 /dev/zero; sleep 0.02; done"]
    run_program(command, 120, enough=lambda _: len(sizes) > 2)

    assert len(sizes) > 2
    assert max(sizes) < 30_000_000


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_kills_the_program_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[BaseException]
) -> None:
    def told_to_end(*_: object) -> None:
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text().endswith("\n"):
            time.sleep(0.01)
        raise error

    monkeypatch.setattr("select.select", told_to_end)

    with pytest.raises(error):
        shell(f"sleep 60 & echo $! >{tmp_path}/child; wait")

    assert _ends(int((tmp_path / "child").read_text()))


def test_a_program_runs_beside_its_block_and_has_its_result_at_the_end(tmp_path: Path) -> None:
    with Program(["sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.01; done; echo went; exit 3"], 60) as program:
        (tmp_path / "go").touch()

        assert program.wait() == ProgramResult(3, "went")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_the_end_of_its_block_kills_a_program_and_its_children(
    tmp_path: Path, error: type[BaseException] | None
) -> None:
    child = tmp_path / "child"
    with (
        contextlib.suppress(KeyboardInterrupt, ValueError),
        Program(["sh", "-c", f"sleep 60 & echo $! >{child}; wait"], 60),
    ):
        assert wait_until(lambda: child.exists() and child.read_text().endswith("\n"))
        if error:
            raise error

    assert _ends(int(child.read_text()))


def interrupt_a_start() -> None:
    """Print the pid of a program during whose start an interrupt arrives, and the signals that are blocked after it."""
    spawn, pids = os.posix_spawn, list[int]()

    def spawn_on_a_busy_machine(*words: Any, **options: Any) -> int:  # noqa: ANN401  # those of posix_spawn
        pids.append(spawn(*words, **options))
        os.kill(os.getpid(), signal.SIGTERM)
        return pids[-1]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    os.posix_spawn = spawn_on_a_busy_machine
    signal.signal(signal.SIGTERM, interrupt)
    with pytest.raises(KeyboardInterrupt):
        shell("exec sleep 60")
    print(pids[0], len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def test_an_interrupt_that_arrives_while_the_program_starts_kills_it() -> None:
    # In a process without other threads, as a command of lbagent: a signal goes to any thread that does not block it.
    script = f"from {__name__} import interrupt_a_start; interrupt_a_start()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )

    pid, blocked = map(int, done.stdout.split())
    assert _ends(pid)
    assert blocked == 0


def test_it_starts_with_the_signals_blocked_that_its_caller_blocks() -> None:
    command = ["grep", "SigBlk", "/proc/self/status"]  # without a shell, which may unblock signals
    assert int(run_program(command, 10).output.split()[-1], 16) == 0

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        blocked = int(run_program(command, 10).output.split()[-1], 16)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])

    assert blocked == 1 << (signal.SIGUSR1 - 1)
