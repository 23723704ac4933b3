"""Load balancers that missed events, got them in another order, or see no node, agree with Serf after a sync."""

# ruff: noqa: E501

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator

import pytest

from tests.helpers.faults import write_script
from tests.helpers.pair import HANDLER, Balancer, join_both, run_pair
from tests.helpers.real_programs import ROLES, Backend, Haproxy, LoadBalancer, SerfAgent, member_line, wait_until

pytestmark = pytest.mark.real

OUT = "# lbagent paused web01 127.0.0.11 role=web"
TWO_ROLES = (
    ROLES
    + """\
  api:
    lb: [iis]
    interval: 1s
    networks: [127.0.0.0/8]
"""
)


@contextlib.contextmanager
def run_web_nodes(two: tuple[Balancer, Balancer], count: int) -> Iterator[list[SerfAgent]]:
    """Run `count` web nodes with web servers, which both load balancers have."""
    with contextlib.ExitStack() as stack:
        for number in range(1, count + 1):
            stack.enter_context(Backend(f"web{number:02}", f"127.0.0.{10 + number}", two[0].lb.port))
        nodes = [
            stack.enter_context(SerfAgent(f"web{number:02}", f"127.0.0.{10 + number}", "web"))
            for number in range(1, count + 1)
        ]
        join_both(two, *nodes)
        yield nodes


def make_older(lb: LoadBalancer, seconds: int) -> None:
    """Change members.json as if the nodes that a sync missed had been missed `seconds` earlier."""
    path = lb.state / "members.json"
    state = json.loads(path.read_text())
    assert state["missed"]
    missed = {name: since - seconds for name, since in state["missed"].items()}
    path.write_text(json.dumps({**state, "missed": missed}))


def test_a_load_balancer_that_was_down_ends_with_the_lines_of_the_other_one() -> None:
    with (
        run_pair(roles=TWO_ROLES) as (one, other),
        run_web_nodes((one, other), 5) as (leaves, changes, by_tag, by_query, stays),
    ):
        assert one.text == other.text
        one.agent.kill()
        leaves.leave()
        changes.set_tags(role="api")
        by_tag.set_tags(lbagent="paused")
        assert other.rows("pause", by_query.name)[0] == 1  # lb01 cannot confirm
        expected = [
            other.lb.server("web02", "127.0.0.12", "api", "check inter 1s rise 2 fall 2"),
            "# lbagent paused web03 127.0.0.13 role=web",
            "# lbagent paused web04 127.0.0.14 role=web",
            other.lb.server(stays.name, "127.0.0.15"),
        ]
        wait_until(lambda: other.lb.managed == expected and other.lb.idle)

        one.agent.start()
        one.agent.join(other.agent)
        first = one.run("sync")
        make_older(one.lb, 31)
        second = one.run("sync")

        assert (first.returncode, second.returncode) == (0, 0)
        assert one.text == other.text
        assert one.lb.managed == expected
        assert one.haproxy.find_serving() == {"web02", "web05"}


def make_events(dice: random.Random) -> list[tuple[str, bytes, dict[str, str]]]:
    """Return 120 events: joins, leaves, failures, updates, pauses and resumes on two clocks, of known and unknown nodes."""
    nodes = [(f"web{number:02}", f"127.0.0.{10 + number}") for number in range(1, 13)]
    found: list[tuple[str, bytes, dict[str, str]]] = []
    for ltime in range(1, 121):
        name, address = dice.choice(nodes)
        kind = dice.choice(
            ["member-join", "member-leave", "member-failed", "member-update", "member-reap", "user", "user", "query"]
        )
        if kind.startswith("member"):
            found.append((kind, member_line(name, address, dice.choice(["web", "api"])), {}))
        else:
            clock = {"user": "SERF_USER", "query": "SERF_QUERY"}[kind]
            verb = dice.choice(["pause", "resume"])
            named = {f"{clock}_{'EVENT' if kind == 'user' else 'NAME'}": verb, f"{clock}_LTIME": str(ltime)}
            found.append((kind, f"{name} {address} web\n".encode(), named))
    return found


def handle_shuffled(balancer: Balancer, events: list[tuple[str, bytes, dict[str, str]]], dice: random.Random) -> None:
    """Handle the events in random order, some in batches, some twice, some with killed runs."""
    events = [*events, *dice.sample(events, 30)]
    dice.shuffle(events)
    while events:
        batch, events = events[: (size := dice.choice([1, 1, 3, 10, 20]))], events[size:]
        started = [balancer.lb.start_handle(kind, stdin, **env) for kind, stdin, env in batch]
        for handler in started:
            if dice.random() < 0.1:
                handler.kill()
                handler.communicate()
                # Serf would not send it again; a replay does.
                events.append(batch[started.index(handler)])
            else:
                handler.communicate()


@pytest.mark.timeout(900)  # 300 runs of `lbagent handle`, one after another: minutes on a busy machine
@pytest.mark.parametrize("seed", range(int(os.environ.get("LBAGENT_STORMS", "1"))))
def test_the_same_events_in_any_order_end_with_the_same_lines(seed: int) -> None:
    with run_pair(roles=TWO_ROLES) as two, run_web_nodes(two, 6):
        events = make_events(random.Random(seed))
        for number, balancer in enumerate(two):
            handle_shuffled(balancer, events, random.Random(seed * 10 + number))

        statuses = [balancer.run("sync", "--force").returncode for balancer in two]

        one, other = two
        assert statuses == [0, 0]
        assert one.lb.managed == other.lb.managed
        assert {line.split()[3 if line.startswith("#") else 1] for line in one.lb.managed} == {
            f"web{at:02}" for at in range(1, 7)
        }
        assert one.digest == other.digest
        assert one.text == other.text


def test_replayed_user_events_change_nothing() -> None:
    with LoadBalancer() as lb, Haproxy(lb) as haproxy, SerfAgent("web01", "127.0.0.11", "web") as web:
        more = ["-replay", f"-join={web.bind}"]
        with SerfAgent("lb01", "127.0.0.9", "lb", handler=HANDLER, env=lb.env, more=more) as agent:
            wait_until(lambda: len(lb.managed) == 1 and lb.idle)
            for number in range(9):
                web.send_event(("pause", "resume")[number % 2], f"web01 reason={number}")
            wait_until(lambda: lb.is_settled(OUT) and lb.members()["web01"]["last_commands"]["user"].ltime == 9)
            before, reloads, history = lb.members(), haproxy.reloads(), lb.history()
            heard = agent.log.count("Received event: user-event")
            agent.kill()

            agent.start()

            wait_until(lambda: agent.log.count("Received event: user-event") == heard + 9)
            wait_until(lambda: agent.log.count("Received event: member-join") > 1)
            wait_until(lambda: lb.is_settled(OUT))
            assert (lb.members(), haproxy.reloads(), lb.history()) == (before, reloads, history)


def test_a_resume_that_arrives_before_its_pause_and_its_node_counts() -> None:
    with LoadBalancer() as lb, Haproxy(lb) as haproxy, Backend("web01", "127.0.0.11", lb.port):
        runs = [
            lb.send_command("resume", "web01", 6),
            lb.send_command("pause", "web01", 5),
            lb.join(member_line("web01", "127.0.0.11")),
        ]

        assert [run.returncode for run in runs] == [0, 0, 0]
        assert (lb.managed, haproxy.find_answering()) == ([lb.server("web01", "127.0.0.11")], {"web01"})


@contextlib.contextmanager
def run_small_cluster() -> Iterator[tuple[LoadBalancer, SerfAgent, SerfAgent]]:
    """Run a load balancer without HAProxy, its agent, and a node that has joined."""
    with (
        LoadBalancer() as lb,
        SerfAgent("lb01", "127.0.0.9", "lb", handler=HANDLER, env=lb.env) as agent,
        SerfAgent("web01", "127.0.0.11", "web") as web,
    ):
        web.join(agent)
        wait_until(lambda: lb.is_settled(lb.server("web01", "127.0.0.11")))
        yield lb, agent, web


def test_events_of_a_new_cluster_are_applied() -> None:
    with run_small_cluster() as (lb, agent, web):
        for number in range(5):
            web.send_event("pause", f"web01 reason={number}")
        wait_until(lambda: lb.is_settled(OUT) and lb.members()["web01"]["last_commands"]["user"].ltime == 5)
        for one in (agent, web):
            one.kill()
        for one in (agent, web):
            one.start()
        web.join(agent)

        web.send_event("resume", "web01")

        wait_until(lambda: lb.is_settled(lb.server("web01", "127.0.0.11")))
        assert lb.members()["web01"]["last_commands"]["user"].ltime < 5


def test_a_pause_by_query_and_a_resume_by_event_end_resumed() -> None:
    with run_small_cluster() as (lb, agent, web):
        for number in range(3):
            agent.send_query("lbagent-status", str(number))  # the clock of queries is ahead
        web.send_query("pause", "web01")
        wait_until(lambda: lb.is_settled(OUT))

        web.send_event("resume", "web01")

        wait_until(lambda: lb.is_settled(lb.server("web01", "127.0.0.11")))


def test_a_pause_and_a_resume_at_the_same_ltime_end_paused() -> None:
    for first, second in (("pause", "resume"), ("resume", "pause")):
        with LoadBalancer() as lb:
            lb.join(member_line("web01", "127.0.0.11"))

            statuses = [
                lb.send_command(first, "web01 by=web02", 7).returncode,
                lb.send_command(second, "web01 by=web03", 7).returncode,
            ]

            assert (statuses, lb.managed) == ([0, 0], [OUT])


@pytest.mark.parametrize("peer", [False, True])
def test_a_sync_that_sees_no_node_removes_nothing(peer: bool) -> None:  # noqa: FBT001
    with run_pair() as (one, other), run_web_nodes((one, other), 3) as nodes:
        before, members = one.text, one.lb.members()
        # The web nodes end last, so that no load balancer has an event of it, and none of them can find lb01 again.
        for agent in (one.agent, other.agent, *nodes):
            agent.kill()
        one.agent.start()
        with SerfAgent("lb03", "127.0.0.8", "lb") as lonely:
            if peer:
                lonely.join(one.agent)
                wait_until(lambda: "lb03" in one.lb.members() and one.lb.idle)
                members |= {"lb03": one.lb.members()["lb03"]}

            done = one.run("sync")

        assert done.returncode == 75
        words = "serf members: no node has a role of roles.yml; nothing is removed, try again"
        silent = "lbagent: lb03 did not report its pauses\n" if peer else ""
        assert done.stderr.decode() == f"{silent}lbagent: {words}\n"
        assert (one.text, one.lb.members(), one.lb.list_staged()) == (before, members, [])


def test_the_removal_of_a_whole_role_is_blocked_and_a_pause_still_works() -> None:
    with run_pair(roles=TWO_ROLES) as two, run_web_nodes(two, 3), SerfAgent("api01", "127.0.0.31", "api") as api:
        join_both(two, api)
        for balancer in two:
            wait_until(lambda haproxy=balancer.haproxy: haproxy.servers()["web01"] == "UP")  # type: ignore[misc]
        one = two[0]
        for balancer in two:
            roles = balancer.lb.roles.read_text()
            balancer.lb.roles.write_text(roles.replace("  web:\n    lb: [iis]\n    interval: 200ms\n", "  deleted:\n"))
        before = one.lb.managed

        synced = one.run("sync")
        unchanged = one.lb.managed
        pausing = one.rows("pause", "web02")

        held = "3 of 4 lines at '# additional-lb-iis-server' in listen lb-iis would be removed: web01, web02, web03"
        assert (synced.returncode, unchanged) == (3, before), synced
        # Serf may lose a query on a busy machine: then a line about the other load balancer is first.
        last = synced.stderr.decode().splitlines()[-1]
        assert last == f"lbagent: blocked: {held}; `lbagent apply --force` applies these removals"
        assert pausing == (0, {"lb01": "done", "lb02": "done"})
        for balancer in two:
            assert balancer.haproxy.find_serving() == {"api01", "web01", "web03"}


def test_a_dry_run_shows_the_diff_and_changes_nothing() -> None:
    with run_pair() as (one, other), run_web_nodes((one, other), 2) as (_, leaving):
        one.agent.kill()
        leaving.leave()
        wait_until(lambda: other.agent.members()["web02"] == "left")
        one.agent.handler = ""  # else the agent's own member-leave may be first
        one.agent.start()
        one.agent.join(other.agent)
        wait_until(lambda: one.agent.members().get("web01") == "alive")
        before, members = one.text, one.lb.members()

        done = one.run("sync", "--dry-run", "--force")

        changed = [line for line in done.stdout.decode().splitlines() if line.startswith(("+ ", "- "))]
        assert (done.returncode, changed) == (0, [f"-    {one.lb.server('web02', '127.0.0.12')}"])
        assert (one.text, one.lb.members(), one.lb.list_staged()) == (before, members, [])


def test_a_load_balancer_that_does_not_answer_with_its_pauses_is_reported() -> None:
    with run_pair() as (one, other), run_web_nodes((one, other), 1):
        other.agent.kill()
        wait_until(lambda: one.agent.members()["lb02"] == "failed", 40)
        with SerfAgent("lb03", "127.0.0.8", "lb") as mute:
            mute.join(one.agent)
            wait_until(lambda: "lb03" in one.agent.members())

            done = one.run("sync")

        output = "lbagent: lb03 did not report its pauses\n"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"No changes: 1 node, 1 line.\n", output)


def test_a_sync_gets_the_pauses_of_a_load_balancer_whose_handler_is_slow() -> None:
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(LoadBalancer())
        other = stack.enter_context(LoadBalancer())
        lb01, lb02 = Balancer("lb01", "127.0.0.9", one), Balancer("lb02", "127.0.0.10", other)
        lb02.agent.handler = str(write_script(other.folder / "slow", f"sleep 1.1\nexec {HANDLER}"))
        for balancer in (lb01, lb02):
            stack.enter_context(balancer.running())
        lb02.agent.join(lb01.agent)
        join_both((lb01, lb02), stack.enter_context(SerfAgent("web01", "127.0.0.11", "web")))
        other.send_command("pause", "web01", 1)  # an event that lb01 has lost

        # On a busy machine even seven seconds may not be enough; the next sync asks again.
        wait_until(lambda: lb01.run("sync").returncode == 0 and one.managed == [OUT], 120)
