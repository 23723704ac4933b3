"""examples/web: HAProxy accepts the file, serves the page by TLS below /lbagent/, and asks readers for a password."""

from __future__ import annotations

import base64
import http.client
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.helpers.real_programs import Haproxy, LoadBalancer, binaries, free_port, wait_until
from tests.helpers.web_page import PASSWORD, USER, Publisher, WebPage, document, node

pytestmark = pytest.mark.real

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "web"
PEM = Path(__file__).resolve().parent.parent / "helpers" / "backend.pem"
READER = {"Authorization": f"Basic {base64.b64encode(b'monitor:monitor').decode()}"}
HOST = "lb01.example.net:8443"


def fill_example(folder: Path, front: int = 8443, page: int = 8053) -> str:
    """Return the example with ports and a certificate of this test; `{` is doubled for `LoadBalancer`."""
    text = (EXAMPLE / "haproxy.cfg").read_text()
    for before, after in (
        ("/etc/haproxy/lbagent.pem", str(folder / "lbagent.pem")),
        (":8443", f"127.0.0.1:{front}"),
        ("127.0.0.1:8053", f"127.0.0.1:{page}"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    shutil.copy(PEM, folder / "lbagent.pem")
    return text.replace("{", "{{").replace("}", "}}")


@pytest.mark.parametrize("version", list(binaries()))
def test_every_haproxy_accepts_the_example(version: str, tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(fill_example(tmp_path).replace("{{", "{").replace("}}", "}"))

    argv = [str(binaries()[version]), "-c", "-dW", "-f", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


class Front:
    """A client of HAProxy's TLS port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE

    def send(
        self, method: str, path: str, headers: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, str]:
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=20, context=self._context)
        body = None if fields is None else urlencode(fields)
        form = {"Content-Type": "application/x-www-form-urlencoded"} if fields is not None else {}
        try:
            connection.request(method, path, body, {"Host": HOST, **form, **headers})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture
def page() -> Iterator[WebPage]:
    """The page with the options of the example and one user."""
    words = (EXAMPLE / "lbagent-web.default").read_text().split('"')[1].split()
    del words[words.index("--peer") :]  # there is no other load balancer
    content = document(node("web01"), node("web02", "10.0.0.2"))
    with Publisher(content) as daemon, WebPage(daemon.folder, *words, users=True) as one:
        yield one


@pytest.fixture
def front(page: WebPage, tmp_path: Path) -> Iterator[Front]:
    """HAProxy in front of it."""
    port = free_port()
    control = "global\n    stats socket {socket} level admin\n\n"  # the test detects the start with it
    with LoadBalancer(control + fill_example(tmp_path, port, page.port)) as lb, Haproxy(lb):
        one = Front(port)
        wait_until(lambda: one.send("GET", "/lbagent/healthz", {})[0] == 200)
        yield one


def test_readers_are_asked_for_a_password_and_monitors_are_not(front: Front) -> None:
    health = front.send("GET", "/lbagent/healthz", {})

    assert (health[0], health[2]) == (200, "ok\n")
    for path in ("/lbagent/", "/lbagent/api/status", "/lbagent/metrics", "/lbagent/login", "/lbagent/events"):
        assert front.send("GET", path, {})[0] == 401
    status, headers, text = front.send("GET", "/lbagent/", READER)
    assert (status, "/lbagent/nodes/web01" in text) == (200, True)
    assert headers["strict-transport-security"] == "max-age=31536000"
    assert headers["content-security-policy"].startswith("default-src 'none'; ")


def test_other_paths_lead_to_the_page_or_are_refused(front: Front) -> None:
    assert front.send("GET", "/", {})[1]["location"] == "/lbagent/"
    assert front.send("GET", "/lbagent", {})[1]["location"] == "/lbagent/"
    assert [front.send("GET", path, READER)[0] for path in ("/nodes/web01", "/healthz", "/lbagentx")] == [404] * 3


def test_a_user_logs_in_through_haproxy_with_a_secure_cookie(front: Front) -> None:
    origin = {"Origin": f"https://{HOST}", "Sec-Fetch-Site": "same-origin"}
    form = {"user": USER, "password": PASSWORD, "node": "web01"}

    status, headers, _ = front.send("POST", "/lbagent/login", {**READER, **origin}, form)
    forged = front.send("POST", "/lbagent/login", {**READER, "Origin": "https://evil.example"}, form)

    assert (status, headers["location"], forged[0]) == (303, "/lbagent/nodes/web01", 403)
    parts = {part.strip().lower() for part in headers["set-cookie"].split(";")[1:]}
    assert parts == {"httponly", "max-age=28800", "path=/lbagent/", "samesite=strict", "secure"}


def test_failed_log_ins_are_counted_by_the_real_address_of_the_client(front: Front, page: WebPage) -> None:
    origin = {"Origin": f"https://{HOST}", "X-Forwarded-For": "203.0.113.7"}

    front.send("POST", "/lbagent/login", {**READER, **origin}, {"user": "x", "password": "y"})

    assert "log-in of 'x' from 127.0.0.1 failed" in page.log.read_text()


def test_another_name_is_refused(front: Front) -> None:
    assert front.send("GET", "/lbagent/", {**READER, "Host": "evil.example"})[0] == 421
