"""The .bat files of windows/, run by Wine's cmd.exe with a real serf.exe and two real load balancers."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios import wine
from scenarios.windows_site import Report, Site, SlowServer, is_confirmed, run_site
from tests.helpers.http_clients import run_clients
from tests.helpers.pair import Balancer
from tests.helpers.real_programs import Backend, SerfAgent, wait_until

HAD_WINE = (Path.home() / ".wine").exists()
"""Whether the user has a Wine prefix in the home folder."""

ODD_FOLDER = "Program Files (x86)/my serf & co"


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    kept = Report()
    yield kept
    kept.show()


@pytest.fixture(scope="module")
def windows(report: Report) -> Iterator[None]:
    with report.step("Wine's prefix and serf.exe, if missing"):
        wine.prepare()
    with wine.run_wine():
        yield


@pytest.fixture(scope="module")
def world(windows: None, report: Report) -> Iterator[Site]:  # noqa: ARG001  # Wine has to run
    with run_site(report) as made:
        yield made


def test_a_server_boots_is_paused_crashes_reboots_is_resumed_and_leaves(world: Site) -> None:
    step, port = world.report.step, world.balancers[0].lb.port
    with (
        world.server(2, folder=ODD_FOLDER) as server,
        SerfAgent("linux", "127.0.0.3", "web", more=["-profile=lan", f"-encrypt={world.key}"]) as other,
        Backend("linux", "127.0.0.3", port),
        Backend("win02", "127.0.0.2", port) as backend,
    ):
        for balancer in world.balancers:
            other.join(balancer.agent)
        for balancer in world.balancers:
            wait_until(functools.partial(_serves_only, balancer, "linux"), 60)
        server.configure(world.key, world.addresses)
        with (
            run_clients(world.balancers[0].lb.front, clients=2, pause=0.02) as one,
            run_clients(world.balancers[1].lb.front, 2, 0.02) as two,
        ):
            _check_boot(world, server)
            wait_until(lambda: backend.requests)
            _check_pause(world, server)
            before = backend.requests
            _check_crash_and_reboot(world, server)
            after = backend.requests
            _check_resume(world, server)
            wait_until(lambda: backend.requests > after, 60)
            _check_leave(world, server)
        with step("requests meanwhile") as output:
            output.append(f"{one['ok'] + two['ok']}, none failed")

    assert set(one) | set(two) == {"ok"}
    assert after == before, "a paused server gets no requests"


def _check_boot(world: Site, server: wine.Server) -> None:
    with world.report.step("install.bat") as output:
        installed = server.install()
        output.append(installed.output)
    with world.report.step("boot -> its line is on both load balancers"):
        server.boot()
        world.wait_until_added(server)

    first_line = f"Installed: win02 (role web) on {server.bind}, started at boot by: none\n"
    assert installed == (
        0,
        f"{first_line}Run join-cluster.bat next; if the agent runs already, run leave-cluster.bat first.\n",
    )


def _check_pause(world: Site, server: wine.Server) -> None:
    with world.report.step("pause.bat, until it returns") as output:
        paused = server.run("pause.bat", '"patch day & more"')
        output.append(paused.output)
    lines = world.read_lines(server)
    again = server.run("pause.bat")

    assert lines == [[world.paused_line(server)]] * 2
    assert paused.output.splitlines()[0] == "win02 (role web): pause until resume.bat: patch day & more"
    assert (is_confirmed(paused), is_confirmed(again)) == (True, True)
    assert server.tags == {"role": "web", "lbagent": "paused"}
    time.sleep(2)  # requests that were in transit when HAProxy confirmed


def _check_crash_and_reboot(world: Site, server: wine.Server) -> None:
    with world.report.step("Serf crashes -> join-cluster.bat has restarted it"):
        [first] = server.agents
        server.kill_agent()
        wait_until(lambda: server.agents not in ([], [first]) and server.answers(), 120)
    with world.report.step("the server reboots -> its agent answers"):
        server.power_off()
        server.boot()
    wait_until(lambda: world.read_status(server) == "alive", 120)
    time.sleep(3)  # Serf reports a rejoin after one second

    assert world.read_lines(server) == [[world.paused_line(server)]] * 2


def _check_resume(world: Site, server: wine.Server) -> None:
    with world.report.step("resume.bat, until it returns") as output:
        resumed = server.run("resume.bat")
        output.append(resumed.output)
    lines = world.read_lines(server)
    again = server.run("resume.bat")

    assert lines == [[world.server_line(server)]] * 2
    assert (is_confirmed(resumed), is_confirmed(again)) == (True, True)
    assert server.tags == {"role": "web"}


def _check_leave(world: Site, server: wine.Server) -> None:
    with world.report.step("leave-cluster.bat, with its own wait of 5 s") as output:
        left = server.run("leave-cluster.bat")
        output.append(left.output)

    assert left == (0, "This server has left the cluster.\n")
    world.wait_until_removed(server)
    assert world.read_status(server) == "left"


def _serves_only(balancer: Balancer, name: str) -> bool:
    return balancer.lb.idle and balancer.haproxy.find_answering(5) == {name}


def test_a_pause_with_an_end_needs_no_tag_and_replaces_one_without_an_end(world: Site) -> None:
    with world.enrol(4) as server:
        first, then = server.run("pause.bat"), server.run("pause.bat", "030", "half", "an", "hour")

        assert is_confirmed(first)
        assert is_confirmed(then)
        assert then.output.splitlines()[0] == "win04 (role web): pause for 30 min: half an hour"
        assert server.tags == {"role": "web"}
        time.sleep(3)  # Serf reports the removal of the tag
        assert world.read_lines(server) == [[world.paused_line(server)]] * 2
        for balancer in world.balancers:
            pause = balancer.lb.members()["win04"]["pause"]
            assert 1700 < pause.until - time.time() <= 1800
            assert pause.reason == "half an hour"
        assert is_confirmed(server.run("resume.bat"))
        world.wait_until_added(server)


def test_wait_returns_when_the_last_session_has_ended(world: Site) -> None:
    with (
        world.enrol(5) as server,
        SlowServer("127.0.0.5", world.balancers[0].lb.port) as slow,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        wait_until(lambda: world.balancers[0].haproxy.servers().get("win05") == "UP", 60)
        client = pool.submit(slow.client, world.balancers[0].lb.front)
        wait_until(lambda: _has_session(world, server))

        limited = server.run("pause.bat", "/wait:3")
        waiting = pool.submit(server.run, "pause.bat", "60", "/wait")
        time.sleep(8)
        early = waiting.done()
        slow.release()
        with world.report.step("the last session ends -> pause.bat /wait returns") as output:
            ended = waiting.result(300)
            output.append(ended.output)

    # Both count the session: they run on one host, and lbagent counts the host's connections.
    open_sessions = [f"  {lb}  done, 1 session still open, no other server of iis serves" for lb in ("lb01", "lb02")]
    assert limited.status == 1
    assert limited.output.splitlines()[1:3] == open_sessions
    assert limited.output.splitlines()[-1].startswith("Paused: no new requests. Sessions still open after ")
    assert not early
    assert ended.status == 0
    assert ended.output.splitlines()[:3] == ["win05 (role web): pause for 60 min", *open_sessions]
    assert ended.output.splitlines()[-3:] == [
        "  lb01  done, no other server of iis serves",
        "  lb02  done, no other server of iis serves",
        "Paused: no new requests, no open sessions.",
    ]
    assert client.result(30) == "slow"


def _has_session(world: Site, server: wine.Server) -> bool:
    rows = (row.split(",") for row in world.balancers[0].haproxy.send("show stat").splitlines())
    return any(row[1:2] == [server.name] and row[4] == "1" for row in rows)


def test_scripts_change_nothing_and_exit_with_2_if_the_agent_is_down(world: Site) -> None:
    with world.server(6) as server:
        server.configure(world.key, world.addresses)
        server.install()

        pause, resume, leave = (server.run(name) for name in ("pause.bat", "resume.bat", "leave-cluster.bat"))

        refusal = f"  Error connecting to Serf agent: dial tcp {server.rpc}: connectex: Connection refused.\n"
        down = f"The Serf agent does not answer, nothing was done:\n{refusal}Start it with join-cluster.bat.\n"
        assert (pause, resume) == ((2, down), (2, down))
        assert leave == (0, f"The agent does not run, nothing was done:\n{refusal}")


def test_without_the_token_scripts_require_an_administrator(world: Site) -> None:
    with world.enrol(7) as server:
        server.prompt.env["SERF_RPC_AUTH"] = "guessed"
        pause, leave = server.run("pause.bat"), server.run("leave-cluster.bat", "0")
        del server.prompt.env["SERF_RPC_AUTH"]

        assert (pause.status, leave.status) == (2, 2)
        assert not (server.folder / "data" / "left").exists(), "the agent would not be started again"
        assert "Run this as administrator" in pause.output
        assert "run this as administrator" in leave.output
        assert world.read_lines(server) == [[world.server_line(server)]] * 2


def test_a_load_balancer_that_is_down_is_reported_and_gets_the_pause_later(
    windows: None,  # noqa: ARG001  # Wine has to run
    report: Report,
) -> None:
    with run_site(report) as world, world.enrol(8) as server:
        one, two = world.balancers
        two.agent.kill()
        wait_until(lambda: one.agent.members()["lb02"] == "failed", 60)
        with report.step("pause.bat, one of two load balancers down") as output:
            half = server.run("pause.bat")
            output.append(half.output)
        one.agent.kill()
        wait_until(lambda: b"lb01" in server.run_serf("members", "-status=failed").stdout, 60)
        with report.step("pause.bat, both down") as output:
            none = server.run("pause.bat")
            output.append(none.output)
        for balancer in world.balancers:
            balancer.agent.start()
        with report.step("both load balancers start again -> both have paused it"):
            world.wait_until_paused(server)

        assert half.status == 0
        assert half.output.splitlines()[1:3] == [
            "  lb01  done, no other server of iis serves",
            "  lb02  not asked: failed in Serf",
        ]
        assert none.status == 1
        assert none.output.splitlines()[1:] == [
            "  lb01  not asked: failed in Serf",
            "  lb02  not asked: failed in Serf",
            "No load balancer (role lb) is alive in Serf.",
            "NOT confirmed: requests may still arrive; see the answers above, and run pause.bat again.",
        ]


def test_a_pause_is_unconfirmed_if_a_live_load_balancer_does_not_answer(world: Site) -> None:
    silent = SerfAgent("lb03", "127.0.0.11", "lb", more=["-profile=lan", f"-encrypt={world.key}"])
    with world.enrol(9) as server, silent:
        silent.join(world.balancers[0].agent)
        wait_until(lambda: b"lb03" in server.run_serf("members", "-status=alive").stdout, 60)

        pause = server.run("pause.bat")
        silent.leave()

        assert pause.status == 1
        assert pause.output.splitlines()[1:] == [
            "  lb01  done, no other server of iis serves",
            "  lb02  done, no other server of iis serves",
            "  lb03  not answered",
            "NOT confirmed: requests may still arrive; see the answers above, and run pause.bat again.",
        ]


def test_a_refusal_of_a_load_balancer_is_reported_and_unconfirmed(world: Site) -> None:
    with world.enrol(12) as server:
        lb = world.balancers[1].lb
        by_hand = b"    server WIN12 127.0.0.12:%d\n" % lb.port
        lb.text = lb.text.replace(f"    {world.server_line(server)}\n".encode(), by_hand)

        pause = server.run("pause.bat")
        lb.text = lb.text.replace(by_hand, b"")

        assert pause.status == 1
        assert pause.output.splitlines()[1] == "  lb01  done, no other server of iis serves"
        assert pause.output.splitlines()[2].startswith("  lb02  not applied yet: ")


@pytest.mark.parametrize("name", ["web 13", "web&13", 'web"13', "-web13", "a" * 64])
def test_an_invalid_node_name_is_refused(world: Site, name: str) -> None:
    with world.server(13) as server:
        server.configure(world.key, world.addresses)
        server.install()
        node = server.folder / "conf" / "node.json"
        node.write_text(json.dumps(json.loads(node.read_text()) | {"node_name": name}))
        server.boot()

        pause = server.run("pause.bat")

        assert pause.status == 2
        assert pause.output.splitlines()[:2] == [
            "The node's name is invalid, nothing was done:",
            f"  {name}",
        ]
        assert server.tags == {"role": "web"}


@pytest.mark.parametrize("name", ["WEB-14.Example_com", "a" * 63])
def test_every_valid_node_name_is_accepted(world: Site, name: str) -> None:
    with world.enrol(14, name=name) as server:
        assert is_confirmed(server.run("pause.bat", "5"))
        assert is_confirmed(server.run("resume.bat"))


def test_a_reason_arrives_unchanged(world: Site) -> None:
    reasons = {
        "\"a & b | c < d > e ^ f (g) !h! 'i'\"": "a & b | c < d > e ^ f (g) !h! 'i'",
        "C:\\patches\\": "C:\\patches\\",
        '""': "",
        f'"{"x" * 300}"': "x" * 200,
    }
    with world.enrol(15) as server:
        for typed, received in reasons.items():
            ended = server.run("pause.bat", "5", typed)
            assert ended.status == 0, ended.output  # Wine reports an error for arguments as long as its longest path
            assert world.balancers[0].lb.members()["win15"]["pause"].reason == received


@pytest.mark.parametrize(
    "words", [["/wiat"], ["2h"], ["0"], ["100000"], ["/wait:"], ["/wait:5m"], ["/?"], ["5", "/wait:0"]]
)
def test_invalid_arguments_print_the_usage_and_exit_with_2(world: Site, words: list[str]) -> None:
    with world.server(16) as server:
        ended = server.run("pause.bat", *words)

        assert ended.status == 2
        assert ended.output.startswith("pause.bat [MINUTES] [REASON] [/wait[:SECONDS]]\n")


def test_two_servers_that_pause_at_once_are_both_paused(world: Site) -> None:
    with world.enrol(17) as one, world.enrol(18) as two, concurrent.futures.ThreadPoolExecutor() as pool:
        paused = list(pool.map(lambda server: server.run("pause.bat"), (one, two)))

        assert [is_confirmed(ended) for ended in paused] == [True, True]
        assert (world.read_lines(one), world.read_lines(two)) == (
            [[world.paused_line(one)]] * 2,
            [[world.paused_line(two)]] * 2,
        )


def test_a_user_event_with_address_and_role_still_works(world: Site) -> None:
    with world.enrol(19) as server:
        exe = f'"{wine.windows_path(server.folder)}\\serf.exe"'
        server.prompt.env |= {"SERF_RPC_ADDR": server.rpc, "SERF_RPC_AUTH": server.token}

        paused = server.prompt.run_line(f'{exe} event -coalesce=false pause "WIN19  127.0.0.19 web"')
        world.wait_until_paused(server)
        resumed = server.prompt.run_line(f'{exe} event -coalesce=false resume "WIN19  127.0.0.19 web"')
        world.wait_until_added(server)

        assert (paused.status, resumed.status) == (0, 0)


def test_install_checks_everything_before_it_writes(world: Site) -> None:
    with world.server(20) as server:
        before = sorted(server.folder.rglob("*"))
        words = {
            ("web", "10.0.0.5"): "web.json: CHANGE-ME found; replace it by your values",
            (
                "mail",
                "10.0.0.5",
            ): "mail.json: missing; copy web.json, and change its tags_file to data/mail.tags",
            ("web", "host.example.com"): "ADDRESS: use an IP address of this server, or ADDRESS:PORT",
            ("web", "fd00::5"): "ADDRESS: use an IP address of this server, IPv6 in brackets",
            ("web", "10.0.0.5", "/name", '"a b"'): "/name: use letters, digits, dots, - and _",
            ("web", "10.0.0.5", "/as", "winsw"): "serf-service.exe: missing; copy WinSW here under this name",
            ("web", "10.0.0.5", "/as", "nssm"): "nssm.exe: missing; copy it to the folder of install.bat",
        }

        results = {arguments: server.run("install.bat", *arguments) for arguments in words}

        assert results == {arguments: (2, f"Nothing was done: {why}.\n") for arguments, why in words.items()}
        assert sorted(server.folder.rglob("*")) == before


def test_installing_again_keeps_pause_and_token(world: Site) -> None:
    with world.enrol(21) as server:
        assert is_confirmed(server.run("pause.bat"))
        token = server.token

        again = server.install()
        server.power_off()
        server.boot()

        assert again.status == 0
        assert server.token == token
        assert server.tags == {"role": "web", "lbagent": "paused"}


def test_the_task_of_install_runs_the_agent(world: Site) -> None:
    with world.server(22, folder=ODD_FOLDER) as server:
        server.configure(world.key, world.addresses)

        installed = server.install("/as", "task")  # Wine's schtasks accepts the task and never runs it
        task = ET.parse(server.folder / "conf" / "task.xml").getroot()
        space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
        action = {one.tag.removeprefix(space): one.text for one in task.iter()}
        server.boot(str(action["Arguments"]))
        world.wait_until_added(server)
        removed = server.run("uninstall.bat")
        world.wait_until_removed(server)
        again = server.prompt.run_line("schtasks /delete /tn serf /f")

    assert (installed.status, removed.status) == (0, 0)
    assert action["WorkingDirectory"] == wine.windows_path(server.folder)
    assert again.status == 1, "the task was removed"


def test_the_commands_of_the_winsw_service_join_and_leave(world: Site) -> None:
    with world.server(23, folder=ODD_FOLDER) as server:
        server.configure(world.key, world.addresses)
        server.install()
        service = {one.tag: str(one.text) for one in ET.parse(server.folder / "serf-service.xml").getroot()}

        server.boot(service["startarguments"])
        world.wait_until_added(server)
        here = wine.Prompt()
        here.folder = server.folder
        stopped = here.start(*service["stoparguments"].split(), log=server.folder / "stop.log").wait(60)
        with world.report.step("WinSW's stop command, then the end of the service"):
            assert server.wait_for_exit() == 0

        assert stopped == 0
        world.wait_until_removed(server)
        assert world.read_status(server) == "left"


def test_nssm_starts_restarts_and_stops_the_service(world: Site) -> None:
    step = world.report.step
    with world.server(24, folder=ODD_FOLDER) as server:
        wine.copy_nssm(server.folder)
        server.configure(world.key, world.addresses)
        installed = server.install("/as", "nssm")

        with step("NSSM: join-cluster.bat starts the service -> joined") as output:
            joined = server.run("join-cluster.bat")
            output.append(joined.output)
            world.wait_until_added(server)
        with step("NSSM: Serf crashes -> the service has restarted it"):
            [first] = server.agents
            server.kill_agent()
            wait_until(lambda: server.agents not in ([], [first]) and server.answers(), 120)
        wait_until(lambda: world.read_status(server) == "alive", 120)
        with step("NSSM: leave-cluster.bat stops the service -> left") as output:
            left = server.run("leave-cluster.bat", "0")
            output.append(left.output)
        world.wait_until_removed(server)
        was = world.read_status(server)
        removed, service = server.run("uninstall.bat"), server.prompt.run_line("sc query serf")

    assert [installed.status, joined.status, removed.status, service.status] == [0, 0, 0, 1]
    assert (left, was) == ((0, "This server has left the cluster.\n"), "left")


def test_join_cluster_by_hand_starts_an_agent_that_uninstall_removes(world: Site) -> None:
    with world.server(25) as server:
        before = sorted(server.folder.rglob("*"))
        server.configure(world.key, world.addresses)
        server.install()

        with world.report.step("join-cluster.bat, as a start-up script of Group Policy") as output:
            joined = server.run("join-cluster.bat")
            output.append(joined.output)
        world.wait_until_added(server)
        again = server.run("join-cluster.bat")
        removed = server.run("uninstall.bat")
        world.wait_until_removed(server)

        assert joined.status == 0
        assert sorted(joined.output.splitlines()) == ["  lb01", "  lb02", "Joined the cluster of these load balancers."]
        assert again == (0, "The agent runs already.\n")
        assert removed.status == 0
        assert sorted(server.folder.rglob("*")) == before
        assert world.read_status(server) == "left"


def test_the_users_wine_prefix_is_not_touched(world: Site) -> None:  # noqa: ARG001  # runs after the other tests
    assert wine.make_environment()["HOME"] == str(wine.HOME / "home")
    assert (Path.home() / ".wine").exists() == HAD_WINE
