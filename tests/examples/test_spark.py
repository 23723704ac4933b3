"""examples/spark-ha: its haproxy.cfg protects the masters and finds the leader, and its files are consistent."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.real_programs import Haproxy, LoadBalancer, member_line

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "spark-ha"
PAGE = (EXAMPLE / "spark-503.http").read_bytes().partition(b"\r\n\r\n")[2].decode()
MASTERS = ["10.0.0.11", "10.0.0.12", "10.0.0.13"]

KILLS = ["app/kill/", "app/%6bill/", "app/%u006bill/", "app/%256bill/", "%61pp/kill/", "app;x/kill/", "app/kill;x/"]
KILLS += [
    "app/./kill",
    "/app/kill",
    "static/../app/kill/",
    "driver/kill/",
    "workers/kill/",
    "proxy/app-1/jobs/job/kill/",
]


MOVED = {
    "/moved": "/app/",
    "/proxy/app-20261121-0000": "/proxy/261121-0000/jobs/",  # a form that Spark 3.5 sometimes uses
    "/proxy/app-20261121-0000/": "/proxy/app-20261121-0000/jobs/",
}


class Master:
    """A master's page with a state, and the requests that it received: `GET /path context`."""

    def __init__(self, state: str) -> None:
        self.state, self.asked, self.secrets = state, list[str](), list[str]()

    @contextlib.contextmanager
    def run(self) -> Iterator[str]:
        master = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                master.asked.append(f"{self.command} {self.path} {self.headers.get('X-Forwarded-Context')}")
                master.secrets += self.headers.get_all("Authorization", [])
                self.send_response(302 if self.path in MOVED else 200)
                self.send_header("Location", f"http://{self.headers['Host']}{MOVED.get(self.path, '/app/')}")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(f"<li><strong>Status:</strong> {master.state}</li>".encode())

            do_HEAD = do_POST = do_GET  # noqa: N815  # the name it has

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name it has
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            yield f"127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()


def read_example(lb: LoadBalancer, name: str) -> str:
    """Return a file of the example with addresses on loopback and paths in the folder of `lb`."""
    found = (EXAMPLE / name).read_text(encoding="utf-8").replace("10.0.0.", "127.0.0.")
    found = found.replace("bind :80", f"bind 127.0.0.1:{lb.front}").replace("/run/haproxy/admin.sock", str(lb.socket))
    return found.replace("    user haproxy\n    group haproxy\n", "")


@contextlib.contextmanager
def run_example(
    binary: Path, *masters: Master, more: str = "", rules: str = "", users: str = ""
) -> Iterator[LoadBalancer]:
    """Run the example's load balancer, whose HAProxy has not checked the masters yet and regards all as up."""
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(binary=binary))
        shutil.copy(EXAMPLE / "spark-503.http", lb.etc)
        where = [stack.enter_context(master.run()) for master in masters]
        lines = "".join(f"    server s{number} {at}\n" for number, at in enumerate(where))
        found = read_example(lb, "haproxy.cfg").replace("    default_backend", f"{rules}    default_backend")
        lb.text = (found + lines + more + users).encode()
        stack.enter_context(Haproxy(lb))
        yield lb


def send_request(lb: LoadBalancer, path: str, method: str = "GET", account: str = "") -> tuple[int, str, str]:
    """Return status, body and Location of one request; `account` is NAME:PASSWORD."""
    headers = {"Authorization": f"Basic {base64.b64encode(account.encode()).decode()}"} if account else {}
    connection = http.client.HTTPConnection("127.0.0.1", lb.front, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.getheader("Location", "")


@pytest.mark.real
def test_a_redirect_leads_to_the_requested_application(binary: Path) -> None:
    with run_example(binary, Master("ALIVE")) as lb:
        output = [send_request(lb, f"/spark/proxy/app-20261121-0000{slash}") for slash in ("", "/")]

    assert [(status, location) for status, _, location in output] == [
        (302, "/spark/proxy/app-20261121-0000/jobs/"),
        (302, "/spark/proxy/app-20261121-0000/jobs/"),
    ]


@pytest.mark.real
def test_the_leader_gets_the_path_without_the_prefix_and_the_prefix_as_a_header(binary: Path) -> None:
    leader = Master("ALIVE")
    with run_example(binary, leader) as lb:
        assert send_request(lb, "/spark/")[0] == 200
        assert send_request(lb, "/spark/", "HEAD")[:2] == (200, "")
        assert send_request(lb, "/spark/app/?appId=app-1")[0] == 200
        assert send_request(lb, "/static/webui.css")[0] == 200
        assert send_request(lb, "/spark/moved")[::2] == (302, "/spark/app/")
        assert send_request(lb, "/spark")[::2] == (302, "/spark/")
        assert send_request(lb, "/json/")[0] == 404

    asked = ["GET /", "HEAD /", "GET /app/?appId=app-1", "GET /static/webui.css", "GET /moved"]
    assert leader.asked == [f"{words} /spark" for words in asked]


@pytest.mark.real
@pytest.mark.parametrize(
    "masters",
    [[], ["STANDBY"], ["RECOVERING"], ["STANDBY - see the ALIVE"], ["ALIVE", "STANDBY"], ["ALIVE", "ALIVE"]],
    ids="-".join,
)
def test_only_a_single_leader_is_shown_even_where_haproxy_regards_others_as_up(
    binary: Path, masters: list[str]
) -> None:
    with run_example(binary, *map(Master, masters)) as lb:
        assert [send_request(lb, "/spark/")[:2] for _ in range(4)] == [(503, PAGE)] * 4


@pytest.mark.real
def test_no_request_to_kill_an_application_reaches_a_master(binary: Path) -> None:
    leader = Master("ALIVE")
    with run_example(binary, leader) as lb:
        for method in ("GET", "POST"):
            output = {path: send_request(lb, f"/spark/{path}", method)[0] for path in KILLS}
            assert output == dict.fromkeys(KILLS, 403)
        assert send_request(lb, "/static/../app/kill/", "POST")[0] == 403
        assert [send_request(lb, "/spark/app/", method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")] == [
            403
        ] * 4

    assert leader.asked == []


@pytest.mark.real
def test_the_password_of_the_page_is_required_and_not_forwarded(binary: Path) -> None:
    leader, page = Master("ALIVE"), (EXAMPLE / "README.md").read_text(encoding="utf-8")
    rules = [f"    {rule}\n" for rule in re.findall(r"`(http-request (?:auth|del-header) [^`]*)`", page)]
    with run_example(
        binary, leader, rules="".join(rules), users="\nuserlist people\n    user a insecure-password b\n"
    ) as lb:
        output = [send_request(lb, "/spark/app/", account=account)[0] for account in ("", "a:wrong", "a:b")]

    assert (output, leader.asked, leader.secrets) == ([401, 401, 200], ["GET /app/ /spark"], [])


@pytest.mark.real
def test_a_request_to_a_leader_that_has_just_died_gets_the_same_page(binary: Path) -> None:
    with run_example(binary, more="    server gone 127.0.0.1:1\n") as lb:
        assert send_request(lb, "/spark/app/")[:2] == (503, PAGE)


def test_with_a_folder_only_one_master_enrols() -> None:
    with LoadBalancer() as lb:
        shutil.copy(EXAMPLE / "spark-503.http", lb.etc)
        lb.text = read_example(lb, "haproxy.cfg").encode()
        lb.roles.write_text(f"haproxy: {{config: {lb.cfg}}}\n{read_example(lb, 'roles-filesystem.yml')}")

        for number in (1, 2):
            lb.join(member_line(f"master{number:02}", f"127.0.0.1{number}", "spark"))

        assert [line.split()[1] for line in lb.managed] == ["master01"]


def test_every_file_names_the_same_masters() -> None:
    defaults = read_settings("spark-defaults.conf")
    worker = (EXAMPLE / "spark" / "spark-worker.service").read_text(encoding="utf-8")
    zoo = dict(line.split("=") for line in read_lines("zookeeper/zoo.cfg"))

    assert defaults["spark.master"] == f"spark://{','.join(f'{one}:7077' for one in MASTERS)}"
    assert f"Worker {defaults['spark.master']}\n" in worker
    assert defaults["spark.deploy.zookeeper.url"] == ",".join(f"{one}:{zoo['clientPort']}" for one in MASTERS)
    assert [zoo[f"server.{number}"] for number in (1, 2, 3)] == [f"{one}:2888:3888" for one in MASTERS]
    assert json.loads((EXAMPLE / "serf" / "lb.json").read_text(encoding="utf-8"))["retry_join"] == MASTERS


def test_the_two_recovery_modes_differ_only_in_their_settings() -> None:
    many, one = read_settings("spark-defaults.conf"), read_settings("spark-defaults-filesystem.conf")
    recovery = {"spark.master", "spark.deploy.recoveryMode", "spark.deploy.recoveryDirectory"}
    recovery |= {"spark.deploy.zookeeper.url", "spark.deploy.zookeeper.dir"}

    assert {key: value for key, value in many.items() if key not in recovery} == {
        key: value for key, value in one.items() if key not in recovery
    }
    assert (many["spark.ui.killEnabled"], many["spark.master.ui.decommission.allow.mode"]) == ("false", "DENY")
    assert one["spark.master"] == f"spark://{MASTERS[0]}:7077"


def test_the_two_roles_differ_only_in_their_maximum() -> None:
    many, one = read_lines("roles.yml"), read_lines("roles-filesystem.yml")

    assert [line for line in one if line not in many] == ["    max: 1"]
    assert [line for line in many if line not in one] == []


def test_the_page_of_the_example_describes_each_of_its_files() -> None:
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    files = [str(path.relative_to(EXAMPLE)) for path in EXAMPLE.rglob("*") if path.is_file()]

    assert [name for name in files if name != "README.md" and f"]({name})" not in page] == []
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page)
    assert [target for target in targets if not (EXAMPLE / target).exists()] == []


def test_the_page_creates_what_the_units_need_and_has_the_settings_of_an_application() -> None:
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    [conf], users = ({*re.findall(rf"(?m)^{key}(\S+)$", read_units())} for key in (r".*SPARK_CONF_DIR=", "User="))

    assert [user for user in users if not re.search(rf"`useradd [^`]*\b{user}`", page)] == []
    assert f"`SPARK_CONF_DIR={conf} /opt/spark/bin/spark-submit app.py`" in page


def read_units() -> str:
    """Return the text of both systemd units."""
    return "".join(path.read_text(encoding="utf-8") for path in sorted((EXAMPLE / "spark").glob("*.service")))


def read_lines(name: str) -> list[str]:
    """Return the lines of a file without comments and empty lines."""
    kept = (line.partition("#")[0].rstrip() for line in (EXAMPLE / name).read_text(encoding="utf-8").splitlines())
    return [line for line in kept if line]


def read_settings(name: str) -> dict[str, str]:
    """Return one of Spark's settings files."""
    return dict(line.split(None, 1) for line in read_lines(f"spark/{name}"))
