"""Serf's user can write the spool and nothing else, and no file that it puts there misleads root's daemon."""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import run_watch
from tests.helpers.faults import insert_lines, make_spool_record, read_only_line
from tests.helpers.real_programs import LBAGENT, Haproxy, SerfAgent, member_line, wait_until
from tests.helpers.two_users import HERE, SERF, TwoUserLoadBalancer, suspend

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="two users take root, and setpriv"),
]

LAST = b"done, no other server of iis serves\n"
WEB01, WEB02 = member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12")


@pytest.fixture
def lb() -> Iterator[TwoUserLoadBalancer]:
    with TwoUserLoadBalancer() as made, Haproxy(made):
        yield made


def make_line(lb: TwoUserLoadBalancer) -> str:
    return lb.server("web01", "127.0.0.11")


def list_bad(lb: TwoUserLoadBalancer) -> list[str]:
    return [name.partition("-")[2] for name in sorted(os.listdir(lb.state / "spool/bad"))]


def ask(lb: TwoUserLoadBalancer, verb: str, payload: str, ltime: int) -> subprocess.CompletedProcess[bytes]:
    """Handle a query as Serf's user, which has two seconds for its answer: on a busy machine, it is sent again."""

    def send() -> subprocess.CompletedProcess[bytes] | None:
        done = lb.send_query(verb, payload, ltime)
        return None if done.stdout == b"queued\n" else done

    return wait_until(send)


def _ask_agent(agent: SerfAgent, verb: str) -> dict[str, str] | None:
    found = agent.send_query(verb, "web01")
    return None if found == {"lb01": "queued"} else found


def read_result(done: subprocess.CompletedProcess[bytes]) -> tuple[int, bytes, bytes]:
    return done.returncode, done.stdout, done.stderr


# --- what Serf's user can do --------------------------------------------------------------------------------------


def test_serfs_user_writes_the_spool_and_nothing_else(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))
        script = """
import os, sys
done = []
for path in sys.argv[1:]:
    for what, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY), ("make", os.O_WRONLY | os.O_CREAT | os.O_EXCL)):
        try:
            os.close(os.open(path, flags))
            done.append(f"{what} {os.path.basename(path)}")
        except OSError:
            pass
print(*done, sep=",")
"""
        state = [str(lb.state / name) for name in sorted(os.listdir(lb.state)) if name != "spool"]
        others = [str(lb.cfg), str(lb.roles), str(lb.socket), str(lb.state / "x"), str(lb.etc / "x")]

        may = lb.run_as_serf(script, *state, *others, "7777777").stdout.strip().split(",")

    assert sorted(may) == sorted(
        [
            *(f"read {name}" for name in ("history.jsonl", "last.json", "members.json", "metrics.prom", "roles.json")),
            *("read served.json", "read haproxy.cfg", "read roles.yml", "make 7777777"),
        ]
    )


def test_serfs_user_cannot_replace_the_spool_or_bad(lb: TwoUserLoadBalancer) -> None:
    script = """
import os
for old, new in (("bad", "b"), ("../spool", "../s")):
    try:
        os.rename(old, new)
        print("renamed", old)
    except OSError:
        pass
"""
    assert lb.run_as_serf(script).stdout == ""


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="no systemd-tmpfiles here")
def test_a_collector_can_read_the_metrics_and_serfs_user_keeps_its_access(lb: TwoUserLoadBalancer) -> None:
    page = (HERE / "docs/reference/metrics.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^# echo '(.*)' > /etc/tmpfiles.d/", page, re.MULTILINE)
    collector = str(SERF + 9)
    lines = line.replace("/var/lib/lbagent", str(lb.state)).replace("prometheus", collector)
    (lb.folder / "metrics.conf").write_text(f"{lines}\n")
    with run_watch(lb):
        subprocess.run(["systemd-tmpfiles", "--create", str(lb.folder / "metrics.conf")], check=True)
        assert read_result(lb.join(WEB01)) == (0, b"", b"")
        wait_until(lambda: lb.is_settled(make_line(lb)))

    readable = ["setpriv", f"--reuid={collector}", f"--regid={collector}", "--clear-groups", "sh", "-c"]
    script = 'cd "$1" && for name in *; do head -c1 "$name" > /dev/null 2>&1 && echo "$name"; done'
    done = subprocess.run([*readable, script, "sh", lb.state], capture_output=True, text=True, check=False)
    assert done.stdout == "metrics.prom\n"


def test_serfs_user_cannot_hold_a_lock_of_root(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))

        modes = {name: stat.S_IMODE((lb.state / name).stat().st_mode) for name in ("lock", "watch.lock")}

    assert modes == {"lock": 0o600, "watch.lock": 0o600}


# --- handle and watch ---------------------------------------------------------------------------------------------


def test_events_of_serfs_user_are_applied_by_watch(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        assert read_result(lb.join(WEB01, WEB02)) == (0, b"", b"")
        wait_until(lambda: len(lb.managed) == 2 and lb.idle)
        assert read_result(lb.leave(WEB02)) == (0, b"", b"")
        wait_until(lambda: lb.is_settled(make_line(lb)))

    assert [entry["why"] for entry in lb.history()] == ["member-join web01 and 1 more", "member-leave web02"]


def test_a_query_of_serfs_user_is_answered_with_its_result(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))

        answers = [
            read_result(ask(lb, "pause", "web01 reason=patches", 5)),
            read_result(ask(lb, "pause", "web01 reason=patches", 6)),
            read_result(ask(lb, "resume", "web01", 7)),
            read_result(ask(lb, "pause", "nobody", 8)),
            read_result(ask(lb, "resume", "no-body", 9)),
            read_result(ask(lb, "lbagent-forget", "web01", 10)),
        ]

        assert answers == [
            (0, words, b"")
            for words in (
                *(LAST, LAST, b"done\n"),
                *(b"unknown node, remembered\n", b"unknown node\n", b"refused: web01 is alive\n"),
            )
        ]
        assert lb.managed == [make_line(lb)]


def test_a_query_of_serfs_user_is_answered_with_the_reason_of_a_refusal(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))
        lb.text = lb.text.replace(b"balance roundrobin", b"balanse roundrobin")
        wait_until(lambda: lb.idle)

        done = ask(lb, "resume", "web01", 5)
        paused = ask(lb, "pause", "web01", 6)

        assert (done.returncode, done.stderr) == (0, b"")
        assert paused.stdout.startswith(
            b"not applied yet: haproxy.cfg is invalid, not because of lbagent; nothing was changed: "
        )


def test_a_query_of_serfs_user_is_answered_that_roles_yml_is_refused(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        lb.roles.write_text("roles: 7\n")

        done = ask(lb, "pause", "web01", 5)

        assert done.stdout.startswith(b"not applied yet: ")
        assert b"roles.yml:1:8: roles: " in done.stdout


def test_a_status_query_of_serfs_user_is_answered(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))

        words = lb.send_query("lbagent-status", "", 5).stdout.decode().split()
        pauses = lb.send_query("lbagent-status", "pauses", 6)

    assert words[:3] == ["lb01", "members=1", "paused=0"]
    assert "problem=" not in " ".join(words)
    assert pauses.returncode == 0
    assert not pauses.stdout.startswith(b"refused")


def test_commands_of_an_operator_are_applied_too(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))

        done = lb.run("pause", "web01")

        assert done.stdout.splitlines()[0].split(None, 1)[1] == LAST.strip()
        wait_until(lambda: lb.is_settled("# lbagent paused web01 127.0.0.11 role=web"))


def test_with_a_real_agent_a_query_is_answered_done(lb: TwoUserLoadBalancer) -> None:
    with (
        SerfAgent("lb01", "127.0.0.9", "lb", handler=f"{lb.handler} handle", env=lb.env) as agent,
        run_watch(lb, SERF_RPC_ADDR=agent.rpc),
        SerfAgent("web01", "127.0.0.11", "web") as web,
    ):
        web.join(agent)
        wait_until(lambda: lb.is_settled(make_line(lb)))

        for verb, words in (("pause", LAST.decode().strip()), ("resume", "done")):
            # On a busy machine, an answer may come too late for one query.
            answer = wait_until(functools.partial(_ask_agent, agent, verb))
            assert answer == {"lb01": words}


# --- without watch ------------------------------------------------------------------------------------------------


def format_warning(lb: TwoUserLoadBalancer, watch: str) -> str:
    return f"event stored but not applied: this user cannot write {lb.state}/lock and `lbagent watch` {watch}"


def test_without_watch_an_event_is_stored_and_reported_as_not_applied(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        pass  # the state directory has been used
    done = lb.join(WEB01)

    assert (done.returncode, read_only_line(done)) == (75, format_warning(lb, "is not running; start it"))
    assert (lb.list_spool(), lb.managed) == (["1"], [])
    with run_watch(lb):
        wait_until(lambda: lb.is_settled(make_line(lb)))


def test_without_watch_a_query_is_answered_queued_at_once(lb: TwoUserLoadBalancer) -> None:
    assert read_result(lb.send_query("pause", "web01", 5)) == (0, b"queued\n", b"")
    assert lb.list_spool() == ["1"]


def test_a_watch_that_hangs_is_reported_after_five_seconds(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb) as process:
        wait_until(lambda: lb.idle)
        with suspend(process):
            assert read_result(lb.join(WEB01)) == (0, b"", b"")
            assert lb.run_as_serf("import os, time; os.utime('1', (time.time() - 6,) * 2)").returncode == 0

            done = lb.join(WEB02)

            assert (done.returncode, read_only_line(done)) == (75, format_warning(lb, "hangs; restart it"))
        wait_until(lambda: len(lb.managed) == 2 and lb.idle)


def test_a_long_run_is_not_reported_as_a_watch_that_hangs(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        gate = lb.hold_checks()
        lb.join(WEB01)
        wait_until(lambda: lb.staged_checks == 1)
        lb.join(WEB02)
        assert lb.run_as_serf("import os, time; os.utime('1', (time.time() - 6,) * 2)").returncode == 0

        assert read_result(lb.leave(WEB02)) == (0, b"", b"")

        gate.touch()
        wait_until(lambda: lb.is_settled(make_line(lb)))


def test_commands_of_serfs_user_are_refused(lb: TwoUserLoadBalancer) -> None:
    with run_watch(lb):
        pass  # the state directory has been used
    script = f"""
import sys
sys.path.insert(0, {str(lb.folder / "site")!r})
from lbagent.commands.query import run_commands
from lbagent.run.engine import Engine
from lbagent.serf.events import TYPED, parse_command
from lbagent.serf.raw_event import RawEvent
from lbagent.system.log import Log
from lbagent.settings import Settings
raw = RawEvent("0" * 16, 0, TYPED, "pause", None, "lb01", b"web01")
engine = Engine(Settings({str(lb.roles)!r}, {str(lb.state)!r}), Log())
print(run_commands([(raw, parse_command(raw, "web01"))], engine, Log(), 0)[0])
"""

    done = lb.run_as_serf(script)

    assert done.stdout == f"refused: this user cannot write {lb.state}/lock; run it as root\n"
    assert lb.list_spool() == []


# --- hostile records ----------------------------------------------------------------------------------------------

HOSTILE = r"""
import os, socket, sys
victim, own = sys.argv[1:]
def record(kind, payload, name="", ltime="", at="1700000000000", identity="evil"):
    return b"\0".join([b"lbagent 1", *(word.encode() for word in (identity, at, kind, name, ltime, "lb01")), payload])
def put(name, content):
    with open(own + "/new", "wb") as file:
        file.write(content)
    os.rename(own + "/new", name)
typed = record("typed", b"web01", "pause")
"""
"""The beginning of each attack; `victim` is a folder of root with files of root, `own` a folder of Serf's user.

Each file gets its name in the spool when it is complete: the daemon may move it away at once.
"""

ATTACKS = {
    "fifo": "os.mkfifo('1')",
    "link-to-roots-file": "os.symlink(victim + '/0', '1')",
    "link-to-a-device": "os.symlink('/dev/zero', '1')",
    "link-to-a-folder": "os.symlink(victim, '1')",
    "socket": "socket.socket(socket.AF_UNIX).bind('1')",
    "folder": "os.mkdir('.1'); put('.1/file', typed); os.rename('.1', '1')",
    "folder-nobody-may-read": "os.mkdir('.1'); put('.1/file', typed); os.chmod('.1', 0); os.rename('.1', '1')",
    "one-gigabyte": "put('.1', b''); os.truncate('.1', 1 << 30); os.rename('.1', '1')",
    "a-file-nobody-may-read": "put('.1', b'x'); os.chmod('.1', 0); os.rename('.1', '1')",
    "two-names-of-one-file": "put(own + '/two', typed); os.link(own + '/two', '1')",
    "typed-by-an-operator": "put('1', typed)",
    "typed-forget": "put('1', record('typed', b'web01 force', 'forget'))",
    "another-kind": "put('1', record('member-explode', b'web01'))",
    "garbage": "put('1', bytes(range(256)) * 99)",
    "odd-name": "put(b'\\xff\\n\\x1b[31m', b'x')",
    "a-name-with-a-path": "put('x..%2f..%2fetc', b'x')",
}


@pytest.fixture
def victim(lb: TwoUserLoadBalancer) -> Path:
    """A folder of root with more files than `bad` keeps."""
    path = lb.folder / "victim"
    path.mkdir()
    for number in range(150):
        (path / str(number)).write_text("root's\n")
    return path


def is_unchanged(victim: Path) -> bool:
    found = {path.name: (path.read_text(), path.lstat().st_nlink, path.lstat().st_uid) for path in victim.iterdir()}
    return found == {str(number): ("root's\n", 1, 0) for number in range(150)}


def run_attack(lb: TwoUserLoadBalancer, attack: str, victim: Path) -> None:
    own = lb.folder / "own"
    own.mkdir(exist_ok=True)
    os.chown(own, SERF, SERF)
    done = lb.run_as_serf(f"{HOSTILE}\n{attack}", str(victim), str(own))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_spool_file_that_is_not_an_event_is_set_aside_and_changes_nothing(
    lb: TwoUserLoadBalancer, victim: Path
) -> None:
    operator = lb.text
    with run_watch(lb) as process:
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))

        aside = {}
        for name, attack in ATTACKS.items():
            before = len(list_bad(lb))
            run_attack(lb, attack, victim)
            wait_until(lambda: lb.idle)
            aside[name] = len(list_bad(lb)) - before

        assert aside == dict.fromkeys(ATTACKS, 1)
        assert lb.join(WEB02).returncode == 0
        wait_until(lambda: len(lb.managed) == 2 and lb.idle)
        assert process.poll() is None
    assert lb.text == insert_lines(operator, [make_line(lb), lb.server("web02", "127.0.0.12")])
    assert is_unchanged(victim)
    assert victim.stat().st_mode & 0o777 == 0o755


def test_links_to_files_of_root_are_removed_and_the_files_stay(lb: TwoUserLoadBalancer, victim: Path) -> None:
    # Serf's user can create them where fs.protected_hardlinks is 0.
    (victim / "0").write_bytes(make_spool_record("evil", "typed", b"web01", "pause"))
    os.link(victim / "0", lb.state / "spool/1")
    os.link(victim / "1", lb.state / "spool/2")

    with run_watch(lb):
        wait_until(lambda: list_bad(lb) == ["1", "2"])

    assert (victim / "0").read_bytes() == make_spool_record("evil", "typed", b"web01", "pause")
    assert (victim / "1").read_text() == "root's\n"
    assert lb.managed == []


@pytest.mark.parametrize(
    "attack",
    [
        "os.symlink(victim, 'bad')",
        "os.symlink('/nowhere', 'bad')",
        "os.mkdir('bad')",
        "os.mkdir('bad'); os.chmod('bad', 0o777); [os.symlink(victim, f'bad/{n}') for n in range(200)]",
        "os.mkfifo('bad')",
    ],
    ids=["link", "dangling-link", "folder-of-his", "folder-of-links", "fifo"],
)
def test_a_folder_bad_created_by_serfs_user_leads_to_no_other_folder(
    lb: TwoUserLoadBalancer, victim: Path, attack: str
) -> None:
    # For example before tmpfiles.d has created it.
    (lb.state / "spool/bad").rmdir()

    run_attack(lb, f"{attack}\nput('1', typed)", victim)
    with run_watch(lb):
        wait_until(lambda: lb.list_spool() == [])
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))

    found = (lb.state / "spool/bad").lstat()
    assert (stat.S_ISDIR(found.st_mode), found.st_uid, found.st_mode & 0o022) == (True, 0, 0)
    assert list_bad(lb) in (["1", "bad"], ["bad", "1"])
    assert is_unchanged(victim)


def test_a_spool_that_is_a_link_is_not_followed(lb: TwoUserLoadBalancer, victim: Path) -> None:
    shutil.rmtree(lb.state / "spool")
    (lb.state / "spool").symlink_to(victim)
    os.chown(lb.state / "spool", SERF, SERF, follow_symlinks=False)

    done = lb.run("apply")

    assert (done.returncode, read_only_line(done)) == (1, f"{lb.state}/spool: Not a directory")
    assert is_unchanged(victim)


def test_of_thousands_of_bad_files_the_newest_hundred_are_kept(lb: TwoUserLoadBalancer, victim: Path) -> None:
    attack = """
for number in range(1, 3001):
    if number % 20 == 0:
        os.mkdir(str(number))
        os.symlink(victim, f"{number}/link")
    elif number % 2:
        put(str(number), typed)
    else:
        os.symlink(victim, str(number))
"""
    run_attack(lb, attack, victim)

    # Thousands of lines do not fit into a pipe without a reader.
    with subprocess.Popen([LBAGENT, "watch"], env=lb.env, stderr=subprocess.DEVNULL) as watch:
        try:
            wait_until(lambda: len(lb.list_spool()) == 0, 90)
            assert lb.join(WEB01).returncode == 0
            wait_until(lambda: lb.is_settled(make_line(lb)))
        finally:
            watch.terminate()

    assert len(list_bad(lb)) == 100
    assert is_unchanged(victim)


def test_a_very_deep_folder_is_set_aside_and_later_removed(lb: TwoUserLoadBalancer, victim: Path) -> None:
    attack = """
os.mkdir("1")
here = os.open("1", os.O_RDONLY)
for level in range(5000):
    os.mkdir("x", dir_fd=here)
    here, above = os.open("x", os.O_RDONLY, dir_fd=here), here
    os.close(above)
os.symlink(victim, "victim", dir_fd=here)
for number in range(2, 110):
    put(str(number), typed)
"""
    run_attack(lb, attack, victim)

    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)), 90)

    assert list_bad(lb) == [str(number) for number in range(10, 110)]
    assert is_unchanged(victim)


def test_files_that_change_while_they_are_read_do_no_harm(lb: TwoUserLoadBalancer, victim: Path) -> None:
    attack = """
import itertools, time
until = time.monotonic() + 4
for turn in itertools.count():
    if time.monotonic() > until:
        break
    name = str(turn % 3 + 1)
    try:
        if turn % 4 == 0:
            os.symlink(victim + "/0", own + "/l")
            os.rename(own + "/l", name)
        elif turn % 4 == 1:
            os.mkfifo(own + "/f")
            os.rename(own + "/f", name)
        elif turn % 4 == 2:
            put(own + "/t", typed + str(turn).encode())
            os.rename(own + "/t", name)
        else:
            put(own + "/g", record("member-join", b"web02\\t127.0.0.12\\tweb\\trole=web\\n", identity=str(turn)))
            os.rename(own + "/g", name)
    except OSError:
        pass
"""
    with run_watch(lb) as process:
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))  # before: the attack replaces records
        attacker = threading.Thread(target=run_attack, args=(lb, attack, victim))
        attacker.start()
        attacker.join()
        assert lb.leave(WEB02).returncode in (0, 75)

        wait_until(lambda: lb.is_settled(make_line(lb)), 60)
        assert process.poll() is None
    assert is_unchanged(victim)


@pytest.mark.parametrize("at", ["999999999999999", "0", "253402300800000"])
def test_a_forged_time_does_no_harm(lb: TwoUserLoadBalancer, victim: Path, at: str) -> None:
    with run_watch(lb):
        lb.join(WEB01)
        wait_until(lambda: lb.is_settled(make_line(lb)))
        run_attack(lb, f"put('7', record('user', b'web01 for=2h', 'pause', '3', at={at!r}))", victim)
        wait_until(lambda: lb.list_spool() == [])
        wait_until(lambda: lb.idle)

        seen = [lb.run(*words) for words in (("status",), ("status", "--json"), ("plan",), ("apply",))]
        assert lb.join(WEB02).returncode == 0
        wait_until(lambda: len(lb.managed) == 2 and lb.idle)

    assert [(done.returncode, done.stderr) for done in seen] == [(0, b"")] * 4
    assert time.time() < 253402300800
