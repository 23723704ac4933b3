"""The verbs by which an operator steers nodes, here and on the other load balancers: `pause`, `resume`, `forget`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from lbagent.commands.plan_apply_sync import LOCK_WAIT, Verb
from lbagent.errors import INTERRUPTED, LastServer, LbagentError, TryAgain, UsageError
from lbagent.haproxy import config_files
from lbagent.membership.lookup import find_member, find_paused
from lbagent.membership.updates import UNKNOWN_NODE
from lbagent.names import NAME, canonical_address, make_printable
from lbagent.planning import services as planning_services
from lbagent.run.command import CommandEvent, is_confirmation, run_commands
from lbagent.run.engine import Engine
from lbagent.run.replies import list_host_names
from lbagent.serf import agent
from lbagent.serf.events import REASON_LIMIT, TYPED, Command, Malformed, parse_command, parse_duration
from lbagent.serf.member_list import ListedMember, find_peers, find_unreachable_peers
from lbagent.serf.raw_event import RawEvent
from lbagent.settings import Settings
from lbagent.state.paths import Paths
from lbagent.system.log import Log

WAITS = (1, 2, 3, 4)
"""Seconds that another load balancer has for its answer, each time it is asked."""

_LONGEST = 10 * 365 * 86400
_REASON_BYTES = 400
"""Serf takes 1,024 for a whole query, the names of those who are asked among them."""

_QUERIES = {"pause": "pause", "resume": "resume", "forget": "lbagent-forget"}


class Cluster(NamedTuple):
    """The load balancers that a command is for."""

    myself: str
    others: Sequence[ListedMember] = ()
    unreachable: Sequence[str] = ()
    """Load balancers whose name or address in Serf is of no use."""
    trouble: str = ""
    """Why no other one can be asked."""


def pause(nodes: Sequence[str], lasting: str | None, reason: str | None, *, force: bool) -> Verb:
    """The verb that takes nodes out of balancing. Raises UsageError."""
    words = []
    if lasting is not None:
        seconds = parse_duration(lasting)
        if not seconds or seconds > _LONGEST:
            raise UsageError(f"--for {lasting[:40]!r} is not a time such as 90s, 15m, 2h or 7d, of at most ten years")
        # The same moment on every load balancer.
        words.append(f"until={int(time.time()) + seconds}")
    plain = " ".join((reason or "").split())
    size = len(plain.encode("utf-8", "surrogateescape"))
    if not plain.isprintable() or len(plain) > REASON_LIMIT or size > _REASON_BYTES:
        limits = f"{REASON_LIMIT} printable characters, of {_REASON_BYTES} bytes"
        raise UsageError(f"--reason has {len(plain)} characters, of {size} bytes: at most {limits}, can be sent")
    return _steering("pause", nodes, [*words, f"reason={plain}"] if plain else words, force=force)


def resume(nodes: Sequence[str]) -> Verb:
    """The verb that puts nodes back in. Raises UsageError."""
    return _steering("resume", nodes, [])


def forget(nodes: Sequence[str], *, force: bool) -> Verb:
    """The verb that drops nodes and their pauses. Raises UsageError."""
    return _steering("forget", nodes, ["force"] if force else [])


def _steering(verb: str, given: Sequence[str], words: list[str], *, force: bool = True) -> Verb:
    nodes = list(dict.fromkeys(given))
    for node in nodes:
        if not NAME.fullmatch(node) and canonical_address(node) is None:
            raise UsageError(f"{node[:80]!r} is neither a node's name nor an address")

    def steer(settings: Settings, log: Log) -> int:
        cluster = _cluster()
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        rows = Rows(verb, nodes, cluster)
        try:
            # Here first: whatever becomes of the others, this one does what it was told.
            payloads = {node: " ".join([node, *words]) for node in nodes}
            for node, said in _here(verb, payloads, cluster.myself, engine, log, force=force).items():
                rows.add(node, cluster.myself, said)
            _elsewhere(verb, {node: " ".join([node, f"by={cluster.myself}", *words]) for node in nodes}, cluster, rows)
        except KeyboardInterrupt:
            rows.interrupt()
            return INTERRUPTED
        return rows.status(force=force)

    return steer


def _cluster() -> Cluster:
    """The load balancers, as the Serf agent here knows them."""
    try:
        me = agent.fetch_info()
    except TryAgain as error:
        return Cluster(os.uname().nodename, trouble=_trouble(error))
    try:
        listed = agent.fetch_members()
    except TryAgain as error:
        return Cluster(me.name, trouble=str(error))
    return Cluster(me.name, find_peers(listed, me), find_unreachable_peers(listed, me))


def _trouble(error: TryAgain) -> str:
    # What its members are is what could not be asked, whatever came first.
    return str(error).replace("(serf info)", "(serf members)")


def _here(
    verb: str, payloads: Mapping[str, str], myself: str, engine: Engine, log: Log, *, force: bool
) -> Mapping[str, str]:
    """What this load balancer says of each node. Raises LastServer, with nothing done, unless `force` is given."""
    now, said = int(time.time() * 1000), {}
    orders: dict[str, CommandEvent] = {}
    for node, payload in payloads.items():
        raw = RawEvent(os.urandom(8).hex(), now, TYPED, verb, None, myself, payload.encode())
        wanted = parse_command(raw, payload)
        if isinstance(wanted, Malformed):
            said[node] = f"refused: {wanted.why}"
        else:
            orders[node] = raw, wanted
    if not orders:
        return said
    commands = [wanted for _, wanted in orders.values()]
    allow = None if force else lambda: _insist_on_another_server(commands, engine)
    answers = run_commands(list(orders.values()), engine, log, LOCK_WAIT, allow)
    return said | dict(zip(orders, answers, strict=True))


def _insist_on_another_server(commands: Collection[Command], engine: Engine) -> None:
    """Raise LastServer where these pauses would leave a service without any server that serves."""
    with contextlib.suppress(OSError):
        try:
            roles = engine.roles()
            membership = engine.preview_membership(roles)
            document = config_files.read_config(roles.haproxy).document
        except LbagentError:
            return  # the pauses are stored, and applied once the error is corrected
        meant = (find_member(membership.members, one.name, one.address) for one in commands)
        out = find_paused(membership)
        hosts = [list_host_names(one, membership) for one in meant if one and one.name not in out]
        now = planning_services.ServingServers(document, config_files.query_server_states(document))
        services = planning_services.find_unserved(now, roles, membership, frozenset().union(*hosts), if_paused=True)
        if services:
            names = ", ".join(one.name for one in commands)
            words = f"{planning_services.LAST_SERVER_WARNING}{planning_services.join_services(services)} serves"
            raise LastServer(f"{names}: {words}; resume another node first, or use --force")


def _elsewhere(verb: str, payloads: Mapping[str, str], cluster: Cluster, rows: Rows) -> None:
    """Ask each other load balancer, and print what it says, or what kept it from saying anything."""
    if cluster.trouble:
        rows.add_for_all("others", f"not asked: {cluster.trouble}")
        return
    alive = [one.name for one in cluster.others if one.status == "alive"]
    try:
        for number, seconds in enumerate(WAITS):
            for at, (node, payload) in enumerate(payloads.items()):
                # One that has not answered for any node is asked again for the first of them only.
                asked = [name for name in rows.silent(node, alive) if not (number and at) or rows.heard(name)]
                if number == 0:
                    # This one too: its handler has to hear the LTime that orders all that follows.
                    asked = [cluster.myself, *asked]
                if asked:
                    agent.send_query(_QUERIES[verb], payload, asked, [seconds], rows.adder(node))
    except TryAgain as error:
        rows.add_for_all("others", f"not asked: {error}")
        return
    for one in cluster.others:
        rows.add_for_all(
            one.name, "not answered" if one.status == "alive" else f"not answered: {one.status}, says Serf"
        )
    for name in cluster.unreachable:
        rows.add_for_all(name, "not asked: its name or address in Serf is of no use")


class Rows:
    """What the load balancers say of each node: a row is printed as soon as it is known."""

    def __init__(self, verb: str, nodes: Sequence[str], cluster: Cluster) -> None:
        """Nothing is printed yet."""
        self._verb, self._nodes, self._cluster = verb, nodes, cluster
        names = [cluster.myself, *(one.name for one in cluster.others), *cluster.unreachable]
        self._width = max(map(len, [*names, *(["others"] if cluster.trouble else [])]))
        self._wide = max(map(len, nodes))
        self._said: dict[tuple[str, str], str] = {}

    def add(self, node: str, name: str, words: str) -> None:
        """Print what the load balancer `name` says of a node, unless it has said something already."""
        if (node, name) in self._said:
            return
        self._said[node, name] = words
        head = f"{node:{self._wide}}  " if len(self._nodes) > 1 else ""
        print(make_printable(f"{head}{name:{self._width}}  {words}"), flush=True)

    def add_for_all(self, name: str, words: str) -> None:
        """The same for each node of which it has said nothing."""
        for node in self._nodes:
            self.add(node, name, words)

    def adder(self, node: str) -> agent.AnswerCallback:
        """`add`, for one node, and the other load balancers only."""

        def add(name: str, words: str) -> None:
            if name != self._cluster.myself:
                self.add(node, name, words)

        return add

    def heard(self, name: str) -> bool:
        """Whether that load balancer has said anything."""
        return any(one == name for _, one in self._said)

    def silent(self, node: str, names: Sequence[str]) -> list[str]:
        """Those of the load balancers that have said nothing of this node yet."""
        return [name for name in names if (node, name) not in self._said]

    def interrupt(self) -> None:
        """Say what is in effect, and which load balancers have not answered."""
        names = [self._cluster.myself, *(one.name for one in self._cluster.others)]
        done = [
            name for name in names if all(is_confirmation(self._said.get((node, name), "")) for node in self._nodes)
        ]
        silent = [name for name in names if any((node, name) not in self._said for node in self._nodes)]
        what = f"{self._verb} of {', '.join(self._nodes)}"
        effect = f"in effect on {', '.join(done)}" if done else "not confirmed by any load balancer"
        rest = f"; not answered: {', '.join(silent)}; run it again to ask them" if silent else ""
        print(make_printable(f"lbagent: interrupted: {what}: {effect}{rest}"), file=sys.stderr, flush=True)

    def status(self, *, force: bool) -> int:
        """The exit status: 0 where every row is a confirmation."""
        if not all(self._done(node) for node in self._nodes):
            return 1
        last = {name for (_, name), words in self._said.items() if planning_services.LAST_SERVER_WARNING in words}
        if force or not last or self._cluster.myself in last:
            return 0
        # Another load balancer had fewer servers left: two operators at once, or its checks see less than those here.
        words = f"{', '.join(self._nodes)}: no other server serves on {', '.join(sorted(last))}"
        print(make_printable(f"lbagent: {words}; resume a node, or use --force"), file=sys.stderr)
        return LastServer.exit_status

    def _done(self, node: str) -> bool:
        said = [words for (one, _), words in self._said.items() if one == node]
        unconfirmed = {words for words in said if not is_confirmation(words)}
        if self._verb == "forget" and any(map(is_confirmation, said)):
            # A load balancer that never knew a node has nothing to forget.
            unconfirmed.discard(UNKNOWN_NODE["forget"])
        return not unconfirmed
