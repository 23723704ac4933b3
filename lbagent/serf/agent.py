"""The Serf agent of this load balancer, asked through the `serf` program.

SERF_RPC_ADDR and SERF_RPC_AUTH are the program's own variables; they come with the agent's environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping

from lbagent.errors import TryAgain
from lbagent.host import commands
from lbagent.names import brief
from lbagent.serf import listing
from lbagent.serf.listing import Info, Listing
from lbagent.tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeVar

    Said = TypeVar("Said")

Heard = Callable[[str, str], None]
"""Takes a node's name and its answer."""

_TIMEOUT = 5.0
_MORE = 2.0
"""Seconds beyond its own time that a query may take to end."""


def members() -> Listing:
    """Every member the agent knows, as it knows them now. Raises TryAgain."""
    return _asked(["members", "-format=json"], listing.listing)


def info() -> Info:
    """What the agent says of itself. Raises TryAgain."""
    return _asked(["info", "-format=json"], listing.info)


def clocks() -> Mapping[str, int]:
    """The agent's LTimes, by clock; empty where it cannot be asked."""
    try:
        return info().clocks
    except TryAgain:
        return {}


def query(
    name: str, payload: str, nodes: Collection[str], waits: Iterable[int], heard: Heard | None = None
) -> dict[str, str]:
    """Ask these nodes, and the silent ones again after each wait, in seconds; returns what they said. Raises TryAgain.

    `heard` is called with each answer as it comes.

    Serf hands a query on by chance: some reach not every node (of 40 on a small cluster, one did not), and nothing
    repairs that.
    """
    found: dict[str, str] = {}
    for seconds in waits:
        if silent := [node for node in nodes if node not in found]:
            found |= _query(name, payload, silent, seconds, heard)
    return found


def _query(name: str, payload: str, nodes: Collection[str], seconds: int, heard: Heard | None) -> dict[str, str]:
    # An answer that does not get through straight may do so by one of two other nodes.
    options = ("-no-ack", "-relay-factor=2", f"-timeout={seconds}s", *(f"-node={node}" for node in nodes))
    argv = ["query", *options, name, payload]

    known: set[str] = set()

    def found(said: str) -> dict[str, str]:
        answers = listing.answers(said, nodes)
        for node in answers.keys() - known:
            known.add(node)
            if heard:
                heard(node, answers[node])
        return answers

    def all_have_answered(said: str) -> bool:
        # Serf itself waits to the end of its time, whoever has answered. Its last line may be half an answer.
        return len(found(said.rpartition("\n")[0])) == len(nodes) or len(listing.answers(said, nodes)) == len(nodes)

    return found(_serf(argv, seconds + _MORE, all_have_answered))


def _asked(argv: list[str], read: Callable[[str], Said]) -> Said:
    said = _serf(argv, _TIMEOUT)
    try:
        return read(said)
    except (ValueError, RecursionError) as error:
        raise TryAgain(f"serf {argv[0]} answered what nobody can read: {error}") from error


def _serf(argv: list[str], timeout: float, enough: Callable[[str], bool] | None = None) -> str:
    try:
        result = commands.run(["serf", *argv], timeout, environ=dict(os.environ), enough=enough)
    except OSError as error:
        raise TryAgain(f"serf cannot be run: {error.strerror}") from error
    if not result.good:
        raise TryAgain(f"the Serf agent cannot be asked (serf {argv[0]}): {brief(result.words.split(chr(10))[0])}")
    return result.words
