"""The machines of examples/spark-ha on loopback: its own files, with other addresses, folders and sizes."""

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

SLOW = 300.0
"""Seconds that a Java program may take on a machine that others use too."""

TOKEN = "the token of lb01"

SIZES = {"SPARK_DAEMON_MEMORY=512m": "SPARK_DAEMON_MEMORY=256m", "SPARK_WORKER_MEMORY=2g": "SPARK_WORKER_MEMORY=1g"}
"""What makes a cluster fit a small machine."""


@functools.cache
def home() -> Path:
    """SPARK_HOME: the folder of pyspark, which has Spark's programs and ZooKeeper's."""
    asking = [str(VENV / "bin" / "python"), "-c", "import pyspark; print(pyspark.__path__[0])"]
    return Path(subprocess.run(asking, capture_output=True, text=True, check=True).stdout.strip())


class Answer(NamedTuple):
    """What came back for one request."""

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
        """What a master's page says that it is."""
        found = re.search(r"Status:</strong>\s+(\w+)", self.body)
        return found[1] if found else ""


def ask(host: str, path: str, method: str = "GET", body: str | None = None) -> Answer:
    """One request on a connection of its own, its path as it is given; status 0 where nothing came back."""
    connection = http.client.HTTPConnection(host, timeout=20)
    headers = {} if body is None else {"Content-Type": "application/x-www-form-urlencoded"}
    try:
        connection.request(method, path, body, headers)
        said = connection.getresponse()
        return Answer(said.status, said.read().decode("utf-8", "replace"), said.getheader("Location", ""))
    except (OSError, http.client.HTTPException):
        return Answer(0)
    finally:
        connection.close()


class Site:
    """A subnet of loopback in place of the example's 10.0.0.0/24, and a folder for each node's files."""

    def __init__(
        self, folder: Path, *, defaults: str = "spark-defaults.conf", more: str = "", hasty: bool = True
    ) -> None:
        """`defaults`: which of Spark's settings, with `more` below; not `hasty`: ZooKeeper's own idea of a session."""
        self.folder, self.hasty = folder, hasty
        self.subnet = f"127.{random.randint(64, 120)}.{random.randint(1, 250)}"
        self.key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
        self._defaults, self._more = defaults, more

    def address(self, last: int) -> str:
        """The address that is 10.0.0.`last` in the example."""
        return f"{self.subnet}.{last}"

    def text(self, name: str, folder: Path) -> str:
        """A file of the example, with addresses, folders and sizes of here."""
        text = (EXAMPLE / name).read_text(encoding="utf-8").replace("10.0.0.", f"{self.subnet}.")
        for before, after in {"/var/lib/": f"{folder}/", "/opt/spark": str(home()), **SIZES}.items():
            text = text.replace(before, after)
        return text

    def conf(self, last: int) -> Path:
        """A node's SPARK_CONF_DIR."""
        folder = self.folder / f"node{last}"
        (folder / "spark").mkdir(parents=True, exist_ok=True)
        env = self.text("spark/spark-env.sh", folder).replace(self.address(11), self.address(last))
        (folder / "spark-env.sh").write_text(env, encoding="utf-8")
        settings = self.text(f"spark/{self._defaults}", folder)
        (folder / "spark-defaults.conf").write_text(f"{settings}\n{self._more}\n", encoding="utf-8")
        return folder

    def environment(self, conf: Path) -> dict[str, str]:
        """What Spark's programs need to find each other."""
        python = str(VENV / "bin" / "python")
        own = {"SPARK_HOME": str(home()), "SPARK_CONF_DIR": str(conf), "PYSPARK_PYTHON": python}
        return {**clean_environment(), **own, "HOME": str(conf)}

    def service(self, kind: str, last: int) -> Program:
        """`master` or `worker`, as the example's systemd unit starts it."""
        conf = self.conf(last)
        unit = self.text(f"spark/spark-{kind}.service", conf)
        [words] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        return Program(words.split(), self.environment(conf), conf / f"{kind}.log")

    def zookeeper(self, last: int) -> Program:
        """One of the three, on the machine of a master."""
        folder = self.folder / f"node{last}"
        (folder / "zookeeper").mkdir(parents=True)
        (folder / "zookeeper" / "myid").write_text(str(last - 10), encoding="utf-8")
        text = self.text("zookeeper/zoo.cfg", folder)
        text = text.replace(f"Address={self.address(11)}", f"Address={self.address(last)}")
        if not self.hasty:
            text = re.sub(r"^(tickTime|m\w\wSessionTimeout)=.*\n", "", text, flags=re.MULTILINE) + "tickTime=2000\n"
        (folder / "zoo.cfg").write_text(text, encoding="utf-8")
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        argv = ["java", "-Xmx128m", "-cp", f"{home()}/jars/*", main, str(folder / "zoo.cfg")]
        return Program(argv, clean_environment(), folder / "zookeeper.log")

    def application(self, last: int, *settings: str) -> Program:
        """The example's application, submitted on a machine of its own."""
        conf = self.conf(last)
        sizes = ["spark.cores.max=1", "spark.driver.memory=512m", "spark.executor.memory=512m", *settings]
        argv = [f"{home()}/bin/spark-submit", *(word for one in sizes for word in ("--conf", one))]
        return Program([*argv, f"{EXAMPLE}/spark/app.py"], self.environment(conf), conf / "app.log")

    def agent(self, name: str, last: int, kind: str, env: dict[str, str] | None = None) -> SerfAgent:
        """A node's Serf agent with the example's settings for its kind."""
        folder = self.folder / name
        folder.mkdir()
        settings = json.loads(self.text(f"serf/{kind}.json", folder))
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
    """The load balancer: HAProxy with the example's haproxy.cfg, Serf with lbagent as its handler, `lbagent watch`."""

    def __init__(self, site: Site, roles: str = "roles.yml") -> None:
        """Nothing runs before the `with`."""
        self.lb = LoadBalancer(folder=site.folder / "lb")
        self.front = f"{site.address(10)}:{self.lb.front}"
        (self.lb.bin / "lbagent").symlink_to(LBAGENT)
        shutil.copy(EXAMPLE / "spark-503.http", self.lb.etc)
        text = site.text("haproxy.cfg", self.lb.folder)
        if os.getuid():
            text = text.replace("    user haproxy\n    group haproxy\n", "")
        self._fill(self.lb.cfg, text.replace("bind :80", f"bind {self.front}"))
        where = "haproxy: {config: /etc/haproxy/haproxy.cfg}\n"
        self._fill(self.lb.roles, where + site.text(roles, self.lb.folder))
        self.haproxy = Haproxy(self.lb)
        self.agent = site.agent("lb01", 10, "lb", {**self.lb.env, "SERF_RPC_AUTH": TOKEN})
        self.rpc = {"SERF_RPC_ADDR": self.agent.rpc, "SERF_RPC_AUTH": TOKEN}
        self.watch = Program([str(LBAGENT), "-v", "watch"], {**self.lb.env, **self.rpc}, self.lb.folder / "watch.log")

    def _fill(self, path: Path, text: str) -> None:
        text = text.replace("/run/haproxy/admin.sock", str(self.lb.socket))
        path.write_text(text.replace("/etc/haproxy/haproxy.cfg", str(self.lb.cfg)), encoding="utf-8")

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """All three, while they run."""
        with self.lb, self.haproxy, self.agent, self.watch:
            yield self

    def ask(self, path: str = "/spark/", method: str = "GET", body: str | None = None) -> Answer:
        """One request to the load balancer."""
        return ask(self.front, path, method, body)

    def shown(self) -> str:
        """The address of the leader that is shown; empty where none is."""
        return self.ask().leader

    def lines(self) -> list[str]:
        """The nodes that have a line in haproxy.cfg."""
        return [line.split()[1] for line in self.lb.managed]

    def check(self) -> list[str]:
        """What `lbagent check` has to say against it."""
        said = self.lb.run("check", env=self.rpc).stdout.decode()
        return [line for line in said.splitlines()[:-1] if not line.startswith("ok")]


class Machine:
    """A master's machine: the master, its Serf agent, and on three of them a ZooKeeper."""

    def __init__(self, site: Site, number: int, *, zookeeper: bool = True) -> None:
        """Nothing runs before `boot`."""
        self.name, self.address = f"master{number:02}", site.address(10 + number)
        self.ui = f"{self.address}:8080"
        self.zookeeper = site.zookeeper(10 + number) if zookeeper else None
        self.master = site.service("master", 10 + number)
        self.agent = site.agent(self.name, 10 + number, "master")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self.agent.__exit__()

    def boot(self) -> None:
        """Start what stands on it; a master's page may take a while."""
        if self.zookeeper:
            self.zookeeper.start()
        self.master.start()
        self.agent.start()

    def die(self) -> None:
        """All of it at once, without a word to anybody."""
        self.agent.kill()
        self.master.kill()
        if self.zookeeper:
            self.zookeeper.kill()

    def state(self) -> str:
        """What its own page says: ALIVE, STANDBY, RECOVERING; nothing where there is none."""
        return ask(self.ui, "/").state

    @property
    def programs(self) -> list[Program]:
        """Those that run."""
        return [one for one in (self.zookeeper, self.master) if one and one.lives]


def soon(condition: Callable[[], Value | None], seconds: float = SLOW) -> Value:
    """`eventually`, with the patience that Java needs."""
    value = wait_until(condition, seconds, 0.05)
    assert value is not None
    return value
