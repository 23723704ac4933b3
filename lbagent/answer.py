"""What a Serf query is answered: one line of at most 1,024 bytes, and `done` only when HAProxy has confirmed it."""

from __future__ import annotations

from lbagent.apply import Options
from lbagent.engine import Engine
from lbagent.errors import LbagentError, NotYet, TryAgain
from lbagent.host.lock import locked
from lbagent.host.log import Log, told
from lbagent.host.paths import Paths
from lbagent.intake import Rounds, store
from lbagent.membership import UNKNOWN
from lbagent.outcome import Outcome, Verdict
from lbagent.roll import find
from lbagent.serf.events import Command, Malformed, StatusQuery, parse
from lbagent.serf.raw import Raw
from lbagent.settings import Settings

LIMIT = 1024
"""Bytes that Serf lets an answer have, its name and the LTime among them: 100 are left to those."""

WAIT = 2.0
"""Seconds to wait for the outcome; Serf itself waits for 3.2."""


def answer(raw: Raw, settings: Settings, log: Log) -> bytes:
    """The answer to the query `raw`, its line end included; what went wrong is in it and in the log."""
    engine = Engine(Paths(settings.state_dir), settings.roles, log)
    try:
        words = _answer(raw, engine, Rounds(engine.spool, log))
    except (LbagentError, OSError) as error:
        log.error(told(error))
        words = _refusal(error)
    return " ".join(words.split()).encode("utf-8", "replace")[: LIMIT - 100] + b"\n"


def _refusal(error: Exception) -> str:
    # What is tried again by itself has been put off, not refused.
    return "queued" if isinstance(error, TryAgain | NotYet) else f"refused: {told(error)}"


def _answer(raw: Raw, engine: Engine, rounds: Rounds) -> str:
    event = parse(raw)
    if isinstance(event, StatusQuery):
        return engine.summary(raw.self_name)
    if isinstance(event, Malformed):
        return f"refused: {event.why}"
    assert isinstance(event, Command)  # noqa: S101  # the only other thing a wanted query can be
    store(raw, engine.paths)
    try:
        return _told(raw, event, engine, rounds)
    finally:
        # What came meanwhile found the lock busy, and nobody else may come for hours. It costs the asker that time.
        rounds.more(engine.paths.lock, lambda: engine.run(Options()))


def _told(raw: Raw, command: Command, engine: Engine, rounds: Rounds) -> str:
    with locked(engine.paths.lock, WAIT) as had:
        if not had:
            return "queued"
        rounds.look()
        outcome = engine.run(Options())
        told_by_fold = engine.answers.get(f"{raw.id}0000") or _since(engine, command)
    return _confirmed(outcome) if told_by_fold == "done" else told_by_fold


def _since(engine: Engine, command: Command) -> str:
    """What became of a command that another run has folded meanwhile."""
    member = find(engine.membership.members, command.name, command.address)
    if member is None or member.status == UNKNOWN:
        return "unknown node" + (", remembered" if member else "")
    return "done"


def _confirmed(outcome: Outcome) -> str:
    if outcome.confirmed:
        return "done"
    return "queued" if outcome.verdict is Verdict.QUEUED else "haproxy not seen"
