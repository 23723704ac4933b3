"""roles.schema.json has the same source as the loader, and accepts and refuses the same files where a schema can."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lbagent.errors import RolesRefused
from lbagent.roles import loader
from lbagent.roles.keys import build_schema, format_schema
from tests.roles.test_mistakes import BROKEN
from tests.roles.test_roles_as_json import TEXTS

HERE = Path(__file__).parent.parent.parent
SHIPPED = HERE / "lbagent" / "roles.schema.json"

BEYOND = (
    "is not declared",
    "duplicate key",
    "could mean",
    "is not a network",
    "did you mean networks",
    "did you mean on_failed",
    "together with services",
)
"""What takes a comparison of several values, or a reading of one, that no schema can make."""

SPELLED = ("0x50", "80.0", "+5")
"""Numbers to every other reader of YAML."""


def valid(text: str) -> bool:
    """Whether an editor would take the text."""
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return jsonschema.Draft7Validator(build_schema()).is_valid(json.loads(json.dumps(content, default=str)))


def test_the_shipped_schema_is_that_of_the_loader() -> None:
    assert SHIPPED.read_text(encoding="utf-8") == format_schema()


def test_the_module_prints_the_schema() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lbagent.roles.keys"], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == format_schema()


def test_the_schema_is_a_valid_json_schema() -> None:
    jsonschema.Draft7Validator.check_schema(build_schema())


@pytest.mark.parametrize("text", [*TEXTS, (HERE / "roles.yml").read_text(encoding="utf-8")])
def test_files_that_load_match_the_schema(text: str) -> None:
    assert valid(text)


@pytest.mark.parametrize("path", sorted(HERE.glob("examples/*/roles.yml")), ids=lambda path: path.parent.name)
def test_the_examples_match_the_schema(path: Path) -> None:
    assert valid(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        text
        for text, said in BROKEN
        if not all(any(words in one for words in BEYOND) for one in said) and not any(one in text for one in SPELLED)
    ],
)
def test_files_that_are_refused_do_not_match_the_schema(text: str) -> None:
    with pytest.raises(RolesRefused):
        loader.parse_roles(text.encode(), "roles.yml")

    assert not valid(text)


def test_the_schema_finds_most_mistakes() -> None:
    assert sum(not valid(text) for text, _ in BROKEN) / len(BROKEN) > 0.85
