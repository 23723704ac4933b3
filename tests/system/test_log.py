"""Log lines go to stderr and the journal or syslog; a query sees none of them, and a terminal no escape sequence."""

from __future__ import annotations

import syslog

import pytest

from lbagent.system.log import Log


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Return the list of what syslog receives."""
    received: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda priority, words: received.append((priority, words)))
    return received


def test_errors_and_warnings_go_to_stderr_and_the_journal(
    journal: list[tuple[int, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    log.error("failed")
    log.warning("look")

    assert capfd.readouterr() == ("", "lbagent: failed\nlbagent: look\n")
    assert journal == [(syslog.LOG_ERR, "failed"), (syslog.LOG_WARNING, "look")]


def test_information_is_printed_only_if_verbose(
    journal: list[tuple[int, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    Log().info("quiet")
    Log(verbose=True).info("done")

    assert capfd.readouterr() == ("", "lbagent: done\n")
    assert journal == [(syslog.LOG_INFO, "quiet"), (syslog.LOG_INFO, "done")]


def test_a_silent_log_writes_nothing_to_stderr(
    journal: list[tuple[int, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log(verbose=True)
    log.silent = True
    log.error("failed")

    assert capfd.readouterr() == ("", "")
    assert journal == [(syslog.LOG_ERR, "failed")]


def test_a_message_is_one_line_without_escape_sequences(
    journal: list[tuple[int, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    Log().error("a\nb\r\x1b[31m\0\u2028\udc83日本")

    assert capfd.readouterr() == ("", "lbagent: a?b??[31m???日本\n")
    assert [words for _, words in journal] == ["a?b??[31m???日本"]
