"""The verbs that bring haproxy.cfg in step with what is known: `plan`, `apply`, `sync`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from lbagent import diff, quarantine, scene
from lbagent.apply import Options
from lbagent.engine import Engine, Learn
from lbagent.errors import Busy, LbagentError, TryAgain, UsageError
from lbagent.haproxy.text import Document
from lbagent.host.lock import locked
from lbagent.host.log import Log
from lbagent.host.paths import Paths
from lbagent.intake import Rounds
from lbagent.membership import Membership
from lbagent.names import counted
from lbagent.outcome import Outcome, Verdict
from lbagent.plan import Plan, Rules
from lbagent.plan import plan as planned
from lbagent.roles import Roles
from lbagent.scene import Scene
from lbagent.settings import Settings
from lbagent.standing import BY_HAND, standings
from lbagent.truth import truth
from lbagent.tuples import NamedTuple

LOCK_WAIT = 30.0
"""Seconds a person waits for a run that is under way."""

_WOULD_CHANGE, _BLOCKED, _REFUSED = 2, 3, 4

Verb = Callable[[Settings, Log], int]


def plan(settings: Settings, log: Log) -> int:
    """Print what would change now as a unified diff; returns 0 nothing, 2 something, 3 blocked removals, 4 refused."""
    log.journal = False
    return _report(Engine(Paths(settings.state_dir), settings.roles, log), log, Rules())


def apply(force: bool, adopt: bool, yes: bool, reload: bool) -> Verb:  # noqa: FBT001  # the verb's four switches
    """The verb that plans and applies from what is known. Raises UsageError."""
    if yes and not adopt:
        raise UsageError("--yes is for `lbagent apply --adopt`")

    def verb(settings: Settings, log: Log) -> int:
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        engine.paths.prepare()
        rules = Rules(force=force, adopt=True)
        confirmed = _confirm_adoption(engine, rules, yes=yes) if adopt else None
        if adopt and confirmed is None:
            return 0
        with locked(engine.paths.lock, LOCK_WAIT) as acquired:
            _require_lock(acquired, engine)
            if confirmed is not None and _foresee(engine, rules).wanted.after != confirmed.after:
                raise Busy("haproxy.cfg or membership has changed since the diff was shown; run again")
            rounds = _run(engine, log, Options(force, adopt, reload, compare=True, verify=True))
        rounds.more(engine.paths.lock, lambda: engine.run(Options(reload=reload)))
        return rounds.status

    return verb


def sync(dry_run: bool, force: bool) -> Verb:  # noqa: FBT001  # the verb's two switches
    """The verb that refreshes membership from Serf and applies it; `dry_run` only reports, as `plan` does."""

    def verb(settings: Settings, log: Log) -> int:
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        if dry_run:
            log.journal = False
        learn = truth(engine, log, log.warning, force=force, record=not dry_run)
        if dry_run:
            status = _report(engine, log, Rules(force=force), learn)
            return 0 if status == _WOULD_CHANGE else status
        engine.paths.prepare()
        with locked(engine.paths.lock, LOCK_WAIT) as acquired:
            _require_lock(acquired, engine)
            rounds = _run(engine, log, Options(force, compare=True, verify=True), learn)
        rounds.more(engine.paths.lock, lambda: engine.run(Options()))
        return rounds.status

    return verb


class _Foreseen(NamedTuple):
    """What the next run would find, and do."""

    roles: Roles
    seen: Scene
    membership: Membership
    wanted: Plan
    kept: frozenset[str]
    """Nodes in quarantine."""


def _require_lock(acquired: bool, engine: Engine) -> None:  # noqa: FBT001  # the state of the lock
    if not acquired:
        raise Busy(f"{engine.paths.lock}: held by another run for {LOCK_WAIT:g} s; try again")


def _run(engine: Engine, log: Log, options: Options, learn: Learn | None = None) -> Rounds:
    rounds = Rounds(engine.spool, log)
    outcome = rounds.once(lambda: engine.run(options, learn))
    if outcome:
        print(_sentence(engine, outcome))
    return rounds


def _sentence(engine: Engine, outcome: Outcome) -> str:
    """How a run ended, for the person who started it."""
    if outcome.verdict is Verdict.UNCHANGED and outcome.quiet:
        roles = engine.roles()
        return _nothing(scene.look(roles.haproxy).document, roles, engine.membership)
    return f"{outcome.verdict}: {outcome.words}"


def _nothing(document: Document, roles: Roles, membership: Membership) -> str:
    """The sentence for nothing to do, with what haproxy.cfg has: `No changes: 12 nodes, 36 lines.`."""
    by_node = standings(document, roles, membership.members, {})
    lines = {node: sum(one.line != BY_HAND for one in there) for node, there in by_node.items()}
    nodes = sum(count > 0 for count in lines.values())
    total = sum(len(proxy.managed) for proxy in document.proxies)
    return f"No changes: {counted(nodes, 'node')}, {counted(total, 'line')}."


def _confirm_adoption(engine: Engine, rules: Rules, *, yes: bool) -> Plan | None:
    """Show what `--adopt` would change and ask; the plan to apply, None where the answer is no. Raises UsageError."""
    foreseen = _foresee(engine, rules)
    diff.show(foreseen.seen, foreseen.wanted)
    if yes or foreseen.wanted.after == foreseen.wanted.before:
        return foreseen.wanted
    if not sys.stdin.isatty():
        raise UsageError("apply --adopt: nothing was changed, as there is no terminal to ask on; add --yes")
    print("Apply these changes? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return foreseen.wanted
    print("Nothing was changed.")
    return None


def _report(engine: Engine, log: Log, rules: Rules, learn: Learn | None = None) -> int:
    """Print what the next run would do, and all that hinders it; returns the exit status of `plan`."""
    foreseen = _foresee(engine, rules, learn)
    wanted, members = foreseen.wanted, foreseen.membership.members
    for note in wanted.notes:
        log.warning(note)
    for node in sorted(foreseen.kept):
        if (member := members.get(node)) and member.quarantine:
            log.error(f"{node}: in quarantine, its lines stay as they are: {member.quarantine.reason}")
    for held in wanted.held:
        log.error(f"blocked: {held}; `lbagent apply --force` applies these removals")
    refusal = _refusal(foreseen, log)
    if refusal:
        log.error(refusal)
    diff.show(foreseen.seen, wanted)
    changes = wanted.after != wanted.before
    if not changes and not refusal:
        print(_nothing(foreseen.seen.document, foreseen.roles, foreseen.membership))
    if refusal or foreseen.kept:
        return _REFUSED
    if wanted.held:
        return _BLOCKED
    return _WOULD_CHANGE if changes else 0


def _refusal(foreseen: _Foreseen, log: Log) -> str | None:
    """Why HAProxy would refuse haproxy.cfg, as it is or as planned; None where it would not, or cannot be asked."""
    from lbagent.checks.candidate import Validator  # noqa: PLC0415  # only a person waits for it

    seen, wanted, settings = foreseen.seen, foreseen.wanted, foreseen.roles.haproxy
    try:
        running = scene.haproxy(settings, seen).running
    except TryAgain:
        running = None
    validator = Validator(seen, settings, running)
    try:
        if words := validator.refusal(wanted.after) if wanted.after != wanted.before else validator.live_refusal():
            own = validator.live_refusal()
            return f"HAProxy refuses the operator's own text: {own}" if own else f"HAProxy refuses the plan: {words}"
    except (LbagentError, OSError) as error:
        log.warning(f"haproxy.cfg: not validated: {error}")
    return None


def _foresee(engine: Engine, rules: Rules, learn: Learn | None = None) -> _Foreseen:
    roles = engine.roles()
    seen, membership = scene.look(roles.haproxy), engine.foreseen(roles, learn)
    kept = frozenset[str]() if rules.force else quarantine.held_beside(membership, seen.document, roles)
    wanted = planned(seen.document, roles, membership, rules._replace(kept=kept))
    return _Foreseen(roles, seen, membership, wanted, kept)
