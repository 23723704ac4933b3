"""The sdist and the wheel: a package index accepts both, and both have the code, the documentation and its pictures."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import lbagent

HERE = Path(__file__).resolve().parent.parent.parent
VERSION = lbagent.__version__


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(HERE)]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    return folder


def list_wheel(dist: Path) -> set[str]:
    """Return the paths in the wheel."""
    with zipfile.ZipFile(dist / f"lbagent-{VERSION}-py3-none-any.whl") as wheel:
        return set(wheel.namelist())


def list_sdist(dist: Path) -> set[str]:
    """Return the paths in the sdist, below its top folder."""
    with tarfile.open(dist / f"lbagent-{VERSION}.tar.gz") as sdist:
        return {name.partition("/")[2] for name in sdist.getnames()}


def read_metadata(dist: Path) -> Message:
    """Return the metadata of the wheel."""
    with zipfile.ZipFile(dist / f"lbagent-{VERSION}-py3-none-any.whl") as wheel:
        return Parser().parsestr(wheel.read(f"lbagent-{VERSION}.dist-info/METADATA").decode())


def test_twine_accepts_both(dist: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(dist.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout.count("PASSED")) == (0, 2), done.stdout + done.stderr


def test_the_wheel_has_the_whole_package_and_the_documentation(dist: Path) -> None:
    shipped = list_wheel(dist)

    code = {str(path.relative_to(HERE)) for path in (HERE / "lbagent").rglob("*.py")}
    pages = {str(path.relative_to(HERE)) for path in (HERE / "docs").rglob("*") if path.is_file()}
    assert code - shipped == set()
    assert {f"lbagent-{VERSION}.data/data/share/doc/lbagent/{page}" for page in pages} - shipped == set()
    assert {"lbagent/py.typed", "lbagent/roles.schema.json"} <= shipped
    assert f"lbagent-{VERSION}.data/scripts/lbagent" in shipped


def test_the_sdist_has_what_builds_tests_and_documents_it(dist: Path) -> None:
    shipped = list_sdist(dist)

    files = {"pyproject.toml", "Makefile", "README.md", "LICENSE", "CHANGELOG.md", "mkdocs.yml", "docs/index.md"}
    assert files - shipped == set()
    assert {name.partition("/")[0] for name in shipped} >= {
        "lbagent",
        "tests",
        "docs",
        "examples",
        "windows",
        "systemd",
    }


def test_the_metadata_names_licence_versions_and_links(dist: Path) -> None:
    metadata = read_metadata(dist)

    assert (metadata["Version"], metadata["License-Expression"]) == (VERSION, "MIT")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_all("Project-URL") == ["HAProxy, https://www.haproxy.org", "Serf, https://www.serf.io"]
    pythons = [one.rpartition(" ")[2] for one in metadata.get_all("Classifier", []) if ":: 3." in one]
    assert pythons == ["3.11", "3.12", "3.13", "3.14"]
