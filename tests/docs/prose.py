"""Report idioms and long sentences in the project's English: `python -m tests.docs.prose [--code] [FILE…]`.

Without arguments all documentation is read: Markdown, and the comments of units and configuration examples. `--code`
reads the docstrings, comments and messages of lbagent/ too. Prints FILE:LINE and what to write instead; the exit
status is 1 if anything is found.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent.parent.parent

LONGEST = 30
"""Words of a sentence in the documentation."""

CODE = "X"
"""What inline code, a placeholder of an f-string and a URL count as: one word."""


class Rule(NamedTuple):
    """One idiom and what to write instead."""

    pattern: str
    """A regular expression; case is ignored."""
    advice: str
    example: str
    """A sentence that the rule finds."""


RULES = (
    Rule(r"\b(stands?|stood|standing)\b", "is, is listed, appears; substitutes for", "the line stands in haproxy.cfg"),
    Rule(r"\bmend(s|ed|ing)?\b", "fix", "mend the file"),
    Rule(r"\b(tells?|told|telling)\b", "report, log, send, show", "HAProxy is told through its socket"),
    Rule(r"\b(says?|said|saying)\b", "report, log, print, mean", "that is said in the log"),
    Rule(r"\b(holds?|held|holding) (it |them )?back\b", "block", "the guard holds it back"),
    Rule(r"\bthe guard (holds|held)\b", "the safety guard blocks", "what the guard holds"),
    Rule(r"\blet(s|ting)? (it |them |him )?go\b", "remove, release", "apply --force lets them go"),
    Rule(
        r"\b(take|takes|taken|took|taking) (?!precedence|priority)(\w+ ){0,2}over\b(?! the listeners)",
        "apply, load, run",
        "HAProxy takes the change over",
    ),
    Rule(
        r"(^|[.;:,\u2014\u2013] |\b(?:and|or|but) )who\b",
        "name the thing; `who` is for people",
        "Who wants an answer asks.",
    ),
    Rule(r"\bwho(ever|m)\b", "name the thing", "whoever holds the lock"),
    Rule(r"\b(he|him|his|himself)\b", "it, its", "a server takes his traffic"),
    Rule(r"\b(no|some|any|every)body\b", "no process, another process, all users; name it", "nobody reads half of it"),
    Rule(r"(?<!there )\b(is|are|was|were) no (?!longer|more than|less than|different)", "is not a", "web01 is no node"),
    Rule(r"\bamiss\b", "wrong", "nothing is amiss"),
    Rule(r"\ball the same\b", "nevertheless; or delete it", "it is written all the same"),
    Rule(r"\bas ever\b|\bfor ever\b", "as before, always; or delete it", "answered as ever"),
    Rule(r"\bnewcomers?\b", "new nodes", "newcomers get no line"),
    Rule(r"\bthe other one\b|\bthe others\b", "the other load balancer; name it", "then the other one is asked"),
    Rule(r"\bgive or take\b|\bso far apart\b", "±10 %, at least 2 s apart", "a minute, give or take a tenth"),
    Rule(r"\b(was|is|were|are) (not )?had\b", "acquire", "the lock was not had"),
    Rule(r"\b(is|are|was|were) of\b|\bof (before|after) ", "belongs to; from before", "the worker of before a reload"),
    Rule(r", that is\b", "delete it, or a new sentence", "the guard, that is, blocks it"),
    Rule(r"\bcannot be meant\b|\bslip of the pen\b", "is invalid; typo", "a file that cannot be meant"),
    Rule(r"\b(lies|lay|lying)\b", "is, is in", "the file lies in the spool"),
    Rule(r"\bmakes? way\b|\bgoodbye\b|\bworth having\b", "is replaced by; leave; useful", "the line makes way"),
    Rule(r"\b(go|goes|went|going) on\b", "continue, keep running", "the old worker goes on"),
    Rule(r"\banew\b", "again", "it is read anew"),
    Rule(r"\b(come|comes|came) to (its|an) end\b", "end", "the run comes to its end"),
    Rule(r"\bdoes? without\b|\bat hand\b|\bin peace\b", "needs no; available; normally", "it does without the link"),
    Rule(r"\bis asked for\b|\basked for\b", "requested", "a removal that was not asked for"),
    Rule(
        r"\bas (it|they) (stands?|is to be)\b|\bin (its|their) place stands\b", "is, current", "the text as it stands"
    ),
    Rule(r"\bwhat is to come\b|\bmay not come\b", "name it", "what is to come of it"),
    Rule(r"\b(well|all well|fine) again\b", "works again", "all well again"),
    Rule(r"\bfolds?\b|\bfolded\b|\bfolding\b", "apply", "events are folded into membership"),
)


class Passage(NamedTuple):
    """A piece of prose and the line on which it begins."""

    line: int
    text: str


class Hit(NamedTuple):
    """One thing to change."""

    line: int
    words: str
    advice: str


# From files to passages


def read_markdown(text: str) -> Iterator[Passage]:
    """Yield paragraphs, list items, headings and table cells, without code."""
    start, collected = 0, list[str]()
    fenced = indented = False
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if bare.startswith("```"):
            fenced = not fenced
            bare = ""
        elif not fenced and not collected and line.startswith("    ") and not re.match(r"[-*|]|\d+\. ", bare):
            indented = True
        else:
            indented = False
        is_code = fenced or indented or bare.startswith(("<", "!!!"))
        begins = is_code or not bare or re.match(r"[-*#|>]|\d+\. ", bare)
        if begins and collected:
            yield Passage(start, " ".join(collected))
            collected = []
        if is_code or not bare:
            continue
        if bare.startswith("|"):
            yield from (Passage(number, _strip_markup(cell)) for cell in re.split(r"(?<!\\)\|", bare) if cell.strip())
            continue
        if not collected:
            start = number
        collected.append(_strip_markup(re.sub(r"^(?:[-*>]|#+|\d+\.) ", "", bare)))
    if collected:
        yield Passage(start, " ".join(collected))


def _strip_markup(text: str) -> str:
    text = re.sub(r"`[^`]+`", CODE, text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"<https?://[^>]*>|https?://\S+", CODE, text).replace("**", "").strip()


def read_comments(text: str) -> Iterator[Passage]:
    """Yield the comments of YAML, units, shell scripts and haproxy.cfg; consecutive whole-line comments are one."""
    start, collected = 0, list[str]()
    for number, line in enumerate(text.split("\n"), 1):
        whole = re.fullmatch(r"\s*#+(?!!)\s?(.*)", line)
        if collected and not (whole and whole[1].strip() and " # " not in whole[1]):
            yield Passage(start, " ".join(collected))
            collected = []
        if whole and whole[1].strip() and " # " not in whole[1]:
            if not re.match(r"additional-|lbagent ", whole[1]):
                start = start if collected else number
                collected.append(_strip_markup(whole[1]))
        elif trailing := re.search(r"\s# (?!lbagent )(.*)", line):
            yield Passage(number, _strip_markup(trailing[1]))
    if collected:
        yield Passage(start, " ".join(collected))


def read_python(text: str) -> Iterator[Passage]:
    """Yield docstrings, comments, and strings with at least three words."""
    tree = ast.parse(text)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else CODE for part in node.values)
            words = "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            words = node.value
        else:
            continue
        if len(words.split()) >= 3:  # shorter ones are keys, options and commands
            yield Passage(node.lineno, _strip_markup(" ".join(words.split())))
    start, collected, last = 0, list[str](), 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or token.string.startswith("#!"):
            continue
        words = _strip_markup(re.sub(r"^#\s?(noqa\S*( [A-Z]+\d+,?)*|type: ignore\S*)?\s*#?\s*", "", token.string))
        if collected and token.start[0] != last + 1:
            yield Passage(start, " ".join(collected))
            collected = []
        start, last = start if collected else token.start[0], token.start[0]
        collected.append(words)
    if collected:
        yield Passage(start, " ".join(collected))


def keep_unreleased(text: str) -> str:
    """Return a changelog without its released versions."""
    head, unreleased, rest = text.partition("\n## Unreleased\n")
    released = re.search(r"^## ", rest, re.MULTILINE)
    return "\n" * head.count("\n") + unreleased + (rest[: released.start()] if released else rest)


# From passages to hits


def find_idioms(passage: Passage) -> Iterator[Hit]:
    """Yield each idiom in a passage."""
    for rule in RULES:
        for found in re.finditer(rule.pattern, passage.text, re.IGNORECASE):
            around = passage.text[max(0, found.start() - 30) : found.end() + 30]
            yield Hit(passage.line, f"{found[0].strip()!r} in {around!r}", rule.advice)


def find_long_sentences(passage: Passage) -> Iterator[Hit]:
    """Yield each sentence of more than LONGEST words."""
    for sentence in re.split(r"(?<=[.!?])\s+", passage.text):
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > LONGEST:
            yield Hit(passage.line, f"{len(words)} words: {sentence[:80]!r}", "two sentences")


def check_file(path: Path) -> list[Hit]:
    """Return what is to be changed in a file, in the order of its lines."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = keep_unreleased(text)
    if path.suffix == ".py":
        return sorted(hit for passage in read_python(text) for hit in find_idioms(passage))
    passages = list(read_markdown(text) if path.suffix == ".md" else read_comments(text))
    return sorted(hit for passage in passages for find in (find_idioms, find_long_sentences) for hit in find(passage))


def list_documents() -> list[Path]:
    """Return the documentation: pages, and files whose comments explain something to an operator."""
    pages = [HERE / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
    pages += [*(HERE / "docs").rglob("*.md"), *(HERE / "examples").glob("*/README.md")]
    commented = ("*.cfg", "*.yml", "*.conf", "*.env", "*.ini", "*.service", "*.sh", "*rc", "haproxy-lb")
    settings = [path for pattern in commented for path in (HERE / "examples").rglob(pattern)]
    units = [path for path in (HERE / "systemd").rglob("*") if path.is_file()]
    return sorted([*pages, *settings, *units, HERE / "roles.yml"])


def list_code() -> list[Path]:
    """Return the modules of lbagent."""
    return sorted((HERE / "lbagent").rglob("*.py"))


def main(argv: Iterable[str]) -> int:
    """Print what is to be changed and how much it is; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", action="store_true", help="read the modules of lbagent/ too")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args([*argv])
    paths = [path.resolve() for path in options.files] or list_documents() + (list_code() if options.code else [])
    count = 0
    for path in paths:
        name = path.relative_to(HERE) if path.is_relative_to(HERE) else path
        for hit in check_file(path):
            count += 1
            print(f"{name}:{hit.line}: {hit.words}; write: {hit.advice}")
    print(f"{count} to change in {len(paths)} files")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
