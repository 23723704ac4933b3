"""Notifications to systemd: ready, status, watchdog. Without systemd they do nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import time

_TIMEOUT = 1.0
"""Seconds to wait for a receiver whose socket is full."""


def notify(*assignments: str) -> None:
    """Send `READY=1`, `STATUS=…`, `WATCHDOG=1` and the like to $NOTIFY_SOCKET, see sd_notify(3). Errors are ignored."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(_TIMEOUT)
        sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        # Each assignment is one line: a line end in a status must not start another.
        sender.sendall("\n".join(text.replace("\n", " ") for text in assignments).encode("utf-8", "replace"))


def notify_reloading() -> None:
    """Report that the service reads its settings again; `READY=1` ends that state."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def notify_alive() -> None:
    """Trigger the watchdog, and extend a start or stop that is in progress by 30 s."""
    notify("WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000")


def get_watchdog_interval() -> float | None:
    """Return the seconds between two `WATCHDOG=1`; None where systemd expects none."""
    timeout = os.environ.get("WATCHDOG_USEC", "")
    if not timeout.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    # Half of the timeout, as sd_watchdog_enabled(3) advises.
    return int(timeout) / 2e6
