"""What runs on the nodes of the platform: real programs, and what stands in where there is none to be had."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import re
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scenarios.platform.machines import Machine, Program
from tests.helpers.real_programs import wait_until

HERE = Path(__file__).resolve().parents[2]
EXAMPLE = HERE / "examples" / "data-platform"
DISKS = "10.20.0.30"
SERVES = {
    "web": ("web-ui", "api"),
    "api": ("api",),
    "minio": ("minio",),
    "zeppelin": ("zeppelin", "spark-driver"),
    "spark": ("spark-driver",),
    "monitor": ("prometheus", "grafana"),
}
"""The services of each kind of node, as the example's roles.yml has them."""

PAGE = "<!DOCTYPE html>\n<title>Platform</title>\n<link rel=stylesheet href=/platform.css>\n" + "<p>A page.</p>\n" * 60
STYLE = "p { margin: 0 }\n" * 60
TABLE = "day,visits\n" + "2024-01-01,1\n" * 80
ACCESS = ("platform", "a-secret-of-the-platform")


def kind_of(name: str) -> str:
    """`web` of `web01`."""
    return name.rstrip("0123456789")


def settings(name: str) -> dict[str, Any]:
    """The example's Serf settings for a node; a second one of its kind differs in name and address."""
    found: dict[str, Any] = json.loads((EXAMPLE / "serf" / f"{kind_of(name)}01.json").read_text())
    network_, last = found["bind"].rsplit(".", 1)
    number = int(name.removeprefix(kind_of(name)))
    return {**found, "node_name": name, "bind": f"{network_}.{int(last) + number - 1}"}


def listens(address: str, port: int) -> Callable[[], bool]:
    """Whether somebody listens there, asked when called."""

    def asked() -> bool:
        with socket.create_connection((address, port), 2):
            return True

    return asked


def answers(url: str) -> Callable[[], bool]:
    """Whether there is a good answer, asked when called."""

    def asked() -> bool:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)

    return asked


def _nginx(machine: Machine, folder: Path) -> Iterator[Program]:
    """The example's nginx.conf; what is published is the same on every machine."""
    Path("/srv/web-ui").mkdir(exist_ok=True)
    Path("/srv/web-ui/index.html").write_text(PAGE)
    Path("/srv/web-ui/platform.css").write_text(STYLE)
    more = f"pid {folder}/{machine.name}.pid; error_log stderr;"
    argv = machine.within(
        "nginx", "-c", str(EXAMPLE / "services/nginx.conf"), "-e", "stderr", "-g", f"daemon off; {more}"
    )
    yield Program(argv, folder / f"{machine.name}.log", answers(f"http://{machine.address}:8000/api/health"))


def _minio(machine: Machine, folder: Path) -> Iterator[Program]:
    """SeaweedFS, which speaks S3 and holds it to its signatures; all such nodes have the same disks."""
    argv = machine.within(_installed("weed"), "s3", "-port=9000", "-ip.bind=0.0.0.0", f"-filer={DISKS}:8888")
    argv.append(f"-config={folder}/s3.json")
    yield Program(argv, folder / f"{machine.name}.log", listens(machine.address, 9000))


def _zeppelin(machine: Machine, folder: Path) -> Iterator[Program]:
    argv = machine.within(sys.executable, "-m", "scenarios.platform.standins", "zeppelin", machine.name)
    url = f"http://{machine.address}:8080/api/version"
    yield Program(argv, folder / f"{machine.name}.log", answers(url), PYTHONPATH=str(HERE))
    if machine.name == "zeppelin01":
        yield from _driver(machine, folder)


def _driver(machine: Machine, folder: Path) -> Iterator[Program]:
    """Spark's own driver, with the example's spark-defaults.conf, on the port that its Serf tag says."""
    port = settings(machine.name)["tags"].get("ui_port", "4040")
    conf = folder / f"{machine.name}-conf"
    conf.mkdir()
    text = (EXAMPLE / "services/spark-defaults.conf").read_text()
    (conf / "spark-defaults.conf").write_text(re.sub(r"(?m)^(spark\.ui\.port +)4040$", rf"\g<1>{port}", text))
    argv = machine.within(sys.executable, "-m", "scenarios.platform.driver", machine.name)
    env = {"SPARK_CONF_DIR": str(conf), "SPARK_LOCAL_IP": machine.address, "SPARK_LOCAL_DIRS": str(folder)}
    env |= {"PYTHONPATH": str(HERE), "PYSPARK_PYTHON": sys.executable, "HOME": str(folder)}
    log = folder / f"{machine.name}-driver.log"
    yield Program(argv, log, answers(f"http://{machine.address}:{port}/jobs/"), **env)


def _monitor(machine: Machine, folder: Path) -> Iterator[Program]:
    """Debian's Prometheus with the example's files, and what stands in for Grafana."""
    argv = machine.within("prometheus", f"--config.file={EXAMPLE}/monitoring/prometheus.yml")
    argv += [f"--storage.tsdb.path={folder}/{machine.name}-tsdb", "--web.listen-address=:9090"]
    ready = answers(f"http://{machine.address}:9090/-/ready")
    yield Program(argv, folder / f"{machine.name}.log", ready)
    argv = machine.within(sys.executable, "-m", "scenarios.platform.standins", "grafana", machine.name)
    log = folder / f"{machine.name}-grafana.log"
    yield Program(argv, log, answers(f"http://{machine.address}:3000/api/health"), PYTHONPATH=str(HERE))


KINDS: dict[str, Callable[[Machine, Path], Iterator[Program]]] = {
    "web": _nginx,
    "api": _nginx,
    "minio": _minio,
    "zeppelin": _zeppelin,
    "spark": _driver,
    "monitor": _monitor,
}


@contextlib.contextmanager
def disks(folder: Path) -> Iterator[None]:
    """The storage behind the S3 nodes, with a table for everybody, and what MinIO answers to a health check."""
    everybody = {"name": "anonymous", "actions": ["Read:minio", "Read:public"]}
    key = {"accessKey": ACCESS[0], "secretKey": ACCESS[1]}
    owner = {"name": "platform", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [owner, everybody]}))
    (folder / "disks").mkdir()
    with Machine("disks", DISKS) as machine:
        argv = machine.within(_installed("weed"), "server", f"-dir={folder}/disks", f"-ip={DISKS}", "-ip.bind=0.0.0.0")
        argv += [
            "-filer",
            "-s3",
            "-s3.port=9000",
            f"-s3.config={folder}/s3.json",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=100",
        ]
        weed = Program(argv, folder / "disks.log", listens(DISKS, 9000))
        try:
            weed.start()
            weed.ready()
            wait_until(functools.partial(_filled, storage(f"{DISKS}:9000")), 120, 0.5)
            yield
        finally:
            weed.end()
            # SeaweedFS leaves its sockets behind, and knows no other folder for them.
            for left in Path("/tmp").glob("seaweedfs-*.sock"):
                left.unlink()


def storage(where: str) -> Any:  # noqa: ANN401  # MinIO's own client, where it is installed
    """MinIO's client, with the keys of the platform."""
    return importlib.import_module("minio").Minio(where, *ACCESS, secure=False)


def _filled(client: Any) -> bool:  # noqa: ANN401
    """Put there what every MinIO and every platform has; False while there is no room yet."""
    try:
        for bucket, name, content in (("minio", "health/live", ""), ("public", "table.csv", TABLE)):
            if not client.bucket_exists(bucket):
                client.make_bucket(bucket)
            client.put_object(bucket, name, io.BytesIO(content.encode()), len(content))
    except Exception as error:  # noqa: BLE001  # a store that starts says this and that
        print(f"the disks are not ready: {error}")
        return False
    return True


def _installed(program: str) -> str:
    return str(Path(sys.executable).with_name(program))
