"""The quick `haproxy -c` accepts only what the plain one accepts, and only the plain one refuses."""

# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lbagent.haproxy.validation import check_files, find_alert
from tests.helpers.real_programs import (
    CONFIG,
    RELOADING,
    Haproxy,
    LoadBalancer,
    binaries,
    default_binary,
    haproxy_release,
    member_line,
)

pytestmark = [pytest.mark.real, pytest.mark.every_haproxy]

WEB = member_line("web01", "127.0.0.11")

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
def test_a_text_accepted_by_the_quick_check_is_checked_once(
    asked: Path, tmp_path: Path, texts: tuple[str, ...]
) -> None:
    paths = written(tmp_path, *texts)

    result = check_files([str(path) for path in paths], 30, None)

    assert (result.succeeded, ways(asked, paths)) == (True, ["quick"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{GOOD}    server x\n", 8),
        ("    maxconn 100\n", 1),  # no section: the text before it must not lend it one
        (f"{GOOD}    no such word\n", 8),
    ],
)
def test_a_refusal_is_that_of_the_plain_check(asked: Path, tmp_path: Path, text: str, line: int) -> None:
    (path,) = written(tmp_path, text)

    result = check_files([str(path)], 30, None)

    assert (result.succeeded, f"[{path}:{line}]" in result.output, "without-ca" in result.output) == (
        False,
        True,
        False,
    )
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
def test_a_text_that_depends_on_its_files_gets_only_the_plain_check(
    asked: Path,
    tmp_path: Path,
    text: str,
    refusing: list[str],
    every_haproxy: Path,
) -> None:
    (path,) = written(tmp_path, text + GOOD)

    result = check_files([str(path)], 30, None)

    assert (result.succeeded, ways(asked, [path])) == (haproxy_release(every_haproxy) not in refusing, ["plain"])


def test_a_check_that_times_out_is_not_repeated(asked: Path, tmp_path: Path) -> None:
    (path,) = written(tmp_path, GOOD)
    (tmp_path / "bin" / "haproxy").write_text(f'#!/bin/sh\necho "$*" >> {asked}\nexec sleep 60\n')

    result = check_files([str(path)], 1, None)

    assert (result.status, ways(asked, [path])) == (None, ["quick"])


def test_a_reason_printed_as_a_warning_is_found(every_haproxy: Path) -> None:
    if _version(every_haproxy) < (3, 1):
        pytest.skip("this version takes such a section")
    with LoadBalancer() as lb, Haproxy(lb):
        lb.text = saved = lb.text + b"\nprogram x\n    command sleep 1\n"
        line = saved.split(b"\n").index(b"program x") + 1

        ended, checked_too = lb.join(WEB), lb.run("check")

        words = ended.stderr.decode()
        assert (ended.returncode, lb.text) == (4, saved)
        assert f"parsing [{lb.cfg}:{line}]: The 'program' section is deprecated" in words
        assert "Error(s) found" not in words
        assert (
            f"error    haproxy-cfg: {lb.cfg}:{line}: The 'program' section is deprecated".encode() in checked_too.stdout
        )


def test_a_part_that_only_a_reload_reads_is_validated(every_haproxy: Path) -> None:
    """HAProxy sets HAPROXY_MWORKER for a master's workers, and not for `haproxy -c`."""
    with LoadBalancer(binary=every_haproxy) as lb, Haproxy(lb) as haproxy:
        lb.text = saved = lb.text + b".if defined(HAPROXY_MWORKER)\nbackend x\n    no-such-keyword\n.endif\n"

        ended = lb.join(WEB)

        assert (ended.returncode, lb.text, haproxy.reloads()) == (4, saved, (0, 0))
        assert b"no-such-keyword" in ended.stderr


def test_a_program_section_is_accepted_where_haproxy_has_a_master(every_haproxy: Path) -> None:
    allowed = "    expose-deprecated-directives\n" if _version(every_haproxy) > (3, 0) else ""
    text = CONFIG.replace("global\n", f"global\n{allowed}") + "\nprogram x\n    command sleep 60\n"
    with LoadBalancer(text) as lb, Haproxy(lb) as haproxy:
        ended = lb.join(WEB)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert list(haproxy.servers()) == ["web01"]


def _version(binary: Path) -> tuple[int, ...]:
    [version] = [version for version, one in binaries().items() if one == binary]
    return tuple(map(int, version.split(".")))


def test_a_long_reason_is_cut_in_every_message() -> None:
    with LoadBalancer() as lb, Haproxy(lb):
        lb.join(WEB)
        (lb.bin / "haproxy").unlink()
        script = "#!/bin/sh\nhead -c 16000000 /dev/zero | tr '\\\\0' x >&2\nexit 1\n"
        (lb.bin / "haproxy").write_text(script)
        (lb.bin / "haproxy").chmod(0o755)

        ended = lb.join(member_line("web02", "127.0.0.12"))
        runs = [lb.run(*words) for words in (["status"], ["status", "--json"], ["check"], ["plan"], ["apply"])]

        assert ended.returncode == 4
        assert len(ended.stderr) < 1000
        assert [len(one.stdout) + len(one.stderr) < 20_000 for one in runs] == [True] * 5
        assert sum(path.stat().st_size for path in lb.state.rglob("*") if path.is_file()) < 20_000


def test_a_long_line_of_a_reload_command_is_cut() -> None:
    command = "  reload: [sh, -c, 'head -c 16000000 /dev/zero | tr \\\\\\\\0 x; exit 1']\n  timeout:"
    with LoadBalancer(roles=RELOADING.replace("  timeout:", command)) as lb, Haproxy(lb):
        ended = lb.join(WEB)

        assert ended.returncode == 5
        assert len(ended.stderr) < 1000
        assert sum(path.stat().st_size for path in lb.state.rglob("*") if path.is_file()) < 20_000


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", ""),
        ("Configuration file is valid\n", ""),
        ("[WARNING]  (1) : config : parsing [a:1]: old\n", ""),
        ("[ALERT]    (1) : config : [a:9] : bad\n[ALERT]    (1) : config : Error(s) found in configuration file : a\n", "[a:9] : bad"),
        ("[ALERT] 324/103828 (1) : parsing [a:9] : bad\n", "parsing [a:9] : bad"),
        ("[ALERT]    (1) : Binding [a:13] for proxy b: cannot bind\n[ALERT]    (1) : [haproxy.main()] Some failed\n", "Binding [a:13] for proxy b: cannot bind"),
        ("[ALERT]    (1) : [haproxy.main()] Cannot chroot(/x)\n", "[haproxy.main()] Cannot chroot(/x)"),
        ("[WARNING]  (1) : config : parsing [a:2]: gone\n[ALERT]    (1) : config : Error(s) found in configuration file : a\n", "parsing [a:2]: gone"),
        ("Success=0\n--\n[ALERT]    (1) : no\n", "no"),
    ],
)  # fmt: skip
def test_the_reason_is_found_in_the_output_of_haproxy(output: str, words: str) -> None:
    assert find_alert(output) == words
