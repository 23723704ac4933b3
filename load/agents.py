"""python -m load.agents: 200 real Serf agents, one HAProxy, one daemon, on this machine.

Prints how long it takes until all nodes serve, pauses and resumes by query, the gossip of a user event and of a query,
a burst of pauses, the member list, and the limits of Serf. Environment: AGENTS=200, TIMES=20 (pauses).
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.real_programs import CONFIG, LBAGENT, ROLES, Haproxy, LoadBalancer, SerfAgent, binaries, wait_until

AGENTS, TIMES = (int(os.environ.get(name, default)) for name, default in (("AGENTS", 200), ("TIMES", 20)))
VERSION = os.environ.get("HAPROXY", "3.0")
PATIENCE = 300.0
"""Seconds to wait for a change of all nodes."""

_BURST = min(100, AGENTS)
"""Nodes that are paused at once."""

_NODES = """
frontend nodes
    bind 0.0.0.0:{port}
    http-request return status 200
"""

_HANDLERS = "user:gossip=/bin/sh -c 'echo >> {folder}/$SERF_SELF_NAME'", "query:answer=/bin/sh -c 'echo here'"


def main() -> int:
    """Measure and print; returns 0 if no event was lost and every query was answered by all."""
    roles = ROLES.replace("interval: 200ms", "interval: 2s")
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(CONFIG + _NODES, roles, binaries()[VERSION]))
        haproxy = stack.enter_context(Haproxy(lb))
        agent = SerfAgent("lb01", "127.0.0.9", "lb", handler=f"{LBAGENT} handle", env=lb.env, more=["-profile=lan"])
        stack.enter_context(agent)
        daemon = stack.enter_context(lb.start("watch", env={"SERF_RPC_ADDR": agent.rpc}))
        stack.callback(daemon.terminate)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        serf = run_serf("version").splitlines()[0]
        print(f"HAProxy {VERSION}, Serf {serf}, {AGENTS} agents, profile lan, {os.cpu_count()} cores")
        started = time.monotonic()
        stack.enter_context(run_nodes(agent, folder))
        show("all agents are started", time.monotonic() - started)
        wait_until(lambda: len(haproxy.find_serving()) == AGENTS, PATIENCE, pause=0.1)
        show("all nodes serve, from the start of the first agent", time.monotonic() - started)
        measure_members(agent)
        measure_commands()
        lost = AGENTS - measure_gossip(agent, folder)
        silent = AGENTS - measure_query(agent)
        lost += _BURST - measure_burst(agent, lb)
        measure_limits(agent)
        load = f"load average {os.getloadavg()[0]:.1f}"
        print(f"events lost {lost}, agents that did not answer {silent}; {load}")
        return int(lost > 0 or silent > 0)


@contextlib.contextmanager
def run_nodes(agent: SerfAgent, folder: Path) -> Iterator[None]:
    """Run the agents of all nodes, which join `agent`, until the block is left."""
    nodes: list[subprocess.Popen[bytes]] = []
    handlers = [f"-event-handler={handler.format(folder=folder)}" for handler in _HANDLERS]
    try:
        for number in range(AGENTS):
            address = format_address(number)
            argv = ["serf", "agent", f"-node={name_node(number)}", f"-bind={address}:7946"]
            argv += [f"-rpc-addr={address}:7373", "-tag=role=web", f"-retry-join={agent.bind}", "-profile=lan"]
            output = subprocess.DEVNULL
            nodes.append(subprocess.Popen([*argv, *handlers], stdin=output, stdout=output, stderr=output))
        yield
    finally:
        for node in nodes:
            node.kill()
        for node in nodes:
            node.wait()


def measure_members(agent: SerfAgent) -> None:
    """Print what `serf members` costs."""
    started = time.monotonic()
    listed = run_serf("members", f"-rpc-addr={agent.rpc}", "-format=json")
    show(f"`serf members -format=json`, {len(listed) / AGENTS:.0f} bytes per member", time.monotonic() - started)


def measure_commands() -> None:
    """Pause and resume nodes by queries, each sent by its own node, and print how long it takes until `done`.

    As the Windows scripts do, a query without that answer is sent again.
    """
    took: dict[str, list[float]] = {"pause": [], "resume": []}
    sent = 0
    for number in range(TIMES):
        for verb, seconds in took.items():
            started = time.monotonic()
            for _ in range(4):
                sent += 1
                if ask(f"{format_address(number)}:7373", verb, name_node(number), "Response from 'lb01': done"):
                    break
            seconds.append(time.monotonic() - started)
    for verb, seconds in took.items():
        show(f"`serf query {verb}` on a node, to `done` (median of {TIMES})", statistics.median(seconds))
        show("  the longest", max(seconds))
    print(f"{2 * TIMES} commands, {sent} queries")


def measure_gossip(agent: SerfAgent, folder: Path) -> int:
    """Send a user event and print how long it takes to reach all handlers; return the number it has reached."""
    started = time.time()
    run_serf("event", f"-rpc-addr={agent.rpc}", "-coalesce=false", "gossip")
    with contextlib.suppress(AssertionError):
        wait_until(lambda: len([*folder.iterdir()]) == AGENTS, 60)
    times = sorted(path.stat().st_mtime - started for path in folder.iterdir())
    show("a user event reaches half of the nodes", times[len(times) // 2])
    show("a user event reaches all nodes", times[-1])
    return len(times)


def measure_query(agent: SerfAgent) -> int:
    """Send a query that all nodes answer; print the time of the last answer, and return the number of answers."""
    started = time.monotonic()
    answers = ask(agent.rpc, "answer", "", "Response from", AGENTS)
    show(f"a query, to the last of {answers} answers", time.monotonic() - started)
    return answers


def measure_burst(agent: SerfAgent, lb: LoadBalancer) -> int:
    """Pause many nodes at once by user events; print how long it takes, and return the number of paused nodes."""
    started = time.monotonic()
    for number in range(_BURST):
        run_serf("event", f"-rpc-addr={agent.rpc}", "-coalesce=false", "pause", name_node(number))
    show(f"{_BURST} pauses are sent", time.monotonic() - started)

    def count() -> int:
        return sum(line.startswith("# lbagent paused") for line in lb.managed)

    with contextlib.suppress(AssertionError):
        wait_until(lambda: count() == _BURST, 60, pause=0.1)
    show(f"{_BURST} pauses are applied, from the first", time.monotonic() - started)
    return count()


def measure_limits(agent: SerfAgent) -> None:
    """Print the longest payload that Serf accepts in a user event and in a query."""
    for words in (("event", "-coalesce=false"), ("query", "-no-ack", "-timeout=1s")):
        sizes = range(200, 9000)
        low, high = 0, len(sizes)
        while low < high:
            middle = (low + high) // 2
            argv = ["serf", words[0], f"-rpc-addr={agent.rpc}", *words[1:], "limit", "x" * sizes[middle]]
            done = subprocess.run(argv, capture_output=True, check=False)
            low, high = (middle + 1, high) if done.returncode == 0 else (low, middle)
        print(f"longest payload of a Serf {words[0]} called `limit`: {sizes[low] - 1} bytes")


def ask(rpc: str, name: str, payload: str, expected: str, answers: int = 1) -> int:
    """Send a query and return how many answers begin as `expected`: at its end, or as soon as there are `answers`."""
    argv = ["serf", "query", f"-rpc-addr={rpc}", "-no-ack", "-timeout=5s", name, payload]
    found = 0
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            found += line.startswith(expected)
            if found == answers or (answers == 1 and line.startswith("Response")):
                break
        process.kill()
    return found


def run_serf(*words: str) -> str:
    """Return the output of `serf`. Raises CalledProcessError."""
    return subprocess.run(["serf", *words], capture_output=True, text=True, timeout=60, check=True).stdout


def name_node(number: int) -> str:
    """Return the name of a node."""
    return f"node{number:03}"


def format_address(number: int) -> str:
    """Return the address of a node."""
    return f"127.3.{number // 250}.{number % 250 + 1}"


def show(what: str, seconds: float) -> None:
    """Print one line."""
    print(f"{what:<66}{seconds:8.2f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
