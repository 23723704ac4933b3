"""`haproxy -c`, asked the quick way: only the plain way refuses, and nothing is taken that it would not take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lbagent.haproxy.acceptance import checked
from tests.world import default_binary, haproxy_release

pytestmark = [pytest.mark.real, pytest.mark.every_haproxy]

GOOD = """\
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
listen lb
    bind 127.0.0.1:1
"""

ASKED = """\
#!/bin/sh
echo "$*" >> {log}
exec {real} "$@"
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where each run of `haproxy` leaves its words, a line each."""
    real = default_binary()
    log, program = tmp_path / "asked", tmp_path / "bin" / "haproxy"
    program.parent.mkdir()
    program.write_text(ASKED.format(log=log, real=real))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return log


def ways(asked: Path, paths: Sequence[Path]) -> list[str]:
    """Which way HAProxy was asked, run by run."""
    plain = f"-c {' '.join(f'-f {path}' for path in paths)}"
    return [
        "plain" if line == plain else "quick" if line.endswith(plain.removeprefix("-c")) else line
        for line in asked.read_text().splitlines()
    ]


def written(folder: Path, *texts: str) -> list[Path]:
    paths = [folder / f"{number}.cfg" for number, _ in enumerate(texts)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


@pytest.mark.parametrize("texts", [(GOOD,), ("global\n    maxconn 100\n", GOOD)])
def test_what_is_taken_the_quick_way_is_asked_once(asked: Path, tmp_path: Path, texts: tuple[str, ...]) -> None:
    paths = written(tmp_path, *texts)

    result = checked([str(path) for path in paths], 30, None)

    assert (result.good, ways(asked, paths)) == (True, ["quick"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{GOOD}    server x\n", 8),
        ("    maxconn 100\n", 1),  # no section: the text before it must not lend it one
        (f"{GOOD}    no such word\n", 8),
    ],
)
def test_who_is_refused_is_refused_the_plain_way(asked: Path, tmp_path: Path, text: str, line: int) -> None:
    (path,) = written(tmp_path, text)

    result = checked([str(path)], 30, None)

    assert (result.good, f"[{path}:{line}]" in result.words, "without-ca" in result.words) == (False, True, False)
    assert ways(asked, [path]) == ["quick", "plain"]


@pytest.mark.parametrize(
    ("text", "refusing"),
    [
        ("global\n    httpclient.ssl.ca-file /no/such.pem\n", ["2.6"]),  # which nothing but the plain way finds
        ('global\n    "httpcl"ient.ssl.ca-file /no/such.pem\n', ["2.6"]),
        ("global\n    httpclient.ssl.verify required\n", []),
        ('global\n    setenv CFG "x${HAPROXY_CFGFILES}"\n', []),
    ],
)
def test_a_text_that_may_mean_something_else_is_asked_plainly(
    asked: Path,
    tmp_path: Path,
    text: str,
    refusing: list[str],
    every_haproxy: Path,
) -> None:
    (path,) = written(tmp_path, text + GOOD)

    result = checked([str(path)], 30, None)

    assert (result.good, ways(asked, [path])) == (haproxy_release(every_haproxy) not in refusing, ["plain"])


def test_what_takes_too_long_is_not_asked_twice(asked: Path, tmp_path: Path) -> None:
    (path,) = written(tmp_path, GOOD)
    (tmp_path / "bin" / "haproxy").write_text(f'#!/bin/sh\necho "$*" >> {asked}\nexec sleep 60\n')

    result = checked([str(path)], 1, None)

    assert (result.status, ways(asked, [path])) == (None, ["quick"])
