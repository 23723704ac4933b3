"""examples/spark-ha: real Spark, ZooKeeper, Serf, lbagent, HAProxy and Chromium, on one machine.

From "the leader" on the tests share one cluster, and follow each other as its leaders die. What they measure goes to
build/spark/figures.txt.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from scenarios.browser import Browser
from scenarios.links import crawl
from scenarios.programs import Program
from scenarios.spark import EXAMPLE, ROOT, Balancer, Machine, Site, ask, soon
from tests.helpers.real_programs import wait_until

RESULTS = ROOT / "build" / "spark"
PAGE = (EXAMPLE / "spark-503.http").read_bytes().decode().partition("\r\n\r\n")[2]
SECONDS = 180.0
"""A bound on any failover that the noisiest machine keeps."""


class Seen(NamedTuple):
    """One answer to somebody who looks at http://LB/spark/ all the time."""

    asked: float
    answered: float
    status: int
    leader: str
    state: str
    known: bool
    """Whether it was a master's page, or the example's own for none."""


class Onlooker:
    """Looks at the page twenty times a second, on new connections, from the `with` on."""

    def __init__(self, front: str) -> None:
        self.seen: list[Seen] = []
        self._front, self._stop = front, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def since(self, begin: float) -> list[Seen]:
        return [one for one in list(self.seen) if one.asked >= begin]

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            asked = time.monotonic()
            said = ask(self._front, "/spark/")
            known = bool(said.state) if said.status == 200 else said.body == PAGE
            self.seen.append(Seen(asked, time.monotonic(), said.status, said.leader, said.state, known))


class Cluster:
    """The machines of the example while a test runs, and what they have come to."""

    def __init__(self, site: Site, balancer: Balancer, stack: contextlib.ExitStack) -> None:
        self.site, self.balancer, self._stack = site, balancer, stack
        self.machines: dict[str, Machine] = {}
        self.worker, self.app = site.service("worker", 21), site.application(31)
        self.others: list[Program] = []

    def add(self, number: int, *, zookeeper: bool = True) -> Machine:
        """One more machine for a master, booted."""
        machine = self._stack.enter_context(Machine(self.site, number, zookeeper=zookeeper))
        self.machines[machine.address] = machine
        machine.boot()
        return machine

    def work(self) -> None:
        """Start the worker, with its Serf agent, and the application."""
        self._stack.enter_context(self.worker)
        self._stack.enter_context(self.site.agent("worker01", 21, "worker"))
        soon(lambda: [one["state"] for one in self.told()["workers"]] == ["ALIVE"])
        self._stack.enter_context(self.app)
        soon(lambda: jobs(self.app) > 2)

    def leading(self) -> Machine:
        """The machine whose master is shown, once one is."""
        return self.machines[soon(self.balancer.shown)]

    def standing_by(self) -> list[Machine]:
        """The machines whose masters say that they do not lead."""
        return [one for one in self.machines.values() if one.state() == "STANDBY"]

    def told(self) -> dict[str, Any]:
        """What the leader says about workers and applications, through the load balancer; nothing while none leads."""
        said = self.balancer.ask("/spark/json/")
        found: dict[str, Any] = json.loads(said.body) if said.status == 200 else {"workers": [], "activeapps": []}
        return found

    def running(self) -> list[str]:
        """The applications that the leader shows as running on a worker."""
        return [one["id"] for one in self.told()["activeapps"] if one["state"] == "RUNNING"]

    def memory(self) -> float:
        """MiB of all that Spark has started, ZooKeeper and lbagent."""
        machines = [one for machine in self.machines.values() for one in machine.programs]
        return sum(one.memory() for one in [*machines, self.worker, self.app, self.balancer.watch, *self.others])


def application(app: Program) -> str:
    """The id it was given."""
    return str(re.findall(r"^application (\S+)$", app.said, re.MULTILINE)[0])


def results(app: Program) -> list[tuple[int, float]]:
    """What each of its jobs has found, and the seconds it took."""
    return [(int(found), float(took)) for found, took in re.findall(r"job \d+: (\d+) primes in (\S+) s", app.said)]


def jobs(app: Program) -> int:
    """How many it has done."""
    return len(results(app))


def goes_on(app: Program) -> None:
    """It does five more jobs."""
    done = jobs(app)
    soon(lambda: jobs(app) >= done + 5)


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, str]]:
    """What was measured, by what it is; written down at the end."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}
    yield found
    lines = [f"{what:<76} {figure}" for what, figure in found.items()]
    (RESULTS / "figures.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


@contextlib.contextmanager
def clustered(site: Site, masters: int, roles: str = "roles.yml", *, zookeeper: bool = True) -> Iterator[Cluster]:
    """A load balancer that starts with nobody behind it, then so many masters."""
    with contextlib.ExitStack() as stack:
        balancer = stack.enter_context(Balancer(site, roles).running())
        assert balancer.ask()[:2] == (503, PAGE)
        cluster = Cluster(site, balancer, stack)
        for number in range(1, masters + 1):
            cluster.add(number, zookeeper=zookeeper)
        yield cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, figures: dict[str, str]) -> Iterator[Cluster]:
    """Three masters with ZooKeeper, a worker, an application; Spark itself would let anybody end it."""
    begin = time.monotonic()
    site = Site(tmp_path_factory.mktemp("zookeeper"), more="spark.ui.killEnabled true")
    with clustered(site, 3) as one:
        one.leading()
        figures["three ZooKeepers and masters, from nothing to the leader shown"] = since(begin)
        one.work()
        yield one


@pytest.fixture(scope="module")
def onlooker(cluster: Cluster) -> Iterator[Onlooker]:
    """Somebody who looks all the time."""
    with Onlooker(cluster.balancer.front) as one:
        yield one


def since(begin: float) -> str:
    """As a figure."""
    return f"{time.monotonic() - begin:.1f} s"


def told(lived: list[tuple[int, float]]) -> str:
    """The figure for these jobs."""
    return f"{len(lived)}, {max(took for _, took in lived):.1f} s"


def failed_over(cluster: Cluster, onlooker: Onlooker, lost: Machine, begin: float) -> str:
    """The figure for a failover, once another master is shown; until then the page said so, and there was no error."""
    others = [one for one in cluster.machines.values() if one is not lost]
    alive = soon(lambda: next((one for one in others if one.state() == "ALIVE"), None))
    elected = time.monotonic() - begin

    shown = soon(lambda: next((one for one in onlooker.since(begin) if one.leader == alive.address), None))
    between = [one for one in onlooker.since(begin) if one.asked < shown.asked and one.leader != lost.address]
    assert {(one.status, one.known) for one in between} == {(503, True)}
    took, slowest = shown.answered - begin, max(one.answered - one.asked for one in between)
    assert took < SECONDS
    return f"{took:.1f} s (elected {elected:.1f} s; {len(between)} x the 503 page, the slowest in {slowest:.1f} s)"


# --- one master with a folder -------------------------------------------------------------------------------------


def test_one_master_with_a_folder_comes_back_with_its_worker_and_application(
    tmp_path: Path, figures: dict[str, str]
) -> None:
    site = Site(tmp_path, defaults="spark-defaults-filesystem.conf")
    with clustered(site, 1, "roles-filesystem.yml", zookeeper=False) as cluster:
        only = cluster.leading()
        cluster.work()
        a_second_is_refused(cluster, figures)
        nothing_is_ended_by_spark_itself(cluster, only)
        name, begin = application(cluster.app), time.monotonic()

        only.master.kill()
        wait_until(lambda: cluster.balancer.ask()[:2] == (503, PAGE))
        only.master.start()

        soon(lambda: cluster.balancer.shown() == only.address)
        figures["one master with a folder, kill -9 and start, until it is shown"] = since(begin)
        soon(lambda: cluster.running() == [name])
        figures["... until its worker and application are back"] = since(begin)
        assert [one["state"] for one in cluster.told()["workers"]] == ["ALIVE"]
        goes_on(cluster.app)
        assert {found for found, _ in results(cluster.app)} == {303}


def a_second_is_refused(cluster: Cluster, figures: dict[str, str]) -> None:
    """Where one master may enrol."""
    lb = cluster.balancer.lb
    with cluster.site.agent("master02", 12, "master"):
        wait_until(lambda: "master02" in lb.members() and lb.idle, 60)
        assert cluster.balancer.lines() == ["master01"]
    assert "master02" in cluster.balancer.watch.said
    figures["one master with a folder: lines of two that enrol"] = "1"


def nothing_is_ended_by_spark_itself(cluster: Cluster, only: Machine) -> None:
    """With the example's own settings it neither shows how, nor obeys."""
    found = crawl(cluster.balancer.front, "/spark/")
    assert {url: status for url, status in found.pages.items() if status != 200} == {}
    assert found.outside == set()

    name, job = application(cluster.app), jobs(cluster.app)
    ask(only.ui, "/app/kill/", "POST", f"id={name}&terminate=true")
    ask(only.ui, f"/proxy/{name}/jobs/job/kill/?id={job}&terminate=true")
    goes_on(cluster.app)


# --- what the defaults cost ---------------------------------------------------------------------------------------


FULL = pytest.mark.skipif(not os.environ.get("FULL"), reason="FULL=1 measures what is waited for, minutes more")


@FULL
def test_zookeepers_own_session_is_waited_for(tmp_path: Path, figures: dict[str, str]) -> None:
    with clustered(Site(tmp_path, hasty=False), 3) as cluster, Onlooker(cluster.balancer.front) as onlooker:
        lost = cluster.leading()
        begin = time.monotonic()
        lost.master.kill()

        figures["kill -9 of the leader with ZooKeeper's own tickTime and session"] = failed_over(
            cluster, onlooker, lost, begin
        )


@FULL
def test_a_worker_that_dies_with_the_leader_is_waited_for(tmp_path: Path, figures: dict[str, str]) -> None:
    with clustered(Site(tmp_path), 3) as cluster, Onlooker(cluster.balancer.front) as onlooker:
        lost = cluster.leading()
        cluster.work()
        begin = time.monotonic()
        lost.master.kill()
        cluster.worker.kill()  # no leader is left to see it go

        figures["kill -9 of the leader and of a worker, until another is shown"] = failed_over(
            cluster, onlooker, lost, begin
        )


# --- the leader ---------------------------------------------------------------------------------------------------


def test_the_leader_is_shown_as_spark_draws_it(cluster: Cluster, figures: dict[str, str]) -> None:
    leader, front = cluster.leading(), cluster.balancer.front
    with Browser() as browser:
        cluster.others.append(browser.driver)
        browser.open(f"http://{front}/spark")

        assert (browser.url, browser.title) == (
            f"http://{front}/spark/",
            f"Spark Master at spark://{leader.address}:7077",
        )
        parts = browser.run(
            "return performance.getEntriesByType('resource').map(one => [one.name, one.responseStatus])"
        )
        assert {status for _, status in parts} == {200}
        assert {name.startswith(f"http://{front}/spark/static/") for name, _ in parts} == {True}
        sheets = [name for name, _ in parts if name.endswith(".css")]
        ruled = "return [...document.styleSheets].filter(one => one.href && one.cssRules.length).map(one => one.href)"
        assert sorted(browser.run(ruled)) == sorted(sheets)
        assert browser.run("return [...document.images].map(one => one.naturalWidth > 0)") == [True]
        browser.screenshot(RESULTS / "leader.png")
        figures["the leader's page: style sheets, and other parts, each with 200"] = f"{len(sheets)}, {len(parts)}"

        browser.click("worker-")
        assert browser.title.startswith("Spark Worker at ")
        browser.click("Back to Master")
        assert browser.title == f"Spark Master at spark://{leader.address}:7077"
        browser.click("primes")
        assert (browser.title, "/spark/proxy/app-" in browser.url) == ("primes - Spark Jobs", True)
        browser.screenshot(RESULTS / "application.png")
        figures["memory: 3 ZooKeepers, 3 masters, worker, application, lbagent, Chromium"] = (
            f"{cluster.memory():.0f} MiB"
        )
        assert cluster.memory() < 4096
        cluster.others.clear()


def test_no_link_is_broken_and_none_leads_past_the_load_balancer(cluster: Cluster, figures: dict[str, str]) -> None:
    found = crawl(cluster.balancer.front, "/spark/")

    # A link checker ends jobs where nobody denies it: here Spark shows it the links.
    kills = {url for url in found.pages if "/kill/" in url}
    assert {url: status for url, status in found.pages.items() if status != 200} == dict.fromkeys(kills, 403)
    assert found.outside == set()
    kinds = Counter(re.sub(r".*/spark/(proxy/(worker|app)|static|app|)\b.*", r"\1", url) for url in found.pages)
    assert {"proxy/worker", "proxy/app", "static", "app"} <= set(kinds)
    app = next(url for url in found.pages if re.fullmatch(r".*/spark/proxy/app-[0-9-]+", url)).partition("/spark/")[2]
    redirects = Counter(cluster.balancer.ask(f"/spark/{app}").location for _ in range(50))
    assert redirects == {f"/spark/{app}/jobs/": 50}  # Spark itself cuts the id in one of six
    figures["links crawled from /spark/: broken, leading elsewhere, followed"] = f"0, 0, {len(found.pages)}"


def test_static_files_are_served_beside_the_prefix_and_nothing_else_is(cluster: Cluster) -> None:
    balancer = cluster.balancer
    cluster.leading()

    assert balancer.ask("/static/webui.css") == balancer.ask("/spark/static/webui.css")
    assert balancer.ask("/static/webui.css").status == 200
    assert [balancer.ask(path).status for path in ("/json/", "/app/", "/sparks/", "/proxy/")] == [404] * 4
    assert [balancer.ask(path)[::2] for path in ("/", "/spark", "/spark/app")] == [
        (302, "/spark/"),
        (302, "/spark/"),
        (302, "/spark/app/"),
    ]


def test_lbagent_has_nothing_to_say_against_the_example(cluster: Cluster) -> None:
    wait_until(lambda: "worker01" in cluster.balancer.lb.members(), 60)

    assert sorted(cluster.balancer.lines()) == ["master01", "master02", "master03"]
    assert cluster.balancer.check() == []


# --- the hole -----------------------------------------------------------------------------------------------------

POSTS = ["app/kill/", "app/%6bill/", "app/%6Bil%6c/", "app/%u006bill/", "app/%256bill/", "%61pp/kill/", "app;x/kill/"]
POSTS += [
    "app/kill;x/",
    "/app/kill/",
    "app/./kill/",
    "static/../app/kill/",
    "driver/kill/",
    "workers/kill/",
    "app/KILL/",
]
GETS = ["jobs/job/kill/", "jobs/job/%6bill/", "jobs/job/%u006bill/", "jobs/job/%256bill/", "jobs/job/;x/kill/"]
GETS += ["stages/stage/kill/", "stages/stage/%6bill/", "jobs/job/k%69ll/", "jobs/job/x/../kill/"]


def test_nobody_ends_an_application_through_the_load_balancer(cluster: Cluster, figures: dict[str, str]) -> None:
    leader = cluster.leading()
    with cluster.site.application(32) as victim:
        soon(lambda: jobs(victim) > 1)
        name = application(victim)
        form, query = f"id={name}&terminate=true", f"?id={jobs(victim)}&terminate=true"
        asked: list[tuple[str, str, str | None]] = [("POST", f"/spark/{path}", form) for path in POSTS]
        asked += [("POST", "/static/../app/kill/", form)]
        asked += [("GET", f"/spark/proxy/{name}/{path}{query}", None) for path in GETS]
        asked += [(method, "/spark/", form) for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")]

        said = {(method, path): cluster.balancer.ask(path, method, body).status for method, path, body in asked}

        assert said == dict.fromkeys(said, 403)
        goes_on(victim)
        assert sorted(cluster.running()) == sorted([application(cluster.app), name])
        figures["ways to end a job or an application: denied of tried"] = f"{len(said)} of {len(said)}"

        # The load balancer is all that stood in the way: the same word, said to the master itself.
        assert ask(leader.ui, "/app/%u006bill/", "POST", form).status == 302
        soon(lambda: not victim.lives)
    goes_on(cluster.app)


# --- standby masters ----------------------------------------------------------------------------------------------


def test_a_standby_is_not_shown_while_haproxy_does_not_know_it_yet(
    cluster: Cluster, onlooker: Onlooker, figures: dict[str, str]
) -> None:
    leader, haproxy, answers = cluster.leading(), cluster.balancer.haproxy, []
    begin = time.monotonic()
    for _ in range(5):
        before = haproxy.worker()
        os.kill(haproxy.pid, signal.SIGUSR2)
        wait_until(functools.partial(lambda old: haproxy.worker() != old, before), 60)
        while not (said := cluster.balancer.ask("/spark/json/")).body.startswith("{"):
            answers.append(said)
        answers.append(said)
        soon(lambda: cluster.balancer.shown() == leader.address)

    told = [json.loads(said.body)["status"] for said in answers if said.status == 200]
    assert told == ["ALIVE"] * 5
    assert {said[:2] for said in answers if said.status != 200} <= {(503, PAGE)}
    looks = onlooker.since(begin)
    assert {(one.status, one.leader) for one in looks} <= {(200, leader.address), (503, "")}
    without = sum(one.status == 503 for one in looks)
    figures["five reloads: looks that saw the leader, the 503 page, a standby"] = (
        f"{len(looks) - without}, {without}, 0"
    )


# --- failover -----------------------------------------------------------------------------------------------------


def test_another_is_shown_when_the_leader_is_killed(
    cluster: Cluster, onlooker: Onlooker, figures: dict[str, str]
) -> None:
    lost, name, done = cluster.leading(), application(cluster.app), jobs(cluster.app)
    begin = time.monotonic()
    lost.master.kill()

    figures["kill -9 of the leader, until another is shown"] = failed_over(cluster, onlooker, lost, begin)

    soon(lambda: cluster.running() == [name])
    goes_on(cluster.app)
    assert cluster.balancer.ask(f"/spark/proxy/{name}/jobs/").status == 200
    lived = results(cluster.app)[done:]
    assert {found for found, _ in lived} == {303}
    figures["... jobs of the running application meanwhile, the slowest"] = told(lived)

    lost.master.start()
    soon(lambda: lost.state() == "STANDBY")
    assert cluster.leading() is not lost


def test_a_leader_that_hangs_makes_way_and_is_not_shown_again(
    cluster: Cluster, onlooker: Onlooker, figures: dict[str, str]
) -> None:
    lost, begin = cluster.leading(), time.monotonic()
    lost.master.send(signal.SIGSTOP)
    figures["SIGSTOP of the leader, until another is shown"] = failed_over(cluster, onlooker, lost, begin)
    leader, begin = cluster.leading(), time.monotonic()

    lost.master.send(signal.SIGCONT)

    soon(lambda: not lost.master.lives)  # Spark's own end for a master that is no leader any more
    soon(lambda: len(onlooker.since(begin)) > 60)
    assert {one.leader for one in onlooker.since(begin)} <= {leader.address, ""}
    goes_on(cluster.app)
    lost.master.start()
    soon(lambda: lost.state() == "STANDBY")


def test_the_new_leader_takes_a_new_application(cluster: Cluster) -> None:
    with cluster.site.application(33) as another:
        soon(lambda: jobs(another) > 0)

        assert sorted(cluster.running()) == sorted([application(cluster.app), application(another)])


def test_masters_leave_and_a_fourth_joins_and_no_look_misses_the_leader(
    cluster: Cluster, onlooker: Onlooker, figures: dict[str, str]
) -> None:
    leader, haproxy = cluster.leading(), cluster.balancer.haproxy
    reloads, calm = haproxy.reloads(), time.monotonic()
    for one in cluster.standing_by():
        begin = time.monotonic()
        one.agent.leave()
        wait_until(functools.partial(lambda node: node not in cluster.balancer.lines(), one.name), 60)
        figures["a master leaves, until haproxy.cfg is without it"] = since(begin)
        one.master.kill(signal.SIGTERM)

    begin = time.monotonic()
    fourth = cluster.add(4, zookeeper=False)
    wait_until(lambda: sorted(cluster.balancer.lines()) == sorted([leader.name, "master04"]), 60)
    figures["a fourth joins, until haproxy.cfg has it"] = since(begin)

    soon(lambda: fourth.state() == "STANDBY")
    soon(lambda: haproxy.servers("lb-spark")["master04"].startswith("DOWN"))
    assert haproxy.reloads() == reloads
    looks = Counter(one.leader for one in onlooker.since(calm))
    assert set(looks) <= {leader.address, ""}
    figures["... looks meanwhile that saw the leader, the 503 page"] = f"{looks[leader.address]}, {looks['']}"


def test_the_fourth_is_shown_when_the_leaders_machine_has_died(
    cluster: Cluster, onlooker: Onlooker, figures: dict[str, str]
) -> None:
    lost, name, done = cluster.leading(), application(cluster.app), jobs(cluster.app)
    begin = time.monotonic()
    lost.die()

    figures["the leader's machine dies, ZooKeeper and Serf too, until the fourth is shown"] = failed_over(
        cluster, onlooker, lost, begin
    )

    assert cluster.leading().name == "master04"
    soon(lambda: cluster.running() == [name])
    goes_on(cluster.app)
    lived = results(cluster.app)
    assert {found for found, _ in lived} == {303}
    figures["... jobs of the running application from then on, the slowest"] = told(lived[done:])
    figures["the application, from its start to here: jobs, wrong or failed"] = f"{len(lived)}, 0"


def test_nobody_has_seen_a_standby_or_an_error(onlooker: Onlooker, figures: dict[str, str]) -> None:
    looks = Counter((one.status, one.state, one.known) for one in list(onlooker.seen))

    assert set(looks) == {(200, "ALIVE", True), (503, "", True)}
    figures["all looks at /spark/: a leader, the 503 page, anything else"] = (
        f"{looks[200, 'ALIVE', True]}, {looks[503, '', True]}, 0"
    )
