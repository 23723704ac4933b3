"""One command, from its record in the spool to what came of it."""

from __future__ import annotations

from lbagent.apply import Options
from lbagent.engine import Engine
from lbagent.errors import LbagentError, NotStored
from lbagent.host import answers
from lbagent.host.lock import held, locked, ours
from lbagent.host.log import Log, told
from lbagent.intake import Rounds, nobody_works, store
from lbagent.orders import DONE
from lbagent.replies import QUEUED, Ran, failure, reply
from lbagent.serf.command import TYPED, Command
from lbagent.serf.raw import Raw


def obeyed(raw: Raw, command: Command, engine: Engine, log: Log, wait: float) -> str:
    """What came of a command, for whoever gave it, in at most about `wait` seconds and the time of one run."""
    rounds = Rounds(engine.spool, log)
    mine = ours(engine.paths.lock)
    if raw.kind == TYPED and not mine:
        return f"refused: this user may not write {engine.paths.lock}: as root"
    try:
        try:
            store(raw, engine.paths)
        except NotStored as error:
            raise NotStored(f"{error}{engine.urged(raw=raw)}") from error
        if not mine:
            return _awaited(raw, engine, log, wait)
        try:
            return _told(raw, command, engine, rounds, wait)
        finally:
            # What came meanwhile found the lock busy, and nobody else may come for hours. It costs the asker that time.
            rounds.more(engine.paths.lock, lambda: engine.run(Options()))
    except (LbagentError, OSError) as error:
        log.error(told(error))
        return failure(error)


def confirmed(words: str) -> bool:
    """Whether the words of `obeyed`, said here or by another load balancer, are a confirmation."""
    return words.split(",", maxsplit=1)[0] == DONE


def _told(raw: Raw, command: Command, engine: Engine, rounds: Rounds, wait: float) -> str:
    with locked(engine.paths.lock, wait) as had:
        if not had:
            return QUEUED
        rounds.look()
        outcome = engine.run(Options())
    ran = Ran(engine.membership, engine.plan, engine.roles(), outcome, engine.answers)
    return reply(_record(raw), command, ran)


def _awaited(raw: Raw, engine: Engine, log: Log, wait: float) -> str:
    """What is said by whoever takes the command: this user may only store it. Raises OSError."""
    idle = None if held(engine.paths.watch_lock) else nobody_works(engine.paths)
    if idle:
        log.error(told(idle))
        return QUEUED
    return answers.awaited(engine.paths.answers, _record(raw), wait) or QUEUED


def _record(raw: Raw) -> str:
    """The id of the one record that a command is."""
    return f"{raw.id}0000"
