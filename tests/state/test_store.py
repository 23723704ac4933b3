"""history.jsonl and answers.json are read and written whatever their content, and how damaged it is."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from lbagent.outcome import PastRun
from lbagent.state.paths import Paths
from lbagent.state.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty state directory."""
    return Store(Paths(str(tmp_path)))


# history.jsonl


def entry(why: str, **more: object) -> str:
    """A line as the store writes it."""
    return json.dumps({"when": "2023-11-14T22:13:20Z", "why": why, "outcome": "applied", "words": "ok", **more})


RUN = PastRun(1_700_000_000, "the last", "applied", "ok")


@pytest.mark.parametrize(
    "text",
    [
        f"{entry('the last')}\n",
        f"{entry('the first')}\n{entry('the last')}\n",
        f'{entry("the last")}\n{{"when": "2023-11-14T2',
        f"{entry('the last')}\n[]\nnull\n\x00\n{entry('x', when=7)}\n{entry('y', when='yesterday')}\n",
        f"{entry('the first')}\n{entry('the last', added=['server'] * 100_000)}\n",
        f"{entry('the first')}\n{entry('the last')}\n{'[' * 100_000}\n",
    ],
    ids=["alone", "after another", "before a torn one", "before damaged ones", "longer than a piece", "too deep"],
)
def test_the_last_complete_line_of_the_history_is_found(text: str, store: Store) -> None:
    Path(store.paths.history).write_text(text)

    assert store.load_last_run() == RUN


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n"])
def test_a_history_without_a_complete_line_has_no_last_run(text: str, store: Store) -> None:
    Path(store.paths.history).write_text(text)

    assert store.load_last_run() is None


def test_a_missing_history_has_no_last_run(store: Store) -> None:
    assert store.load_last_run() is None


# answers.json


def test_a_published_answer_is_returned(store: Store) -> None:
    store.publish_answers({"a": "done", "b": "queued"})

    assert [store.wait_for_answer(key, 0) for key in ("a", "b", "c")] == ["done", "queued", None]


def test_an_answer_that_is_published_later_is_waited_for(store: Store) -> None:
    publisher = threading.Timer(0.1, store.publish_answers, ({"a": "done"},))
    publisher.start()

    assert store.wait_for_answer("a", 20) == "done"
    publisher.join()


def test_a_later_answer_replaces_the_first(store: Store) -> None:
    store.publish_answers({"a": "queued"})
    store.publish_answers({"a": "done"})

    assert store.wait_for_answer("a", 0) == "done"


def test_the_newest_hundred_answers_are_kept(store: Store) -> None:
    for number in range(105):
        store.publish_answers({str(number): "done"})

    assert [store.wait_for_answer(key, 0) for key in ("4", "5", "104")] == [None, "done", "done"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", bytes(range(256)), b'{"a": null}'])
def test_a_damaged_file_has_no_answer_and_is_replaced(store: Store, content: bytes) -> None:
    Path(store.paths.answers).write_bytes(content)

    assert store.wait_for_answer("b", 0) is None
    store.publish_answers({"b": "done"})
    assert store.wait_for_answer("b", 0) == "done"


def test_answers_are_readable_for_owner_and_group_only(store: Store) -> None:
    store.publish_answers({"a": "done"})

    assert stat.S_IMODE(Path(store.paths.answers).stat().st_mode) & 0o027 == 0
