"""Runs Debian's JMeter with the example's plan, and reads its results."""

from __future__ import annotations

import collections
import csv
import statistics
import subprocess
from pathlib import Path
from typing import NamedTuple

from scenarios.platform.machines import PROGRAMS
from scenarios.platform.services import EXAMPLE
from tests.helpers.real_programs import clean_environment

HOME = "/usr/share/jmeter"
JARS = f"{HOME}/bin/ApacheJMeter.jar:{HOME}/lib/*:{HOME}/lib/ext/*"
SETTINGS = {
    # JMeter does not retry a failed request.
    "httpclient4.retrycount": "0",
    "jmeter.save.saveservice.output_format": "csv",
    **{f"jmeter.save.saveservice.{name}": "false" for name in ("bytes", "latency", "thread_name", "thread_counts")},
    **{f"jmeter.save.saveservice.{name}": "false" for name in ("data_type", "response_message")},
}
USERS, PER_LOOP, ANALYSTS, PER_ROUND = 50, 10, 5, 4
"""The values of platform.jmx."""


class Result(NamedTuple):
    """The results of all requests."""

    requests: int
    failed: dict[str, int]
    seconds: float
    longest: int
    p99: float
    requests_by_label: dict[str, int]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def start(folder: Path, loops: int, rounds: int) -> subprocess.Popen[bytes]:
    """Start JMeter. Each of 50 users sends 10 requests per loop, each of 5 analysts 4 per round."""
    words = ["java", "-Xmx512m", "-cp", JARS, str(EXAMPLE / "load/DebianJMeter.java"), "-n"]
    words += [
        "-t",
        str(EXAMPLE / "load/platform.jmx"),
        "-l",
        str(folder / "jmeter.csv"),
        "-j",
        str(folder / "jmeter.log"),
    ]
    words += [f"-J{name}={value}" for name, value in SETTINGS.items()] + [f"-Jloops={loops}", f"-Jrounds={rounds}"]
    with (folder / "jmeter.out").open("wb") as out:
        env = {**clean_environment(), "PATH": PROGRAMS}
        return subprocess.Popen(words, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def count_requests(loops: int, rounds: int) -> int:
    """Return the number of requests of these loops and rounds."""
    return USERS * PER_LOOP * loops + ANALYSTS * PER_ROUND * rounds


def read_result(folder: Path) -> Result:
    """Read the results from JMeter's log."""
    started: list[int] = []
    took: list[int] = []
    each, failed = collections.Counter[str](), collections.Counter[str]()
    with (folder / "jmeter.csv").open(newline="") as file:
        for at, lasted, label, code, good in csv.reader(file):
            started.append(int(at))
            took.append(int(lasted))
            each[label] += 1
            if good != "true":
                failed[f"{label} {code}"] += 1
    seconds = (max(started) - min(started)) / 1000
    return Result(len(took), dict(failed), seconds, max(took), statistics.quantiles(took, n=100)[98], dict(each))
