"""Each event captured from a real Serf, also of hostile peers, writes exactly the expected lines with a real `haproxy -c`."""

# ruff: noqa: E501  # one line per case of a table

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.builders import MANAGED, dedent, unmanaged_lines
from tests.helpers.load_balancer_files import SERF, LoadBalancerFiles, build_files, captured_event

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy")

CFG = dedent("""
    global
        maxconn 100
    defaults
        mode http
        timeout connect 1s
        timeout client 1s
        timeout server 1s
    frontend web
        bind 127.0.0.1:28080
        default_backend web
    backend web
        balance roundrobin
        # additional-lb-iis-server
    backend tagged
        balance source
        # additional-lb-tagged-server
    backend two
        # additional-two-iis-server
        # additional-two-mongo-server
""")

ROLES = dedent("""
    services:
      iis: {port: 80}
      tagged: {port: "{tag:port|8080}", options: "check weight {tag:weight|100}"}
      mongo: {port: 27017}
    roles:
      web: {lb: [iis], interval: 60s, networks: [127.0.0.0/8, "::1", 10.0.0.0/8]}
      A: {lb: [tagged], networks: [127.0.0.0/8]}
      B: {two: [iis, mongo], networks: [127.0.0.0/8]}
""")


def format_web_line(name: str, address: str) -> str:
    """Return the line of a node of the role `web`."""
    return f"server {name} {address}:80 check inter 60s rise 2 fall 2 # lbagent role=web"


def format_a_line(name: str, address: str, number: int, weight: int = 100) -> str:
    """Return the line of a node of the role `A`."""
    return f"server {name} {address}:8080 check weight {weight} id {number} # lbagent role=A"


def format_b_line(name: str, address: str, service: str, port: int) -> str:
    """Return one of the lines of a node of the role `B`."""
    return f"server {name}.{service} {address}:{port} check inter 2s rise 2 fall 2 # lbagent role=B"


WEB01, WEB02, MULTI01 = (
    format_web_line("web01", "127.0.0.2"),
    format_web_line("web02", "127.0.0.3"),
    format_web_line("multi01", "127.0.0.11"),
)
PAUSED = "# lbagent paused web01 127.0.0.2 role=web"
FIVE = [
    WEB02,
    format_a_line("web03", "127.0.0.4", 660104),
    format_a_line("web04", "127.0.0.5", 268155),
    format_b_line("web05", "127.0.0.6", "iis", 80),
    format_b_line("web06", "127.0.0.7", "iis", 80),
    format_b_line("web05", "127.0.0.6", "mongo", 27017),
    format_b_line("web06", "127.0.0.7", "mongo", 27017),
]

# Earlier events, the event, the managed lines after it.
CASES: list[tuple[tuple[str, ...], str, list[str]]] = [
    ((), "member-join-one", [WEB01]),
    ((), "member-join-five", FIVE),
    (("member-join-one",), "member-join-five", [WEB01, *FIVE]),
    ((), "member-join-ipv6", [format_web_line("web01", "[::1]")]),
    ((), "member-join-lb-multitag-env", [format_web_line(f"web0{at}", f"127.0.0.{at + 1}") for at in range(1, 10)]),
    ((), "member-join-multitag", [MULTI01]),
    ((), "member-join-name-dots", [format_web_line("web09.example.co.jp", "127.0.0.14")]),
    ((), "member-join-name-space", []),
    ((), "member-join-name-utf8", []),
    ((), "member-join-norole", []),
    ((), "member-join-role-empty", []),
    ((), "member-join-self", []),
    (("member-join-multitag",), "member-failed-one", [MULTI01]),
    (("member-join-multitag", "member-failed-one"), "member-join-after-failed", [MULTI01]),
    ((), "member-join-after-failed", [MULTI01]),
    (("member-join-one",), "member-leave-after-force-leave", []),
    ((), "member-leave-after-force-leave", []),
    (("member-join-one", "member-join-five"), "member-leave-one", [WEB01, *FIVE[1:]]),
    (("member-join-one",), "member-leave-self", [WEB01]),
    (("member-join-one",), "member-reap-after-prune", []),
    (
        ("member-join-one", "member-join-five"),
        "member-reap",
        [WEB01, format_b_line("web06", "127.0.0.7", "iis", 80), format_b_line("web06", "127.0.0.7", "mongo", 27017)],
    ),
    (
        ("member-join-one",),
        "member-update-role",
        [format_b_line("web01", "127.0.0.2", "iis", 80), format_b_line("web01", "127.0.0.2", "mongo", 27017)],
    ),
    (("member-join-one",), "member-update-multitag", [format_a_line("web01", "127.0.0.2", 0, 5)]),
    ((), "member-update-multitag", [format_a_line("web01", "127.0.0.2", 0, 5)]),
    (("member-join-one",), "query-with-payload", [WEB01]),
    (("member-join-one",), "user-deploy", [WEB01]),
    (("member-join-one",), "user-name-newline", [WEB01]),
    (("member-join-one", "member-join-five"), "user-pause", [PAUSED, *FIVE]),
    (("member-join-one",), "user-pause-coalesce", [PAUSED]),
    (("member-join-one",), "user-pause-trailing-newline", [PAUSED]),
    (("member-join-one",), "user-pause-empty-ip", [PAUSED]),
    (("member-join-one",), "user-pause-empty-payload", [WEB01]),
    (("member-join-one",), "user-pause-no-payload", [WEB01]),
    # No node has this name: the address identifies the node.
    (("member-join-one",), "user-pause-utf8", [PAUSED]),
    (("member-join-one",), "user-pause-cp932", [PAUSED]),
    (("member-join-one",), "user-pause-hostile", [WEB01]),
    ((), "user-pause-utf8", []),
    ((), "user-pause-cp932", []),
    (("user-pause",), "member-join-one", [PAUSED]),
    (("member-join-one", "user-pause"), "user-resume", [WEB01]),
    ((), "user-resume", []),
    ((), "win-member-join", [format_web_line("vm", "127.0.0.2")]),
    (("win-member-join",), "win-user-pause", ["# lbagent paused vm 127.0.0.2 role=web"]),
    (
        ("win-member-join", "win-user-pause"),
        "win-user-resume",
        ["# lbagent paused vm 127.0.0.2 role=web"],
    ),  # at an equal LTime pause wins
    ((), "hostile-addr-3bytes", []),
    ((), "hostile-addr-nil", []),
    ((), "hostile-addr-zero", []),
    ((), "hostile-advertise-addr", []),
    ((), "hostile-name-cr", []),
    ((), "hostile-name-empty", []),
    ((), "hostile-name-literal-backslash-n", []),
    ((), "hostile-name-newline", []),
    ((), "hostile-name-nonutf8", []),
    ((), "hostile-role-crlf", []),
    ((), "hostile-role-newline", []),
    ((), "hostile-space", []),
    ((), "hostile-tag-newline", [format_web_line("ev3", "127.0.0.45")]),
]


@pytest.fixture
def files(tmp_path: Path, lbagent: str) -> LoadBalancerFiles:
    """A load balancer whose haproxy.cfg a real HAProxy accepts."""
    return build_files(tmp_path, lbagent, CFG, ROLES)


def mask_ids(lines: list[str]) -> list[str]:
    """Return the lines without the values of `id`."""
    return [re.sub(r" id [0-9]+ #", " id N #", line) for line in lines]


def test_every_captured_event_is_tested() -> None:
    assert {case for _, case, _ in CASES} == {path.name for path in SERF.iterdir() if path.is_dir()}


@pytest.mark.parametrize(
    ("before", "case", "lines"), CASES, ids=["+".join([*before, case]) for before, case, _ in CASES]
)
def test_an_event_writes_exactly_these_lines(
    files: LoadBalancerFiles, before: tuple[str, ...], case: str, lines: list[str]
) -> None:
    for number, earlier in enumerate(before):
        files.store_event(*captured_event(earlier), f"{number:016x}")
    environ, stdin = captured_event(case)

    ended = files.run("handle", stdin=stdin, **environ)
    if before and files.spool_files:
        # An event that lbagent ignores does not read the spool; the next run does.
        assert files.run("apply").status == 0

    text = files.cfg.read_text()
    assert mask_ids(files.managed) == mask_ids(lines)
    assert unmanaged_lines(text) == unmanaged_lines(CFG)
    assert all(MANAGED.fullmatch(line) for line in set(text.split("\n")) - set(CFG.split("\n")))
    assert (ended.status, ended.out) == (0, b"")
    assert "Traceback" not in ended.err
    assert "internal error" not in ended.err
    assert all(line.startswith("lbagent: ") and line.isprintable() for line in ended.err.split("\n")[:-1])
    assert subprocess.run(["haproxy", "-c", "-f", str(files.cfg)], capture_output=True, check=False).returncode == 0
    assert files.spool_files == []
    assert [path.name for path in files.folder.iterdir() if "staged" in path.name or "lbagent-old" in path.name] == []


def test_all_events_in_one_batch_end_as_one_after_the_other(files: LoadBalancerFiles) -> None:
    joins = [case for _, case, _ in CASES if case.startswith(("member-join", "hostile")) and case != "member-join-ipv6"]
    for number, case in enumerate(dict.fromkeys(joins)):
        files.store_event(*captured_event(case), f"{number:016x}")

    at_once = files.run("apply")

    text = files.cfg.read_text()
    (files.state / "members.json").unlink()
    files.cfg.write_text(CFG)
    for case in dict.fromkeys(joins):
        environ, stdin = captured_event(case)
        assert files.run("handle", stdin=stdin, **environ).status == 0
    assert at_once.status == 0
    assert files.cfg.read_text() == text
