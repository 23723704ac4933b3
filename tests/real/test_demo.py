"""`make demo` ends with status 0, no request fails, and it removes all its programs and files."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.screen import Screen
from tests.helpers.real_programs import binaries, default_binary, haproxy_release, wait_until

HERE = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.real


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files with a short name, since the path of HAProxy's socket is limited."""
    if not (shutil.which("serf") and shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")):
        pytest.skip("haproxy or serf is not installed")
    path = Path(tempfile.mkdtemp(prefix="demo-"))
    yield path
    shutil.rmtree(path)


def start_demo(folder: Path, output: Path, path: str = "") -> subprocess.Popen[bytes]:
    """Start the demo with its temporary files in `folder`, and `path` first in PATH."""
    with output.open("wb") as file:
        environ = {**os.environ, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"}
        environ["PATH"] = f"{path}:{environ['PATH']}" if path else environ["PATH"]
        return subprocess.Popen([sys.executable, "-m", "demo"], cwd=HERE, env=environ, stdout=file, stderr=file)


def find_processes(folder: Path) -> list[str]:
    """Return the command lines of processes with `folder` in their command line or environment."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                words = (process / "cmdline").read_bytes()
                text = words + (process / "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in text:
                found.append(words.decode(errors="replace"))
    return found


@pytest.mark.parametrize("version", dict.fromkeys([haproxy_release(default_binary()), [*binaries()][-1]]))
def test_the_demo_serves_every_request_and_leaves_nothing_behind(folder: Path, tmp_path: Path, version: str) -> None:
    """With the installed HAProxy, and with the newest one."""
    output, program = tmp_path / "output", tmp_path / "haproxy"
    program.symlink_to(binaries()[version])

    status = start_demo(folder, output, str(program.parent)).wait(100)

    text = output.read_text(encoding="utf-8")
    assert status == 0, text
    assert "6 changes and 0 reloads of HAProxy: 0 failed." in text
    assert [line for line in text.splitlines() if len(line) > 80 or "\x1b" in line] == []
    assert list(folder.iterdir()) == []
    assert find_processes(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start_demo(folder, tmp_path / "output")
    wait_until(lambda: list(folder.glob("*/events/[0-9]*")))

    process.send_signal(number)

    assert process.wait(30) == 130
    assert list(folder.iterdir()) == []
    assert find_processes(folder) == []


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_dumb_terminals_turn_colours_off(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Screen().show_diff("a\nb\n", "a\nc\n")
    coloured = terminal.getvalue()

    monkeypatch.setenv(variable, value)
    Screen().show_diff("a\nb\n", "a\nc\n")

    assert "\x1b[32m" in coloured
    assert "\x1b[32m" not in terminal.getvalue()[len(coloured) :]
