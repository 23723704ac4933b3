"""The structure: import directions, pure packages, and what `handle` imports while `watch` runs."""

from __future__ import annotations

import ast
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.builders import dedent
from tests.helpers.load_balancer_files import LoadBalancerFiles, build_files

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "lbagent").rglob("*.py"))


def test_imports_follow_the_contracts_of_pyproject_toml() -> None:
    """`lint-imports`: one direction; serf and haproxy apart; planning and membership without I/O."""
    command = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)

    assert (done.returncode, "0 broken" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_bytes()))


def test_at_most_a_dozen_modules_are_at_the_top() -> None:
    assert len([path for path in MODULES if path.parent.name == "lbagent"]) <= 12


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("subprocess", {"system/subprocess.py"}),
        ("threading", {"daemon/daemon.py", "daemon/status_socket.py"}),
    ],
)
def test_one_module_starts_processes_and_only_the_daemon_threads(library: str, allowed: set[str]) -> None:
    users = []
    for path in MODULES:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
        names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        if library in names:
            users.append(str(path.relative_to(ROOT / "lbagent")))

    assert set(users) <= allowed


@pytest.mark.parametrize("library", ["starlette", "uvicorn", "jinja2", "bcrypt", "lbagent.web"])
def test_only_the_web_page_imports_its_libraries(library: str) -> None:
    users = set()
    for path in MODULES:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
        names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        if any(name == library or name.startswith(f"{library}.") for name in names):
            users.add(str(path.relative_to(ROOT / "lbagent")))

    assert {user for user in users if not user.startswith("web/")} <= {"commands/web.py"}


# --- modules that an event loads ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, lbagent: str) -> LoadBalancerFiles:
    """A load balancer without HAProxy that has handled an event."""
    files = build_files(
        tmp_path,
        lbagent,
        "backend farm\n    # additional-lb-iis-server\n",
        dedent("""
            services: {iis: {port: 80}}
            roles: {web: {lb: [iis], networks: [10.0.0.0/8]}}
        """),
        "/bin/true",
    )
    assert files.join("web01 10.0.0.1").status == 0
    return files


def list_loaded_modules(files: LoadBalancerFiles, *words: str, stdin: bytes = b"", **more: str) -> set[str]:
    """Return the modules that the console script imports for one event."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", files.script, *words],
        input=stdin,
        capture_output=True,
        check=True,
        env={**files.environ, "SERF_EVENT": "member-join", "SERF_SELF_NAME": "lb01", **more},
        timeout=60,
    )
    return {
        line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines() if line.startswith("import time:")
    }


JOIN = b"web02\t10.0.0.2\tweb\trole=web\n"


def test_an_unknown_event_imports_almost_nothing(files: LoadBalancerFiles) -> None:
    modules = list_loaded_modules(files, "handle", SERF_EVENT="user", SERF_USER_EVENT="deploy")

    assert {
        "json",
        "yaml",
        "socket",
        "argparse",
        "subprocess",
        "lbagent.run.engine",
        "lbagent.roles.model",
        "lbagent.membership.model",
    } & modules == set()


def test_while_watch_runs_an_event_imports_only_what_storing_it_needs(files: LoadBalancerFiles) -> None:
    with (files.state / "watch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        modules = list_loaded_modules(files, "handle", stdin=JOIN)

    heavy = {
        "re",
        "enum",
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
        "lbagent.run.engine",
        "lbagent.planning.plan",
        "lbagent.roles.model",
        "lbagent.membership.model",
    } == set()
    assert files.spool_files == ["1"]


def test_a_run_imports_no_yaml_parser_and_no_argument_parser(files: LoadBalancerFiles) -> None:
    modules = list_loaded_modules(files, "handle", stdin=JOIN)

    heavy = {"yaml", "argparse", "rich", "watchdog", "datetime", "tempfile", "shutil", "psutil", "lbagent.roles.loader"}
    assert heavy & modules == set()
    assert len(files.managed) == 2


def test_an_edited_roles_yml_is_read_as_yaml_once(files: LoadBalancerFiles) -> None:
    files.roles.write_text(f"{files.roles.read_text()}# edited\n")

    first, second = list_loaded_modules(files, "handle", stdin=JOIN), list_loaded_modules(files, "handle", stdin=b"")

    assert "yaml" in first
    assert "yaml" not in second


@pytest.mark.parametrize("words", [["handle"], ["status"], ["plan"], ["web", "--help"]], ids=" ".join)
def test_no_command_but_web_loads_the_libraries_of_the_page(words: list[str], files: LoadBalancerFiles) -> None:
    modules = list_loaded_modules(files, *words, stdin=JOIN)

    assert {"starlette", "uvicorn", "jinja2", "bcrypt", "anyio", "asyncio", "lbagent.web"} & modules == set()
