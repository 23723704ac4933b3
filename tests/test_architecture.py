"""The house: what is pure, that imports have one direction, and what an event has to load."""

# ruff: noqa: E501  # a case of a table stands on one line

from __future__ import annotations

import ast
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.building import dedent
from tests.stage import Stage, built

HOUSE = Path(__file__).parent.parent / "lbagent"

DOORS = {"__main__", "check", "cli", "handler", "manual", "parser", "status", "steer", "verbs", "watch"}
PURE = (
    "accord", "arrivals", "assent", "census", "orders", "slate", "serf.command", "names", "membership", "fold",
    "order", "roles", "wishes", "claims", "guard", "homeless", "place", "plan", "restore", "quarantine", "blame", "last", "memory", "metrics",
    "outcome", "errors", "roll", "spot", "table", "tally", "timetable", "turn", "serf.events", "serf.listing", "serf.raw", "haproxy.lines", "haproxy.text",
    "haproxy.server", "nodes", "prospect", "report", "sheet", "standing", "states", "haproxy.stats", "doctor.agent_settings", "doctor.cluster",
    "doctor.declared", "doctor.directives", "doctor.drift", "doctor.finding", "doctor.handlers", "doctor.keylines", "doctor.markers",
    "doctor.permissions", "doctor.proxies", "doctor.reloads", "doctor.said",
    "haproxy.defaults", "haproxy.dynamic", "haproxy.keywords", "haproxy.roster", "haproxy.servers",
)  # fmt: skip
WORLD = {
    "os", "time", "sys", "logging", "io", "pathlib", "shutil", "tempfile", "glob", "datetime", "random", "secrets", "socket", "subprocess", "syslog",
    "signal", "select", "fcntl", "uuid", "platform", "threading", "psutil",
}  # fmt: skip
"""Path, clock, logger, environment, chance."""


def source(room: str) -> Path:
    """The file of a room."""
    return HOUSE.joinpath(*room.split(".")).with_suffix(".py")


def rooms() -> list[str]:
    """Every room there is."""
    return sorted(".".join(path.relative_to(HOUSE).with_suffix("").parts) for path in HOUSE.rglob("*.py"))


def imports(room: str) -> Iterator[str]:
    """Every module a room imports, wherever in it; of `from m import n` both `m` and `m.n`."""
    for node in ast.walk(ast.parse(source(room).read_bytes())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room}:{node.lineno}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def ours(room: str) -> set[str]:
    """The rooms that a room imports; `tuples`, which is a word of the language here, is free to all."""
    found = {name.removeprefix("lbagent.") for name in imports(room) if name.startswith("lbagent.")} - {"tuples"}
    return {name for name in found if source(name).exists()} | (
        {"__init__"} if "lbagent" in imports(room) and "import lbagent\n" in source(room).read_text() else set()
    )


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_knows_no_path_clock_logger_or_environment(room: str) -> None:
    assert {name for name in imports(room) if name.split(".")[0] in WORLD or name.startswith("lbagent.host")} == set()


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_opens_and_prints_nothing(room: str) -> None:
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(source(room).read_bytes()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]

    assert {"open", "print", "input", "exec", "eval", "__import__"} & set(calls) == set()


def test_what_a_pure_room_imports_is_pure() -> None:
    assert {room: ours(room) - set(PURE) for room in PURE if ours(room) - set(PURE)} == {}


@pytest.mark.parametrize(
    ("house", "other"), [("serf", "haproxy"), ("haproxy", "serf"), ("host", "serf"), ("host", "haproxy")]
)
def test_what_knows_one_program_does_not_know_the_other(house: str, other: str) -> None:
    assert [
        (room, name)
        for room in rooms()
        if room.startswith(f"{house}.")
        for name in ours(room)
        if name.startswith(f"{other}.")
    ] == []


def test_nothing_but_a_door_imports_a_door() -> None:
    assert [(room, name) for room in rooms() if room not in DOORS for name in ours(room) & DOORS] == []


def test_imports_have_one_direction() -> None:
    def leads_to(room: str, seen: tuple[str, ...]) -> list[tuple[str, ...]]:
        if room in seen:
            return [(*seen, room)]
        return [cycle for name in graph[room] for cycle in leads_to(name, (*seen, room))] if room not in done else []

    graph = {room: ours(room) for room in rooms()}
    done: set[str] = set()
    cycles = []
    for room in graph:
        cycles += leads_to(room, ())
        done.add(room)

    assert cycles == []


@pytest.mark.parametrize(
    ("forbidden", "who"), [("subprocess", "host.commands"), ("multiprocessing", ""), ("threading", "inquiry")]
)
def test_one_room_starts_processes_and_one_a_thread(forbidden: str, who: str) -> None:
    assert [
        room for room in rooms() if forbidden in {name.split(".")[0] for name in imports(room)} and room != who
    ] == []


@pytest.mark.parametrize("room", rooms())
def test_a_room_says_what_it_is_for(room: str) -> None:
    assert ast.get_docstring(ast.parse(source(room).read_bytes()))


# --- what an event has to load ------------------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path, lbagent: str) -> Stage:
    """A load balancer without HAProxy, which has seen an event."""
    stage = built(
        tmp_path,
        lbagent,
        "backend farm\n    # additional-lb-iis-server\n",
        dedent("""
            services: {iis: {port: 80}}
            roles: {web: {lb: [iis], networks: [10.0.0.0/8]}}
        """),
        "/bin/true",
    )
    assert stage.join("web01 10.0.0.1").status == 0
    return stage


def loaded(stage: Stage, *words: str, stdin: bytes = b"", **more: str) -> set[str]:
    """The modules that the console script loads for one event, as the interpreter tells."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", stage.script, *words],
        input=stdin,
        capture_output=True,
        check=True,
        env={**stage.environ, "SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01", **more},
        timeout=60,
    )
    return {
        line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines() if line.startswith("import time:")
    }


JOIN = b"web02\t10.0.0.2\tweb\trole=web\n"


def test_an_event_of_somebody_else_loads_next_to_nothing(stage: Stage) -> None:
    modules = loaded(stage, "handle", SERF_EVENT="user", SERF_USER_EVENT="deploy")

    assert {
        "json",
        "yaml",
        "socket",
        "argparse",
        "subprocess",
        "lbagent.engine",
        "lbagent.roles",
        "lbagent.membership",
    } & modules == set()


def test_while_watch_lives_an_event_loads_what_storing_it_takes(stage: Stage) -> None:
    with (stage.state / "watch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        modules = loaded(stage, "handle", stdin=JOIN)

    heavy = {
        "typing",
        "json",
        "yaml",
        "socket",
        "subprocess",
        "argparse",
        "psutil",
        "logging",
        "dataclasses",
        "ipaddress",
        "tenacity",
        "watchdog",
        "difflib",
        "shutil",
    }
    assert heavy & modules == set()
    assert {name for name in modules if name.startswith("lbagent.")} & {
        f"lbagent.{room}" for room in ("engine", "apply", "plan", "roles", "membership")
    } == set()
    assert stage.spooled == ["1"]


def test_an_event_taken_all_the_way_loads_no_parser_of_yaml_or_of_command_lines(stage: Stage) -> None:
    modules = loaded(stage, "handle", stdin=JOIN)

    heavy = {
        "typing",
        "yaml",
        "subprocess",
        "argparse",
        "logging",
        "dataclasses",
        "psutil",
        "tenacity",
        "watchdog",
        "difflib",
        "shutil",
        "tempfile",
        "asyncio",
        "inspect",
        "rich",
        "csv",
    }
    assert heavy & modules == set()
    assert "lbagent.rolesfile" not in modules
    assert len(stage.managed) == 2


def test_an_event_without_ipv6_does_not_pay_for_it(stage: Stage) -> None:
    assert "ipaddress" not in loaded(stage, "handle", stdin=JOIN)


def test_an_edited_roles_yml_is_read_as_yaml_once(stage: Stage) -> None:
    stage.roles.write_text(f"{stage.roles.read_text()}# edited\n")

    first, second = loaded(stage, "handle", stdin=JOIN), loaded(stage, "handle", stdin=b"")

    assert "yaml" in first
    assert "yaml" not in second
