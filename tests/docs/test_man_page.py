"""--help, man page and completions list every verb and option; real shells and man readers take them."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lbagent import arguments
from lbagent.errors import LbagentError
from lbagent.roles import loader
from lbagent.roles.keys import HAPROXY_KEYS, ROLE_KEYS, SERVICE_KEYS
from lbagent.roles.model import PLACEHOLDERS
from lbagent.settings import Paths

HERE = Path(__file__).parent.parent.parent
ALL_KEYS = (*HAPROXY_KEYS, *SERVICE_KEYS, *ROLE_KEYS)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the generated pages."""
    folder = tmp_path_factory.mktemp("pages")
    subprocess.run([sys.executable, HERE / "packaging/pages.py", folder], check=True, capture_output=True, cwd=HERE)
    return folder


# --help


def helps() -> dict[str, argparse.ArgumentParser]:
    """Lbagent's parser and those of its verbs."""
    whole = arguments.build_parser()
    [verbs] = [one for one in whole._actions if isinstance(one, argparse._SubParsersAction)]
    return {"": whole, **verbs.choices}


@pytest.mark.parametrize("verb", sorted(helps()))
@pytest.mark.parametrize("columns", [80, 200])
def test_help_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch, verb: str, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))

    said = helps()[verb].format_help()

    assert [line for line in said.splitlines() if len(line) > 80] == []


def test_help_lists_each_verb_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    said = arguments.build_parser().format_help()

    table = said.partition("\ncommands:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (\S+)", table, re.MULTILINE) == [name for name in helps() if name]


def test_help_and_man_page_tell_every_exit_status() -> None:
    def kinds(of: type[LbagentError]) -> set[int]:
        return {of.exit_status}.union(*(kinds(kind) for kind in of.__subclasses__()))

    statuses = arguments.list_exit_statuses()

    assert set(statuses) == kinds(LbagentError) | {0, 3, 130}
    assert all(
        re.search(rf"^  {status} +\w", arguments.build_parser().format_help(), re.MULTILINE) for status in statuses
    )


@pytest.mark.parametrize("command", [command for command, _ in arguments.EXAMPLES])
def test_examples_are_command_lines_that_are_understood(command: str) -> None:
    words = shlex.split(command)
    words = words if words[0] == "lbagent" else shlex.split(words[-1])

    assert words[0] == "lbagent"
    assert arguments.build_parser().parse_args(words[1:]).verb


# The man page

needs_mandoc = pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")


def list_words() -> list[str]:
    """Every verb, and every option of lbagent and of its verbs, except --help."""
    found = {verb for verb in helps() if verb}
    for command in helps().values():
        found |= {name for action in command._actions for name in action.option_strings}
    return sorted(found - {"-h", "--help"})


def render(page: Path) -> str:
    """The man page as it is read at a terminal, without bold and underline."""
    argv = ["mandoc", "-T", "utf8", "-O", "width=78", str(page)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return re.sub(".\b", "", shown)


@needs_mandoc
@pytest.mark.parametrize("page", ["lbagent.1", "roles.yml.5"])
def test_mandoc_finds_nothing_wrong_with_a_man_page(pages: Path, page: str) -> None:
    argv = ["mandoc", "-T", "lint", "-W", "warning", str(pages / "man" / page)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", ["man/lbagent.1", "completion/lbagent.bash", "completion/_lbagent"])
def test_every_verb_and_option_is_in_man_page_and_completions(pages: Path, path: str) -> None:
    text = re.sub(r"\\f.", "", (pages / path).read_text(encoding="utf-8").replace("\\-", "-"))

    assert [word for word in list_words() if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)] == []


@needs_mandoc
def test_the_man_page_has_every_exit_status_and_file(pages: Path) -> None:
    shown = render(pages / "man/lbagent.1")

    paths = Paths("/var/lib/lbagent")
    files = [getattr(paths, name) for name, one in vars(Paths).items() if isinstance(one, property)]
    assert [path for path in files if not re.search(rf"{path}\s", shown)] == []
    assert [
        status for status in arguments.list_exit_statuses() if not re.search(rf"^ +{status} ", shown, re.MULTILINE)
    ] == []
    assert re.findall(r"^([A-Z ]+)$", shown, re.MULTILINE) == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS"),
        *("EXIT STATUS", "FILES", "ENVIRONMENT", "EXAMPLES", "SEE ALSO"),
    ]


@needs_mandoc
def test_the_page_of_roles_yml_has_every_key_with_its_default(pages: Path) -> None:
    shown = " ".join(render(pages / "man/roles.yml.5").split())

    assert [key.name for key in ALL_KEYS if f" {key.name} " not in shown] == []
    defaults = [str(key.default) for key in ALL_KEYS if key.default is not None]
    assert [default for default in defaults if f"Default: {default}." not in shown] == []
    assert [name for name in re.findall(r"\{[^}]+\}", PLACEHOLDERS) if name not in shown] == []


@needs_mandoc
def test_the_example_of_the_page_of_roles_yml_loads(pages: Path) -> None:
    example = render(pages / "man/roles.yml.5").partition("EXAMPLE\n")[2].partition("FILES\n")[0]

    loader.parse_roles(textwrap.dedent(example).encode(), "roles.yml")


def test_the_man_page_has_the_date_of_its_version(pages: Path) -> None:
    [date] = re.findall(r'^\.TH .*?"?(\d{4}-\d\d-\d\d)', (pages / "man/lbagent.1").read_text(), re.MULTILINE)
    head = (HERE / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n## ")[2].partition("\n")[0]

    assert head.rpartition(" ")[2] in ("Unreleased", date)


# The shells


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `a b.yml` and `conf/` in it."""
    here = tmp_path / "here"
    (here / "conf").mkdir(parents=True)
    (here / "a b.yml").touch()
    return here


def complete_in_bash(script: Path, folder: Path, line: str) -> list[str]:
    """What a real bash, in `folder`, offers at the end of a line."""
    words = line.split(" ")
    asked = (
        f"source {script}; complete -p lbagent >/dev/null || exit 1\n"
        f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}\n"
        f"COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}\n"
        "$(complete -p lbagent | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], cwd=folder, capture_output=True, text=True, check=True, timeout=30)
    return sorted(done.stdout.split("\n")[:-1])


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("lbagent pau", ["pause"]),
        ("lbagent apply --no", ["--no-reload"]),
        ("lbagent --st", ["--state-dir"]),
        ("lbagent --roles a", ["a b.yml"]),
        ("lbagent --state-dir c", ["conf"]),
        ("lbagent pause --wa", ["--wait"]),
        ("lbagent pause --ro", ["--roles"]),
        ("lbagent plan --roles a", ["a b.yml"]),
        ("lbagent status --state-dir c", ["conf"]),
    ],
)
def test_bash_completes(pages: Path, folder: Path, line: str, offers: list[str]) -> None:
    assert complete_in_bash(pages / "completion/lbagent.bash", folder, line) == offers


ZSHRC = """
fpath=({folder} $fpath)
autoload -Uz compinit && compinit -u -D
setopt no_auto_menu no_list_beep
zle-line-init() {{
    for line in {lines}; do
        BUFFER=$line CURSOR=$#line
        zle complete-word
        print -r -- "$BUFFER" >> {folder}/completed
    done
    exit
}}
zle -N zle-line-init
"""
"""An interactive zsh that completes these lines instead of asking for one, and ends."""

TYPED = {
    "lbagent pau": "lbagent pause ",
    "lbagent --roles a": "lbagent --roles a\\ b.yml ",
    "lbagent --state-dir ": "lbagent --state-dir conf/",
    "lbagent --roles x --state-dir y appl": "lbagent --roles x --state-dir y apply ",
    "lbagent apply --no": "lbagent apply --no-reload ",
    "lbagent plan --roles a": "lbagent plan --roles a\\ b.yml ",
    "lbagent pause --verb": "lbagent pause --verbose ",
    "lbagent pause web01 --for 2h --rea": "lbagent pause web01 --for 2h --reason ",
    "lbagent pause web01 --wait --ver": "lbagent pause web01 --wait --verbose ",
}


@needs_zsh
def test_zsh_completes(tmp_path: Path, pages: Path, folder: Path) -> None:
    shutil.copy(pages / "completion/_lbagent", tmp_path)
    (tmp_path / ".zshrc").write_text(ZSHRC.format(folder=tmp_path, lines=" ".join(map(shlex.quote, TYPED))))
    ours, its = os.openpty()
    environ = {"ZDOTDIR": str(tmp_path), "PATH": os.environ["PATH"], "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    try:
        subprocess.run(
            ["zsh", "-d", "-i"], stdin=its, stdout=its, stderr=its, cwd=folder, env=environ, start_new_session=True,
            timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(its)
        os.close(ours)

    completed = (tmp_path / "completed").read_text().splitlines()
    assert dict(zip(TYPED, completed, strict=True)) == TYPED
