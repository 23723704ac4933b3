"""Real HiveServer2 servers and sessions on them. Spark's Thrift Server uses the protocol of Impala's port 21050."""

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
"""The environment with pyspark and impyla, which `make test-impala` creates."""

START_TIMEOUT = 900.0
"""Seconds until a server listens, or until an answer arrives, on a busy machine with two cores."""

_CLOSED_PACKAGES = (
    *("java.io", "java.lang", "java.lang.invoke", "java.lang.reflect", "java.net", "java.nio", "java.util"),
    *("java.util.concurrent", "java.util.concurrent.atomic", "sun.nio.ch", "sun.nio.cs", "sun.security.action"),
    "sun.util.calendar",
)
"""Packages that Spark accesses by reflection, which Java denies by default."""


class Server:
    """A Thrift Server whose setting `spark.lbagent.node` is the name of its node."""

    def __init__(self, name: str, address: str, port: int, folder: Path) -> None:
        """Prepare the server; `start` starts it. It writes only below `folder`."""
        self.name, self.address, self.port = name, address, port
        self._folder = folder / name
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; `wait_until_ready` waits until it listens."""
        self._folder.mkdir(exist_ok=True)
        environ = {**clean_environment(), "SPARK_LOCAL_IP": self.address}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._make_command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, cwd=self._folder
            )

    def wait_until_ready(self) -> None:
        """Wait until the server listens. Raises RuntimeError with its log if it has ended."""
        wait_until(self._listens, START_TIMEOUT, 0.2)

    def kill(self) -> None:
        """End the server by SIGKILL, like a crash."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the server by SIGTERM, and by SIGKILL after 20 s."""
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

    def _make_command(self) -> list[str]:
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
            # These options make the start quick on few cores; queries become slower.
            *("java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"),
            f"-Djava.io.tmpdir={self._folder}",
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _CLOSED_PACKAGES),
            *("-cp", f"{jars}/*", "org.apache.spark.deploy.SparkSubmit", "--master", "local[3]"),
            *("--class", "org.apache.spark.sql.hive.thriftserver.HiveThriftServer2"),
            *(word for key, value in settings.items() for word in ("--conf", f"{key}={value}")),
            "spark-internal",
            *(word for key, value in hive.items() for word in ("--hiveconf", f"hive.server2.{key}={value}")),
        ]


@contextlib.contextmanager
def run_servers(*servers: Server) -> Iterator[None]:
    """Run the servers, which start in parallel."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_until_ready()
        yield
    finally:
        for server in servers:
            server.stop()


class QueryFailed(Exception):
    """A query or its session failed."""


class Session:
    """A session of a real client, impyla, with the source address `source`."""

    def __init__(self, port: int, source: str) -> None:
        """Prepare the client. `__enter__` connects to `port` of the load balancer. Raises QueryFailed."""
        self._argv = [
            str(VENV / "bin" / "python"),
            "-P",  # without the client's own folder in sys.path: impyla needs Python's `platform`
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
            self.read_rows()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the client by SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def send_query(self, sql: str) -> None:
        """Send a query; `read_rows` returns its result."""
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(f"{json.dumps(sql)}\n")
        self._process.stdin.flush()

    def read_rows(self) -> list[list[Any]]:
        """Return the rows of the query that was sent. Raises QueryFailed.

        It fails if the client has connected a second time.
        """
        assert self._process
        assert self._process.stdout
        timer = threading.Timer(START_TIMEOUT, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise QueryFailed("the client ended")
        answer = json.loads(line)
        if "error" in answer:
            raise QueryFailed(answer["error"])
        assert answer["opened"] == 1, "the client has connected again"
        rows: list[list[Any]] = answer["rows"]
        return rows

    def run_query(self, sql: str) -> list[list[Any]]:
        """Run a query, and return its rows. Raises QueryFailed."""
        self.send_query(sql)
        return self.read_rows()

    @property
    def node(self) -> str:
        """The name of the node that answers."""
        [[_, name]] = self.run_query("SET spark.lbagent.node")
        return str(name)


class LongQuery:
    """A query that runs until `finish`: its three rows pass a shell script that waits."""

    ROWS = (["0"], ["1"], ["2"])

    def __init__(self, session: Session, folder: Path) -> None:
        """Prepare the query; `__enter__` sends it, and returns when a server executes it."""
        self._session = session
        self._hold = folder / f"hold-{os.urandom(4).hex()}"

    def __enter__(self) -> Self:
        running = self._hold.with_suffix(".running")
        self._hold.touch()
        # The script outlives a killed server. It ends when the file is removed, at the latest with the folder.
        script = f"touch {running}; while [ -e {self._hold} ]; do sleep 0.1; done; cat"
        try:
            self._session.send_query(
                f"SELECT TRANSFORM(id) USING 'sh -c \"{script}\"' AS (row STRING) FROM range(0, 3, 1, 1)"
            )
            wait_until(running.exists, START_TIMEOUT)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def finish(self) -> bool:
        """Let the query end, and return whether all its rows arrived. Raises QueryFailed."""
        self._release()
        return self._session.read_rows() == [*self.ROWS]

    def _release(self) -> None:
        self._hold.unlink(missing_ok=True)
