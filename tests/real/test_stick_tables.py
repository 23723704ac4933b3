"""With `peers`, each client keeps its server over a reload soon after a start."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbagent.haproxy.reload import is_learning
from tests.helpers.real_programs import (
    CONFIG,
    RELOADING,
    Backend,
    Haproxy,
    LoadBalancer,
    binaries,
    free_port,
    member_line,
)

STICKY = CONFIG.replace("    hard-stop-after 2s\n", "    hard-stop-after 2s\n    localpeer here\n").replace(
    "    balance roundrobin\n",
    "    balance roundrobin\n    stick-table type ip size 1k expire 1h peers lb\n    stick on src\n",
)
"""Clients keep their server."""

SECTION = "0x55a8: [21/Nov/2026:10:38:28] id=lb disabled=0 flags=0x{} resync_timeout={} task_calls=3"
PEER = """
  0x55a8: id=lb02(remote,active) addr=10.0.0.2:1024 last_status=CONN last_hdshk=1s
        reconnect=3s heartbeat=<NEVER> confirm=0 tx_hbt=0 rx_hbt=0 no_hbt=0 new_conn=2 proto_err=0 coll=0
        flags=0x0 appctx:0x7f42 st0=6 st1=0 task_calls=2 state=TAR
"""


@pytest.mark.parametrize(
    ("answer", "is_so"),
    [
        (SECTION.format("11", "4s") + PEER, True),
        (SECTION.format("6891", "2s") + PEER, True),
        (SECTION.format("33", "<PAST>") + PEER, False),
        (SECTION.format("2213", "4s") + PEER, False),
        (SECTION.format("33", "<PAST>") + PEER + "\n" + SECTION.format("11", "4s") + PEER, True),
        (SECTION.format("11", "4s").replace("disabled=0", "disabled=1"), False),
        ("", False),
        ("Unknown command: 'show peers'", False),
    ],
    ids=[
        "nobody has answered",
        "another is answering",
        "had their time",
        "another has answered",
        "the second of two",
        "disabled",
        "no peers",
        "not known",
    ],
)
def test_the_answer_of_show_peers_is_parsed(answer: str, *, is_so: bool) -> None:
    assert is_learning(answer) is is_so


@pytest.mark.real
@pytest.mark.parametrize("binary", list(binaries().values()), ids=list(binaries()))
def test_a_reload_right_after_the_start_keeps_each_client_at_its_server(binary: Path) -> None:
    peers = f"\npeers lb\n    peer here 127.0.0.1:{free_port()}\n    peer other 127.0.0.1:{free_port()}\n"
    with LoadBalancer(STICKY + peers, RELOADING, binary) as lb, Backend("web01", "127.0.0.11", lb.port):
        lb.join(member_line("web01", "127.0.0.11"))
        with Haproxy(lb) as haproxy:
            assert haproxy.get() == "web01"

            done = lb.join(member_line("web02", "127.0.0.12"))

            assert (done.returncode, done.stderr) == (0, b"")
            assert haproxy.reloads() == (1, 0)
            assert haproxy.send("show table lb-iis").split(", ")[-1].startswith("used:1\n")
