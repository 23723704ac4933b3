"""Runs `lbagent watch` during a test."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers.real_programs import LBAGENT, PATIENCE, LoadBalancer, wait_until

_END = b"end of the test"


class Daemon(subprocess.Popen[bytes]):
    """The process of `lbagent watch`."""

    def __init__(self, *words: Any, **options: Any) -> None:  # noqa: ANN401  # those of Popen
        """Start it."""
        self.notices: list[bytes] = []
        """What it has sent to systemd."""
        super().__init__(*words, **options)

    @property
    def rounds(self) -> int:
        """The rounds that it has finished: it notifies systemd after each one, also after a failed one."""
        return sum(one.startswith(b"READY=1\n") for one in self.notices)


_NUMBERS = itertools.count()


@contextlib.contextmanager
def run_watch(lb: LoadBalancer, **env: str) -> Iterator[Daemon]:
    """Run `lbagent watch`; yields its process after its first round. It has no notices if `env` has NOTIFY_SOCKET."""
    path = lb.folder / f"rounds-{next(_NUMBERS)}.sock"  # a daemon that was killed keeps its own until its block ends
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(path))
        process = Daemon(
            [LBAGENT, "watch"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**lb.env, "NOTIFY_SOCKET": str(path), **env},
        )
        # The output is read, as by the journal: a full pipe would block the daemon.
        threads = [
            threading.Thread(target=process.communicate, daemon=True),
            threading.Thread(target=_listen, args=(ear, process), daemon=True),
        ]
        for one in threads:
            one.start()
        try:
            wait_until(lambda: _has_started(lb, process, counts="NOTIFY_SOCKET" not in env))
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            threads[0].join(PATIENCE)
            process.kill()
            _end_listening(path)
            for one in threads:
                one.join()
            path.unlink()


def _has_started(lb: LoadBalancer, process: Daemon, *, counts: bool) -> bool:
    return lb.idle and (process.rounds > 0 if counts else (lb.state / "metrics.prom").exists())


def _listen(ear: socket.socket, process: Daemon) -> None:
    while (notice := ear.recv(4096)) != _END:
        process.notices.append(notice)


def _end_listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        sender.send(_END)
