"""The pages and the API show what the daemon publishes, escape everything, and call nothing healthy that is unknown."""

from __future__ import annotations

import asyncio
import gzip
import html
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pytest_mock import MockerFixture

import lbagent.web
from lbagent.commands import web as command
from lbagent.errors import LbagentError
from lbagent.settings import Settings
from lbagent.system.log import Log
from lbagent.web.model import Daemon
from tests.helpers.real_programs import free_port, wait_until
from tests.helpers.web_page import Publisher, WebPage, document, entry, node, run_web, server, status

SCRIPT = '<script>alert("x")</script>'
PAUSE = {"since": int(time.time()) - 60, "by": "alice on lb01, by query", "reason": SCRIPT, "until": None}
CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


@pytest.fixture
def daemon() -> Iterator[Publisher]:
    """A daemon that knows web01, which is in, and web02, which is paused."""
    paused = [server(server=None, address="10.0.0.2", line="paused", state=None, sessions=None)]
    web02 = node("web02", "10.0.0.2", state="paused", pause=PAUSE, why=f"by alice: {SCRIPT}", servers=paused)
    history = [entry("pause web02 by alice on lb01, by query", removed=["server web02 10.0.0.2:80"], removed_count=1)]
    history.append(entry("member-join web01", added=["server web01 10.0.0.1:80"], added_count=1, reloaded=True))
    with Publisher(document(node("web01", tags={"zone": SCRIPT}), web02, history=history)) as one:
        yield one


@pytest.fixture
def web(daemon: Publisher) -> Iterator[WebPage]:
    """The page of this daemon, without users."""
    with WebPage(daemon.folder) as one:
        yield one


class Elements(HTMLParser):
    """The elements of a page, each with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def text_of(page: str) -> str:
    """The words of a page, in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


# --- the pages ----------------------------------------------------------------------------------------------------


def test_the_first_page_has_each_node_with_its_state_in_words(web: WebPage) -> None:
    page = web.get("/")

    words = text_of(page.text)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "healthy Events take effect. Nodes: 1 in, 1 paused." in words
    assert "web01 10.0.0.1 web in for 10m HAProxy UP, 3 open" in words
    assert "web02 10.0.0.2 web paused for 10m" in words
    assert "confirmed by HAProxy worker 4711" in words


@pytest.mark.parametrize("path", ["/", "/nodes/web01", "/nodes/web02", "/history"])
def test_scripts_in_tags_and_reasons_are_shown_as_text(web: WebPage, path: str) -> None:
    page = web.get(path).text

    scripts = [attributes for tag, attributes in Elements(page).found if tag == "script"]
    assert [one["src"] for one in scripts] == [f"/static/live.js?{lbagent.__version__}"]
    assert SCRIPT not in page
    assert ("&lt;script&gt;" in page) == (path != "/history")


@pytest.mark.parametrize("path", ["/", "/nodes/web01", "/history", "/history?node=web01", "/nodes/none", "/x"])
def test_no_page_has_inline_code_styles_or_anything_of_another_host(web: WebPage, path: str) -> None:
    page = web.get(path)

    elements = Elements(page.text).found
    attributes = [(name, value or "") for _, found in elements for name, value in found.items()]
    assert [name for name, _ in attributes if name.startswith("on") or name == "style"] == []
    links = [value for name, value in attributes if name in ("href", "src", "action")]
    assert [link for link in links if not link.startswith(("/", "#"))] == []
    assert [tag for tag, _ in elements if tag in ("style", "iframe", "object")] == []
    assert page.headers["content-security-policy"] == CSP
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"
    assert page.headers["cache-control"] == "no-store"


def test_without_users_no_form_changes_anything(web: WebPage) -> None:
    for path in ("/", "/nodes/web01", "/history"):
        forms = [found for tag, found in Elements(web.get(path).text).found if tag == "form"]
        assert {form["method"] for form in forms} <= {"get"}
    for path in ("/login", "/nodes/web01/pause", "/logout"):
        assert web.post(path, {}).status in (404, 405)
    assert "Log in" not in web.get("/nodes/web01").text


def test_a_page_is_complete_without_javascript_and_is_loaded_again(web: WebPage) -> None:
    assert '<noscript><meta http-equiv="refresh" content="15"></noscript>' in web.get("/").text


def test_a_page_has_landmarks_headers_and_live_regions(web: WebPage) -> None:
    elements = Elements(web.get("/").text).found
    tags = [tag for tag, _ in elements]

    assert (tags.count("main"), tags.count("h1"), tags.count("nav"), tags.count("header")) == (1, 1, 1, 1)
    assert [found for tag, found in elements if tag == "th" and "scope" not in found] == []
    assert [found["id"] for _, found in elements if found.get("role") == "status"] == ["connection", "summary"]
    assert dict(elements)["html"]["lang"] == "en"


def test_the_nodes_are_filtered_by_words_and_by_state(web: WebPage) -> None:
    found = {query: set(re.findall(r"/nodes/(web\d+)", web.get(f"/?{query}").text)) for query in (
        "", "q=web01", "q=PAUSED", "q=10.0.0.2", "q=nothing", "state=paused", "state=in", "q=web+in",
    )}  # fmt: skip

    both = {"web01", "web02"}
    assert found == {
        "": both, "q=web01": {"web01"}, "q=PAUSED": {"web02"}, "q=10.0.0.2": {"web02"}, "q=nothing": set(),
        "state=paused": {"web02"}, "state=in": {"web01"}, "q=web+in": {"web01"},
    }  # fmt: skip


def test_the_page_of_a_node_has_its_tags_lines_pause_and_history(web: WebPage) -> None:
    one, other = text_of(web.get("/nodes/web01").text), text_of(web.get("/nodes/web02").text)

    assert "lb-iis / web01 10.0.0.1:80 managed, HAProxy UP, 3 open" in one
    assert f"Tag zone {SCRIPT}" in one
    assert "member-join web01" in one
    assert "by a reload" in one
    assert "pause web02" not in one
    assert re.search(rf"by alice on lb01, by query, \d+[sm] ago: {re.escape(SCRIPT)}, until a resume", other)
    assert "through the runtime API" in other
    assert web.get("/nodes/web03").status == 404
    assert web.get("/nodes/web%20x").status == 404


def test_the_history_has_cause_lines_way_and_time(web: WebPage) -> None:
    words = text_of(web.get("/history").text)

    assert "applied through the runtime API 35 ms pause web02 by alice on lb01, by query" in words
    assert "0 added, 1 removed - server web02 10.0.0.2:80" in words
    assert "member-join" not in text_of(web.get("/history?node=web02").text)


def test_a_node_is_found_in_the_history_by_its_whole_name(daemon: Publisher, web: WebPage) -> None:
    whys = ["member-join web1", "member-join web10, web2", "pause web1.lan", "resume web1 by query"]
    line = entry("what was known already", added=["server web1.iis 10.0.0.1:80"], added_count=1)
    daemon.content = document(node("web1"), history=[*map(entry, whys), line])

    found = web.get("/api/history?node=web1").json["history"]

    assert [one["why"] for one in found] == [whys[0], whys[3], "what was known already"]


def test_more_nodes_than_fit_on_a_page_are_counted(daemon: Publisher, web: WebPage) -> None:
    daemon.content = document(*(node(f"web{number}", f"10.0.{number // 250}.{number % 250}") for number in range(620)))

    page = web.get("/").text

    assert page.count('<tr role="row"><th role="rowheader"') + page.count("/nodes/web") >= 500
    assert "120 more nodes: narrow the filter." in page


def test_a_large_page_is_compressed_for_those_who_accept_it(daemon: Publisher, web: WebPage) -> None:
    daemon.content = document(*(node(f"web{number}", f"10.0.0.{number}") for number in range(1, 51)))
    connection = socket.create_connection(("127.0.0.1", web.port), 10)
    with connection, connection.makefile("rb") as answer:
        request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        head, _, body = answer.read().partition(b"\r\n\r\n")

    assert b"content-encoding: gzip" in head
    page = gzip.decompress(body).decode()
    assert "web50" in page
    assert len(body) < len(page) / 5


# --- what is not known, or not well -------------------------------------------------------------------------------


def unknown_everywhere(web: WebPage, words: str) -> None:
    """No page and no answer calls this load balancer healthy; all of them have the reason."""
    for path in ("/", "/history", "/nodes/web01"):
        page = text_of(web.get(path).text)
        assert words in page, path
        assert "Events take effect" not in page
    health, answer = web.get("/healthz"), web.get("/api/status")
    assert (health.status, answer.status) == (503, 503)
    assert words in health.text
    assert (answer.json["status"], words in answer.json["error"]) == (None, True)


def test_a_daemon_that_was_killed_is_not_shown_as_healthy(daemon: Publisher, web: WebPage) -> None:
    assert web.get("/healthz").status == 200
    daemon.stop()
    wait_until(lambda: web.get("/healthz").status == 503)

    unknown_everywhere(web, "daemon: does not run, or has no status socket")
    assert "name lb01" not in web.get("/").text
    assert web.get("/metrics").status == 503
    daemon.start()
    wait_until(lambda: web.get("/healthz").status == 200, 10)


def test_a_missing_socket_is_an_unknown_state(tmp_path: Path) -> None:
    with WebPage(tmp_path) as web:
        unknown_everywhere(web, f"daemon: does not run, or has no status socket at {tmp_path}/status.sock")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": 2}', b"\xff\xfe", b"[" * 100_000],
    ids=["nothing", "torn", "list", "null", "incomplete", "other version", "binary", "deep"],
)
def test_content_that_is_not_understood_is_an_unknown_state(content: bytes, daemon: Publisher, web: WebPage) -> None:
    daemon.content = content

    unknown_everywhere(web, "unexpected answer")


@pytest.mark.parametrize("key", sorted(status()))
def test_a_status_without_a_key_that_is_shown_is_an_unknown_state(key: str, daemon: Publisher, web: WebPage) -> None:
    without = {name: value for name, value in status(node("web01")).items() if name != key}
    daemon.content = document(status=without)

    shown = key not in ("version", "old_workers", "problems", "last_run", "last_success")

    assert web.get("/healthz").status == (503 if shown else 200)


def test_an_invalid_roles_yml_is_reported_by_the_daemon(daemon: Publisher, web: WebPage) -> None:
    daemon.content = document(status=None, error="/etc/lbagent/roles.yml:3: unknown key 'prot'")

    unknown_everywhere(web, "/etc/lbagent/roles.yml:3: unknown key 'prot'")


def test_a_daemon_whose_loop_hangs_is_not_healthy(daemon: Publisher, web: WebPage) -> None:
    daemon.content = document(node("web01"), heartbeat=time.time() - 600)

    health = web.get("/healthz")

    assert health.status == 503
    assert re.fullmatch(r"daemon: hangs; its last sign of life was 6\d\d s ago; restart it\n", health.text)
    assert "not healthy Events may not take effect here." in text_of(web.get("/").text)


def wrong(kind: str) -> dict[str, Any]:
    return {"wrong": [{"kind": kind, "what": "something", "since": None}]}


NO_SYNC: dict[str, object] = {"at": None, "failing": None, "words": ""}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (wrong("daemon"), "daemon: something"),
        (wrong("waiting"), "waiting: something"),
        (wrong("sync"), "sync: something"),
        (wrong("haproxy"), "haproxy: something"),
        (wrong("reload"), "reload: something"),
        (wrong("last run"), "last run: something"),
        (wrong("problem"), "problem: something"),
        (wrong("of another version"), "of another version: something"),
        ({"confirmed": False}, "haproxy: has not confirmed the current haproxy.cfg"),
        ({"digest": None, "confirmed": None}, "haproxy: haproxy.cfg cannot be read"),
        ({"sync": NO_SYNC}, "sync: has not succeeded yet"),
        (wrong("quarantine"), ""),
        (wrong("service"), ""),
        (wrong("peer"), ""),
        (wrong("blocked"), ""),
        ({"confirmed": None}, ""),
    ],
)
def test_healthz_is_200_only_where_events_take_effect(
    changed: dict[str, Any], reason: str, daemon: Publisher, web: WebPage
) -> None:
    daemon.content = document(status=status(node("web01"), **changed))

    health = web.get("/healthz")

    assert (health.status, health.text) == ((503, f"{reason}\n") if reason else (200, "ok\n"))


def test_an_old_sync_is_not_healthy(daemon: Publisher, web: WebPage) -> None:
    long_ago = int(time.time()) - 1000
    daemon.content = document(status=status(node("web01"), sync={**NO_SYNC, "at": long_ago}))

    health = web.get("/healthz")

    assert (health.status, health.text.startswith("sync: the last one was 1")) == (503, True)


def test_a_change_under_way_is_no_failure(daemon: Publisher, web: WebPage) -> None:
    daemon.content = document(status=status(node("web01"), confirmed=False), busy=True)

    assert web.get("/healthz").status == 200


# --- the other load balancer --------------------------------------------------------------------------------------


def test_both_load_balancers_are_shown_side_by_side(daemon: Publisher) -> None:
    other = document(node("web01", state="failed", why="its line stays"), name="lb02")
    with Publisher(other) as second, WebPage(second.folder) as page, WebPage(daemon.folder, "--peer", page.url) as web:
        words = text_of(web.get("/").text)

        assert "Node Role lb01 lb02" in words
        assert "web in for 10m HAProxy UP, 3 open failed for 10m HAProxy UP, 3 open its line stays" in words
        assert "web02 10.0.0.2 web paused for 10m HAProxy -" not in words
        found = web.get("/api/nodes/web01").json
        assert [(one["name"], one["node"]["state"]) for one in found["load_balancers"]] == [
            ("lb01", "in"),
            ("lb02", "failed"),
        ]

        second.stop()
        wait_until(lambda: "daemon: does not run" in web.get("/").text, 10)
        assert web.get("/healthz").status == 200


def test_without_its_page_the_other_load_balancer_is_shown_as_serf_shows_it(daemon: Publisher, web: WebPage) -> None:
    line = "lb02 members=3 paused=1 digest=00ff pending=0 last=applied: 1 line <added>"
    peer = {"name": "lb02", "address": "10.0.0.252", "status": "alive", "digest": "00ff", "equal": True}
    peer |= {"seen": int(time.time()), "answers": True, "status_line": line}
    daemon.content = document(status=status(node("web01"), peers=[peer]))

    words = text_of(web.get("/").text)

    assert re.search(rf"lb02 10\.0\.0\.252 equal alive in Serf, answered \d+s ago {re.escape(line)}", words)


def test_lines_that_are_equal_by_now_are_not_reported_as_different(daemon: Publisher) -> None:
    outdated = [{"kind": "peer", "what": "lb02 has other managed lines: compare `lbagent plan` on both", "since": None}]
    peer = {"name": "lb02", "address": "10.0.0.252", "status": "alive", "digest": "11ee", "equal": False}
    peer |= {"seen": int(time.time()), "answers": True}
    daemon.content = document(status=status(node("web01"), wrong=outdated, peers=[peer]))
    with Publisher(document(node("web01"), name="lb02")) as second, WebPage(second.folder) as page:
        with WebPage(daemon.folder) as alone:
            assert "lb02 has other managed lines" in alone.get("/").text
        with WebPage(daemon.folder, "--peer", page.url) as web:
            assert "lb02 has other managed lines" not in web.get("/").text


def test_a_load_balancer_that_does_not_answer_delays_nothing_and_is_named(daemon: Publisher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        gone = f"http://127.0.0.1:{free_port()}"
        with WebPage(daemon.folder, "--peer", url, "--peer", gone) as web:
            wait_until(lambda: f"{url}: did not answer in time" in text_of(web.get("/").text))
            page = wait_until(lambda: show_during_a_question(web, silent))

    assert f"{url}: did not answer in time" in text_of(page)
    assert f"{gone}: [Errno 111] Connection refused" in text_of(page)
    assert "web01" in page


def show_during_a_question(web: WebPage, silent: socket.socket) -> str:
    """Return the page if it came while a question to the silent load balancer was open, else "".

    The page asks again with each viewer, and ends a question after a second.
    """
    web.get("/")
    silent.settimeout(0.1)
    try:
        question, _ = silent.accept()
    except TimeoutError:
        return ""
    with question:
        page = web.get("/").text
        question.settimeout(0.1)
        try:
            while question.recv(4096):
                pass
        except TimeoutError:
            return page  # neither closed nor answered
    return ""


@pytest.mark.parametrize("content", [b"HTTP/1.1 200 OK\r\n\r\n{}", b"HTTP/1.1 302 Found\r\n\r\n", b"nonsense\r\n\r\n"])
def test_another_load_balancer_that_answers_nonsense_is_unknown(content: bytes, daemon: Publisher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(20):
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(4096)
                    client.sendall(content)

        threading.Thread(target=serve, daemon=True).start()
        with WebPage(daemon.folder, "--peer", f"http://127.0.0.1:{listener.getsockname()[1]}") as web:
            page = text_of(wait_until(lambda: (found := web.get("/").text) * ("has not answered yet" not in found), 10))
        listener.shutdown(socket.SHUT_RDWR)

    assert "unknown" in page
    assert "web01" in page


# --- live ---------------------------------------------------------------------------------------------------------


def test_an_event_comes_after_a_change_and_not_without_one(daemon: Publisher, web: WebPage) -> None:
    with web.listen() as news:
        first = next(news)
        assert f'data-version="{first}"' in web.get("/").text
        daemon.content = document(node("web01", state="failed"))

        second = next(news)

    assert first != second
    assert f'data-version="{second}"' in web.get("/").text


def test_what_changes_all_the_time_is_no_news(daemon: Publisher, web: WebPage) -> None:
    versions = set()
    for _ in range(3):
        daemon.content = {**daemon.content, "at": time.time(), "heartbeat": time.time()}  # type: ignore[dict-item]
        asked = daemon.asked
        page = wait_until(lambda asked=asked: web.get("/").text * (daemon.asked > asked))  # type: ignore[misc]
        versions |= set(re.findall(r'data-version="(\w+)"', page))

    assert len(versions) == 1


def test_fifty_viewers_see_a_change_and_the_daemon_is_asked_as_for_one(daemon: Publisher, web: WebPage) -> None:
    seen: list[str] = []
    ready = threading.Barrier(51, timeout=60)

    def view() -> None:
        with web.listen() as news:
            next(news)
            ready.wait()
            seen.append(next(news))
            web.get("/")

    viewers = [threading.Thread(target=view, daemon=True) for _ in range(50)]
    for one in viewers:
        one.start()
    ready.wait()
    before, begin = daemon.asked, time.monotonic()
    daemon.content = document(node("web01", state="failed"))
    for one in viewers:
        one.join(30)

    asked, took = daemon.asked - before, time.monotonic() - begin
    print(f"50 viewers: all have the change after {took:.1f} s, {asked} questions to the daemon, {web.memory:.0f} MiB")
    assert (len(seen), len(set(seen))) == (50, 1)
    assert asked <= 4 + 4 * took
    assert web.memory < 60


def test_the_server_ends_at_once_though_somebody_listens(daemon: Publisher, web: WebPage) -> None:
    with web.listen() as news:
        next(news)
        assert web.process
        web.process.terminate()

        web.process.join(10)
        assert web.process.exitcode == 0
    assert list(news) == []
    assert daemon.asked


# --- Host, prefix, options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8053", "127.0.0.1.evil.example", "", "127.0.0.2", "a b"]
)
def test_a_forged_host_is_refused(host: str, web: WebPage) -> None:
    for path in ("/", "/api/status", "/healthz", "/static/live.js"):
        answer = web.get(path, Host=host)
        assert (answer.status, "web01" in answer.text) == (421, False)


def test_the_listening_address_localhost_and_given_names_are_accepted(daemon: Publisher) -> None:
    with WebPage(daemon.folder, "--host", "lb01.example.net", "--host", "Other.example") as web:
        hosts = [f"127.0.0.1:{web.port}", "localhost", "lb01.example.net", "LB01.example.net:443", "other.example"]

        assert [web.get("/", Host=host).status for host in hosts] == [200] * 5


def test_behind_a_prefix_every_link_has_it_and_both_forms_of_a_path_work(daemon: Publisher) -> None:
    with WebPage(daemon.folder, "--prefix", "/lbagent/") as web:
        page = web.get("/lbagent/")
        found = Elements(page.text).found
        links = [
            value for _, attributes in found for name in ("href", "src", "action") if (value := attributes.get(name))
        ]

        assert page.status == 200
        assert [link for link in links if not link.startswith(("/lbagent/", "#"))] == []
        for link in links:
            assert link == "#main" or web.get(link).status == 200
        assert web.get("/lbagent").headers["location"] == "/lbagent/"
        assert web.get("/").text.count("/lbagent/nodes/web01") == 1
        assert web.get("/lbagent/healthz").status == web.get("/healthz").status == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--listen", "8053"], "--listen '8053': not ADDRESS:PORT, such as 127.0.0.1:8053 or [::1]:8053"),
        (["--listen", "lb01:80"], "--listen lb01:80: Name or service not known; use an IP address of this host"),
        (["--prefix", "lbagent"], "--prefix 'lbagent': not a path such as /lbagent"),
        (["--prefix", "/a<b"], "--prefix '/a<b': not a path such as /lbagent"),
        (["--peer", "lb02:8053"], "--peer 'lb02:8053': not an http:// or https:// URL"),
        (["--peer", "http://lb02:x"], "--peer 'http://lb02:x': not an http:// or https:// URL"),
    ],
)
def test_invalid_options_are_refused_in_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    done = run_web(tmp_path, *words)

    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"lbagent: {message}\n")


@pytest.mark.parametrize("missing", [["bcrypt"], ["starlette", "uvicorn", "jinja2"]], ids=len)
def test_missing_libraries_are_named_with_the_packages_to_install(
    missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(LbagentError) as refused:
        command.web("127.0.0.1:0", (), None, "", ())(Settings("", ""), Log())

    packages = " ".join(f"python3-{name}" for name in missing)
    words = f"web: missing Python packages: {', '.join(missing)}; run `apt-get install {packages}`"
    assert (str(refused.value), refused.value.exit_status) == (words, 1)


def test_a_user_that_may_not_connect_gets_the_name_of_the_group(mocker: MockerFixture) -> None:
    mocker.patch("asyncio.open_unix_connection", side_effect=PermissionError(13, "Permission denied"))

    found = asyncio.run(Daemon("/run/lbagent/status.sock", "lb01").look()).balancer

    words = "/run/lbagent/status.sock: this user may not connect; run as a member of the group lbagent-web"
    assert (found.status, found.error) == (None, f"daemon: {words}")
    assert found.list_faults() == [found.error]


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_web(tmp_path, "--listen", where)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"lbagent: --listen {where}: Address already in use\n"


# --- the API ------------------------------------------------------------------------------------------------------


SPECIFICATION = json.loads((Path(lbagent.web.__path__[0]) / "openapi.json").read_text())


def check_schema(path: str, status: int, content: object) -> None:
    """What an answer has to be, by the specification."""
    answer = SPECIFICATION["paths"][path]["get"]["responses"][str(status)]
    if "$ref" in answer:
        answer = SPECIFICATION["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    schema = {**answer["content"]["application/json"]["schema"], "components": SPECIFICATION["components"]}
    jsonschema.Draft202012Validator(schema).validate(content)


@pytest.mark.parametrize(
    ("path", "url", "status"),
    [
        ("/api/status", "/api/status", 200),
        ("/api/history", "/api/history", 200),
        ("/api/history", "/api/history?node=web01&limit=1", 200),
        ("/api/history", "/api/history?limit=many", 400),
        ("/api/nodes/{name}", "/api/nodes/web01", 200),
        ("/api/nodes/{name}", "/api/nodes/none", 404),
    ],
)
def test_the_api_answers_what_its_specification_says(path: str, url: str, status: int, web: WebPage) -> None:
    answer = web.get(url)

    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    check_schema(path, status, answer.json)


def test_the_api_says_that_nothing_is_known(daemon: Publisher, web: WebPage) -> None:
    daemon.stop()
    wait_until(lambda: web.get("/healthz").status == 503)

    for path, url in (("/api/status",) * 2, ("/api/history",) * 2, ("/api/nodes/{name}", "/api/nodes/web01")):
        answer = web.get(url)
        assert answer.status == 503
        check_schema(path, 503, answer.json)


def test_the_specification_is_served_and_has_every_path(web: WebPage) -> None:
    served = web.get("/api/openapi.json").json

    assert served == SPECIFICATION
    assert served["openapi"] == "3.1.0"
    assert served["info"]["version"] == lbagent.__version__
    assert set(served["paths"]) == {
        "/api/status", "/api/history", "/api/nodes/{name}", "/api/openapi.json", "/metrics", "/healthz", "/events",
    }  # fmt: skip


def test_the_metrics_are_those_of_the_daemon(web: WebPage) -> None:
    answer = web.get("/metrics")

    assert (answer.status, answer.text) == (200, "lbagent_daemon_running 1\n")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_history_is_limited(web: WebPage) -> None:
    assert len(web.get("/api/history?limit=1").json["history"]) == 1


def test_a_page_with_all_it_loads_has_less_than_a_hundred_kilobytes(daemon: Publisher, web: WebPage) -> None:
    daemon.content = document(*(node(f"web{number}", f"10.0.0.{number}") for number in range(1, 31)))

    sizes = {
        path: len(web.get(path).text) for path in ("/", "/static/style.css", "/static/live.js", "/static/icon.svg")
    }

    print(f"page weight with 30 nodes: {sum(sizes.values())} bytes, not compressed: {sizes}")
    assert sum(sizes.values()) < 100_000
