"""Answers to Serf queries and to commands, from storing the command in the spool to `done`.

An answer to a query is one line of at most 1,024 bytes. `done` only where HAProxy has confirmed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from lbagent.errors import LbagentError, NotStored
from lbagent.haproxy import config_files
from lbagent.membership import peers
from lbagent.membership.model import Membership, find_member, find_paused
from lbagent.names import NAME, canonical_address
from lbagent.run.engine import Engine
from lbagent.run.queue import DrainLoop, explain_waiting_event, store_event
from lbagent.run.replies import QUEUED, FinishedRun, count_sessions, format_failure, format_reply
from lbagent.run.transaction import RunOptions
from lbagent.serf.events import TYPED, Command, Malformed, StatusQuery, parse_event
from lbagent.serf.raw_event import RawEvent
from lbagent.settings import Settings
from lbagent.state import store
from lbagent.state.lock import acquire_lock, is_locked, may_lock
from lbagent.state.store import Damaged
from lbagent.system.log import Log, format_error
from lbagent.system.processes import count_connections

CommandEvent = tuple[RawEvent, Command]
"""A command, with the event that carried it."""

SESSIONS = "sessions"
"""First word of a status query for open sessions; the names of nodes follow."""
NOT_PAUSED = "resumed"
"""In place of the number, for a node that is not paused."""

ANSWER_LIMIT = 1024 - 100
"""Bytes of an answer. Serf's limit of 1,024 includes the node's name, the LTime and more fields of its own."""

WAIT = 2.0
"""Seconds to wait for the outcome of a run; Serf waits for 3.2 s."""


def answer_query(raw: RawEvent, settings: Settings, log: Log) -> bytes:
    """Return the answer to the query `raw`, with its line end. Errors are logged, and part of the answer."""
    engine = Engine(settings, log)
    try:
        answer = _answer_event(raw, engine, log)
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        answer = f"refused: {format_error(error)}"
    except Damaged as error:
        answer = f"refused: members.json {error}; the next event rebuilds it from the managed lines"
    return " ".join(answer.split()).encode("utf-8", "replace")[:ANSWER_LIMIT] + b"\n"


def _answer_event(raw: RawEvent, engine: Engine, log: Log) -> str:
    event = parse_event(raw)
    if isinstance(event, StatusQuery):
        return _answer_status_query(event.words, raw, engine)
    if isinstance(event, Malformed):
        return f"refused: {event.why}"
    assert isinstance(event, Command)  # noqa: S101  # the only other kind of a relevant query
    [answer] = run_commands([(raw, event)], engine, log, WAIT)
    return answer


def _answer_status_query(words: tuple[str, ...], raw: RawEvent, engine: Engine) -> str:
    """Return the status line; for `sessions NODE…` the open sessions; for `pauses [after=NAME] [v=VERSION]` a page."""
    if words[:1] == (SESSIONS,):
        return format_sessions(words[1:], engine)
    if words[:1] != ("pauses",):
        return _format_status_line(engine, raw.self_name)
    after = "".join(word.removeprefix("after=") for word in words[1:2])
    version = peers.VERSION if f"v={peers.VERSION}" in words[2:] else 1
    membership = engine.store.load_membership() or Membership()
    return peers.format_page(membership, after, ANSWER_LIMIT, int(time.time()), version)


def _format_status_line(engine: Engine, name: str) -> str:
    """Return name, counts, the digest of the managed lines in haproxy.cfg, pending events and the last outcome."""
    digest, problem = _compute_digest(engine)
    words = [name or "lb", *_count_members(engine), f"digest={digest}", f"pending={len(engine.spool.list_names())}"]
    if last := store.read_last_run(engine.paths.history):
        words.append(f"last={last.outcome}: {last.words}")
    return " ".join([*words, *problem])


def _count_members(engine: Engine) -> list[str]:
    try:
        membership = engine.store.load_membership() or Membership()
    except Damaged:
        return ["members=damaged"]
    present = {member.name for member in membership.members.values() if member.present}
    return [f"members={len(present)}", f"paused={len(find_paused(membership) & present)}"]


def _compute_digest(engine: Engine) -> tuple[str, list[str]]:
    """Return the digest, `none` without managed lines, and what prevented it."""
    try:
        document = config_files.read_config(engine.load_roles().haproxy).document
    except (LbagentError, OSError) as error:
        return "unknown", [f"problem={format_error(error)}"]
    return (document.compute_digest() if document.has_managed_lines else "none"), []


def format_sessions(nodes: Iterable[str], engine: Engine) -> str:
    """Return `NODE=NUMBER` for each node: the connections that are open from this load balancer to it.

    `NODE=resumed` for a node that is not paused. Without invalid names. Raises LbagentError, OSError, Damaged.
    """
    membership, roles = engine.store.load_membership() or Membership(), engine.load_roles()
    paused, connections = find_paused(membership), count_connections()
    words = []
    for node in nodes:
        if not NAME.fullmatch(node) and canonical_address(node) is None:
            continue  # an answer has no characters that a sender could use against a terminal
        member = find_member(membership.members, node, None)
        found = count_sessions(member, membership, roles, connections) if member and member.name in paused else None
        words.append(f"{node}={NOT_PAUSED if found is None else found}")
    return " ".join(words)


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
    except OSError as error:  # the lock cannot be used
        if allow is not None:
            raise
        log.error(format_error(error))
        return [format_failure(error)] * len(commands)  # they are stored
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
