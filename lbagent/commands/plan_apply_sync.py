"""The verbs that bring haproxy.cfg in step with what is known: `plan`, `apply`, `sync`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lbagent.errors import Busy, LbagentError, TryAgain, UsageError
from lbagent.haproxy import config_files
from lbagent.haproxy.config import Document
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.membership.model import Membership
from lbagent.names import format_count
from lbagent.outcome import Outcome, Verdict
from lbagent.planning import quarantine
from lbagent.planning.plan import Plan, PlanOptions
from lbagent.planning.plan import make_plan as planned
from lbagent.roles.model import Roles
from lbagent.run.engine import Engine, Learn
from lbagent.run.queue import DrainLoop
from lbagent.run.sync import prepare_sync
from lbagent.run.transaction import RunOptions
from lbagent.settings import Settings
from lbagent.state.lock import acquire_lock
from lbagent.state.paths import Paths
from lbagent.status.nodes import NOT_MANAGED, list_server_states
from lbagent.system.log import Log


def show(seen: ConfigSnapshot, wanted: Plan) -> None:
    """Print the diff from what stands to what is planned; the operator's bytes, whatever their encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.writelines(config_files.encode(line) for line in _diff(seen, wanted))
    sys.stdout.flush()


def _diff(seen: ConfigSnapshot, wanted: Plan) -> Iterator[str]:
    import difflib  # noqa: PLC0415  # 6 ms that only a person waits for

    for target, before, after in zip(seen.targets, wanted.before, wanted.after, strict=True):
        old, new = (text.split("\n") for text in (before, after))
        yield from difflib.unified_diff(_lines(old), _lines(new), target.given, f"{target.given} (planned)", n=2)


def _lines(split: Sequence[str]) -> list[str]:
    lines = [f"{line}\n" for line in split[:-1]]
    return [*lines, f"{split[-1]}\n\\ No newline at end of file\n"] if split[-1] else lines


LOCK_WAIT = 30.0
"""Seconds a person waits for a run that is under way."""

_WOULD_CHANGE, _BLOCKED, _REFUSED = 2, 3, 4

Verb = Callable[[Settings, Log], int]


def plan(settings: Settings, log: Log) -> int:
    """Print what would change now as a unified diff; returns 0 nothing, 2 something, 3 blocked removals, 4 refused."""
    log.journal = False
    return _report(Engine(Paths(settings.state_dir), settings.roles, log), log, PlanOptions())


def apply(force: bool, adopt: bool, yes: bool, reload: bool) -> Verb:  # noqa: FBT001  # the verb's four switches
    """The verb that plans and applies from what is known. Raises UsageError."""
    if yes and not adopt:
        raise UsageError("--yes is only for `lbagent apply --adopt`")

    def verb(settings: Settings, log: Log) -> int:
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        engine.paths.prepare()
        rules = PlanOptions(force=force, adopt=True)
        confirmed = _confirm_adoption(engine, rules, yes=yes) if adopt else None
        if adopt and confirmed is None:
            return 0
        with acquire_lock(engine.paths.lock, LOCK_WAIT) as acquired:
            _require_lock(acquired, engine)
            if confirmed is not None and _foresee(engine, rules).wanted.after != confirmed.after:
                raise Busy("haproxy.cfg or membership has changed since the diff was shown; run again")
            rounds = _run(engine, log, RunOptions(force, adopt, reload, compare=True, verify=True))
        rounds.run_while_spooled(engine.paths.lock, lambda: engine.run(RunOptions(reload=reload)))
        return rounds.status

    return verb


def sync(dry_run: bool, force: bool) -> Verb:  # noqa: FBT001  # the verb's two switches
    """The verb that refreshes membership from Serf and applies it; `dry_run` only reports, as `plan` does."""

    def verb(settings: Settings, log: Log) -> int:
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        if dry_run:
            log.journal = False
        learn = prepare_sync(engine, log, log.warning, force=force, record=not dry_run)
        if dry_run:
            status = _report(engine, log, PlanOptions(force=force), learn)
            return 0 if status == _WOULD_CHANGE else status
        engine.paths.prepare()
        with acquire_lock(engine.paths.lock, LOCK_WAIT) as acquired:
            _require_lock(acquired, engine)
            rounds = _run(engine, log, RunOptions(force, compare=True, verify=True), learn)
        rounds.run_while_spooled(engine.paths.lock, lambda: engine.run(RunOptions()))
        return rounds.status

    return verb


class _Foreseen(NamedTuple):
    """What the next run would find, and do."""

    roles: Roles
    seen: ConfigSnapshot
    membership: Membership
    wanted: Plan
    kept: frozenset[str]
    """Nodes in quarantine."""


def _require_lock(acquired: bool, engine: Engine) -> None:  # noqa: FBT001  # the state of the lock
    if not acquired:
        raise Busy(f"{engine.paths.lock}: timed out after {LOCK_WAIT:g} s, another run holds the lock; try again")


def _run(engine: Engine, log: Log, options: RunOptions, learn: Learn | None = None) -> DrainLoop:
    rounds = DrainLoop(engine.spool, log)
    outcome = rounds.run_once(lambda: engine.run(options, learn))
    if outcome:
        print(_sentence(engine, outcome))
    return rounds


def _sentence(engine: Engine, outcome: Outcome) -> str:
    """How a run ended, for the person who started it."""
    if outcome.verdict is Verdict.UNCHANGED and outcome.is_quiet:
        roles = engine.roles()
        return _nothing(config_files.read_config(roles.haproxy).document, roles, engine.membership)
    return f"{outcome.verdict}: {outcome.message}"


def _nothing(document: Document, roles: Roles, membership: Membership) -> str:
    """The sentence for nothing to do, with what haproxy.cfg has: `No changes: 12 nodes, 36 lines.`."""
    by_node = list_server_states(document, roles, membership.members, {})
    lines = {node: sum(one.line != NOT_MANAGED for one in there) for node, there in by_node.items()}
    nodes = sum(count > 0 for count in lines.values())
    total = sum(len(proxy.managed) for proxy in document.proxies)
    return f"No changes: {format_count(nodes, 'node')}, {format_count(total, 'line')}."


def _confirm_adoption(engine: Engine, rules: PlanOptions, *, yes: bool) -> Plan | None:
    """Show what `--adopt` would change and ask; the plan to apply, None where the answer is no. Raises UsageError."""
    foreseen = _foresee(engine, rules)
    show(foreseen.seen, foreseen.wanted)
    if yes or foreseen.wanted.after == foreseen.wanted.before:
        return foreseen.wanted
    if not sys.stdin.isatty():
        raise UsageError("apply --adopt: no terminal to ask on, nothing was changed; add --yes")
    print("Apply these changes? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return foreseen.wanted
    print("Nothing was changed.")
    return None


def _report(engine: Engine, log: Log, rules: PlanOptions, learn: Learn | None = None) -> int:
    """Print what the next run would do, and all that hinders it; returns the exit status of `plan`."""
    foreseen = _foresee(engine, rules, learn)
    wanted, members = foreseen.wanted, foreseen.membership.members
    for note in wanted.notes:
        log.warning(note)
    for node in sorted(foreseen.kept):
        if (member := members.get(node)) and member.quarantine:
            log.error(f"{node}: in quarantine, its lines stay as they are: {member.quarantine.reason}")
    for held in wanted.blocked:
        log.error(f"blocked: {held}; `lbagent apply --force` applies these removals")
    refusal = _refusal(foreseen, log)
    if refusal:
        log.error(refusal)
    show(foreseen.seen, wanted)
    changes = wanted.after != wanted.before
    if not changes and not refusal:
        print(_nothing(foreseen.seen.document, foreseen.roles, foreseen.membership))
    if refusal or foreseen.kept:
        return _REFUSED
    if wanted.blocked:
        return _BLOCKED
    return _WOULD_CHANGE if changes else 0


def _refusal(foreseen: _Foreseen, log: Log) -> str | None:
    """Why HAProxy would refuse haproxy.cfg, as it is or as planned; None where it would not, or cannot be asked."""
    from lbagent.checks.candidate import Validator  # noqa: PLC0415  # only a person waits for it

    seen, wanted, settings = foreseen.seen, foreseen.wanted, foreseen.roles.haproxy
    try:
        running = config_files.find_haproxy(settings, seen).running
    except TryAgain:
        running = None
    validator = Validator(seen, settings, running)
    try:
        changed = wanted.after != wanted.before
        if words := validator.find_refusal(wanted.after) if changed else validator.find_live_refusal():
            own = validator.find_live_refusal()
            return (
                f"haproxy.cfg is invalid, not because of lbagent: {own}"
                if own
                else f"haproxy.cfg: HAProxy refuses the planned text: {words}"
            )
    except (LbagentError, OSError) as error:
        log.warning(f"haproxy.cfg: not validated: {error}")
    return None


def _foresee(engine: Engine, rules: PlanOptions, learn: Learn | None = None) -> _Foreseen:
    roles = engine.roles()
    seen, membership = config_files.read_config(roles.haproxy), engine.preview_membership(roles, learn)
    kept = frozenset[str]() if rules.force else quarantine.find_quarantined_in(membership, seen.document, roles)
    wanted = planned(seen.document, roles, membership, rules._replace(kept=kept))
    return _Foreseen(roles, seen, membership, wanted, kept)
