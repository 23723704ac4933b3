"""Format metrics.prom in Prometheus' text format, and last.json, which keeps what the metrics count over many runs.

Each metric is a row of METRICS. A value that is unknown, or has not occurred yet, has no sample.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from lbagent.errors import LbagentError
from lbagent.membership.model import STATUSES
from lbagent.outcome import Verdict
from lbagent.roles.model import Pair

_LARGEST = 1 << 53
"""The largest integer up to which a float64, Prometheus' only number type, holds each one exactly."""

_MOST = {
    **dict.fromkeys(("run", "event", "change", "reload", "sync", "success", "sync_failing", "heartbeat"), _LARGEST),
    "status": 255,
}

_DIGEST_BITS = 53

INTERRUPTED = "interrupted"
"""The verdict of a run that Ctrl-C, SIGTERM or a defect ended."""

VERDICTS: tuple[str, ...] = (
    *dict.fromkeys(
        (*Verdict, LbagentError.outcome, *(kind.outcome for kind in LbagentError.__subclasses__()), INTERRUPTED)
    ),
)
"""Every way in which a run may end: a verdict, or the `outcome` of its error."""

RUN_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
RELOAD_BOUNDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of the buckets, in seconds."""

PAUSES_LISTED = 20
"""Paused nodes with a sample of their own, the longest pauses first: each node would make a new time series."""

Labels = Mapping[str, str]

Samples = list[tuple[Labels, int]]


class Histogram(NamedTuple):
    """Durations by bucket, counted since last.json was made."""

    counts: tuple[int, ...] = ()
    """Durations per bucket, each duration in one bucket; the last one has those above all bounds."""
    total: int = 0
    """The sum in milliseconds."""

    def add(self, seconds: float, bounds: Sequence[float]) -> Histogram:
        """Return the histogram with one more duration; a negative one, after a jump of the clock, counts as 0."""
        counts = list(self.counts) if len(self.counts) == len(bounds) + 1 else [0] * (len(bounds) + 1)
        total = self.total if len(self.counts) == len(counts) else 0
        counts[bisect_left(bounds, seconds)] += 1
        return Histogram((*counts,), total + max(0, round(seconds * 1000)))


class PeerCounts(NamedTuple):
    """The other load balancers at the last sync that could ask Serf."""

    expected: int
    """Listed by Serf."""
    seen: int
    """Answered the query of that sync."""
    differing: int
    """Had other managed lines when they last answered."""


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
    heartbeat: int | None = None
    """When the daemon last ended a run."""
    runs: Mapping[str, int] = MappingProxyType({})
    """Number of runs by verdict."""
    ended: Mapping[str, int] = MappingProxyType({})
    """End of the last run by verdict, in epoch seconds."""
    run_seconds: Histogram = Histogram()
    reload_seconds: Histogram = Histogram()
    peers: PeerCounts | None = None
    """None before the first sync."""


def serialize_last(last: Last) -> bytes:
    """Serialize `last` as one JSON object."""
    return json.dumps({**last._asdict(), "runs": dict(last.runs), "ended": dict(last.ended)}).encode()


def parse_last(content: bytes) -> Last:
    """Parse what `serialize_last` wrote; missing or invalid fields get their defaults.

    Raises ValueError, AttributeError or RecursionError where `content` is not a JSON object.
    """
    found = json.loads(content)
    # Prometheus stores numbers as float64. A larger one would make it reject the whole file.
    sound = {field: found[field] for field, most in _MOST.items() if _is_number(found.get(field), most)}
    texts = {field: found[field] for field in ("words", "sync_words") if isinstance(found.get(field), str)}
    return Last(
        **sound,
        **texts,
        reload_good=found.get("reload_good") is not False,
        runs=_parse_by_verdict(found.get("runs")),
        ended=_parse_by_verdict(found.get("ended")),
        run_seconds=_parse_histogram(found.get("run_seconds"), RUN_BOUNDS),
        reload_seconds=_parse_histogram(found.get("reload_seconds"), RELOAD_BOUNDS),
        peers=_parse_peers(found.get("peers")),
    )


def _is_number(value: object, most: int = _LARGEST) -> bool:
    return type(value) is int and 0 <= value <= most


def _parse_by_verdict(found: Any) -> dict[str, int]:  # noqa: ANN401  # JSON
    if not isinstance(found, dict):
        return {}
    return {verdict: found[verdict] for verdict in VERDICTS if _is_number(found.get(verdict))}


def _parse_histogram(found: Any, bounds: Sequence[float]) -> Histogram:  # noqa: ANN401  # JSON
    match found:
        case [[*counts], total] if len(counts) == len(bounds) + 1 and all(map(_is_number, (*counts, total))):
            return Histogram((*counts,), total)
    return Histogram()


def _parse_peers(found: Any) -> PeerCounts | None:  # noqa: ANN401  # JSON
    match found:
        case [expected, seen, differing] if all(map(_is_number, (expected, seen, differing))):
            return PeerCounts(expected, seen, differing)
    return None


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
    paused: int | None = None
    """Present members that are paused."""
    pauses: Mapping[str, int] | None = None
    """Start of each pause of a present member, in epoch seconds, by node; a pause by the tag has none."""
    digest: str | None = None
    """Digest of the managed lines, in hexadecimal."""
    old_workers: int | None = None
    """None while HAProxy does not run."""
    blocked: int = 0
    """Lines whose removal the safety guard blocked."""
    pending: int = 0
    oldest_event: int | None = None
    """When the oldest stored event was stored, in epoch seconds."""
    bad: int = 0
    daemon: bool | None = None
    """Whether `lbagent watch` runs."""


class Metric(NamedTuple):
    """One metric of metrics.prom."""

    name: str
    words: str
    """Its help text."""
    value: Callable[[Numbers], Samples | Histogram | int | None]
    kind: str = "gauge"
    bounds: Sequence[float] = ()
    """Upper bounds of the buckets of a histogram, in seconds."""


def format_metrics(numbers: Numbers) -> bytes:
    """Return the content of metrics.prom."""
    lines: list[str] = []
    for metric in METRICS:
        lines += (f"# HELP {metric.name} {metric.words}", f"# TYPE {metric.name} {metric.kind}")
        value = metric.value(numbers)
        if isinstance(value, Histogram):
            lines += _format_histogram(metric.name, value, metric.bounds)
        else:
            lines += [_format_sample(metric.name, labels, number) for labels, number in _list_samples(value)]
    return ("\n".join(lines) + "\n").encode()


def convert_digest(digest: str) -> int:
    """Return the first 53 bits of a hexadecimal digest: a number that Prometheus stores exactly."""
    return int(digest, 16) >> (4 * len(digest) - _DIGEST_BITS)


def _list_samples(value: Samples | int | None) -> Samples:
    if isinstance(value, list):
        return value
    return [] if value is None else [({}, value)]


def _format_histogram(name: str, found: Histogram, bounds: Sequence[float]) -> list[str]:
    counts = found.counts or [0] * (len(bounds) + 1)
    lines, so_far = [], 0
    for bound, count in zip((*(f"{bound:g}" for bound in bounds), "+Inf"), counts, strict=True):
        so_far += count
        lines.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
    return [*lines, f"{name}_sum {found.total / 1000:.3f}", f"{name}_count {so_far}"]


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


def _sample_servers(numbers: Numbers) -> Samples:
    return [
        ({"section": pair.section, "service": pair.service, "state": state}, count)
        for pair, states in (numbers.servers or {}).items()
        for state, count in states.items()
    ]


def _sample_members(numbers: Numbers) -> Samples:
    known = numbers.members
    return [] if known is None else [({"status": status}, known.get(status, 0)) for status in sorted(STATUSES)]


def _sample_sync_success(numbers: Numbers) -> int | None:
    last = numbers.last
    return None if last.sync is None and last.sync_failing is None else int(last.sync_failing is None)


def _sample_runs(numbers: Numbers) -> Samples:
    # Zeros too: a counter that begins with its first increase hides it from `increase()`.
    return [({"verdict": verdict}, numbers.last.runs.get(verdict, 0)) for verdict in VERDICTS]


def _count_unserved(numbers: Numbers) -> int | None:
    if numbers.servers is None:
        return None
    return sum(not states.get("in") and any(states.values()) for states in numbers.servers.values())


def _sample_pauses(numbers: Numbers) -> Samples:
    oldest = sorted((numbers.pauses or {}).items(), key=lambda one: (one[1], one[0]))
    return [({"node": node}, since) for node, since in oldest[:PAUSES_LISTED]]


METRICS: tuple[Metric, ...] = (
    Metric("lbagent_build_info", "The version of lbagent, as a label.", lambda one: [({"version": one.version}, 1)]),
    Metric("lbagent_servers", "Servers by section and service of roles.yml, and by state.", _sample_servers),
    Metric(
        "lbagent_services_without_server",
        "Pairs of section and service that have servers, none of which is in.",
        _count_unserved,
    ),
    Metric("lbagent_members", "Members by their status in Serf.", _sample_members),
    Metric("lbagent_quarantined_nodes", "Nodes whose lines HAProxy refuses.", lambda one: one.quarantined),
    Metric("lbagent_paused_nodes", "Nodes in the cluster that are paused.", lambda one: one.paused),
    Metric(
        "lbagent_pause_start_timestamp_seconds",
        f"Start of the pause of a node in the cluster; the {PAUSES_LISTED} oldest pauses.",
        _sample_pauses,
    ),
    Metric(
        "lbagent_blocked_removals",
        "Lines whose removal the safety guard blocked in the last run.",
        lambda one: one.blocked,
    ),
    Metric("lbagent_pending_events", "Events that are stored and not applied yet.", lambda one: one.pending),
    Metric(
        "lbagent_oldest_pending_event_timestamp_seconds",
        "When the oldest of them was stored.",
        lambda one: one.oldest_event,
    ),
    Metric("lbagent_bad_records", "Files in spool/bad, which are not events.", lambda one: one.bad),
    Metric(
        "lbagent_managed_lines_digest",
        "Checksum of the managed lines in haproxy.cfg: equal lines, equal number.",
        lambda one: None if one.digest is None else convert_digest(one.digest),
    ),
    Metric("lbagent_last_run_timestamp_seconds", "End of the last run.", lambda one: one.last.run),
    Metric("lbagent_last_run_exit_status", "Exit status of the last run.", lambda one: one.last.status),
    Metric(
        "lbagent_last_success_timestamp_seconds", "End of the last run with status 0.", lambda one: one.last.success
    ),
    Metric("lbagent_runs_total", "Runs by verdict.", _sample_runs, "counter"),
    Metric(
        "lbagent_last_run_verdict_timestamp_seconds",
        "End of the last run by verdict.",
        lambda one: [({"verdict": verdict}, at) for verdict, at in one.last.ended.items()],
    ),
    Metric(
        "lbagent_run_duration_seconds",
        "Duration of runs, from the lock to the end.",
        lambda one: one.last.run_seconds,
        "histogram",
        RUN_BOUNDS,
    ),
    Metric("lbagent_last_event_timestamp_seconds", "Arrival of the newest applied event.", lambda one: one.last.event),
    Metric(
        "lbagent_last_change_timestamp_seconds",
        "When lbagent last changed haproxy.cfg.",
        lambda one: one.last.change,
    ),
    Metric(
        "lbagent_last_reload_success",
        "1 if the last reload was confirmed, 0 if it failed or was not confirmed.",
        lambda one: None if one.last.reload is None else int(one.last.reload_good),
    ),
    Metric("lbagent_last_reload_timestamp_seconds", "End of the last reload.", lambda one: one.last.reload),
    Metric(
        "lbagent_reload_duration_seconds",
        "Duration of reloads, from the request to the confirmation or the failure.",
        lambda one: one.last.reload_seconds,
        "histogram",
        RELOAD_BOUNDS,
    ),
    Metric(
        "lbagent_old_workers",
        "HAProxy workers from before a reload that still ran at the end of the last run.",
        lambda one: one.old_workers,
    ),
    Metric("lbagent_last_sync_timestamp_seconds", "End of the last successful sync.", lambda one: one.last.sync),
    Metric(
        "lbagent_sync_age_seconds",
        "Age of the last successful sync at the end of the last run.",
        lambda one: None if one.last.sync is None else max(0, one.now - one.last.sync),
    ),
    Metric("lbagent_last_sync_success", "1 if the last sync succeeded, 0 if it failed.", _sample_sync_success),
    Metric(
        "lbagent_peers_expected",
        "Other load balancers in Serf's list, at the last sync that could ask Serf.",
        lambda one: one.last.peers and one.last.peers.expected,
    ),
    Metric(
        "lbagent_peers_seen",
        "Other load balancers that answered at that sync.",
        lambda one: one.last.peers and one.last.peers.seen,
    ),
    Metric(
        "lbagent_peers_differing",
        "Other load balancers that had other managed lines when they last answered.",
        lambda one: one.last.peers and one.last.peers.differing,
    ),
    Metric(
        "lbagent_daemon_running",
        "1 if `lbagent watch` ran when this was written.",
        lambda one: None if one.daemon is None else int(one.daemon),
    ),
    Metric(
        "lbagent_daemon_heartbeat_timestamp_seconds",
        "End of the last run of `lbagent watch`.",
        lambda one: one.last.heartbeat,
    ),
)
