"""Synchronisation: membership from `serf members`, and pauses from the other load balancers; events can be lost."""

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
from lbagent.run.engine import Engine, SyncMerge
from lbagent.run.exchange import QUERY_TIMEOUTS, PeerAnswers
from lbagent.serf import agent
from lbagent.serf.member_list import find_peers
from lbagent.system.log import Log


def prepare_sync(
    engine: Engine, log: Log, log_line: Callable[[str], None], *, force: bool, record: bool = True
) -> SyncMerge:
    """Return the function that merges Serf's member list and the pauses of the other load balancers into membership.

    The other load balancers are queried now, without the lock: answers take seconds, and events that arrive meanwhile
    are newer. `log_line` is called for each that does not answer. Serf's list is read by the returned function, after
    all events are applied. It raises TryAgain if Serf is not reachable, or lists no node of any role. With `record`,
    peers.json is written.
    """
    asked_at, answers = int(time.time()), _ask_peers(engine, log_line)
    status_lines, digest = _fetch_status_lines(engine) if record else ({}, "")

    def merge_sync(membership: Membership, roles: Roles) -> UpdateResult:
        now = int(time.time())
        info, listing = agent.fetch_info(), agent.fetch_members()
        if record:
            store = engine.store
            here = peers.Observer(now, info, digest)
            store.save_peers(peers.update_peers(store.load_peers(), here, find_peers(listing, info), status_lines))
        if sync.lists_no_known_role(listing, info.name, roles):
            if not sync.has_no_serving_member(membership, roles):
                raise TryAgain("serf members: no node has a role of roles.yml; nothing is removed, try again")
            log.hint("serf members: no node has a role of roles.yml yet; nothing to sync")
            return UpdateResult(membership, {}, (), ())
        for refused in listing.refused:
            log.hint(refused)
        listed = sync.merge_member_list(membership, listing, info.name, now, force=force)
        merged = exchange.merge_answers(listed.membership, answers, info.clocks, asked_at, now)
        return UpdateResult(merged.membership, {}, listed.causes + merged.causes, listed.warnings)

    return merge_sync


def _fetch_status_lines(engine: Engine) -> tuple[dict[str, str], str]:
    """Return the status line of each other load balancer, and the digest of the managed lines here."""
    try:
        names = [peer.name for peer in agent.fetch_peers() if peer.status == "alive"]
        document = config_files.read_config(engine.load_roles().haproxy).document
        status_lines = agent.send_query("lbagent-status", "", names, QUERY_TIMEOUTS) if names else {}
    except (LbagentError, OSError):
        return {}, ""
    return status_lines, document.compute_digest() if document.has_managed_lines else "none"


def _ask_peers(engine: Engine, log_line: Callable[[str], None]) -> PeerAnswers:
    try:
        return exchange.ask_peers(lambda: engine.preview_membership(engine.load_roles()), log_line)
    except TryAgain:
        return PeerAnswers()  # logged when Serf's list is read
    except (LbagentError, OSError):
        return PeerAnswers()  # the run fails with the same error, and logs it
