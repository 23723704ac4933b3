"""The daemon corrects each difference after HAProxy is killed, started, reloaded, edited or disconnected by others."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.helpers.daemon import run_watch
from tests.helpers.faults import replace_haproxy, restore_haproxy
from tests.helpers.http_clients import run_clients
from tests.helpers.real_programs import Backend, Haproxy, LoadBalancer, member_line, wait_until

pytestmark = [pytest.mark.real, pytest.mark.every_haproxy]

NAMES = [f"web{number:02}" for number in range(1, 9)]
ADDRESS = {name: f"127.0.1.{number}" for number, name in enumerate(NAMES, 1)}


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer with four nodes, whose HAProxy does not run."""
    with LoadBalancer() as made:
        made.join(*(make_member_line(name) for name in NAMES[:4]))
        yield made


def make_member_line(name: str) -> bytes:
    return member_line(name, ADDRESS[name])


@contextlib.contextmanager
def run_backends(lb: LoadBalancer) -> Iterator[None]:
    """Run a web server for each node."""
    with contextlib.ExitStack() as stack:
        for name, address in ADDRESS.items():
            stack.enter_context(Backend(name, address, lb.port))
        yield


def is_consistent(lb: LoadBalancer, haproxy: Haproxy, names: set[str]) -> bool:
    """Return whether haproxy.cfg, HAProxy and served.json agree on these nodes, and no event waits."""
    lines = [lb.server(name, ADDRESS[name]) for name in sorted(names)]
    try:
        serving = haproxy.find_serving()
        return lb.is_settled(*lines) and serving == names and read_confirmed_worker(lb) == haproxy.worker()
    except OSError:  # HAProxy is starting
        return False


def read_confirmed_worker(lb: LoadBalancer) -> int | None:
    """Return the pid of the worker that serves haproxy.cfg according to served.json."""
    worker = (lb.served() or {})["worker"]
    return worker["pid"] if worker else None


def test_a_restarted_haproxy_serves_the_nodes_that_joined_while_it_was_down(lb: LoadBalancer) -> None:
    with run_watch(lb):
        with Haproxy(lb) as first:
            wait_until(lambda: is_consistent(lb, first, set(NAMES[:4])))
            for pid in (first.pid, *first.workers()):
                os.kill(pid, signal.SIGKILL)
            lb.join(make_member_line("web05"))
            lb.leave(make_member_line("web01"))
            lb.send_command("pause", "web02", 1)
            wait_until(lambda: lb.idle and len([line for line in lb.managed if not line.startswith("#")]) == 3)
        lb.socket.unlink(missing_ok=True)
        with Haproxy(lb) as second:
            wait_until(lambda: second.find_serving() == {"web03", "web04", "web05"})
            wait_until(lambda: read_confirmed_worker(lb) == second.worker())
            lb.send_command("resume", "web02", 2)

            wait_until(lambda: is_consistent(lb, second, {"web02", "web03", "web04", "web05"}))
            assert second.reloads() in ((0, 0), (1, 0))  # it may have read an older text


def remove_managed_lines(lb: LoadBalancer) -> None:
    """Remove the managed lines, as a backup or configuration management may do."""
    lines = lb.text.split(b"\n")
    lb.text = b"\n".join(line for line in lines if b"# lbagent" not in line)


def restore_older_text(lb: LoadBalancer) -> None:
    """Restore an older text: with another node, without one, with another setting of the operator."""
    text = lb.text.replace(b"server web01 127.0.1.1:", b"server web09 127.0.1.9:")
    text = text.replace(b"timeout connect 1s", b"timeout connect 2s")
    lb.text = b"\n".join(line for line in text.split(b"\n") if b" web02 " not in line)


@pytest.mark.parametrize("replaced", [remove_managed_lines, restore_older_text])
@pytest.mark.parametrize("reloads", [False, True])
def test_another_version_of_the_file_gets_its_nodes_back(
    lb: LoadBalancer, replaced: Callable[[LoadBalancer], None], *, reloads: bool
) -> None:
    with Haproxy(lb) as haproxy, run_watch(lb):
        wait_until(lambda: is_consistent(lb, haproxy, set(NAMES[:4])))

        replaced(lb)
        if reloads:
            os.kill(haproxy.pid, signal.SIGUSR2)

        wait_until(lambda: is_consistent(lb, haproxy, set(NAMES[:4])))


def test_a_reload_by_the_operator_between_batches_breaks_nothing(lb: LoadBalancer) -> None:
    dice, there, paused = random.Random(3), set(NAMES[:4]), set[str]()
    with run_backends(lb), Haproxy(lb) as haproxy, run_watch(lb), run_clients(lb.front, 4) as count:
        wait_until(lambda: is_consistent(lb, haproxy, set(NAMES[:4])))
        for number in range(1, 41):
            name = dice.choice(NAMES[1:])
            if name not in there:
                lb.join(make_member_line(name))
                there.add(name)
            elif name in paused or dice.random() < 0.5:
                lb.send_command("resume" if name in paused else "pause", name, number)
                paused ^= {name}
            else:
                lb.leave(make_member_line(name))
                there.discard(name)
            if number % 4 == 0:
                os.kill(haproxy.pid, signal.SIGUSR2)

        wait_until(lambda: haproxy.find_serving() == there - paused and lb.idle)
        wait_until(lambda: read_confirmed_worker(lb) == haproxy.worker())
        assert {line.split()[1] for line in lb.managed if line.startswith("server ")} == there - paused
    assert set(count) == {"ok"}


def test_a_deleted_socket_file_costs_only_reloads(lb: LoadBalancer) -> None:
    with run_backends(lb), Haproxy(lb) as haproxy, run_watch(lb):
        wait_until(lambda: is_consistent(lb, haproxy, set(NAMES[:4])))
        reloads = haproxy.reloads()[0]
        lb.socket.unlink()  # workers inherit the open socket: only a start creates the file again

        lb.join(make_member_line("web05"))
        wait_until(lambda: haproxy.find_answering() == set(NAMES[:5]))
        lb.send_command("pause", "web01", 1)
        wait_until(lambda: haproxy.find_answering() == set(NAMES[1:5]))
        lb.leave(make_member_line("web05"))
        wait_until(lambda: haproxy.find_answering() == set(NAMES[1:4]))

        assert (haproxy.reloads(), lb.socket.exists()) == ((reloads + 3, 0), False)
        lines = [lb.server(name, ADDRESS[name]) for name in NAMES[1:4]]
        wait_until(lambda: lb.is_settled("# lbagent paused web01 127.0.1.1 role=web", *lines))
        assert read_confirmed_worker(lb) in haproxy.workers()
        output = lb.run("status").stdout.decode()
        assert f"haproxy: stats socket {lb.socket}: no answer: No such file or directory\n" in output


def test_a_pause_is_sent_again_to_a_new_worker_while_the_file_cannot_be_written(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, run_watch(lb):
        wait_until(lambda: is_consistent(lb, haproxy, set(NAMES[:4])))
        replace_haproxy(lb, '[ "$1" != -c ] || { echo no; exit 1; }\nexec "$real" "$@"')
        lb.send_command("pause", "web01", 1)
        wait_until(lambda: haproxy.find_serving() == set(NAMES[1:4]))
        assert lb.managed == [lb.server(name, ADDRESS[name]) for name in NAMES[:4]]
        first = haproxy.worker()

        os.kill(haproxy.pid, signal.SIGUSR2)
        wait_until(lambda: haproxy.worker() != first)

        wait_until(lambda: haproxy.find_serving() == set(NAMES[1:4]))
        assert lb.managed == [lb.server(name, ADDRESS[name]) for name in NAMES[:4]]
        restore_haproxy(lb)
        wait_until(lambda: lb.idle and lb.managed[0] == "# lbagent paused web01 127.0.1.1 role=web", 90)
