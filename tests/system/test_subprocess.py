"""host/commands: no command holds us up, speaks for us, or outlives its time."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lbagent.system.subprocess import ProgramResult, find_program, run_program


def shell(script: str, timeout: float = 10, **more: str) -> ProgramResult:
    """What a shell script comes to."""
    return run_program(["sh", "-c", script], timeout, environ={"PATH": os.environ["PATH"], **more})


def test_a_command_that_ends_well_is_good() -> None:
    assert run_program(["true"], 5) == ProgramResult(0, "")
    assert run_program(["true"], 5).succeeded


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", -9), ("exit 255", 255)])
def test_a_command_that_ends_badly_is_not(script: str, status: int) -> None:
    assert shell(script).status == status
    assert not shell(script).succeeded


def test_what_it_says_on_both_channels_is_kept_in_order() -> None:
    assert shell("echo one; echo two >&2; echo three").output == "one\ntwo\nthree"


def test_nothing_it_says_is_said_by_us(capfd: pytest.CaptureFixture[str]) -> None:
    shell("echo out; echo err >&2")

    assert capfd.readouterr() == ("", "")


def test_its_stdin_is_empty() -> None:
    assert shell("cat; echo end").output == "end"


def test_what_it_says_too_much_is_cut() -> None:
    assert len(shell("yes | head -c 20000000").output) <= 16 * 1024 * 1024


def test_bytes_that_are_no_text_are_no_harm() -> None:
    assert shell(r"printf 'a\377b'").output == "a\ufffdb"


def test_at_its_time_limit_a_command_ends() -> None:
    started = time.monotonic()

    result = shell("sleep 60", 0.2)

    assert result == ProgramResult(None, "sh did not end within 0.2 s")
    assert time.monotonic() - started < 3


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    shell(f"(sleep 60 & echo $! > {tmp_path}/child; wait) & wait", 0.4)

    assert _ends(int((tmp_path / "child").read_text()))


def _ends(pid: int) -> bool:
    for _ in range(100):
        if not _lives(pid):
            return True
        time.sleep(0.02)
    return False


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_daemon_that_holds_its_output_does_not_make_us_wait(tmp_path: Path) -> None:
    started = time.monotonic()

    result = shell(f"sleep 30 & echo $! > {tmp_path}/daemon; echo started")

    os.kill(int((tmp_path / "daemon").read_text()), 9)
    assert result == ProgramResult(0, "started")
    assert time.monotonic() - started < 5


def test_a_daemon_of_a_command_that_ended_in_time_lives_on(tmp_path: Path) -> None:
    shell(f"setsid sleep 30 & echo $! > {tmp_path}/daemon")

    daemon = int((tmp_path / "daemon").read_text())
    assert _lives(daemon)
    os.kill(daemon, 9)


def test_it_runs_in_the_folder_asked_for(tmp_path: Path) -> None:
    here = os.getcwd()

    assert run_program(["pwd"], 5, cwd=str(tmp_path)).output == str(tmp_path)
    assert run_program(["pwd"], 5, cwd=here).output == here
    assert os.getcwd() == here


def test_a_folder_that_is_gone_is_a_failure() -> None:
    assert not run_program(["true"], 5, cwd="/nowhere/at/all").succeeded


@pytest.mark.parametrize("folder", ["a b", "-x", "$(id)", "日本"])
def test_a_folder_is_a_word_to_nobody(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()

    assert run_program(
        ["pwd"], 5, cwd=str(tmp_path / folder), environ={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    ).output == str(tmp_path / folder)


def test_words_are_words_and_no_shell_reads_them() -> None:
    assert run_program(["printf", "%s|", "a b", "$(id)", ";", ""], 5).output == "a b|$(id)|;||"


def test_its_environment_is_the_one_given() -> None:
    assert shell("echo $LBAGENT_X$HOME", LBAGENT_X="y").output == "y"
    assert run_program(["sh", "-c", "echo $LBAGENT_X"], 5, environ={"LBAGENT_X": "z"}).output == "z"


def test_our_files_are_not_its_own(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        assert not os.get_inheritable(file.fileno())

        assert "secret" not in shell("ls -l /proc/self/fd").output


def test_signals_python_ignores_are_its_own_again() -> None:
    ignored = int(shell("grep SigIgn /proc/self/status").output.split()[-1], 16)

    assert [
        ignored >> (number - 1) & 1 for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM)
    ] == [0] * 4


def test_a_program_is_found_where_an_init_script_left_path_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert find_program("sh") in ("/usr/bin/sh", "/bin/sh")


def test_the_first_of_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "haproxy").symlink_to("/bin/true")
    (tmp_path / "sh").write_text("not executable")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert find_program("haproxy") == str(tmp_path / "haproxy")
    assert find_program("sh") != str(tmp_path / "sh")
    assert find_program(sys.executable) == sys.executable


@pytest.mark.parametrize("program", ["no-such-program-anywhere", "/no/such/program", "/etc"])
def test_a_program_that_is_not_there_is_said_so(program: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        run_program([program], 5)

    assert (error.value.strerror, error.value.filename) == ("no such program", program)


def test_a_file_that_is_no_program_is_an_os_error(tmp_path: Path) -> None:
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
def test_the_working_directory_is_no_place_for_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str | None
) -> None:
    (tmp_path / "bin").mkdir()
    for path in (tmp_path / "true", tmp_path / "bin" / "true"):
        path.symlink_to("/bin/false")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PATH") if words is None else monkeypatch.setenv("PATH", words)

    assert run_program(["true"], 5).succeeded


def test_who_never_stops_talking_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    truncate = os.ftruncate

    def noted(output: int, size: int) -> None:
        truncate(output, size)
        sizes.append(os.fstat(output).st_blocks * 512)

    monkeypatch.setattr(os, "ftruncate", noted)

    # Slowly, so that this test itself costs little.
    result = shell("while :; do head -c 1000000 /dev/zero; sleep 0.02; done", 1)

    assert result.status is None
    assert len(sizes) > 3
    assert max(sizes) < 30_000_000


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_where_we_are_told_to_end_the_command_ends_first(
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
