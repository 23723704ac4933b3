"""Commands, from their records in the spool to what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lbagent.errors import LbagentError, NotStored
from lbagent.membership.updates import DONE
from lbagent.run.engine import Engine
from lbagent.run.queue import DrainLoop, explain_waiting_event, store_event
from lbagent.run.replies import QUEUED, CommandRun, format_failure, format_reply
from lbagent.run.transaction import RunOptions
from lbagent.serf.events import TYPED, Command
from lbagent.serf.raw_event import RawEvent
from lbagent.state import answers
from lbagent.state.lock import acquire_lock, is_locked, may_lock
from lbagent.system.log import Log, format_error

Order = tuple[RawEvent, Command]
"""A command, and the event that it came with."""


def obeyed(raw: RawEvent, command: Command, engine: Engine, log: Log, wait: float) -> str:
    """What came of a command, in at most about `wait` seconds and the time of one run."""
    [words] = obey([(raw, command)], engine, log, wait)
    return words


def obey(
    orders: Sequence[Order], engine: Engine, log: Log, wait: float, allow: Callable[[], None] | None = None
) -> list[str]:
    """What came of these commands, in one run, in at most about `wait` seconds and the time of that run.

    `allow` is called before any of them is stored, while no other run can change anything; what it raises is raised.
    """
    rounds = DrainLoop(engine.spool, log)
    mine = may_lock(engine.paths.lock)
    if orders[0][0].kind == TYPED and not mine:
        return [f"refused: this user may not write {engine.paths.lock}: as root"] * len(orders)
    if not mine:
        return [_handed_on(raw, engine, log, wait) for raw, _ in orders]
    if allow is None:
        refused = _stored([raw for raw, _ in orders], engine, log)
        if refused:
            return refused
    try:
        with acquire_lock(engine.paths.lock, wait) as had:
            if allow is not None:
                allow()
                if refused := _stored([raw for raw, _ in orders], engine, log):
                    return refused
            return _applied(orders, engine, log, rounds) if had else [QUEUED] * len(orders)
    finally:
        # What came meanwhile found the lock busy, and no other run may come for hours. It costs the asker that time.
        _more(rounds, engine, log)


def is_confirmation(words: str) -> bool:
    """Whether the words of `obeyed`, said here or by another load balancer, are a confirmation."""
    return words.split(",", maxsplit=1)[0] == DONE


def _stored(raws: Sequence[RawEvent], engine: Engine, log: Log) -> list[str]:
    """Put the commands into the spool; the answers where that fails."""
    try:
        for raw in raws:
            try:
                store_event(raw, engine.paths)
            except NotStored as error:
                raise NotStored(f"{error}{engine.withdraw_unstored(raw=raw)}") from error
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        return [f"refused: {format_error(error)}"] * len(raws)
    return []


def _applied(orders: Sequence[Order], engine: Engine, log: Log, rounds: DrainLoop) -> list[str]:
    rounds.mark_seen()
    outcome, failed = None, None
    try:
        outcome = engine.run(RunOptions())
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        failed = error
    try:
        ran = CommandRun(
            engine.roles() if engine.transaction else None, engine.transaction, outcome, engine.answers, failed
        )
        return [format_reply(_record(raw), command, ran) for raw, command in orders]
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        return [format_failure(error)] * len(orders)


def _more(rounds: DrainLoop, engine: Engine, log: Log) -> None:
    try:
        rounds.run_while_spooled(engine.paths.lock, lambda: engine.run(RunOptions()))
    except OSError as error:
        log.error(format_error(error))


def _handed_on(raw: RawEvent, engine: Engine, log: Log, wait: float) -> str:
    """The answer where this user may only store the command, and another one applies it."""
    if refused := _stored([raw], engine, log):
        return refused[0]
    try:
        idle = None if is_locked(engine.paths.watch_lock) else explain_waiting_event(engine.paths)
        if idle:
            log.error(format_error(idle))
            return QUEUED
        return answers.wait_for_answer(engine.paths.answers, _record(raw), wait) or QUEUED
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        return format_failure(error)


def _record(raw: RawEvent) -> str:
    """The id of the one record that a command is."""
    return f"{raw.id}0000"
