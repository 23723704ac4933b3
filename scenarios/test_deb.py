"""The package on a separate Debian with systemd is installed, used, upgraded and purged; then `make install` is tested.

The tests depend on each other, in this order. The measured figures are printed at the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios.machine import Machine
from tests.helpers.real_programs import wait_until

HERE = Path(__file__).resolve().parent.parent
LINE = "server web01 127.0.0.11:8000 check inter 1s rise 2 fall 2 # lbagent role=web"
PAUSED = "# lbagent paused web01 127.0.0.11 role=web"

HAPROXY = """\
global
    stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners
    chroot /var/lib/haproxy
    user haproxy
    group haproxy
    hard-stop-after 30s
    maxconn 1000
    ulimit-n 4096
    cpu-map auto:1/1 0
    ssl-default-bind-options ssl-min-ver TLSv1.2

defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    option idle-close-on-response
    option redispatch

listen lb-iis
    bind 127.0.0.1:8080
    bind 127.0.0.1:8443 ssl crt /etc/haproxy/site.pem
    http-request deny if { path_reg -i ^/(secret|hidden)[0-9]+$ }
    balance roundrobin
    # additional-lb-iis-server
"""

ROLES = """\
services: {iis: {port: 8000}}
roles: {web: {lb: [iis], interval: 1s, networks: [127.0.0.0/8]}}
"""

CLIENT = """
import sys, time, urllib.request
from pathlib import Path
good, bad = 0, []
while not Path("/run/stop-client").exists():
    try:
        with urllib.request.urlopen("http://127.0.0.1:8080/", timeout=5) as answer:
            answer.read()
        good += 1
    except OSError as error:
        bad.append(str(error))
    time.sleep(0.005)
print(good, bad)
"""

FOR_WEB = [f"python3-{library}" for library in ("starlette", "uvicorn", "jinja2", "bcrypt")]

BROWSER = """
import re, sys, time, urllib.parse, urllib.request
page = "http://127.0.0.1:8053"
browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
def send(path, **fields):
    request = urllib.request.Request(page + path, urllib.parse.urlencode(fields).encode(), {"Origin": page})
    with browser.open(request, timeout=20) as answer:
        return answer.url, answer.read().decode()
_, text = send("/login", user="alice", password="secret", node="web01")
token = re.search(r'name="token" value="([0-9a-f]+)"', text)[1]
url, text = send(f"/nodes/web01/{sys.argv[1]}", token=token, force="1", reason="patch day")
while "under way" in text:
    time.sleep(0.1)
    text = browser.open(url, timeout=20).read().decode()
print(re.sub(r"<[^>]*>", " ", text))
"""
"""A program that logs in and sends a command, as a browser does."""

FIGURES: dict[str, str] = {}
"""Measured figures, by their description."""


@pytest.fixture(scope="module", params=os.environ.get("RELEASES", "bookworm").split())
def debian(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Boot a machine of each release, with the dependencies of the package downloaded."""
    if os.geteuid() != 0:
        pytest.skip("a separate machine needs root")
    machine = Machine(request.param)
    FIGURES.clear()
    try:
        started = time.monotonic()
        machine.make()
        shutil.copy(build_package(), machine.root / "lbagent.deb")
        machine.run_online(
            "apt-get", "-qqy", "install", "--download-only", "--no-install-recommends", "/lbagent.deb", "openssl"
        )
        machine.run_online("apt-get", "-qqy", "install", "--download-only", "--no-install-recommends", *FOR_WEB)
        FIGURES[f"Debian {request.param} and the downloads"] = f"{time.monotonic() - started:.0f} s"
        with machine:
            yield machine
    finally:
        machine.discard()
        print("\n" + "\n".join(f"{what:.<60} {figure}" for what, figure in FIGURES.items()))


def build_package(version: str | None = None) -> Path:
    """Build the package, and return its path."""
    words = [str(HERE / "packaging" / "deb"), *([version] if version else [])]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True)
    return HERE / str(re.findall(r"'(build/[^']*\.deb)'", done.stdout)[0])


def list_files(machine: Machine) -> set[str]:
    """Return every file that packages and scripts may create, relative to the root folder."""
    found = {
        str(path.relative_to(machine.root)) for top in ("etc", "usr", "var") for path in machine.path(top).rglob("*")
    }
    noise = ("var/cache", "var/log", "var/lib/apt", "var/lib/dpkg", "var/lib/systemd", "var/tmp", "etc/systemd/system/")
    return {name for name in found if not name.startswith(noise) and "__pycache__" not in name}


def read_managed_lines(machine: Machine) -> list[str]:
    lines = machine.path("/etc/haproxy/haproxy.cfg").read_text().splitlines()
    return [line.strip() for line in lines if "# lbagent " in line]


def list_haproxy(machine: Machine) -> list[str]:
    """Return the pids of master and workers."""
    return machine.run_successfully("pgrep", "-x", "haproxy").split()


def lbagent(machine: Machine, *words: str) -> str:
    return machine.run_successfully("lbagent", *words)


def request_site(machine: Machine) -> int:
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/', timeout=5).status)"
    done = machine.run("python3", "-c", code)
    return int(done.stdout) if done.returncode == 0 else 0


def read_property(machine: Machine, unit: str, name: str) -> str:
    return machine.run_successfully("systemctl", "show", "--value", "-p", name, unit).strip()


def send_query(machine: Machine, verb: str) -> str:
    """Send a query for web01, as a node does, and return the answer of this load balancer."""
    environ = dict(line.split("=", 1) for line in machine.path("/etc/lbagent/serf.env").read_text().split())
    words = [f"{key}={value}" for key, value in environ.items()]
    output = machine.run_successfully("env", *words, "serf", "query", "-no-ack", "-format=json", verb, "web01")
    return str(json.loads(output)["Responses"]["lb01"]).strip()


@pytest.fixture(scope="module")
def web01(debian: Machine) -> Iterator[None]:
    """A node with a web server, in the cluster."""
    settings = json.loads(debian.path("/etc/serf/lbagent.json").read_text())
    node: dict[str, object] = {
        "node_name": "web01",
        "tags": {"role": "web"},
        "bind": "127.0.0.11",
        "rpc_addr": "127.0.0.11:7373",
    }
    node |= {"encrypt_key": settings["encrypt_key"], "retry_join": ["127.0.0.9"], "leave_on_terminate": True}
    debian.path("/opt/web01.json").write_text(json.dumps(node))
    debian.path("/etc/systemd/system/web01.service").write_text(
        "[Service]\nExecStart=/usr/bin/serf agent -config-file=/opt/web01.json\nKillSignal=SIGINT\n"
    )
    debian.path("/etc/systemd/system/site.service").write_text(
        "[Service]\nWorkingDirectory=/srv\nExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.11 8000\n"
    )
    debian.run_successfully("systemctl", "daemon-reload")
    debian.run_successfully("systemctl", "start", "site", "web01")
    yield
    debian.run("systemctl", "stop", "web01", "site")


def test_installing_it_starts_nothing(debian: Machine) -> None:
    debian.run_successfully("systemctl", "mask", "serf.service")
    started = time.monotonic()

    debian.run_successfully("apt-get", "-qqy", "install", "--no-install-recommends", "/lbagent.deb", "openssl")

    FIGURES["apt-get install, with haproxy, serf and Python's modules"] = f"{time.monotonic() - started:.0f} s"
    states = {name: debian.run("systemctl", "is-active", name).stdout.strip() for name in ("lbagent", "serf")}
    assert states == {"lbagent": "inactive", "serf": "inactive"}
    assert debian.run("systemctl", "is-enabled", "lbagent").stdout.strip() == "disabled"
    assert debian.run_successfully("stat", "-c", "%a %U %G %n", "/var/lib/lbagent", "/var/lib/lbagent/spool").split(
        "\n"
    )[:2] == [
        "2750 root lbagent /var/lib/lbagent",
        "3770 root lbagent /var/lib/lbagent/spool",
    ]
    for page in ("man1/lbagent.1.gz", "man5/roles.yml.5.gz", "man8/lbagent-serf-setup.8.gz"):
        assert debian.path(f"/usr/share/man/{page}").exists()
    assert lbagent(debian, "--version").startswith("lbagent 0.1.0")
    versions = debian.run_successfully("dpkg-query", "-W", "-f", "${Package} ${Version}, ", *NEEDED)
    FIGURES["with"] = versions.rstrip(", ")


PYTHON = ("yaml", "watchdog", "tenacity", "rich", "psutil")
NEEDED = ("haproxy", "serf", "systemd", *(f"python3-{library}" for library in PYTHON))


def test_one_command_sets_up_a_load_balancer(debian: Machine) -> None:
    debian.path("/etc/haproxy/haproxy.cfg").write_text(HAPROXY)
    debian.path("/etc/lbagent/roles.yml").write_text(ROLES)
    pem = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-subj", "/CN=lb"]
    debian.run_successfully(*pem, "-keyout", "/etc/haproxy/site.pem", "-out", "/etc/haproxy/crt")
    debian.run_successfully("sh", "-c", "cat /etc/haproxy/crt >> /etc/haproxy/site.pem; rm /etc/haproxy/crt")
    debian.run_successfully("chown", "haproxy:", "/etc/haproxy/site.pem")
    debian.run_successfully("chmod", "400", "/etc/haproxy/site.pem")

    debian.run_successfully("lbagent-serf-setup", "127.0.0.9", "127.0.0.10")
    again = debian.run_successfully("lbagent-serf-setup", "127.0.0.9", "127.0.0.10")

    assert [line.split()[0] for line in again.splitlines()[:2]] == ["kept", "kept"]
    modes = debian.run_successfully("stat", "-c", "%a %U", "/etc/serf/lbagent.json", "/etc/lbagent/serf.env").split(
        "\n"
    )
    assert modes[:2] == ["600 _serf", "600 root"]
    debian.run_successfully("systemctl", "unmask", "serf.service")
    debian.run_successfully("systemctl", "restart", "haproxy")
    debian.run_successfully("systemctl", "enable", "--now", "lbagent", "serf")
    assert read_property(debian, "lbagent", "ActiveState") == "active"
    agent = read_property(debian, "serf", "MainPID")
    assert debian.run_successfully("ps", "-o", "user=", "-p", agent).strip() == "_serf"
    token = json.loads(debian.path("/etc/serf/lbagent.json").read_text())["rpc_auth"]
    assert token not in debian.run_successfully("ps", "axww")
    for unit in ("lbagent", "serf"):
        output = debian.run_successfully("systemd-analyze", "security", "--no-pager", f"{unit}.service").splitlines()[
            -1
        ]
        FIGURES[f"exposure of {unit}.service"] = output.split(": ")[1].split()[0]


@pytest.mark.usefixtures("web01")
def test_a_node_that_boots_gets_a_server_line(debian: Machine) -> None:
    started = time.monotonic()
    wait_until(lambda: read_managed_lines(debian) == [LINE], 60)
    FIGURES["from the node's start to its line"] = f"{time.monotonic() - started:.1f} s"
    wait_until(lambda: request_site(debian) == 200, 60)
    assert read_property(debian, "lbagent", "StatusText").startswith(("applied: ", "unchanged: "))


@pytest.mark.usefixtures("web01")
def test_an_unprivileged_agent_gets_the_outcome_of_a_query(debian: Machine) -> None:
    assert send_query(debian, "pause").startswith("done")
    assert read_managed_lines(debian) == [PAUSED]
    assert send_query(debian, "resume") == "done"
    assert read_managed_lines(debian) == [LINE]


@pytest.mark.usefixtures("web01")
def test_root_needs_no_token_on_its_command_line(debian: Machine) -> None:
    assert lbagent(debian, "pause", "web01", "--force").splitlines()[0].split(maxsplit=1)[1].startswith("done")
    assert lbagent(debian, "resume", "web01").splitlines()[0].split(maxsplit=1)[1] == "done"
    assert lbagent(debian, "sync") == "No changes: 1 node, 1 line.\n"


@pytest.mark.usefixtures("web01")
def test_the_sandboxed_daemon_reloads_haproxy_through_systemd(debian: Machine) -> None:
    roles = debian.path("/etc/lbagent/roles.yml")
    before = list_haproxy(debian)
    roles.write_text(f"haproxy: {{runtime: off}}\n{ROLES}")
    try:
        assert send_query(debian, "pause").startswith(("done", "queued"))
        wait_until(lambda: set(list_haproxy(debian)) - set(before) and read_managed_lines(debian) == [PAUSED])
        assert send_query(debian, "resume") in ("done", "queued")
        wait_until(lambda: read_managed_lines(debian) == [LINE])
    finally:
        roles.write_text(ROLES)
    assert before[0] in list_haproxy(debian)
    wait_until(lambda: request_site(debian) == 200)
    assert debian.path("/etc/haproxy/site.pem").stat().st_mode & 0o777 == 0o400


@pytest.mark.usefixtures("web01")
def test_restarting_serf_or_lbagent_never_touches_haproxy(debian: Machine) -> None:
    wait_until(lambda: len(list_haproxy(debian)) == 2, 60)  # the old worker has ended
    before, text = list_haproxy(debian), debian.path("/etc/haproxy/haproxy.cfg").read_bytes()
    debian.path("/run/stop-client").unlink(missing_ok=True)
    debian.run_successfully("sh", "-c", "rm -f /run/stop-client")
    debian.path("/opt/client.py").write_text(CLIENT)
    debian.path("/etc/systemd/system/client.service").write_text(
        "[Service]\nType=exec\nExecStart=/usr/bin/python3 /opt/client.py\nStandardOutput=file:/opt/client.out\n"
    )
    debian.run_successfully("systemctl", "daemon-reload")
    debian.run_successfully("systemctl", "start", "client")

    steps = [
        ("restart", "serf"),
        ("restart", "lbagent"),
        # Only the main process, as in a crash: a handler may end before systemd can send it the signal.
        ("kill", "--kill-who=main", "-s", "KILL", "serf"),
        ("kill", "--kill-who=main", "-s", "KILL", "lbagent"),
    ]
    for step in (*steps, ("stop", "lbagent"), ("start", "lbagent"), ("reload", "lbagent")):
        debian.run_successfully("systemctl", *step)
        wait_until(lambda: is_running(debian), 60) if step[0] != "stop" else None
        assert list_haproxy(debian) == before, step
    hang_daemon(debian)
    assert list_haproxy(debian) == before
    wait_until(lambda: is_running(debian), 60)

    debian.run_successfully("touch", "/run/stop-client")
    wait_until(lambda: read_property(debian, "client", "ActiveState") == "inactive", 30)
    good, bad = debian.path("/opt/client.out").read_text().split(maxsplit=1)
    FIGURES["requests during restarts, kills and a hang; lost"] = f"{good}; {bad.count(',') + 1 if len(bad) > 3 else 0}"
    assert bad.strip() == "[]"
    assert send_query(debian, "pause").startswith("done")  # and reports that no other server serves
    assert send_query(debian, "resume") == "done"
    assert debian.path("/etc/haproxy/haproxy.cfg").read_bytes() == text


def is_running(machine: Machine) -> bool:
    return all(read_property(machine, unit, "ActiveState") == "active" for unit in ("serf", "lbagent"))


def hang_daemon(machine: Machine) -> None:
    """Stop the daemon by SIGSTOP. systemd's watchdog, here with a short limit, restarts it."""
    drop_in = machine.path("/etc/systemd/system/lbagent.service.d/soon.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=3s\n")
    machine.run_successfully("systemctl", "daemon-reload")
    machine.run_successfully("systemctl", "restart", "lbagent")
    before = read_property(machine, "lbagent", "MainPID")
    started = time.monotonic()
    machine.run_successfully("kill", "-STOP", before)
    wait_until(lambda: read_property(machine, "lbagent", "MainPID") not in (before, "0") and is_running(machine), 60)
    FIGURES["a hung watch with WatchdogSec=3s, restarted after"] = f"{time.monotonic() - started:.1f} s"
    shutil.rmtree(drop_in.parent)
    machine.run_successfully("systemctl", "daemon-reload")
    machine.run_successfully("systemctl", "restart", "lbagent")


@pytest.mark.usefixtures("web01")
def test_the_web_page_is_disabled_by_default_and_runs_unprivileged(debian: Machine) -> None:
    assert debian.run("systemctl", "is-enabled", "lbagent-web").stdout.strip() == "disabled"
    missing = debian.run("lbagent", "web")
    assert (missing.returncode, missing.stderr) == (
        1,
        (
            "lbagent: web: missing Python packages: starlette, uvicorn, jinja2, bcrypt; "
            f"run `apt-get install {' '.join(FOR_WEB)}`\n"
        ),
    )
    debian.run_successfully("apt-get", "-qqy", "install", "--no-install-recommends", *FOR_WEB)

    debian.run_successfully("systemctl", "enable", "--now", "lbagent-web")

    wait_until(lambda: fetch_page(debian, "/healthz") == "200 ok", 60)
    pid = read_property(debian, "lbagent-web", "MainPID")
    assert debian.run_successfully("ps", "-o", "user:20=", "-p", pid).strip() == "lbagent-web"
    assert (
        debian.run_successfully("stat", "-c", "%a %U %G", "/run/lbagent/status.sock").strip() == "660 root lbagent-web"
    )
    as_web = ["setpriv", "--reuid=lbagent-web", "--regid=lbagent-web", "--clear-groups", "--"]
    for path in ("/var/lib/lbagent/members.json", "/etc/lbagent/serf.env", "/run/haproxy/admin.sock"):
        assert debian.run(*as_web, "head", "-c1", path).returncode == 1, path
    output = debian.run_successfully("systemd-analyze", "security", "--no-pager", "lbagent-web.service").splitlines()[
        -1
    ]
    FIGURES["exposure of lbagent-web.service"] = exposure = output.split(": ")[1].split()[0]
    assert float(exposure) <= 2.0
    debian.run_successfully("systemctl", "stop", "lbagent")
    wait_until(lambda: fetch_page(debian, "/healthz").startswith("503 daemon: does not run"), 30)
    debian.run_successfully("systemctl", "start", "lbagent")
    wait_until(lambda: fetch_page(debian, "/healthz") == "200 ok", 60)


@pytest.mark.usefixtures("web01")
def test_a_user_pauses_a_node_on_the_web_page(debian: Machine) -> None:
    assert fetch_page(debian, "/login").startswith("404 ")
    hashed = debian.run_successfully(
        "python3", "-c", "import bcrypt; print(bcrypt.hashpw(b'secret', bcrypt.gensalt(5)).decode())"
    )
    debian.run_successfully("install", "-m", "640", "-g", "lbagent-web", "/dev/null", "/etc/lbagent/web.users")
    debian.path("/etc/lbagent/web.users").write_text(f"alice:{hashed}")
    debian.run_successfully("mkdir", "-p", "/etc/systemd/system/lbagent-web.service.d")
    drop_in = "/usr/share/lbagent/lbagent-web.service.d/users.conf"
    debian.run_successfully("ln", "-s", drop_in, "/etc/systemd/system/lbagent-web.service.d/")
    debian.run_successfully("systemctl", "daemon-reload")
    debian.run_successfully("systemctl", "restart", "lbagent-web")
    wait_until(lambda: fetch_page(debian, "/healthz") == "200 ok", 60)
    debian.path("/opt/browser.py").write_text(BROWSER)

    paused = " ".join(debian.run_successfully("python3", "/opt/browser.py", "pause").split())

    assert "lb01 done" in paused
    assert read_managed_lines(debian) == [PAUSED]
    assert "by alice on lb01, by query: patch day" in lbagent(debian, "status")
    assert "confirmed by every load balancer" in " ".join(
        debian.run_successfully("python3", "/opt/browser.py", "resume").split()
    )
    assert read_managed_lines(debian) == [LINE]
    log = debian.run_successfully("journalctl", "--no-pager", "-u", "lbagent-web", "-o", "cat")
    assert "web: alice logged in from 127.0.0.1" in log
    assert "web: pause web01 by alice: lb01: done" in log


def fetch_page(machine: Machine, path: str) -> str:
    """Return status and text of a page, or the error."""
    code = f"""
import urllib.error, urllib.request
try:
    with urllib.request.urlopen("http://127.0.0.1:8053{path}", timeout=20) as answer:
        print(answer.status, answer.read().decode().strip())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode().strip())
except OSError as error:
    print(error)
"""
    return machine.run("python3", "-c", code).stdout.strip()


@pytest.mark.usefixtures("web01")
def test_check_finds_no_error(debian: Machine) -> None:
    done = debian.run("lbagent", "check")

    found = [line for line in done.stdout.splitlines()[:-1] if not line.startswith("ok ")]
    FIGURES["lbagent check, warnings and errors"] = "; ".join(" ".join(line.split()[:2]) for line in found) or "none"
    # The agent's settings name a second load balancer, which does not exist here.
    assert [line.split()[:2] for line in found if line.startswith("error")] == [["error", "peers:"]]
    assert [line for line in found if " permissions: " in line] == []


@pytest.mark.usefixtures("web01")
def test_an_upgrade_keeps_edited_files_and_does_not_touch_haproxy(debian: Machine) -> None:
    before, watching = list_haproxy(debian), read_property(debian, "lbagent", "MainPID")
    shutil.copy(build_package("0.1.0-2"), debian.root / "lbagent.deb")
    started = time.monotonic()

    debian.run_successfully("apt-get", "-qqy", "install", "--no-install-recommends", "/lbagent.deb")

    FIGURES["upgrade"] = f"{time.monotonic() - started:.0f} s"
    assert debian.path("/etc/lbagent/roles.yml").read_text() == ROLES
    assert read_property(debian, "lbagent", "MainPID") not in ("0", watching)
    wait_until(lambda: is_running(debian))
    assert (list_haproxy(debian), read_managed_lines(debian)) == (before, [LINE])
    assert send_query(debian, "pause").startswith("done")
    assert send_query(debian, "resume") == "done"


def test_a_purge_removes_all_files_and_haproxy_keeps_serving(debian: Machine, web01: None) -> None:  # noqa: ARG001
    pids = list_haproxy(debian)

    debian.run_successfully("apt-get", "-qqy", "purge", "lbagent")

    assert (list_haproxy(debian), read_managed_lines(debian), request_site(debian)) == (pids, [LINE], 200)
    left = {name for name in list_files(debian) if "lbagent" in name}
    assert left == {"etc/serf/lbagent.json", "etc/haproxy/.haproxy.cfg.lbagent-previous"}
    assert debian.run("systemctl", "is-active", "lbagent").stdout.strip() == "inactive"
    assert debian.run("systemctl", "cat", "lbagent").returncode != 0
    assert not list(debian.path("/etc/systemd/system").rglob("lbagent*"))


def test_make_install_sets_up_lbagent_from_a_checkout(debian: Machine) -> None:
    source = debian.path("/opt/lbagent")
    for name in ("lbagent", "systemd", "packaging", "docs", "examples", "windows"):
        shutil.copytree(HERE / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("build/man", "build/completion"):
        shutil.copytree(HERE / name, source / name)
    for name in ("README.md", "roles.yml", "CHANGELOG.md", "SECURITY.md"):
        shutil.copy(HERE / name, source)
    before = list_files(debian)

    debian.run_successfully("sh", "-c", "cd /opt/lbagent && packaging/install '' /usr/local")
    debian.path("/etc/lbagent/roles.yml").write_text(ROLES)
    debian.path("/etc/serf/lbagent.json").unlink()
    debian.run_successfully("/usr/local/sbin/lbagent-serf-setup", "127.0.0.9", "127.0.0.10")
    debian.run_successfully("systemctl", "restart", "serf")
    debian.run_successfully("systemctl", "start", "lbagent")

    assert "/usr/local/bin/lbagent handle" in debian.path("/etc/serf/lbagent.json").read_text()
    assert read_property(debian, "lbagent", "ExecStart").split()[1] == "path=/usr/local/bin/lbagent"
    wait_until(lambda: is_running(debian))
    # The purge removed the state; membership is rebuilt from haproxy.cfg.
    wait_until(lambda: send_query(debian, "pause").startswith("done"))
    assert read_managed_lines(debian) == [PAUSED]

    debian.run_successfully("sh", "-c", "cd /opt/lbagent && packaging/uninstall '' /usr/local")
    left = {name for name in list_files(debian) - before if debian.path(name).is_file()}
    assert {name for name in left if name.startswith("usr")} == set()
