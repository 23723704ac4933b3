"""One command, from its record in the spool to what came of it."""

from __future__ import annotations

from lbagent.apply import Options
from lbagent.assent import judged
from lbagent.engine import Engine
from lbagent.errors import LbagentError, NotYet, TryAgain
from lbagent.host.lock import locked
from lbagent.host.log import Log, told
from lbagent.host.sockets import established
from lbagent.intake import Rounds, store
from lbagent.membership import Member
from lbagent.orders import DONE
from lbagent.outcome import Outcome, Verdict
from lbagent.roll import find
from lbagent.serf.command import Command
from lbagent.serf.raw import Raw
from lbagent.wishes import serving_ports


def obeyed(raw: Raw, command: Command, engine: Engine, log: Log, wait: float) -> str:
    """What came of a command, for whoever gave it, in at most about `wait` seconds and the time of one run."""
    rounds = Rounds(engine.spool, log)
    try:
        store(raw, engine.paths)
        try:
            return _told(raw, command, engine, rounds, wait)
        finally:
            # What came meanwhile found the lock busy, and nobody else may come for hours. It costs the asker that time.
            rounds.more(engine.paths.lock, lambda: engine.run(Options()))
    except (LbagentError, OSError) as error:
        log.error(told(error))
        # What is tried again by itself has been put off, not refused.
        return "queued" if isinstance(error, TryAgain | NotYet) else f"refused: {told(error)}"


def confirmed(words: str) -> bool:
    """Whether the words of `obeyed`, said here or by another load balancer, are a confirmation."""
    return words.split(",", maxsplit=1)[0] == DONE


def _told(raw: Raw, command: Command, engine: Engine, rounds: Rounds, wait: float) -> str:
    with locked(engine.paths.lock, wait) as had:
        if not had:
            return "queued"
        rounds.look()
        outcome = engine.run(Options())
    told_by_fold = engine.answers.get(f"{raw.id}0000", DONE)
    words = told_by_fold if told_by_fold != DONE else judged(command, engine.membership, engine.plan)
    if words != DONE:
        return words
    return _done(command, engine) if outcome.confirmed else _unconfirmed(outcome)


def _unconfirmed(outcome: Outcome) -> str:
    return "queued" if outcome.verdict is Verdict.QUEUED else "haproxy not seen"


def _done(command: Command, engine: Engine) -> str:
    member = find(engine.membership.members, command.name, command.address)
    count = _sessions(member, engine) if member and command.verb == "pause" else 0
    return f"{DONE}, {count} {'session' if count == 1 else 'sessions'} still open" if count else DONE


def _sessions(member: Member, engine: Engine) -> int:
    """Connections from this host to where the node serves: after a reload only the kernel knows them all."""
    ports = serving_ports(engine.roles(), member)
    return sum(count for (address, port), count in established().items() if address == member.address and port in ports)
