"""on_pause: drain keeps the line of a paused node with weight 0: only bound clients still use it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbagent.haproxy.config import Document
from lbagent.haproxy.server_line import drain_line, undrain_line
from lbagent.membership.model import FAILED, Member
from lbagent.planning import lines as planning_lines
from lbagent.planning.lines import rebuild_membership
from lbagent.roles.model import Pair
from tests.helpers.builders import (
    NOW,
    dedent,
    managed_lines,
    member,
    membership_of,
    parse_roles_text,
    paused_member,
    paused_names,
    plan_for,
    planned_text,
)
from tests.helpers.daemon import run_watch
from tests.helpers.http_clients import run_clients
from tests.helpers.real_programs import CONFIG, ROLES, Backend, Haproxy, LoadBalancer, free_port, wait_until
from tests.helpers.real_programs import member_line as stdin

DRAINING = parse_roles_text(
    """
    services: {iis: {port: 80}, api: {port: 81, options: "check weight {tag:weight|7}"}}
    roles: {web: {lb: [iis], both: [iis, api], on_pause: drain, networks: [10.0.0.0/8]}, db: {lb: [iis]}}
    """
)
TEXT = dedent(
    """
    backend farm
        # additional-lb-iis-server
    """
)
WEB01, WEB02 = member("web01"), member("web02", "10.0.0.2")
IN = "server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 # lbagent role=web"
OUT = "server web01 10.0.0.1:80 check inter 2s rise 2 fall 2 weight 0 # lbagent paused role=web"


def rebuild_members(text: str) -> dict[str, Member]:
    """Return the members that are rebuilt from the managed lines."""
    return dict(rebuild_membership(Document([("x", text)]), DRAINING, NOW).members)


# --- the plan -----------------------------------------------------------------------------------------------------


def test_a_paused_node_keeps_its_line_and_its_place_with_weight_0() -> None:
    before = planned_text(TEXT, DRAINING, membership_of(WEB01, WEB02))

    out = planned_text(before, DRAINING, membership_of(paused_member(WEB01), WEB02))

    assert managed_lines(before) == [IN, IN.replace("web01", "web02").replace("0.1:", "0.2:")]
    assert managed_lines(out) == [OUT, managed_lines(before)[1]]
    assert planned_text(out, DRAINING, membership_of(paused_member(WEB01), WEB02)) == out
    assert planned_text(out, DRAINING, membership_of(WEB01, WEB02)) == before


def test_a_paused_node_of_another_role_has_no_line() -> None:
    text = planned_text(TEXT, DRAINING, membership_of(paused_member(member("db01", "10.0.0.9", "db"))))

    assert managed_lines(text) == ["# lbagent paused db01 10.0.0.9 role=db"]


def test_a_change_of_on_pause_turns_comments_into_lines_and_back() -> None:
    removing = parse_roles_text("services: {iis: {port: 80}}\nroles: {web: {lb: [iis], networks: [10.0.0.0/8]}}\n")
    out = membership_of(paused_member(WEB01))
    comment = planned_text(TEXT, removing, out)

    assert managed_lines(comment) == ["# lbagent paused web01 10.0.0.1 role=web"]
    assert managed_lines(planned_text(comment, DRAINING, out)) == [OUT]
    assert planned_text(planned_text(comment, DRAINING, out), removing, out) == comment


def test_a_lost_members_json_is_rebuilt_with_its_pauses() -> None:
    text = planned_text(TEXT, DRAINING, membership_of(paused_member(WEB01), WEB02))

    found = rebuild_members(text)

    assert {name: (one.address, one.role, one.pause is not None) for name, one in found.items()} == {
        "web01": ("10.0.0.1", "web", True),
        "web02": ("10.0.0.2", "web", False),
    }
    assert planned_text(text, DRAINING, membership_of(*found.values())) == text


@pytest.mark.parametrize("out", [True, False])
def test_without_its_tags_only_the_pause_of_a_line_changes(out: bool) -> None:  # noqa: FBT001  # a case
    text = "backend both\n    # additional-both-iis-server\n    # additional-both-api-server\n"
    heavy = member("web01", tags={"weight": "9"})
    given = [heavy, paused_member(heavy)]
    before, after = (planned_text(text, DRAINING, membership_of(one)) for one in (given if out else given[::-1]))

    forgotten = (paused_member if out else lambda one: one)(heavy._replace(tags=None))

    assert "server web01.api 10.0.0.1:81 check weight 9" in before
    assert planned_text(before, DRAINING, membership_of(forgotten)) == after


def test_without_its_tags_a_comment_stays() -> None:
    text = "backend both\n    # lbagent paused web01 10.0.0.1 role=web\n    # additional-both-api-server\n"

    assert planned_text(text, DRAINING, membership_of(paused_member(WEB01._replace(tags=None)))) == text


def test_a_line_whose_marker_is_missing_drains_too() -> None:
    text = f"backend farm\n    {IN}\n"

    out = planned_text(text, DRAINING, membership_of(paused_member(WEB01)))

    assert managed_lines(out) == [OUT]
    assert planned_text(out, DRAINING, membership_of(WEB01)) == text


def test_one_service_whose_marker_is_missing_drains_beside_the_other() -> None:
    text = "backend both\n    # additional-both-iis-server\n    # additional-both-api-server\n"
    both = planned_text(text, DRAINING, membership_of(WEB01)).replace("    # additional-both-iis-server\n", "")

    out = planned_text(both, DRAINING, membership_of(paused_member(WEB01)))

    assert [line.split()[1] for line in managed_lines(out)] == ["web01", "web01.iis"]
    assert all(" weight 0 # lbagent paused role=web" in line for line in managed_lines(out))
    assert planned_text(out, DRAINING, membership_of(WEB01)) == planned_text(both, DRAINING, membership_of(WEB01))


def test_a_node_that_is_paused_when_it_joins_gets_weight_0() -> None:
    assert managed_lines(planned_text(TEXT, DRAINING, membership_of(paused_member(WEB01)))) == [OUT]


def test_a_hashed_proxy_keeps_the_id() -> None:
    text = TEXT.replace("farm\n", "farm\n    balance source\n")
    before, out = (
        managed_lines(planned_text(text, DRAINING, membership_of(one))) for one in (WEB01, paused_member(WEB01))
    )

    assert [drain_line(line) for line in before] == out
    assert [undrain_line(line) for line in out] == before


def test_two_load_balancers_have_the_same_digest() -> None:
    members = [paused_member(WEB01), WEB02, paused_member(member("web10", "10.0.0.10", status=FAILED))]

    one, other = (plan_for(TEXT, DRAINING, membership_of(*order)) for order in (members, members[::-1]))

    assert one.digest == other.digest == Document([("x", one.after[0])]).compute_digest()
    assert [line.split()[1] for line in managed_lines(one.after[0])] == ["web01", "web02", "web10"]


def test_a_similar_line_is_the_operators() -> None:
    for line in (OUT.replace("role=web", "role="), f"{OUT} # x", OUT.replace("role=web", "role=a b")):
        assert planned_text(f"backend farm\n    {line}\n", DRAINING, membership_of()) == f"backend farm\n    {line}\n"
    assert rebuild_members(f"backend farm\n    {OUT} # x\n") == {}


def test_a_draining_node_counts_as_paused() -> None:
    membership = membership_of(paused_member(WEB01), WEB02)
    document = Document([("x", planned_text(TEXT, DRAINING, membership))])

    counts = planning_lines.count_servers(planning_lines.list_managed_lines(document), DRAINING, membership)[
        Pair("lb", "iis")
    ]

    assert (counts, paused_names(membership)) == ({"in": 1, "paused": 1, "failed": 0, "quarantined": 0}, ["web01"])


# --- real HAProxy -------------------------------------------------------------------------------------------------

COOKIE = "    cookie C insert indirect nocache dynamic\n    dynamic-cookie-key k\n"
TABLE = "    stick-table type string len 20 size 1k expire 1h peers all\n    stick on hdr(X-Client)\n"
KEPT_ALIVE = CONFIG.replace("    option httpclose\n", "")
DRAIN = ROLES.replace("    lb: [iis]\n", "    lb: [iis]\n    on_pause: drain\n")
OFF = DRAIN.replace("haproxy:\n", "haproxy:\n  runtime: off\n")


@contextlib.contextmanager
def run_load_balancer(binary: Path, lines: str = "", roles: str = DRAIN) -> Iterator[tuple[LoadBalancer, Haproxy]]:
    """Run a load balancer with two web nodes, and `lines` in its proxy."""
    text = KEPT_ALIVE.replace("    balance roundrobin\n", f"    balance roundrobin\n{lines}")
    if lines == TABLE:  # a reload transfers it to the new worker
        text = text.replace("defaults\n", f"peers all\n    peer here 127.0.0.1:{free_port()}\n\ndefaults\n", 1)
        text = text.replace("    hard-stop", "    localpeer here\n    hard-stop")
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(text, roles, binary))
        haproxy = stack.enter_context(Haproxy(lb))
        for number in (1, 2):
            stack.enter_context(Backend(f"web{number}", f"127.0.0.{10 + number}", lb.port))
        joined = lb.join(stdin("web1", "127.0.0.11"), stdin("web2", "127.0.0.12"))
        assert (joined.returncode, joined.stderr) == (0, b"")
        wait_until(lambda: haproxy.find_answering() == {"web1", "web2"})
        yield lb, haproxy


def send_request(lb: LoadBalancer, **headers: str) -> tuple[str, str]:
    """Return the backend that answers a request with these headers, and the cookie that is set."""
    connection = http.client.HTTPConnection("127.0.0.1", lb.front, timeout=5)
    connection.request("GET", "/", headers={key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return body if answer.status == http.HTTPStatus.OK else str(answer.status), (
        answer.getheader("set-cookie") or ""
    ).partition(";")[0]


def count_reloads(lb: LoadBalancer) -> int:
    """Return the number of reloads by lbagent."""
    return sum(entry["reloaded"] for entry in lb.history())


def make_drain_line(lb: LoadBalancer, number: int) -> str:
    """Return the line of a node that drains."""
    return drain_line(lb.server(f"web{number}", f"127.0.0.{10 + number}"))


@pytest.mark.real
@pytest.mark.parametrize("roles", [DRAIN, OFF], ids=["runtime", "reload"])
@pytest.mark.parametrize("lines", [COOKIE, TABLE], ids=["cookie", "stick-table"])
def test_bound_clients_finish_and_new_clients_get_another_server(binary: Path, lines: str, roles: str) -> None:
    with run_load_balancer(binary, lines, roles) as (lb, haproxy), run_clients(lb.front, 4) as count:
        cookies, before = lines == COOKIE, count_reloads(lb)
        bound: dict[str, dict[str, str]] = {}
        number = 0
        while len(bound) < 2:
            number += 1
            name, cookie = send_request(lb, **({} if cookies else {"X_Client": f"c{number}"}))
            bound[name] = {"Cookie": cookie} if cookies else {"X_Client": f"c{number}"}

        output = lb.send_query("pause", "web1", 1).stdout.decode()

        assert output.startswith("done")
        assert lb.managed[0] == make_drain_line(lb, 1)
        assert {send_request(lb, **bound["web1"])[0] for _ in range(6)} == {"web1"}
        assert {send_request(lb, **({} if cookies else {"X_Client": f"new{at}"}))[0] for at in range(12)} == {"web2"}
        assert {send_request(lb, **bound["web2"])[0] for _ in range(6)} == {"web2"}
        assert lb.send_query("resume", "web1", 2).stdout == b"done\n"
        wait_until(lambda: haproxy.find_answering() >= {"web1", "web2"})
        assert lb.managed[0] == lb.server("web1", "127.0.0.11")
        assert {send_request(lb, **bound["web1"])[0] for _ in range(6)} == {"web1"}
        assert count_reloads(lb) == before + (0 if roles == DRAIN else 2)
    assert set(count) == {"ok"}


@pytest.mark.real
@pytest.mark.parametrize(
    "lines",
    [
        "    use-server web1 if {{ path /one }}\n",
        "    http-request return status 404 if !{{ srv_is_up(lb-iis/web1) }} {{ path /none }}\n",
    ],
    ids=["use-server", "srv_is_up"],
)
@pytest.mark.parametrize("roles", [DRAIN, OFF], ids=["runtime", "reload"])
def test_a_node_that_haproxy_cfg_refers_to_drains_too(binary: Path, lines: str, roles: str) -> None:
    with run_load_balancer(binary, "", roles) as (lb, haproxy):
        lb.text = lb.text.replace(b"    balance", lines.format().encode() + b"    balance")

        assert lb.send_query("pause", "web1", 1).stdout == b"done\n"

        assert (lb.managed[0], haproxy.find_answering()) == (make_drain_line(lb, 1), {"web2"})
        assert lb.send_query("resume", "web1", 2).stdout == b"done\n"
        assert haproxy.find_answering() == {"web1", "web2"}


@pytest.mark.real
def test_a_worker_started_by_another_process_drains_and_enables_the_node_too(binary: Path) -> None:
    with run_load_balancer(binary) as (lb, haproxy), run_watch(lb), run_clients(lb.front, 2) as count:
        assert lb.send_query("pause", "web1", 1).stdout.startswith(b"done")
        first = haproxy.worker()
        # A worker that started later has certainly read the file as it is.
        wait_until(lambda: time.time() > lb.cfg.stat().st_ctime + 3)

        os.kill(haproxy.pid, signal.SIGUSR2)
        wait_until(lambda: haproxy.worker() != first)

        assert haproxy.find_answering() == {"web2"}
        wait_until(lambda: haproxy.servers()["web1"] == "DRAIN")
        before = count_reloads(lb)
        assert lb.send_query("resume", "web1", 2).stdout == b"done\n"
        assert haproxy.find_answering() == {"web1", "web2"}
        assert lb.send_query("pause", "web1", 3).stdout.startswith(b"done")
        assert haproxy.find_answering() == {"web2"}
        assert lb.send_query("resume", "web1", 4).stdout == b"done\n"
        assert (haproxy.find_answering(), count_reloads(lb)) == ({"web1", "web2"}, before)
    assert set(count) == {"ok"}


@pytest.mark.real
def test_a_paused_node_that_leaves_and_returns_drains_from_the_start(binary: Path) -> None:
    with run_load_balancer(binary) as (lb, haproxy):
        web1 = stdin("web1", "127.0.0.11")
        lb.send_command("pause", "web1", 1)
        lb.leave(web1)
        assert "web1" not in haproxy.find_serving()

        assert lb.join(web1).returncode == 0

        assert (lb.managed[0], haproxy.servers()["web1"].split()[0]) == (make_drain_line(lb, 1), "DRAIN")
        assert (haproxy.find_answering(), count_reloads(lb)) == ({"web2"}, 0)
        assert lb.send_command("resume", "web1", 2).returncode == 0
        assert (haproxy.find_answering(), count_reloads(lb)) == ({"web1", "web2"}, 0)


@pytest.mark.real
def test_where_weights_are_fixed_a_resume_after_a_reload_needs_a_reload(binary: Path) -> None:
    with run_load_balancer(binary, "    balance static-rr\n") as (lb, haproxy):
        assert lb.send_query("pause", "web1", 1).stdout == b"done\n"
        assert (haproxy.find_answering(), haproxy.servers()["web1"]) == ({"web2"}, "DRAIN")
        first = haproxy.worker()
        lb.text = lb.text.replace(b"timeout connect 1s", b"timeout connect 2s")
        os.kill(haproxy.pid, signal.SIGUSR2)
        wait_until(lambda: haproxy.worker() != first and len(haproxy.workers()) == 1)

        assert lb.send_query("resume", "web1", 2).stdout == b"done\n"

        assert haproxy.find_answering() == {"web1", "web2"}


@pytest.mark.real
def test_a_tcp_session_of_a_paused_node_continues(binary: Path) -> None:
    text = CONFIG.replace("mode http", "mode tcp").replace(
        "    option idle-close-on-response\n    option httpclose\n", ""
    )
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(text, DRAIN, binary))
        haproxy = stack.enter_context(Haproxy(lb))
        stack.enter_context(Backend("web2", "127.0.0.12", lb.port))
        with socket.create_server(("127.0.0.11", lb.port)) as service:
            lb.join(stdin("web1", "127.0.0.11"))
            with socket.create_connection(("127.0.0.1", lb.front)) as client:
                client.sendall(b"hello")
                server, _ = service.accept()
                while server.recv(9) != b"hello":  # a check
                    server, _ = service.accept()
                lb.join(stdin("web2", "127.0.0.12"))
                with server:
                    assert lb.send_query("pause", "web1", 1).stdout == b"done, 1 session still open\n"
                    client.sendall(b"more")
                    assert server.recv(9) == b"more"
                    server.sendall(b"bye")
                    assert client.recv(9) == b"bye"
            # `DRAIN 1/2` while its checks fail: the test's service answers one connection only.
            assert haproxy.servers()["web1"].partition(" ")[0] == "DRAIN"
