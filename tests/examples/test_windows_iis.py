"""examples/windows-iis: its haproxy.cfg replaces the headers of the client's address, on a real HAProxy."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.echo_server import run_echo_server
from tests.helpers.real_programs import Haproxy, LoadBalancer, binaries, free_port

CONFIG = (Path(__file__).parent.parent.parent / "examples" / "windows-iis" / "haproxy.cfg").read_text(encoding="utf-8")


@pytest.mark.real
@pytest.mark.parametrize("binary", list(binaries().values()), ids=list(binaries()))
def test_a_client_cannot_set_the_headers_of_its_address(binary: Path) -> None:
    ports = {port: free_port() for port in ("80", "1111", "2222")}
    told = dict.fromkeys(("X-Forwarded-For", "x-real-ip", "Forwarded", "X-Forwarded-Host"), "me")
    with LoadBalancer(binary=binary) as lb, run_echo_server() as node:
        found = re.sub(r"(?m)^    (user|group|chroot|log) .*\n", "", CONFIG)
        found = re.sub(r"(?m)^    bind :(\d+)$", lambda one: f"    bind 127.0.0.1:{ports[one[1]]}", found)
        found = found.replace("127.0.0.1:8404", f"127.0.0.1:{free_port()}")
        found = re.sub(r"/run/haproxy/[a-z]+\.sock", str(lb.socket), found)
        lb.text = re.sub(r"(?m)^    # additional-lb-.*", f"    server node 127.0.0.1:{node}", found).encode()
        with Haproxy(lb):
            heard = {}
            for asked, port in ports.items():
                request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers=told)
                with urllib.request.urlopen(request, timeout=20) as answer:
                    heard[asked] = [one for one in json.load(answer) if re.search("(?i)forward|real", one[0])]

    assert heard == {port: [["x-forwarded-for", "127.0.0.1"]] for port in ports}
