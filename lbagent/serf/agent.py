"""The Serf agent of this load balancer, asked through the `serf` program.

SERF_RPC_ADDR and SERF_RPC_AUTH are the program's own variables; they come with the agent's environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping

from lbagent.errors import TryAgain
from lbagent.names import brief
from lbagent.serf import member_list
from lbagent.serf.member_list import AgentInfo, MemberList
from lbagent.system import subprocess
from lbagent.system.tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeVar

    Said = TypeVar("Said")

AnswerCallback = Callable[[str, str], None]
"""Takes a node's name and its answer."""

_TIMEOUT = 5.0
_MORE = 2.0
"""Seconds beyond its own time that a query may take to end."""


def fetch_members() -> MemberList:
    """Every member the agent knows, as it knows them now. Raises TryAgain."""
    return _asked(["members", "-format=json"], member_list.parse_member_list)


def fetch_info() -> AgentInfo:
    """What the agent says of itself. Raises TryAgain."""
    return _asked(["info", "-format=json"], member_list.parse_info)


def fetch_clocks() -> Mapping[str, int]:
    """The agent's LTimes, by clock; empty where it cannot be asked."""
    try:
        return fetch_info().clocks
    except TryAgain:
        return {}


def send_query(
    name: str, payload: str, nodes: Collection[str], waits: Iterable[int], heard: AnswerCallback | None = None
) -> dict[str, str]:
    """Ask these nodes, and the silent ones again after each wait, in seconds; returns what they said. Raises TryAgain.

    `heard` is called with each answer as it comes.

    Serf hands a query on by chance: some reach not every node (of 40 on a small cluster, one did not), and nothing
    repairs that.
    """
    found: dict[str, str] = {}
    for seconds in waits:
        if silent := [node for node in nodes if node not in found]:
            found |= _query(name, payload, silent, seconds, heard)
    return found


def _query(
    name: str, payload: str, nodes: Collection[str], seconds: int, heard: AnswerCallback | None
) -> dict[str, str]:
    # An answer that does not get through straight may do so by one of two other nodes.
    options = ("-no-ack", "-relay-factor=2", f"-timeout={seconds}s", *(f"-node={node}" for node in nodes))
    argv = ["query", *options, name, payload]

    known: set[str] = set()

    def found(said: str) -> dict[str, str]:
        answers = member_list.parse_answers(said, nodes)
        for node in answers.keys() - known:
            known.add(node)
            if heard:
                heard(node, answers[node])
        return answers

    def all_have_answered(said: str) -> bool:
        # Serf itself waits to the end of its time, whoever has answered. Its last line may be half an answer.
        return len(found(said.rpartition("\n")[0])) == len(nodes) or len(member_list.parse_answers(said, nodes)) == len(
            nodes
        )

    return found(_serf(argv, seconds + _MORE, all_have_answered))


def _asked(argv: list[str], read: Callable[[str], Said]) -> Said:
    said = _serf(argv, _TIMEOUT)
    try:
        return read(said)
    except (ValueError, RecursionError) as error:
        raise TryAgain(f"serf {argv[0]} answered what nobody can read: {error}") from error


def _serf(argv: list[str], timeout: float, enough: Callable[[str], bool] | None = None) -> str:
    try:
        result = subprocess.run_program(["serf", *argv], timeout, environ=dict(os.environ), enough=enough)
    except OSError as error:
        raise TryAgain(f"serf cannot be run: {error.strerror}") from error
    if not result.succeeded:
        raise TryAgain(f"the Serf agent cannot be asked (serf {argv[0]}): {brief(result.output.split(chr(10))[0])}")
    return result.output


# --- serfenv ---------------------------------------------------------------------------------------------

NAME = "serf.env"

_KEYS = ("SERF_RPC_ADDR", "SERF_RPC_AUTH")


class SerfEnv:
    """The serf.env of this load balancer, as part of an environment."""

    def __init__(self, folders: Iterable[str], environ: MutableMapping[str, str]) -> None:
        """The first of `folders` that holds a serf.env; what `environ` already has goes before the file."""
        self.paths = [os.path.join(folder, NAME) for folder in dict.fromkeys(folders)]
        self._environ = environ
        self._own = [key for key in _KEYS if not environ.get(key)]
        """The variables that only the file may set."""
        self._content: bytes | None = None
        self.error = ""
        """Why the file could not be read; nothing where it could, or is not there."""
        self.found = ""
        """The file that was read; nothing where there is none."""

    def load(self) -> bool:
        """Bring the environment in step with the file; returns whether the file has changed since the last time."""
        content = self._read()
        changed = content != self._content
        self._content = content
        if changed:
            found = _parse(content)
            for key in self._own:
                self._environ.pop(key, None)
                if value := found.get(key):
                    self._environ[key] = value
        return changed

    @property
    def changed(self) -> bool:
        """Whether the file is not what was loaded."""
        return self._read() != self._content

    def _read(self) -> bytes:
        self.error = self.found = ""
        for path in self.paths:
            try:
                with open(path, "rb") as file:
                    self.found = path
                    return file.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                self.error = f"{path}: cannot be read: {error.strerror}"
                return b""
        return b""


def list_serf_env_folders(roles: str, environ: Mapping[str, str], default: str) -> list[str]:
    """Where serf.env may be: beside roles.yml as given, as `LBAGENT_ROLES` names it, and at the `default` place."""
    return [os.path.dirname(path) for path in (roles, environ.get("LBAGENT_ROLES") or default, default)]


def load_serf_env(folder: str, environ: MutableMapping[str, str]) -> None:
    """Add what `serf.env` in `folder` says to `environ`, which wins; nothing where that file may not be read."""
    SerfEnv([folder], environ).load()


def _parse(content: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        key, _, value = line.strip().partition("=")
        if key in _KEYS and (value := _unquoted(value)):
            found.setdefault(key, value)
    return found


def _unquoted(value: str) -> str:
    """The value without the quotes that systemd, which reads the same file for the agent, takes off too."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


process_serf_env: SerfEnv | None = None
"""The one that has set variables of this process; None where the Serf agent has set them all."""
