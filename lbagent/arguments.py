"""The command line, as data: --help, man page and completion are made from it."""

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
    ("lbagent status", "who is in, who is out, and why"),
    ("lbagent check", "what should be mended"),
    ('lbagent pause web01 --for 2h --reason "patch day"', "out of balancing, on every load balancer"),
    ("lbagent plan", "what would change now, as a diff"),
    ("lbagent apply", "make it so, after an edit of roles.yml"),
    ("lbagent --roles new.yml plan", "what another roles.yml would change"),
    ("serf agent -event-handler 'lbagent handle'", "have Serf call it"),
)

_WIDTH = 80
_COLUMN = 24


class Help(argparse.HelpFormatter):
    """At most 80 columns, verbs as a table of their own, and text of several lines as it is."""

    def __init__(self, prog: str) -> None:
        """As argparse has it, but for the width."""
        super().__init__(prog, max_help_position=_COLUMN, width=min(_WIDTH, shutil.get_terminal_size().columns))

    def _format_action(self, action: argparse.Action) -> str:
        said = super()._format_action(action)
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # its only name
            return said
        # Their heading says already what they are.
        return textwrap.indent(textwrap.dedent(said.partition("\n")[2]), "  ")

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def exit_statuses() -> dict[int, str]:
    """What each exit status means."""
    held = Outcome(Verdict.UNCHANGED, blocked=(BlockedRemoval(1, ""),)).exit_status
    found = {0: ["done, or nothing to do"], held: ["the guard held removals back; the rest is done"]}
    found[INTERRUPTED] = ["interrupted; the next run goes on from there"]
    for kind in _kinds(LbagentError):
        if meaning := vars(kind).get("meaning"):
            found.setdefault(kind.exit_status, []).append(meaning)
    return {status: "; ".join(meanings) for status, meanings in sorted(found.items())}


def epilog() -> str:
    """What stands below the verbs."""
    statuses = [_row(str(status), meaning, 4) for status, meaning in exit_statuses().items()]
    examples = [f"  {command}\n      {words}" for command, words in EXAMPLES]
    return "\n".join(["exit status:", *statuses, "", "examples:", *examples])


def verb_epilog(prog: str) -> str:
    """What stands below the options of one verb."""
    return f"--roles FILE, --state-dir DIR and -v work here too: see `{prog} --help`, also for exit statuses."


def _row(head: str, words: str, column: int) -> str:
    indent = " " * (column + 2)
    return textwrap.fill(words, _WIDTH, initial_indent=f"  {head:<{column}}", subsequent_indent=indent)


def _kinds(of: type[LbagentError]) -> Iterator[type[LbagentError]]:
    if of.__module__ == errors.__name__:
        yield of
    for kind in of.__subclasses__():
        yield from _kinds(kind)


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
        """Every name of every option."""
        return [name for action in self._actions for name in action.option_strings]


def parsed(words: list[str], environ: Mapping[str, str]) -> tuple[Settings, Callable[[Settings, Log], int]]:
    """The settings and the verb that a command line asks for. Raises UsageError; SystemExit after a help page."""
    parser, verbs = _built()
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
    """The nearest known word as a question that ends a message; nothing where none is near."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def build() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    return _built()[0]


def _built() -> tuple[_Parser, Mapping[str, _Parser]]:
    """The parser of the whole command line, and that of each verb."""
    words = "Keeps haproxy.cfg in step with what Serf knows."
    parser = _Parser("lbagent", description=words, epilog=epilog(), **_LOOKS)
    parser.add_argument("--version", action="version", version=f"lbagent {lbagent.__version__}")
    _add_global_options(parser)
    known = parser.add_subparsers(title="verbs", metavar="VERB", dest="command")
    verbs_by_name: dict[str, _Parser] = {}
    for name, words, add in (
        ("handle", "the Serf event handler: reads SERF_* and stdin", _handle),
        ("plan", "show what would change now; exit 0 nothing, 2 something, 3 blocked removals, 4 refused", _plan),
        ("apply", "apply pending changes to haproxy.cfg and HAProxy", _apply),
        ("sync", "refresh membership from Serf, and apply it", _sync),
        ("render", "print a haproxy.cfg with the managed lines, for configuration management to deploy", _render),
        ("pause", "take nodes out of balancing, here and on the other load balancers", _pause),
        ("resume", "put paused nodes back in, here and on the other load balancers", _resume),
        ("forget", "drop nodes that are gone, and their pauses, here and on the other load balancers", _forget),
        ("status", "show each node, what is served, and what waits", _status),
        ("check", "look at roles.yml, markers, haproxy.cfg, HAProxy and Serf; exit 0 no error, 1 some", _check),
        ("watch", "the daemon: applies what `handle` has stored, looks after edits, syncs each minute", _watch),
    ):
        more = verb_epilog(parser.prog)
        verb = known.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.", epilog=more, **_LOOKS)
        _add_global_options(verb, again=True)
        add(verb)
        verbs_by_name[name] = verb
    return parser, verbs_by_name


def _add_global_options(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """The options that every verb has; accepted `again` after the verb, where they are not listed once more."""
    for names, words, how in (
        (["--roles"], f"roles.yml ($LBAGENT_ROLES, else {DEFAULT_ROLES})", {"metavar": "FILE"}),
        (["--state-dir"], f"state ($LBAGENT_STATE_DIR, else {DEFAULT_STATE_DIR})", {"metavar": "DIR"}),
        (["-v"], "show what went well, too", {"dest": "verbose", "action": "store_true"}),
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
    parser.add_argument("--adopt", action="store_true", help="turn hand-written lines above a marker into managed ones")
    parser.add_argument("--yes", action="store_true", help="with --adopt: do not ask")
    parser.add_argument("--no-reload", action="store_true", help="write haproxy.cfg, but do not reload HAProxy")
    parser.set_defaults(
        verb=lambda found: plan_apply_sync.apply(found.force, found.adopt, found.yes, not found.no_reload)
    )


def _sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the diff, and change nothing")
    parser.add_argument("--force", action="store_true", help="let go at once what is missing, and what the guard holds")
    parser.set_defaults(verb=lambda found: plan_apply_sync.sync(found.dry_run, found.force))


def _pause(parser: argparse.ArgumentParser) -> None:
    _node(parser)
    parser.add_argument("--for", dest="lasting", metavar="TIME", help="until then at the latest: 90s, 15m, 2h, 7d")
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at `lbagent status`")
    words = "return when no session is open on any load balancer; exit 1 after TIME"
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
    parser.add_argument("--force", action="store_true", help="also one that is alive")
    parser.set_defaults(verb=lambda found: pause.forget(found.nodes, force=found.force))


def _node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("nodes", metavar="NODE", nargs="+", help="its name in Serf, or its address")


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    parser.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    parser.set_defaults(verb=lambda found: status.status(found.json, found.watch))


def _render(parser: argparse.ArgumentParser) -> None:
    words = "the file to fill in; default: haproxy.cfg; - is stdin"
    parser.add_argument("file", metavar="FILE", nargs="?", help=words)

    def load(found: argparse.Namespace) -> Callable[[Settings, Log], int]:
        from lbagent.commands.render import render  # noqa: PLC0415  # what only a deployment waits for

        return render(found.file)

    parser.set_defaults(verb=load)


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    parser.add_argument("--quiet", action="store_true", help="only warnings and errors; nothing where there are none")

    def chosen(found: argparse.Namespace) -> Callable[[Settings, Log], int]:
        from lbagent.commands.check import check  # noqa: PLC0415  # what only a person waits for

        return check(found.json, found.quiet)

    parser.set_defaults(verb=chosen)


def _watch(parser: argparse.ArgumentParser) -> None:
    def load(_: argparse.Namespace) -> Callable[[Settings, Log], int]:
        from lbagent.daemon.daemon import watch  # noqa: PLC0415  # watchdog and tenacity: 60 ms that only the daemon needs

        return watch

    parser.set_defaults(verb=load)
