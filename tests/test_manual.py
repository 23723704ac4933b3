"""Help, man page and completions: all there is stands in them, and real shells and man readers take them."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from lbagent import commandline, completion, helptext, manpage, manual, parser
from lbagent.commandline import Argument, Command, Option
from lbagent.errors import LbagentError
from lbagent.host.paths import Paths

HERE = Path(__file__).parent.parent


def everything() -> list[str]:
    """Every verb, and every option of lbagent and of its verbs."""
    command = commandline.described(parser.build())
    options = [name for one in (command, *command.verbs) for option in one.options for name in option.names]
    return sorted({*options, *(verb.name for verb in command.verbs)})


def subject() -> argparse.ArgumentParser:
    """A command line with all that verbs to come may have."""
    made = argparse.ArgumentParser("lbagent", description="Keeps it in step.")
    made.add_argument("--roles", metavar="FILE", help="which role serves what")
    made.add_argument("--state-dir", metavar="DIR", help="the state: [all] of it's there")
    known = made.add_subparsers(metavar="VERB")
    pause = known.add_parser("pause", help="take a node out")
    pause.add_argument("node", metavar="NODE", help="its name")
    pause.add_argument("-f", "--for", metavar="TIME", help="how long, as in 2h; 100%% sure")
    pause.add_argument("--why", metavar="WHY", choices=["patches", "reboot"], help="the reason")
    load = known.add_parser("load", help="read a file")
    load.add_argument("file", metavar="FILE", nargs="?", help=".hidden ones, too")
    load.add_argument("--into", metavar="DIR", help="a folder with a \\ in it")
    level = known.add_parser("level", help="how much is said")
    level.add_argument("level", choices=["quiet", "loud"])
    return made


SUBJECT = commandline.described(subject())


# The command line as values


def test_a_parser_is_described_whatever_verbs_it_has() -> None:
    shown = Option(("-h", "--help"), "", "show this help message and exit")

    assert (
        Command(
            "lbagent",
            "Keeps it in step.",
            (
                shown,
                Option(("--roles",), "FILE", "which role serves what"),
                Option(("--state-dir",), "DIR", "the state: [all] of it's there"),
            ),
            (),
            (
                Command(
                    "pause",
                    "take a node out",
                    (
                        shown,
                        Option(("-f", "--for"), "TIME", "how long, as in 2h; 100% sure"),
                        Option(("--why",), "WHY", "the reason", ("patches", "reboot")),
                    ),
                    (Argument("NODE", "its name"),),
                ),
                Command(
                    "load",
                    "read a file",
                    (shown, Option(("--into",), "DIR", "a folder with a \\ in it")),
                    (Argument("FILE", ".hidden ones, too", optional=True),),
                ),
                Command("level", "how much is said", (shown,), (Argument("LEVEL", "", choices=("quiet", "loud")),)),
            ),
        )
        == SUBJECT
    )
    assert [one.usage for one in (SUBJECT, *SUBJECT.verbs)] == [
        "lbagent [--roles FILE] [--state-dir DIR] VERB ...",
        "pause [--for TIME] [--why WHY] NODE",
        "load [--into DIR] [FILE]",
        "level LEVEL",
    ]


@pytest.mark.parametrize("path", sorted(manual.pages()))
@pytest.mark.parametrize("word", everything())
def test_every_verb_and_option_stands_in_man_page_and_completions(path: str, word: str) -> None:
    text = re.sub(r"\\f.", "", manual.pages()[path].replace("\\-", "-"))

    assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)


def test_words_that_shells_would_read_as_something_else_are_none_of_ours() -> None:
    assert [word for word in everything() if not re.fullmatch(r"-{0,2}[a-z][a-z-]*", word)] == []


# --help


def helps() -> dict[str, argparse.ArgumentParser]:
    """Lbagent's parser and those of its verbs."""
    whole = parser.build()
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

    said = parser.build().format_help()

    table = said.partition("\nverbs:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (\S+)", table, re.MULTILINE) == [name for name in helps() if name]


def test_help_and_man_page_tell_every_exit_status() -> None:
    def kinds(of: type[LbagentError]) -> set[int]:
        return {of.exit_status}.union(*(kinds(kind) for kind in of.__subclasses__()))

    statuses = helptext.exit_statuses()

    assert set(statuses) == kinds(LbagentError) | {0, 3}
    assert all(re.search(rf"^  {status} +\w", parser.build().format_help(), re.MULTILINE) for status in statuses)
    assert all(f"\n\\fB{status}\\fR\n" in manual.pages()["man/lbagent.1"] for status in statuses)


@pytest.mark.parametrize("command", [command for command, _ in helptext.EXAMPLES])
def test_examples_are_command_lines_that_are_understood(command: str) -> None:
    words = shlex.split(command)
    words = words if words[0] == "lbagent" else shlex.split(words[-1])

    assert words[0] == "lbagent"
    assert parser.build().parse_args(words[1:]).verb


# The man page

FACTS = manpage.Facts("1.2.3", "2026-01-02", {0: "done"}, {"/etc/x": "a file"}, {"X": "a variable"}, [("lbagent", "x")])

needs_mandoc = pytest.mark.skipif(shutil.which("mandoc") is None, reason="no mandoc here")


def rendered(text: str) -> str:
    """The page as it is read at a terminal, without its emphases."""
    argv = ["mandoc", "-T", "utf8", "-O", "width=78"]
    shown = subprocess.run(argv, input=text, capture_output=True, text=True, check=True).stdout
    return re.sub(".\b", "", shown)


@needs_mandoc
@pytest.mark.parametrize("text", [manual.pages()["man/lbagent.1"], manpage.page(SUBJECT, FACTS)], ids=["real", "any"])
def test_nothing_is_wrong_with_the_man_page(text: str) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "style"], input=text, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
def test_groff_takes_the_man_page_too() -> None:
    argv = ["groff", "-man", "-ww", "-Tutf8", "-Kutf8"]
    text = manual.pages()["man/lbagent.1"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@needs_mandoc
def test_the_man_page_reads_like_this() -> None:
    shown = rendered(manpage.page(SUBJECT, FACTS))

    _, _, verbs = shown.partition("VERBS\n")
    verbs, _, _ = verbs.partition("EXIT STATUS\n")
    assert [line.rstrip() for line in verbs.splitlines() if line.strip() and "help" not in line] == [
        "   lbagent pause [--for TIME] [--why WHY] NODE",
        "       Take a node out.",
        "       NODE   its name",
        "       -f, --for TIME",
        "              how long, as in 2h; 100% sure",
        "       --why WHY",
        "              the reason",
        "   lbagent load [--into DIR] [FILE]",
        "       Read a file.",
        "       FILE   .hidden ones, too",
        "       --into DIR",
        "              a folder with a \\ in it",
        "   lbagent level LEVEL",
        "       How much is said.",
        "       LEVEL  LEVEL",
    ]


@needs_mandoc
def test_the_man_page_has_the_sections_that_people_look_for() -> None:
    shown = rendered(manual.pages()["man/lbagent.1"])

    assert re.findall(r"^([A-Z ]+)$", shown, re.MULTILINE) == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "VERBS", "EXIT STATUS", "FILES", "ENVIRONMENT", "EXAMPLES"),
        "SEE ALSO",
    ]


@needs_mandoc
def test_the_man_page_names_every_file_of_the_state_directory() -> None:
    shown = rendered(manual.pages()["man/lbagent.1"])
    known = [name for name, one in vars(Paths).items() if isinstance(one, property)]

    paths = Paths("/var/lib/lbagent")
    assert [name for name in known if not re.search(rf"{getattr(paths, name)}\s", shown)] == []


def test_the_man_page_has_the_date_of_its_version() -> None:
    head = (HERE / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n## ")[2].partition("\n")[0]
    said = head.rpartition(" ")[2]

    assert said in ("Unreleased", manual.RELEASED)


# bash


def completed(folder: Path, line: str, command: Command = SUBJECT) -> list[str]:
    """What a real bash, in `folder`, would offer at the end of a line; words are cut as readline cuts them."""
    script = folder.parent / "lbagent.bash"
    script.write_text(completion.bash(command))
    words = [piece for word in line.split(" ") for piece in re.split("(=)", word)]
    words = [word for at, word in enumerate(words) if word or at == len(words) - 1]
    asked = (
        f"set -eu; source {script}; complete -p lbagent >/dev/null; set +e\n"
        f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; _lbagent\n"
        '[ ${#COMPREPLY[@]} = 0 ] || printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return sorted(done.stdout.splitlines())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `a b.yml` and `conf/` in it."""
    here = tmp_path / "here"
    (here / "conf").mkdir(parents=True)
    (here / "a b.yml").touch()
    return here


OFFERS = {
    "lbagent ": ["--help", "--roles", "--state-dir", "-h", "level", "load", "pause"],
    "lbagent p": ["pause"],
    "lbagent --st": ["--state-dir"],
    "lbagent --roles ": ["a b.yml", "conf"],
    "lbagent --roles a": ["a b.yml"],
    "lbagent --roles=": ["a b.yml", "conf"],
    "lbagent --roles=a": ["a b.yml"],
    "lbagent --state-dir ": ["conf"],
    "lbagent --roles x l": ["level", "load"],
    "lbagent --roles=x --state-dir y l": ["level", "load"],
    "lbagent pause --": ["--for", "--help", "--why"],
    "lbagent pause --for ": [],
    "lbagent pause --why ": ["patches", "reboot"],
    "lbagent pause --why=re": ["reboot"],
    "lbagent --roles x pause --f": ["--for"],
    "lbagent load ": ["a b.yml", "conf"],
    "lbagent load -": ["--help", "--into", "-h"],
    "lbagent load --into ": ["conf"],
    "lbagent level lo": ["loud"],
    "lbagent nothing ": [],
}


@pytest.mark.parametrize("line", OFFERS)
def test_bash_offers_what_can_stand_there(folder: Path, line: str) -> None:
    assert completed(folder, line) == OFFERS[line]


def test_bash_completes_the_real_command_line(folder: Path) -> None:
    command = commandline.described(parser.build())

    assert completed(folder, "lbagent apply --no", command) == ["--no-reload"]
    assert set(completed(folder, "lbagent ", command)) >= {verb.name for verb in command.verbs}


# zsh

needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")

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
    "lbagent --st": "lbagent --state-dir=",
    "lbagent --roles a": "lbagent --roles a\\ b.yml ",
    "lbagent --roles=a": "lbagent --roles=a\\ b.yml ",
    "lbagent --state-dir ": "lbagent --state-dir conf/",
    "lbagent --roles x --state-dir y le": "lbagent --roles x --state-dir y level ",
    "lbagent pause --fo": "lbagent pause --for=",
    "lbagent pause --ro": "lbagent pause --ro",
    "lbagent pause --why re": "lbagent pause --why reboot ",
    "lbagent pause -f 2h --wh": "lbagent pause -f 2h --why=",
    "lbagent load a": "lbagent load a\\ b.yml ",
    "lbagent load --into ": "lbagent load --into conf/",
    "lbagent level lo": "lbagent level loud ",
    "lbagent nothing ": "lbagent nothing ",
}


@needs_zsh
def test_zsh_completes_what_can_stand_there(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "_lbagent").write_text(completion.zsh(SUBJECT))
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


@needs_zsh
@pytest.mark.parametrize("command", [SUBJECT, commandline.described(parser.build())], ids=["any", "real"])
def test_zsh_can_read_the_completion(tmp_path: Path, command: Command) -> None:
    script = tmp_path / "_lbagent"
    script.write_text(completion.zsh(command))

    done = subprocess.run(["zsh", "-n", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


# The files


def test_the_pages_are_written_where_they_belong(tmp_path: Path) -> None:
    manual.main(str(tmp_path / "build"))

    found = {
        str(path.relative_to(tmp_path / "build")): path.read_text() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert found == {**manual.pages(), "roles.schema.json": manual.schema()}
    assert set(manual.pages()) == {"man/lbagent.1", "completion/lbagent.bash", "completion/_lbagent"}
