"""metrics.prom: what it says of a state, how every end of a run shows in it, and nothing gets in unescaped."""

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
from lbagent.membership.model import FAILED, Member, Quarantine
from lbagent.metrics import Last, Numbers
from lbagent.planning import services as planning_services
from lbagent.planning.plan import PlanOptions
from lbagent.roles.model import Pair, Roles
from lbagent.state.paths import Paths
from lbagent.state.store import Store
from tests.helpers import builders as building
from tests.helpers.builders import NOW, POISON, known, pausing, planning, poisoned, reading
from tests.helpers.faults import full, reload_with, small_disk
from tests.helpers.real_programs import RELOADING, ROLES, Haproxy, Lb, member

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "metrics.md"

DIGEST = "9600781907083eee"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")


def checked(content: bytes) -> None:
    """Have Prometheus itself read the text, and find nothing to say about it."""
    done = subprocess.run(["promtool", "check", "metrics"], input=content, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# A known state


def test_a_known_state_is_told_like_this() -> None:
    numbers = Numbers(
        "1.2.3",
        NOW,
        Last(
            NOW, 3, NOW - 5, NOW - 4, NOW - 3, reload_good=False, sync=NOW - 60, success=NOW - 90, sync_failing=NOW - 30
        ),
        {Pair("lb", "iis"): {"in": 7, "paused": 1, "failed": 2, "quarantined": 0}},
        {"alive": 9, "failed": 2},
        quarantined=0,
        digest=DIGEST,
        blocked=4,
        pending=5,
        bad=6,
        daemon=True,
    )

    said = [line for line in metrics.format_metrics(numbers).decode().splitlines() if not line.startswith("# HELP ")]

    assert said == [
        "# TYPE lbagent_build_info gauge",
        'lbagent_build_info{version="1.2.3"} 1',
        "# TYPE lbagent_servers gauge",
        'lbagent_servers{section="lb",service="iis",state="in"} 7',
        'lbagent_servers{section="lb",service="iis",state="paused"} 1',
        'lbagent_servers{section="lb",service="iis",state="failed"} 2',
        'lbagent_servers{section="lb",service="iis",state="quarantined"} 0',
        "# TYPE lbagent_members gauge",
        'lbagent_members{status="alive"} 9',
        'lbagent_members{status="failed"} 2',
        'lbagent_members{status="left"} 0',
        'lbagent_members{status="lost"} 0',
        'lbagent_members{status="unknown"} 0',
        "# TYPE lbagent_quarantined_nodes gauge",
        "lbagent_quarantined_nodes 0",
        "# TYPE lbagent_held_back_lines gauge",
        "lbagent_held_back_lines 4",
        "# TYPE lbagent_pending_events gauge",
        "lbagent_pending_events 5",
        "# TYPE lbagent_bad_records gauge",
        "lbagent_bad_records 6",
        "# TYPE lbagent_managed_lines_digest gauge",
        "lbagent_managed_lines_digest 5277720290320647",
        "# TYPE lbagent_last_run_timestamp_seconds gauge",
        "lbagent_last_run_timestamp_seconds 1700000000",
        "# TYPE lbagent_last_run_exit_status gauge",
        "lbagent_last_run_exit_status 3",
        "# TYPE lbagent_last_event_timestamp_seconds gauge",
        "lbagent_last_event_timestamp_seconds 1699999995",
        "# TYPE lbagent_last_change_timestamp_seconds gauge",
        "lbagent_last_change_timestamp_seconds 1699999996",
        "# TYPE lbagent_last_reload_success gauge",
        "lbagent_last_reload_success 0",
        "# TYPE lbagent_last_reload_timestamp_seconds gauge",
        "lbagent_last_reload_timestamp_seconds 1699999997",
        "# TYPE lbagent_old_workers gauge",
        "# TYPE lbagent_last_sync_timestamp_seconds gauge",
        "lbagent_last_sync_timestamp_seconds 1699999940",
        "# TYPE lbagent_sync_age_seconds gauge",
        "lbagent_sync_age_seconds 60",
        "# TYPE lbagent_last_sync_success gauge",
        "lbagent_last_sync_success 0",
        "# TYPE lbagent_last_success_timestamp_seconds gauge",
        "lbagent_last_success_timestamp_seconds 1699999910",
        "# TYPE lbagent_daemon_running gauge",
        "lbagent_daemon_running 1",
    ]


def test_what_has_not_happened_yet_has_no_sample() -> None:
    said = metrics.format_metrics(Numbers("1.2.3", NOW, Last(NOW))).decode().splitlines()

    assert [line for line in said if not line.startswith("#")] == [
        'lbagent_build_info{version="1.2.3"} 1',
        "lbagent_held_back_lines 0",
        "lbagent_pending_events 0",
        "lbagent_bad_records 0",
        f"lbagent_last_run_timestamp_seconds {NOW}",
        "lbagent_last_run_exit_status 0",
    ]


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
LINE = re.compile(rf"# (?:HELP|TYPE) [a-z_]+ .+|[a-z_]+(?:\{{{LABEL}(?:,{LABEL})*\}})? -?[0-9]+")


def hostile(*names: str) -> bytes:
    """The metrics of pairs with these names."""
    pairs = {Pair(name, name): {"in": 1} for name in names}
    return metrics.format_metrics(Numbers(names[0], NOW, Last(NOW), pairs, {}, 0))


@given(poisoned(st.just("section")))
def test_a_hostile_name_cannot_leave_its_label(name: str) -> None:
    lines = hostile(name).decode().removesuffix("\n").split("\n")

    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert len(lines) == len(hostile("plain").decode().removesuffix("\n").split("\n"))


def test_names_that_are_not_utf_8_stay_distinct() -> None:
    text = hostile("a\udcfe", "a\udcff", "a?").decode()

    found = re.findall(r'^lbagent_servers\{section="([^"]*)",', text, re.MULTILINE)
    assert found == [r"a\\udcfe", r"a\\udcff", "a?"]


@needs_promtool
def test_prometheus_can_read_hostile_names() -> None:
    checked(hostile(*POISON, "\\", "\\n", '"} 1\nevil 2\n', "ends in \\"))


# Which server counts as what

FARM = "backend farm\n    # additional-lb-iis-server\n    # additional-lb-wsa-server\nbackend lost\n"
TWO = reading("""
    services: {iis: {port: 80}, wsa: {port: 81}, none_yet: {port: 82}}
    roles:
      web: {lb: [iis], on_failed: remove}
      app: {lb: [iis, wsa], other: [none_yet]}
""")


def counted(*members: Member, roles: Roles = TWO) -> dict[str, tuple[int, ...]]:
    """Servers in, paused, failed and quarantined, by the middle of their marker."""
    membership = known(*members)
    plan = planning(FARM, roles, membership, PlanOptions(kept=frozenset()))
    found = planning_services.count_servers(plan.managed_lines, roles, membership)
    (text,) = plan.after
    assert (
        planning_services.count_servers(planning_services.list_managed_lines(Document([("", text)])), roles, membership)
        == found
    )
    return {pair.middle: tuple(states[state] for state in planning_services.STATES) for pair, states in found.items()}


def test_of_a_pair_without_a_marker_here_nobody_is_counted() -> None:
    refused = building.member("app2", "10.0.1.2", "app", quarantine=Quarantine(NOW, "why", "key"))

    assert counted(building.member("app1", "10.0.1.1", "app", status=FAILED), refused) == {
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
    roles = reading(STRICT.replace("REMOVE", on_failed))
    web = building.member("web1", "10.0.0.1"), building.member("web2", address, status=FAILED)

    assert counted(*web, roles=roles)["lb-iis"] == counts


def test_a_failed_node_whose_line_should_stand_and_does_not_is_not_counted() -> None:
    roles = reading(STRICT.replace("REMOVE", "keep"))
    membership = known(building.member("web1", "10.0.0.1", status=FAILED))
    lines = planning_services.list_managed_lines(Document([("", FARM)]))

    assert planning_services.count_servers(lines, roles, membership)[Pair("lb", "iis")]["failed"] == 0
    removing = reading(STRICT.replace("REMOVE", "remove"))
    assert planning_services.count_servers(lines, removing, membership)[Pair("lb", "iis")]["failed"] == 1


def test_every_server_counts_once_as_what_it_is() -> None:
    web = [building.member(f"web{number}", f"10.0.0.{number}") for number in range(1, 5)]
    app = [building.member(f"app{number}", f"10.0.1.{number}", "app") for number in range(1, 5)]
    failed = app[1]._replace(status=FAILED)
    refused = app[2]._replace(quarantine=Quarantine(NOW, "why", "key"))

    assert counted(*web[:3], pausing(web[3]), app[0], failed, refused, pausing(app[3])) == {
        "lb-iis": (4, 2, 1, 1),
        "lb-wsa": (1, 1, 1, 1),
        "other-none_yet": (0, 0, 0, 0),
    }


def test_a_failed_node_that_was_removed_counts_as_failed_and_a_paused_one_as_paused() -> None:
    web = [building.member(f"web{number}", f"10.0.0.{number}") for number in range(1, 4)]
    gone, paused = web[1]._replace(status=FAILED), pausing(web[2]._replace(status=FAILED))

    assert counted(web[0], gone, paused)["lb-iis"] == (1, 1, 1, 0)


def test_pairs_without_a_node_are_zeros() -> None:
    assert counted() == {"lb-iis": (0, 0, 0, 0), "lb-wsa": (0, 0, 0, 0), "other-none_yet": (0, 0, 0, 0)}


# What is remembered


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"[" * 100_000, b'{"sync": "x", "event": 1e999}'])
def test_a_damaged_last_json_starts_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.json").write_bytes(content)

    assert Store(Paths(str(tmp_path))).load_last() == Last()


def test_what_is_sound_in_last_json_stays() -> None:
    assert metrics.parse_last(b'{"sync": 7, "event": "x", "reload_good": 1, "later": 2}') == Last(sync=7)


KINDS = ("run", "event", "change", "reload", "sync", "success", "sync_failing")
WHEN = {kind: st.none() | st.integers(0, 1 << 53) for kind in KINDS}


@given(st.builds(Last, **WHEN, status=st.integers(0, 255), reload_good=st.booleans()))
def test_what_was_dumped_is_loaded(kept: Last) -> None:
    assert metrics.parse_last(metrics.serialize_last(kept)) == kept


@needs_promtool
@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "-1", "1e400", str((1 << 53) + 1)])
def test_no_number_in_last_json_spoils_the_metrics(number: str) -> None:
    kept = metrics.parse_last(
        b'{"run": N, "status": N, "event": N, "change": N, "reload": N, "sync": N}'.replace(b"N", number.encode())
    )

    assert kept == Last()
    checked(metrics.format_metrics(Numbers("1", NOW, kept._replace(run=NOW))))


# Every end of a run

WEB1, WEB2, WEB3 = (member(f"web{number}", f"127.0.0.{number + 10}") for number in range(1, 4))


@pytest.fixture
def lb() -> Iterator[Lb]:
    with Lb(roles=RELOADING) as made:
        yield made


def values(lb: Lb) -> dict[str, float]:
    """The samples of metrics.prom, which Prometheus can read."""
    content = (lb.state / "metrics.prom").read_bytes()
    if shutil.which("promtool"):
        checked(content)
    samples = (line.rpartition(" ") for line in content.decode().splitlines() if not line.startswith("#"))
    return {name.removeprefix("lbagent_"): float(value) for name, _, value in samples}


def servers(lb: Lb) -> tuple[float, ...]:
    """Servers in, paused, failed and quarantined."""
    found = values(lb)
    return tuple(found[f'servers{{section="lb",service="iis",state="{state}"}}'] for state in planning_services.STATES)


def ended(lb: Lb) -> tuple[float, float | None, float]:
    """Exit status, whether the last reload was seen, and held lines."""
    found = values(lb)
    return found["last_run_exit_status"], found.get("last_reload_success"), found["held_back_lines"]


@pytest.mark.real
def test_a_run_that_went_well_shows_what_it_did(lb: Lb) -> None:
    with Haproxy(lb):
        lb.join(WEB1, WEB2)
        lb.say("pause", "web2", 1)

        found = values(lb)

    assert ended(lb) == (0, 1, 0)
    assert servers(lb) == (1, 1, 0, 0)
    assert found[f'build_info{{version="{lbagent.__version__}"}}'] == 1
    assert found['members{status="alive"}'] == 2
    assert found["managed_lines_digest"] == metrics.convert_digest((lb.served() or {})["digest"])
    times = [found[f"last_{what}_timestamp_seconds"] for what in ("event", "change", "reload", "run")]
    assert times == sorted(times)
    assert times[-1] - times[0] < 60


@pytest.mark.every_haproxy
@pytest.mark.real
def test_a_change_that_haproxy_was_told_is_no_reload(lb: Lb) -> None:
    lb.roles.write_text(lb.filled(ROLES))
    with Haproxy(lb):
        lb.join(WEB1)

    assert (ended(lb), servers(lb)) == ((0, None, 0), (1, 0, 0, 0))
    assert "last_reload_timestamp_seconds" not in values(lb)


@pytest.mark.real
def test_what_the_guard_held_back_is_told(lb: Lb) -> None:
    lb.join(WEB1, WEB2)
    lb.roles.write_text(lb.filled(RELOADING).replace("  web:", "  app:"))

    assert lb.run("apply").returncode == 3
    assert ended(lb) == (3, None, 2)
    assert servers(lb) == (2, 0, 0, 0)


@pytest.mark.real
def test_a_text_that_haproxy_refuses_is_told_and_what_stands_is_counted(lb: Lb) -> None:
    lb.join(WEB1)
    lb.text = lb.text.replace(b"balance", b"balanse")

    assert lb.join(WEB2).returncode == 4
    assert ended(lb) == (4, None, 0)
    assert servers(lb) == (1, 0, 0, 0)
    assert values(lb)['members{status="alive"}'] == 2


@pytest.mark.every_haproxy
@pytest.mark.real
def test_a_reload_that_failed_is_told_until_one_goes_well(lb: Lb) -> None:
    with Haproxy(lb):
        lb.join(WEB1)
        before = values(lb)["managed_lines_digest"]
        reload_with(lb, "exit 1")

        assert lb.join(WEB2).returncode == 5
        assert ended(lb) == (5, 0, 0)
        assert (servers(lb), values(lb)["managed_lines_digest"]) == ((1, 0, 0, 0), before)
        store = Store(Paths(str(lb.state)))
        store.save_last(store.load_last()._replace(reload=NOW))
        assert lb.join(WEB3).returncode == 5  # not tried again yet
        assert (ended(lb), values(lb)["last_reload_timestamp_seconds"]) == ((5, 0, 0), NOW)
        lb.roles.write_text(lb.filled(RELOADING))
        assert lb.run("apply", "--force").returncode == 0
        assert (ended(lb), servers(lb)) == ((0, 1, 0), (3, 0, 0, 0))


@pytest.mark.every_haproxy
@pytest.mark.real
def test_a_reload_nobody_saw_is_told(lb: Lb) -> None:
    with Haproxy(lb):
        lb.join(WEB1)
        reload_with(lb, "exit 0")
        lb.roles.write_text(lb.roles.read_text().replace("timeout: 15s", "timeout: 1s"))

        assert lb.join(WEB2).returncode == 75
        assert (ended(lb), servers(lb)) == ((75, 0, 0), (2, 0, 0, 0))


def test_a_refused_roles_yml_is_told_and_the_events_that_wait(lb: Lb) -> None:
    lb.join(WEB1)
    lb.roles.write_text("roles: {web: {prot: 1}}\n")

    lb.join(WEB2)
    lb.join(WEB3)

    found = values(lb)
    assert (found["last_run_exit_status"], found["pending_events"]) == (2, 2)
    assert [name for name in found if name.startswith("servers")] == []
    assert found['members{status="alive"}'] == 1


def test_files_that_were_no_events_are_counted(lb: Lb) -> None:
    lb.join(WEB1)
    (lb.state / "spool" / "7").write_bytes(b"no event")

    lb.run("apply")

    assert (values(lb)["bad_records"], values(lb)["pending_events"]) == (1, 0)


def test_the_age_of_a_sync_is_told_by_the_next_run(lb: Lb) -> None:
    lb.join(WEB1)
    store = Store(Paths(str(lb.state)))
    store.save_last(store.load_last()._replace(sync=int(values(lb)["last_run_timestamp_seconds"]) - 100))

    lb.run("apply")

    found = values(lb)
    passed = found["last_run_timestamp_seconds"] - found["last_sync_timestamp_seconds"]
    assert found["sync_age_seconds"] == passed >= 100


# The file


def test_who_reads_while_it_is_replaced_reads_the_whole_old_file(lb: Lb) -> None:
    lb.join(WEB1)
    path = lb.state / "metrics.prom"
    old = path.read_bytes()

    with path.open("rb") as reader:
        lb.join(WEB2)

        assert reader.read() == old
    assert path.read_bytes() != old
    assert not path.with_name("metrics.prom.new").exists()


def test_a_full_disk_changes_nothing_about_a_run_but_its_metrics(lb: Lb) -> None:
    with small_disk(lb.state) as disk:
        lb.join(WEB1)
        old = (disk / "metrics.prom").read_bytes()
        with full(disk):
            done = lb.run("apply")

            assert (done.returncode, done.stderr) == (0, b"")
            assert (disk / "metrics.prom").read_bytes() == old
            assert sorted(path.name for path in disk.iterdir() if path.suffix == ".new") == []


def test_the_umask_does_not_close_the_file(lb: Lb) -> None:
    before = os.umask(0o077)
    try:
        lb.join(WEB1)
    finally:
        os.umask(before)

    modes = {name: (lb.state / name).stat().st_mode & 0o777 for name in ("metrics.prom", "last.json", "members.json")}
    assert modes == {"metrics.prom": 0o644, "last.json": 0o600, "members.json": 0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_group_of_the_folder_reaches_the_metrics_and_nothing_else(lb: Lb) -> None:
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


# The page


def test_every_metric_is_documented() -> None:
    rows = re.findall(r"^\| `(lbagent_\w+)` \| ([^|]*)\|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert [name for name, _ in rows] == [name for name, _, _ in metrics.METRICS]
    numbers = Numbers("1", NOW, Last(NOW), {Pair("lb", "iis"): {"in": 1}}, {})
    labels = {
        name: sorted({label for given, _ in samples for label in given})
        for name, _, value in metrics.METRICS
        if isinstance(samples := value(numbers), list)
    }
    assert {name: sorted(re.findall(r"`(\w+)`", given)) for name, given in rows if given.strip()} == labels


def test_every_state_is_documented() -> None:
    states = re.findall(r"^\| `(\w+)` \| [^|]*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert states == list(planning_services.STATES)


FIRING = """
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'lbagent_last_run_exit_status{instance="lb01", job="lb"}', values: '5x20'}
      - {series: 'lbagent_last_run_exit_status{instance="lb02", job="lb"}', values: '0x20'}
      - {series: 'lbagent_managed_lines_digest{instance="lb01", job="lb"}', values: '9007199254740991x20'}
      - {series: 'lbagent_managed_lines_digest{instance="lb02", job="lb"}', values: '9007199254740990x20'}
      - {series: 'lbagent_managed_lines_digest{instance="lb03", job="same"}', values: '9007199254740991x20'}
      - {series: 'lbagent_managed_lines_digest{instance="lb04", job="same"}', values: '9007199254740991x20'}
      - {series: 'lbagent_servers{service="iis", section="lb", state="in"}', values: '0x20'}
      - {series: 'lbagent_servers{service="iis", section="lb", state="paused"}', values: '3x20'}
      - {series: 'lbagent_servers{service="wsa", section="lb", state="in"}', values: '0x20'}
      - {series: 'lbagent_servers{service="wsa", section="lb", state="paused"}', values: '0x20'}
    promql_expr_test:
      - expr: 'count by (alertname, instance, job, service) (ALERTS{alertstate="firing"})'
        eval_time: 10m
        exp_samples:
          - {labels: '{alertname="LbagentRunFailed", instance="lb01", job="lb"}', value: 1}
          - {labels: '{alertname="LbagentBalancersDiffer", job="lb"}', value: 1}
          - {labels: '{alertname="LbagentNobodyIn", service="iis"}', value: 1}
"""


@needs_promtool
def test_the_alerts_of_the_page_fire_when_they_should(tmp_path: Path) -> None:
    [rules] = re.findall(r"^```yml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "rules.yml").write_text(rules)
    (tmp_path / "test.yml").write_text(FIRING)

    for words in (["check", "rules", "rules.yml"], ["test", "rules", "test.yml"]):
        done = subprocess.run(["promtool", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
