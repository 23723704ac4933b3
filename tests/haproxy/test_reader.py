"""Words, variables, conditions, sections and servers of haproxy.cfg are read as HAProxy reads them."""

from __future__ import annotations

import csv
import os
import random
import re
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbagent.errors import Refused
from lbagent.haproxy import config as haproxy_config
from lbagent.haproxy.config import Document
from lbagent.haproxy.config_files import build_document
from lbagent.haproxy.reader import Environment, evaluate_condition, split_words
from lbagent.state.files import Target
from tests.helpers.builders import member, membership_of, parse_roles_text, plan_for
from tests.helpers.real_programs import binaries, wait_until

ENVIRON = {"A": "aa", "E": "", "S": "x  y", "PATH": os.environ.get("PATH", "/usr/bin")}
PIECES = (
    *(
        "a",
        "b",
        " ",
        "  ",
        "\t",
        '"',
        "'",
        "\\",
        "#",
        "$",
        "$A",
        "${A}",
        "${A-d}",
        "${N-d e}",
        "${N-}",
        "$N",
        "${S[*]}",
    ),
    *(
        "${S}",
        "$E",
        "x41",
        "\\x41",
        "\\n",
        "\\t",
        "\\ ",
        '\\"',
        "\\'",
        "\\#",
        "\\$",
        "{",
        "}",
        "-",
        "[*]",
        "é",
        "\v",
        "\f",
    ),
    *("\\\t", "\\\\", "/", ".", "\x1c", "\xa0", '"${A}"', '"$A"', "]", "\u2003", "\x85"),
)
ROUNDS = int(os.environ.get("LBAGENT_TEXTS", "40"))

real = pytest.mark.real


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def binary(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def said(binary: Path, text: str) -> tuple[int, str]:
    """Return exit status and output of `haproxy -c` for a text."""
    with tempfile.NamedTemporaryFile(suffix=".cfg") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        ended = subprocess.run(
            [binary, "-c", "-f", file.name], env=ENVIRON, capture_output=True, check=False, timeout=60
        )
        return ended.returncode, ended.stderr.decode("utf-8", "surrogateescape").replace(file.name, "CFG")


@real
def test_lines_are_split_into_words_as_haproxy_does(binary: Path) -> None:
    rng = random.Random(12)
    cases = ["".join(rng.choices(PIECES, k=rng.randint(1, 9))) for _ in range(3000)]
    found = [(case, split_words(f".notice {case}", Environment(ENVIRON))) for case in cases]
    sure = [(case, words) for case, words in found if words.sure]

    _, told = said(binary, "".join(f".notice {case}\n.notice END\n" for case, _ in sure))

    first = dict(re.findall(r"parsing \[CFG:(\d+)\]: '(.*?)'\.?\n(?=\[)", told, re.DOTALL))
    second = dict(re.findall(r"parsing \[CFG:(\d+)\]: Unexpected argument '(.*?)' for", told, re.DOTALL))
    wrong = []
    for number, (case, (words, _)) in enumerate(sure):
        at = str(2 * number + 1)
        expected = words[1:3][-1] if len(words) > 1 else None
        got = second.get(at) if len(words) > 2 else first.get(at)  # the third word is refused
        if got != expected and expected:
            wrong.append((case, expected, got))
    assert len(sure) > 2000
    assert wrong == []


@real
def test_an_uncertain_line_is_rejected_by_haproxy_or_has_no_words(binary: Path) -> None:
    rng = random.Random(13)
    cases = ["".join(rng.choices(PIECES, k=rng.randint(1, 9))) for _ in range(300)]
    doubtful = [case for case in cases if not split_words(f".notice {case}", Environment(ENVIRON)).sure]

    taken = [case for case in doubtful if said(binary, f".notice {case}\n")[0] == 0]

    assert len(doubtful) > 20
    assert [case for case in taken if "[*]" not in case] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("defaults#mine", ["defaults"]),
        ("defaults# ours", ["defaults"]),
        ("  \"backend\"\t'b'\r", ["backend", "b"]),
        ('stats socket "/run/x y" level admin', ["stats", "socket", "/run/x y", "level", "admin"]),
        (r"server a\ b 1.2.3.4:80", ["server", "a b", "1.2.3.4:80"]),
        (r"bind /a\#b", ["bind", "/a#b"]),
        ('a "" b', ["a"]),
        ('"" b', []),
        ("a\rb", ["a"]),
        ("a\u2003b\xa0c\x85d\x1ce", ["a\u2003b\xa0c\x85d\x1ce"]),
        ("[scope]", []),
        ("# backend b", []),
        ("", []),
        ("a '$HOME ${X}' $Y", ["a", "$HOME ${X}", "$Y"]),
        ('a "\\$A" "$A"', ["a", "$A", "aa"]),
        ('a "${S}" "${S[*]}"', ["a", "x  y", "x", "y"]),
        ('a "${N-de fault}" "${E-no}"x', ["a", "de fault", "x"]),
        (" ".join(["a"] * 64), ["a"] * 64),
    ],
)
def test_lines_are_split_into_these_words(line: str, words: list[str]) -> None:
    assert split_words(line, Environment(ENVIRON)) == (words, True)


@pytest.mark.parametrize(
    "line",
    ['a "b', "a 'b", 'a "$1"', 'a "${A', 'a "${A[1]}"', r"a \xg1", 'a "$"', " ".join(["a"] * 65), 'a "${HAPROXY_X}"'],
)
def test_lines_with_uncertain_words_are_marked(line: str) -> None:
    assert not split_words(line, Environment(ENVIRON)).sure


def test_an_unknown_variable_stays_as_written() -> None:
    assert split_words('a "$A-${B}" "${C[*]}" "${D-d}"') == (["a", "$A-${B}", "${C[*]}", "${D-d}"], False)


CONDITIONS = (
    *(
        "",
        "0",
        "1",
        "00",
        "-1",
        "0x0",
        "!0",
        "! 0",
        "!!1",
        "(1)",
        "( 0 )",
        "1 && 0",
        "0||1",
        "0 || 1 && 0",
        "!(0 || 1)",
    ),
    *("defined(A)", "!defined(N)", "defined( A )", "defined(A) && defined(N)", "streq(a,b)", "streq(a a,a a)", '"$E"'),
    *(
        'streq("$N",)',
        "strneq(a,b)",
        '"1"',
        "'0' # c",
        '"$A"',
        "1x",
        "x",
        "0 ||",
        "1 1",
        "defined",
        "defined()",
        "1 &&",
    ),
    *("feature(THREAD)", "version_atleast(1.8)", "feature(THREAD) || 1", "feature(THREAD) && 0", "(1", "1)", "!", "&&"),
    *("version_atleast(2.6-dev1)", "version_before(3.1)", "feature(NO_SUCH)", "!feature(THREAD)", "feature( THREAD )"),
    *("streq(a_b+c@d=e~f,a_b+c@d=e~f)", "strstr(abc,b)", "strstr(b,abc)", "strstr(abc,)", 'strstr("$A",a)'),
    *('streq("$A",aa)', "streq(a,a) || streq(a,b)", "defined(A)x", "0&&feature(X)", "1||feature(X)"),
)


def said_of_condition(binary: Path, condition: str) -> bool | None:
    status = subprocess.run([binary, "-cc", condition], capture_output=True, check=False).returncode
    return {0: True, 1: False}.get(status)


@real
def test_conditions_are_evaluated_as_haproxy_does(binary: Path) -> None:
    environment = Environment(ENVIRON, lambda predicate: said_of_condition(binary, predicate))
    certain = 0
    for condition in CONDITIONS:
        words = split_words(f".if {condition}", environment)
        value = evaluate_condition(" ".join(words.words[1:]), environment) if words.sure else None
        status, told = said(binary, f".if {condition}\n.notice YES\n.else\n.notice NO\n.endif\n")
        if "strstr" in condition and status == 1:
            continue  # unknown to 2.6
        if value is not None:
            certain += 1
            assert (condition, status == 1, "'YES'" in told, "'NO'" in told) == (condition, False, value, not value)
    assert certain > 38


HEAD = """\
global
    stats socket {socket} level admin
    setenv B bee
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
"""


def some_text(rng: random.Random) -> str:  # noqa: C901  # one case for each kind of line
    """A haproxy.cfg that HAProxy accepts, written in odd ways."""
    counts = {"b": 0, "s": 0}

    def odd(word: str) -> str:
        at = rng.randrange(len(word))
        quoted = [f'"{word}"', f"'{word}'", f'{word[:at]}"{word[at:]}"', f"{word[:at]}'{word[at:]}'"]
        escaped = f"{word[:at]}\\x{ord(word[at]):02x}{word[at + 1 :]}"
        # The names of servers are read without the variables of HAProxy.
        expanded = word if word.startswith("s") else f'"{word}${{N-}}"'
        return rng.choice([word, word, word, *quoted, escaped, expanded])

    def line(*words: str) -> str:
        gap = rng.choice([" ", "  ", "\t"])
        end = rng.choice(["", "", "#c", " # c", ' #"', "\r", "\t", "#'"])
        return rng.choice(["", "    ", "\t", "\v"]) + gap.join(map(odd, words)) + end + "\n"

    def name(kind: str) -> str:
        counts[kind] += 1
        return f"{kind}{counts[kind]}"

    def body(depth: int, *, inside: bool) -> str:
        lines = []
        for _ in range(rng.randint(1, 5)):
            match rng.randint(0, 9):
                case 0 | 1 if depth < 1 or inside:
                    lines.append(line("backend", name("b")) + line("server", name("s"), "127.0.0.1:1"))
                case 2:
                    lines.append('"" ignored\n')
                case 3:
                    lines.append(rng.choice([".notice 'backend x'\n", "# server x\n", "\n", '.diag "backend y"\n']))
                case 4:
                    lines.append(line(rng.choice(["disabled", "enabled"])))
                case 5 | 6 if depth < 3:
                    lines.append(
                        f".if {rng.choice(TAKEN)}\n{body(depth + 1, inside=inside)}"
                        + rng.choice(["", f".elif {rng.choice(TAKEN)}\n{body(depth + 1, inside=inside)}"])
                        + rng.choice(["", f".else\n{body(depth + 1, inside=inside)}"])
                        + ".endif # c\n"
                    )
                case _:
                    lines.append(line("server", name("s"), "127.0.0.1:1", "weight", "3"))
        return "".join(lines)

    return HEAD + "".join(line("listen", name("b")) + body(0, inside=True) for _ in range(4))


TAKEN = ("0", "1", '""', "defined(A)", "!defined(A)", 'streq("$B",bee)', "!1 || defined(N)", '"$E"', "(0)")


def servers_of(text: str) -> list[tuple[str, str]]:
    """The servers that our reading gives to HAProxy: each `server` line made a managed one is looked up by its line."""
    document = Document([("x", text)], lambda: Environment(ENVIRON))
    found = []
    for proxy in document.proxies:
        for hand in proxy.operator_servers:
            name, has = document.find_server(hand.at)
            assert has is not None
            if has:
                assert name is not None
                found.append((name, hand.name))
    return sorted(found)


def served(binary: Path, text: str) -> list[tuple[str, str]]:
    """The servers that a running HAProxy has of a text."""
    with tempfile.TemporaryDirectory() as folder:
        path, config = Path(folder, "sock"), Path(folder, "x.cfg")
        config.write_text(text.replace("{socket}", str(path)))
        with subprocess.Popen(
            [binary, "-db", "-f", config], env=ENVIRON, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as haproxy:
            try:
                assert wait_until(lambda: path.exists() or haproxy.poll() is not None)
                assert haproxy.poll() is None, haproxy.stderr.read() if haproxy.stderr else ""
                answer = wait_until(lambda: asked(path))
            finally:
                haproxy.kill()
    rows = csv.DictReader(answer.removeprefix("# ").splitlines())
    return sorted((row["pxname"], row["svname"]) for row in rows if row["svname"] not in ("FRONTEND", "BACKEND"))


def asked(path: Path) -> str:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"show stat\n")
            return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    except OSError:
        return ""


@real
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_the_servers_found_in_a_text_are_those_of_haproxy(binary: Path, seed: int) -> None:
    text = some_text(random.Random(seed))

    assert servers_of(text) == served(binary, text)


MARKER = "# additional-lb-iis-server"
ROLES = parse_roles_text("""
    services: {iis: {port: 80}}
    roles: {web: {lb: [iis]}}
""")
LINES = (
    *("backend b", "'listen' \"l\"#x", "frontend f", "peers p", "global", "defaults#d", 'backend "$X"', '"$X" y'),
    *(
        MARKER,
        f"  {MARKER}",
        f"{MARKER} x",
        MARKER.upper(),
        "#additional-lb-iis-server",
        "disabled",
        "enabled",
        "",
        "\t",
    ),
    *(".if 0", ".if 1", ".if defined(X)", ".elif 1", ".else", ".endif", ".if", '.if "', ".notice x", ".else x", "# c"),
    *("server web01 10.0.0.1:80", 'server "web02" 10.0.0.2:80', "server-template web0 1-3 x:80", "setenv X 1"),
    *("server web01 10.0.0.1:80 check # lbagent role=web", "server web01 10.0.0.1:80 # lbagent role=web,old"),
    *("server web09 host:80 # lbagent role=web", "# lbagent paused web03 10.0.0.3 role=web", "# lbagent paused web04"),
    *('server web05 10.0.0.5:80 sni "x # lbagent role=web', "server \\", 'server "', "'", '"', "\\", "balance source"),
)
MANAGED = re.compile(
    r"\s*(server web[0-9]+ [0-9.]+:80 [ -~]*# lbagent role=web|# lbagent paused web[0-9]+ [0-9.]+ role=web)\r?"
)


@given(
    st.lists(st.sampled_from(LINES) | st.text("ab#'\"\\ ${}.", max_size=12), max_size=25),
    st.sets(st.integers(1, 9), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
)
def test_in_any_text_no_byte_of_the_operator_changes(lines: Sequence[str], nodes: set[int], end: str) -> None:
    text = end.join(lines)
    membership = membership_of(*(member(f"web0{one}", f"10.0.0.{one}") for one in nodes))
    try:
        plan = plan_for(text, ROLES, membership)
    except Refused as twice:
        assert "twice" in str(twice)  # noqa: PT017
        return

    def others(one: str) -> list[str]:
        return [line for line in one.split("\n") if not MANAGED.fullmatch(line)]

    [after] = plan.after
    assert (
        others(after)[: len(others(text))] == others(text)
        or after == text
        or (
            [line.rstrip("\r") for line in others(after) if line.strip()]
            == [line.rstrip("\r") for line in others(text) if line.strip()]
        )
    )
    assert plan_for(after, ROLES, membership).after == (after,)


@given(st.text("ab#'\"\\ ${}.[*]-\t\r\v", max_size=40))
def test_any_line_can_be_split(line: str) -> None:
    for environment in (None, Environment({"a": "b c"})):
        words, sure = split_words(line, environment)
        assert "" not in words or words[0].startswith(".")
        if sure and not set(line) & set("'\"\\#[\v\r"):
            assert words == line.split()


def test_setenv_and_similar_keywords_change_the_environment() -> None:
    environment = Environment({"A": "1"})
    for line in ("setenv B 2", "presetenv A 9", "presetenv C 3", "unsetenv B", "setenv D 'x y'"):
        environment.apply_command(split_words(line, environment).words, sure=True)
    assert [environment.find_value(name) for name in "ABCD"] == ["1", None, "3", "x y"]

    environment.apply_command(["resetenv", "C"], sure=True)
    assert [environment.find_value(name) for name in "ABCD"] == [None, None, "3", None]

    environment.apply_command(["setenv", "C", "4"], sure=False)
    assert (environment.is_defined("C"), environment.is_defined("A")) == (None, False)


def test_an_unknown_variable_is_neither_set_nor_unset() -> None:
    environment = Environment()
    environment.apply_command(["presetenv", "A", "1"], sure=True)
    environment.apply_command(["setenv", "B", "2"], sure=True)

    assert [environment.is_defined(name) for name in ("A", "B", "HAPROXY_X")] == [None, True, None]
    assert Environment({}).is_defined("HAPROXY_X") is None


def test_servers_of_an_unread_branch_are_never_changed() -> None:
    line = "server web01 10.0.0.1:80 # lbagent role=web\n"
    text = f"backend b\n.if 0\n{line}.endif\nbackend c\n{line}disabled\nbackend d\n{line}"
    text += f".if feature(X)\nbackend e\n{line}.endif\n"
    document = Document([("x", text)])

    assert list(document.managed_servers) == [("d", "web01")]
    assert list(haproxy_config.list_uncertain_servers(document)) == [("e", "web01")]


def test_a_text_that_is_read_again_depends_on_the_present_environment_of_haproxy() -> None:
    target = Target("haproxy.cfg", "haproxy.cfg", b'global\n    stats socket "$SOCKET" level admin\n')

    def find_socket(path: str) -> str:
        return build_document([target], lambda: Environment({"SOCKET": path})).settings[0][2]

    assert [find_socket(path) for path in ("/run/one.sock", "/run/other.sock")] == ["/run/one.sock", "/run/other.sock"]
