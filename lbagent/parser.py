"""The command line, as data: --help, man page and completion are made from it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import lbagent
from lbagent import helptext, status, steer, verbs
from lbagent.errors import UsageError
from lbagent.handler import handle
from lbagent.host.log import Log
from lbagent.settings import DEFAULT_ROLES, DEFAULT_STATE_DIR, Settings, settled

_LOOKS: Any = {"formatter_class": helptext.Help, "allow_abbrev": False}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def parsed(words: list[str], environ: Mapping[str, str]) -> tuple[Settings, Callable[[Settings, Log], int]]:
    """The settings and the verb that a command line asks for. Raises UsageError."""
    found = build().parse_args(words)
    return settled(environ, found.roles, found.state_dir, verbose=found.verbose), found.verb(found)


def build() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    words = "Keeps haproxy.cfg in step with what Serf knows."
    parser = _Parser("lbagent", description=words, epilog=helptext.epilog(), **_LOOKS)
    parser.add_argument("--version", action="version", version=f"lbagent {lbagent.__version__}")
    parser.add_argument("--roles", metavar="FILE", help=f"roles.yml ($LBAGENT_ROLES, else {DEFAULT_ROLES})")
    parser.add_argument("--state-dir", metavar="DIR", help=f"state ($LBAGENT_STATE_DIR, else {DEFAULT_STATE_DIR})")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what went well, too")
    known = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, words, add in (
        ("handle", "the Serf event handler: reads SERF_* and stdin", _handle),
        ("plan", "show what would change now; exit 0 nothing, 2 something", _plan),
        ("apply", "make haproxy.cfg what is known, and have HAProxy take it over", _apply),
        ("sync", "make membership what Serf knows now, and apply it", _sync),
        ("pause", "take nodes out of balancing, here and on the other load balancers", _pause),
        ("resume", "put paused nodes back in, here and on the other load balancers", _resume),
        ("forget", "drop nodes that are gone, and their pauses, here and on the other load balancers", _forget),
        ("status", "show each node, what is served, and what waits", _status),
        ("check", "look at roles.yml, markers, haproxy.cfg, HAProxy and Serf; exit 0 no error, 1 some", _check),
        ("watch", "the daemon: applies what `handle` has stored, looks after edits, syncs each minute", _watch),
    ):
        more = helptext.verb_epilog(parser.prog)
        add(known.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.", epilog=more, **_LOOKS))
    return parser


def _handle(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=lambda _: handle)


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=lambda _: verbs.plan)


def _apply(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="let go what the guard holds back; retry a failed reload")
    parser.add_argument("--adopt", action="store_true", help="turn hand-written lines above a marker into managed ones")
    parser.add_argument("--no-reload", action="store_true", help="write haproxy.cfg, and leave the reload to others")
    parser.set_defaults(verb=lambda found: verbs.apply(found.force, found.adopt, not found.no_reload))


def _sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the diff, and change nothing")
    parser.add_argument("--force", action="store_true", help="let go at once what is missing, and what the guard holds")
    parser.set_defaults(verb=lambda found: verbs.sync(found.dry_run, found.force))


def _pause(parser: argparse.ArgumentParser) -> None:
    _node(parser)
    parser.add_argument("--for", dest="lasting", metavar="TIME", help="until then at the latest: 90s, 15m, 2h, 7d")
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at `lbagent status`")
    parser.add_argument("--force", action="store_true", help="also where no other server of a service serves")
    parser.set_defaults(verb=lambda found: steer.pause(found.nodes, found.lasting, found.reason, force=found.force))


def _resume(parser: argparse.ArgumentParser) -> None:
    _node(parser)
    parser.set_defaults(verb=lambda found: steer.resume(found.nodes))


def _forget(parser: argparse.ArgumentParser) -> None:
    _node(parser)
    parser.add_argument("--force", action="store_true", help="also one that is alive")
    parser.set_defaults(verb=lambda found: steer.forget(found.nodes, force=found.force))


def _node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("nodes", metavar="NODE", nargs="+", help="its name in Serf, or its address")


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    parser.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    parser.set_defaults(verb=lambda found: status.status(found.json, found.watch))


def _check(parser: argparse.ArgumentParser) -> None:
    def chosen(_: argparse.Namespace) -> Callable[[Settings, Log], int]:
        from lbagent.check import check  # noqa: PLC0415  # what only a person waits for

        return check

    parser.set_defaults(verb=chosen)


def _watch(parser: argparse.ArgumentParser) -> None:
    def load(_: argparse.Namespace) -> Callable[[Settings, Log], int]:
        from lbagent.watch import watch  # noqa: PLC0415  # watchdog and tenacity: 60 ms that only the daemon needs

        return watch

    parser.set_defaults(verb=load)
