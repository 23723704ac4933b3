"""Whether this load balancer has heard everything since it last asked the others; where it may not have, it asks.

Its Serf agent hears all user events while it runs. So what the others know has to be asked once after each start of the
agent; with `watch`, which asks them every minute, also where that has failed for some minutes, as in a split network.
"""

from __future__ import annotations

import time

from lbagent import exchange
from lbagent.doctor import agent_process
from lbagent.errors import TryAgain
from lbagent.fold import Folded
from lbagent.host.lock import held
from lbagent.host.log import Log
from lbagent.host.paths import Paths
from lbagent.membership import Membership
from lbagent.serf import agent

SILENT = 180
"""Seconds without an exchange after which `watch` no longer counts on hearing everything."""

_PATIENCE = 5.0
"""Seconds for all they tell, while events wait."""


def unbroken(membership: Membership, paths: Paths) -> bool:
    """Whether the others were asked since the agent started."""
    ago = time.time() - membership.met
    if not membership.met or ago < 0:
        return False
    running = agent_process.running()
    if running is None:
        return ago < SILENT
    if running.process.born > membership.met:
        return False
    return ago < SILENT or not held(paths.watch_lock)


def ask(membership: Membership, log: Log) -> Folded:
    """`membership` joined with what the others know; as it is where they cannot be asked."""
    now = int(time.time())
    try:
        told, clocks = exchange.ask(lambda: membership, log.info, _PATIENCE), agent.clocks()
    except TryAgain as error:
        log.info(str(error))
        return Folded(membership, {}, (), ())
    return exchange.join(membership, told, clocks, now, int(time.time()))
