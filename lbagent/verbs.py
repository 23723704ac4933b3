"""The verbs that make haproxy.cfg what is known: `plan`, `apply`, `sync`."""

from __future__ import annotations

from collections.abc import Callable

from lbagent import diff, quarantine, scene
from lbagent.apply import Options
from lbagent.engine import Engine, Learn
from lbagent.errors import Busy
from lbagent.host.lock import locked
from lbagent.host.log import Log
from lbagent.host.paths import Paths
from lbagent.intake import Rounds
from lbagent.plan import Plan, Rules
from lbagent.plan import plan as planned
from lbagent.scene import Scene
from lbagent.settings import Settings
from lbagent.truth import truth

LOCK_WAIT = 30.0
"""Seconds a person waits for a run that is under way."""

_WOULD_CHANGE = 2

Verb = Callable[[Settings, Log], int]


def plan(settings: Settings, log: Log) -> int:
    """Print what would change now as a unified diff; 0 nothing, 2 something."""
    engine = Engine(Paths(settings.state_dir), settings.roles, log)
    return _WOULD_CHANGE if _shown(engine, log, Rules()) else 0


def apply(force: bool, adopt: bool, reload: bool) -> Verb:  # noqa: FBT001  # the verb's three switches
    """The verb that plans and applies from what is known."""

    def verb(settings: Settings, log: Log) -> int:
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        engine.paths.prepare()
        with locked(engine.paths.lock, LOCK_WAIT) as had:
            _insist(had, engine)
            if adopt:
                diff.show(*_foreseen(engine, Rules(force=force, adopt=True)))
            rounds = _ran(engine, log, Options(force, adopt, reload, compare=True))
        rounds.more(engine.paths.lock, lambda: engine.run(Options(reload=reload)))
        return rounds.status

    return verb


def sync(dry_run: bool, force: bool) -> Verb:  # noqa: FBT001  # the verb's two switches
    """The verb that makes membership what Serf knows now; `dry_run` prints the diff, and changes nothing."""

    def verb(settings: Settings, log: Log) -> int:
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        learn = truth(engine, log, log.warning, force=force)
        if dry_run:
            _shown(engine, log, Rules(force=force), learn)
            return 0
        engine.paths.prepare()
        with locked(engine.paths.lock, LOCK_WAIT) as had:
            _insist(had, engine)
            rounds = _ran(engine, log, Options(force, compare=True), learn)
        rounds.more(engine.paths.lock, lambda: engine.run(Options()))
        return rounds.status

    return verb


def _insist(had: bool, engine: Engine) -> None:  # noqa: FBT001  # what the lock said
    if not had:
        raise Busy(f"{engine.paths.lock} is held by another run for {LOCK_WAIT:g} s: try again")


def _ran(engine: Engine, log: Log, options: Options, learn: Learn | None = None) -> Rounds:
    rounds = Rounds(engine.spool, log)
    outcome = rounds.once(lambda: engine.run(options, learn))
    if outcome:
        print(f"{outcome.verdict}: {outcome.words}")
    return rounds


def _shown(engine: Engine, log: Log, rules: Rules, learn: Learn | None = None) -> bool:
    seen, wanted = _foreseen(engine, rules, learn)
    for note in wanted.notes:
        log.warning(note)
    for held in wanted.held:
        log.warning(f"held back: {held}; `lbagent apply --force` lets them go")
    diff.show(seen, wanted)
    return wanted.after != wanted.before


def _foreseen(engine: Engine, rules: Rules, learn: Learn | None = None) -> tuple[Scene, Plan]:
    roles = engine.roles()
    seen, membership = scene.look(roles.haproxy), engine.foreseen(roles, learn)
    if not rules.force:
        rules = rules._replace(kept=quarantine.held_beside(membership, seen.document, roles))
    return seen, planned(seen.document, roles, membership, rules)
