"""One line about this load balancer, for the query `lbagent-status`."""

from __future__ import annotations

from lbagent import scene
from lbagent.engine import Engine
from lbagent.errors import LbagentError
from lbagent.host import history
from lbagent.host.log import told
from lbagent.membership import Membership
from lbagent.memory import Damaged
from lbagent.roll import paused


def summary(engine: Engine, name: str) -> str:
    """Its name, who is there, the digest of the managed lines as they stand, what waits, and how the last run ended."""
    digest, problem = _digest(engine)
    words = [name or "lb", *_counts(engine), f"digest={digest}", f"pending={len(engine.spool.names())}"]
    if last := history.last(engine.paths.history):
        words.append(f"last={last.outcome}: {last.words}")
    return " ".join([*words, *problem])


def _counts(engine: Engine) -> list[str]:
    try:
        membership = engine.store.membership() or Membership()
    except Damaged:
        return ["members=damaged"]
    present = {member.name for member in membership.members.values() if member.present}
    return [f"members={len(present)}", f"paused={len(paused(membership) & present)}"]


def _digest(engine: Engine) -> tuple[str, list[str]]:
    try:
        document = scene.look(engine.roles().haproxy).document
    except (LbagentError, OSError) as error:
        return "unknown", [f"problem={told(error)}"]
    return (document.digest() if document.serves else "none"), []
