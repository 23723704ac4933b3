"""The prose linter finds every idiom and long sentence in text, and reads no code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import prose
from tests.docs.prose import Passage, Rule


@pytest.mark.parametrize("rule", prose.RULES, ids=lambda rule: rule.pattern)
def test_every_rule_finds_its_example(rule: Rule) -> None:
    assert rule.advice in {hit.advice for hit in prose.find_idioms(Passage(1, rule.example))}


@pytest.mark.parametrize(
    "sentence",
    [
        "There is no server.",
        "The node is no longer paused.",
        "Operators who run HAProxy read this.",
        "The file takes precedence over the line.",
        "A standard takeover of the understanding is notable.",
        "`haproxy -c` accepts the file, and lbagent replaces it.",
    ],
)
def test_plain_sentences_are_accepted(sentence: str) -> None:
    [passage] = prose.read_markdown(sentence)

    assert [*prose.find_idioms(passage), *prose.find_long_sentences(passage)] == []


def test_markdown_is_read_without_its_code() -> None:
    text = """\
# A heading

A sentence with `who stands here`
on two lines.

    an indented block says nothing

```console
$ told
```

- an item
  of two lines
- [a link](https://example.com/told)

| a `b` | c |
|---|---|
"""
    assert list(prose.read_markdown(text)) == [
        Passage(1, "A heading"),
        Passage(3, "A sentence with X on two lines."),
        Passage(12, "an item of two lines"),
        Passage(14, "a link"),
        Passage(16, "a X"),
        Passage(16, "c"),
        Passage(17, "---"),
        Passage(17, "---"),
    ]


def test_of_a_configuration_only_comments_are_read() -> None:
    text = """\
#!/bin/sh
# A comment
# of two lines.
key: told  # a trailing one
# option: told  # an option that is not set
    # additional-lb-iis-server
    server web01 10.0.0.1:80 # lbagent role=web
"""
    assert list(prose.read_comments(text)) == [
        Passage(2, "A comment of two lines."),
        Passage(4, "a trailing one"),
        Passage(5, "an option that is not set"),
    ]


def test_of_python_docstrings_comments_and_messages_are_read() -> None:
    text = '''\
"""The first line of a module."""

# A comment
# of two lines.
KEY = "one told"
message = f"{KEY}: a long message; {KEY} again"  # noqa: S101  # with a reason
'''
    assert sorted(prose.read_python(text)) == [
        Passage(1, "The first line of a module."),
        Passage(3, "A comment of two lines."),
        Passage(6, "X: a long message; X again"),
        Passage(6, "with a reason"),
    ]


def test_a_sentence_of_31_words_is_reported_and_one_of_30_is_not() -> None:
    longest, longer = " ".join(["word"] * 30), " ".join(["word"] * 31)

    assert list(prose.find_long_sentences(Passage(7, f"{longest}. {longest}."))) == []
    assert [hit.line for hit in prose.find_long_sentences(Passage(7, f"{longer}."))] == [7]


def test_released_versions_of_the_changelog_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "CHANGELOG.md"
    path.write_text("# Changelog\n\n## Unreleased\n\n- This is told.\n\n## [0.1.0]\n\n- This was told.\n")

    assert [hit.line for hit in prose.check_file(path)] == [5]


def test_a_hit_is_printed_with_file_line_and_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.md").write_text("Fine.\n\nMend it.\n")

    status = prose.main([str(tmp_path / "page.md")])

    said = capsys.readouterr().out
    assert (status, re.sub(r"^.*/", "", said)) == (
        1,
        "page.md:3: 'Mend' in 'Mend it.'; write: fix\n1 to change in 1 files\n",
    )
