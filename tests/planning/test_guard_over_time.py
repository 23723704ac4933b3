"""The safety guard over time: a service is not emptied node by node either, and an invalid tag costs no line."""

# ruff: noqa: ISC004  # a long sentence of a list

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lbagent.membership import updates
from lbagent.membership.model import LEFT, LOST, REMOVALS_WINDOW, Member, Membership, Pause
from lbagent.names import TAG_RULE
from lbagent.planning import guard
from lbagent.planning.plan import Plan, PlanOptions
from lbagent.roles.model import Roles
from lbagent.state import store
from tests.helpers.builders import NOW, dedent, managed_lines, member, membership_of, parse_roles_text, plan_for
from tests.helpers.load_balancer_files import build_files
from tests.helpers.real_programs import LBAGENT

TEXT = dedent(
    """
    backend farm
        # additional-lb-iis-server
    """
)
PLAIN = "services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}, api: {lb: [none]}}"


class Balancer:
    """A load balancer that runs again and again, and is restarted between any two runs."""

    def __init__(self, roles: str, *members: Member) -> None:
        self.roles: Roles = parse_roles_text(roles)
        self.text = TEXT
        self.membership = membership_of(*members)
        self.run()

    def run(self, seconds: int = 0, *, force: bool = False) -> Plan:
        """One run, `seconds` after NOW."""
        now = NOW + seconds
        before = updates.drop_expired(store.parse_membership(store.serialize_membership(self.membership)), now)
        plan = plan_for(self.text, self.roles, before, PlanOptions(force=force))
        self.membership = guard.remember_removals(before, plan.removals, now, force=force)
        self.text = plan.after[0]
        return plan

    def edit(self, name: str, **fields: object) -> None:
        """A member changes."""
        one = self.membership.members[name]._replace(**fields)  # type: ignore[arg-type]
        self.membership = known_as(self.membership, {**self.membership.members, name: one})

    @property
    def servers(self) -> list[str]:
        """The servers that HAProxy has."""
        return [line.split()[1] for line in managed_lines(self.text) if line.startswith("server")]


def known_as(membership: Membership, members: dict[str, Member]) -> Membership:
    """Membership with other members."""
    return membership._replace(members=members)


def web(count: int, **tags: str) -> list[Member]:
    """The nodes web1 to webN."""
    return [member(f"web{at}", f"10.0.0.{at}", "web", dict(tags)) for at in range(1, count + 1)]


WAYS: dict[str, Callable[[Balancer, str], None]] = {
    "no role": lambda lb, name: lb.edit(name, role=""),
    "a disallowed address": lambda lb, name: lb.edit(name, address=f"169.254.0.{name[3:]}"),
    "loopback": lambda lb, name: lb.edit(name, address=f"127.0.0.{name[3:]}"),
    "missed by serf's list": lambda lb, name: lb.edit(name, status=LOST),
}


@pytest.mark.parametrize("way", WAYS)
def test_removals_one_node_at_a_time_stop_at_half(way: str) -> None:
    lb = Balancer(PLAIN, *web(4))

    plans = []
    for at in range(1, 5):
        WAYS[way](lb, f"web{at}")
        plans.append(lb.run(60 * at))

    assert lb.servers == ["web3", "web4"]
    assert [[str(one) for one in plan.blocked] for plan in plans] == [
        [],
        [],
        [
            "1 of 2 lines at '# additional-lb-iis-server' in backend farm would be removed: web3"
            "; 2 more were removed within the last 60 minutes: web1, web2"
        ],
        [
            "2 of 2 lines at '# additional-lb-iis-server' in backend farm would be removed: web3, web4"
            "; 2 more were removed within the last 60 minutes: web1, web2"
        ],
    ]


@pytest.mark.parametrize(
    "edits",
    [
        [f"networks: [10.0.0.{at}/32, 10.0.0.4/32]" for at in (3, 4)],
        ["networks: [10.0.0.2/31, 10.0.0.4/32]", "networks: [10.0.0.3/32, 10.0.0.4/32]", "networks: [10.0.0.4/32]"],
    ],
)
def test_repeated_edits_of_roles_yml_remove_at_most_half(edits: list[str]) -> None:
    lb = Balancer(PLAIN, *web(4))
    plan = lb.run()

    for at, edit in enumerate(edits, 1):
        lb.roles = parse_roles_text(f"services: {{iis: {{port: 80}}}}\nroles: {{web: {{lb: [iis], {edit}}}}}")
        plan = lb.run(30 * at)

    assert plan.blocked
    assert len(lb.servers) >= 2


def test_blocked_removals_stay_blocked_until_force() -> None:
    lb = Balancer(PLAIN, *web(3))
    lb.edit("web1", role="")
    lb.run(0)
    lb.edit("web2", role="")

    for seconds in range(60, 4 * REMOVALS_WINDOW, REMOVALS_WINDOW // 4):
        assert lb.run(seconds).blocked
        assert lb.servers == ["web2", "web3"]

    plan = lb.run(4 * REMOVALS_WINDOW, force=True)

    assert plan.blocked == ()
    assert lb.servers == ["web3"]
    assert lb.membership.removals == {}


def test_an_old_removal_does_not_count() -> None:
    lb = Balancer(PLAIN, *web(4))
    for at in (1, 2):
        lb.edit(f"web{at}", role="")
        lb.run(at)

    lb.edit("web3", role="")
    plan = lb.run(REMOVALS_WINDOW + 3)

    assert plan.blocked == ()
    assert lb.servers == ["web4"]


def test_a_removal_recorded_in_the_future_is_forgotten() -> None:
    lb = Balancer(PLAIN, *web(3))
    lb.edit("web1", role="")
    lb.run(10 * REMOVALS_WINDOW)
    lb.edit("web2", role="")

    assert lb.run(0).blocked == ()


def test_a_node_that_returned_does_not_count() -> None:
    lb = Balancer(PLAIN, *web(3))
    for at, name in enumerate(["web1", "web2", "web3"]):
        lb.edit(name, role="")
        assert lb.run(10 * at).blocked == ()
        lb.edit(name, role="web")
        assert lb.run(10 * at + 5).blocked == ()

    assert lb.servers == ["web1", "web2", "web3"]


@pytest.mark.parametrize(
    "asked",
    [
        lambda lb, name: lb.edit(name, status=LEFT),
        lambda lb, name: lb.edit(name, pause=Pause(NOW, "me")),
        lambda lb, name: lb.edit(name, role="api"),
        lambda lb, name: lb.edit(name, role="retired"),
        lambda lb, name: lb.edit(name, tags={"lbagent": "paused"}),
    ],
    ids=["leave", "pause", "another role", "a role without an entry", "paused by tag"],
)
def test_requested_removals_are_never_blocked(asked: Callable[[Balancer, str], None]) -> None:
    lb = Balancer(PLAIN, *web(4))

    for at in range(1, 5):
        asked(lb, f"web{at}")
        assert lb.run(at).blocked == ()

    assert lb.servers == []


def test_a_node_that_left_after_it_was_removed_does_not_count() -> None:
    lb = Balancer(PLAIN, *web(3))
    lb.edit("web1", role="")
    lb.run(0)
    lb.edit("web1", status=LEFT)
    lb.edit("web2", role="")

    assert lb.run(1).blocked == ()
    assert lb.servers == ["web3"]


def test_members_json_of_an_older_version_is_read() -> None:
    state = json.loads(store.serialize_membership(membership_of(*web(1))))
    del state["removals"]

    assert store.parse_membership(json.dumps(state).encode()).removals == {}


@pytest.mark.parametrize("removals", [[], {"x": 1}, {"x": {"web1": "now"}}, {"x": {"web1": 1.5}}, "x"])
def test_invalid_removals_in_members_json_are_damage(removals: object) -> None:
    state = json.loads(store.serialize_membership(membership_of(*web(1))))
    state["removals"] = removals

    with pytest.raises(store.Damaged):
        store.parse_membership(json.dumps(state).encode())


# --- a tag that became invalid -------------------------------------------------------------------------------------

WEIGHTED = """
    services: {iis: {port: "{tag:port|80}", options: "check weight {tag:weight}"}}
    roles: {web: {lb: [iis]}, api: {lb: [iis]}}
"""


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"weight": "50%"}, f"its tag 'weight' is invalid: '50%'; use {TAG_RULE}"),
        (
            {"weight": "5 backup"},
            f"its tag 'weight' is invalid: '5 backup'; use {TAG_RULE}",
        ),
        ({}, "its tag 'weight' is not set"),
        ({"weight": ""}, "its tag 'weight' is not set"),
        ({"weight": "5", "port": "http"}, "invalid port 'http'; use 1 to 65535"),
        ({"weight": "5", "port": "0"}, "invalid port '0'; use 1 to 65535"),
    ],
)
def test_a_tag_that_becomes_invalid_keeps_the_line_of_every_node(tags: dict[str, str], why: str) -> None:
    lb = Balancer(WEIGHTED, *web(3, weight="5"))
    before, plan = lb.text, lb.run()

    for at in range(1, 4):
        lb.edit(f"web{at}", tags=tags)
        plan = lb.run(at)

    assert lb.text == before
    assert plan.blocked == ()
    assert plan.notes == tuple(f"web{at}: keeps its line in backend farm: {why}" for at in range(1, 4))


def test_a_new_node_with_an_invalid_tag_has_no_line() -> None:
    lb = Balancer(WEIGHTED, *web(1, weight="50%"))

    assert lb.servers == []
    assert lb.run().notes == (f"web1: no line for iis: its tag 'weight' is invalid: '50%'; use {TAG_RULE}",)


def test_a_kept_line_follows_its_node_to_another_address() -> None:
    lb = Balancer(WEIGHTED, *web(1, weight="5"))
    lb.edit("web1", tags={"weight": "50%"}, address="10.0.0.9")
    lb.run()

    assert managed_lines(lb.text) == ["server web1 10.0.0.9:80 check weight 5 # lbagent role=web"]


def test_a_kept_line_is_removed_when_an_alive_node_has_its_address() -> None:
    lb = Balancer(WEIGHTED, *web(1, weight="5"))
    lb.edit("web1", tags={"weight": "50%"}, status="failed")
    new = member("new", "10.0.0.1", "web", {"weight": "7"})
    lb.membership = known_as(lb.membership, {**lb.membership.members, "new": new})
    lb.run()

    assert managed_lines(lb.text) == ["server new 10.0.0.1:80 check weight 7 # lbagent role=web"]


def test_a_node_with_an_invalid_tag_can_be_paused_and_keeps_its_comment() -> None:
    lb = Balancer(WEIGHTED, *web(2, weight="5"))
    lb.edit("web1", tags={"weight": "50%"}, pause=Pause(NOW, "me"))
    lb.run()

    assert managed_lines(lb.text)[0] == "# lbagent paused web1 10.0.0.1 role=web"
    assert lb.run().after == (lb.text,)


def test_a_node_with_an_invalid_tag_that_leaves_is_removed() -> None:
    lb = Balancer(WEIGHTED, *web(2, weight="5"))
    lb.edit("web1", tags={"weight": "50%"})
    lb.run()
    lb.edit("web1", status=LEFT)

    assert lb.run().blocked == ()
    assert lb.servers == ["web2"]


@pytest.mark.parametrize("role", ["we b", "web!", ",", "-web", "web\n", "\udc83", "wéb"])
def test_an_invalid_role_tag_keeps_the_lines(role: str) -> None:
    lb = Balancer(PLAIN, *web(3))
    before, plan = lb.text, lb.run()

    for at in range(1, 4):
        lb.edit(f"web{at}", role=role)
        plan = lb.run(at)

    assert lb.text == before
    assert plan.blocked == ()
    assert (
        plan.notes[0]
        == f"web1: keeps its line in backend farm: its role {role!r} is not [A-Za-z0-9][A-Za-z0-9._-]{{0,62}}"
    )


def test_a_node_with_an_invalid_role_tag_can_be_paused_and_resumed() -> None:
    lb = Balancer(PLAIN, *web(2))
    lb.edit("web1", role="we b", pause=Pause(NOW, "me"))
    lb.run()

    assert managed_lines(lb.text)[0] == "# lbagent paused web1 10.0.0.1 role=web"
    assert lb.run().after == (lb.text,)

    lb.edit("web1", pause=None)
    lb.run()

    assert lb.servers == ["web2"]


def test_a_moved_node_with_an_invalid_role_tag_counts_for_the_safety_guard() -> None:
    lb = Balancer(PLAIN, *web(2))
    for at in (1, 2):
        lb.edit(f"web{at}", role="we b", address=f"10.0.1.{at}")

    assert lb.run().blocked
    assert lb.servers == ["web1", "web2"]


# --- through the program -------------------------------------------------------------------------------------------


def test_repeated_edits_exit_with_3_and_force_applies_them(tmp_path: Path) -> None:
    stage = build_files(tmp_path, str(LBAGENT), TEXT, "", shutil.which("true"))
    head = f"haproxy: {{config: {stage.cfg}}}\nservices: {{iis: {{port: 80}}}}\n"
    stage.roles.write_text(f"{head}roles: {{web: {{lb: [iis]}}}}\n")
    assert stage.join("web1 10.0.0.1", "web2 10.0.0.2", "web3 10.0.0.3").status == 0

    stage.roles.write_text(f"{head}roles: {{web: {{lb: [iis], networks: [10.0.0.2/31]}}}}\n")
    first = stage.run("apply")
    stage.roles.write_text(f"{head}roles: {{web: {{lb: [iis], networks: [10.0.0.3/32]}}}}\n")
    second = stage.run("apply")
    left = stage.managed
    forced = stage.run("apply", "--force")

    assert [one.status for one in (first, second, forced)] == [0, 3, 0]
    assert "; 1 more were removed within the last 60 minutes: web1" in second.err
    assert [line.split()[1] for line in left] == ["web2", "web3"]
    assert [line.split()[1] for line in stage.managed] == ["web3"]


def test_an_invalid_weight_removes_no_line(tmp_path: Path) -> None:
    roles = 'services: {iis: {port: 80, options: "check weight {tag:weight|100}"}}\nroles: {web: {lb: [iis]}}\n'
    stage = build_files(tmp_path, str(LBAGENT), TEXT, roles, shutil.which("true"))
    nodes = [f"web{at}\t10.0.0.{at}\tweb\trole=web,weight=" for at in range(1, 4)]
    stage.handle("member-join", "".join(f"{node}5\n" for node in nodes).encode())
    before = stage.cfg.read_bytes()

    done = [stage.handle("member-update", f"{node}50%\n".encode()) for node in nodes]

    assert [one.status for one in done] == [0, 0, 0]
    assert f"web1: keeps its line in backend farm: its tag 'weight' is invalid: '50%'; use {TAG_RULE}" in done[0].err
    assert stage.cfg.read_bytes() == before
    assert len(stage.managed) == 3
