"""What no disk can remember is said all the same: who leaves or is paused gets no new traffic, from this moment on."""

from __future__ import annotations

from lbagent.apply import Options, Transaction
from lbagent.errors import LbagentError
from lbagent.fold import fold
from lbagent.host.store import Store
from lbagent.membership import Membership
from lbagent.roles import Roles
from lbagent.serf.events import parse
from lbagent.serf.raw import Raw


def after(membership: Membership, raw: Raw) -> Membership:
    """Membership as this event would leave it."""
    return fold(membership, [(raw, parse(raw))], {}).membership


def withdrawn(store: Store, roles: Roles, membership: Membership) -> str:
    """Take the traffic from those who are not to have any in this membership; says who they are, if there are any."""
    transaction = Transaction(store, roles, membership, Options())
    try:
        transaction.withdraw()
    except (LbagentError, OSError):
        return ""  # the disk is the failure that is reported, whatever else may be wrong
    return f"; no new traffic reaches {', '.join(transaction.out)} all the same" if transaction.out else ""
