"""What happens at random: changes, which must cost no request, and faults, whose failed requests are counted apart.

An action changes the machines and, at once, the model. A fault registers its end with `later`; the calm ends all that
are left. All choices come from one random generator and the model, so that a seed gives the same actions.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple, TypeVar

from scenarios.chaos.model import Fault, Model
from scenarios.chaos.model import Node as NodeModel
from scenarios.chaos.site import PORTS, Balancer, Node, Site
from scenarios.machines import Daemon
from scenarios.pair import Host
from tests.helpers.real_programs import clean_environment

MINIMUM_SERVING = 4
"""Nodes of a service that always serve: a pause of the last one is another subject."""

COMMAND_LIMIT = 90.0
"""Seconds that a command of an operator may take."""


Check = Callable[[int, str], str]
"""Gets exit status and output of a command; returns what is wrong, or nothing."""


Choice = TypeVar("Choice")


class Unfit(Exception):
    """An action does not fit the present state."""


class Started(NamedTuple):
    """A command that runs beside the actions."""

    words: str
    host: Host
    argv: Sequence[str]
    process: subprocess.Popen[str]
    thread: threading.Thread
    result: list[str]
    """Its output, after its end."""


class Promise(NamedTuple):
    """A load balancer has confirmed that no new request reaches the node. Times are monotonic seconds."""

    balancer: str
    node: str
    begin: float
    end: float


class Undo(NamedTuple):
    """The end of a fault."""

    step: int
    words: str
    work: Callable[[], None]


class Storm:
    """Makes random actions on a site and keeps the model true."""

    def __init__(self, site: Site, model: Model, dice: random.Random, log: IO[str], actions: Sequence[Action]) -> None:
        """Nothing happens yet."""
        self.site, self.model, self.dice, self._actions = site, model, dice, actions
        self.counts, self.faults = Counter[str](), list[Fault]()
        self.deaf, self.disturbed = Counter[str](), Counter[str]()
        """The load balancers that may miss events at present, and those that a fault of any kind disturbs."""
        self.broken = set[str]()
        """The load balancers whose haproxy.cfg HAProxy refuses at present, and `roles` if a roles.yml is refused."""
        self.killed, self.full, self.shimmed = set[Daemon](), set[str](), set[str]()
        """Programs killed or frozen; folders on a full disk; load balancers with a false clock or a slow disk."""
        self.cuts = 0
        self.must_start_agents = False
        """Whether a load balancer has forgotten failed nodes: Serf does not list them after a start."""
        self._open: dict[tuple[str, str], float] = {}
        self._undo, self._started, self._step = list[Undo](), list[Started](), 0
        self.promises, self._promised = list[Promise](), dict[tuple[str, str], float]()
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
            action = self.dice.choices(self._actions, [one.weight for one in self._actions])[0]
            with contextlib.suppress(Unfit):
                words = action.work(self)
                self.counts[action.name] += 1
                self.note(f"{action.name}: {words}")
                return

    def calm(self) -> None:
        """End all faults, and wait for all commands."""
        for undo in list(self._undo):
            self._run_undo(undo)
        if self.must_start_agents:
            self.must_start_agents = False
            for one in self.model.nodes.values():
                if one.agent == "dead":
                    one.agent = "alive"
                    self.node(one).serf.start()
                    self.note(f"agent of {one.name} started: a load balancer has forgotten failed nodes")
        # Arrival orders commands. An operator repeats one that did not reach the other load balancer.
        for command in self._end_commands():
            if "not asked: " in "".join(command.result):
                self.start_command(command.host, *command.argv)
        self._end_commands()
        for node in self.model.nodes.values():
            node.busy = False

    def _end_commands(self) -> list[Started]:
        """Wait for all commands, and return them."""
        ended, self._started = self._started, []
        for command in ended:
            command.thread.join(COMMAND_LIMIT)
            status = command.process.poll()
            if status is None:
                command.process.kill()
                self.wrong.append(f"{command.words}: not ended after {COMMAND_LIMIT:g} s")
            self.note(f"{command.words}: exit status {status}: {''.join(command.result).strip()!r}")
        return ended

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

    def start_command(self, host: Host, *argv: str, check: Check | None = None) -> None:
        """Run a command on a machine beside the actions. `check` gets exit status and output at its end."""
        process = subprocess.Popen(
            host.machine.inside(*argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**clean_environment(), **host.env},
        )
        words, result = f"{host.name}: {' '.join(argv)}", list[str]()

        def wait() -> None:
            output, _ = process.communicate()
            result.append(output)
            if check and (problem := check(process.returncode, output)):
                self.wrong.append(f"{words}: {problem}: exit status {process.returncode}: {output.strip()!r}")

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        self._started.append(Started(words, host, argv, process, thread, result))

    def start_pause(self, one: NodeModel, host: Host, *argv: str) -> None:
        """Run a command that pauses a node and prints the answers of the load balancers, which must be true."""
        undisturbed, step = self.is_undisturbed, self._step

        def check(status: int, output: str) -> str:
            now = time.monotonic()
            confirmed = {name for name, answer in _find_answers(output) if answer.startswith("done")}
            for name in confirmed:
                self._promised.setdefault((name, one.name), now)
            serving = [name for name in sorted(confirmed) if self._serves(name, one.name)]
            if serving:
                return f"{one.name} still serves on {serving}"
            if status and undisturbed and self.is_undisturbed and step == self._step:
                return "not confirmed, without any fault"
            return ""

        self.start_command(host, *argv, check=check)

    def end_promises(self, one: NodeModel) -> None:
        """The node is resumed from now on: requests may reach it."""
        for balancer in self.site.balancers:
            if (begin := self._promised.pop((balancer, one.name), None)) is not None:
                self.promises.append(Promise(balancer, one.name, begin, time.monotonic()))

    def list_promises(self) -> list[Promise]:
        """Return all promises, also those that still hold."""
        now = time.monotonic()
        return self.promises + [Promise(*key, begin, now) for key, begin in self._promised.items()]

    @property
    def is_undisturbed(self) -> bool:
        """Whether no fault is in effect."""
        return not self._undo

    def _serves(self, balancer: str, node: str) -> bool:
        """Return whether the HAProxy of this load balancer sends new requests to the node; no answer means no."""
        found = self.site.balancers[balancer].find_servers()
        return any(servers[node].state not in ("MAINT", "DRAIN") for servers in found.values() if node in servers)

    def choose_node(self, fits: Callable[[NodeModel], bool]) -> NodeModel:
        """Return a random node that fits and has not been changed since the last calm. Raises Unfit."""
        return self._choose([node for node in self.model.nodes.values() if not node.busy and fits(node)])

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

    def choose_balancer(self, fits: Callable[[Balancer], bool] = lambda _: True) -> Balancer:
        """Return a random load balancer that fits. Raises Unfit."""
        return self._choose([one for _, one in sorted(self.site.balancers.items()) if fits(one)])

    def _choose(self, found: Sequence[Choice]) -> Choice:
        if not found:
            raise Unfit
        return self.dice.choice(found)

    def may_be_deaf(self, balancer: Balancer) -> bool:
        """Return whether the other load balancer gets every event, so that this one may miss some."""
        return not +self.deaf - Counter({balancer.name: 1 << 30})

    def is_killed(self, program: Daemon) -> bool:
        """Return whether a fault has killed or frozen this program."""
        return program in self.killed

    def kill(self, program: Daemon) -> None:
        """Kill a program until `start`."""
        self.killed.add(program)
        program.kill()

    def start(self, program: Daemon) -> None:
        """Start a killed program."""
        program.start()
        self.killed.remove(program)

    def freeze(self, program: Daemon) -> None:
        """Freeze a program until `thaw`."""
        self.killed.add(program)
        program.freeze()

    def thaw(self, program: Daemon) -> None:
        """Let a frozen program continue."""
        program.thaw()
        self.killed.remove(program)

    def is_full(self, folder: str) -> bool:
        """Return whether the disk of this folder is full on a load balancer."""
        return folder in self.full

    def can_spare_all(self, nodes: Sequence[NodeModel]) -> bool:
        """Return whether enough other nodes serve each service."""
        names = {node.name for node in nodes}
        return all(len(self.model.list_serving(service) - names) >= MINIMUM_SERVING for service in PORTS)

    def disturb(self, balancer: Balancer, *, deaf: bool) -> None:
        """Record a fault of this load balancer. If `deaf`, it may miss events."""
        self.disturbed[balancer.name] += 1
        self.deaf[balancer.name] += deaf

    def settle(self, balancer: Balancer, *, deaf: bool) -> None:
        """Undo `disturb`."""
        self.disturbed[balancer.name] -= 1
        self.deaf[balancer.name] -= deaf

    def choose_other_node(self, than: NodeModel) -> Node:
        """Return a random living node, from which commands can be sent."""
        found = [one for one in self.model.nodes.values() if one.agent == "alive" and not one.busy and one is not than]
        return self.node(self.dice.choice(found))


def _find_answers(output: str) -> Iterator[tuple[str, str]]:
    """Yield load balancer and answer, from the output of `lbagent pause` or of `serf query`."""
    for line in output.splitlines():
        if found := re.match(r"(?:Response from ')?(lb\d+)(?:':)? +(.*)", line.strip()):
            yield found[1], found[2]


class Action(NamedTuple):
    """A kind of action. `work` returns what it has done. It raises Unfit, with nothing done, where it does not fit."""

    name: str
    weight: float
    work: Work


Work = Callable[[Storm], str]


class Registry:
    """The kinds of actions of a module."""

    def __init__(self) -> None:
        """Nothing is registered yet."""
        self.actions: list[Action] = []

    def __call__(self, name: str, weight: float) -> Callable[[Work], Work]:
        """Return a decorator that registers a kind of action; `weight` is how often it is chosen."""

        def register(work: Work) -> Work:
            self.actions.append(Action(name, weight, work))
            return work

        return register
