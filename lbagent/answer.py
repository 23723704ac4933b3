"""What a Serf query is answered: one line of at most 1,024 bytes, and `done` only when HAProxy has confirmed it."""

from __future__ import annotations

import time

from lbagent import accord
from lbagent.engine import Engine
from lbagent.errors import LbagentError
from lbagent.host.log import Log, told
from lbagent.host.paths import Paths
from lbagent.membership import Membership
from lbagent.memory import Damaged
from lbagent.obedience import obeyed
from lbagent.serf.command import Command, Malformed
from lbagent.serf.events import StatusQuery, parse
from lbagent.serf.raw import Raw
from lbagent.settings import Settings
from lbagent.summary import summary

ROOM = 1024 - 100
"""Bytes of an answer: Serf lets it have 1,024, the node's name, the LTime and more of its own among them."""

WAIT = 2.0
"""Seconds to wait for the outcome; Serf itself waits for 3.2."""


def answer(raw: Raw, settings: Settings, log: Log) -> bytes:
    """The answer to the query `raw`, its line end included; what went wrong is in it and in the log."""
    engine = Engine(Paths(settings.state_dir), settings.roles, log)
    try:
        words = _answer(raw, engine, log)
    except (LbagentError, OSError) as error:
        log.error(told(error))
        words = f"refused: {told(error)}"
    except Damaged as error:
        words = f"refused: members.json {error}: the next event rebuilds it from the managed lines"
    return " ".join(words.split()).encode("utf-8", "replace")[:ROOM] + b"\n"


def _answer(raw: Raw, engine: Engine, log: Log) -> str:
    event = parse(raw)
    if isinstance(event, StatusQuery):
        return _status(event.words, raw, engine)
    if isinstance(event, Malformed):
        return f"refused: {event.why}"
    assert isinstance(event, Command)  # noqa: S101  # the only other thing a wanted query can be
    return obeyed(raw, event, engine, log, WAIT)


def _status(words: tuple[str, ...], raw: Raw, engine: Engine) -> str:
    if words[:1] != ("pauses",):
        return summary(engine, raw.self_name)
    after = "".join(word.removeprefix("after=") for word in words[1:2])
    version = accord.VERSION if f"v={accord.VERSION}" in words[2:] else 1
    return accord.page(engine.store.membership() or Membership(), after, ROOM, int(time.time()), version)
