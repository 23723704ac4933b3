"""python -m load.traced FILE: `lbagent watch` that appends the begin and end of each step to FILE.

One line per step: its name, and both times in epoch seconds.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from lbagent import cli
from lbagent.daemon.daemon import Daemon
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.instance import Haproxy
from lbagent.run import transaction
from lbagent.run.engine import Engine
from lbagent.run.rollout import Rollout
from lbagent.serf.raw_event import parse_record
from lbagent.state.spool import Spool

STEPS = (
    (Daemon, "_run_round", "round"),
    (Engine, "apply_stored_events", "membership"),
    (transaction, "make_plan", "plan"),
    (Rollout, "withdraw_removed_servers", "withdraw"),
    (Haproxy, "find_refusal", "haproxy -c"),
    (ConfigSnapshot, "swap", "swap"),
    (Rollout, "apply_at_runtime", "roll out"),
)
"""Owner and name of each function, and the name of its step."""


def main(path: str) -> int:
    """Run the daemon to its end."""
    with open(path, "a", encoding="utf-8", buffering=1) as file:
        for owner, name, step in STEPS:
            setattr(owner, name, _trace(getattr(owner, name), step, file))
        setattr(Spool, "read", _trace_records(Spool.read, file))  # noqa: B010  # mypy refuses the assignment
        return cli.main(["watch"])


def _trace(function: Callable[..., Any], step: str, file: TextIO) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced(*args: Any, **options: Any) -> Any:  # noqa: ANN401  # those of the function
        began = time.time()
        try:
            return function(*args, **options)
        finally:
            file.write(f"{step}\t{began}\t{time.time()}\n")

    return traced


def _trace_records(read: Callable[[Spool], Any], file: TextIO) -> Callable[[Spool], Any]:
    """Write when `handle` has read each event, and when its record got its final name: then it is stored."""

    @functools.wraps(read)
    def traced(spool: Spool) -> Any:  # noqa: ANN401  # that of the function
        stored = {name: os.stat(os.path.join(spool.folder, name)).st_ctime for name in spool.list_names()}
        records, warnings = read(spool)
        for record in records:
            at = parse_record(record.content).at / 1000
            file.write(f"event\t{at}\t{at}\nstore\t{stored[record.name]}\t{stored[record.name]}\n")
        return records, warnings

    return traced


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
