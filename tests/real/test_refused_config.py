"""A text that HAProxy refuses, at `haproxy -c` or at a reload, never stops the service and loses no event."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.helpers.faults import replace_haproxy
from tests.helpers.real_programs import (
    PATIENCE,
    RELOADING,
    Haproxy,
    LoadBalancer,
    binaries,
    free_port,
    member_line,
    wait_until,
)

pytestmark = pytest.mark.real

Ended = subprocess.CompletedProcess[bytes]

BROKEN = b"    no-such-keyword at all\n"
WEB = [member_line(f"web{number:02}", f"127.0.0.{10 + number}") for number in range(20)]
"""Lines of member events: web01 at 127.0.0.11, and so on."""


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    with LoadBalancer(roles=RELOADING, binary=request.param) as one:
        yield one


def make_lines(lb: LoadBalancer, *numbers: int) -> list[str]:
    """Return the managed lines of these nodes."""
    return [lb.server(f"web{number:02}", f"127.0.0.{10 + number}") for number in numbers]


def read_result(ended: Ended) -> tuple[int, str]:
    """Return exit status and the only line on stderr; fails if stdout is not empty."""
    assert ended.stdout == b""
    words = ended.stderr.decode()
    assert words.count("\n") == 1, words
    return ended.returncode, words.removesuffix("\n")


@contextlib.contextmanager
def occupy_port() -> Iterator[int]:
    """Listen on a port; yields it."""
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        yield port


# Mistakes of the operator


def test_an_invalid_text_of_the_operator_is_reported_with_file_and_line_and_replaces_nothing(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        assert lb.join(WEB[1]).returncode == 0
        lb.text = saved = lb.text + BROKEN
        reloads, served = haproxy.reloads(), lb.served()

        status, words = read_result(lb.join(WEB[2]))

        line = saved.count(b"\n")
        assert (status, words.count(f"[{lb.cfg}:{line}]"), words.count("no-such-keyword")) == (4, 1, 1)
        assert (lb.text, lb.list_staged(), lb.list_spool()) == (saved, [], [])
        assert (haproxy.reloads(), lb.served()) == (reloads, served)
        assert list(haproxy.servers()) == ["web01"]
        assert lb.list_outcomes() == ["applied", "refused"]


def test_events_during_an_invalid_text_are_applied_once_it_is_fixed(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        lb.join(*WEB[1:5])
        sound = lb.text
        lb.text = sound.replace(b"    balance", BROKEN + b"    balance")
        broken = lb.text

        statuses = [
            lb.join(WEB[5]).returncode,
            lb.send_command("pause", "web01", 1).returncode,
            lb.leave(WEB[2]).returncode,
            lb.send_command("pause", "web03", 2).returncode,
            lb.send_command("resume", "web03", 3).returncode,
        ]
        meantime = lb.text
        lb.text = sound
        mended = lb.join(WEB[6]).returncode

        assert statuses == [4, 4, 4, 4, 4]
        assert meantime == broken
        assert mended == 0
        assert lb.managed == ["# lbagent paused web01 127.0.0.11 role=web", *make_lines(lb, 3, 4, 5, 6)]
        assert list(haproxy.servers()) == ["web03", "web04", "web05", "web06"]
        assert (haproxy.reloads(), lb.list_staged()) == ((2, 0), [])
        assert lb.list_outcomes() == ["applied", *["refused"] * 5, "applied"]


def test_a_query_during_an_invalid_text_is_answered_with_the_reason(lb: LoadBalancer) -> None:
    with Haproxy(lb):
        lb.join(WEB[1])
        lb.text = saved = lb.text + BROKEN

        ended = lb.send_query("pause", "web01", 1)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert ended.stdout.startswith(
            b"not applied yet: haproxy.cfg is invalid, not because of lbagent; nothing was changed: "
        )
        line = saved.count(b"\n")
        assert ended.stdout.count(f"[{lb.cfg}:{line}]".encode()) == 1
        assert ended.stdout.count(b"\n") == 1
        assert (lb.text, lb.list_staged()) == (saved, [])


# Reloads that fail although `haproxy -c` accepted the text


def add_listener(lb: LoadBalancer, port: int) -> bytes:
    """Return the present text with a new operator's proxy that listens on `port`."""
    return lb.text + f"\nlisten new\n    bind 127.0.0.1:{port}\n    http-request return status 204\n".encode()


@pytest.mark.parametrize("mode", ["-W", "-D"])
def test_a_port_in_use_restores_the_previous_managed_lines_and_haproxy_keeps_serving(
    lb: LoadBalancer, mode: str
) -> None:
    with Haproxy(lb, mode) as haproxy, occupy_port() as port:
        lb.join(WEB[1])
        lb.text = saved = add_listener(lb, port)
        worker = haproxy.worker()

        status, words = read_result(lb.join(WEB[2]))

        assert status == 5
        assert words.endswith(f"; the previous managed lines are restored in {lb.cfg}")
        assert (lb.text, lb.list_staged(), lb.list_spool()) == (saved, [], [])
        assert (haproxy.worker(), list(haproxy.servers())) == (worker, ["web01"])
        assert haproxy.get() == "503"  # by HAProxy: web01 has no web server here
        assert lb.list_outcomes() == ["applied", "rolled back"]
        assert lb.history()[-1]["why"] == "member-join web02"
        assert lb.history()[-1]["added"] == [f"listen lb-iis: {line}" for line in make_lines(lb, 2)]
        assert words == f"lbagent: {lb.history()[-1]['words']}"


def test_a_reload_that_failed_is_not_tried_again_with_every_event(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, occupy_port() as port:
        lb.join(WEB[1])
        lb.text = saved = add_listener(lb, port)
        lb.join(WEB[2])
        reloads, worker = haproxy.reloads(), haproxy.worker()

        ends = [read_result(lb.join(line)) for line in WEB[3:13]]

        assert reloads == (2, 1)
        assert {status for status, _ in ends} == {5}
        assert all(words.startswith("lbagent: reload postponed: ") for _, words in ends)
        assert (haproxy.reloads(), haproxy.worker()) == (reloads, worker)
        assert (lb.text, lb.list_staged(), lb.list_spool()) == (saved, [], [])
        assert lb.list_outcomes() == ["applied", "rolled back"]
        assert sorted(lb.members()) == [f"web{number:02}" for number in range(1, 13)]


def test_a_query_that_a_failed_reload_delays_is_answered_queued(lb: LoadBalancer) -> None:
    with Haproxy(lb), occupy_port() as port:
        lb.join(WEB[1])
        lb.text = add_listener(lb, port)
        lb.join(WEB[2])

        ended = lb.send_query("pause", "web01", 1)

        assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"queued\n", b"")


def test_once_the_port_is_free_and_the_text_has_changed_everything_is_applied(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        lb.join(WEB[1])
        with occupy_port() as port:
            lb.text = add_listener(lb, port)
            lb.join(WEB[2])
        still = lb.join(WEB[3]).returncode
        before = lb.managed
        lb.text += b"# the port is free now\n"

        ended = lb.join(WEB[4])

        assert (still, before) == (5, make_lines(lb, 1))
        assert ended.returncode == 0
        assert lb.managed == make_lines(lb, 1, 2, 3, 4)
        assert list(haproxy.servers()) == ["web01", "web02", "web03", "web04"]
        assert haproxy.get(port) == "204"
        assert haproxy.reloads() == (3, 0)
        assert lb.list_outcomes() == ["applied", "rolled back", "applied"]
        assert lb.list_staged() == []


def test_a_failed_reload_does_not_prevent_a_write_without_a_reload(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, occupy_port() as port:
        lb.join(WEB[1])
        lb.text = add_listener(lb, port)
        lb.join(WEB[2])
        reloads = haproxy.reloads()

        written, plain = lb.run("apply", "--no-reload"), lb.run("apply")

        assert (written.returncode, written.stderr, written.stdout) == (
            0,
            b"",
            b"written: 1 line added, 0 removed; not reloaded (--no-reload)\n",
        )
        assert plain.returncode == 5
        assert (lb.managed, haproxy.reloads()) == (make_lines(lb, 1, 2), reloads)


def test_force_tries_a_failed_reload_again_at_once(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        lb.join(WEB[1])
        with occupy_port() as port:
            lb.text = add_listener(lb, port)
            lb.join(WEB[2])

        plain, forced = lb.run("apply"), lb.run("apply", "--force")

        assert (plain.returncode, forced.returncode) == (5, 0)
        assert lb.managed == make_lines(lb, 1, 2)
        assert (haproxy.get(port), haproxy.reloads()) == ("204", (3, 0))


def test_a_change_of_roles_yml_tries_a_failed_reload_again(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        lb.join(WEB[1])
        with occupy_port() as port:
            lb.text = add_listener(lb, port)
            lb.join(WEB[2])
        lb.roles.write_text(lb.roles.read_text() + "# looked at again\n")

        ended = lb.join(WEB[3])

        assert ended.returncode == 0
        assert lb.managed == make_lines(lb, 1, 2, 3)
        assert haproxy.reloads() == (3, 0)


# Refused lines of single nodes

TAGGED = RELOADING.replace("    interval:", '    options: "check {{tag:extra|weight}} 10"\n    interval:')


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def tagged_lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    """A load balancer whose servers have a keyword from a tag."""
    with LoadBalancer(roles=TAGGED, binary=request.param) as one:
        one.count_checks()
        yield one


def make_tagged_lines(lb: LoadBalancer, *numbers: int) -> list[str]:
    return [lb.server(f"web{number:02}", f"127.0.0.{10 + number}", options="check weight 10") for number in numbers]


def make_refused_member(number: int) -> bytes:
    return member_line(f"web{number:02}", f"127.0.0.{10 + number}", extra="nonsense")


def list_quarantined(lb: LoadBalancer) -> list[str]:
    return sorted(name for name, one in lb.members().items() if one["quarantine"])


def test_of_many_nodes_only_the_one_that_haproxy_refuses_is_not_added(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb) as haproxy:
        ended = tagged_lb.join(*WEB[1:9], make_refused_member(9), *WEB[10:17])

        assert ended.returncode == 0
        assert ended.stderr.startswith(b"lbagent: web09 is in quarantine, HAProxy refuses its line: ")
        assert ended.stderr.count(b"\n") == 1
        assert tagged_lb.managed == make_tagged_lines(tagged_lb, *range(1, 9), *range(10, 17))
        assert sorted(haproxy.servers()) == [f"web{number:02}" for number in range(1, 17) if number != 9]
        assert list_quarantined(tagged_lb) == ["web09"]
        assert "nonsense" in tagged_lb.members()["web09"]["quarantine"].reason
        assert tagged_lb.checks <= 20
        assert (haproxy.reloads(), tagged_lb.list_staged()) == ((1, 0), [])
        assert tagged_lb.list_outcomes() == ["applied"]
        assert "web09" in tagged_lb.history()[0]["words"]


def test_two_refused_nodes_are_both_found(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb) as haproxy:
        ended = tagged_lb.join(make_refused_member(1), *WEB[2:16], make_refused_member(16))

        assert ended.returncode == 0
        assert tagged_lb.managed == make_tagged_lines(tagged_lb, *range(2, 16))
        assert list_quarantined(tagged_lb) == ["web01", "web16"]
        assert tagged_lb.checks <= 20
        assert (haproxy.reloads(), tagged_lb.list_staged()) == ((1, 0), [])


def test_a_refused_node_costs_later_events_no_check(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb) as haproxy:
        tagged_lb.join(*WEB[1:4], make_refused_member(9))
        before = tagged_lb.checks

        statuses = [tagged_lb.join(line).returncode for line in WEB[4:8]]

        assert statuses == [0, 0, 0, 0]
        assert tagged_lb.checks - before == 4
        assert haproxy.reloads() == (5, 0)
        assert tagged_lb.managed == make_tagged_lines(tagged_lb, *range(1, 8))
        assert list_quarantined(tagged_lb) == ["web09"]


def test_a_refused_node_alone_changes_nothing(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb) as haproxy:
        tagged_lb.join(WEB[1])
        before, reloads = tagged_lb.text, haproxy.reloads()

        status, words = read_result(tagged_lb.join(make_refused_member(9)))
        again = tagged_lb.join(make_refused_member(9)).returncode

        assert status == 4
        assert words.startswith("lbagent: web09: HAProxy refuses its line: ")
        assert words.count("unknown keyword 'nonsense'") == 1
        assert f"[{tagged_lb.cfg}:" in words
        assert "lbagent-staged" not in words
        assert again == 0
        assert (tagged_lb.text, tagged_lb.list_staged(), haproxy.reloads()) == (before, [], reloads)
        assert list(haproxy.servers()) == ["web01"]


def test_a_refusal_that_does_not_repeat_quarantines_no_node(lb: LoadBalancer) -> None:
    spent = lb.folder / "spent"
    spent.write_text("")
    once = f'[ "$1" != -c ] || [ $(wc -l < {spent}) -ge 2 ] || {{ echo no | tee -a {spent}; exit 1; }}'
    replace_haproxy(lb, f'{once}\nexec "$real" "$@"')

    ended = lb.join(WEB[1])

    assert (ended.returncode, ended.stderr, spent.read_text()) == (0, b"", "no\nno\n")
    assert lb.managed == make_lines(lb, 1)
    assert (list_quarantined(lb), lb.list_staged()) == ([], [])


def test_a_refused_node_is_added_once_its_tag_is_fixed(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb) as haproxy:
        tagged_lb.join(WEB[1], make_refused_member(9))

        ended = tagged_lb.handle("member-update", WEB[9])

        assert ended.returncode == 0
        assert tagged_lb.managed == make_tagged_lines(tagged_lb, 1, 9)
        assert list(haproxy.servers()) == ["web01", "web09"]
        # A quarantine ends when the line changes: members.json must not list a served node as quarantined.
        assert list_quarantined(tagged_lb) == []


def test_a_served_node_whose_new_line_is_refused_keeps_its_old_one(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb) as haproxy:
        tagged_lb.join(*WEB[1:4])

        ended = tagged_lb.handle("member-update", make_refused_member(2) + WEB[4])

        assert ended.returncode == 0
        assert tagged_lb.managed == make_tagged_lines(tagged_lb, 1, 2, 3, 4)
        assert list_quarantined(tagged_lb) == ["web02"]
        assert sorted(haproxy.servers()) == ["web01", "web02", "web03", "web04"]


def test_a_quarantined_node_can_still_be_paused_and_leave(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb) as haproxy:
        tagged_lb.join(*WEB[1:4])
        tagged_lb.handle("member-update", make_refused_member(2))

        paused = tagged_lb.send_command("pause", "web02", 1).returncode, tagged_lb.managed, list(haproxy.servers())
        left = tagged_lb.leave(make_refused_member(2)).returncode, tagged_lb.managed

        assert paused == (
            0,
            [
                *make_tagged_lines(tagged_lb, 1),
                "# lbagent paused web02 127.0.0.12 role=web",
                *make_tagged_lines(tagged_lb, 3),
            ],
            ["web01", "web03"],
        )
        assert left == (0, make_tagged_lines(tagged_lb, 1, 3))


def test_a_plan_does_not_change_quarantined_nodes(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb):
        tagged_lb.join(*WEB[1:4])
        tagged_lb.handle("member-update", make_refused_member(2))
        before = tagged_lb.text

        done = tagged_lb.run("plan")

        assert (done.returncode, done.stdout) == (4, b"No changes: 3 nodes, 3 lines.\n")
        assert b"web02 is in quarantine, its lines are unchanged: " in done.stderr
        applied = tagged_lb.run("apply")
        assert (applied.returncode, applied.stdout) == (4, b"No changes: 3 nodes, 3 lines.\n")
        assert b"web02 is in quarantine, HAProxy refuses its line: " in applied.stderr
        tagged_lb.text = before + b"# edited\n"
        again = tagged_lb.run("plan")  # the line would be tried and refused again
        assert (again.returncode, b"haproxy.cfg: HAProxy refuses the planned text: " in again.stderr) == (4, True)


def test_a_change_of_the_operators_text_tries_a_refused_node_again(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb):
        tagged_lb.join(WEB[1], make_refused_member(9))
        tagged_lb.text = tagged_lb.text.replace(b"    balance", b"    # another try\n    balance")
        before = tagged_lb.checks

        ended = tagged_lb.join(WEB[2])

        assert ended.returncode == 0
        assert tagged_lb.managed == make_tagged_lines(tagged_lb, 1, 2)
        assert list_quarantined(tagged_lb) == ["web09"]
        assert tagged_lb.checks - before > 1


# Unlock, read spool, try-lock is repeated until the spool is empty, also by a run that ended in an error: the
# handler of the second event found the lock busy and relies on it.
def test_an_event_that_arrives_during_a_refusal_is_applied(tagged_lb: LoadBalancer) -> None:
    with Haproxy(tagged_lb) as haproxy:
        tagged_lb.join(WEB[1])
        before = tagged_lb.checks
        gate = tagged_lb.hold_checks()
        with tagged_lb.start_handle("member-join", make_refused_member(9)) as first:
            wait_until(lambda: tagged_lb.checks > before)
            second = tagged_lb.join(WEB[2])
            third = tagged_lb.send_command("pause", "web01", 1)
            gate.touch()
            words = first.communicate()[1].decode()

        assert (second.returncode, third.returncode) == (0, 0)
        assert words.startswith("lbagent: web09: HAProxy refuses its line: ")
        assert tagged_lb.list_spool() == []
        assert tagged_lb.managed == ["# lbagent paused web01 127.0.0.11 role=web", *make_tagged_lines(tagged_lb, 2)]
        assert list(haproxy.servers()) == ["web02"]


def test_an_event_that_arrives_during_a_failing_reload_is_applied(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, occupy_port() as port:
        lb.join(WEB[1])
        lb.text = saved = add_listener(lb, port)
        with lb.start_handle("member-join", WEB[2]) as first:
            wait_until(lambda: lb.text != saved)
            second = lb.join(WEB[3])
            status = (first.wait(PATIENCE), second.returncode)

        assert status == (5, 0)
        assert lb.list_spool() == []
        assert sorted(lb.members()) == ["web01", "web02", "web03"]
        assert (lb.text, lb.list_staged(), haproxy.reloads()) == (saved, [], (2, 1))
