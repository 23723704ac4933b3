"""The HAProxy that runs this haproxy.cfg is found among others and reloaded once, and no request fails."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from lbagent.haproxy.process import explain_other_files, find_haproxy, is_check_only
from tests.helpers.real_programs import (
    CONFIG,
    PATIENCE,
    RELOADING,
    ROLES,
    Backend,
    Haproxy,
    LoadBalancer,
    binaries,
    member_line,
    wait_until,
)

pytestmark = pytest.mark.real

WEB01, WEB02 = member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12")


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    with LoadBalancer(roles=RELOADING, binary=request.param) as one:
        yield one


@contextlib.contextmanager
def start_check(lb: LoadBalancer, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a `haproxy -c` as another process does, and suspend it."""
    process = subprocess.Popen(
        [str(lb.bin / "haproxy"), *flags, "-c", "-f", str(lb.cfg)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    process.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finish_check(check: subprocess.Popen[bytes]) -> int:
    """Resume the check; returns its exit status."""
    check.send_signal(signal.SIGCONT)
    return check.wait(PATIENCE)


def test_a_haproxy_with_another_haproxy_cfg_is_not_reloaded(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy, LoadBalancer(roles=RELOADING, binary=lb.binary) as other, Haproxy(other) as neighbour:
        ended = lb.join(WEB01)

        assert ended.returncode == 0
        assert (haproxy.reloads(), neighbour.reloads()) == ((1, 0), (0, 0))
        assert (list(haproxy.servers()), neighbour.servers()) == (["web01"], {})


@pytest.mark.parametrize("socket", ["with a stats socket", "without a stats socket"])
@pytest.mark.parametrize("mode", ["-W", "-Ws", "-D"])
def test_every_way_to_run_haproxy_is_found_and_confirmed(lb: LoadBalancer, mode: str, socket: str) -> None:
    if mode == "-Ws" and b"-SYSTEMD" in subprocess.check_output([lb.binary, "-vv"]):  # 3.2 always has it
        pytest.skip("this HAProxy was built without systemd")
    with Haproxy(lb, mode) as haproxy:
        if socket == "without a stats socket":
            # The socket still answers the test, but lbagent does not know it.
            lb.text = lb.text.replace(f"    stats socket {lb.socket}".encode(), b"    # stats socket")
        before = haproxy.workers()

        ended = lb.join(WEB01)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert lb.managed == [lb.server("web01", "127.0.0.11")]
        assert lb.list_outcomes() == ["applied"]
        served = lb.served()
        assert served
        wait_until(lambda: haproxy.workers() == [served["worker"]["pid"]])
        assert not set(before) & set(haproxy.workers())


def test_a_relative_path_on_haproxys_command_line_is_followed(lb: LoadBalancer) -> None:
    with Haproxy(lb, config=["etc/haproxy.cfg"]) as haproxy:
        ended = lb.join(WEB01)

        assert ended.returncode == 0
        assert (haproxy.reloads(), list(haproxy.servers())) == ((1, 0), ["web01"])


@pytest.mark.parametrize("given", ["files", "a folder"])
def test_a_haproxy_cfg_of_several_files_is_one_text(lb: LoadBalancer, given: str) -> None:
    head, _, listen = CONFIG.partition("listen lb-iis")
    first, second = lb.etc / "conf.d" / "10-global.cfg", lb.etc / "conf.d" / "20-web.cfg"
    first.parent.mkdir()
    first.write_text(lb.fill_template(head))
    second.write_text(lb.fill_template(f"listen lb-iis{listen}"))
    config = [str(first), str(second)] if given == "files" else [str(first.parent)]
    lb.roles.write_text(lb.fill_template(RELOADING).replace(f"config: {lb.cfg}", f"config: [{', '.join(config)}]"))
    with Haproxy(lb, config=config) as haproxy:
        ended = lb.join(WEB01)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert first.read_text() == lb.fill_template(head)
        assert second.read_text() == lb.fill_template(f"listen lb-iis{listen}").replace(
            "    # additional", f"    {lb.server('web01', '127.0.0.11')}\n    # additional"
        )
        assert (haproxy.reloads(), list(haproxy.servers())) == ((1, 0), ["web01"])
        assert sorted(path.name for path in first.parent.iterdir()) == [
            ".20-web.cfg.lbagent-previous",
            first.name,
            second.name,
        ]


def test_directories_and_special_files_in_a_folder_are_ignored_as_haproxy_does(lb: LoadBalancer) -> None:
    folder = lb.etc / "conf.d"
    (folder / "20-old.cfg").mkdir(parents=True)
    os.mkfifo(folder / "30-fifo.cfg")
    (folder / "10-web.cfg").write_bytes(lb.text)
    lb.roles.write_text(lb.fill_template(RELOADING).replace(f"config: {lb.cfg}", f"config: {folder}"))
    with Haproxy(lb, config=[str(folder)]) as haproxy:
        ended = lb.join(WEB01)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert list(haproxy.servers()) == ["web01"]


def write_two_files(lb: LoadBalancer, more: str = "") -> tuple[str, str]:
    """Write a file with `defaults`, to which `more` belongs, and haproxy.cfg with all other sections."""
    head, _, rest = CONFIG.partition("defaults\n")
    defaults, _, listen = rest.partition("\nlisten ")
    first = lb.etc / "conf.d" / "10-defaults.cfg"
    first.parent.mkdir()
    first.write_text(lb.fill_template(f"defaults\n{defaults}{more}"))
    lb.cfg.write_text(lb.fill_template(f"{head}listen {listen}".replace("    balance", "    mode http\n    balance")))
    return str(first), str(lb.cfg)


def find_weights(haproxy: Haproxy) -> dict[str, str]:
    rows = csv.DictReader(haproxy.send("show stat -1 4 -1").removeprefix("# ").splitlines())
    return {row["svname"]: row["weight"] for row in rows}


def test_a_server_joins_by_a_reload_where_haproxy_reads_more_files_than_lbagent_knows(lb: LoadBalancer) -> None:
    lb.roles.write_text(lb.fill_template(ROLES))
    files = write_two_files(lb, "    default-server weight 7\n")
    with (
        Backend("web01", "127.0.0.11", lb.port),
        Backend("web02", "127.0.0.12", lb.port),
        Haproxy(lb, config=files) as haproxy,
    ):
        ended = lb.join(WEB01, WEB02)
        assert (ended.returncode, haproxy.reloads()) == (0, (1, 0))
        assert find_weights(haproxy) == {"web01": "7", "web02": "7"}
        # A pause does not depend on the other files.
        assert lb.send_query("pause", "web01", 1).stdout.startswith(b"done")
        assert (haproxy.servers()["web01"], haproxy.reloads()) == ("MAINT", (1, 0))
        given = " ".join(files)
        warning = f"was started with {given}, haproxy.config is {lb.cfg}; each join takes a reload"
        assert warning in lb.run("check").stdout.decode()


def test_servers_that_an_unknown_file_disables_stay_disabled(lb: LoadBalancer) -> None:
    lb.roles.write_text(lb.fill_template(ROLES))
    with Haproxy(lb, config=write_two_files(lb, "    default-server disabled\n")) as haproxy:
        ended = lb.join(WEB01)

        assert (ended.returncode, haproxy.servers()) == (0, {"web01": "MAINT"})
        assert lb.history()[-1]["words"].endswith(f"HAProxy reloaded, worker {haproxy.worker()}")


@pytest.mark.parametrize("more", [[], ["--"]])
def test_the_same_files_under_other_names_take_no_reload(lb: LoadBalancer, more: list[str]) -> None:
    first, second = write_two_files(lb)
    (lb.folder / "link.cfg").symlink_to(second)
    lb.roles.write_text(lb.fill_template(ROLES).replace(f"config: {lb.cfg}", f"config: [{first}, {second}]"))
    with Haproxy(lb, config=["etc/conf.d", "link.cfg"], more=more) as haproxy:
        lb.join(WEB01)
        assert haproxy.reloads() == (0, 0)
        os.kill(haproxy.pid, signal.SIGUSR2)
        wait_until(lambda: haproxy.reloads()[0] == 1 and len(haproxy.workers()) == 1)
        running = find_haproxy([first, second], [])
        assert running
        assert explain_other_files(running, [first, second]) == ""


def test_a_haproxy_that_starts_later_serves_the_lines(lb: LoadBalancer) -> None:
    ended = lb.join(WEB01)
    again = lb.join(WEB01)
    with Haproxy(lb) as haproxy:
        started = list(haproxy.servers())
        later = lb.join(WEB02)

        assert [one.returncode for one in (ended, again, later)] == [0, 0, 0]
        assert started == ["web01"]
        assert list(haproxy.servers()) == ["web01", "web02"]
        assert lb.list_outcomes() == ["written", "applied"]


def test_a_text_written_without_a_reload_is_served_after_the_next_event(lb: LoadBalancer) -> None:
    with Haproxy(lb) as haproxy:
        lb.join(WEB01)
        lb.roles.write_text(lb.roles.read_text().replace("200ms", "300ms"))

        written = lb.run("apply", "--no-reload")
        before = lb.managed, haproxy.reloads()
        ended = lb.join(WEB01)

        line = lb.server("web01", "127.0.0.11", options="check inter 300ms rise 2 fall 2")
        assert (written.returncode, before) == (0, ([line], (1, 0)))
        assert (ended.returncode, lb.managed, haproxy.reloads()) == (0, [line], (2, 0))


# An operator's `haproxy -c`, or that of systemd's ExecStartPre and ExecReload (with -Ws), does not serve.
# A SIGUSR2 would end it, and HAProxy's start or reload would fail.
@pytest.mark.parametrize("flags", [[], ["-W", "-q"]], ids=["by hand", "by systemd"])
def test_a_haproxy_c_of_another_process_does_not_count_as_a_running_haproxy(lb: LoadBalancer, flags: list[str]) -> None:
    lb.roles.write_text(lb.roles.read_text().replace("timeout: 15s", "timeout: 1s"))
    with start_check(lb, *flags) as check:
        ended = lb.join(WEB01)

        assert finish_check(check) == 0
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert lb.list_outcomes() == ["written"]


@pytest.mark.parametrize(
    ("line", "looks"),
    [
        ("haproxy -c -f a.cfg", True),
        ("haproxy -f a.cfg -c", True),
        ("haproxy -W -c -q -f a.cfg", True),
        ("haproxy -Ws -f a.cfg -c -q", True),
        ("haproxy -cc 1 -f a.cfg", True),
        ("haproxy -v", True),
        ("haproxy -vv -f a.cfg", True),
        ("haproxy -W -f a.cfg", False),
        ("haproxy -Ws -f a.cfg -p /run/haproxy.pid -S /run/haproxy-master.sock", False),
        ("haproxy -f -c", False),
        ("haproxy -L -v -f a.cfg", False),
        ("haproxy -D -- -c", False),
        ("haproxy -C /etc -V -f a.cfg -sf 12 13 -x /run/a.sock", False),
        ("", False),
    ],
)
def test_a_command_line_that_only_checks_differs_from_one_that_serves(line: str, looks: bool) -> None:  # noqa: FBT001
    assert is_check_only(line.split()) is looks


@pytest.mark.parametrize("mode", ["-W", "-D"])
def test_a_haproxy_c_of_another_process_beside_a_running_haproxy_changes_nothing(lb: LoadBalancer, mode: str) -> None:
    with Haproxy(lb, mode) as haproxy, start_check(lb, "-W", "-q") as check:
        ended = lb.join(WEB01)

        assert finish_check(check) == 0
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert list(haproxy.servers()) == ["web01"]


@pytest.mark.parametrize("mode", ["-W", "-D"])
def test_no_request_fails_while_nodes_join_pause_and_leave(lb: LoadBalancer, mode: str) -> None:
    with (
        Backend("web01", "127.0.0.11", lb.port),
        Backend("web02", "127.0.0.12", lb.port),
        Haproxy(lb, mode) as haproxy,
    ):
        lb.join(WEB01)
        answers: list[str] = []
        ending = threading.Event()

        def client() -> None:
            while not ending.is_set():
                answers.append(haproxy.get())
                time.sleep(0.001)

        clients = [threading.Thread(target=client) for _ in range(3)]
        for one in clients:
            one.start()
        try:
            statuses = [
                ended.returncode
                for turn in range(5)
                for ended in (
                    lb.join(WEB02),
                    lb.send_command("pause", "web02", 2 * turn + 1),
                    lb.send_command("resume", "web02", 2 * turn + 2),
                    lb.leave(WEB02),
                )
            ]
        finally:
            ending.set()
            for one in clients:
                one.join()

        assert statuses == [0] * 20
        assert set(answers) == {"web01", "web02"}
