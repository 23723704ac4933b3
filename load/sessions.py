"""python -m load.sessions: long TCP sessions survive 1,000 changes, none of which needs a reload.

Environment: CHANGES=1000 (number).
"""

from __future__ import annotations

import os
import random
import sys

from tests.helpers.daemon import run_watch
from tests.helpers.real_programs import Haproxy, LoadBalancer, member_line, wait_until
from tests.helpers.tcp_sessions import CONFIG, ROLES, open_sessions, run_echo_servers

CHANGES = int(os.environ.get("CHANGES", "1000"))
SESSIONS = 60
ADDRESS = {f"db{number:02}": f"127.0.1.{number}" for number in range(1, 21)}


def main() -> int:
    """Make the changes and print the figures; returns 0 if every session is open, without a reload."""
    with (
        LoadBalancer(CONFIG, ROLES) as lb,
        Haproxy(lb) as haproxy,
        run_echo_servers(list(ADDRESS.values()), lb.port),
        run_watch(lb),
    ):
        lb.join(*(format_member(name) for name in ADDRESS))
        wait_until(lambda: set(haproxy.servers("sql").values()) == {"UP"} and lb.idle)
        before = haproxy.reloads()[0]
        with open_sessions(lb.front, SESSIONS) as sessions:
            serving = make_changes(lb)
            wait_until(lambda: haproxy.find_serving("sql") == serving and lb.idle, 60)
            alive = sum(session.is_alive() for session in sessions)
            reloads, workers = haproxy.reloads()[0] - before, len(haproxy.workers())
    print(f"{CHANGES} changes: {alive} of {SESSIONS} sessions are open, {reloads} reloads, {workers} worker")
    return int((alive, reloads, workers) != (SESSIONS, 0, 1))


def make_changes(lb: LoadBalancer) -> set[str]:
    """Make the changes and return the nodes that serve afterwards."""
    dice, joined, paused = random.Random(5), set(ADDRESS), set[str]()
    for number in range(1, CHANGES + 1):
        name = dice.choice(list(ADDRESS))
        if name not in joined:
            lb.join(format_member(name))
            joined.add(name)
        elif name in paused:
            lb.send_command("resume", name, number)
            paused.discard(name)
        elif len(joined - paused) > len(ADDRESS) // 4:
            leaves = dice.random() < 0.5
            _ = lb.leave(format_member(name)) if leaves else lb.send_command("pause", name, number)
            (joined.discard if leaves else paused.add)(name)
    return joined - paused


def format_member(name: str) -> bytes:
    """Return the line of a node in the stdin of an event."""
    return member_line(name, ADDRESS[name], "db")


if __name__ == "__main__":
    sys.exit(main())
