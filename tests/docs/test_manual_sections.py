"""Each section of HAProxy's manuals that the code or a page cites exists, with its title, on every release here."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).resolve().parent.parent.parent
CITATION = re.compile(r"(configuration|management) manual, sections? ([^.]*(?:\.[0-9][^.]*)*)")
SECTION = re.compile(r'(\b[0-9]{1,2}(?:\.[0-9]{1,2})*)(?: "([^"]+)")?')


class Citation(NamedTuple):
    """One section of a manual, as the code or a page names it."""

    place: str
    manual: str
    number: str
    title: str


def list_citations() -> list[Citation]:
    """Every cited section, with its title where the text has it."""
    found = []
    for path in [*(HERE / "lbagent").rglob("*.py"), *(HERE / "docs").rglob("*.md"), HERE / "README.md"]:
        text = re.sub(r"\s+#?\s*", " ", path.read_text(encoding="utf-8"))
        for manual, sections in CITATION.findall(text):
            for number, title in SECTION.findall(sections):
                found.append(Citation(str(path.relative_to(HERE)), manual, number, title))
    return found


def list_manuals(name: str) -> list[Path]:
    """The manual of Debian's HAProxy, and those of the releases that `.ci/haproxy` has fetched."""
    folders = [
        Path("/usr/share/doc/haproxy"),
        *(Path.home() / ".cache/lbagent/haproxy").glob("*/usr/share/doc/haproxy"),
    ]
    return [path for folder in folders if (path := folder / f"{name}.txt.gz").exists()]


def test_the_code_cites_its_rules() -> None:
    numbers = {(citation.manual, citation.number) for citation in list_citations()}

    assert numbers >= {("configuration", "2.2"), ("configuration", "5.2"), ("management", "9.3"), ("management", "9.4")}


@pytest.mark.parametrize("citation", list_citations(), ids=lambda one: f"{one.place}-{one.manual}-{one.number}")
def test_a_cited_section_is_in_the_manual(citation: Citation) -> None:
    manuals = list_manuals(citation.manual)
    if not manuals:
        pytest.skip("HAProxy's manuals are not installed here")

    heading = rf"^{re.escape(citation.number)}\. +{re.escape(citation.title)}"
    without = [
        str(path)
        for path in manuals
        if not re.search(heading, gzip.decompress(path.read_bytes()).decode("utf-8", "replace"), re.MULTILINE)
    ]

    assert without == []
