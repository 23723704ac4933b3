"""No other server of a service serves: the note counts conditions, variables, templates, weights and failed nodes."""

from __future__ import annotations

import contextlib

import pytest

from tests.helpers.real_programs import CONFIG, ROLES, Backend, Haproxy, LoadBalancer, member_line, wait_until

pytestmark = [pytest.mark.real, pytest.mark.every_haproxy]

DONE = b"done\n"
LAST = b"done, no other server of iis serves\n"
WEIGHTS = ROLES.replace("port: {port}", 'port: {port}, options: "check inter 200ms weight {{tag:weight|100}}"')
NEVER = "\n.if 0\nbackend never\n    # additional-lb-iis-server\n.endif\n"
OLD = "\n.if !version_atleast(2.4)\nbackend old\n    # additional-lb-iis-server\n.endif\n"
DISABLED = "\nbackend asleep\n    disabled\n    # additional-lb-iis-server\n"
NAMED = CONFIG.replace("global\n", "global\n    presetenv NAME lb-iis\n").replace("listen lb-iis", 'listen "${{NAME}}"')
TEMPLATE = CONFIG.replace("    # add", "    server-template spare 1-2 127.0.0.12:{port}\n    # add")
WEIGHTLESS = CONFIG.replace("    # add", "    server spare 127.0.0.12:{port} weight 0\n    # add")


@pytest.mark.parametrize(
    ("config", "nodes", "answer"),
    [
        (CONFIG + NEVER, (1, 2), DONE),
        (CONFIG + NEVER, (1,), LAST),
        (CONFIG + OLD, (1, 2), DONE),
        (CONFIG + OLD, (1,), LAST),
        (CONFIG + DISABLED, (1, 2), DONE),
        (NAMED, (1, 2), DONE),
        (NAMED, (1,), LAST),
        (TEMPLATE, (1,), DONE),
        (WEIGHTLESS, (1,), LAST),
    ],
    ids=[
        "never-read", "never-read-last", "version", "version-last", "disabled", "variable", "variable-last", "template",
        "weightless",
    ],
)  # fmt: skip
def test_only_servers_that_haproxy_has_are_counted(config: str, nodes: tuple[int, ...], answer: bytes) -> None:
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(config))
        stack.enter_context(Haproxy(lb))
        for number in (1, 2):
            stack.enter_context(Backend(f"web{number}", f"127.0.0.{10 + number}", lb.port))
        assert lb.join(*(member_line(f"web{number}", f"127.0.0.{10 + number}") for number in nodes)).returncode == 0

        typed = lb.run("pause", "web1")
        lb.run("resume", "web1")
        asked = lb.send_query("pause", "web1", 5)

        assert (asked.stdout, typed.returncode) == (answer, 3 if answer == LAST else 1)  # 1: no other one was asked


def test_a_server_with_weight_0_does_not_count_as_another_server() -> None:
    with LoadBalancer(CONFIG, WEIGHTS) as lb, Haproxy(lb), Backend("one", "127.0.0.11", lb.port):
        with Backend("two", "127.0.0.12", lb.port):
            assert (
                lb.join(member_line("web1", "127.0.0.11"), member_line("web2", "127.0.0.12", weight="0")).returncode
                == 0
            )

            typed, asked = lb.run("pause", "web1"), lb.send_query("pause", "web1", 5)

        assert (typed.returncode, asked.stdout) == (3, LAST)


def test_a_failed_node_whose_check_passes_counts_as_another_server() -> None:
    with LoadBalancer() as lb, Haproxy(lb) as haproxy, Backend("one", "127.0.0.11", lb.port):
        with Backend("two", "127.0.0.12", lb.port):
            assert lb.join(member_line("web1", "127.0.0.11"), member_line("web2", "127.0.0.12")).returncode == 0
            assert lb.handle("member-failed", member_line("web2", "127.0.0.12")).returncode == 0
            wait_until(lambda: haproxy.servers()["web2"] == "UP")

            asked = lb.send_query("pause", "web1", 5)

        assert asked.stdout == DONE


@pytest.mark.parametrize("address", ["127.11", "127.0.11", "0x7f00000b", "0177.0.0.013", "2130706443"])
def test_an_operators_line_with_another_spelling_of_the_address_has_priority(address: str) -> None:
    with (
        LoadBalancer(CONFIG.replace("    # add", f"    server own {address}:{{port}}\n    # add")) as lb,
        Haproxy(lb) as haproxy,
        Backend("web1", "127.0.0.11", lb.port),
    ):
        assert lb.join(member_line("web1", "127.0.0.11")).returncode == 0

        asked = lb.send_query("pause", "web1", 5).stdout.decode()

        assert (lb.managed, haproxy.get()) == ([], "web1")
        assert asked.startswith(
            "not applied yet: web1: no managed line in listen lb-iis: an operator's line has its name"
        )
