"""Synchronisation: membership from `serf members`, and pauses from the other load balancers; events can be lost.

The other load balancers report the pauses that they know in answers to Serf queries.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from lbagent.errors import LbagentError, TryAgain
from lbagent.haproxy import config_files
from lbagent.membership import peers, updates
from lbagent.membership.model import Membership
from lbagent.membership.peers import Page, PauseReport
from lbagent.membership.updates import UpdateResult
from lbagent.roles.model import Roles
from lbagent.serf import agent
from lbagent.serf.member_list import find_peers
from lbagent.settings import Paths
from lbagent.state.lock import is_locked
from lbagent.state.store import Store
from lbagent.system.log import Log

SyncMerge = Callable[[Membership, Roles], UpdateResult]
"""Merges what a sync has fetched into membership, after all events. Raises TryAgain where Serf gives no list."""

QUERY_TIMEOUTS = (1, 1)
"""Seconds that another load balancer has for its answer, per attempt, while events wait."""

PATIENT_TIMEOUTS = (1, 6)
"""The same in a sync. On a busy machine a handler takes seconds, and Serf runs handlers one after another."""

_SYNC_TIMEOUT = 20.0
"""Seconds for all pages of all load balancers: one may know thousands of pauses, or never stop answering."""

_EVENT_TIMEOUT = 5.0
"""The same while events wait."""

_CONTACT_WINDOW = 180
"""Seconds without an exchange after which `watch` may have missed events."""


def prepare_sync(
    load_roles: Callable[[], Roles],
    load_membership: Callable[[], Membership],
    store: Store | None,
    log: Log,
    log_line: Callable[[str], None],
    *,
    force: bool,
) -> SyncMerge:
    """Return the function that merges Serf's member list and the pauses of the other load balancers into membership.

    The other load balancers are queried now, without the lock: answers take seconds, and events that arrive meanwhile
    are newer. `log_line` is called for each that does not answer. Serf's list is read by the returned function, after
    all events are applied. It raises TryAgain if Serf is not reachable, or lists no node of any role. With `store`,
    peers.json is written.
    """
    asked_at, answers, status_lines, digest = int(time.time()), PeerAnswers(), dict[str, str](), ""
    # Serf's list, or the run, fails with the same error, and logs it.
    with contextlib.suppress(LbagentError, OSError):
        names = _fetch_alive_peers()
        with contextlib.suppress(LbagentError, OSError):
            answers = ask_peers(names, load_membership, log_line)
        if store:
            status_lines, digest = _fetch_status_lines(names, load_roles)

    def merge_sync(membership: Membership, roles: Roles) -> UpdateResult:
        now = int(time.time())
        info, listing = agent.fetch_info(), agent.fetch_members()
        if store:
            here = peers.Observer(now, info, digest)
            store.save_peers(peers.update_peers(store.load_peers(), here, find_peers(listing, info), status_lines))
        if updates.lists_no_known_role(listing, info.name, roles):
            if not updates.has_no_serving_member(membership, roles):
                raise TryAgain("serf members: no node has a role of roles.yml; nothing is removed, try again")
            log.hint("serf members: no node has a role of roles.yml yet; nothing to sync")
            return UpdateResult(membership, {}, (), ())
        for refused in listing.refused:
            log.hint(refused)
        listed = updates.merge_member_list(membership, listing, info.name, now, force=force)
        merged = merge_answers(listed.membership, answers, info.clocks, asked_at, now)
        return UpdateResult(merged.membership, {}, listed.causes + merged.causes, listed.warnings)

    return merge_sync


def _fetch_alive_peers() -> list[str]:
    """Return the names of the other load balancers that are alive. Raises TryAgain."""
    return [peer.name for peer in agent.fetch_peers() if peer.status == "alive"]


def _fetch_status_lines(names: Collection[str], load_roles: Callable[[], Roles]) -> tuple[dict[str, str], str]:
    """Return the status line of each of these load balancers, and the digest of the managed lines here.

    Raises TryAgain, RolesRefused, OSError.
    """
    document = config_files.read_config(load_roles().haproxy).document
    status_lines = agent.send_query("lbagent-status", "", names, QUERY_TIMEOUTS) if names else {}
    return status_lines, document.compute_digest() if document.has_managed_lines else "none"


class PeerPauses(NamedTuple):
    """The pauses that one load balancer has reported."""

    by: str
    """Its name."""
    reports: tuple[PauseReport, ...]
    is_complete: bool
    """Whether these are all pauses it knows, and all are known from commands."""


class PeerAnswers(NamedTuple):
    """The pauses that all other load balancers have reported."""

    by_peer: tuple[PeerPauses, ...] = ()
    """One entry per load balancer whose pauses differ from those of this one."""
    is_complete: bool = False
    """Whether every load balancer that is alive has reported everything, or there is none."""


def ask_peers(
    names: Sequence[str],
    load_membership: Callable[[], Membership],
    log_line: Callable[[str], None],
    timeout: float = _SYNC_TIMEOUT,
    attempts: Sequence[int] = PATIENT_TIMEOUTS,
) -> PeerAnswers:
    """Ask these load balancers. `log_line` is called with each failure.

    `load_membership` is called after the first answers, so that pauses received meanwhile need no report.
    """
    if not names:
        return PeerAnswers(is_complete=True)
    deadline = time.monotonic() + timeout
    pages = {name: peers.parse_page(text) for name, text in _query_pages("", [*names], attempts, log_line).items()}
    known, is_complete, found = load_membership(), True, []
    for name in names:
        page = pages.get(name)
        if page is None:
            log_line(f"{name} did not report its pauses")
            is_complete = False
        elif page.digest != peers.digest_reports(known, int(time.time()), page.version):
            reports, has_all = _fetch_reports(name, page, deadline, attempts, log_line)
            is_complete = is_complete and has_all
            found.append(PeerPauses(name, reports, has_all and page.is_complete))
    return PeerAnswers(tuple(found), is_complete)


def merge_answers(
    membership: Membership, answers: PeerAnswers, clocks: Mapping[str, int], began: int, now: int
) -> UpdateResult:
    """Return `membership` merged with the answers to queries sent at `began`; times are in epoch seconds."""
    causes: list[str] = []
    after = membership
    for pauses in answers.by_peer:
        step = peers.merge_reports(after, pauses.reports, pauses.by, clocks, now)
        after = peers.drop_rebuilt_pauses(step.membership) if pauses.is_complete else step.membership
        causes += step.causes
    # `has_contact_since_start` compares the start of the agent with the time of the query, not of the answer.
    return UpdateResult(after._replace(peers_asked_at=began) if answers.is_complete else after, {}, tuple(causes), ())


def _fetch_reports(
    name: str, page: Page, deadline: float, attempts: Sequence[int], log_line: Callable[[str], None]
) -> tuple[tuple[PauseReport, ...], bool]:
    """Return the reports of this page and of those after it, and whether these are all."""
    reports = list(page.reports)
    while page.more:
        following = None
        if page.reports and time.monotonic() < deadline:
            answers = _query_pages(page.reports[-1].name, [name], attempts, log_line)
            following = peers.parse_page(answers.get(name, ""))
        if following is None:
            log_line(f"{name} did not report all of its pauses")
            return tuple(reports), False
        reports += following.reports
        page = following
    return tuple(reports), True


def _query_pages(
    after: str, names: list[str], attempts: Sequence[int], log_line: Callable[[str], None]
) -> dict[str, str]:
    """Return the page of pauses after the node `after` from each of these load balancers, by name."""
    if not names:
        return {}
    try:
        return agent.send_query("lbagent-status", peers.REQUEST.format(after=after), names, attempts)
    except TryAgain as error:
        log_line(str(error))
        return {}


def has_contact_since_start(membership: Membership, paths: Paths) -> bool:
    """Return whether the other load balancers were asked since the Serf agent started."""
    ago = time.time() - membership.peers_asked_at
    if not membership.peers_asked_at or ago < 0:
        return False
    started = agent.find_start_time()
    if started is None:
        return ago < _CONTACT_WINDOW
    if started > membership.peers_asked_at:
        return False
    return ago < _CONTACT_WINDOW or not is_locked(paths.watch_lock)


def merge_peer_pauses(membership: Membership, log: Log) -> UpdateResult:
    """Return `membership` merged with the pauses of other load balancers; unchanged if Serf is not reachable."""
    now = int(time.time())
    try:
        answers, clocks = (
            ask_peers(_fetch_alive_peers(), lambda: membership, log.info, _EVENT_TIMEOUT, QUERY_TIMEOUTS),
            agent.fetch_clocks(),
        )
    except TryAgain as error:
        log.info(str(error))
        return UpdateResult(membership, {}, (), ())
    return merge_answers(membership, answers, clocks, now, int(time.time()))
