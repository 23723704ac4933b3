"""The last runs are read from the end of history.jsonl, whatever else is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lbagent.outcome import PastRun
from lbagent.state import store


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

    assert store.read_last_run(str(path)) == RUN


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n"])
def test_without_any_run_there_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)

    assert store.read_last_run(str(path)) is None


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert store.read_last_run(str(tmp_path / "history.jsonl")) is None


def test_the_newest_entries_come_first_also_from_the_rotated_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    (tmp_path / "history.jsonl.1").write_text(f"{entry('1')}\n{entry('2')}\n")
    path.write_text(f"{entry('3', added=['a'], removed=['b', 'c'], reloaded=True, ms=12)}\nnonsense\n{entry('4')}\n")

    found = store.read_entries(str(path), 3)

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

    [found] = store.read_entries(str(path), 10)

    assert (len(found["added"]), found["added_count"], found["removed"]) == (50, 1000, [])


def test_without_files_there_are_no_entries(tmp_path: Path) -> None:
    assert store.read_entries(str(tmp_path / "history.jsonl"), 10) == []
