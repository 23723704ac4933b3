"""Commands from the page: pause, resume and forget, as Serf queries to all load balancers, like `lbagent pause`.

Answers are kept as they arrive, so that the page shows them one by one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple

from starlette.concurrency import run_in_threadpool

from lbagent.errors import TryAgain
from lbagent.membership.updates import UNKNOWN_NODE, is_confirmation
from lbagent.names import brief, make_printable
from lbagent.serf import agent
from lbagent.serf.events import QUERIES, REASON_BYTES, REASON_LIMIT, can_send_reason, parse_time
from lbagent.serf.member_list import NOT_REACHABLE, explain_no_query, find_peers, find_unreachable_peers
from lbagent.system.log import Log

_KEPT, _AT_ONCE = 100, 4
"""Orders that are remembered, and that run at the same time."""


class BadForm(Exception):
    """A field of a form is invalid. The text is for the user."""


class TooManyOrders(Exception):
    """As many orders as allowed are under way."""


class Request(NamedTuple):
    """What a form asks for, beside the verb and the node."""

    until: int | None = None
    """End of a pause in epoch seconds."""
    reason: str = ""

    @property
    def words(self) -> str:
        """What follows the node in the payload of the query."""
        end = [] if self.until is None else [f"until={self.until}"]
        return " ".join([*end, *([f"reason={self.reason}"] if self.reason else [])])


class Order:
    """One command, with the answers so far."""

    def __init__(self, verb: str, node: str, user: str, request: Request) -> None:
        """Nothing is sent yet."""
        self.id, self.at = secrets.token_urlsafe(9), time.time()
        self.verb, self.node, self.user, self.request = verb, node, user, request
        self.asked: list[str] = []
        """The load balancers, once they are known."""
        self.answers: dict[str, str] = {}
        self.error = ""
        """Why nothing could be sent."""
        self.finished = False

    @property
    def rows(self) -> list[Answer]:
        """A row for each load balancer, also for those that have not answered yet."""
        return [Answer(name, self.answers.get(name, "")) for name in self.asked]

    @property
    def confirmed(self) -> bool:
        """Whether every load balancer has confirmed the command."""
        return self.finished and not self.error and all(row.good or self._never_knew(row) for row in self.rows)

    def _never_knew(self, row: Answer) -> bool:
        # A load balancer that never knew a node has nothing to forget.
        known = any(one.good for one in self.rows)
        return self.verb == "forget" and known and row.words == UNKNOWN_NODE["forget"]


class Answer(NamedTuple):
    """What a load balancer answered; empty words while it has not."""

    name: str
    words: str

    @property
    def good(self) -> bool:
        """Whether it is a confirmation."""
        return is_confirmation(self.words)


class Orders:
    """The orders of this process, newest last."""

    def __init__(self, log: Log) -> None:
        """None yet."""
        self._log = log
        self._orders: dict[str, Order] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.version = 0
        """Grows with each answer."""

    def get(self, key: str) -> Order | None:
        """Return an order by its id."""
        return self._orders.get(key)

    def start(self, verb: str, node: str, user: str, request: Request) -> Order:
        """Send a command; returns at once. Raises TooManyOrders."""
        if len(self._tasks) >= _AT_ONCE:
            raise TooManyOrders
        order = Order(verb, node, user, request)
        self._orders[order.id] = order
        while len(self._orders) > _KEPT:
            del self._orders[next(iter(self._orders))]
        self._log.info(f"web: {verb} {node} by {user} {request.words}".rstrip())
        task = asyncio.create_task(self._run(order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return order

    async def _run(self, order: Order) -> None:
        try:
            await run_in_threadpool(self._send, order)
        except Exception as error:  # noqa: BLE001  # a defect must not leave the page waiting
            order.error = str(error) if isinstance(error, TryAgain) else f"defect: {type(error).__name__}: {error}"
            self._log.error(f"web: {order.verb} {order.node} by {order.user}: {order.error}")
        finally:
            order.finished = True
            self.version += 1

    def _send(self, order: Order) -> None:
        """Ask every load balancer, this one among them. Raises TryAgain."""
        info = agent.fetch_info()
        listed = agent.fetch_members()
        others = find_peers(listed, info)
        unreachable = find_unreachable_peers(listed, info)
        order.asked = [info.name, *(one.name for one in others), *unreachable]
        alive = [info.name, *(one.name for one in others if one.status == "alive")]
        for one in others:
            if reason := explain_no_query(one.status):
                self._add(order, one.name, reason)
        for name in unreachable:
            self._add(order, name, NOT_REACHABLE)
        payload = f"{order.node} by={order.user}@{info.name} {order.request.words}".rstrip()
        agent.send_query(
            QUERIES[order.verb],
            payload,
            alive,
            agent.COMMAND_TIMEOUTS,
            lambda name, words: self._add(order, name, words),
        )
        for name in order.asked:
            if name not in order.answers:
                self._add(order, name, "not answered")

    def _add(self, order: Order, name: str, words: str) -> None:
        order.answers[name] = make_printable(brief(words))
        self.version += 1
        self._log.info(f"web: {order.verb} {order.node} by {order.user}: {name}: {words}")


def parse_form(verb: str, form: Mapping[str, str], now: int) -> Request:
    """Return what a form asks for; `now` is in epoch seconds. Raises BadForm."""
    if verb != "pause":
        return Request()
    until = None
    if lasting := form.get("for", "").strip():
        seconds = parse_time(lasting)
        if seconds is None:
            raise BadForm("Time: write 90s, 15m, 2h or 7d, at most ten years; or leave it empty.")
        until = now + seconds  # the same moment on every load balancer
    reason = " ".join(form.get("reason", "").split())
    if not can_send_reason(reason):
        raise BadForm(f"Reason: at most {REASON_LIMIT} printable characters, of {REASON_BYTES} bytes.")
    return Request(until, reason)
