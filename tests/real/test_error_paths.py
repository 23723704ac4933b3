"""Each exit status and each answer of the contract, with every HAProxy version in each run of the tests."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from lbagent.state.lock import acquire_lock
from tests.helpers.faults import fill_disk, mount_small_disk, read_only_line, replace_haproxy, set_reload_command
from tests.helpers.real_programs import ROLES, Haproxy, LoadBalancer, member_line, wait_until

pytestmark = [pytest.mark.real, pytest.mark.every_haproxy, pytest.mark.all_versions]

WEB1, WEB2, WEB3 = (member_line(f"web{number}", f"127.0.0.{10 + number}") for number in (1, 2, 3))


UNCHECKED = ROLES.replace("{{port: {port}}}", '{{port: {port}, options: "weight {{tag:weight|100}}"}}')
"""Servers are UP without an answer to a check; HAProxy accepts a weight up to 256."""


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer without nodes whose HAProxy does not run."""
    with LoadBalancer(roles=UNCHECKED) as made:
        yield made


@pytest.fixture
def haproxy(lb: LoadBalancer) -> Iterator[Haproxy]:
    """The HAProxy of `lb`, which serves web1."""
    with Haproxy(lb) as running:
        assert lb.join(WEB1).returncode == 0
        yield running


@contextlib.contextmanager
def add_proxy_with_a_used_port(lb: LoadBalancer) -> Iterator[None]:
    """Add an operator's proxy that `haproxy -c` accepts and that no worker can start with."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        lb.text += f"\nlisten new\n    bind 127.0.0.1:{one.getsockname()[1]}\n".encode()
        yield


# --- exit statuses ------------------------------------------------------------------------------------------------


def test_0_a_change_is_applied_and_an_unchanged_file_is_no_change(lb: LoadBalancer, haproxy: Haproxy) -> None:
    assert lb.join(WEB2).returncode == 0
    assert (lb.run("apply").returncode, lb.run("plan").returncode) == (0, 0)
    assert haproxy.find_serving() == {"web1", "web2"}


def test_1_an_event_that_cannot_be_stored_changes_no_file(lb: LoadBalancer) -> None:
    with mount_small_disk(lb.state):
        lb.join(WEB1)
        before = lb.text
        with fill_disk(lb.state):
            done = lb.join(WEB2)

            assert (done.returncode, lb.text) == (1, before)
            assert "not stored" in read_only_line(done)


def test_2_a_refused_roles_yml_and_a_plan_with_changes(lb: LoadBalancer, haproxy: Haproxy) -> None:
    good, before = lb.roles.read_text(), lb.text
    lb.roles.write_text(good.replace("weight|100", "weight|50"))
    planned = lb.run("plan")
    lb.roles.write_text(good.replace("port:", "prot:"))

    done = lb.join(WEB2)

    assert (planned.returncode, done.returncode) == (2, 2)
    assert f"{lb.roles}:" in read_only_line(done)
    assert (lb.text, haproxy.find_serving()) == (before, {"web1"})


def test_3_removals_that_nobody_asked_for_are_blocked(lb: LoadBalancer, haproxy: Haproxy) -> None:
    lb.join(WEB2, WEB3)
    before = lb.text
    lb.roles.write_text(lb.roles.read_text().replace("127.0.0.0/8", "127.0.0.11/32"))

    assert (lb.run("plan").returncode, lb.run("apply").returncode) == (3, 3)
    assert (lb.text, haproxy.find_serving()) == (before, {"web1", "web2", "web3"})
    assert (lb.run("apply", "--force").returncode, haproxy.find_serving()) == (0, {"web1"})


def test_4_an_invalid_text_of_the_operator_replaces_nothing(lb: LoadBalancer, haproxy: Haproxy) -> None:
    lb.text = broken = lb.text.replace(b"balance", b"balanse")

    done = lb.join(WEB2)

    line = broken.decode().split("\n").index("    balanse roundrobin") + 1
    assert done.returncode == 4
    assert f"[{lb.cfg}:{line}]" in read_only_line(done)
    assert (lb.text, haproxy.find_serving()) == (broken, {"web1"})


def test_4_a_node_whose_line_is_refused_is_in_quarantine_and_the_others_are_applied(
    lb: LoadBalancer, haproxy: Haproxy
) -> None:
    done = lb.join(WEB2, member_line("web3", "127.0.0.13", weight="300"))

    assert (done.returncode, lb.run("apply").returncode) == (0, 4)
    assert read_only_line(done).startswith("web3 is in quarantine, HAProxy refuses its line: ")
    assert haproxy.find_serving() == {"web1", "web2"}


def test_5_a_failed_reload_is_rolled_back_with_its_reason(lb: LoadBalancer, haproxy: Haproxy) -> None:
    lb.roles.write_text(lb.roles.read_text().replace("haproxy:\n", "haproxy:\n  runtime: off\n"))
    with add_proxy_with_a_used_port(lb):
        before, worker = lb.text, haproxy.worker()

        done = lb.join(WEB2)

        assert done.returncode == 5
        assert "Address already in use" in read_only_line(done)
        assert (lb.text, haproxy.worker(), haproxy.find_serving()) == (before, worker, {"web1"})


def test_6_a_file_that_keeps_changing_is_not_replaced(lb: LoadBalancer, haproxy: Haproxy) -> None:
    replace_haproxy(lb, f'[ "$1" != -c ] || echo "# edited" >> {lb.cfg}\nexec "$real" "$@"')

    done = lb.join(WEB2)

    assert done.returncode == 6
    assert (len(lb.managed), haproxy.find_serving()) == (1, {"web1"})


def test_75_a_reload_without_a_new_worker_is_not_confirmed(lb: LoadBalancer, haproxy: Haproxy) -> None:
    worker = haproxy.worker()
    set_reload_command(lb, "exit 0")
    lb.roles.write_text(lb.roles.read_text().replace("timeout: 15s", "timeout: 1s"))

    done = lb.join(WEB2)

    assert (done.returncode, haproxy.worker()) == (75, worker)
    assert "no new HAProxy worker was seen" in read_only_line(done)


# --- answers to a query -------------------------------------------------------------------------------------------


def test_done_unknown_and_still_paused(lb: LoadBalancer, haproxy: Haproxy) -> None:
    lb.join(WEB2, member_line("web3", "127.0.0.13", lbagent="paused"))

    answers = [
        lb.send_query(verb, name, ltime).stdout.decode()
        for ltime, (verb, name) in enumerate(
            [("pause", "web1"), ("pause", "web2"), ("resume", "web2"), ("pause", "web9"), ("resume", "web3")], 1
        )
    ]

    assert answers[:4] == [
        "done\n", "done, no other server of iis serves\n", "done\n", "unknown node, remembered\n",
    ]  # fmt: skip
    assert "still paused by its tag" in answers[4]
    assert haproxy.find_serving() == {"web2"}


def test_queued_while_another_run_holds_the_lock(lb: LoadBalancer, haproxy: Haproxy) -> None:
    with acquire_lock(str(lb.state / "lock")) as acquired:
        assert acquired
        answer = lb.send_query("pause", "web1", 1).stdout

    assert (answer, haproxy.find_serving()) == (b"queued\n", {"web1"})
    assert (lb.run("apply").returncode, haproxy.find_serving()) == (0, set())


def test_haproxy_not_seen_while_it_does_not_run(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        lb.join(WEB1)
        haproxy.stop()

        answer = lb.send_query("pause", "web1", 1).stdout

        assert answer == b"haproxy not seen\n"
        assert lb.managed == ["# lbagent paused web1 127.0.0.11 role=web"]


def test_refused_and_not_applied_yet(lb: LoadBalancer, haproxy: Haproxy) -> None:
    refused = lb.send_query("pause", "", 1).stdout
    lb.text = broken = lb.text.replace(b"balance", b"balanse")

    waiting = lb.send_query("pause", "web1", 2).stdout.decode()

    assert refused.startswith(b"refused: ")
    assert waiting.startswith("not applied yet: haproxy.cfg is invalid, not because of lbagent; nothing was changed: ")
    assert waiting.endswith("; no new traffic reaches lb-iis/web1\n")
    assert lb.text == broken
    wait_until(lambda: haproxy.find_serving() == set())
