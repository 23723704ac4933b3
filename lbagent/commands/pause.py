"""The verbs `pause`, `resume` and `forget`: applied here and, through Serf queries, on the other load balancers."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from lbagent.commands import query
from lbagent.commands.plan_apply_sync import Verb
from lbagent.commands.query import CommandEvent, run_commands
from lbagent.errors import INTERRUPTED, LastServer, LbagentError, TryAgain, UsageError
from lbagent.haproxy import config_files
from lbagent.membership.model import find_member, find_paused
from lbagent.membership.updates import UNKNOWN_NODE, is_confirmation
from lbagent.names import NAME, canonical_address, make_printable
from lbagent.planning.lines import LAST_SERVER_WARNING, ServingServers, find_unserved, format_last_server
from lbagent.run.engine import Engine
from lbagent.run.replies import format_open_sessions, list_host_names, parse_open_sessions
from lbagent.serf import agent
from lbagent.serf.events import (
    QUERIES,
    REASON_BYTES,
    REASON_LIMIT,
    TYPED,
    Command,
    Malformed,
    can_send_reason,
    parse_command,
    parse_time,
)
from lbagent.serf.member_list import (
    NOT_REACHABLE,
    ListedMember,
    explain_no_query,
    find_peers,
    find_unreachable_peers,
)
from lbagent.serf.raw_event import RawEvent
from lbagent.settings import Settings
from lbagent.state.lock import RUN_WAIT
from lbagent.state.store import Damaged
from lbagent.system.log import Log

_INTERVAL = 2.0
"""Seconds between two counts of the open sessions."""
_SILENCE = 60.0
"""Seconds without an answer after which the sessions of a load balancer are unknown."""
_COUNT_TIMEOUT = 2
_NAMES_BYTES = 500
"""Bytes of names in one query for open sessions: an answer has 1,024 bytes."""


class Cluster(NamedTuple):
    """The load balancers that a command is for."""

    myself: str
    others: Sequence[ListedMember] = ()
    unreachable: Sequence[str] = ()
    """Load balancers whose name or address in Serf is invalid."""
    trouble: str = ""
    """Why no other load balancer can be asked; empty where all can."""


def pause(nodes: Sequence[str], lasting: str | None, reason: str | None, *, wait: str | bool, force: bool) -> Verb:
    """Return the verb that takes nodes out of balancing. Raises UsageError.

    `wait` is whether to wait for open sessions, or for how long at most, as it was typed.
    """
    words = []
    if lasting is not None:
        # The same moment on every load balancer.
        words.append(f"until={int(time.time()) + _parse_time('--for', lasting)}")
    limit = _parse_time("--wait", wait) if isinstance(wait, str) else float("inf") if wait else None
    plain = " ".join((reason or "").split())
    if not can_send_reason(plain):
        size = len(plain.encode("utf-8", "surrogateescape"))
        limits = f"{REASON_LIMIT} printable characters, of {REASON_BYTES} bytes"
        raise UsageError(f"--reason has {len(plain)} characters, of {size} bytes: at most {limits}, can be sent")
    return _make_verb("pause", nodes, [*words, f"reason={plain}"] if plain else words, force=force, limit=limit)


def resume(nodes: Sequence[str]) -> Verb:
    """Return the verb that puts nodes back into balancing. Raises UsageError."""
    return _make_verb("resume", nodes, [])


def forget(nodes: Sequence[str], *, force: bool) -> Verb:
    """Return the verb that drops nodes and their pauses. Raises UsageError."""
    return _make_verb("forget", nodes, ["force"] if force else [])


def _parse_time(option: str, text: str) -> int:
    """Return the seconds of a time such as 2h. Raises UsageError."""
    seconds = parse_time(text)
    if seconds is None:
        raise UsageError(f"{option} {text[:40]!r} is not a time such as 90s, 15m, 2h or 7d, of at most ten years")
    return seconds


def _make_verb(
    verb: str, given: Sequence[str], words: list[str], *, force: bool = True, limit: float | None = None
) -> Verb:
    nodes = list(dict.fromkeys(given))
    for node in nodes:
        if not NAME.fullmatch(node) and canonical_address(node) is None:
            raise UsageError(f"{node[:80]!r} is neither a node's name nor an address")

    def run(settings: Settings, log: Log) -> int:
        cluster = _find_load_balancers()
        engine = Engine(settings, log)
        with Progress() as progress:
            rows = Rows(verb, nodes, cluster, progress)
            try:
                # Here first: this load balancer applies the command, whether other ones answer or not.
                payloads = {node: " ".join([node, *words]) for node in nodes}
                for node, answer in _apply_here(verb, payloads, cluster.myself, engine, log, force=force).items():
                    rows.add(node, cluster.myself, answer)
                sent = {node: " ".join([node, f"by={cluster.myself}", *words]) for node in nodes}
                _ask_others(verb, sent, cluster, rows)
                status = rows.judge(force=force)
                rows.require_output()
                if limit is not None:
                    status = SessionWait(rows, cluster, engine, progress).run(limit) or status
                    rows.require_output()
            except KeyboardInterrupt:
                rows.print_interrupted()
                return INTERRUPTED
        return status

    return run


def _find_load_balancers() -> Cluster:
    """Return the load balancers that the Serf agent of this host lists."""
    try:
        me = agent.fetch_info()
    except TryAgain as error:
        return Cluster(os.uname().nodename, trouble=str(error))
    try:
        listed = agent.fetch_members()
    except TryAgain as error:
        return Cluster(me.name, trouble=str(error))
    return Cluster(me.name, find_peers(listed, me), find_unreachable_peers(listed, me))


def _apply_here(
    verb: str, payloads: Mapping[str, str], myself: str, engine: Engine, log: Log, *, force: bool
) -> Mapping[str, str]:
    """Apply the command on this load balancer, and return its answers by node.

    Raises LastServer, with nothing changed, where it needs `force`.
    """
    now, answers = int(time.time() * 1000), {}
    events: dict[str, CommandEvent] = {}
    for node, payload in payloads.items():
        raw = RawEvent(os.urandom(8).hex(), now, TYPED, verb, None, myself, payload.encode())
        command = parse_command(raw, payload)
        if isinstance(command, Malformed):
            answers[node] = f"refused: {command.why}"
        else:
            events[node] = raw, command
    if not events:
        return answers
    commands = [command for _, command in events.values()]
    allow = None if force else lambda: _require_another_server(commands, engine)
    found = run_commands(list(events.values()), engine, log, RUN_WAIT, allow)
    return answers | dict(zip(events, found, strict=True))


def _require_another_server(commands: Collection[Command], engine: Engine) -> None:
    """Raise LastServer where these pauses would leave a service without any server that serves."""
    with contextlib.suppress(OSError):
        try:
            roles = engine.load_roles()
            membership = engine.preview_membership(roles)
            document = config_files.read_config(roles.haproxy).document
        except LbagentError:
            return  # the pauses are stored, and applied once the error is corrected
        members = (find_member(membership.members, one.name, one.address) for one in commands)
        out = find_paused(membership)
        hosts = [list_host_names(one, membership) for one in members if one and one.name not in out]
        now = ServingServers(document, config_files.query_server_states(document))
        services = find_unserved(now, roles, membership, frozenset().union(*hosts), if_paused=True)
        if services:
            names = ", ".join(one.name for one in commands)
            words = format_last_server(services)
            raise LastServer(f"{names}: {words}; resume another node first, or use --force")


def _ask_others(verb: str, payloads: Mapping[str, str], cluster: Cluster, rows: Rows) -> None:
    """Send the command to each other load balancer, and print each answer, or why there is none."""
    if cluster.trouble:
        rows.add_for_all("others", f"not asked: {cluster.trouble}")
        return
    alive = [one.name for one in cluster.others if one.status == "alive"]
    has_sent = False
    try:
        for attempt, seconds in enumerate(agent.COMMAND_TIMEOUTS):
            for position, (node, payload) in enumerate(payloads.items()):
                # A load balancer that has not answered for any node is asked again for the first node only.
                silent = rows.list_silent(node, alive)
                asked = [name for name in silent if not (attempt and position) or rows.has_answered(name)]
                rows.show_waiting(asked)
                if attempt == 0:
                    # This load balancer too: its handler has to receive the LTime that orders all that follows.
                    asked = [cluster.myself, *asked]
                if asked:
                    # After a timeout, the query may be under way: the next attempt follows.
                    with contextlib.suppress(agent.SerfTimedOut):
                        agent.send_query(QUERIES[verb], payload, asked, [seconds], rows.make_callback(node))
                    has_sent = True
    except TryAgain as error:
        if not has_sent:
            rows.add_for_all("others", f"not asked: {error}")
            return
    for one in cluster.others:
        rows.add_for_all(one.name, explain_no_query(one.status) or "not answered")
    for name in cluster.unreachable:
        rows.add_for_all(name, NOT_REACHABLE)


class Rows:
    """The answers of the load balancers, by node: a row is printed as soon as it is known."""

    def __init__(self, verb: str, nodes: Sequence[str], cluster: Cluster, progress: Progress) -> None:
        """Nothing is printed yet."""
        self._verb, self.nodes, self._cluster, self._progress = verb, nodes, cluster, progress
        names = [cluster.myself, *(one.name for one in cluster.others), *cluster.unreachable]
        self._width = max(map(len, [*names, *(["others"] if cluster.trouble else [])]))
        self._node_width = max(map(len, nodes))
        self._answers: dict[tuple[str, str], str] = {}
        self._awaited: Sequence[str] = ()
        self._output_error: OSError | None = None
        self.open_sessions: dict[tuple[str, str], int] = {}
        """Sessions that are still open, by node and load balancer."""

    def add(self, node: str, name: str, words: str) -> None:
        """Print the answer of the load balancer `name` for a node, unless it has answered already."""
        if (node, name) in self._answers:
            return
        self._answers[node, name] = words
        if count := parse_open_sessions(words):
            self.open_sessions[node, name] = count
        self.show_waiting([one for one in self._awaited if one != name])
        self.print(self.format(node, name, words))

    def add_for_all(self, name: str, words: str) -> None:
        """Print `words` for each node for which the load balancer `name` has not answered."""
        for node in self.nodes:
            self.add(node, name, words)

    def make_callback(self, node: str) -> agent.AnswerCallback:
        """Return `add` for one node, which ignores the answers of this load balancer."""

        def add(name: str, words: str) -> None:
            if name != self._cluster.myself:
                self.add(node, name, words)

        return add

    def format(self, node: str, name: str, words: str) -> str:
        """Return a row; with one node only, it does not have the node's name."""
        head = f"{node:{self._node_width}}  " if len(self.nodes) > 1 else ""
        return make_printable(f"{head}{name:{self._width}}  {words}")

    def print(self, line: str) -> None:
        """Print a line to stdout, above what is shown on a terminal.

        Where that fails, the other load balancers are asked nevertheless, and `require_output` raises the error.
        """
        if self._output_error:
            return
        with self._progress.hidden():
            try:
                print(line, flush=True)
            except OSError as error:
                self._output_error = error

    def require_output(self) -> None:
        """Raise the OSError of a row that could not be printed."""
        if self._output_error:
            raise self._output_error

    def show_waiting(self, names: Sequence[str]) -> None:
        """Show on a terminal which load balancers have not answered."""
        self._awaited = names
        self._progress.show(f"waiting for {make_printable(', '.join(names))}" if names else "")

    def has_answered(self, name: str) -> bool:
        """Return whether the load balancer `name` has answered for any node."""
        return any(one == name for _, one in self._answers)

    def list_silent(self, node: str, names: Sequence[str]) -> list[str]:
        """Return the load balancers among `names` that have not answered for this node."""
        return [name for name in names if (node, name) not in self._answers]

    def list_confirming(self, node: str | None = None) -> list[str]:
        """Return the load balancers that have confirmed the command for this node; by default for all nodes."""
        nodes = self.nodes if node is None else [node]
        names = [self._cluster.myself, *(one.name for one in self._cluster.others)]
        return [name for name in names if all(is_confirmation(self._answers.get((one, name), "")) for one in nodes)]

    def list_unconfirmed(self, node: str) -> list[str]:
        """Return the load balancers, or `others`, that have not confirmed the command for this node.

        Without those that are not alive in Serf: they answer nothing until they are back.
        """
        dead = {one.name for one in self._cluster.others if one.status != "alive"}
        found = [name for (one, name), words in self._answers.items() if one == node and not is_confirmation(words)]
        return [name for name in found if name not in dead]

    def print_interrupted(self) -> None:
        """Print to stderr what is in effect, which load balancers have not answered, and which sessions are open."""
        names = [self._cluster.myself, *(one.name for one in self._cluster.others)]
        confirming = self.list_confirming()
        silent = [name for name in names if any((node, name) not in self._answers for node in self.nodes)]
        what = f"{self._verb} of {', '.join(self.nodes)}"
        effect = f"in effect on {', '.join(confirming)}" if confirming else "not confirmed by any load balancer"
        rest = f"; not answered: {', '.join(silent)}; run it again to ask them" if silent else ""
        self.print_error(f"interrupted: {what}: {effect}{rest}{'; ' * any(self.open_sessions)}{self.list_open()}")

    def list_open(self) -> str:
        """Return the sessions that are still open, as words; empty where none is."""
        found = []
        for node in self.nodes:
            counts = {name: count for (one, name), count in self.open_sessions.items() if one == node}
            for count in sorted(set(counts.values()), reverse=True):
                head = f"{node}: " if len(self.nodes) > 1 else ""
                on = ", ".join(sorted(name for name in counts if counts[name] == count))
                found.append(f"{head}{format_open_sessions(count)} on {on}")
        return "; ".join(found)

    def print_error(self, words: str) -> None:
        """Print a message to stderr."""
        with self._progress.hidden():
            print(make_printable(f"lbagent: {words}"), file=sys.stderr, flush=True)

    def judge(self, *, force: bool) -> int:
        """Return the exit status: 0 where every row is a confirmation."""
        if not all(self._is_done(node) for node in self.nodes):
            return 1
        last = {name for (_, name), words in self._answers.items() if LAST_SERVER_WARNING in words}
        if force or not last or self._cluster.myself in last:
            return 0
        # Another load balancer had fewer servers left: two operators at once, or its checks fail where those here pass.
        words = f"{', '.join(self.nodes)}: no other server serves on {', '.join(sorted(last))}"
        self.print_error(f"{words}; resume a node, or use --force")
        return LastServer.exit_status

    def _is_done(self, node: str) -> bool:
        answers = [words for (one, _), words in self._answers.items() if one == node]
        unconfirmed = {words for words in answers if not is_confirmation(words)}
        if self._verb == "forget" and any(map(is_confirmation, answers)):
            # A load balancer that never knew a node has nothing to forget.
            unconfirmed.discard(UNKNOWN_NODE["forget"])
        return not unconfirmed


class SessionWait:
    """Waits until no session to the paused nodes is open on any load balancer.

    The load balancers are asked only for the number of sessions: a repeated pause would end a resume sent meanwhile.
    """

    def __init__(self, rows: Rows, cluster: Cluster, engine: Engine, progress: Progress) -> None:
        """Nothing is asked yet."""
        self._rows, self._cluster, self._engine, self._progress = rows, cluster, engine, progress
        self._names = rows.list_confirming()
        self._answered = dict.fromkeys(self._names, time.monotonic())

    def run(self, limit: float) -> int:
        """Wait for at most `limit` seconds, and return the exit status."""
        rows, end = self._rows, time.monotonic() + limit
        if unconfirmed := {node: names for node in rows.nodes if (names := rows.list_unconfirmed(node))}:
            listed = ", ".join(sorted({name for found in unconfirmed.values() for name in found}))
            words = f"not waiting for open sessions: the pause is not confirmed by {listed}; run it again"
            rows.print_error(f"{', '.join(unconfirmed)}: {words}")
            return 1
        while rows.open_sessions:
            self._show()
            left = end - time.monotonic()
            if left <= 0:
                rest = f"after {limit:g}s; the pause is in effect, run it again to wait on"
                rows.print_error(f"{self._name_node()}{rows.list_open()} {rest}")
                return 1
            time.sleep(min(_INTERVAL, left))
            if problem := self._count():
                rows.print_error(problem)
                return 1
        return 0

    def _name_node(self) -> str:
        return f"{self._rows.nodes[0]}: " if len(self._rows.nodes) == 1 else ""

    def _show(self) -> None:
        rows = self._rows
        changing = [rows.format(node, name, format_open_sessions(count)) for (node, name), count in self._list_sorted()]
        words = "waiting until no session is open; Ctrl-C ends the waiting, not the pause" if changing else ""
        self._progress.show(words, changing)

    def _list_sorted(self) -> list[tuple[tuple[str, str], int]]:
        order = {(node, name): 0 for node in self._rows.nodes for name in self._names}
        return [(key, self._rows.open_sessions[key]) for key in order if key in self._rows.open_sessions]

    def _count(self) -> str:
        """Ask all load balancers, and print what has changed. Returns why there is nothing to wait for any more."""
        rows, resumed = self._rows, dict[str, list[str]]()
        for name, counts in self._ask():
            self._answered[name] = time.monotonic()
            for node, count in counts.items():
                if count is None:
                    resumed.setdefault(node, []).append(name)
                    continue
                before = rows.open_sessions.pop((node, name), 0)
                if count:
                    rows.open_sessions[node, name] = count
                # On a terminal the number is replaced in place, and only the last one is printed.
                self._show()
                if count != before and not (count and self._progress.is_visible_with_stdout):
                    rows.print(rows.format(node, name, format_open_sessions(count)))
        for node, where in resumed.items():
            return f"{node}: not paused any more on {', '.join(sorted(where))}; pause it again"
        now = time.monotonic()
        for (node, name), count in rows.open_sessions.items():
            if now - self._answered[name] > _SILENCE:
                words = f"no answer for {_SILENCE:g}s; {format_open_sessions(count)} to {node} when it answered last"
                return f"{name}: {words}"
        return ""

    def _ask(self) -> Iterator[tuple[str, Mapping[str, int | None]]]:
        """Yield each load balancer that answers, with its open sessions by node; None for a node that is not paused."""
        others = [name for name in self._names if name != self._cluster.myself]
        for nodes in _split_names(self._rows.nodes):
            payload = " ".join([query.SESSIONS, *nodes])
            with contextlib.suppress(LbagentError, OSError, Damaged):
                yield self._cluster.myself, _parse_sessions(query.format_sessions(nodes, self._engine), nodes)
            if others:
                with contextlib.suppress(TryAgain):
                    answers = agent.send_query("lbagent-status", payload, others, [_COUNT_TIMEOUT])
                    for name, words in answers.items():
                        yield name, _parse_sessions(words, nodes)


def _parse_sessions(words: str, nodes: Sequence[str]) -> dict[str, int | None]:
    found = (word.rpartition("=") for word in words.split())
    return {
        node: int(value) if value.isascii() and value.isdigit() else None
        for node, _, value in found
        if node in nodes and (value == query.NOT_PAUSED or (value.isascii() and value.isdigit()))
    }


def _split_names(nodes: Iterable[str]) -> Iterator[list[str]]:
    """Yield the nodes in groups whose names, and the numbers of their sessions, have room in one answer."""
    group: list[str] = []
    for node in nodes:
        if group and len(" ".join([*group, node])) > _NAMES_BYTES:
            yield group
            group = []
        group.append(node)
    if group:
        yield group


class Progress:
    """Shows what is awaited; nothing where stderr is not a terminal, or one that cannot move its cursor."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        if not self._console.width:
            self._console.width = 80  # COLUMNS=0
        self._is_visible = sys.stderr.isatty() and not self._console.is_dumb_terminal
        # ASCII: a terminal of any locale can show it.
        self._spinner = Spinner("line")
        self._shown: Group | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.show("")

    @property
    def is_visible_with_stdout(self) -> bool:
        """Whether stdout is a terminal as well: then lines there need not repeat what is shown."""
        return self._is_visible and sys.stdout.isatty()

    def show(self, words: str, lines: Sequence[str] = ()) -> None:
        """Show the spinner with `words`, and `lines` below it, in place of what was shown; nothing with empty words."""
        if not self._is_visible:
            return
        self._spinner.update(text=Text(words, overflow="ellipsis", no_wrap=True))
        below = [Text(f"  {line}", overflow="ellipsis", no_wrap=True) for line in lines]
        self._shown = Group(self._spinner, *below) if words else None
        self._draw()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Within the `with`, nothing is shown, so that a line can be printed."""
        shown, self._shown = self._shown, None
        self._draw()
        try:
            yield
        finally:
            self._shown = shown
            self._draw()

    def _draw(self) -> None:
        if self._shown is None:
            if self._live:
                self._live.stop()
            self._live = None
        elif self._live:
            self._live.update(self._shown)
        else:
            # Always a new one: rich's Live erases as many lines as it had shown before it was stopped.
            self._live = Live(
                self._shown, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
