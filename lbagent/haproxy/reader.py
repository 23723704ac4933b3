"""Read haproxy.cfg as HAProxy does: the words of each line, its section, and whether HAProxy reads it at all.

Rules: HAProxy configuration manual, sections 2.2 "Quoting and escaping", 2.3 "Environment variables", 2.4 "Conditional
blocks". A word ends at a blank outside quotes; `#` outside quotes begins a comment, also in the middle of a word;
variables are expanded only between double quotes. No other module splits lines.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

UNKNOWN = object()
"""The value of a variable when nothing is known about it."""

_OWN_PREFIXES = ("HAPROXY_", ".")
"""Prefixes of variables that HAProxy sets itself, by its version and the way it was started."""

COMMANDS = frozenset(("setenv", "presetenv", "unsetenv", "resetenv"))
"""The keywords of `global` that change the environment."""

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


EvaluatePredicate = Callable[[str], bool | None]
"""Returns whether a predicate such as `feature(THREAD)` is true of the running program; None where that is unknown."""


class Environment:
    """The environment variables at one line of haproxy.cfg; `setenv` and similar keywords change it."""

    def __init__(
        self, variables: Mapping[str, str] | None = None, evaluate_predicate: EvaluatePredicate = lambda _: None
    ) -> None:
        """`variables` are those of the HAProxy process; None where they are unknown."""
        self.evaluate_predicate = evaluate_predicate
        self._known: dict[str, object] = {**variables} if variables is not None else {}
        self._complete = variables is not None

    def find_value(self, name: str) -> object:
        """Return the value of a variable, None if it is not set, or UNKNOWN."""
        if name in self._known:
            return self._known[name]
        return None if self._complete and not name.startswith(_OWN_PREFIXES) else UNKNOWN

    def is_defined(self, name: str) -> bool | None:
        """Return whether a variable is set; None where that is unknown."""
        value = self.find_value(name)
        return None if value is UNKNOWN else value is not None

    def apply_command(self, words: Sequence[str], *, sure: bool) -> None:
        """Apply `setenv`, `presetenv`, `unsetenv` or `resetenv`.

        `sure`: whether HAProxy certainly executes the line.
        """
        command, names = words[0], words[1:]
        match command:
            case "setenv" | "presetenv" if len(names) > 1:
                name = names[0]
                # After `presetenv` of a variable that may be set, its value is unknown as well.
                if not sure:
                    self._known[name] = UNKNOWN
                elif command == "setenv" or self.is_defined(name) is False:
                    self._known[name] = names[1]
            case "unsetenv":
                self._known |= dict.fromkeys(names, None if sure else UNKNOWN)
            case "resetenv":
                kept = {name: self.find_value(name) for name in names}
                self._known = kept if sure else {}
                self._complete = self._complete and sure
            case _:  # HAProxy rejects it
                pass


WORD_LIMIT = 64
"""HAProxy rejects a line with more words."""

_SPECIAL = re.compile(r"[\"'\\]|[^\t\x20-\x7e]")
_PIECE = re.compile(r"[^ \t\v\f\n\r\0\"'\\#$]+|[ \t\v\f]+|.", re.DOTALL)
_BLANKS = " \t\v\f"
_VARIABLE = re.compile(r"\$(\{?)(\.?[A-Za-z_]?[A-Za-z0-9_]*)")
_HEX = re.compile(r"[0-9A-Fa-f]{2}")
_ESCAPED = {" ": " ", "\\": "\\", "t": "\t", "n": "\n", "r": "\r", "#": "#", "'": "'", '"': '"', "$": "$"}
_ALL_WORDS = "[*]"


class Words(NamedTuple):
    """The words of a line."""

    words: list[str]
    sure: bool = True
    """Whether HAProxy certainly reads these words: no variable has an unknown value, and nothing is rejected."""


class _Malformed(ValueError):
    """HAProxy rejects the line."""


def split_words(line: str, environment: Environment | None = None) -> Words:
    """Return the words of `line`, without its comment; variables unknown to `environment` are left as written.

    The list ends before an empty word, as HAProxy's parser of keywords does; not for `.if` and similar lines.
    """
    line = line.strip("\r\n \t\v\f") if "\\" not in line else line.lstrip(" \t\v\f\r").rstrip("\r\n")
    if line.startswith("["):
        return Words([])  # a scope, which has a meaning only in other files
    if not _SPECIAL.search(line):
        words = line.partition("#")[0].split()
        return Words(words, len(words) <= WORD_LIMIT)
    cutter = _Splitter(line, environment or Environment())
    words = cutter.split()
    if "" in words and not words[0].startswith("."):
        del words[words.index("") :]
    return Words(words, cutter.sure and len(words) <= WORD_LIMIT)


class _Splitter:
    def __init__(self, line: str, environment: Environment) -> None:
        self._line, self._environment, self._at = line, environment, 0
        self._found: list[str] = [""]
        self.sure = True

    def split(self) -> list[str]:
        try:
            self._split_line()
        except _Malformed:
            self.sure = False
        if self._found[-1] == "":  # after the last blank, or on a line with only a comment
            del self._found[-1]
        return self._found

    def _split_line(self) -> None:
        quote = ""
        while found := _PIECE.match(self._line, self._at):
            piece = found.group()
            self._at = found.end()
            if piece in "\n\r\0" or (piece == "#" and not quote):
                break
            if piece == quote:
                quote = ""
            elif piece in ("'", '"') and not quote:
                quote = piece
            elif piece == "\\" and quote != "'":
                self._found[-1] += self._read_escape(quote)
            elif piece == "$" and quote == '"':
                self._read_variable()
            elif piece[0] in _BLANKS and not quote:
                self._found.append("")
            else:
                self._found[-1] += piece
        if quote:
            raise _Malformed

    def _read_escape(self, quote: str) -> str:
        char = self._line[self._at : self._at + 1]
        if char == "x":
            digits = _HEX.match(self._line, self._at + 1)
            if digits is None:
                raise _Malformed
            self._at = digits.end()
            return bytes.fromhex(digits.group()).decode("utf-8", "surrogateescape")
        if char not in _ESCAPED or (char == "$" and not quote):
            return "\\"
        self._at += 1
        return _ESCAPED[char]

    def _read_variable(self) -> None:
        begin = self._at - 1
        found = _VARIABLE.match(self._line, begin)
        if found is None or found.group(2) in ("", ".") or found.group(2)[0].isdigit():
            raise _Malformed
        brace, name = found.groups()
        self._at = found.end()
        every = bool(brace) and self._line.startswith(_ALL_WORDS, self._at)
        if every:
            self._at += len(_ALL_WORDS)
        value = self._environment.find_value(name)
        if brace:
            value = self._read_braces(value)
        if value is UNKNOWN:
            self.sure = False
            self._found[-1] += self._line[begin : self._at]
        elif every:
            # Each word of the value is a word of the line. Versions differ in what an empty value becomes.
            self.sure = self.sure and bool(str(value or "").strip())
            first, *more = re.split(r"[ \t\v\f\n\r]+", str(value or ""))
            self._found[-1] += first
            self._found += more
        else:
            self._found[-1] += str(value or "")

    def _read_braces(self, value: object) -> object:
        end = self._line.find("}", self._at)
        default = self._line[self._at : end]
        if end < 0 or (default and default[0] != "-"):
            raise _Malformed
        self._at = end + 1
        return default[1:] if value is None and default else value
