"""Reads the commands of a documentation page, and detects whether test machines for them can be created."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

from tests.helpers.real_programs import LBAGENT

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PATH = f"{LBAGENT.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

TRY = """\
mount -t tmpfs try /run
mkdir /run/upper /run/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work try /etc
"""
"""The kernel features that a machine of `scenarios` needs."""


def can_make_machines() -> bool:
    """Return whether this user can create namespaces and all programs are installed."""
    programs = ("haproxy", "serf", "unshare", "nsenter", "setpriv", "ip")
    if os.geteuid() != 0 or not all(shutil.which(program, path=PATH) for program in programs):
        return False
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-ec", TRY]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def list_commands(page: str) -> list[tuple[str, str]]:
    """Return the commands in the console blocks of a text, in order, each with the host of its prompt."""
    blocks = re.findall(r"^( *)```console\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE)
    text = "".join(textwrap.dedent(block) for _, block in blocks)
    return re.findall(r"^(\w+)[#$] (.*)$", text, re.MULTILINE)
