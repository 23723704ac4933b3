"""The commands that compare haproxy.cfg with membership, and change it: `plan`, `apply`, `sync`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lbagent.checks.haproxy import Validator
from lbagent.errors import Busy, LbagentError, TryAgain, UsageError
from lbagent.haproxy import config_files
from lbagent.haproxy.config import Document
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.membership.model import Membership
from lbagent.names import format_count
from lbagent.outcome import Outcome, Verdict
from lbagent.planning import quarantine
from lbagent.planning.lines import ProxyLines
from lbagent.planning.plan import Plan, PlanOptions, make_plan
from lbagent.roles.model import Roles
from lbagent.run.engine import Engine
from lbagent.run.queue import DrainLoop
from lbagent.run.sync import SyncMerge
from lbagent.run.transaction import RunOptions
from lbagent.settings import Settings
from lbagent.state.lock import RUN_WAIT, acquire_lock
from lbagent.system.log import Log

_WOULD_CHANGE, _BLOCKED, _REFUSED = 2, 3, 4
"""Exit statuses of `plan`."""

Verb = Callable[[Settings, Log], int]
"""A command: does its work and returns the exit status. May raise LbagentError and OSError."""


def plan(settings: Settings, log: Log) -> int:
    """Print the pending changes as a unified diff; return 0 nothing, 2 something, 3 blocked removals, 4 refused."""
    log.journal = False
    return _report_plan(Engine(settings, log), log, PlanOptions())


def apply(force: bool, adopt: bool, yes: bool, reload: bool) -> Verb:  # noqa: FBT001  # the command's four switches
    """Return the command that plans and applies from what is known. Raises UsageError."""
    if yes and not adopt:
        raise UsageError("--yes is only for `lbagent apply --adopt`")

    def verb(settings: Settings, log: Log) -> int:
        engine = Engine(settings, log)
        engine.paths.prepare()
        options = PlanOptions(force=force, adopt=True)
        confirmed = _confirm_adoption(engine, options, yes=yes) if adopt else None
        if adopt and confirmed is None:
            return 0
        with acquire_lock(engine.paths.lock, RUN_WAIT) as acquired:
            _require_lock(acquired, engine)
            if confirmed is not None and _preview_run(engine, options).wanted.after != confirmed.after:
                raise Busy("haproxy.cfg or membership has changed since the diff was shown; run again")
            loop = _run_and_report(engine, log, RunOptions(force, adopt, reload, compare=True, verify=True))
        loop.run_while_spooled(engine.paths.lock, lambda: engine.run(RunOptions(reload=reload)))
        return loop.status

    return verb


def sync(dry_run: bool, force: bool) -> Verb:  # noqa: FBT001  # the command's two switches
    """Return the command that refreshes membership from Serf, then applies; `dry_run` reports as `plan` does."""

    def verb(settings: Settings, log: Log) -> int:
        engine = Engine(settings, log)
        if dry_run:
            log.journal = False
        merge_sync = engine.prepare_sync(log.warning, force=force, record=not dry_run)
        if dry_run:
            status = _report_plan(engine, log, PlanOptions(force=force), merge_sync)
            return 0 if status == _WOULD_CHANGE else status
        engine.paths.prepare()
        with acquire_lock(engine.paths.lock, RUN_WAIT) as acquired:
            _require_lock(acquired, engine)
            loop = _run_and_report(engine, log, RunOptions(force, compare=True, verify=True), merge_sync)
        loop.run_while_spooled(engine.paths.lock, lambda: engine.run(RunOptions()))
        return loop.status

    return verb


def _require_lock(acquired: bool, engine: Engine) -> None:  # noqa: FBT001  # the state of the lock
    if not acquired:
        raise Busy(f"{engine.paths.lock}: timed out after {RUN_WAIT:g} s, another run holds the lock; try again")


# Run


def _run_and_report(engine: Engine, log: Log, options: RunOptions, merge_sync: SyncMerge | None = None) -> DrainLoop:
    """Make a run and print its outcome; errors are logged. Returns the loop, which has the exit status."""
    loop = DrainLoop(engine.spool, log)
    outcome = loop.run_once(lambda: engine.run(options, merge_sync))
    if outcome:
        print(_format_outcome(engine, outcome))
    return loop


def _format_outcome(engine: Engine, outcome: Outcome) -> str:
    if outcome.verdict is Verdict.UNCHANGED and outcome.is_quiet:
        roles = engine.load_roles()
        return _format_no_changes(config_files.read_config(roles.haproxy).document, roles, engine.membership)
    return f"{outcome.verdict}: {outcome.message}"


def _format_no_changes(document: Document, roles: Roles, membership: Membership) -> str:
    """Return `No changes: N nodes, M lines.`, with the counts of haproxy.cfg."""
    pairs, nodes, lines = roles.list_pairs(), set[str](), 0
    for proxy in document.proxies:
        found = ProxyLines(proxy, roles, pairs, membership.members)
        nodes |= {found.find_node(line) for line in proxy.managed}
        lines += len(proxy.managed)
    return f"No changes: {format_count(len(nodes), 'node')}, {format_count(lines, 'line')}."


# Preview


class _Preview(NamedTuple):
    """What the next run would find and plan."""

    roles: Roles
    seen: ConfigSnapshot
    membership: Membership
    wanted: Plan
    kept: frozenset[str]
    """Nodes in quarantine."""


def _preview_run(engine: Engine, options: PlanOptions, merge_sync: SyncMerge | None = None) -> _Preview:
    """Plan the next run; nothing is written. Raises RolesRefused, TryAgain, OSError."""
    roles = engine.load_roles()
    seen, membership = config_files.read_config(roles.haproxy), engine.preview_membership(roles, merge_sync)
    kept = frozenset[str]() if options.force else quarantine.find_quarantined_in(membership, seen.document, roles)
    wanted = make_plan(seen.document, roles, membership, options._replace(kept=kept))
    return _Preview(roles, seen, membership, wanted, kept)


def _confirm_adoption(engine: Engine, options: PlanOptions, *, yes: bool) -> Plan | None:
    """Print the diff of `--adopt` and ask; return the plan to apply, None if the answer is no. Raises UsageError."""
    preview = _preview_run(engine, options)
    _print_diff(preview.seen, preview.wanted)
    if yes or preview.wanted.after == preview.wanted.before:
        return preview.wanted
    if not sys.stdin.isatty():
        raise UsageError("apply --adopt: no terminal to ask on, nothing was changed; add --yes")
    print("Apply these changes? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return preview.wanted
    print("Nothing was changed.")
    return None


def _report_plan(engine: Engine, log: Log, options: PlanOptions, merge_sync: SyncMerge | None = None) -> int:
    """Print the diff of the next run and log its obstacles; return the exit status of `plan`."""
    preview = _preview_run(engine, options, merge_sync)
    wanted, members = preview.wanted, preview.membership.members
    for note in wanted.notes:
        log.warning(note)
    for node in sorted(preview.kept):
        if (member := members.get(node)) and member.quarantine:
            log.error(f"{node} is in quarantine, its lines are unchanged: {member.quarantine.reason}")
    for blocked in wanted.blocked:
        log.error(f"blocked: {blocked.report}")
    refusal = _find_refusal(preview, log)
    if refusal:
        log.error(refusal)
    _print_diff(preview.seen, wanted)
    has_changes = wanted.after != wanted.before
    if not has_changes and not refusal:
        print(_format_no_changes(preview.seen.document, preview.roles, preview.membership))
    if refusal or preview.kept:
        return _REFUSED
    if wanted.blocked:
        return _BLOCKED
    return _WOULD_CHANGE if has_changes else 0


def _find_refusal(preview: _Preview, log: Log) -> str | None:
    """Return why HAProxy would refuse haproxy.cfg, as it is or as planned; None if it accepts it or is unknown."""
    seen, wanted, settings = preview.seen, preview.wanted, preview.roles.haproxy
    try:
        running = config_files.find_haproxy(settings, seen).running
    except TryAgain:
        running = None
    validator = Validator(seen, settings, running)
    try:
        is_same = wanted.after == wanted.before
        reason = validator.find_live_refusal() if is_same else validator.find_refusal(wanted.after)
        if reason:
            own = validator.find_live_refusal()
            return (
                f"haproxy.cfg is invalid, not because of lbagent: {own}"
                if own
                else f"haproxy.cfg: HAProxy refuses the planned text: {reason}"
            )
    except (LbagentError, OSError) as error:
        log.warning(f"haproxy.cfg: not validated: {error}")
    return None


def _print_diff(seen: ConfigSnapshot, wanted: Plan) -> None:
    """Print the diff between haproxy.cfg and the plan, with the bytes of the file whatever their encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.writelines(config_files.encode(line) for line in _compare_texts(seen, wanted))
    sys.stdout.flush()


def _compare_texts(seen: ConfigSnapshot, wanted: Plan) -> Iterator[str]:
    for target, before, after in zip(seen.targets, wanted.before, wanted.after, strict=True):
        old, new = (text.split("\n") for text in (before, after))
        names = (target.given, f"{target.given} (planned)")
        yield from difflib.unified_diff(_end_lines(old), _end_lines(new), *names, n=2)


def _end_lines(split: Sequence[str]) -> list[str]:
    """Add the line ends that `split` removed; a last line without one is marked as diff(1) does."""
    lines = [f"{line}\n" for line in split[:-1]]
    return [*lines, f"{split[-1]}\n\\ No newline at end of file\n"] if split[-1] else lines
