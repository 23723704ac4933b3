"""How servers that come get their traffic: made, looked at, and only then let in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from lbagent.haproxy.conversation import Conversation, Unspoken
from lbagent.haproxy.dynamic import Join
from lbagent.haproxy.roster import Key
from lbagent.host import reach

_CONNECT = 1.0
"""Seconds in which the servers that come have to take a connection."""

_POLL = 0.02
_GRACE = 0.4
"""Seconds that a check may take beyond its interval."""

_MOVED = ("changed from", "no need to change")


class Admission:
    """Of some servers, to one worker."""

    def __init__(self, talk: Conversation) -> None:
        """Nothing is said yet."""
        self._talk = talk

    def granted(self, joins: Sequence[Join], cookies: Sequence[str]) -> bool:
        """Have them take traffic, each once it answers; False where not all was taken. `cookies` are commands."""
        if not joins:
            return True
        if not self._obeyed([*(command for join in joins for command in join.commands), *cookies]):
            return False
        silent = reach.silent((join.endpoint for join in joins if join.endpoint and not join.verdict), _CONNECT)
        prompt = [join for join in joins if not join.verdict]
        good = self._obeyed([one for join in prompt for one in _ready(join, up=join.endpoint not in silent)])
        return self._judged([join for join in joins if join.verdict]) and good

    def _judged(self, joins: Sequence[Join]) -> bool:
        """Have HAProxy's own checks decide: draining and down, a server is checked, and gets nothing to do."""
        if not joins:
            return True
        if not self._obeyed([one for join in joins for one in _held(join)]):
            return False
        deadline = time.monotonic() + max(join.verdict or 0 for join in joins) + _GRACE
        passed: set[Key] = set()
        with contextlib.suppress(Unspoken):
            while len(passed) < len(joins) and time.monotonic() < deadline:
                time.sleep(_POLL)
                states = self._talk.states()
                passed = {join.key for join in joins if join.key in states and states[join.key].passed}
        up = [f"set server {join.target} health up" for join in joins if join.key in passed]
        return self._obeyed([*up, *(f"set server {join.target} state ready" for join in joins)])

    def _obeyed(self, commands: Sequence[str]) -> bool:
        """Whether all commands were taken; one that fails does not stop the others."""
        good = True
        for command, answer in zip(commands, self._talk.say(commands), strict=True):
            if answer is None or not _taken(command, answer):
                good = False
                self._talk.trouble += [f"`{command}`: {answer}"] if answer else []
        return good


def _ready(join: Join, *, up: bool) -> list[str]:
    if join.drain:
        return [f"set server {join.target} state drain", *([] if up else [f"set server {join.target} health down"])]
    # Who does not answer stays down until HAProxy's checks have passed; ready alone would be taken for up.
    return [*([] if up else _held(join)), f"set server {join.target} state ready"]


def _held(join: Join) -> list[str]:
    return [f"set server {join.target} state drain", f"set server {join.target} health down"]


def _taken(command: str, answer: str) -> bool:
    if command.startswith("add server"):
        return answer == "New server registered."
    if " addr " in command:
        return any(word in answer for word in _MOVED)
    return answer == ""
