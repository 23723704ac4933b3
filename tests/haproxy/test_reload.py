"""The sockets of a master's CLI come from its command line or its environment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from lbagent.haproxy.reload import list_master_sockets
from lbagent.system import processes

_READY = "import sys; print(flush=True); sys.stdin.read()"


def find_sockets(words: Sequence[str], environ: Mapping[str, str], *, ended: bool = False) -> list[str]:
    """Return the sockets of a process with these arguments and this environment."""
    with subprocess.Popen(
        [sys.executable, "-c", _READY, *words], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        process = processes.read_process(program.pid)
        assert process is not None
        if ended:
            program.communicate()
        return list_master_sockets(process)


@pytest.mark.parametrize(
    ("words", "environ", "expected"),
    [
        ([], {}, []),
        (["-S", "/run/a.sock"], {}, ["/run/a.sock"]),
        (["-S/run/a.sock,mode,600", "-W"], {}, ["/run/a.sock"]),
        (["-W", "-S"], {}, []),
        (
            ["-S", "127.0.0.1:9", "-S", "/run/b.sock"],
            {"HAPROXY_MASTER_CLI": "/run/c.sock"},
            ["127.0.0.1:9", "/run/b.sock"],
        ),
        ([], {"HAPROXY_MASTER_CLI": "/run/c.sock;sockpair@3"}, ["/run/c.sock"]),
    ],
)
def test_sockets_of_a_master(words: list[str], environ: dict[str, str], expected: list[str]) -> None:
    assert find_sockets(words, environ) == expected


def test_a_master_that_has_ended_has_no_socket() -> None:
    assert find_sockets(["-S", "/run/a.sock"], {}, ended=True) == []
