"""Draws the pictures of the documentation from the real program: `python -m scenarios.pictures FOLDER`.

The demo runs as `make demo` runs it. `status`, `check` and `pause` run on a real pair of load balancers, each a machine
of its own. Every command runs in a pseudo-terminal, so that it prints what an operator sees. `mermaidx` draws the
Mermaid files of FOLDER.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from scenarios.pair import Balancer, Pair
from tests.helpers.real_programs import wait_until

COLOURS = {
    "light": {
        "primaryColor": "#e0f2f1",
        "primaryBorderColor": "#00796b",
        "primaryTextColor": "#1a2b2a",
        "textColor": "#1a2b2a",
        "titleColor": "#1a2b2a",
        "lineColor": "#546e7a",
        "clusterBkg": "#f5f7f7",
        "clusterBorder": "#b0bec5",
        "edgeLabelBackground": "#ffffff",
    },
    "dark": {
        "primaryColor": "#16403b",
        "primaryBorderColor": "#4db6ac",
        "primaryTextColor": "#e0f2f1",
        "textColor": "#e0f2f1",
        "titleColor": "#e0f2f1",
        "lineColor": "#90a4ae",
        "clusterBkg": "#232a33",
        "clusterBorder": "#546e7a",
        "edgeLabelBackground": "#1e2129",
    },
}
"""Mermaid's theme variables for light and for dark pages."""

ROWS, COLUMNS = 200, 100
TERMINAL = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}

FONT = "DejaVu Sans, Verdana, sans-serif"
TOKEN = re.compile(r"\r\n|\r|\n|\x1b\[(?P<numbers>[0-9;?]*)(?P<code>[A-Za-z])|[^\r\n\x1b]+")
"""A line end, a control sequence, or text."""

# Rich's own format loads a font from another host.
FONTS = re.compile(r"\s*@font-face \{\{.*?\}\}\n", re.DOTALL)
COMMENT = re.compile(r"\s*<!--.*?-->")
SVG = COMMENT.sub("", FONTS.sub("\n", CONSOLE_SVG_FORMAT)).replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas")


def record(argv: Sequence[str], columns: int, environ: dict[str, str]) -> str:
    """What a command prints in a terminal of this width, with colours, as the terminal shows it at the end."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    with subprocess.Popen(argv, stdin=its, stdout=its, stderr=its, env={**environ, **TERMINAL}) as process:
        os.close(its)
        parts = list(iter(lambda: _read(ours), b""))
        os.close(ours)
        process.wait()
    return show_screen(b"".join(parts).decode())


def show_screen(output: str) -> str:
    """The lines that a terminal shows after this output, with their colours.

    Programs here replace whole lines: they go up or to the start of a line, and write it anew.
    """
    lines, row, anew = [""], 0, False
    for token in TOKEN.finditer(output):
        code = token["code"]
        if token[0] in ("\n", "\r\n"):
            row, anew = row + 1, False
            lines += [""] * (row + 1 - len(lines))
        elif token[0] == "\r":
            anew = True
        elif code == "A":
            row, anew = max(0, row - int(token["numbers"] or 1)), True
        elif code == "K":
            lines[row] = ""
        elif code in (None, "m"):
            lines[row] = token[0] if anew else lines[row] + token[0]
            anew = False
    return "\n".join(lines)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: the last program has closed the terminal
        return b""


def draw(path: Path, title: str, text: str, columns: int) -> None:
    """Write a terminal window with this text as an SVG. Raises OSError."""
    console = Console(record=True, width=columns, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(text.strip("\n")), soft_wrap=True)
    # A name of its own for its styles: a page may hold several pictures.
    picture = console.export_svg(title=title, code_format=SVG, unique_id=path.stem)
    path.write_text(re.sub(r"[ \t]+$", "", picture, flags=re.MULTILINE), encoding="utf-8")
    print(path)


def draw_diagrams(folder: Path) -> None:
    """Each Mermaid file of the folder, as NAME-light.svg and NAME-dark.svg. Raises subprocess.CalledProcessError."""
    for source in sorted(folder.glob("*.mmd")):
        for name, colours in COLOURS.items():
            theme = {"theme": "base", "themeVariables": {"fontFamily": FONT, **colours}}
            # Labels as SVG text: not every reader of an image shows HTML in it.
            config = json.dumps({**theme, "htmlLabels": False, "flowchart": {"htmlLabels": False}})
            target = folder / f"{source.stem}-{name}.svg"
            argv = ["mermaidx", "--quiet", "-i", str(source), "-c", "/dev/stdin", "-o", str(target)]
            subprocess.run(argv, input=config, text=True, check=True)
            digest = hashlib.sha256(source.read_bytes()).hexdigest()
            target.write_text(f"{target.read_text().strip()}\n<!-- {source.name}, SHA-256 {digest} -->\n")
            print(target)


def draw_demo(folder: Path) -> None:
    """The pause of the demo, and its last line."""
    shown = record([sys.executable, "-m", "demo"], 80, dict(os.environ))
    acts = re.split(r"\n(?=[^\n]*── \d\. )", shown)
    [pause] = [act for act in acts if re.search(r"── 3\. ", act)]
    verdict = re.findall(r"^.* requests through .*$", shown, re.MULTILINE)[-1]
    draw(folder / "demo.svg", "make demo", f"{pause.rstrip()}\n\n{verdict}", 80)


def draw_commands(folder: Path) -> None:
    """`pause`, `status`, and `check` with a misspelled marker, on the first of two load balancers."""
    nodes = {"a01": "in", "b01": "in", "web01": "in", "web02": "in"}
    with Pair() as pair:
        wait_until(lambda: pair.agree(nodes), 120, 0.2)
        wait_until(lambda: all(one.serving() == set(nodes) for one in pair.both), 120, 0.2)
        _draw_command(
            folder / "pause.svg", pair.lb01, "lbagent", "pause", "web02", "--for", "2h", "--reason", "patch day"
        )
        wait_until(lambda: pair.agree({**nodes, "web02": "paused"}), 120, 0.2)
        # What the load balancers know of each other is of the last sync.
        pair.lb01.run("lbagent", "sync")
        _draw_command(folder / "status.svg", pair.lb01, "lbagent", "status")
        _misspell_a_marker(pair.lb01)
        _draw_command(folder / "check.svg", pair.lb01, "lbagent", "check", "--quiet")


def _misspell_a_marker(balancer: Balancer) -> None:
    path = balancer.machine.root / "etc/haproxy/haproxy.cfg"
    path.write_bytes(
        path.read_bytes().replace(b"additional-monitor-mongo-server", b"additional-monitor-mongodb-server")
    )


def _draw_command(path: Path, balancer: Balancer, *argv: str) -> None:
    command = " ".join(f'"{word}"' if " " in word else word for word in argv)
    shown = record(balancer.machine.inside(*argv), COLUMNS, balancer.env)
    draw(path, command, f"\x1b[1m{balancer.name}# {command}\x1b[0m\n{shown}", COLUMNS)


def main(folder: Path) -> None:
    """Draw all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_diagrams(folder)
    draw_demo(folder)
    draw_commands(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
