"""`lbagent render`: configuration management deploys haproxy.cfg with the lines that are live, and no request fails."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lbagent.state.lock import is_locked
from tests.docs.test_docs import HERE, blocks
from tests.helpers.daemon import run_watch
from tests.helpers.http_clients import run_clients
from tests.helpers.real_programs import (
    CONFIG,
    LBAGENT,
    ROLES,
    Backend,
    Haproxy,
    LoadBalancer,
    binaries,
    member_line,
    wait_until,
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not binaries(), reason="a real haproxy is needed"),
]

PAGE = HERE / "docs" / "how-to" / "deploy-haproxy-cfg.md"
WEB = [member_line(f"web{number:02}", f"127.0.0.{number + 10}") for number in range(1, 6)]


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer with two nodes, one of them paused."""
    with LoadBalancer() as one:
        one.join(*WEB[:2])
        one.send_command("pause", "web02 reason=patches", 1)
        yield one


def run_render(lb: LoadBalancer, *words: str, stdin: bytes = b"", notes: bytes = b"") -> bytes:
    """Return the output of `render`; fails if anything on disk changes."""
    before = {path: path.read_bytes() for path in lb.folder.rglob("*") if path.is_file()}
    done = lb.run("render", *words, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, notes)
    assert {path: path.read_bytes() for path in lb.folder.rglob("*") if path.is_file()} == before
    return done.stdout


def make_template(lb: LoadBalancer, change: str = "") -> bytes:
    """Return haproxy.cfg as configuration management has it, without managed lines."""
    return lb.fill_template(CONFIG.replace("    balance roundrobin\n", f"    balance roundrobin\n{change}")).encode()


def test_a_template_gets_the_live_managed_lines(lb: LoadBalancer) -> None:
    path = lb.folder / "haproxy.cfg.new"
    path.write_bytes(make_template(lb, "    # deployed\n"))

    for done in (run_render(lb, str(path)), run_render(lb, "-", stdin=path.read_bytes())):
        assert done == lb.text.replace(b"    balance roundrobin\n", b"    balance roundrobin\n    # deployed\n")


def test_without_a_file_the_live_haproxy_cfg_is_rendered(lb: LoadBalancer) -> None:
    assert run_render(lb) == lb.text


def test_render_prints_the_result_of_apply(lb: LoadBalancer) -> None:
    text = run_render(lb, "-", stdin=make_template(lb, "    # deployed\n"))
    lb.text = text

    assert lb.run("plan").stdout == b"No changes: 2 nodes, 2 lines.\n"
    assert run_render(lb, "-", stdin=text) == text


def test_old_managed_lines_of_a_template_are_replaced(lb: LoadBalancer) -> None:
    stale = f"    {lb.server('web09', '127.0.0.99')}\n    {lb.server('web01', '127.0.0.77')}\n"
    given = make_template(lb).replace(b"    # additional", stale.encode() + b"    # additional")

    assert run_render(lb, "-", stdin=given) == lb.text


def test_every_other_byte_of_the_template_is_kept() -> None:
    with LoadBalancer() as lb:
        lb.join(WEB[0])
        odd = "# 設定 \udc83\t \r\n".encode("utf-8", "surrogateescape")
        given = odd + make_template(lb).replace(b"\n", b"\r\n") + b"# end without a newline"

        done = run_render(lb, "-", stdin=given)

    line = lb.server("web01", "127.0.0.11").encode()
    assert done == given.replace(b"    # additional", b"    " + line + b"\r\n    # additional") + b"\r\n"


def test_pending_events_are_included(lb: LoadBalancer) -> None:
    daemon = lb.start("watch")
    try:
        wait_until(lambda: is_locked(str(lb.state / "watch.lock")) and lb.idle)
        os.kill(daemon.pid, signal.SIGSTOP)
        lb.join(WEB[2])
        assert lb.list_spool()

        assert lb.server("web03", "127.0.0.13").encode() in run_render(lb, "-", stdin=make_template(lb))
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
        daemon.terminate()
        daemon.communicate()


def test_blocked_and_quarantined_lines_are_kept() -> None:
    roles = ROLES.replace("interval: 200ms", "options: 'check weight {{tag:weight|1}}'")
    with LoadBalancer(roles=roles) as lb:
        lb.join(*WEB[:4])
        lb.handle("member-update", member_line("web02", "127.0.0.12", weight="999"))
        quarantined = run_render(lb, "-", stdin=make_template(lb))
        lb.roles.write_text(lb.roles.read_text().replace("127.0.0.0/8", "127.0.0.11/32"))
        blocked = lb.run("render", "-", stdin=make_template(lb))

        assert quarantined == lb.text
        assert b"weight 1 " in quarantined
        assert (blocked.returncode, blocked.stdout) == (0, lb.text)


def test_before_the_first_deployment_a_file_is_rendered_too() -> None:
    with LoadBalancer() as lb:
        given = make_template(lb)
        lb.cfg.unlink()

        assert run_render(lb, "-", stdin=given) == given
        missing = lb.run("render")
        assert (missing.returncode, missing.stdout) == (1, b"")
        assert b"No such file or directory" in missing.stderr


def test_of_several_files_the_one_of_that_name_is_rendered() -> None:
    roles = ROLES.replace("config: {cfg}", "config: [{folder}/etc/global.cfg, {cfg}]")
    with LoadBalancer(roles=roles) as lb:
        lb.etc.joinpath("global.cfg").write_text("# nothing\n")
        lb.join(*WEB[:2])
        path = lb.folder / "haproxy.cfg.j2"
        path.write_bytes(make_template(lb))

        assert run_render(lb, str(path)) == lb.text
        done = lb.run("render")
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"haproxy.cfg has 2 files" in done.stderr


@pytest.mark.parametrize("broken", ["roles", "template"])
def test_an_error_prints_no_text(lb: LoadBalancer, broken: str) -> None:
    given = make_template(lb)
    if broken == "roles":
        lb.roles.write_text("roles: [")
    else:
        given = given.replace(b"    # additional", b"    # additional-lb-iis-server\n    # additional")

    done = lb.run("render", "-", stdin=given)

    assert (done.returncode, done.stdout) == ({"roles": 2, "template": 4}[broken], b"")


# --- ten deployments under load -------------------------------------------------------------------------------------


def deploy(lb: LoadBalancer, haproxy: Haproxy, number: int) -> None:
    """One run of configuration management under the lock of lbagent: render, validate, replace, reload."""
    given = lb.folder / "template"
    given.write_bytes(make_template(lb, f"    # deployment {number}\n"))
    fresh = lb.etc / ".haproxy.cfg.fresh"
    with (lb.state / "lock").open("rb") as lock, fresh.open("wb") as file:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([LBAGENT, "render", given], env=lb.env, stdout=file, check=True)
        subprocess.run([lb.bin / "haproxy", "-c", "-f", fresh], env=lb.env, capture_output=True, check=True)
        worker = haproxy.worker()
        fresh.rename(lb.cfg)
        os.kill(haproxy.pid, signal.SIGUSR2)

    def reloaded() -> bool:
        with contextlib.suppress(OSError, KeyError):
            return haproxy.worker() != worker
        return False

    wait_until(reloaded)


@pytest.mark.parametrize("daemon", [False, True], ids=["alone", "watch"])
@pytest.mark.parametrize("binary", list(binaries().values()), ids=list(binaries()))
def test_ten_deployments_under_load_lose_no_request(binary: Path, *, daemon: bool) -> None:
    with (
        LoadBalancer(CONFIG.replace("    option httpclose\n", ""), ROLES, binary) as lb,
        contextlib.ExitStack() as stack,
    ):
        for number in (1, 2):
            stack.enter_context(Backend(f"web{number:02}", f"127.0.0.{number + 10}", lb.port))
        haproxy = stack.enter_context(Haproxy(lb))
        if daemon:
            stack.enter_context(run_watch(lb))
        lb.join(*WEB[:2])
        wait_until(lambda: haproxy.find_answering() == {"web01", "web02"})
        with run_clients(lb.front) as count:
            for number in range(10):
                deploy(lb, haproxy, number)
            wait_until(lambda: lb.idle)
            reloads, history = haproxy.reloads(), lb.history()

        assert b"    # deployment 9\n" in lb.text
    assert {how for how in count if how != "ok"} == set(), count
    assert count["ok"] > 100
    # Each deployment reloads HAProxy, and lbagent adds no reload of its own.
    assert reloads == (10, 0), history


# --- the docs -------------------------------------------------------------------------------------------------------


def test_the_script_of_the_docs_deploys_and_a_second_run_changes_nothing(lb: LoadBalancer) -> None:
    [script] = blocks(PAGE, "sh")
    for given, here in (("/etc/haproxy", lb.etc), ("/var/lib/lbagent", lb.state), ("systemctl reload haproxy", "true")):
        script = script.replace(given, str(here))
    path = lb.folder / "deploy"
    path.write_text(script)
    path.chmod(0o755)
    (lb.folder / "template").write_bytes(make_template(lb, "    # deployed\n"))
    managed = lb.managed
    env = {**lb.env, "PATH": f"{LBAGENT.parent}:{lb.env['PATH']}"}

    message = [
        subprocess.run([path, lb.folder / "template"], env=env, capture_output=True, check=True).stdout
        for _ in range(2)
    ]

    assert message == [b"changed\n", b""]
    assert (lb.managed, b"    # deployed\n" in lb.text) == (managed, True)
    assert sorted(one.name for one in lb.etc.iterdir()) == [".haproxy.cfg.lbagent-previous", "haproxy.cfg", "roles.yml"]


def test_the_ansible_task_and_the_puppet_snippet_call_the_script() -> None:
    [ansible], [puppet] = blocks(PAGE, "yml"), blocks(PAGE, "puppet")
    tasks = yaml.safe_load(ansible)

    assert [task["name"] for task in tasks] == [
        "the template of haproxy.cfg",
        "haproxy.cfg with the servers that are there now",
    ]
    assert tasks[1]["ansible.builtin.command"] in puppet
