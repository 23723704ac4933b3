"""Serf tags in server lines: an invalid weight costs no line, several roles, addresses, and cookies of their own."""

from __future__ import annotations

import contextlib
import http.client

import pytest

from tests.helpers.real_programs import CONFIG, ROLES, Backend, Haproxy, LoadBalancer, member_line

pytestmark = [pytest.mark.real, pytest.mark.every_haproxy]

WEIGHTS = ROLES.replace("{{port: {port}}}", '{{port: {port}, options: "check weight {{tag:weight|100}}"}}')
TWO_ROLES = """\
haproxy: {{config: {cfg}}}
services:
  iis: {{port: {port}, options: "check cookie {{server}}"}}
  api: {{port: {port}, options: "check cookie {{server}}"}}
roles:
  web: {{lb: [iis], networks: [127.0.0.0/8]}}
  api: {{lb: [api], address: "{{tag:ip}}", networks: [127.0.0.0/8]}}
"""
COOKIES = CONFIG.replace("    # add", "    cookie C insert indirect\n    # additional-lb-api-server\n    # add")


def test_an_invalid_weight_on_one_node_after_the_other_costs_no_line() -> None:
    names = ["web01", "web02", "web03"]
    with LoadBalancer(roles=WEIGHTS) as lb, Haproxy(lb) as haproxy, contextlib.ExitStack() as stack:
        for number, name in enumerate(names, 11):
            stack.enter_context(Backend(name, f"127.0.0.{number}", lb.port))
            assert lb.join(member_line(name, f"127.0.0.{number}", weight="50")).returncode == 0
        before = lb.text

        runs = [
            lb.handle("member-update", member_line(name, f"127.0.0.{number}", weight="50%"))
            for number, name in enumerate(names, 11)
        ]

        assert (lb.text, haproxy.find_answering()) == (before, set(names))
        for name, run in zip(names, runs, strict=True):
            words = f"{name}: keeps its line in listen lb-iis: its tag 'weight' is invalid: '50%'"
            assert (run.returncode, words.encode() in run.stderr) == (0, True)


def test_a_node_with_two_roles_has_a_server_of_each_with_its_own_address_and_cookie() -> None:
    with (
        LoadBalancer(COOKIES, TWO_ROLES) as lb,
        Haproxy(lb) as haproxy,
        Backend("web", "127.0.0.11", lb.port),
        Backend("api", "127.0.0.12", lb.port),
    ):
        joined = lb.join(b"web01\t127.0.0.11\tweb,api\trole=web,api,ip=127.0.0.12\n")

        assert (joined.returncode, haproxy.find_answering()) == (0, {"web", "api"})
        assert request_cookies(lb) == {("web", "C=web01.iis"), ("api", "C=web01.api")}


def test_a_pause_is_not_done_while_another_node_serves_at_its_address() -> None:
    roles = ROLES.replace("lb: [iis]\n", 'lb: [iis]\n    address: "{{tag:ip}}"\n')
    with LoadBalancer(roles=roles) as lb, Haproxy(lb) as haproxy, Backend("web02", "127.0.0.12", lb.port):
        # web01 was cloned from web02, with its tag
        lb.join(*(member_line(f"web0{number}", f"127.0.0.1{number}", ip="127.0.0.12") for number in (1, 2)))

        first = lb.send_query("pause", "web02", 1).stdout.decode()
        serving = haproxy.find_answering()
        both = [lb.send_query("pause", name, ltime).stdout.decode() for name, ltime in (("web01", 2), ("web02", 3))]

        words = "server web01 of another node has its address; pause that node too"
        assert first == f"not applied yet: web02: in listen lb-iis: {words}\n"
        assert (serving, haproxy.find_answering()) == ({"web02"}, {"503"})
        assert both == ["done, no other server of iis serves\n", "done\n"]


def request_cookies(lb: LoadBalancer) -> set[tuple[str, str]]:
    """Return the backends that answer four requests, each with the cookie that HAProxy adds."""
    found = set()
    for _ in range(4):
        connection = http.client.HTTPConnection("127.0.0.1", lb.front, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            answer = connection.getresponse()
            found.add((answer.read().decode(), (answer.getheader("set-cookie") or "").partition(";")[0]))
    return found


def test_two_services_of_a_node_with_one_cookie_are_a_warning_of_check() -> None:
    roles = ROLES.replace("lb: [iis]", "lb: [iis, api]").replace(
        "  iis: {{port: {port}}}",
        "  iis: {{port: {port}, options: 'cookie {{name}}'}}\n  api: {{port: 8080, options: 'cookie {{name}}'}}",
    )
    with LoadBalancer(COOKIES, roles) as lb, Haproxy(lb):
        assert lb.join(member_line("web01", "127.0.0.11")).returncode == 0

        checked = lb.run("check").stdout.decode()

    assert "web01.api and web01.iis in listen lb-iis have the same cookie 'web01'; use `cookie {server}`" in checked
