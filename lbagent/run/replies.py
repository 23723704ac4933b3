"""Answers to commands: `done` only where HAProxy has confirmed the change for that node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from lbagent.errors import LbagentError, NotStored, ReloadPostponed, TryAgain
from lbagent.haproxy import config, config_files
from lbagent.haproxy.config import Key, Proxy
from lbagent.membership.model import UNKNOWN, Member, Membership, as_table, find_member, find_paused
from lbagent.membership.updates import DONE, NOT_YET, STILL_PAUSED, UNKNOWN_NODE
from lbagent.names import format_count
from lbagent.outcome import Outcome, Verdict
from lbagent.planning.decisions import Note, OperatorLineNote
from lbagent.planning.desired import DesiredServers, list_serving_ports
from lbagent.planning.lines import ServingServers, find_unserved, format_last_server
from lbagent.planning.plan import Plan
from lbagent.roles.model import Roles
from lbagent.run.transaction import Transaction
from lbagent.serf.events import Command
from lbagent.system.log import format_error
from lbagent.system.processes import count_connections

QUEUED = "queued"
"""Stored, and not applied yet."""


class FinishedRun(NamedTuple):
    """A run, how it ended, and its results."""

    roles: Roles | None
    transaction: Transaction | None
    outcome: Outcome | None
    """None if the run failed."""
    answers: Mapping[str, str]
    """Answers from the update of membership, by record id."""
    error: BaseException | None = None


def format_reply(record: str, command: Command, run: FinishedRun) -> str:
    """Return the answer to the command in this record."""
    transaction = run.transaction
    outcome = run.outcome or (transaction.applied_outcome if transaction else None)
    if transaction is None or outcome is None or run.roles is None:
        return format_failure(run.error)
    answer = run.answers.get(record, DONE)
    if answer == DONE:
        answer = judge_command(command, transaction.membership, transaction.plan)
    if answer != DONE:
        return answer
    if command.verb == "forget":
        return DONE if outcome.is_confirmed else _format_unconfirmed(outcome)
    member = find_member(transaction.membership.members, command.name, command.address)
    host_names = list_host_names(member, transaction.membership) if member else frozenset[str]()
    if obstacle := _explain_pending(command.verb, host_names, transaction, run.roles):
        return obstacle
    is_pause = command.verb == "pause"
    if not outcome.is_confirmed and not (is_pause and _are_all_withdrawn(host_names, transaction, run.roles)):
        return _format_unconfirmed(outcome)
    return _format_pause_reply(member, host_names, transaction, run.roles) if member and is_pause else DONE


def format_failure(error: BaseException | None) -> str:
    """Return the answer to a stored command whose run ended with this error."""
    if isinstance(error, NotStored):
        return f"refused: {format_error(error)}"
    if isinstance(error, LbagentError | OSError) and not isinstance(error, TryAgain | ReloadPostponed):
        return f"{NOT_YET}: {format_error(error)}"
    return QUEUED


def judge_command(command: Command, membership: Membership, plan: Plan | None) -> str:
    """Return `done` if membership and plan are as the command asks; otherwise the obstacle."""
    member = find_member(membership.members, command.name, command.address)
    if command.verb == "forget":
        return _judge_forget(member)
    if member is None or member.status == UNKNOWN:
        return UNKNOWN_NODE[command.verb] if member else UNKNOWN_NODE["resume"]
    is_paused, host_names = member.name in find_paused(membership), list_host_names(member, membership)
    notes = [note for note in plan.notes if isinstance(note, Note) and note.node in host_names] if plan else []
    operator_notes = [note for note in notes if isinstance(note, OperatorLineNote)]
    if command.verb == "pause":
        if not is_paused:
            return "refused: a later resume was received"
        return f"{NOT_YET}: {operator_notes[0]}" if operator_notes else DONE
    if is_paused:
        return STILL_PAUSED if _is_paused_by_tag(member, membership) else "refused: a later pause was received"
    return f"{NOT_YET}: {notes[0]}" if notes and not operator_notes and not _has_line(member, plan) else DONE


def _judge_forget(member: Member | None) -> str:
    if member is None:
        return UNKNOWN_NODE["forget"]
    return f"refused: {member.name} is {member.status}" if member.present else DONE


def list_host_names(member: Member, membership: Membership) -> frozenset[str]:
    """Return all names of the node's host: a pause applies to each."""
    columns = as_table(membership.members).columns
    addresses_by_name = zip(columns.names, columns.addresses, strict=True)
    return frozenset(name for name, address in addresses_by_name if address == member.address) | {member.name}


def _is_paused_by_tag(member: Member, membership: Membership) -> bool:
    tagged = [other for other in as_table(membership.members).special.values() if other.paused_by_tag]
    return any(other.name == member.name or other.address == member.address for other in tagged)


def _has_line(member: Member, plan: Plan | None) -> bool:
    prefixes = (f"server {member.name} ", f"server {member.name}.")
    return any(text.startswith(prefixes) for texts in plan.managed_lines.values() for text in texts) if plan else False


def _explain_pending(verb: str, host_names: frozenset[str], transaction: Transaction, roles: Roles) -> str:
    """Return why haproxy.cfg lacks the change for one of these nodes; empty where that does not matter."""
    for node in sorted(host_names & transaction.pending_changes.keys()):
        servers = _parse_servers(transaction.pending_changes[node].removed)
        are_withdrawn = servers <= transaction.confirmed_withdrawn
        if verb == "pause" and (not servers or (are_withdrawn and roles.haproxy.runtime)):
            continue
        reason = transaction.explain_refusal(node)
        targets = ", ".join(map(config.format_target, sorted(servers)))
        more = f"; no new traffic reaches {targets}" if verb == "pause" and are_withdrawn else ""
        return f"{NOT_YET}: {reason}{more}" if reason else QUEUED
    return ""


def _are_all_withdrawn(host_names: frozenset[str], transaction: Transaction, roles: Roles) -> bool:
    """Return whether the worker has confirmed that no server of these nodes gets new clients."""
    changes = transaction.plan.changes if transaction.plan else {}
    removed = {key for node in host_names & changes.keys() for key in _parse_servers(changes[node].removed)}
    return bool(removed) and removed <= transaction.confirmed_withdrawn and roles.haproxy.runtime


def _parse_servers(lines: Iterable[str]) -> set[Key]:
    return {key for key, line in map(config.parse_change, lines) if line}


def _format_unconfirmed(outcome: Outcome) -> str:
    return QUEUED if outcome.verdict is Verdict.QUEUED else "haproxy not seen"


def _format_pause_reply(member: Member, host_names: frozenset[str], transaction: Transaction, roles: Roles) -> str:
    """Return `done` with what the sender should know, or which other server still has the address of the node."""
    document = config_files.read_config(roles.haproxy).document
    now = ServingServers(document, config_files.query_server_states(document))
    if server := _find_other_server(now, roles, transaction.membership, host_names):
        return f"{NOT_YET}: {member.name}: {server}"
    count = count_sessions(member, transaction.membership, roles, count_connections())
    notes = [format_open_sessions(count)] if count else []
    if unserved := find_unserved(now, roles, transaction.membership, host_names):
        notes.append(format_last_server(unserved))
    return ", ".join([DONE, *notes])


def _find_other_server(now: ServingServers, roles: Roles, membership: Membership, nodes: Collection[str]) -> str:
    """Return which server that a pause of `nodes` does not affect has the address of one, as a phrase; empty if none.

    It is the operator's, or that of a node whose `address` in roles.yml is this address. The text alone does not show
    the address of a line with a variable or a host name. Servers in maintenance or drain do not count.
    """
    members = {name: membership.members[name] for name in nodes if name in membership.members}
    desired, pairs = DesiredServers(roles, membership._replace(members=members)), roles.list_pairs()
    has_addresses = any(role.address is not None for role in roles.roles.values())
    for proxy in now.document.proxies:
        here = [pairs[marker.middle] for marker in proxy.markers if marker.middle in pairs]
        endpoints = {server.endpoint for pair in here for server in desired.list_servers(pair, tuple).servers}
        found = _list_operator_endpoints(now, proxy) if endpoints else {}
        if name := next((name for name, endpoint in found.items() if endpoint in endpoints), ""):
            return f"in {proxy}: HAProxy's server {name} has its address, pauses do not affect it"
        if has_addresses and endpoints:
            own = {name for node in nodes for name in (node, *(f"{node}.{service}" for _, service in here))}
            servers = (line for line in proxy.managed if not line.is_paused and line.name not in own)
            if line := next((line for line in servers if line.endpoint in endpoints), None):
                return f"in {proxy}: server {line.name} of another node has its address; pause that node too"
    return ""


def _list_operator_endpoints(now: ServingServers, proxy: Proxy) -> Mapping[str, str | None]:
    """Return ADDRESS:PORT of the operator's servers of a proxy that may get traffic, by name."""
    if not now.states:
        lines = (now.document.resolve_operator_server(line) for line in proxy.operator_servers)
        return {line.name: line.endpoint for line in lines}
    managed, here = {line.name for line in proxy.managed}, now.document.find_name(proxy)
    return {
        server: found.endpoint
        for (name, server), found in now.states.items()
        if name == here and server not in managed and not (found.state or "").startswith(("MAINT", "DRAIN"))
    }


def count_sessions(
    member: Member, membership: Membership, roles: Roles, connections: Mapping[tuple[str, int], int]
) -> int:
    """Return how many of these connections, by remote address and port, go to the services of this node's host.

    Connections of the kernel, as after a reload no HAProxy process knows those of all workers.
    """
    names = list_host_names(member, membership)
    ports = {
        port for name in names if (found := membership.members.get(name)) for port in list_serving_ports(roles, found)
    }
    return sum(count for (address, port), count in connections.items() if address == member.address and port in ports)


def format_open_sessions(count: int) -> str:
    """Return the number of open sessions as words: `3 sessions still open`."""
    return f"{format_count(count, 'session')} still open" if count else "no session open"


def parse_open_sessions(words: str) -> int:
    """Return the number of open sessions in the answer to a pause."""
    found = next((part for part in words.split(", ") if part.endswith(" still open")), "")
    number = found.partition(" ")[0]
    return int(number) if number.isascii() and number.isdigit() else 0
