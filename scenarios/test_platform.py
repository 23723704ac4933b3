"""examples/data-platform: nodes join a load balancer that started first, and no request fails while they change.

`make test-platform` sends 100,000 requests in half a minute; with FULL=1, 1,000,000 in five minutes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import random
import re
import signal
import statistics
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from scenarios.platform import jmeter
from scenarios.platform.balancer import Balancer
from scenarios.platform.node import Node
from scenarios.platform.notebook import Notebook
from scenarios.platform.services import EXAMPLE, PAGE, TABLE, make_client, run_storage
from tests.helpers import http_clients as traffic
from tests.helpers.real_programs import wait_until

LOOPS, ROUNDS = (2000, 75) if os.environ.get("FULL") == "1" else (200, 7)
NODES = ("web01", "web02", "api01", "minio01", "minio02", "zeppelin01", "zeppelin02", "spark01", "monitor01")
LATE_NODE = "web03"
"""Joins only under load."""
PATIENCE = 120.0

FIGURES: list[str] = []

pytestmark = pytest.mark.skipif(
    "ISOLATED" not in os.environ, reason="needs the network namespace of `make test-platform`"
)


def add_figure(figure: str) -> None:
    """Add a line to the report at the end."""
    FIGURES.append(figure)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="platform-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def balancer(folder: Path) -> Iterator[Balancer]:
    """lb01, without any node."""
    found = Balancer(folder)
    with found.running():
        yield found
    print("\n\nmake test-platform")
    print("\n".join(f"  {figure}" for figure in FIGURES))


@pytest.fixture(scope="module")
def nodes(balancer: Balancer, folder: Path) -> Iterator[dict[str, Node]]:
    """All nodes except LATE_NODE, started in random order, with the agent before or after the services."""
    order = list(NODES)
    seed = random.randrange(10_000)
    chance = random.Random(seed)
    chance.shuffle(order)
    with contextlib.ExitStack() as stack:
        found = {name: Node(name, balancer, folder) for name in (*NODES, LATE_NODE)}
        for node in found.values():
            stack.enter_context(node.run_machine())
        stack.enter_context(run_storage(folder))
        started = time.monotonic()
        early = {name for name in order if chance.random() < 0.5}
        for name in order:
            (found[name].agent.start if name in early else found[name].boot)()
        for name in order:
            if name in early:
                found[name].serve()
        wait_until(lambda: all_nodes_serve(balancer), PATIENCE)
        names = " ".join(f"{name}{'*' if name in early else ''}" for name in order)
        add_figure(f"{len(order)} nodes enrolled and UP in {time.monotonic() - started:.1f} s, * agent first: {names}")
        yield found


def all_nodes_serve(balancer: Balancer) -> bool:
    """Return whether all servers are UP, except the driver of zeppelin02, which does not run."""
    states = {(name, service): state for name in NODES for service, state in balancer.read_states(name).items()}
    return states.pop(("zeppelin02", "spark-driver")) == "DOWN" and set(states.values()) == {"UP"}


def request(url: str, **headers: str) -> tuple[int, str, Message]:
    """Return status, body and headers of the load balancer's answer; redirects are not followed."""

    class NoRedirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    opener = urllib.request.build_opener(NoRedirects)
    try:
        with opener.open(urllib.request.Request(f"http://10.20.0.2{url}", headers=headers), timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def query_prometheus(expression: str) -> list[dict[str, Any]]:
    """Return the result of a Prometheus query through the load balancer."""
    status, body, _ = request(f":9090/api/v1/query?query={urllib.parse.quote(expression)}")
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)["data"]["result"]
    return found


def list_alerts(balancer: Balancer) -> list[str]:
    """Return the alerts in HAProxy's log."""
    return [line for line in balancer.haproxy.log.read_text().splitlines() if "[ALERT]" in line]


def list_findings(balancer: Balancer) -> list[str]:
    """Return the warnings and errors of `lbagent check`, except that the second load balancer does not exist."""
    lines = balancer.run("check").stdout.decode().splitlines()
    assert lines
    return [
        line for line in lines[:-1] if not line.startswith(("ok ", "error    peers: "))
    ]  # the last line is a summary


def test_without_nodes_every_service_answers_its_own_503_page(balancer: Balancer) -> None:
    page = (EXAMPLE / "errors/503.html").read_text()

    answered = {url: request(url) for url in ("/", "/grafana/", ":8080/", ":4040/", ":9090/")}
    api, bucket = request("/api/jobs"), request(":9000/bucket/object")

    assert {url: (status, body) for url, (status, body, _) in answered.items()} == dict.fromkeys(answered, (503, page))
    assert {headers["Retry-After"] for _, _, headers in answered.values()} == {"5"}
    assert (api[0], json.loads(api[1])["status"], api[2]["Content-Type"]) == (503, 503, "application/json")
    assert (bucket[0], "<Code>ServiceUnavailable</Code>" in bucket[1]) == (503, True)
    assert request(":8404/metrics")[0] == 200
    assert (list_alerts(balancer), balancer.run("plan").returncode) == ([], 0)


def test_check_finds_no_other_problem_without_nodes(balancer: Balancer) -> None:
    assert list_findings(balancer) == []


def test_all_nodes_enrol_in_any_order(balancer: Balancer, nodes: dict[str, Node]) -> None:
    def line(name: str, port: int, role: str, interval: str = "2s", options: str = "") -> str:
        address = f"{nodes[name].address}:{port}"
        return f"server {name} {address} check inter {interval} rise 2 fall 2{options} # lbagent role={role}"

    lines = [re.sub(r" id \d+ ", " id N ", one) for one in balancer.lb.managed]

    assert lines == [
        *(line(name, 80, "web", "1s") for name in ("web01", "web02")),
        line("api01", 8000, "api", "1s"),
        *(line(name, 8000, "web", "1s") for name in ("web01", "web02")),
        line("monitor01", 3000, "monitoring"),
        *(line(name, 9000, "minio") for name in ("minio01", "minio02")),
        *(line(name, 8080, "zeppelin") for name in ("zeppelin01", "zeppelin02")),
        line("spark01", 4041, "spark"),
        *(line(name, 4040, "zeppelin") for name in ("zeppelin01", "zeppelin02")),
        line("monitor01", 9090, "monitoring", options=" id N"),
    ]
    assert (balancer.haproxy.reloads(), list_findings(balancer)) == ((0, 0), [])


@pytest.mark.usefixtures("nodes")
def test_web_and_api_share_port_80() -> None:
    assert request("/")[:2] == (200, PAGE)
    served = {json.loads(request("/api/jobs")[1])["node"] for _ in range(30)}
    assert served == {"10.20.0.11", "10.20.0.12", "10.20.0.21"}


@pytest.mark.usefixtures("nodes")
def test_grafana_is_served_below_its_path() -> None:
    bare, below = request("/grafana"), request("/grafana/login")

    assert (bare[0], bare[2]["Location"]) == (302, "/grafana/")
    assert (below[0], below[1]) == (200, "<title>Grafana</title>")
    assert below[2]["Set-Cookie"].startswith("LBGRAFANA=")


@pytest.mark.usefixtures("nodes")
def test_signatures_of_the_storage_stay_valid() -> None:
    client, size = make_client("10.20.0.2:9000"), 64 * 2**20
    content = random.Random(1).randbytes(size)
    client.make_bucket("private")

    began = time.monotonic()
    client.put_object("private", "table", io.BytesIO(content), size, part_size=8 * 2**20)
    put = time.monotonic() - began
    with contextlib.closing(client.get_object("private", "table")) as answer:
        same = answer.read() == content
    got = time.monotonic() - began - put
    signed = client.presigned_get_object("private", "table")
    with urllib.request.urlopen(signed) as answer:
        signed_same = answer.read() == content

    assert (same, signed_same) == (True, True)
    assert request(":9000/private/table")[0] == 403
    assert request(signed.removeprefix("http://10.20.0.2").replace("X-Amz-Signature=", "X-Amz-Signature=0"))[0] == 403
    assert request(":9000/public/table.csv")[:2] == (200, TABLE)
    add_figure(
        f"S3: 64 MiB in eight parts put in {put:.2f} s, got in {got:.2f} s; signed URL accepted, forged one refused"
    )


@pytest.mark.usefixtures("nodes")
def test_a_notebook_stays_on_its_node() -> None:
    with contextlib.ExitStack() as stack:
        books = [stack.enter_context(Notebook()) for _ in range(4)]
        wait_until(lambda: all(book.answered > 3 for book in books))

        assert [book.page_nodes for book in books] == [book.nodes for book in books]
        assert {len(book.nodes) for book in books} == {1}
        assert set().union(*(book.nodes for book in books)) == {"zeppelin01", "zeppelin02"}


@pytest.mark.usefixtures("nodes")
def test_the_driver_shows_its_job_and_kill_requests_are_denied() -> None:
    _, body, headers = request(":4040/jobs/")
    cookie = headers["Set-Cookie"].split(";")[0]
    application = json.loads(request(":4040/api/v1/applications", Cookie=cookie)[1])[0]
    job, stage = "/jobs/job/", "/stages/stage/"
    kills = [f"{job}{word}/?id=0" for word in ("kill", "KILL", "%6bill", "%u006bill", "x;/kill", "kill;x")]

    denied = [request(f":4040{one}", Cookie=cookie)[0] for one in (*kills, f"{stage}kill/?id=0&attempt=0")]

    assert denied == [403] * 7
    assert application["name"] in body
    assert application["name"] in ("zeppelin01", "spark01")
    jobs = json.loads(request(f":4040/api/v1/applications/{application['id']}/jobs", Cookie=cookie)[1])
    assert [one["status"] for one in jobs] == ["RUNNING"]
    assert request(":4040/", Cookie=cookie)[0] == 302


@pytest.mark.usefixtures("nodes")
def test_prometheus_scrapes_every_server_and_the_dashboard_has_data() -> None:
    up = 'haproxy_server_status{state="UP",proxy=~"lb-.+"} == 1'
    panels = json.loads((EXAMPLE / "monitoring/dashboard.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]

    wait_until(lambda: len(query_prometheus(up)) == 13, PATIENCE, 1)
    wait_until(lambda: all(query_prometheus(one) for one in expressions), PATIENCE, 1)

    down = {
        one["metric"]["server"] for one in query_prometheus('haproxy_server_status{state="DOWN",proxy=~"lb-.+"} == 1')
    }
    assert down == {"zeppelin02"}
    add_figure(
        f"Prometheus: 13 servers UP in HAProxy's exporter, {len(expressions)} expressions of the dashboard have data"
    )


class Changes:
    """Changes of the platform under load, one after another, with the duration of each in seconds."""

    def __init__(self, balancer: Balancer, nodes: dict[str, Node]) -> None:
        self.balancer, self.nodes = balancer, nodes
        self.durations: dict[str, list[float]] = {}
        self.reloads = 0

    def run_until(self, over: Callable[[], bool]) -> None:
        """Repeat all steps until `over` returns true; the current step is finished."""
        self.join(LATE_NODE)
        for step, name in itertools.cycle(STEPS):
            if over():
                return
            step(self, name)

    def _measure(self, kind: str, change: Callable[[], object], name: str, *states: str) -> None:
        began = time.monotonic()
        change()
        is_done = functools.partial(lambda: set(self.balancer.read_states(name).values()) <= set(states))
        wait_until(is_done, PATIENCE, 0.05)
        self.durations.setdefault(kind, []).append(time.monotonic() - began)

    def pause(self, name: str) -> None:
        event = functools.partial(self.nodes[name].agent.send_event, "pause", f"{name} reason=patches")
        self._measure("pause", event, name, "MAINT")

    def resume(self, name: str) -> None:
        states = ("UP", "DOWN") if name == "zeppelin02" else ("UP",)  # it has no driver
        self._measure("resume", lambda: self.nodes[name].agent.send_event("resume", name), name, *states)

    def leave(self, name: str) -> None:
        self._measure("leave", self.nodes[name].agent.leave, name, "MAINT", "none")
        self.nodes[name].stop()

    def join(self, name: str) -> None:
        self.nodes[name].serve()
        self._measure("join", self.nodes[name].agent.start, name, "UP")

    def crash(self, name: str) -> None:
        self._measure("crash", self.nodes[name].crash, name, "DOWN")
        self._measure("return", self.nodes[name].boot, name, "UP")

    def pause_and_resume(self, name: str) -> None:
        """Run `lbagent pause` and `lbagent resume` on the load balancer."""
        for verb, state in (("pause", "MAINT"), ("resume", "UP")):
            self._measure(f"lbagent {verb}", functools.partial(self._run_lbagent, verb, name), name, state)

    def _run_lbagent(self, verb: str, name: str) -> None:
        done = self.balancer.run(verb, name, *(["--force"] if verb == "pause" else []))
        assert (done.returncode, done.stderr) == (0, b""), done

    def reload(self, _: str) -> None:
        """Reload HAProxy, as an operator does after an edit of haproxy.cfg."""
        worker = self.balancer.haproxy.worker()
        began = time.monotonic()
        os.kill(self.balancer.haproxy.pid, signal.SIGUSR2)
        wait_until(functools.partial(self._has_new_worker, worker), PATIENCE)
        self.reloads += 1
        self.durations.setdefault("reload", []).append(time.monotonic() - began)

    def _has_new_worker(self, worker: int) -> bool:
        with contextlib.suppress(OSError, KeyError):
            return self.balancer.haproxy.worker() != worker
        return False

    def report(self) -> None:
        """Report the number of changes and their durations."""
        add_figure(f"changes under load: {sum(len(took) for what, took in self.durations.items() if what != 'reload')}")
        for what, seconds in self.durations.items():
            longest, median = max(seconds), statistics.median(seconds)
            add_figure(f"{what:16}{len(seconds):4} times, median {median:5.2f} s, longest {longest:5.2f} s")


STEPS: list[tuple[Callable[[Changes, str], None], str]] = [
    (Changes.pause, "web01"),
    (Changes.reload, ""),
    (Changes.resume, "web01"),
    (Changes.leave, "web02"),
    (Changes.join, "web02"),
    (Changes.pause_and_resume, "minio02"),
    (Changes.crash, "api01"),
    (Changes.pause, "zeppelin02"),
    (Changes.leave, LATE_NODE),
    (Changes.resume, "zeppelin02"),
    (Changes.join, LATE_NODE),
    (Changes.crash, LATE_NODE),
]


def test_no_request_fails_while_nodes_come_and_go(balancer: Balancer, nodes: dict[str, Node], folder: Path) -> None:
    before, alerts = balancer.haproxy.reloads()[0], list_alerts(balancer)
    changes = Changes(balancer, nodes)
    with contextlib.ExitStack() as stack:
        books = [stack.enter_context(Notebook()) for _ in range(4)]
        kept = [stack.enter_context(traffic.run_clients(port, 4, pause)) for port, pause in ((80, 0.02), (8080, 0.2))]
        load = stack.enter_context(jmeter.start(folder, LOOPS, ROUNDS))
        stack.callback(load.kill)
        changes.run_until(lambda: load.poll() is not None)
        load.wait()
    found = jmeter.read_result(folder)

    add_figure(
        f"JMeter: {found.requests:,} requests in {found.seconds:.0f} s, {found.rate:,.0f}/s; failed {found.failed or 0}"
    )
    add_figure(f"JMeter: 99 % within {found.p99:.0f} ms, longest {found.longest} ms; {found.requests_by_label}")
    add_figure(f"keep-alive clients that never reconnect silently, ports 80 and 8080: {[dict(one) for one in kept]}")
    add_figure(
        f"notebooks: {[book.answered for book in books]} answers, by {[len(book.nodes) for book in books]} nodes"
    )
    changes.report()
    made = balancer.haproxy.reloads()[0] - before - changes.reloads
    add_figure(f"reloads: {changes.reloads} by hand, during changes; {made} by lbagent, each after one of them")

    assert (found.failed, found.requests) == ({}, jmeter.count_requests(LOOPS, ROUNDS))
    assert {"join", "pause", "reload", "resume", "leave"} <= set(changes.durations)
    assert [set(one) for one in kept] == [{"ok"}, {"ok"}]
    assert [len(book.nodes) for book in books] == [1] * 4
    # zeppelin01 was never paused: all pages of its notebooks come from it.
    assert {*map(frozenset, (book.page_nodes for book in books if "zeppelin01" in book.nodes))} == {
        frozenset({"zeppelin01"})
    }
    # After a reload by hand during a change, lbagent does not know which text HAProxy has read, and reloads once.
    assert 0 <= made <= changes.reloads
    assert (balancer.run("plan").returncode, list_alerts(balancer)) == (0, alerts)
