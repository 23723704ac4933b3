"""Ended pauses stay ended with real Serf and HAProxy, also when Serf replays their events."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import http_clients as traffic
from tests.helpers.daemon import run_watch
from tests.helpers.pair import Balancer
from tests.helpers.real_programs import CONFIG, ROLES, Backend, LoadBalancer, SerfAgent, binaries, wait_until

pytestmark = pytest.mark.real

COUNT = 20


def make_second_load_balancer(first: Balancer, binary: Path) -> Balancer:
    """Return another load balancer for the same servers, whose agent requests all earlier user events from Serf."""
    lb = LoadBalancer(CONFIG, ROLES.replace("{port}", str(first.lb.port)), binary)
    lb.port = first.lb.port
    return Balancer("lb02", "127.0.0.10", lb, ["-replay", f"-join={first.agent.bind}"])


class Client:
    """A client that sends requests to a load balancer and records the answering servers."""

    def __init__(self, port: int) -> None:
        """No request is sent before `sending`."""
        self._port, self.answers = port, list[tuple[str, str]]()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Send requests until the end of the block."""
        stop = threading.Event()

        def add_answer(how: str, server: str) -> float:
            self.answers.append((how, server.strip()))
            return 0.01

        thread = threading.Thread(
            target=traffic.send_request,
            args=(self._port, lambda: not stop.is_set(), add_answer),
            kwargs={"keep": False},
            daemon=True,
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)

    def find_gaps(self) -> set[str]:
        """Return the servers that answered none of 100 consecutive requests, and the failures."""
        names = {f"web{number:02}" for number in range(1, COUNT + 1)}
        failed = {how for how, _ in self.answers if how != "ok"}
        servers = [server for _, server in self.answers]
        windows = (set(servers[at : at + 100]) for at in range(0, len(servers) - 99, 20))
        return failed | {name for window in windows for name in names - window}


def list_servers(lb: LoadBalancer) -> list[str]:
    """Return the nodes with a server line, in the order of the file."""
    return [line.split()[1] for line in lb.managed if line.startswith("server ")]


def are_all_in(lb: LoadBalancer) -> bool:
    return len(list_servers(lb)) == COUNT and lb.idle


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", list(binaries())[:1] + list(binaries())[-1:])
def test_ended_pauses_stay_ended_when_serf_replays_them(version: str) -> None:
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(CONFIG, ROLES, binaries()[version]))
        one = Balancer("lb01", "127.0.0.9", lb)
        stack.enter_context(one.running())
        stack.enter_context(run_watch(lb, SERF_RPC_ADDR=one.agent.rpc))
        nodes = [
            SerfAgent(f"web{number:02}", f"127.0.0.{20 + number}", "web", more=[f"-join={one.agent.bind}"])
            for number in range(1, COUNT + 1)
        ]
        for node in nodes:
            stack.enter_context(Backend(node.name, node.address, lb.port))
            stack.enter_context(node)
        wait_until(lambda: are_all_in(lb))

        pause_all(nodes, one)
        asked = Client(lb.front)
        stack.enter_context(asked.sending())

        # A new load balancer, to which Serf replays all events.
        two = make_second_load_balancer(one, binaries()[version])
        stack.enter_context(two.lb)
        stack.enter_context(two.running())
        wait_until(lambda: are_all_in(two.lb))
        assert "Received event: user-event: pause" in two.agent.log
        other = Client(two.lb.front)
        with other.sending():
            exchange_pauses(two, one)
            wait_for_requests(asked, other)

            # A load balancer that was down during the pauses and their ends.
            two.agent.kill()
            assert asked.find_gaps() == set()
            pause_all(nodes, one)
            asked.answers.clear()
            two.agent.start()
            wait_until(lambda: set(two.agent.members().values()) == {"alive"} and len(two.agent.members()) == COUNT + 2)
            wait_until(lambda: two.lb.idle)
            exchange_pauses(two, one)
            wait_for_requests(asked, other)

        print(f"{COUNT} nodes; requests since the replays: {len(asked.answers)} to lb01, {len(other.answers)} to lb02")
        assert (other.find_gaps(), asked.find_gaps()) == (set(), set())
        assert list_servers(two.lb) == list_servers(lb) == [node.name for node in nodes]


def pause_all(nodes: list[SerfAgent], one: Balancer) -> None:
    """Pause every node by its own payload, half of them as older scripts send it, and wait until all have ended.

    On a busy machine a pause may end before it arrives. Such a node sends another one that lasts twice as long.
    """
    earlier, missing = len(one.lb.history()), nodes
    for seconds in (8, 16, 32):
        for number, node in enumerate(missing):
            end = int(time.time()) + seconds
            words = f"until={end} reason=patch day" if number % 2 else f"for={seconds - 2}s"
            node.send_event("pause", f"{node.name} {words}")
        last, names = time.time() + seconds, {node.name for node in nodes}
        wait_until(lambda: were_paused(one.lb, earlier) == names or time.time() > last)  # noqa: B023  # called here
        missing = [node for node in nodes if node.name not in were_paused(one.lb, earlier)]
        if not missing:
            break
    assert missing == []
    wait_until(lambda: are_all_in(one.lb))


def were_paused(lb: LoadBalancer, earlier: int) -> set[str]:
    """Return the nodes that have been paused since the history had `earlier` entries."""
    added = (line for entry in lb.history()[earlier:] for line in entry["added"])
    return {line.split("# lbagent paused ")[1].split()[0] for line in added if "# lbagent paused " in line}


def exchange_pauses(*balancers: Balancer) -> None:
    """Sync each load balancer until the other one has reported its pauses: on a busy machine its answer can be late."""
    for balancer in balancers:
        wait_until(functools.partial(has_all_reports, balancer))


def has_all_reports(balancer: Balancer) -> bool:
    """Sync; return whether every other load balancer has reported its pauses."""
    run = balancer.run("sync")
    assert run.returncode == 0
    return b"did not report" not in run.stderr


def wait_for_requests(*clients: Client) -> None:
    """Wait until each client has received 300 more answers."""
    counts = [len(client.answers) + 300 for client in clients]
    wait_until(lambda: all(len(one.answers) >= count for one, count in zip(clients, counts, strict=True)))


def test_a_renamed_host_is_paused_on_a_load_balancer_that_never_saw_its_old_name() -> None:
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(CONFIG, ROLES))
        one = Balancer("lb01", "127.0.0.9", lb)
        stack.enter_context(one.running())
        old = SerfAgent("web10", "127.0.0.31", "web", more=[f"-join={one.agent.bind}"])
        stack.enter_context(old)
        wait_until(lambda: list_servers(lb) == ["web10"] and lb.idle)
        assert one.agent.send_query("pause", "web10")["lb01"].split(",")[0] == "done"
        old.leave()
        wait_until(lb.is_settled)
        stack.enter_context(SerfAgent("web01", "127.0.0.31", "web", more=[f"-join={one.agent.bind}"]))
        out = "# lbagent paused web01 127.0.0.31 role=web"
        wait_until(lambda: lb.is_settled(out))

        two = make_second_load_balancer(one, lb.binary)
        stack.enter_context(two.lb)
        stack.enter_context(two.running())
        wait_until(lambda: two.lb.managed != [] and two.lb.idle)

        exchange_pauses(two, one)

        assert (lb.managed, two.lb.managed) == ([out], [out])
        status, rows = two.rows("resume", "web01")
        assert (status, rows) == (0, {"lb01": "done", "lb02": "done"})
        assert list_servers(lb) == list_servers(two.lb) == ["web01"]
