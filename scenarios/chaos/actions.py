"""What happens at random: changes, which must cost no request, and faults, whose failed requests are counted apart.

An action changes the machines and, at once, the model. A fault registers its end with `later`; the calm ends all that
are left. All choices come from one random generator and the model, so that a seed gives the same actions.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from typing import IO, NamedTuple

from scenarios.chaos.model import Fault, Model
from scenarios.chaos.model import Node as NodeModel
from scenarios.chaos.site import Balancer, Node, Site
from scenarios.pair import Host
from tests.helpers.real_programs import wait_until

MINIMUM_SERVING = 4
"""Nodes of a service that always serve: a pause of the last one is another subject."""

COMMAND_LIMIT = 90.0
"""Seconds that a command of an operator may take."""


class Started(NamedTuple):
    """A command that runs beside the actions."""

    words: str
    process: subprocess.Popen[str]
    check: Callable[[int, str], str]
    """Gets exit status and output; returns what is wrong, or nothing."""


class Undo(NamedTuple):
    """The end of a fault."""

    step: int
    words: str
    work: Callable[[], None]


class Storm:
    """Makes random actions on a site and keeps the model true."""

    def __init__(self, site: Site, model: Model, dice: random.Random, log: IO[str]) -> None:
        """Nothing happens yet."""
        self.site, self.model, self.dice = site, model, dice
        self.counts, self.faults = Counter[str](), list[Fault]()
        self.disturbed = set[str]()
        """The load balancers that cannot see every change at present."""
        self._open: dict[tuple[str, str], float] = {}
        self._undo, self._started, self._step = list[Undo](), list[Started](), 0
        self._log, self.begin = log, time.monotonic()
        self.wrong: list[str] = []
        """Answers of commands that were not true."""

    # What every action uses

    def note(self, words: str) -> None:
        """Write a line with the time of the run into the log."""
        self._log.write(f"{time.monotonic() - self.begin:8.2f} {words}\n")
        self._log.flush()

    def act(self) -> None:
        """End the faults that are due, and make one random action."""
        self._step += 1
        for undo in [one for one in self._undo if one.step <= self._step]:
            self._run_undo(undo)
        for _ in range(100):
            action = self.dice.choices(list(ACTIONS), [one.weight for one in ACTIONS])[0]
            words = action.work(self)
            if words is not None:
                self.counts[action.name] += 1
                self.note(f"{action.name}: {words}")
                return

    def calm(self) -> None:
        """End all faults, and wait for all commands."""
        for undo in list(self._undo):
            self._run_undo(undo)
        for one in self._started:
            output, _ = one.process.communicate(timeout=COMMAND_LIMIT)
            self.note(f"{one.words}: exit status {one.process.returncode}: {output.strip()!r}")
            if problem := one.check(one.process.returncode, output):
                self.wrong.append(f"{one.words}: {problem}: {output.strip()!r}")
        self._started.clear()
        for node in self.model.nodes.values():
            node.busy = False

    def later(self, words: str, work: Callable[[], None]) -> None:
        """Do this after one to six more actions, or in the calm."""
        self._undo.append(Undo(self._step + self.dice.randint(1, 6), words, work))

    def begin_fault(self, subject: str, reason: str) -> None:
        """Failed requests to this node, or to this load balancer, have a reason from now on."""
        self._open[subject, reason] = time.monotonic()

    def end_fault(self, subject: str, reason: str) -> None:
        """The reason has ended."""
        self.faults.append(Fault(subject, reason, self._open.pop((subject, reason)), time.monotonic()))

    def list_faults(self) -> list[Fault]:
        """Return all faults, also those that have not ended."""
        now = time.monotonic()
        return self.faults + [Fault(subject, reason, begin, now) for (subject, reason), begin in self._open.items()]

    def start_command(
        self, host: Host, *argv: str, check: Callable[[int, str], str] = lambda _status, _output: ""
    ) -> None:
        """Run a command on a machine beside the actions."""
        process = subprocess.Popen(
            host.machine.inside(*argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(host),
        )
        self._started.append(Started(f"{host.name}: {' '.join(argv)}", process, check))

    def choose_node(self, fits: Callable[[NodeModel], bool]) -> NodeModel | None:
        """Return a random node that fits and has not been changed since the last calm, or None."""
        found = [node for node in self.model.nodes.values() if not node.busy and fits(node)]
        if not found:
            return None
        return self.dice.choice(found)

    def can_spare(self, node: NodeModel) -> bool:
        """Return whether enough other nodes serve each service of this node."""
        return all(
            len(self.model.list_serving(service) - {node.name}) >= MINIMUM_SERVING
            for service in self.model.services.get(node.role, ())
        )

    def _run_undo(self, undo: Undo) -> None:
        self._undo.remove(undo)
        undo.work()
        self.note(f"end of {undo.words}")

    def node(self, one: NodeModel) -> Node:
        """Return the machine of a node."""
        return self.site.nodes[one.name]

    def choose_balancer(self) -> Balancer:
        """Return a random load balancer."""
        return self.site.balancers[self.dice.choice(sorted(self.site.balancers))]

    def choose_other_node(self, than: NodeModel) -> Node:
        """Return a random living node, from which commands can be sent."""
        found = [one for one in self.model.nodes.values() if one.agent == "alive" and not one.busy and one is not than]
        return self.node(self.dice.choice(found))


def _environment(host: Host) -> dict[str, str]:
    return {**os.environ, **host.env}


class Action(NamedTuple):
    """A kind of action. `work` returns what it has done, or None where it does not fit now."""

    name: str
    weight: float
    work: Callable[[Storm], str | None]


ACTIONS: list[Action] = []


def action(name: str, weight: float) -> Callable[[Callable[[Storm], str | None]], Callable[[Storm], str | None]]:
    """Register a kind of action."""

    def register(work: Callable[[Storm], str | None]) -> Callable[[Storm], str | None]:
        ACTIONS.append(Action(name, weight, work))
        return work

    return register


# Changes: they must not cost a request


@action("join", 4)
def join(storm: Storm) -> str | None:
    """A node that is not in the cluster joins."""
    one = storm.choose_node(lambda node: node.agent == "left" and node.backend)
    if one is None:
        return None
    one.busy, one.agent = True, "alive"
    storm.node(one).serf.start()
    return one.name


@action("leave", 3)
def leave(storm: Storm) -> str | None:
    """A node leaves; its web server runs on."""
    one = storm.choose_node(lambda node: node.agent == "alive" and storm.can_spare(node))
    if one is None:
        return None
    one.busy, one.agent = True, "left"
    storm.start_command(storm.node(one), "serf", "leave")
    return one.name


@action("reboot", 2)
def reboot(storm: Storm) -> str | None:
    """A node shuts down and boots: its web server stops when no load balancer sends it requests any more."""
    if storm.disturbed:
        return None
    one = storm.choose_node(lambda node: node.agent == "alive" and node.backend and storm.can_spare(node))
    if one is None:
        return None
    one.busy, one.agent = True, "left"
    node = storm.node(one)
    storm.start_command(node, "serf", "leave")

    def boot() -> None:
        node.serf.wait()
        wait_until(lambda: not _find_serving(storm, one.name))
        node.backend.stop()
        node.backend.start()
        one.agent = "alive"
        node.serf.start()

    storm.later(f"reboot of {one.name}", boot)
    return one.name


def _find_serving(storm: Storm, name: str) -> list[str]:
    """Return the load balancers whose HAProxy may send new requests to the node."""
    return [
        balancer.name
        for balancer in storm.site.balancers.values()
        for servers in balancer.read_servers().values()
        if name in servers and servers[name].state != "MAINT"
    ]


def _choose_pausable(storm: Storm) -> NodeModel | None:
    return storm.choose_node(lambda node: node.is_known and not node.is_out and storm.can_spare(node))


@action("pause by user event", 2)
def pause_by_event(storm: Storm) -> str | None:
    """A node sends the user event `pause`."""
    one = _choose_pausable(storm)
    if one is None:
        return None
    sender = storm.choose_other_node(one)
    storm.start_command(sender, "serf", "event", "-coalesce=false", "pause", one.name)
    one.busy = one.paused = True
    return f"{one.name} from {sender.name}"


@action("resume by user event", 2)
def resume_by_event(storm: Storm) -> str | None:
    """A node sends the user event `resume`."""
    one = storm.choose_node(lambda node: node.is_known and node.paused)
    if one is None:
        return None
    sender = storm.choose_other_node(one)
    storm.start_command(sender, "serf", "event", "-coalesce=false", "resume", one.name)
    one.busy, one.paused = True, False
    return f"{one.name} from {sender.name}"


@action("lbagent pause", 2)
def pause_on_balancer(storm: Storm) -> str | None:
    """An operator pauses a node on a load balancer."""
    one = _choose_pausable(storm)
    if one is None:
        return None
    balancer = storm.choose_balancer()
    storm.start_command(balancer, "lbagent", "pause", one.name, "--reason", "chaos")
    one.busy = one.paused = True
    return f"{one.name} on {balancer.name}"


@action("lbagent resume", 2)
def resume_on_balancer(storm: Storm) -> str | None:
    """An operator resumes a node on a load balancer."""
    one = storm.choose_node(lambda node: node.is_known and node.paused)
    if one is None:
        return None
    balancer = storm.choose_balancer()
    storm.start_command(balancer, "lbagent", "resume", one.name)
    one.busy, one.paused = True, False
    return f"{one.name} on {balancer.name}"


@action("reload by hand", 1)
def reload_by_hand(storm: Storm) -> str | None:
    """An operator reloads HAProxy."""
    balancer = storm.choose_balancer()
    if balancer.name in storm.disturbed:
        return None
    storm.start_command(balancer, "sh", "-c", "kill -USR2 $(cat /run/haproxy.pid)")
    return balancer.name


# Faults of nodes


@action("kill -9 of a web server", 2)
def kill_backend(storm: Storm) -> str | None:
    """A web server is killed, and started again later."""
    one = storm.choose_node(lambda node: node.agent == "alive" and node.backend and storm.can_spare(node))
    if one is None:
        return None
    node, reason = storm.node(one), "web server killed"
    one.busy, one.backend = True, False
    storm.begin_fault(one.name, reason)
    node.backend.kill()

    def restart() -> None:
        node.backend.start()
        one.backend = True
        storm.end_fault(one.name, reason)

    storm.later(f"web server of {one.name} started", restart)
    return one.name


@action("kill -9 of an agent", 2)
def kill_agent(storm: Storm) -> str | None:
    """A Serf agent is killed; the web server serves on. The agent is started again in another action."""
    one = storm.choose_node(lambda node: node.agent == "alive")
    if one is None:
        return None
    one.busy, one.agent = True, "dead"
    storm.node(one).serf.kill()
    return one.name


@action("start of a killed agent", 2)
def start_agent(storm: Storm) -> str | None:
    """A killed agent is started."""
    one = storm.choose_node(lambda node: node.agent == "dead")
    if one is None:
        return None
    one.busy, one.agent = True, "alive"
    storm.node(one).serf.start()
    return one.name


@action("freeze of a node", 2)
def freeze(storm: Storm) -> str | None:
    """All processes of a node stop (SIGSTOP), and continue later."""
    one = storm.choose_node(lambda node: node.agent == "alive" and storm.can_spare(node))
    if one is None:
        return None
    node, reason = storm.node(one), "node frozen"
    one.busy = True
    storm.begin_fault(one.name, reason)
    node.serf.freeze()
    node.backend.freeze()

    def thaw() -> None:
        node.serf.thaw()
        node.backend.thaw()
        storm.end_fault(one.name, reason)

    storm.later(f"freeze of {one.name}", thaw)
    return one.name


@action("freeze of an agent", 1)
def freeze_agent(storm: Storm) -> str | None:
    """A Serf agent stops, and continues later; the web server serves on."""
    one = storm.choose_node(lambda node: node.agent == "alive")
    if one is None:
        return None
    serf = storm.node(one).serf
    one.busy = True
    serf.freeze()
    storm.later(f"freeze of the agent of {one.name}", serf.thaw)
    return one.name
