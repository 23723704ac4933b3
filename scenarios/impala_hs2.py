"""Real HiveServer2 servers (Spark's Thrift Server speaks the protocol of Impala's 21050), and sessions on them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.helpers.real_programs import clean_environment, wait_until

ROOT = Path(__file__).parent.parent
VENV = ROOT / "build" / "impala"
"""The environment that has pyspark and impyla; the make target makes it."""

START = 900.0
"""Seconds a server may take to listen, or an answer to come: two cores, and others at work."""

_CLOSED = (
    *("java.io", "java.lang", "java.lang.invoke", "java.lang.reflect", "java.net", "java.nio", "java.util"),
    *("java.util.concurrent", "java.util.concurrent.atomic", "sun.nio.ch", "sun.nio.cs", "sun.security.action"),
    "sun.util.calendar",
)
"""Packages that Spark looks into, and Java keeps closed."""


class Server:
    """A Thrift Server that knows the name of its node."""

    def __init__(self, name: str, address: str, port: int, folder: Path) -> None:
        """Nothing runs before `start`; everything it writes goes below `folder`."""
        self.name, self.address, self.port = name, address, port
        self._folder = folder / name
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait` until it listens."""
        self._folder.mkdir(exist_ok=True)
        environ = {**clean_environment(), "SPARK_LOCAL_IP": self.address}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, cwd=self._folder
            )

    def wait(self) -> None:
        """Return as soon as it listens."""
        wait_until(self._listens, START, 0.2)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it, one way or the other."""
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        self.kill()

    def _listens(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError((self._folder / "log").read_text(errors="replace")[-4000:])
        with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), 1):
            return True
        return False

    def _argv(self) -> list[str]:
        [jars] = VENV.glob("lib/python3*/site-packages/pyspark/jars")
        settings = {
            "spark.ui.enabled": "false",
            "spark.driver.host": self.address,
            "spark.driver.bindAddress": self.address,
            "spark.local.dir": self._folder,
            "spark.sql.warehouse.dir": self._folder / "warehouse",
            "spark.hadoop.hive.exec.scratchdir": self._folder / "scratch",
            "spark.hadoop.hive.server2.logging.operation.log.location": self._folder / "operations",
            "spark.hadoop.javax.jdo.option.ConnectionURL": "jdbc:derby:memory:metastore;create=true",
            "spark.lbagent.node": self.name,
        }
        hive = {"thrift.port": self.port, "thrift.bind.host": self.address, "authentication": "NOSASL"}
        return [
            # A quick start on few cores counts for more than fast queries.
            *("java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"),
            f"-Djava.io.tmpdir={self._folder}",
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _CLOSED),
            *("-cp", f"{jars}/*", "org.apache.spark.deploy.SparkSubmit", "--master", "local[3]"),
            *("--class", "org.apache.spark.sql.hive.thriftserver.HiveThriftServer2"),
            *(word for key, value in settings.items() for word in ("--conf", f"{key}={value}")),
            "spark-internal",
            *(word for key, value in hive.items() for word in ("--hiveconf", f"hive.server2.{key}={value}")),
        ]


@contextlib.contextmanager
def serving(*servers: Server) -> Iterator[None]:
    """The servers, while they run; they start side by side."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield
    finally:
        for server in servers:
            server.stop()


class Lost(Exception):
    """A query, or its session, came to nothing."""


class Session:
    """A session of a real client, impyla, that comes from `source`."""

    def __init__(self, port: int, source: str) -> None:
        """Connects at `port` of the load balancer in the `with`. Raises Lost."""
        self._argv = [
            str(VENV / "bin" / "python"),
            "-P",  # what lies beside the client is none of its modules: `platform` is Python's own to impyla
            str(Path(__file__).with_name("impala_client.py")),
            str(port),
            source,
        ]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=clean_environment(),
        )
        try:
            self.rows()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Go, as a client goes that is ended."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def begin(self, sql: str) -> None:
        """Send a query, and wait for nothing."""
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(f"{json.dumps(sql)}\n")
        self._process.stdin.flush()

    def rows(self) -> list[list[Any]]:
        """What the query came to, over the one connection that was made at first. Raises Lost."""
        assert self._process
        assert self._process.stdout
        late = threading.Timer(START, self._process.kill)
        late.start()
        line = self._process.stdout.readline()
        late.cancel()
        if not line:
            raise Lost("the client ended")
        said = json.loads(line)
        if "error" in said:
            raise Lost(said["error"])
        assert said["opened"] == 1, "the client has connected anew"
        rows: list[list[Any]] = said["rows"]
        return rows

    def ask(self, sql: str) -> list[list[Any]]:
        """A query from its beginning to its end. Raises Lost."""
        self.begin(sql)
        return self.rows()

    @property
    def server(self) -> str:
        """The name of the node that answers."""
        [[_, name]] = self.ask("SET spark.lbagent.node")
        return str(name)


class LongQuery:
    """A query that runs until it is let go: three rows go through a shell script that waits."""

    ROWS = (["0"], ["1"], ["2"])

    def __init__(self, session: Session, folder: Path) -> None:
        """Nothing is asked before the `with`, which is entered once a server works on it."""
        self._session = session
        self._hold = folder / f"hold-{os.urandom(4).hex()}"

    def __enter__(self) -> Self:
        running = self._hold.with_suffix(".running")
        self._hold.touch()
        # A server that is killed leaves the script behind: it ends by itself, with the folder at the latest.
        script = f"touch {running}; while [ -e {self._hold} ]; do sleep 0.1; done; cat"
        try:
            self._session.begin(
                f"SELECT TRANSFORM(id) USING 'sh -c \"{script}\"' AS (row STRING) FROM range(0, 3, 1, 1)"
            )
            wait_until(running.exists, START)
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def finished(self) -> bool:
        """Let it end, and say whether all its rows came. Raises Lost."""
        self._let_go()
        return self._session.rows() == [*self.ROWS]

    def _let_go(self) -> None:
        self._hold.unlink(missing_ok=True)
