"""examples/monitoring: rules, dashboard and Alertmanager configuration work with the metrics that lbagent writes."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import threading
import types
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.daemon import run_watch
from tests.helpers.real_programs import Haproxy, LoadBalancer, SerfAgent, binaries, free_port, member_line, wait_until

PROJECT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = PROJECT / "examples/monitoring"
RULES: list[dict[str, Any]] = yaml.safe_load((EXAMPLE / "rules.yml").read_text())["groups"][0]["rules"]
TESTS: list[dict[str, Any]] = yaml.safe_load((EXAMPLE / "tests.yml").read_text())["tests"]


@functools.cache
def load_generator() -> types.ModuleType:
    """Return the program that writes the dashboard, as a module."""
    spec = importlib.util.spec_from_file_location("dashboard", PROJECT / "packaging/dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_dashboard_queries() -> list[str]:
    """Return the PromQL of every panel, with values for Grafana's variables."""
    queries: list[str] = load_generator().list_queries(json.loads((EXAMPLE / "dashboard.json").read_text()))
    values = {"$job": ".+", "$instance": ".+", "$__rate_interval": "1m"}
    return [functools.reduce(lambda text, one: text.replace(*one), values.items(), query) for query in queries]


@pytest.mark.parametrize(
    "command",
    [
        ["promtool", "check", "rules", "rules.yml"],
        ["promtool", "test", "rules", "tests.yml"],
        ["promtool", "check", "config", "--syntax-only", "prometheus.yml"],
        ["amtool", "check-config", "alertmanager.yml"],
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_each_file_is_accepted_by_its_program(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_firing_and_not_firing() -> None:
    cases = [case for test in TESTS for case in test.get("alert_rule_test", ())]
    fires = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}

    assert {rule["alert"] for rule in RULES} == fires == silent


def test_every_alert_describes_the_problem_and_the_fix() -> None:
    assert {(*sorted(rule["annotations"]), *rule["labels"]) for rule in RULES} == {("action", "summary", "severity")}
    assert {rule["labels"]["severity"] for rule in RULES} == {"critical", "warning", "info"}


def test_rules_and_tests_use_metrics_and_labels_that_lbagent_writes() -> None:
    series = [one["series"] for test in TESTS for one in test["input_series"]]

    assert load_generator().find_mistakes([rule["expr"] for rule in RULES] + series) == []


@pytest.mark.parametrize(
    ("query", "mistake"),
    [
        ("lbagent_held_back_lines > 0", "lbagent_held_back_lines: not a metric of lbagent"),
        ("lbagent_run_duration_seconds > 0", "lbagent_run_duration_seconds: not a metric of lbagent"),
        ('lbagent_servers{node="web01"}', "lbagent_servers has no label node"),
        ("sum by (verdict) (lbagent_servers)", "lbagent_servers has no label verdict"),
    ],
)
def test_a_query_with_an_unknown_metric_or_label_is_refused(query: str, mistake: str) -> None:
    assert load_generator().find_mistakes([query]) == [f"{mistake}: {query}"]


def test_alertmanager_names_alerts_that_exist() -> None:
    text = (EXAMPLE / "alertmanager.yml").read_text()

    assert set(re.findall(r"Lbagent\w+", text)) <= {rule["alert"] for rule in RULES}


def test_the_dashboard_is_what_its_generator_writes() -> None:
    assert (EXAMPLE / "dashboard.json").read_text() == load_generator().format_dashboard(), "run `make dashboard`"


def test_promtool_parses_every_query_of_the_dashboard() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here")
    made = json.loads((EXAMPLE / "dashboard.json").read_text())

    assert load_generator().parse_with_promtool(load_generator().list_queries(made)) == ""
    assert "parse error" in load_generator().parse_with_promtool(["sum by (lbagent_servers"])


def test_no_panels_overlap_and_each_has_a_description() -> None:
    panels = json.loads((EXAMPLE / "dashboard.json").read_text())["panels"]
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert [panel["title"] for panel in panels if panel["type"] != "row" and not panel.get("description")] == []
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_page_has_every_alert_with_its_severity() -> None:
    rows = re.findall(r"^\| `(Lbagent\w+)` \| (\w+) \|", (EXAMPLE / "README.md").read_text(), re.MULTILINE)

    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


# Prometheus reads the metrics of a real load balancer


class _Files(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012  # as in the base class
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".prom": "text/plain; version=0.0.4",  # Prometheus 3 accepts no other type
    }

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[int]:
    """Run a web server with the files of this folder, in place of node_exporter; yields its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(folder))) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def run_prometheus(folder: Path, target: int) -> Iterator[str]:
    """Run a Prometheus in this folder that scrapes /metrics.prom of a port each second; yields its URL."""
    port = free_port()
    scrape = {
        "job_name": "lb",
        "metrics_path": "/metrics.prom",
        "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
    }
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.json").write_text(json.dumps(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.json", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or b"ready to receive" in (folder / "log").read_bytes())
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """The URL of a Prometheus with these rules, and the metrics of a load balancer with a daemon and a pause."""
    for program in ("prometheus", "serf"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")
    if not binaries():
        pytest.skip("no haproxy here")
    shutil.copy(EXAMPLE / "rules.yml", tmp_path)
    with (
        SerfAgent("lb01", "127.0.0.5", "lb") as agent,
        SerfAgent("web01", "127.0.0.11", "web") as web,
        LoadBalancer() as lb,
        Haproxy(lb),
    ):
        web.join(agent)
        env = {"SERF_RPC_ADDR": agent.rpc}
        lb.join(member_line("web01", "127.0.0.11"))
        lb.send_command("pause", "web01", 1)
        with run_watch(lb, **env):
            wait_until(lambda: b"\nlbagent_peers_seen 0\n" in (lb.state / "metrics.prom").read_bytes())
        with serve_folder(lb.state) as port, run_prometheus(tmp_path, port) as url:
            yield url


def send_query(url: str, query: str, moment: float | None = None) -> list[dict[str, Any]]:
    """Return the series of a query at a moment, in seconds since the epoch; without one, now."""
    words = {"query": query} | ({} if moment is None else {"time": str(moment)})
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode(words)}", timeout=20) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


@pytest.mark.real
def test_every_query_of_the_dashboard_has_data_and_the_alerts_match_the_state(prometheus: str) -> None:
    # On a busy machine a later scrape may miss its time limit of one second, and the first evaluation has no data.
    scraped_thrice = "lbagent_build_info and count_over_time(lbagent_build_info[1m]) > 2"
    moment = float(wait_until(lambda: send_query(prometheus, scraped_thrice))[0]["value"][0])

    assert [query for query in read_dashboard_queries() if not send_query(prometheus, query, moment)] == []
    wait_until(lambda: find_alerts(prometheus) == {"LbagentServiceWithoutServer"})


def find_alerts(url: str) -> set[str]:
    """Return the names of all alerts that are pending or firing."""
    return {one["metric"]["alertname"] for one in send_query(url, "ALERTS")}
