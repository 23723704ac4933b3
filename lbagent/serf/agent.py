"""Ask the local Serf agent, through the `serf` program.

`serf` itself reads SERF_RPC_ADDR and SERF_RPC_AUTH, which are in the agent's environment, and so in a handler's. Other
commands load them from serf.env.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from typing import TypeVar

from lbagent.errors import TryAgain
from lbagent.names import brief
from lbagent.serf import member_list
from lbagent.serf.member_list import AgentInfo, ListedMember, MemberList
from lbagent.system import subprocess

Answer = TypeVar("Answer")

AnswerCallback = Callable[[str, str], None]
"""Called with a node's name and its answer."""

_TIMEOUT = 5.0
_MORE = 2.0
"""Seconds that a query may take beyond its own timeout."""

COMMAND_TIMEOUTS = (1, 2, 3, 4)
"""Seconds that another load balancer has for its answer to a command, each time it is asked."""

NAME = "serf.env"

_KEYS = ("SERF_RPC_ADDR", "SERF_RPC_AUTH")


def fetch_members() -> MemberList:
    """Return all members that the agent knows. Raises TryAgain."""
    return _ask(["members", "-format=json"], member_list.parse_member_list)


def fetch_info() -> AgentInfo:
    """Return the agent's name, role, clocks and handlers. Raises TryAgain."""
    return _ask(["info", "-format=json"], member_list.parse_info)


def fetch_peers() -> tuple[ListedMember, ...]:
    """Return the other load balancers that the agent knows. Raises TryAgain."""
    info = fetch_info()
    role = re.escape(member_list.find_own_role(info))
    # Serf selects: a list of all members has megabytes. A member may have several roles.
    listed = _ask(["members", "-format=json", f"-tag=role=.*{role}.*"], member_list.parse_member_list)
    return member_list.find_peers(listed, info)


def fetch_clocks() -> Mapping[str, int]:
    """Return the agent's LTimes, by clock; empty if the agent is unreachable."""
    try:
        return fetch_info().clocks
    except TryAgain:
        return {}


def send_query(
    name: str, payload: str, nodes: Collection[str], waits: Iterable[int], on_answer: AnswerCallback | None = None
) -> dict[str, str]:
    """Send a query to these nodes and return their answers, by node. Raises TryAgain.

    It is sent again, to the nodes without an answer, once per entry of `waits`, the seconds to wait each time: Serf
    delivers queries by gossip, and on a small cluster 1 in 40 does not reach every node. `on_answer` is called with
    each answer as it arrives.
    """
    found: dict[str, str] = {}
    for seconds in waits:
        if silent := [node for node in nodes if node not in found]:
            found |= _send_once(name, payload, silent, seconds, on_answer)
    return found


def _send_once(
    name: str, payload: str, nodes: Collection[str], seconds: int, on_answer: AnswerCallback | None
) -> dict[str, str]:
    # An answer that cannot be sent directly may be relayed by two other nodes.
    options = ("-no-ack", "-relay-factor=2", f"-timeout={seconds}s", *(f"-node={node}" for node in nodes))
    argv = ["query", *options, name, payload]

    known: set[str] = set()

    def report_answers(output: str) -> dict[str, str]:
        answers = member_list.parse_answers(output, nodes)
        for node in answers.keys() - known:
            known.add(node)
            if on_answer:
                on_answer(node, answers[node])
        return answers

    def all_have_answered(output: str) -> bool:
        # Serf waits for its whole timeout, even if all nodes have answered. Its last line may be incomplete.
        report_answers(output.rpartition("\n")[0])
        return len(member_list.parse_answers(output, nodes)) == len(nodes)

    return report_answers(_run_serf(argv, seconds + _MORE, all_have_answered))


def _ask(argv: list[str], read: Callable[[str], Answer]) -> Answer:
    output = _run_serf(argv, _TIMEOUT)
    try:
        return read(output)
    except (ValueError, RecursionError) as error:
        raise TryAgain(f"Serf agent: invalid answer to `serf {argv[0]}`: {error}") from error


def _run_serf(argv: list[str], timeout: float, enough: Callable[[str], bool] | None = None) -> str:
    try:
        result = subprocess.run_program(["serf", *argv], timeout, environ=dict(os.environ), enough=enough)
    except OSError as error:
        raise TryAgain(f"serf: cannot be started: {error.strerror}; install it") from error
    if not result.succeeded:
        raise TryAgain(f"Serf agent: `serf {argv[0]}` failed: {brief(result.output.split(chr(10))[0])}")
    return result.output


class SerfEnv:
    """serf.env (SERF_RPC_ADDR, SERF_RPC_AUTH), loaded into an environment."""

    def __init__(self, folders: Iterable[str], environ: MutableMapping[str, str]) -> None:
        """Use the first of `folders` that has a serf.env. Variables that `environ` already has take precedence."""
        self.paths = [os.path.join(folder, NAME) for folder in dict.fromkeys(folders)]
        self._environ = environ
        self._own = [key for key in _KEYS if not environ.get(key)]
        """Variables that only the file sets."""
        self._content: bytes | None = None
        self.error = ""
        """Why the file could not be read; empty otherwise."""
        self.found = ""
        """Path of the file that was read; empty if there is none."""

    def load(self) -> bool:
        """Update the environment from the file; return whether the file has changed since the last call."""
        content = self._read()
        changed = content != self._content
        self._content = content
        if changed:
            found = _parse_env(content)
            for key in self._own:
                self._environ.pop(key, None)
                if value := found.get(key):
                    self._environ[key] = value
        return changed

    @property
    def changed(self) -> bool:
        """Whether the file has changed since it was loaded."""
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
    """Return the directories to look in: of `roles`, of $LBAGENT_ROLES, and of the `default` roles.yml."""
    return [os.path.dirname(path) for path in (roles, environ.get("LBAGENT_ROLES") or default, default)]


def load_serf_env(folder: str, environ: MutableMapping[str, str]) -> None:
    """Load serf.env of `folder` into `environ`, whose variables take precedence; do nothing if it cannot be read."""
    SerfEnv([folder], environ).load()


def _parse_env(content: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        key, _, value = line.strip().partition("=")
        if key in _KEYS and (value := _unquote(value)):
            found.setdefault(key, value)
    return found


def _unquote(value: str) -> str:
    """Remove the quotes around a value, as systemd does, which reads the same file for the agent."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


process_serf_env: SerfEnv | None = None
"""The serf.env of this process; None if the Serf agent has set the variables."""
