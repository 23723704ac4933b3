"""The pauses that the other load balancers know, requested by Serf queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from lbagent.errors import TryAgain
from lbagent.membership import pause_reports
from lbagent.membership.model import Membership
from lbagent.membership.updates import UpdateResult
from lbagent.serf import agent, agent_process
from lbagent.serf.member_list import find_peers
from lbagent.state.lock import is_locked
from lbagent.state.paths import Paths
from lbagent.system.log import Log

WAITS = (1, 1)
"""Seconds that another load balancer has for its answer, per attempt."""

PATIENCE = 20.0
"""Seconds for all pages of all load balancers: one may know thousands of pauses, or never stop answering."""

CONTACT_WINDOW = 180
"""Seconds without an exchange after which `watch` may have missed events."""

_PATIENCE = 5.0
"""Seconds for all answers, while events wait."""


class PeerPauses(NamedTuple):
    """The pauses that one load balancer has reported."""

    by: str
    reports: tuple[pause_reports.PauseReport, ...]
    is_complete: bool
    """Whether these are all pauses it knows, and all are known from commands."""


class PeerAnswers(NamedTuple):
    """The pauses that all other load balancers have reported."""

    by_peer: tuple[PeerPauses, ...] = ()
    """One entry per load balancer whose knowledge differs from that of this one."""
    complete: bool = False
    """Whether every load balancer that is alive has reported everything, or there is none."""


def ask_peers(
    membership: Callable[[], Membership], say: Callable[[str], None], patience: float = PATIENCE
) -> PeerAnswers:
    """Ask all load balancers that are alive. `say` is called with each failure. Raises TryAgain.

    `membership` is called after the first answers, so that pauses received meanwhile need no report.
    """
    names = [one.name for one in find_peers(agent.fetch_members(), agent.fetch_info()) if one.status == "alive"]
    deadline = time.monotonic() + patience
    pages = {name: pause_reports.parse_page(said) for name, said in _query_pages("", names, say).items()}
    known, complete, found = membership(), True, []
    for name in names:
        page = pages.get(name)
        if page is None:
            say(f"{name} did not report its pauses")
            complete = False
        elif page.digest != pause_reports.digest_reports(known, int(time.time()), page.version):
            words: list[pause_reports.PauseReport] = []
            told_all = _fetch_all_pages(name, page, deadline, words.extend, say)
            complete = told_all and complete
            found.append(PeerPauses(name, tuple(words), told_all and page.is_complete))
    return PeerAnswers(tuple(found), complete)


def merge_answers(
    membership: Membership, answers: PeerAnswers, clocks: Mapping[str, int], began: int, now: int
) -> UpdateResult:
    """Return `membership` merged with the answers to queries sent at `began`; times are in epoch seconds."""
    causes: list[str] = []
    after = membership
    for knowledge in answers.by_peer:
        step = pause_reports.merge_reports(after, knowledge.reports, knowledge.by, clocks, now)
        after = pause_reports.drop_rebuilt_pauses(step.membership) if knowledge.is_complete else step.membership
        causes += step.causes
    # `has_contact_since_start` compares the start of the agent with the time of the query, not of the answer.
    return UpdateResult(after._replace(peers_asked_at=began) if answers.complete else after, {}, tuple(causes), ())


def _fetch_all_pages(
    name: str,
    page: pause_reports.Page,
    deadline: float,
    take: Callable[[tuple[pause_reports.PauseReport, ...]], None],
    say: Callable[[str], None],
) -> bool:
    for one in _fetch_pages(name, page, deadline, say):
        if one is None:
            say(f"{name} did not report all of its pauses")
            return False
        take(one.reports)
    return True


def _fetch_pages(
    name: str, page: pause_reports.Page, deadline: float, say: Callable[[str], None]
) -> Iterator[pause_reports.Page | None]:
    """Yield the page and those after it; None in place of one that is missing."""
    yield page
    while page.more:
        if not page.reports or time.monotonic() >= deadline:
            yield None
            return
        following = pause_reports.parse_page(_query_pages(page.reports[-1].name, [name], say).get(name, ""))
        yield following
        if following is None:
            return
        page = following


def _query_pages(after: str, names: list[str], say: Callable[[str], None]) -> dict[str, str]:
    try:
        return (
            agent.send_query("lbagent-status", pause_reports.REQUEST.format(after=after), names, WAITS) if names else {}
        )
    except TryAgain as error:
        say(str(error))
        return {}


def has_contact_since_start(membership: Membership, paths: Paths) -> bool:
    """Return whether the other load balancers were asked since the Serf agent started."""
    ago = time.time() - membership.peers_asked_at
    if not membership.peers_asked_at or ago < 0:
        return False
    running = agent_process.find_running_agent()
    if running is None:
        return ago < CONTACT_WINDOW
    if running.process.start_time > membership.peers_asked_at:
        return False
    return ago < CONTACT_WINDOW or not is_locked(paths.watch_lock)


def merge_peer_pauses(membership: Membership, log: Log) -> UpdateResult:
    """Return `membership` merged with the pauses of the others; unchanged where they cannot be asked."""
    now = int(time.time())
    try:
        answers, clocks = ask_peers(lambda: membership, log.info, _PATIENCE), agent.fetch_clocks()
    except TryAgain as error:
        log.info(str(error))
        return UpdateResult(membership, {}, (), ())
    return merge_answers(membership, answers, clocks, now, int(time.time()))
