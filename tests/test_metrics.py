"""metrics.prom has the right samples for a known state and after every result of a run, and escapes foreign names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lbagent
from lbagent import metrics
from lbagent.haproxy.config import Document, digest_lines
from lbagent.membership.model import FAILED, Member, Quarantine, count_paused, find_pause_starts
from lbagent.metrics import RELOAD_BOUNDS, RUN_BOUNDS, Histogram, Last, Numbers, PeerCounts
from lbagent.planning import lines as planning_lines
from lbagent.planning.plan import PlanOptions
from lbagent.roles.model import Pair, Roles
from lbagent.settings import Paths
from lbagent.state.store import Store
from tests.helpers import builders as building
from tests.helpers.builders import NOW, POISON, membership_of, nearly_valid, parse_roles_text, paused_member, plan_for
from tests.helpers.faults import fill_disk, mount_small_disk, set_reload_command
from tests.helpers.real_programs import RELOADING, ROLES, Haproxy, LoadBalancer, member_line

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "metrics.md"

DIGEST = "9600781907083eee"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")


def check_with_promtool(content: bytes) -> None:
    """Fail unless promtool accepts the text without a warning."""
    done = subprocess.run(["promtool", "check", "metrics"], input=content, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# A known state


def test_a_known_state_has_these_samples() -> None:
    last = Last(
        NOW,
        3,
        NOW - 5,
        NOW - 4,
        NOW - 3,
        reload_good=False,
        sync=NOW - 60,
        success=NOW - 90,
        sync_failing=NOW - 30,
        heartbeat=NOW - 1,
        runs={"applied": 2, "rolled back": 1},
        ended={"applied": NOW - 4, "rolled back": NOW},
        run_seconds=Histogram().add(0.05, RUN_BOUNDS).add(0.051, RUN_BOUNDS).add(61, RUN_BOUNDS),
        reload_seconds=Histogram().add(1.2345, RELOAD_BOUNDS),
        peers=PeerCounts(3, 2, 1),
    )
    numbers = Numbers(
        "1.2.3",
        NOW,
        last,
        {
            Pair("lb", "iis"): {"in": 7, "paused": 1, "failed": 2, "quarantined": 0},
            Pair("lb", "wsa"): {"in": 0, "paused": 1, "failed": 0, "quarantined": 0},
            Pair("lb", "new"): {"in": 0, "paused": 0, "failed": 0, "quarantined": 0},
        },
        {"alive": 9, "failed": 2},
        quarantined=0,
        paused=3,
        pauses={"web02": NOW - 100, "web01": NOW - 90},
        digest=DIGEST,
        blocked=4,
        pending=5,
        oldest_event=NOW - 7,
        bad=6,
        daemon=True,
    )

    assert parse_samples(metrics.format_metrics(numbers)) == {
        'build_info{version="1.2.3"}': "1",
        **{
            f'servers{{section="lb",service="{service}",state="{state}"}}': count
            for service, row in {"iis": "7120", "wsa": "0100", "new": "0000"}.items()
            for state, count in zip(("in", "paused", "failed", "quarantined"), row, strict=True)
        },
        "services_without_server": "1",
        'members{status="alive"}': "9",
        'members{status="failed"}': "2",
        'members{status="left"}': "0",
        'members{status="lost"}': "0",
        'members{status="unknown"}': "0",
        "quarantined_nodes": "0",
        "paused_nodes": "3",
        'pause_start_timestamp_seconds{node="web02"}': "1699999900",
        'pause_start_timestamp_seconds{node="web01"}': "1699999910",
        "blocked_removals": "4",
        "pending_events": "5",
        "oldest_pending_event_timestamp_seconds": "1699999993",
        "bad_records": "6",
        "managed_lines_digest": "5277720290320647",
        "last_run_timestamp_seconds": "1700000000",
        "last_run_exit_status": "3",
        "last_success_timestamp_seconds": "1699999910",
        **{
            f'runs_total{{verdict="{verdict}"}}': {"applied": "2", "rolled back": "1"}.get(verdict, "0")
            for verdict in metrics.VERDICTS
        },
        'last_run_verdict_timestamp_seconds{verdict="applied"}': "1699999996",
        'last_run_verdict_timestamp_seconds{verdict="rolled back"}': "1700000000",
        'run_duration_seconds_bucket{le="0.05"}': "1",
        'run_duration_seconds_bucket{le="0.1"}': "2",
        'run_duration_seconds_bucket{le="0.25"}': "2",
        'run_duration_seconds_bucket{le="0.5"}': "2",
        'run_duration_seconds_bucket{le="1"}': "2",
        'run_duration_seconds_bucket{le="2.5"}': "2",
        'run_duration_seconds_bucket{le="5"}': "2",
        'run_duration_seconds_bucket{le="10"}': "2",
        'run_duration_seconds_bucket{le="30"}': "2",
        'run_duration_seconds_bucket{le="60"}': "2",
        'run_duration_seconds_bucket{le="+Inf"}': "3",
        "run_duration_seconds_sum": "61.101",
        "run_duration_seconds_count": "3",
        "last_event_timestamp_seconds": "1699999995",
        "last_change_timestamp_seconds": "1699999996",
        "last_reload_success": "0",
        "last_reload_timestamp_seconds": "1699999997",
        'reload_duration_seconds_bucket{le="0.1"}': "0",
        'reload_duration_seconds_bucket{le="0.25"}': "0",
        'reload_duration_seconds_bucket{le="0.5"}': "0",
        'reload_duration_seconds_bucket{le="1"}': "0",
        'reload_duration_seconds_bucket{le="2.5"}': "1",
        'reload_duration_seconds_bucket{le="5"}': "1",
        'reload_duration_seconds_bucket{le="10"}': "1",
        'reload_duration_seconds_bucket{le="30"}': "1",
        'reload_duration_seconds_bucket{le="+Inf"}': "1",
        "reload_duration_seconds_sum": "1.234",
        "reload_duration_seconds_count": "1",
        "last_sync_timestamp_seconds": "1699999940",
        "sync_age_seconds": "60",
        "last_sync_success": "0",
        "peers_expected": "3",
        "peers_seen": "2",
        "peers_differing": "1",
        "daemon_running": "1",
        "daemon_heartbeat_timestamp_seconds": "1699999999",
    }


def parse_samples(content: bytes) -> dict[str, str]:
    """Return the samples by name without prefix; fails unless Prometheus can read them."""
    if shutil.which("promtool"):
        check_with_promtool(content)
    found = (line.rpartition(" ") for line in content.decode().splitlines() if not line.startswith("#"))
    return {name.removeprefix("lbagent_"): value for name, _, value in found}


def test_an_event_that_has_not_happened_has_no_sample() -> None:
    found = parse_samples(metrics.format_metrics(Numbers("1.2.3", NOW, Last(NOW))))

    assert {name: value for name, value in found.items() if value not in ("0", "0.000")} == {
        'build_info{version="1.2.3"}': "1",
        "last_run_timestamp_seconds": str(NOW),
    }
    assert {re.split(r"\{|_bucket|_sum|_count$", name)[0] for name, value in found.items() if value == "0"} == {
        "blocked_removals",
        "pending_events",
        "bad_records",
        "last_run_exit_status",
        "runs_total",
        "run_duration_seconds",
        "reload_duration_seconds",
    }


def test_only_the_oldest_pauses_have_a_sample_of_their_own() -> None:
    pauses = {f"web{number:03}": NOW - number for number in range(500)}
    found = parse_samples(metrics.format_metrics(Numbers("1", NOW, Last(NOW), paused=500, pauses=pauses)))

    assert [name for name in found if name.startswith("pause_start")] == [
        f'pause_start_timestamp_seconds{{node="web{number}"}}' for number in range(499, 499 - metrics.PAUSES_LISTED, -1)
    ]
    assert found["paused_nodes"] == "500"


def test_negative_durations_and_changed_buckets_keep_histograms_valid() -> None:
    assert Histogram().add(-3.0, (1, 2)) == Histogram((1, 0, 0), 0)
    assert Histogram((5, 5), 9_000).add(1.5, (1, 2)) == Histogram((0, 1, 0), 1_500)


@given(st.lists(st.text("web0123456789 ")))
def test_a_digest_is_a_number_that_a_float64_holds(lines: list[str]) -> None:
    number = metrics.convert_digest(digest_lines([("listen farm", lines)]))

    assert 0 <= number < 2**53
    assert int(float(number)) == number


def test_digests_that_differ_in_their_first_digits_differ_as_numbers() -> None:
    one, other = digest_lines([("farm", ["server a"])]), digest_lines([("farm", ["server b"])])

    assert metrics.convert_digest(one) != metrics.convert_digest(other)


# Hostile names

LABEL = r'[a-z]+="(?:[^"\\\n]|\\["\\n])*"'
LINE = re.compile(rf"# (?:HELP|TYPE) [a-z_]+ .+|[a-z_]+(?:\{{{LABEL}(?:,{LABEL})*\}})? -?[0-9.]+")


def write_hostile_metrics(*names: str) -> bytes:
    """Return the metrics of pairs with these names."""
    pairs = {Pair(name, name): {"in": 1} for name in names}
    numbers = Numbers(names[0], NOW, Last(NOW), pairs, {}, 0, pauses=dict.fromkeys(names, NOW))
    return metrics.format_metrics(numbers)


@given(nearly_valid(st.just("section")))
def test_a_hostile_name_cannot_leave_its_label(name: str) -> None:
    lines = write_hostile_metrics(name).decode().removesuffix("\n").split("\n")

    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert len(lines) == len(write_hostile_metrics("plain").decode().removesuffix("\n").split("\n"))


def test_names_that_are_not_utf_8_stay_distinct() -> None:
    text = write_hostile_metrics("a\udcfe", "a\udcff", "a?").decode()

    found = re.findall(r'^lbagent_servers\{section="([^"]*)",', text, re.MULTILINE)
    assert found == [r"a\\udcfe", r"a\\udcff", "a?"]


@needs_promtool
def test_prometheus_can_read_hostile_names() -> None:
    check_with_promtool(write_hostile_metrics(*POISON, "\\", "\\n", '"} 1\nevil 2\n', "ends in \\"))


# States of servers

FARM = "backend farm\n    # additional-lb-iis-server\n    # additional-lb-wsa-server\nbackend lost\n"
TWO = parse_roles_text("""
    services: {iis: {port: 80}, wsa: {port: 81}, none_yet: {port: 82}}
    roles:
      web: {lb: [iis], on_failed: remove}
      app: {lb: [iis, wsa], other: [none_yet]}
""")


def count_servers(*members: Member, roles: Roles = TWO) -> dict[str, tuple[int, ...]]:
    """Return the numbers of servers in, paused, failed and quarantined, by pair."""
    membership = membership_of(*members)
    plan = plan_for(FARM, roles, membership, PlanOptions(kept=frozenset()))
    found = planning_lines.count_servers(plan.managed_lines, roles, membership)
    (text,) = plan.after
    assert (
        planning_lines.count_servers(planning_lines.list_managed_lines(Document([("", text)])), roles, membership)
        == found
    )
    return {pair.middle: tuple(states[state] for state in planning_lines.STATES) for pair, states in found.items()}


def test_a_pair_without_a_marker_has_no_lines() -> None:
    refused = building.member("app2", "10.0.1.2", "app", quarantine=Quarantine(NOW, "why", "key"))

    assert count_servers(building.member("app1", "10.0.1.1", "app", status=FAILED), refused) == {
        "lb-iis": (0, 0, 1, 1),
        "lb-wsa": (0, 0, 1, 1),
        "other-none_yet": (0, 0, 0, 0),
    }


STRICT = """
    services: {iis: {port: 80}, wsa: {port: 81}}
    roles:
      web: {lb: [iis], on_failed: REMOVE, networks: [10.0.0.0/16]}
      app: {lb: [iis, wsa]}
"""


@pytest.mark.parametrize(
    ("on_failed", "address", "counts"),
    [
        ("remove", "10.0.0.2", (1, 0, 1, 0)),
        ("keep", "10.0.0.2", (1, 0, 1, 0)),
        ("remove", "10.9.0.2", (1, 0, 0, 0)),
        ("keep", "10.9.0.2", (1, 0, 0, 0)),
    ],
)
def test_a_failed_node_that_may_have_no_line_is_not_counted(on_failed: str, address: str, counts: object) -> None:
    roles = parse_roles_text(STRICT.replace("REMOVE", on_failed))
    web = building.member("web1", "10.0.0.1"), building.member("web2", address, status=FAILED)

    assert count_servers(*web, roles=roles)["lb-iis"] == counts


def test_a_failed_node_whose_line_is_missing_is_not_counted() -> None:
    roles = parse_roles_text(STRICT.replace("REMOVE", "keep"))
    membership = membership_of(building.member("web1", "10.0.0.1", status=FAILED))
    lines = planning_lines.list_managed_lines(Document([("", FARM)]))

    assert planning_lines.count_servers(lines, roles, membership)[Pair("lb", "iis")]["failed"] == 0
    removing = parse_roles_text(STRICT.replace("REMOVE", "remove"))
    assert planning_lines.count_servers(lines, removing, membership)[Pair("lb", "iis")]["failed"] == 1


def test_only_pauses_of_nodes_in_the_cluster_count() -> None:
    there, failed = (
        paused_member(building.member("web1", "10.0.0.1")),
        paused_member(building.member("web2", "10.0.0.2")),
    )
    left = paused_member(building.member("web3", "10.0.0.3"))._replace(status="left")
    tagged = building.member("web4", "10.0.0.4", tags={"lbagent": "paused"})
    namesake = building.member("web5", "10.0.0.1")
    membership = membership_of(there, failed._replace(status=FAILED), left, tagged, namesake)

    assert count_paused(membership) == 4  # the pause of web1 applies to its address
    assert find_pause_starts(membership) == {
        name: pause.since for name in ("web1", "web2") if (pause := membership.members[name].pause)
    }


def test_every_server_is_counted_in_exactly_one_state() -> None:
    web = [building.member(f"web{number}", f"10.0.0.{number}") for number in range(1, 5)]
    app = [building.member(f"app{number}", f"10.0.1.{number}", "app") for number in range(1, 5)]
    failed = app[1]._replace(status=FAILED)
    refused = app[2]._replace(quarantine=Quarantine(NOW, "why", "key"))

    assert count_servers(*web[:3], paused_member(web[3]), app[0], failed, refused, paused_member(app[3])) == {
        "lb-iis": (4, 2, 1, 1),
        "lb-wsa": (1, 1, 1, 1),
        "other-none_yet": (0, 0, 0, 0),
    }


def test_a_failed_node_that_was_removed_counts_as_failed_and_a_paused_one_as_paused() -> None:
    web = [building.member(f"web{number}", f"10.0.0.{number}") for number in range(1, 4)]
    gone, paused = web[1]._replace(status=FAILED), paused_member(web[2]._replace(status=FAILED))

    assert count_servers(web[0], gone, paused)["lb-iis"] == (1, 1, 1, 0)


def test_pairs_without_a_node_are_zeros() -> None:
    assert count_servers() == {"lb-iis": (0, 0, 0, 0), "lb-wsa": (0, 0, 0, 0), "other-none_yet": (0, 0, 0, 0)}


# last.json


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"[" * 100_000,
        b'{"sync": "x", "event": 1e999}',
        b'{"runs": []}',
        b'{"runs": {"evil": 1}, "ended": {"applied": true}, "run_seconds": [[1], 2], "peers": [1, 2]}',
    ],
)
def test_a_damaged_last_json_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.json").write_bytes(content)

    assert Store(Paths(str(tmp_path))).load_last() == Last()


def test_valid_fields_of_last_json_are_kept() -> None:
    assert metrics.parse_last(b'{"sync": 7, "event": "x", "reload_good": 1, "later": 2}') == Last(sync=7)


KINDS = ("run", "event", "change", "reload", "sync", "success", "sync_failing")
WHEN = {kind: st.none() | st.integers(0, 1 << 53) for kind in KINDS}


COUNT = st.integers(0, 1 << 53)
BY_VERDICT = st.dictionaries(st.sampled_from(metrics.VERDICTS), COUNT)
TOTALS = {
    "heartbeat": st.none() | COUNT,
    "runs": BY_VERDICT,
    "ended": BY_VERDICT,
    "run_seconds": st.just(Histogram()) | st.builds(Histogram, st.tuples(*[COUNT] * (len(RUN_BOUNDS) + 1)), COUNT),
    "reload_seconds": st.just(Histogram())
    | st.builds(Histogram, st.tuples(*[COUNT] * (len(RELOAD_BOUNDS) + 1)), COUNT),
    "peers": st.none() | st.builds(PeerCounts, COUNT, COUNT, COUNT),
}


@given(st.builds(Last, **WHEN, **TOTALS, status=st.integers(0, 255), reload_good=st.booleans()))
def test_parsing_returns_what_was_serialized(kept: Last) -> None:
    assert metrics.parse_last(metrics.serialize_last(kept)) == kept


@needs_promtool
@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "-1", "1e400", str((1 << 53) + 1)])
def test_every_number_in_last_json_gives_valid_metrics(number: str) -> None:
    text = (
        b'{"run": N, "status": N, "event": N, "change": N, "reload": N, "sync": N, "heartbeat": N, "peers": [N, N, N],'
        b' "runs": {"applied": N}, "ended": {"applied": N}, "run_seconds": [[N, N, N, N, N, N, N, N, N, N, N], 0],'
        b' "reload_seconds": [[0, 0, 0, 0, 0, 0, 0, 0, 0], N]}'
    )
    kept = metrics.parse_last(text.replace(b"N", number.encode()))

    assert kept == Last()
    check_with_promtool(metrics.format_metrics(Numbers("1", NOW, kept._replace(run=NOW))))


# Results of runs

WEB1, WEB2, WEB3 = (member_line(f"web{number}", f"127.0.0.{number + 10}") for number in range(1, 4))


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer(roles=RELOADING) as made:
        yield made


def read_samples(lb: LoadBalancer) -> dict[str, float]:
    """Return the samples of metrics.prom."""
    return {name: float(value) for name, value in parse_samples((lb.state / "metrics.prom").read_bytes()).items()}


def read_server_counts(lb: LoadBalancer) -> tuple[float, ...]:
    """Return the numbers of servers in, paused, failed and quarantined."""
    found = read_samples(lb)
    return tuple(found[f'servers{{section="lb",service="iis",state="{state}"}}'] for state in planning_lines.STATES)


def read_last_run(lb: LoadBalancer) -> tuple[float, float | None, float]:
    """Return exit status, whether the last reload was confirmed, and blocked removals."""
    found = read_samples(lb)
    return found["last_run_exit_status"], found.get("last_reload_success"), found["blocked_removals"]


@pytest.mark.real
def test_a_successful_run_is_counted(lb: LoadBalancer) -> None:
    with Haproxy(lb):
        lb.join(WEB1, WEB2)
        lb.send_command("pause", "web2", 1)

        found = read_samples(lb)

    assert read_last_run(lb) == (0, 1, 0)
    assert read_server_counts(lb) == (1, 1, 0, 0)
    assert (found["paused_nodes"], found["services_without_server"]) == (1, 0)
    assert found['pause_start_timestamp_seconds{node="web2"}'] == found["last_event_timestamp_seconds"]
    assert (found['runs_total{verdict="applied"}'], found["run_duration_seconds_count"]) == (2, 2)
    assert found['last_run_verdict_timestamp_seconds{verdict="applied"}'] == found["last_run_timestamp_seconds"]
    assert found["reload_duration_seconds_count"] == 2
    assert 0 < found["reload_duration_seconds_sum"] <= found["run_duration_seconds_sum"]
    assert found[f'build_info{{version="{lbagent.__version__}"}}'] == 1
    assert found['members{status="alive"}'] == 2
    assert found["managed_lines_digest"] == metrics.convert_digest((lb.served() or {})["digest"])
    times = [found[f"last_{what}_timestamp_seconds"] for what in ("event", "change", "reload", "run")]
    assert times == sorted(times)
    assert times[-1] - times[0] < 60


@pytest.mark.every_haproxy
@pytest.mark.real
def test_a_change_through_the_runtime_api_does_not_count_as_a_reload(lb: LoadBalancer) -> None:
    lb.roles.write_text(lb.fill_template(ROLES))
    with Haproxy(lb):
        lb.join(WEB1)

    assert (read_last_run(lb), read_server_counts(lb)) == ((0, None, 0), (1, 0, 0, 0))
    assert "last_reload_timestamp_seconds" not in read_samples(lb)
    assert read_samples(lb)["reload_duration_seconds_count"] == 0


@pytest.mark.real
def test_blocked_removals_are_counted(lb: LoadBalancer) -> None:
    lb.join(WEB1, WEB2)
    lb.roles.write_text(lb.fill_template(RELOADING).replace("  web:", "  app:"))

    assert lb.run("apply").returncode == 3
    assert read_last_run(lb) == (3, None, 2)
    assert read_server_counts(lb) == (2, 0, 0, 0)


@pytest.mark.real
def test_after_a_refused_text_the_lines_in_the_file_are_counted(lb: LoadBalancer) -> None:
    lb.join(WEB1)
    lb.text = lb.text.replace(b"balance", b"balanse")

    assert lb.join(WEB2).returncode == 4
    assert read_last_run(lb) == (4, None, 0)
    assert read_server_counts(lb) == (1, 0, 0, 0)
    assert read_samples(lb)['members{status="alive"}'] == 2


@pytest.mark.every_haproxy
@pytest.mark.real
def test_a_failed_reload_is_exported_until_one_succeeds(lb: LoadBalancer) -> None:
    with Haproxy(lb):
        lb.join(WEB1)
        before = read_samples(lb)["managed_lines_digest"]
        set_reload_command(lb, "exit 1")

        assert lb.join(WEB2).returncode == 5
        assert read_last_run(lb) == (5, 0, 0)
        found = read_samples(lb)
        assert (found['runs_total{verdict="rolled back"}'], found["reload_duration_seconds_count"]) == (1, 2)
        assert (read_server_counts(lb), read_samples(lb)["managed_lines_digest"]) == ((1, 0, 0, 0), before)
        store = Store(Paths(str(lb.state)))
        store.save_last(store.load_last()._replace(reload=NOW))
        assert lb.join(WEB3).returncode == 5  # not tried again yet
        assert (read_last_run(lb), read_samples(lb)["last_reload_timestamp_seconds"]) == ((5, 0, 0), NOW)
        lb.roles.write_text(lb.fill_template(RELOADING))
        assert lb.run("apply", "--force").returncode == 0
        assert (read_last_run(lb), read_server_counts(lb)) == ((0, 1, 0), (3, 0, 0, 0))


@pytest.mark.every_haproxy
@pytest.mark.real
def test_a_reload_without_a_new_worker_counts_as_failed(lb: LoadBalancer) -> None:
    with Haproxy(lb):
        lb.join(WEB1)
        set_reload_command(lb, "exit 0")
        lb.roles.write_text(lb.roles.read_text().replace("timeout: 15s", "timeout: 1s"))

        assert lb.join(WEB2).returncode == 75
        assert (read_last_run(lb), read_server_counts(lb)) == ((75, 0, 0), (2, 0, 0, 0))


def test_a_refused_roles_yml_and_waiting_events_are_exported(lb: LoadBalancer) -> None:
    lb.join(WEB1)
    lb.roles.write_text("roles: {web: {prot: 1}}\n")

    lb.join(WEB2)
    lb.join(WEB3)

    found = read_samples(lb)
    assert (found["last_run_exit_status"], found["pending_events"]) == (2, 2)
    assert 0 <= found["last_run_timestamp_seconds"] - found["oldest_pending_event_timestamp_seconds"] < 60
    assert [name for name in found if name.startswith("servers")] == []
    assert found['members{status="alive"}'] == 1


def test_files_that_are_not_events_are_counted(lb: LoadBalancer) -> None:
    lb.join(WEB1)
    (lb.state / "spool" / "7").write_bytes(b"no event")

    lb.run("apply")

    assert (read_samples(lb)["bad_records"], read_samples(lb)["pending_events"]) == (1, 0)
    assert "oldest_pending_event_timestamp_seconds" not in read_samples(lb)


def test_the_next_run_writes_the_age_of_a_sync(lb: LoadBalancer) -> None:
    lb.join(WEB1)
    store = Store(Paths(str(lb.state)))
    store.save_last(store.load_last()._replace(sync=int(read_samples(lb)["last_run_timestamp_seconds"]) - 100))

    lb.run("apply")

    found = read_samples(lb)
    passed = found["last_run_timestamp_seconds"] - found["last_sync_timestamp_seconds"]
    assert found["sync_age_seconds"] == passed >= 100


# The file


def test_a_reader_of_the_old_file_can_read_all_of_it_during_a_replacement(lb: LoadBalancer) -> None:
    lb.join(WEB1)
    path = lb.state / "metrics.prom"
    old = path.read_bytes()

    with path.open("rb") as reader:
        lb.join(WEB2)

        assert reader.read() == old
    assert path.read_bytes() != old
    assert not path.with_name("metrics.prom.new").exists()


def test_a_full_disk_keeps_the_old_metrics_and_changes_no_outcome(lb: LoadBalancer) -> None:
    with mount_small_disk(lb.state) as disk:
        lb.join(WEB1)
        old = (disk / "metrics.prom").read_bytes()
        with fill_disk(disk):
            done = lb.run("apply")

            assert (done.returncode, done.stderr) == (0, b"")
            assert (disk / "metrics.prom").read_bytes() == old
            assert sorted(path.name for path in disk.iterdir() if path.suffix == ".new") == []


def test_the_umask_does_not_close_the_file(lb: LoadBalancer) -> None:
    before = os.umask(0o077)
    try:
        lb.join(WEB1)
    finally:
        os.umask(before)

    modes = {name: (lb.state / name).stat().st_mode & 0o777 for name in ("metrics.prom", "last.json", "members.json")}
    assert modes == {"metrics.prom": 0o644, "last.json": 0o600, "members.json": 0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_group_of_the_folder_reaches_the_metrics_and_nothing_else(lb: LoadBalancer) -> None:
    lb.join(WEB1)
    lb.folder.chmod(0o755)
    stranger = 65533

    def read(name: str) -> int:
        argv = ["cat", str(lb.state / name)]
        done = subprocess.run(argv, user=stranger, group=stranger, extra_groups=[], capture_output=True, check=False)
        return done.returncode

    assert read("metrics.prom") == 1
    os.chown(lb.state, -1, stranger)
    assert {path.name: read(path.name) for path in lb.state.iterdir() if path.is_file()} == {
        "metrics.prom": 0,
        **dict.fromkeys(("history.jsonl", "last.json", "lock", "members.json", "roles.json", "served.json"), 1),
    }


# The documentation


def read_table(columns: int) -> list[list[str]]:
    """Return the rows of the page's tables with this number of columns whose first cell is one word in backquotes."""
    lines = re.findall(r"^\| (`[^`]+` \|.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [cells for line in lines if len(cells := [cell.strip() for cell in line.split("|")]) == columns]


def test_the_page_has_every_metric_that_a_run_writes_with_its_type_and_no_other(lb: LoadBalancer) -> None:
    lb.join(WEB1)

    written = re.findall(r"^# TYPE (\w+) (\w+)$", (lb.state / "metrics.prom").read_text(), re.MULTILINE)
    assert [(name.strip("`"), kind) for name, kind, *_ in read_table(4)] == written


def test_the_page_has_the_labels_of_every_metric() -> None:
    last = Last(NOW, runs={"applied": 1}, ended={"applied": NOW})
    numbers = Numbers("1", NOW, last, {Pair("lb", "iis"): {"in": 1}}, {"alive": 1}, pauses={"web01": NOW})
    text = metrics.format_metrics(numbers).decode()

    for name, _, labels, _ in read_table(4):
        samples = re.findall(rf"^{name.strip('`')}(?:_bucket)?\{{(.*)\}} ", text, re.MULTILINE)
        written = {label for given in samples for label in re.findall(r'(\w+)="', given)}
        assert (name, set(re.findall(r"`(\w+)`", labels))) == (name, written)


def test_the_page_has_every_state_and_every_verdict() -> None:
    assert [state.strip("`") for state, _ in read_table(2)] == list(planning_lines.STATES)
    assert {verdict.strip("`") for verdict, *_ in read_table(3)} == set(metrics.VERDICTS)


def test_the_page_has_the_number_of_pauses_with_a_sample() -> None:
    assert f"only the {metrics.PAUSES_LISTED} oldest pauses" in PAGE.read_text(encoding="utf-8")
