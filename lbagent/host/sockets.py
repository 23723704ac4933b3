"""The kernel's table of TCP connections, as /proc shows it."""

from __future__ import annotations

import contextlib
import ipaddress
import sys
from collections import Counter

_ESTABLISHED = "01"
_REMOTE, _STATE = 2, 3


def established() -> Counter[tuple[str, int]]:
    """How many connections are established from here, by remote address and port."""
    found: Counter[str] = Counter()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            next(file)
            rows = (line.split(None, _STATE + 1) for line in file)
            found.update(row[_REMOTE] for row in rows if row[_STATE] == _ESTABLISHED)
    return Counter({_endpoint(remote): count for remote, count in found.items()})


def _endpoint(remote: str) -> tuple[str, int]:
    address, port = remote.split(":")
    # Words of 32 bits, as numbers of this machine.
    words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
    parsed = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed), int(port, 16)
