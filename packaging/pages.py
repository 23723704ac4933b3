"""Writes the man pages and the shell completions of lbagent: `python packaging/pages.py FOLDER`.

argparse-manpage and shtab make lbagent(1) and the completions from the parser of the command line. roles.yml(5) is made
from the table of keys that the loader reads. So none of them differs from the program.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]

import lbagent
from lbagent import arguments
from lbagent.roles import keys
from lbagent.roles.model import PLACEHOLDERS
from lbagent.settings import DEFAULT_ROLES, DEFAULT_STATE_DIR, Paths

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
    page.add_section(
        "SEE ALSO", ">", "\\fBserf\\fR(1), \\fBhaproxy\\fR(1), \\fBlbagent-serf-setup\\fR(8), \\fBroles.yml\\fR(5)"
    )
    # mandoc does not read a date with escaped hyphens.
    return str(page).replace(_escape(RELEASED), RELEASED)


PLACEHOLDER_MEANINGS = {
    "{interval}": "The interval of the role.",
    "{name}": "The name of the node.",
    "{role}": "The name of the role.",
    "{server}": "The name of the server in its proxy: NODE, or NODE.SERVICE where the proxy has several services.",
    "{tag:NAME}": "The Serf tag NAME of the node. A node without it gets no line.",
    "{tag:NAME|default}": "The Serf tag NAME of the node, or the default.",
}
ROLES_EXAMPLE = """\
services:
  iis: {port: 80}
  mongo: {port: "{tag:mongo_port|27017}"}
roles:
  web:
    lb: [iis]
    interval: 60s
    networks: [10.0.0.0/8]
  test: {lb: [none], monitor: [iis, mongo], interval: 300s}
"""


def build_roles_page() -> str:
    """The text of roles.yml(5), in groff's man macros."""
    assert all(name in PLACEHOLDERS for name in PLACEHOLDER_MEANINGS)
    files = {DEFAULT_ROLES: "The default. --roles FILE has priority, then $LBAGENT_ROLES."}
    statuses = {"2": "An invalid file. All mistakes are reported, with line and fix. Nothing is changed on disk."}
    parts = [
        f'.TH ROLES.YML 5 "{RELEASED}" "lbagent {lbagent.__version__}" "lbagent"',
        ".SH NAME\nroles.yml \\- roles and services for \\fBlbagent\\fR(1)",
        ".SH DESCRIPTION\nA YAML file with up to three keys: \\fBhaproxy\\fR, \\fBservices\\fR and \\fBroles\\fR.",
        "lbagent reads it at every run. Unknown keys, wrong types and undeclared services are refused.",
        "Quote a value that begins with a brace.",
        _list_section("HAPROXY", "Every key is optional.", _describe_keys(keys.HAPROXY_KEYS)),
        _list_section(
            "SERVICES", "NAME: {port: ..., options: ...}, for each service.", _describe_keys(keys.SERVICE_KEYS)
        ),
        _list_section("TEMPLATES", "Options, ports and addresses may contain:", PLACEHOLDER_MEANINGS),
        _list_section(
            "ROLES",
            "NAME: {...}, for each value of the Serf tag role. A node whose tag is a comma-separated list has all of "
            "these roles. Every key except the following is a section: a list of services, or [none].",
            _describe_keys(keys.ROLE_KEYS),
        ),
        ".SH MARKERS\nA section and a service form the marker",
        f".PP\n.RS 4\n{_escape('# additional-<section>-<service>-server')}\n.RE\n.PP",
        "in haproxy.cfg. lbagent writes the server lines of that service above it, and nowhere else.",
        f".SH EXAMPLE\n.nf\n{_escape(ROLES_EXAMPLE)}.fi",
        _list_section("FILES", "", files),
        _list_section("EXIT STATUS", "", statuses),
        ".SH SEE ALSO\n\\fBlbagent\\fR(1), \\fBhaproxy\\fR(1)",
    ]
    return "\n".join(parts) + "\n"


def _describe_keys(table: tuple[keys.Key, ...]) -> dict[str, str]:
    """What each key means, its values and its default, by its name."""
    described = {}
    for key in table:
        # `right` is what the loader advises for an invalid value.
        values = str(getattr(key.kind, "right", "")).removeprefix("write ")
        if isinstance(key.kind, keys.Count):
            values = f"a number from 1 to {key.kind.most}"
        default = (
            "Required." if key.required else f"Default: {key.default}." if key.default is not None else "Optional."
        )
        # A value or a command comes first in some: these keep their case.
        meaning = key.meaning if re.match(r"[\w ]+: ", key.meaning) else f"{key.meaning[0].upper()}{key.meaning[1:]}"
        described[key.name] = f"{meaning}. Value: {values}. {default}"
    return described


def _list_section(heading: str, text: str, rows: Mapping[str, str]) -> str:
    """A section with a list of names and their meanings."""
    body = [f".TP\n\\fB{_escape(name)}\\fR\n{_escape(meaning)}" for name, meaning in rows.items()]
    return "\n".join([f".SH {heading}", *([_escape(text)] if text else []), *body])


def build_completions() -> dict[str, str]:
    """The completion scripts for bash and zsh, by path below the output folder."""
    command = arguments.build_parser()
    [verbs] = [one for one in command._actions if isinstance(one, argparse._SubParsersAction)]  # noqa: SLF001  # no public name
    # The global options are accepted after the command, and hidden in its help; shtab leaves out what is hidden.
    texts = {action.dest: action.help for action in command._actions}  # noqa: SLF001
    for parser in (command, *verbs.choices.values()):
        for action in parser._actions:  # noqa: SLF001
            if action.help is argparse.SUPPRESS:
                action.help = texts[action.dest]
            if action.dest == "roles":
                action.complete = shtab.FILE
            elif action.dest == "state_dir":
                action.complete = shtab.DIRECTORY
    return {
        "completion/lbagent.bash": shtab.complete(command, "bash"),
        "completion/_lbagent": _correct_zsh(shtab.complete(command, "zsh")),
    }


def _correct_zsh(script: str) -> str:
    """Return shtab's script for zsh with the nodes as a list that has no candidates, and an optional time of `--wait`.

    shtab's own list of several words, and an empty list of candidates, keep zsh from completing options.
    """
    script = re.sub(r'"\(\*\)(:.*:)"', r'"*\1( )"', script)
    return re.sub(r'("--wait\[.*\]):TIME:"', r'\1::TIME:( )"', script)


def list_files() -> dict[str, str]:
    """Every file that lbagent reads or writes by default, with what it holds."""
    paths = Paths(DEFAULT_STATE_DIR)
    properties = {name: one for name, one in vars(Paths).items() if isinstance(one, property)}
    state = {str(getattr(paths, name)): (one.__doc__ or "").strip() for name, one in properties.items()}
    return {DEFAULT_ROLES: "Roles and services, and where haproxy.cfg is.", **state}


def write_pages(folder: Path) -> None:
    """Write all pages below `folder`, and print their paths. Raises OSError."""
    schema = json.dumps(keys.build_schema(), indent=2) + "\n"
    man = {"man/lbagent.1": build_man_page(), "man/roles.yml.5": build_roles_page()}
    pages = {**man, "roles.schema.json": schema, **build_completions()}
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
