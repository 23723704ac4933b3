"""What the sender of a command is answered: `done` only where HAProxy has confirmed it for that very node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbagent.errors import LbagentError, NotStored, ReloadPostponed, TryAgain
from lbagent.haproxy import config, config_files
from lbagent.haproxy.config import Key
from lbagent.membership.lookup import find_member, find_paused
from lbagent.membership.model import UNKNOWN, Member, Membership, as_table
from lbagent.membership.updates import DONE, NOT_YET, STILL_PAUSED, UNKNOWN_NODE
from lbagent.outcome import Outcome, Verdict
from lbagent.planning import last_server
from lbagent.planning.desired import Note, OperatorLineNote, list_serving_ports
from lbagent.planning.plan import Plan
from lbagent.roles.model import Roles
from lbagent.run.transaction import Transaction
from lbagent.serf.events import Command
from lbagent.system.log import format_error
from lbagent.system.sockets import count_connections
from lbagent.system.tuples import NamedTuple

# --- assent ----------------------------------------------------------------------------------------------


def judge_command(command: Command, membership: Membership, plan: Plan | None) -> str:
    """`done` where membership and plan are what the command asks for; else what stands in its way."""
    member = find_member(membership.members, command.name, command.address)
    if command.verb == "forget":
        if member is None:
            return UNKNOWN_NODE["forget"]
        return f"refused: {member.name} is {member.status}" if member.present else DONE
    if member is None or member.status == UNKNOWN:
        return UNKNOWN_NODE[command.verb] if member else UNKNOWN_NODE["resume"]
    out, host = member.name in find_paused(membership), names_of_host(member, membership)
    notes = [note for note in plan.notes if isinstance(note, Note) and note.node in host] if plan else []
    by_hand = [note for note in notes if isinstance(note, OperatorLineNote)]
    if command.verb == "pause":
        return f"{NOT_YET}: {by_hand[0]}" if out and by_hand else (DONE if out else "refused: a later resume was heard")
    if out:
        return STILL_PAUSED if _by_tag(member, membership) else "refused: a later pause was heard"
    return f"{NOT_YET}: {notes[0]}" if notes and not by_hand and not _has_line(member, plan) else DONE


def names_of_host(member: Member, membership: Membership) -> frozenset[str]:
    """All names of the node's host: a pause holds for each."""
    columns = as_table(membership.members).columns
    there = zip(columns.names, columns.addresses, strict=True)
    return frozenset(name for name, address in there if address == member.address) | {member.name}


def _by_tag(member: Member, membership: Membership) -> bool:
    there = [one for one in as_table(membership.members).special.values() if one.paused_by_tag]
    return any(one.name == member.name or one.address == member.address for one in there)


def _has_line(member: Member, plan: Plan | None) -> bool:
    names = (f"server {member.name} ", f"server {member.name}.")
    return any(text.startswith(names) for texts in plan.managed_lines.values() for text in texts) if plan else False


# --- replies ----------


QUEUED = "queued"
"""Stored, and not done yet."""


class CommandRun(NamedTuple):
    """A run, how it ended, and what it left behind."""

    roles: Roles | None
    transaction: Transaction | None
    outcome: Outcome | None
    """None where it failed."""
    answers: Mapping[str, str]
    """What the fold says, by record."""
    error: BaseException | None = None


def format_reply(record: str, command: Command, ran: CommandRun) -> str:
    """The answer to the command in this record."""
    found = ran.transaction
    outcome = ran.outcome or (found.reached if found else None)
    if found is None or outcome is None or ran.roles is None:
        return format_failure(ran.error)
    words = ran.answers.get(record, DONE)
    words = words if words != DONE else judge_command(command, found.membership, found.plan)
    if words != DONE or command.verb == "forget":
        return words if words != DONE or outcome.is_confirmed else _unconfirmed(outcome)
    member = find_member(found.membership.members, command.name, command.address)
    host = names_of_host(member, found.membership) if member else frozenset[str]()
    if words := _hindrance(command.verb, host, found, ran.roles):
        return words
    if not outcome.is_confirmed and not (command.verb == "pause" and _all_out(host, found, ran.roles)):
        return _unconfirmed(outcome)
    return ", ".join([DONE, *(_notes(member, host, found, ran.roles) if member and command.verb == "pause" else ())])


def format_failure(error: BaseException | None) -> str:
    """The answer to a command that is stored, and whose run ended so."""
    if isinstance(error, NotStored):
        return f"refused: {format_error(error)}"
    if isinstance(error, LbagentError | OSError) and not isinstance(error, TryAgain | ReloadPostponed):
        return f"{NOT_YET}: {format_error(error)}"
    return QUEUED


def _hindrance(verb: str, host: frozenset[str], found: Transaction, roles: Roles) -> str:
    """Why haproxy.cfg does not have it for one of these nodes; nothing where that does not matter."""
    for node in sorted(host & found.pending.keys()):
        there = _servers(found.pending[node].removed)
        out = there <= found.confirmed_out
        if verb == "pause" and (not there or (out and roles.haproxy.runtime)):
            continue
        why = found.hindrance(node)
        servers = ", ".join(map(config.format_target, sorted(there)))
        more = f"; no new traffic reaches {servers} all the same" if verb == "pause" and out else ""
        return f"{NOT_YET}: {why}{more}" if why else QUEUED
    return ""


def _all_out(host: frozenset[str], found: Transaction, roles: Roles) -> bool:
    """Whether the worker that serves has confirmed on its stats socket that all servers of these nodes are out."""
    changes = found.plan.changes if found.plan else {}
    gone = {key for node in host & changes.keys() for key in _servers(changes[node].removed)}
    return bool(gone) and gone <= found.confirmed_out and roles.haproxy.runtime


def _servers(lines: Iterable[str]) -> set[Key]:
    return {key for key, line in map(config.parse_change, lines) if line}


def _unconfirmed(outcome: Outcome) -> str:
    return QUEUED if outcome.verdict is Verdict.QUEUED else "haproxy not seen"


def _notes(member: Member, host: frozenset[str], found: Transaction, roles: Roles) -> list[str]:
    """What the sender of a pause that is done should know."""
    count = _sessions(member, roles)
    notes = [f"{count} {'session' if count == 1 else 'sessions'} still open"] if count else []
    document = config_files.read_config(roles.haproxy).document
    now = last_server.Serving(document, config_files.query_server_states(document))
    services = last_server.unserved(now, roles, found.membership, host)
    return [*notes, f"{last_server.WORDS}{last_server.listed(services)} serves"] if services else notes


def _sessions(member: Member, roles: Roles) -> int:
    """Connections from this host to where the node serves: after a reload only the kernel knows them all."""
    ports = list_serving_ports(roles, member)
    return sum(
        count for (address, port), count in count_connections().items() if address == member.address and port in ports
    )
