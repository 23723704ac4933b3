"""What is so now, asked of Serf and of the other load balancers: events are hints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from lbagent import accord, census, peers, scene
from lbagent.engine import Engine, Learn
from lbagent.errors import LbagentError, TryAgain
from lbagent.fold import Folded
from lbagent.host.log import Log
from lbagent.membership import Membership
from lbagent.roles import Roles
from lbagent.serf import agent
from lbagent.serf.listing import others

_WAITS = (1, 1)
"""Seconds that another load balancer may take to tell what it knows, each time it is asked."""

_PATIENCE = 10.0
"""Seconds for all that they tell: thousands of pauses, or one who does not come to an end."""

Told = list[tuple[str, list[accord.Word]]]
"""By load balancer."""


def truth(engine: Engine, log: Log, say: Callable[[str], None], *, force: bool, record: bool = True) -> Learn:
    """What makes membership what Serf and the other load balancers know now; `say` is told who is not heard.

    The others are asked at once, without any lock: they may take their time, and what is heard meanwhile is the newer
    word. Serf's list is read later, after all events are folded. The result raises TryAgain where Serf cannot be
    asked, or knows no node of any role.
    """
    told = _told(engine, say)
    said, digest = _status_lines(engine) if record else ({}, "")

    def learn(membership: Membership, roles: Roles) -> Folded:
        now = int(time.time())
        info, listing = agent.info(), agent.members()
        if record:
            store = engine.store
            here = peers.Here(now, info, digest)
            store.keep_peers(peers.observed(store.peers(), here, others(listing, info), said))
        if census.tells_nothing(listing, info.name, roles):
            if not census.knows_nobody(membership, roles):
                raise TryAgain("serf members: lists no node of any role of roles.yml; nothing is removed, try again")
            log.hint("serf members: lists no node of any role of roles.yml yet; nothing to sync")
            return Folded(membership, {}, (), ())
        for refused in listing.refused:
            log.hint(refused)
        steps = [census.taken(membership, listing, info.name, now, force=force)]
        for by, words in told:
            steps.append(accord.agreed(steps[-1].membership, words, by, info.clocks, now))
        causes = tuple(cause for step in steps for cause in step.causes)
        return Folded(steps[-1].membership, {}, causes, steps[0].warnings)

    return learn


def _status_lines(engine: Engine) -> tuple[dict[str, str], str]:
    """What each other load balancer says of itself, and the digest of the managed lines here."""
    try:
        names = [one.name for one in others(agent.members(), agent.info()) if one.status == "alive"]
        document = scene.look(engine.roles().haproxy).document
        said = agent.query("lbagent-status", "", names, _WAITS) if names else {}
    except (LbagentError, OSError):
        return {}, ""
    return said, document.digest() if document.serves else "none"


def _told(engine: Engine, say: Callable[[str], None]) -> Told:
    try:
        names = [one.name for one in others(agent.members(), agent.info()) if one.status == "alive"]
    except TryAgain:
        return []  # said when Serf's list is read
    pages = {name: accord.read(said) for name, said in _asked("pauses", names, say).items()}
    try:
        known = accord.digest(engine.foreseen(engine.roles()), int(time.time()))
    except (LbagentError, OSError):
        return []  # the run that wants to learn fails of it, too, and says so
    deadline, found = time.monotonic() + _PATIENCE, []
    for name in names:
        page = pages.get(name)
        if page is None:
            say(f"{name} did not tell which nodes it has paused")
        elif page.digest != known:
            found.append((name, list(_all(name, page, deadline, say))))
    return found


def _all(name: str, page: accord.Page, deadline: float, say: Callable[[str], None]) -> Iterator[accord.Word]:
    while page.words:
        yield from page.words
        if not page.more:
            return
        said = _asked(f"pauses after={page.words[-1].name}", [name], say) if time.monotonic() < deadline else {}
        after = accord.read(said.get(name, ""))
        if after is None:
            say(f"{name} did not tell of all nodes that it has paused")
            return
        page = after


def _asked(payload: str, names: list[str], say: Callable[[str], None]) -> dict[str, str]:
    try:
        return agent.query("lbagent-status", payload, names, _WAITS) if names else {}
    except TryAgain as error:
        say(str(error))
        return {}
