"""Synchronisation with Serf and the other load balancers: events are hints, their answers are the truth."""

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
from lbagent.run.exchange import WAITS, PeerAnswers
from lbagent.serf import agent
from lbagent.serf.member_list import find_peers
from lbagent.system.log import Log


def prepare_sync(engine: Engine, log: Log, say: Callable[[str], None], *, force: bool, record: bool = True) -> Learn:
    """Return the function that updates membership from Serf and the other load balancers.

    `say` is called with each load balancer that does not answer. The others are asked at once, without any lock:
    answers may take seconds, and events that arrive meanwhile are newer. Serf's list is read later, after all events
    are applied. The result raises TryAgain where Serf cannot be asked, or lists no node of any role.
    """
    asked_at, answers = int(time.time()), _ask_peers(engine, say)
    said, digest = _fetch_status_lines(engine) if record else ({}, "")

    def learn(membership: Membership, roles: Roles) -> UpdateResult:
        now = int(time.time())
        info, listing = agent.fetch_info(), agent.fetch_members()
        if record:
            store = engine.store
            here = peers.Observer(now, info, digest)
            store.save_peers(peers.update_peers(store.load_peers(), here, find_peers(listing, info), said))
        if sync.lists_no_known_role(listing, info.name, roles):
            if not sync.has_no_serving_member(membership, roles):
                raise TryAgain("serf members: no node has a role of roles.yml; nothing is removed, try again")
            log.hint("serf members: no node has a role of roles.yml yet; nothing to sync")
            return UpdateResult(membership, {}, (), ())
        for refused in listing.refused:
            log.hint(refused)
        listed = sync.merge_member_list(membership, listing, info.name, now, force=force)
        joined = exchange.merge_answers(listed.membership, answers, info.clocks, asked_at, now)
        return UpdateResult(joined.membership, {}, listed.causes + joined.causes, listed.warnings)

    return learn


def _fetch_status_lines(engine: Engine) -> tuple[dict[str, str], str]:
    """Return the status line of each other load balancer, and the digest of the managed lines here."""
    try:
        names = [one.name for one in find_peers(agent.fetch_members(), agent.fetch_info()) if one.status == "alive"]
        document = config_files.read_config(engine.roles().haproxy).document
        said = agent.send_query("lbagent-status", "", names, WAITS) if names else {}
    except (LbagentError, OSError):
        return {}, ""
    return said, document.compute_digest() if document.has_managed_lines else "none"


def _ask_peers(engine: Engine, say: Callable[[str], None]) -> PeerAnswers:
    try:
        return exchange.ask_peers(lambda: engine.preview_membership(engine.roles()), say)
    except TryAgain:
        return PeerAnswers()  # logged when Serf's list is read
    except (LbagentError, OSError):
        return PeerAnswers()  # the run fails with the same error, and logs it
