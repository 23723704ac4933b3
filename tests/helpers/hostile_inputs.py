"""Sends hostile inputs through the whole path: `run(count, seed)` creates them and counts their effects.

Everything that another user can write is damaged: events (environment and stdin), spool files, members.json and the
other files of the state directory, the JSON of the `serf` program, roles.yml and haproxy.cfg. After each run:
no exception but a deliberate one; every byte that the operator wrote is where it was; no line is new in haproxy.cfg
but a well-formed `server` line of a known role with an address that the role allows; and a good event still works.
"""

from __future__ import annotations

import contextlib
import copy
import ipaddress
import json
import os
import random
import re
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from lbagent.commands import handle, query
from lbagent.errors import LbagentError
from lbagent.haproxy import process, validation
from lbagent.roles import loader
from lbagent.run import queue
from lbagent.run.engine import Engine
from lbagent.run.transaction import RunOptions
from lbagent.serf import agent
from lbagent.settings import Paths, Settings
from lbagent.system import subprocess
from lbagent.system.log import Log
from tests.helpers.builders import MANAGED, POISON

CFG = """\
global
    log stdout format raw local0
\tdescription "caf\u00e9 # not a comment" # a comment
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
listen lb-iis
    bind 127.0.0.1:1
    balance roundrobin
    server byhand 10.9.9.9:80 check
    # additional-lb-iis-server
backend api\r
    # additional-lb-api-server\r
    # additional-lb-mongo-server\r
    option httpchk GET /\r
backend hashed
    balance source
    hash-type consistent
      # additional-monitor-iis-server
# the end
"""

ROLES = """\
haproxy: {{config: {cfg}}}
services:
  iis: {{port: 80}}
  api: {{port: "{{tag:port|8080}}", options: "check weight {{tag:weight|100}} cookie {{server}}"}}
  mongo: {{port: 27017}}
roles:
  web: {{lb: [iis], monitor: [iis]}}
  api: {{lb: [api], networks: [10.0.0.0/8, 127.0.0.0/8], interval: 5s}}
  db: {{lb: [mongo], address: "{{tag:ip}}", on_failed: remove, max: 3}}
"""

NETWORKS = {"api": ["10.0.0.0/8", "127.0.0.0/8"]}
PROBE = "probe"
ANSWER_LIMIT = 1024
BLANKS = " \t\r"

STARTS = (
    "\n    server evil 6.6.6.6:80",
    "\r\nserver evil 6.6.6.6:80",
    " backup",
    "# lbagent role=web",
    "\t",
    "\0",
    "${HOME}",
)
NAMES = (
    "web01",
    "web02",
    "WEB01",
    "db-1",
    "a.b",
    "lb01",
    "byhand",
    PROBE,
    "n" * 63,
    "n" * 64,
    "web01.iis",
    "-x",
    "",
    " ",
)
ADDRESSES = (
    *(
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "192.168.1.1",
        "fd00::1",
        "::1",
        "127.0.0.1",
        "0.0.0.0",
        "::",
        "255.255.255.255",
    ),
    *(
        "224.0.0.1",
        "169.254.1.1",
        "fe80::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.9",
        "10.0.0.999",
        "010.0.0.1",
        "1.2.3",
        "",
    ),
    *("<nil>", "?616263", "10.9.9.9", "fe80::1%eth0", "localhost", "10.0.0.1:80", "0x7f.1", "1" * 300),
)
TAG_ROLES = ("web", "api", "db", "web,api", "api, db,web", "lb", "", "we b", "web\nrole=api", ",", "WEB", "w" * 600)
KINDS = ("member-join", "member-leave", "member-failed", "member-update", "member-reap", "user", "query")
WORDS = ("pause", "resume", "lbagent-forget", "lbagent-status", "deploy", "pause ", "")
LTIMES = ("0", "1", "2", "3", "18446744073709551615", "99999999999999999999999", "-1", "x", "", "1e3", "\u0661")
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**63,
        2**200,
        1.5,
        1e308,
        "",
        " ",
        "web01",
        "10.0.0.1",
        "0.0.0.0",
        "alive",
        "failed",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"name": 5},
        "\n    server evil 6.6.6.6:80",
        "\ud800",
        "é",
        "x" * 5000,
        [1] * 50,
    ),
)


class Broken(AssertionError):
    """A forbidden effect of an input."""


class Quiet(Log):
    """A log that prints nothing."""

    def error(self, words: str, **fields: object) -> None:
        """Print nothing."""

    def warning(self, words: str, **fields: object) -> None:
        """Print nothing."""

    def info(self, words: str, **fields: object) -> None:
        """Print nothing."""


class Lab:
    """A load balancer in a folder, with fast substitutes for HAProxy and Serf."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance = folder, chance
        self.cfg, self.roles, self.state = folder / "haproxy.cfg", folder / "roles.yml", folder / "state"
        self.settings = Settings(str(self.roles), str(self.state))
        self.log = Quiet()
        self.serf: dict[str, str] = {}
        """Output of the `serf` program, by its first argument."""
        self.counts: Counter[str] = Counter()
        self.number = 0
        self.good_roles = ROLES.format(cfg=self.cfg)
        self.reset()

    def reset(self) -> None:
        """Restore valid files."""
        shutil.rmtree(self.state, ignore_errors=True)
        if self.cfg.is_dir() or self.cfg.is_symlink():
            shutil.rmtree(self.cfg)
        self.cfg.write_bytes(CFG.encode())
        self.roles.write_text(self.good_roles)

    # --- runs ---

    def handle_event(self, environ: dict[bytes, bytes], stdin: bytes, *, drains: bool) -> None:
        """Call the handler once; without `drains` it finds a running `watch` and only stores the event."""
        drain = contextlib.nullcontext() if drains else mock.patch.object(queue, "drain_spool", return_value=0)
        with mock.patch.object(handle, "_read_stdin", return_value=stdin), drain:
            self.check_action(lambda: handle.handle(self.settings, self.log, environ))

    def run(self) -> None:
        """Run without a new event."""
        self.check_action(lambda: Engine(Settings(str(self.roles), str(self.state)), self.log).run(RunOptions()))

    def sync(self) -> None:
        """Sync with the output of the `serf` program."""
        engine = Engine(Settings(str(self.roles), str(self.state)), self.log)
        self.check_action(lambda: engine.run(RunOptions(), engine.prepare_sync(lambda _: None, force=False)))

    def check_action(self, act: Callable[[], object]) -> None:
        """Run an action and check its effects."""
        Paths(str(self.state)).prepare()
        before = self.cfg.read_bytes()
        try:
            act()
            self.counts["went well"] += 1
        except LbagentError as error:
            self.counts[f"refused: {type(error).__name__}"] += 1
            if "\n" in str(error):
                raise Broken(f"an error of several lines: {error}") from error
        except OSError as error:
            self.counts[f"refused: {type(error).__name__}"] += 1
        except Exception as error:
            raise Broken(f"not a deliberate error:\n{traceback.format_exc()}") from error
        self.compare_config(before, self.cfg.read_bytes())

    def compare_config(self, before: bytes, after: bytes) -> None:
        """Raise Broken if haproxy.cfg has a forbidden change."""
        if left := [name for name in os.listdir(self.folder) if name.endswith(("staged", "old", "replaced"))]:
            raise Broken(f"left behind: {left}")
        if before == after:
            return
        self.counts["changed haproxy.cfg"] += 1
        if drop_managed_lines(before) != drop_managed_lines(after):
            raise Broken(f"the operator's bytes changed:\n{before!r}\n{after!r}")
        # A line that lbagent only moves has another indentation and ending.
        old = {line.strip(BLANKS) for line in decode(before).split("\n")}
        for line in decode(after).split("\n"):
            if line.strip(BLANKS) not in old and is_almost_managed(line):
                self.check_line(line)

    def check_line(self, line: str) -> None:
        """Raise Broken if a new line is not well-formed, of a known role and at an allowed address."""
        if not MANAGED.fullmatch(line):
            raise Broken(f"not a well-formed line: {line!r}")
        self.counts["lines written"] += 1
        if line.lstrip().startswith("#"):
            return
        role = line.rstrip("\r").rpartition("role=")[2]
        if self.roles.read_text("utf-8", "surrogateescape") != self.good_roles:
            return
        address = ipaddress.ip_address(line.split()[2].rpartition(":")[0].strip("[]"))
        networks = NETWORKS.get(role)
        inside = networks is None or any(address in ipaddress.ip_network(one) for one in networks)
        never = (
            address.is_unspecified or address.is_multicast or address.is_link_local or str(address) == "255.255.255.255"
        )
        if role not in ("web", "api", "db") or never or not inside or (address.is_loopback and networks is None):
            raise Broken(f"a line that may not be written: {line!r}")

    def check_still_works(self) -> None:
        """Raise Broken if a valid event has no effect with valid files."""
        self.roles.write_text(self.good_roles)
        self.cfg.write_bytes(CFG.encode())
        self.number += 1
        address = f"10.77.{self.number // 250 % 250}.{self.number % 250 + 1}"
        for kind in ("member-leave", "member-join"):
            stdin = f"{PROBE}\t{address}\tweb\trole=web\n".encode()
            self.handle_event({b"SERF_EVENT": kind.encode(), b"SERF_SELF_NAME": b"lb01"}, stdin, drains=True)
        lines = [line for line in decode(self.cfg.read_bytes()).split("\n") if f" {PROBE} " in line]
        if not any(f" {address}" in line for line in lines):
            raise Broken(f"a good event has no effect any more: {lines}")

    # --- inputs ---

    def send_event(self) -> None:
        """Send a hostile event of a Serf agent."""
        chance = self.chance
        kind = chance.choice(KINDS) if chance.random() < 0.95 else self.poison_text("member-join")
        environ = {"SERF_EVENT": kind, "SERF_SELF_NAME": chance.choice(("lb01", "", "web01"))}
        if kind in ("user", "query"):
            name, clock = ("SERF_USER_EVENT", "USER") if kind == "user" else ("SERF_QUERY_NAME", "QUERY")
            environ |= {name: chance.choice(WORDS), f"SERF_{clock}_LTIME": chance.choice(LTIMES)}
            stdin = self.send_command()
        else:
            stdin = "".join(self.make_member_line() for _ in range(chance.choice((0, 1, 1, 1, 2, 5))))
        coded = {
            key.encode(): value.replace("\0", "").encode("utf-8", "surrogateescape") for key, value in environ.items()
        }
        payload = stdin.encode("utf-8", "surrogateescape")
        self.handle_event(coded, self.damage_bytes(payload), drains=chance.random() < 0.2)

    def make_member_line(self) -> str:
        """Return a hostile line of a member event."""
        chance = self.chance
        tags = {"weight": chance.choice(("5", "50%", "", "5 backup", "\n", "300")), "ip": chance.choice(ADDRESSES)}
        tags |= {"port": chance.choice(("81", "0", "http", "65536", "")), "lbagent": chance.choice(("paused", "", "x"))}
        some = {key: value for key, value in tags.items() if chance.random() < 0.4}
        fields = [chance.choice(NAMES), chance.choice(ADDRESSES), chance.choice(TAG_ROLES)]
        line = "\t".join([*fields, ",".join(f"{key}={value}" for key, value in some.items())])
        return (self.poison_text(line) if chance.random() < 0.3 else line) + "\n"

    def send_command(self) -> str:
        """Return a hostile payload of a pause or resume."""
        chance = self.chance
        words = [chance.choice(NAMES), chance.choice((*ADDRESSES, "")), chance.choice((*TAG_ROLES, ""))]
        ends = (
            "for=2h",
            "for=0s",
            "for=99999999d",
            "until=1",
            "until=99999999999",
            "reason=a b",
            "by=lb02",
            "force",
            "",
        )
        line = " ".join([*words[: chance.randrange(1, 4)], chance.choice(ends)])
        return self.poison_text(line) if chance.random() < 0.4 else line

    def damage_spool(self) -> None:
        """Put a hostile file into the spool."""
        chance, spool = self.chance, self.state / "spool"
        Paths(str(self.state)).prepare()
        head = (
            "id",
            "1700000000000",
            chance.choice((*KINDS, "typed")),
            chance.choice(WORDS),
            chance.choice(LTIMES),
            "lb01",
        )
        record = b"\0".join(
            [
                b"lbagent 1",
                *(word.encode() for word in head),
                self.make_member_line().encode("utf-8", "surrogateescape"),
            ]
        )
        path = spool / chance.choice(
            (str(chance.randrange(1, 99)), "0", "01", "x", ".5", "\n", "9" * 18, "9" * 19, "-1")
        )
        shape = chance.randrange(12)
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            path.unlink(missing_ok=True)
            if shape == 0:
                os.mkfifo(path)
            elif shape == 1:
                path.symlink_to(self.cfg)
            elif shape == 2:
                path.mkdir()
            elif shape == 3:
                os.link(self.cfg, path)
            else:
                path.write_bytes(
                    self.damage_bytes(record) if shape < 10 else chance.randbytes(chance.choice((0, 10, 70_000)))
                )
        if chance.random() < 0.1:
            self.run()

    def damage_state(self) -> None:
        """Damage a file of the state directory."""
        names = (
            "members.json",
            "members.json",
            "members.json",
            "served.json",
            "roles.json",
            "last.json",
            "answers.json",
        )
        path = self.state / self.chance.choice(names)
        if not path.is_file():
            self.run()
        if path.is_file():
            path.write_bytes(self.damage_json(path.read_bytes()))
        self.run()

    def damage_serf_answer(self) -> None:
        """Set the output of the `serf` program."""
        tags = {"role": self.chance.choice(TAG_ROLES), "weight": "5"}
        members = [
            {
                "name": self.chance.choice(NAMES),
                "addr": f"{self.chance.choice(ADDRESSES)}:7946",
                "tags": tags,
                "status": status,
            }
            for status in ("alive", "failed", "left", "leaving", "none")
        ]
        info = {"agent": {"name": "lb01"}, "serf": {"event_time": "5", "query_time": "7"}, "tags": {"role": "lb"}}
        printed = {"members": {"members": members}, "info": info}
        self.serf = {verb: json.dumps(answer) for verb, answer in printed.items()}
        verb = self.chance.choice(("members", "info"))
        self.serf[verb] = self.damage_json(self.serf[verb].encode()).decode("utf-8", "replace")
        words = "Response from 'lb02': " + self.chance.choice(
            ("pauses 1 web01 5 p", "", "x", self.poison_text("web01 paused"))
        )
        self.serf["query"] = words
        self.sync()

    def damage_roles(self) -> None:
        """Write a roles.yml with mistakes."""
        self.roles.write_bytes(self.damage_bytes(self.good_roles.encode(), times=self.chance.choice((1, 1, 2, 5))))
        self.check_action(self.keep_paths_in_folder)
        self.run()
        if self.chance.random() < 0.9:
            self.roles.write_text(self.good_roles)

    def keep_paths_in_folder(self) -> None:
        """Replace the paths of a roles.yml, so that no haproxy.cfg of this machine is used."""
        if loader.parse_roles(self.roles.read_bytes(), "roles.yml").haproxy.config != (str(self.cfg),):
            self.roles.write_text(self.good_roles)

    def damage_config(self) -> None:
        """Return a badly written haproxy.cfg."""
        self.cfg.write_bytes(
            self.damage_bytes(self.cfg.read_bytes() or CFG.encode(), times=self.chance.choice((1, 2, 5, 20)))
        )
        self.run()
        if self.chance.random() < 0.5 or len(self.cfg.read_bytes()) > 20_000:
            self.cfg.write_bytes(CFG.encode())

    # --- damage -----

    def poison_text(self, good: str) -> str:
        """Return the text with a bad character."""
        at, bad = self.chance.randrange(len(good) + 1), str(self.chance.choice((*POISON, *STARTS)))
        return good[:at] + bad + good[at + self.chance.choice((0, 0, 1, 3)) :]

    def damage_bytes(self, good: bytes, times: int = 1) -> bytes:
        """Return the bytes as a bad disk, a broken connection or an attacker would pass them; often unchanged."""
        chance, torn = self.chance, good
        for _ in range(times):
            at, end = sorted((chance.randrange(len(torn) + 1), chance.randrange(len(torn) + 1)))
            end = min(end, at + chance.choice((1, 5, 40, 400)))
            bad = chance.choice((*POISON, *STARTS)).encode("utf-8", "surrogateescape")
            lines = torn.split(b"\n")
            one = chance.randrange(len(lines))
            torn = chance.choice(
                (
                    torn,
                    torn[:at] + bad + torn[at:],
                    torn[:at] + bad + torn[end:],
                    torn[:at] + torn[end:],
                    torn[:at] + torn[at:end] * 2 + torn[end:],
                    torn[:at],
                    torn[:at] + chance.randbytes(3) + torn[at:],
                    b"\n".join([*lines[:one], *lines[one + 1 :]]),
                    b"\n".join([*lines[:one], lines[one], *lines[one:]]),
                    b"\n".join([*lines[:one], b"\t" + lines[one], *lines[one + 1 :]]),
                    b"\n".join([*lines[:one], b"   " + lines[one].lstrip(), *lines[one + 1 :]]),
                )
            )
        return torn

    def damage_json(self, good: bytes) -> bytes:
        """Return JSON with a wrong value, or damaged JSON."""
        chance = self.chance
        if chance.random() < 0.2:
            return chance.choice(
                (self.damage_bytes(good), b"", b"[" * 100_000, b"1e999", b"null", b"[]", b"{}", b"\xff", b'"x"')
            )
        try:
            state = json.loads(good)
        except (ValueError, RecursionError):
            return b"{}"
        for _ in range(chance.choice((1, 1, 2))):
            self.poison_value(state)
        return json.dumps(state).encode()

    def poison_value(self, spot: Any) -> None:  # noqa: ANN401  # JSON
        """Replace, add or remove one value of a JSON document."""
        chance = self.chance
        while isinstance(spot, dict | list) and spot:
            key = chance.choice([*spot]) if isinstance(spot, dict) else chance.randrange(len(spot))
            if not isinstance(spot[key], dict | list) or not spot[key] or chance.random() < 0.25:
                what = chance.randrange(4)
                if what == 0 and isinstance(spot, dict):
                    spot[chance.choice(NAMES)] = copy.deepcopy(chance.choice(VALUES))
                elif what == 1:
                    del spot[key]
                else:
                    spot[key] = copy.deepcopy(chance.choice(VALUES))
                return
            spot = spot[key]


def decode(content: bytes) -> str:
    """Decode bytes without loss."""
    return content.decode("utf-8", "surrogateescape")


def is_almost_managed(line: str) -> bool:
    """Return whether lbagent may regard the line as a managed one."""
    line = line.strip(BLANKS)
    server = line.startswith(("server ", "server\t")) and re.search(r"# lbagent role=[^ \t]+$", line)
    return bool(server) or line.startswith("# lbagent paused ")


def drop_managed_lines(content: bytes) -> list[str]:
    """Return the operator's lines; a missing last line end makes no difference."""
    lines = [line for line in decode(content).split("\n") if not is_almost_managed(line)]
    while lines and not lines[-1].strip("\r"):
        lines.pop()
    if lines:
        lines[-1] = lines[-1].removesuffix("\r")
    return lines


@contextlib.contextmanager
def make_lab(folder: Path, seed: int) -> Iterator[Lab]:
    """Yield a lab in `folder` without processes, fsync and system log."""
    made, answer_query = Lab(folder, random.Random(seed)), query.answer_query

    def answer(*args: Any) -> bytes:  # noqa: ANN401  # passed on
        content = answer_query(*args)
        made.counts["answers to queries"] += 1
        if len(content) > ANSWER_LIMIT:
            message = f"an answer of {len(content)} bytes, which Serf drops"
            raise Broken(message)
        return b""

    def serf(argv: list[str], *_: object) -> str:
        return made.serf.get(argv[1] if len(argv) > 1 else "", "")

    accepts = subprocess.ProgramResult(0, "")
    with contextlib.ExitStack() as stack:
        for where, name, value in (
            (validation, "start_check", lambda *_: contextlib.nullcontext(lambda: accepts)),
            (process, "find_haproxy", lambda *_: None),
            (process, "is_shown_not_to_run", lambda *_: True),
            (agent, "_run_serf", serf),
            (os, "fsync", lambda _: None),
            (query, "answer_query", answer),
            (time, "sleep", lambda _: None),
        ):
            stack.enter_context(mock.patch.object(where, name, value))
        yield made


KINDS_OF_INPUT: dict[str, tuple[int, Callable[[Lab], None]]] = {
    "events": (60, Lab.send_event),
    "spool files": (14, Lab.damage_spool),
    "state files": (8, Lab.damage_state),
    "answers of serf": (6, Lab.damage_serf_answer),
    "roles.yml": (6, Lab.damage_roles),
    "haproxy.cfg": (6, Lab.damage_config),
}
"""Each action with its weight."""

PROBE_EVERY = 200
ANEW_EVERY = 2_000


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    """Return counts by effect of `count` inputs. Raises Broken with seed and number of the first forbidden effect."""
    kinds, shares = list(KINDS_OF_INPUT), [share for share, _ in KINDS_OF_INPUT.values()]
    with make_lab(folder, seed) as made:
        for number in range(count):
            kind = made.chance.choices(kinds, shares)[0]
            made.counts[f"input: {kind}"] += 1
            try:
                KINDS_OF_INPUT[kind][1](made)
                if number % PROBE_EVERY == 0:
                    made.check_still_works()
                if number % ANEW_EVERY == ANEW_EVERY - 1:
                    made.reset()
            except Broken as broken:
                message = f"seed {seed}, input {number} ({kind}): {broken}"
                raise Broken(message) from broken
        return made.counts
