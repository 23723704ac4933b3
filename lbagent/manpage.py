"""The man page lbagent(1), in man(7), made from the command line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lbagent.commandline import Command, Option
from lbagent.tuples import NamedTuple


class Facts(NamedTuple):
    """What the page tells that the command line does not know."""

    version: str
    date: str
    statuses: Mapping[int, str]
    files: Mapping[str, str]
    environment: Mapping[str, str]
    examples: Sequence[tuple[str, str]]


_WIDTH = 76
_SPECIAL = {"\\": "\\e", "-": "\\-", '"': "\\(dq", "'": "\\(aq", "…": "..."}

_DESCRIPTION = """
Application servers run a Serf agent with a `role` tag; each load balancer runs HAProxy and a Serf agent whose event
handler is `lbagent handle`. When a node joins, leaves, is paused or resumed, its `server` lines above the markers
`# additional-SECTION-SERVICE-server` of the operator's own haproxy.cfg come, go or make way for a comment, as
roles.yml says. `haproxy -c` checks the new text, it replaces the old one whole, and HAProxy takes it over by a reload
that is seen to happen.
"""


def page(command: Command, facts: Facts) -> str:
    """The whole page."""
    name = _escaped(command.name)
    words = command.words[0].lower() + command.words[1:].rstrip(".")
    parts = [
        f'.TH {name.upper()} 1 {facts.date} "{name} {facts.version}" "User Commands"',
        _section("NAME", [f"{name} \\- {_escaped(words)}"]),
        _section("SYNOPSIS", [_lines(_meant(command.usage))]),
        _section("DESCRIPTION", [_running(_DESCRIPTION)]),
        _section("OPTIONS", _options(command.options)),
        _section("VERBS", (line for verb in command.verbs for line in _verb(verb, command.name))),
        _section("EXIT STATUS", _table(facts.statuses.items())),
        _section("FILES", _table(facts.files.items(), "I")),
        _section("ENVIRONMENT", _table(facts.environment.items())),
        _section("EXAMPLES", _table(facts.examples)),
        _section("SEE ALSO", [".BR haproxy (1),", ".BR systemctl (1)"]),
    ]
    return "\n".join(parts) + "\n"


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f'.SH "{title}"', *lines])


def _verb(verb: Command, name: str) -> Iterator[str]:
    yield f'.SS "{_escaped(name)} {_escaped(verb.usage)}"'
    yield _running(f"{verb.words[0].upper()}{verb.words[1:].rstrip('.')}.")
    yield from _rows((argument.metavar, argument.words, "I") for argument in verb.arguments)
    yield from _options(verb.options)


def _options(options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in option.names)
        yield from (".TP", f"{names} {_meant(option.metavar)}".strip(), _running(option.words))


def _rows(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Paragraphs, each with a head in a font of its own."""
    for head, words, font in rows:
        yield from (".TP", f"\\f{font}{_escaped(head)}\\fR", _running(words or head))


def _table(rows: Iterable[tuple[object, str]], font: str = "B") -> Iterator[str]:
    return _rows((str(head), words, font) for head, words in rows)


def _meant(text: str) -> str:
    """What stands in capitals in italics."""
    return re.sub(r"\b[A-Z][A-Z_]+\b", r"\\fI\g<0>\\fR", _escaped(text))


def _running(text: str) -> str:
    """Running text, what stands in backticks in bold, in lines that are read easily."""
    return _lines(re.sub(r"`([^`]*)`", r"\\fB\1\\fR", _escaped(text)))


def _lines(marked: str) -> str:
    lines = textwrap.wrap(" ".join(marked.split()), _WIDTH, break_long_words=False, break_on_hyphens=False)
    # A line that begins with a dot would be a request.
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in lines)


def _escaped(text: str) -> str:
    for special, said in _SPECIAL.items():
        text = text.replace(special, said)
    return text
