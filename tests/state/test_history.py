"""The last run is read from the end of history.jsonl, whatever else stands in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lbagent.outcome import PastRun
from lbagent.state import history


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

    assert history.read_past_runs(str(path)) == RUN


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n"])
def test_without_any_run_there_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)

    assert history.read_past_runs(str(path)) is None


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert history.read_past_runs(str(tmp_path / "history.jsonl")) is None
