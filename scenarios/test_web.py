"""The web page of a real pair (Serf, HAProxy, two daemons) in a real Chromium.

The tests share one pair. What they measure is printed at the end. Pictures go to build/web,
with PICTURES=1 to docs/img too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scenarios.browser import Browser
from tests.helpers.daemon import run_watch
from tests.helpers.pair import Balancer, join_both, run_pair
from tests.helpers.real_programs import CONFIG as ONE_SERVICE
from tests.helpers.real_programs import Backend, SerfAgent, wait_until
from tests.helpers.web_page import PASSWORD, USER, WebPage

HERE = Path(__file__).resolve().parent.parent
AXE = HERE / "build" / "axe" / "axe_playwright_python" / "axe.min.js"
PICTURES = HERE / "build" / "web"

CONFIG = f"""\
{ONE_SERVICE.replace("option httpclose", "option redispatch")}
backend lb-api
    balance leastconn
    # additional-lb-api-server
"""

ROLES = """\
haproxy:
  config: {cfg}
  timeout: 15s
services:
  iis: {{port: {port}}}
  api: {{port: {port}}}
roles:
  web: {{lb: [iis], interval: 200ms, networks: [127.0.0.0/8]}}
  api: {{lb: [api], interval: 200ms, networks: [127.0.0.0/8]}}
"""

IN_DOCS = ("desktop", "dark", "phone", "node", "order")

PROMISED = 2.0
"""Seconds within which a change is to be seen; printed beside each figure."""

BOUND = 15.0
"""Seconds that the noisiest machine keeps."""

figures: list[str] = []


class Site(NamedTuple):
    """Two load balancers, each with its page."""

    balancers: tuple[Balancer, Balancer]
    pages: tuple[WebPage, WebPage]
    nodes: dict[str, SerfAgent]
    backends: dict[str, Backend]
    browser: Browser
    stack: contextlib.ExitStack

    @property
    def words(self) -> str:
        """The text of the open page, in one line."""
        return " ".join(str(self.browser.run("return document.body.innerText")).split())

    def row(self, node: str) -> str:
        """The text of a node's row, in one line."""
        script = (
            "return [...document.querySelectorAll('#nodes tbody tr')].map(r => r.innerText)"
            f".find(t => t.trim().startsWith('{node}')) || ''"
        )
        return " ".join(str(self.browser.run(script)).split())

    def add(self, name: str, address: str, role: str, **tags: str) -> SerfAgent:
        """A server with its Serf agent, which has not joined."""
        backend = Backend(name, address, self.balancers[0].lb.port)
        self.backends[name] = self.stack.enter_context(backend)
        self.nodes[name] = self.stack.enter_context(SerfAgent(name, address, role, tags=tags))
        return self.nodes[name]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A pair with four servers, its pages, and a browser on the page of lb01."""
    with contextlib.ExitStack() as stack:
        balancers = stack.enter_context(run_pair(CONFIG, ROLES))
        for one in balancers:
            env = {"LBAGENT_RUNTIME_DIR": str(one.lb.folder), "SERF_RPC_ADDR": one.agent.rpc}
            stack.enter_context(run_watch(one.lb, **env))
        pages = _make_pages(balancers)
        for page in pages:
            stack.enter_context(page)
        browser = stack.enter_context(Browser())
        site = Site(balancers, pages, {}, {}, browser, stack)
        for name, address, role in (
            ("web01", "127.0.0.11", "web"),
            ("web02", "127.0.0.12", "web"),
            ("api01", "127.0.0.21", "api"),
            ("api02", "127.0.0.22", "api"),
        ):
            site.add(name, address, role, zone="<b>north</b>")
        join_both(balancers, *site.nodes.values())
        browser.open(f"{pages[0].url}/")
        yield site
        print("\n" + "\n".join(figures))


def _make_pages(balancers: tuple[Balancer, Balancer]) -> tuple[WebPage, WebPage]:
    env = [{"SERF_RPC_ADDR": one.agent.rpc, "PATH": one.lb.env["PATH"]} for one in balancers]
    second = WebPage(balancers[1].lb.folder, users=True, env=env[1])
    first = WebPage(balancers[0].lb.folder, "--peer", second.url, users=True, env=env[0])
    second.add_options("--peer", first.url)
    return first, second


def measure(what: str, happened: Callable[[], object], seen: Callable[[], object]) -> None:
    """Wait until it happened, and from then on until it is seen; note how long the latter took."""
    wait_until(happened)
    begin = time.monotonic()
    wait_until(seen, BOUND)
    took = time.monotonic() - begin
    figures.append(f"{what}: seen after {took:.2f} s (promised {PROMISED:g} s)")


def shows(site: Site, node: str, *states: str) -> bool:
    """Whether the row of a node has these states, the first load balancer's first."""
    script = (
        "const row = [...document.querySelectorAll('#nodes tbody tr')]"
        f".find(r => r.querySelector('a').textContent === '{node}');"
        "return row ? [...row.querySelectorAll('td > .state')].map(s => s.textContent) : []"
    )
    found = site.browser.run(script)
    return [str(one) for one in found][: len(states)] == list(states)


def has_line(balancer: Balancer, node: str) -> bool:
    """Whether haproxy.cfg has a server of this name."""
    return any(line.startswith(f"server {node} ") for line in balancer.lb.managed)


def open_now(site: Site, path: str = "/") -> None:
    """Open a page of lb01."""
    site.browser.emulate(1200, 900)
    site.browser.open(f"{site.pages[0].url}{path}")


def test_a_join_is_seen(site: Site) -> None:
    open_now(site)
    assert "web03" not in site.words

    agent = site.add("web03", "127.0.0.13", "web")
    for one in site.balancers:
        agent.join(one.agent)

    measure("join", lambda: has_line(site.balancers[0], "web03"), lambda: shows(site, "web03", "in"))
    wait_until(lambda: shows(site, "web03", "in", "in"), BOUND)
    wait_until(lambda: site.row("web03").count("HAProxy UP") == 2, BOUND)


def test_a_server_that_is_down_is_seen(site: Site) -> None:
    open_now(site)
    site.backends["web03"].stop()

    def down() -> bool:
        return site.balancers[0].haproxy.servers()["web03"].startswith("DOWN")

    measure("server down", down, lambda: "HAProxy DOWN" in site.row("web03"))
    site.backends["web03"].start()
    wait_until(lambda: site.row("web03").count("HAProxy UP") == 2, BOUND)


def test_a_pause_and_a_resume_from_the_other_load_balancer_are_seen(site: Site) -> None:
    open_now(site)
    reason = "<script>document.title = 'x'</script>"

    words = ("pause", "web02", "--for", "2h", "--reason", reason)
    with site.balancers[1].lb.start(*words, env={"SERF_RPC_ADDR": site.balancers[1].agent.rpc}) as command:
        measure("pause", lambda: not has_line(site.balancers[0], "web02"), lambda: shows(site, "web02", "paused"))
        command.communicate(timeout=60)
    wait_until(lambda: shows(site, "web02", "paused", "paused"), BOUND)
    assert reason in site.row("web02")
    assert "ends in 119m" in site.row("web02") or "ends in 2h" in site.row("web02")
    assert site.browser.title != "x"
    with site.balancers[1].lb.start("resume", "web02", env={"SERF_RPC_ADDR": site.balancers[1].agent.rpc}) as command:
        measure("resume", lambda: has_line(site.balancers[0], "web02"), lambda: shows(site, "web02", "in"))
        command.communicate(timeout=60)


def test_a_failed_reload_is_seen_and_so_is_the_next_good_one(site: Site) -> None:
    open_now(site)
    one = site.balancers[0]
    roles, config = one.lb.roles.read_text(), one.lb.text
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one.lb.text = config + f"\nlisten taken\n    bind 127.0.0.1:{port}\n".encode()
        one.lb.roles.write_text(roles.replace("haproxy:\n", "haproxy:\n  runtime: off\n"))
        one.run("pause", "web03")
        measure("failed reload", lambda: _failed(one), lambda: "reload failed" in site.words)
        assert "not healthy Events may not take effect here." in site.words
        assert site.pages[0].get("/healthz").status == 503
    one.run("apply", "--force")
    measure("good reload", lambda: not _failed(one), lambda: "reload failed" not in site.words)
    one.lb.roles.write_text(roles)
    one.run("resume", "web03")
    wait_until(lambda: shows(site, "web03", "in", "in"), BOUND)


def _failed(balancer: Balancer) -> bool:
    served = balancer.lb.served()
    return bool(served and served["failure"])


def test_a_partition_is_seen_and_delays_nothing(site: Site) -> None:
    open_now(site)
    other = site.pages[1].process
    assert other
    assert other.pid
    wait_until(lambda: shows(site, "web01", "in", "in"), BOUND)
    begin = time.monotonic()
    os.kill(other.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: shows(site, "web01", "in", "unknown"), BOUND)
        took = time.monotonic() - begin
        figures.append(f"partition: seen after {took:.2f} s (promised {PROMISED:g} s)")
        assert "did not answer in time" in site.words
        begin = time.monotonic()
        site.pages[0].get("/")
        figures.append(f"a page while the other load balancer is silent: {1000 * (time.monotonic() - begin):.0f} ms")
    finally:
        os.kill(other.pid, signal.SIGCONT)
    wait_until(lambda: shows(site, "web01", "in", "in"), BOUND)


def log_in(site: Site, node: str) -> None:
    """Log in by the form, on the way to a node's page."""
    open_now(site, f"/login?node={node}")
    site.browser.fill("#user", USER)
    site.browser.fill("#password", PASSWORD)
    site.browser.press("main button")
    wait_until(lambda: site.browser.url.endswith(f"/nodes/{node}"), BOUND)


def test_a_pause_from_the_page_is_acknowledged_by_both(site: Site) -> None:
    log_in(site, "web01")
    site.browser.fill("#for", "2h")
    site.browser.fill("#reason", "patch day")
    site.browser.press("form[action$='/pause'] button")

    wait_until(lambda: "confirmed by every load balancer" in site.words, BOUND)
    assert "lb01 done" in site.words
    assert "lb02 done" in site.words
    picture(site, "order", 1000, 520)
    for one in site.balancers:
        pause = one.lb.members()["web01"]["pause"]
        assert (pause.by, pause.reason) == (f"{USER} on lb01, by query", "patch day")
        assert one.lb.history()[-1]["why"] == f"pause web01 by {USER} on lb01, by query"

    open_now(site, "/nodes/web01")
    assert f"by {USER} on lb01, by query" in site.words
    site.browser.press("form[action$='/resume'] button")
    wait_until(lambda: "confirmed by every load balancer" in site.words, BOUND)
    assert all(has_line(one, "web01") for one in site.balancers)


def test_what_is_typed_is_kept_while_the_page_changes(site: Site) -> None:
    log_in(site, "web01")
    site.browser.fill("#reason", "half a sen")
    site.balancers[1].run("pause", "web01")

    wait_until(lambda: "paused" in site.browser.run("return document.getElementById('node').innerText"), BOUND)

    assert site.browser.run("return document.getElementById('reason').value") == "half a sen"
    assert site.browser.run("return document.activeElement.id") == "reason"
    site.balancers[1].run("resume", "web01")


def test_nothing_serious_is_found_by_axe(site: Site) -> None:
    site.balancers[0].run("pause", "web02", "--for", "8h", "--reason", "new certificate")
    log_in(site, "web02")
    pages = ["/", "/history", "/nodes/web02", "/nodes/web01", "/login", "/nodes/none", "/?q=nothing"]
    found: list[tuple[str, str, str, str]] = []
    rules = 0
    for dark in (False, True):
        for width in (1200, 390):
            for path in pages:
                site.browser.emulate(width, 900, phone=width < 800, dark=dark)
                site.browser.open(f"{site.pages[0].url}{path}")
                result = examine(site.browser)
                rules += len(result["passes"])
                found += [
                    (path, one["id"], one["impact"], one["nodes"][0]["html"][:120]) for one in result["violations"]
                ]
    version = site.browser.run("return axe.version")
    figures.append(f"axe {version}: {rules} rules passed on {4 * len(pages)} pages, {len(set(found))} violations")
    assert found == []
    site.balancers[0].run("resume", "web02")


def examine(browser: Browser) -> dict[str, Any]:
    """Return the result of axe-core for the open page."""
    browser.run(AXE.read_text())
    browser.run("window.axeResult = null; axe.run(document).then(r => { window.axeResult = r; });")
    found = wait_until(lambda: browser.run("return window.axeResult"), 30)
    assert isinstance(found, dict)
    return found


def test_the_page_is_light_and_painted_soon(site: Site) -> None:
    open_now(site)
    wait_until(lambda: browser_paint(site) > 0, BOUND)
    weights = site.browser.run(
        "return [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".map(e => [e.name, e.transferSize, e.decodedBodySize])"
    )

    loaded = sum(row[1] for row in weights)
    decoded = sum(row[2] for row in weights)
    hosts = {row[0].split("/")[2] for row in weights}
    figures.append(f"first paint: {browser_paint(site):.0f} ms; page weight: {loaded} bytes sent, {decoded} unpacked")
    figures.append(f"memory: {site.pages[0].memory:.0f} MiB resident")
    assert hosts == {f"127.0.0.1:{site.pages[0].port}"}
    assert decoded < 100_000
    assert site.pages[0].memory < 60
    blocked = site.browser.run("return window.blocked || 0")
    assert blocked == 0


def browser_paint(site: Site) -> float:
    """Milliseconds until the first paint of the open page; 0 before it."""
    script = "return (performance.getEntriesByName('first-contentful-paint')[0] || {startTime: 0}).startTime"
    return float(site.browser.run(script))


def picture(site: Site, name: str, width: int, height: int, *, dark: bool = False) -> None:
    """Save what the open page looks like; a phone is narrow."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    site.browser.emulate(width, height, phone=width < 800, dark=dark)
    site.browser.send_command("Emulation.setScrollbarsHidden", {"hidden": True})
    site.browser.screenshot(PICTURES / f"web-{name}.png")
    if os.environ.get("PICTURES") and name in IN_DOCS:
        shutil.copy(PICTURES / f"web-{name}.png", HERE / "docs" / "img")


def test_pictures(site: Site) -> None:
    site.pages[0].cookie = ""
    site.balancers[0].run("pause", "web02", "--for", "2h", "--reason", "patch day")
    site.nodes["api02"].kill()
    site.backends["api02"].stop()
    open_now(site)
    site.browser.send_command("Network.clearBrowserCookies", {})
    wait_until(lambda: shows(site, "api02", "failed", "failed"))
    wait_until(lambda: "HAProxy DOWN" in site.row("api02"), BOUND)
    for name, path, width, height, dark in (
        ("desktop", "/", 1200, 900, False),
        ("dark", "/", 1200, 900, True),
        ("phone", "/", 390, 844, False),
        ("node", "/nodes/web02", 1200, 900, False),
        ("node-phone", "/nodes/web02", 390, 844, True),
        ("history", "/history", 1200, 900, False),
    ):
        site.browser.emulate(width, height, phone=width < 800, dark=dark)
        site.browser.open(f"{site.pages[0].url}{path}")
        picture(site, name, width, height, dark=dark)


def test_a_dead_daemon_is_seen_and_never_healthy(site: Site) -> None:
    open_now(site)
    socket_path = site.balancers[0].lb.folder / "status.sock"
    hidden = socket_path.with_suffix(".away")
    socket_path.rename(hidden)

    measure("daemon dead", lambda: True, lambda: "The state of this load balancer is not known" in site.words)
    assert "healthy Events take effect" not in site.words
    hidden.rename(socket_path)
    measure("daemon back", lambda: True, lambda: shows(site, "web01", "in"))


def test_without_javascript_the_page_is_whole(site: Site) -> None:
    site.browser.send_command("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_now(site)
        source = site.browser.source
    finally:
        site.browser.send_command("Emulation.setScriptExecutionDisabled", {"value": False})

    assert "web01" in source
    assert 'http-equiv="refresh"' in source


def test_a_page_whose_server_is_gone_shows_that(site: Site) -> None:
    open_now(site)
    process = site.pages[0].process
    assert process
    process.terminate()
    process.join(20)

    wait_until(functools.partial(_banner, site), BOUND)


def _banner(site: Site) -> bool:
    return "No connection to the load balancer. This page is from" in site.words
