"""A program on a pseudo-terminal: what a person would see, and what they type."""

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

from tests.helpers.real_programs import PATIENCE


class Terminal:
    """One program with a terminal as stdin, stdout and stderr."""

    def __init__(self, argv: Sequence[str | Path], env: Mapping[str, str], columns: int = 80, lines: int = 40) -> None:
        """The program runs at once."""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._said = b""
        environ = {**env, "TERM": "xterm", "NO_COLOR": "1"}
        try:
            self._process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
        finally:
            os.close(theirs)

    @property
    def text(self) -> str:
        """What it has printed so far, with plain line ends and without colours."""
        self._read(0)
        return re.sub(r"\x1b\[[0-9;]*m", "", self._said.decode("utf-8", "replace").replace("\r\n", "\n"))

    def wait_for(self, words: str) -> str:
        """What it has printed once `words` are among it."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.text:
            assert time.monotonic() < deadline, self.text
            self._read(0.1)
        return self.text

    def type(self, keys: str) -> None:
        """Type these keys."""
        os.write(self._ours, keys.encode())

    def end(self) -> tuple[int, str]:
        """Wait until it has ended; its exit status, and all that it printed."""
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self._read(0.05)
        text = self.text
        self.close()
        return self._process.returncode, text

    def close(self) -> None:
        """End the program where it runs on, and let the terminal go."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            os.close(self._ours)

    def _read(self, seconds: float) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other side any more
            while select.select([self._ours], [], [], seconds)[0]:
                piece = os.read(self._ours, 1 << 16)
                if not piece:
                    return
                self._said += piece
                seconds = 0
