"""A node of the platform: a machine, its services and its Serf agent, with the example's settings."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from scenarios.platform.balancer import Balancer
from scenarios.platform.machines import Machine, agent
from scenarios.platform.services import KINDS, kind_of, settings


class Node:
    """A machine with its services and its Serf agent."""

    def __init__(self, name: str, balancer: Balancer, folder: Path) -> None:
        """Nothing runs before the `with`, and then only the machine."""
        found = settings(name)
        self.name, self.address = name, found["bind"]
        self.machine = Machine(name, self.address)
        self.agent = agent(self.machine, balancer.configured(found), folder)
        self.programs = list(KINDS[kind_of(name)](self.machine, folder))

    @contextlib.contextmanager
    def plugged(self) -> Iterator[None]:
        """The machine, on the network; whatever runs on it then ends with it."""
        with self.machine, contextlib.ExitStack() as stack:
            stack.push(self.agent)
            stack.callback(self.crash)
            yield

    def serve(self) -> None:
        """Start the services, and wait until they answer."""
        for program in self.programs:
            program.start()
        for program in self.programs:
            program.ready()

    def boot(self) -> None:
        """Start the services, then the agent."""
        self.serve()
        self.agent.start()

    def shut(self) -> None:
        """End the services, as an init system does: who is being answered still is."""
        for program in self.programs:
            program.end(signal.SIGQUIT if program.argv[-1].startswith("daemon off") else signal.SIGTERM)

    def crash(self) -> None:
        """End everything at once."""
        for program in self.programs:
            program.end(signal.SIGKILL)
        self.agent.kill()
