"""The command line: --help, man page and shell completions are made from it."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import lbagent
from lbagent import errors
from lbagent.commands import pause, plan_apply_sync, status
from lbagent.commands.handle import handle
from lbagent.errors import INTERRUPTED, LbagentError, UsageError
from lbagent.outcome import BlockedRemoval, Outcome, Verdict
from lbagent.settings import DEFAULT_ROLES, DEFAULT_STATE_DIR, Settings, load_settings
from lbagent.system.log import Log

EXAMPLES = (
    ("lbagent status", "show all nodes, with the reason where a node is out of balancing"),
    ("lbagent check", "list problems, each with its fix"),
    ('lbagent pause web01 --for 2h --reason "patch day"', "pause a node on all load balancers"),
    ("lbagent pause web01 --wait 10m", "pause a node, and return when no session is open"),
    ("lbagent plan", "show what would change now, as a diff"),
    ("lbagent apply", "apply an edit of roles.yml"),
    ("lbagent --roles new.yml plan", "show what another roles.yml would change"),
    ("serf agent -event-handler 'lbagent handle'", "start an agent whose event handler is lbagent"),
)

_WIDTH = 80
_COLUMN = 24


class Help(argparse.HelpFormatter):
    """Formats help with at most 80 columns, verbs as a table, and text of several lines unchanged."""

    def __init__(self, prog: str) -> None:
        """Limit the width."""
        super().__init__(prog, max_help_position=_COLUMN, width=min(_WIDTH, shutil.get_terminal_size().columns))

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # its only name
            return text
        # The first line repeats the heading.
        return textwrap.indent(textwrap.dedent(text.partition("\n")[2]), "  ")

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def exit_statuses() -> dict[int, str]:
    """Return the meaning of each exit status."""
    blocked = Outcome(Verdict.UNCHANGED, blocked=(BlockedRemoval(1, ""),)).exit_status
    found = {
        0: ["done, or nothing to do"],
        blocked: ["the safety guard blocked removals; all other changes are applied"],
    }
    found[INTERRUPTED] = ["interrupted; the next run continues"]
    for kind in _list_kinds(LbagentError):
        if meaning := vars(kind).get("meaning"):
            found.setdefault(kind.exit_status, []).append(meaning)
    return {status: "; ".join(meanings) for status, meanings in sorted(found.items())}


def format_epilog() -> str:
    """Return the text below the verbs: exit statuses and examples."""
    statuses = [_format_row(str(status), meaning, 4) for status, meaning in exit_statuses().items()]
    examples = [f"  {command}\n      {words}" for command, words in EXAMPLES]
    return "\n".join(["exit status:", *statuses, "", "examples:", *examples])


def format_verb_epilog(prog: str) -> str:
    """Return the text below the options of one verb."""
    return f"--roles, --state-dir and --verbose are accepted here too; see `{prog} --help`, also for exit statuses."


def _format_row(head: str, words: str, column: int) -> str:
    indent = " " * (column + 2)
    return textwrap.fill(words, _WIDTH, initial_indent=f"  {head:<{column}}", subsequent_indent=indent)


def _list_kinds(of: type[LbagentError]) -> Iterator[type[LbagentError]]:
    if of.__module__ == errors.__name__:
        yield of
    for kind in of.__subclasses__():
        yield from _list_kinds(kind)


_LOOKS: Any = {"formatter_class": Help, "allow_abbrev": False}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401  # as argparse has it
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:  # noqa: SLF001  # its only name
            self.error(f"{value[:40]!r} is not a verb{_suggestion(value, action.choices)}")
        super()._check_value(action, value)

    @property
    def option_names(self) -> list[str]:
        """All names of all options."""
        return [name for action in self._actions for name in action.option_strings]


def parse(words: list[str], environ: Mapping[str, str]) -> tuple[Settings, Callable[[Settings, Log], int]]:
    """Return the settings and the verb of a command line. Raises UsageError; SystemExit after a help page."""
    parser, verbs = _build_parsers()
    if not words:
        parser.print_help()
        parser.exit()
    found, unknown = parser.parse_known_args(_move_bare_wait(words))
    if found.command is None:
        parser.error("no verb is given")
    used = verbs[found.command]
    if unknown and "nodes" in found and not any(word.startswith("-") for word in unknown):
        # argparse takes all nodes from one place; `pause web01 --for 2h web02` has two.
        found.nodes += unknown
        unknown = []
    if unknown:
        options = sorted({*used.option_names, *parser.option_names})
        hint = _suggestion(unknown[0], options) if unknown[0].startswith("-") else ""
        used.error(f"{unknown[0][:40]!r} is not an option or argument of `{used.prog}`{hint}")
    return load_settings(environ, found.roles, found.state_dir, verbose=found.verbose), found.verb(found)


def _move_bare_wait(words: list[str]) -> list[str]:
    """Return the words with `--wait` behind the nodes where a node follows: argparse would take that for its TIME."""
    end = words.index("--") if "--" in words else len(words)
    for at, word in enumerate(words[:end]):
        value = words[at + 1] if at + 1 < end else "-"
        if word == "--wait" and not re.fullmatch("-.*|[0-9]+[a-z]?", value):
            return [*words[:at], *words[at + 1 : end], "--wait", *words[end:]]
    return words


def _suggestion(word: str, known: Iterable[str]) -> str:
    """Return the nearest known word as the end of a message; empty where none is near."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def build() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    return _build_parsers()[0]


def _build_parsers() -> tuple[_Parser, Mapping[str, _Parser]]:
    """Return the parser of the whole command line, and the parser of each verb by its name."""
    words = "Keeps the servers of HAProxy in step with a Serf cluster."
    parser = _Parser("lbagent", description=words, epilog=format_epilog(), **_LOOKS)
    parser.add_argument("--version", action="version", version=f"lbagent {lbagent.__version__}")
    _add_global_options(parser)
    known = parser.add_subparsers(title="verbs", metavar="VERB", dest="command")
    verbs_by_name: dict[str, _Parser] = {}
    for name, words, add in (
        ("handle", "the Serf event handler; reads SERF_* and stdin", _handle),
        ("plan", "show what would change now; exit 2 if something would, 3 blocked removals, 4 refused", _plan),
        ("apply", "apply pending changes to haproxy.cfg and HAProxy", _apply),
        ("sync", "refresh membership from Serf, then apply it", _sync),
        ("render", "print a haproxy.cfg with the managed lines, for configuration management", _render),
        ("pause", "take nodes out of balancing, on all load balancers", _pause),
        ("resume", "put paused nodes back into balancing, on all load balancers", _resume),
        ("forget", "drop nodes that will not come back, and their pauses, on all load balancers", _forget),
        ("status", "show nodes, load balancers, and what is wrong now", _status),
        ("check", "check roles.yml, markers, haproxy.cfg, HAProxy, daemon and Serf; exit 1 with errors", _check),
        ("watch", "the daemon: applies events, watches the files for edits, syncs each minute", _watch),
    ):
        more = format_verb_epilog(parser.prog)
        verb = known.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.", epilog=more, **_LOOKS)
        _add_global_options(verb, again=True)
        add(verb)
        verbs_by_name[name] = verb
    return parser, verbs_by_name


def _add_global_options(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the options that every verb has; they are accepted `again` after the verb, but not listed there."""
    for names, words, how in (
        (["--roles"], f"path of roles.yml (default: $LBAGENT_ROLES, else {DEFAULT_ROLES})", {"metavar": "FILE"}),
        (
            ["--state-dir"],
            f"state directory (default: $LBAGENT_STATE_DIR, else {DEFAULT_STATE_DIR})",
            {"metavar": "DIR"},
        ),
        (["-v", "--verbose"], "also print what succeeded", {"dest": "verbose", "action": "store_true"}),
    ):
        changed: dict[str, Any] = {"help": words, **how}
        if again:
            changed |= {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        parser.add_argument(*names, **changed)


def _handle(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=lambda _: handle)


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=lambda _: plan_apply_sync.plan)


def _apply(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="apply blocked removals; retry a failed reload")
    parser.add_argument("--adopt", action="store_true", help="turn operator's lines above a marker into managed ones")
    parser.add_argument("--yes", action="store_true", help="with --adopt: do not ask")
    parser.add_argument("--no-reload", action="store_true", help="write haproxy.cfg, but do not reload HAProxy")
    parser.set_defaults(
        verb=lambda found: plan_apply_sync.apply(found.force, found.adopt, found.yes, not found.no_reload)
    )


def _sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the diff, and change nothing")
    parser.add_argument(
        "--force", action="store_true", help="remove nodes that Serf does not list at once; apply blocked removals"
    )
    parser.set_defaults(verb=lambda found: plan_apply_sync.sync(found.dry_run, found.force))


def _pause(parser: argparse.ArgumentParser) -> None:
    _node(parser)
    parser.add_argument("--for", dest="lasting", metavar="TIME", help="end the pause after this time: 90s, 15m, 2h, 7d")
    parser.add_argument("--reason", metavar="TEXT", help="reason, shown by `lbagent status`")
    words = "return when no session is open on any load balancer; after TIME at the latest, with exit 1"
    parser.add_argument("--wait", nargs="?", const=True, default=False, metavar="TIME", help=words)
    parser.add_argument("--force", action="store_true", help="also pause the last serving node of a service")
    parser.set_defaults(
        verb=lambda found: pause.pause(found.nodes, found.lasting, found.reason, wait=found.wait, force=found.force)
    )


def _resume(parser: argparse.ArgumentParser) -> None:
    _node(parser)
    parser.set_defaults(verb=lambda found: pause.resume(found.nodes))


def _forget(parser: argparse.ArgumentParser) -> None:
    _node(parser)
    parser.add_argument("--force", action="store_true", help="also drop a node that is alive")
    parser.set_defaults(verb=lambda found: pause.forget(found.nodes, force=found.force))


def _node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("nodes", metavar="NODE", nargs="+", help="name of a node in Serf, or its address")


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    parser.add_argument("--watch", action="store_true", help="show it again every two seconds, until Ctrl-C")
    parser.set_defaults(verb=lambda found: status.status(found.json, found.watch))


def _render(parser: argparse.ArgumentParser) -> None:
    words = "file with the markers (default: haproxy.cfg); - is stdin"
    parser.add_argument("file", metavar="FILE", nargs="?", help=words)

    def load(found: argparse.Namespace) -> Callable[[Settings, Log], int]:
        from lbagent.commands.render import render  # noqa: PLC0415  # not needed by other verbs

        return render(found.file)

    parser.set_defaults(verb=load)


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    parser.add_argument("--quiet", action="store_true", help="print only warnings and errors")

    def chosen(found: argparse.Namespace) -> Callable[[Settings, Log], int]:
        from lbagent.commands.check import check  # noqa: PLC0415  # not needed by other verbs

        return check(found.json, found.quiet)

    parser.set_defaults(verb=chosen)


def _watch(parser: argparse.ArgumentParser) -> None:
    def load(_: argparse.Namespace) -> Callable[[Settings, Log], int]:
        from lbagent.daemon.daemon import watch  # noqa: PLC0415  # watchdog and tenacity: 60 ms that only the daemon needs

        return watch

    parser.set_defaults(verb=load)
