"""The handler, run by the real console script without HAProxy: what Serf sees of an event."""

# ruff: noqa: E501  # a case of a table stands on one line

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from lbagent.commands.query import WAIT
from tests.helpers.builders import dedent
from tests.helpers.load_balancer_files import LoadBalancerFiles, build_files

CFG = dedent("""
    backend farm
        # additional-lb-iis-server
""")
ROLES = dedent("""
    services: {iis: {port: 80}}
    roles:
      web: {lb: [iis], interval: 60s}
""")
NO = (
    "#!/bin/sh\necho '[ALERT]    (7) : config : parsing [/etc/haproxy/haproxy.cfg:12]: unknown keyword x' >&2\nexit 1\n"
)


def line(name: str, address: str) -> str:
    """A managed line."""
    return f"server {name} {address}:80 check inter 60s rise 2 fall 2 # lbagent role=web"


@pytest.fixture
def stage(tmp_path: Path, lbagent: str) -> LoadBalancerFiles:
    """A load balancer without HAProxy."""
    return build_files(tmp_path, lbagent, CFG, ROLES, "/bin/true")


def test_a_join_is_written_and_nothing_is_printed(stage: LoadBalancerFiles) -> None:
    assert stage.join("web01 10.0.0.1", "web02 10.0.0.2") == (0, b"", "")

    assert stage.cfg.read_text() == (
        "backend farm\n"
        "    server web01 10.0.0.1:80 check inter 60s rise 2 fall 2 # lbagent role=web\n"
        "    server web02 10.0.0.2:80 check inter 60s rise 2 fall 2 # lbagent role=web\n"
        "    # additional-lb-iis-server\n"
    )
    assert stage.spool_files == []


def test_leaving_undoes_joining(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")

    assert stage.handle("member-leave", b"web01\t10.0.0.1\tweb\trole=web\n").status == 0

    assert stage.cfg.read_text() == CFG


def test_pause_and_resume_go_there_and_back(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")

    assert stage.send_event("pause", "WEB01 10.0.0.1 web", 3).status == 0
    assert stage.managed == ["# lbagent paused web01 10.0.0.1 role=web"]
    assert stage.send_event("resume", "WEB01 10.0.0.1 web", 4).status == 0

    assert stage.managed == [line("web01", "10.0.0.1")]


def test_the_same_event_twice_writes_nothing_the_second_time(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    before = stage.cfg.stat()

    assert stage.join("web01 10.0.0.1").status == 0

    assert stage.cfg.stat().st_mtime_ns == before.st_mtime_ns
    assert stage.cfg.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("kind", "more"),
    [("user", {"SERF_USER_EVENT": "deploy"}), ("query", {"SERF_QUERY_NAME": "x"}), ("member-mystery", {}), ("", {})],
)
def test_an_unknown_event_leaves_no_trace(stage: LoadBalancerFiles, kind: str, more: dict[str, str]) -> None:
    assert stage.handle(kind, b"x\n", **more) == (0, b"", "")

    assert not stage.state.exists()


def test_without_serf_the_message_names_the_caller(stage: LoadBalancerFiles) -> None:
    assert stage.run("handle") == (
        2,
        b"",
        "lbagent: SERF_EVENT is not set; Serf calls `lbagent handle` as its event handler\n",
    )


@pytest.mark.parametrize("kind", ["member-join", "member-leave", "member-failed", "member-update", "member-reap"])
def test_an_empty_event_changes_nothing(stage: LoadBalancerFiles, kind: str) -> None:
    assert stage.handle(kind) == (0, b"", "")

    assert stage.cfg.read_text() == CFG


def test_a_hostile_member_is_one_warning(stage: LoadBalancerFiles) -> None:
    ended = stage.handle(
        "member-join", b"x\\n server evil 6.6.6.6:80\t10.0.0.9\tweb\trole=web\nweb01\t10.0.0.1\tweb\trole=web\n"
    )

    assert ended == (
        0,
        b"",
        "lbagent: member-join: invalid node name 'x\\\\n server evil 6.6.6.6:80'; use at most 63 letters, digits, '.', '-' and '_', beginning with a letter or digit\n",
    )
    assert stage.managed == [line("web01", "10.0.0.1")]


# --- what the operator did wrong ----------------------------------------------------------------------------------


def test_a_refused_roles_yml_is_one_line_and_the_event_waits(stage: LoadBalancerFiles) -> None:
    good = stage.roles.read_text()
    stage.roles.write_text(f"{good}  app: {{lb: [isi]}}\n")

    ended = stage.join("web01 10.0.0.1")

    assert ended == (
        2,
        b"",
        f"lbagent: {stage.roles}:5:14: roles.app.lb: service 'isi' is not declared; did you mean iis?\n",
    )
    assert stage.cfg.read_text() == CFG
    assert sorted(path.name for path in stage.state.iterdir()) == ["last.json", "lock", "metrics.prom", "spool"]
    stage.roles.write_text(good)
    assert stage.run("apply").status == 0
    assert stage.managed == [line("web01", "10.0.0.1")]


def test_a_missing_roles_yml_is_one_line(stage: LoadBalancerFiles) -> None:
    stage.roles.unlink()

    assert stage.join("web01 10.0.0.1") == (
        2,
        b"",
        f"lbagent: {stage.roles}: cannot be read: No such file or directory\n",
    )


def test_a_missing_haproxy_cfg_is_one_line(stage: LoadBalancerFiles) -> None:
    stage.cfg.unlink()

    ended = stage.join("web01 10.0.0.1")

    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err == f"lbagent: {stage.cfg}: No such file or directory\n"
    assert len(stage.spool_files) == 1


def test_an_empty_folder_of_haproxy_cfg_is_no_defect(stage: LoadBalancerFiles) -> None:
    (stage.folder / "conf.d").mkdir()
    stage.roles.write_text(f"haproxy: {{config: {stage.folder}/conf.d}}\n{ROLES}")

    ended = stage.join("web01 10.0.0.1")

    assert ended == (1, b"", f"lbagent: {stage.folder}/conf.d: holds no *.cfg file\n")


def test_a_doubled_marker_is_refused(stage: LoadBalancerFiles) -> None:
    stage.cfg.write_text(f"{CFG}    # additional-lb-iis-server\n")

    ended = stage.join("web01 10.0.0.1")

    assert ended == (
        4,
        b"",
        f"lbagent: {stage.cfg}:3: marker '# additional-lb-iis-server' appears twice in backend farm, first at {stage.cfg}:2; delete one\n",
    )


def test_a_refused_text_never_goes_live(stage: LoadBalancerFiles) -> None:
    (stage.folder / "bin" / "haproxy").unlink()
    (stage.folder / "bin" / "haproxy").write_text(NO)
    (stage.folder / "bin" / "haproxy").chmod(0o755)

    ended = stage.join("web01 10.0.0.1")

    assert ended.status == 4
    assert ended.err == (
        "lbagent: haproxy.cfg is invalid, not because of lbagent; nothing was changed:"
        " parsing [/etc/haproxy/haproxy.cfg:12]: unknown keyword x\n"
    )
    assert stage.cfg.read_text() == CFG
    assert stage.members == {"web01": "alive"}


def test_a_refused_change_is_applied_once_haproxy_accepts_it(stage: LoadBalancerFiles) -> None:
    (stage.folder / "bin" / "haproxy").unlink()
    (stage.folder / "bin" / "haproxy").symlink_to("/bin/false")
    assert stage.join("web01 10.0.0.1").status == 4
    (stage.folder / "bin" / "haproxy").unlink()
    (stage.folder / "bin" / "haproxy").symlink_to("/bin/true")

    assert stage.join("web02 10.0.0.2").status == 0

    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2")]


def test_a_tag_made_to_break_the_plan_costs_only_its_own_node(stage: LoadBalancerFiles) -> None:
    stage.roles.write_text(stage.roles.read_text().replace("port: 80", 'port: "{tag:port|80}"'))
    stage.join("web01 10.0.0.1")

    ended = stage.handle(
        "member-join", b"evil\t10.0.0.9\tweb\trole=web,port=0000099999\nweb02\t10.0.0.2\tweb\trole=web\n"
    )

    assert "internal error" not in ended.err
    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2")]


# --- state --------------------------------------------------------------------------------------------------------


def test_state_that_cannot_be_written_is_reported_to_need_a_sync(stage: LoadBalancerFiles) -> None:
    stage.state.write_text("in the way")

    ended = stage.join("web01 10.0.0.1")

    assert ended.status == 1
    assert ended.err.startswith("lbagent: not stored: sync needed: ")
    assert ended.err.count("\n") == 1
    assert stage.cfg.read_text() == CFG


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version":1}',
        b"\xff\0",
        b'{"clocks":{},"folded":[],"members":[{}]}',
        b"[" * 100_000,
    ],
)
def test_damaged_members_are_kept_aside_and_rebuilt(stage: LoadBalancerFiles, content: bytes) -> None:
    stage.join("web01 10.0.0.1", "web02 10.0.0.2")
    stage.send_event("pause", "web02", 1)
    (stage.state / "members.json").write_bytes(content)

    ended = stage.join("web03 10.0.0.3")

    assert ended.status == 0
    assert stage.managed == [
        line("web01", "10.0.0.1"),
        "# lbagent paused web02 10.0.0.2 role=web",
        line("web03", "10.0.0.3"),
    ]
    (aside,) = stage.state.glob("members.json.damaged-*")
    assert aside.read_bytes() == content
    assert "rebuilt from the managed lines" in ended.err


def test_lost_members_are_rebuilt(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    (stage.state / "members.json").unlink()

    assert stage.join("web02 10.0.0.2") == (0, b"", "")

    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2")]


@pytest.mark.parametrize("name", ["served.json", "roles.json", "history.jsonl"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\0", b"{}"])
def test_damage_to_anything_else_is_no_harm(stage: LoadBalancerFiles, name: str, content: bytes) -> None:
    stage.join("web01 10.0.0.1")
    (stage.state / name).write_bytes(content)

    assert stage.join("web02 10.0.0.2") == (0, b"", "")

    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2")]


@pytest.mark.parametrize("name", ["roles.json", "history.jsonl"])
def test_a_folder_in_the_place_of_a_best_effort_file_does_no_harm(stage: LoadBalancerFiles, name: str) -> None:
    stage.join("web01 10.0.0.1")
    (stage.state / name).unlink(missing_ok=True)
    (stage.state / name).mkdir()

    assert stage.join("web02 10.0.0.2").status == 0

    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2")]


def test_a_foreign_file_in_the_spool_is_moved_and_the_event_is_applied(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    (stage.state / "spool" / "1").write_bytes(b"no record")
    os.mkfifo(stage.state / "spool" / "2")

    ended = stage.join("web02 10.0.0.2")

    assert ended.status == 0
    assert ended.err.count("; moved to") == 2
    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2")]
    assert stage.spool_files == ["bad"]


def test_a_folder_named_like_a_record_is_moved_and_the_event_is_applied(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    (stage.state / "spool" / "1").mkdir()

    assert stage.join("web02 10.0.0.2").status == 0

    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2")]


def test_an_error_of_the_system_is_in_the_history_in_words(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    stage.cfg.unlink()
    stage.join("web02 10.0.0.2")

    row = json.loads((stage.state / "history.jsonl").read_text().splitlines()[-1])
    assert (row["outcome"], row["words"]) == ("failed", f"{stage.cfg}: No such file or directory")


def test_each_change_is_in_the_history(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1", "web02 10.0.0.2")
    stage.send_event("pause", "web01", 1)

    rows = [json.loads(row) for row in (stage.state / "history.jsonl").read_text().splitlines()]

    assert [{key: row[key] for key in ("why", "added", "removed", "outcome")} for row in rows] == [
        {
            "why": "member-join web01 and 1 more",
            "added": [f"backend farm: {line('web01', '10.0.0.1')}", f"backend farm: {line('web02', '10.0.0.2')}"],
            "removed": [],
            "outcome": "written",
        },
        {
            "why": "pause web01 by user event",
            "added": ["backend farm: # lbagent paused web01 10.0.0.1 role=web"],
            "removed": [f"backend farm: {line('web01', '10.0.0.1')}"],
            "outcome": "written",
        },
    ]


def test_state_files_are_for_owner_and_group_only_except_the_metrics(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")

    assert {path.name: path.stat().st_mode & 0o027 for path in stage.state.iterdir()} == {
        "history.jsonl": 0, "last.json": 0, "lock": 0, "members.json": 0, "roles.json": 0, "served.json": 0, "spool": 0,
        "metrics.prom": 0o004,
    }  # fmt: skip


# --- together -----------------------------------------------------------------------------------------------------


def test_with_a_busy_lock_its_holder_applies_the_event(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    with (stage.state / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert stage.join("web02 10.0.0.2") == (0, b"", "")

        assert stage.managed == [line("web01", "10.0.0.1")]
        assert stage.spool_files == ["1"]
    assert stage.join("web03 10.0.0.3").status == 0
    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2"), line("web03", "10.0.0.3")]


def test_while_watch_runs_an_event_is_only_stored(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    with (stage.state / "watch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert stage.join("web02 10.0.0.2") == (0, b"", "")

        assert stage.managed == [line("web01", "10.0.0.1")]
        assert stage.spool_files == ["1"]


def test_a_watch_that_hangs_does_not_keep_events_waiting(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    with (stage.state / "watch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stage.join("web02 10.0.0.2")
        os.utime(stage.state / "spool" / "1", (time.time() - 6, time.time() - 6))

        stage.join("web03 10.0.0.3")

        assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2"), line("web03", "10.0.0.3")]


def test_a_watch_that_died_is_no_watch(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    (stage.state / "watch.lock").touch()

    stage.join("web02 10.0.0.2")

    assert len(stage.managed) == 2


def test_twenty_events_at_once_all_end_in_the_file(stage: LoadBalancerFiles) -> None:
    stage.join("web00 10.0.0.100")
    environ = {**stage.environ, "SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01"}
    handlers = []
    for at in range(20):
        handler = subprocess.Popen([stage.script, "handle"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)
        assert handler.stdin
        handler.stdin.write(b"web%d\t10.0.0.%d\tweb\trole=web\n" % (at + 1, at + 1))
        handler.stdin.close()
        handlers.append(handler)

    said = [(handler.wait(), handler.stderr.read() if handler.stderr else b"") for handler in handlers]

    for handler in handlers:
        assert handler.stderr
        handler.stderr.close()
    assert said == [(0, b"")] * 20
    assert stage.managed == [line("web00", "10.0.0.100"), *(line(f"web{at}", f"10.0.0.{at}") for at in range(1, 21))]
    assert stage.spool_files == []


def test_a_handler_killed_after_spooling_loses_nothing(stage: LoadBalancerFiles) -> None:
    stage.store_event(
        {"SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01"}, b"web01\t10.0.0.1\tweb\trole=web\n", "0" * 16
    )

    stage.join("web02 10.0.0.2")

    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2")]


def test_a_member_event_of_twenty_thousand_lines_is_applied(stage: LoadBalancerFiles) -> None:
    lines = b"".join(
        b"n%d\t10.1.%d.%d\tother\trole=other,x=%s\n" % (at, at // 250, at % 250 + 1, b"y" * 50) for at in range(20_000)
    )

    assert stage.handle("member-join", lines).status == 0

    assert len(stage.members) == 20_000
    assert stage.spool_files == []


# --- queries ------------------------------------------------------------------------------------------------------


def test_a_query_is_answered_in_one_line_and_nothing_else(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")

    status, out, err = stage.send_query("pause", "web01 for=2h reason=patch day")

    assert (status, out, err) == (0, b"haproxy not seen\n", "")
    assert stage.managed == ["# lbagent paused web01 10.0.0.1 role=web"]


@pytest.mark.parametrize(
    ("name", "payload", "words"),
    [
        ("pause", "nobody", b"unknown node, remembered\n"),
        ("resume", "nobody", b"unknown node\n"),
        (
            "pause",
            "",
            b"refused: pause: invalid payload ''; send NAME [ADDRESS] [ROLE] [for=2h] [reason=\xe2\x80\xa6]\n",
        ),
        ("pause", "a\x1b[31mb", b"refused: pause: the payload contains control characters\n"),
        ("pause", "x/y", b"refused: invalid node name\n"),
    ],
)
def test_a_query_is_answered_with_its_outcome(stage: LoadBalancerFiles, name: str, payload: str, words: bytes) -> None:
    assert stage.send_query(name, payload) == (0, words, "")


def test_a_query_is_answered_even_where_nothing_works(stage: LoadBalancerFiles) -> None:
    stage.roles.write_text("roles: {web: {lb: [iis]}}\n")

    status, out, err = stage.send_query("pause", "web01")

    assert (status, err) == (0, "")
    assert out.startswith(f"not applied yet: {stage.roles}:1:".encode())
    assert b"roles.web.lb: service 'iis' is not declared" in out


def test_a_query_waits_no_longer_than_serf_does(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    with (stage.state / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.monotonic()

        assert stage.send_query("pause", "web01") == (0, b"queued\n", "")

        assert time.monotonic() - started > 1.9
    assert WAIT < 3.2  # seconds: Serf's limit


def test_other_users_cannot_read_the_state(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")

    assert [path.stat().st_mode & 0o7777 for path in (stage.state, stage.state / "spool")] == [0o750, 0o750]


def test_an_answer_fits_into_serfs_limit(stage: LoadBalancerFiles) -> None:
    stage.roles.write_text(f"roles: {{web: {{lb: [{'x' * 1900}]}}}}\n")

    status, out, err = stage.send_query("pause", "web01")

    assert (status, err) == (0, "")
    assert len(out) <= 1024
    assert out.endswith(b"\n")
    out.decode()


def test_the_status_is_one_line(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1", "web02 10.0.0.2")
    stage.send_event("pause", "web01", 1)
    digest = json.loads((stage.state / "served.json").read_text())["digest"]

    last = "last=written: 1 line added, 1 removed; HAProxy is not running"
    said = f"lb01 members=2 paused=1 digest={digest} pending=0 {last}\n"
    assert stage.send_query("lbagent-status") == (0, said.encode(), "")


def test_the_status_line_works_with_damaged_state(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    (stage.state / "members.json").write_bytes(b"{")

    digest = json.loads((stage.state / "served.json").read_text())["digest"]
    last = "last=written: 1 line added, 0 removed; HAProxy is not running"

    said = f"lb01 members=damaged digest={digest} pending=0 {last}\n"
    assert stage.send_query("lbagent-status") == (0, said.encode(), "")


def test_a_query_for_pauses_is_refused_with_damaged_state(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1")
    (stage.state / "members.json").write_bytes(b"{")

    status, out, err = stage.send_query("lbagent-status", "pauses")

    assert (status, err) == (0, "")
    assert out.startswith(b"refused: members.json is damaged (")
    assert out.count(b"\n") == 1


def test_the_status_line_works_with_an_invalid_roles_yml(stage: LoadBalancerFiles) -> None:
    stage.roles.write_text("roles: 7\n")

    status, out, err = stage.send_query("lbagent-status")

    problem = f"problem={stage.roles}:1:8: roles: "
    assert (status, err, out.decode().partition(problem)[0]) == (
        0,
        "",
        "lb01 members=0 paused=0 digest=unknown pending=0 ",
    )
    assert out.count(b"\n") == 1


# --- the guard ----------------------------------------------------------------------------------------------------


def test_blocked_removals_end_with_exit_status_three(stage: LoadBalancerFiles) -> None:
    stage.join("web01 10.0.0.1", "web02 10.0.0.2")
    stage.roles.write_text(stage.roles.read_text().replace("60s}", "60s, networks: [192.168.0.0/16]}"))

    ended = stage.run("apply")

    assert ended.status == 3
    assert ended.err == (
        "lbagent: web01: no line for role web: 10.0.0.1 is outside the role's networks\n"
        "lbagent: web02: no line for role web: 10.0.0.2 is outside the role's networks\n"
        "lbagent: blocked: 2 of 2 lines at '# additional-lb-iis-server' in backend farm would be removed: web01, web02;"
        " `lbagent apply --force` applies these removals\n"
    )
    assert stage.managed == [line("web01", "10.0.0.1"), line("web02", "10.0.0.2")]
    assert stage.run("apply", "--force").status == 0
    assert stage.cfg.read_text() == CFG
