"""`check` finds files that strangers can write, and full disks."""

# ruff: noqa: E501  # a case of a table is on one line

from __future__ import annotations

import pytest

from lbagent.checks import files
from lbagent.checks.files import FileOwner
from tests.checks.helpers import list_lines


@pytest.mark.parametrize(
    ("owned", "lines"),
    [
        (FileOwner("/f", 0o100640, 0, 0), ["ok permissions: only root can write lbagent's files (1 path)"]),
        (FileOwner("/f", 0o100640, 1000, 5), ["ok permissions: only root can write lbagent's files (1 path)"]),
        (FileOwner("/f", 0o100660, 0, 0), ["ok permissions: only root can write lbagent's files (1 path)"]),
        (FileOwner("/f", 0o100660, 0, 5), ["warning permissions: /f: group 5 can write it (mode 0660); run `chmod g-w /f`"]),
        (FileOwner("/d", 0o042770, 0, 5), ["warning permissions: /d: group 5 can write it (mode 2770); run `chmod g-w /d`"]),
        (FileOwner("/d", 0o043770, 0, 5), ["ok permissions: only root can write lbagent's files (1 path)"]),
        (FileOwner("/f", 0o101660, 0, 5), ["warning permissions: /f: group 5 can write it (mode 1660); run `chmod g-w /f`"]),
        (FileOwner("/f", 0o100644, 7, 0), ["warning permissions: /f: belongs to user 7; run `chown root /f`"]),
        (FileOwner("/d", 0o041777, 0, 0), ["error permissions: /d: every user of this host can write it (mode 1777); run `chmod o-w /d`"]),
        (
            FileOwner("/f", 0o100666, 7, 7),
            [
                "error permissions: /f: every user of this host can write it (mode 0666); run `chmod o-w /f`",
                "warning permissions: /f: group 7 can write it (mode 0666); run `chmod g-w /f`",
                "warning permissions: /f: belongs to user 7; run `chown root /f`",
            ],
        ),
    ],
)  # fmt: skip
def test_files_that_other_accounts_can_write_are_found(owned: FileOwner, lines: list[str]) -> None:
    assert list_lines(files.check_owners([owned], 1000)) == lines


@pytest.mark.parametrize(
    ("free", "lines"),
    [
        (16 << 20, []),
        ((16 << 20) - 1, ["warning disk: /var: only 16383 KiB are free; free disk space"]),
        ((1 << 20) - 1, ["error disk: /var: 1023 KiB are free; events cannot be stored; free disk space, then run `lbagent sync`"]),
    ],
)  # fmt: skip
def test_a_full_disk_is_an_error_and_a_nearly_full_one_a_warning(free: int, lines: list[str]) -> None:
    assert list_lines(files.check_free_bytes("/var", free)) == lines
