"""For packages: `python -m lbagent.manual FOLDER` writes the man page, the completions and the schema of roles.yml."""

from __future__ import annotations

import json
import os
import sys

import lbagent
from lbagent import completion, helptext, manpage, parser, roleskeys
from lbagent.commandline import described
from lbagent.host.paths import Paths
from lbagent.settings import DEFAULT_ROLES, DEFAULT_STATE_DIR

RELEASED = "2026-11-21"
"""Of the version that is described: a page made twice is the same page."""

ENVIRONMENT = {
    "LBAGENT_ROLES": f"where roles.yml is; `--roles` goes before it, and without both it is {DEFAULT_ROLES}",
    "LBAGENT_STATE_DIR": "where the state is; `--state-dir` goes before it",
    "STATE_DIRECTORY": f"where the state is, as systemd tells it; without any of these it is {DEFAULT_STATE_DIR}",
    "SERF_EVENT, SERF_*": "what Serf tells its handler",
}


def pages() -> dict[str, str]:
    """Each file's text, by its path."""
    command = described(parser.build())
    facts = manpage.Facts(
        lbagent.__version__, RELEASED, helptext.exit_statuses(), _files(), ENVIRONMENT, helptext.EXAMPLES
    )
    return {
        "man/lbagent.1": manpage.page(command, facts),
        "completion/lbagent.bash": completion.bash(command),
        "completion/_lbagent": completion.zsh(command),
    }


def schema() -> str:
    """The JSON schema of roles.yml, as it is shipped in the package."""
    return json.dumps(roleskeys.schema(), indent=2) + "\n"


def main(folder: str) -> None:
    """Write them all below `folder`. Raises OSError."""
    for path, text in {**pages(), "roles.schema.json": schema()}.items():
        whole = os.path.join(folder, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole, "w", encoding="utf-8") as file:
            file.write(text)
        print(whole)


def _files() -> dict[str, str]:
    """What lies where, in the words of `Paths`."""
    paths = Paths(DEFAULT_STATE_DIR)
    known = {name: one for name, one in vars(Paths).items() if isinstance(one, property)}
    states = {getattr(paths, name): (one.__doc__ or "").rstrip(".") for name, one in known.items()}
    return {DEFAULT_ROLES: "which role serves what, and where haproxy.cfg is", **states}


if __name__ == "__main__":
    main(*sys.argv[1:])
