"""Which of two commands is the newer one: LTimes order within one clock, and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping

from lbagent.membership import TOLD, Heard
from lbagent.serf.command import Command

_DIGESTS_KEPT = 16


def obeyed(command: Command, heard: Heard | None) -> bool:
    """Whether the command is to be obeyed, given what was `heard` last: no replay, and no resume beside a pause."""
    if command.ltime is None or heard is None or command.ltime > heard.ltime:
        return True
    if command.ltime < heard.ltime or not {command.digest, TOLD}.isdisjoint(heard.digests):
        return False
    return command.verb == "pause" or not heard.paused


def hear(heard: Mapping[str, Heard], command: Command, last: Heard | None) -> Mapping[str, Heard]:
    """What has been heard, this command included."""
    if command.ltime is None or (last and command.ltime < last.ltime):
        return heard
    pauses = command.verb == "pause"
    if last and command.ltime == last.ltime:
        digests = (*last.digests, command.digest) if command.digest not in last.digests else last.digests
        return {**heard, command.clock: Heard(last.ltime, digests[-_DIGESTS_KEPT:], last.paused or pauses)}
    return {**heard, command.clock: Heard(command.ltime, (command.digest,), pauses)}
