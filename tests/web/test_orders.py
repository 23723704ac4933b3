"""Pause, resume and forget from the page: for users who logged in, from this page's own forms, and for nobody else."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbagent.web.access import FailureLimit, Hosts, Sessions, is_same_origin
from tests.helpers.real_programs import wait_until
from tests.helpers.web_page import PASSWORD, USER, Publisher, WebPage, document, node, run_web, server

FAKE_SERF = """\
#!/bin/sh
echo "$*" >> "$SERF_LOG"
case $1 in
    info) echo '{"agent": {"name": "lb01"}, "serf": {"encrypted": "true"}, "tags": {"role": "lb"}}' ;;
    members) echo '{"members": [
        {"name": "lb01", "addr": "10.0.0.251:7946", "tags": {"role": "lb"}, "status": "alive"},
        {"name": "lb02", "addr": "10.0.0.252:7946", "tags": {"role": "lb"}, "status": "alive"},
        {"name": "lb03", "addr": "10.0.0.253:7946", "tags": {"role": "lb"}, "status": "failed"}]}' ;;
    query) echo "Response from 'lb01': done"; echo "Response from 'lb02': done, 1 <b>session</b> open" ;;
esac
"""


@pytest.fixture
def daemon() -> Iterator[Publisher]:
    """A daemon that knows two web servers in one proxy."""
    with Publisher(document(node("web01"), node("web02", "10.0.0.2"))) as one:
        yield one


@pytest.fixture
def web(daemon: Publisher) -> Iterator[WebPage]:
    """Its page, with a user, and with a `serf` that answers for three load balancers."""
    programs = daemon.folder / "bin"
    programs.mkdir()
    (programs / "serf").write_text(FAKE_SERF)
    (programs / "serf").chmod(stat.S_IRWXU)
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "SERF_LOG": str(daemon.folder / "serf.log")}
    with WebPage(daemon.folder, users=True, env=env) as one:
        yield one


def queries(daemon: Publisher) -> list[str]:
    """The payloads of the queries that were sent."""
    path = daemon.folder / "serf.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.rpartition("-node=")[2].partition(" ")[2] for line in lines if line.startswith("query ")]


def logged_in(web: WebPage) -> str:
    """The token of a new session."""
    assert web.log_in().status == 303
    return web.get("/nodes/web01").token


def test_a_pause_goes_to_all_load_balancers_and_their_answers_are_shown(daemon: Publisher, web: WebPage) -> None:
    token = logged_in(web)

    sent = web.post("/nodes/web01/pause", {"token": token, "for": "2h", "reason": "patch  <i>day</i>"})

    assert sent.status == 303
    where = sent.headers["location"]
    page = wait_until(lambda: (found := web.get(where).text) * ("under way" not in found))
    [query] = queries(daemon)
    words = query.split()
    assert words[:3] == ["pause", "web01", "by=alice@lb01"]
    assert abs(int(words[3].removeprefix("until=")) - time.time() - 7200) < 60
    assert words[4:] == ["reason=patch", "<i>day</i>"]
    assert ">done</span>" in page
    assert "done, 1 &lt;b&gt;session&lt;/b&gt; open" in page
    assert "not asked: failed in Serf" in page
    assert "not confirmed</span> by every load balancer" in page
    log = web.log.read_text()
    assert "lbagent: web: pause web01 by alice until=" in log
    assert "lbagent: web: pause web01 by alice: lb02: done, 1 <b>session</b> open" in log


def test_resume_and_forget_are_sent_as_their_queries(daemon: Publisher, web: WebPage) -> None:
    token = logged_in(web)

    for verb in ("resume", "forget"):
        assert web.post(f"/nodes/web01/{verb}", {"token": token}).status == 303

    wait_until(lambda: len(queries(daemon)) == 2)
    assert sorted(queries(daemon)) == ["lbagent-forget web01 by=alice@lb01", "resume web01 by=alice@lb01"]


def test_an_agent_that_cannot_be_asked_is_shown(daemon: Publisher) -> None:
    with WebPage(daemon.folder, users=True) as web:
        where = web.post("/nodes/web01/resume", {"token": logged_in(web)}).headers["location"]

        page = wait_until(lambda: (found := web.get(where).text) * ("under way" not in found))

    assert "failed</span> Serf agent: `serf info` failed" in page


def test_the_page_of_an_order_changes_as_answers_arrive(web: WebPage) -> None:
    token = logged_in(web)
    with web.listen() as news:
        first = next(news)
        web.post("/nodes/web01/resume", {"token": token})

        assert next(news) != first


# --- who may not --------------------------------------------------------------------------------------------------


def test_without_a_session_there_is_no_form_and_no_command(daemon: Publisher, web: WebPage) -> None:
    page = web.get("/nodes/web01").text
    refused = web.post("/nodes/web01/pause", {"token": "x"})

    assert '<form class="command"' not in page
    assert '<a href="/login?node=web01">Log in</a>' in page
    assert (refused.status, queries(daemon)) == (403, [])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_a_form_from_another_site_is_refused(headers: dict[str, str], daemon: Publisher, web: WebPage) -> None:
    token = logged_in(web)

    paused = web.post("/nodes/web01/pause", {"token": token}, headers)
    entered = web.post("/login", {"user": USER, "password": PASSWORD}, headers)
    left = web.post("/logout", {"token": token}, headers)

    assert (paused.status, entered.status, left.status) == (403, 403, 403)
    assert queries(daemon) == []
    assert web.get("/nodes/web01").token == token


@pytest.mark.parametrize("token", ["", "0" * 64, "é"])
def test_a_form_without_the_token_of_its_session_is_refused(token: str, daemon: Publisher, web: WebPage) -> None:
    logged_in(web)

    assert web.post("/nodes/web01/pause", {"token": token}).status == 403
    assert queries(daemon) == []


def test_the_token_of_another_session_is_refused(daemon: Publisher, web: WebPage) -> None:
    other = logged_in(web)
    logged_in(web)

    assert web.post("/nodes/web01/pause", {"token": other}).status == 403
    assert queries(daemon) == []


def test_a_get_changes_nothing(web: WebPage) -> None:
    logged_in(web)

    assert [web.get(path).status for path in ("/nodes/web01/pause", "/logout")] == [405, 405]


def test_the_cookie_is_for_this_page_only(daemon: Publisher, web: WebPage) -> None:
    cookie = web.log_in().headers["set-cookie"].lower()
    behind = web.send(
        "POST",
        "/login",
        f"user={USER}&password={PASSWORD}",
        {**web.origin, "Sec-Fetch-Site": "same-origin", "X-Forwarded-Proto": "https"},
    ).headers["set-cookie"].lower()  # fmt: skip

    parts = {part.strip() for part in cookie.split(";")[1:]}
    assert parts == {"httponly", "max-age=28800", "path=/", "samesite=strict"}
    assert {part.strip() for part in behind.split(";")[1:]} == parts | {"secure"}
    with WebPage(daemon.folder, "--prefix", "/lbagent", users=True) as prefixed:
        answer = prefixed.post("/lbagent/login", {"user": USER, "password": PASSWORD, "node": "web01"})
        assert "path=/lbagent/" in answer.headers["set-cookie"].lower()
        assert answer.headers["location"] == "/lbagent/nodes/web01"


def test_a_forged_or_changed_cookie_is_nobody(web: WebPage) -> None:
    logged_in(web)
    real = web.cookie

    for forged in (f"{real}0", real[:-1], real.replace("=", "=A", 1), "lbagent_session=a.b", "lbagent_session=é"):
        web.cookie = forged.encode("utf-8").decode("latin-1")
        assert "Log out" not in web.get("/nodes/web01").text
    web.cookie = real
    assert "Log out" in web.get("/nodes/web01").text


def test_after_a_log_out_the_cookie_is_nobodys(web: WebPage) -> None:
    token = logged_in(web)
    before = web.cookie

    left = web.post("/logout", {"token": token})

    assert (left.status, web.cookie) == (303, "")
    web.cookie = before
    assert "Log out" not in web.get("/").text


def test_a_user_who_is_removed_from_the_file_may_nothing_more(daemon: Publisher, web: WebPage) -> None:
    token = logged_in(web)
    path = daemon.folder / "web.users"
    path.write_text(path.read_text().replace(USER, "bob"))

    assert web.post("/nodes/web01/pause", {"token": token}).status == 403
    assert queries(daemon) == []


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (USER, "wrong"),
        (USER, ""),
        (USER, "x" * 100),
        (USER, "a\0b"),
        (USER, f"{PASSWORD}\0"),
        ("nobody", PASSWORD),
        ("nobody", "x"),
    ],
)
def test_a_wrong_password_begins_no_session(user: str, password: str, web: WebPage) -> None:
    answer = web.log_in(user, password)

    assert (answer.status, web.cookie) == (403, "")
    assert "User or password is wrong." in answer.text
    assert f"lbagent: web: log-in of {user!r} from 127.0.0.1 failed\n" in web.log.read_text()


def test_after_five_wrong_passwords_the_right_one_is_refused_too(web: WebPage) -> None:
    statuses = [web.log_in(password="wrong").status for _ in range(5)]  # a wrong one

    sixth = web.log_in()

    assert statuses == [403] * 5
    assert (sixth.status, web.cookie) == (429, "")
    assert 0 < int(sixth.headers["retry-after"]) <= 300


def test_a_form_that_is_too_large_or_not_a_form_is_refused(web: WebPage) -> None:
    token = logged_in(web)
    many = {str(number): "" for number in range(50)}

    assert web.post("/nodes/web01/pause", {"token": token, "reason": "x" * 10_000}).status == 413
    assert web.post("/nodes/web01/pause", {"token": token, **many}).status == 400
    headers = {**web.origin, "Content-Type": "text/plain"}
    assert web.send("POST", "/nodes/web01/pause", f"token={token}", headers).status == 415


# --- what may not be asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"for": "soon"}, "Time: write 90s, 15m, 2h or 7d"),
        ({"for": "-1h"}, "Time: write"),
        ({"for": "9999d"}, "Time: write"),
        ({"reason": "x" * 201}, "Reason: at most 200 printable characters"),
        ({"reason": "\N{SNOWMAN}" * 150}, "Reason: at most 200 printable characters, of 400 bytes."),
        ({"reason": "a\x1b[31m"}, "Reason: at most"),
    ],
)
def test_a_field_that_is_not_valid_is_named_and_nothing_is_sent(
    fields: dict[str, str], why: str, daemon: Publisher, web: WebPage
) -> None:
    answer = web.post("/nodes/web01/pause", {"token": logged_in(web), **fields})

    assert (answer.status, why in answer.text, queries(daemon)) == (400, True, [])


def test_words_in_a_reason_are_never_options_of_the_query(daemon: Publisher, web: WebPage) -> None:
    fields = {"token": logged_in(web), "reason": "until=1 by=root force", "for": ""}

    web.post("/nodes/web01/pause", fields)

    wait_until(lambda: queries(daemon))
    assert queries(daemon) == ["pause web01 by=alice@lb01 reason=until=1 by=root force"]


@pytest.mark.parametrize(
    "path", ["/nodes/web01%20by=root/pause", "/nodes/-x/pause", "/nodes/web01/leave", "/nodes/web09/pause"]
)
def test_other_names_and_verbs_do_not_exist(path: str, daemon: Publisher, web: WebPage) -> None:
    assert web.post(path, {"token": logged_in(web)}).status == 404
    assert queries(daemon) == []


def test_a_pause_of_the_last_server_of_a_proxy_has_to_be_confirmed(daemon: Publisher, web: WebPage) -> None:
    down = [server(server="web02", address="10.0.0.2:80", state="DOWN")]
    daemon.content = document(node("web01"), node("web02", "10.0.0.2", servers=down))
    token = logged_in(web)

    refused = web.post("/nodes/web01/pause", {"token": token})
    before = queries(daemon)
    confirmed = web.post("/nodes/web01/pause", {"token": token, "force": "1"})

    assert (refused.status, before, confirmed.status) == (400, [], 303)
    assert "No other server of lb-iis takes requests. Confirm that below." in refused.text
    assert 'name="force"' in web.get("/nodes/web01").text
    assert 'name="force"' not in web.get("/nodes/web02").text


def test_while_the_state_is_unknown_nothing_is_sent(daemon: Publisher, web: WebPage) -> None:
    token = logged_in(web)
    daemon.stop()
    wait_until(lambda: web.get("/healthz").status == 503)

    answer = web.post("/nodes/web01/pause", {"token": token})

    assert (answer.status, "Nothing was sent: daemon: does not run" in answer.text, queries(daemon)) == (400, True, [])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "has no user; add one with `htpasswd -B PATH NAME`"),
        ("alice\n", "1: alice: not a bcrypt hash; write it with `htpasswd -B`"),
        ("alice:$apr1$x$y\n", "1: alice: not a bcrypt hash; write it with `htpasswd -B`"),
        ("alice:$2y$31$" + "a" * 53 + "\n", "1: alice: not a bcrypt hash; write it with `htpasswd -B`"),
        ("# x\n\na b:x\n", "3: 'a b' is not a user name; use [A-Za-z0-9][A-Za-z0-9._-]{0,62}"),
    ],
)
def test_an_invalid_users_file_is_refused_at_the_start(content: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(content)

    done = run_web(tmp_path, "--users", str(path))

    joint = ": " if content == "" else ":"
    assert (done.returncode, done.stderr) == (2, f"lbagent: {path}{joint}{why.replace('PATH', str(path))}\n")


def test_a_missing_users_file_is_one_line(tmp_path: Path) -> None:
    done = run_web(tmp_path, "--users", str(tmp_path / "users"))

    assert (done.returncode, done.stderr) == (1, f"lbagent: {tmp_path}/users: No such file or directory\n")


# --- the parts ----------------------------------------------------------------------------------------------------


def test_a_session_ends_after_eight_hours() -> None:
    now = [1_000_000.0]
    sessions = Sessions(lambda: now[0])
    cookie = sessions.begin("alice")

    found = sessions.find(cookie)
    now[0] += 8 * 3600

    assert found
    assert (found.user, sessions.find(cookie)) == ("alice", None)


def test_failures_are_forgotten_after_five_minutes_and_counted_by_key() -> None:
    now = [0.0]
    limit = FailureLimit(lambda: now[0])
    for _ in range(5):
        limit.add("address a", "user x")

    assert (limit.seconds_left("address a"), limit.seconds_left("address b")) == (301, 0)
    assert limit.seconds_left("address b", "user x") == 301
    now[0] = 300.0
    assert limit.seconds_left("address a", "user x") == 0


def test_names_are_compared_whole_and_without_ports() -> None:
    hosts = Hosts(["lb01.example.net", "[::1]", "127.0.0.1"])

    accepted = ["lb01.example.net:443", "[::1]:8053", "127.0.0.1", "LB01.EXAMPLE.NET", "10.0.0.1:8053"]
    refused = ["lb01.example.net.evil", "x.lb01.example.net", "", "[", "10.0.0.2", "user@"]
    assert [hosts.accept(one, "10.0.0.1") for one in accepted] == [True] * 5
    assert [hosts.accept(one, "10.0.0.1") for one in refused] == [False] * 6


def test_an_origin_is_compared_with_the_host_and_its_port() -> None:
    def same(**headers: str) -> bool:
        return is_same_origin({name.replace("_", "-"): value for name, value in headers.items()})

    assert same(host="lb01:443", origin="https://lb01:443")
    assert same(host="lb01", sec_fetch_site="same-origin")
    assert not same(host="lb01:443", origin="https://lb01:444")
    assert not same(host="lb01")
    assert not same(origin="https://lb01")
