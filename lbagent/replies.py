"""What the sender of a command is told of the run that took it."""

from __future__ import annotations

from collections.abc import Mapping

from lbagent.assent import judged
from lbagent.errors import LbagentError, NotYet, TryAgain
from lbagent.host.log import told
from lbagent.host.sockets import established
from lbagent.membership import Member, Membership
from lbagent.orders import DONE
from lbagent.outcome import Outcome, Verdict
from lbagent.plan import Plan
from lbagent.roles import Roles
from lbagent.roll import find
from lbagent.serf.command import Command
from lbagent.tuples import NamedTuple
from lbagent.wishes import serving_ports

QUEUED = "queued"
"""Stored, and not done yet."""


class Ran(NamedTuple):
    """A run that went well, and what it left behind."""

    membership: Membership
    plan: Plan | None
    roles: Roles
    outcome: Outcome
    answers: Mapping[str, str]
    """What the fold says, by record."""


def reply(record: str, command: Command, ran: Ran) -> str:
    """What is told of a command that stood in this record: `done` only where HAProxy has confirmed it."""
    told_by_fold = ran.answers.get(record, DONE)
    words = told_by_fold if told_by_fold != DONE else judged(command, ran.membership, ran.plan)
    if words != DONE:
        return words
    return _done(command, ran) if ran.outcome.confirmed else _unconfirmed(ran.outcome)


def failure(error: LbagentError | OSError) -> str:
    """What is told of a command whose run ended so: what is tried again by itself has been put off, not refused."""
    return QUEUED if isinstance(error, TryAgain | NotYet) else f"refused: {told(error)}"


def _unconfirmed(outcome: Outcome) -> str:
    return QUEUED if outcome.verdict is Verdict.QUEUED else "haproxy not seen"


def _done(command: Command, ran: Ran) -> str:
    member = find(ran.membership.members, command.name, command.address)
    count = _sessions(member, ran.roles) if member and command.verb == "pause" else 0
    return f"{DONE}, {count} {'session' if count == 1 else 'sessions'} still open" if count else DONE


def _sessions(member: Member, roles: Roles) -> int:
    """Connections from this host to where the node serves: after a reload only the kernel knows them all."""
    ports = serving_ports(roles, member)
    return sum(count for (address, port), count in established().items() if address == member.address and port in ports)
