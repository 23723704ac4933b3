"""Writes the man page and the shell completions of lbagent: `python packaging/pages.py FOLDER`.

argparse-manpage and shtab make them from the parser of the command line, so that they never differ from it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]

import lbagent
from lbagent import arguments
from lbagent.roles import keys
from lbagent.settings import DEFAULT_ROLES, DEFAULT_STATE_DIR
from lbagent.state.paths import Paths

RELEASED = "2026-11-21"
"""Date of the version that the page describes, so that the same version gives the same page."""

ENVIRONMENT = {
    "LBAGENT_ROLES": f"Path of roles.yml; --roles has priority. Default: {DEFAULT_ROLES}.",
    "LBAGENT_STATE_DIR": "The state directory; --state-dir has priority.",
    "STATE_DIRECTORY": f"The state directory as systemd sets it. Default: {DEFAULT_STATE_DIR}.",
    "SERF_RPC_ADDR": "Address of the Serf agent's RPC. Default: serf.env beside roles.yml, else 127.0.0.1:7373.",
    "SERF_RPC_AUTH": "Token of the Serf agent's RPC. Default: serf.env beside roles.yml.",
    "SERF_EVENT": "With the other SERF_* variables: the event that Serf passes to its handler.",
    "NO_COLOR": "No colours in the output of status and check.",
}


def build_man_page() -> str:
    """The text of lbagent(1), in groff's man macros."""
    command = arguments.build_parser()
    # The epilog has exit statuses and examples, which are sections of their own here.
    command.epilog = None
    data = {
        "prog": "lbagent",
        "project_name": "lbagent",
        "version": lbagent.__version__,
        "description": "keep the servers of HAProxy in step with a Serf cluster",
        "manual_section": 1,
        "manual_title": "lbagent",
    }
    os.environ.setdefault("SOURCE_DATE_EPOCH", _seconds(RELEASED))
    page = Manpage(command, format="single-commands-section", _data=data)
    statuses = ((str(status), meaning) for status, meaning in arguments.list_exit_statuses().items())
    sections = {
        "EXIT STATUS": statuses,
        "FILES": list_files().items(),
        "ENVIRONMENT": ENVIRONMENT.items(),
        "EXAMPLES": arguments.EXAMPLES,
    }
    for heading, rows in sections.items():
        body = "\n".join(f".TP\n\\fB{_escape(name)}\\fR\n{_escape(text)}" for name, text in rows)
        page.add_section(heading, ">", body)
    page.add_section("SEE ALSO", ">", "\\fBserf\\fR(1), \\fBhaproxy\\fR(1), \\fBlbagent-serf-setup\\fR(8)")
    # mandoc does not read a date with escaped hyphens.
    return str(page).replace(_escape(RELEASED), RELEASED)


def build_completions() -> dict[str, str]:
    """The completion scripts for bash and zsh, by path below the output folder."""
    command = arguments.build_parser()
    for action in command._actions:  # noqa: SLF001  # argparse has no public list of its options
        if action.dest == "roles":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest == "state_dir":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return {
        "completion/lbagent.bash": shtab.complete(command, "bash"),
        "completion/_lbagent": shtab.complete(command, "zsh"),
    }


def list_files() -> dict[str, str]:
    """Every file that lbagent reads or writes by default, with what it holds."""
    paths = Paths(DEFAULT_STATE_DIR)
    properties = {name: one for name, one in vars(Paths).items() if isinstance(one, property)}
    state = {str(getattr(paths, name)): (one.__doc__ or "").strip() for name, one in properties.items()}
    return {DEFAULT_ROLES: "Roles and services, and where haproxy.cfg is.", **state}


def write_pages(folder: Path) -> None:
    """Write all pages below `folder`, and print their paths. Raises OSError."""
    schema = json.dumps(keys.build_schema(), indent=2) + "\n"
    pages = {"man/lbagent.1": build_man_page(), "roles.schema.json": schema, **build_completions()}
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)


def _seconds(date: str) -> str:
    return str(int(dt.datetime.fromisoformat(f"{date}T12:00:00+00:00").timestamp()))


def _escape(text: str) -> str:
    return re.sub(r"^([.'])", r"\\&\1", text.replace("\\", "\\e").replace("-", "\\-"))


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
