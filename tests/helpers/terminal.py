"""Runs a program on a pseudo-terminal: reads its screen and types keys."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyte

from tests.helpers.real_programs import PATIENCE


class Terminal:
    """One program with a terminal as stdin, stdout and stderr."""

    def __init__(self, argv: Sequence[str | Path], env: Mapping[str, str], columns: int = 80, lines: int = 40) -> None:
        """Start the program."""
        self._ours, theirs = pty.openpty()
        self._size = columns, lines
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._said = b""
        environ = {**env, "TERM": "xterm", "NO_COLOR": "1"}
        try:
            # It is the program's controlling terminal, so that Ctrl-C sends a signal.
            words = ["setsid", "--ctty", *argv]
            self._process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
        finally:
            os.close(theirs)

    @property
    def text(self) -> str:
        """The output so far, with plain line ends and without colours."""
        self._read(0)
        return re.sub(r"\x1b\[[0-9;]*m", "", self._said.decode("utf-8", "replace").replace("\r\n", "\n"))

    @property
    def raw(self) -> str:
        """The output so far, with all control sequences."""
        self._read(0)
        return self._said.decode("utf-8", "replace")

    @property
    def screen(self) -> list[str]:
        """The lines on the screen now, without empty ones at the end and without overwritten text."""
        self._read(0)
        screen = pyte.Screen(*self._size)
        pyte.ByteStream(screen).feed(self._said)
        return "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")

    def wait_for_screen(self, *lines: str) -> None:
        """Wait until the screen has exactly these lines; where a line ends with `…`, only its beginning is compared."""
        deadline = time.monotonic() + PATIENCE
        while not _matches(self.screen, lines):
            assert time.monotonic() < deadline, self.screen
            self._read(0.1)

    def wait_for(self, words: str) -> str:
        """Wait until the output contains `words`; returns the output."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.text:
            assert time.monotonic() < deadline, self.text
            self._read(0.1)
        return self.text

    def type(self, keys: str) -> None:
        """Type these keys."""
        os.write(self._ours, keys.encode())

    def wait_for_end(self) -> tuple[int, str]:
        """Wait until the program has ended; returns its exit status and complete output."""
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self._read(0.05)
        text = self.text
        self.close()
        return self._process.returncode, text

    def close(self) -> None:
        """End the program if it still runs, and close the terminal."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def _read(self, seconds: float) -> None:
        if self._ours < 0:
            return
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while select.select([self._ours], [], [], seconds)[0]:
                piece = os.read(self._ours, 1 << 16)
                if not piece:
                    return
                self._said += piece
                seconds = 0


def _matches(shown: Sequence[str], lines: Sequence[str]) -> bool:
    return len(shown) == len(lines) and all(
        one.startswith(line[:-1]) if line.endswith("…") else one == line for one, line in zip(shown, lines, strict=True)
    )
