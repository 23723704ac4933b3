"""host/answers: what became of a query, for who may only store it."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from lbagent.state import answers


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "answers.json")


def test_what_is_said_is_heard(path: str) -> None:
    answers.publish_answers(path, {"a": "done", "b": "queued"})

    assert [answers.wait_for_answer(path, key, 0) for key in ("a", "b", "c")] == ["done", "queued", None]


def test_what_is_said_later_is_heard(path: str) -> None:
    teller = threading.Timer(0.1, answers.publish_answers, (path, {"a": "done"}))
    teller.start()

    assert answers.wait_for_answer(path, "a", 20) == "done"
    teller.join()


def test_the_last_word_counts(path: str) -> None:
    answers.publish_answers(path, {"a": "queued"})
    answers.publish_answers(path, {"a": "done"})

    assert answers.wait_for_answer(path, "a", 0) == "done"


def test_the_newest_hundred_are_kept(path: str) -> None:
    for number in range(105):
        answers.publish_answers(path, {str(number): "done"})

    assert [answers.wait_for_answer(path, key, 0) for key in ("4", "5", "104")] == [None, "done", "done"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", bytes(range(256)), b'{"a": null}'])
def test_a_damaged_file_is_none(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)

    assert answers.wait_for_answer(path, "b", 0) is None
    answers.publish_answers(path, {"b": "done"})
    assert answers.wait_for_answer(path, "b", 0) == "done"


def test_they_are_for_owner_and_group(path: str) -> None:
    answers.publish_answers(path, {"a": "done"})

    assert stat.S_IMODE(Path(path).stat().st_mode) & 0o027 == 0
