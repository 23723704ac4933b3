"""The .bat files of windows/, run by Wine's cmd.exe with a real serf.exe, against two real load balancers."""

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
from scenarios.windows_site import Report, Site, Slow, confirmed, site
from tests.helpers.http_clients import run_clients
from tests.helpers.pair import Balancer
from tests.helpers.real_programs import Backend, SerfAgent, wait_until

HAD_WINE = (Path.home() / ".wine").exists()
"""Of the caller's own."""

ODD_FOLDER = "Program Files (x86)/my serf & co"


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    kept = Report()
    yield kept
    kept.show()


@pytest.fixture(scope="module")
def windows(report: Report) -> Iterator[None]:
    with report.step("Wine's prefix and serf.exe, where they are not there yet"):
        wine.prepare()
    with wine.running():
        yield


@pytest.fixture(scope="module")
def world(windows: None, report: Report) -> Iterator[Site]:  # noqa: ARG001  # Wine has to be there
    with site(report) as made:
        yield made


def test_a_server_boots_is_paused_crashes_reboots_is_resumed_and_leaves(world: Site) -> None:
    step, port = world.report.step, world.two[0].lb.port
    with (
        world.server(2, folder=ODD_FOLDER) as server,
        SerfAgent("linux", "127.0.0.3", "web", more=["-profile=lan", f"-encrypt={world.key}"]) as other,
        Backend("linux", "127.0.0.3", port),
        Backend("win02", "127.0.0.2", port) as backend,
    ):
        for balancer in world.two:
            other.join(balancer.agent)
        for balancer in world.two:
            wait_until(functools.partial(_serves, balancer, "linux"), 60)
        server.configure(world.key, world.addresses)
        with (
            run_clients(world.two[0].lb.front, clients=2, pause=0.02) as one,
            run_clients(world.two[1].lb.front, 2, 0.02) as two,
        ):
            _installs_and_boots(world, server)
            wait_until(lambda: backend.requests)
            _pauses(world, server)
            before = backend.requests
            _crashes_and_reboots(world, server)
            after = backend.requests
            _resumes(world, server)
            wait_until(lambda: backend.requests > after, 60)
            _leaves(world, server)
        with step("requests meanwhile") as said:
            said.append(f"{one['ok'] + two['ok']}, none failed")

    assert set(one) | set(two) == {"ok"}
    assert after == before, "nothing reaches a paused server"


def _installs_and_boots(world: Site, server: wine.Server) -> None:
    with world.report.step("install.bat") as said:
        installed = server.install()
        said.append(installed.said)
    with world.report.step("boot -> in haproxy.cfg on both"):
        server.boot()
        world.has(server)

    told = f"Installed: win02 (role web) on {server.bind}, started at boot by: none\n"
    assert installed == (0, f"{told}Now join-cluster.bat; an agent that runs already has to leave-cluster.bat first.\n")


def _pauses(world: Site, server: wine.Server) -> None:
    with world.report.step("pause.bat, until it returns") as said:
        paused = server.run("pause.bat", '"patch day & more"')
        said.append(paused.said)
    stands = world.of(server)
    again = server.run("pause.bat")

    assert stands == [[world.paused(server)]] * 2
    assert paused.said.splitlines()[0] == "win02 (role web): pause until resume.bat: patch day & more"
    assert (confirmed(paused), confirmed(again)) == (True, True)
    assert server.tags == {"role": "web", "lbagent": "paused"}
    time.sleep(2)  # what was on its way when HAProxy confirmed


def _crashes_and_reboots(world: Site, server: wine.Server) -> None:
    with world.report.step("Serf crashes -> started again by join-cluster.bat"):
        [first] = server.agents
        server.kill_agent()
        wait_until(lambda: server.agents not in ([], [first]) and server.answers(), 120)
    with world.report.step("the server reboots -> its agent answers"):
        server.power_off()
        server.boot()
    wait_until(lambda: world.status(server) == "alive", 120)
    time.sleep(3)  # Serf tells of a rejoin after one second

    assert world.of(server) == [[world.paused(server)]] * 2


def _resumes(world: Site, server: wine.Server) -> None:
    with world.report.step("resume.bat, until it returns") as said:
        resumed = server.run("resume.bat")
        said.append(resumed.said)
    stands = world.of(server)
    again = server.run("resume.bat")

    assert stands == [[world.line(server)]] * 2
    assert (confirmed(resumed), confirmed(again)) == (True, True)
    assert server.tags == {"role": "web"}


def _leaves(world: Site, server: wine.Server) -> None:
    with world.report.step("leave-cluster.bat, 5 s of them asked for") as said:
        left = server.run("leave-cluster.bat")
        said.append(left.said)

    assert left == (0, "Out of the cluster.\n")
    world.lacks(server)
    assert world.status(server) == "left"


def _serves(balancer: Balancer, name: str) -> bool:
    return balancer.lb.idle and balancer.haproxy.find_answering(5) == {name}


def test_a_pause_with_an_end_needs_no_tag_and_takes_the_place_of_one_without(world: Site) -> None:
    with world.enrolled(4) as server:
        first, then = server.run("pause.bat"), server.run("pause.bat", "030", "half", "an", "hour")

        assert confirmed(first)
        assert confirmed(then)
        assert then.said.splitlines()[0] == "win04 (role web): pause for 30 min: half an hour"
        assert server.tags == {"role": "web"}
        time.sleep(3)  # the end of the tag is told by Serf
        assert world.of(server) == [[world.paused(server)]] * 2
        for balancer in world.two:
            pause = balancer.lb.members()["win04"]["pause"]
            assert 1700 < pause.until - time.time() <= 1800
            assert pause.reason == "half an hour"
        assert confirmed(server.run("resume.bat"))
        world.has(server)


def test_wait_returns_when_the_last_session_has_ended(world: Site) -> None:
    with (
        world.enrolled(5) as server,
        Slow("127.0.0.5", world.two[0].lb.port) as slow,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        wait_until(lambda: world.two[0].haproxy.servers().get("win05") == "UP", 60)
        client = pool.submit(slow.client, world.two[0].lb.front)
        wait_until(lambda: _sessions(world, server))

        limited = server.run("pause.bat", "/wait:3")
        waiting = pool.submit(server.run, "pause.bat", "60", "/wait")
        time.sleep(8)
        early = waiting.done()
        slow.release()
        with world.report.step("the last session ends -> pause.bat /wait returns") as said:
            ended = waiting.result(300)
            said.append(ended.said)

    # Both see it: they are one machine here, and have its connections in common.
    still = [f"  {lb}  done, 1 session still open, no other server of iis serves" for lb in ("lb01", "lb02")]
    assert limited.status == 1
    assert limited.said.splitlines()[1:3] == still
    assert limited.said.splitlines()[-1].startswith("Paused: no new request comes. Sessions still open after ")
    assert not early
    assert ended.status == 0
    assert ended.said.splitlines()[:3] == ["win05 (role web): pause for 60 min", *still]
    assert ended.said.splitlines()[-3:] == [
        "  lb01  done, no other server of iis serves",
        "  lb02  done, no other server of iis serves",
        "Paused: no new request comes, and no session is open.",
    ]
    assert client.result(30) == "slow"


def _sessions(world: Site, server: wine.Server) -> bool:
    rows = (row.split(",") for row in world.two[0].haproxy.send("show stat").splitlines())
    return any(row[1:2] == [server.name] and row[4] == "1" for row in rows)


def test_where_the_agent_is_down_nothing_is_done_and_the_exit_status_is_2(world: Site) -> None:
    with world.server(6) as server:
        server.configure(world.key, world.addresses)
        server.install()

        pause, resume, leave = (server.run(name) for name in ("pause.bat", "resume.bat", "leave-cluster.bat"))

        refusal = f"  Error connecting to Serf agent: dial tcp {server.rpc}: connectex: Connection refused.\n"
        down = f"The Serf agent does not answer, nothing was done:\n{refusal}Start it with join-cluster.bat.\n"
        assert (pause, resume) == ((2, down), (2, down))
        assert leave == (0, f"The agent does not run, there is nothing to leave:\n{refusal}")


def test_who_has_not_the_token_is_told_to_be_administrator(world: Site) -> None:
    with world.enrolled(7) as server:
        server.prompt.env["SERF_RPC_AUTH"] = "guessed"
        pause, leave = server.run("pause.bat"), server.run("leave-cluster.bat", "0")
        del server.prompt.env["SERF_RPC_AUTH"]

        assert (pause.status, leave.status) == (2, 2)
        assert not (server.folder / "data" / "left").exists(), "the agent would not be started again"
        assert "Run this as administrator" in pause.said
        assert "run this as administrator" in leave.said
        assert world.of(server) == [[world.line(server)]] * 2


def test_a_load_balancer_that_is_down_is_told_and_learns_of_the_pause_when_it_is_back(
    windows: None,  # noqa: ARG001  # Wine has to be there
    report: Report,
) -> None:
    with site(report) as world, world.enrolled(8) as server:
        one, two = world.two
        two.agent.kill()
        wait_until(lambda: one.agent.members()["lb02"] == "failed", 60)
        with report.step("pause.bat, one of two load balancers down") as said:
            half = server.run("pause.bat")
            said.append(half.said)
        one.agent.kill()
        wait_until(lambda: b"lb01" in server.serf("members", "-status=failed").stdout, 60)
        with report.step("pause.bat, both down") as said:
            none = server.run("pause.bat")
            said.append(none.said)
        for balancer in world.two:
            balancer.agent.start()
        with report.step("both load balancers back -> both have it paused"):
            world.pauses(server)

        assert half.status == 0
        assert half.said.splitlines()[1:3] == [
            "  lb01  done, no other server of iis serves",
            "  lb02  not asked: failed, says Serf",
        ]
        assert none.status == 1
        assert none.said.splitlines()[1:] == [
            "  lb01  not asked: failed, says Serf",
            "  lb02  not asked: failed, says Serf",
            "No load balancer, of role lb, can be asked now.",
            "NOT confirmed: requests may still come. See above, and pause again.",
        ]


def test_a_load_balancer_that_is_alive_and_silent_leaves_it_unconfirmed(world: Site) -> None:
    mute = SerfAgent("lb03", "127.0.0.11", "lb", more=["-profile=lan", f"-encrypt={world.key}"])
    with world.enrolled(9) as server, mute:
        mute.join(world.two[0].agent)
        wait_until(lambda: b"lb03" in server.serf("members", "-status=alive").stdout, 60)

        pause = server.run("pause.bat")
        mute.leave()

        assert pause.status == 1
        assert pause.said.splitlines()[1:] == [
            "  lb01  done, no other server of iis serves",
            "  lb02  done, no other server of iis serves",
            "  lb03  not answered",
            "NOT confirmed: requests may still come. See above, and pause again.",
        ]


def test_what_a_load_balancer_refuses_is_told_and_unconfirmed(world: Site) -> None:
    with world.enrolled(12) as server:
        lb = world.two[1].lb
        by_hand = b"    server WIN12 127.0.0.12:%d\n" % lb.port
        lb.text = lb.text.replace(f"    {world.line(server)}\n".encode(), by_hand)

        pause = server.run("pause.bat")
        lb.text = lb.text.replace(by_hand, b"")

        assert pause.status == 1
        assert pause.said.splitlines()[1] == "  lb01  done, no other server of iis serves"
        assert pause.said.splitlines()[2].startswith("  lb02  not applied yet: ")


@pytest.mark.parametrize("name", ["web 13", "web&13", 'web"13', "-web13", "a" * 64])
def test_a_name_that_no_load_balancer_serves_is_refused(world: Site, name: str) -> None:
    with world.server(13) as server:
        server.configure(world.key, world.addresses)
        server.install()
        node = server.folder / "conf" / "node.json"
        node.write_text(json.dumps(json.loads(node.read_text()) | {"node_name": name}))
        server.boot()

        pause = server.run("pause.bat")

        assert pause.status == 2
        assert pause.said.splitlines()[:2] == [
            "No load balancer serves a node of this name, nothing was done:",
            f"  {name}",
        ]
        assert server.tags == {"role": "web"}


@pytest.mark.parametrize("name", ["WEB-14.Example_com", "a" * 63])
def test_any_other_name_is_taken(world: Site, name: str) -> None:
    with world.enrolled(14, name=name) as server:
        assert confirmed(server.run("pause.bat", "5"))
        assert confirmed(server.run("resume.bat"))


def test_a_reason_arrives_as_it_was_typed(world: Site) -> None:
    reasons = {
        "\"a & b | c < d > e ^ f (g) !h! 'i'\"": "a & b | c < d > e ^ f (g) !h! 'i'",
        "C:\\patches\\": "C:\\patches\\",
        '""': "",
        f'"{"x" * 300}"': "x" * 200,
    }
    with world.enrolled(15) as server:
        for typed, heard in reasons.items():
            ended = server.run("pause.bat", "5", typed)
            assert ended.status == 0, ended.said  # Wine grumbles at words as long as its longest path
            assert world.two[0].lb.members()["win15"]["pause"].reason == heard


@pytest.mark.parametrize(
    "words", [["/wiat"], ["2h"], ["0"], ["100000"], ["/wait:"], ["/wait:5m"], ["/?"], ["5", "/wait:0"]]
)
def test_what_cannot_be_meant_is_answered_with_the_usage_and_2(world: Site, words: list[str]) -> None:
    with world.server(16) as server:
        ended = server.run("pause.bat", *words)

        assert ended.status == 2
        assert ended.said.startswith("pause.bat [MINUTES] [REASON] [/wait[:SECONDS]]\n")


def test_two_servers_that_pause_at_once_are_both_heard(world: Site) -> None:
    with world.enrolled(17) as one, world.enrolled(18) as two, concurrent.futures.ThreadPoolExecutor() as pool:
        paused = list(pool.map(lambda server: server.run("pause.bat"), (one, two)))

        assert [confirmed(ended) for ended in paused] == [True, True]
        assert (world.of(one), world.of(two)) == ([[world.paused(one)]] * 2, [[world.paused(two)]] * 2)


def test_the_classic_event_goes_on_working(world: Site) -> None:
    with world.enrolled(19) as server:
        exe = f'"{wine.windows_path(server.folder)}\\serf.exe"'
        server.prompt.env |= {"SERF_RPC_ADDR": server.rpc, "SERF_RPC_AUTH": server.token}

        paused = server.prompt.type(f'{exe} event -coalesce=false pause "WIN19  127.0.0.19 web"')
        world.pauses(server)
        resumed = server.prompt.type(f'{exe} event -coalesce=false resume "WIN19  127.0.0.19 web"')
        world.has(server)

        assert (paused.status, resumed.status) == (0, 0)


def test_install_looks_before_it_writes(world: Site) -> None:
    with world.server(20) as server:
        before = sorted(server.folder.rglob("*"))
        words = {
            ("web", "10.0.0.5"): "web.json: put your own values where it says CHANGE-ME",
            (
                "mail",
                "10.0.0.5",
            ): "there is no mail.json here: copy web.json, and change its tags_file to data/mail.tags",
            ("web", "host.example.com"): "ADDRESS is an IP address of this server, or ADDRESS:PORT",
            ("web", "fd00::5"): "ADDRESS is an IP address of this server, IPv6 in brackets",
            ("web", "10.0.0.5", "/name", '"a b"'): "/name is letters, digits, dots, - and _",
            ("web", "10.0.0.5", "/as", "winsw"): "WinSW has to lie beside install.bat, as serf-service.exe",
            ("web", "10.0.0.5", "/as", "nssm"): "nssm.exe has to lie beside install.bat",
        }

        said = {asked: server.run("install.bat", *asked) for asked in words}

        assert said == {asked: (2, f"Nothing was done: {why}.\n") for asked, why in words.items()}
        assert sorted(server.folder.rglob("*")) == before


def test_installing_again_keeps_pause_and_token(world: Site) -> None:
    with world.enrolled(21) as server:
        assert confirmed(server.run("pause.bat"))
        token = server.token

        again = server.install()
        server.power_off()
        server.boot()

        assert again.status == 0
        assert server.token == token
        assert server.tags == {"role": "web", "lbagent": "paused"}


def test_the_task_is_filled_in_and_its_action_is_the_agent(world: Site) -> None:
    with world.server(22, folder=ODD_FOLDER) as server:
        server.configure(world.key, world.addresses)

        installed = server.install("/as", "task")  # Wine's schtasks takes the task, but nothing runs it
        task = ET.parse(server.folder / "conf" / "task.xml").getroot()
        space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
        action = {one.tag.removeprefix(space): one.text for one in task.iter()}
        server.boot(str(action["Arguments"]))
        world.has(server)
        removed = server.run("uninstall.bat")
        world.lacks(server)
        again = server.prompt.type("schtasks /delete /tn serf /f")

    assert (installed.status, removed.status) == (0, 0)
    assert action["WorkingDirectory"] == wine.windows_path(server.folder)
    assert again.status == 1, "the task has gone"


def test_what_winsw_starts_and_stops_is_a_member_that_leaves(world: Site) -> None:
    with world.server(23, folder=ODD_FOLDER) as server:
        server.configure(world.key, world.addresses)
        server.install()
        service = {one.tag: str(one.text) for one in ET.parse(server.folder / "serf-service.xml").getroot()}

        server.boot(service["startarguments"])
        world.has(server)
        here = wine.Prompt()
        here.folder = server.folder
        stopped = here.start(*service["stoparguments"].split(), said=server.folder / "stop.log").wait(60)
        with world.report.step("WinSW's stop command, then the service's own end"):
            assert server.ended() == 0

        assert stopped == 0
        world.lacks(server)
        assert world.status(server) == "left"


def test_nssm_starts_restarts_and_stops_it_as_a_service(world: Site) -> None:
    step = world.report.step
    with world.server(24, folder=ODD_FOLDER) as server:
        wine.nssm(server.folder)
        server.configure(world.key, world.addresses)
        installed = server.install("/as", "nssm")

        with step("NSSM: join-cluster.bat starts the service -> in") as said:
            joined = server.run("join-cluster.bat")
            said.append(joined.said)
            world.has(server)
        with step("NSSM: Serf crashes -> the service has started it again"):
            [first] = server.agents
            server.kill_agent()
            wait_until(lambda: server.agents not in ([], [first]) and server.answers(), 120)
        wait_until(lambda: world.status(server) == "alive", 120)
        with step("NSSM: leave-cluster.bat stops the service -> left") as said:
            left = server.run("leave-cluster.bat", "0")
            said.append(left.said)
        world.lacks(server)
        was = world.status(server)
        removed, service = server.run("uninstall.bat"), server.prompt.type("sc query serf")

    assert [installed.status, joined.status, removed.status, service.status] == [0, 0, 0, 1]
    assert (left, was) == ((0, "Out of the cluster.\n"), "left")


def test_join_cluster_by_hand_leaves_an_agent_behind_and_uninstall_removes_it(world: Site) -> None:
    with world.server(25) as server:
        before = sorted(server.folder.rglob("*"))
        server.configure(world.key, world.addresses)
        server.install()

        with world.report.step("join-cluster.bat, as a start-up script of Group Policy") as said:
            joined = server.run("join-cluster.bat")
            said.append(joined.said)
        world.has(server)
        again = server.run("join-cluster.bat")
        removed = server.run("uninstall.bat")
        world.lacks(server)

        assert joined.status == 0
        assert sorted(joined.said.splitlines()) == ["  lb01", "  lb02", "In the cluster, with these load balancers."]
        assert again == (0, "The agent runs already.\n")
        assert removed.status == 0
        assert sorted(server.folder.rglob("*")) == before
        assert world.status(server) == "left"


def test_the_callers_home_is_not_touched(world: Site) -> None:  # noqa: ARG001  # after all that Wine has done
    assert wine.environment()["HOME"] == str(wine.HOME / "home")
    assert (Path.home() / ".wine").exists() == HAD_WINE
