"""What the other load balancers know of pauses, asked through Serf."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from lbagent.errors import TryAgain
from lbagent.membership import pause_reports
from lbagent.membership.model import Membership
from lbagent.membership.updates import UpdateResult
from lbagent.serf import agent, agent_process
from lbagent.serf.member_list import find_peers
from lbagent.state.lock import is_locked
from lbagent.state.paths import Paths
from lbagent.system.log import Log
from lbagent.system.tuples import NamedTuple

WAITS = (1, 1)
"""Seconds that another load balancer has for its answer, each time it is asked."""

PATIENCE = 20.0
"""Seconds for all pages of all load balancers: one may know of thousands of pauses, or never come to an end."""


class Knowledge(NamedTuple):
    """What one load balancer has told."""

    by: str
    words: tuple[pause_reports.PauseReport, ...]
    whole: bool
    """Whether that is all it knows, and comes from commands alone."""


class Told(NamedTuple):
    """What the others have told."""

    all: tuple[Knowledge, ...] = ()
    """Nothing of one that knows the same as this one."""
    complete: bool = False
    """Whether every load balancer that is alive has told all it knows, or there is none."""


def ask(membership: Callable[[], Membership], say: Callable[[str], None], patience: float = PATIENCE) -> Told:
    """Ask all load balancers that are alive; `say` is called with each that does not answer. Raises TryAgain.

    `membership` is looked at after the first answers: what was heard meanwhile need not be told again.
    """
    names = [one.name for one in find_peers(agent.fetch_members(), agent.fetch_info()) if one.status == "alive"]
    deadline = time.monotonic() + patience
    pages = {name: pause_reports.parse_page(said) for name, said in _pages("", names, say).items()}
    known, complete, found = membership(), True, []
    for name in names:
        page = pages.get(name)
        if page is None:
            say(f"{name} did not tell which nodes it has paused")
            complete = False
        elif page.digest != pause_reports.digest_reports(known, int(time.time()), page.version):
            words: list[pause_reports.PauseReport] = []
            told_all = _all(name, page, deadline, words.extend, say)
            complete = told_all and complete
            found.append(Knowledge(name, tuple(words), told_all and page.whole))
    return Told(tuple(found), complete)


def join(membership: Membership, told: Told, clocks: Mapping[str, int], began: int, now: int) -> UpdateResult:
    """`membership` joined with what the others have told since `began`; both in epoch seconds."""
    causes: list[str] = []
    after = membership
    for knowledge in told.all:
        step = pause_reports.merge_reports(after, knowledge.words, knowledge.by, clocks, now)
        after = pause_reports.without_base(step.membership) if knowledge.whole else step.membership
        causes += step.causes
    # The start of the agent is compared with when the question was asked, not with when it was answered.
    return UpdateResult(after._replace(met=began) if told.complete else after, {}, tuple(causes), ())


def _all(
    name: str,
    page: pause_reports.Page,
    deadline: float,
    take: Callable[[tuple[pause_reports.PauseReport, ...]], None],
    say: Callable[[str], None],
) -> bool:
    for one in _following(name, page, deadline, say):
        if one is None:
            say(f"{name} did not tell of all nodes that it has paused")
            return False
        take(one.words)
    return True


def _following(
    name: str, page: pause_reports.Page, deadline: float, say: Callable[[str], None]
) -> Iterator[pause_reports.Page | None]:
    """The page and those after it; None in place of one that did not come."""
    yield page
    while page.more:
        if not page.words or time.monotonic() >= deadline:
            yield None
            return
        following = pause_reports.parse_page(_pages(page.words[-1].name, [name], say).get(name, ""))
        yield following
        if following is None:
            return
        page = following


def _pages(after: str, names: list[str], say: Callable[[str], None]) -> dict[str, str]:
    try:
        return agent.send_query("lbagent-status", pause_reports.ASKS.format(after=after), names, WAITS) if names else {}
    except TryAgain as error:
        say(str(error))
        return {}


# --- contact ---------------------------------------------------------------------------------------------

SILENT = 180
"""Seconds without an exchange after which `watch` no longer counts on hearing everything."""

_PATIENCE = 5.0
"""Seconds for all they tell, while events wait."""


def unbroken(membership: Membership, paths: Paths) -> bool:
    """Whether the others were asked since the agent started."""
    ago = time.time() - membership.met
    if not membership.met or ago < 0:
        return False
    running = agent_process.find_running_agent()
    if running is None:
        return ago < SILENT
    if running.process.start_time > membership.met:
        return False
    return ago < SILENT or not is_locked(paths.watch_lock)


def contact_ask(membership: Membership, log: Log) -> UpdateResult:
    """`membership` joined with what the others know; as it is where they cannot be asked."""
    now = int(time.time())
    try:
        told, clocks = ask(lambda: membership, log.info, _PATIENCE), agent.fetch_clocks()
    except TryAgain as error:
        log.info(str(error))
        return UpdateResult(membership, {}, (), ())
    return join(membership, told, clocks, now, int(time.time()))
