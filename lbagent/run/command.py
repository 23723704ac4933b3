"""Commands, from storing them in the spool to the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lbagent.errors import LbagentError, NotStored
from lbagent.run.engine import Engine
from lbagent.run.queue import DrainLoop, explain_waiting_event, store_event
from lbagent.run.replies import QUEUED, FinishedRun, format_failure, format_reply
from lbagent.run.transaction import RunOptions
from lbagent.serf.events import TYPED, Command
from lbagent.serf.raw_event import RawEvent
from lbagent.state.lock import acquire_lock, is_locked, may_lock
from lbagent.system.log import Log, format_error

CommandEvent = tuple[RawEvent, Command]
"""A command, with the event that carried it."""


def run_command(raw: RawEvent, command: Command, engine: Engine, log: Log, wait: float) -> str:
    """Return the answer to a command, within about `wait` seconds and the time of one run."""
    [answer] = run_commands([(raw, command)], engine, log, wait)
    return answer


def run_commands(
    commands: Sequence[CommandEvent], engine: Engine, log: Log, wait: float, allow: Callable[[], None] | None = None
) -> list[str]:
    """Store and apply these commands in one run; return the answers, within about `wait` seconds and that run's time.

    `allow` is called before any command is stored, under the lock. What it raises is passed on.
    """
    loop = DrainLoop(engine.spool, log)
    may_apply = may_lock(engine.paths.lock)
    if commands[0][0].kind == TYPED and not may_apply:
        return [f"refused: this user cannot write {engine.paths.lock}; run it as root"] * len(commands)
    if not may_apply:
        return [_wait_for_other_user(raw, engine, log, wait) for raw, _ in commands]
    if allow is None:
        refused = _store_commands([raw for raw, _ in commands], engine, log)
        if refused:
            return refused
    engine.paths.prepare()
    try:
        with acquire_lock(engine.paths.lock, wait) as acquired:
            if allow is not None:
                allow()
                if refused := _store_commands([raw for raw, _ in commands], engine, log):
                    return refused
            return _apply_commands(commands, engine, log, loop) if acquired else [QUEUED] * len(commands)
    finally:
        # Events that arrived meanwhile found the lock busy, and the next run may be hours away. The sender waits.
        _run_while_spooled(loop, engine, log)


def _store_commands(raws: Sequence[RawEvent], engine: Engine, log: Log) -> list[str]:
    """Store the commands in the spool. Returns the answers where that fails; empty otherwise."""
    try:
        for raw in raws:
            try:
                store_event(raw, engine.paths)
            except NotStored as error:
                raise NotStored(f"{error}{engine.withdraw_without_storing(raw=raw)}") from error
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        return [f"refused: {format_error(error)}"] * len(raws)
    return []


def _apply_commands(commands: Sequence[CommandEvent], engine: Engine, log: Log, loop: DrainLoop) -> list[str]:
    loop.mark_seen()
    outcome, failed = None, None
    try:
        outcome = engine.run(RunOptions())
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        failed = error
    try:
        run = FinishedRun(
            engine.load_roles() if engine.transaction else None, engine.transaction, outcome, engine.answers, failed
        )
        return [format_reply(_find_record_id(raw), command, run) for raw, command in commands]
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        return [format_failure(error)] * len(commands)


def _run_while_spooled(loop: DrainLoop, engine: Engine, log: Log) -> None:
    try:
        loop.run_while_spooled(engine.paths.lock, lambda: engine.run(RunOptions()))
    except OSError as error:
        log.error(format_error(error))


def _wait_for_other_user(raw: RawEvent, engine: Engine, log: Log, wait: float) -> str:
    """Return the answer where this user may only store the command, and another user applies it."""
    if refused := _store_commands([raw], engine, log):
        return refused[0]
    try:
        problem = None if is_locked(engine.paths.watch_lock) else explain_waiting_event(engine.paths)
        if problem:
            log.error(format_error(problem))
            return QUEUED
        return engine.store.wait_for_answer(_find_record_id(raw), wait) or QUEUED
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        return format_failure(error)


def _find_record_id(raw: RawEvent) -> str:
    """Return the id of the record that has the command: a command is never split."""
    return f"{raw.id}0000"
