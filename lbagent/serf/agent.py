"""The Serf agent of this load balancer, asked through the `serf` program.

SERF_RPC_ADDR and SERF_RPC_AUTH are the program's own variables; they come with the agent's environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from lbagent.host import commands

_CLOCKS = {"user": "event_time", "query": "query_time"}
_TIMEOUT = 5.0


def clocks() -> Mapping[str, int]:
    """The agent's LTimes, by clock; empty where it cannot be asked."""
    try:
        result = commands.run(["serf", "info", "-format=json"], _TIMEOUT, environ=dict(os.environ))
        said = json.loads(result.words)["serf"] if result.good else {}
        return {clock: int(said[key]) for clock, key in _CLOCKS.items() if key in said}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
