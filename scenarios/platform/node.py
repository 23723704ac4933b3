"""A node of the platform: a machine, its services and its Serf agent, with the example's settings."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from scenarios.platform.balancer import Balancer
from scenarios.platform.machines import Machine, make_agent
from scenarios.platform.services import KINDS, find_kind, read_settings


class Node:
    """A machine with its services and its Serf agent."""

    def __init__(self, name: str, balancer: Balancer, folder: Path) -> None:
        """Prepare the node; `run_machine` creates the machine, without programs."""
        found = read_settings(name)
        self.name, self.address = name, found["bind"]
        self.machine = Machine(name, self.address)
        self.agent = make_agent(self.machine, balancer.write_settings(found), folder)
        self.programs = list(KINDS[find_kind(name)](self.machine, folder))

    @contextlib.contextmanager
    def run_machine(self) -> Iterator[None]:
        """Run the machine on the network. All programs on it end with it."""
        with self.machine, contextlib.ExitStack() as stack:
            stack.push(self.agent)
            stack.callback(self.crash)
            yield

    def serve(self) -> None:
        """Start the services, and wait until they answer."""
        for program in self.programs:
            program.start()
        for program in self.programs:
            program.wait_until_ready()

    def boot(self) -> None:
        """Start the services, then the agent."""
        self.serve()
        self.agent.start()

    def stop(self) -> None:
        """End the services, as an init system does; current requests are still answered."""
        for program in self.programs:
            program.end(signal.SIGQUIT if program.argv[-1].startswith("daemon off") else signal.SIGTERM)

    def crash(self) -> None:
        """Kill the services and the agent at once."""
        for program in self.programs:
            program.end(signal.SIGKILL)
        self.agent.kill()
