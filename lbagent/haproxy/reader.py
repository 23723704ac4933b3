"""Read haproxy.cfg line by line as HAProxy does: the section of each line, and whether HAProxy reads it at all.

Conditions: HAProxy configuration manual, section 2.4 "Conditional blocks".
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lbagent.haproxy.words import COMMANDS, Environment, Words, split_words

Truth = bool | None
"""None where only the running HAProxy can decide."""

_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|[0-9]+)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[^\"'\\,()\x00-\x1f\x7f]*")
"""An argument without quotes, backslashes, commas or parentheses, which HAProxy reads literally."""

_OF_THE_PROGRAM = frozenset(("feature", "version_atleast", "version_before"))
"""Predicates whose value depends only on the program that reads the text."""

SECTIONS = frozenset(
    {"global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "program"}
    | {"http-errors", "ring", "cache", "log-forward", "fcgi-app", "crt-store", "traces", "log-profile", "acme"}
)

SERVERS = ("backend", "listen")
"""The sections whose servers lbagent manages."""

NOWHERE, ANYWHERE = -1, -2
"""In place of a section's line number: outside of all sections, and in an unknown one."""

_CONDITIONS = frozenset((".if", ".elif", ".else", ".endif"))


Path = tuple[tuple[int, int], ...]
"""The branches that a line is in: number of each `.if` in the text, and number of its branch."""


class Place(NamedTuple):
    """HAProxy's state from the line `start` on."""

    start: int
    sections: tuple[int, ...] = (NOWHERE,)
    """Line numbers of the possible sections, the last one in the text last; one if it is certain."""
    active: bool | None = True
    """Whether HAProxy reads these lines; None where only HAProxy can decide."""
    path: Path = ()
    """The surrounding branches of `.if`."""

    @property
    def section(self) -> int | None:
        """Line number of the section; None where only HAProxy can decide."""
        return self.sections[0] if len(self.sections) == 1 else None


class Directive(NamedTuple):
    """One line, split into words."""

    at: int
    words: Sequence[str]
    sure: bool
    """Whether HAProxy certainly reads these words."""
    place: Place
    """The place of the line; for a section's own line, the place below it."""


class Section(NamedTuple):
    """The line that begins a section."""

    at: int
    kind: str
    name: str
    base: str
    """Name of the `defaults` after `from`."""
    sure: bool = True
    """Whether its name is certain."""


class Reader:
    """Follows sections and conditions line by line."""

    def __init__(self, environment: Environment) -> None:
        """Start outside of all sections; `setenv` and similar lines change `environment`."""
        self._environment = environment
        self._levels: list[tuple[Level, tuple[int, ...], list[tuple[int, ...]]]] = []
        """The open `.if` blocks: the sections before each, and those at the end of its branches."""
        self._numbers = 0
        self.place = Place(0)
        self.places = [self.place]
        """All places, in the order of the text."""
        self.sections: dict[int, Section] = {}

    def begin_file(self, at: int) -> None:
        """Start the next file, whose first line is `at`."""
        self._levels = []
        self._enter(at, (NOWHERE,))

    def read_line(self, at: int, found: Words) -> Directive:
        """Read the next line, which has at least one word."""
        words, sure = found
        first = words[0]
        if first in _CONDITIONS:
            self._read_condition(at, first, found)
        elif first in SECTIONS:
            self.sections[at] = parse_section(at, found)
            self._enter(at, (at,))
        elif self.place.active is False:
            pass
        elif not sure and "$" in first:
            self._enter(at, (*self.place.sections, ANYWHERE))
        elif first in COMMANDS and self._in_global():
            certain = sure and self.place.active is True and self.place.section is not None
            self._environment.apply_command(words, sure=certain)
        return Directive(at, words, sure, self.place)

    def find_place(self, line: int) -> Place:
        """Return the place of a line that has been read."""
        return self.places[bisect_right(self.places, line, key=lambda place: place.start) - 1]

    def _in_global(self) -> bool:
        return any(self.sections[at].kind == "global" for at in self.place.sections if at in self.sections)

    def _read_condition(self, at: int, word: str, found: Words) -> None:
        value = evaluate_condition(" ".join(found.words[1:]), self._environment) if found.sure else None
        if word == ".if":
            self._numbers += 1
            self._levels.append((Level(self._numbers, self.place.active, value), self.place.sections, []))
            self._enter(at, self.place.sections)
        elif self._levels:  # HAProxy rejects one without `.if`
            level, before, ends = self._levels[-1]
            if level.active is not False:
                ends.append(self.place.sections)
            if word == ".endif":
                self._levels.pop()
                after = [*([] if level.complete and ends else [before]), *ends]
                self._enter(at, tuple(dict.fromkeys(one for sections in after for one in sections)))
            else:
                level.enter_branch(True if word == ".else" else value)
                self._enter(at, before)

    def _enter(self, at: int, sections: tuple[int, ...]) -> None:
        active = self._levels[-1][0].active if self._levels else True
        path = tuple((level.number, level.branch) for level, _, _ in self._levels)
        self.place = Place(at, sections, active, path)
        self.places.append(self.place)


def parse_section(at: int, found: Words) -> Section:
    """Parse the line that begins a section."""
    kind, *words = found.words
    name = words.pop(0) if words and not (kind == "defaults" and words[0] == "from") else ""
    base = words[1] if words[:1] == ["from"] and len(words) > 1 else ""
    return Section(at, kind, name, base, found.sure or "$" not in name)


def read_directives(
    lines: Iterable[tuple[int, str]], files: Sequence[int], reader: Reader, environment: Environment
) -> Iterator[Directive]:
    """Yield the directives of `lines`, pairs of number and text; `files` are the first lines of the files."""
    begins = [*files]
    for at, line in lines:
        while begins and at >= begins[0]:
            reader.begin_file(begins.pop(0))
        found = split_words(line, environment)
        if found.words:
            yield reader.read_line(at, found)


class EffectiveConfig:
    """What HAProxy reads, given its environment: the lines of `global`, and which servers exist."""

    def __init__(self, lines: Iterable[tuple[int, str]], files: Sequence[int], environment: Environment) -> None:
        """`lines` are the relevant ones, numbered: sections, conditions, `global`, `enabled` and `disabled`."""
        self._reader = Reader(environment)
        self.settings: list[list[str]] = []
        """The words of each line of `global` that HAProxy reads or may read, as far as they are known."""
        self._disabled: dict[int, bool | None] = {}
        self._defaults: dict[str, int] = {}
        for one in read_directives(lines, files, self._reader, environment):
            self._add(one)

    def _add(self, one: Directive) -> None:
        first, place = one.words[0], one.place
        if place.active is False or first in _CONDITIONS:
            return
        found = self._reader.sections.get(one.at)
        if found is not None:
            base = self._defaults.get(found.base, NOWHERE) if found.kind != "defaults" or found.base else NOWHERE
            self._disabled[one.at] = self._disabled.get(base, False)
            if found.kind == "defaults":
                self._defaults[found.name] = self._defaults[""] = one.at
        elif first in ("disabled", "enabled"):
            certain = one.sure and place.active and place.section is not None
            for at in place.sections:
                self._disabled[at] = first == "disabled" if certain else None
        elif one.sure and any(self._find_kind(at) == "global" for at in place.sections):
            self.settings.append([*one.words])

    def _find_kind(self, at: int) -> str:
        return self._reader.sections[at].kind if at in self._reader.sections else ""

    def find_server(self, line: int) -> tuple[str | None, bool | None]:
        """Return the proxy of the `server` line at `line`, and whether HAProxy has that server.

        Either is None where only HAProxy can decide.
        """
        place = self._reader.find_place(line)
        if place.active is False:
            return None, False
        if place.section is None or place.section not in self._reader.sections:
            return None, None
        found = self._reader.sections[place.section]
        disabled = self._disabled.get(place.section, False)
        if found.kind not in SERVERS or disabled is True:
            return None, False
        if not found.sure or not place.active or disabled is None:
            return None, None
        return found.name, True


def are_exclusive(one: Path, other: Path) -> bool:
    """Return whether HAProxy never reads both: they are in two branches of one `.if`."""
    branches = dict(one)
    return any(branches.get(number, branch) != branch for number, branch in other)


class Level:
    """One `.if` block, up to its `.endif`."""

    __slots__ = ("_outer", "_taken", "active", "branch", "number")

    def __init__(self, number: int, outer: Truth, value: Truth) -> None:
        """`outer`: whether HAProxy reads the surrounding lines. `value`: the value of the condition."""
        self.number, self.branch, self._outer = number, 0, outer
        self._taken: Truth = value
        """Whether HAProxy has read one of the branches so far."""
        self.active = _and(outer, value)
        """Whether HAProxy reads the lines of this branch; None where that is unknown."""

    @property
    def complete(self) -> bool:
        """Whether HAProxy certainly reads one of its branches."""
        return self._taken is True

    def enter_branch(self, value: Truth) -> None:
        """Enter the next branch; `value` is its condition, True for `.else`."""
        self.branch += 1
        not_yet = None if self._taken is None else not self._taken
        self.active = _and(self._outer, _and(not_yet, value))
        self._taken = True if self._taken or value else None if self._taken is None or value is None else False


def _and(one: Truth, other: Truth) -> Truth:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def evaluate_condition(expression: str, environment: Environment) -> Truth:
    """Evaluate the expression of an `.if` line; None where only HAProxy can decide."""
    try:
        return _Expression(expression, environment).evaluate()
    except _Unclear:
        return None


class _Expression:
    def __init__(self, text: str, environment: Environment) -> None:
        self._text, self._environment, self._at = text, environment, 0

    def evaluate(self) -> Truth:
        if not self._text.strip(" "):
            return False
        value = self._read_or()
        if self._at < len(self._text):
            raise _Unclear
        return value

    def _read_or(self) -> Truth:
        value = self._read_and()
        while self._skip("||"):
            other = self._read_and()
            value = True if value or other else None if value is None or other is None else False
        return value

    def _read_and(self) -> Truth:
        value = self._read_term()
        while self._skip("&&"):
            other = self._read_term()
            value = False if value is False or other is False else None if value is None or other is None else True
        return value

    def _read_term(self) -> Truth:
        negated = False
        while self._skip("!"):
            negated = not negated
        value = self._read_plain_term()
        return value if value is None else value is not negated

    def _read_plain_term(self) -> Truth:
        if self._skip("("):
            value = self._read_or()
            if not self._skip(")"):
                raise _Unclear
            return value
        if number := self._match(_NUMBER):
            return any(digit not in "+-0xX" for digit in number)
        name = self._match(_NAME)
        if not name or not self._text.startswith("(", self._at):
            raise _Unclear
        end = self._text.find(")", self._at)
        inside = self._text[self._at + 1 : max(end, self._at + 1)]
        if end < 0 or "(" in inside:
            raise _Unclear
        self._at = end + 1
        self._skip_blanks()
        return self._evaluate_predicate(name, inside.split(","))

    def _evaluate_predicate(self, name: str, arguments: list[str]) -> Truth:
        if not all(map(_PLAIN.fullmatch, arguments)):
            return None
        match name, arguments:
            case "defined", [variable] if _NAME.fullmatch(variable):
                return self._environment.is_defined(variable)
            case "streq" | "strneq", [one, other]:
                return (one == other) is (name == "streq")
            case "strstr", [text, part]:
                return part in text
            case _, [argument] if name in _OF_THE_PROGRAM:
                return self._environment.evaluate_predicate(f"{name}({argument})")
            case _:
                return None

    def _match(self, pattern: re.Pattern[str]) -> str:
        self._skip_blanks()
        found = pattern.match(self._text, self._at)
        if not found:
            return ""
        self._at = found.end()
        if pattern is _NUMBER:
            self._skip_blanks()
        return found.group()

    def _skip(self, word: str) -> bool:
        self._skip_blanks()
        there = self._text.startswith(word, self._at)
        if there:
            self._at += len(word)
            self._skip_blanks()
        return there

    def _skip_blanks(self) -> None:
        while self._text.startswith(" ", self._at):
            self._at += 1


class _Unclear(ValueError):
    """HAProxy rejects the expression, or only HAProxy can evaluate it."""
