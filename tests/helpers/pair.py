"""Runs two load balancers, each with real HAProxy and a real Serf agent whose handler is lbagent."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Iterator, Sequence

from tests.helpers.real_programs import CONFIG, LBAGENT, ROLES, Haproxy, LoadBalancer, SerfAgent, wait_until

HANDLER = f"{LBAGENT} handle"


class Balancer:
    """One load balancer of a pair."""

    def __init__(self, name: str, address: str, lb: LoadBalancer, more: Sequence[str] = ()) -> None:
        """Nothing is started before `running`."""
        self.name, self.lb, self.haproxy = name, lb, Haproxy(lb)
        # Serf's default profile loses fewer queries than the profile for one machine.
        self.agent = SerfAgent(name, address, "lb", handler=HANDLER, env=lb.env, more=["-profile=lan", *more])

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run HAProxy and agent until the end of the block."""
        with self.haproxy, self.agent:
            yield

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run `lbagent` on this load balancer."""
        return self.lb.run(*words, env={"SERF_RPC_ADDR": self.agent.rpc})

    def rows(self, *words: str) -> tuple[int, dict[str, str]]:
        """Return the exit status of such a run, and its row for each load balancer."""
        done = self.run(*words)
        return done.returncode, dict(line.split(None, 1) for line in done.stdout.decode().splitlines())

    @property
    def text(self) -> bytes:
        """haproxy.cfg without the paths and ports that differ between the load balancers."""
        return self.lb.text.replace(bytes(self.lb.socket), b"SOCKET").replace(str(self.lb.front).encode(), b"FRONT")

    @property
    def digest(self) -> str:
        """The digest of the managed lines, from the answer to the query `lbagent-status`."""
        words = self.lb.send_query("lbagent-status", "", 1).stdout.decode().split()
        return next(word for word in words if word.startswith("digest="))


@contextlib.contextmanager
def run_pair(config: str = CONFIG, roles: str = ROLES, more: Sequence[str] = ()) -> Iterator[tuple[Balancer, Balancer]]:
    """Run two load balancers in one cluster, whose servers have the same ports."""
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(LoadBalancer(config, roles))
        same = {"{port}": str(one.port), "{front}": "{front}"}
        other = stack.enter_context(LoadBalancer(_fill_template(config, same), _fill_template(roles, same)))
        other.port = one.port
        two = Balancer("lb01", "127.0.0.9", one, more), Balancer("lb02", "127.0.0.10", other, more)
        for balancer in two:
            stack.enter_context(balancer.running())
        two[1].agent.join(two[0].agent)
        yield two


def join_both(two: Sequence[Balancer], *nodes: SerfAgent) -> None:
    """Join the nodes to both load balancers and wait until both have them."""
    for node in nodes:
        for balancer in two:
            node.join(balancer.agent)
    names = {node.name for node in nodes}
    for balancer in two:
        wait_until(functools.partial(_has_applied, balancer.lb, names))


def _has_applied(lb: LoadBalancer, names: set[str]) -> bool:
    return lb.idle and names <= set(lb.members())


def _fill_template(template: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        template = template.replace(key, value)
    return template
