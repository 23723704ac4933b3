"""The machines of examples/spark-ha on loopback, with the example's files. Addresses, folders and memory differ."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from scenarios.programs import Program
from tests.helpers.real_programs import LBAGENT, Haproxy, LoadBalancer, SerfAgent, clean_environment, wait_until

Value = TypeVar("Value")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "spark-ha"
VENV = ROOT / "build" / "pyspark"
"""Where `make test-spark` installs pyspark."""

JAVA_TIMEOUT = 300.0
"""Seconds that a Java program may take on a busy machine."""

TOKEN = "the token of lb01"

SIZES = {"SPARK_DAEMON_MEMORY=512m": "SPARK_DAEMON_MEMORY=256m", "SPARK_WORKER_MEMORY=2g": "SPARK_WORKER_MEMORY=1g"}
"""Replacements that reduce the memory of the cluster."""


@functools.cache
def find_spark_home() -> Path:
    """Return SPARK_HOME: the folder of pyspark, with the programs of Spark and ZooKeeper."""
    command = [str(VENV / "bin" / "python"), "-c", "import pyspark; print(pyspark.__path__[0])"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


class Answer(NamedTuple):
    """The answer to one request."""

    status: int
    body: str = ""
    location: str = ""

    @property
    def leader(self) -> str:
        """The address of the master that the page shows as leader; empty for any other page."""
        found = re.search(r"Spark Master at spark://([0-9.]+):", self.body)
        return found[1] if found and self.state == "ALIVE" else ""

    @property
    def state(self) -> str:
        """The state on a master's page, such as ALIVE; empty for other pages."""
        found = re.search(r"Status:</strong>\s+(\w+)", self.body)
        return found[1] if found else ""


def request(host: str, path: str, method: str = "GET", body: str | None = None) -> Answer:
    """Send a request on a new connection, with the path unchanged. The status is 0 if there is no answer."""
    connection = http.client.HTTPConnection(host, timeout=20)
    headers = {} if body is None else {"Content-Type": "application/x-www-form-urlencoded"}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode("utf-8", "replace"), answer.getheader("Location", ""))
    except (OSError, http.client.HTTPException):
        return Answer(0)
    finally:
        connection.close()


class Site:
    """A loopback subnet that replaces the example's 10.0.0.0/24, and a folder for each node's files."""

    def __init__(
        self, folder: Path, *, defaults: str = "spark-defaults.conf", more: str = "", short_session: bool = True
    ) -> None:
        """`defaults` is a file of Spark's settings; `more` is appended.

        Without `short_session`, ZooKeeper has its default session timeout.
        """
        self.folder, self.short_session = folder, short_session
        self.subnet = f"127.{random.randint(64, 120)}.{random.randint(1, 250)}"
        self.key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
        self._defaults, self._more = defaults, more

    def address(self, last: int) -> str:
        """Return the address that replaces 10.0.0.`last`."""
        return f"{self.subnet}.{last}"

    def read_example(self, name: str, folder: Path) -> str:
        """Return the text of an example file, with the addresses, folders and sizes of this site."""
        text = (EXAMPLE / name).read_text(encoding="utf-8").replace("10.0.0.", f"{self.subnet}.")
        for before, after in {"/var/lib/": f"{folder}/", "/opt/spark": str(find_spark_home()), **SIZES}.items():
            text = text.replace(before, after)
        return text

    def write_conf(self, last: int) -> Path:
        """Write the Spark settings of a node, and return its SPARK_CONF_DIR."""
        folder = self.folder / f"node{last}"
        (folder / "spark").mkdir(parents=True, exist_ok=True)
        env = self.read_example("spark/spark-env.sh", folder).replace(self.address(11), self.address(last))
        (folder / "spark-env.sh").write_text(env, encoding="utf-8")
        settings = self.read_example(f"spark/{self._defaults}", folder)
        (folder / "spark-defaults.conf").write_text(f"{settings}\n{self._more}\n", encoding="utf-8")
        return folder

    def make_environment(self, conf: Path) -> dict[str, str]:
        """Return the environment of Spark's programs."""
        python = str(VENV / "bin" / "python")
        own = {"SPARK_HOME": str(find_spark_home()), "SPARK_CONF_DIR": str(conf), "PYSPARK_PYTHON": python}
        return {**clean_environment(), **own, "HOME": str(conf)}

    def make_service(self, kind: str, last: int) -> Program:
        """Return the `master` or `worker` of a node, with the command of the example's systemd unit."""
        conf = self.write_conf(last)
        unit = self.read_example(f"spark/spark-{kind}.service", conf)
        [words] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        return Program(words.split(), self.make_environment(conf), conf / f"{kind}.log")

    def make_zookeeper(self, last: int) -> Program:
        """Return the ZooKeeper on the machine of a master."""
        folder = self.folder / f"node{last}"
        (folder / "zookeeper").mkdir(parents=True)
        (folder / "zookeeper" / "myid").write_text(str(last - 10), encoding="utf-8")
        text = self.read_example("zookeeper/zoo.cfg", folder)
        text = text.replace(f"Address={self.address(11)}", f"Address={self.address(last)}")
        if not self.short_session:
            text = re.sub(r"^(tickTime|m\w\wSessionTimeout)=.*\n", "", text, flags=re.MULTILINE) + "tickTime=2000\n"
        (folder / "zoo.cfg").write_text(text, encoding="utf-8")
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        argv = ["java", "-Xmx128m", "-cp", f"{find_spark_home()}/jars/*", main, str(folder / "zoo.cfg")]
        return Program(argv, clean_environment(), folder / "zookeeper.log")

    def make_application(self, last: int, *settings: str) -> Program:
        """Return the example's application, which is submitted on its own machine."""
        conf = self.write_conf(last)
        sizes = ["spark.cores.max=1", "spark.driver.memory=512m", "spark.executor.memory=512m", *settings]
        argv = [f"{find_spark_home()}/bin/spark-submit", *(word for one in sizes for word in ("--conf", one))]
        return Program([*argv, f"{EXAMPLE}/spark/app.py"], self.make_environment(conf), conf / "app.log")

    def make_agent(self, name: str, last: int, kind: str, env: dict[str, str] | None = None) -> SerfAgent:
        """Return a node's Serf agent, with the example's settings for its kind."""
        folder = self.folder / name
        folder.mkdir()
        settings = json.loads(self.read_example(f"serf/{kind}.json", folder))
        settings |= {"node_name": name, "bind": self.address(last), "encrypt_key": self.key}
        if "rpc_auth" in settings:
            settings["rpc_auth"] = TOKEN
        (folder / "serf").mkdir()
        file = folder / "serf.json"
        file.touch(0o600)
        file.write_text(json.dumps(settings), encoding="utf-8")
        agent = SerfAgent(name, self.address(last), env=env, more=[f"-config-file={file}"])
        agent.bind = f"{self.address(last)}:7946"
        return agent


class Balancer:
    """The load balancer: HAProxy with the example's haproxy.cfg, Serf with lbagent as handler, `lbagent watch`."""

    def __init__(self, site: Site, roles: str = "roles.yml") -> None:
        """Write the files; `running` starts the programs."""
        self.lb = LoadBalancer(folder=site.folder / "lb")
        self.front = f"{site.address(10)}:{self.lb.front}"
        (self.lb.bin / "lbagent").symlink_to(LBAGENT)
        shutil.copy(EXAMPLE / "spark-503.http", self.lb.etc)
        text = site.read_example("haproxy.cfg", self.lb.folder)
        if os.getuid():
            text = text.replace("    user haproxy\n    group haproxy\n", "")
        self._write_file(self.lb.cfg, text.replace("bind :80", f"bind {self.front}"))
        where = "haproxy: {config: /etc/haproxy/haproxy.cfg}\n"
        self._write_file(self.lb.roles, where + site.read_example(roles, self.lb.folder))
        self.haproxy = Haproxy(self.lb)
        self.agent = site.make_agent("lb01", 10, "lb", {**self.lb.env, "SERF_RPC_AUTH": TOKEN})
        self.rpc = {"SERF_RPC_ADDR": self.agent.rpc, "SERF_RPC_AUTH": TOKEN}
        self.watch = Program([str(LBAGENT), "-v", "watch"], {**self.lb.env, **self.rpc}, self.lb.folder / "watch.log")

    def _write_file(self, path: Path, text: str) -> None:
        text = text.replace("/run/haproxy/admin.sock", str(self.lb.socket))
        path.write_text(text.replace("/etc/haproxy/haproxy.cfg", str(self.lb.cfg)), encoding="utf-8")

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Run HAProxy, Serf and `lbagent watch`."""
        with self.lb, self.haproxy, self.agent, self.watch:
            yield self

    def request(self, path: str = "/spark/", method: str = "GET", body: str | None = None) -> Answer:
        """Send a request to the load balancer."""
        return request(self.front, path, method, body)

    def find_leader(self) -> str:
        """Return the address of the leader that the load balancer shows; empty if it shows none."""
        return self.request().leader

    def list_nodes(self) -> list[str]:
        """Return the nodes that have a server line in haproxy.cfg."""
        return [line.split()[1] for line in self.lb.managed]

    def list_findings(self) -> list[str]:
        """Return the warnings and errors of `lbagent check`."""
        output = self.lb.run("check", env=self.rpc).stdout.decode()
        return [line for line in output.splitlines()[:-1] if not line.startswith("ok")]


class Machine:
    """A master's machine: the master, its Serf agent, and a ZooKeeper on three of them."""

    def __init__(self, site: Site, number: int, *, zookeeper: bool = True) -> None:
        """Prepare the programs; `boot` starts them."""
        self.name, self.address = f"master{number:02}", site.address(10 + number)
        self.ui = f"{self.address}:8080"
        self.zookeeper = site.make_zookeeper(10 + number) if zookeeper else None
        self.master = site.make_service("master", 10 + number)
        self.agent = site.make_agent(self.name, 10 + number, "master")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.agent.__exit__()

    def boot(self) -> None:
        """Start the programs of the machine. Returns before the master's page is ready."""
        if self.zookeeper:
            self.zookeeper.start()
        self.master.start()
        self.agent.start()

    def kill(self) -> None:
        """Kill all programs at once; Serf does not leave."""
        self.agent.kill()
        self.master.kill()
        if self.zookeeper:
            self.zookeeper.kill()

    def read_state(self) -> str:
        """Return the state on the master's own page: ALIVE, STANDBY, RECOVERING; empty without a page."""
        return request(self.ui, "/").state

    @property
    def programs(self) -> list[Program]:
        """The ZooKeeper and the master, if they run."""
        return [one for one in (self.zookeeper, self.master) if one and one.is_running]


def wait_for_spark(condition: Callable[[], Value | None], seconds: float = JAVA_TIMEOUT) -> Value:
    """Wait until `condition` is true, with a limit for Java programs, and return its value."""
    value = wait_until(condition, seconds, 0.05)
    assert value is not None
    return value
