"""A file of another user is read with a size limit, and refused if it is not a regular file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lbagent.system import untrusted_files


def test_a_symbolic_link_to_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")

    assert untrusted_files.read_untrusted_file(str(tmp_path / "link"), 5) == (b"12345", 0o100600, True)
    assert untrusted_files.read_untrusted_file(str(tmp_path / "link"), 4) == (b"1234", 0o100600, False)


@pytest.mark.parametrize("what", ["pipe", "folder", "/dev/zero", "missing"])
def test_a_file_that_is_not_regular_is_refused(tmp_path: Path, what: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = os.listdir("/proc/self/fd")

    with pytest.raises(OSError, match=r"not a regular file|No such file"):
        untrusted_files.read_untrusted_file(str(tmp_path / what), 5)

    assert os.listdir("/proc/self/fd") == before
