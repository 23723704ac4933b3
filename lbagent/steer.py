"""The verbs by which an operator steers nodes, here and on every other load balancer: `pause`, `resume`, `forget`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from lbagent.engine import Engine
from lbagent.errors import TryAgain, UsageError
from lbagent.host.log import Log
from lbagent.host.paths import Paths
from lbagent.names import NAME, canonical_address, printable
from lbagent.obedience import confirmed, obeyed
from lbagent.orders import NOBODY
from lbagent.serf import agent
from lbagent.serf.command import REASON_LIMIT, TYPED, Malformed, command, duration
from lbagent.serf.listing import Listed, others, unreachable
from lbagent.serf.raw import Raw
from lbagent.settings import Settings
from lbagent.verbs import LOCK_WAIT, Verb

WAITS = (1, 2, 3, 4)
"""Seconds that another load balancer has for its answer, each time it is asked."""

_LONGEST = 10 * 365 * 86400
_REASON_BYTES = 400
"""Serf takes 1,024 for a whole query, the names of those who are asked among them."""

_QUERIES = {"pause": "pause", "resume": "resume", "forget": "lbagent-forget"}


def pause(node: str, lasting: str | None, reason: str | None) -> Verb:
    """The verb that takes a node out of balancing. Raises UsageError."""
    words = []
    if lasting is not None:
        seconds = duration(lasting)
        if not seconds or seconds > _LONGEST:
            raise UsageError(f"--for {lasting[:40]!r} is not a time such as 90s, 15m, 2h or 7d, of at most ten years")
        # The same moment on every load balancer.
        words.append(f"until={int(time.time()) + seconds}")
    plain = " ".join((reason or "").split())
    size = len(plain.encode("utf-8", "surrogateescape"))
    if not plain.isprintable() or len(plain) > REASON_LIMIT or size > _REASON_BYTES:
        limits = f"{REASON_LIMIT} printable characters, of {_REASON_BYTES} bytes"
        raise UsageError(f"--reason has {len(plain)} characters, of {size} bytes: at most {limits}, can be sent")
    return _steering("pause", node, [*words, f"reason={plain}"] if plain else words)


def resume(node: str) -> Verb:
    """The verb that puts a node back in. Raises UsageError."""
    return _steering("resume", node, [])


def forget(node: str, force: bool) -> Verb:  # noqa: FBT001  # the verb's switch
    """The verb that drops a node and its pause. Raises UsageError."""
    return _steering("forget", node, ["force"] if force else [])


def _steering(verb: str, node: str, words: list[str]) -> Verb:
    if not NAME.fullmatch(node) and canonical_address(node) is None:
        raise UsageError(f"{node[:80]!r} is neither a node's name nor an address")

    def steer(settings: Settings, log: Log) -> int:
        try:
            myself = agent.info().name
        except TryAgain:
            myself = os.uname().nodename
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        # Here first: whatever becomes of the others, this one does what it was told.
        said = {myself: _here(verb, " ".join([node, *words]), myself, engine, log)}
        said |= _elsewhere(verb, " ".join([node, f"by={myself}", *words]), myself)
        _print(said)
        return 0 if _all_done(verb, said) else 1

    return steer


def _here(verb: str, payload: str, myself: str, engine: Engine, log: Log) -> str:
    raw = Raw(os.urandom(8).hex(), int(time.time() * 1000), TYPED, verb, None, myself, payload.encode())
    wanted = command(raw, payload)
    return f"refused: {wanted.why}" if isinstance(wanted, Malformed) else obeyed(raw, wanted, engine, log, LOCK_WAIT)


def _elsewhere(verb: str, payload: str, myself: str) -> dict[str, str]:
    """What each other load balancer says, or what kept it from saying anything."""
    try:
        listed, me = agent.members(), agent.info()
        there = others(listed, me)
        # This one is asked as well: its handler, too, has to hear the LTime that orders all that follows.
        asked = [myself, *(one.name for one in there if one.status == "alive")]
        answers = agent.query(_QUERIES[verb], payload, asked, WAITS)
    except TryAgain as error:
        return {"others": f"not asked: {error}"}
    said = {one.name: answers.get(one.name) or _silent(one) for one in there}
    return said | dict.fromkeys(unreachable(listed, me), "not asked: its name or address in Serf is of no use")


def _silent(one: Listed) -> str:
    return "not answered" if one.status == "alive" else f"not answered: {one.status}, says Serf"


def _all_done(verb: str, said: Mapping[str, str]) -> bool:
    unconfirmed = {words for words in said.values() if not confirmed(words)}
    if verb == "forget" and any(map(confirmed, said.values())):
        # Who never knew a node has nothing to forget.
        unconfirmed.discard(NOBODY[verb])
    return not unconfirmed


def _print(said: Mapping[str, str]) -> None:
    width = max(map(len, said))
    for name, words in said.items():
        print(printable(f"{name:{width}}  {words}"))
