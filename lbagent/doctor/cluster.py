"""What the Serf agent says of itself and of the other load balancers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbagent.doctor.finding import NAMED, Finding, Kind, enumerated, error, ok, warning
from lbagent.names import canonical_address, counted
from lbagent.roles import Roles
from lbagent.serf.listing import Info, Listing, others


def agent(info: Info) -> Iterator[Finding]:
    """The agent itself: there, and speaking in cipher."""
    yield ok(Kind.SERF, "", f"the agent {info.name} answers")
    if info.encrypted:
        yield ok(Kind.ENCRYPTION, "", "what the agents say is encrypted")
    else:
        what = "the cluster is not encrypted: whoever reaches it can enrol a server, pause one, or call it failed"
        yield error(Kind.ENCRYPTION, "", what, "make a key with `serf keygen`, and set `encrypt_key` on every node")


def role(info: Info, roles: Roles | None) -> Finding:
    """The role of this load balancer, by which others know it for one."""
    if not info.role:
        what = "the agent has no role: the other load balancers cannot be told from any node"
        return warning(Kind.ROLE_TAG, info.name, what, 'write `"tags": {"role": "lb"}`')
    if any(any(one.sections.values()) for one in (roles.of(info.role) if roles else ())):
        what = f"its role {info.role} is one that roles.yml serves: the other load balancer becomes a server"
        return error(Kind.ROLE_TAG, info.name, what, "give the load balancers a role of their own, as `lb`")
    return ok(Kind.ROLE_TAG, info.name, f"its role is {info.role}")


def peers(info: Info, listing: Listing, named: Sequence[str] = (), *, declared: bool = False) -> Iterator[Finding]:
    """The load balancers of the same role, and members that nobody can use.

    `named` are the nodes that the agent's settings name to join (`retry_join`, `start_join`), by address or name;
    `declared` says that haproxy.cfg or keepalived has another load balancer.
    """
    there = others(listing, info)
    failed = sorted(one.name for one in there if one.status == "failed")
    alive = sorted(one.name for one in there if one.status == "alive")
    missing = _missing(listing, named)
    if failed:
        what = f"{counted(len(failed), 'other load balancer')} failed: {enumerated(failed)}"
        made = warning if alive else error
        yield made(Kind.PEERS, "serf members", what, "start its agent, or `serf force-leave` it")
    elif not alive and (missing or declared):
        why = f"its settings name {enumerated(missing)}, which is no member" if missing else _DECLARED
        what = f"this load balancer is alone in its cluster, though {why}: neither hears of the other's pauses"
        yield error(Kind.PEERS, "serf members", what, _SAME_KEY)
    elif missing:
        what = f"the agent's settings name {enumerated(missing)}, which is no member"
        yield warning(Kind.PEERS, "serf members", what, _SAME_KEY)
    if alive or not (failed or missing or declared):
        told = f": {enumerated(alive)}" if alive else ""
        yield ok(Kind.PEERS, "serf members", f"{counted(len(alive), 'other load balancer')} there{told}")
    for words in listing.refused[:NAMED]:
        yield warning(Kind.MEMBERS, "", words, "mend that node's name, or its address")
    if more := len(listing.refused[NAMED:]):
        yield warning(Kind.MEMBERS, "serf members", f"{counted(more, 'more member')} of no use", "see `serf members`")


_DECLARED = "the `peers` section of haproxy.cfg has another one"
_SAME_KEY = (
    "start the agent there, with the same `encrypt_key` as here (`lbagent-serf-setup --key-from`), or take it out"
)


def _missing(listing: Listing, named: Sequence[str]) -> list[str]:
    """Those of the nodes named by the settings that are no members."""
    known = {*listing.names, *(one.address for one in listing.members)}
    return [one for one in dict.fromkeys(named) if host_of(one) not in known]


def host_of(named: str) -> str:
    """The host of `HOST`, `HOST:PORT` or `[HOST]:PORT`; an address in its usual form."""
    host = named.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return canonical_address(host) or host
