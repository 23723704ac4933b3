"""Each result of a reload is detected, on every version and in every mode of HAProxy."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbagent.haproxy import process, reload
from lbagent.system import processes
from tests.helpers.real_programs import CONFIG, RELOADING, Haproxy, LoadBalancer, binaries, member_line, wait_until

pytestmark = pytest.mark.real

WEB01, WEB02 = member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12")

VERSIONS = {version: tuple(map(int, version.split("."))) for version in binaries()}
MODES = ["-W", "-Ws", "", "-D"]
"""Options of the command line; an empty one means `master-worker` in global."""

STATS = "    stats socket {socket} mode 600 level admin expose-fd listeners\n"


def supports_systemd(version: str) -> bool:
    """Return whether this HAProxy supports `-Ws`; since 3.1 every build does."""
    return b"+SYSTEMD" in subprocess.check_output([binaries()[version], "-vv"])


class RunMode:
    """One way to run HAProxy."""

    def __init__(self, version: str, mode: str, stats: bool, master: bool) -> None:  # noqa: FBT001
        self.version, self.mode, self.stats, self.master = version, mode, stats, master

    def __str__(self) -> str:
        return " ".join(
            (
                self.version,
                self.mode or "master-worker",
                "with stats" if self.stats else "no stats",
                "with -S" if self.master else "no -S",
            )
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[tuple[LoadBalancer, Haproxy]]:
        """Run a load balancer without nodes, and its HAProxy."""
        text = CONFIG if self.stats else CONFIG.replace(STATS, "")
        text = text.replace("global\n", "global\n    master-worker\n") if not self.mode else text
        with LoadBalancer(text, RELOADING, binaries()[self.version]) as lb:
            more = ["-S", f"{lb.folder}/master.sock,mode,600"] if self.master else []
            with Haproxy(lb, self.mode, more=more) as haproxy:
                yield lb, haproxy


WAYS = [
    RunMode(version, mode, stats, master)
    for version, number in VERSIONS.items()
    for mode in MODES
    for stats in (True, False)
    for master in ((True, False) if mode != "-D" else (False,))
    if mode or not master or number < (3, 1)  # since then, -S needs -W beside it
    if mode != "-Ws" or number > (3, 1) or supports_systemd(version)
]

every_way = pytest.mark.parametrize("way", WAYS, ids=str)


@contextlib.contextmanager
def occupy_port() -> Iterator[int]:
    """Listen on a port; yields it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


def add_listener(text: bytes, port: int) -> bytes:
    """Return `text` with one more operator's proxy on `port`."""
    return text + f"\nlisten new\n    bind 127.0.0.1:{port}\n    http-request return status 204\n".encode()


def wait_for_only_worker(haproxy: Haproxy) -> int:
    """Wait until old workers have ended; returns the remaining one."""
    [worker] = wait_until(lambda: workers if len(workers := haproxy.workers()) == 1 else [])
    return worker


def read_confirmed_worker(lb: LoadBalancer) -> int:
    served = lb.served()
    assert served
    return int(served["worker"]["pid"])


@every_way
def test_a_good_reload_is_confirmed_by_its_worker(way: RunMode) -> None:
    with way.running() as (lb, haproxy):
        before = wait_for_only_worker(haproxy)

        ends = [lb.join(WEB01), lb.join(WEB02)]

        assert [(one.returncode, one.stderr) for one in ends] == [(0, b"")] * 2
        assert lb.list_outcomes() == ["applied", "applied"]
        assert lb.managed == [lb.server("web01", "127.0.0.11"), lb.server("web02", "127.0.0.12")]
        assert read_confirmed_worker(lb) == wait_for_only_worker(haproxy) != before


@pytest.mark.parametrize("mode", ["-W", "-D"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_haproxy_whose_files_follow_two_dashes_is_reloaded(version: str, mode: str) -> None:
    with LoadBalancer(CONFIG, RELOADING, binaries()[version]) as lb, Haproxy(lb, mode, more=["--"]) as haproxy:
        ends = [lb.join(WEB01), lb.join(WEB02)]

        assert [(one.returncode, one.stderr) for one in ends] == [(0, b"")] * 2
        assert read_confirmed_worker(lb) == wait_for_only_worker(haproxy)
        assert set(haproxy.servers()) == {"web01", "web02"}


@pytest.mark.parametrize("way", [RunMode(version, "-W", True, False) for version in VERSIONS], ids=str)  # noqa: FBT003  # without -S
def test_reloads_in_a_row_do_not_wait_for_the_time_limit(way: RunMode) -> None:
    """Since 3.1 the environment of a master does not show that a reload has ended."""
    with way.running() as (lb, haproxy):
        # A run that waits for this limit is ended by the helper's own one, 120 seconds.
        lb.roles.write_text(lb.roles.read_text().replace("timeout: 15s", "timeout: 300s"))

        ends = [lb.join(member_line(f"web0{number}", f"127.0.0.1{number}")) for number in range(1, 5)]

        assert [(one.returncode, one.stderr) for one in ends] == [(0, b"")] * 4
        assert haproxy.reloads() == (4, 0)
        assert set(haproxy.servers()) == {"web01", "web02", "web03", "web04"}


@every_way
def test_a_failed_reload_is_rolled_back_with_haproxys_reason_and_no_pause_is_done(way: RunMode) -> None:
    with way.running() as (lb, haproxy), occupy_port() as port:
        lb.join(WEB01)
        worker = wait_for_only_worker(haproxy)
        lb.text = saved = add_listener(lb.text, port)

        ended = lb.join(WEB02)
        asked = lb.send_query("pause", "web01", 1)

        words = ended.stderr.decode()
        assert ended.returncode == 5
        assert "Address already in use" in words
        assert f"127.0.0.1:{port}" in words
        assert words.endswith(f"; the previous managed lines are restored in {lb.cfg}\n")
        assert asked.stdout == b"queued\n"
        assert (lb.text, lb.list_staged()) == (saved, [])
        assert lb.list_outcomes() == ["applied", "rolled back"]
        assert words == f"lbagent: {lb.history()[-1]['words']}\n"
        assert wait_for_only_worker(haproxy) == worker == read_confirmed_worker(lb)
        assert haproxy.get() == "503"


# Reloads by other processes


def choose_masters(stats: bool = True) -> list[RunMode]:  # noqa: FBT001, FBT002
    """Return one mode with a master for each version, with and without the master CLI."""
    return [RunMode(version, "-W", stats, master) for version in VERSIONS for master in (True, False)]


@pytest.mark.parametrize("way", [*choose_masters(), *choose_masters(stats=False)], ids=str)
def test_a_failing_reload_by_another_process_does_not_count_as_ours(way: RunMode) -> None:
    with way.running() as (lb, haproxy), occupy_port() as port:
        good, worker = lb.text, wait_for_only_worker(haproxy)
        lb.text = add_listener(good, port)
        with watch_reads(lb.cfg) as was_read:
            wait_until(lambda: begin_reload(haproxy))
            wait_until(was_read)
        # The new worker has this text, and tries to bind for two seconds.
        lb.text = good

        ended = lb.join(WEB01)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert lb.list_outcomes() == ["applied"]
        assert lb.managed == [lb.server("web01", "127.0.0.11")]
        assert read_confirmed_worker(lb) == wait_for_only_worker(haproxy) != worker
        assert list_loaded_servers(haproxy) == ["web01"]


@pytest.mark.parametrize("way", [*choose_masters(), *choose_masters(stats=False)], ids=str)
def test_a_reload_during_one_of_another_process_is_confirmed_by_a_worker_with_the_text(way: RunMode) -> None:
    dice = random.Random(7)
    with way.running() as (lb, haproxy):
        for number in range(1, 7):
            others = [dice.uniform(0, 0.4) for _ in range(2)]
            with lb.start_handle("member-join", member_line(f"web{number:02}", f"127.0.0.{10 + number}")) as ours:
                for wait in others:
                    time.sleep(wait)
                    os.kill(haproxy.pid, signal.SIGUSR2)
                _, words = ours.communicate()

            assert (ours.returncode, words) == (0, b"")
            wait_until(lambda: not is_reloading(haproxy))
            assert list_loaded_servers(haproxy) == [f"web{one:02}" for one in range(1, number + 1)]
        assert lb.list_outcomes() == ["applied"] * 6


@contextlib.contextmanager
def watch_reads(path: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a process has read the file and closed it; see inotify(7)."""
    libc, closed_unwritten = ctypes.CDLL(None, use_errno=True), 0x10
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(path), closed_unwritten) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        yield lambda: bool(select.select([descriptor], [], [], 0)[0])
    finally:
        os.close(descriptor)


def begin_reload(haproxy: Haproxy) -> bool:
    """Send SIGUSR2, which a master that has just started may lose; returns whether a reload begins within 1 s."""
    os.kill(haproxy.pid, signal.SIGUSR2)
    until = time.monotonic() + 1
    while not (begun := is_reloading(haproxy)) and time.monotonic() < until:
        time.sleep(0.001)
    return begun


def is_reloading(haproxy: Haproxy) -> bool:
    """Return whether the master is reloading."""
    master = processes.read_process(haproxy.pid)
    return master is not None and process.is_reloading(master)


def list_loaded_servers(haproxy: Haproxy) -> list[str]:
    """Return the servers of the worker; without a stats socket, those of haproxy.cfg."""
    if b"stats socket" in haproxy.lb.text:
        return list(haproxy.servers())
    return [line.split()[1] for line in haproxy.lb.managed]


# Workers that start and end


@pytest.mark.parametrize("stats", [True, False], ids=["with stats", "no stats"])
@pytest.mark.parametrize("version", [one for one, number in VERSIONS.items() if number > (3, 0)])
def test_a_worker_that_cannot_change_its_root_is_a_failed_reload(version: str, stats: bool) -> None:  # noqa: FBT001
    with RunMode(version, "-W", stats, master=False).running() as (lb, haproxy):
        lb.join(WEB01)
        worker = wait_for_only_worker(haproxy)
        lb.text = saved = lb.text.replace(b"global\n", b"global\n    chroot /no/such/folder\n")

        ended = lb.join(WEB02)

        assert ended.returncode == 5
        assert b"Cannot chroot" in ended.stderr
        assert (lb.text, wait_for_only_worker(haproxy)) == (saved, worker)


@pytest.mark.parametrize("stats", [True, False], ids=["with stats", "no stats"])
@pytest.mark.parametrize("version", [one for one, number in VERSIONS.items() if number < (3, 1)])
def test_a_worker_that_dies_as_soon_as_it_serves_is_not_confirmed(version: str, stats: bool) -> None:  # noqa: FBT001
    with RunMode(version, "-W", stats, master=False).running() as (lb, _):
        lb.join(WEB01)
        lb.roles.write_text(lb.roles.read_text().replace("timeout: 15s", "timeout: 4s"))
        lb.text = lb.text.replace(b"global\n", b"global\n    chroot /no/such/folder\n")

        ended = lb.join(WEB02)

        assert ended.returncode in (5, 75)
        assert lb.list_outcomes()[-1] in ("rolled back", "not confirmed")


# The way to reload, and the reason of a failure


@pytest.mark.parametrize("form", ["-S {0}", "-S unix@{0},mode,600", "-S {0},level,operator", "-S {0}.gone"])
@pytest.mark.parametrize("version", list(VERSIONS))
def test_a_reload_is_made_and_confirmed_in_every_state_of_the_master_cli(version: str, form: str) -> None:
    with LoadBalancer(roles=RELOADING, binary=binaries()[version]) as lb:
        words = form.format(lb.folder / "master.sock").split()
        with Haproxy(lb, more=words) as haproxy:
            if form.endswith(".gone"):
                Path(words[1]).unlink()

            ended = lb.join(WEB01)

            assert (ended.returncode, ended.stderr) == (0, b"")
            assert (haproxy.reloads(), list(haproxy.servers())) == ((1, 0), ["web01"])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("haproxy -W -f a.cfg -S /run/master.sock", ["/run/master.sock"]),
        ("haproxy -W -S/run/master.sock,mode,600 -f a.cfg", ["/run/master.sock"]),
        ("haproxy -W -S /run/master.sock,mode,600,level,operator", ["/run/master.sock"]),
        ("haproxy -W -S 127.0.0.1:9999", ["127.0.0.1:9999"]),
        ("haproxy -W -S abns@master", ["abns@master"]),
        ("haproxy -W -S fd@3", []),
        ("haproxy -W -f a.cfg -sf 12 13", ["/run/env.sock", "ipv4@127.0.0.1:99"]),
        ("haproxy -W -S", []),
    ],
)
def test_the_master_cli_is_found_on_the_command_line_or_in_the_environment(line: str, found: list[str]) -> None:
    environ = {**os.environ, "HAPROXY_MASTER_CLI": "unix@/run/env.sock;ipv4@127.0.0.1:99;sockpair@5"}
    argv = ["sh", "-c", "read -r _", *line.split()[1:]]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, env=environ) as shell:
        wait_until(lambda: b"read" in Path(f"/proc/{shell.pid}/cmdline").read_bytes())
        master = processes.read_process(shell.pid)
        assert master

        assert reload.list_master_sockets(master) == found
        shell.communicate(b"\n")


@pytest.mark.parametrize("version", list(VERSIONS))
def test_the_reason_is_found_although_haproxy_does_not_report_it(version: str) -> None:
    with RunMode(version, "-W", stats=True, master=False).running() as (lb, haproxy), occupy_port() as port:
        lb.join(WEB01)
        # The output of a master that has become a daemon is lost.
        haproxy.log.unlink()
        haproxy.log.symlink_to("/dev/null")
        haproxy.stop()
        with haproxy:
            lb.text = saved = add_listener(lb.text, port)
            line = (
                saved.decode().split("\n").index(f"    bind 127.0.0.1:{port}") + 2
            )  # below the line that is rolled back

            ended = lb.join(WEB02)

            assert ended.returncode == 5
            assert ended.stderr.decode() == (
                "lbagent: the reload failed, the old worker keeps running: "
                f"{lb.cfg}:{line}: cannot bind socket (Address already in use) for [127.0.0.1:{port}]: used by "
                f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
                f"; the previous managed lines are restored in {lb.cfg}\n"
            )


@pytest.mark.parametrize("version", list(VERSIONS))
def test_a_command_that_ends_with_0_without_a_reload_counts_as_failed(version: str) -> None:
    for_usr2 = RELOADING.replace(
        "  timeout:", "  reload: [sh, -c, 'kill -USR2 $(cat {folder}/haproxy.pid)']\n  timeout:"
    )
    with LoadBalancer(roles=for_usr2, binary=binaries()[version]) as lb, Haproxy(lb) as haproxy, occupy_port() as port:
        good, ended = lb.text, lb.join(WEB01)
        assert (ended.returncode, haproxy.reloads()) == (0, (1, 0))
        lb.text = saved = add_listener(lb.text, port)

        failed = lb.join(WEB02)

        assert failed.returncode == 5
        assert f"127.0.0.1:{port}".encode() in failed.stderr
        assert lb.text == saved != good


@pytest.mark.parametrize("version", list(VERSIONS))
def test_a_command_that_restarts_haproxy_is_confirmed(version: str) -> None:
    again = RELOADING.replace("  timeout:", "  reload: [sh, {folder}/restart.sh]\n  timeout:")
    with LoadBalancer(roles=again, binary=binaries()[version]) as lb, Haproxy(lb) as haproxy:
        start = f"setsid {lb.bin}/haproxy -W -p {haproxy.pidfile} -f {lb.cfg} >{lb.folder}/second.log 2>&1 </dev/null &"
        stop = "kill $pid; while kill -0 $pid; do sleep 0.02; done"
        (lb.folder / "restart.sh").write_text(f"pid=$(cat {haproxy.pidfile})\n{stop}\n{start}\n")
        first = haproxy.worker()
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: stop_successor(haproxy))

            with lb.start_handle("member-join", WEB01) as ours:
                wait_until(lambda: haproxy._master is None or haproxy._master.poll() is not None)
                error = ours.communicate()[1]

            assert (ours.returncode, error) == (0, b"")
            assert read_confirmed_worker(lb) == haproxy.worker() != first


def stop_successor(haproxy: Haproxy) -> None:
    """End the HAProxy that a reload command has started."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(haproxy.pidfile.read_text()), signal.SIGTERM)


# The intervals between attempts


def test_a_failed_reload_is_tried_again_after_one_two_four_and_at_most_thirty_minutes() -> None:
    tries = RELOADING.replace("  timeout:", "  reload: [sh, -c, 'echo x >>{folder}/tries; exit 1']\n  timeout:")
    with LoadBalancer(roles=RELOADING) as lb, Haproxy(lb):
        lb.join(WEB01)
        lb.roles.write_text(lb.fill_template(tries))
        path = lb.state / "served.json"

        def asked() -> int:
            return len((lb.folder / "tries").read_text().splitlines())

        def apply_after(seconds: int) -> None:
            served = json.loads(path.read_text())
            assert served["failure"]["times"] == asked()
            failure = {**served["failure"], "at": int(time.time()) - seconds}
            path.write_text(json.dumps({**served, "failure": failure}))
            assert lb.run("apply").returncode == 5

        assert lb.join(WEB02).returncode == 5
        for number, minutes in enumerate((1, 2, 4, 8, 16, 30, 30), 1):
            apply_after(60 * minutes - 45)
            assert asked() == number
            apply_after(60 * minutes)
            assert asked() == number + 1
