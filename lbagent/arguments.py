"""The command line. --help, the man page and the shell completions are generated from it."""

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
from lbagent.commands.check import check
from lbagent.commands.handle import handle
from lbagent.commands.render import render
from lbagent.commands.web import DEFAULT_LISTEN, web
from lbagent.daemon.daemon import watch
from lbagent.errors import INTERRUPTED, LbagentError, UsageError
from lbagent.outcome import BlockedRemoval, Outcome, Verdict
from lbagent.settings import DEFAULT_ROLES, DEFAULT_STATE_DIR, Settings, load_settings
from lbagent.system.log import Log

EXAMPLES = (
    ("lbagent status", "the state of each node, and the reason"),
    ("lbagent check", "problems of the installation, and how to fix them"),
    ('lbagent pause web01 --for 2h --reason "patch day"', "pause a node on all load balancers"),
    ("lbagent pause web01 --wait 10m", "pause a node, and return when no session is open"),
    ("lbagent plan", "a diff of the pending changes"),
    ("lbagent apply", "apply them, for example after an edit of roles.yml"),
    ("lbagent --roles new.yml plan", "what another roles.yml would change"),
    ("serf agent -event-handler 'lbagent handle'", "register lbagent as Serf's event handler"),
)
"""Command lines, each with its purpose."""

_WIDTH = 80
_COLUMN = 24


class HelpFormatter(argparse.HelpFormatter):
    """Formats help in at most 80 columns, with the commands as a table; text of several lines is not wrapped."""

    def __init__(self, prog: str) -> None:
        """Format the help of `prog`."""
        super().__init__(prog, max_help_position=_COLUMN, width=min(_WIDTH, shutil.get_terminal_size().columns))

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # argparse has no public name for it
            return text
        # Drop the first line, which repeats the heading.
        return textwrap.indent(textwrap.dedent(text.partition("\n")[2]), "  ")

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def list_exit_statuses() -> dict[int, str]:
    """Return the meaning of each exit status."""
    blocked = Outcome(Verdict.UNCHANGED, blocked=(BlockedRemoval(1, ""),)).exit_status
    found = {
        0: ["done, or nothing to do"],
        blocked: ["the safety guard blocked removals; all other changes are applied"],
    }
    found[INTERRUPTED] = ["interrupted by Ctrl-C or SIGTERM; stored events stay for the next run"]
    for kind in _list_error_classes(LbagentError):
        if meaning := vars(kind).get("meaning"):
            found.setdefault(kind.exit_status, []).append(meaning)
    return {status: "; ".join(meanings) for status, meanings in sorted(found.items())}


def _format_epilog() -> str:
    """Return the text below the commands: exit statuses and examples."""
    statuses = [_format_row(str(status), meaning, 4) for status, meaning in list_exit_statuses().items()]
    examples = [f"  {command}\n      {purpose}" for command, purpose in EXAMPLES]
    return "\n".join(["exit status:", *statuses, "", "examples:", *examples])


def _format_row(head: str, text: str, column: int) -> str:
    indent = " " * (column + 2)
    return textwrap.fill(text, _WIDTH, initial_indent=f"  {head:<{column}}", subsequent_indent=indent)


def _list_error_classes(base: type[LbagentError]) -> Iterator[type[LbagentError]]:
    """Yield `base` and its subclasses in lbagent.errors: those of other modules add no meaning."""
    if base.__module__ == errors.__name__:
        yield base
    for kind in base.__subclasses__():
        yield from _list_error_classes(kind)


_PARSER_OPTIONS: Any = {"formatter_class": HelpFormatter, "allow_abbrev": False}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401  # argparse's signature
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:  # noqa: SLF001  # no public name
            self.error(f"unknown command {value[:40]!r}{_format_suggestion(value, action.choices)}")
        super()._check_value(action, value)

    @property
    def option_names(self) -> list[str]:
        """All names of all options."""
        return [name for action in self._actions for name in action.option_strings]


def parse_command_line(argv: list[str], environ: Mapping[str, str]) -> tuple[Settings, Callable[[Settings, Log], int]]:
    """Return the settings and the command of a command line. Raises UsageError, SystemExit (--help, --version)."""
    parser, verbs = _build_parsers()
    if not argv:
        parser.print_help()
        parser.exit()
    found, unknown = parser.parse_known_args(_move_bare_wait(argv))
    if found.command is None:
        parser.error("a command is missing")
    used = verbs[found.command]
    if unknown and "nodes" in found and not any(word.startswith("-") for word in unknown):
        # argparse takes all nodes from one place; `pause web01 --for 2h web02` has two.
        found.nodes += unknown
        unknown = []
    if unknown:
        options = sorted({*used.option_names, *parser.option_names})
        hint = _format_suggestion(unknown[0], options) if unknown[0].startswith("-") else ""
        used.error(f"unknown option or argument {unknown[0][:40]!r}{hint}")
    return load_settings(environ, found.roles, found.state_dir, verbose=found.verbose), found.verb(found)


def _move_bare_wait(argv: list[str]) -> list[str]:
    """Return `argv` with `--wait` behind the nodes if a node follows it: argparse would take that for its TIME."""
    end = argv.index("--") if "--" in argv else len(argv)
    for at, word in enumerate(argv[:end]):
        value = argv[at + 1] if at + 1 < end else "-"
        if word == "--wait" and not re.fullmatch("-.*|[0-9]+[a-z]?", value):
            return [*argv[:at], *argv[at + 1 : end], "--wait", *argv[end:]]
    return argv


def _format_suggestion(word: str, known: Iterable[str]) -> str:
    """Return a question with the nearest known word, as the end of a message; empty where none is near."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return _build_parsers()[0]


def _build_parsers() -> tuple[_Parser, Mapping[str, _Parser]]:
    """Return the parser of the command line, and the parsers of the commands by name."""
    parser = _Parser(
        "lbagent",
        description="Keep HAProxy backends in sync with Serf membership.",
        epilog=_format_epilog(),
        **_PARSER_OPTIONS,
    )
    parser.add_argument("--version", action="version", version=f"lbagent {lbagent.__version__}")
    _add_global_options(parser)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    verbs_by_name: dict[str, _Parser] = {}
    for name, summary, configure in (
        ("handle", "the Serf event handler; reads SERF_* and stdin", _take_no_options(handle)),
        ("plan", "show pending changes as a diff; exits 2 if there are any", _take_no_options(plan_apply_sync.plan)),
        ("apply", "apply pending changes to haproxy.cfg and HAProxy", _configure_apply),
        ("sync", "refresh membership from Serf, then apply", _configure_sync),
        ("render", "print a haproxy.cfg with the managed lines, for configuration management", _configure_render),
        ("pause", "take nodes out of balancing, on all load balancers", _configure_pause),
        ("resume", "end the pause of nodes, on all load balancers", _configure_resume),
        ("forget", "remove dead nodes and their pauses, on all load balancers", _configure_forget),
        ("status", "show nodes, HAProxy's view of them, and problems", _configure_status),
        ("check", "check the installation and the configuration; exits 1 if there are errors", _configure_check),
        ("watch", "the daemon: applies stored events, watches for edits, syncs every minute", _take_no_options(watch)),
        ("web", "serve a web page of the pair: nodes, history, pause and resume; metrics and an API", _configure_web),
    ):
        verb = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"Global options and exit statuses: see `{parser.prog} --help`.",
            **_PARSER_OPTIONS,
        )
        _add_global_options(verb, hidden=True)
        configure(verb)
        verbs_by_name[name] = verb
    return parser, verbs_by_name


def _add_global_options(parser: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    """Add the options that every command has; those `hidden` are accepted after the command, but not listed again."""
    for names, text, options in (
        (["--roles"], f"roles.yml (default: $LBAGENT_ROLES, else {DEFAULT_ROLES})", {"metavar": "FILE"}),
        (
            ["--state-dir"],
            f"state directory (default: $LBAGENT_STATE_DIR, else {DEFAULT_STATE_DIR})",
            {"metavar": "DIR"},
        ),
        (["-v", "--verbose"], "verbose output", {"dest": "verbose", "action": "store_true"}),
    ):
        changed: dict[str, Any] = {"help": text, **options}
        if hidden:
            changed |= {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        parser.add_argument(*names, **changed)


def _take_no_options(verb: Callable[[Settings, Log], int]) -> Callable[[argparse.ArgumentParser], None]:
    return lambda parser: parser.set_defaults(verb=lambda _: verb)


def _configure_apply(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="apply blocked removals, retry a failed reload now")
    parser.add_argument(
        "--adopt", action="store_true", help="convert your own server lines above markers to managed ones"
    )
    parser.add_argument("--yes", action="store_true", help="with --adopt: do not ask")
    parser.add_argument(
        "--no-reload", action="store_true", help="write haproxy.cfg only; do not change the running HAProxy"
    )
    parser.set_defaults(
        verb=lambda found: plan_apply_sync.apply(found.force, found.adopt, found.yes, not found.no_reload)
    )


def _configure_sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the diff, change nothing")
    parser.add_argument("--force", action="store_true", help="remove unlisted nodes now, apply blocked removals")
    parser.set_defaults(verb=lambda found: plan_apply_sync.sync(found.dry_run, found.force))


def _configure_pause(parser: argparse.ArgumentParser) -> None:
    _add_nodes(parser)
    parser.add_argument("--for", dest="lasting", metavar="TIME", help="duration, e.g. 90s, 15m, 2h, 7d")
    parser.add_argument("--reason", metavar="TEXT", help="shown by `lbagent status`")
    words = "return when no session is open on any load balancer; after TIME at the latest, with exit 1"
    parser.add_argument("--wait", nargs="?", const=True, default=False, metavar="TIME", help=words)
    parser.add_argument("--force", action="store_true", help="also pause the last serving node of a service")
    parser.set_defaults(
        verb=lambda found: pause.pause(found.nodes, found.lasting, found.reason, wait=found.wait, force=found.force)
    )


def _configure_resume(parser: argparse.ArgumentParser) -> None:
    _add_nodes(parser)
    parser.set_defaults(verb=lambda found: pause.resume(found.nodes))


def _configure_forget(parser: argparse.ArgumentParser) -> None:
    _add_nodes(parser)
    parser.add_argument("--force", action="store_true", help="also remove a live node")
    parser.set_defaults(verb=lambda found: pause.forget(found.nodes, force=found.force))


def _add_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("nodes", metavar="NODE", nargs="+", help="name in Serf, or address")


def _configure_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    parser.add_argument("--watch", action="store_true", help="repeat every two seconds until Ctrl-C")
    parser.set_defaults(verb=lambda found: status.status(found.json, found.watch))


def _configure_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="template (default: haproxy.cfg; - is stdin)")
    parser.set_defaults(verb=lambda found: render(found.file))


def _configure_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    parser.add_argument("--quiet", action="store_true", help="print only warnings and errors")
    parser.set_defaults(verb=lambda found: check(found.json, found.quiet))


def _configure_web(parser: argparse.ArgumentParser) -> None:
    listen = f"address and port (default: {DEFAULT_LISTEN})"
    parser.add_argument("--listen", metavar="ADDRESS:PORT", default=DEFAULT_LISTEN, help=listen)
    parser.add_argument(
        "--host", metavar="NAME", action="append", help="name by which browsers reach the page; repeatable"
    )
    parser.add_argument("--users", metavar="FILE", help="htpasswd file (bcrypt) of the users who may pause nodes")
    parser.add_argument(
        "--prefix", metavar="PATH", default="", help="path of the page behind a proxy, such as /lbagent"
    )
    parser.add_argument("--peer", metavar="URL", action="append", help="page of the other load balancer; repeatable")
    parser.set_defaults(
        verb=lambda found: web(found.listen, found.host or (), found.users, found.prefix, found.peer or ())
    )
