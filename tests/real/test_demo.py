"""`make demo` as a newcomer runs it: it ends well, no request fails, and nothing is left behind."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.screen import Screen

HERE = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.real


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of its own for temporary files, with a short name: HAProxy's socket lies in it."""
    if not (shutil.which("serf") and shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")):
        pytest.skip("no haproxy or no serf here")
    path = Path(tempfile.mkdtemp(prefix="demo-"))
    yield path
    shutil.rmtree(path)


def demo(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """The demo, running, with its temporary files in `folder`."""
    with output.open("wb") as file:
        environ = {**os.environ, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"}
        return subprocess.Popen([sys.executable, "-m", "demo"], cwd=HERE, env=environ, stdout=file, stderr=file)


def mentioning(folder: Path) -> list[str]:
    """The command lines of processes that know of `folder`."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                words = (process / "cmdline").read_bytes()
                known = words + (process / "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in known:
                found.append(words.decode(errors="replace"))
    return found


def test_the_demo_serves_every_request_and_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"

    status = demo(folder, output).wait(100)

    text = output.read_text(encoding="utf-8")
    assert status == 0, text
    assert "6 changes and 0 reloads of HAProxy: 0 failed." in text
    assert [line for line in text.splitlines() if len(line) > 80 or "\x1b" in line] == []
    assert list(folder.iterdir()) == []
    assert mentioning(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = demo(folder, tmp_path / "output")
    deadline = time.monotonic() + 30
    while not list(folder.glob("*/told/[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.05)

    process.send_signal(number)

    assert process.wait(30) == 130
    assert list(folder.iterdir()) == []
    assert mentioning(folder) == []


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colours_gets_none(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Screen().diff("a\nb\n", "a\nc\n")
    coloured = terminal.getvalue()

    monkeypatch.setenv(variable, value)
    Screen().diff("a\nb\n", "a\nc\n")

    assert "\x1b[32m" in coloured
    assert "\x1b[32m" not in terminal.getvalue()[len(coloured) :]
