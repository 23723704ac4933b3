"""python -m load.sessions: long TCP sessions through 1,000 changes, of which none takes a reload.

CHANGES=1000 says how many.
"""

from __future__ import annotations

import os
import random
import sys

from tests.helpers.daemon import watching
from tests.helpers.real_programs import Haproxy, Lb, eventually, member
from tests.helpers.tcp_sessions import CONFIG, ROLES, opened, servers

CHANGES = int(os.environ.get("CHANGES", "1000"))
SESSIONS = 60
ADDRESS = {f"db{number:02}": f"127.0.1.{number}" for number in range(1, 21)}


def main() -> int:
    """Make them and print what came of it; 0 where every session lives, over one worker."""
    with Lb(CONFIG, ROLES) as lb, Haproxy(lb) as haproxy, servers(list(ADDRESS.values()), lb.port), watching(lb):
        lb.join(*(joining(name) for name in ADDRESS))
        eventually(lambda: set(haproxy.servers("sql").values()) == {"UP"} and lb.idle)
        before = haproxy.reloads()[0]
        with opened(lb.front, SESSIONS) as sessions:
            serving = changed(lb)
            eventually(lambda: haproxy.serving("sql") == serving and lb.idle, 60)
            alive = sum(session.lives() for session in sessions)
            reloads, workers = haproxy.reloads()[0] - before, len(haproxy.workers())
    print(f"{CHANGES} changes: {alive} of {SESSIONS} sessions live, {reloads} reloads, {workers} worker")
    return int((alive, reloads, workers) != (SESSIONS, 0, 1))


def changed(lb: Lb) -> set[str]:
    """Make the changes; who serves in the end."""
    dice, there, paused = random.Random(5), set(ADDRESS), set[str]()
    for number in range(1, CHANGES + 1):
        name = dice.choice(list(ADDRESS))
        if name not in there:
            lb.join(joining(name))
            there.add(name)
        elif name in paused:
            lb.say("resume", name, number)
            paused.discard(name)
        elif len(there - paused) > len(ADDRESS) // 4:
            leaves = dice.random() < 0.5  # half and half
            _ = lb.leave(joining(name)) if leaves else lb.say("pause", name, number)
            (there.discard if leaves else paused.add)(name)
    return there - paused


def joining(name: str) -> bytes:
    """The line of a node as Serf tells it."""
    return member(name, ADDRESS[name], "db")


if __name__ == "__main__":
    sys.exit(main())
