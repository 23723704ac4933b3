"""serf.env: where the Serf agent is asked, and its token, for whoever is not started by the agent itself.

A file that root alone reads, beside roles.yml: on a command line or in a unit every user would see the token.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import MutableMapping

NAME = "serf.env"

_KEYS = ("SERF_RPC_ADDR", "SERF_RPC_AUTH")


def take_up(folder: str, environ: MutableMapping[str, str]) -> None:
    """Add what `serf.env` in `folder` says to `environ`, which wins; nothing where that file may not be read."""
    path = os.path.join(folder, NAME)
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            key, _, value = line.strip().partition("=")
            if key in _KEYS and value:
                environ.setdefault(key, value)
