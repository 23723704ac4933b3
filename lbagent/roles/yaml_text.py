"""Explain YAML syntax errors, and repair them in memory to find further mistakes.

libyaml stops at the first error and names a token. This module names the mistake: a tab, an indentation that matches no
other line, an unclosed list, a placeholder without quotes. A repaired text is read only to find further mistakes; it is
never used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_REPAIRS = 20
"""Maximum number of syntax errors per file; later ones are seldom useful."""

_TAB_WIDTHS = (2, 4, 8)
_KEY = re.compile(r"^(?P<indent> *)(?:- +)?(?P<key>[^\s#'\"{}\[\],&*!|>%@`][^:#]*?)\s*:(?:\s|$)")
_NO_BLANK = re.compile(r"^(?P<before>\s*[A-Za-z0-9][A-Za-z0-9._-]*:)(?P<value>[^\s:/].*)$")
_UNQUOTED = re.compile(
    r"(?P<before>:[ ]+|[\[,][ ]*|-[ ]+)"
    r"(?P<value>(?:[^\s,\[\]{}\"'#:&*!|>%@`](?:[^,\[\]{}\"'#:]|:(?!\s))*)?"
    r"(?:\{(?:interval|name|role|server|tag:[^{}\"']*)\}(?:[^,\[\]{}\"'#:]|:(?!\s))*)+)"
)
_BAD_START = re.compile(r"(?P<before>:[ ]+|[\[,][ ]*|-[ ]+)(?P<value>[@`%*&|>!][^,\]}#]*)")
_BREAK = re.compile("\r\n|[\r\x85\u2028\u2029]")
_CLOSERS = {"sequence": ("list", "]"), "mapping": ("mapping", "}")}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a file, with its fix."""

    line: int
    """Counted from 1; 0 for the file as a whole."""
    column: int
    path: str
    """Key path, such as `roles.web.interval`."""
    problem: str
    fix: str

    def format_sentence(self, where: str) -> str:
        """Format as `FILE:LINE:COLUMN: KEY PATH: PROBLEM; FIX`."""
        place = f"{where}:{self.line}:{self.column}" if self.line else where
        path = f"{self.path}: " if self.path else ""
        fix = f"; {self.fix}" if self.fix else ""
        return f"{place}: {path}{self.problem}{fix}"


@dataclass(frozen=True, slots=True)
class _Repair:
    """The mistakes behind a syntax error, and candidate repairs of the text."""

    mistakes: Sequence[Mistake]
    texts: Sequence[str] = ()


Judge = Callable[[yaml.Node], int]
"""Counts the mistakes in a repaired text; the repair with the fewest is chosen."""


def compose(content: bytes, judge: Judge) -> tuple[yaml.Node | None, list[Mistake]]:
    """Return the root node of a YAML text and its syntax mistakes; None if it is empty or cannot be repaired."""
    try:
        return yaml.compose(content, Loader=_LOADER), []
    except UnicodeError:
        return None, [Mistake(0, 0, "", "is not UTF-8 text", "save it as UTF-8")]
    except yaml.reader.ReaderError as error:
        return None, [_explain_unreadable(content, error)]
    except RecursionError:
        return None, [Mistake(0, 0, "", "is nested too deeply", "")]
    except yaml.YAMLError as error:
        # Normalise line breaks: YAML recognises several kinds.
        text = _BREAK.sub("\n", content.decode("utf-8-sig", "replace"))
        if not text.endswith("\n"):
            # Without the end of the last line, the parser reports an open bracket at another place.
            return compose(f"{text}\n".encode(), judge)
        return _repair_text(text, error, judge)


def _repair_text(text: str, error: yaml.YAMLError, judge: Judge) -> tuple[yaml.Node | None, list[Mistake]]:
    found: list[Mistake] = []
    for _ in range(_REPAIRS):
        repair = _diagnose(text.split("\n"), error)
        tries = [(*_try_repair(one, judge), one) for one in repair.texts]
        # The repair that parses furthest; among complete ones, the one with the fewest mistakes.
        tries.sort(key=lambda one: (one[1] is not None, -_find_line(one[1]), one[2]))
        if not tries or (tries[0][1] is not None and _find_position(tries[0][1]) <= _find_position(error)):
            return None, [*found, *repair.mistakes]
        root, left, _, text = tries[0]
        lines = text.split("\n")
        # Only in the repaired text the key path is known.
        found += [
            replace(one, path=_find_key_path(lines, one.line - 1)) if one.path else one for one in repair.mistakes
        ]
        if left is None:
            return root, found
        error = left
    return None, found


def _try_repair(text: str, judge: Judge) -> tuple[yaml.Node | None, yaml.YAMLError | None, int]:
    try:
        root = yaml.compose(text, Loader=_LOADER)
    except (yaml.YAMLError, RecursionError) as error:
        return None, error if isinstance(error, yaml.YAMLError) else yaml.YAMLError(), 0
    return root, None, judge(root) if root is not None else 0


def _find_position(error: yaml.YAMLError | None) -> tuple[int, int]:
    mark = getattr(error, "problem_mark", None)
    return (mark.line, mark.column) if mark else (-1, -1)


def _find_context(lines: Sequence[str], error: yaml.YAMLError) -> yaml.Mark | None:
    """Return where the construct with the error began; None if unknown, or behind the last line."""
    mark = getattr(error, "context_mark", None)
    return mark if mark is not None and mark.line < len(lines) else None


def _find_line(error: yaml.YAMLError | None) -> int:
    return _find_position(error)[0]


def _explain_unreadable(content: bytes, error: yaml.reader.ReaderError) -> Mistake:
    position = error.position if isinstance(error.position, int) else 0
    line = content[:position].count(b"\n") + 1
    column = position - (content.rfind(b"\n", 0, position) + 1) + 1
    try:
        content.decode("utf-8")
    except UnicodeError:
        return Mistake(line, column, "", "is not UTF-8 text", "save it as UTF-8")
    return Mistake(line, column, "", "contains a control character", "remove it")


def _diagnose(lines: list[str], error: yaml.YAMLError) -> _Repair:
    """Find the mistake behind a syntax error. Only lines up to the error are reliably parsed."""
    mark = getattr(error, "problem_mark", None)
    words = str(getattr(error, "problem", None) or error)
    if mark is None:
        return _Repair([Mistake(0, 0, "", f"invalid YAML: {' '.join(words.split())}", "")])
    at, column = min(mark.line, len(lines) - 1), mark.column
    for diagnose in _DIAGNOSES:
        repair = diagnose(lines, at, column, error)
        if repair:
            return repair
    return _Repair(
        [Mistake(at + 1, column + 1, _find_key_path(lines, at), f"invalid YAML: {' '.join(words.split())}", "")]
    )


def _diagnose_tabs(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    del error
    here = lines[at]
    if "\t" not in here[: column + 1] or here[: column + 1].strip():
        return None
    indents = [(number, line[: len(line) - len(line.lstrip())]) for number, line in enumerate(lines) if line.strip()]
    tabbed = [(number, indent) for number, indent in indents if "\t" in indent]
    texts = [_expand_tabs(lines, {number for number, _ in tabbed}, width) for width in _TAB_WIDTHS]
    fixed = [text.split("\n") for text in texts]
    return _Repair(
        [
            Mistake(
                number + 1,
                indent.index("\t") + 1,
                _find_key_path(fixed[0], number),
                "is indented with a tab",
                "use spaces",
            )
            for number, indent in tabbed
        ],
        texts,
    )


def _expand_tabs(lines: list[str], numbers: set[int], width: int) -> str:
    def expand(line: str) -> str:
        body = line.lstrip()
        return line[: len(line) - len(body)].replace("\t", " " * width) + body

    return "\n".join(expand(line) if number in numbers else line for number, line in enumerate(lines))


def _diagnose_unquoted(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    del error
    line = lines[at]
    found = next((one for one in _UNQUOTED.finditer(line) if one.start("value") <= column <= one.end("value")), None)
    if found is None:
        return None
    value = found["value"].rstrip()
    start = found.start("value")
    text = _replace_line(lines, at, f'{line[:start]}"{value}"{line[start + len(value) :]}')
    fix = f'write "{value}"'
    return _Repair([Mistake(at + 1, start + 1, _find_key_path(lines, at), f"{value} needs quotes", fix)], [text])


def _diagnose_open_quote(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    del at, column
    mark = _find_context(lines, error)
    if mark is None or "quoted scalar" not in str(getattr(error, "context", "")):
        return None
    line, words = lines[mark.line], str(getattr(error, "problem", ""))
    quote = line[mark.column : mark.column + 1]
    if "end of stream" not in words and "document indicator" not in words:
        where = getattr(error, "problem_mark", mark)
        if where.line >= len(lines):
            return None
        fix = "use single quotes, in which a backslash has no meaning"
        mistake = Mistake(
            where.line + 1, where.column + 1, _find_key_path(lines, mark.line), "unknown escape sequence", fix
        )
        at = lines[where.line].rfind("\\", 0, where.column + 1)
        return _Repair(
            [mistake], [_replace_line(lines, where.line, f"{lines[where.line][:at]}\\{lines[where.line][at:]}")]
        )
    mistake = Mistake(
        mark.line + 1, mark.column + 1, _find_key_path(lines, mark.line), "the quote is not closed", f"add {quote}"
    )
    ends = [text for text in (line.rstrip() + quote, re.sub(r"([\]},]*\s*)$", quote + r"\1", line, count=1)) if text]
    return _Repair([mistake], [_replace_line(lines, mark.line, text) for text in ends])


def _diagnose_not_closed(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    mark, context = _find_context(lines, error), str(getattr(error, "context", ""))
    kind = next((kind for kind in _CLOSERS if context.endswith(f"flow {kind}")), None)
    if kind is None:
        return _diagnose_open_end(lines, at)
    if mark is None:
        return None
    name, closer = _CLOSERS[kind]
    line = lines[mark.line]
    path = _find_key_path(lines, mark.line)
    if mark.line == at and line[column:].strip() and line[column : column + 1] not in "]}":
        return _Repair([Mistake(at + 1, column + 1, path, f"a comma is missing in the {name}", "add it")],
                       [_replace_line(lines, at, f"{line[:column].rstrip()}, {line[column:]}")])  # fmt: skip
    mistake = Mistake(mark.line + 1, mark.column + 1, path, f"the {name} is not closed", f"add {closer}")
    whole = line.rstrip()
    closed = [
        whole.rstrip(",") + closer,
        whole[: len(whole) - 1] + closer + whole[-1:],
        whole[: len(whole) - 1] + closer,
    ]
    return _Repair([mistake], [_replace_line(lines, mark.line, text) for text in closed])


def _diagnose_open_end(lines: list[str], at: int) -> _Repair | None:
    """Find a list or mapping that is still open at the end of the file."""
    if any(line.strip() for line in lines[at + 1 :]) or lines[at].strip():
        return None
    opened: list[tuple[int, int, str]] = []
    for number, line in enumerate(lines):
        for found in re.finditer(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|(?:^|\s)#.*|[\[\]{}]", line):
            sign = found[0]
            if sign in "[{":
                opened.append((number, found.start(), sign))
            elif sign in "]}" and opened:
                opened.pop()
    if not opened:
        return None
    last, column, sign = opened[-1]
    name, closer = _CLOSERS["sequence" if sign == "[" else "mapping"]
    mistake = Mistake(last + 1, column + 1, _find_key_path(lines, last), f"the {name} is not closed", f"add {closer}")
    return _Repair([mistake], [_replace_line(lines, last, lines[last].rstrip() + closer)])


def _diagnose_extra_closer(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    del error
    line = lines[at]
    closer = line[column : column + 1]
    if not closer or closer not in "]}":
        return None
    mistake = Mistake(at + 1, column + 1, _find_key_path(lines, at), f"unmatched {closer}", "remove it")
    return _Repair([mistake], [_replace_line(lines, at, line[:column] + line[column + 1 :])])


def _diagnose_two_documents(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    if "another document" not in str(getattr(error, "problem", "")):
        return None
    mistake = Mistake(at + 1, column + 1, "", "begins a second YAML document", "remove the line ---")
    return _Repair([mistake], ["\n".join([*lines[:at], "", *lines[at + 1 :]])])


def _diagnose_bad_start(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    problem = str(getattr(error, "problem", ""))
    if not ("cannot start any token" in problem or "undefined alias" in problem or "alphabetic" in problem):
        return None
    line = lines[at]
    found = next((one for one in _BAD_START.finditer(line) if one.start("value") <= column <= one.end("value")), None)
    if found is None:
        return None
    value, start = found["value"].rstrip(), found.start("value")
    text = _replace_line(lines, at, f'{line[:start]}"{value}"{line[start + len(value) :]}')
    problem = f"a value cannot begin with {value[0]} without quotes"
    return _Repair([Mistake(at + 1, start + 1, _find_key_path(lines, at), problem, f'write "{value}"')], [text])


def _diagnose_missing_blank(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    del column
    # The error is reported at the next key, once the line before turns out not to be one.
    mark = _find_context(lines, error)
    for number in dict.fromkeys([at, mark.line if mark else at, *range(at - 1, max(-1, at - 4), -1)]):
        found = _NO_BLANK.match(lines[number])
        if found:
            text = _replace_line(lines, number, f"{found['before']} {found['value']}")
            start = len(found["before"])
            fix = f"write {found['before'].strip()} {found['value'].strip()}"
            mistake = Mistake(
                number + 1, start, _find_key_path(text.split("\n"), number), "missing space after ':'", fix
            )
            return _Repair([mistake], [text])
        if number < at and lines[number].strip():
            break
    return None


def _diagnose_indentation(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    del column
    problem = str(getattr(error, "problem", ""))
    if not any(
        words in problem for words in ("expected key", "mapping values", "'-' indicator", "expected <block end>")
    ):
        return None
    line = lines[at]
    indent = len(line) - len(line.lstrip(" "))
    above = [len(one) - len(one.lstrip(" ")) for one in lines[:at] if one.strip() and not one.lstrip().startswith("#")]
    if not above:
        return None
    # Candidate indentations: those of the line above and of its parents.
    levels: list[int] = []
    for one in reversed(above):
        if not levels or one < min(levels):
            levels.append(one)
    if indent in levels and indent <= above[-1] and _KEY.match(line):
        return None
    if not _KEY.match(line) and not line.lstrip().startswith("- "):
        return _diagnose_key_without_colon(lines, at)
    texts = [_move_block(lines, at, indent, level) for level in levels]
    texts += [_replace_line(lines, at, " " * level + line.lstrip(" ")) for level in levels]
    right = " or ".join(f"{level}" for level in sorted(levels) if level or len(levels) == 1 or indent <= 1)
    fix = f"indent it by {right} spaces"
    path = _find_key_path(texts[0].split("\n"), at)
    return _Repair(
        [Mistake(at + 1, indent + 1, path, f"is indented by {indent} spaces, unlike any line above", fix)], texts
    )


def _diagnose_missing_colon(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    del column
    problem = str(getattr(error, "problem", ""))
    if not any(words in problem for words in ("expected ':'", "mapping values")):
        return None
    before = _find_previous(lines, at)
    places = [at] if before is None else [at, before]
    return next(
        (
            repair
            for one in places
            if not _KEY.match(lines[one]) and (repair := _diagnose_key_without_colon(lines, one))
        ),
        None,
    )


def _diagnose_key_without_colon(lines: list[str], at: int) -> _Repair | None:
    words = lines[at].strip()
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\s+([^:]*))?", words)
    if not found:
        return None
    indent = len(lines[at]) - len(lines[at].lstrip())
    fix = f"write {found[1]}: {found[2] or ''}".rstrip()
    text = _replace_line(lines, at, lines[at].replace(words, fix.removeprefix("write "), 1))
    return _Repair(
        [Mistake(at + 1, indent + 1, _find_key_path(text.split("\n"), at), "missing ':' after the key", fix)], [text]
    )


def _diagnose_second_colon(lines: list[str], at: int, column: int, error: yaml.YAMLError) -> _Repair | None:
    found = _KEY.match(lines[at])
    if "mapping values" not in str(getattr(error, "problem", "")) or found is None:
        return None
    value = lines[at][found.end() :].strip()
    start = lines[at].index(value, found.end()) if value else column
    text = _replace_line(lines, at, f'{lines[at][:start]}"{value}"')
    return _Repair(
        [Mistake(at + 1, start + 1, _find_key_path(lines, at), "a value with : needs quotes", f'write "{value}"')],
        [text],
    )


def _move_block(lines: list[str], at: int, indent: int, level: int) -> str:
    """Return the text with the line `at`, and the lines below it that belong to it, moved to `level`."""
    moved = list(lines)
    for number in range(at, len(lines)):
        line = lines[number]
        own = len(line) - len(line.lstrip(" "))
        if number > at and line.strip() and own <= indent and not (own == indent and _KEY.match(line)):
            break
        if number > at and line.strip() and own < indent:
            break
        if line.strip():
            moved[number] = " " * max(0, own + level - indent) + line.lstrip(" ")
    return "\n".join(moved)


def _find_previous(lines: list[str], at: int) -> int | None:
    return next(
        (one for one in range(at - 1, -1, -1) if lines[one].strip() and not lines[one].lstrip().startswith("#")), None
    )


def _replace_line(lines: list[str], at: int, text: str) -> str:
    return "\n".join([*lines[:at], text, *lines[at + 1 :]])


def _find_key_path(lines: Sequence[str], at: int) -> str:
    """Return the key path of a line, from the indentation of the lines above."""
    return ".".join(reversed(list(_list_parent_keys(lines, at))))


def _list_parent_keys(lines: Sequence[str], at: int) -> Iterator[str]:
    indent: int | None = None
    for number in range(min(at, len(lines) - 1), -1, -1):
        found = _KEY.match(lines[number])
        if found and (indent is None or len(found["indent"]) < indent):
            indent = len(found["indent"])
            yield found["key"]
            if indent == 0:
                return


_DIAGNOSES = (
    _diagnose_tabs,
    _diagnose_unquoted,
    _diagnose_open_quote,
    _diagnose_not_closed,
    _diagnose_extra_closer,
    _diagnose_two_documents,
    _diagnose_bad_start,
    _diagnose_missing_blank,
    _diagnose_missing_colon,
    _diagnose_indentation,
    _diagnose_second_colon,
)
"""In the order of attempts: unambiguous mistakes first."""
