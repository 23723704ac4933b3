"""`python -m tests.mutation [--all | --count N | --each N] [--exact] [PATH…]`: prints the mutants that survive.

All tests run once, to see what each reaches. Then each mutant has the tests that reach it, until one fails.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.mutation import runner
from tests.mutation.mutants import Mutant, list_mutants
from tests.mutation.runner import Result

SCOPE = (
    *("lbagent/membership", "lbagent/planning", "lbagent/serf", "lbagent/roles", "lbagent/haproxy/config.py"),
    *(f"lbagent/haproxy/runtime/{name}.py" for name in ("capabilities", "servers", "state")),
)
"""The pure modules: what they promise can be tested without programs."""

RESULTS = Path("build/mutation.jsonl")


def main() -> int:
    """Run a sample of the mutants, or all; return 1 if fewer than 95 % are killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("paths", nargs="*", default=SCOPE, help="modules and packages")
    parser.add_argument("--all", action="store_true", help="every mutant, not a sample")
    parser.add_argument("--count", type=int, default=400, help="size of the sample")
    parser.add_argument("--each", type=int, help="size of the sample of each module")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the sample")
    parser.add_argument("--again", type=Path, help="only those that survive in these results")
    parser.add_argument("--exact", action="store_true", help="without the tests of properties, which are slow")
    given = parser.parse_args()
    started = time.monotonic()
    modules = [module for path in map(Path, given.paths) for module in (sorted(path.glob("*.py")) or [path])]
    mutants = [mutant for module in modules for mutant in list_mutants(module)]
    print(f"{len(mutants)} mutants in {len(modules)} modules", flush=True)
    if given.again:
        survived = read_survivors(given.again)
        mutants = [mutant for mutant in mutants if str(mutant) in survived]
    elif given.each:
        print(f"{given.each} of each module with seed {given.seed}", flush=True)
        mutants = [mutant for module in modules for mutant in choose(mutants, module, given.each, given.seed)]
    elif not given.all:
        print(f"a sample of {given.count} with seed {given.seed}", flush=True)
        mutants = random.Random(given.seed).sample(mutants, min(given.count, len(mutants)))
    with tempfile.TemporaryDirectory() as folder:
        reached = runner.measure(modules, Path(folder))
    if given.exact:
        reached = reached._replace(properties=())
    print(f"{len(reached.seconds)} tests, {sum(reached.seconds.values()):.0f} s", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("")

    def report(result: Result) -> None:
        # A fork may report: the file is all that the parent sees.
        entry = {"mutant": str(result.mutant), "killed_by": result.killed_by, "tests": result.tests}
        entry["package"] = make_package(result.mutant)
        with RESULTS.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    runner.run_mutants(mutants, reached, report)
    print(f"{time.monotonic() - started:.0f} s")
    return print_results([json.loads(line) for line in RESULTS.read_text().splitlines()])


def choose(mutants: Sequence[Mutant], module: Path, count: int, seed: int) -> list[Mutant]:
    """Return an even sample of the mutants of a module: its start depends on the seed, its steps are equal."""
    found = [mutant for mutant in mutants if mutant.path == module]
    step = max(len(found) / count, 1)
    start = random.Random(seed).random() * step
    return [found[int(position)] for position in (start + step * n for n in range(count)) if position < len(found)]


def print_results(entries: Sequence[Mapping[str, str]]) -> int:
    """Print what survives, and a line for each package; return 1 if fewer than 95 % are killed."""
    for entry in entries:
        if not entry["killed_by"]:
            print(f"survived {entry['tests']} tests: {entry['mutant']}")
    for package in sorted({entry["package"] for entry in entries}):
        fates = [bool(entry["killed_by"]) for entry in entries if entry["package"] == package]
        print(f"{package}: {len(fates)} mutants, {sum(fates)} killed, {len(fates) - sum(fates)} survived")
    total, killed = len(entries), sum(bool(entry["killed_by"]) for entry in entries)
    print(f"all: {total} mutants, {killed} killed, {100 * killed / max(total, 1):.1f} %")
    return 0 if killed >= 0.95 * total else 1


def make_package(mutant: Mutant) -> str:
    """Return the package of the table: the module's folder, or the module itself in `haproxy`."""
    return str(mutant.path if "haproxy" in mutant.path.parts else mutant.path.parent)


def read_survivors(path: Path) -> set[str]:
    """Return the mutants that survive in these results, which hold while their lines do not change."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return {entry["mutant"] for entry in entries if not entry["killed_by"]}


if __name__ == "__main__":
    raise SystemExit(main())
