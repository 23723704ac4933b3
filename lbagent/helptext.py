"""What `--help` says beside what the parser knows itself: exit statuses, examples, and how it looks at 80 columns."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterator

from lbagent import errors
from lbagent.errors import INTERRUPTED, LbagentError
from lbagent.outcome import Held, Outcome, Verdict

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
    held = Outcome(Verdict.UNCHANGED, held=(Held(1, ""),)).exit_status
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
