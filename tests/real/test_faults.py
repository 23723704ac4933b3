"""With every fault haproxy.cfg stays complete, the event is kept or reported, and the next good run applies it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.faults import (
    fill_disk,
    hide_haproxy,
    insert_lines,
    list_running,
    list_spool_records,
    list_stored_nodes,
    make_server_lines,
    mount_file,
    mount_read_only,
    mount_small_disk,
    read_folder,
    read_only_line,
    replace_haproxy,
    restore_haproxy,
    set_reload_command,
    write_script,
)
from tests.helpers.real_programs import LBAGENT, RELOADING, ROLES, Haproxy, LoadBalancer, member_line

WEB1, WEB2, WEB3, WEB4 = (member_line(f"web{number}", f"127.0.0.{number + 10}") for number in range(1, 5))


def check_all_applied(lb: LoadBalancer, operator: bytes, *numbers: int) -> bool:
    """Fail unless exactly these nodes are in haproxy.cfg and no event or staged file is left; returns True."""
    assert lb.text == insert_lines(operator, make_server_lines(lb, *numbers))
    assert sorted(lb.members()) == [f"web{number}" for number in numbers]
    assert (lb.list_spool(), lb.list_staged()) == ([], [])
    return True


# Disks


def test_a_full_state_disk_leaves_haproxy_cfg_unchanged_and_is_reported(lb: LoadBalancer) -> None:
    operator = lb.text
    with mount_small_disk(lb.state) as disk:
        lb.join(WEB1)
        before = read_folder(lb.folder)
        with fill_disk(disk):
            done = lb.join(WEB2)
        after = read_folder(lb.folder)
        again = lb.join(WEB2, WEB3)
        assert check_all_applied(lb, operator, 1, 2, 3)

    assert done.returncode == 1
    assert read_only_line(done) == f"not stored: sync needed: {lb.state}/spool: No space left on device"
    assert after == before
    assert (again.returncode, again.stderr) == (0, b"")


@pytest.mark.parametrize("pages", [1, 2, 3])
def test_a_state_disk_that_fills_up_during_a_run_keeps_the_event(lb: LoadBalancer, pages: int) -> None:
    operator = lb.text
    with mount_small_disk(lb.state) as disk:
        lb.join(WEB1)
        with fill_disk(disk):
            os.truncate(disk / "filler", (disk / "filler").stat().st_size - pages * os.sysconf("SC_PAGESIZE"))
            done = lb.join(WEB2)
            kept, text, staged = list_stored_nodes(lb), lb.text, lb.list_staged()
        again = lb.join(WEB3)
        assert check_all_applied(lb, operator, 1, 2, 3)

    assert (kept, staged) == ({"web1", "web2"}, [])
    assert text in (
        insert_lines(operator, make_server_lines(lb, 1)),
        insert_lines(operator, make_server_lines(lb, 1, 2)),
    )
    assert (done.returncode, done.stderr.count(b"\n"), b"Traceback" in done.stderr) in ((0, 0, False), (1, 1, False))
    assert again.returncode == 0


@pytest.mark.real
def test_a_state_disk_full_after_the_swap_does_not_stop_haproxy(lb: LoadBalancer) -> None:
    operator = lb.text
    with mount_small_disk(lb.state) as disk, Haproxy(lb) as haproxy:
        lb.join(WEB1)
        replace_haproxy(lb, f'head -c 1000000 /dev/zero >{disk}/filler 2>/dev/null\nexec "$real" "$@"')
        done = lb.join(WEB2)
        text, serving = lb.text, set(haproxy.servers())
        restore_haproxy(lb)
        (disk / "filler").unlink()
        again = lb.join(WEB3)
        assert check_all_applied(lb, operator, 1, 2, 3)
        assert set(haproxy.servers()) == {"web1", "web2", "web3"}

    assert done.returncode == 1
    assert read_only_line(done).endswith("No space left on device")
    assert text == insert_lines(operator, make_server_lines(lb, 1, 2))
    assert serving == {"web1", "web2"}
    assert again.returncode == 0


def _make_on_own_disk(folder: Path) -> LoadBalancer:
    """Return a load balancer whose haproxy.cfg is on the disk mounted at `folder`/etc, and whose roles.yml is not."""
    lb = LoadBalancer(folder=folder)
    elsewhere = lb.folder / "roles.yml"
    elsewhere.write_bytes(lb.roles.read_bytes())
    lb.roles = elsewhere
    return lb


def test_a_full_disk_of_haproxy_cfg_keeps_the_event_and_the_old_text(tmp_path: Path) -> None:
    with mount_small_disk(tmp_path / "etc") as disk:
        lb = _make_on_own_disk(tmp_path)
        operator = lb.text
        lb.join(WEB1)
        before = lb.text
        with fill_disk(disk):
            done = lb.join(WEB2)
            assert (lb.text, lb.list_staged(), sorted(lb.members())) == (before, [], ["web1", "web2"])
        again = lb.join(WEB3)
        assert check_all_applied(lb, operator, 1, 2, 3)

    assert done.returncode == 1
    assert again.returncode == 0
    # The message names the full disk: there may be two.
    assert read_only_line(done).startswith(f"{tmp_path}/etc/")
    assert read_only_line(done).endswith(": No space left on device")


def test_a_read_only_haproxy_cfg_keeps_the_event_and_is_reported(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    lb = _make_on_own_disk(tmp_path)
    operator = lb.text
    lb.join(WEB1)
    before = read_folder(lb.etc)

    with mount_read_only(lb.etc):
        done = lb.join(WEB2)

    assert done.returncode == 1
    assert read_only_line(done).startswith(f"{lb.etc}/")
    assert read_only_line(done).endswith(": Read-only file system")
    assert read_folder(lb.etc) == before
    assert sorted(lb.members()) == ["web1", "web2"]
    assert lb.join(WEB3).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3)


def test_a_haproxy_cfg_that_is_a_mount_point_is_unchanged_and_reported(lb: LoadBalancer) -> None:
    operator, host = lb.text, lb.folder / "host.cfg"
    lb.join(WEB1)
    before = lb.text
    host.write_bytes(before)
    with mount_file(host, lb.cfg):
        done, check = lb.join(WEB2), lb.run("check").stdout.decode()

        assert done.returncode == 1
        assert read_only_line(done) == f"{lb.cfg}: is a mount point of its own; mount its folder instead"
        assert (lb.text, lb.list_staged()) == (before, [])
        assert (
            f"error    haproxy-cfg: {lb.cfg}: cannot be replaced: the file is a mount point"
            "; mount its directory instead\n"
        ) in check
    assert lb.join(WEB3).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3)


def test_a_read_only_state_directory_is_reported(lb: LoadBalancer) -> None:
    operator = lb.text
    lb.join(WEB1)
    before = read_folder(lb.folder)

    with mount_read_only(lb.state):
        done = lb.join(WEB2)

    assert done.returncode == 1
    assert read_only_line(done).startswith("not stored: sync needed: ")
    assert read_only_line(done).endswith(": Read-only file system")
    assert read_folder(lb.folder) == before
    assert lb.join(WEB2).returncode == 0
    assert check_all_applied(lb, operator, 1, 2)


# HAProxy


def test_without_haproxy_the_event_waits_and_the_next_run_applies_it(lb: LoadBalancer) -> None:
    operator = lb.text
    lb.join(WEB1)
    before = lb.text

    with hide_haproxy() as words:
        done = subprocess.run(
            [*words, LBAGENT, "handle"],
            input=WEB2,
            env={**lb.env, "SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01"},
            capture_output=True,
            check=False,
        )

    assert done.returncode == 75
    assert read_only_line(done) == "haproxy -c cannot be run: no such program: haproxy"
    assert (lb.text, lb.list_staged(), sorted(lb.members())) == (before, [], ["web1", "web2"])
    assert lb.join(WEB3).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3)


def test_without_a_path_no_program_of_the_working_directory_is_run(lb: LoadBalancer, tmp_path: Path) -> None:
    foreign = write_script(tmp_path / "haproxy", f"touch {tmp_path}/ran")
    env = {key: value for key, value in lb.env.items() if key != "PATH"}

    done = subprocess.run(
        [LBAGENT, "handle"],
        input=WEB1,
        env={**env, "SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01"},
        cwd=foreign.parent,
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert not (tmp_path / "ran").exists()


REFUSING = 'echo "[ALERT]    (1) : config : parsing [x.cfg:3]: unknown keyword" >&2; exit 1'


@pytest.mark.parametrize("script", [REFUSING, "exit 2"], ids=["refusing", "no-listener"])
def test_a_haproxy_that_refuses_everything_replaces_nothing(lb: LoadBalancer, script: str) -> None:
    operator = lb.text
    lb.join(WEB1)
    before = lb.text
    replace_haproxy(lb, script)

    done = lb.join(WEB2)

    assert done.returncode == 4
    assert read_only_line(done).startswith("haproxy.cfg is invalid, not because of lbagent; nothing was changed: ")
    assert (lb.text, lb.list_staged(), sorted(lb.members())) == (before, [], ["web1", "web2"])
    restore_haproxy(lb)
    assert lb.join(WEB3).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3)


@pytest.mark.parametrize("script", ["kill -9 $$", "kill -ABRT $$", "exit 137", 'sh -c "kill -9 \\$\\$"'])
def test_a_killed_haproxy_c_quarantines_no_node_and_replaces_nothing(lb: LoadBalancer, script: str) -> None:
    operator = lb.text
    lb.join(WEB1)
    before = lb.text
    replace_haproxy(lb, script)

    done, planned = lb.join(WEB2), lb.run("apply")

    assert (done.returncode, planned.returncode) == (75, 75)
    assert read_only_line(done).startswith("haproxy -c was killed by signal ")
    assert (lb.text, lb.list_staged()) == (before, [])
    assert {name: one["quarantine"] for name, one in lb.members().items()} == {"web1": None, "web2": None}
    assert b"was killed by signal" in lb.run("check").stdout
    restore_haproxy(lb)
    assert lb.join(WEB3).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3)


def test_a_haproxy_c_killed_during_bisection_quarantines_no_node(lb: LoadBalancer) -> None:
    before = lb.text
    replace_haproxy(
        lb,
        f"echo >>{lb.folder}/asked; [ $(wc -l <{lb.folder}/asked) -le 2 ] || kill -9 $$\n"
        'echo "[ALERT]    (1) : config : parsing [x.cfg:3]: unknown keyword" >&2; exit 1',
    )

    done = lb.join(WEB1, WEB2)

    assert done.returncode == 75
    assert (lb.text, lb.list_staged()) == (before, [])
    assert {one["quarantine"] for one in lb.members().values()} == {None}


def test_a_haproxy_c_that_hangs_is_ended_with_its_children(lb: LoadBalancer) -> None:
    operator = lb.text
    lb.join(WEB1)
    before = lb.text
    lb.roles.write_text(lb.fill_template(ROLES).replace("timeout: 15s", "timeout: 1s"))
    replace_haproxy(lb, "sleep 61.7654 &\nwait")

    done = lb.join(WEB2)

    assert done.returncode == 75
    assert read_only_line(done) == "haproxy did not end within 1 s"
    assert list_running("61.7654") == []
    assert (lb.text, lb.list_staged(), sorted(lb.members())) == (before, [], ["web1", "web2"])
    restore_haproxy(lb)
    assert lb.join(WEB3).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3)


@pytest.mark.every_haproxy
@pytest.mark.real
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "/reload ended with 1"),
        ("echo no >&2; exit 3", "/reload ended with 3: no"),
        ("kill -9 $$", "/reload "),
    ],
)
def test_a_failed_reload_restores_the_previous_lines_and_is_not_tried_with_every_event(
    lb: LoadBalancer, script: str, reason: str
) -> None:
    operator = lb.text
    with Haproxy(lb) as haproxy:
        lb.join(WEB1)
        before, worker = lb.text, haproxy.worker()
        set_reload_command(lb, f'echo reload >>"$0.log"\n{script}')

        done = lb.join(WEB2)
        later = [lb.join(member_line(f"web{number}", f"127.0.0.{number + 10}")) for number in range(3, 8)]

        assert done.returncode == 5
        assert read_only_line(done).startswith(f"{lb.folder}{reason}")
        assert read_only_line(done).endswith(f"; the previous managed lines are restored in {lb.cfg}")
        assert [run.returncode for run in later] == [5] * 5
        assert (lb.folder / "reload.log").read_text() == "reload\n"
        assert (lb.text, lb.list_staged()) == (before, [])
        assert (haproxy.worker(), set(haproxy.servers())) == (worker, {"web1"})
        assert sorted(lb.members()) == [f"web{number}" for number in range(1, 8)]
        lb.roles.write_text(lb.fill_template(ROLES))
        assert lb.join(member_line("web8", "127.0.0.18")).returncode == 0
        assert check_all_applied(lb, operator, *range(1, 9))
        assert set(haproxy.servers()) == {f"web{number}" for number in range(1, 9)}


@pytest.mark.every_haproxy
@pytest.mark.real
def test_a_missing_reload_command_restores_the_previous_lines(lb: LoadBalancer) -> None:
    operator = lb.text
    with Haproxy(lb) as haproxy:
        lb.join(WEB1)
        before = lb.text
        lb.roles.write_text(
            lb.fill_template(RELOADING).replace("haproxy:\n", "haproxy:\n  reload: [/nowhere/reload]\n")
        )

        done = lb.join(WEB2)

        assert done.returncode == 5
        assert read_only_line(done) == (
            f"/nowhere/reload cannot be run: no such program; the previous managed lines are restored in {lb.cfg}"
        )
        assert (lb.text, lb.list_staged()) == (before, [])
        lb.roles.write_text(lb.fill_template(ROLES))
        assert lb.join(WEB3).returncode == 0
        assert check_all_applied(lb, operator, 1, 2, 3)
        assert set(haproxy.servers()) == {"web1", "web2", "web3"}


@pytest.mark.every_haproxy
@pytest.mark.real
def test_a_reload_command_that_succeeds_without_a_reload_counts_as_failed(lb: LoadBalancer) -> None:
    operator = lb.text
    with Haproxy(lb) as haproxy:
        lb.join(WEB1)
        set_reload_command(lb, "exit 0")
        lb.roles.write_text(lb.roles.read_text().replace("timeout: 15s", "timeout: 1s"))

        done = lb.join(WEB2)

        assert done.returncode == 75
        assert read_only_line(done) == "no new HAProxy worker was seen within 1 s of the reload"
        lb.roles.write_text(lb.fill_template(ROLES))
        assert lb.join(WEB3).returncode == 0
        assert check_all_applied(lb, operator, 1, 2, 3)
        assert set(haproxy.servers()) == {"web1", "web2", "web3"}


# roles.yml


BROKEN_ROLES = {
    "not-yaml": b"roles: {web: [",
    "unknown-key": b"services: {iis: {prot: 80}}\nroles: {web: {lb: [iis]}}\n",
    "undeclared-service": b"services: {}\nroles: {web: {lb: [iis]}}\n",
    "empty": b"",
    "binary": bytes(range(256)),
    "not-utf-8": b"services: {iis: {port: 80}} # \xff\xfe\n",
    # A damaged disk or a merge tool may write this.
    "deep": b"[" * 5_000,
    "a-list": b"- web\n- lb\n",
}


@pytest.mark.parametrize("content", BROKEN_ROLES.values(), ids=BROKEN_ROLES)
def test_an_invalid_roles_yml_changes_nothing_on_disk_and_the_event_waits(lb: LoadBalancer, content: bytes) -> None:
    operator, good = lb.text, lb.roles.read_bytes()
    lb.join(WEB1)
    lb.roles.write_bytes(content)
    before = read_folder(lb.folder)

    done = lb.join(WEB2)

    (spooled,) = list_spool_records(lb)
    after = read_folder(lb.folder)
    assert done.returncode == 2
    assert read_only_line(done).startswith(f"{lb.roles}:")
    assert WEB2 in after.pop(f"state/spool/{spooled}")[1]
    assert after == before
    lb.roles.write_bytes(good)
    assert lb.join(WEB3).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3)


@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_a_missing_roles_yml_changes_nothing_on_disk_and_the_event_waits(lb: LoadBalancer, instead: str) -> None:
    operator, good = lb.text, lb.roles.read_bytes()
    lb.join(WEB1)
    lb.roles.unlink()
    if instead == "a folder":
        lb.roles.mkdir()
    before = read_folder(lb.folder)

    done = lb.join(WEB2)

    (spooled,) = list_spool_records(lb)
    after = read_folder(lb.folder)
    assert done.returncode == 2
    assert read_only_line(done).startswith(f"{lb.roles}: cannot be read: ")
    assert WEB2 in after.pop(f"state/spool/{spooled}")[1]
    assert after == before
    if instead == "a folder":
        lb.roles.rmdir()
    lb.roles.write_bytes(good)
    assert lb.join(WEB3).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3)


def test_all_events_stored_during_a_failure_are_applied_by_the_first_good_run(lb: LoadBalancer) -> None:
    operator, good = lb.text, lb.roles.read_bytes()
    lb.join(WEB1)
    lb.roles.write_bytes(b"roles: [")

    runs = [lb.join(member_line(f"web{number}", f"127.0.0.{number + 10}")).returncode for number in range(2, 12)]
    runs.append(lb.leave(WEB1).returncode)
    lb.roles.write_bytes(good)

    assert runs == [2] * 11
    assert lb.run("apply").returncode == 0
    assert lb.text == insert_lines(operator, make_server_lines(lb, *range(2, 12)))
    assert (lb.list_spool(), lb.list_staged()) == ([], [])


# State


def _join_three_nodes(lb: LoadBalancer) -> list[str]:
    """Join three nodes and pause the second one; returns the managed lines."""
    lb.join(WEB1, WEB2, WEB3)
    lb.send_command("pause", "web2", 7)
    first, _, third = make_server_lines(lb, 1, 2, 3)
    return [first, "# lbagent paused web2 127.0.0.12 role=web", third]


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGES = {
    "empty": lambda _: b"",
    "cut": _truncate,
    "last-byte": lambda content: content[:-1],
    "zeros": lambda content: b"\0" * len(content),
    "not-utf-8": lambda content: b"\xff" + content,
    "null": lambda _: b"null",
    "list": lambda _: b"[]",
    "number": lambda _: b"7",
    "no-rows": lambda _: b'{"version": 1}',
    "other-fields": lambda content: content.replace(b'"quarantine"', b'"quarantined"'),
    # A name, an address and a status that no event can have: the next plan would fail with them.
    "address": lambda content: content.replace(b"127.0.0.13", b"12700.0.13"),
    "status": lambda content: content.replace(b'"alive"', b'"olive"', 1),
    "no-address": lambda content: content.replace(b'"127.0.0.13"', b'""'),
    "tags": lambda content: content.replace(b'"tags":{}', b'"tags":[]', 1),
    "pause": lambda content: content.replace(b'"pause":{', b'"pause":[],"was":{', 1),
    "end": lambda content: content.replace(b'"until":null', b'"until":"never"', 1),
    "ltime": lambda content: content.replace(b'"ltime":', b'"ltime":-', 1),
    "more": lambda content: content.replace(b'"more":{', b'"more":0,"less":{'),
    # json.loads raises RecursionError for it, not ValueError.
    "deep": lambda _: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_members_json_is_kept_aside_and_rebuilt_from_the_managed_lines(
    lb: LoadBalancer, damage: object
) -> None:
    operator = lb.text
    standing = _join_three_nodes(lb)
    path = lb.state / "members.json"
    assert callable(damage)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)

    done = lb.join(WEB4)

    assert done.returncode == 0
    assert read_only_line(done).startswith("members.json is damaged")
    assert [one.read_bytes() for one in lb.state.glob("members.json.damaged-*")] == [damaged]
    assert lb.text == insert_lines(operator, [*standing, *make_server_lines(lb, 4)])
    assert lb.send_command("resume", "web2", 8).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3, 4)


def test_a_lost_members_json_is_rebuilt_from_the_managed_lines_with_pauses(lb: LoadBalancer) -> None:
    operator = lb.text
    standing = _join_three_nodes(lb)
    (lb.state / "members.json").unlink()

    done = lb.join(WEB4)

    assert (done.returncode, done.stderr) == (0, b"")
    assert lb.text == insert_lines(operator, [*standing, *make_server_lines(lb, 4)])
    assert lb.send_command("resume", "web2", 8).returncode == 0
    assert check_all_applied(lb, operator, 1, 2, 3, 4)


def test_a_lost_state_directory_removes_no_line(lb: LoadBalancer) -> None:
    operator = lb.text
    standing = _join_three_nodes(lb)
    lb.state.rename(lb.folder / "gone")

    runs = [lb.run("apply").returncode, lb.join(WEB4).returncode, lb.join(WEB2).returncode]

    assert runs == [0, 0, 0]
    assert lb.text == insert_lines(operator, [*standing, *make_server_lines(lb, 4)])


def test_every_damaged_members_json_is_kept(lb: LoadBalancer) -> None:
    standing = _join_three_nodes(lb)
    path = lb.state / "members.json"

    # Three runs take less than two seconds: at least two of them are in the same second.
    for content in (b"1", b"2", b"3"):
        path.write_bytes(content)
        assert lb.run("apply").returncode == 0

    assert lb.managed == standing
    assert sorted(one.read_bytes() for one in lb.state.glob("members.json.damaged-*")) == [b"1", b"2", b"3"]


SERVED = {
    "lost": None,
    "empty": b"",
    "cut": b'{"digest": "1234',
    "null": b"null",
    "wrong-types": b'{"digest": 1, "worker": [], "failure": 7}',
    "infinite": b'{"digest": "1", "worker": {"pid": 1e999, "started": 1}, "failure": null}',
    "deep": b"[" * 100_000,
}


@pytest.mark.every_haproxy
@pytest.mark.real
@pytest.mark.parametrize("content", SERVED.values(), ids=SERVED)
def test_a_damaged_served_json_costs_one_reload_at_most(lb: LoadBalancer, content: bytes | None) -> None:
    operator = lb.text
    with Haproxy(lb) as haproxy:
        lb.join(WEB1, WEB2)
        reloads = haproxy.reloads()[0]
        served = lb.state / "served.json"
        served.unlink()
        if content is not None:
            served.write_bytes(content)

        runs = [lb.join(WEB1) for _ in range(3)]

        assert [(run.returncode, run.stderr) for run in runs] == [(0, b"")] * 3
        assert haproxy.reloads() in ((reloads, 0), (reloads + 1, 0))
        assert check_all_applied(lb, operator, 1, 2)
        assert set(haproxy.servers()) == {"web1", "web2"}


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"key": 1, "state": 2}', b"[" * 100_000])
def test_a_damaged_cache_of_roles_yml_is_ignored(lb: LoadBalancer, content: bytes) -> None:
    operator = lb.text
    lb.join(WEB1)
    (lb.state / "roles.json").write_bytes(content)

    done = lb.join(WEB2)

    assert (done.returncode, done.stderr) == (0, b"")
    assert check_all_applied(lb, operator, 1, 2)


@pytest.mark.parametrize("name", ["history.jsonl", "last.json", "metrics.prom", "roles.json"])
def test_best_effort_files_never_change_an_outcome(lb: LoadBalancer, name: str) -> None:
    operator = lb.text
    (lb.state / name).mkdir(parents=True)

    done = lb.join(WEB1)

    assert (done.returncode, done.stderr) == (0, b"")
    assert check_all_applied(lb, operator, 1)


@pytest.mark.parametrize("name", ["history.jsonl", "answers.json", "peers.json", "metrics.prom"])
def test_a_fifo_in_place_of_a_best_effort_file_blocks_no_run(lb: LoadBalancer, name: str) -> None:
    lb.state.mkdir()
    os.mkfifo(lb.state / name)

    runs = [lb.join(WEB1), lb.send_query("pause", "web1", 1), lb.run("status"), lb.run("apply"), lb.run("check")]

    assert [run.returncode for run in runs] == [0, 0, 0, 0, 1]
    assert lb.managed == [f"# lbagent paused {WEB1.split()[0].decode()} {WEB1.split()[1].decode()} role=web"]
