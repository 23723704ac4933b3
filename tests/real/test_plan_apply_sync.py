"""`plan`, `apply`, `sync` and the command line always print a result, and never show a broken state as good."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.real_programs import (
    LBAGENT,
    ROLES,
    Haproxy,
    LoadBalancer,
    SerfAgent,
    binaries,
    clean_environment,
    member_line,
    wait_until,
)
from tests.helpers.terminal import Terminal

pytestmark = pytest.mark.skipif(not binaries(), reason="a real haproxy is needed")

WEB = [member_line(f"web{number:02}", f"127.0.0.{number + 10}") for number in range(1, 9)]


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    """A load balancer with two nodes, whose HAProxy does not run."""
    with LoadBalancer(binary=request.param) as one:
        one.join(*WEB[:2])
        yield one


def broken(lb: LoadBalancer) -> bytes:
    """Add an unknown keyword to haproxy.cfg; returns the new text."""
    lb.text = text = lb.text.replace(b"    balance ", b"    balanse ")
    return text


# --- nothing to do --------------------------------------------------------------------------------------------------


def test_without_changes_the_number_of_nodes_and_lines_is_printed(lb: LoadBalancer) -> None:
    for words in (["plan"], ["apply"], ["plan", "-v"], ["apply", "--force"]):
        done = lb.run(*words)

        assert (done.returncode, done.stdout) == (0, b"No changes: 2 nodes, 2 lines.\n")


def test_a_node_with_several_lines_counts_as_one_node() -> None:
    roles = ROLES.replace("  iis: {{port: {port}}}", "  iis: {{port: {port}}}\n  api: {{port: 99}}").replace(
        "lb: [iis]", "lb: [iis, api]"
    )
    with LoadBalancer(roles=roles) as lb:
        lb.text = lb.text.replace(b"    # additional", b"    # additional-lb-api-server\n    # additional")
        lb.join(WEB[0])

        assert lb.run("plan").stdout == b"No changes: 1 node, 2 lines.\n"


# --- an invalid haproxy.cfg, quarantine, blocked removals -----------------------------------------------------------


@pytest.mark.parametrize("verb", ["plan", "apply"])
@pytest.mark.parametrize("pending", [False, True])
def test_an_invalid_haproxy_cfg_is_refused_with_its_line(lb: LoadBalancer, verb: str, *, pending: bool) -> None:
    text = broken(lb)
    if pending:
        lb.roles.write_text(lb.roles.read_text().replace("200ms", "300ms"))

    done = lb.run(verb)

    assert done.returncode == 4
    assert f"[{lb.cfg}:16]".encode() in done.stderr
    assert b"haproxy.cfg is invalid, not because of lbagent" in done.stderr
    assert lb.text == text


@pytest.mark.parametrize("verb", ["plan", "apply"])
def test_a_quarantine_is_printed_and_ends_with_4(lb: LoadBalancer, verb: str) -> None:
    lb.roles.write_text(lb.fill_template(ROLES).replace("interval: 200ms", "options: 'check weight {tag:weight|1}'"))
    lb.run("apply")
    lb.join(member_line("web03", "127.0.0.13", weight="999"))
    text = lb.text

    done = lb.run(verb)

    assert (done.returncode, done.stdout) == (4, b"No changes: 2 nodes, 2 lines.\n")
    assert b"web03" in done.stderr
    assert b"quarantine" in done.stderr
    assert lb.text == text


def test_plan_reports_the_lines_that_haproxy_would_refuse(lb: LoadBalancer) -> None:
    text = lb.text
    lb.roles.write_text(lb.roles.read_text().replace("interval: 200ms", "options: 'check maxcon 50'"))

    done = lb.run("plan")

    assert done.returncode == 4
    assert b"haproxy.cfg: HAProxy refuses the planned text: " in done.stderr
    assert b"maxcon" in done.stderr
    assert (lb.text, lb.list_staged()) == (text, [])


def test_blocked_removals_end_plan_and_apply_with_3() -> None:
    with LoadBalancer() as lb:
        lb.join(*WEB[:4])
        text = lb.text
        lb.roles.write_text(lb.roles.read_text().replace("127.0.0.0/8", "127.0.0.11/32"))

        planned, applied = lb.run("plan"), lb.run("apply")

        assert (planned.returncode, applied.returncode) == (3, 3)
        assert planned.stdout == b"No changes: 4 nodes, 4 lines.\n"
        assert b"`lbagent apply --force`" in planned.stderr
        assert lb.text == text


def test_plan_changes_nothing_while_a_run_stages_its_text(lb: LoadBalancer) -> None:
    staged = lb.etc / ".haproxy.cfg.lbagent-staged"
    staged.write_bytes(b"of a run that is under way")
    lb.roles.write_text(lb.roles.read_text().replace("200ms", "300ms"))

    assert lb.run("plan").returncode == 2
    assert staged.read_bytes() == b"of a run that is under way"


def test_without_haproxy_a_plan_is_printed_and_reported_as_not_validated(lb: LoadBalancer) -> None:
    lb.roles.write_text(lb.roles.read_text().replace("200ms", "300ms"))
    broken_program = lb.bin / "haproxy"
    broken_program.unlink()
    broken_program.write_bytes(b"\x7fELF broken")
    broken_program.chmod(0o755)

    done = lb.run("plan")

    assert done.returncode == 2
    assert b"not validated" in done.stderr


# --- trial files ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("serf") is None, reason="a real serf is needed")
def test_a_trial_roles_yml_is_used_with_the_installed_token(tmp_path: Path) -> None:
    settings, trial = tmp_path / "rpc.json", tmp_path / "trial.yml"
    settings.write_text('{"rpc_auth": "secret"}')
    token = {**clean_environment(), "SERF_RPC_AUTH": "secret"}
    with (
        LoadBalancer() as lb,
        SerfAgent("lb01", "127.0.0.5", "lb", more=[f"-config-file={settings}"], env=token) as agent,
    ):
        trial.write_text(lb.roles.read_text())
        (lb.etc / "serf.env").write_text(f'SERF_RPC_ADDR={agent.rpc}\nSERF_RPC_AUTH="secret"\n')
        environ = {key: value for key, value in lb.env.items() if key != "SERF_RPC_ADDR"}

        done = subprocess.run(
            [LBAGENT, "check", "--roles", trial], env=environ, capture_output=True, text=True, check=False
        )

        assert "the agent lb01 answers" in done.stdout


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["plan", "--roles", "{roles}", "--state-dir={state}"], ["--roles={roles}", "plan"]])
def test_global_options_are_accepted_before_and_after_the_command(lb: LoadBalancer, words: list[str]) -> None:
    given = [word.format(roles=lb.roles, state=lb.state) for word in words]

    done = lb.run(*given, env={"LBAGENT_ROLES": "/nowhere", "LBAGENT_STATE_DIR": str(lb.state)})

    assert (done.returncode, done.stdout) == (0, b"No changes: 2 nodes, 2 lines.\n")


def test_handle_accepts_options_before_and_after_the_command() -> None:
    with LoadBalancer() as lb:
        env = {"SERF_EVENT": "member-join", "LBAGENT_ROLES": "/nowhere", "LBAGENT_STATE_DIR": "/nowhere"}

        done = lb.run("handle", "--roles", str(lb.roles), f"--state-dir={lb.state}", stdin=WEB[0], env=env)

        assert (done.returncode, lb.managed) == (0, [lb.server("web01", "127.0.0.11")])


def test_lbagent_alone_prints_help() -> None:
    with LoadBalancer() as lb:
        done = lb.run()

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"usage: lbagent ")
    assert b"\n  pause " in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stauts"], "unknown command 'stauts'; did you mean status? (see `lbagent --help`)"),
        (["aply", "--force"], "unknown command 'aply'; did you mean apply? (see `lbagent --help`)"),
        (["frobnicate"], "unknown command 'frobnicate' (see `lbagent --help`)"),
        (
            ["status", "--jsn"],
            "unknown option or argument '--jsn'; did you mean --json? (see `lbagent status --help`)",
        ),
        (["-v"], "a command is missing (see `lbagent --help`)"),
        (["apply", "--yes"], "--yes is only for `lbagent apply --adopt`"),
    ],
)
def test_a_wrong_command_line_is_answered_with_a_correction(words: list[str], message: str) -> None:
    with LoadBalancer() as lb:
        done = lb.run(*words)

    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"lbagent: {message}\n")


# --- apply --adopt --------------------------------------------------------------------------------------------------


@pytest.fixture
def edited_lb() -> Iterator[LoadBalancer]:
    """A load balancer with an operator's line for a node that has joined."""
    with LoadBalancer() as lb:
        lb.text = lb.text.replace(
            b"    # additional", f"    server web01 127.0.0.11:{lb.port}\n    # additional".encode()
        )
        lb.join(WEB[0])
        assert lb.managed == []
        yield lb


def test_adopting_without_a_terminal_requires_yes(edited_lb: LoadBalancer) -> None:
    text = edited_lb.text

    refused = edited_lb.run("apply", "--adopt")
    kept = edited_lb.text
    done = edited_lb.run("apply", "--adopt", "--yes")

    assert (refused.returncode, kept) == (2, text)
    assert b"--yes" in refused.stderr
    assert refused.stdout.startswith(b"--- ")
    assert (done.returncode, edited_lb.managed) == (
        0,
        [edited_lb.server("web01", "127.0.0.11")],
    )
    again = edited_lb.run("apply", "--adopt")
    assert (again.returncode, again.stdout) == (0, b"No changes: 1 node, 1 line.\n")


@pytest.mark.parametrize(("answer", "adopted"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False)])
def test_adopting_asks_on_a_terminal(edited_lb: LoadBalancer, answer: str, *, adopted: bool) -> None:
    terminal = Terminal([LBAGENT, "apply", "--adopt"], edited_lb.env)
    shown = terminal.wait_for("[y/N] ")
    text = edited_lb.text

    terminal.type(answer)
    status, message = terminal.wait_for_end()

    assert f"+    {edited_lb.server('web01', '127.0.0.11')}" in shown
    assert status == 0
    assert edited_lb.managed == ([edited_lb.server("web01", "127.0.0.11")] if adopted else [])
    assert adopted or (edited_lb.text == text and "Nothing was changed." in message)


def test_a_change_during_the_confirmation_is_not_applied_without_a_new_diff(
    edited_lb: LoadBalancer,
) -> None:
    terminal = Terminal([LBAGENT, "apply", "--adopt"], edited_lb.env)
    terminal.wait_for("[y/N] ")
    edited_lb.join(WEB[1])
    text = edited_lb.text

    terminal.type("y\n")
    status, message = terminal.wait_for_end()

    assert status == 6
    assert "has changed since the diff was shown" in message
    assert edited_lb.text == text


def test_a_run_is_not_delayed_by_the_open_confirmation(edited_lb: LoadBalancer) -> None:
    with Haproxy(edited_lb):
        terminal = Terminal([LBAGENT, "apply", "--adopt"], edited_lb.env)
        try:
            terminal.wait_for("[y/N] ")
            edited_lb.join(WEB[1])
            wait_until(lambda: edited_lb.is_settled(edited_lb.server("web02", "127.0.0.12")))
        finally:
            terminal.close()
