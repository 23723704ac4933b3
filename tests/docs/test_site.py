"""The site is built without a warning, has every page, and can be read and searched without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent.parent
LOADED = re.compile(r'(?:<(?:script|img|iframe|source)[^>]* src(?:set)?|<link[^>]* href)="([^"#?]+)')
"""What a page loads; links that a reader follows are others."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=HERE, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    pages = {path.relative_to(HERE / "docs").with_suffix(".html") for path in (HERE / "docs").rglob("*.md")}

    assert {page for page in pages if not (site / page).exists()} == set()


def test_a_page_loads_only_files_of_the_site(site: Path) -> None:
    # 404.html is for web servers: its paths begin at the root.
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    loaded = [(page, target) for page in pages for target in LOADED.findall(page.read_text(encoding="utf-8"))]

    assert len(loaded) > len(pages)
    assert [(str(page), target) for page, target in loaded if not (page.parent / target).is_file()] == []


def test_the_search_knows_every_page_without_a_network(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8").removeprefix("var __index = ")
    found = {entry["location"].partition("#")[0] for entry in json.loads(index)["docs"]}
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html") if path.name != "404.html"}

    assert pages - found == set()
    assert "js/iframe-worker.js" in (site / "index.html").read_text(encoding="utf-8")


def test_a_diagram_follows_the_colours_of_the_site(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")

    shown = re.findall(r'src="(img/architecture-[a-z]+\.svg#only-[a-z]+)"', page)
    assert shown == ["img/architecture-light.svg#only-light", "img/architecture-dark.svg#only-dark"]
