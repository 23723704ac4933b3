"""python -m scenarios.chaos [--seed N] [--seconds N]: random faults and changes, and a comparison after each minute.

Exits with 1 if a comparison disagreed, or if a change has cost a request. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scenarios.chaos import changes, faults
from scenarios.chaos.clients import Clients, Failure, ask_directly
from scenarios.chaos.comparison import Seen, explain_failure, find_differences
from scenarios.chaos.model import Model, Node
from scenarios.chaos.site import ADDRESS, CONFIG, PORTS, SERVICES, Balancer, Site
from scenarios.chaos.storm import Storm
from tests.helpers.real_programs import binaries, wait_until

FOLDER = Path("build/chaos")
STORM = 25.0
"""Seconds of a storm; a calm follows."""

AGREEMENT = 180.0
"""Seconds of calm after which a disagreement counts. A load balancer that missed a leave needs two syncs."""


def make_nodes() -> list[Node]:
    """Return 30 nodes; some are not in the cluster at first, and the role of some is missing in roles.yml."""
    roles = ["web"] * 14 + ["A"] * 9 + ["both"] * 4 + ["idle"] * 3
    nodes = [Node(f"n{number:02}", f"10.0.1.{number}", role) for number, role in enumerate(roles, 1)]
    for node in nodes[::7]:
        node.agent = "left"
    return nodes


class Disagreement(NamedTuple):
    """A comparison that failed, with the difference."""

    round: int
    words: str


class Chaos:
    """A run: storms and calms in turn, until the time is over."""

    def __init__(self, seed: int, haproxy: Path, log_folder: Path) -> None:
        """Prepare the machines; nothing runs yet."""
        self.model = Model(make_nodes(), CONFIG, dict(SERVICES))
        self.site = Site({node.name: (node.address, node.role) for node in self.model.nodes.values()}, haproxy)
        self.clients = Clients(self.site)
        self.folder = log_folder
        self._dice = random.Random(seed)
        self.comparisons = 0
        self.disagreements: list[Disagreement] = []
        self.agreed_after: list[float] = []

    def run(self, seconds: float) -> Storm:
        """Run for at least this time. Returns the storm with its counts."""
        with (self.folder / "actions.log").open("w") as log, contextlib.ExitStack() as stack:
            begin = time.monotonic()
            stack.enter_context(self.site)
            outside = {node.name for node in self.model.nodes.values() if node.agent == "left"}
            self.site.start(outside)
            print(f"{len(self.site.hosts)} machines booted in {time.monotonic() - begin:.0f} s", flush=True)
            storm = Storm(self.site, self.model, self._dice, log, [*changes.action.actions, *faults.action.actions])
            self._compare(0, storm)
            stack.enter_context(self.clients)
            end, number = time.monotonic() + seconds, 0
            while time.monotonic() < end:
                number += 1
                self._run_storm(storm)
                storm.calm()
                self._compare(number, storm)
            storm.wrong += [
                f"{name}: {line}"
                for name, balancer in self.site.balancers.items()
                for line in balancer.watch.log.splitlines()
                if "internal error" in line
            ]
        return storm

    def _run_storm(self, storm: Storm) -> None:
        end = time.monotonic() + STORM
        for _ in range(self._dice.randint(12, 20)):
            pause = self._dice.uniform(0, 2.5)
            storm.act()
            time.sleep(max(0.0, min(pause, end - time.monotonic())))

    def _compare(self, number: int, storm: Storm) -> None:
        """Wait until all agree, and record a disagreement if they do not."""
        begin = time.monotonic()
        words = ""
        try:
            wait_until(lambda: not self._find_difference(), AGREEMENT, 0.3)
            self.agreed_after.append(time.monotonic() - begin)
            words = self._find_wrong_answers()
        except AssertionError:
            words = self._find_difference()
        self.comparisons += 1
        if words:
            self.disagreements.append(Disagreement(number, words))
            self._keep_evidence(number)
        failed = len(self.find_unexplained(storm))
        print(
            f"round {number}: {'DISAGREE' if words else 'agree'} after {time.monotonic() - begin:.1f} s of calm; "
            f"{sum(storm.counts.values())} actions, {self.clients.requests} requests, "
            f"{len(self.clients.failures)} failed, {failed} of them without a fault",
            flush=True,
        )
        if words:
            print(words, flush=True)

    def _find_difference(self) -> str:
        """Return how model, files and running HAProxys differ; empty where they agree."""
        seen = {
            name: Seen(one.cfg.decode("utf-8", "replace"), one.find_servers())
            for name, one in self.site.balancers.items()
        }
        rows = find_differences(self.model, seen)
        if not rows and len(holders := [name for name, one in self.site.balancers.items() if one.has_address]) != 1:
            rows.append(f"  {ADDRESS} is on {holders or 'no load balancer'}")
        return "\n".join(rows)

    def _find_wrong_answers(self) -> str:
        """Return which answers differ from the model: of `lbagent status`, and of requests to each load balancer."""
        rows = []
        states = self.model.list_states()
        for name, balancer in self.site.balancers.items():
            try:
                wait_until(functools.partial(_reports, balancer, states), 60, 1)
            except AssertionError:
                found, _, confirmed = balancer.read_status_rows()
                differing = {
                    one: (states.get(one), found.get(one))
                    for one in {*states, *found}
                    if states.get(one) != found.get(one)
                }
                rows.append(f"  {name}: lbagent status: confirmed {confirmed}; (model, status): {differing}")
            for service in PORTS:
                serving = self.model.list_serving(service)
                answers = ask_directly(self.site.client, balancer.address, service, serving)
                if answers != serving:
                    rows.append(f"  {name}: {service}: answers from {sorted(answers)}, expected {sorted(serving)}")
        return "\n".join(rows)

    def _keep_evidence(self, number: int) -> None:
        """Keep logs and files of both load balancers."""
        for name, balancer in self.site.balancers.items():
            folder = self.folder / f"round-{number}-{name}"
            folder.mkdir(exist_ok=True)
            (folder / "haproxy.cfg").write_bytes(balancer.cfg)
            (folder / "watch.log").write_text(balancer.watch.log)
            (folder / "serf.log").write_text(balancer.serf.log)
            (folder / "haproxy.log").write_text(balancer.haproxy.log)
            (folder / "keepalived.log").write_text(balancer.keepalived.log)
            for words in (["lbagent", "status"], ["serf", "members"], ["lbagent", "plan"], ["lbagent", "check"]):
                done = balancer.run(*words, checked=False)
                (folder / f"{'-'.join(words)}.txt").write_text(done.stdout + done.stderr)
            for file in ("members.json", "history.jsonl", "served.json"):
                path = balancer.machine.root / "var/lib/lbagent" / file
                if path.exists():
                    (folder / file).write_bytes(path.read_bytes())

    def explain(self, failure: Failure, storm: Storm) -> str:
        """Return the reason of a failed request, or nothing if no fault explains it."""
        return explain_failure(failure, self.clients.find_log(failure.request), storm.list_faults())

    def find_unexplained(self, storm: Storm) -> list[Failure]:
        """Return the failed requests that no fault explains."""
        return [one for one in self.clients.failures if not self.explain(one, storm)]

    def find_broken_promises(self, storm: Storm) -> list[str]:
        """Return the requests that a load balancer has sent to a node whose pause it had confirmed."""
        return [
            f"{request} to {one.node} on {one.balancer}, paused at {one.begin - storm.begin:.2f} s: "
            f"{self.clients.find_log(request)}"
            for one in storm.list_promises()
            for request in self.clients.find_requests(*one)
        ]

    def report(self, storm: Storm) -> bool:
        """Print the report. Returns whether everything was as promised."""
        print("\nactions:")
        for name, count in sorted(storm.counts.items()):
            print(f"  {count:5} {name}")
        longest = max(self.agreed_after, default=0)
        print(f"comparisons: {self.comparisons}; the longest agreement took {longest:.1f} s of calm")
        print(f"disagreements: {len(self.disagreements)}")
        for number, words in self.disagreements:
            print(f"round {number}:\n{words}")
        print(f"answers that were not true: {len(storm.wrong)}")
        for words in storm.wrong:
            print(f"  {words}")
        broken = self.find_broken_promises(storm)
        print(f"confirmed pauses: {len(storm.list_promises())}; requests that reached a paused node: {len(broken)}")
        for words in broken[:50]:
            print(f"  {words}")
        unexplained = self.find_unexplained(storm)
        reasons = Counter(self.explain(one, storm) for one in self.clients.failures)
        print(f"requests: {self.clients.requests}, failed: {len(self.clients.failures)}")
        for reason, count in sorted(reasons.items()):
            print(f"  {count:5} {reason or 'failed by a change (no fault explains them)'}")
        for one in unexplained[:50]:
            when = f"at {one.begin - storm.begin:.2f} s, after {one.end - one.begin:.3f} s"
            print(f"  {when}: {one.service}: {one.reason}: {self.clients.find_log(one.request)}")
        return not (self.disagreements or storm.wrong or unexplained or broken)


def _reports(balancer: Balancer, states: dict[str, str]) -> bool:
    """Return whether `lbagent status` reports these states, confirmed by HAProxy."""
    found, _, confirmed = balancer.read_status_rows()
    return found == states and confirmed


def main(argv: Sequence[str]) -> int:
    """Run the chaos, print the report, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scenarios.chaos")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--haproxy", choices=list(binaries()), help="version; without it the seed chooses")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(100_000) if options.seed is None else options.seed
    folder = FOLDER / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    version = options.haproxy or random.Random(seed).choice(list(binaries()))
    words = f"HAProxy {version}, {options.seconds:g} s, logs in {folder}, load of the machine {os.getloadavg()[0]:.1f}"
    print(f"seed {seed}: {words}", flush=True)
    chaos = Chaos(seed, binaries()[version], folder)
    storm = chaos.run(options.seconds)
    good = chaos.report(storm)
    print(f"seed {seed}: {'all agree, no request failed by a change' if good else 'FAILED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
