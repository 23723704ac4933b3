"""What a service says to systemd: ready, status, still alive. Without systemd it says nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import time

_PATIENCE = 1.0
"""Seconds to wait for a listener that does not listen: nothing waits for ever to be heard."""


def notify(*words: str) -> None:
    """Say `READY=1`, `STATUS=…`, `WATCHDOG=1` and the like to $NOTIFY_SOCKET, as well as can be (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
        told.settimeout(_PATIENCE)
        told.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        # Each word is a line: none may bring another.
        told.sendall("\n".join(word.replace("\n", " ") for word in words).encode("utf-8", "replace"))


def reloading() -> None:
    """Say that the service takes up its settings anew; `READY=1` says that it has."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def alive() -> None:
    """Say that the service lives, also while it starts or ends, and has work for up to half a minute more."""
    notify("WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000")


def alive_every() -> float | None:
    """Seconds within which systemd wants to hear that we live; None where it does not ask."""
    asked = os.environ.get("WATCHDOG_USEC", "")
    if not asked.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    # Half of it, as sd_watchdog_enabled(3) advises.
    return int(asked) / 2e6
