"""The store: answers for handlers that may only store their query, and the last runs, whatever is damaged."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from lbagent.outcome import PastRun
from lbagent.settings import Paths
from lbagent.state.store import Store, read_entries, read_last_run


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
def test_the_last_run_that_can_be_read_is_found(text: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)

    assert read_last_run(str(path)) == RUN


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n"])
def test_without_any_run_there_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)

    assert read_last_run(str(path)) is None


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert read_last_run(str(tmp_path / "history.jsonl")) is None


def test_the_newest_entries_come_first_also_from_the_rotated_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    (tmp_path / "history.jsonl.1").write_text(f"{entry('1')}\n{entry('2')}\n")
    path.write_text(f"{entry('3', added=['a'], removed=['b', 'c'], reloaded=True, ms=12)}\nnonsense\n{entry('4')}\n")

    found = read_entries(str(path), 3)

    assert [one["why"] for one in found] == ["4", "3", "2"]
    assert found[1] == {
        "at": 1_700_000_000,
        "why": "3",
        "outcome": "applied",
        "words": "ok",
        "reloaded": True,
        "ms": 12,
        "added": ["a"],
        "removed": ["b", "c"],
        "added_count": 1,
        "removed_count": 2,
    }
    assert (found[0]["reloaded"], found[0]["ms"], found[0]["added"]) == (False, None, [])


def test_of_an_entry_with_many_lines_the_first_fifty_and_their_number_are_read(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(entry("1", added=[f"server {number}" for number in range(1000)], removed=7) + "\n")

    [found] = read_entries(str(path), 10)

    assert (len(found["added"]), found["added_count"], found["removed"]) == (50, 1000, [])


def test_without_files_there_are_no_entries(tmp_path: Path) -> None:
    assert read_entries(str(tmp_path / "history.jsonl"), 10) == []
