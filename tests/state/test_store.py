"""answers.json: a handler that may only store its query gets the answer from it, however damaged it was."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from lbagent.settings import Paths
from lbagent.state.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty state directory."""
    return Store(Paths(str(tmp_path)))


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
