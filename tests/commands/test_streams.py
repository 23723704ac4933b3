"""With closed or full standard streams a command prints one line at most, and its run is the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.real_programs import LBAGENT, LoadBalancer, member_line


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer that has a node, and runs nothing."""
    with LoadBalancer() as one:
        one.join(member_line("web01", "127.0.0.11"))
        yield one


def status(lb: LoadBalancer, words: str, redirection: str) -> tuple[int, str]:
    """Exit status and what is said where it still can be."""
    done = subprocess.run(
        ["/bin/sh", "-c", f"{LBAGENT} {words} {redirection}"], env=lb.env, capture_output=True, check=False, timeout=60
    )
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("plan", 0),
        ("apply", 0),
        ("status", 0),
        ("sync", 75),
        ("pause web01", 3),
        ("pause --force web01", 1),
        ("--version", 0),
        ("--help", 0),
        ("x", 2),
    ],
)
def test_a_closed_stream_changes_no_outcome(lb: LoadBalancer, words: str, redirection: str, expected: int) -> None:
    found, said = status(lb, words, redirection)

    assert found == expected
    assert "Traceback" not in said
    assert "internal error" not in said


@pytest.mark.parametrize("words", ["status", "--version", "--help", "apply"])
def test_a_full_disk_for_the_output_is_reported(lb: LoadBalancer, words: str) -> None:
    found, said = status(lb, words, ">/dev/full")

    assert found == 1
    assert said == "lbagent: stdout: No space left on device\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["status", "--help", "render"])
def test_an_output_that_is_cut_short_is_reported(lb: LoadBalancer, tmp_path: Path, words: str, unbuffered: str) -> None:
    env = {**lb.env, "PYTHONUNBUFFERED": unbuffered}
    file = tmp_path / "output"
    with file.open("wb") as output:
        # The kernel writes up to the limit, and refuses the rest.
        done = subprocess.run(
            ["prlimit", "--fsize=10", str(LBAGENT), *words.split()],
            env=env,
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )

    assert (done.returncode, done.stderr) == (1, b"lbagent: stdout: File too large\n")
    assert file.stat().st_size == 10


def test_the_message_of_haproxy_is_reported_without_stdin(lb: LoadBalancer) -> None:
    lb.text = lb.text.replace(b"balance", b"balanse")
    lb.roles.write_text(lb.roles.read_text().replace("200ms", "300ms"))

    found, said = status(lb, "apply", "<&-")

    assert found == 4
    assert said.startswith("lbagent: haproxy.cfg is invalid, not because of lbagent; nothing was changed: parsing [")
