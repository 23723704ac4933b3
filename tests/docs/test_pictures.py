"""Pictures of README and pages exist, are drawn from their present source, and load nothing from another host."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from scenarios.pictures import show_screen

HERE = Path(__file__).resolve().parent.parent.parent
PICTURES = HERE / "docs" / "img"
PAGES = [HERE / "README.md", *sorted((HERE / "docs").rglob("*.md"))]
SOURCE = re.compile(r'(?:src|srcset)="([^"]+)"|!\[[^\]]*\]\(([^)]+)\)')


def list_used(page: Path) -> set[Path]:
    """The picture files that a page shows."""
    found = SOURCE.findall(page.read_text(encoding="utf-8"))
    return {(page.parent / (attribute or target).partition("#")[0]).resolve() for attribute, target in found}


def test_every_picture_that_a_page_shows_exists() -> None:
    assert [str(path) for page in PAGES for path in list_used(page) if not path.exists()] == []


def test_every_picture_is_shown() -> None:
    assert set(PICTURES.glob("*.svg")) - set().union(*map(list_used, PAGES)) == set()


@pytest.mark.parametrize("picture", sorted(PICTURES.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_is_an_svg_that_loads_nothing(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")

    root = ET.fromstring(text)

    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r"https?://(?!www\.w3\.org/)[^\s\"')]+|@import|<script", text) == []


@pytest.mark.parametrize("source", sorted(PICTURES.glob("*.mmd")), ids=lambda path: path.name)
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_diagram_is_drawn_from_its_present_source(source: Path, colours: str) -> None:
    drawn = (PICTURES / f"{source.stem}-{colours}.svg").read_text(encoding="utf-8")

    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert drawn.endswith(f"<!-- {source.name}, SHA-256 {digest} -->\n"), "run make pictures"


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("waiting\r\x1b[Kdone\r\n", "done\n"),
        ("lb01  done\r\n\\ waiting for lb02\r\n\x1b[1A\r\x1b[2Klb02  done\r\n", "lb01  done\nlb02  done\n"),
        ("\x1b[?25l/ a\r- a\r\x1b[1mb\x1b[0m\x1b[?25h", "\x1b[1mb\x1b[0m"),
    ],
)
def test_a_recording_shows_what_the_terminal_shows_at_the_end(output: str, shown: str) -> None:
    assert show_screen(output) == shown
