"""examples/data-platform: its rules work on a real HAProxy, and its files are consistent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from lbagent.roles import loader
from tests.helpers.echo_server import run_echo_server
from tests.helpers.real_programs import Haproxy, LoadBalancer, free_port, member_line, wait_until

HERE = Path(__file__).resolve().parent.parent.parent
EXAMPLE = HERE / "examples" / "data-platform"
CONFIG = (EXAMPLE / "haproxy.cfg").read_text(encoding="utf-8")
ROLES = loader.parse_roles((EXAMPLE / "roles.yml").read_bytes(), "roles.yml")
PANELS = json.loads((EXAMPLE / "monitoring/dashboard.json").read_text(encoding="utf-8"))["panels"]
SETTINGS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (EXAMPLE / "serf").glob("*01.json")}
SERVICES = ["api", "grafana", "minio", "prometheus", "spark-driver", "web-ui", "zeppelin"]


def adapt_to_loopback(text: str, lb: LoadBalancer, ports: dict[str, int]) -> str:
    """Return the example's haproxy.cfg with free ports on loopback, for the user of the tests."""
    text = re.sub(r"(?m)^    bind :(\d+)$", lambda found: f"    bind 127.0.0.1:{ports[found[1]]}", text)
    text = re.sub(r"(?m)^    (user|group) haproxy\n", "", text)
    text = text.replace("maxconn 8000", "maxconn 200")
    return text.replace("/run/haproxy/admin.sock", str(lb.socket)).replace("10.20.0.0/16", "127.0.0.0/8")


def test_every_service_has_its_marker_once_and_every_marker_a_service() -> None:
    markers = re.findall(r"(?m)^    # additional-lb-([a-z-]+)-server$", CONFIG)

    assert sorted(markers) == SERVICES
    assert sorted(ROLES.list_pairs()) == [f"lb-{service}" for service in SERVICES]


def test_every_role_has_a_node_and_every_node_a_role() -> None:
    roles = {name: found["tags"]["role"] for name, found in SETTINGS.items() if name != "lb01"}

    assert sorted(roles.values()) == sorted(ROLES.roles)
    assert {found["node_name"] for found in SETTINGS.values()} == set(SETTINGS)
    assert {tuple(found["retry_join"]) for found in SETTINGS.values()} == {("10.20.0.2", "10.20.0.3")}


@pytest.mark.real
def test_every_join_is_applied_without_a_reload() -> None:
    if shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        pytest.skip("no haproxy here")
    ports = {port: free_port() for port in re.findall(r"(?m)^    bind :(\d+)$", CONFIG)}
    roles = (EXAMPLE / "roles.yml").read_text(encoding="utf-8").replace("10.20.0.0/16", "127.0.0.0/8")
    with LoadBalancer() as lb:
        shutil.copytree(EXAMPLE / "errors", lb.etc / "errors")
        lb.text = adapt_to_loopback(CONFIG, lb, ports).encode()
        lb.roles.write_text(roles.replace("/etc/haproxy/haproxy.cfg", str(lb.cfg)), encoding="utf-8")
        with Haproxy(lb) as haproxy:
            assert haproxy.get(int(ports["80"])) == "503"
            joined = lb.join(member_line("all01", "127.0.0.71", "everything"))
            wait_until(lambda: lb.idle)
            known = sorted(name for name in SERVICES if "all01" in haproxy.servers(f"lb-{name}"))

            assert (joined.returncode, joined.stderr) == (0, b"")
            assert known == SERVICES
            assert haproxy.reloads() == (0, 0)


@pytest.mark.real
def test_a_client_cannot_set_the_headers_of_its_address() -> None:
    if shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        pytest.skip("no haproxy here")
    ports = {port: free_port() for port in re.findall(r"(?m)^    bind :(\d+)$", CONFIG)}
    told = dict.fromkeys(("X-Forwarded-For", "x-real-ip", "Forwarded", "X-Forwarded-Host", "X-Forwarded-Context"), "me")
    with LoadBalancer() as lb, run_echo_server() as node:
        shutil.copytree(EXAMPLE / "errors", lb.etc / "errors")
        found = adapt_to_loopback(CONFIG, lb, ports)
        lb.text = re.sub(r"(?m)^    # additional-.*", f"    server node 127.0.0.1:{node}", found).encode()
        with Haproxy(lb):
            heard = {}
            for where in (":80/", ":80/api/", ":80/grafana/", ":9000/", ":8080/", ":4040/", ":9090/"):
                port, _, path = where[1:].partition("/")
                asked = urllib.request.Request(f"http://127.0.0.1:{ports[port]}/{path}", headers=told)
                with urllib.request.urlopen(asked, timeout=20) as answer:
                    heard[where] = [one for one in json.load(answer) if re.search("(?i)forward|real", one[0])]

    assert heard == {where: [["x-forwarded-for", "127.0.0.1"]] for where in heard}


def test_a_node_is_checked_by_the_answer_of_its_api() -> None:
    nginx = (EXAMPLE / "services" / "nginx.conf").read_text(encoding="utf-8")

    assert re.findall(r"location (.*) \{", nginx) == ["/api/"]
    assert "option httpchk GET /api/health\n" in CONFIG


def test_no_job_can_be_killed_through_the_load_balancer() -> None:
    driver = CONFIG.partition("listen lb-spark-driver")[2].partition("\nlisten")[0]

    assert re.findall(r"(?m)^    http-request (deny .*|del-header upgrade)$", driver) == [
        "deny unless { method GET HEAD OPTIONS }",
        "deny if { path -m sub -i /kill % ; }",
        "del-header upgrade",
    ]


def test_only_reading_requests_are_sent_twice() -> None:
    proxies = re.findall(r"(?m)^(?:frontend|listen) (\S+)\n((?:    .*\n)+)", CONFIG)
    careful = [name for name, text in proxies if " unless { method GET HEAD OPTIONS }" in text]

    assert "retry-on conn-failure empty-response" in CONFIG
    assert careful == [name for name, _ in proxies if name != "statistics"]


def test_prometheus_accepts_its_files() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here")
    checked = subprocess.run(["promtool", "check", "config", EXAMPLE / "monitoring/prometheus.yml"], check=False)

    assert checked.returncode == 0


def test_the_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    source = yaml.safe_load((EXAMPLE / "monitoring/datasource.yml").read_text(encoding="utf-8"))["datasources"][0]
    asked = {one["datasource"]["uid"] for panel in PANELS for one in (panel, *panel["targets"])}

    assert asked == {source["uid"]}


def test_the_load_is_a_million_requests_at_the_load_balancer() -> None:
    plan = ET.parse(EXAMPLE / "load/platform.jmx")
    groups = {group.get("testname"): group for group in plan.iter("ThreadGroup")}
    samplers = [one.get("testname") for one in plan.iter("HTTPSamplerProxy")]
    defaults = dict(re.findall(r"\$\{__P\((\w+),([\w.]+)\)\}", (EXAMPLE / "load/platform.jmx").read_text("utf-8")))
    ports = {one.text for one in plan.iter("stringProp") if one.get("name") == "HTTPSampler.port"}

    assert list(groups) == ["users", "analysts"]
    assert len(samplers) == 14
    assert int(defaults["users"]) * int(defaults["loops"]) * 10 == 1_000_000
    assert int(defaults["users"]) * int(defaults["per_minute"]) / 60 == pytest.approx(3333, abs=1)
    assert defaults["host"] in SETTINGS["lb01"]["bind"]
    assert ports <= set(re.findall(r"(?m)^    bind :(\d+)$", CONFIG))


def test_every_file_is_named_in_the_readme() -> None:
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    linked = {(EXAMPLE / target).resolve() for target in re.findall(r"\]\(([^)#:]+)\)", readme)}
    files = [path for path in EXAMPLE.rglob("*") if path.is_file() and path.name != "README.md"]

    assert [path for path in linked if not path.exists()] == []
    assert [path for path in files if path not in linked and path.parent not in linked] == []
