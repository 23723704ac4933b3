"""Every file of every example is accepted by its program, and the files of an example are consistent."""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbagent.roles import loader
from lbagent.roles.model import Roles
from tests.helpers.real_programs import LBAGENT, clean_environment, free_port, member_line, wait_until

HERE = Path(__file__).resolve().parent.parent.parent / "examples"
PAGES = sorted(path for path in HERE.iterdir() if path.is_dir())
EXAMPLES = [path for path in PAGES if path.name not in ("monitoring", "web")]
"""The examples with a haproxy.cfg."""

WITHOUT_A_LIVE_SYSTEM = {"process", "state", "serf"}
"""The findings of `check` on a load balancer where nothing runs yet, by kind."""


ACCEPTED = ((0, "Configuration file is valid\n"), (0, ""))
"""Exit status and output of `haproxy -c -dW` for a file without a warning: 3.0 and later print nothing."""


def each_file(*patterns: str) -> pytest.MarkDecorator:
    """Return a mark that parametrizes a test with each matching file of all examples."""
    found = sorted({path for example in EXAMPLES for pattern in patterns for path in example.glob(f"**/{pattern}")})
    return pytest.mark.parametrize("path", found, ids=lambda path: str(path.relative_to(HERE)))


def require_program(program: str) -> None:
    """Skip the test if the program is missing."""
    if shutil.which(program, path=PATH) is None:
        pytest.skip(f"no {program} here")


PATH = f"{LBAGENT.parent}:{os.environ['PATH']}:/usr/sbin:/sbin"


def run_program(*argv: str | Path, folder: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with stderr in stdout."""
    environ = {**clean_environment(), "PATH": PATH, **env}
    return subprocess.run(
        argv,
        env=environ,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


@functools.cache
def find_own_network_prefix() -> tuple[str, ...]:
    """Return the prefix that runs a command as root in an empty network; empty if this is not allowed."""
    for words in (("unshare", "--net"), ("unshare", "--map-root-user", "--net")):
        if run_program(*words, "ip", "link", "set", "lo", "up").returncode == 0:
            return words
    return ()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_a_page_and_the_files_that_it_describes(example: Path) -> None:
    assert [name for name in ("README.md", "haproxy.cfg", "roles.yml") if not (example / name).is_file()] == []


@pytest.mark.parametrize("example", PAGES, ids=lambda path: path.name)
def test_the_page_of_an_example_names_every_file_or_its_folder_and_has_no_dead_link(example: Path) -> None:
    page = (example / "README.md").read_text(encoding="utf-8")
    files = [path for path in example.rglob("*") if path.is_file() and path.name != "README.md"]
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page)

    assert [path for path in files if path.name not in page and f"{path.parent.name}/" not in page] == []
    assert [link for link in links if not (example / link).exists()] == []


@pytest.mark.every_haproxy
@each_file("haproxy*.cfg")
def test_haproxy_accepts_it_without_a_warning(path: Path, every_haproxy: Path) -> None:
    done = run_program(every_haproxy, "-c", "-dW", "-dD", "-f", path)

    assert (done.returncode, done.stdout) in ACCEPTED


@each_file("haproxy*.cfg")
def test_an_upgrade_cannot_bypass_a_rule_about_paths(path: Path) -> None:
    sections = re.split(r"(?m)^(?=\S)", path.read_text(encoding="utf-8"))
    guarded = [one for one in sections if re.search(r"http-request deny .*\{ path ", one)]

    assert [one.split("\n")[0] for one in guarded if "\n    http-request del-header upgrade\n" not in one] == []


def run_keepalived(path: Path) -> tuple[int, str]:
    """Return exit status and output of keepalived for this file."""
    for program in ("keepalived", "ip", "curl"):  # a missing script is refused
        require_program(program)
    if not (network := find_own_network_prefix()):
        pytest.skip("no network of its own for it here")
    cards = sorted(set(re.findall(r"\b(?:interface|dev) (\S+)", path.read_text())))
    plugged = " && ".join(f"ip link add {card} type veth peer name peer{at}" for at, card in enumerate(cards))
    script = f'{plugged} && exec keepalived --config-test --use-file "$1"'

    done = run_program(*network, "sh", "-c", script, "sh", path)
    return done.returncode, done.stdout


@each_file("keepalived*.conf", "keepalived*/*.conf")
def test_keepalived_accepts_it_without_a_warning(path: Path) -> None:
    assert run_keepalived(path) == (0, "")


def test_keepalived_accepts_preemption_as_the_page_has_it(tmp_path: Path) -> None:
    page = (HERE.parent / "docs/explanation/the-pair.md").read_text(encoding="utf-8")
    [delay] = re.findall(r"write `(preempt_delay \d+)` in place of `nopreempt`", page)
    text = (HERE / "windows-iis/keepalived/lb01.conf").read_text()
    (tmp_path / "keepalived.conf").write_text(text.replace("    nopreempt\n", f"    {delay}\n"))

    assert delay in (tmp_path / "keepalived.conf").read_text()
    assert run_keepalived(tmp_path / "keepalived.conf") == (0, "")


@each_file("*rsyslog*/*.conf", "rsyslog*.conf")
def test_rsyslog_accepts_it(path: Path) -> None:
    require_program("rsyslogd")

    done = run_program("rsyslogd", "-N1", "-f", path)

    assert (done.returncode, [line for line in done.stdout.splitlines() if not line.startswith("rsyslogd: ")]) == (
        0,
        [],
    )
    assert len(done.stdout.splitlines()) == 2, done.stdout


@each_file("logrotate*/*", "logrotate*.conf")
def test_logrotate_accepts_it_beside_haproxys_own(path: Path, tmp_path: Path) -> None:
    require_program("logrotate")
    own = tmp_path / path.name
    shutil.copyfile(path, own)
    own.chmod(0o644)  # independent of the umask of the checkout
    # Debian's haproxy installs one: the same log in both would be an error.
    others = [one for one in Path("/etc/logrotate.d").glob("haproxy*") if one.name != path.name]

    done = run_program("logrotate", "--debug", "--state", tmp_path / "state", own, *others)

    assert done.returncode == 0, done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("error: ")] == []


@each_file("*.json")
def test_json_files_are_valid(path: Path) -> None:
    assert isinstance(json.loads(path.read_text()), dict | list)


def list_agent_settings() -> Iterator[Path]:
    """Return the settings files of Serf agents."""
    for example in EXAMPLES:
        for path in sorted(example.glob("**/*.json")):
            found = json.loads(path.read_text())
            if isinstance(found, dict) and {"node_name", "retry_join", "event_handlers", "tags_file"} & set(found):
                yield path


@pytest.mark.parametrize("path", list(list_agent_settings()), ids=lambda path: str(path.relative_to(HERE)))
def test_a_serf_agent_starts_with_it(path: Path, tmp_path: Path) -> None:
    require_program("serf")
    settings = json.loads(path.read_text())
    # The paths and addresses of the example do not exist here.
    for key in ("snapshot_path", "tags_file", "keyring_file"):
        settings |= {key: str(tmp_path / key)} if key in settings else {}
    settings |= {"retry_join": [], "start_join": [], "encrypt_key": run_program("serf", "keygen").stdout.strip()}
    settings |= {"bind": f"127.0.0.1:{free_port()}", "rpc_addr": f"127.0.0.1:{free_port()}"}
    settings.pop("advertise", None)
    (tmp_path / "agent.json").write_text(json.dumps(settings))
    env = {"LBAGENT_STATE_DIR": str(tmp_path / "state"), "LBAGENT_ROLES": str(tmp_path / "roles.yml"), "PATH": PATH}

    with (tmp_path / "log").open("wb") as log:
        command = ["serf", "agent", f"-config-file={tmp_path}/agent.json"]
        agent = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**clean_environment(), **env}
        )
    try:
        wait_until(lambda: agent.poll() is not None or "Serf agent running!" in (tmp_path / "log").read_text())
        assert agent.poll() is None, (tmp_path / "log").read_text()
    finally:
        agent.terminate()
        agent.wait(20)


@pytest.mark.parametrize("path", list(list_agent_settings()), ids=lambda path: str(path.relative_to(HERE)))
def test_the_page_creates_the_folder_that_an_agent_requires(path: Path) -> None:
    settings = json.loads(path.read_text())
    page = (HERE / path.relative_to(HERE).parts[0] / "README.md").read_text(encoding="utf-8")
    made = {word for words in re.findall(r"mkdir -p ([^`\n]*)", page) for word in words.split()}

    kept = settings.get("snapshot_path", "")
    assert not kept.startswith("/") or str(Path(kept).parent) in made


@each_file("haproxy*.cfg")
def test_a_syslog_server_receives_its_log(path: Path) -> None:
    sent = re.findall(r"(?m)^    log (\S+)", path.read_text())

    brought = [*path.parent.glob("rsyslog.d/*.conf")]
    assert [where for where in sent if where not in ("/dev/log", "stdout", "global") and not brought] == []


def copy_example(example: Path, folder: Path) -> Roles:
    """Copy the example to `folder` with the path of its haproxy.cfg in roles.yml; returns its roles."""
    shutil.copytree(example, folder, dirs_exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # independent of the umask of the checkout
    text = (example / "roles.yml").read_text()
    moved, found = re.subn(r"(?<=config: )[^\s,}]+", f"{folder}/haproxy.cfg", text)
    if not found:
        moved = f"haproxy: {{config: {folder}/haproxy.cfg}}\n{text}"
    (folder / "roles.yml").write_text(moved)
    return loader.parse_roles(moved.encode(), "roles.yml")


def run_lbagent(folder: Path, *words: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run lbagent on the load balancer in `folder`, where nothing else runs."""
    environ = {
        **clean_environment(),
        "PATH": PATH,
        "LBAGENT_ROLES": f"{folder}/roles.yml",
        "LBAGENT_STATE_DIR": f"{folder}/state",
        "SERF_RPC_ADDR": "127.0.0.1:1",
        **env,
    }
    command = [sys.executable, "-m", "lbagent", *words]
    return subprocess.run(command, input=stdin, env=environ, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_check_finds_only_that_nothing_runs_here(example: Path, tmp_path: Path) -> None:
    require_program("haproxy")
    copy_example(example, tmp_path)

    *findings, summary = run_lbagent(tmp_path, "check").stdout.decode().splitlines()

    assert summary.startswith("2 errors, 1 warning, ")
    found = {
        words.split(":")[0]: words for severity, words in (line.split(None, 1) for line in findings) if severity != "ok"
    }
    assert {kind: words for kind, words in found.items() if kind not in WITHOUT_A_LIVE_SYSTEM} == {}
    assert set(found) == WITHOUT_A_LIVE_SYSTEM
    assert [line for line in findings if line.startswith("ok       markers: ") and "every section and service" in line]


def make_node(roles: Roles, role: str, tags: dict[str, str]) -> bytes:
    """Return the line of a node of this role, with an allowed address."""
    network = ipaddress.ip_network((roles.roles[role].networks or ("10.0.0.0/8",))[0])
    return member_line(f"{role}-01", str(network[list(roles.roles).index(role) + 1]), role, **tags)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_a_node_of_each_role_fills_every_marker(example: Path, tmp_path: Path) -> None:
    require_program("haproxy")
    roles = copy_example(example, tmp_path)
    tags = dict.fromkeys(re.findall(r"\{tag:(\w+)\}", (example / "roles.yml").read_text()), "8081")
    joining = b"".join(make_node(roles, role, tags) for role in roles.roles)

    done = run_lbagent(tmp_path, "handle", stdin=joining, SERF_EVENT="member-join", SERF_SELF_NAME="lb01")

    lines = [line.strip() for line in (tmp_path / "haproxy.cfg").read_text().splitlines()]
    markers = [at for at, line in enumerate(lines) if line.startswith("# additional-")]
    assert (done.returncode, done.stderr) == (0, b"")
    assert markers
    assert [lines[at] for at in markers if not re.match(r"server .* # lbagent role=", lines[at - 1])] == []
    checked = run_program("haproxy", "-c", "-dW", "-f", tmp_path / "haproxy.cfg")
    assert (checked.returncode, checked.stdout) in ACCEPTED
