"""Runs tests against mutants, in forks of a process that has imported everything and collected the tests.

Most mutants change one function. The fork replaces its code, also for modules that imported the function by name. A
change of a module's own code takes effect on import: a fork of a process without lbagent imports the module anew.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib.abc
import importlib.machinery
import os
import pickle
import resource
import signal
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import coverage
import pytest
from hypothesis import Phase, settings

from tests.mutation.mutants import Mutant, make_tree

_REPORTS = ("status/test_report.py", "commands/test_status.py", "test_metrics.py")

TESTS: Mapping[str, tuple[str, ...]] = {
    "membership": ("membership", "planning", "run/test_spooled_events.py", "run/test_replies.py", *_REPORTS),
    "planning": ("planning", "roles/test_several_roles.py", *_REPORTS),
    "serf": ("serf", "test_names.py", "checks/test_serf.py", "membership", "run/test_replies.py"),
    "haproxy": (
        *("haproxy/test_config.py", "haproxy/test_reader.py", "haproxy/runtime/test_admission.py"),
        *("haproxy/runtime/test_capabilities.py", "haproxy/runtime/test_servers.py", "haproxy/runtime/test_state.py"),
        *("checks", "planning", "roles/test_several_roles.py", *_REPORTS),
    ),
    "roles": ("roles", "checks/test_roles.py", "planning"),
}
"""The tests of each package that can notice a change in the process that they run in."""

_EXAMPLES = 5
"""Examples of each property: a twentieth of those in `make test`. What they notice, more would notice too."""

_HISTORIES = 3
"""Histories of each kind in `tests/membership/test_pauses_model.py`."""

_SLOWER, _SLACK = 4, 10
"""A mutant may take so many times the CPU seconds of its tests, and so many more, before it counts as killed."""

_WALL = 20
"""Seconds on the clock for each second of CPU time: the machine may be busy."""

TIME_LIMIT = "time limit"
NO_TEST = "no test"
"""What a mutant has instead of the test that kills it."""


class Reached(NamedTuple):
    """What the tests run without any mutant."""

    seconds: Mapping[str, float]
    """CPU seconds by test."""
    tests: Mapping[tuple[str, int], frozenset[str]]
    """The tests that run a line of a file, after the imports."""
    properties: tuple[str, ...]
    """The tests of properties: they are slow, and are run where all others pass."""


class Result(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    killed_by: str
    """The test that fails, or TIME_LIMIT; empty if the mutant survives."""
    tests: int
    """The number of tests that run the changed statement."""


class Session:
    """A pytest plugin that collects the tests, and leaves to `work` what is run."""

    def __init__(self, paths: Iterable[str], work: Callable[[Session], None]) -> None:
        """Nothing is collected yet. `paths` are files and folders of tests."""
        self._paths, self._work = list(dict.fromkeys(paths)), work
        self.items: dict[str, pytest.Item] = {}
        self._failed = ""

    def start(self) -> None:
        """Collect the tests and work."""
        os.environ["LBAGENT_HISTORIES"] = str(_HISTORIES)
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-m",
            "not real",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
        ]
        status = pytest.main([*options, *self._paths], plugins=[self])
        assert status == 0, f"pytest ended with {status}"

    def pytest_sessionstart(self) -> None:
        """Let a property that fails end at once, and keep no examples."""
        settings.register_profile(
            "mutation",
            settings.get_profile("steady"),
            phases=[Phase.explicit, Phase.generate],
            database=None,
            max_examples=_EXAMPLES,
        )
        settings.load_profile("mutation")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Work with what was collected."""
        self.items = {item.nodeid: item for item in session.items if not _runs_programs(item)}
        self._work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the first test that fails."""
        if report.failed and not self._failed:
            self._failed = report.nodeid

    def run(self, names: Sequence[str]) -> str:
        """Run these tests until one fails; return its name, or an empty string."""
        items = [self.items[name] for name in names if name in self.items]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                break
        return self._failed


def fork(work: Callable[[], str], cpu: float) -> str:
    """Return what `work` returns in a fork, or TIME_LIMIT after `cpu` seconds of CPU time."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        words = "the process of the tests has failed"
        try:
            _isolate(cpu)
            words = work()
        except BaseException as error:  # noqa: BLE001  # reported as the result
            words = f"{words}: {type(error).__name__}: {error}"
        finally:
            os.write(writer, words.encode()[:4000])
            os._exit(0)
    os.close(writer)
    is_late = _wait(pid, cpu)
    with os.fdopen(reader, "rb") as file:
        words = file.read().decode()
    return TIME_LIMIT if is_late else words


def _isolate(cpu: float) -> None:
    os.setpgid(0, 0)
    _silence()
    if cpu < 10_000:  # a higher value means no limit
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + 1, int(cpu) + 2))
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _wait(pid: int, cpu: float) -> bool:
    """Wait for the end of the fork; return whether a limit ended it."""
    deadline = time.monotonic() + cpu * _WALL
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        is_late = not ended and time.monotonic() > deadline
        if ended or is_late:
            # Also what the mutant has started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            if is_late:
                os.waitpid(pid, 0)
            return is_late or os.WIFSIGNALED(status)
        time.sleep(0.002)


# What the tests reach


def list_paths(packages: Iterable[str]) -> list[str]:
    """Return the paths of the tests that can notice a change in these packages."""
    return [str(Path("tests", name)) for package in packages for name in TESTS[package]]


def measure(paths: Sequence[Path], folder: Path) -> Reached:
    """Run all tests once, in a fork, and return what each runs. Raises AssertionError if one fails."""
    packages = [path.parts[1] for path in paths]
    wanted, found = [str(path.resolve()) for path in paths], folder / "reached.pickle"

    def work(session: Session) -> None:
        seconds = {}
        tracer = coverage.Coverage(data_file=None, include=wanted)
        tracer.start()
        properties = [name for name, item in session.items.items() if _is_property(item)]
        for name in session.items.keys() - properties:
            tracer.switch_context(name)
            started = time.process_time()
            failed = session.run([name])
            assert not failed, f"{failed} fails without a mutant"
            seconds[name] = time.process_time() - started
        tracer.stop()
        data = tracer.get_data()
        tests = {
            (path, line): frozenset(names) for path in wanted for line, names in data.contexts_by_lineno(path).items()
        }
        found.write_bytes(pickle.dumps(Reached(seconds, tests, tuple(properties))))

    def collect() -> str:
        Session(list_paths(packages), work).start()
        return ""

    failed = fork(collect, 1e6)
    assert found.exists(), failed
    reached: Reached = pickle.loads(found.read_bytes())
    return reached


def _runs_programs(item: pytest.Item) -> bool:
    """Return whether a test runs lbagent as a program, which has no mutant."""
    names = {
        *getattr(item, "fixturenames", ()),
        *getattr(getattr(item, "obj", None), "__code__", _is_property.__code__).co_names,
    }
    return bool(names & {"lb", "LoadBalancer", "subprocess", "stage"})


def _is_property(item: pytest.Item) -> bool:
    """Return whether a test looks at many generated examples."""
    return item.path.name == "test_pauses_model.py" or bool(
        getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    )


def choose_tests(mutant: Mutant, reached: Reached) -> list[str]:
    """Return the tests that run the mutated statement, or functions that use the mutated name; quickest first.

    Then come all other tests for a name of the module, which other modules may import, and last the properties.
    """
    path = str(mutant.path.resolve())
    lines = range(mutant.line, mutant.last_line + 1) if mutant.function else _list_dependent_lines(mutant)
    names = {name for line in lines for name in reached.tests.get((path, line), ())}
    others = [] if mutant.function else [name for name in reached.seconds if name not in names]
    tests = f"tests/{mutant.path.parts[1]}/"
    properties = [name for name in reached.properties if name.startswith(tests)]
    return [*sorted(names, key=lambda name: (reached.seconds[name], name)), *others, *properties]


def _list_dependent_lines(mutant: Mutant) -> set[int]:
    """Return the lines of the functions and classes that use a name of the module, directly or through other names."""
    tree = ast.parse(mutant.path.read_bytes())
    names: set[str] = set()
    found: set[int] = set()
    for statement in tree.body:
        if statement.lineno <= mutant.line <= (statement.end_lineno or statement.lineno):
            names |= _list_bound(statement)
            found |= set(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    grows = True
    while grows:
        before = len(names)
        for statement in tree.body:
            used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            if used & names:
                names |= _list_bound(statement)
                found |= set(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
        grows = len(names) > before
    return found


def _list_bound(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.Assign(targets=targets):
            return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case _:
            return set()


# Mutants


def run_mutants(mutants: Sequence[Mutant], reached: Reached, report: Callable[[Result], None]) -> None:
    """Run the tests against each mutant, and report the results."""

    def work(session: Session) -> None:
        for mutant in functions:
            report(_run_tests(mutant, reached, partial(_run_in_function, session, mutant)))

    functions = [mutant for mutant in mutants if mutant.function]
    # In a fork, as it imports lbagent, which the other mutants have to import anew.
    pid = os.fork()
    if pid == 0:
        try:
            if functions:
                _silence()
                Session(list_paths(mutant.path.parts[1] for mutant in functions), work).start()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    for mutant in mutants:
        if not mutant.function:
            report(_run_tests(mutant, reached, partial(_run_in_module, mutant)))


def _run_tests(mutant: Mutant, reached: Reached, run: Callable[[list[str]], str]) -> Result:
    names = choose_tests(mutant, reached)
    for part in [names] if mutant.function else _split_by_file(names):
        cpu = _SLOWER * sum(reached.seconds.get(name, 1.0) for name in part) + _SLACK
        killed_by = fork(partial(run, part), cpu) if part else ""
        if killed_by:
            return Result(mutant, killed_by, len(names))
    return Result(mutant, "", len(names))


def _split_by_file(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the tests of the file with the first test, which kill most mutants, and all others.

    A fork has to collect the tests of a mutated module anew, which takes longer than to run them.
    """
    here = [name for name in names if _get_file(name) == _get_file(names[0])]
    return here, [name for name in names if name not in here]


def _get_file(test: str) -> str:
    return test.partition("::")[0]


def _run_in_function(session: Session, mutant: Mutant, names: list[str]) -> str:
    replace_function(mutant)
    return session.run(names)


def _run_in_module(mutant: Mutant, names: list[str]) -> str:
    sys.meta_path.insert(0, _MutatedModule(mutant))
    failed = []
    try:
        Session(map(_get_file, names), lambda session: failed.append(session.run(names))).start()
    except AssertionError:
        # pytest ends with an error, also where a test has failed.
        return "".join(failed) or "the tests cannot be imported"
    return failed[0]


def replace_function(mutant: Mutant) -> None:
    """Replace the code of the mutated function in this process."""
    path = str(mutant.path.resolve())
    wanted = (mutant.function, mutant.function_line)
    module = compile(make_tree(mutant), path, "exec", dont_inherit=True)
    code = next(found for found in _list_codes(module) if (found.co_qualname, found.co_firstlineno) == wanted)
    functions = [
        found
        for found in gc.get_objects()
        if type(found) is types.FunctionType
        and found.__code__.co_filename == path
        and (found.__code__.co_qualname, found.__code__.co_firstlineno) == wanted
    ]
    assert functions, f"{mutant}: the function is not there"
    for function in functions:
        function.__code__ = code


def _list_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _list_codes(constant)


class _MutatedModule(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the mutated module, and leaves all others to Python."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._name = ".".join(mutant.path.with_suffix("").parts)

    def find_spec(
        self, fullname: str, _: Sequence[str] | None, __: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        path = str(self._mutant.path.resolve())
        return importlib.machinery.ModuleSpec(fullname, self, origin=path) if fullname == self._name else None

    def exec_module(self, module: types.ModuleType) -> None:
        path = str(self._mutant.path.resolve())
        module.__file__ = path
        exec(compile(make_tree(self._mutant), path, "exec", dont_inherit=True), module.__dict__)  # its code
