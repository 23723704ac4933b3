"""A fault in any system call of a run loses nothing, leaves nothing half-written, and the answer stays true.

`make test` injects a part of the faults; `make faults` injects all of them, `make faults EVERY=4` every fourth.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.daemon import run_watch
from tests.helpers.faults import list_spool_records, make_spool_record, read_folder
from tests.helpers.preloading import SHORT_WRITES, compile_library, cut_write
from tests.helpers.real_programs import (
    LBAGENT,
    RELOADING,
    ROLES,
    Backend,
    Haproxy,
    LoadBalancer,
    SerfAgent,
    member_line,
    wait_until,
)
from tests.helpers.steps import (
    FaultyRun,
    Filter,
    Step,
    attach,
    find_injected,
    inject,
    limit_repeats,
    list_filters,
    parse_steps,
    record_steps,
)

EVERY = int(os.environ.get("LBAGENT_STEPS") or 0)
"""Every how many faults one is injected; 0 for those of `make test`."""

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(10_800 if EVERY else 120),
    pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here"),
]

SAMPLE = 3
"""The number of faults of each change in `make test`."""

BEST_EFFORT = ("history.jsonl", "metrics.prom", "last.json", "roles.json", "peers.json", "served.json")
"""Files of the state directory whose loss never changes an outcome."""

WEB1, WEB2 = member_line("web1", "127.0.0.11"), member_line("web2", "127.0.0.12")
PAUSED = "# lbagent paused web2 127.0.0.12 role=web"


class Command(NamedTuple):
    """A run of lbagent."""

    words: tuple[str, ...]
    stdin: bytes = b""
    env: Mapping[str, str] = {}


class Change(NamedTuple):
    """A change of web2, made again and again with a fault."""

    name: str
    make: Callable[[int], Command]
    """Returns the run that makes it, for a number that grows with each run."""
    serves: bool
    """Whether web2 serves afterwards."""
    line: str = ""
    """The line of web2 afterwards, if it has one without serving."""
    after: Command | None = None
    """The further run, if it is not that of the scenario."""
    prepare: str = ""
    """The kind of an event that is in the spool before the run."""


class Scenario(NamedTuple):
    """Two changes, each of which undoes the other."""

    name: str
    changes: tuple[Change, Change]
    after: Command
    """The further run."""
    roles: str = ROLES
    watch: bool = False
    agents: bool = False
    master_cli: bool = False
    filters: tuple[str, ...] = ()
    """The names of the filters, if it has other steps than another scenario only there."""
    sampled: bool = True
    """Whether it is part of `make test`: others have most steps in common with these."""


def handle(kind: str, stdin: bytes, **env: str) -> Command:
    return Command(("handle",), stdin, {"SERF_EVENT": kind, "SERF_SELF_NAME": "lb01", **env})


def user(verb: str) -> Callable[[int], Command]:
    return lambda number: handle("user", b"web2\n", SERF_USER_EVENT=verb, SERF_USER_LTIME=str(number))


def query(verb: str) -> Callable[[int], Command]:
    return lambda number: handle("query", b"web2\n", SERF_QUERY_NAME=verb, SERF_QUERY_LTIME=str(number))


def command(*words: str) -> Callable[[int], Command]:
    return lambda _: Command(words)


NEXT = handle("member-join", WEB1)
JOIN = Change("join", lambda _: handle("member-join", WEB2), serves=True)
LEAVE = Change("leave", lambda _: handle("member-leave", WEB2), serves=False)
SCENARIOS = [
    Scenario("join and leave", (JOIN, LEAVE), NEXT),
    Scenario("join and leave by reloads", (JOIN, LEAVE), Command(("apply", "--force")), RELOADING, sampled=False),
    Scenario(
        "join and leave by reloads of the master CLI",
        (JOIN, LEAVE),
        Command(("apply", "--force")),
        RELOADING,
        master_cli=True,
        filters=("connections", "processes"),
        sampled=False,
    ),
    Scenario(
        "pause and resume by event",
        (Change("pause", user("pause"), serves=False, line=PAUSED), Change("resume", user("resume"), serves=True)),
        NEXT,
        sampled=False,
    ),
    Scenario(
        "pause and resume by query",
        (Change("pause", query("pause"), serves=False, line=PAUSED), Change("resume", query("resume"), serves=True)),
        NEXT,
    ),
    Scenario(
        "pause and resume by command",
        (
            Change("pause", command("pause", "web2"), serves=False, line=PAUSED),
            Change("resume", command("resume", "web2"), serves=True),
        ),
        Command(("apply",)),
        agents=True,
        sampled=False,
    ),
    Scenario(
        "apply",
        (
            Change("join", command("apply"), serves=True, prepare="member-join"),
            Change("leave", command("apply"), serves=False, prepare="member-leave"),
        ),
        Command(("apply",)),
    ),
    Scenario(
        "sync",
        (Change("sync", command("sync"), serves=True), LEAVE._replace(after=NEXT)),
        Command(("sync",)),
        agents=True,
    ),
    Scenario("join and leave while watch runs", (JOIN, LEAVE), NEXT, watch=True),
    Scenario(
        "pause and resume while watch runs",
        (Change("pause", user("pause"), serves=False, line=PAUSED), Change("resume", user("resume"), serves=True)),
        NEXT,
        watch=True,
        sampled=False,
    ),
]


class Bench:
    """A load balancer on which changes are made with faults, and what was found."""

    def __init__(self, scenario: Scenario, lb: LoadBalancer, haproxy: Haproxy, rpc: str) -> None:
        """`rpc` is the address of the Serf agent."""
        self.scenario, self.lb, self.haproxy, self._rpc = scenario, lb, haproxy, rpc
        self._numbers = itertools.count(1)
        self._operator = lb.text
        self.failures: list[str] = []
        self.injected = self.missed = 0

    def judge(self) -> None:
        """Raise AssertionError if a fault had a wrong result, or if many faults were not reached."""
        assert not self.failures, "\n".join(self.failures)
        # A run looks at every process of the machine, so its steps vary. In a sample, one fault is a large part.
        assert not EVERY or self.missed <= self.injected / 5

    def run(self, wanted: Command) -> bytes:
        """Make a run without a fault, and return its output. Raises AssertionError where it fails."""
        done = self.lb.run(*wanted.words, stdin=wanted.stdin, env={"SERF_RPC_ADDR": self._rpc, **wanted.env})
        assert done.returncode == 0, done
        assert b"Traceback" not in done.stderr
        return done.stdout

    def make(self, change: Change) -> Command:
        """Return the next run that makes the change."""
        number = next(self._numbers)
        if change.prepare:
            record = make_spool_record(f"{number:016x}0000", change.prepare, WEB2)
            self.lb.state.joinpath("spool", "1").write_bytes(record)
        wanted = change.make(number)
        return wanted._replace(env={"SERF_RPC_ADDR": self._rpc, **wanted.env})

    def record(self) -> list[list[Step]]:
        """Return the steps of each change; each is made once for each filter."""
        found: list[list[Step]] = [[] for _ in self.scenario.changes]
        for number in range(len(self.filters)):
            for change, steps in zip(self.scenario.changes, found, strict=True):
                wanted = self.make(change)
                steps.extend(record_steps(self.lb, self.filters[number], wanted.words, wanted.stdin, wanted.env))
                self.wait()
        return [limit_repeats(steps) for steps in found]

    @property
    def filters(self) -> list[Filter]:
        """The filters, with the processes that HAProxy has now."""
        found = list_filters(self.lb, [self.haproxy.pid, self.haproxy.worker()])
        return [one for one in found if one.name in (self.scenario.filters or (one.name,))]

    def wait(self) -> None:
        """Wait until the daemon, if one runs, has applied all events."""
        if self.scenario.watch:
            deadline = time.monotonic() + 20
            while not self.lb.idle and time.monotonic() < deadline:
                time.sleep(0.01)

    def make_text(self, change: Change) -> bytes:
        """Return haproxy.cfg after the change."""
        lines = [self.lb.server("web1", "127.0.0.11")]
        lines += [self.lb.server("web2", "127.0.0.12")] if change.serves else [change.line] if change.line else []
        marker = b"    # additional-lb-iis-server\n"
        return self._operator.replace(marker, b"".join(f"    {line}\n".encode() for line in lines) + marker)

    def has_served(self, change: Change) -> bool:
        """Return whether HAProxy is as the change asks."""
        return self.haproxy.find_serving() == ({"web1", "web2"} if change.serves else {"web1"})

    def is_stored(self, change: Change) -> bool:
        """Return whether the change is in membership or in the spool."""
        member = self.lb.members().get("web2")
        is_known = member is not None and member["status"] == "alive" and not member["pause"]
        is_paused = member is not None and bool(member["pause"])
        return bool(list_spool_records(self.lb)) or (
            is_known if change.serves else is_paused if change.line else not is_known
        )

    def try_fault(self, change: Change, step: Step, fault: str) -> None:
        """Make the change with a fault, then one further run, and note all that is not as promised."""
        before = self.lb.text
        wanted = self.make(change)
        step = step._replace(filter=next(one for one in self.filters if one.name == step.filter.name))
        done = inject(self.lb, step, fault, wanted.words, wanted.stdin, wanted.env)
        self.check(change, f"{fault} in {step.filter.name}: {done.line[:200]}", done, before)

    def try_short_write(self, change: Change, limit: int) -> None:
        """Make the change while no file may become longer than `limit` bytes, then one further run.

        The kernel writes up to there, and refuses the rest with EFBIG.
        """
        before, wanted = self.lb.text, self.make(change)
        words = ["prlimit", f"--fsize={limit}", str(LBAGENT), *wanted.words]
        made = subprocess.run(
            words, input=wanted.stdin, env={**self.lb.env, **wanted.env}, capture_output=True, timeout=120, check=False
        )
        done = FaultyRun(made.returncode, made.stdout.decode(), made.stderr.decode(), "write")
        self.check(change, f"files of at most {limit} bytes", done, before)

    def try_half_write(self, change: Change, library: Path, number: int, output: bytes) -> bool:
        """Make the change while the write with this number writes half of its bytes; return whether there is one.

        The run writes the rest: it succeeds as without a fault, with the same output.
        """
        before, wanted, report = self.lb.text, self.make(change), self.lb.folder / "short-write"
        report.unlink(missing_ok=True)
        env = {**wanted.env, **cut_write(library, number, report)}
        made = self.lb.run(*wanted.words, stdin=wanted.stdin, env=env)
        if not report.exists():
            self.wait()
            return False
        done = FaultyRun(made.returncode, made.stdout.decode(), made.stderr.decode(), report.read_text())
        self.count(done.line)
        self.wait()
        wrong = [*self.check_faulty_run(change, done, before), *self.check_further_run(change)]
        if wrong or done.status != 0 or done.errors or made.stdout != output:
            wrong.append(f"{done.status} {done.output!r} {done.errors!r}")
        self.note(change, f"short write {number}: {done.line}", wrong)
        return True

    def check(self, change: Change, fault: str, done: FaultyRun, before: bytes) -> None:
        """Make one further run after a fault, and note all that is not as promised."""
        self.count(done.line)
        wrong = list(self.check_faulty_run(change, done, before))
        try:
            if not self.is_stored(change):
                self.age_hidden_files()
                self.run(self.make(change))
            elif not self.scenario.watch:
                self.age_hidden_files()
                self.run(change.after or self.scenario.after)
            self.wait()
            wrong += self.check_further_run(change)
        except AssertionError as error:
            wrong.append(f"the further run failed: {error}")
        wrong += [f"{done.status} {done.output!r} {done.errors!r}"] if wrong else []
        self.note(change, fault, wrong)

    def count(self, line: str) -> None:
        """Count a fault in the call that strace describes in `line`; empty if it was not reached."""
        self.injected += bool(line)
        self.missed += not line

    def note(self, change: Change, fault: str, wrong: list[str]) -> None:
        """Note what is wrong after a fault, if anything, and repair it."""
        if wrong:
            self.fail(f"{self.scenario.name}, {change.name}, {fault}", wrong)
            self.repair(change)

    def fail(self, fault: str, wrong: Sequence[str]) -> None:
        """Note what is wrong after a fault."""
        self.failures.append("\n    ".join([fault, *wrong]))
        print(self.failures[-1], flush=True)

    def report(self, steps: list[list[Step]]) -> None:
        """Print the counts."""
        counts = f"{sum(map(len, steps))} steps, {self.injected} faults injected, {self.missed} not reached"
        print(f"{self.scenario.name}: {counts}, {len(self.failures)} failures", flush=True)

    def is_made(self, change: Change) -> bool:
        """Return whether the change is in haproxy.cfg and in HAProxy, and no run is in progress."""
        return self.lb.text == self.make_text(change) and self.has_served(change) and self.lb.idle

    def check_faulty_run(self, change: Change, done: FaultyRun, before: bytes) -> Iterator[str]:
        """Yield what is wrong after the run with the fault."""
        text, killed = self.lb.text, done.status == -9
        if text not in (before, self.make_text(change)):
            yield f"haproxy.cfg is neither the old nor the new text: {text!r}"
        yield from self.find_unreadable_files()
        lines = done.errors.splitlines()
        if "Traceback" in done.errors or not all(line.startswith("lbagent: ") for line in lines):
            yield "stderr has more than lines of lbagent"
        if len(lines) > 1:
            yield "more than one line on stderr"
        is_query = wanted_kind(change) == "query"
        # The commands print a line for each load balancer.
        if done.status not in (0, -9) and not lines and not is_query and not done.output:
            yield "an error without a line"
        stored = self.is_stored(change)
        if not killed and not stored and not is_query and done.status == 0:
            yield "the event is lost, and the exit status is 0"
        if self.scenario.watch:
            return
        claims = done.output.startswith("done") if is_query else done.status == 0
        if claims and not (self.has_served(change) and text == self.make_text(change)):
            yield "the run claims a change that HAProxy does not have"
        is_best_effort = any(f"/state/{name}" in done.line for name in BEST_EFFORT)
        if is_best_effort and done.status not in (-9, 130) and not self.has_served(change):
            yield "a file that is best effort stopped the change"

    def find_unreadable_files(self) -> Iterator[str]:
        """Yield the state files that are half-written."""
        for path in self.lb.state.glob("*.json"):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                yield f"{path.name} is half-written: {path.read_bytes()!r}"

    def age_hidden_files(self) -> None:
        """Let the files of a killed writer look as old as they are when the spool removes them."""
        for name in self.lb.list_spool():
            if name.startswith("."):
                os.utime(self.lb.state / "spool" / name, (0, 0))

    def check_further_run(self, change: Change) -> Iterator[str]:
        """Yield what is wrong after the further run."""
        if self.lb.text != self.make_text(change):
            yield f"haproxy.cfg lacks the change: {self.lb.managed}"
        if not self.has_served(change):
            yield f"HAProxy lacks the change: {self.haproxy.servers()}"
        if left := self.lb.list_spool():
            yield f"left in the spool: {left}"
        if left := self.lb.list_staged():
            yield f"left beside haproxy.cfg: {left}"
        yield from self.find_unreadable_files()

    def repair(self, change: Change) -> None:
        """Make the change without a fault, so that the next step begins as it should."""
        with contextlib.suppress(AssertionError):
            self.run(self.make(change))
            self.wait()
            self.run(Command(("apply", "--force")))

    def check_files_left(self) -> None:
        """Note temporary files that are left after a good run of each change."""
        for change in self.scenario.changes:
            self.run(self.make(change))
            self.wait()
        left = sorted(path.name for path in self.lb.state.iterdir() if path.name.endswith(".new"))
        if left:
            self.failures.append(f"left in the state directory: {left}")


def wanted_kind(change: Change) -> str:
    return change.make(0).env.get("SERF_EVENT", "")


@contextlib.contextmanager
def set_up(scenario: Scenario, *, wakes: bool = False) -> Iterator[Bench]:
    """Run a load balancer as it is before the first change of the scenario.

    With `wakes`, the caller starts `watch`.
    """
    with contextlib.ExitStack() as stack:
        lb = stack.enter_context(LoadBalancer(roles=scenario.roles))
        more = ["-S", f"{lb.folder}/master.sock"] if scenario.master_cli else []
        haproxy = stack.enter_context(Haproxy(lb, more=more))
        for number in (1, 2):
            stack.enter_context(Backend(f"web{number}", f"127.0.0.{10 + number}", lb.port))
        rpc = "127.0.0.1:1"
        if scenario.agents:
            agent = stack.enter_context(SerfAgent("lb01", "127.0.0.9", "lb"))
            rpc = agent.rpc
            for number in (1, 2):
                web = stack.enter_context(SerfAgent(f"web{number}", f"127.0.0.{10 + number}", "web"))
                web.join(agent)
        bench = Bench(scenario, lb, haproxy, rpc)
        lb.join(WEB1, WEB2)
        if scenario.watch and not wakes:
            (lb.state / "metrics.prom").unlink()
            stack.enter_context(run_watch(lb))
        bench.run(bench.make(scenario.changes[1]))
        bench.wait()
        yield bench


def select(steps: list[list[Step]]) -> Iterator[tuple[int, Step, str]]:
    """Yield the faults to inject: the number of the change, in turns, step and fault. `steps` are those by change."""
    faults = [[(step, fault) for step in found for fault in step.faults] for found in steps]
    total = max(map(len, faults))
    for number in range(0, total, EVERY) if EVERY else range(total // SAMPLE // 2, total, total // SAMPLE):
        for change, found in enumerate(faults):
            yield change, *found[number * len(found) // total]


@pytest.mark.parametrize(
    "scenario", [one for one in SCENARIOS if EVERY or one.sampled], ids=lambda one: one.name.replace(" ", "-")
)
def test_a_fault_in_any_step_loses_nothing_and_the_answer_is_true(scenario: Scenario) -> None:
    with set_up(scenario) as bench:
        steps = bench.record()
        for change, step, fault in select(steps):
            bench.try_fault(scenario.changes[change], step, fault)
        bench.check_files_left()
        bench.report(steps)

    bench.judge()


@pytest.mark.parametrize("scenario", SCENARIOS[:1], ids=["join-and-leave"])
def test_a_write_cut_short_at_any_byte_loses_nothing_and_the_answer_is_true(scenario: Scenario) -> None:
    with set_up(scenario) as bench:
        longest = max(path.stat().st_size for path in (bench.lb.cfg, *bench.lb.state.glob("*.*")))
        limits = range(0, longest, 40 * EVERY) if EVERY else (0, 50, 300, 600, 1_000)
        for limit, change in itertools.product(limits, scenario.changes):
            bench.try_short_write(change, limit)
        bench.check_files_left()
        bench.report([])

    assert not bench.failures, "\n".join(bench.failures)


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if EVERY], ids=lambda one: one.name.replace(" ", "-"))
def test_a_write_of_half_of_the_bytes_changes_nothing(scenario: Scenario, tmp_path: Path) -> None:
    library = compile_library(SHORT_WRITES, tmp_path / "short_writes.so")
    with set_up(scenario) as bench:
        outputs = []
        for change in scenario.changes:
            outputs.append(bench.run(bench.make(change)))
            bench.wait()
        for number in itertools.count(1):
            tried = [
                bench.try_half_write(change, library, number, output)
                for change, output in zip(scenario.changes, outputs, strict=True)
            ]
            if not any(tried):
                break
        bench.check_files_left()
        bench.report([])

    assert bench.injected >= 2, "no write was cut short"
    assert not bench.failures, "\n".join(bench.failures)


class Daemon:
    """The daemon of a bench, started again after it was killed."""

    def __init__(self, bench: Bench, stack: contextlib.ExitStack) -> None:
        """Start it."""
        self._bench, self._stack = bench, stack
        self.start()

    def start(self) -> None:
        """Start it, and wait for its first run."""
        (self._bench.lb.state / "metrics.prom").unlink(missing_ok=True)
        self.process = self._stack.enter_context(run_watch(self._bench.lb))

    def record(self) -> list[list[Step]]:
        """Return the steps with which it makes each change."""
        bench = self._bench
        found: list[list[Step]] = [[] for _ in bench.scenario.changes]
        for which in bench.filters:
            for change, steps in zip(bench.scenario.changes, found, strict=True):
                with attach(self.process.pid, which) as trace:
                    bench.run(bench.make(change))
                    wait_until(partial(bench.is_made, change))
                steps.extend(parse_steps(which, trace.text))
        return found

    def try_fault(self, change: Change, step: Step, fault: str) -> None:
        """Send an event, and inject a fault in a step of the round that applies it."""
        bench = self._bench
        which = next(one for one in bench.filters if one.name == step.filter.name)
        with attach(self.process.pid, which, f"{step.call}:{fault}:when={step.number}") as trace:
            bench.run(bench.make(change))
            with contextlib.suppress(AssertionError):
                wait_until(lambda: bench.is_made(change) or self.process.poll() is not None)
        line = find_injected(step, trace.text)
        if line and "signal" in fault:
            wait_until(lambda: self.process.poll() is not None)
        bench.count(line)
        wrong = list(bench.find_unreadable_files())
        if self.process.poll() is not None:
            if "signal" not in fault:
                wrong.append(f"watch ended with {self.process.returncode}")
            bench.age_hidden_files()
            self.start()
            bench.wait()
        wrong += bench.check_further_run(change)
        bench.note(change, f"{fault} in {step.filter.name}: {line[:200]}", wrong)


WAKE = Scenario("a wake-up of watch", (JOIN, LEAVE), NEXT, watch=True)


def test_a_fault_in_any_step_of_watch_loses_nothing() -> None:
    with contextlib.ExitStack() as stack:
        bench = stack.enter_context(set_up(WAKE, wakes=True))
        daemon = Daemon(bench, stack)
        steps = daemon.record()
        for change, step, fault in select(steps):
            daemon.try_fault(WAKE.changes[change], step, fault)
        bench.check_files_left()
        bench.report(steps)

    bench.judge()


class Answer(NamedTuple):
    """What a command has printed that only reads."""

    status: int
    facts: frozenset[str]
    """Its lines, or its findings, without times."""
    problems: frozenset[str] = frozenset()
    """Those that are problems."""
    unknown: frozenset[str] = frozenset()
    """Names of values that it reports as unknown."""


READING = [("render",), ("plan",), ("status", "--json"), ("check", "--json")]


def read_answer(words: Sequence[str], status: int, output: str) -> Answer:
    """Return the answer. Raises ValueError if it is cut short."""
    if words[0] == "status":
        found = json.loads(output)
        found["daemon"]["running"] = found["daemon"]["running"] or False  # null: unknown
        facts = frozenset(f"{key}: {value}" for key, value in found.items() if key != "at" and value is not None)
        unknown = frozenset(key for key, value in found.items() if value is None)
        return Answer(status, facts, frozenset(map(str, found["wrong"])), unknown)
    if words[0] == "check":
        findings = {
            f"{one['severity']} {one['kind']}": one["severity"] != "ok" for one in json.loads(output)["findings"]
        }
        return Answer(status, frozenset(findings), frozenset(one for one, is_bad in findings.items() if is_bad))
    return Answer(status, frozenset(output.splitlines()))


def check_answer(words: Sequence[str], good: Answer, done: FaultyRun) -> Iterator[str]:
    """Yield what is not true in the answer after a fault: it is the good one, or names a problem or what is unknown."""
    lines = done.errors.splitlines()
    if "Traceback" in done.errors or not all(line.startswith("lbagent: ") for line in lines):
        yield "stderr has more than lines of lbagent"
    if done.status not in (0, good.status):
        if not lines and done.status not in (-9, -15):
            yield "an error without a line"
        return
    try:
        found = read_answer(words, done.status, done.output)
    except ValueError:
        yield "the answer is cut short"
        return
    is_named = lines if words[0] in ("render", "plan") else found.problems - good.problems
    differing = {fact for fact in found.facts ^ good.facts if fact.partition(":")[0] not in found.unknown}
    if differing and not is_named:
        yield f"the answer differs without a problem: {sorted(differing)}"


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_a_fault_in_any_step_of_a_command_that_reads_changes_nothing_and_the_answer_is_true(
    words: tuple[str, ...],
) -> None:
    with set_up(SCENARIOS[0]) as bench:
        lb = bench.lb
        wait_until(lambda: bench.haproxy.servers()["web1"] == "UP")  # not `UP 1/2`, its state after a join
        (lb.state / "spool" / "1").write_bytes(make_spool_record("1", "member-join", WEB2))
        before = read_folder(lb.etc), read_folder(lb.state)
        done = lb.run(*words)
        good = read_answer(words, done.returncode, done.stdout.decode())
        steps = [step for which in bench.filters for step in record_steps(lb, which, words, status=done.returncode)]
        for _, step, fault in select([steps]):
            faulty = inject(lb, step, fault, words)
            bench.count(faulty.line)
            wrong = [*check_answer(words, good, faulty)]
            if (read_folder(lb.etc), read_folder(lb.state)) != before:
                wrong.append("a file has changed")
            if wrong:
                wrong.append(f"{faulty.status} {faulty.output!r} {faulty.errors!r}")
                bench.fail(f"{words[0]}, {fault} in {step.filter.name}: {faulty.line[:200]}", wrong)
        bench.report([steps])

    bench.judge()
