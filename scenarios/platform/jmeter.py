"""Debian's JMeter on the example's plan, and what it says of each request."""

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
    # A request that fails is a request that failed.
    "httpclient4.retrycount": "0",
    "jmeter.save.saveservice.output_format": "csv",
    **{f"jmeter.save.saveservice.{name}": "false" for name in ("bytes", "latency", "thread_name", "thread_counts")},
    **{f"jmeter.save.saveservice.{name}": "false" for name in ("data_type", "response_message")},
}
USERS, PER_LOOP, ANALYSTS, PER_ROUND = 50, 10, 5, 4
"""As platform.jmx has them."""


class Result(NamedTuple):
    """What became of the requests."""

    requests: int
    failed: dict[str, int]
    seconds: float
    longest: int
    p99: float
    each: dict[str, int]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def start(folder: Path, loops: int, rounds: int) -> subprocess.Popen[bytes]:
    """JMeter at work: each of 50 users asks ten times a loop, each of 5 analysts four times a round."""
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


def asked(loops: int, rounds: int) -> int:
    """How many requests that comes to."""
    return USERS * PER_LOOP * loops + ANALYSTS * PER_ROUND * rounds


def result(folder: Path) -> Result:
    """What stands in its log."""
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
