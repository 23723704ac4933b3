"""The command line as values: what man page and completions are made from, whatever verbs the parser has."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from lbagent.tuples import NamedTuple


class Option(NamedTuple):
    """A word that begins with `-`, by all its names."""

    names: tuple[str, ...]
    metavar: str
    """What it takes, as in FILE; nothing for a switch."""
    words: str
    choices: tuple[str, ...] = ()


class Argument(NamedTuple):
    """A word that stands where it stands."""

    metavar: str
    words: str
    optional: bool = False
    choices: tuple[str, ...] = ()


class Command(NamedTuple):
    """lbagent itself, or one of its verbs."""

    name: str
    words: str
    options: tuple[Option, ...] = ()
    arguments: tuple[Argument, ...] = ()
    verbs: tuple[Command, ...] = ()

    @property
    def usage(self) -> str:
        """Its own part of a command line: what may be left out in brackets, what stands for something in capitals."""
        pieces = [f"[{' '.join(filter(None, (one.names[-1], one.metavar)))}]" for one in self.options[1:]]  # but --help
        pieces += [f"[{one.metavar}]" if one.optional else one.metavar for one in self.arguments]
        return " ".join([self.name, *pieces, *(["VERB ..."] if self.verbs else [])])


def described(parser: argparse.ArgumentParser, name: str = "", words: str = "") -> Command:
    """The command line that `parser` reads."""
    options, arguments, verbs = [], [], []
    for action in parser._actions:  # noqa: SLF001  # argparse has no other way to ask
        if action.help == argparse.SUPPRESS:
            continue
        said = (action.help or "") % {**vars(action), "prog": parser.prog}
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # as above
            verbs = [described(action.choices[one.dest], one.dest, one.help or "") for one in action._choices_actions]  # noqa: SLF001  # as above
        elif action.option_strings:
            options.append(Option(tuple(action.option_strings), _metavar(action), said, _texts(action.choices)))
        else:
            optional = action.nargs in ("?", "*")
            arguments.append(Argument(_metavar(action), said, optional, _texts(action.choices)))
    return Command(name or parser.prog, words or parser.description or "", (*options,), (*arguments,), (*verbs,))


def _metavar(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _texts(choices: Iterable[object] | None) -> tuple[str, ...]:
    return tuple(str(choice) for choice in choices or ())
