"""Real Serf agents call the real `lbagent handle`, and a real HAProxy serves the lines that it writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.helpers.real_programs import (
    LBAGENT,
    RELOADING,
    Backend,
    Haproxy,
    LoadBalancer,
    SerfAgent,
    binaries,
    wait_until,
)

pytestmark = pytest.mark.real

SORRY = "503"
"""The answer of HAProxy without a server."""


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    with LoadBalancer(binary=request.param) as one:
        yield one


class Node:
    """A web node: its Serf agent and the web server beside it."""

    def __init__(self, lb: LoadBalancer, number: int) -> None:
        self.name, self.address = f"web{number:02}", f"127.0.0.{10 + number}"
        self.backend = Backend(self.name, self.address, lb.port)
        self.agent = SerfAgent(self.name, self.address, "web")
        self.line = lb.server(self.name, self.address)
        self.paused = f"# lbagent paused {self.name} {self.address} role=web"
        self.words = f"{self.name} {self.address} web"
        """The payload of a node's own pause or resume."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.backend)
            stack.enter_context(self.agent)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextlib.contextmanager
def run_agent(lb: LoadBalancer) -> Iterator[SerfAgent]:
    """Run the agent of the load balancer with lbagent as event handler; fails if a run of it failed."""
    with SerfAgent("lb01", "127.0.0.10", "lb", handler=f"{LBAGENT} handle", env=lb.env) as agent:
        yield agent
        assert "Error invoking script" not in agent.log


@contextlib.contextmanager
def run_cluster(lb: LoadBalancer, nodes: int) -> Iterator[tuple[SerfAgent, list[Node]]]:
    """Run the agent of a load balancer and `nodes` nodes that have joined and are served."""
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(run_agent(lb))
        found = [stack.enter_context(Node(lb, number)) for number in range(1, nodes + 1)]
        for node in found:
            node.agent.join(agent)
        wait_until(lambda: lb.is_settled(*(node.line for node in found)))
        yield agent, found


def test_five_nodes_that_join_at_once_all_answer(lb: LoadBalancer) -> None:
    with contextlib.ExitStack() as stack:
        haproxy = stack.enter_context(Haproxy(lb))
        agent = stack.enter_context(run_agent(lb))
        nodes = [stack.enter_context(Node(lb, number)) for number in (1, 2, 3, 4, 5)]
        first = haproxy.find_answering()

        for node in nodes:
            node.agent.join(agent)

        assert first == {SORRY}
        wait_until(lambda: lb.is_settled(*(node.line for node in nodes)))
        wait_until(lambda: haproxy.servers() == dict.fromkeys((node.name for node in nodes), "UP"))
        assert haproxy.find_answering() == {"web01", "web02", "web03", "web04", "web05"}
        assert set(lb.list_outcomes()) == {"applied"}
        assert lb.list_staged() == []


def test_nodes_that_are_older_than_the_load_balancer_join_in_one_batch(lb: LoadBalancer) -> None:
    with contextlib.ExitStack() as stack:
        haproxy = stack.enter_context(Haproxy(lb))
        nodes = [stack.enter_context(Node(lb, number)) for number in (1, 2, 3, 4, 5)]
        for node in nodes[1:]:
            node.agent.join(nodes[0].agent)
        wait_until(lambda: len(nodes[0].agent.members()) == len(nodes))
        agent = stack.enter_context(run_agent(lb))

        agent.join(nodes[0].agent)

        wait_until(lambda: lb.is_settled(*(node.line for node in nodes)))
        assert haproxy.find_answering() == {"web01", "web02", "web03", "web04", "web05"}
        assert haproxy.reloads() == (0, 0)
        assert lb.list_outcomes() == ["applied"]


def test_a_paused_node_stays_paused_after_a_reboot_until_it_is_resumed(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_cluster(lb, 3) as (agent, nodes):
        one, two, three = nodes

        # The shutdown script of the node sends the pause before anything ends.
        two.agent.send_event("pause", two.words)
        wait_until(lambda: lb.is_settled(one.line, two.paused, three.line))
        before = two.backend.requests
        assert haproxy.find_answering(30) == {"web01", "web03"}
        assert two.backend.requests == before

        two.agent.leave()
        wait_until(lambda: lb.is_settled(one.line, three.line))
        assert haproxy.find_answering() == {"web01", "web03"}

        two.agent.start()
        two.agent.join(agent)
        wait_until(lambda: lb.is_settled(one.line, two.paused, three.line))
        assert haproxy.find_answering(30) == {"web01", "web03"}
        assert two.backend.requests == before

        two.agent.send_event("resume", two.words)
        wait_until(lambda: lb.is_settled(one.line, two.line, three.line))
        wait_until(lambda: haproxy.find_answering() == {"web01", "web02", "web03"})

        two.agent.leave()
        wait_until(lambda: lb.is_settled(one.line, three.line))
        assert haproxy.find_answering() == {"web01", "web03"}
        assert set(lb.list_outcomes()) == {"applied"}
        assert lb.list_staged() == []


def test_a_killed_node_keeps_its_line_and_haproxys_check_marks_it_down(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_cluster(lb, 2) as (agent, (one, two)):
        wait_until(lambda: haproxy.servers() == {"web01": "UP", "web02": "UP"})
        reloads = haproxy.reloads()

        two.agent.kill()
        two.backend.stop()

        wait_until(lambda: haproxy.servers() == {"web01": "UP", "web02": "DOWN"})
        assert haproxy.find_answering() == {"web01"}
        wait_until(lambda: agent.members()["web02"] == "failed")
        wait_until(lambda: lb.members()["web02"]["status"] == "failed")
        wait_until(lambda: lb.idle)
        assert lb.managed == [one.line, two.line]
        assert haproxy.reloads() == reloads

        two.backend.start()
        two.agent.start()
        two.agent.join(agent)

        wait_until(lambda: lb.members()["web02"]["status"] == "alive")
        wait_until(lambda: haproxy.find_answering() == {"web01", "web02"})
        assert lb.managed == [one.line, two.line]
        assert haproxy.reloads() == reloads


def test_a_query_is_answered_done_once_haproxy_serves_it(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_cluster(lb, 2) as (_, (one, two)):
        paused = two.agent.send_query("pause", two.words)
        before = two.backend.requests
        during, lines = haproxy.find_answering(30), lb.managed
        reached = two.backend.requests - before
        again = two.agent.send_query("pause", two.words)
        resumed = two.agent.send_query("resume", two.words)

        assert [paused, again, resumed] == [{"lb01": "done"}] * 3
        assert (during, reached) == ({"web01"}, 0)
        assert lines == [one.line, two.paused]
        assert lb.managed == [one.line, two.line]
        assert haproxy.find_answering() == {"web01", "web02"}


def test_a_query_about_an_unknown_node_is_answered_unknown_node(lb: LoadBalancer) -> None:
    with Haproxy(lb), run_cluster(lb, 1) as (agent, (one,)):
        paused = agent.send_query("pause", "web77 127.0.0.77 web")
        resumed = agent.send_query("resume", "web88")
        malformed = agent.send_query("pause", "one two three 4")

        assert paused == {"lb01": "unknown node, remembered"}
        assert resumed == {"lb01": "unknown node"}
        assert malformed == {
            "lb01": "refused: pause: invalid payload 'one two three 4'; send NAME [ADDRESS] [ROLE] [for=2h] [reason=…]"
        }
        assert lb.managed == [one.line]


def test_a_haproxy_without_a_master_is_replaced_by_a_new_process(lb: LoadBalancer) -> None:
    lb.roles.write_text(lb.fill_template(RELOADING))
    with Haproxy(lb, "-D") as haproxy, run_agent(lb) as agent, Node(lb, 1) as one, Node(lb, 2) as two:
        first = haproxy.worker()

        one.agent.join(agent)
        two.agent.join(agent)
        wait_until(lambda: lb.is_settled(one.line, two.line))
        assert haproxy.find_answering() == {"web01", "web02"}
        assert haproxy.worker() == haproxy.pid != first

        second = haproxy.worker()
        two.agent.send_event("pause", two.words)
        wait_until(lambda: lb.is_settled(one.line, two.paused))
        before = two.backend.requests
        assert haproxy.find_answering(30) == {"web01"}
        assert two.backend.requests == before
        assert haproxy.worker() == haproxy.pid != second

        wait_until(lambda: haproxy.workers() == [haproxy.pid])


OWN_RELOAD = RELOADING.replace("  timeout:", "  reload: [sh, {folder}/reload.sh, now]\n  timeout:")


def test_the_configured_reload_command_is_used() -> None:
    with LoadBalancer(roles=OWN_RELOAD) as lb, Haproxy(lb) as haproxy:
        script = lb.folder / "reload.sh"
        script.write_text(f'echo "$*" >>{lb.folder}/output\necho reloading\nkill -USR2 $(cat {haproxy.pidfile})\n')
        with run_cluster(lb, 1) as (agent, (one,)):
            asked = one.agent.send_query("pause", one.words)

            output = Path(lb.folder / "output").read_text()
            assert asked == {"lb01": "done, no other server of iis serves"}
            assert lb.managed == [one.paused]
            assert output == "now\nnow\n"
            assert haproxy.reloads() == (2, 0)
            assert agent.members() == {"lb01": "alive", "web01": "alive"}
