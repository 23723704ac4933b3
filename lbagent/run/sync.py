"""What is so now, asked of Serf and of the other load balancers: events are hints."""

from __future__ import annotations

import time
from collections.abc import Callable

from lbagent.errors import LbagentError, TryAgain
from lbagent.haproxy import config_files
from lbagent.membership import peers, sync
from lbagent.membership.model import Membership
from lbagent.membership.updates import UpdateResult
from lbagent.roles.model import Roles
from lbagent.run import exchange
from lbagent.run.engine import Engine, Learn
from lbagent.run.exchange import WAITS, Told
from lbagent.serf import agent
from lbagent.serf.member_list import find_peers
from lbagent.system.log import Log


def prepare_sync(engine: Engine, log: Log, say: Callable[[str], None], *, force: bool, record: bool = True) -> Learn:
    """What makes membership what Serf and the other load balancers know now; `say` is told who is not heard.

    The others are asked at once, without any lock: they may take their time, and what is heard meanwhile is the newer
    word. Serf's list is read later, after all events are folded. The result raises TryAgain where Serf cannot be
    asked, or knows no node of any role.
    """
    asked_at, told = int(time.time()), _told(engine, say)
    said, digest = _status_lines(engine) if record else ({}, "")

    def learn(membership: Membership, roles: Roles) -> UpdateResult:
        now = int(time.time())
        info, listing = agent.fetch_info(), agent.fetch_members()
        if record:
            store = engine.store
            here = peers.Here(now, info, digest)
            store.save_peers(peers.observed(store.load_peers(), here, find_peers(listing, info), said))
        if sync.lists_no_known_role(listing, info.name, roles):
            if not sync.knows_nobody(membership, roles):
                raise TryAgain("serf members: lists no node of any role of roles.yml; nothing is removed, try again")
            log.hint("serf members: lists no node of any role of roles.yml yet; nothing to sync")
            return UpdateResult(membership, {}, (), ())
        for refused in listing.refused:
            log.hint(refused)
        listed = sync.merge_member_list(membership, listing, info.name, now, force=force)
        joined = exchange.join(listed.membership, told, info.clocks, asked_at, now)
        return UpdateResult(joined.membership, {}, listed.causes + joined.causes, listed.warnings)

    return learn


def _status_lines(engine: Engine) -> tuple[dict[str, str], str]:
    """What each other load balancer says of itself, and the digest of the managed lines here."""
    try:
        names = [one.name for one in find_peers(agent.fetch_members(), agent.fetch_info()) if one.status == "alive"]
        document = config_files.read_config(engine.roles().haproxy).document
        said = agent.send_query("lbagent-status", "", names, WAITS) if names else {}
    except (LbagentError, OSError):
        return {}, ""
    return said, document.compute_digest() if document.has_managed_lines else "none"


def _told(engine: Engine, say: Callable[[str], None]) -> Told:
    try:
        return exchange.ask(lambda: engine.preview_membership(engine.roles()), say)
    except TryAgain:
        return Told()  # logged when Serf's list is read
    except (LbagentError, OSError):
        return Told()  # the run that wants to learn fails of it, too, and logs it
