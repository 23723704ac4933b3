"""haproxy.cfg is read as HAProxy reads it: quotes, `#` in a word, variables, `.if`, `disabled`, damaged lines."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.real_programs import CONFIG, Haproxy, LoadBalancer, binaries, deletes_servers, member_line

pytestmark = pytest.mark.real

WEB01, WEB02 = member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12")
SOCKET = "stats socket {socket} mode 600 level admin expose-fd listeners"
LF = "\n"
MARKER = "    # additional-lb-iis-server\n"


@pytest.fixture
def lb(binary: Path) -> Iterator[LoadBalancer]:
    with LoadBalancer(binary=binary) as made:
        yield made


def write_config(lb: LoadBalancer, text: str) -> None:
    lb.cfg.write_text(lb.fill_template(text))


def is_without_reload(lb: LoadBalancer) -> bool:
    """Return whether the last change was made through the runtime API."""
    return not lb.history()[-1]["words"].count("HAProxy reloaded") and "without a reload" in lb.history()[-1]["words"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("defaults\n", "defaults#mine\n"),
        ("defaults\n", "defaults# ours\n"),
        ("global\n", "global#mine\n"),
        ("global\n", "'global'\n"),
        ("global\n", '"glo"bal\t# here\n'),
        ("listen lb-iis\n", "\t\"listen\" 'lb-iis'#mine\n"),
        ("listen lb-iis\n", "listen lb\\-iis\n".replace("\\-", "\\x2d")),
        (SOCKET, 'stats socket "{socket}" mode 600 level admin'),
        (SOCKET, "stats socket '{socket}' mode 600 level 'admin'#x"),
        (SOCKET, '"stats" \'socket\' {socket} "level" admin'),
        (SOCKET, '.if 1\n stats socket "{socket}" level admin\n.else\n stats socket /nowhere/sock level admin\n.endif'),
        (SOCKET, f".if !defined(NOBODY_SETS_THIS)\n {SOCKET}\n.endif"),
        (SOCKET, f".if version_atleast(1.8)\n {SOCKET}\n.endif"),
        (SOCKET, f"presetenv WHERE {{socket}}\n{SOCKET.replace('{socket}', chr(34) + '$WHERE' + chr(34))}"),
        ("\ndefaults\n", "\n    maxconn 100\nglobal\n    setenv WHERE nowhere\n    unsetenv WHERE\ndefaults\n"),
        ("listen lb-iis\n", 'global\n    setenv PROXY lb\nlisten "${{PROXY}}-${{KIND-iis}}"\n'),
        ("    # additional", "    default-server \"inter\" '1s'\n    # additional"),
        ("    bind 127.0.0.1:{front}\n", '    bind "127.0.0.1:{front}"\n    .notice "server web01"\n'),
        ("listen lb-iis\n", ".if 0\nlisten lb-iis\n    bind :1\n.endif\nlisten lb-iis\n"),
        ("\n", "\r\n"),
    ],
)
def test_a_join_needs_no_reload_in_any_style_of_haproxy_cfg(lb: LoadBalancer, old: str, new: str) -> None:
    assert old in CONFIG
    lb.cfg.write_bytes(lb.fill_template(CONFIG.replace(old, new)).encode())
    before = lb.text
    with Haproxy(lb) as haproxy:
        ended = lb.join(WEB01)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert is_without_reload(lb)
        assert list(haproxy.servers()) == ["web01"]
        added = f"    {lb.server('web01', '127.0.0.11')}{new if old == LF else LF}".encode()
        assert lb.text.replace(added, b"") == before


@pytest.mark.parametrize("written", ['"$WHERE"', '"${WHERE}"', '"${WHERE-/nowhere}"', '"$FOLDER/stats.sock"'])
def test_a_stats_socket_is_found_by_the_variables_of_the_haproxy_that_runs(
    lb: LoadBalancer, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(lb, CONFIG.replace("{socket}", written.replace("{", "{{").replace("}", "}}")))
    monkeypatch.setenv("WHERE", str(lb.socket))
    monkeypatch.setenv("FOLDER", str(lb.folder))
    with Haproxy(lb) as haproxy:
        monkeypatch.delenv("WHERE")
        monkeypatch.delenv("FOLDER")

        ended = lb.join(WEB01)
        checked = lb.run("check").stdout.decode()

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert is_without_reload(lb)
        assert list(haproxy.servers()) == ["web01"]
        assert f"stats-answer: {lb.socket}: worker {haproxy.worker()} answers with level admin" in checked


def test_a_proxy_has_the_name_that_the_running_haproxy_uses(lb: LoadBalancer, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(lb, CONFIG.replace("listen lb-iis", 'listen "$PROXY"'))
    monkeypatch.setenv("PROXY", "shop")
    with Haproxy(lb) as haproxy:
        monkeypatch.setenv("PROXY", "none")

        lb.join(WEB01)

        assert is_without_reload(lb)
        assert list(haproxy.servers("shop")) == ["web01"]

        lb.leave(WEB01)

        assert is_without_reload(lb)
        assert haproxy.find_serving("shop") == set()


LOCAL = "defined(HAPROXY_LOCALPEER)"
"""A condition that only HAProxy can decide."""

TWO = CONFIG + "    server first 127.0.0.21:1\n{section}\n" + MARKER
"""A second proxy below the first one, with the marker of the first one."""


@pytest.mark.parametrize(
    "section",
    ['"backend" b', '"$KIND" b', "'backend' 'b'#x", "back\\x65nd b", '"backend" "$NAME"', 'backend "${{NAME-b}}"'],
)
def test_a_server_is_added_to_the_proxy_that_its_line_is_in(
    lb: LoadBalancer, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(lb, TWO.replace(MARKER, "", 1).replace("{section}", section))
    monkeypatch.setenv("NAME", "b")
    monkeypatch.setenv("KIND", "backend")
    with Haproxy(lb) as haproxy:
        ended = lb.join(WEB01)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert (list(haproxy.servers()), list(haproxy.servers("b"))) == (["first"], ["web01"])


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (".if defined(HAPROXY_LOCALPEER)\nbackend b\n.else\nbackend c\n.endif", "b"),
        (f".if !{LOCAL}\nfrontend b\n.else\nbackend b\n.endif\nbackend c\n.if {LOCAL}", "c"),
        ('backend "b-$HAPROXY_LOCALPEER"', f"b-{platform.node()}"),
        ('"$HAPROXY_NOBODY_SETS_THIS"\nbackend b\n"${{HAPROXY_NOBODY_SETS_THIS-balance}}" leastconn', "b"),
    ],
)
def test_a_change_that_depends_on_haproxys_own_variables_is_applied_by_a_reload(
    lb: LoadBalancer, section: str, name: str
) -> None:
    end = ".endif\n" if section.count(".if") > section.count(".endif") else ""
    write_config(lb, TWO.replace(MARKER, "", 1).replace("{section}", section) + end)
    with Haproxy(lb) as haproxy:
        for found in (lb.join(WEB01), lb.join(WEB02), lb.leave(WEB01)):
            assert (found.returncode, found.stderr) == (0, b"")
            assert not is_without_reload(lb)

        assert (list(haproxy.servers()), list(haproxy.servers(name))) == (["first"], ["web02"])


CONDITIONS = (
    *("feature(THREAD)", "!feature(NO_SUCH)", "version_atleast(2.6)", "version_before(2.7)", "version_before(1.8)"),
    *("version_atleast(2.8) && version_before(3.1)", "defined(STAGE) && feature(THREAD)", '"$FLAG"', '!"$FLAG"'),
    *("defined(STAGE)", "!defined(STAGE)", 'streq("$STAGE",web_1.x@y+z)', 'strneq("${STAGE}",web)', 'streq("$NO",)'),
    *("defined(LATER)", 'streq("$LATER",yes)'),
)
"""Conditions that depend on the HAProxy program, on its environment, or on `setenv` in haproxy.cfg."""


def test_a_condition_on_version_features_or_environment_costs_no_reload(
    lb: LoadBalancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CONFIG.replace("global\n", "global\n    setenv LATER yes\n").replace(MARKER, "")
    for number, condition in enumerate(CONDITIONS):
        proxy = f"\nbackend b{number}\n.if {condition}\n{MARKER}.else\n    server op 127.0.0.21:1\n.endif\n"
        text += proxy.replace("{", "{{").replace("}", "}}")
    write_config(lb, text)
    monkeypatch.setenv("STAGE", "web_1.x@y+z")
    monkeypatch.setenv("FLAG", "1")
    names = [f"b{number}" for number in range(len(CONDITIONS))]
    with Haproxy(lb) as haproxy:
        monkeypatch.delenv("STAGE")
        monkeypatch.delenv("FLAG")
        worker, active = haproxy.worker(), [haproxy.servers(name) == {} for name in names]
        assert {True, False} == set(active)
        for verb, expected in (("", {"web01", "web02"}), ("pause", {"web02"}), ("resume", {"web01", "web02"})):
            done = lb.send_command(verb, "web01", len(verb)) if verb else lb.join(WEB01, WEB02)

            assert (done.returncode, done.stderr) == (0, b"")
            serving = [expected if is_active else {"op"} for is_active in active]
            assert [haproxy.find_serving(name) for name in names] == serving
        lb.leave(WEB01)

        serving = [{"web02"} if is_active else {"op"} for is_active in active]
        assert [haproxy.find_serving(name) for name in names] == serving
        assert haproxy.worker() == worker
        assert lb.run("apply").stdout.startswith(b"No changes: ")


def test_the_condition_of_a_program_that_was_replaced_since_is_left_to_a_reload(lb: LoadBalancer) -> None:
    """The running HAProxy decides what it has read, and not the program that replaced its own."""
    other = next((one for one in binaries().values() if deletes_servers(one) is not deletes_servers(lb.binary)), None)
    if other is None:
        pytest.skip("no HAProxy before and after 3.0 here")
    condition = ".if version_atleast(3.0)\n    server new 127.0.0.21:1\n.else\n"
    write_config(lb, CONFIG.replace(MARKER, f"{condition}{MARKER}.endif\n"))
    with Haproxy(lb) as haproxy:
        lb.use_haproxy(other)

        done = lb.join(WEB01)

        assert (done.returncode, done.stderr) == (0, b"")
        assert not is_without_reload(lb)
        assert list(haproxy.servers()) == (["new"] if deletes_servers(other) else ["web01"])


@pytest.mark.parametrize(
    ("text", "active"),
    [
        (CONFIG.replace(MARKER, f".if 0\n{MARKER}.endif\n"), False),
        (CONFIG.replace(MARKER, f".if !defined(PATH)\n{MARKER}.endif\n"), False),
        (CONFIG.replace(MARKER, f"    disabled\n{MARKER}"), False),
        (CONFIG.replace("defaults\n", "defaults\n    disabled\n"), False),
        (CONFIG.replace(MARKER, f"    disabled\n    enabled\n{MARKER}"), True),
        (CONFIG.replace(MARKER, f".if 1\n{MARKER}.endif\n"), True),
        (CONFIG.replace(MARKER, f".if defined(PATH)\n{MARKER}.endif\n"), True),
        (CONFIG.replace("listen lb", ".if 0\nlisten lb") + ".endif\n", False),
    ],
)
def test_a_marker_in_a_part_that_haproxy_ignores_costs_no_reload(lb: LoadBalancer, text: str, active: bool) -> None:  # noqa: FBT001
    write_config(lb, text)
    with Haproxy(lb) as haproxy:
        worker = haproxy.worker()
        lb.join(WEB01)
        lb.join(WEB02)
        lb.send_command("pause", "web01", 1)
        before = lb.text
        again = lb.run("apply"), lb.run("plan")

        assert [one.returncode for one in again] == [0, 0]
        assert lb.text == before
        assert haproxy.worker() == worker
        assert lb.managed == ["# lbagent paused web01 127.0.0.11 role=web", lb.server("web02", "127.0.0.12")]
        assert haproxy.find_serving() == ({"web02"} if active else set())


@pytest.mark.parametrize("condition", ["1", "0", "defined(PATH)", '"$NOBODY_SETS_THIS"', "feature(THREAD)"])
def test_a_marker_may_be_in_both_branches_of_one_if(lb: LoadBalancer, condition: str) -> None:
    weighted = f"    default-server weight 5\n{MARKER}"
    write_config(lb, CONFIG.replace(MARKER, f".if {condition}\n{MARKER}.else\n{weighted}.endif\n"))
    with Haproxy(lb) as haproxy:
        joined = lb.join(WEB01, WEB02)
        left = lb.leave(WEB02)
        checked = lb.run("check").stdout.decode()

        assert [(one.returncode, one.stderr) for one in (joined, left)] == [(0, b"")] * 2
        assert lb.managed == [lb.server("web01", "127.0.0.11")] * 2
        assert haproxy.find_serving() == {"web01"}
        assert "marker-duplicate" not in checked


def test_a_marker_twice_in_one_branch_is_refused(lb: LoadBalancer) -> None:
    write_config(lb, CONFIG.replace(MARKER, f".if 1\n{MARKER}{MARKER}.endif\n"))
    before = lb.text

    ended = lb.join(WEB01)

    assert ended.returncode == 4
    assert b"haproxy.cfg:19: marker '# additional-lb-iis-server' appears twice in listen lb-iis" in ended.stderr
    assert lb.text == before
