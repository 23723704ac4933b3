"""systemd accepts the units, lbagent-serf-setup writes complete settings, and an install has all files."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lbagent.daemon import status_socket
from lbagent.serf import agent as serf_agent
from lbagent.settings import DEFAULT_RUNTIME_DIR
from tests.helpers.real_programs import LBAGENT
from tests.helpers.two_users import create_state_directory

HERE = Path(__file__).resolve().parent.parent.parent
SYSTEMD = HERE / "systemd"
DEBIAN_SERF = """\
[Unit]
Description=Serf Agent
After=network.target
[Service]
Type=simple
ExecStartPre=/usr/bin/install -d -g root -o root /etc/serf/
ExecStart={serf} agent -config-dir=/etc/serf/
KillSignal=SIGINT
Restart=always
RestartSec=10
[Install]
WantedBy=multi-user.target
"""
"""The unit of Debian, for which systemd/ has a drop-in."""

MOST = {"lbagent.service": 3.0, "serf.service": 3.0, "lbagent-web.service": 2.0}
"""The highest exposure of each unit; 10 is a unit without restrictions."""

UNITS = list(MOST)

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with the programs of this checkout."""
    text = (SYSTEMD / "lbagent.service").read_text()
    (tmp_path / "lbagent.service").write_text(text.replace("/usr/bin/lbagent", str(LBAGENT)))
    (tmp_path / "serf.service").write_text(DEBIAN_SERF.format(serf=shutil.which("serf") or "/bin/true"))
    shutil.copytree(SYSTEMD / "serf.service.d", tmp_path / "serf.service.d")
    text = (SYSTEMD / "lbagent-web.service").read_text()
    (tmp_path / "lbagent-web.service").write_text(text.replace("/usr/bin/lbagent", str(LBAGENT)))
    (tmp_path / "lbagent-web.service.d").mkdir()
    text = (SYSTEMD / "lbagent-web.service.d" / "users.conf").read_text()
    (tmp_path / "lbagent-web.service.d" / "users.conf").write_text(text.replace("/usr/bin/lbagent", str(LBAGENT)))
    return tmp_path


def run_systemd_analyze(units: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{units}:", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *words], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


@analyze
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_each_unit(units: Path, unit: str) -> None:
    done = run_systemd_analyze(units, "verify", "--man=no", str(units / unit))

    message = [line for line in done.stderr.splitlines() if str(units) in line or "lbagent" in line or "serf" in line]
    assert (done.returncode, message) == (0, [])


@analyze
@pytest.mark.parametrize("unit", UNITS)
def test_the_exposure_of_a_unit_is_below_its_limit(units: Path, unit: str) -> None:
    done = run_systemd_analyze(
        units, "security", "--offline=true", f"--threshold={MOST[unit] * 10:.0f}", str(units / unit)
    )

    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    print(unit, found[1])
    assert (done.returncode, float(found[1]) <= MOST[unit]) == (0, True)


def read_settings(path: Path) -> dict[str, list[str]]:
    """Return the values of a unit by key."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def test_the_daemon_notifies_systemd_and_is_restarted() -> None:
    found = read_settings(SYSTEMD / "lbagent.service")

    wanted = {"Type": "notify", "Restart": "always", "WatchdogSec": "5min", "KillMode": "process"}
    assert {key: found[key] for key in wanted} == {key: [value] for key, value in wanted.items()}
    assert found["ExecStart"] == ["/usr/bin/lbagent watch"]


def test_the_agent_is_unprivileged_and_is_restarted_also_after_exit_0() -> None:
    found = read_settings(SYSTEMD / "serf.service.d" / "lbagent.conf")

    wanted = {"User": "_serf", "SupplementaryGroups": "lbagent", "CapabilityBoundingSet": "", "Restart": "always"}
    wanted |= {"KillMode": "process", "ReadWritePaths": "-/var/lib/lbagent/spool"}
    # With StateDirectory= the handler would use this directory for its state.
    wanted |= {"Environment": "LBAGENT_STATE_DIR=/var/lib/lbagent"}
    assert {key: found[key] for key in wanted} == {key: [value] for key, value in wanted.items()}


def test_the_web_page_has_a_user_of_its_own_that_may_only_connect_to_the_status_socket() -> None:
    web, daemon = read_settings(SYSTEMD / "lbagent-web.service"), read_settings(SYSTEMD / "lbagent.service")
    users = (SYSTEMD / "lbagent.sysusers").read_text()

    assert (web["User"], web["Group"]) == ([status_socket.GROUP], [status_socket.GROUP])
    assert "SupplementaryGroups" not in web
    assert f"\nu {status_socket.GROUP} - " in users
    assert f"/run/{daemon['RuntimeDirectory'][0]}" == DEFAULT_RUNTIME_DIR
    assert daemon["RuntimeDirectoryMode"] == ["0755"]


def test_only_the_drop_in_gives_the_web_page_the_token_of_the_agent() -> None:
    plain = (SYSTEMD / "lbagent-web.service").read_text()
    found = read_settings(SYSTEMD / "lbagent-web.service.d" / "users.conf")

    assert "serf.env" not in plain
    assert found["EnvironmentFile"] == ["-/etc/lbagent/serf.env"]
    assert found["ExecStart"] == ["", "/usr/bin/lbagent web --users /etc/lbagent/web.users $OPTIONS"]


def test_the_package_suggests_what_the_web_page_needs() -> None:
    control = (HERE / "packaging/debian/control").read_text()
    extra = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["optional-dependencies"]["web"]

    suggested = [f"python3-{one.replace('>=', ' (>= ')})" for one in extra]
    assert f"\nSuggests: {', '.join(suggested)}\n" in control


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("systemd-tmpfiles") is None, reason="root and systemd-tmpfiles")
def test_tmpfiles_creates_the_state_directory_of_the_tests_with_two_users(tmp_path: Path) -> None:
    root, ours = tmp_path / "root", tmp_path / "state"
    (root / "etc").mkdir(parents=True)
    (root / "var/lib").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nlbagent:x:61002:\n")

    command = ["systemd-tmpfiles", f"--root={root}", "--create", str(SYSTEMD / "lbagent.tmpfiles")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    create_state_directory(ours)

    assert done.returncode == 0, done.stderr
    assert list_files(root / "var/lib/lbagent") == list_files(ours)


def list_files(folder: Path) -> dict[str, tuple[int, int, int]]:
    paths = [folder, *folder.rglob("*")]
    return {str(one.relative_to(folder)): (one.stat().st_mode, one.stat().st_uid, one.stat().st_gid) for one in paths}


# --- lbagent-serf-setup -------------------------------------------------------------------------------------------


@pytest.fixture
def setup_script(tmp_path: Path) -> Path:
    """The setup script, with the template of the checkout."""
    path = tmp_path / "setup"
    path.write_text(
        (SYSTEMD / "lbagent-serf-setup").read_text().replace("share=/usr/share/lbagent", f"share={SYSTEMD}")
    )
    path.chmod(0o755)
    return path


def run_setup(setup_script: Path, root: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(setup_script), "--root", str(root), *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def read_agent_settings(root: Path) -> dict[str, object]:
    found = json.loads((root / "etc/serf/lbagent.json").read_text())
    assert isinstance(found, dict)
    return found


serf = pytest.mark.skipif(shutil.which("serf") is None, reason="no serf here")

JSON, DROP_IN = "/etc/serf/lbagent.json", "/etc/systemd/system/serf.service.d/lbagent.conf"

NEXT = [
    "",
    "next, on this load balancer:",
    "    editor /etc/lbagent/roles.yml /etc/haproxy/haproxy.cfg",
    "    systemctl reload haproxy",
    "    systemctl unmask serf",
    "    systemctl enable lbagent serf",
    "    systemctl restart lbagent serf",
    "    lbagent check",
]


@serf
def test_two_load_balancers_have_the_same_key_and_different_tokens(setup_script: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"

    first = run_setup(setup_script, one, "--node", "lb01", "10.0.0.1", "10.0.0.2")
    key = (one / "etc/serf/lbagent.json").read_text()
    second = run_setup(setup_script, two, "--node", "lb02", "--key-from", "-", "10.0.0.2", "10.0.0.1", stdin=key)

    assert (first.returncode, second.returncode, first.stderr, second.stderr) == (0, 0, "", "")
    mine, other = read_agent_settings(one), read_agent_settings(two)
    assert (mine["node_name"], mine["bind"], mine["retry_join"]) == ("lb01", "10.0.0.1", ["10.0.0.1", "10.0.0.2"])
    assert (other["node_name"], other["bind"], other["retry_join"]) == ("lb02", "10.0.0.2", ["10.0.0.2", "10.0.0.1"])
    assert mine["encrypt_key"] == other["encrypt_key"]
    assert len({mine["encrypt_key"], mine["rpc_auth"], other["rpc_auth"]}) == 3
    env = (one / "etc/lbagent/serf.env").read_text()
    assert env == f"SERF_RPC_ADDR=127.0.0.1:7373\nSERF_RPC_AUTH={mine['rpc_auth']}\n"
    modes = [
        (one / name).stat().st_mode & 0o777 for name in ("etc/serf/lbagent.json", "etc/lbagent/serf.env", "etc/serf")
    ]
    assert modes == [0o600, 0o600, 0o755]


@serf
def test_an_ipv6_address_is_written_in_brackets(setup_script: Path, tmp_path: Path) -> None:
    done = run_setup(setup_script, tmp_path / "r", "--node", "lb01", "fd00::11", "fd00::12")

    assert (done.returncode, done.stderr) == (0, "")
    assert (read_agent_settings(tmp_path / "r")["bind"], read_agent_settings(tmp_path / "r")["retry_join"]) == (
        "[fd00::11]",
        ["[fd00::11]", "[fd00::12]"],
    )


@serf
def test_a_second_run_keeps_everything(setup_script: Path, tmp_path: Path) -> None:
    words = ("--node", "lb01", "10.0.0.1", "10.0.0.2")
    first = run_setup(setup_script, tmp_path / "r", *words)
    before = {path: path.read_text() for path in (tmp_path / "r").rglob("*") if path.is_file()}

    for given in (words, words[2:]):
        done = run_setup(setup_script, tmp_path / "r", *given)

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [*(f"kept {tmp_path}/r{name}" for name in (JSON, DROP_IN)), *NEXT]
    assert first.stdout.splitlines() == [
        *(f"wrote {tmp_path}/r{name}" for name in (JSON, "/etc/lbagent/serf.env", "/etc/lbagent/peer.bundle", DROP_IN)),
        *NEXT,
        "next, on the other load balancer:",
        "    ssh 10.0.0.1 cat /etc/lbagent/peer.bundle | lbagent-serf-setup --bundle -",
    ]
    assert {path: path.read_text() for path in before} == before


@serf
@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (("10.0.0.3", "10.0.0.2"), "", "bind 10.0.0.1, retry_join 10.0.0.1,10.0.0.2"),
        (("10.0.0.1", "10.0.0.3"), "", "retry_join 10.0.0.1,10.0.0.2"),
        (("--node", "lb09", "10.0.0.1", "10.0.0.2"), "", "node_name lb01"),
        (("--key-from", "-", "10.0.0.1", "10.0.0.2"), "c2l4dGVlbiBieXRlcyEhIQ==", "another encrypt_key"),
    ],
)
def test_other_values_are_refused_and_written_with_replace(
    setup_script: Path, tmp_path: Path, words: tuple[str, ...], stdin: str, message: str
) -> None:
    root = tmp_path / "r"
    run_setup(setup_script, root, "--node", "lb01", "10.0.0.1", "10.0.0.2")
    before = read_agent_settings(root)

    refused = run_setup(setup_script, root, *words, stdin=stdin)
    kept = read_agent_settings(root)
    done = run_setup(setup_script, root, "--replace", *words, stdin=stdin)
    after = read_agent_settings(root)

    advice = "to replace them, run the same command with --replace"
    why = f"{root}/etc/serf/lbagent.json: has other values: {message}; {advice}"
    assert (refused.returncode, refused.stderr, kept) == (1, f"lbagent-serf-setup: {why}\n", before)
    assert (done.returncode, done.stderr) == (0, "")
    assert (after["bind"], after["retry_join"]) == (words[-2], [*words[-2:]])
    assert after["node_name"] == (words[1] if words[0] == "--node" else "lb01")
    assert after["encrypt_key"] == (stdin or before["encrypt_key"])
    assert after["rpc_auth"] == before["rpc_auth"]
    bundle = (root / "etc/lbagent/peer.bundle").read_text()
    assert f"KEY={after['encrypt_key']}\nADDRESS={words[-1]}\nOTHER={words[-2]}\n" in bundle


@serf
def test_the_second_load_balancer_is_set_up_by_the_bundle_of_the_first(setup_script: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first = run_setup(setup_script, one, "--node", "lb01", "10.0.0.1", "10.0.0.2")
    bundle = one / "etc/lbagent/peer.bundle"

    second = run_setup(setup_script, two, "--node", "lb02", "--bundle", "-", stdin=bundle.read_text())
    again = run_setup(setup_script, two, "--bundle", str(bundle))

    assert (second.returncode, second.stderr, again.returncode) == (0, "", 0)
    assert bundle.stat().st_mode & 0o777 == 0o600
    assert read_agent_settings(two)["encrypt_key"] == read_agent_settings(one)["encrypt_key"]
    assert (read_agent_settings(two)["node_name"], read_agent_settings(two)["bind"]) == ("lb02", "10.0.0.2")
    assert read_agent_settings(two)["retry_join"] == ["10.0.0.2", "10.0.0.1"]
    assert not (two / "etc/lbagent/peer.bundle").exists()
    assert first.stdout.splitlines()[-2:] == [
        "next, on the other load balancer:",
        "    ssh 10.0.0.1 cat /etc/lbagent/peer.bundle | lbagent-serf-setup --bundle -",
    ]
    assert second.stdout.splitlines()[-len(NEXT) :] == NEXT


@serf
def test_a_single_load_balancer_has_no_bundle_until_a_second_one_is_given(setup_script: Path, tmp_path: Path) -> None:
    root = tmp_path / "r"
    alone = run_setup(setup_script, root, "--node", "lb01", "10.0.0.1")
    joins, bundle = read_agent_settings(root)["retry_join"], (root / "etc/lbagent/peer.bundle").exists()
    key = read_agent_settings(root)["encrypt_key"]

    again = run_setup(setup_script, root, "10.0.0.1")
    two = run_setup(setup_script, root, "--replace", "10.0.0.1", "10.0.0.2")

    assert [(done.returncode, done.stderr) for done in (alone, again, two)] == [(0, "")] * 3
    assert (joins, bundle) == (["10.0.0.1"], False)
    assert [line for line in alone.stdout.splitlines() if line.startswith("next")] == ["next, on this load balancer:"]
    assert read_agent_settings(root)["retry_join"] == ["10.0.0.1", "10.0.0.2"]
    assert f"KEY={key}\nADDRESS=10.0.0.2\nOTHER=10.0.0.1\n" in (root / "etc/lbagent/peer.bundle").read_text()


@serf
def test_the_next_lines_are_commands_that_work(setup_script: Path, tmp_path: Path) -> None:
    done = run_setup(setup_script, tmp_path / "r", "--node", "lb01", "10.0.0.1", "10.0.0.2")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("editor", "systemctl", "lbagent"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/run\n')
        (programs / name).chmod(0o755)
    lines = done.stdout.partition("next, on this load balancer:\n")[2].partition("next, on the other")[0].splitlines()

    for line in lines:
        subprocess.run(["sh", "-ec", line], env={"PATH": f"{programs}:/usr/bin:/bin"}, check=True)

    assert (tmp_path / "run").read_text().splitlines() == [line.strip() for line in NEXT[2:]]


@pytest.mark.parametrize("page", ["README.md", "docs/get-started/first-load-balancer.md"])
def test_the_documentation_has_the_commands_that_the_setup_prints(page: str) -> None:
    blocks = re.findall(r"^```console\n(.*?)^```$", (HERE / page).read_text(), re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^lb01# (.*?)(?: +#.*)?$", "".join(blocks), re.MULTILINE)
    typed = [command for line in lines for command in line.split(" && ")]

    setup_script = typed.index("lbagent-serf-setup 10.0.0.1 10.0.0.2")
    after = [command for command in typed[setup_script + 1 :] if not command.startswith(("editor", "lbagent status"))]
    assert after == [line.strip() for line in NEXT[3:]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount an /etc of its own")
@serf
def test_no_key_is_created_where_the_other_load_balancer_has_one(setup_script: Path, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare is not allowed here")
    # The script writes into a copy of /etc.
    script = f'cp -a /etc {tmp_path}/etc; mount --bind {tmp_path}/etc /etc; mount -t tmpfs none /run; exec "$@"'

    def outside(*words: str) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(tmp_path / "etc", ignore_errors=True)
        argv = ["unshare", "--mount", "sh", "-ec", script, "sh", str(setup_script), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    with socket.socket() as other:
        other.bind(("127.0.0.10", 7946))
        other.listen()
        refused = outside("--node", "lb02", "127.0.0.9", "127.0.0.10")
    foreign = outside("--node", "lb02", "203.0.113.7", "127.0.0.10")

    assert (refused.returncode, foreign.returncode) == (1, 2)
    assert refused.stderr == (
        "lbagent-serf-setup: 127.0.0.10: runs Serf already, and both need the same key;"
        " ssh 127.0.0.10 cat /etc/serf/lbagent.json | lbagent-serf-setup --key-from - 127.0.0.9 127.0.0.10\n"
    )
    assert foreign.stderr.startswith("lbagent-serf-setup: 203.0.113.7: not an address of this host; ")
    assert list((tmp_path / "etc/serf").glob("*.json")) == []


@serf
def test_after_a_purge_the_token_is_read_from_the_agents_settings(setup_script: Path, tmp_path: Path) -> None:
    words = ("--node", "lb01", "10.0.0.1", "10.0.0.2")
    run_setup(setup_script, tmp_path / "r", *words)
    before = read_agent_settings(tmp_path / "r")
    env = tmp_path / "r/etc/lbagent/serf.env"
    was = env.read_text()
    env.unlink()

    done = run_setup(setup_script, tmp_path / "r", *words)

    assert (done.returncode, done.stderr, env.stat().st_mode & 0o777) == (0, "", 0o600)
    assert (read_agent_settings(tmp_path / "r"), env.read_text()) == (before, was)


USAGE = "usage: lbagent-serf-setup MY-ADDRESS [OTHER-ADDRESS]; see --help"
NO_BUNDLE = "stdin: not a bundle; use /etc/lbagent/peer.bundle of the first load balancer"


@serf
@pytest.mark.parametrize(
    ("words", "stdin", "why"),
    [
        ((), "", USAGE),
        (("10.0.0.1", "10.0.0.2", "10.0.0.3"), "", USAGE),
        (
            ("10.0.0.1", "10.0.0.1"),
            "",
            "10.0.0.1: given for both load balancers; give the address of this one first, then that of the other",
        ),
        (("10.0.0.1", '10.0.0.2", "x'), "", "'10.0.0.2\", \"x': not the IP address of a host"),
        (
            ("--node", "lb 01", "10.0.0.1", "10.0.0.2"),
            "",
            "'lb 01': not a node name; use letters, digits, '.', '_' and '-'",
        ),
        (
            ("--node", "lb|01", "10.0.0.1", "10.0.0.2"),
            "",
            "'lb|01': not a node name; use letters, digits, '.', '_' and '-'",
        ),
        (("--key-from", "-", "10.0.0.1", "10.0.0.2"), "{}", "stdin: no encryption key in it"),
        (("--nod", "x"), "", "--nod: unknown option; see --help"),
        *(
            ((address, "10.0.0.2"), "", f"'{address}': not the IP address of a host")
            for address in ("10.0.0.999", "10.0.0", "fe80:::1", "0.0.0.0", "::", "224.0.0.1", "lb01", "10.0.0.1/24")
        ),
        (("10.0.0.1", "10.0.0.256"), "", "'10.0.0.256': not the IP address of a host"),
        (("--bundle", "-"), "nonsense", NO_BUNDLE),
        (("--bundle", "-"), "KEY=abc\nADDRESS=10.0.0.2\nOTHER=10.0.0.1\n", "stdin: no encryption key in it"),
        (
            ("--bundle", "-"),
            "KEY=abc\nADDRESS=10.0.0.999\nOTHER=10.0.0.1\n",
            "'10.0.0.999': not the IP address of a host",
        ),
        (("--bundle", "-", "10.0.0.2", "10.0.0.1"), "", "10.0.0.2: unexpected; the bundle has both addresses"),
    ],
)
def test_invalid_arguments_are_refused_and_nothing_is_written(
    setup_script: Path, tmp_path: Path, words: tuple[str, ...], stdin: str, why: str
) -> None:
    done = run_setup(setup_script, tmp_path / "r", *words, stdin=stdin)

    assert (done.returncode, done.stderr) == (2, f"lbagent-serf-setup: {why}\n")
    assert not (tmp_path / "r" / "etc").exists() or list((tmp_path / "r" / "etc").rglob("*.json")) == []


@serf
def test_a_second_file_of_the_agent_is_refused(setup_script: Path, tmp_path: Path) -> None:
    (tmp_path / "r/etc/serf").mkdir(parents=True)
    (tmp_path / "r/etc/serf/mine.json").write_text("{}")

    done = run_setup(setup_script, tmp_path / "r", "10.0.0.1", "10.0.0.2")

    assert done.returncode == 1
    assert done.stderr.startswith(
        f"lbagent-serf-setup: {tmp_path}/r/etc/serf/mine.json: exists, and Serf merges all files of its folder; "
    )
    assert list((tmp_path / "r").rglob("lbagent*")) == []


# --- make install, make deb ---------------------------------------------------------------------------------------

BELOW = [
    "bin/lbagent",
    "sbin/lbagent-serf-setup",
    "share/bash-completion/completions/lbagent",
    "share/man/man1/lbagent.1.gz",
    "share/man/man5/roles.yml.5.gz",
    "share/man/man8/lbagent-serf-setup.8.gz",
]


LINK = re.compile(r"""(?:\]\(|(?:src|srcset)=")(?!https?://|\#)([^)\#"]+)""")
"""The target of a link or picture in a page, without its anchor."""

FOR_SYSTEMD = ["systemd/system/lbagent.service", "sysusers.d/lbagent.conf", "tmpfiles.d/lbagent.conf"]
FOR_SYSTEMD += ["systemd/system/lbagent-web.service"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which `make pages` has been run."""
    for name in ("lbagent", "systemd", "packaging", "docs", "examples", "windows"):
        shutil.copytree(HERE / name, tmp_path / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "roles.yml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md"):
        shutil.copy(HERE / name, tmp_path / "src" / name)
    pages = [sys.executable, "packaging/pages.py", str(tmp_path / "src/build")]
    subprocess.run(pages, cwd=HERE, capture_output=True, check=True)
    return tmp_path / "src"


def run_script(checkout: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [f"packaging/{name}", *words]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("prefix", "units"), [("/usr/local", "usr/local/lib"), ("/usr", "usr/lib"), ("/opt/lb", "etc")]
)
def test_an_install_is_complete_and_an_uninstall_removes_it(
    checkout: Path, tmp_path: Path, prefix: str, units: str
) -> None:
    root = tmp_path / "root"

    done = run_script(checkout, "install", str(root), prefix)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    below = root / prefix.lstrip("/")
    assert [name for name in BELOW if not (below / name).is_file()] == []
    assert [name for name in FOR_SYSTEMD if not (root / units / name).is_file()] == []
    unit = read_settings(root / units / FOR_SYSTEMD[0])
    assert unit["ExecStart"] == [f"{prefix}/bin/lbagent watch"]
    assert f'sys.path.insert(0, "{prefix}/share/lbagent")' in (below / "bin/lbagent").read_text()
    assert f"share={prefix}/share/lbagent lbagent={prefix}/bin/lbagent\n" in (below / BELOW[1]).read_text()
    ours = (HERE / "roles.yml").read_text().replace("/usr/share/lbagent", f"{prefix}/share/lbagent")
    assert (root / "etc/lbagent/roles.yml").read_text() == ours

    run_script(checkout, "uninstall", str(root), prefix)

    assert [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()] == ["etc/lbagent/roles.yml"]


def test_the_installed_pages_have_no_dead_link(checkout: Path, tmp_path: Path) -> None:
    run_script(checkout, "install", str(tmp_path / "root"), "/usr")

    pages = list((tmp_path / "root/usr/share/doc/lbagent").rglob("*.md"))
    links = [(page, target) for page in pages for target in re.findall(LINK, page.read_text(encoding="utf-8"))]
    assert {page.name for page in pages} >= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "index.md"}
    assert [(str(page), target) for page, target in links if not (page.parent / target).exists()] == []


def test_an_install_includes_the_site_if_it_is_built(checkout: Path, tmp_path: Path) -> None:
    for name in ("index.html", "search/search_index.js", "assets/bundle.js", "assets/bundle.js.map", "sitemap.xml"):
        path = checkout / "build" / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    run_script(checkout, "install", str(tmp_path / "root"), "/usr")

    html = tmp_path / "root/usr/share/doc/lbagent/html"
    found = {str(path.relative_to(html)) for path in html.rglob("*") if path.is_file() and "img" not in path.parts}
    assert found == {"index.html", "search/search_index.js", "assets/bundle.js"}
    assert (html / "img" / "demo.svg").is_file()


def test_an_install_keeps_an_edited_roles_yml(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "root/etc/lbagent").mkdir(parents=True)
    (tmp_path / "root/etc/lbagent/roles.yml").write_text("mine")

    run_script(checkout, "install", str(tmp_path / "root"), "/usr")

    assert (tmp_path / "root/etc/lbagent/roles.yml").read_text() == "mine"


def test_the_whole_package_is_installed(checkout: Path, tmp_path: Path) -> None:
    run_script(checkout, "install", str(tmp_path / "root"), "/usr")

    installed = tmp_path / "root/usr/share/lbagent/lbagent"
    assert list_package_files(installed) == list_package_files(HERE / "lbagent")


def list_package_files(folder: Path) -> set[str]:
    """Return the modules and their data files."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {str(path.relative_to(folder)) for path in paths}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no Debian here")
def test_two_builds_of_the_debian_package_are_identical(checkout: Path) -> None:
    first = run_script(checkout, "deb", "0.1.0-1")
    content = (checkout / "build/lbagent_0.1.0-1_all.deb").read_bytes()
    second = run_script(checkout, "deb", "0.1.0-1")

    assert (first.returncode, first.stderr, second.returncode) == (0, "", 0)
    assert (checkout / "build/lbagent_0.1.0-1_all.deb").read_bytes() == content
    fields = subprocess.run(
        ["dpkg-deb", "--field", str(checkout / "build/lbagent_0.1.0-1_all.deb"), "Package", "Version", "Architecture"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert fields == "Package: lbagent\nVersion: 0.1.0-1\nArchitecture: all\n"


SCRIPTS = [*(HERE / "packaging/debian").glob("p*"), SYSTEMD / "lbagent-serf-setup"]
SCRIPTS += [HERE / "packaging" / name for name in ("install", "uninstall", "deb")]


@pytest.mark.parametrize("path", sorted(SCRIPTS), ids=lambda path: path.name)
def test_scripts_have_the_syntax_of_a_plain_shell(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="no mandoc here")
def test_the_man_page_of_the_setup_has_each_option() -> None:
    page = HERE / "packaging" / "lbagent-serf-setup.8"

    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False)

    assert [line for line in lint.stdout.splitlines() if "missing date" not in line] == []
    help_, told = (SYSTEMD / "lbagent-serf-setup").read_text(), page.read_text().replace("\\-", "-")
    assert set(re.findall(r"^  (--[a-z-]+)", help_, re.MULTILINE)) == set(re.findall(r"--[a-z-]+", told))


# --- serf.env -----------------------------------------------------------------------------------------------------


def test_serf_env_is_read_where_the_environment_has_no_value(tmp_path: Path) -> None:
    (tmp_path / "serf.env").write_text(
        "# mine\nSERF_RPC_ADDR=127.0.0.1:1\nSERF_RPC_AUTH=a=b==\nPATH=/evil\nSERF_RPC_X=1\n"
    )
    environ = {"SERF_RPC_ADDR": "127.0.0.1:2", "PATH": "/bin"}

    serf_agent.SerfEnv([str(tmp_path)], environ).load()

    assert environ == {"SERF_RPC_ADDR": "127.0.0.1:2", "SERF_RPC_AUTH": "a=b==", "PATH": "/bin"}


def test_without_serf_env_nothing_is_added(tmp_path: Path) -> None:
    environ: dict[str, str] = {}

    serf_agent.SerfEnv([str(tmp_path)], environ).load()

    assert environ == {}
