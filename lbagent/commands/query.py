"""Answers to Serf queries: one line of at most 1,024 bytes, and `done` only when HAProxy has confirmed it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from lbagent.errors import LbagentError
from lbagent.haproxy import config_files
from lbagent.membership import pause_reports
from lbagent.membership.model import Membership, find_member, find_paused
from lbagent.membership.storage import Damaged
from lbagent.run.command import run_command
from lbagent.run.engine import Engine
from lbagent.run.replies import count_sessions
from lbagent.serf.events import Command, Malformed, StatusQuery, parse_event
from lbagent.serf.raw_event import RawEvent
from lbagent.settings import Settings
from lbagent.state import history
from lbagent.state.paths import Paths
from lbagent.system.log import Log, format_error
from lbagent.system.sockets import count_connections

SESSIONS = "sessions"
"""First word of a status query for open sessions; the names of nodes follow."""
NOT_PAUSED = "resumed"
"""In place of the number, for a node that is not paused."""


def summary(engine: Engine, name: str) -> str:
    """Its name, who is there, the digest of the managed lines as they stand, what waits, and how the last run ended."""
    digest, problem = _digest(engine)
    words = [name or "lb", *_counts(engine), f"digest={digest}", f"pending={len(engine.spool.list_names())}"]
    if last := history.read_past_runs(engine.paths.history):
        words.append(f"last={last.outcome}: {last.words}")
    return " ".join([*words, *problem])


def _counts(engine: Engine) -> list[str]:
    try:
        membership = engine.store.load_membership() or Membership()
    except Damaged:
        return ["members=damaged"]
    present = {member.name for member in membership.members.values() if member.present}
    return [f"members={len(present)}", f"paused={len(find_paused(membership) & present)}"]


def _digest(engine: Engine) -> tuple[str, list[str]]:
    try:
        document = config_files.read_config(engine.roles().haproxy).document
    except (LbagentError, OSError) as error:
        return "unknown", [f"problem={format_error(error)}"]
    return (document.compute_digest() if document.has_managed_lines else "none"), []


ROOM = 1024 - 100
"""Bytes of an answer: Serf lets it have 1,024, the node's name, the LTime and more of its own among them."""

WAIT = 2.0
"""Seconds to wait for the outcome; Serf itself waits for 3.2."""


def answer(raw: RawEvent, settings: Settings, log: Log) -> bytes:
    """The answer to the query `raw`, its line end included; what went wrong is in it and in the log."""
    engine = Engine(Paths(settings.state_dir), settings.roles, log)
    try:
        words = _answer(raw, engine, log)
    except (LbagentError, OSError) as error:
        log.error(format_error(error))
        words = f"refused: {format_error(error)}"
    except Damaged as error:
        words = f"refused: members.json {error}; the next event rebuilds it from the managed lines"
    return " ".join(words.split()).encode("utf-8", "replace")[:ROOM] + b"\n"


def _answer(raw: RawEvent, engine: Engine, log: Log) -> str:
    event = parse_event(raw)
    if isinstance(event, StatusQuery):
        return _status(event.words, raw, engine)
    if isinstance(event, Malformed):
        return f"refused: {event.why}"
    assert isinstance(event, Command)  # noqa: S101  # the only other thing a wanted query can be
    return run_command(raw, event, engine, log, WAIT)


def _status(words: tuple[str, ...], raw: RawEvent, engine: Engine) -> str:
    if words[:1] == (SESSIONS,):
        return format_sessions(words[1:], engine)
    if words[:1] != ("pauses",):
        return summary(engine, raw.self_name)
    after = "".join(word.removeprefix("after=") for word in words[1:2])
    version = pause_reports.VERSION if f"v={pause_reports.VERSION}" in words[2:] else 1
    return pause_reports.format_page(
        engine.store.load_membership() or Membership(), after, ROOM, int(time.time()), version
    )


def format_sessions(nodes: Iterable[str], engine: Engine) -> str:
    """Return `NODE=NUMBER` for each node: the connections that are open from this load balancer to it.

    `NODE=resumed` for a node that is not paused. Raises LbagentError, OSError, Damaged.
    """
    membership, roles = engine.store.load_membership() or Membership(), engine.roles()
    paused, connections = find_paused(membership), count_connections()
    words = []
    for node in nodes:
        member = find_member(membership.members, node, None)
        found = count_sessions(member, membership, roles, connections) if member and member.name in paused else None
        words.append(f"{node}={NOT_PAUSED if found is None else found}")
    return " ".join(words)
