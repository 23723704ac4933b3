"""A reference model of pauses, and random histories of a cluster that the model and lbagent both process.

The model keeps every arrival of every command and decides by looking at all of them. It has no joins and no state to be
kept small, so it is easy to see that it is right; and it is written without a look at how lbagent does it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from lbagent.haproxy.config import Document
from lbagent.membership import model, peers, updates
from lbagent.membership.model import Membership
from lbagent.membership.updates import apply_events
from lbagent.planning.lines import rebuild_membership
from lbagent.planning.plan import PlanOptions, make_plan
from lbagent.serf.events import parse_event
from lbagent.serf.member_list import ListedMember, MemberList
from lbagent.serf.raw_event import RawEvent
from tests.helpers.builders import parse_roles_text

CONFIG = "backend farm\n    # additional-lb-iis-server\n"
ROLES = parse_roles_text("services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n")
BEGIN = 1_700_000_000
ROOM = 924


# --- the model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """One command for one node, as it reached one load balancer for the first time."""

    node: str
    clock: str
    ltime: int
    digest: str
    pauses: bool
    until: float
    seen: frozenset[tuple[str, int]]
    """Of each other clock, the highest LTime that the load balancer knew for this node."""
    address: str
    """Where the node was; nothing where it had not joined."""


@dataclass
class Model:
    """The expected knowledge of one load balancer."""

    arrivals: frozenset[Arrival] = frozenset()
    addresses: dict[str, str] = field(default_factory=dict)
    """Where each node is or, if it has gone, was."""
    present: set[str] = field(default_factory=set)
    elsewhere: frozenset[tuple[str, str]] = frozenset()
    """Where others have last seen a node that has gone."""
    base: frozenset[str] = frozenset()
    """Nodes whose pause is known only from a comment in haproxy.cfg."""
    met: bool = False
    """Whether it has asked every other load balancer."""

    def receive_command(self, clock: str, ltime: int, digest: str, verb: str, node: str, until: float) -> None:
        names = [node]
        if verb == "resume" and node in self.addresses:
            here = self.addresses[node]
            names += [one for one in self.known() - {node} if here in self.at(one)]
        known = {name: self._of(name) for name in names}
        for name, everything in known.items():
            mine = [one for one in everything if one.clock == clock]
            if any(one.ltime > ltime for one in mine):
                continue
            again = [one for one in mine if (one.ltime, one.digest) == (ltime, digest)]
            seen: dict[str, int] = {}
            for one in everything:
                if one.clock != clock:
                    seen[one.clock] = max(seen.get(one.clock, 0), one.ltime)
            new = Arrival(
                name,
                clock,
                ltime,
                digest,
                verb == "pause",
                until,
                frozenset(seen.items()),
                self.addresses.get(name, ""),
            )
            if again:
                new = replace(again[0], until=until)
            self.arrivals |= {new}
        self._resume_hosts()

    def join(self, node: str, address: str) -> None:
        self.addresses[node] = address
        self.elsewhere = frozenset(one for one in self.elsewhere if one[0] != node)
        self.present.add(node)
        self.arrivals = frozenset(
            replace(one, address=address) if one.node == node and not one.address else one for one in self.arrivals
        )
        self._resume_hosts()

    def leave(self, node: str) -> None:
        self.present.discard(node)

    def merge(self, other: Model) -> None:
        both, known = self.arrivals | other.arrivals, self.known()
        where: dict[tuple[object, ...], str] = {}
        for one in both:
            key = one.node, one.clock, one.ltime, one.digest
            where[key] = max(one.address, where.get(key, ""))
        told = {one.node for one in other.arrivals} | other.base
        for node in told - self.present:
            if node not in known:
                self.addresses.pop(node, None)  # an address from before the first command does not count
            if node not in self.addresses and (found := other.at(node)):
                self.addresses[node] = min(found)
        self.arrivals = frozenset(
            replace(one, address=where[one.node, one.clock, one.ltime, one.digest] or self.addresses.get(one.node, ""))
            for one in both
        )
        self.elsewhere |= {(node, address) for node in told - self.present for address in other.at(node)}
        if other.met and not other.base:
            self.base = frozenset()  # reports replace the comments of haproxy.cfg
        elif not self.met or self.base:
            self.base |= {node for node in other.base if not any(one.node == node for one in other.arrivals)}
        self._resume_hosts()

    def known(self) -> set[str]:
        return {one.node for one in self.arrivals} | self.base

    def at(self, node: str) -> set[str]:
        last = {self.addresses[node]} if node in self.addresses else set()
        return last if node in self.present else last | {address for name, address in self.elsewhere if name == node}

    def list_paused(self, now: int) -> set[str]:
        """The nodes that are present and out of balancing."""
        hosts = {address for node in self.known() if self._paused(node, now) for address in self.at(node)}
        return {node for node in self.present if self.addresses[node] in hosts}

    def _of(self, node: str) -> list[Arrival]:
        return [one for one in self.arrivals if one.node == node]

    def _last(self, node: str, clock: str) -> list[Arrival]:
        mine = [one for one in self.arrivals if (one.node, one.clock) == (node, clock)]
        return [one for one in mine if one.ltime == max(two.ltime for two in mine)]

    def _resume_hosts(self) -> None:
        """Apply a resume to other names at the same address whose last pause is older, unless they moved since.

        What the ended pause had overruled does not come back.
        """
        new = set()
        for clock in {one.clock for one in self.arrivals}:
            last = {node: self._last(node, clock) for node in {one.node for one in self.arrivals}}
            resumes = [
                one for mine in last.values() for one in mine if one.address and not any(two.pauses for two in mine)
            ]
            for node, mine in last.items():
                where = {one.address for one in mine if one.pauses} & self.at(node)
                later = [one for one in resumes if one.address in where and one.ltime > mine[0].ltime]
                if later:
                    best = max(later, key=lambda one: (one.ltime, one.digest))
                    ended = {known for one in mine for known in one.seen}
                    seen = {name: max(at for other, at in ended if other == name) for name, _ in ended}
                    new.add(replace(best, node=node, seen=frozenset(seen.items())))
        self.arrivals |= new
        # Any command for its address overrules a comment.
        heard_at = {one.address for one in self.arrivals if one.address}
        self.base = frozenset(node for node in self.base if self.addresses.get(node) not in heard_at or self._of(node))

    def _paused(self, node: str, now: int) -> bool:
        arrivals = self._of(node)
        if not arrivals:
            return node in self.base
        highest = {one.clock: max(two.ltime for two in arrivals if two.clock == one.clock) for one in arrivals}
        last = {(one.clock, one.digest) for one in arrivals if one.ltime == highest[one.clock]}
        copies = {
            key: [one for one in arrivals if (one.clock, one.digest) == key and one.ltime == highest[one.clock]]
            for key in last
        }

        def later(one: tuple[str, str], other: tuple[str, str]) -> bool:
            """Whether any load balancer knew the other command's LTime when this one arrived."""
            clock = other[0]
            return one[0] != clock and any(dict(copy.seen).get(clock, 0) >= highest[clock] for copy in copies[one])

        newest = [one for one in last if not any(later(two, one) and not later(one, two) for two in last)] or list(last)
        ends = [min(copy.until for copy in copies[one]) for one in newest if copies[one][0].pauses]
        return bool(ends) and max(ends) > now


# --- a load balancer ----------------------------------------------------------------------------------------------


Sent = tuple[RawEvent, tuple[str, float | None, int | None]]
"""An event; for a command also its node, its `until=` and the seconds of its `for=`, for the model."""


@dataclass
class Balancer:
    """A load balancer: lbagent's membership and haproxy.cfg, and the model beside them."""

    name: str
    membership: Membership = field(default_factory=Membership)
    text: str = CONFIG
    model: Model = field(default_factory=Model)
    up: bool = True
    members: list[RawEvent] = field(default_factory=list)
    """Member events under way to it, in order."""
    commands: list[Sent] = field(default_factory=list)
    """User events and queries under way to it."""
    missed: list[Sent] = field(default_factory=list)
    """User events of the time it was down."""
    heard_at: list[tuple[int, int]] = field(default_factory=list)
    """LTimes of user events, and when they arrived."""
    typed: int = 0

    def apply_batch(self, batch: list[RawEvent | Sent], now: int) -> None:
        """Apply a batch of events to lbagent's membership and to the model."""
        raws = []
        for number, one in enumerate(batch):
            raw = one[0] if isinstance(one[0], RawEvent) else one
            assert isinstance(raw, RawEvent)
            raw = raw._replace(id=f"{now}.{number}", at=now * 1000, self_name=self.name)
            raws.append(raw)
            if isinstance(one[0], RawEvent):
                self._model_command(raw, one[1], now)
            else:
                self._model_members(raw)
        self.membership = apply_events(self.membership, [(raw, parse_event(raw)) for raw in raws], {}).membership
        self.apply_plan(now)

    def _model_members(self, raw: RawEvent) -> None:
        for line in raw.payload.decode().splitlines():
            node, address, *_ = line.split("\t")
            if raw.kind in ("member-join", "member-update", "member-failed"):
                self.model.join(node, address)
            else:
                self.model.leave(node)

    def _model_command(self, raw: RawEvent, meant: tuple[str, float | None, int | None], now: int) -> None:
        node, until, lasting = meant
        if until is not None and until <= now and raw.kind != "user":
            return  # refused
        if lasting is not None:
            sent = min([now, *(at for ltime, at in self.heard_at if raw.kind == "user" and ltime > (raw.ltime or 0))])
            until = sent + lasting
        if raw.kind == "user":
            self.heard_at.append((raw.ltime or 0, now))
        clock, ltime = raw.kind, raw.ltime
        if ltime is None:
            self.typed += 1
            clock, ltime = f"typed {self.name}", self.typed
        digest = f"{raw.name} {raw.payload!r}"
        self.model.receive_command(clock, ltime, digest, raw.name, node, float("inf") if until is None else until)

    def apply_plan(self, now: int, *, force: bool = False) -> None:
        """Write the plan to haproxy.cfg."""
        self.membership = updates.drop_expired(self.membership, now)
        document = Document([("haproxy.cfg", self.text)])
        (self.text,) = make_plan(document, ROLES, self.membership, PlanOptions(force=force)).after

    def lose_members_file(self, now: int) -> None:
        """Delete members.json: membership is rebuilt from haproxy.cfg."""
        self.membership = rebuild_membership(Document([("haproxy.cfg", self.text)]), ROLES, now)
        self.heard_at, self.typed = [], self.typed
        words = [line.split() for line in self.text.splitlines() if "# lbagent " in line]
        comments = {word[3]: word[4] for word in words if word[0] == "#"}
        servers = {word[1]: word[2].partition(":")[0] for word in words if word[0] == "server"}
        self.model = Model(
            frozenset(), {**servers, **comments}, {*servers, *comments}, frozenset(), frozenset(comments)
        )

    def list_paused(self) -> set[str]:
        """The nodes that are present and out of balancing."""
        return {name for name in model.find_paused(self.membership) if self.membership.members[name].present}

    def merge(self, other: Balancer, clocks: dict[str, int], now: int) -> None:
        """Merge all reports of another load balancer."""
        after = ""
        while True:
            page = peers.parse_page(peers.format_page(other.membership, after, ROOM, now))
            assert page is not None
            if page.reports:
                self.membership = peers.merge_reports(self.membership, page.reports, other.name, clocks, now).membership
            if not page.more:
                break
            after = page.reports[-1].name
        if page.is_complete:
            self.membership = peers.drop_rebuilt_pauses(self.membership)
        self.model.merge(other.model)


# --- a history ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """The events that may occur in a history."""

    nodes: int = 4
    addresses: int = 3
    moves: bool = True
    fails: bool = True
    restarts: bool = True
    losses: bool = True
    late: bool = True
    early: bool = True
    """Commands for nodes that have not joined."""
    ends: tuple[str, ...] = ("", "until", "for")
    clocks: tuple[str, ...] = ("user", "query", "typed")


@dataclass
class Verdict:
    """The disagreements at the end of a history; empty if there are none."""

    disagreements: list[str] = field(default_factory=list)
    revivals: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether there are no disagreements."""
        return not (self.disagreements or self.revivals)


class History:
    """One random history and its result."""

    def __init__(self, seed: int, profile: Profile) -> None:
        """Start with an empty cluster."""
        self.dice, self.profile = random.Random(seed), profile
        self.now = BEGIN
        self.clocks = {"user": 0, "query": 0}
        self.cluster: dict[str, tuple[str, str]] = {}
        """Every node that Serf lists: address and status."""
        self.lbs = [Balancer(f"lb{number:02}") for number in range(1, self.dice.choice([3, 3, 4]))]
        self.sent: list[Sent] = []
        """All user events, as Serf keeps them for a replay."""
        self.log: list[str] = []

    def run(self, steps: int) -> Verdict:
        """Run `steps` random steps and one sync."""
        moves = [self._command] * 5 + [self._deliver] * 5 + [self._join] * 3 + [self._leave]
        moves += [self._fail] * self.profile.fails + [self._restart] * self.profile.restarts
        for _ in range(steps):
            self.now += self.dice.choice([0, 1, 3, 20])
            self.dice.choice(moves)()
        return self._end()

    def _names(self) -> list[str]:
        return [f"web{number:02}" for number in range(1, self.profile.nodes + 1)]

    def _command(self) -> None:
        names = [one for one in self._names() if self.profile.early or one in self.cluster]
        if not names:
            return
        node, verb = self.dice.choice(names), self.dice.choice(["pause", "pause", "resume"])
        clock = self.dice.choice(self.profile.clocks)
        kind = self.dice.choice(self.profile.ends) if verb == "pause" else ""
        seconds = self.dice.choice([2, 10, 60, 300])
        words = {"": "", "until": f" until={self.now + seconds}", "for": f" for={seconds}s"}[kind]
        # Two commands with the same payload and LTime would be one event: never send them.
        payload = f"{node}{words} reason={self.dice.randrange(10**6)}" if verb == "pause" else f"{node} by=n{self.now}"
        meant = node, self.now + seconds if kind == "until" else None, seconds if kind == "for" else None
        self.log.append(f"{self.now - BEGIN}: {clock} {verb} {payload}")
        if clock == "typed":
            up = [lb for lb in self.lbs if lb.up]
            if up:
                lb = self.dice.choice(up)
                self.log[-1] += f" at {lb.name}"
                lb.apply_batch([(RawEvent("", 0, "typed", verb, None, "", payload.encode()), meant)], self.now)
            return
        if self.clocks[clock] == 0 or self.dice.random() > 0.1:
            self.clocks[clock] += 1
        self.log[-1] += f" ltime={self.clocks[clock]}"
        sent = (RawEvent("", 0, clock, verb, self.clocks[clock], "", payload.encode()), meant)
        if clock == "user":
            self.sent.append(sent)
        for lb in self.lbs:
            if lb.up:
                lb.commands.append(sent)
            elif clock == "user":
                lb.missed.append(sent)

    def _deliver(self) -> None:
        up = [lb for lb in self.lbs if lb.up and (lb.members or lb.commands)]
        if up:
            self._take(self.dice.choice(up))

    def _take(self, lb: Balancer, *, everything: bool = False) -> None:
        """Deliver some of the pending events to the load balancer, in a batch or one by one."""
        members = lb.members if everything else lb.members[: self.dice.randrange(len(lb.members) + 1)]
        lb.members = lb.members[len(members) :]
        if self.profile.late:
            self.dice.shuffle(lb.commands)
        count = len(lb.commands) if everything else self.dice.randrange(len(lb.commands) + 1)
        commands, lb.commands = lb.commands[:count], lb.commands[count:]
        if self.profile.late and commands and not everything and self.dice.random() < 0.2:
            lb.commands.append(self.dice.choice(commands))
        batch: list[RawEvent | Sent] = list(members)
        at = sorted(self.dice.randrange(len(members) + 1) for _ in commands)
        for number, (place, command) in enumerate(zip(at, commands, strict=True)):
            batch.insert(place + number, command)
        self.log.append(f"{self.now - BEGIN}: {lb.name} takes {[_words(one) for one in batch]}")
        if batch and self.dice.random() < 0.5:
            lb.apply_batch(batch, self.now)
        else:
            for one in batch:
                lb.apply_batch([one], self.now)

    def _tell(self, kind: str, node: str) -> None:
        self.log.append(f"{self.now - BEGIN}: {kind} {node} {self.cluster[node][0]}")
        for lb in self.lbs:
            if lb.up:
                lb.members.append(_members(kind, [(node, self.cluster[node][0])]))

    def _join(self) -> None:
        node = self.dice.choice(self._names())
        if node in self.cluster and self.cluster[node][1] == "alive" and not self.profile.moves:
            return
        address = f"10.0.0.{self.dice.randint(1, self.profile.addresses)}"
        if node in self.cluster and not self.profile.moves:
            address = self.cluster[node][0]
        self.cluster[node] = address, "alive"
        self._tell("member-join", node)

    def _leave(self) -> None:
        if self.cluster:
            node = self.dice.choice(sorted(self.cluster))
            self._tell("member-leave", node)
            del self.cluster[node]

    def _fail(self) -> None:
        alive = sorted(node for node, (_, status) in self.cluster.items() if status == "alive")
        if alive:
            node = self.dice.choice(alive)
            self.cluster[node] = self.cluster[node][0], "failed"
            self._tell("member-failed", node)

    def _restart(self) -> None:
        lb = self.dice.choice(self.lbs)
        if not lb.up:
            self._return(lb)
        elif sum(one.up for one in self.lbs) > 1:
            self.log.append(f"{self.now - BEGIN}: {lb.name} goes down")
            lb.up = False
            lb.missed += [one for one in lb.commands if one[0].kind == "user"]
            lb.commands, lb.members = [], []

    def _return(self, lb: Balancer) -> None:
        lost = self.profile.losses and self.dice.random() < 0.4
        asks = self.dice.random() < 0.8
        self.log.append(f"{self.now - BEGIN}: {lb.name} returns{' without its state' if lost else ''}, asks: {asks}")
        replays = list(self.sent) if lost else lb.missed
        if self.dice.random() < 0.3:
            replays = [] if self.dice.random() < 0.5 else list(self.sent)
        lb.up, lb.missed = True, []
        if lost:
            lb.lose_members_file(self.now)
        if asks:
            self._exchange(lb)
        if self.profile.late and self.dice.random() < 0.3:
            self.dice.shuffle(replays)
        for one in replays:
            lb.apply_batch([one], self.now)
        alive = [(node, address) for node, (address, status) in self.cluster.items() if status == "alive"]
        if alive:
            lb.apply_batch([_members("member-join", alive)], self.now)

    def _exchange(self, lb: Balancer) -> None:
        for other in self.dice.sample(self.lbs, len(self.lbs)):
            if other is not lb and other.up:
                lb.merge(other, self._serf_clocks(), self.now)
        lb.membership = lb.membership._replace(peers_asked_at=self.now)
        lb.model.met = True

    def _serf_clocks(self) -> dict[str, int]:
        return {clock: ltime + 1 for clock, ltime in self.clocks.items()}

    def _end(self) -> Verdict:
        for lb in self.lbs:
            if not lb.up:
                self._return(lb)
        for lb in self.lbs:
            while lb.members or lb.commands:
                self._take(lb, everything=True)
        self._sync()
        verdict = Verdict()
        for _ in range(2):
            self._compare(verdict)
            self.now += 400
        return verdict

    def _sync(self) -> None:
        if self.profile.restarts:
            # A load balancer that was down gets no event for failed nodes: they are reaped.
            self.cluster = {node: one for node, one in self.cluster.items() if one[1] == "alive"}
        listed = tuple(
            ListedMember(node, address, "web", {}, status) for node, (address, status) in self.cluster.items()
        )
        listing = MemberList(listed, frozenset(self.cluster), ())
        for lb in self.dice.sample(self.lbs, len(self.lbs)):
            lb.membership = updates.merge_member_list(lb.membership, listing, lb.name, self.now, force=True).membership
            for node in lb.model.present - set(self.cluster):
                lb.model.leave(node)
            for node, (address, _) in self.cluster.items():
                lb.model.join(node, address)
        for lb in self.dice.sample(self.lbs, len(self.lbs)):
            self._exchange(lb)

    def _compare(self, verdict: Verdict) -> None:
        for lb in self.lbs:
            lb.apply_plan(self.now, force=True)
        arrivals = frozenset(one for lb in self.lbs for one in lb.model.arrivals)
        for lb in self.lbs:
            expected = lb.model.list_paused(self.now)
            if lb.list_paused() != expected:
                verdict.disagreements.append(f"{lb.name}: out {sorted(lb.list_paused())}, model {sorted(expected)}")
            revived = [node for node in lb.list_paused() if self._over(node, arrivals)]
            if revived:
                verdict.revivals.append(f"{lb.name}: {sorted(revived)} out, though nothing asks for it")
        texts = {lb.text for lb in self.lbs}
        if len(texts) > 1:
            verdict.disagreements.append(f"haproxy.cfg differs: {sorted(texts)}")
        for lb in self.lbs:
            before = lb.text
            lb.apply_plan(self.now, force=True)
            if lb.text != before:
                verdict.disagreements.append(f"{lb.name}: haproxy.cfg changes again: {before!r} {lb.text!r}")

    def _over(self, node: str, arrivals: frozenset[Arrival]) -> bool:
        """Return whether no last command of any clock is a pause of a name that was ever at the node's address."""
        if any(lb.model.base for lb in self.lbs):
            return False
        address = self.cluster[node][0]
        for name in self._names():
            mine = [one for one in arrivals if one.node == name]
            where = {one.address for one in mine} | {lb.model.addresses.get(name) for lb in self.lbs}
            where |= {at for lb in self.lbs for one, at in lb.model.elsewhere if one == name}
            if name != node and address not in where:
                continue
            for clock in {one.clock for one in mine}:
                last = max(one.ltime for one in mine if one.clock == clock)
                top = [one for one in mine if (one.clock, one.ltime) == (clock, last)]
                for digest in {one.digest for one in top}:
                    copies = [one for one in top if one.digest == digest]
                    if copies[0].pauses and min(one.until for one in copies) > self.now:
                        return False
        return True


def _members(kind: str, nodes: Iterable[tuple[str, str]]) -> RawEvent:
    payload = "".join(f"{node}\t{address}\tweb\trole=web\n" for node, address in nodes)
    return RawEvent("", 0, kind, "", None, "", payload.encode())


def _words(one: RawEvent | Sent) -> str:
    raw = one[0] if isinstance(one[0], RawEvent) else one
    assert isinstance(raw, RawEvent)
    return f"{raw.kind} {raw.name} {raw.ltime or ''} {raw.payload.decode()!r}"
