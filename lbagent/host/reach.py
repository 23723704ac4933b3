"""Whether somebody listens: connections tried side by side, and dropped before they are accepted."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable

Endpoint = tuple[str, int]

_AT_ONCE = 200
"""Connections tried at the same time: a process may have few descriptors."""


def silent(endpoints: Iterable[Endpoint], seconds: float) -> set[Endpoint]:
    """Those that refuse, or do not answer within the time; what there was no time for counts as answering."""
    left = sorted(set(endpoints))
    deadline = time.monotonic() + seconds
    found: set[Endpoint] = set()
    while left and time.monotonic() < deadline:
        found |= _tried(left[:_AT_ONCE], deadline)
        left = left[_AT_ONCE:]
    return found


def _tried(endpoints: Iterable[Endpoint], deadline: float) -> set[Endpoint]:
    import select  # noqa: PLC0415  # on the handler's path only where a server joins
    import socket  # noqa: PLC0415

    poll, open_, found = select.poll(), {}, set[Endpoint]()
    try:
        for address, port in endpoints:
            one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            open_[one.fileno()] = (one, (address, port))
            one.settimeout(0)
            # As HAProxy's own checks: reset before it is acknowledged, so that no server sees a client come and go.
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if one.connect_ex((address, port)) not in (0, errno.EINPROGRESS):
                found.add((address, port))
            else:
                poll.register(one, select.POLLOUT)
        waiting = {number for number, (_, endpoint) in open_.items() if endpoint not in found}
        while waiting and (rest := deadline - time.monotonic()) > 0:
            for number, _ in poll.poll(rest * 1000):
                poll.unregister(number)
                waiting.discard(number)
                if open_[number][0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    found.add(open_[number][1])
        return found | {open_[number][1] for number in waiting}
    finally:
        for one, _ in open_.values():
            one.close()
