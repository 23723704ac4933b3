"""The state of every node, told from haproxy.cfg, roles.yml, membership and HAProxy's words: values in, values out."""

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
from lbagent.status.report import Events, Failed, Report, Served, Sources, StatsSocket, report
from tests.helpers.builders import NOW, dedent, known, member, planned, reading

ROLES = reading("""
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
    Events(0, None),
    None,
    0,
    (),
)
PAUSE = Pause(NOW - 60, "user event", "patches", NOW + 3600)


def told(membership: Membership, text: str | None = None, stats: Stats | None = None, roles: Roles = ROLES) -> Report:
    """The report where haproxy.cfg is what the plan wants, unless it is given."""
    text = planned(CFG, roles, membership) if text is None else text
    sources = QUIET._replace(stats=stats or {})
    return report(sources, roles, membership, Document([("haproxy.cfg", text)]))


def brief(found: Report) -> dict[str, tuple[str, str]]:
    """State and reason of each node."""
    return {node.name: (node.state.value, node.why) for node in found.nodes}


def only(found: Report) -> Node:
    """The one node there is."""
    (node,) = found.nodes
    return node


def one(membership: Member, text: str | None = None) -> tuple[str, str]:
    """State and reason of a node that is alone."""
    (found,) = brief(told(known(membership), text)).values()
    return found


def test_a_node_that_is_in_tells_its_proxies_and_what_haproxy_says() -> None:
    stats = {
        ("lb-iis", "web01"): ServerStats("UP", 3),
        ("mon-mongo", "web01"): ServerStats("DOWN 1/2", 0),
        ("x", "web01"): ServerStats("UP", 9),
    }

    node = only(told(known(member("web01")), stats=stats))

    assert (node.state, node.since, node.why) == ("in", NOW, "")
    assert node.servers == [
        ServerState("lb-iis", "web01", "10.0.0.1:80", "managed", "UP", 3),
        ServerState("mon-mongo", "web01", "10.0.0.1:27017", "managed", "DOWN 1/2", 0),
    ]


def test_nodes_stand_in_natural_order() -> None:
    names = ["web10", "web9", "Web1", "web2"]

    found = told(known(*(member(name, f"10.0.0.{at}") for at, name in enumerate(names, 1))))

    assert [node.name for node in found.nodes] == ["Web1", "web2", "web9", "web10"]


def test_server_names_of_a_proxy_with_several_services_are_their_nodes() -> None:
    text = CFG.replace("backend mon-mongo\n", "")
    stats = {("lb-iis", "web01.iis"): ServerStats("UP", 1), ("lb-iis", "web01.mongo"): ServerStats("NOLB", 2)}
    membership = known(member("web01"))

    node = only(told(membership, planned(text, ROLES, membership), stats))

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
def test_a_paused_node_tells_by_whom_and_why(tags: dict[str, str], pause: Pause | None, why: str, since: int) -> None:
    node = only(told(known(member("web01", tags=tags, pause=pause))))

    assert (node.state, node.why, node.since, node.pause) == ("paused", why, since, pause)
    assert node.paused_by_tag == bool(tags)
    assert [one.line for one in node.servers] == ["paused", "paused"]


def test_a_paused_node_whose_server_haproxy_still_has_tells_of_it() -> None:
    stats = {("lb-iis", "web01"): ServerStats("MAINT", 2)}

    node = only(told(known(member("web01", pause=PAUSE)), stats=stats))

    assert node.servers == [
        ServerState("lb-iis", "web01", "10.0.0.1", "paused", "MAINT", 2),
        ServerState("mon-mongo", None, "10.0.0.1", "paused", None, None),
    ]


def test_a_pause_holds_for_the_host_under_its_other_name() -> None:
    roles = reading("{services: {iis: {port: 80}}, roles: {web: {lb: [iis]}, api: {mon: [iis]}}}")
    text = CFG.replace("mon-mongo-server", "mon-iis-server")
    membership = known(member("old", pause=PAUSE), member("new", role="api"))

    found = told(membership, planned(text, roles, membership), roles=roles)

    assert brief(found) == {
        "new": ("paused", "as old, by user event: patches"),
        "old": ("paused", "by user event: patches"),
    }


def test_a_failed_node_is_in_or_out_as_its_role_says() -> None:
    membership = known(member("api01", role="api"), member("api02", "10.0.0.2", "api", status=FAILED))

    assert brief(told(membership)) == {
        "api01": ("in", ""),
        "api02": ("failed", "iis: it has failed, and `on_failed` is `remove`"),
    }
    assert one(member("web01", status=FAILED)) == ("failed", "its line stays")


@pytest.mark.parametrize("line", ["server WEB01 10.9.9.9:1", "server old 10.0.0.1:80 check"])
def test_a_line_by_hand_is_told_with_its_name_and_what_haproxy_says(line: str) -> None:
    text = CFG.replace("    # additional-lb-iis", f"    {line}\n    # additional-lb-iis").replace(
        "mon-mongo-s", "x-y-s"
    )
    name, address = line.split()[1:3]

    node = only(told(known(member("web01")), text, {("lb-iis", name): ServerStats("no check", 1)}))

    assert (node.state, node.why) == (
        "by hand",
        "in listen lb-iis: an operator's line has its name or address, pauses do not affect it",
    )
    assert node.servers == [ServerState("lb-iis", name, address, "by hand", "no check", 1)]


def test_a_line_by_hand_beside_managed_ones_does_not_make_the_node_by_hand() -> None:
    text = CFG.replace("    # additional-lb-iis", "    server web01 10.0.0.1:80\n    # additional-lb-iis")
    membership = known(member("web01"))

    node = only(told(membership, planned(text, ROLES, membership)))

    assert node.state == "in"
    assert [(one.proxy, one.line) for one in node.servers] == [("lb-iis", "by hand"), ("mon-mongo", "managed")]


def test_a_paused_node_that_stands_by_hand_is_not_told_to_be_out() -> None:
    text = CFG.replace("    # additional-lb-iis", "    server web01 10.0.0.1:80\n    # additional-lb-iis")

    state, why = one(member("web01", pause=PAUSE), text.replace("mon-mongo-s", "x-y-s"))

    assert state == "by hand"
    assert (
        why == "paused by user event: patches; in listen lb-iis: "
        "an operator's line has its name or address, pauses do not affect it"
    )


@pytest.mark.parametrize(
    "line", ["server other 10.0.0.1:81", "server other 10.0.0.2:80", "server web01 10.0.0.1:80"], ids=str
)
def test_lines_by_hand_in_other_proxies_or_of_others_are_nobodys(line: str) -> None:
    text = f"{CFG}backend own\n    {line}\n"
    membership = known(member("web01"))

    assert [one.line for one in only(told(membership, planned(text, ROLES, membership))).servers] == ["managed"] * 2


def test_a_line_by_hand_for_another_port_of_the_host_does_not_stand_in_its_place() -> None:
    text = CFG.replace("    # additional-lb-iis", "    server other 10.0.0.1:81\n    # additional-lb-iis")
    membership = known(member("web01"))

    assert [one.line for one in only(told(membership, planned(text, ROLES, membership))).servers] == ["managed"] * 2


def test_a_line_by_hand_of_who_has_left_is_nobodys() -> None:
    text = CFG.replace("    # additional-lb-iis", "    server web01 10.0.0.1:80\n    # additional-lb-iis")

    assert brief(told(known(member("web01", status=LEFT)), text)) == {}


def test_a_quarantined_node_tells_haproxys_whole_reason() -> None:
    membership = known(member("web01"), member("web02", "10.0.0.2", tags={"mongo": "1"}))
    text = planned(CFG, ROLES, membership)
    document = Document([("haproxy.cfg", text)])
    changed = known(member("web01"), member("web02", "10.0.0.2", tags={"mongo": "2"}))
    reason = "parsing [haproxy.cfg:5]: " + "unknown keyword " * 20
    held = quarantine.quarantine_nodes(
        changed, {"web02": reason}, quarantine.fingerprint_context(document, ROLES), NOW - 5
    )

    found = told(held, text)

    assert brief(found) == {"web01": ("in", ""), "web02": ("quarantined", reason)}
    assert (found.nodes[1].since, found.nodes[1].change) == (NOW - 5, Change())
    assert found.as_json()["nodes"][1]["quarantine"] == {"since": NOW - 5, "reason": reason}


def test_a_quarantine_that_is_over_is_pending() -> None:
    membership = quarantine.quarantine_nodes(known(member("web01")), {"web01": "refused"}, "other surroundings", NOW)

    assert brief(told(membership, CFG)) == {"web01": ("pending", "its lines are to come")}


@pytest.mark.parametrize(
    ("address", "role", "tags", "why"),
    [
        ("192.168.0.1", "web", {}, "192.168.0.1 is outside the role's networks"),
        ("10.0.0.1", "idle", {}, "its role has no service"),
    ],
)
def test_a_node_without_a_line_tells_why(address: str, role: str, tags: dict[str, str], why: str) -> None:
    assert one(member("web01", address, role, tags)) == ("no line", why)


def test_a_node_whose_marker_is_missing_tells_so() -> None:
    found = told(known(member("web01")), CFG.replace("additional", "no"))

    assert brief(found) == {"web01": ("no line", "haproxy.cfg has no marker of its role")}
    assert found.notes == [
        "haproxy.cfg has no marker '# additional-lb-iis-server'",
        "haproxy.cfg has no marker '# additional-mon-mongo-server'",
    ]


def test_a_node_that_has_one_of_its_lines_tells_why_it_lacks_the_other() -> None:
    node = only(told(known(member("web01", tags={"mongo": "a b"}))))

    assert (node.state, node.why) == (
        "in",
        "mongo: its tag 'mongo' is invalid: 'a b'; use at most 64 letters, digits, '.', '-' and '_'",
    )
    assert [one.proxy for one in node.servers] == ["lb-iis"]


def test_a_newcomer_beyond_the_maximum_tells_so() -> None:
    membership = known(*(member(f"api0{at}", f"10.0.0.{at}", "api") for at in (1, 2, 3)))

    assert brief(told(membership)) == {
        "api01": ("in", ""),
        "api02": ("in", ""),
        "api03": ("no line", "iis: role api has reached its maximum of 2"),
    }


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (None, member("web01"), "its lines are to come"),
        (member("web01"), member("web01", "10.0.0.2"), "its lines are to change"),
        (member("web01"), member("web01", status=LEFT), "its lines are to go; the node has left"),
        (member("web01"), member("web01", pause=PAUSE), "its lines are to change; paused by user event: patches"),
    ],
)
def test_what_haproxy_cfg_does_not_tell_yet_is_pending(before: Member | None, after: Member, why: str) -> None:
    text = planned(CFG, ROLES, known(before)) if before else CFG

    assert one(after, text) == ("pending", why)


def test_a_pending_node_tells_its_lines() -> None:
    node = only(told(known(member("web01")), CFG.replace("mon-mongo-s", "x-y-s")))

    assert node.change == Change((f"listen lb-iis: server web01 10.0.0.1:80 {OPTIONS} # lbagent role=web",))


def test_what_the_guard_holds_is_held() -> None:
    names = [f"web0{at}" for at in (1, 2, 3)]
    members = [member(name, f"10.0.0.{at}") for at, name in enumerate(names, 1)]
    text = planned(CFG, ROLES, known(*members))
    lost = known(members[0], *(one._replace(status=LOST) for one in members[1:]))

    found = told(lost, text)

    assert brief(found) == {
        "web01": ("in", ""),
        "web02": ("held", "its removal was not asked for; Serf does not list the node any more"),
        "web03": ("held", "its removal was not asked for; Serf does not list the node any more"),
    }
    assert found.held == [
        "2 of 3 lines at '# additional-lb-iis-server' in listen lb-iis would be removed: web02, web03",
        "2 of 3 lines at '# additional-mon-mongo-server' in backend mon-mongo would be removed: web02, web03",
    ]


def test_who_is_of_another_role_is_told_though_roles_yml_does_not_know_it() -> None:
    membership = known(member("lb01", role="lb"), member("x", role=""))

    assert brief(told(membership)) == {
        "lb01": ("load balancer", ""),
        "x": ("unknown role", "it has no role"),
    }


def test_pauses_are_told_though_their_nodes_are_not_there() -> None:
    unknown = Member("web98", "", "", None, UNKNOWN, NOW, Pause(NOW - 7, "query", "later"))
    membership = known(unknown, member("web99", status=LEFT, pause=PAUSE))

    found = told(membership)

    assert brief(found) == {
        "web98": ("unknown", "paused by query: later"),
        "web99": ("left", "paused by user event: patches"),
    }
    assert [(node.address, node.since) for node in found.nodes] == [(None, NOW - 7), ("10.0.0.1", NOW - 60)]


@pytest.mark.parametrize("status", [LEFT, LOST])
def test_who_has_gone_with_nothing_special_is_not_told_of(status: str) -> None:
    assert brief(told(known(member("web01", status=status)))) == {}


def test_a_line_of_somebody_nobody_knows_is_told() -> None:
    text = planned(CFG, ROLES, known(member("web01"), member("web02", "10.0.0.2"), member("web03", "10.0.0.3")))

    found = told(known(member("web01"), member("web03", "10.0.0.3")), text)

    node = found.nodes[1]
    assert brief(found)["web02"] == ("pending", "its lines are to go; Serf has not reported the node")
    assert (node.name, node.address, node.role, node.status, node.since) == ("web02", "10.0.0.2", None, None, None)


def test_what_was_read_off_haproxy_cfg_does_not_tell_since_when() -> None:
    text = planned(CFG, ROLES, known(member("web01"), member("web02", "10.0.0.2", pause=PAUSE)))

    found = told(rebuild_membership(Document([("haproxy.cfg", text)]), ROLES, NOW), text)

    assert [(node.name, node.since) for node in found.nodes] == [("web01", None), ("web02", None)]
    assert brief(found)["web02"] == ("paused", "by haproxy.cfg")


def test_a_doubled_marker_is_a_problem_and_the_nodes_are_told_all_the_same() -> None:
    text = planned(CFG, ROLES, known(member("web01"))).replace(
        "listen lb-iis\n", "listen lb-iis\n    # additional-lb-iis-server\n"
    )

    found = told(known(member("web01")), text)

    assert brief(found) == {"web01": ("in", "")}
    assert brief(told(known(member("web01"), member("web02", "10.0.0.2")), text))["web02"] == (
        "no line",
        "what is to come of haproxy.cfg cannot be planned",
    )
    marker = "# additional-lb-iis-server"
    assert found.problems == [
        f"haproxy.cfg:6: marker '{marker}' appears twice in listen lb-iis, first at haproxy.cfg:4; delete one"
    ]


def test_without_haproxy_cfg_the_nodes_are_told_all_the_same() -> None:
    found = report(QUIET._replace(problems=("it is gone",)), ROLES, known(member("web01", pause=PAUSE)), None)

    assert brief(found) == {"web01": ("paused", "by user event: patches")}
    other = report(QUIET, ROLES, known(member("web01")), None)
    assert brief(other) == {"web01": ("no line", "haproxy.cfg cannot be read")}
    assert (found.digest, found.confirmed, found.problems) == (None, None, ["it is gone"])


DIGEST = Document([("haproxy.cfg", planned(CFG, ROLES, known(member("web01"))))]).compute_digest()


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
def test_confirmed_is_what_a_living_worker_has_confirmed(served: Served, confirmed: bool) -> None:  # noqa: FBT001  # what is expected
    text = planned(CFG, ROLES, known(member("web01")))

    found = report(QUIET._replace(served=served), ROLES, known(member("web01")), Document([("haproxy.cfg", text)]))

    assert (found.digest, found.confirmed) == (DIGEST, confirmed)


def test_where_no_line_is_managed_there_is_nothing_to_confirm() -> None:
    assert told(known()).confirmed is None


def test_the_whole_json_object() -> None:
    failure = Failed(NOW - 5, 2, "the port is taken")
    sources = QUIET._replace(
        served=Served(DIGEST, 7, alive=True, failure=failure),
        stats={("lb-iis", "web01"): ServerStats("UP", 3)},
        events=Events(1, NOW - 2),
        last_run=PastRun(NOW - 9, "member-join web01", "applied", "2 lines added, 0 removed"),
        old_workers=3,
        problems=("spool: Permission denied",),
    )
    membership = known(member("web01", tags={"dc": "tokyo"}))
    text = planned(CFG, ROLES, membership)

    found = report(sources, ROLES, membership, Document([("haproxy.cfg", text)])).as_json()

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
        "held": [],
        "notes": [],
        "problems": ["spool: Permission denied"],
        "wrong": [
            {"kind": "reload", "what": "failed 2 times: the port is taken", "since": NOW - 5},
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
    found = told(known(member("web01", pause=PAUSE))).as_json()["nodes"][0]["pause"]

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
