"""`lbagent check` on a broken load balancer: anything that keeps an event from taking effect is an error with a fix."""

# ruff: noqa: E501  # expected lines are whole

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.daemon import run_watch
from tests.helpers.faults import replace_haproxy
from tests.helpers.real_programs import (
    LBAGENT,
    ROLES,
    Haproxy,
    LoadBalancer,
    SerfAgent,
    binaries,
    member_line,
    wait_until,
)
from tests.helpers.terminal import Terminal
from tests.helpers.two_users import GROUP, SERF, TwoUserLoadBalancer, create_state_directory
from tests.real.test_check import CFG, TOKEN, Agent

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not binaries() or shutil.which("serf") is None, reason="a real haproxy and a real serf are needed"
    ),
]


def run_check(lb: LoadBalancer, agent: SerfAgent | None = None, *words: str, **env: str) -> tuple[int, list[str], str]:
    """Return exit status, lines that are not ok, and summary, with placeholders for paths."""
    asking = {"SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN} if agent else {}
    done = lb.run("check", *words, env={**asking, **env})
    assert done.stderr == b""
    text = done.stdout.decode().replace(str(lb.folder), "/lb")
    *lines, summary = text.splitlines() or [""]
    return done.returncode, [" ".join(line.split()) for line in lines if not line.startswith("ok ")], summary


def select_kind(lines: list[str], name: str) -> list[str]:
    """Return the lines of one kind."""
    return [line for line in lines if line.split()[1] == f"{name}:"]


def test_a_haproxy_that_is_not_tested_is_a_warning(lb: LoadBalancer) -> None:
    replace_haproxy(lb, 'case "$1" in -v*) echo "HAProxy version 3.9.1 2030/01/01"; exit;; esac\nexec "$real" "$@"')

    lines = lb.run("check").stdout.decode().splitlines()

    [version] = [line for line in lines if "3.9.1" in line]
    assert version.startswith("warning")


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    """A load balancer with a valid haproxy.cfg."""
    with LoadBalancer(CFG) as one:
        yield one


# --- the daemon and its syncs ---------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_stopped_daemon_is_an_error_where_handlers_only_store() -> None:
    with TwoUserLoadBalancer(CFG) as lb, Haproxy(lb):
        with run_watch(lb):
            lb.join(member_line("web01", "127.0.0.11"))
            wait_until(lambda: lb.managed)
            running = run_check(lb)
        stopped = run_check(lb)

    assert select_kind(running[1], "daemon") == []
    assert stopped[0] == 1
    assert select_kind(stopped[1], "daemon") == [
        "error daemon: `lbagent watch` does not run; events are stored and have no effect; run `systemctl enable --now lbagent`"
    ]


def test_a_stopped_daemon_is_a_warning_where_handlers_apply_themselves(lb: LoadBalancer) -> None:
    with Haproxy(lb), run_watch(lb):
        pass

    assert [line.split(":")[0] for line in select_kind(run_check(lb)[1], "daemon")] == ["warning daemon"]


def test_events_that_wait_too_long_are_an_error(lb: LoadBalancer) -> None:
    with Haproxy(lb), run_watch(lb) as daemon:
        os.kill(daemon.pid, signal.SIGSTOP)
        lb.join(member_line("web01", "127.0.0.11"))
        [name] = lb.list_spool()
        hour_ago = (lb.state / "spool" / name).stat().st_mtime - 3600
        os.utime(lb.state / "spool" / name, (hour_ago, hour_ago))
        status, lines, _ = run_check(lb)

    assert status == 1
    [line] = select_kind(lines, "pending")
    assert line.startswith("error pending: 1 event in the spool, the oldest for 360")
    assert line.endswith("; nothing applies them; start or restart `lbagent watch`, or run `lbagent apply`")


def test_failing_syncs_are_an_error_and_a_good_one_ends_it(lb: LoadBalancer) -> None:
    with Haproxy(lb), Agent(lb) as agent:
        lb.join(member_line("web01", "127.0.0.11"))
        (lb.etc / "serf.env").write_text(f"SERF_RPC_ADDR={agent.rpc}\nSERF_RPC_AUTH=stale\n")
        with run_watch(lb, SERF_RPC_ADDR=""):
            wait_until(lambda: b'"sync_failing": 1' in (lb.state / "last.json").read_bytes())
            status, lines, _ = run_check(lb, agent)

    assert status == 1
    [line] = select_kind(lines, "sync")
    assert line.startswith("error sync: syncs have failed for ")
    assert line.endswith("; set SERF_RPC_AUTH for `lbagent watch` (in serf.env) to the `rpc_auth` of the agent")


def test_a_failed_run_is_an_error(lb: LoadBalancer) -> None:
    with Haproxy(lb):
        lb.join(member_line("web01", "127.0.0.11"))
        path = lb.state / "last.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "status": 1, "words": "failed: no space left"}))
        lines = run_check(lb)[1]

    assert select_kind(lines, "last-run") == [
        "error last-run: the last run failed with exit status 1: failed: no space left; run `lbagent apply` to retry"
    ]


# --- HAProxy, the token, the agent ----------------------------------------------------------------------------------


def test_a_haproxy_that_does_not_run_and_an_agent_that_does_not_answer_are_errors(lb: LoadBalancer) -> None:
    lb.join(member_line("web01", "127.0.0.11"))

    status, lines, summary = run_check(lb)

    assert status == 1
    assert [line.split(":")[0] for line in lines] == ["error process", "error serf"]
    assert summary.startswith("2 errors, 0 warnings, ")


@pytest.mark.parametrize(("token", "message"), [("", "the agent requires an RPC token"), ("wrong", "wrong RPC token")])
def test_a_wrong_token_is_an_error(lb: LoadBalancer, token: str, message: str) -> None:
    with Haproxy(lb), Agent(lb) as agent:
        status, lines, _ = run_check(lb, agent, SERF_RPC_AUTH=token)

    assert status == 1
    [line] = select_kind(lines, "serf")
    assert line.startswith(f"error serf: SERF_RPC_AUTH: {message}; no sync is possible (")
    assert line.endswith("; set SERF_RPC_AUTH to the `rpc_auth` of the agent")


# --- the other load balancer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["127.0.0.9", "127.0.0.9:7946", "lb02"])
def test_a_load_balancer_alone_is_an_error_where_its_settings_name_another(lb: LoadBalancer, named: str) -> None:
    with Haproxy(lb), Agent(lb, retry_join=["127.0.0.5", named]) as agent:
        lb.join(member_line("web01", "127.0.0.11"))
        status, lines, _ = run_check(lb, agent)

    assert status == 1
    assert select_kind(lines, "peers") == [
        f"error peers: serf members: no other load balancer is in this cluster, although the agent's settings join {named}; pauses reach only one of them; start its agent with the same `encrypt_key` as here (on the second load balancer: `lbagent-serf-setup --replace --key-from FILE`, with /etc/serf/lbagent.json of the first), or remove it from the settings"
    ]


def test_a_load_balancer_alone_is_an_error_where_haproxy_cfg_has_peers(lb: LoadBalancer) -> None:
    lb.text += b"peers pair\n    peer lb01 127.0.0.1:1\n    peer lb02 127.0.0.2:1\n"
    with Agent(lb) as agent:
        assert "although haproxy.cfg has a `peers` section" in select_kind(run_check(lb, agent)[1], "peers")[0]


# --- not run as root ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_gets_one_sentence_and_no_false_claims(lb: LoadBalancer) -> None:
    lb.folder.chmod(0o755)
    with Haproxy(lb), Agent(lb) as agent:
        lb.join(member_line("web01", "127.0.0.11"))
        agent.file.parent.chmod(0o700)
        lb.state.chmod(0o700)
        (lb.etc / "serf.env").write_text(f"SERF_RPC_ADDR={agent.rpc}\nSERF_RPC_AUTH={TOKEN}\n")
        (lb.etc / "serf.env").chmod(0o600)
        env = {key: value for key, value in lb.env.items() if key != "SERF_RPC_ADDR"}
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", LBAGENT, "check"],
            env={**env, "SERF_RPC_ADDR": agent.rpc},
            capture_output=True,
            text=True,
            check=False,
        )
    if not done.stdout:
        pytest.skip("another user cannot start this lbagent here")
    problems = [line.split()[:2] for line in done.stdout.splitlines()[:-1] if not line.startswith("ok ")]

    assert problems == [["warning", "user:"]]
    assert done.returncode == 0
    assert done.stdout.count("as root") == 2
    assert "not run as root" in done.stdout


# --- files of Serf's user -------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_files_that_serfs_user_cannot_use_are_errors() -> None:
    with LoadBalancer(CFG) as lb, Haproxy(lb):
        lb.folder.chmod(0o755)
        create_state_directory(lb.state)
        as_serf = ["setpriv", f"--reuid={SERF}", f"--regid={SERF}", f"--groups={GROUP}", "--"]
        agent = Agent(lb, snapshot_path=None)
        agent.file.parent.mkdir()
        agent.file.parent.chmod(0o755)
        with agent:
            agent.kill()
            agent.file.write_text(
                json.dumps({key: value for key, value in agent.settings.items() if value is not None})
            )
            agent.file.chmod(0o644)
            process = subprocess.Popen(
                [*as_serf, "serf", "agent", f"-config-dir={agent.file.parent}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**lb.env, "SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN},
            )
            try:
                wait_until(partial(is_answering, agent))
                lb.roles.chmod(0o600)
                (lb.state / "spool").chmod(0o700)
                lines = run_check(lb, agent)[1]
            finally:
                process.terminate()
                process.wait()

    fix = "set the group `lbagent` and the modes of /usr/lib/tmpfiles.d/lbagent.conf"
    assert (
        f"error access: /lb/state/spool: user {SERF}, which runs Serf's event handlers, cannot write it; no event is stored; {fix}"
        in lines
    )
    assert (
        f"error access: /lb/etc/roles.yml: user {SERF}, which runs Serf's event handlers, cannot read it; queries are answered with an error; {fix}"
        in lines
    )
    assert select_kind(lines, "daemon") != []


def is_answering(agent: SerfAgent) -> bool:
    """Return whether the agent answers."""
    env = {**os.environ, "SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN}
    return subprocess.run(["serf", "info"], env=env, capture_output=True, check=False).returncode == 0


# --- the lines that roles.yml would make ----------------------------------------------------------------------------


@pytest.mark.parametrize("binary", list(binaries().values()), ids=list(binaries()))
@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("interval: 200ms", "options: 'check maxcon 50'", 9, "maxcon"),
        ("interval: 200ms", "interval: 0s", 7, "inter"),
        (
            "iis: {{port: {port}}}",
            "iis: {{port: {port}, options: 'check ssl verify required ca-file /nowhere'}}",
            5,
            "ca-file",
        ),
        ("interval: 200ms", "options: 'check weight {{tag:weight}} fal 2'", 9, "fal"),
    ],
)
def test_options_that_haproxy_refuses_are_an_error_before_any_node_exists(
    binary: Path, old: str, new: str, line: int, words: str
) -> None:
    with LoadBalancer(CFG, ROLES.replace(old, new), binary) as lb:
        text = lb.text
        status, lines, _ = run_check(lb)

        assert status == 1
        [found] = select_kind(lines, "service-line")
        assert found.startswith(
            f"error service-line: /lb/etc/roles.yml:{line}: HAProxy refuses the server lines of role web, service iis: "
        )
        assert words in found
        assert "parsing" not in found
        assert (lb.text, lb.list_staged()) == (text, [])


def test_each_role_and_service_is_tried_separately() -> None:
    roles = (
        ROLES.replace(
            "  iis: {{port: {port}}}", "  iis: {{port: {port}}}\n  api: {{port: 99, options: chekc}}"
        ).replace("lb: [iis]", "lb: [iis, api]")
        + "  old: {{lb: [iis], options: 'chek', networks: [127.0.0.0/8]}}\n"
    )
    with LoadBalancer(CFG, roles) as lb:
        lb.text = lb.text.replace(b"    # additional", b"    # additional-lb-api-server\n    # additional")
        lines = select_kind(run_check(lb)[1], "service-line")

    assert [line.partition("HAProxy refuses the server lines of ")[2].partition(":")[0] for line in lines] == [
        "role web, service api",
        "role old, service iis",
    ]


def test_a_candidate_roles_yml_is_checked_and_the_live_one_stays(lb: LoadBalancer, tmp_path: Path) -> None:
    lb.join(member_line("web01", "127.0.0.11"))
    candidate = tmp_path / "candidate.yml"
    candidate.write_text(lb.roles.read_text().replace("interval: 200ms", "options: 'check maxcon 50'"))
    text, roles = lb.text, (lb.state / "roles.json").read_bytes()

    status, lines, _ = run_check(lb, None, "--roles", str(candidate))

    assert status == 1
    assert select_kind(lines, "service-line")[0].startswith(f"error service-line: {candidate}:")
    assert (lb.text, (lb.state / "roles.json").read_bytes()) == (text, roles)
    assert select_kind(run_check(lb)[1], "service-line") == []


def test_an_edited_roles_yml_is_tried_by_the_daemon(lb: LoadBalancer) -> None:
    with Haproxy(lb):
        daemon = lb.start("watch")
        try:
            wait_until((lb.state / "metrics.prom").exists)
            text = lb.text
            lb.roles.write_text(lb.roles.read_text().replace("interval: 200ms", "options: 'check maxcon 50'"))
            assert daemon.stderr
            message = b""
            while b"maxcon" not in message:
                message = daemon.stderr.readline()
        finally:
            daemon.terminate()
            daemon.communicate()

        assert f"{lb.roles}: role web, service iis: HAProxy refuses its server lines: ".encode() in message
        assert lb.text == text


# --- migration from the classic handler -----------------------------------------------------------------------------


def test_a_classic_role_yml_is_found_with_the_block_to_add(lb: LoadBalancer) -> None:
    lb.roles.write_text(
        f"haproxy: {{config: {lb.cfg}}}\nweb:\n  lb: [iis, web_service_a]\n  monitor: [mongo]\n  interval: 60s\n"
    )

    status, lines, _ = run_check(lb)

    assert status == 1
    assert select_kind(lines, "migration") == [
        "error migration: /lb/etc/roles.yml: this is a role.yml of the classic handler.rb; it does not declare its services; add this line, with your ports: `services: {iis: {port: 80}, web_service_a: {port: PORT}, mongo: {port: 27017}}`; see docs/how-to/from-handler-rb.md"
    ]


def test_a_role_yml_beside_a_missing_roles_yml_is_found(lb: LoadBalancer) -> None:
    lb.roles.rename(lb.etc / "role.yml")

    assert select_kind(run_check(lb)[1], "migration") == [
        "error migration: /lb/etc/role.yml: lbagent does not read this file of the classic handler.rb; copy it to /lb/etc/roles.yml, and add a `services:` block; see docs/how-to/from-handler-rb.md"
    ]


def test_a_classic_marker_is_found_with_its_new_form(lb: LoadBalancer) -> None:
    lb.text = lb.text.replace(b"additional-lb-iis", b"additional-iis")

    status, lines, _ = run_check(lb)

    assert status == 1
    assert select_kind(lines, "migration") == [
        "error migration: /lb/etc/haproxy.cfg:16: '# additional-iis-server' is a marker of the classic handler.rb; it names no section; write '# additional-lb-iis-server'; see docs/how-to/from-handler-rb.md"
    ]


def test_classic_lines_above_a_marker_are_found_before_and_after_their_nodes_join(lb: LoadBalancer) -> None:
    lines = f"    server web01 127.0.0.11:{lb.port} check\n    server web02 127.0.0.12:{lb.port} check\n"
    lb.text = lb.text.replace(b"    # additional", lines.encode() + b"    # additional")
    before = run_check(lb)[1]
    lb.join(member_line("web01", "127.0.0.11"), member_line("web02", "127.0.0.12"))
    joined = run_check(lb)
    adopted = lb.run("apply", "--adopt", "--yes")

    assert select_kind(before, "migration") == [
        "warning migration: /lb/etc/haproxy.cfg:16: 2 server lines above the marker are not managed (web01, web02); pauses and leaves of these nodes do not affect them; run `lbagent apply --adopt` after the nodes have joined, or keep them as your own; see docs/how-to/from-handler-rb.md"
    ]
    assert joined[0] == 1
    assert select_kind(joined[1], "operator-line") == [
        f"error operator-line: /lb/etc/haproxy.cfg:{line}: {node}: no managed line in listen lb-iis: an operator's line has its name or address, pauses do not affect it; `lbagent apply --adopt` turns it into a managed line"
        for line, node in ((16, "web01"), (17, "web02"))
    ]
    assert adopted.returncode == 0
    after = run_check(lb)[1]
    assert select_kind(after, "operator-line") + select_kind(after, "migration") == []


# --- output ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_on_a_terminal_findings_are_grouped_and_wrapped(lb: LoadBalancer, columns: int) -> None:
    status, shown = Terminal([LBAGENT, "check"], lb.env, columns).wait_for_end()
    lines = shown.splitlines()

    assert status == 1
    assert max(map(len, lines)) <= columns
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert headings == [
        "lbagent",
        "roles.yml and markers",
        "haproxy.cfg and HAProxy",
        "Managed lines",
        "Files",
        "Serf",
        headings[-1],
    ]
    assert headings[-1].startswith("2 errors, 1 warning, ")
    assert "start HAProxy" in shown or "set `haproxy.config`" in shown


def test_quiet_omits_what_is_ok(lb: LoadBalancer) -> None:
    lb.join(member_line("web01", "127.0.0.11"))

    status, lines, summary = run_check(lb, None, "--quiet")

    assert status == 1
    assert len(lines) == 2
    assert summary.startswith("2 errors, 0 warnings, ")


def test_quiet_prints_nothing_if_everything_is_ok(lb: LoadBalancer) -> None:
    with Haproxy(lb), Agent(lb) as agent:
        lb.join(member_line("web01", "127.0.0.11"))
        wait_until(lambda: lb.idle)

        done = lb.run("check", "--quiet", env={"SERF_RPC_ADDR": agent.rpc, "SERF_RPC_AUTH": TOKEN})

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_json_has_every_documented_key(lb: LoadBalancer) -> None:
    done = lb.run("check", "--json")
    found = json.loads(done.stdout)
    page = (Path(__file__).parent.parent.parent / "docs" / "reference" / "check.md").read_text(encoding="utf-8")

    assert done.returncode == 1
    assert [*found] == ["version", "at", "errors", "warnings", "ok", "findings"]
    assert found["errors"] + found["warnings"] + found["ok"] == len(found["findings"])
    keys = [*found, *(f"findings[].{key}" for key in found["findings"][0])]
    assert [key for key in keys if f"| `{key}` |" not in page] == []
    assert {one["severity"] for one in found["findings"]} == {"ok", "warning", "error"}
    assert (
        len(json.loads(lb.run("check", "--json", "--quiet").stdout)["findings"]) == found["errors"] + found["warnings"]
    )


def test_a_load_balancer_with_another_role_is_an_error() -> None:
    encrypted = ["-encrypt=c2l4dGVlbiBieXRlcyEhIQ=="]
    with (
        LoadBalancer(CFG) as lb,
        SerfAgent("lb02", "127.0.0.9", "balancer", more=encrypted) as other,
        Agent(lb, retry_join=["127.0.0.5", other.bind]) as agent,
    ):
        other.join(agent)
        wait_until(lambda: agent.members().get("lb02") == "alive")
        lines = select_kind(run_check(lb, agent)[1], "peers")

    assert lines == [
        "error peers: serf members: the agent's settings join lb02 (role balancer), which has another role than lb; give all load balancers the same role, for example `lb`"
    ]


def test_invalid_markers_and_lines_are_found_and_all_others_work() -> None:
    roles = ROLES.replace("interval: 200ms", "options: 'check cookie {{name}}'").replace("lb: [iis]", "lb: [iis, api]")
    with LoadBalancer(
        CFG, roles.replace("  iis: {{port: {port}}}", "  iis: {{port: {port}}}\n  api: {{port: 99}}")
    ) as lb:
        odd = b"    cookie c insert\n    # additional-lb-api-server\n    #additional-lb-iis-server\n    server web07 127.0.0.17:1 # lbagent role=web,old\n"
        lb.text = lb.text.replace(b"    balance roundrobin\n", b"    balance roundrobin\n" + odd)
        lb.text += b"frontend f\n    bind 127.0.0.1:1\n    default_backend off\n    # additional-lb-iis-server\nbackend off\n    disabled\n    # additional-lb-iis-server\n"
        lb.join(member_line("web01", "127.0.0.11"))
        done = lb.run("check")

    lines = [" ".join(line.split()) for line in done.stdout.decode().replace(str(lb.folder), "/lb").splitlines()]
    for line in (
        "warning marker-misplaced: /lb/etc/haproxy.cfg:26: '# additional-lb-iis-server' is ignored: it is in frontend f, which cannot hold servers; move it into the `backend` or `listen` section of these servers",
        "warning marker-malformed: /lb/etc/haproxy.cfg:19: '#additional-lb-iis-server' is not a marker; write '# additional-lb-iis-server', and nothing else in that line",
        "warning line-damaged: /lb/etc/haproxy.cfg:20: 'server web07 127.0.0.17:1 # lbagent role=web,old' looks like a managed line but is not valid (its comment is not `# lbagent role=ROLE`); lbagent ignores it; delete it, or its `# lbagent` comment",
        "warning cookie: /lb/etc/haproxy.cfg:13: web01.api and web01.iis in listen lb-iis have the same cookie 'web01'; use `cookie {server}` in the options, so that each server has its own cookie",
        "ok marker-inactive: /lb/etc/haproxy.cfg:30: HAProxy does not read '# additional-lb-iis-server' (`.if` or `disabled`); its lines have no effect",
    ):
        assert line in lines
