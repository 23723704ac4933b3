"""The verb `web`: the page of the pair. Its libraries are an extra, which only this verb needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from lbagent.errors import LbagentError
from lbagent.settings import DEFAULT_RUNTIME_DIR, Settings, find_runtime_dir
from lbagent.system.log import Log

LIBRARIES = ("starlette", "uvicorn", "jinja2", "bcrypt")
"""What the extra `web` brings; in Debian each is a package python3-NAME."""

DEFAULT_LISTEN = "127.0.0.1:8053"


def web(
    listen: str, hosts: Sequence[str], users: str | None, prefix: str, peers: Sequence[str]
) -> Callable[[Settings, Log], int]:
    """Return the verb that serves the page until SIGTERM or SIGINT."""

    def verb(_: Settings, log: Log) -> int:
        if missing := [name for name in LIBRARIES if find_spec(name) is None]:
            packages = " ".join(f"python3-{name}" for name in missing)
            raise LbagentError(f"web: missing Python packages: {', '.join(missing)}; run `apt-get install {packages}`")
        from lbagent.web.server import Options, serve  # noqa: PLC0415  # 0.3 s that only the page needs

        options = Options(listen, hosts, users, prefix, peers)
        return serve(options, find_runtime_dir(os.environ) or DEFAULT_RUNTIME_DIR, log)

    return verb
