"""`.if`, `.elif`, `.else` and `.endif`: which lines of haproxy.cfg HAProxy reads, as far as that is certain."""

from __future__ import annotations

import re
from collections.abc import Callable

Truth = bool | None
"""None where only HAProxy can tell."""

Defined = Callable[[str], Truth]
"""Whether an environment variable is set; None where that is unknown."""

_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|[0-9]+)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9_.:/ -]*")
"""An argument that HAProxy takes as it is: no quote, backslash, comma or parenthesis in it."""


class _Unclear(ValueError):
    """HAProxy refuses it, or only HAProxy can decide it."""


def decided(expression: str, defined: Defined) -> Truth:
    """What `.if EXPRESSION` comes to; None where only HAProxy can tell."""
    try:
        return _Expression(expression, defined).value()
    except _Unclear:
        return None


class _Expression:
    def __init__(self, text: str, defined: Defined) -> None:
        self._text, self._defined, self._at = text, defined, 0

    def value(self) -> Truth:
        if not self._text.strip(" "):
            return False
        value = self._either()
        if self._at < len(self._text):
            raise _Unclear
        return value

    def _either(self) -> Truth:
        value = self._all()
        while self._next("||"):
            other = self._all()
            value = True if value or other else None if value is None or other is None else False
        return value

    def _all(self) -> Truth:
        value = self._term()
        while self._next("&&"):
            other = self._term()
            value = False if value is False or other is False else None if value is None or other is None else True
        return value

    def _term(self) -> Truth:
        negated = False
        while self._next("!"):
            negated = not negated
        value = self._plain_term()
        return value if value is None else value is not negated

    def _plain_term(self) -> Truth:
        if self._next("("):
            value = self._either()
            if not self._next(")"):
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
        self._blanks()
        return self._predicate(name, inside.split(","))

    def _predicate(self, name: str, arguments: list[str]) -> Truth:
        if not all(map(_PLAIN.fullmatch, arguments)):
            return None
        match name, arguments:
            case "defined", [variable] if _NAME.fullmatch(variable):
                return self._defined(variable)
            case "streq", [one, other]:
                return one == other
            case "strneq", [one, other]:
                return one != other
            case _:
                return None

    def _match(self, pattern: re.Pattern[str]) -> str:
        self._blanks()
        found = pattern.match(self._text, self._at)
        if not found:
            return ""
        self._at = found.end()
        if pattern is _NUMBER:
            self._blanks()
        return found.group()

    def _next(self, word: str) -> bool:
        self._blanks()
        there = self._text.startswith(word, self._at)
        if there:
            self._at += len(word)
            self._blanks()
        return there

    def _blanks(self) -> None:
        while self._text.startswith(" ", self._at):
            self._at += 1


Path = tuple[tuple[int, int], ...]
"""The branches that a line is in: the number of each `.if` in the text, and of its branch."""


def exclusive(one: Path, other: Path) -> bool:
    """Whether HAProxy never reads both."""
    branches = dict(one)
    return any(branches.get(number, branch) != branch for number, branch in other)


class Level:
    """One `.if`, up to its `.endif`."""

    __slots__ = ("_outer", "_taken", "active", "branch", "number")

    def __init__(self, number: int, outer: Truth, value: Truth) -> None:
        """`outer` tells whether HAProxy reads the lines around it, `value` what its condition comes to."""
        self.number, self.branch, self._outer = number, 0, outer
        self._taken: Truth = value
        """Whether one of the branches up to here is read."""
        self.active = _both(outer, value)
        """Whether HAProxy reads the lines of this branch; None where that is unknown."""

    @property
    def complete(self) -> bool:
        """Whether one of its branches is certainly read."""
        return self._taken is True

    def turn(self, value: Truth) -> None:
        """Go on with the next branch: `.elif`, or `.else` with True."""
        self.branch += 1
        not_yet = None if self._taken is None else not self._taken
        self.active = _both(self._outer, _both(not_yet, value))
        self._taken = True if self._taken or value else None if self._taken is None or value is None else False


def _both(one: Truth, other: Truth) -> Truth:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True
