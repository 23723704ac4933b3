"""conftest.py: signals, time limits and HAProxy versions are the same for every caller of the tests."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.real_programs import LoadBalancer, binaries, default_binary, haproxy_release, installed_haproxy
from tests.helpers.slices import choose_slice

HERE = Path(__file__).resolve().parent.parent

CHILD = """
import subprocess, sys
import tests.conftest
done = subprocess.run(["sh", "-c", f"kill -{sys.argv[1]} $$; exit 7"])
sys.exit(-done.returncode if done.returncode < 0 else 1)
"""
"""A program that exits with the number of the signal that ended its child."""


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR2"])
def test_a_signal_that_the_caller_ignores_ends_the_tested_programs(name: str) -> None:
    ignoring = ["sh", "-c", f"trap '' {name}; exec \"$@\"", "sh"]

    done = subprocess.run([*ignoring, sys.executable, "-c", CHILD, name], cwd=HERE, check=False, timeout=60)

    assert done.returncode == signal.Signals[f"SIG{name}"]


def test_a_signal_that_the_caller_blocks_ends_the_tested_programs() -> None:
    block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); "
    run = "os.execv(sys.argv[1], sys.argv[1:])"

    argv = [sys.executable, "-c", block + run, sys.executable, "-c", CHILD, "INT"]
    done = subprocess.run(argv, cwd=HERE, check=False, timeout=60)

    assert done.returncode == signal.SIGINT


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    assert 0 < float(pytestconfig.getini("timeout")) <= 300


def test_no_test_waits_for_a_fixed_time() -> None:
    """Shorter pauses are those between two looks, and between the steps of an edit."""
    waits = [
        f"{path.relative_to(HERE)}:{call.lineno}"
        for path in sorted((HERE / "tests").rglob("test_*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "time.sleep"
        and isinstance(call.args[0], ast.Constant)
        and float(str(call.args[0].value)) >= 0.1
    ]

    assert waits == []


def test_no_test_is_retried() -> None:
    commands = [(HERE / name).read_text(encoding="utf-8") for name in ("Makefile", ".ci/run", "pyproject.toml")]

    assert [text for text in commands if "rerun" in text or "--last-failed" in text or "flaky" in text] == []


def test_without_a_choice_the_installed_haproxy_is_tested() -> None:
    assert default_binary() == (installed_haproxy() or next(iter(binaries().values())))


@pytest.mark.all_versions
@pytest.mark.every_haproxy
def test_a_test_of_every_haproxy_has_each_of_them(every_haproxy: Path, request: pytest.FixtureRequest) -> None:
    with LoadBalancer() as lb:
        assert lb.binary == (lb.bin / "haproxy").readlink() == every_haproxy
        assert f"[{haproxy_release(lb.binary)}]" in request.node.name


ALL = ["2.6", "2.8", "3.0", "3.2"]


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize(("others", "each"), [(1, 2), (3, 2), (4, 1), (9, 1)])
def test_a_slice_has_each_combination_and_every_version(others: int, each: int, start: int) -> None:
    cases = [(test, other, version) for test in range(5) for other in range(others) for version in ALL]

    chosen = choose_slice(cases, ALL, start)

    by_combination: dict[tuple[object, object], list[str]] = {}
    for position in sorted(chosen):
        by_combination.setdefault(cases[position][:2], []).append(cases[position][2])
    assert len(by_combination) == 5 * others
    assert {version for versions in by_combination.values() for version in versions} == set(ALL)
    halves = [{ALL.index(version) // 2 for version in versions} for versions in by_combination.values()]
    assert all(len(versions) == len(half) for versions, half in zip(by_combination.values(), halves, strict=True))
    assert {len(versions) for versions in by_combination.values()} == {each}


@pytest.mark.parametrize("versions", [["3.0"], ["2.6", "3.2"]])
def test_with_one_version_or_two_a_slice_has_each_combination(versions: list[str]) -> None:
    cases = [("test", other, version) for other in range(2) for version in versions]

    assert choose_slice(cases, versions) == set(range(len(cases)))
    assert choose_slice([("test", "", versions[-1])], versions) == {0}
