"""Answers to Serf queries: one line of at most 1,024 bytes; `done` only where HAProxy has confirmed it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from lbagent.errors import LbagentError
from lbagent.haproxy import config_files
from lbagent.membership import pause_reports
from lbagent.membership.model import Membership, find_member, find_paused
from lbagent.membership.storage import Damaged
from lbagent.names import NAME, canonical_address
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

ANSWER_LIMIT = 1024 - 100
"""Bytes of an answer. Serf's limit of 1,024 includes the node's name, the LTime and more fields of its own."""

WAIT = 2.0
"""Seconds to wait for the outcome of a run; Serf waits for 3.2 s."""


def answer_query(raw: RawEvent, settings: Settings, log: Log) -> bytes:
    """Return the answer to the query `raw`, with its line end. Errors are logged, and part of the answer."""
    engine = Engine(Paths(settings.state_dir), settings.roles, log)
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
    return run_command(raw, event, engine, log, WAIT)


def _answer_status_query(words: tuple[str, ...], raw: RawEvent, engine: Engine) -> str:
    """Return the status line; for `sessions NODE…` the open sessions; for `pauses [after=NAME] [v=VERSION]` a page."""
    if words[:1] == (SESSIONS,):
        return format_sessions(words[1:], engine)
    if words[:1] != ("pauses",):
        return _format_status_line(engine, raw.self_name)
    after = "".join(word.removeprefix("after=") for word in words[1:2])
    version = pause_reports.VERSION if f"v={pause_reports.VERSION}" in words[2:] else 1
    membership = engine.store.load_membership() or Membership()
    return pause_reports.format_page(membership, after, ANSWER_LIMIT, int(time.time()), version)


def _format_status_line(engine: Engine, name: str) -> str:
    """Return name, counts, the digest of the managed lines in haproxy.cfg, pending events and the last outcome."""
    digest, problem = _compute_digest(engine)
    words = [name or "lb", *_count_members(engine), f"digest={digest}", f"pending={len(engine.spool.list_names())}"]
    if last := history.read_last_run(engine.paths.history):
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
