"""The stick tables that HAProxy's `peers` hand to the next worker at a reload, and when a worker is able to.

A worker that has just started asks for the tables itself: the other load balancers have five seconds to answer. Told to
reload before that, it hands over none of what it has learned meanwhile, and every client is a new one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from lbagent.haproxy import runtime

LONGEST = 12
"""Seconds of a worker's life after which nobody waits for it any more."""

_SECTION = re.compile(r"^0x\S+: .*\bdisabled=0 flags=0x([0-9a-f]+) ", re.MULTILINE)
_ALL_ASKED = 0b11
"""Of the flags: neither a worker before this one nor another load balancer is still to be asked."""

_ASK, _POLL = 1.0, 0.05


def waited_for(settings: Sequence[Sequence[str]]) -> bool:
    """Wait until the worker can hand its tables over; whether there was anything to wait for.

    `settings` is its `global`; who has no stats socket, or has lived for LONGEST, is not waited for.
    """
    for address in runtime.sockets(settings):
        waited = False
        try:
            while _young(address) and learning(runtime.ask(address, "show peers", _ASK)):
                waited = True
                time.sleep(_POLL)
        except OSError:
            if not waited:
                continue
        return waited
    return False


def learning(answer: str) -> bool:
    """Whether `show peers` tells of a section that is still being learned."""
    return any(int(flags, 16) & _ALL_ASKED != _ALL_ASKED for flags in _SECTION.findall(answer))


def _young(address: str) -> bool:
    uptime = runtime.facts(runtime.ask(address, "show info", _ASK)).get("Uptime_sec", "")
    return uptime.isdigit() and int(uptime) < LONGEST
