"""Events, runs and accidents in any order: haproxy.cfg always matches membership."""

# ruff: noqa: E501  # a case of a table stands on one line

from __future__ import annotations

from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lbagent.haproxy.config import Document
from lbagent.membership.model import Membership
from lbagent.names import natural_key
from lbagent.planning.lines import rebuild_membership
from lbagent.serf.raw_event import RawEvent
from tests.helpers.builders import (
    NOW,
    command_event,
    dedent,
    managed_lines,
    member_event,
    parse_roles_text,
    plan_for,
    unmanaged_lines,
    updated_membership,
)

ROLES = parse_roles_text("""
    services: {iis: {port: 80}, api: {port: 8080, options: check}, tagged: {port: "{tag:port|9000}", options: "check weight {tag:weight|10}"}}
    roles:
      web: {lb: [iis]}
      app: {lb: [iis, api]}
      db: {lb: [tagged]}
""")
CFG = dedent("""
    # 設定 ソ
    listen one
        # additional-lb-iis-server
    backend two
        balance source
    \t# additional-lb-api-server
        server static 10.9.9.9:80
        # additional-lb-tagged-server
""").replace("\n", "\r\n")
OPTIONS = {"iis": "check inter 2s rise 2 fall 2", "api": "check"}

NAMES = ("web1", "web2", "web10", "Db-3", "app.x")
names = st.sampled_from(NAMES)
role_names = st.sampled_from(["web", "app", "db", "other"])
weights = st.sampled_from(["", "5", "7"])


class Node(NamedTuple):
    """What a node should come to."""

    role: str
    address: str
    weight: str
    there: bool
    paused: bool


class Cluster(RuleBasedStateMachine):
    """A load balancer that sees everything, beside a model that is too simple to be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.membership, self.ltime = CFG, Membership(), 0
        self.model: dict[str, Node] = {}
        self.said: list[RawEvent] = []

    def happens(self, kind: str, name: str, node: Node) -> None:
        """A member event, and the run it causes."""
        tags = f"role={node.role}" + (f",weight={node.weight}" if node.weight else "")
        self.membership = updated_membership(
            self.membership, member_event(kind, f"{name}\t{node.address}\t{node.role}\t{tags}")
        )
        self.runs()

    def runs(self) -> None:
        """Plan and write."""
        done = plan_for(self.text, ROLES, self.membership)
        assert done.blocked == ()
        (self.text,) = done.after

    @rule(name=names, role=role_names, weight=weights, subnet=st.integers(1, 2))
    def joins_or_changes(self, name: str, role: str, weight: str, subnet: int) -> None:
        """Boots, perhaps with another role, address or tags."""
        before = self.model.get(name)
        self.model[name] = Node(
            role, f"10.0.{subnet}.{NAMES.index(name) + 1}", weight, there=True, paused=bool(before and before.paused)
        )
        self.happens("member-join", name, self.model[name])

    @rule(name=names)
    def leaves(self, name: str) -> None:
        """Goes on purpose."""
        if name in self.model:
            self.model[name] = self.model[name]._replace(there=False)
            self.happens("member-leave", name, self.model[name])

    @rule(name=names)
    def fails(self, name: str) -> None:
        """Is not heard of any more; HAProxy's checks judge."""
        if name in self.model and self.model[name].there:
            self.happens("member-failed", name, self.model[name])

    @rule(name=names, verb=st.sampled_from(["pause", "resume"]), shout=st.booleans())
    def is_commanded(self, name: str, verb: str, shout: bool) -> None:  # noqa: FBT001
        """Paused or resumed, by a Windows host in capitals."""
        if name in self.model:
            self.ltime += 1
            self.model[name] = self.model[name]._replace(paused=verb == "pause")
            self.said.append(command_event(verb, name.upper() if shout else name, self.ltime))
            self.membership = updated_membership(self.membership, self.said[-1])
            self.runs()

    @rule(numbers=st.lists(st.integers(0, 99), max_size=4))
    def hears_commands_again(self, numbers: list[int]) -> None:
        """A replay, in any order, of what was said changes nothing."""
        again = [self.said[number % len(self.said)] for number in numbers if self.said]
        self.membership = updated_membership(self.membership, *again, clocks={"user": self.ltime + 1})
        self.runs()

    @rule()
    def loses_its_memory(self) -> None:
        """members.json is gone: what haproxy.cfg tells is all there is."""
        self.membership = rebuild_membership(Document([("haproxy.cfg", self.text)]), ROLES, NOW)
        self.model = {name: node for name, node in self.model.items() if node.there and node.role != "other"}
        self.said = []
        before = self.text
        self.runs()
        assert self.text == before
        # A node's tags are not in haproxy.cfg; Serf tells them again with its next event.
        for name, node in self.model.items():
            self.happens("member-update", name, node)

    @invariant()
    def the_operators_lines_are_his(self) -> None:
        """Byte for byte."""
        assert unmanaged_lines(self.text) == unmanaged_lines(CFG)

    @invariant()
    def the_lines_are_those_of_the_model(self) -> None:
        """No more, no fewer, in natural order."""
        assert [
            line.split(" id ")[0].split(" #")[0] if line.startswith("server") else line
            for line in managed_lines(self.text)
        ] == [
            *self.lines("iis", ("web", "app"), 80, ""),
            *self.lines("api", ("app",), 8080, ".api"),
            *self.lines("tagged", ("db",), 9000, ".tagged"),
        ]

    def lines(self, service: str, roles: tuple[str, ...], port: int, suffix: str) -> list[str]:
        """What should stand at one marker, without ids and comments."""
        found = []
        for name in sorted(
            (name for name, node in self.model.items() if node.there and node.role in roles),
            key=lambda one: natural_key(one + suffix),
        ):
            node = self.model[name]
            options = OPTIONS.get(service) or f"check weight {node.weight or 10}"
            server = f"server {name}{suffix} {node.address}:{port} {options}"
            found.append(f"# lbagent paused {name} {node.address} role={node.role}" if node.paused else server)
        return found

    @invariant()
    def planning_again_changes_nothing(self) -> None:
        """Equal membership is equal text."""
        assert plan_for(self.text, ROLES, self.membership).after == (self.text,)

    @invariant()
    def another_load_balancer_comes_to_the_same(self) -> None:
        """From the operator's text alone."""
        assert plan_for(CFG, ROLES, self.membership).after == (self.text,)


Cluster.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
TestCluster = Cluster.TestCase
