"""What is so now, asked of Serf and of the other load balancers: events are hints."""

from __future__ import annotations

import time
from collections.abc import Iterator

from lbagent import accord, census
from lbagent.engine import Engine, Learn
from lbagent.errors import TryAgain
from lbagent.fold import Folded
from lbagent.host.log import Log
from lbagent.membership import Membership
from lbagent.roles import Roles
from lbagent.serf import agent
from lbagent.serf.listing import others

_WAITS = (1, 1)
"""Seconds that another load balancer may take to tell what it knows, each time it is asked."""

_PAGES = 200
"""Beyond the pauses of 3,000 nodes somebody is making them up."""

Told = list[tuple[str, list[accord.Word]]]
"""By load balancer."""


def truth(engine: Engine, log: Log, *, force: bool) -> Learn:
    """What makes membership what Serf and the other load balancers know now.

    The others are asked at once, without any lock: they may take their time, and what is heard meanwhile is the newer
    word. Serf's list is read later, after all events are folded. The result raises TryAgain where Serf cannot be
    asked, or knows no node of any role.
    """
    told = _told(engine, log)

    def learn(membership: Membership, roles: Roles) -> Folded:
        now = int(time.time())
        info, listing = agent.info(), agent.members()
        if census.tells_nothing(listing, info.name, roles):
            raise TryAgain("serf members names no node of any role of roles.yml: nothing is removed, try again")
        for refused in listing.refused:
            log.info(refused)
        steps = [census.taken(membership, listing, info.name, now, force=force)]
        for by, words in told:
            steps.append(accord.agreed(steps[-1].membership, words, by, info.clocks, now))
        causes = tuple(cause for step in steps for cause in step.causes)
        return Folded(steps[-1].membership, {}, causes, steps[0].warnings)

    return learn


def _told(engine: Engine, log: Log) -> Told:
    try:
        names = [one.name for one in others(agent.members(), agent.info()) if one.status == "alive"]
        pages = {name: accord.read(said) for name, said in _asked("pauses", names).items()}
    except TryAgain:
        return []  # said when Serf's list cannot be read either
    for name in names:
        if pages.get(name) is None:
            log.info(f"{name} did not tell which nodes it has paused")
    known = accord.digest(engine.foreseen(engine.roles()), int(time.time()))
    differing = {name: page for name, page in pages.items() if page and page.digest != known}
    return [(name, list(_all(name, page))) for name, page in differing.items()]


def _all(name: str, page: accord.Page | None) -> Iterator[accord.Word]:
    for _ in range(_PAGES):
        if page is None:
            return
        yield from page.words
        if not (page.more and page.words):
            return
        page = accord.read(_asked(f"pauses after={page.words[-1].name}", [name]).get(name, ""))


def _asked(payload: str, names: list[str]) -> dict[str, str]:
    return agent.query("lbagent-status", payload, names, _WAITS) if names else {}
