"""Every valid record of the spool is applied, whatever other files are between them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from lbagent.membership.model import Membership
from lbagent.membership.updates import UpdateResult, apply_events
from lbagent.run import engine
from lbagent.run.engine import Batch, peek_events
from lbagent.state.spool import Spool
from lbagent.system.log import Log
from tests.helpers.faults import make_spool_record
from tests.helpers.real_programs import member_line


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    (tmp_path / "spool").mkdir()
    return Spool(str(tmp_path / "spool"), 64 * 1024)


def joined(name: str) -> bytes:
    return make_spool_record(name, "member-join", member_line(name, "127.0.0.9"))


@pytest.mark.parametrize(
    "record",
    [
        b"no record",
        make_spool_record("a", "typed", b"nobody\n", "shutdown"),
        make_spool_record("a", "typed", b"", "lbagent-status"),
        make_spool_record("a", "query", b"", "lbagent-status", "7"),
        make_spool_record("a", "user", b"web1\n", "deploy", "7"),
        make_spool_record("a", "", b""),
    ],
)
def test_a_record_that_no_handler_stored_is_moved_to_bad(
    spool: Spool, record: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    for content in (joined("web1"), record, joined("web2")):
        spool.store(content)

    assert [raw.id for raw, _ in peek_events(spool)] == ["web1", "web2"]
    assert [raw.id for raw, _ in Batch(spool, Log()).events] == ["web1", "web2"]
    assert [name.partition("-")[2] for name in os.listdir(os.path.join(spool.folder, "bad"))] == ["2"]
    assert capfd.readouterr().err.count("\n") == 1


def test_an_event_that_raises_does_not_block_the_others(
    spool: Spool, mocker: MockerFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("web1", "web2", "web3"):
        spool.store(joined(name))

    def stumbling(before: Membership, events: list[engine.ParsedEvent], clocks: dict[str, int]) -> UpdateResult:
        if any(raw.id == "web2" for raw, _ in events):
            raise KeyError("web2")
        return apply_events(before, events, clocks)

    mocker.patch("lbagent.run.engine.apply_events", stumbling)
    taken = Batch(spool, Log())

    folded = taken.apply_to(Membership(), {})

    assert sorted(folded.membership.members) == ["web1", "web3"]
    assert list(taken.by_name) == spool.list_names() == ["1", "3"]
    assert "cannot be applied (KeyError: 'web2'); moved to" in capfd.readouterr().err
