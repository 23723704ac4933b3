"""Compares a server added at run time with the same line after a reload, in two HAProxys with the same proxies.

One HAProxy has its servers in haproxy.cfg; lbagent's own code adds them to the other. Each has hundreds of proxies.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lbagent.haproxy.config import Document, Key
from lbagent.haproxy.runtime import session as runtime_session
from lbagent.haproxy.runtime.capabilities import find_capabilities
from lbagent.haproxy.runtime.servers import Admission, KnownServers, ServerChanges
from lbagent.haproxy.runtime.session import Worker
from tests.helpers.real_programs import Haproxy, LoadBalancer, free_port
from tests.helpers.recording_backend import CERTIFICATE, Recorder

REQUESTS = 6
"""The number of requests to every server, each over a new connection."""

_PATIENCE = 8.0
"""Seconds within which both have to agree."""

_FEW = 40
_BATCH = 200
"""The number of cases in one pair of HAProxys, limited by the file descriptors of a worker."""

_GLOBAL = f"""\
global
    stats socket {{socket}} mode 600 level admin
    stats maxconn 20
    nbthread 1
    maxconn 1500
    ssl-default-server-options no-sslv3
    external-check
    insecure-fork-wanted

defaults base
    mode http
    timeout connect 3s
    timeout client 5s
    timeout server 5s
    timeout check 3s
    retries 0
    option http-keep-alive
    http-reuse always

resolvers dns
    nameserver one 127.0.0.1:1

backend other from base
    server web 127.0.0.1:1 check inter 1s

backend files from base
    server files 127.0.0.1:1 ssl verify required ca-file {CERTIFICATE} crl-file {CERTIFICATE} crt {CERTIFICATE}
"""

_FRONT = """
frontend front from base
    bind 127.0.0.1:{front}
    use_backend %[req.hdr(x-case)]

"""


class Case(NamedTuple):
    """One proxy with one server."""

    options: str
    """Of the server's own line."""
    default: str = ""
    """Of `default-server`, in the proxy."""
    proxy: tuple[str, ...] = ()
    """More lines of the proxy."""
    defaults: tuple[str, ...] = ()
    """Lines of a `defaults` section of its own."""
    at: str = ":PORT"
    """The words after the address."""

    def __str__(self) -> str:
        parts = (*(f"defaults: {line}" for line in self.defaults), *self.proxy)
        parts += (f"default-server {self.default}",) if self.default else ()
        return "; ".join((*parts, self.options or "no options"))

    def text(self, name: str) -> str:
        """The proxy, and its `defaults`, without the server."""
        base = f"of-{name}" if self.defaults else "base"
        lines = [f"defaults of-{name} from base", *(f"    {line}" for line in self.defaults)] if self.defaults else []
        lines += [f"backend {name} from {base}", *(f"    {line}" for line in self.proxy)]
        lines += [f"    default-server {self.default}"] if self.default else []
        return "\n".join(lines)


class Result(NamedTuple):
    """The result of some cases."""

    by_reload: Mapping[Case, str]
    """Those that lbagent applies by a reload, and why."""
    differences: Mapping[Case, tuple[str, ...]]
    """Return the differences of a batch of cases."""
    compared: int
    """How many were joined at run time, and compared."""
    refused: frozenset[Case]
    """Those that this HAProxy does not accept in haproxy.cfg."""


def compare(binary: Path, cases: Sequence[Case], joined: Sequence[Case] = ()) -> Result:
    """Join every case at run time, and compare it with the same line read from the file.

    `joined` replaces some of the joined cases, to test that the comparison notices it.
    """
    accepted = _find_accepted(binary, cases)
    by_reload = _find_reload_cases(binary, accepted)
    live = [case for case in accepted if case not in by_reload]
    found = _compare_batch(binary, live, joined, _BATCH)
    if found:
        # Repeated in small batches: on a busy machine a check may fail or a handshake be late.
        again = _compare_batch(binary, list(found), joined, _FEW)
        found = {case: found[case] + again[case] for case in again}
    return Result(by_reload, found, len(live), frozenset(cases) - frozenset(accepted))


def _find_reload_cases(binary: Path, cases: Sequence[Case]) -> dict[Case, str]:
    """Return the cases that lbagent applies by a reload, with the reasons."""
    output = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout
    difference = _difference(_text(cases, 80, 40, with_servers=False), output.split()[2], cases, 40, 80)
    return {cases[int(key[0].removeprefix("case"))]: why for key, why in difference.needs_reload.items()}


def _compare_batch(
    binary: Path, cases: Sequence[Case], joined: Sequence[Case], size: int
) -> dict[Case, tuple[str, ...]]:
    """Return the differences of a batch of cases."""
    differences: dict[Case, tuple[str, ...]] = {}
    for at in range(0, len(cases), size):
        some = cases[at : at + size]
        port = free_port()
        with (
            Recorder(port) as recorder,
            _run_side(binary, some, port, 20, with_servers=True) as of_file,
            _run_side(binary, some, port, 40, with_servers=False) as added,
        ):
            _join(added, [*joined, *some[len(joined) :]], port)
            observed = [number for number, case in enumerate(some) if "observe" in str(case)]
            found = _differences(of_file, added, recorder, range(len(some)), observed)
            differences |= {some[number]: tuple(what) for number, what in found.items()}
    return differences


def _find_accepted(binary: Path, cases: Sequence[Case]) -> list[Case]:
    """Return the cases that HAProxy accepts in haproxy.cfg."""
    left = list(cases)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "haproxy.cfg"
        while True:
            text = _text(left, 1, 20, with_servers=True)
            path.write_text(text.format(socket=f"{folder}/s", front=1))
            done = subprocess.run([binary, "-c", "-f", path], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return left
            alerts = "\n".join(line for line in done.stderr.splitlines() if line.startswith("[ALERT]"))
            numbers = {int(found) for found in re.findall(r"\bcase(\d+)", alerts)}
            lines = path.read_text().splitlines()
            for found in re.findall(rf"\[{re.escape(str(path))}:(\d+)\]", alerts):
                above = next((line for line in lines[int(found) - 1 :: -1] if line.startswith("backend ")), "")
                numbers |= {int(number) for number in re.findall(r"case(\d+)", above)}
            assert numbers, done.stderr
            left = [case for number, case in enumerate(left) if number not in numbers]


def _name(number: int) -> str:
    return f"case{number}"


def _address(octet: int, number: int) -> str:
    return f"127.{octet}.{number // 200}.{number % 200 + 1}"


def _line(case: Case, octet: int, number: int, port: int) -> str:
    return f"server web {_address(octet, number)}{case.at} {case.options}".rstrip().replace("PORT", str(port))


def _text(cases: Sequence[Case], port: int, octet: int, *, with_servers: bool) -> str:
    text = _GLOBAL + _FRONT
    for number, case in enumerate(cases):
        line = f"\n    {_line(case, octet, number, port)}" if with_servers else ""
        proxy = f"{case.text(_name(number))}{line}\n    # additional-{_name(number)}-iis-server\n\n"
        text += proxy.replace("PORT", str(port)).replace("{", "{{").replace("}", "}}")
    return text


class _Side(NamedTuple):
    """One of the two HAProxys."""

    lb: LoadBalancer
    haproxy: Haproxy
    octet: int


@contextlib.contextmanager
def _run_side(binary: Path, cases: Sequence[Case], port: int, octet: int, *, with_servers: bool) -> Iterator[_Side]:
    text = _text(cases, port, octet, with_servers=with_servers)
    with LoadBalancer(text, binary=binary) as lb, Haproxy(lb) as haproxy:
        yield _Side(lb, haproxy, octet)


def _difference(text: str, version: str, cases: Sequence[Case], octet: int, port: int) -> ServerChanges:
    document = Document([("haproxy.cfg", text)])
    capabilities = find_capabilities(version)
    assert capabilities
    ours = " # lbagent role=web"
    wanted: dict[Key, str] = {
        (_name(number), "web"): _line(case, octet, number, port) + ours for number, case in enumerate(cases)
    }
    return ServerChanges(document, KnownServers({}, {}, sure=True), wanted, capabilities)


def _join(side: _Side, cases: Sequence[Case], port: int) -> None:
    """Add all servers at run time, as lbagent does."""
    text = side.lb.cfg.read_text()
    session = runtime_session.open_session(Document([("", text)]).settings, Worker(side.haproxy.worker(), 0))
    difference = _difference(text, session.version, cases, side.octet, port)
    assert difference.needs_reload == {}
    assert Admission(session).admit_servers(difference.joins, difference.dynamic_cookies), session.problems


def _differences(
    of_file: _Side, added: _Side, recorder: Recorder, numbers: Sequence[int], observed: Sequence[int]
) -> Mapping[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)

    def look(what: str, view: Callable[[_Side, Sequence[int]], Mapping[int, object]]) -> None:
        """Compare both until each case has agreed once: checks run one after another."""
        deadline = time.monotonic() + _PATIENCE
        differing = numbers
        while True:
            one, other = view(of_file, differing), view(added, differing)
            differing = [number for number in differing if one.get(number) != other.get(number)]
            if not differing or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        for number in differing:
            found[number].append(f"{what}: after a reload {_shorten(one, other, number)}")

    def burst(side: _Side, some: Sequence[int]) -> Mapping[int, object]:
        """Return the answers to clients, and the number of connections to the server."""
        for number in some:
            recorder.connections(_address(side.octet, number))
        answers = _send(side, some, "/traffic", REQUESTS)
        return {number: (answers[number], recorder.connections(_address(side.octet, number))) for number in some}

    def seen(side: _Side, some: Sequence[int], *, clients: bool) -> Mapping[int, object]:
        return {number: recorder.seen(_address(side.octet, number), clients=clients) for number in some}

    look("show servers state", _state)
    look("show stat", _stat)
    look("checks", lambda side, some: seen(side, some, clients=False))
    look("requests per connection", burst)
    look("connections of clients", lambda side, some: seen(side, some, clients=True))
    for errors, words in (1, "the first error"), (9, "ten errors"):
        for side in (of_file, added):
            _send(side, observed, "/error", errors)
        look(f"show stat after {words}", _stat)
    return found


def _shorten(one: Mapping[int, object], other: Mapping[int, object], number: int) -> str:
    left, right = one.get(number), other.get(number)
    if isinstance(left, dict) and isinstance(right, dict):
        keys = sorted(key for key in {*left, *right} if left.get(key) != right.get(key))
        left, right = ({key: side.get(key) for key in keys} for side in (left, right))
    return f"{left}, at run time {right}"


def _send(side: _Side, numbers: Sequence[int], path: str, times: int) -> Mapping[int, list[int]]:
    """Return the answers of each case to `times` requests, one after another; many cases run in parallel."""
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda number: [_request(side, number, path) for _ in range(times)], numbers)
        return dict(zip(numbers, found, strict=True))


def _request(side: _Side, number: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", side.lb.front, timeout=5)
    try:
        connection.request("GET", path, headers={"X-Case": _name(number)})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return answer.status


_CONFIGURED = 2
"""In `srv_check_state`: the server has checks."""


def _state(side: _Side, _: object = None) -> Mapping[int, dict[str, str]]:
    """Return every column of `show servers state`, by case."""
    _, head, *lines = side.haproxy.send("show servers state").splitlines()
    names = head.removeprefix("# ").split()
    rows = (dict(zip(names, line.split(), strict=True)) for line in lines if line)
    found = {}
    for row in rows:
        if row["be_name"].startswith("case"):
            row.pop("srv_time_since_last_change")
            row["srv_addr"] = row["srv_addr"].replace(f"127.{side.octet}.", "")
            state = int(row["srv_check_state"]) & ~1  # without the bit of a running check
            row["srv_check_state"] = str(state)
            if not state & _CONFIGURED:
                row.pop("srv_check_health")  # meaningless without checks
            found[int(row["be_name"].removeprefix("case"))] = row
    return found


_NO_METRICS = frozenset(("weight", "uweight", "check_status", "check_code", "check_desc", "last_chk"))
"""Fields of `show stat` that HAProxy counts among its metrics, beside those that it calls keys, states and settings."""


def _stat(side: _Side, _: object = None) -> Mapping[int, dict[str, str]]:
    """Return every field of `show stat` that is a status, a setting or a limit, by case."""
    cases: dict[str, dict[str, str]] = defaultdict(dict)
    for line in filter(None, side.haproxy.send("show stat -1 4 -1 typed").splitlines()):
        place, kind, _, value = line.split(":", 3)
        _, proxy, _, _, field, *_ = place.split(".")
        if kind[0] in "KSC" or field in _NO_METRICS:
            # A dynamic cookie is made from the address, which differs between the two.
            made = field == "cookie" and re.fullmatch("[0-9a-f]{16}", value)
            cases[proxy][field] = "made" if made else value.removeprefix("* ").replace(f"127.{side.octet}.", "")
    return {int(row["pxname"].removeprefix("case")): row for row in cases.values() if row["pxname"].startswith("case")}
