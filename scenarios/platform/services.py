"""The services on the nodes of the platform: real programs, and substitutes for programs without a package."""

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
"""The services of each kind of node, as in the example's roles.yml."""

PAGE = "<!DOCTYPE html>\n<title>Platform</title>\n<link rel=stylesheet href=/platform.css>\n" + "<p>A page.</p>\n" * 60
STYLE = "p { margin: 0 }\n" * 60
TABLE = "day,visits\n" + "2024-01-01,1\n" * 80
ACCESS_KEYS = ("platform", "a-secret-of-the-platform")


def find_kind(name: str) -> str:
    """Return the kind of a node, such as `web` of `web01`."""
    return name.rstrip("0123456789")


def read_settings(name: str) -> dict[str, Any]:
    """Return the example's Serf settings for a node. A second node of a kind differs in name and address."""
    found: dict[str, Any] = json.loads((EXAMPLE / "serf" / f"{find_kind(name)}01.json").read_text())
    network_, last = found["bind"].rsplit(".", 1)
    number = int(name.removeprefix(find_kind(name)))
    return {**found, "node_name": name, "bind": f"{network_}.{int(last) + number - 1}"}


def make_port_probe(address: str, port: int) -> Callable[[], bool]:
    """Return a function that returns whether a program listens there. It may raise OSError."""

    def probe() -> bool:
        with socket.create_connection((address, port), 2):
            return True

    return probe


def make_http_probe(url: str) -> Callable[[], bool]:
    """Return a function that returns whether the URL answers with status 200. It may raise OSError."""

    def probe() -> bool:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)

    return probe


def _nginx(machine: Machine, folder: Path) -> Iterator[Program]:
    """Yield nginx with the example's nginx.conf. The pages are the same on every machine."""
    Path("/srv/web-ui").mkdir(exist_ok=True)
    Path("/srv/web-ui/index.html").write_text(PAGE)
    Path("/srv/web-ui/platform.css").write_text(STYLE)
    more = f"pid {folder}/{machine.name}.pid; error_log stderr;"
    argv = machine.command(
        "nginx", "-c", str(EXAMPLE / "services/nginx.conf"), "-e", "stderr", "-g", f"daemon off; {more}"
    )
    yield Program(argv, folder / f"{machine.name}.log", make_http_probe(f"http://{machine.address}:8000/api/health"))


def _minio(machine: Machine, folder: Path) -> Iterator[Program]:
    """Yield SeaweedFS, an S3 server that checks signatures. All its nodes share their disks."""
    argv = machine.command(_find_program("weed"), "s3", "-port=9000", "-ip.bind=0.0.0.0", f"-filer={DISKS}:8888")
    argv.append(f"-config={folder}/s3.json")
    yield Program(argv, folder / f"{machine.name}.log", make_port_probe(machine.address, 9000))


def _zeppelin(machine: Machine, folder: Path) -> Iterator[Program]:
    argv = machine.command(sys.executable, "-m", "scenarios.platform.substitutes", "zeppelin", machine.name)
    url = f"http://{machine.address}:8080/api/version"
    yield Program(argv, folder / f"{machine.name}.log", make_http_probe(url), PYTHONPATH=str(HERE))
    if machine.name == "zeppelin01":
        yield from _driver(machine, folder)


def _driver(machine: Machine, folder: Path) -> Iterator[Program]:
    """Yield a real Spark driver with the example's spark-defaults.conf, on the port of its Serf tag."""
    port = read_settings(machine.name)["tags"].get("ui_port", "4040")
    conf = folder / f"{machine.name}-conf"
    conf.mkdir()
    text = (EXAMPLE / "services/spark-defaults.conf").read_text()
    (conf / "spark-defaults.conf").write_text(re.sub(r"(?m)^(spark\.ui\.port +)4040$", rf"\g<1>{port}", text))
    argv = machine.command(sys.executable, "-m", "scenarios.platform.driver", machine.name)
    env = {"SPARK_CONF_DIR": str(conf), "SPARK_LOCAL_IP": machine.address, "SPARK_LOCAL_DIRS": str(folder)}
    env |= {"PYTHONPATH": str(HERE), "PYSPARK_PYTHON": sys.executable, "HOME": str(folder)}
    log = folder / f"{machine.name}-driver.log"
    yield Program(argv, log, make_http_probe(f"http://{machine.address}:{port}/jobs/"), **env)


def _monitor(machine: Machine, folder: Path) -> Iterator[Program]:
    """Yield Debian's Prometheus with the example's files, and the substitute for Grafana."""
    argv = machine.command("prometheus", f"--config.file={EXAMPLE}/monitoring/prometheus.yml")
    argv += [f"--storage.tsdb.path={folder}/{machine.name}-tsdb", "--web.listen-address=:9090"]
    ready = make_http_probe(f"http://{machine.address}:9090/-/ready")
    yield Program(argv, folder / f"{machine.name}.log", ready)
    argv = machine.command(sys.executable, "-m", "scenarios.platform.substitutes", "grafana", machine.name)
    log = folder / f"{machine.name}-grafana.log"
    yield Program(argv, log, make_http_probe(f"http://{machine.address}:3000/api/health"), PYTHONPATH=str(HERE))


KINDS: dict[str, Callable[[Machine, Path], Iterator[Program]]] = {
    "web": _nginx,
    "api": _nginx,
    "minio": _minio,
    "zeppelin": _zeppelin,
    "spark": _driver,
    "monitor": _monitor,
}


@contextlib.contextmanager
def run_storage(folder: Path) -> Iterator[None]:
    """Run the storage of the S3 nodes, with a public table and an object for MinIO's health check."""
    anonymous = {"name": "anonymous", "actions": ["Read:minio", "Read:public"]}
    key = {"accessKey": ACCESS_KEYS[0], "secretKey": ACCESS_KEYS[1]}
    owner = {"name": "platform", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [owner, anonymous]}))
    (folder / "disks").mkdir()
    with Machine("disks", DISKS) as machine:
        argv = machine.command(
            _find_program("weed"), "server", f"-dir={folder}/disks", f"-ip={DISKS}", "-ip.bind=0.0.0.0"
        )
        argv += [
            "-filer",
            "-s3",
            "-s3.port=9000",
            f"-s3.config={folder}/s3.json",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=100",
        ]
        weed = Program(argv, folder / "disks.log", make_port_probe(DISKS, 9000))
        try:
            weed.start()
            weed.wait_until_ready()
            wait_until(functools.partial(_fill_storage, make_client(f"{DISKS}:9000")), 120, 0.5)
            yield
        finally:
            weed.end()
            # SeaweedFS does not remove its sockets, and has no option for their folder.
            for left in Path("/tmp").glob("seaweedfs-*.sock"):
                left.unlink()


def make_client(where: str) -> Any:  # noqa: ANN401  # MinIO's client, if it is installed
    """Return MinIO's client, with the keys of the platform."""
    return importlib.import_module("minio").Minio(where, *ACCESS_KEYS, secure=False)


def _fill_storage(client: Any) -> bool:  # noqa: ANN401
    """Create the health object and the public table. Returns False if the storage is not ready."""
    try:
        for bucket, name, content in (("minio", "health/live", ""), ("public", "table.csv", TABLE)):
            if not client.bucket_exists(bucket):
                client.make_bucket(bucket)
            client.put_object(bucket, name, io.BytesIO(content.encode()), len(content))
    except Exception as error:  # noqa: BLE001  # a starting store raises various errors
        print(f"the disks are not ready: {error}")
        return False
    return True


def _find_program(program: str) -> str:
    return str(Path(sys.executable).with_name(program))
