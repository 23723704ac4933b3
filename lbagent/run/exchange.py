"""The pauses that the other load balancers know, requested by Serf queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lbagent.errors import TryAgain
from lbagent.membership import pause_reports
from lbagent.membership.model import Membership
from lbagent.membership.pause_reports import Page, PauseReport
from lbagent.membership.updates import UpdateResult
from lbagent.serf import agent, agent_process
from lbagent.state.lock import is_locked
from lbagent.state.paths import Paths
from lbagent.system.log import Log

QUERY_TIMEOUTS = (1, 1)
"""Seconds that another load balancer has for its answer, per attempt."""

_SYNC_TIMEOUT = 20.0
"""Seconds for all pages of all load balancers: one may know thousands of pauses, or never stop answering."""

_EVENT_TIMEOUT = 5.0
"""The same while events wait."""

_CONTACT_WINDOW = 180
"""Seconds without an exchange after which `watch` may have missed events."""


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
    load_membership: Callable[[], Membership], log_line: Callable[[str], None], timeout: float = _SYNC_TIMEOUT
) -> PeerAnswers:
    """Ask all load balancers that are alive. `log_line` is called with each failure. Raises TryAgain.

    `load_membership` is called after the first answers, so that pauses received meanwhile need no report.
    """
    names = [peer.name for peer in agent.fetch_peers() if peer.status == "alive"]
    deadline = time.monotonic() + timeout
    pages = {name: pause_reports.parse_page(text) for name, text in _query_pages("", names, log_line).items()}
    known, is_complete, found = load_membership(), True, []
    for name in names:
        page = pages.get(name)
        if page is None:
            log_line(f"{name} did not report its pauses")
            is_complete = False
        elif page.digest != pause_reports.digest_reports(known, int(time.time()), page.version):
            reports, has_all = _fetch_reports(name, page, deadline, log_line)
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
        step = pause_reports.merge_reports(after, pauses.reports, pauses.by, clocks, now)
        after = pause_reports.drop_rebuilt_pauses(step.membership) if pauses.is_complete else step.membership
        causes += step.causes
    # `has_contact_since_start` compares the start of the agent with the time of the query, not of the answer.
    return UpdateResult(after._replace(peers_asked_at=began) if answers.is_complete else after, {}, tuple(causes), ())


def _fetch_reports(
    name: str, page: Page, deadline: float, log_line: Callable[[str], None]
) -> tuple[tuple[PauseReport, ...], bool]:
    """Return the reports of this page and of those after it, and whether these are all."""
    reports = list(page.reports)
    while page.more:
        following = None
        if page.reports and time.monotonic() < deadline:
            answers = _query_pages(page.reports[-1].name, [name], log_line)
            following = pause_reports.parse_page(answers.get(name, ""))
        if following is None:
            log_line(f"{name} did not report all of its pauses")
            return tuple(reports), False
        reports += following.reports
        page = following
    return tuple(reports), True


def _query_pages(after: str, names: list[str], log_line: Callable[[str], None]) -> dict[str, str]:
    """Return the page of pauses after the node `after` from each of these load balancers, by name."""
    if not names:
        return {}
    try:
        return agent.send_query("lbagent-status", pause_reports.REQUEST.format(after=after), names, QUERY_TIMEOUTS)
    except TryAgain as error:
        log_line(str(error))
        return {}


def has_contact_since_start(membership: Membership, paths: Paths) -> bool:
    """Return whether the other load balancers were asked since the Serf agent started."""
    ago = time.time() - membership.peers_asked_at
    if not membership.peers_asked_at or ago < 0:
        return False
    running = agent_process.find_running_agent()
    if running is None:
        return ago < _CONTACT_WINDOW
    if running.process.start_time > membership.peers_asked_at:
        return False
    return ago < _CONTACT_WINDOW or not is_locked(paths.watch_lock)


def merge_peer_pauses(membership: Membership, log: Log) -> UpdateResult:
    """Return `membership` merged with the pauses of other load balancers; unchanged if Serf is not reachable."""
    now = int(time.time())
    try:
        answers, clocks = ask_peers(lambda: membership, log.info, _EVENT_TIMEOUT), agent.fetch_clocks()
    except TryAgain as error:
        log.info(str(error))
        return UpdateResult(membership, {}, (), ())
    return merge_answers(membership, answers, clocks, now, int(time.time()))
