"""What the sender of a command is answered: `done` only where HAProxy has confirmed it for that very node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbagent import scene
from lbagent.apply import Transaction
from lbagent.assent import judged, names_of_host
from lbagent.errors import LbagentError, NotStored, NotYet, TryAgain
from lbagent.haproxy import roster
from lbagent.haproxy.roster import Key
from lbagent.host.log import told
from lbagent.host.sockets import established
from lbagent.membership import Member
from lbagent.orders import DONE, NOT_YET
from lbagent.outcome import Outcome, Verdict
from lbagent.planning import last_server
from lbagent.roles import Roles
from lbagent.roll import find
from lbagent.serf.command import Command
from lbagent.tuples import NamedTuple
from lbagent.wishes import serving_ports

QUEUED = "queued"
"""Stored, and not done yet."""


class Ran(NamedTuple):
    """A run, how it ended, and what it left behind."""

    roles: Roles | None
    transaction: Transaction | None
    outcome: Outcome | None
    """None where it failed."""
    answers: Mapping[str, str]
    """What the fold says, by record."""
    error: BaseException | None = None


def reply(record: str, command: Command, ran: Ran) -> str:
    """The answer to the command in this record."""
    found = ran.transaction
    outcome = ran.outcome or (found.reached if found else None)
    if found is None or outcome is None or ran.roles is None:
        return failure(ran.error)
    words = ran.answers.get(record, DONE)
    words = words if words != DONE else judged(command, found.membership, found.plan)
    if words != DONE or command.verb == "forget":
        return words if words != DONE or outcome.confirmed else _unconfirmed(outcome)
    member = find(found.membership.members, command.name, command.address)
    host = names_of_host(member, found.membership) if member else frozenset[str]()
    if words := _hindrance(command.verb, host, found, ran.roles):
        return words
    if not outcome.confirmed and not (command.verb == "pause" and _all_out(host, found, ran.roles)):
        return _unconfirmed(outcome)
    return ", ".join([DONE, *(_notes(member, host, found, ran.roles) if member and command.verb == "pause" else ())])


def failure(error: BaseException | None) -> str:
    """The answer to a command that is stored, and whose run ended so."""
    if isinstance(error, NotStored):
        return f"refused: {told(error)}"
    if isinstance(error, LbagentError | OSError) and not isinstance(error, TryAgain | NotYet):
        return f"{NOT_YET}: {told(error)}"
    return QUEUED


def _hindrance(verb: str, host: frozenset[str], found: Transaction, roles: Roles) -> str:
    """Why haproxy.cfg does not have it for one of these nodes; nothing where that does not matter."""
    for node in sorted(host & found.pending.keys()):
        there = _servers(found.pending[node].removed)
        out = there <= found.confirmed_out
        if verb == "pause" and (not there or (out and roles.haproxy.runtime)):
            continue
        why = found.hindrance(node)
        servers = ", ".join(map(roster.target, sorted(there)))
        more = f"; no new traffic reaches {servers} all the same" if verb == "pause" and out else ""
        return f"{NOT_YET}: {why}{more}" if why else QUEUED
    return ""


def _all_out(host: frozenset[str], found: Transaction, roles: Roles) -> bool:
    """Whether the worker that serves has confirmed on its stats socket that all servers of these nodes are out."""
    changes = found.plan.changes if found.plan else {}
    gone = {key for node in host & changes.keys() for key in _servers(changes[node].removed)}
    return bool(gone) and gone <= found.confirmed_out and roles.haproxy.runtime


def _servers(lines: Iterable[str]) -> set[Key]:
    return {key for key, line in map(roster.entry, lines) if line}


def _unconfirmed(outcome: Outcome) -> str:
    return QUEUED if outcome.verdict is Verdict.QUEUED else "haproxy not seen"


def _notes(member: Member, host: frozenset[str], found: Transaction, roles: Roles) -> list[str]:
    """What the sender of a pause that is done should know."""
    count = _sessions(member, roles)
    notes = [f"{count} {'session' if count == 1 else 'sessions'} still open"] if count else []
    document = scene.look(roles.haproxy).document
    now = last_server.Serving(document, scene.server_states(document))
    services = last_server.unserved(now, roles, found.membership, host)
    return [*notes, f"{last_server.WORDS}{last_server.listed(services)} serves"] if services else notes


def _sessions(member: Member, roles: Roles) -> int:
    """Connections from this host to where the node serves: after a reload only the kernel knows them all."""
    ports = serving_ports(roles, member)
    return sum(count for (address, port), count in established().items() if address == member.address and port in ports)
