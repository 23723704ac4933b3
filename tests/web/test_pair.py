"""The page of a real pair: the API describes what real daemons publish, and a pause is applied by both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jsonschema
import pytest

import lbagent.web
from tests.helpers.daemon import run_watch
from tests.helpers.pair import Balancer, join_both, run_pair
from tests.helpers.real_programs import SerfAgent, wait_until
from tests.helpers.web_page import USER, WebPage

pytestmark = pytest.mark.real


class Site(NamedTuple):
    """A pair with two web servers, and the page of lb01."""

    balancers: tuple[Balancer, Balancer]
    page: WebPage


@pytest.fixture
def site() -> Iterator[Site]:
    """Everything runs, and both load balancers have both nodes."""
    with contextlib.ExitStack() as stack:
        two = stack.enter_context(run_pair())
        nodes = [stack.enter_context(SerfAgent(f"web0{one}", f"127.0.0.1{one}", "web")) for one in (1, 2)]
        join_both(two, *nodes)
        pages: list[WebPage] = []
        for one in reversed(two):
            env = {"SERF_RPC_ADDR": one.agent.rpc, "PATH": one.lb.env["PATH"]}
            stack.enter_context(run_watch(one.lb, LBAGENT_RUNTIME_DIR=str(one.lb.folder), SERF_RPC_ADDR=one.agent.rpc))
            words = ["--peer", pages[0].url] if pages else []
            pages.append(stack.enter_context(WebPage(one.lb.folder, *words, users=True, env=env)))
        yield Site(two, pages[1])


def test_the_specification_describes_what_real_daemons_publish(site: Site) -> None:
    specification = json.loads((Path(lbagent.web.__path__[0]) / "openapi.json").read_text())
    wait_until(
        lambda: site.page.get("/api/status").status == 200
    )  # the daemon publishes its status after its first run

    for name, path in (("LoadBalancerStatus", "/api/status"), ("NodeDetails", "/api/nodes/web01")):
        schema = {"$ref": f"#/components/schemas/{name}", "components": specification["components"]}
        answer = site.page.get(path)
        assert answer.status == 200
        jsonschema.Draft202012Validator(schema).validate(answer.json)
    entries = site.page.get("/api/history").json
    schema = {"$ref": "#/components/schemas/History", "components": specification["components"]}
    jsonschema.Draft202012Validator(schema).validate(entries)
    assert any("server web01 " in line for entry in entries["history"] for line in entry["added"])
    described = specification["components"]["schemas"]["Status"]["properties"].keys()
    assert site.page.get("/api/status").json["status"].keys() == described


def test_both_load_balancers_apply_a_pause_from_the_page_and_a_resume(site: Site) -> None:
    wait_until(lambda: site.page.get("/healthz").status == 200)
    assert site.page.log_in().status == 303
    token = site.page.get("/nodes/web01").token

    for verb, paused in (("pause", True), ("resume", False)):
        answer = site.page.post(f"/nodes/web01/{verb}", {"token": token, "reason": "patch day", "force": "1"})
        where = answer.headers["location"]
        page = wait_until(lambda where=where: (found := site.page.get(where).text) * ("under way" not in found))  # type: ignore[misc]

        assert page.count(">done") == 2
        assert "confirmed</span> by every load balancer" in page
        for one in site.balancers:
            pause = one.lb.members()["web01"]["pause"]
            assert (pause is not None) == paused
            if paused:
                assert (pause.by, pause.reason) == (f"{USER} on lb01, by query", "patch day")


def test_the_metrics_are_those_that_the_daemon_wrote(site: Site) -> None:
    written = (site.balancers[0].lb.state / "metrics.prom").read_text()

    def list_types(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("# TYPE ")]

    # Right after its start, the page has no answer of the daemon yet.
    wait_until(lambda: list_types(site.page.get("/metrics").text) == list_types(written))
