"""The reference pages hold exactly the commands, options, keys, files, variables and exit statuses of the code."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from lbagent import arguments
from lbagent.checks.finding import Kind
from lbagent.errors import LbagentError
from lbagent.roles.keys import HAPROXY_KEYS, ROLE_KEYS, SERVICE_KEYS, Key
from lbagent.roles.model import PLACEHOLDERS
from lbagent.settings import Paths
from lbagent.status.nodes import State

HERE = Path(__file__).resolve().parent.parent.parent
REFERENCE = HERE / "docs" / "reference"

READ_BY_LIBRARIES = {"TERM", "SSL_CERT_FILE"}
"""Variables that rich and OpenSSL read."""
OF_EVENTS = {"SERF_USER_EVENT", "SERF_USER_LTIME", "SERF_QUERY_NAME", "SERF_QUERY_LTIME"}
"""Variables whose names the code puts together."""
INTERNAL = {"HAPROXY_MWORKER_WAIT_ONLY", "HAPROXY_PROCESSES", "HAPROXY_MASTER_CLI", "WATCHDOG_PID", "PATH"}
"""Variables of other processes, and those that say nothing to an operator."""


def read_page(name: str) -> str:
    """The text of a reference page."""
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def list_sections(page: str) -> dict[str, str]:
    """The text below each second-level heading."""
    parts = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def list_verbs() -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb."""
    [verbs] = [one for one in arguments.build_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(verbs.choices)


def find_verb_section(verb: str) -> str:
    """The section of a verb in the page of commands; a section may be that of several verbs."""
    [text] = [text for title, text in list_sections(read_page("commands")).items() if verb in title.split(", ")]
    return text


def list_own_options(verb: str) -> set[str]:
    """The options of a verb that it has beside the global ones."""
    shared = {name for action in arguments.build_parser()._actions for name in action.option_strings}
    return {name for action in list_verbs()[verb]._actions for name in action.option_strings} - shared


@pytest.mark.parametrize("verb", list_verbs())
def test_the_section_of_a_verb_has_its_options_and_no_other(verb: str) -> None:
    usage = re.findall(rf"`lbagent {verb}( [^`]*)?`", find_verb_section(verb))
    named = set(re.findall(r"--[a-z-]+", " ".join(usage)))

    assert named == {option for option in list_own_options(verb) if option.startswith("--")}


def test_every_section_of_the_page_of_commands_is_a_verb() -> None:
    titles = [verb for title in list_sections(read_page("commands")) for verb in title.split(", ")]

    assert sorted(titles) == sorted(list_verbs())


def list_statuses(kind: type[LbagentError]) -> set[int]:
    """The exit statuses of an error and of all its kinds."""
    return {kind.exit_status}.union(*(list_statuses(below) for below in kind.__subclasses__()))


def test_the_table_of_exit_statuses_has_each_status_and_no_other() -> None:
    rows = {int(status) for status in re.findall(r"^\| \*\*(\d+)\*\* \|", read_page("exit-statuses"), re.MULTILINE)}

    # 3 is the verdict of a run whose plan is blocked; 130 is SIGINT's.
    assert rows == list_statuses(LbagentError) | {0, 3, 130}


@pytest.mark.parametrize(
    ("section", "keys"), [("haproxy", HAPROXY_KEYS), ("services", SERVICE_KEYS), ("roles", ROLE_KEYS)]
)
def test_the_tables_of_roles_yml_have_each_key_with_its_default_and_no_other(
    section: str, keys: tuple[Key, ...]
) -> None:
    text = list_sections(read_page("roles-yml"))[section]
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]*(?:\\\|[^|]*)*) \|", text, re.MULTILINE))

    assert sorted(rows) == sorted(key.name for key in keys)
    assert {key.name: rows[key.name].strip("` ") for key in keys if key.default is not None} == {
        key.name: str(key.default) for key in keys if key.default is not None
    }


def test_the_page_of_roles_yml_has_each_placeholder() -> None:
    page = read_page("roles-yml").replace("\\|", "|")

    assert [name for name in re.findall(r"\{[^}]+\}", PLACEHOLDERS) if f"`{name}`" not in page] == []


def test_the_page_of_files_has_each_file_of_the_state_directory() -> None:
    paths = Paths("/state")
    names = {str(getattr(paths, name)) for name, one in vars(Paths).items() if isinstance(one, property)}
    page = read_page("files")

    assert sorted(name for name in names if f"`{name.removeprefix('/state/')}" not in page) == []


def list_read_variables() -> set[str]:
    """The environment variables that the code reads."""
    pattern = re.compile(r"""environ(?:\.get\(|\[)b?"([A-Z_]+)"|b?"([A-Z_]+)" (?:not )?in [a-z_.]*environ""")
    texts = [path.read_text(encoding="utf-8") for path in (HERE / "lbagent").rglob("*.py")]
    return {one or other for text in texts for one, other in pattern.findall(text)} - {"SERF_"}


def test_the_page_of_the_environment_has_each_variable_and_no_other() -> None:
    page = read_page("environment")
    documented = {
        name for row in re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE) for name in re.findall(r"[A-Z_]{3,}", row)
    }
    windows = {"LBAGENT_LB_ROLE"}
    assert "LBAGENT_LB_ROLE" in (HERE / "windows" / "common.bat").read_text(encoding="utf-8")

    assert documented == (list_read_variables() | READ_BY_LIBRARIES | OF_EVENTS | windows) - INTERNAL


def test_the_page_of_status_has_each_state_and_no_other() -> None:
    text = list_sections(read_page("status"))["The states"]

    assert sorted(re.findall(r"^\| `([a-z' ]+)` \|", text, re.MULTILINE)) == sorted(State)


def test_states_that_other_pages_name_are_states() -> None:
    pages = [path for path in (HERE / "docs").rglob("*.md") if path.name != "status.md"]
    named = {
        (path.name, state)
        for path in pages
        for state in re.findall(r"`lbagent status`(?::| shows) `([a-z' ]+)`", path.read_text(encoding="utf-8"))
    }

    assert len(named) > 3
    assert {(name, state) for name, state in named if state not in set(State)} == set()


def test_kinds_of_findings_that_other_pages_name_are_kinds() -> None:
    rows = [
        row
        for path in (HERE / "docs").rglob("*.md")
        for row in re.findall(r"`lbagent check`:((?: `[a-z-]+`,?)+)", path.read_text(encoding="utf-8"))
    ]

    assert rows
    assert {kind for row in rows for kind in re.findall(r"`([a-z-]+)`", row)} - set(Kind) == set()
