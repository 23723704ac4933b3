"""examples/spark-ha: real Spark, ZooKeeper, Serf, lbagent, HAProxy and Chromium, on one machine.

From "the leader" on, the tests share one cluster and depend on each other, because each ends a leader. The measured
figures are in build/spark/figures.txt.
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
from scenarios.spark import EXAMPLE, ROOT, Balancer, Machine, Site, request, wait_for_spark
from tests.helpers.real_programs import wait_until

RESULTS = ROOT / "build" / "spark"
NO_LEADER_PAGE = (EXAMPLE / "spark-503.http").read_bytes().decode().partition("\r\n\r\n")[2]
FAILOVER_LIMIT = 180.0
"""Seconds; every failover must be shorter, even on a busy machine."""


class Look(NamedTuple):
    """One answer to the observer of http://LB/spark/."""

    sent: float
    answered: float
    status: int
    leader: str
    state: str
    known: bool
    """Whether it was a master's page, or the example's page without a leader."""


class Observer:
    """Requests the page 20 times per second, on new connections, from `__enter__` to `__exit__`."""

    def __init__(self, front: str) -> None:
        self.looks: list[Look] = []
        self._front, self._stop = front, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def list_looks(self, begin: float) -> list[Look]:
        return [one for one in list(self.looks) if one.sent >= begin]

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            sent = time.monotonic()
            page = request(self._front, "/spark/")
            known = bool(page.state) if page.status == 200 else page.body == NO_LEADER_PAGE
            self.looks.append(Look(sent, time.monotonic(), page.status, page.leader, page.state, known))


class Cluster:
    """The machines of the example while a test runs, and their state."""

    def __init__(self, site: Site, balancer: Balancer, stack: contextlib.ExitStack) -> None:
        self.site, self.balancer, self._stack = site, balancer, stack
        self.machines: dict[str, Machine] = {}
        self.worker, self.app = site.make_service("worker", 21), site.make_application(31)
        self.others: list[Program] = []

    def add_machine(self, number: int, *, zookeeper: bool = True) -> Machine:
        """Boot another machine with a master."""
        machine = self._stack.enter_context(Machine(self.site, number, zookeeper=zookeeper))
        self.machines[machine.address] = machine
        machine.boot()
        return machine

    def start_work(self) -> None:
        """Start the worker, with its Serf agent, and the application."""
        self._stack.enter_context(self.worker)
        self._stack.enter_context(self.site.make_agent("worker01", 21, "worker"))
        wait_for_spark(lambda: [one["state"] for one in self.read_leader_state()["workers"]] == ["ALIVE"])
        self._stack.enter_context(self.app)
        wait_for_spark(lambda: count_jobs(self.app) > 2)

    def find_leader(self) -> Machine:
        """Wait until a master is shown, and return its machine."""
        return self.machines[wait_for_spark(self.balancer.find_leader)]

    def list_standbys(self) -> list[Machine]:
        """Return the machines whose masters are STANDBY."""
        return [one for one in self.machines.values() if one.read_state() == "STANDBY"]

    def read_leader_state(self) -> dict[str, Any]:
        """Return the leader's JSON about workers and applications; empty lists without a leader."""
        answer = self.balancer.request("/spark/json/")
        found: dict[str, Any] = json.loads(answer.body) if answer.status == 200 else {"workers": [], "activeapps": []}
        return found

    def list_running(self) -> list[str]:
        """Return the ids of the applications that the leader shows as RUNNING."""
        return [one["id"] for one in self.read_leader_state()["activeapps"] if one["state"] == "RUNNING"]

    def measure_memory(self) -> float:
        """Return the memory of Spark, ZooKeeper and lbagent in MiB."""
        machines = [one for machine in self.machines.values() for one in machine.programs]
        return sum(
            one.measure_memory() for one in [*machines, self.worker, self.app, self.balancer.watch, *self.others]
        )


def read_application_id(app: Program) -> str:
    """Return the id of the application."""
    return str(re.findall(r"^application (\S+)$", app.output, re.MULTILINE)[0])


def read_results(app: Program) -> list[tuple[int, float]]:
    """Return the result of each job of the application, and its duration in seconds."""
    return [(int(found), float(took)) for found, took in re.findall(r"job \d+: (\d+) primes in (\S+) s", app.output)]


def count_jobs(app: Program) -> int:
    """Return the number of finished jobs."""
    return len(read_results(app))


def wait_for_more_jobs(app: Program) -> None:
    """Wait until the application has finished five more jobs."""
    done = count_jobs(app)
    wait_for_spark(lambda: count_jobs(app) >= done + 5)


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, str]]:
    """Measured figures by their description; written to a file at the end."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}
    yield found
    lines = [f"{what:<76} {figure}" for what, figure in found.items()]
    (RESULTS / "figures.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


@contextlib.contextmanager
def run_cluster(site: Site, masters: int, roles: str = "roles.yml", *, zookeeper: bool = True) -> Iterator[Cluster]:
    """Run a load balancer, then this number of masters."""
    with contextlib.ExitStack() as stack:
        balancer = stack.enter_context(Balancer(site, roles).running())
        assert balancer.request()[:2] == (503, NO_LEADER_PAGE)
        cluster = Cluster(site, balancer, stack)
        for number in range(1, masters + 1):
            cluster.add_machine(number, zookeeper=zookeeper)
        yield cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, figures: dict[str, str]) -> Iterator[Cluster]:
    """Three masters with ZooKeeper, a worker and an application. Spark itself would permit all users to end it."""
    begin = time.monotonic()
    site = Site(tmp_path_factory.mktemp("zookeeper"), more="spark.ui.killEnabled true")
    with run_cluster(site, 3) as one:
        one.find_leader()
        figures["three ZooKeepers and masters, from the start until the leader is shown"] = format_duration(begin)
        one.start_work()
        yield one


@pytest.fixture(scope="module")
def observer(cluster: Cluster) -> Iterator[Observer]:
    """An observer that requests the page all the time."""
    with Observer(cluster.balancer.front) as one:
        yield one


def format_duration(begin: float) -> str:
    """Return the time since `begin` as a figure."""
    return f"{time.monotonic() - begin:.1f} s"


def format_jobs(lived: list[tuple[int, float]]) -> str:
    """Return the number of these jobs and the longest duration as a figure."""
    return f"{len(lived)}, {max(took for _, took in lived):.1f} s"


def measure_failover(cluster: Cluster, observer: Observer, lost: Machine, begin: float) -> str:
    """Wait until another master is shown, and return the figure for the failover.

    Until then, every answer must be the example's 503 page.
    """
    others = [one for one in cluster.machines.values() if one is not lost]
    alive = wait_for_spark(lambda: next((one for one in others if one.read_state() == "ALIVE"), None))
    elected = time.monotonic() - begin

    shown = wait_for_spark(
        lambda: next((one for one in observer.list_looks(begin) if one.leader == alive.address), None)
    )
    between = [one for one in observer.list_looks(begin) if one.sent < shown.sent and one.leader != lost.address]
    assert {(one.status, one.known) for one in between} == {(503, True)}
    took, slowest = shown.answered - begin, max(one.answered - one.sent for one in between)
    assert took < FAILOVER_LIMIT
    return f"{took:.1f} s (elected {elected:.1f} s; {len(between)} x the 503 page, the slowest in {slowest:.1f} s)"


# --- one master with a folder -------------------------------------------------------------------------------------


def test_a_restarted_master_with_a_folder_has_its_worker_and_application(
    tmp_path: Path, figures: dict[str, str]
) -> None:
    site = Site(tmp_path, defaults="spark-defaults-filesystem.conf")
    with run_cluster(site, 1, "roles-filesystem.yml", zookeeper=False) as cluster:
        only = cluster.find_leader()
        cluster.start_work()
        check_second_master(cluster, figures)
        check_kill_is_disabled(cluster, only)
        name, begin = read_application_id(cluster.app), time.monotonic()

        only.master.kill()
        wait_until(lambda: cluster.balancer.request()[:2] == (503, NO_LEADER_PAGE))
        only.master.start()

        wait_for_spark(lambda: cluster.balancer.find_leader() == only.address)
        figures["one master with a folder, kill -9 and start, until it is shown"] = format_duration(begin)
        wait_for_spark(lambda: cluster.list_running() == [name])
        figures["... until its worker and application are back"] = format_duration(begin)
        assert [one["state"] for one in cluster.read_leader_state()["workers"]] == ["ALIVE"]
        wait_for_more_jobs(cluster.app)
        assert {found for found, _ in read_results(cluster.app)} == {303}


def check_second_master(cluster: Cluster, figures: dict[str, str]) -> None:
    """Check that a second master is refused, because roles-filesystem.yml admits one."""
    lb = cluster.balancer.lb
    with cluster.site.make_agent("master02", 12, "master"):
        wait_until(lambda: "master02" in lb.members() and lb.idle, 60)
        assert cluster.balancer.list_nodes() == ["master01"]
    assert "master02" in cluster.balancer.watch.output
    figures["one master with a folder: server lines for two that join"] = "1"


def check_kill_is_disabled(cluster: Cluster, only: Machine) -> None:
    """Check that with the example's settings Spark shows no kill links, and ignores kill requests."""
    found = crawl(cluster.balancer.front, "/spark/")
    assert {url: status for url, status in found.pages.items() if status != 200} == {}
    assert found.outside == set()

    name, job = read_application_id(cluster.app), count_jobs(cluster.app)
    request(only.ui, "/app/kill/", "POST", f"id={name}&terminate=true")
    request(only.ui, f"/proxy/{name}/jobs/job/kill/?id={job}&terminate=true")
    wait_for_more_jobs(cluster.app)


# --- failover with default settings -------------------------------------------------------------------------------


FULL = pytest.mark.skipif(not os.environ.get("FULL"), reason="FULL=1 measures it, which takes minutes")


@FULL
def test_a_failover_with_zookeepers_defaults_waits_for_its_session(tmp_path: Path, figures: dict[str, str]) -> None:
    with run_cluster(Site(tmp_path, short_session=False), 3) as cluster, Observer(cluster.balancer.front) as observer:
        lost = cluster.find_leader()
        begin = time.monotonic()
        lost.master.kill()

        figures["kill -9 of the leader with ZooKeeper's own tickTime and session"] = measure_failover(
            cluster, observer, lost, begin
        )


@FULL
def test_a_failover_waits_for_a_worker_that_died_with_the_leader(tmp_path: Path, figures: dict[str, str]) -> None:
    with run_cluster(Site(tmp_path), 3) as cluster, Observer(cluster.balancer.front) as observer:
        lost = cluster.find_leader()
        cluster.start_work()
        begin = time.monotonic()
        lost.master.kill()
        cluster.worker.kill()  # there is no leader that could notice it

        figures["kill -9 of the leader and of a worker, until another is shown"] = measure_failover(
            cluster, observer, lost, begin
        )


# --- the leader ---------------------------------------------------------------------------------------------------


def test_the_leaders_page_is_complete_in_a_browser(cluster: Cluster, figures: dict[str, str]) -> None:
    leader, front = cluster.find_leader(), cluster.balancer.front
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
            f"{cluster.measure_memory():.0f} MiB"
        )
        assert cluster.measure_memory() < 4096
        cluster.others.clear()


def test_no_link_is_broken_and_all_lead_through_the_load_balancer(cluster: Cluster, figures: dict[str, str]) -> None:
    found = crawl(cluster.balancer.front, "/spark/")

    # Here Spark shows kill links, and a link checker follows them: HAProxy denies them.
    kills = {url for url in found.pages if "/kill/" in url}
    assert {url: status for url, status in found.pages.items() if status != 200} == dict.fromkeys(kills, 403)
    assert found.outside == set()
    kinds = Counter(re.sub(r".*/spark/(proxy/(worker|app)|static|app|)\b.*", r"\1", url) for url in found.pages)
    assert {"proxy/worker", "proxy/app", "static", "app"} <= set(kinds)
    app = next(url for url in found.pages if re.fullmatch(r".*/spark/proxy/app-[0-9-]+", url)).partition("/spark/")[2]
    redirects = Counter(cluster.balancer.request(f"/spark/{app}").location for _ in range(50))
    assert redirects == {f"/spark/{app}/jobs/": 50}  # Spark omits letters of the id in one of six redirects
    figures["links below /spark/: broken, to other places, followed"] = f"0, 0, {len(found.pages)}"


def test_only_static_files_are_served_outside_the_prefix(cluster: Cluster) -> None:
    balancer = cluster.balancer
    cluster.find_leader()

    assert balancer.request("/static/webui.css") == balancer.request("/spark/static/webui.css")
    assert balancer.request("/static/webui.css").status == 200
    assert [balancer.request(path).status for path in ("/json/", "/app/", "/sparks/", "/proxy/")] == [404] * 4
    assert [balancer.request(path)[::2] for path in ("/", "/spark", "/spark/app")] == [
        (302, "/spark/"),
        (302, "/spark/"),
        (302, "/spark/app/"),
    ]


def test_check_finds_nothing_in_the_example(cluster: Cluster) -> None:
    wait_until(lambda: "worker01" in cluster.balancer.lb.members(), 60)

    assert sorted(cluster.balancer.list_nodes()) == ["master01", "master02", "master03"]
    assert cluster.balancer.list_findings() == []


# --- kill requests ------------------------------------------------------------------------------------------------

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


def test_the_load_balancer_denies_every_way_to_kill_an_application(cluster: Cluster, figures: dict[str, str]) -> None:
    leader = cluster.find_leader()
    with cluster.site.make_application(32) as victim:
        wait_for_spark(lambda: count_jobs(victim) > 1)
        name = read_application_id(victim)
        form, query = f"id={name}&terminate=true", f"?id={count_jobs(victim)}&terminate=true"
        requests: list[tuple[str, str, str | None]] = [("POST", f"/spark/{path}", form) for path in POSTS]
        requests += [("POST", "/static/../app/kill/", form)]
        requests += [("GET", f"/spark/proxy/{name}/{path}{query}", None) for path in GETS]
        requests += [(method, "/spark/", form) for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")]

        statuses = {
            (method, path): cluster.balancer.request(path, method, body).status for method, path, body in requests
        }

        assert statuses == dict.fromkeys(statuses, 403)
        wait_for_more_jobs(victim)
        assert sorted(cluster.list_running()) == sorted([read_application_id(cluster.app), name])
        figures["ways to end a job or an application: denied of tried"] = f"{len(statuses)} of {len(statuses)}"

        # Only the load balancer prevented it: the same request to the master itself ends the application.
        assert request(leader.ui, "/app/%u006bill/", "POST", form).status == 302
        wait_for_spark(lambda: not victim.is_running)
    wait_for_more_jobs(cluster.app)


# --- standby masters ----------------------------------------------------------------------------------------------


def test_a_standby_is_not_shown_before_its_first_check(
    cluster: Cluster, observer: Observer, figures: dict[str, str]
) -> None:
    leader, haproxy, answers = cluster.find_leader(), cluster.balancer.haproxy, []
    begin = time.monotonic()
    for _ in range(5):
        before = haproxy.worker()
        os.kill(haproxy.pid, signal.SIGUSR2)
        wait_until(functools.partial(lambda old: haproxy.worker() != old, before), 60)
        while not (answer := cluster.balancer.request("/spark/json/")).body.startswith("{"):
            answers.append(answer)
        answers.append(answer)
        wait_for_spark(lambda: cluster.balancer.find_leader() == leader.address)

    states = [json.loads(answer.body)["status"] for answer in answers if answer.status == 200]
    assert states == ["ALIVE"] * 5
    assert {answer[:2] for answer in answers if answer.status != 200} <= {(503, NO_LEADER_PAGE)}
    looks = observer.list_looks(begin)
    assert {(one.status, one.leader) for one in looks} <= {(200, leader.address), (503, "")}
    without = sum(one.status == 503 for one in looks)
    figures["five reloads: requests that got the leader, the 503 page, a standby"] = (
        f"{len(looks) - without}, {without}, 0"
    )


# --- failover -----------------------------------------------------------------------------------------------------


def test_another_master_is_shown_after_the_leader_was_killed(
    cluster: Cluster, observer: Observer, figures: dict[str, str]
) -> None:
    lost, name, done = cluster.find_leader(), read_application_id(cluster.app), count_jobs(cluster.app)
    begin = time.monotonic()
    lost.master.kill()

    figures["kill -9 of the leader, until another is shown"] = measure_failover(cluster, observer, lost, begin)

    wait_for_spark(lambda: cluster.list_running() == [name])
    wait_for_more_jobs(cluster.app)
    assert cluster.balancer.request(f"/spark/proxy/{name}/jobs/").status == 200
    lived = read_results(cluster.app)[done:]
    assert {found for found, _ in lived} == {303}
    figures["... jobs of the running application meanwhile, the slowest"] = format_jobs(lived)

    lost.master.start()
    wait_for_spark(lambda: lost.read_state() == "STANDBY")
    assert cluster.find_leader() is not lost


def test_a_hanging_leader_is_replaced_and_not_shown_again(
    cluster: Cluster, observer: Observer, figures: dict[str, str]
) -> None:
    lost, begin = cluster.find_leader(), time.monotonic()
    lost.master.send(signal.SIGSTOP)
    figures["SIGSTOP of the leader, until another is shown"] = measure_failover(cluster, observer, lost, begin)
    leader, begin = cluster.find_leader(), time.monotonic()

    lost.master.send(signal.SIGCONT)

    wait_for_spark(lambda: not lost.master.is_running)  # Spark ends a master that is no longer the leader
    wait_for_spark(lambda: len(observer.list_looks(begin)) > 60)
    assert {one.leader for one in observer.list_looks(begin)} <= {leader.address, ""}
    wait_for_more_jobs(cluster.app)
    lost.master.start()
    wait_for_spark(lambda: lost.read_state() == "STANDBY")


def test_the_new_leader_accepts_a_new_application(cluster: Cluster) -> None:
    with cluster.site.make_application(33) as another:
        wait_for_spark(lambda: count_jobs(another) > 0)

        assert sorted(cluster.list_running()) == sorted(
            [read_application_id(cluster.app), read_application_id(another)]
        )


def test_the_leader_stays_visible_while_other_masters_leave_and_join(
    cluster: Cluster, observer: Observer, figures: dict[str, str]
) -> None:
    leader, haproxy = cluster.find_leader(), cluster.balancer.haproxy
    reloads, start = haproxy.reloads(), time.monotonic()
    for one in cluster.list_standbys():
        begin = time.monotonic()
        one.agent.leave()
        wait_until(functools.partial(lambda node: node not in cluster.balancer.list_nodes(), one.name), 60)
        figures["a master leaves, until its line is removed from haproxy.cfg"] = format_duration(begin)
        one.master.kill(signal.SIGTERM)

    begin = time.monotonic()
    fourth = cluster.add_machine(4, zookeeper=False)
    wait_until(lambda: sorted(cluster.balancer.list_nodes()) == sorted([leader.name, "master04"]), 60)
    figures["a fourth joins, until its line is in haproxy.cfg"] = format_duration(begin)

    wait_for_spark(lambda: fourth.read_state() == "STANDBY")
    wait_for_spark(lambda: haproxy.servers("lb-spark")["master04"].startswith("DOWN"))
    assert haproxy.reloads() == reloads
    looks = Counter(one.leader for one in observer.list_looks(start))
    assert set(looks) <= {leader.address, ""}
    figures["... requests meanwhile that got the leader, the 503 page"] = f"{looks[leader.address]}, {looks['']}"


def test_the_fourth_master_is_shown_after_the_leaders_machine_died(
    cluster: Cluster, observer: Observer, figures: dict[str, str]
) -> None:
    lost, name, done = cluster.find_leader(), read_application_id(cluster.app), count_jobs(cluster.app)
    begin = time.monotonic()
    lost.kill()

    figures["the leader's machine dies, ZooKeeper and Serf too, until the fourth is shown"] = measure_failover(
        cluster, observer, lost, begin
    )

    assert cluster.find_leader().name == "master04"
    wait_for_spark(lambda: cluster.list_running() == [name])
    wait_for_more_jobs(cluster.app)
    lived = read_results(cluster.app)
    assert {found for found, _ in lived} == {303}
    figures["... jobs of the running application afterwards, the slowest"] = format_jobs(lived[done:])
    figures["the application, from its start to here: jobs, wrong or failed"] = f"{len(lived)}, 0"


def test_no_request_got_a_standby_or_an_error(observer: Observer, figures: dict[str, str]) -> None:
    looks = Counter((one.status, one.state, one.known) for one in list(observer.looks))

    assert set(looks) == {(200, "ALIVE", True), (503, "", True)}
    figures["all requests for /spark/: a leader, the 503 page, anything else"] = (
        f"{looks[200, 'ALIVE', True]}, {looks[503, '', True]}, 0"
    )
