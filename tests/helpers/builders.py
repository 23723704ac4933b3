"""Functions that build roles, members, events and texts in one line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping

from hypothesis import strategies as st

from lbagent.haproxy.config import Document
from lbagent.membership import model, updates
from lbagent.membership.model import ALIVE, Member, Membership, Pause, Quarantine
from lbagent.membership.updates import UpdateResult, apply_events
from lbagent.planning.plan import Plan, PlanOptions, make_plan
from lbagent.roles import loader
from lbagent.roles.model import Roles
from lbagent.serf.events import parse_event
from lbagent.serf.raw_event import RawEvent

NOW = 1_700_000_000
"""The default time of everything in the tests, in epoch seconds."""

POISON = (
    *"\n\r\t\0\x0b\x0c\x1b\x7f #'\"\\$`;|&(){}[]<>=,:@/%^~*?!",
    "\r\n",
    "\x1c",
    "\x85",
    "\xa0",
    "\u2028",
    "\u3000",
    "\uff10",
    "\u0660",
    "é",
    "日",
    "\udc83",
    "\udcff",
    " server evil 6.6.6.6:80 ",
    "\n    server evil 6.6.6.6:80",
    "..",
    "${HOME}",
)
"""Each of these, inserted into a valid value, makes it invalid or different."""

MANAGED = re.compile(
    r"[ \t]*(?:"
    r"server [A-Za-z0-9][A-Za-z0-9._-]{0,126}"
    r" (?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9a-f:.]{2,45}\]):[1-9][0-9]{0,4}"
    r"(?:[ \t]+[!\"$-~]+)*"
    r" # lbagent (?:paused )?role=[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
    r"|# lbagent paused [A-Za-z0-9][A-Za-z0-9._-]{0,62} [0-9a-f:.]{2,45} role=[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
    r")\r?"
)
"""Matches managed lines, and no other line of a file."""


def nearly_valid(good: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return a strategy of valid values with one bad character inserted."""
    return st.builds(
        lambda text, bad, at: text[:at] + bad + text[at:], good, st.sampled_from(POISON), st.integers(0, 12)
    )


def dedent(text: str) -> str:
    """Return the text without its common indentation and first line end."""
    return textwrap.dedent(text.removeprefix("\n"))


def parse_roles_text(text: str) -> Roles:
    """Return the roles of a roles.yml."""
    return loader.parse_roles(dedent(text).encode(), "roles.yml")


def member(  # the fields of a member
    name: str,
    address: str = "10.0.0.1",
    role: str = "web",
    tags: Mapping[str, str] | None = None,
    status: str = ALIVE,
    pause: Pause | None = None,
    quarantine: Quarantine | None = None,
) -> Member:
    """Return a member, by default alive and without tags."""
    return Member(name, address, role, {} if tags is None else tags, status, NOW, pause, {}, quarantine)


def paused_member(one: Member) -> Member:
    """Return the member with a pause."""
    return one._replace(pause=Pause(NOW, "user event"))


def membership_of(*members: Member) -> Membership:
    """Return a membership of these members."""
    return Membership({one.name: one for one in members})


def plan_for(text: str, roles: Roles, membership: Membership, rules: PlanOptions | None = None) -> Plan:
    """Return the plan for one haproxy.cfg."""
    return make_plan(Document([("haproxy.cfg", text)]), roles, membership, rules or PlanOptions())


def planned_text(text: str, roles: Roles, membership: Membership, rules: PlanOptions | None = None) -> str:
    """Return haproxy.cfg after the plan."""
    (after,) = plan_for(text, roles, membership, rules).after
    return after


def managed_lines(text: str) -> list[str]:
    """Return the managed lines of a text, stripped."""
    return [line.strip() for line in text.split("\n") if MANAGED.fullmatch(line)]


def unmanaged_lines(text: str) -> list[str]:
    """Return all other lines, unchanged."""
    return [line for line in text.split("\n") if not MANAGED.fullmatch(line)]


def member_event(kind: str, *lines: str, identity: str = "a", at: int = NOW, self_name: str = "lb01") -> RawEvent:
    """Return a member event with these lines."""
    payload = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    return RawEvent(identity, at * 1000, kind, "", None, self_name, payload)


def join_event(*lines: str) -> RawEvent:
    """Return a member-join with these lines."""
    return member_event("member-join", *lines)


def command_event(verb: str, payload: str, ltime: int | None = None, clock: str = "user", at: int = NOW) -> RawEvent:
    """Return a pause or resume."""
    return RawEvent("a", at * 1000, clock, verb, ltime, "lb01", payload.encode("utf-8", "surrogateescape"))


def update_membership(membership: Membership, *raws: RawEvent, clocks: Mapping[str, int] | None = None) -> UpdateResult:
    """Return the result of events."""
    return apply_events(
        membership, [(raw._replace(id=f"{at}"), parse_event(raw)) for at, raw in enumerate(raws)], clocks or {}
    )


def updated_membership(membership: Membership, *raws: RawEvent, clocks: Mapping[str, int] | None = None) -> Membership:
    """Return the membership after events."""
    return update_membership(membership, *raws, clocks=clocks).membership


def reorder_members(membership: Membership, order: Iterable[str]) -> Membership:
    """Return the same membership with its members in another order."""
    return membership._replace(members={name: membership.members[name] for name in order})


def paused_names(membership: Membership) -> list[str]:
    """Return the names of the paused members, sorted."""
    return sorted(model.find_paused(membership))


def search_member(membership: Membership, name: str, address: str | None = None) -> Member | None:
    """Return the member that a name or address means."""
    return model.find_member(membership.members, name, address)


def drop_expired_of(membership: Membership, now: int) -> Membership:
    """Return membership without what has expired."""
    return updates.drop_expired(membership, now)
