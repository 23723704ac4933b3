"""pause, resume and forget on one load balancer of a real pair take effect on both and report each result."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.helpers.pair import Balancer, join_both, run_pair
from tests.helpers.real_programs import LBAGENT, Backend, LoadBalancer, SerfAgent, member_line, wait_until

pytestmark = pytest.mark.real


class WebNode:
    """A web node whose requests are counted."""

    def __init__(self, number: int, port: int) -> None:
        """Nothing is started here."""
        self.name, self.address = f"web{number:02}", f"127.0.0.{10 + number}"
        self.backend = Backend(self.name, self.address, port)
        self.agent = SerfAgent(self.name, self.address, "web")

    @property
    def paused_line(self) -> str:
        """The managed line of the paused node."""
        return f"# lbagent paused {self.name} {self.address} role=web"


Pair = tuple[Balancer, Balancer, list[WebNode]]
"""Two load balancers and their nodes."""


@pytest.fixture(scope="module")
def shared_pair() -> Iterator[Pair]:
    """A pair and two nodes, shared by all tests of this file."""
    with contextlib.ExitStack() as stack:
        one, other = stack.enter_context(run_pair())
        nodes = [WebNode(number, one.lb.port) for number in (1, 2)]
        for node in nodes:
            stack.enter_context(node.backend)
            stack.enter_context(node.agent)
        join_both((one, other), *(node.agent for node in nodes))
        yield one, other, nodes


@pytest.fixture
def balanced_pair(
    shared_pair: Pair,
) -> Iterator[Pair]:
    """The same pair; no node is paused before and after the test."""
    one, other, nodes = shared_pair
    yield shared_pair
    for balancer in (one, other):
        balancer.lb.count_checks()  # restores `haproxy -c`
        for node in nodes:
            balancer.run("resume", node.name)
    wait_until(lambda: not any(line.startswith("#") for line in one.lb.managed + other.lb.managed))


def test_a_pause_confirmed_by_both_stops_all_traffic_to_the_node(
    balanced_pair: Pair,
) -> None:
    one, other, (node, rest) = balanced_pair
    for balancer in (one, other):
        wait_until(functools.partial(_serves_both, balancer))

    done = one.rows("pause", node.name, "--for", "2h", "--reason", "patch  day")
    requests = node.backend.requests
    answering = [balancer.haproxy.find_answering(40) for balancer in (one, other)]

    assert done == (0, {"lb01": "done", "lb02": "done"})
    assert (answering, node.backend.requests) == ([{rest.name}, {rest.name}], requests)
    for balancer, by in ((one, "operator on lb01"), (other, "operator on lb01, by query")):
        assert balancer.lb.managed[0] == node.paused_line
        pause = balancer.lb.members()[node.name]["pause"]
        assert (pause.by, pause.reason) == (by, "patch day")
    assert one.lb.members()[node.name]["pause"].until == other.lb.members()[node.name]["pause"].until

    assert other.rows("resume", node.name) == (0, {"lb01": "done", "lb02": "done"})
    for balancer in (one, other):
        wait_until(functools.partial(_serves_both, balancer))


@pytest.mark.parametrize("stdout", ["a closed pipe", "a full disk"])
def test_a_pause_reaches_the_other_load_balancer_although_stdout_cannot_be_written(
    balanced_pair: Pair, stdout: str
) -> None:
    one, other, nodes = balanced_pair
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed, open("/dev/full", "wb") as full:
        done = subprocess.run(
            [LBAGENT, "pause", *(node.name for node in nodes), "--force"],
            stdout=closed if stdout == "a closed pipe" else full,
            stderr=subprocess.PIPE,
            env={**one.lb.env, "SERF_RPC_ADDR": one.agent.rpc},
            timeout=60,
            check=False,
        )

    error = b"lbagent: stdout: No space left on device\n" if stdout == "a full disk" else b""
    assert (done.returncode, done.stderr) == (1, error)
    for balancer in (one, other):
        assert balancer.lb.managed == [node.paused_line for node in nodes]


def test_a_load_balancer_that_does_not_confirm_is_named(
    balanced_pair: Pair,
) -> None:
    one, other, (node, _) = balanced_pair
    gate = other.lb.hold_checks()  # the handler of lb02 hangs

    status, rows = one.rows("pause", node.name)

    gate.touch()
    wait_until(lambda: other.lb.is_settled(node.paused_line, other.lb.server("web02", "127.0.0.12")))
    assert (status, rows) == (1, {"lb01": "done", "lb02": "not answered"})
    assert one.lb.managed[0] == node.paused_line


def test_a_load_balancer_that_cannot_apply_a_pause_answers_why(
    balanced_pair: Pair,
) -> None:
    one, other, (node, _) = balanced_pair
    text = other.lb.text
    other.lb.text = text.replace(b"balance roundrobin", b"balanse roundrobin")

    status, rows = one.rows("pause", node.name)

    other.lb.text = text
    assert (status, rows["lb01"]) == (1, "done")
    assert rows["lb02"].startswith(
        "not applied yet: haproxy.cfg is invalid, not because of lbagent; nothing was changed: parsing ["
    )
    assert other.run("apply").returncode == 0
    assert other.lb.managed[0] == node.paused_line


def test_a_pause_of_an_unknown_node_is_remembered_and_not_confirmed(
    balanced_pair: Pair,
) -> None:
    one, _, _ = balanced_pair

    assert one.rows("pause", "web77") == (1, dict.fromkeys(("lb01", "lb02"), "unknown node, remembered"))
    assert one.rows("resume", "web78") == (1, dict.fromkeys(("lb01", "lb02"), "unknown node"))
    status, answers = one.rows("forget", "web77")
    assert (status, answers["lb01"]) == (0, "done")
    # A load balancer whose answer comes too late is asked again, and has forgotten the node by then.
    assert answers["lb02"] in ("done", "unknown node")


def test_forgetting_an_unknown_node_fails(balanced_pair: Pair) -> None:
    one, _, _ = balanced_pair

    assert one.rows("forget", "web0l") == (1, dict.fromkeys(("lb01", "lb02"), "unknown node"))


def test_the_answer_to_a_pause_has_the_number_of_open_sessions(
    balanced_pair: Pair,
) -> None:
    one, _, (node, _) = balanced_pair
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(_connect(node))

        status, rows = one.rows("pause", node.name)

    assert (status, rows) == (0, dict.fromkeys(("lb01", "lb02"), "done, 3 sessions still open"))


def test_a_node_with_the_tag_stays_paused_after_a_resume(
    balanced_pair: Pair,
) -> None:
    one, other, (node, _) = balanced_pair
    node.agent.set_tags(lbagent="paused")
    wait_until(lambda: node.paused_line in one.lb.managed and node.paused_line in other.lb.managed)

    status, rows = one.rows("resume", node.name)

    assert (status, rows) == (1, dict.fromkeys(("lb01", "lb02"), "still paused by its tag"))
    assert node.paused_line in one.lb.managed
    node.agent._serf("tags", "-delete", "lbagent")
    wait_until(lambda: node.paused_line not in one.lb.managed and node.paused_line not in other.lb.managed)


def test_forgetting_a_node_that_is_alive_is_refused(balanced_pair: Pair) -> None:
    one, _, (node, _) = balanced_pair
    before = one.lb.managed

    assert one.rows("forget", node.name) == (1, dict.fromkeys(("lb01", "lb02"), "refused: web01 is alive"))
    assert one.lb.managed == before


def test_a_failed_node_is_forgotten_with_its_pause_on_both() -> None:
    with run_pair() as (one, other), SerfAgent("web01", "127.0.0.11", "web") as web:
        join_both((one, other), web)
        assert one.rows("pause", "web01", "--force")[0] == 0
        web.kill()
        for balancer in (one, other):
            wait_until(functools.partial(_has_failed, balancer), 40)

        done = one.rows("forget", "web01")
        synced = [balancer.run("sync", "--force").returncode for balancer in (one, other)]

        assert done == (0, {"lb01": "done", "lb02": "done"})
        assert synced == [0, 0]  # Serf still lists it as failed
        for balancer in (one, other):
            assert balancer.lb.managed == []
            assert [balancer.lb.members()["web01"][key] for key in ("status", "pause")] == ["left", None]


def test_a_load_balancer_with_an_invalid_name_has_a_row() -> None:
    with (
        run_pair() as (one, other),
        SerfAgent("lb 03", "127.0.0.8", "lb") as odd,
        SerfAgent("web01", "127.0.0.11") as web,
    ):
        join_both((one, other), web)
        odd.join(one.agent)
        wait_until(lambda: "lb 03" in one.agent.members())

        done = one.run("pause", "web01")

        assert done.returncode == 1
        assert done.stdout.decode().splitlines() == [
            "lb01   done",
            "lb02   done",
            "lb 03  not asked: its name or address in Serf is invalid",
        ], (one.agent.log, other.agent.log)


def test_a_query_whose_program_hangs_is_sent_again(balanced_pair: Pair) -> None:
    one, other, nodes = balanced_pair
    real, link, marker = shutil.which("serf"), one.lb.bin / "serf", one.lb.folder / "hung"
    link.write_text(f'#!/bin/sh\nif [ "$1" = query ] && mkdir {marker}; then sleep 60; fi\nexec {real} "$@"\n')
    link.chmod(0o755)
    try:
        found = one.rows("pause", nodes[0].name, "--force")
    finally:
        link.unlink()

    assert marker.exists()
    assert found == (0, {"lb01": "done", "lb02": "done"})
    assert [balancer.lb.managed[0] for balancer in (one, other)] == [nodes[0].paused_line] * 2


def test_without_a_serf_agent_the_pause_is_applied_here_and_the_rest_reported() -> None:
    with run_pair() as (one, other), SerfAgent("web01", "127.0.0.11", "web") as web:
        join_both((one, other), web)
        one.agent.kill()

        done = one.run("pause", "web01", "--force")

        here, others = done.stdout.decode().splitlines()
        assert (done.returncode, here.split()[1]) == (1, "done,")
        assert others.startswith("others  not asked: Serf agent: `serf info` failed: Error connecting")
        assert one.lb.managed == ["# lbagent paused web01 127.0.0.11 role=web"]


# --- several nodes, and the last one --------------------------------------------------------------------------------


LAST = "done, no other server of iis serves"


def test_several_nodes_are_paused_and_resumed_by_one_command(
    balanced_pair: Pair,
) -> None:
    one, other, (node, rest) = balanced_pair

    paused = one.run("pause", "web01", "web02", "web01", "--force")
    texts = [balancer.lb.managed for balancer in (one, other)]
    resumed = one.run("resume", "web01", "web02")

    assert (paused.returncode, resumed.returncode) == (0, 0)
    rows = [(name, lb) for lb in ("lb01", "lb02") for name in ("web01", "web02")]
    # This load balancer applies both in one run; the other one is queried node by node, web01 first.
    printed = sorted(paused.stdout.decode().splitlines())
    assert printed[1] in ("web01  lb02  done", f"web01  lb02  {LAST}")
    assert [printed[0], *printed[2:]] == [f"{row}  {LAST}" for row in ("web01  lb01", "web02  lb01", "web02  lb02")]
    assert sorted(resumed.stdout.decode().splitlines()) == sorted(f"{name}  {lb}  done" for name, lb in rows)
    assert texts == [[node.paused_line, rest.paused_line]] * 2
    for balancer in (one, other):
        wait_until(functools.partial(_serves_both, balancer))


@pytest.mark.parametrize("words", [["web02"], ["WEB02"], ["127.0.0.12"], ["web01", "web02"]])
def test_the_last_server_of_a_service_needs_force(balanced_pair: Pair, words: list[str]) -> None:
    one, other, (node, rest) = balanced_pair
    assert one.rows("pause", node.name) == (0, {"lb01": "done", "lb02": "done"})
    before = one.lb.text, other.lb.text, other.lb.members()

    refused = one.run("pause", *words)

    message = f"{', '.join(words)}: no other server of iis serves; resume another node first, or use --force"
    assert (refused.returncode, refused.stdout, refused.stderr.decode()) == (3, b"", f"lbagent: {message}\n")
    assert (one.lb.text, other.lb.text, other.lb.members()) == before
    assert one.lb.members()["web02"]["pause"] is None
    assert one.haproxy.find_answering() == {rest.name}
    assert one.rows("pause", node.name) == (0, {"lb01": LAST.replace(LAST, "done"), "lb02": "done"})
    assert one.rows("pause", rest.name, "--force") == (0, dict.fromkeys(("lb01", "lb02"), LAST))
    assert one.haproxy.find_answering() == {"503"}


def test_two_commands_at_once_cannot_pause_the_last_two_servers(
    balanced_pair: Pair,
) -> None:
    one, _, (node, rest) = balanced_pair
    gate, before = one.lb.hold_checks(), one.lb.checks

    at_once = [one.lb.start("pause", name, env={"SERF_RPC_ADDR": one.agent.rpc}) for name in (node.name, rest.name)]
    try:
        wait_until(lambda: one.lb.checks > before)
    finally:
        gate.touch()
        ended = sorted((process.communicate()[1], process.returncode)[1] for process in at_once)

    assert ended == [0, 3]
    assert sum(line.startswith("#") for line in one.lb.managed) == 1
    assert len(one.haproxy.find_answering()) == 1


def test_a_server_that_is_down_does_not_count_as_another_server(
    balanced_pair: Pair,
) -> None:
    one, _, (node, rest) = balanced_pair
    rest.backend.stop()
    wait_until(lambda: one.haproxy.servers()[rest.name] == "DOWN")

    status = one.run("pause", node.name).returncode

    rest.backend.start()
    wait_until(lambda: one.haproxy.servers()[rest.name] == "UP")
    assert (status, one.lb.members()[node.name]["pause"]) == (3, None)


def test_a_query_from_a_node_pauses_the_last_server(balanced_pair: Pair) -> None:
    one, other, (node, rest) = balanced_pair
    assert one.run("pause", rest.name).returncode == 0

    assert node.agent.send_query("pause", node.name, 2) == dict.fromkeys(("lb01", "lb02"), LAST)
    assert (one.haproxy.find_answering(), other.haproxy.find_answering()) == ({"503"}, {"503"})


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_rows_are_printed_as_answers_arrive_and_an_interrupt_prints_what_is_in_effect(
    balanced_pair: Pair, number: signal.Signals
) -> None:
    one, other, (node, rest) = balanced_pair
    gate, before = other.lb.hold_checks(), other.lb.checks  # the handler of lb02 hangs
    asking = one.lb.start("pause", node.name, env={"SERF_RPC_ADDR": one.agent.rpc})
    assert asking.stdout
    assert asking.stderr
    assert asking.stdout.readline() == b"lb01  done\n"
    wait_until(lambda: other.lb.checks > before)

    asking.send_signal(number)
    out, message = asking.communicate()

    gate.touch()
    assert (asking.returncode, out) == (130, b"")
    rest_of_it = "in effect on lb01; not answered: lb02; run it again to ask them"
    assert message.decode() == f"lbagent: interrupted: pause of web01: {rest_of_it}\n"
    assert one.haproxy.find_answering() == {rest.name}
    wait_until(lambda: other.lb.is_settled(node.paused_line, other.lb.server("web02", "127.0.0.12")))


def _serves_both(balancer: Balancer) -> bool:
    return balancer.haproxy.find_answering() == {"web01", "web02"}


def _has_failed(balancer: Balancer) -> bool:
    return bool(balancer.lb.members()["web01"]["status"] == "failed" and balancer.lb.idle)


@contextlib.contextmanager
def _connect(node: WebNode) -> Iterator[None]:
    with socket.create_connection((node.address, node.backend.port)):
        yield


# --- invalid arguments ----------------------------------------------------------------------------------------------


NO_TIME = "not a time such as 90s, 15m, 2h or 7d, of at most ten years"
NO_REASON = "at most 200 printable characters, of 400 bytes, can be sent"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pause", "web 01"], "'web 01' is neither a node's name nor an address"),
        (["resume", "-x"], "the following arguments are required: NODE (see `lbagent resume --help`)"),
        (["forget", "web01\nserver evil"], "'web01\\nserver evil' is neither a node's name nor an address"),
        (["pause", "web01", "--for", "2"], f"--for '2' is {NO_TIME}"),
        (["pause", "web01", "--for", "0s"], f"--for '0s' is {NO_TIME}"),
        (["pause", "web01", "--for", "2w"], f"--for '2w' is {NO_TIME}"),
        (["pause", "web01", "--for", "9999999d"], f"--for '9999999d' is {NO_TIME}"),
        (["pause", "web01", "--wait", "30"], f"--wait '30' is {NO_TIME}"),
        (["pause", "web01", "--wait", "0s"], f"--wait '0s' is {NO_TIME}"),
        (["pause", "web01", "--wait="], f"--wait '' is {NO_TIME}"),
        (["pause", "--wait=-1s", "web01"], f"--wait '-1s' is {NO_TIME}"),
        (["pause", "web01", "--reason", "x" * 201], f"--reason has 201 characters, of 201 bytes: {NO_REASON}"),
        (["pause", "web01", "--reason", "日" * 134], f"--reason has 134 characters, of 402 bytes: {NO_REASON}"),
        (["pause", "web01", "--reason", "a\x1bb"], f"--reason has 3 characters, of 3 bytes: {NO_REASON}"),
        (["pause", "web01", "--reason", "a\udcffb"], f"--reason has 3 characters, of 3 bytes: {NO_REASON}"),
    ],
)
def test_invalid_arguments_give_one_line_and_change_nothing(lb: LoadBalancer, words: list[str], message: str) -> None:
    before = lb.text

    done = lb.run(*words)

    assert (done.returncode, done.stderr.decode()) == (2, f"lbagent: {message}\n")
    assert (lb.text, lb.members(), lb.list_spool()) == (before, {}, [])


@pytest.mark.parametrize(
    "words", [["web01", "--for", "2h", "web02"], ["--wait", "web01", "web02"], ["web01", "web02", "--wait", "--for=2h"]]
)
def test_nodes_and_options_may_be_in_any_order(lb: LoadBalancer, words: list[str]) -> None:
    done = lb.run("pause", *words)

    here = [line.split(None, 2)[::2] for line in done.stdout.decode().splitlines() if " others " not in line]
    assert here == [["web01", "unknown node, remembered"], ["web02", "unknown node, remembered"]]


# --- commands that another run applies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "words"), [("lbagent-forget", b"refused: web01 is alive\n"), ("resume", b"still paused by its tag\n")]
)
def test_the_answer_is_true_where_another_run_applies_the_command(lb: LoadBalancer, query: str, words: bytes) -> None:
    lb.join(member_line("web01", "127.0.0.11", lbagent="paused"))
    gate = lb.hold_checks()
    first = lb.start_handle("member-join", member_line("web02", "127.0.0.12"))
    wait_until(lambda: lb.checks == 1)
    asking = lb.start_handle("query", b"web01\n", SERF_QUERY_NAME=query, SERF_QUERY_LTIME="1")
    wait_until(lambda: lb.list_spool() != [])

    gate.touch()

    assert asking.communicate()[0] == words
    assert first.communicate()[1] == b""


def test_the_status_query_counts_the_open_sessions_of_paused_nodes_and_echoes_no_invalid_name(lb: LoadBalancer) -> None:
    lb.join(member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12"))
    lb.send_query("pause", "web01", 1)
    with Backend("web01", "127.0.0.11", lb.port), socket.create_connection(("127.0.0.11", lb.port)):
        answer = lb.send_query("lbagent-status", "sessions web01 127.0.0.11 web02 web03 \x1b[1m;", 2).stdout

    assert answer == b"web01=1 127.0.0.11=1 web02=resumed web03=resumed\n"


def test_a_pause_does_not_affect_an_operators_line(lb: LoadBalancer) -> None:
    lb.text = lb.text.replace(b"    # additional", b"    server web01 127.0.0.11:80\n    # additional")
    lb.join(member_line("web01", "127.0.0.11"))

    message = lb.send_query("pause", "web01", 1).stdout.decode()

    assert (
        message == "not applied yet: web01: no managed line in listen lb-iis: "
        "an operator's line has its name or address, pauses do not affect it\n"
    )
