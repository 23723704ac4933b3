"""The state of each node and its reason, from haproxy.cfg, roles.yml, membership and HAProxy's states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from lbagent.haproxy.config import Document
from lbagent.haproxy.runtime.state import ServerStats, Stats
from lbagent.membership.model import FAILED, LEFT, LOST, UNKNOWN, Member, Membership, Pause
from lbagent.outcome import PastRun
from lbagent.planning import quarantine
from lbagent.planning.lines import rebuild_membership
from lbagent.planning.plan import Change
from lbagent.roles.model import Roles
from lbagent.status.nodes import Node, ServerState
from lbagent.status.report import FailedReload, Report, Served, Sources, SpoolState, StatsSocket, build_report
from tests.helpers.builders import NOW, dedent, member, membership_of, parse_roles_text, planned_text

ROLES = parse_roles_text("""
    services:
      iis: {port: 80}
      mongo: {port: "{tag:mongo|27017}"}
    roles:
      web: {lb: [iis], mon: [mongo], networks: [10.0.0.0/8]}
      api: {lb: [iis], on_failed: remove, max: 2}
      idle: {lb: [none]}
""")

CFG = dedent("""
    global
        stats socket /run/haproxy/admin.sock
    listen lb-iis
        # additional-lb-iis-server
    backend mon-mongo
        # additional-mon-mongo-server
""")

OPTIONS = "check inter 2s rise 2 fall 2"
QUIET = Sources(
    NOW,
    {},
    StatsSocket("/run/haproxy/admin.sock", None),
    Served(None, None, alive=False, failure=None),
    SpoolState(0, None),
    None,
    0,
    (),
)
PAUSE = Pause(NOW - 60, "user event", "patches", NOW + 3600)


def build(membership: Membership, text: str | None = None, stats: Stats | None = None, roles: Roles = ROLES) -> Report:
    """The report where haproxy.cfg is what the plan wants, unless it is given."""
    text = planned_text(CFG, roles, membership) if text is None else text
    sources = QUIET._replace(stats=stats or {})
    return build_report(sources, roles, membership, Document([("haproxy.cfg", text)]))


def brief(found: Report) -> dict[str, tuple[str, str]]:
    """State and reason of each node."""
    return {node.name: (node.state.value, node.why) for node in found.nodes}


def only(found: Report) -> Node:
    """The one node there is."""
    (node,) = found.nodes
    return node


def one(membership: Member, text: str | None = None) -> tuple[str, str]:
    """State and reason of a node that is alone."""
    (found,) = brief(build(membership_of(membership), text)).values()
    return found


def test_a_node_that_is_in_has_its_proxies_and_server_states() -> None:
    stats = {
        ("lb-iis", "web01"): ServerStats("UP", 3),
        ("mon-mongo", "web01"): ServerStats("DOWN 1/2", 0),
        ("x", "web01"): ServerStats("UP", 9),
    }

    node = only(build(membership_of(member("web01")), stats=stats))

    assert (node.state, node.since, node.why) == ("in", NOW, "")
    assert node.servers == [
        ServerState("lb-iis", "web01", "10.0.0.1:80", "managed", "UP", 3),
        ServerState("mon-mongo", "web01", "10.0.0.1:27017", "managed", "DOWN 1/2", 0),
    ]


def test_nodes_are_in_natural_order() -> None:
    names = ["web10", "web9", "Web1", "web2"]

    found = build(membership_of(*(member(name, f"10.0.0.{at}") for at, name in enumerate(names, 1))))

    assert [node.name for node in found.nodes] == ["Web1", "web2", "web9", "web10"]


def test_servers_of_a_proxy_with_several_services_belong_to_their_nodes() -> None:
    text = CFG.replace("backend mon-mongo\n", "")
    stats = {("lb-iis", "web01.iis"): ServerStats("UP", 1), ("lb-iis", "web01.mongo"): ServerStats("NOLB", 2)}
    membership = membership_of(member("web01"))

    node = only(build(membership, planned_text(text, ROLES, membership), stats))

    assert [(one.proxy, one.server, one.state, one.sessions) for one in node.servers] == [
        ("lb-iis", "web01.iis", "UP", 1),
        ("lb-iis", "web01.mongo", "NOLB", 2),
    ]


@pytest.mark.parametrize(
    ("tags", "pause", "why", "since"),
    [
        ({}, PAUSE, "by user event: patches", NOW - 60),
        ({}, Pause(NOW - 9, "query"), "by query", NOW - 9),
        ({"lbagent": "paused"}, None, "by its tag lbagent=paused", None),
        ({"lbagent": "paused"}, PAUSE, "by its tag lbagent=paused; by user event: patches", NOW - 60),
    ],
)
def test_a_paused_node_has_origin_and_reason_of_the_pause(
    tags: dict[str, str], pause: Pause | None, why: str, since: int
) -> None:
    node = only(build(membership_of(member("web01", tags=tags, pause=pause))))

    assert (node.state, node.why, node.since, node.pause) == ("paused", why, since, pause)
    assert node.paused_by_tag == bool(tags)
    assert [one.line for one in node.servers] == ["paused", "paused"]


def test_a_server_of_a_paused_node_that_haproxy_still_has_is_listed() -> None:
    stats = {("lb-iis", "web01"): ServerStats("MAINT", 2)}

    node = only(build(membership_of(member("web01", pause=PAUSE)), stats=stats))

    assert node.servers == [
        ServerState("lb-iis", "web01", "10.0.0.1", "paused", "MAINT", 2),
        ServerState("mon-mongo", None, "10.0.0.1", "paused", None, None),
    ]


def test_a_pause_applies_to_all_nodes_at_its_address() -> None:
    roles = parse_roles_text("{services: {iis: {port: 80}}, roles: {web: {lb: [iis]}, api: {mon: [iis]}}}")
    text = CFG.replace("mon-mongo-server", "mon-iis-server")
    membership = membership_of(member("old", pause=PAUSE), member("new", role="api"))

    found = build(membership, planned_text(text, roles, membership), roles=roles)

    assert brief(found) == {
        "new": ("paused", "as old at the same address, by user event: patches"),
        "old": ("paused", "by user event: patches"),
    }


def test_on_failed_of_the_role_decides_on_a_failed_node() -> None:
    membership = membership_of(member("api01", role="api"), member("api02", "10.0.0.2", "api", status=FAILED))

    assert brief(build(membership)) == {
        "api01": ("in", ""),
        "api02": ("failed", "iis: it has failed, and `on_failed` is `remove`"),
    }
    assert one(member("web01", status=FAILED)) == ("failed", "its line is kept")


@pytest.mark.parametrize("line", ["server WEB01 10.9.9.9:1", "server old 10.0.0.1:80 check"])
def test_an_operators_line_is_listed_with_its_name_and_state(line: str) -> None:
    text = CFG.replace("    # additional-lb-iis", f"    {line}\n    # additional-lb-iis").replace(
        "mon-mongo-s", "x-y-s"
    )
    name, address = line.split()[1:3]

    node = only(build(membership_of(member("web01")), text, {("lb-iis", name): ServerStats("no check", 1)}))

    assert (node.state, node.why) == (
        "not managed",
        "in listen lb-iis: an operator's line has its name or address, pauses do not affect it",
    )
    assert node.servers == [ServerState("lb-iis", name, address, "not managed", "no check", 1)]


def test_a_node_with_one_managed_line_is_managed() -> None:
    text = CFG.replace("    # additional-lb-iis", "    server web01 10.0.0.1:80\n    # additional-lb-iis")
    membership = membership_of(member("web01"))

    node = only(build(membership, planned_text(text, ROLES, membership)))

    assert node.state == "in"
    assert [(one.proxy, one.line) for one in node.servers] == [("lb-iis", "not managed"), ("mon-mongo", "managed")]


def test_a_paused_node_with_an_operators_line_is_not_shown_as_paused() -> None:
    text = CFG.replace("    # additional-lb-iis", "    server web01 10.0.0.1:80\n    # additional-lb-iis")

    state, why = one(member("web01", pause=PAUSE), text.replace("mon-mongo-s", "x-y-s"))

    assert state == "not managed"
    assert (
        why == "paused by user event: patches; in listen lb-iis: "
        "an operator's line has its name or address, pauses do not affect it"
    )


@pytest.mark.parametrize(
    "line", ["server other 10.0.0.1:81", "server other 10.0.0.2:80", "server web01 10.0.0.1:80"], ids=str
)
def test_operators_lines_in_other_proxies_or_for_other_hosts_belong_to_no_node(line: str) -> None:
    text = f"{CFG}backend own\n    {line}\n"
    membership = membership_of(member("web01"))

    assert [one.line for one in only(build(membership, planned_text(text, ROLES, membership))).servers] == [
        "managed"
    ] * 2


def test_an_operators_line_for_another_port_belongs_to_no_node() -> None:
    text = CFG.replace("    # additional-lb-iis", "    server other 10.0.0.1:81\n    # additional-lb-iis")
    membership = membership_of(member("web01"))

    assert [one.line for one in only(build(membership, planned_text(text, ROLES, membership))).servers] == [
        "managed"
    ] * 2


def test_an_operators_line_of_a_node_that_has_left_belongs_to_no_node() -> None:
    text = CFG.replace("    # additional-lb-iis", "    server web01 10.0.0.1:80\n    # additional-lb-iis")

    assert brief(build(membership_of(member("web01", status=LEFT)), text)) == {}


def test_a_quarantined_node_has_the_whole_reason_of_haproxy() -> None:
    membership = membership_of(member("web01"), member("web02", "10.0.0.2", tags={"mongo": "1"}))
    text = planned_text(CFG, ROLES, membership)
    document = Document([("haproxy.cfg", text)])
    changed = membership_of(member("web01"), member("web02", "10.0.0.2", tags={"mongo": "2"}))
    reason = "parsing [haproxy.cfg:5]: " + "unknown keyword " * 20
    held = quarantine.quarantine_nodes(
        changed, {"web02": reason}, quarantine.fingerprint_context(document, ROLES), NOW - 5
    )

    found = build(held, text)

    assert brief(found) == {"web01": ("in", ""), "web02": ("quarantined", reason)}
    assert (found.nodes[1].since, found.nodes[1].change) == (NOW - 5, Change())
    assert found.as_json()["nodes"][1]["quarantine"] == {"since": NOW - 5, "reason": reason}


def test_a_quarantine_that_is_over_is_pending() -> None:
    membership = quarantine.quarantine_nodes(
        membership_of(member("web01")), {"web01": "refused"}, "other surroundings", NOW
    )

    assert brief(build(membership, CFG)) == {"web01": ("pending", "its lines will be added")}


@pytest.mark.parametrize(
    ("address", "role", "tags", "why"),
    [
        ("192.168.0.1", "web", {}, "192.168.0.1 is outside the role's networks"),
        ("10.0.0.1", "idle", {}, "its role has no service"),
    ],
)
def test_a_node_without_a_line_has_the_reason(address: str, role: str, tags: dict[str, str], why: str) -> None:
    assert one(member("web01", address, role, tags)) == ("no line", why)


def test_a_missing_marker_is_a_reason() -> None:
    found = build(membership_of(member("web01")), CFG.replace("additional", "no"))

    assert brief(found) == {"web01": ("no line", "haproxy.cfg has no marker of its role")}
    assert found.notes == [
        "haproxy.cfg has no marker '# additional-lb-iis-server'",
        "haproxy.cfg has no marker '# additional-mon-mongo-server'",
    ]


def test_a_node_with_one_of_two_lines_has_the_reason_for_the_missing_one() -> None:
    node = only(build(membership_of(member("web01", tags={"mongo": "a b"}))))

    assert (node.state, node.why) == (
        "in",
        "mongo: its tag 'mongo' is invalid: 'a b'; use at most 64 letters, digits, '.', '-' and '_'",
    )
    assert [one.proxy for one in node.servers] == ["lb-iis"]


def test_a_node_beyond_max_has_the_reason() -> None:
    membership = membership_of(*(member(f"api0{at}", f"10.0.0.{at}", "api") for at in (1, 2, 3)))

    assert brief(build(membership)) == {
        "api01": ("in", ""),
        "api02": ("in", ""),
        "api03": ("no line", "iis: role api has reached its maximum of 2"),
    }


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (None, member("web01"), "its lines will be added"),
        (member("web01"), member("web01", "10.0.0.2"), "its lines will be changed"),
        (member("web01"), member("web01", status=LEFT), "its lines will be removed; the node has left"),
        (member("web01"), member("web01", pause=PAUSE), "its lines will be changed; paused by user event: patches"),
    ],
)
def test_a_node_whose_lines_are_not_current_is_pending(before: Member | None, after: Member, why: str) -> None:
    text = planned_text(CFG, ROLES, membership_of(before)) if before else CFG

    assert one(after, text) == ("pending", why)


def test_a_pending_node_lists_its_lines() -> None:
    node = only(build(membership_of(member("web01")), CFG.replace("mon-mongo-s", "x-y-s")))

    assert node.change == Change((f"listen lb-iis: server web01 10.0.0.1:80 {OPTIONS} # lbagent role=web",))


def test_a_node_whose_removal_the_safety_guard_blocks_is_blocked() -> None:
    names = [f"web0{at}" for at in (1, 2, 3)]
    members = [member(name, f"10.0.0.{at}") for at, name in enumerate(names, 1)]
    text = planned_text(CFG, ROLES, membership_of(*members))
    lost = membership_of(members[0], *(one._replace(status=LOST) for one in members[1:]))

    found = build(lost, text)

    assert brief(found) == {
        "web01": ("in", ""),
        "web02": ("blocked", "the safety guard blocks its removal; Serf does not list the node any more"),
        "web03": ("blocked", "the safety guard blocks its removal; Serf does not list the node any more"),
    }
    assert found.blocked == [
        "2 of 3 lines at '# additional-lb-iis-server' in listen lb-iis would be removed: web02, web03",
        "2 of 3 lines at '# additional-mon-mongo-server' in backend mon-mongo would be removed: web02, web03",
    ]


def test_a_node_with_a_role_that_roles_yml_lacks_is_listed() -> None:
    membership = membership_of(member("lb01", role="lb"), member("x", role=""))

    assert brief(build(membership)) == {
        "lb01": ("load balancer", ""),
        "x": ("unknown role", "it has no role"),
    }


def test_pauses_of_absent_nodes_are_listed() -> None:
    unknown = Member("web98", "", "", None, UNKNOWN, NOW, Pause(NOW - 7, "query", "later"))
    membership = membership_of(unknown, member("web99", status=LEFT, pause=PAUSE))

    found = build(membership)

    assert brief(found) == {
        "web98": ("unknown", "paused by query: later"),
        "web99": ("left", "paused by user event: patches"),
    }
    assert [(node.address, node.since) for node in found.nodes] == [(None, NOW - 7), ("10.0.0.1", NOW - 60)]


@pytest.mark.parametrize("status", [LEFT, LOST])
def test_a_node_that_has_left_without_a_pause_is_not_listed(status: str) -> None:
    assert brief(build(membership_of(member("web01", status=status)))) == {}


def test_a_managed_line_of_an_unknown_node_is_listed() -> None:
    text = planned_text(
        CFG, ROLES, membership_of(member("web01"), member("web02", "10.0.0.2"), member("web03", "10.0.0.3"))
    )

    found = build(membership_of(member("web01"), member("web03", "10.0.0.3")), text)

    node = found.nodes[1]
    assert brief(found)["web02"] == ("pending", "its lines will be removed; Serf has not reported the node")
    assert (node.name, node.address, node.role, node.status, node.since) == ("web02", "10.0.0.2", None, None, None)


def test_a_node_known_from_haproxy_cfg_only_has_no_start_time() -> None:
    text = planned_text(CFG, ROLES, membership_of(member("web01"), member("web02", "10.0.0.2", pause=PAUSE)))

    found = build(rebuild_membership(Document([("haproxy.cfg", text)]), ROLES, NOW), text)

    assert [(node.name, node.since) for node in found.nodes] == [("web01", None), ("web02", None)]
    assert brief(found)["web02"] == ("paused", "by haproxy.cfg")


def test_a_duplicate_marker_is_a_problem_and_the_nodes_are_listed() -> None:
    text = planned_text(CFG, ROLES, membership_of(member("web01"))).replace(
        "listen lb-iis\n", "listen lb-iis\n    # additional-lb-iis-server\n"
    )

    found = build(membership_of(member("web01")), text)

    assert brief(found) == {"web01": ("in", "")}
    assert brief(build(membership_of(member("web01"), member("web02", "10.0.0.2")), text))["web02"] == (
        "no line",
        "there is no plan, see above",
    )
    marker = "# additional-lb-iis-server"
    assert found.problems == [
        f"haproxy.cfg:6: marker '{marker}' appears twice in listen lb-iis, first at haproxy.cfg:4; delete one"
    ]


def test_without_haproxy_cfg_the_nodes_are_listed() -> None:
    found = build_report(
        QUIET._replace(problems=("it is gone",)), ROLES, membership_of(member("web01", pause=PAUSE)), None
    )

    assert brief(found) == {"web01": ("paused", "by user event: patches")}
    other = build_report(QUIET, ROLES, membership_of(member("web01")), None)
    assert brief(other) == {"web01": ("no line", "haproxy.cfg cannot be read")}
    assert (found.digest, found.confirmed, found.problems) == (None, None, ["it is gone"])


DIGEST = Document([("haproxy.cfg", planned_text(CFG, ROLES, membership_of(member("web01"))))]).compute_digest()


@pytest.mark.parametrize(
    ("served", "confirmed"),
    [
        (Served(DIGEST, 7, alive=True, failure=None), True),
        (Served(DIGEST, 7, alive=False, failure=None), False),
        (Served(DIGEST, None, alive=False, failure=None), False),
        (Served("other", 7, alive=True, failure=None), False),
        (Served(None, None, alive=False, failure=None), False),
    ],
)
def test_lines_are_confirmed_by_a_running_worker_only(served: Served, confirmed: bool) -> None:  # noqa: FBT001  # what is expected
    text = planned_text(CFG, ROLES, membership_of(member("web01")))

    found = build_report(
        QUIET._replace(served=served), ROLES, membership_of(member("web01")), Document([("haproxy.cfg", text)])
    )

    assert (found.digest, found.confirmed) == (DIGEST, confirmed)


def test_without_managed_lines_nothing_is_confirmed_or_unconfirmed() -> None:
    assert build(membership_of()).confirmed is None


def test_the_whole_json_object() -> None:
    failure = FailedReload(NOW - 5, 2, "the port is taken")
    sources = QUIET._replace(
        served=Served(DIGEST, 7, alive=True, failure=failure),
        stats={("lb-iis", "web01"): ServerStats("UP", 3)},
        events=SpoolState(1, NOW - 2),
        last_run=PastRun(NOW - 9, "member-join web01", "applied", "2 lines added, 0 removed"),
        old_workers=3,
        problems=("spool: Permission denied",),
    )
    membership = membership_of(member("web01", tags={"dc": "tokyo"}))
    text = planned_text(CFG, ROLES, membership)

    found = build_report(sources, ROLES, membership, Document([("haproxy.cfg", text)])).as_json()

    assert json.loads(json.dumps(found)) == {
        "version": 1,
        "at": NOW,
        "digest": DIGEST,
        "confirmed": True,
        "served": {
            "digest": DIGEST,
            "worker": 7,
            "alive": True,
            "failure": {"at": NOW - 5, "times": 2, "words": "the port is taken"},
        },
        "old_workers": 3,
        "stats_socket": {"address": "/run/haproxy/admin.sock", "error": None},
        "events": {"pending": 1, "oldest": NOW - 2},
        "last_run": {
            "at": NOW - 9,
            "why": "member-join web01",
            "outcome": "applied",
            "words": "2 lines added, 0 removed",
        },
        "blocked": [],
        "notes": [],
        "problems": ["spool: Permission denied"],
        "wrong": [
            {"kind": "reload", "what": "the reload failed 2 times: the port is taken", "since": NOW - 5},
            {"kind": "problem", "what": "spool: Permission denied", "since": None},
        ],
        "run": None,
        "last_success": None,
        "next_retry": NOW + 115,
        "sync": {"at": None, "failing": None, "words": ""},
        "daemon": {"running": None, "needed": False},
        "peers": [],
        "nodes": [
            {
                "name": "web01",
                "address": "10.0.0.1",
                "role": "web",
                "status": "alive",
                "state": "in",
                "since": NOW,
                "why": "",
                "pause": None,
                "paused_by_tag": False,
                "quarantine": None,
                "tags": {"dc": "tokyo"},
                "change": {"added": [], "removed": []},
                "servers": [
                    {
                        "proxy": "lb-iis",
                        "server": "web01",
                        "address": "10.0.0.1:80",
                        "line": "managed",
                        "state": "UP",
                        "sessions": 3,
                    },
                    {
                        "proxy": "mon-mongo",
                        "server": "web01",
                        "address": "10.0.0.1:27017",
                        "line": "managed",
                        "state": None,
                        "sessions": None,
                    },
                ],
            }
        ],
    }


def test_a_pause_in_json_has_its_end() -> None:
    found = build(membership_of(member("web01", pause=PAUSE))).as_json()["nodes"][0]["pause"]

    assert found == {"since": NOW - 60, "by": "user event", "reason": "patches", "until": NOW + 3600}


def keys(value: Mapping[str, Any], path: str = "") -> set[str]:
    """Every key of an object and of those in it, with its path."""
    found = set()
    for key, inner in value.items():
        found.add(f"{path}{key}")
        inside = inner[0] if isinstance(inner, list) and inner else inner
        if isinstance(inside, dict) and key != "tags":
            found |= keys(inside, f"{path}{key}.")
    return found
