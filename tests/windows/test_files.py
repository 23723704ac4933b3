"""The files of windows/ follow the rules of cmd.exe, Serf and git, as far as this can be tested without Windows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.helpers.real_programs import free_port, wait_until

HERE = Path(__file__).resolve().parent.parent.parent
FOLDER = HERE / "windows"
SCRIPTS = sorted(FOLDER.glob("*.bat"))
CALLED = {"common.bat", "serf-nssm.bat"}
"""Scripts that only other scripts call."""

AGENTS = sorted(FOLDER.glob("*.json"))
PAGE = (HERE / "docs" / "reference" / "windows.md").read_text(encoding="utf-8")

named = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


def read_lines(script: Path) -> list[str]:
    """Return the lines of a script."""
    return script.read_bytes().decode("ascii").split("\r\n")


def read_commands(script: Path) -> list[str]:
    """Return the lines of a script without comments and empty lines."""
    return [line.strip() for line in read_lines(script) if line.strip() and not line.strip().lower().startswith("rem")]


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_every_file_is_ascii_with_crlf_and_nothing_else(path: Path) -> None:
    content = path.read_bytes()

    assert content.isascii()
    assert content.endswith(b"\r\n")
    assert content.count(b"\n") == content.count(b"\r") == content.count(b"\r\n")
    assert b"\t" not in content


def test_crlf_survives_a_clone(tmp_path: Path) -> None:
    if not (HERE / ".git").exists():
        pytest.skip("no clone: an export has the files as they are")
    command = ["git", "-c", "core.autocrlf=input", "clone", "-q", "--no-hardlinks", str(HERE), str(tmp_path / "clone")]
    subprocess.run(command, check=True, timeout=120)

    for path in sorted((tmp_path / "clone" / "windows").iterdir()):
        content = path.read_bytes()
        assert content.count(b"\n") == content.count(b"\r\n") > 0, path.name


@named
def test_a_script_has_echo_off_and_local_variables(script: Path) -> None:
    first, *others = read_commands(script)

    assert first == "@echo off"
    if script.name != "common.bat":  # its variables are for the calling script
        assert others[0] == "setlocal EnableExtensions DisableDelayedExpansion"


@named
def test_delayed_expansion_is_not_used(script: Path) -> None:
    assert not any("EnableDelayedExpansion" in line for line in read_commands(script))
    assert not re.search(r"!\w+!", "\n".join(read_commands(script)))


@named
def test_every_variable_is_quoted(script: Path) -> None:
    """Anything may be in it; outside quotes cmd.exe would take `&` for the end of a command.

    A number that the script itself has counted may stand bare, where cmd.exe wants one.
    """
    counted = {"%ELAPSED%", "%LIMIT%", "%LEFT%", "%SESSIONS%", "%MINUTES%", "%UNTIL%", "%RC%", "%ERRORLEVEL%"}
    for line in read_commands(script):
        outside = re.sub(r'"[^"]*"', '""', re.sub(r'%(\w+):"=\??%|%%', r"\1", line))
        found = re.findall(r"%(?:~\w*\d|[A-Za-z_]+(?::[^%]*)?%)", outside)
        assert set(found) <= counted or line == "goto %~1", line


@pytest.mark.parametrize("name", ["NAME", "ROLE", "TAGGED", "WORDS", "LB"])
def test_output_of_serf_loses_its_quotes_before_it_is_used(name: str) -> None:
    """In quotes anything is safe but a quote: of a node called `x"&calc&"`, `set "LB=%LB:~4%"` would run the middle."""
    text = "\n".join(read_commands(FOLDER / "common.bat"))

    heard = re.findall(rf'set "{name}=%%[a-c]"(?:.|\n)*?(%{name}\b..)', text)

    assert set(heard) == {f'%{name}:"'}


@named
def test_arguments_are_read_without_their_quotes(script: Path) -> None:
    for line in read_commands(script):
        assert not re.search(r"(?<!%)%\d", line), line
        assert "%*" not in line, line


@named
def test_every_path_through_a_script_ends_with_an_exit_status(script: Path) -> None:
    commands = read_commands(script)

    assert re.fullmatch(r"exit /b( \S+)?", commands[-1])
    assert not any(re.search(r"\bexit(?! /b)\b(?!s)", line) for line in commands if not line.startswith("echo")), (
        "an `exit` alone would close the operator's prompt"
    )
    assert not any("goto :eof" in line.lower() for line in commands), "it leaves the status of whatever came before"


@named
def test_a_comment_contains_nothing_that_cmd_would_interpret(script: Path) -> None:
    comments = [line for line in read_lines(script) if line.strip().startswith("rem")]

    assert [line for line in comments if re.search(r"[&|<>^%]", line)] == []


@named
def test_every_label_of_a_goto_exists_once(script: Path) -> None:
    text = "\n".join(read_commands(script))
    labels = re.findall(r"^:(\w+)$", text, re.MULTILINE)
    called = re.findall(r"\b(?:goto|call) :?(\w+)", text)
    parts = re.findall(r'call "%~dp0common\.bat" (\w+)', text)
    common = re.findall(r"^:(\w+)$", "\n".join(read_commands(FOLDER / "common.bat")), re.MULTILINE)

    assert len(labels) == len(set(labels))
    assert set(called) <= set(labels)
    assert set(parts) <= set(common)


@named
def test_a_line_is_not_longer_than_the_limit_of_cmd(script: Path) -> None:
    """A label that crosses one of cmd.exe's blocks of 512 bytes is found all the same where lines end with CRLF."""
    assert max(map(len, read_lines(script))) < 512


@named
def test_no_script_searches_for_text_of_one_windows_language(script: Path) -> None:
    for word in ("findstr", "ipconfig", "wmic", "powershell", "%DATE%", "%TIME%", "%COMPUTERNAME%", "timeout /"):
        assert not any(word in line for line in read_commands(script)), word


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name not in CALLED], ids=lambda path: path.name)
def test_every_script_has_a_usage_with_its_exit_statuses(script: Path) -> None:
    text = "\n".join(read_lines(script))
    usage = text.partition(":usage\n")[2]

    told = set(re.findall(r"^echo   (\d)  ", usage, re.MULTILINE))
    assert usage.startswith(f"echo {script.name}")
    assert told == {"0", "1", "2"}
    assert set(re.findall(r'set "RC=(\d)"', text)) | set(re.findall(r"exit /b (\d)", text)) <= told


@pytest.mark.parametrize("path", AGENTS, ids=lambda path: path.name)
def test_the_settings_of_each_role_are_complete(path: Path) -> None:
    settings = json.loads(path.read_bytes())

    assert settings == {
        "encrypt_key": "CHANGE-ME",
        "retry_join": ["CHANGE-ME", "CHANGE-ME"],
        "retry_interval": "10s",
        "tags_file": f"data/{path.stem}.tags",
        "snapshot_path": "data/snapshot",
        "rejoin_after_leave": True,
        "leave_on_terminate": True,
        "log_level": "info",
    }


def test_serf_starts_with_both_settings_files(tmp_path: Path) -> None:
    """Those that install.bat writes beside them; the whole of install.bat is run by `make test-windows`."""
    if shutil.which("serf") is None:
        pytest.skip("no serf here")
    (tmp_path / "conf").mkdir()
    (tmp_path / "data").mkdir()
    key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
    text = (FOLDER / "web.json").read_text().replace('"encrypt_key": "CHANGE-ME"', f'"encrypt_key": "{key}"')
    (tmp_path / "conf" / "agent.json").write_text(text.replace("CHANGE-ME", f"127.0.0.83:{free_port()}"))
    (tmp_path / "data" / "web.tags").write_text('{"role": "web"}\n')
    written = (FOLDER / "install.bat").read_text()
    own = dict.fromkeys(re.findall(r'echo +"(\w+)": "%%a"', written), "")
    own |= {"node_name": "web01", "rpc_auth": "token", "rpc_addr": f"127.0.0.84:{free_port()}"}
    own |= dict.fromkeys(("bind", "advertise"), f"127.0.0.84:{free_port()}")
    (tmp_path / "conf" / "node.json").write_text(json.dumps(own))

    command = ["serf", "agent", "-config-dir=conf"]
    with (
        (tmp_path / "output").open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path) as agent,
    ):
        wait_until(lambda: b"agent running" in (tmp_path / "output").read_bytes())
        asked = subprocess.run(
            ["serf", "info", f"-rpc-addr={own['rpc_addr']}", "-rpc-auth=token"],
            capture_output=True,
            text=True,
            check=False,
        )
        agent.terminate()

    assert sorted(own) == ["advertise", "bind", "node_name", "rpc_addr", "rpc_auth"]
    assert re.findall(r"\b(?:name|role|encrypted) = \S+", asked.stdout) == [
        "name = web01",
        "encrypted = true",
        "role = web",
    ]


def test_the_task_has_no_time_limit_and_restarts() -> None:
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    root = ET.parse(FOLDER / "serf-task.xml").getroot()
    found = {one.tag.removeprefix(space): (one.text or "").strip() for one in root.iter()}

    assert root.tag == f"{space}Task"
    assert {
        key: found[key]
        for key in (
            "ExecutionTimeLimit",
            "DisallowStartIfOnBatteries",
            "StopIfGoingOnBatteries",
            "MultipleInstancesPolicy",
            "UserId",
            "Interval",
            "Count",
            "WorkingDirectory",
            "Arguments",
        )
    } == {
        "ExecutionTimeLimit": "PT0S",
        "DisallowStartIfOnBatteries": "false",
        "StopIfGoingOnBatteries": "false",
        "MultipleInstancesPolicy": "IgnoreNew",
        "UserId": "S-1-5-18",
        "Interval": "PT1M",
        "Count": "999",
        "WorkingDirectory": "@DIR@",
        "Arguments": r"/d /c .\join-cluster.bat /agent",
    }
    assert "BootTrigger" in found


def test_winsw_stops_the_agent_with_a_leave_and_waits_for_it() -> None:
    root = ET.parse(FOLDER / "serf-service.xml").getroot()
    found = {one.tag: one.text for one in root}

    assert found["id"] == "serf"
    assert found["startarguments"] == r"/d /c .\join-cluster.bat /agent"
    assert found["stoparguments"] == r"/d /c .\leave-cluster.bat 5 /agent"
    assert found["stoptimeout"] == "30 sec"
    assert [one.attrib for one in root.iter("onfailure")] == [{"action": "restart", "delay": "10 sec"}]


@pytest.mark.parametrize("part", ["task", "winsw", "nssm"])
def test_uninstall_continues_where_the_service_was_removed_by_hand(part: str) -> None:
    commands = read_commands(FOLDER / "uninstall.bat")
    at = commands.index(f":{part}")

    removed, look = '"%ERRORLEVEL%"=="0" exit /b 0', 'if "%ERRORLEVEL%"=="0" set "RC=1"'
    assert [commands[at + 2], commands[at + 4], commands[at + 5]] == [f"if {removed}", look, "exit /b 0"]
    assert commands[at + 3] == f"{'schtasks /query /tn' if part == 'task' else 'sc query'} serf >nul 2>&1"


def test_a_leave_without_permission_does_not_prevent_a_restart() -> None:
    """`left` is there before the agent is asked, so that whoever starts it again cannot miss it."""
    commands = read_commands(FOLDER / "leave-cluster.bat")

    assert commands[commands.index(":not_allowed") + 1] == 'if exist "%DATA%\\left" del /q "%DATA%\\left"'


def test_nssm_gives_serf_time_to_leave_and_restarts_it() -> None:
    settings = re.findall(
        r'^"%NSSM%" set serf (\S+) (.*) >nul$', "\n".join(read_commands(FOLDER / "serf-nssm.bat")), re.MULTILINE
    )

    assert {key: value for key, value in settings if key in ("AppStopMethodConsole", "AppExit", "AppRestartDelay")} == {
        "AppStopMethodConsole": "10000",
        "AppExit": "Default Restart",
        "AppRestartDelay": "10000",
    }


def test_an_ipv6_address_that_serf_rejects_is_refused() -> None:
    text = "\n".join(read_commands(FOLDER / "install.bat"))
    looks = 'if not defined DOTTED if not "%ADDRESS:~0,1%"=="[" set "WRONG='

    assert text.index('set "WRONG="') < text.index('"tokens=2 delims=." %%x in ("%ADDRESS%")') < text.index(looks)
    assert text.index(looks) < text.index("if defined WRONG goto refused")


def test_every_variable_of_the_scripts_is_documented() -> None:
    asked = {
        name for script in SCRIPTS for name in re.findall(r"if defined (LBAGENT_\w+)", "\n".join(read_commands(script)))
    }

    assert asked
    assert [name for name in asked if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_every_file_is_documented(path: Path) -> None:
    assert re.search(rf"`{re.escape(path.name)}`", PAGE)
