"""Edits, deployments, other runs and signals during a run lose no text and no event."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from lbagent.state import files
from tests.helpers.faults import (
    insert_lines,
    list_running,
    make_server_lines,
    read_only_line,
    replace_haproxy,
    restore_haproxy,
    set_reload_command,
)
from tests.helpers.real_programs import CONFIG, LBAGENT, Haproxy, LoadBalancer, member_line, wait_until

WEB1, WEB2, WEB3 = (member_line(f"web{number}", f"127.0.0.{number + 10}") for number in range(1, 4))

FIRST_TIME = 'mkdir "$0.done" 2>/dev/null'
"""A shell condition that is true in the first run of its script."""

PAUSING = 'touch "$0.started"; while [ -e "$0" ] && [ ! -e "$0.go" ]; do sleep 0.02; done'
"""Shell commands that report their start and wait for permission to continue, or until their folder is removed."""

WAITING = f'{PAUSING}; exec "$real" "$@"'


# Edits by the operator


SAVES = {
    "in-place": "echo '# his' >>{cfg}",
    "by-rename": "cp {cfg} {cfg}.his; echo '# his' >>{cfg}.his; mv {cfg}.his {cfg}",
    "truncated-and-written": "text=$(cat {cfg}); printf '%s\\n# his\\n' \"$text\" >{cfg}",
}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_an_edit_saved_during_haproxy_c_is_kept_and_gets_the_managed_lines(lb: LoadBalancer, save: str) -> None:
    operator = lb.text
    replace_haproxy(lb, f'{FIRST_TIME} && {{ {save.format(cfg=lb.cfg)}; }}\nexec "$real" "$@"')

    done = lb.join(WEB1)

    assert (done.returncode, done.stderr) == (0, b"")
    assert lb.text == insert_lines(operator + b"# his\n", make_server_lines(lb, 1))
    assert (lb.list_spool(), lb.list_staged()) == ([], [])


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_edits_saved_during_every_attempt_are_kept_and_the_run_gives_up(lb: LoadBalancer, save: str) -> None:
    operator = lb.text
    replace_haproxy(lb, f'{save.format(cfg=lb.cfg)}\nexec "$real" "$@"')

    done = lb.join(WEB1)

    assert done.returncode == 6
    assert read_only_line(done).endswith(
        "haproxy.cfg was saved by another process during each of 5 attempts; run again"
    )
    assert lb.text == operator + b"# his\n" * 5
    assert (sorted(lb.members()), lb.list_staged()) == (["web1"], [])
    restore_haproxy(lb)
    assert lb.join(WEB2).returncode == 0
    assert lb.text == insert_lines(operator + b"# his\n" * 5, make_server_lines(lb, 1, 2))


def test_saving_the_same_text_again_costs_no_second_attempt(lb: LoadBalancer) -> None:
    operator = lb.text
    lb.count_checks()
    script = (
        (lb.bin / "haproxy").read_text().replace("exec", f"cp {lb.cfg} {lb.cfg}.his; mv {lb.cfg}.his {lb.cfg}\nexec")
    )
    (lb.bin / "haproxy").write_text(script)

    done = lb.join(WEB1)

    assert done.returncode == 0
    assert lb.checks == 1
    assert lb.text == insert_lines(operator, make_server_lines(lb, 1))


def test_an_invalid_edit_is_kept_and_reported(lb: LoadBalancer) -> None:
    operator = lb.text
    replace_haproxy(lb, f'{FIRST_TIME} && echo "  nonsense" >>{lb.cfg}\nexec "$real" "$@"')

    done = lb.join(WEB1)

    assert done.returncode == 4
    assert read_only_line(done).startswith("haproxy.cfg is invalid, not because of lbagent; nothing was changed: ")
    assert f"{lb.cfg}:{len(operator.splitlines()) + 1}" in read_only_line(done)
    assert lb.text == operator + b"  nonsense\n"
    assert lb.list_staged() == []


def test_a_server_line_that_the_operator_adds_during_a_run_has_priority(lb: LoadBalancer) -> None:
    operator = lb.text
    by_hand = f"    server web1 127.0.0.11:{lb.port} weight 7\n"
    replace_haproxy(lb, f'{FIRST_TIME} && echo "{by_hand[:-1]}" >>{lb.cfg}\nexec "$real" "$@"')

    done = lb.join(WEB1, WEB2)

    assert done.returncode == 0
    assert lb.text == insert_lines(operator + by_hand.encode(), make_server_lines(lb, 2))


def test_a_haproxy_cfg_removed_during_a_run_is_not_written_again(lb: LoadBalancer) -> None:
    operator = lb.text
    replace_haproxy(lb, f'{FIRST_TIME} && mv {lb.cfg} {lb.cfg}.away\nexec "$real" "$@"')

    done = lb.join(WEB1)

    assert done.returncode == 1
    assert read_only_line(done) == f"{lb.cfg}: No such file or directory"
    assert not lb.cfg.exists()
    assert lb.list_staged() == []
    Path(f"{lb.cfg}.away").rename(lb.cfg)
    assert lb.join(WEB2).returncode == 0
    assert lb.text == insert_lines(operator, make_server_lines(lb, 1, 2))


@pytest.mark.every_haproxy
@pytest.mark.real
def test_an_edit_saved_during_a_failing_reload_is_kept_without_the_new_lines(lb: LoadBalancer) -> None:
    operator = lb.text
    with Haproxy(lb) as haproxy:
        lb.join(WEB1)
        set_reload_command(lb, f"echo '# his' >>{lb.cfg}; exit 1")

        done = lb.join(WEB2)

        assert done.returncode == 5
        assert read_only_line(done).endswith(f"; the previous managed lines are restored in {lb.cfg}")
        assert lb.text == insert_lines(operator + b"# his\n", make_server_lines(lb, 1))
        assert set(haproxy.servers()) == {"web1"}
        assert lb.list_staged() == []


def test_an_editor_that_saves_in_place_loses_nothing(lb: LoadBalancer) -> None:
    # scp and editors that write in place have written only a part of the text so far.
    operator, rest = lb.text, b"# the second half\n"
    with lb.cfg.open("r+b", buffering=0) as editor:
        editor.truncate()
        editor.write(operator)
        done = lb.join(WEB1)
        editor.write(rest)

    assert done.returncode == 6
    assert lb.text == operator + rest
    assert lb.join(WEB2).returncode == 0
    assert lb.text == insert_lines(operator + rest, make_server_lines(lb, 1, 2))


@pytest.mark.parametrize("how", ["in place", "by rename"])
def test_a_text_saved_after_the_last_comparison_is_restored(tmp_path: Path, how: str) -> None:
    cfg, his = tmp_path / "haproxy.cfg", tmp_path / "his"
    cfg.write_bytes(b"as it was read\n")
    his.write_bytes(b"his\n")
    target = files.read_target(str(cfg))

    with files.stage_text(target, b"ours\n") as path:
        his.rename(cfg) if how == "by rename" else cfg.write_bytes(his.read_bytes())
        swapped = files.swap_files(path, target, keep=True)

    assert not swapped
    assert cfg.read_bytes() == b"his\n"
    his.unlink(missing_ok=True)
    assert os.listdir(tmp_path) == ["haproxy.cfg"]


def test_a_link_changed_after_the_last_comparison_is_detected(lb: LoadBalancer) -> None:
    old, new = _create_releases(lb, relative=True)
    target = files.read_target(str(lb.cfg))

    with files.stage_text(target, b"ours\n") as path:
        lb.cfg.unlink()
        lb.cfg.symlink_to(new)
        swapped = files.swap_files(path, target, keep=True)

    assert not swapped
    assert new.read_bytes().endswith(b"# release 2\n")
    assert sorted(os.listdir(old.parent)) == [".haproxy.cfg.lbagent-previous", "haproxy.cfg"]


def test_a_reader_of_haproxy_cfg_gets_the_old_text_or_the_new_one(lb: LoadBalancer) -> None:
    operator = lb.text
    whole = {insert_lines(operator, make_server_lines(lb, *range(1, number + 1))) for number in range(13)}
    found, ended = set[bytes](), threading.Event()

    def reading() -> None:
        while not ended.is_set():
            found.add(lb.text)

    reader = threading.Thread(target=reading)
    reader.start()
    try:
        with lb.cfg.open("rb") as opened:
            runs = [lb.join(member_line(f"web{number}", f"127.0.0.{number + 10}")) for number in range(1, 13)]
            # Opened before the first run, read after the last: a file written in place would show here.
            assert opened.read() == operator
    finally:
        ended.set()
        reader.join()

    assert [run.returncode for run in runs] == [0] * 12
    assert len(found) > 1
    assert found <= whole


# Deployments that change a link


def _create_releases(lb: LoadBalancer, *, relative: bool) -> tuple[Path, Path]:
    """Make haproxy.cfg a link to releases/1/haproxy.cfg; returns this file and a different one of release 2."""
    old, new = (lb.etc / "releases" / number / "haproxy.cfg" for number in ("1", "2"))
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.write_bytes(lb.text)
    new.write_bytes(new.read_bytes() + b"# release 2\n")
    lb.cfg.unlink()
    lb.cfg.symlink_to(os.path.relpath(old, lb.etc) if relative else old)
    return old, new


@pytest.mark.real
@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_deployment_that_changes_the_link_during_haproxy_c_gets_the_managed_lines(
    lb: LoadBalancer, kind: str
) -> None:
    old, new = _create_releases(lb, relative=kind == "relative")
    with Haproxy(lb) as haproxy:
        lb.join(WEB1)
        before, after = old.read_bytes(), new.read_bytes()
        to = os.path.relpath(new, lb.etc) if kind == "relative" else new
        flip = f"ln -s {to} {lb.etc}/next; mv -T {lb.etc}/next {lb.cfg}"
        replace_haproxy(lb, f'{FIRST_TIME} && {{ {flip}; }}\nexec "$real" "$@"')

        done = lb.join(WEB2)

        assert (done.returncode, done.stderr) == (0, b"")
        assert os.readlink(lb.cfg) == str(to)
        assert old.read_bytes() == before
        assert new.read_bytes() == insert_lines(after, make_server_lines(lb, 1, 2))
        assert set(haproxy.servers()) == {"web1", "web2"}
        assert [path.name for path in old.parent.iterdir() if path.name.endswith(("staged", "old"))] == []
        assert lb.list_staged() == []


def test_a_deployment_that_changes_the_link_of_a_folder_gets_the_managed_lines(lb: LoadBalancer) -> None:
    old, new = _create_releases(lb, relative=True)
    (lb.etc / "current").symlink_to("releases/1")
    lb.roles.write_text(lb.roles.read_text().replace(str(lb.cfg), f"{lb.etc}/current/haproxy.cfg"))
    before, after = old.read_bytes(), new.read_bytes()
    flip = f"ln -s releases/2 {lb.etc}/next; mv -T {lb.etc}/next {lb.etc}/current"
    replace_haproxy(lb, f'{FIRST_TIME} && {{ {flip}; }}\nexec "$real" "$@"')

    done = lb.join(WEB1)

    assert (done.returncode, done.stderr) == (0, b"")
    assert old.read_bytes() == before
    assert new.read_bytes() == insert_lines(after, make_server_lines(lb, 1))
    assert sorted(os.listdir(old.parent)) == ["haproxy.cfg"]


# Attributes of the file


def _read_xattrs(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def test_owner_mode_xattrs_and_link_are_kept(lb: LoadBalancer) -> None:
    target, _ = _create_releases(lb, relative=True)
    operator = target.read_bytes()
    os.chown(target, 1234, 2345)
    target.chmod(0o2640)
    try:
        os.setxattr(target, "user.checksum", b"\0binary\xff")
    except OSError:
        pytest.skip("no xattrs here")
    before = (target.stat().st_uid, target.stat().st_gid, target.stat().st_mode, _read_xattrs(target))

    done = lb.join(WEB1)

    assert done.returncode == 0
    assert target.read_bytes() == insert_lines(operator, make_server_lines(lb, 1))
    assert (target.stat().st_uid, target.stat().st_gid, target.stat().st_mode, _read_xattrs(target)) == before
    assert os.readlink(lb.cfg) == "releases/1/haproxy.cfg"
    previous = target.with_name(".haproxy.cfg.lbagent-previous")
    assert (previous.read_bytes(), previous.stat().st_uid, previous.stat().st_mode) == (operator, 1234, before[2])


def test_a_staged_text_is_never_readable_by_more_users_than_haproxy_cfg(lb: LoadBalancer) -> None:
    lb.cfg.chmod(0o600)
    replace_haproxy(lb, f'stat -c %a {lb.etc}/.*lbagent-* >"$0.modes"\nexec "$real" "$@"')

    done = lb.join(WEB1)

    assert done.returncode == 0
    assert (lb.bin / "haproxy.modes").read_text() == "600\n"


CRLF = CONFIG.replace("\n", "\r\n")
TABS = CONFIG.replace("    ", "\t")


HARD = {
    "crlf": CRLF.encode(),
    "crlf-no-final-line-end": CRLF.rstrip().encode(),
    "no-final-line-end": CONFIG.rstrip().encode(),
    "tabs": TABS.encode(),
    "deep-tabs": TABS.replace("\t# additional", "\t\t \t# additional").encode(),
    # The second byte of 表 is a backslash in Shift-JIS.
    "shift-jis": ("# 負荷分散 \u8868\n" + CONFIG).encode("cp932") + "# \u8868\n".encode("cp932"),
    "latin-1": ("# größe\n" + CONFIG).encode("latin-1"),
    "utf-8": ("# größe \u2028 \u3000\n" + CONFIG).encode(),
    "form-feeds": CONFIG.encode() + b"# \x0b \x0c \x1c \x85 x\n",
    "trailing-blanks": CONFIG.replace("-server\n", "-server  \t \n").encode(),
    "one-line-of-crlf": CONFIG.replace("mode http\n", "mode http\r\n").encode(),
}


@pytest.mark.parametrize("template", HARD.values(), ids=HARD)
def test_everything_the_operator_wrote_stays_byte_for_byte(lb: LoadBalancer, template: bytes) -> None:
    operator = template.replace(b"{socket}", bytes(lb.socket)).replace(b"{front}", str(lb.front).encode())
    lb.text = operator
    ending = b"\r\n" if operator.count(b"\r\n") > 1 else b"\n"
    complete = operator if operator.endswith(b"\n") else operator + ending
    marker = next(line for line in complete.split(b"\n") if b"# additional" in line)
    ours = marker[: marker.index(b"#")] + make_server_lines(lb, 1)[0].encode() + ending

    joined = lb.join(WEB1)
    text = lb.text
    left = lb.leave(WEB1)

    assert (joined.returncode, left.returncode) == (0, 0)
    assert text == complete.replace(marker, ours + marker)
    assert lb.text == complete


@pytest.mark.parametrize("template", [HARD["no-final-line-end"], HARD["crlf-no-final-line-end"]])
def test_a_missing_final_line_end_stays_missing_while_no_line_is_written(lb: LoadBalancer, template: bytes) -> None:
    lb.text = operator = lb.fill_template(template.decode()).encode()

    lb.leave(WEB1)

    assert lb.text == operator
    assert lb.list_staged() == []


# Several runs


@pytest.mark.every_haproxy
@pytest.mark.real
def test_two_handlers_and_an_apply_at_once_end_with_every_node_served(lb: LoadBalancer) -> None:
    operator = lb.text
    with Haproxy(lb) as haproxy:
        for number in range(1, 16, 2):
            two = [member_line(f"web{one}", f"127.0.0.{one + 10}") for one in (number, number + 1)]
            runs = [lb.start_handle("member-join", line) for line in two]
            runs.append(subprocess.Popen([LBAGENT, "apply"], env=lb.env, stdout=-1, stderr=-1))
            output = [(*run.communicate(), run.returncode) for run in runs]
            text, serving = lb.text, set(haproxy.servers())

            assert [status for _, _, status in output] == [0, 0, 0], output
            assert text == insert_lines(operator, make_server_lines(lb, *range(1, number + 2)))
            assert serving == {f"web{one}" for one in range(1, number + 2)}
            assert (lb.list_spool(), lb.list_staged()) == ([], [])


def test_an_event_that_arrives_during_an_apply_is_applied_when_the_apply_ends(lb: LoadBalancer) -> None:
    # The handler that finds the lock busy relies on it.
    operator = lb.text
    replace_haproxy(lb, "exit 1")
    lb.join(WEB1)
    replace_haproxy(lb, WAITING)
    with subprocess.Popen([LBAGENT, "apply"], env=lb.env, stdout=-1, stderr=-1) as apply:
        wait_until((lb.bin / "haproxy.started").exists)
        queued = lb.join(WEB2)
        (lb.bin / "haproxy.go").touch()
        apply.communicate()

    assert (queued.returncode, apply.returncode) == (0, 0)
    assert lb.text == insert_lines(operator, make_server_lines(lb, 1, 2))
    assert (lb.list_spool(), lb.list_staged()) == ([], [])


def test_an_event_that_arrives_during_another_is_applied_when_that_ends(lb: LoadBalancer) -> None:
    # The record folded first was `1`, the spool was empty: the second event is `1` again, and another.
    operator = lb.text
    replace_haproxy(lb, WAITING)
    with lb.start_handle("member-join", WEB1) as first:
        wait_until((lb.bin / "haproxy.started").exists)
        queued = lb.join(WEB2)
        text = lb.text
        (lb.bin / "haproxy.go").touch()
        first.communicate()

    assert (queued.returncode, queued.stderr, first.returncode) == (0, b"", 0)
    assert text == operator
    assert lb.text == insert_lines(operator, make_server_lines(lb, 1, 2))
    assert (lb.list_spool(), lb.list_staged()) == ([], [])


def test_an_event_that_arrives_during_a_query_is_applied_when_the_query_is_answered(lb: LoadBalancer) -> None:
    operator = lb.text
    lb.join(WEB1)
    replace_haproxy(lb, WAITING)
    query = lb.start_handle("query", b"web1\n", SERF_QUERY_NAME="pause", SERF_QUERY_LTIME="3")
    with query:
        wait_until((lb.bin / "haproxy.started").exists)
        queued = lb.join(WEB2)
        (lb.bin / "haproxy.go").touch()
        query.communicate()

    assert (queued.returncode, query.returncode) == (0, 0)
    assert lb.text == insert_lines(operator, ["# lbagent paused web1 127.0.0.11 role=web", *make_server_lines(lb, 2)])
    assert (lb.list_spool(), lb.list_staged()) == ([], [])


def test_an_event_that_arrives_during_a_failing_run_is_stored(lb: LoadBalancer) -> None:
    operator = lb.text
    replace_haproxy(lb, WAITING.replace('exec "$real" "$@"', "exit 1"))
    with lb.start_handle("member-join", WEB1) as first:
        wait_until((lb.bin / "haproxy.started").exists)
        queued = lb.join(WEB2)
        (lb.bin / "haproxy.go").touch()
        first.communicate()

    assert (queued.returncode, first.returncode) == (0, 4)
    assert lb.text == operator
    assert sorted(lb.members()) == ["web1", "web2"]
    assert (lb.list_spool(), lb.list_staged()) == ([], [])


def test_a_lock_held_by_another_process_leaves_the_event_in_the_spool(lb: LoadBalancer) -> None:
    operator = lb.text
    lb.join(WEB1)
    before = lb.text
    with (lb.state / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = lb.join(WEB2)
        assert (lb.text, len(lb.list_spool())) == (before, 1)

    assert (done.returncode, done.stderr) == (0, b"")
    assert lb.run("apply").returncode == 0
    assert lb.text == insert_lines(operator, make_server_lines(lb, 1, 2))


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "TERM"])
@pytest.mark.parametrize("verb", ["handle", "apply"])
def test_a_run_terminated_during_haproxy_c_leaves_no_file_and_no_process(
    lb: LoadBalancer, number: signal.Signals, verb: str
) -> None:
    operator = lb.text
    lb.join(WEB1)
    before = lb.text
    replace_haproxy(lb, "exit 1")
    lb.join(WEB2)
    replace_haproxy(lb, WAITING)
    with (
        lb.start_handle("member-join", WEB3)
        if verb == "handle"
        else subprocess.Popen([LBAGENT, "apply"], env=lb.env, stdout=-1, stderr=-1) as run
    ):
        wait_until((lb.bin / "haproxy.started").exists)
        run.send_signal(number)
        _, output = run.communicate()
        orphans = list_running(f"{lb.bin}/haproxy")
        (lb.bin / "haproxy.go").touch()

    assert (run.returncode, output) == (130, b"lbagent: interrupted; stored events stay for the next run\n")
    assert lb.text == before
    assert lb.list_staged() == []
    assert orphans == []
    restore_haproxy(lb)
    assert lb.join(WEB3).returncode == 0
    assert lb.text == insert_lines(operator, make_server_lines(lb, 1, 2, 3))
    assert (lb.list_spool(), lb.list_staged()) == ([], [])


@pytest.mark.every_haproxy
@pytest.mark.real
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "TERM"])
def test_a_run_terminated_during_the_reload_is_finished_by_the_next_run(
    lb: LoadBalancer, number: signal.Signals
) -> None:
    operator = lb.text
    with Haproxy(lb) as haproxy:
        lb.join(WEB1)
        set_reload_command(
            lb,
            f'touch "$0.started"; while [ -e "$0" ] && [ ! -e "$0.go" ]; do sleep 0.02; done; kill -USR2 {haproxy.pid}',
        )
        with lb.start_handle("member-join", WEB2) as run:
            wait_until((lb.folder / "reload.started").exists)
            run.send_signal(number)
            run.communicate()
        (lb.folder / "reload.go").touch()

        done = lb.join(WEB3)

        assert done.returncode == 0
        assert lb.text == insert_lines(operator, make_server_lines(lb, 1, 2, 3))
        assert set(haproxy.servers()) == {"web1", "web2", "web3"}
        assert (lb.list_spool(), lb.list_staged()) == ([], [])
