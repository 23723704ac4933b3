"""The verbs an operator types: `plan` and `apply`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

from lbagent import scene
from lbagent.apply import Options
from lbagent.engine import Engine
from lbagent.errors import Busy
from lbagent.host.lock import locked
from lbagent.host.log import Log
from lbagent.host.paths import Paths
from lbagent.intake import Rounds
from lbagent.plan import Plan, Rules
from lbagent.plan import plan as planned
from lbagent.scene import Scene
from lbagent.settings import Settings

LOCK_WAIT = 30.0
"""Seconds a person waits for a run that is under way."""

_WOULD_CHANGE = 2


def plan(settings: Settings, log: Log) -> int:
    """Print what would change now as a unified diff; 0 nothing, 2 something."""
    engine = Engine(Paths(settings.state_dir), settings.roles, log)
    seen, wanted = _foreseen(engine, Rules())
    for note in wanted.notes:
        log.warning(note)
    for held in wanted.held:
        log.warning(f"held back: {held}; `lbagent apply --force` lets them go")
    _print(_diff(seen, wanted))
    return _WOULD_CHANGE if wanted.after != wanted.before else 0


def apply(force: bool, adopt: bool, reload: bool) -> Callable[[Settings, Log], int]:  # noqa: FBT001  # the verb's three switches
    """The verb that plans and applies from what is known."""

    def verb(settings: Settings, log: Log) -> int:
        engine = Engine(Paths(settings.state_dir), settings.roles, log)
        rounds = Rounds(engine.spool, log)
        engine.paths.prepare()
        with locked(engine.paths.lock, LOCK_WAIT) as had:
            if not had:
                raise Busy(f"{engine.paths.lock} is held by another run for {LOCK_WAIT:g} s: try again")
            if adopt:
                _print(_diff(*_foreseen(engine, Rules(force=force, adopt=True))))
            outcome = rounds.once(lambda: engine.run(Options(force, adopt, reload)))
        if outcome:
            print(f"{outcome.verdict}: {outcome.words}")
        rounds.more(engine.paths.lock, lambda: engine.run(Options(reload=reload)))
        return rounds.status

    return verb


def _foreseen(engine: Engine, rules: Rules) -> tuple[Scene, Plan]:
    roles = engine.roles()
    seen = scene.look(roles.haproxy)
    return seen, planned(seen.document, roles, engine.foreseen(roles), rules)


def _diff(seen: Scene, wanted: Plan) -> Iterator[str]:
    import difflib  # noqa: PLC0415  # 6 ms that only a person waits for

    for target, before, after in zip(seen.targets, wanted.before, wanted.after, strict=True):
        old, new = (text.split("\n") for text in (before, after))
        yield from difflib.unified_diff(_lines(old), _lines(new), target.given, f"{target.given} (planned)", n=2)


def _lines(split: Sequence[str]) -> list[str]:
    lines = [f"{line}\n" for line in split[:-1]]
    return [*lines, f"{split[-1]}\n\\ No newline at end of file\n"] if split[-1] else lines


def _print(lines: Iterator[str]) -> None:
    # The operator's bytes, whatever their encoding.
    sys.stdout.flush()
    sys.stdout.buffer.writelines(scene.encoded(line) for line in lines)
    sys.stdout.flush()
