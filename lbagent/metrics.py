"""Format metrics.prom in Prometheus' text format.

Each metric is a row of METRICS. A value that is unknown, or has not occurred yet, has no sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lbagent.membership.model import STATUSES
from lbagent.roles.model import Pair

_MOST = {
    **dict.fromkeys(("run", "event", "change", "reload", "sync", "success", "sync_failing"), 1 << 53),
    "status": 255,
}


_DIGEST_BITS = 53
"""The largest number of bits that a float64, Prometheus' only number type, holds exactly."""

Labels = Mapping[str, str]

Samples = list[tuple[Labels, int]]


class Last(NamedTuple):
    """The time of the last run, event, change, reload and sync, in epoch seconds; None where there was none yet."""

    run: int | None = None
    status: int = 0
    """Exit status of the last run."""
    event: int | None = None
    """Arrival of the newest event that was applied to membership."""
    change: int | None = None
    """When lbagent last changed haproxy.cfg."""
    reload: int | None = None
    reload_good: bool = True
    sync: int | None = None
    success: int | None = None
    """When a run last ended with exit status 0."""
    words: str = ""
    """How the last run ended, as one sentence."""
    sync_failing: int | None = None
    """Since when syncs fail; None while they succeed."""
    sync_words: str = ""
    """Why the last sync failed."""


def serialize_last(last: Last) -> bytes:
    """Serialize `last` as one JSON object."""
    return json.dumps(last._asdict()).encode()


def parse_last(content: bytes) -> Last:
    """Parse what `serialize_last` wrote; missing or invalid fields get their defaults.

    Raises ValueError, AttributeError or RecursionError where `content` is not a JSON object.
    """
    found = json.loads(content)
    # Prometheus stores numbers as float64. A larger one would make it reject the whole file.
    sound = {field: found[field] for field, most in _MOST.items() if _is_number(found.get(field), most)}
    texts = {field: found[field] for field in ("words", "sync_words") if isinstance(found.get(field), str)}
    return Last(**sound, **texts, reload_good=found.get("reload_good") is not False)


def _is_number(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


class Numbers(NamedTuple):
    """The state of one load balancer at the end of a run."""

    version: str
    now: int
    """Epoch seconds."""
    last: Last
    servers: Mapping[Pair, Mapping[str, int]] | None = None
    """Counts by state; None while roles.yml or haproxy.cfg cannot be read."""
    members: Mapping[str, int] | None = None
    """Counts by Serf status; None while members.json cannot be read."""
    quarantined: int | None = None
    digest: str | None = None
    """Digest of the managed lines, in hexadecimal."""
    old_workers: int | None = None
    """None while HAProxy does not run."""
    blocked: int = 0
    """Lines whose removal the safety guard blocked."""
    pending: int = 0
    bad: int = 0
    daemon: bool | None = None
    """Whether `lbagent watch` runs."""


def format_metrics(numbers: Numbers) -> bytes:
    """Return the content of metrics.prom."""
    lines: list[str] = []
    for name, words, value in METRICS:
        lines += (f"# HELP {name} {words}", f"# TYPE {name} gauge")
        lines += [_format_sample(name, labels, number) for labels, number in _list_samples(value(numbers))]
    return ("\n".join(lines) + "\n").encode()


def convert_digest(digest: str) -> int:
    """Return the first 53 bits of a hexadecimal digest: a number that Prometheus stores exactly."""
    return int(digest, 16) >> (4 * len(digest) - _DIGEST_BITS)


def _list_samples(value: Samples | int | None) -> Samples:
    if isinstance(value, list):
        return value
    return [] if value is None else [({}, value)]


def _format_sample(name: str, labels: Labels, value: int) -> str:
    # A label value may hold anything; backslash, newline and quote have to be escaped.
    words = ",".join([f'{label}="{_escape_label(text)}"' for label, text in labels.items()])
    return f"{name}{{{words}}} {value}" if words else f"{name} {value}"


def _escape_label(text: str) -> str:
    if text.isalnum():  # nearly all are
        return text
    # Bytes that are not UTF-8 (lone surrogates here) get distinct escapes: Prometheus rejects two equal samples.
    printable = text.encode("utf-8", "backslashreplace").decode()
    return printable.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _sample_build(numbers: Numbers) -> Samples:
    return [({"version": numbers.version}, 1)]


def _sample_servers(numbers: Numbers) -> Samples:
    return [
        ({"section": pair.section, "service": pair.service, "state": state}, count)
        for pair, states in (numbers.servers or {}).items()
        for state, count in states.items()
    ]


def _sample_members(numbers: Numbers) -> Samples:
    known = numbers.members
    return [] if known is None else [({"status": status}, known.get(status, 0)) for status in sorted(STATUSES)]


def _sample_reload_success(numbers: Numbers) -> int | None:
    return None if numbers.last.reload is None else int(numbers.last.reload_good)


def _sample_sync_success(numbers: Numbers) -> int | None:
    last = numbers.last
    return None if last.sync is None and last.sync_failing is None else int(last.sync_failing is None)


def _sample_sync_age(numbers: Numbers) -> int | None:
    return None if numbers.last.sync is None else max(0, numbers.now - numbers.last.sync)


METRICS: tuple[tuple[str, str, Callable[[Numbers], Samples | int | None]], ...] = (
    ("lbagent_build_info", "The version of lbagent, as a label.", _sample_build),
    ("lbagent_servers", "Servers by section and service of roles.yml, and by state.", _sample_servers),
    ("lbagent_members", "Members by what Serf says of them.", _sample_members),
    ("lbagent_quarantined_nodes", "Nodes whose lines HAProxy refuses.", lambda one: one.quarantined),
    ("lbagent_held_back_lines", "Lines whose removal the guard refused in the last run.", lambda one: one.blocked),
    ("lbagent_pending_events", "Events stored and not yet folded into membership.", lambda one: one.pending),
    ("lbagent_bad_records", "Files that were no events, set aside in spool/bad.", lambda one: one.bad),
    (
        "lbagent_managed_lines_digest",
        "Checksum of the managed lines in haproxy.cfg: equal lines, equal number.",
        lambda one: None if one.digest is None else convert_digest(one.digest),
    ),
    ("lbagent_last_run_timestamp_seconds", "When the last run ended.", lambda one: one.last.run),
    ("lbagent_last_run_exit_status", "Exit status of the last run.", lambda one: one.last.status),
    (
        "lbagent_last_event_timestamp_seconds",
        "When the newest event folded so far arrived.",
        lambda one: one.last.event,
    ),
    ("lbagent_last_change_timestamp_seconds", "When lbagent last changed haproxy.cfg.", lambda one: one.last.change),
    (
        "lbagent_last_reload_success",
        "1 where HAProxy was seen to take the last change over by a reload, 0 where not.",
        _sample_reload_success,
    ),
    (
        "lbagent_last_reload_timestamp_seconds",
        "When HAProxy was last to take a change over.",
        lambda one: one.last.reload,
    ),
    (
        "lbagent_old_workers",
        "HAProxy workers of before a reload that went on when the last run ended.",
        lambda one: one.old_workers,
    ),
    ("lbagent_last_sync_timestamp_seconds", "When the last sync ended.", lambda one: one.last.sync),
    ("lbagent_sync_age_seconds", "Age of the last sync when this was written.", _sample_sync_age),
    ("lbagent_last_sync_success", "1 where the last sync could ask Serf, 0 where syncs fail.", _sample_sync_success),
    ("lbagent_last_success_timestamp_seconds", "When a run last ended with 0.", lambda one: one.last.success),
    (
        "lbagent_daemon_running",
        "1 where `lbagent watch` ran when this was written.",
        lambda one: None if one.daemon is None else int(one.daemon),
    ),
)
