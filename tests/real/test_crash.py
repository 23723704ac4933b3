"""After kill -9 at any moment haproxy.cfg is complete, and the next event finishes the change."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from lbagent.state.lock import is_locked
from tests.helpers.faults import (
    insert_lines,
    list_spool_records,
    list_stored_nodes,
    replace_haproxy,
    restore_haproxy,
    set_reload_command,
)
from tests.helpers.real_programs import RELOADING, ROLES, Haproxy, LoadBalancer, default_binary, member_line, wait_until

pytestmark = pytest.mark.real

KILLS = int(os.environ.get("LBAGENT_KILLS", "40"))
"""The number of runs that are killed at a random moment; 200 for a long test."""

KILLED = -9

ONCE = 'if mkdir "$0.done" 2>/dev/null; then kill -9 $PPID; exit; fi\n'
"""A shell command that kills lbagent, the parent of its script, in the first run."""


@pytest.fixture
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    with LoadBalancer(roles=getattr(request, "param", RELOADING)) as made:
        yield made


@pytest.fixture
def haproxy(lb: LoadBalancer) -> Iterator[Haproxy]:
    with Haproxy(lb) as running:
        yield running


def make_address(name: str) -> str:
    number = int(name.removeprefix("web"))
    return f"127.1.{number // 250}.{number % 250 + 1}"


def join_node(lb: LoadBalancer, name: str) -> subprocess.CompletedProcess[bytes]:
    return lb.join(member_line(name, make_address(name)))


def make_expected_text(lb: LoadBalancer, operator: bytes, names: Iterable[str]) -> bytes:
    """Return the only valid haproxy.cfg with these nodes."""
    return insert_lines(operator, [lb.server(name, make_address(name)) for name in sorted(names)])


def list_managed_nodes(lb: LoadBalancer) -> set[str]:
    return {line.split()[1] for line in lb.managed}


def is_accepted(text: bytes, beside: Path) -> bool:
    beside.write_bytes(text)
    return subprocess.run([default_binary(), "-c", "-f", beside], check=False, capture_output=True).returncode == 0


def kill_runs(lb: LoadBalancer, names: list[str], moment: float) -> bool:
    """Start a run for each node and kill all after `moment` seconds; returns whether one was still running."""
    runs = [lb.start_handle("member-join", member_line(name, make_address(name))) for name in names]
    time.sleep(moment)
    for run in runs:
        run.kill()
    for run in runs:
        run.communicate()
    # A child that a killed run has forked holds the lock until it executes its program.
    wait_until(lambda: not is_locked(str(lb.state / "lock")))
    return KILLED in [run.returncode for run in runs]


def check_text_is_complete(lb: LoadBalancer, operator: bytes, before: set[str], *, single: bool) -> bool:
    """Fail unless haproxy.cfg is a complete text; returns whether the next event has to finish the change."""
    after, kept = list_managed_nodes(lb), list_stored_nodes(lb)
    assert lb.text == make_expected_text(lb, operator, after)
    # With several runs a part of the events may be applied; with one run only none or all.
    assert after in (before, kept) if single else before <= after <= kept
    return after != kept


@pytest.mark.parametrize("lb", [ROLES, RELOADING], ids=["runtime", "reload"], indirect=True)
def test_kill_9_at_any_moment_leaves_a_complete_text_and_the_next_event_applies_all(
    lb: LoadBalancer, haproxy: Haproxy, tmp_path: Path
) -> None:
    operator, texts = lb.text, set[bytes]()
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    number, lasted, caught, unfinished = 0, 0.2, 0, 0

    for kill in range(KILLS):
        before = list_managed_nodes(lb)
        names = [f"web{number + one:04}" for one in range(1, 4 if kill % 4 == 3 else 2)]
        number += len(names) + 1
        last = f"web{number:04}"
        caught += kill_runs(lb, names, chance.uniform(0, lasted))
        unfinished += check_text_is_complete(lb, operator, before, single=len(names) == 1)
        whole = {*list_stored_nodes(lb), last}
        texts.add(lb.text)

        begun = time.monotonic()
        more = join_node(lb, last)
        lasted = time.monotonic() - begun

        assert (more.returncode, more.stderr, list_spool_records(lb), lb.list_staged()) == (0, b"", [], [])
        assert lb.text == make_expected_text(lb, operator, whole)
        assert set(haproxy.servers()) == whole

    print(f"{caught} of {KILLS} were killed at work, {unfinished} left work to be finished")
    assert caught > KILLS / 2
    assert [text for text in texts if not is_accepted(text, tmp_path / "haproxy.cfg")] == []


def test_after_a_kill_before_the_swap_the_next_event_applies_all(lb: LoadBalancer, haproxy: Haproxy) -> None:
    operator = lb.text
    join_node(lb, "web001")
    before, reloads = lb.text, haproxy.reloads()[0]
    replace_haproxy(lb, ONCE + 'exec "$real" "$@"')

    killed = join_node(lb, "web002")

    assert killed.returncode == KILLED
    assert (lb.text, haproxy.reloads()[0]) == (before, reloads)
    assert sorted(lb.members()) == ["web001", "web002"]
    assert join_node(lb, "web003").returncode == 0
    assert lb.text == make_expected_text(lb, operator, ["web001", "web002", "web003"])
    assert set(haproxy.servers()) == {"web001", "web002", "web003"}
    assert haproxy.reloads() == (reloads + 1, 0)
    assert lb.list_staged() == []


@pytest.mark.every_haproxy
@pytest.mark.parametrize("mode", ["-W", "-D"])
def test_after_a_kill_before_the_reload_the_next_event_reloads(lb: LoadBalancer, mode: str) -> None:
    operator = lb.text
    with Haproxy(lb, mode) as haproxy:
        join_node(lb, "web001")
        worker = haproxy.worker()
        set_reload_command(lb, f"{ONCE}{_make_reload_script(haproxy)}")

        killed = join_node(lb, "web002")

        assert killed.returncode == KILLED
        assert lb.text == make_expected_text(lb, operator, ["web001", "web002"])
        assert (haproxy.worker(), set(haproxy.servers())) == (worker, {"web001"})
        assert join_node(lb, "web003").returncode == 0
        assert lb.text == make_expected_text(lb, operator, ["web001", "web002", "web003"])
        assert set(haproxy.servers()) == {"web001", "web002", "web003"}
        assert lb.list_staged() == []


def test_after_a_kill_before_the_reload_an_event_without_a_change_reloads(lb: LoadBalancer, haproxy: Haproxy) -> None:
    join_node(lb, "web001")
    reloads = haproxy.reloads()[0]
    set_reload_command(lb, f"{ONCE}{_make_reload_script(haproxy)}")
    killed = join_node(lb, "web002")
    text = lb.text

    again = join_node(lb, "web002")

    assert (killed.returncode, again.returncode) == (KILLED, 0)
    assert lb.text == text
    assert set(haproxy.servers()) == {"web001", "web002"}
    assert haproxy.reloads() == (reloads + 1, 0)
    assert lb.list_staged() == []


def test_after_a_kill_before_served_json_at_most_one_more_reload_is_made(lb: LoadBalancer, haproxy: Haproxy) -> None:
    join_node(lb, "web001")
    reloads, served = haproxy.reloads()[0], lb.served()
    set_reload_command(lb, f"{_make_reload_script(haproxy)}\n{ONCE}")
    killed = join_node(lb, "web002")
    wait_until(lambda: set(haproxy.servers()) == {"web001", "web002"})
    text = lb.text

    runs = [join_node(lb, "web002").returncode for _ in range(3)]

    assert killed.returncode == KILLED
    assert served != lb.served()
    assert runs == [0, 0, 0]
    assert lb.text == text
    assert set(haproxy.servers()) == {"web001", "web002"}
    assert haproxy.reloads() in ((reloads + 1, 0), (reloads + 2, 0))


def test_after_a_kill_before_served_json_the_next_event_applies_all(lb: LoadBalancer, haproxy: Haproxy) -> None:
    operator = lb.text
    join_node(lb, "web001")
    reloads = haproxy.reloads()[0]
    set_reload_command(lb, f"{_make_reload_script(haproxy)}\n{ONCE}")
    killed = join_node(lb, "web002")

    more = join_node(lb, "web003")

    assert (killed.returncode, more.returncode) == (KILLED, 0)
    assert lb.text == make_expected_text(lb, operator, ["web001", "web002", "web003"])
    assert set(haproxy.servers()) == {"web001", "web002", "web003"}
    assert haproxy.reloads() == (reloads + 2, 0)


def test_a_reload_signal_that_the_master_missed_is_sent_again(lb: LoadBalancer, haproxy: Haproxy) -> None:
    operator, heard = lb.text, lb.folder / "heard"
    join_node(lb, "web001")
    reloads = haproxy.reloads()[0]
    set_reload_command(lb, f"[ ! -e {heard} ] || {_make_reload_script(haproxy)}\n: > {heard}")

    more = join_node(lb, "web002")

    assert (more.returncode, more.stderr) == (0, b"")
    assert lb.text == make_expected_text(lb, operator, ["web001", "web002"])
    assert set(haproxy.servers()) == {"web001", "web002"}
    assert haproxy.reloads() == (reloads + 1, 0)


def test_after_a_kill_during_the_roll_back_the_text_is_complete(lb: LoadBalancer, haproxy: Haproxy) -> None:
    operator = lb.text
    join_node(lb, "web001")
    # The operator saves during the failing reload: the roll back runs `haproxy -c`, and is killed there.
    set_reload_command(lb, f"echo '# his' >>{lb.cfg}\nexit 1")
    replace_haproxy(lb, f'grep -q "# his" {lb.cfg} && {{ {ONCE} }}\nexec "$real" "$@"')
    his = operator + b"# his\n"

    killed = join_node(lb, "web002")

    assert killed.returncode == KILLED
    assert lb.text == make_expected_text(lb, his, ["web001", "web002"])
    restore_haproxy(lb)
    set_reload_command(lb, _make_reload_script(haproxy))
    assert join_node(lb, "web003").returncode == 0
    assert lb.text == make_expected_text(lb, his, ["web001", "web002", "web003"])
    assert set(haproxy.servers()) == {"web001", "web002", "web003"}
    assert lb.list_staged() == []


def test_after_a_kill_during_the_swap_the_old_text_can_be_restored(lb: LoadBalancer, haproxy: Haproxy) -> None:
    operator = lb.text
    join_node(lb, "web001")
    set_reload_command(lb, ONCE + "exit 1")
    killed = join_node(lb, "web002")
    # The state after a kill between the two renames of the swap.
    previous = lb.etc / ".haproxy.cfg.lbagent-previous"
    previous.rename(lb.etc / ".haproxy.cfg.lbagent-old")

    done = join_node(lb, "web001")

    assert (killed.returncode, done.returncode) == (KILLED, 5)
    assert lb.text == make_expected_text(lb, operator, ["web001"])
    assert set(haproxy.servers()) == {"web001"}


def test_after_a_kill_before_a_reload_that_fails_the_old_text_is_restored(lb: LoadBalancer, haproxy: Haproxy) -> None:
    operator = lb.text
    join_node(lb, "web001")
    set_reload_command(lb, ONCE + "exit 1")
    killed = join_node(lb, "web002")

    done = join_node(lb, "web003")

    assert (killed.returncode, done.returncode) == (KILLED, 5)
    assert lb.text == make_expected_text(lb, operator, ["web001"])
    assert set(haproxy.servers()) == {"web001"}
    assert lb.list_staged() == []


def test_an_event_that_waited_for_a_killed_run_is_applied_by_the_next(lb: LoadBalancer, haproxy: Haproxy) -> None:
    operator = lb.text
    replace_haproxy(lb, 'touch "$0.started"\nwhile [ -e "$0.started" ]; do sleep 0.02; done\nexec "$real" "$@"')
    started = lb.bin / "haproxy.started"

    with lb.start_handle("member-join", member_line("web001", make_address("web001"))) as first:
        wait_until(started.exists)
        second = join_node(lb, "web002")
        first.kill()
        first.communicate()
    started.unlink()

    assert second.returncode == 0
    assert lb.text == operator
    restore_haproxy(lb)
    assert join_node(lb, "web003").returncode == 0
    assert lb.text == make_expected_text(lb, operator, ["web001", "web002", "web003"])
    assert set(haproxy.servers()) == {"web001", "web002", "web003"}
    assert (lb.list_spool(), lb.list_staged()) == ([], [])


def _make_reload_script(haproxy: Haproxy) -> str:
    """Return a shell command that reloads HAProxy."""
    if haproxy.mode == "-W":
        return f"kill -USR2 {haproxy.pid}"
    return f"{haproxy.lb.binary} -D -f {haproxy.lb.cfg} -p {haproxy.pidfile} -sf $(cat {haproxy.pidfile})"
