"""make test-platform: a load balancer is there first, a platform enrols by itself, and a load notices nothing.

FULL=1 makes 1,000,000 requests in five minutes, else it is 100,000 in half a minute.
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
from scenarios.platform.services import EXAMPLE, PAGE, TABLE, disks, storage
from tests.helpers import http_clients as traffic
from tests.helpers.real_programs import wait_until

LOOPS, ROUNDS = (2000, 75) if os.environ.get("FULL") == "1" else (200, 7)
NODES = ("web01", "web02", "api01", "minio01", "minio02", "zeppelin01", "zeppelin02", "spark01", "monitor01")
LATE = "web03"
"""Comes under load only."""
PATIENCE = 120.0

FIGURES: list[str] = []

pytestmark = pytest.mark.skipif("APART" not in os.environ, reason="`make test-platform` gives it a network of its own")


def told(figure: str) -> None:
    """Keep a line for the closing report."""
    FIGURES.append(figure)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="platform-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def balancer(folder: Path) -> Iterator[Balancer]:
    """lb01, and nothing else."""
    found = Balancer(folder)
    with found.running():
        yield found
    print("\n\nmake test-platform")
    print("\n".join(f"  {figure}" for figure in FIGURES))


@pytest.fixture(scope="module")
def nodes(balancer: Balancer, folder: Path) -> Iterator[dict[str, Node]]:
    """Every node but the late one, started in an order of chance, the agent before the services or after them."""
    order = list(NODES)
    seed = random.randrange(10_000)
    dice = random.Random(seed)
    dice.shuffle(order)
    with contextlib.ExitStack() as stack:
        found = {name: Node(name, balancer, folder) for name in (*NODES, LATE)}
        for node in found.values():
            stack.enter_context(node.plugged())
        stack.enter_context(disks(folder))
        started = time.monotonic()
        early = {name for name in order if dice.random() < 0.5}
        for name in order:
            (found[name].agent.start if name in early else found[name].boot)()
        for name in order:
            if name in early:
                found[name].serve()
        wait_until(lambda: all_serve(balancer), PATIENCE)
        shown = " ".join(f"{name}{'*' if name in early else ''}" for name in order)
        told(f"{len(order)} nodes enrolled and UP in {time.monotonic() - started:.1f} s, * agent first: {shown}")
        yield found


def all_serve(balancer: Balancer) -> bool:
    """Whether HAProxy has everybody UP, but for the driver that the second Zeppelin has not started."""
    states = {(name, service): state for name in NODES for service, state in balancer.states(name).items()}
    return states.pop(("zeppelin02", "spark-driver")) == "DOWN" and set(states.values()) == {"UP"}


def get(url: str, **headers: str) -> tuple[int, str, Message]:
    """Status, body and headers of the load balancer's answer; redirects are not followed."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    opener = urllib.request.build_opener(Stay)
    try:
        with opener.open(urllib.request.Request(f"http://10.20.0.2{url}", headers=headers), timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def prometheus(expression: str) -> list[dict[str, Any]]:
    """What Prometheus answers to a query, asked through the load balancer."""
    status, body, _ = get(f":9090/api/v1/query?query={urllib.parse.quote(expression)}")
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)["data"]["result"]
    return found


def complaints(balancer: Balancer) -> list[str]:
    """What HAProxy has said that is more than a note."""
    return [line for line in balancer.haproxy.log.read_text().splitlines() if "[ALERT]" in line]


def findings(balancer: Balancer) -> list[str]:
    """The warnings and errors of `lbagent check`, but for the second load balancer, which is not there."""
    lines = balancer.run("check").stdout.decode().splitlines()
    assert lines
    return [line for line in lines[:-1] if not line.startswith(("ok ", "error    peers: "))]  # the last one sums up


def test_with_nothing_behind_it_every_service_answers_503_in_its_own_way(balancer: Balancer) -> None:
    page = (EXAMPLE / "errors/503.html").read_text()

    answered = {url: get(url) for url in ("/", "/grafana/", ":8080/", ":4040/", ":9090/")}
    api, bucket = get("/api/jobs"), get(":9000/bucket/object")

    assert {url: (status, body) for url, (status, body, _) in answered.items()} == dict.fromkeys(answered, (503, page))
    assert {headers["Retry-After"] for _, _, headers in answered.values()} == {"5"}
    assert (api[0], json.loads(api[1])["status"], api[2]["Content-Type"]) == (503, 503, "application/json")
    assert (bucket[0], "<Code>ServiceUnavailable</Code>" in bucket[1]) == (503, True)
    assert get(":8404/metrics")[0] == 200
    assert (complaints(balancer), balancer.run("plan").returncode) == ([], 0)


def test_lbagent_check_has_nothing_to_say_of_the_empty_load_balancer(balancer: Balancer) -> None:
    # Of the two nodes that its agent is to join, one has not booted yet.
    assert [line.partition(" is no member")[0].split(": ")[0].split() for line in findings(balancer)] == [
        ["error", "peers"]
    ]


def test_every_node_finds_its_way_in_whatever_the_order(balancer: Balancer, nodes: dict[str, Node]) -> None:
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
    assert (balancer.haproxy.reloads(), findings(balancer)) == ((0, 0), [])


@pytest.mark.usefixtures("nodes")
def test_web_and_api_share_port_80() -> None:
    assert get("/")[:2] == (200, PAGE)
    served = {json.loads(get("/api/jobs")[1])["node"] for _ in range(30)}
    assert served == {"10.20.0.11", "10.20.0.12", "10.20.0.21"}


@pytest.mark.usefixtures("nodes")
def test_grafana_lives_below_its_path() -> None:
    bare, below = get("/grafana"), get("/grafana/login")

    assert (bare[0], bare[2]["Location"]) == (302, "/grafana/")
    assert (below[0], below[1]) == (200, "<title>Grafana</title>")
    assert below[2]["Set-Cookie"].startswith("LBGRAFANA=")


@pytest.mark.usefixtures("nodes")
def test_storage_keeps_its_signatures() -> None:
    client, size = storage("10.20.0.2:9000"), 64 * 2**20
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
    assert get(":9000/private/table")[0] == 403
    assert get(signed.removeprefix("http://10.20.0.2").replace("X-Amz-Signature=", "X-Amz-Signature=0"))[0] == 403
    assert get(":9000/public/table.csv")[:2] == (200, TABLE)
    told(f"S3: 64 MiB in eight parts put in {put:.2f} s, got in {got:.2f} s; signed URL good, forged one refused")


@pytest.mark.usefixtures("nodes")
def test_a_notebook_stays_where_it_is() -> None:
    with contextlib.ExitStack() as stack:
        books = [stack.enter_context(Notebook()) for _ in range(4)]
        wait_until(lambda: all(book.said > 3 for book in books))

        assert [book.pages for book in books] == [book.nodes for book in books]
        assert {len(book.nodes) for book in books} == {1}
        assert set().union(*(book.nodes for book in books)) == {"zeppelin01", "zeppelin02"}


@pytest.mark.usefixtures("nodes")
def test_the_driver_shows_its_job_and_nobody_can_kill_it() -> None:
    _, body, headers = get(":4040/jobs/")
    cookie = headers["Set-Cookie"].split(";")[0]
    application = json.loads(get(":4040/api/v1/applications", Cookie=cookie)[1])[0]
    job, stage = "/jobs/job/", "/stages/stage/"
    kills = [f"{job}{word}/?id=0" for word in ("kill", "KILL", "%6bill", "%u006bill", "x;/kill", "kill;x")]

    denied = [get(f":4040{one}", Cookie=cookie)[0] for one in (*kills, f"{stage}kill/?id=0&attempt=0")]

    assert denied == [403] * 7
    assert application["name"] in body
    assert application["name"] in ("zeppelin01", "spark01")
    jobs = json.loads(get(f":4040/api/v1/applications/{application['id']}/jobs", Cookie=cookie)[1])
    assert [one["status"] for one in jobs] == ["RUNNING"]
    assert get(":4040/", Cookie=cookie)[0] == 302


@pytest.mark.usefixtures("nodes")
def test_prometheus_sees_every_server_and_the_dashboard_has_data() -> None:
    up = 'haproxy_server_status{state="UP",proxy=~"lb-.+"} == 1'
    panels = json.loads((EXAMPLE / "monitoring/dashboard.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]

    wait_until(lambda: len(prometheus(up)) == 13, PATIENCE, 1)
    wait_until(lambda: all(prometheus(one) for one in expressions), PATIENCE, 1)

    down = {one["metric"]["server"] for one in prometheus('haproxy_server_status{state="DOWN",proxy=~"lb-.+"} == 1')}
    assert down == {"zeppelin02"}
    told(f"Prometheus: 13 servers UP in HAProxy's exporter, {len(expressions)} expressions of the dashboard have data")


class Changes:
    """What happens to the platform while it works, one thing after another, each with the seconds it took."""

    def __init__(self, balancer: Balancer, nodes: dict[str, Node]) -> None:
        self.balancer, self.nodes = balancer, nodes
        self.took: dict[str, list[float]] = {}
        self.reloads = 0

    def until(self, over: Callable[[], bool]) -> None:
        """Go round until it is over, and finish what was begun."""
        self.join(LATE)
        for step, name in itertools.cycle(ROUND):
            if over():
                return
            step(self, name)

    def _measured(self, what: str, act: Callable[[], object], name: str, *states: str) -> None:
        began = time.monotonic()
        act()
        wanted = functools.partial(lambda: set(self.balancer.states(name).values()) <= set(states))
        wait_until(wanted, PATIENCE, 0.05)
        self.took.setdefault(what, []).append(time.monotonic() - began)

    def pause(self, name: str) -> None:
        event = functools.partial(self.nodes[name].agent.send_event, "pause", f"{name} reason=patches")
        self._measured("pause", event, name, "MAINT")

    def resume(self, name: str) -> None:
        states = ("UP", "DOWN") if name == "zeppelin02" else ("UP",)  # it has no driver
        self._measured("resume", lambda: self.nodes[name].agent.send_event("resume", name), name, *states)

    def leave(self, name: str) -> None:
        self._measured("leave", self.nodes[name].agent.leave, name, "MAINT", "none")
        self.nodes[name].shut()

    def join(self, name: str) -> None:
        self.nodes[name].serve()
        self._measured("join", self.nodes[name].agent.start, name, "UP")

    def crash(self, name: str) -> None:
        self._measured("crash", self.nodes[name].crash, name, "DOWN")
        self._measured("return", self.nodes[name].boot, name, "UP")

    def operator(self, name: str) -> None:
        """`lbagent pause` and `resume`, typed on the load balancer."""
        for verb, state in (("pause", "MAINT"), ("resume", "UP")):
            self._measured(f"lbagent {verb}", functools.partial(self._typed, verb, name), name, state)

    def _typed(self, verb: str, name: str) -> None:
        done = self.balancer.run(verb, name, *(["--force"] if verb == "pause" else []))
        assert (done.returncode, done.stderr) == (0, b""), done

    def reload(self, _: str) -> None:
        """An operator's own reload, as after an edit of what is his."""
        worker = self.balancer.haproxy.worker()
        began = time.monotonic()
        os.kill(self.balancer.haproxy.pid, signal.SIGUSR2)
        wait_until(functools.partial(self._another, worker), PATIENCE)
        self.reloads += 1
        self.took.setdefault("reload", []).append(time.monotonic() - began)

    def _another(self, worker: int) -> bool:
        with contextlib.suppress(OSError, KeyError):
            return self.balancer.haproxy.worker() != worker
        return False

    def told(self) -> None:
        """Tell how many, and how long."""
        told(f"changes under load: {sum(len(took) for what, took in self.took.items() if what != 'reload')}")
        for what, seconds in self.took.items():
            longest, median = max(seconds), statistics.median(seconds)
            told(f"{what:16}{len(seconds):4} times, median {median:5.2f} s, longest {longest:5.2f} s")


ROUND: list[tuple[Callable[[Changes, str], None], str]] = [
    (Changes.pause, "web01"),
    (Changes.reload, ""),
    (Changes.resume, "web01"),
    (Changes.leave, "web02"),
    (Changes.join, "web02"),
    (Changes.operator, "minio02"),
    (Changes.crash, "api01"),
    (Changes.pause, "zeppelin02"),
    (Changes.leave, LATE),
    (Changes.resume, "zeppelin02"),
    (Changes.join, LATE),
    (Changes.crash, LATE),
]


def test_no_request_fails_while_nodes_come_and_go(balancer: Balancer, nodes: dict[str, Node], folder: Path) -> None:
    before, said = balancer.haproxy.reloads()[0], complaints(balancer)
    changes = Changes(balancer, nodes)
    with contextlib.ExitStack() as stack:
        books = [stack.enter_context(Notebook()) for _ in range(4)]
        kept = [stack.enter_context(traffic.run_clients(port, 4, pause)) for port, pause in ((80, 0.02), (8080, 0.2))]
        load = stack.enter_context(jmeter.start(folder, LOOPS, ROUNDS))
        stack.callback(load.kill)
        changes.until(lambda: load.poll() is not None)
        load.wait()
    found = jmeter.result(folder)

    told(
        f"JMeter: {found.requests:,} requests in {found.seconds:.0f} s, {found.rate:,.0f}/s; failed {found.failed or 0}"
    )
    told(f"JMeter: 99 % within {found.p99:.0f} ms, longest {found.longest} ms; {found.each}")
    told(f"keep-alive clients that never reconnect silently, ports 80 and 8080: {[dict(one) for one in kept]}")
    told(
        f"notebooks: {[book.said for book in books]} messages answered, by {[len(book.nodes) for book in books]} nodes"
    )
    changes.told()
    made = balancer.haproxy.reloads()[0] - before - changes.reloads
    told(f"reloads: {changes.reloads} by hand, in the midst of changes; {made} by lbagent, after one of these")

    assert (found.failed, found.requests) == ({}, jmeter.asked(LOOPS, ROUNDS))
    assert {"join", "pause", "reload", "resume", "leave"} <= set(changes.took)
    assert [set(one) for one in kept] == [{"ok"}, {"ok"}]
    assert [len(book.nodes) for book in books] == [1] * 4
    # Nobody paused this one: its pages too come from nowhere else.
    assert {*map(frozenset, (book.pages for book in books if "zeppelin01" in book.nodes))} == {
        frozenset({"zeppelin01"})
    }
    # Whoever reloads right after a change leaves open which text HAProxy has read: lbagent makes sure, once.
    assert 0 <= made <= changes.reloads
    assert (balancer.run("plan").returncode, complaints(balancer)) == (0, said)
