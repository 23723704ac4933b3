"""The house: who may import whom, what is pure, how large a room may be, and what an event has to load."""

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

# A new import is argued in a diff of this map.
ROOMS: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "tuples": set(),
    # doors
    "cli": {"errors", "handler", "host.log", "host.serfenv", "parser", "settings"},
    "handler": {"answer", "errors", "host.log", "host.paths", "intake", "serf.raw", "settings"},
    "check": {"doctor.examination", "doctor.finding", "host.log", "settings"},
    "manual": {"__init__", "commandline", "completion", "helptext", "host.paths", "manpage", "parser", "settings"},
    "parser": {"__init__", "check", "errors", "handler", "helptext", "host.log", "settings", "status", "steer", "verbs", "watch"},
    "status": {"engine", "errors", "host.log", "host.paths", "report", "settings", "sheet", "survey", "view"},
    "steer": {"engine", "errors", "host.log", "host.paths", "names", "obedience", "orders", "serf.agent", "serf.command", "serf.listing", "serf.raw", "settings", "verbs"},
    "verbs": {"apply", "diff", "engine", "errors", "host.lock", "host.log", "host.paths", "intake", "plan", "quarantine", "scene", "settings", "truth"},
    "watch": {"apply", "edits", "engine", "errors", "haproxy.process", "host.attention", "host.commands", "host.lock", "host.log", "host.notify", "host.paths", "host.spool", "inquiry", "intake", "newcomers", "outcome", "pace", "settings", "timetable", "truth"},
    # beside the doors
    "newcomers": {"engine"},
    "pace": {"errors", "roles"},
    "inquiry": {"engine", "errors", "host.log"},
    "edits": {"errors", "roles", "scene"},
    "answer": {"accord", "engine", "errors", "host.log", "host.paths", "membership", "memory", "obedience", "serf.command", "serf.events", "serf.raw", "settings", "summary"},
    # beside the doors
    "summary": {"engine", "errors", "host.history", "host.log", "membership", "memory", "roll", "scene"},
    "diff": {"plan", "scene"},
    "obedience": {"apply", "engine", "errors", "host.answers", "host.lock", "host.log", "intake", "orders", "replies", "serf.command", "serf.raw"},
    "replies": {"assent", "errors", "host.log", "host.sockets", "membership", "orders", "outcome", "plan", "roles", "roll", "serf.command", "wishes"},
    "truth": {"accord", "census", "engine", "errors", "fold", "host.log", "membership", "roles", "serf.agent", "serf.listing"},
    "intake": {"apply", "engine", "errors", "host.lock", "host.log", "host.paths", "host.spool", "outcome", "serf.raw", "settings"},
    "settings": set(),
    # what is said of the command line
    "commandline": set(),
    "completion": {"commandline"},
    "helptext": {"errors", "outcome"},
    "manpage": {"commandline"},
    "survey": {"engine", "errors", "haproxy.process", "haproxy.runtime", "haproxy.stats", "haproxy.text", "host.history", "host.log", "host.store", "membership", "memory", "outcome", "report", "restore", "roles", "scene"},
    "view": {"nodes", "report", "sheet"},
    # one run
    "engine": {"__init__", "apply", "batch", "chronicle", "errors", "fold", "haproxy.takeover", "host.log", "host.paths", "host.spool", "host.store", "membership", "memory", "outcome", "plan", "restore", "roles", "rolescache", "rolesfile", "roll", "scene", "serf.agent", "serf.command", "serf.events", "serf.raw", "table", "unstored"},
    "chronicle": {
        "__init__", "apply", "batch", "errors", "host.answers", "host.log", "host.spool", "host.store", "last", "membership", "memory", "metrics", "outcome", "plan", "replies",
        "roles", "scene", "serf.command", "tally",
    },
    "batch": {"fold", "host.log", "host.spool", "membership", "serf.command", "serf.events", "serf.raw"},
    "apply": {
        "blame", "confirmed", "errors", "handover", "haproxy.process", "haproxy.takeover", "host.store", "membership", "outcome", "plan", "quarantine", "roles", "scene",
    },
    "confirmed": {"haproxy.process", "haproxy.roster", "haproxy.takeover", "host.store", "plan", "scene"},
    "admission": {"haproxy.conversation", "haproxy.dynamic", "haproxy.roster", "host.reach"},
    "dialogue": {
        "admission", "haproxy.conversation", "haproxy.dynamic", "haproxy.process", "haproxy.roster", "haproxy.servers", "haproxy.text", "host.store", "names", "plan",
    },
    "handover": {
        "dialogue", "errors", "haproxy.conversation", "haproxy.process", "haproxy.takeover", "haproxy.text", "host.store", "outcome", "plan", "quarantine", "restore", "roles",
        "scene",
    },
    "unstored": {"apply", "errors", "fold", "host.store", "membership", "roles", "serf.events", "serf.raw"},
    "scene": {"haproxy.process", "haproxy.takeover", "haproxy.text", "host.files", "roles"},
    # the heart
    "accord": {"fold", "membership", "names", "serf.command", "slate", "table"},
    "arrivals": {"membership", "serf.events", "slate"},
    "assent": {"membership", "orders", "plan", "roll", "serf.command", "table", "wishes"},
    "blame": set(),
    "census": {"arrivals", "fold", "membership", "roles", "serf.events", "serf.listing", "slate", "table"},
    "claims": {"haproxy.lines", "haproxy.text", "membership", "names", "wishes"},
    "errors": set(),
    "fold": {"arrivals", "membership", "orders", "serf.command", "serf.events", "serf.raw", "slate"},
    "guard": {"haproxy.lines", "membership", "outcome"},
    "homeless": {"haproxy.lines", "haproxy.server"},
    "last": set(),
    "membership": set(),
    "memory": {"membership", "names", "table"},
    "metrics": {"last", "membership", "roles"},
    "names": set(),
    "nodes": {"membership", "names", "plan", "prospect", "roles", "roll", "standing", "states", "table", "wishes"},
    "order": {"membership", "serf.command"},
    "orders": {"membership", "names", "order", "roll", "serf.command", "serf.raw", "slate"},
    "outcome": {"names"},
    "place": {"claims", "haproxy.lines", "haproxy.server", "haproxy.text", "homeless", "membership", "roles", "spot", "turn", "wishes"},
    "plan": {"errors", "guard", "haproxy.text", "membership", "outcome", "place", "roles", "turn", "wishes"},
    "prospect": {"haproxy.text", "membership", "plan", "quarantine", "roles"},
    "quarantine": {"haproxy.text", "membership", "roles", "roll", "table"},
    "report": {"errors", "haproxy.stats", "haproxy.text", "membership", "nodes", "outcome", "prospect", "roles", "standing", "wishes"},
    "restore": {"haproxy.text", "membership", "names", "place", "roles", "spot"},
    "roles": {"names"},
    "rolescache": {"roles"},
    "rolesfile": {"names", "roles", "yamlnodes"},
    "roll": {"membership", "names", "table"},
    "sheet": {"names", "nodes", "report", "standing", "states"},
    "slate": {"membership", "table"},
    "spot": {"haproxy.lines", "haproxy.text", "names"},
    "standing": {"haproxy.lines", "haproxy.server", "haproxy.stats", "haproxy.text", "membership", "place", "roles"},
    "states": {"membership", "plan", "roles", "standing"},
    "table": {"membership"},
    "tally": {"haproxy.lines", "haproxy.text", "membership", "names", "roles", "table"},
    "timetable": {"membership", "table"},
    "turn": {"guard", "wishes"},
    "wishes": {"haproxy.server", "membership", "names", "roles", "roll", "table"},
    "yamlnodes": {"errors"},
    # what `check` looks at, and its judges
    "doctor.__init__": set(),
    "doctor.agent_process": {"doctor.agent_settings", "doctor.finding", "host.foreign", "host.processes", "host.sockets"},
    "doctor.agent_seen": {"doctor.agent_process", "doctor.agent_settings", "doctor.finding", "doctor.handlers", "errors", "host.commands", "host.foreign", "host.sockets", "serf.agent", "serf.listing"},
    "doctor.agent_settings": {"doctor.finding", "doctor.handlers"},
    "doctor.cluster": {"doctor.finding", "names", "roles", "serf.listing"},
    "doctor.declared": {"doctor.finding", "doctor.keylines", "names", "roles"},
    "doctor.directives": {"haproxy.text"},
    "doctor.drift": {"doctor.finding", "haproxy.text", "names", "plan"},
    "doctor.examination": {"__init__", "doctor.finding", "doctor.lines_side", "doctor.serf_side", "errors", "host.log", "settings"},
    "doctor.finding": {"names"},
    "doctor.handlers": {"doctor.finding"},
    "doctor.haproxy_seen": {"doctor.finding", "doctor.said", "errors", "haproxy.acceptance", "haproxy.process", "haproxy.runtime", "haproxy.successor", "host.commands", "host.processes", "roles"},
    "doctor.keylines": set(),
    "doctor.lines_side": {"doctor.declared", "doctor.directives", "doctor.drift", "doctor.finding", "doctor.haproxy_seen", "doctor.keylines", "doctor.machine", "doctor.markers", "doctor.proxies", "doctor.reloads", "engine", "errors", "haproxy.process", "host.log", "host.paths", "membership", "prospect", "roles", "rolescache", "rolesfile", "scene", "settings"},
    "doctor.machine": {"doctor.finding", "doctor.permissions", "host.paths", "host.store", "memory", "names"},
    "doctor.markers": {"doctor.finding", "haproxy.lines", "haproxy.text", "names", "roles"},
    "doctor.permissions": {"doctor.finding", "names"},
    "doctor.proxies": {"doctor.directives", "doctor.finding"},
    "doctor.reloads": {"doctor.directives", "doctor.finding", "doctor.proxies"},
    "doctor.said": {"doctor.finding", "names"},
    "doctor.serf_side": {"doctor.agent_process", "doctor.agent_seen", "doctor.agent_settings", "doctor.cluster", "doctor.finding", "doctor.handlers", "roles", "serf.agent", "serf.listing"},
    # all that knows Serf
    "serf.__init__": set(),
    "serf.agent": {"errors", "host.commands", "serf.listing"},
    "serf.command": {"names", "serf.raw"},
    "serf.events": {"names", "serf.command", "serf.raw"},
    "serf.listing": {"names"},
    "serf.raw": set(),
    # all that knows HAProxy
    "haproxy.__init__": set(),
    "haproxy.conversation": {"haproxy.process", "haproxy.roster", "haproxy.runtime", "haproxy.servers"},
    "haproxy.defaults": {"haproxy.text"},
    "haproxy.dynamic": {"haproxy.defaults", "haproxy.keywords", "haproxy.roster", "haproxy.text", "names"},
    "haproxy.keywords": {"names"},
    "haproxy.lines": {"haproxy.server", "names"},
    "haproxy.master": {"haproxy.process", "host.processes"},
    "haproxy.peers": {"haproxy.runtime"},
    "haproxy.process": {"errors", "haproxy.runtime", "host.processes"},
    "haproxy.roster": {"haproxy.text"},
    "haproxy.runtime": set(),
    "haproxy.server": {"names"},
    "haproxy.servers": {"haproxy.roster", "names"},
    "haproxy.stats": set(),
    "haproxy.successor": {"errors", "haproxy.process"},
    "haproxy.takeover": {"errors", "haproxy.acceptance", "haproxy.master", "haproxy.peers", "haproxy.process", "haproxy.runtime", "haproxy.successor", "host.commands", "host.processes", "roles"},
    "haproxy.acceptance": {"errors", "haproxy.process", "host.commands"},
    "haproxy.text": {"haproxy.lines"},
    # all that touches the machine
    "host.__init__": set(),
    "host.answers": {"host.files"},
    "host.aside": set(),
    "host.attention": set(),
    "host.commands": set(),
    "host.files": set(),
    "host.foreign": set(),
    "host.history": {"outcome"},
    "host.lock": set(),
    "host.log": {"names"},
    "host.notify": set(),
    "host.paths": set(),
    "host.processes": set(),
    "host.reach": set(),
    "host.serfenv": set(),
    "host.sockets": set(),
    "host.spool": {"host.aside"},
    "host.store": {"host.files", "host.paths", "last", "membership", "memory"},
}  # fmt: skip

DOORS = {"__main__", "check", "cli", "handler", "manual", "parser", "status", "steer", "verbs", "watch"}
PURE = (
    "commandline", "completion", "manpage", "accord", "arrivals", "assent", "census", "orders", "slate", "serf.command", "names", "membership", "fold",
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

MODULE_LIMIT, FUNCTION_LIMIT = 200, 25


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


def test_every_room_is_on_the_map() -> None:
    assert rooms() == sorted(ROOMS)


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_what_the_map_allows(room: str) -> None:
    assert ours(room) <= ROOMS.get(room, set())


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


def test_the_map_has_one_direction() -> None:
    def leads_to(room: str, seen: tuple[str, ...]) -> list[tuple[str, ...]]:
        if room in seen:
            return [(*seen, room)]
        return [circle for name in ROOMS.get(room, ()) for circle in leads_to(name, (*seen, room))]

    assert [circle for room in ROOMS for circle in leads_to(room, ())] == []


@pytest.mark.parametrize(
    ("forbidden", "who"), [("subprocess", "host.commands"), ("multiprocessing", ""), ("threading", "inquiry")]
)
def test_one_room_starts_processes_and_one_a_thread(forbidden: str, who: str) -> None:
    assert [
        room for room in rooms() if forbidden in {name.split(".")[0] for name in imports(room)} and room != who
    ] == []


def test_no_room_is_too_large() -> None:
    sizes = {room: len(source(room).read_text().splitlines()) for room in rooms()}

    assert {room: size for room, size in sizes.items() if size > MODULE_LIMIT} == {}


def test_no_function_is_too_long() -> None:
    functions = [
        (f"{room}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for room in rooms()
        for node in ast.walk(ast.parse(source(room).read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert {name: lines for name, lines in functions if lines > FUNCTION_LIMIT} == {}


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
