"""conftest: what every test can rely on, whoever starts the tests."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.real_programs import Lb, binaries, default_binary, haproxy_release, installed_haproxy

HERE = Path(__file__).resolve().parent.parent

CHILD = """
import subprocess, sys
import tests.conftest
done = subprocess.run(["sh", "-c", f"kill -{sys.argv[1]} $$; exit 7"])
sys.exit(-done.returncode if done.returncode < 0 else 1)
"""
"""Exits with the number of the signal that ends its own child."""


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR2"])
def test_a_signal_that_the_caller_ignores_ends_the_programs_under_test(name: str) -> None:
    ignoring = ["sh", "-c", f"trap '' {name}; exec \"$@\"", "sh"]

    done = subprocess.run([*ignoring, sys.executable, "-c", CHILD, name], cwd=HERE, check=False, timeout=60)

    assert done.returncode == signal.Signals[f"SIG{name}"]


def test_a_signal_that_the_caller_blocks_ends_the_programs_under_test() -> None:
    block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); "
    run = "os.execv(sys.argv[1], sys.argv[1:])"

    argv = [sys.executable, "-c", block + run, sys.executable, "-c", CHILD, "INT"]
    done = subprocess.run(argv, cwd=HERE, check=False, timeout=60)

    assert done.returncode == signal.SIGINT


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    assert 0 < float(pytestconfig.getini("timeout")) <= 300


def test_without_a_choice_the_installed_haproxy_is_tested() -> None:
    assert default_binary() == (installed_haproxy() or next(iter(binaries().values())))


@pytest.mark.every_haproxy
def test_a_test_of_every_haproxy_has_each_of_them(every_haproxy: Path, request: pytest.FixtureRequest) -> None:
    with Lb() as lb:
        assert lb.binary == (lb.bin / "haproxy").readlink() == every_haproxy
        assert f"[{haproxy_release(lb.binary)}]" in request.node.name
