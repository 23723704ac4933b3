"""After a reload by lbagent, a server that was DOWN gets no traffic until a check has passed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lbagent.haproxy.runtime.state import parse_states
from tests.helpers.real_programs import RELOADING, Backend, Haproxy, LoadBalancer, binaries, member_line, wait_until

WEB01, WEB02, WEB03 = (member_line(f"web0{number}", f"127.0.0.1{number}") for number in (1, 2, 3))

SLOW = RELOADING.replace("interval: 200ms", "interval: 20s").replace(
    "port: {port}", "port: {port}, options: 'check inter {{interval}} fastinter 100ms downinter 20s rise 2 fall 1'"
)
"""A new worker may regard a dead server as UP for up to 20 seconds."""


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    with LoadBalancer(roles=SLOW, binary=request.param) as one:
        yield one


@pytest.mark.real
def test_a_server_that_was_down_starts_as_down(lb: LoadBalancer) -> None:
    hand = f"\nlisten hand\n    bind 127.0.0.1:{lb.port + 1}\n    server dead 127.0.0.12:{lb.port} check inter 20s\n"
    lb.text += hand.encode()
    with Backend("web01", "127.0.0.11", lb.port), Haproxy(lb) as haproxy:
        lb.join(WEB01, WEB02)
        for name in ("lb-iis/web02", "hand/dead"):
            haproxy.send(f"set server {name} health down")

        ended = lb.join(WEB03)

        assert ended.returncode == 0
        # The server that has just joined is dead too, but HAProxy has not checked it yet.
        assert haproxy.servers() | {"web03": ""} == {"web01": "UP", "web02": "DOWN", "web03": ""}
        assert haproxy.servers("hand") == {"dead": "DOWN"}


@pytest.mark.real
def test_a_server_that_answers_again_is_enabled_by_its_checks(lb: LoadBalancer) -> None:
    lb.roles.write_text(lb.fill_template(RELOADING))
    with Backend("web01", "127.0.0.11", lb.port), Haproxy(lb) as haproxy:
        lb.join(WEB01, WEB02)
        wait_until(lambda: haproxy.servers() == {"web01": "UP", "web02": "DOWN"})
        lb.join(WEB03)

        with Backend("web02", "127.0.0.12", lb.port):
            wait_until(lambda: haproxy.servers()["web02"] == "UP")


@pytest.mark.real
def test_a_server_with_a_new_address_has_haproxys_initial_state(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        lb.join(WEB01, WEB02)
        haproxy.send("set server lb-iis/web02 health down")

        lb.join(member_line("web02", "127.0.0.22"))

        assert haproxy.servers()["web02"].startswith("UP")


@pytest.mark.real
def test_a_server_state_file_is_written_before_the_reload(lb: LoadBalancer) -> None:
    state = lb.folder / "server-state"
    lb.text = lb.text.replace(b"global\n", f"global\n    server-state-file {state}\n".encode()).replace(
        b"defaults\n", b"defaults\n    load-server-state-from-file global\n"
    )
    state.write_text("1\n")
    with Backend("web01", "127.0.0.11", lb.port), Haproxy(lb) as haproxy:
        lb.join(WEB01, WEB02)
        haproxy.send("set server lb-iis/web02 health down")
        haproxy.send("set server lb-iis/web01 weight 50%")
        lb.join(WEB03)
        rows = parse_states(state.read_text())
        lb.send_command("pause", "web02", 1)
        lb.send_command("resume", "web02", 2)

        assert {key[1]: row.down for key, row in rows.items()} == {"web01": False, "web02": True}
        assert haproxy.servers().keys() == {"web01", "web02", "web03"}
        assert "web02" not in {key[1] for key in parse_states(state.read_text())}  # its address has changed


@pytest.mark.real
def test_a_worker_started_by_another_process_is_not_changed(lb: LoadBalancer) -> None:
    with Backend("web01", "127.0.0.11", lb.port), Haproxy(lb) as haproxy:
        lb.join(WEB01)
        haproxy.send("set server lb-iis/web01 health down")
        worker = haproxy.worker()
        os.kill(haproxy.pid, signal.SIGUSR2)
        wait_until(lambda: haproxy.worker() != worker)

        assert lb.run("apply").returncode == 0
        assert haproxy.servers()["web01"].startswith("UP")
