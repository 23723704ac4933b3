"""Hostile inputs through the whole path: a slice here, 100,000 of them with `make fuzz`."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from lbagent.settings import Paths
from tests.helpers import hostile_inputs as hostile
from tests.helpers.load_balancer_files import LoadBalancerFiles, build_files
from tests.helpers.real_programs import LBAGENT, binaries

COUNT = int(os.environ.get("LBAGENT_HOSTILE", "3000"))
"""Read once, here: no test sees the variable."""

SEEDS = 4


@pytest.mark.timeout(60 + COUNT)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_input_breaks_anything(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    counts = hostile.run(tmp_path, COUNT // SEEDS, seed)

    with capsys.disabled():
        print(f"\nseed {seed}: {json.dumps(dict(sorted(counts.items())), indent=1)}" if COUNT > 10_000 else "", end="")
    assert sum(counts[f"input: {kind}"] for kind in hostile.KINDS_OF_INPUT) == COUNT // SEEDS
    assert all(counts[f"input: {kind}"] for kind in hostile.KINDS_OF_INPUT)
    assert counts["answers to queries"]
    assert counts["lines written"] > COUNT // SEEDS // 50


@pytest.mark.real
@pytest.mark.parametrize("version", sorted(binaries()))
def test_a_real_haproxy_takes_what_hostile_events_leave(tmp_path: Path, version: str) -> None:
    stage: LoadBalancerFiles = build_files(tmp_path, str(LBAGENT), hostile.CFG, "", str(binaries()[version]))
    stage.roles.write_text(hostile.ROLES.format(cfg=stage.cfg))
    Paths(str(stage.state)).prepare()
    (tmp_path / "lab").mkdir()
    made = hostile.Lab(tmp_path / "lab", random.Random(version))
    for _ in range(25):
        stdin = "".join(made.make_member_line() for _ in range(4)).encode("utf-8", "surrogateescape")
        done = stage.handle(made.chance.choice(hostile.KINDS[:4]), stdin)
        assert done.status in (0, 3, 4), done.err
        assert "internal error" not in done.err
    assert stage.join("good01 10.1.0.1").status in (0, 3, 4)

    checked = subprocess.run([binaries()[version], "-c", "-f", stage.cfg], capture_output=True, check=False, text=True)

    assert checked.returncode == 0, checked.stderr
    assert hostile.drop_managed_lines(stage.cfg.read_bytes()) == hostile.drop_managed_lines(hostile.CFG.encode())
    assert any(line.startswith("server good01 10.1.0.1:80 ") for line in stage.managed)


@pytest.mark.parametrize(
    "name",
    [
        *("haproxy.cfg", "roles.yml", "members.json", "served.json", "roles.json", "last.json"),
        *("history.jsonl", "answers.json", "peers.json", "metrics.prom"),
    ],
)
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link in a circle"])
def test_a_file_that_is_not_regular_blocks_no_run(tmp_path: Path, name: str, kind: str) -> None:
    stage = build_files(tmp_path, str(LBAGENT), hostile.CFG, "", shutil.which("true"))
    stage.roles.write_text(hostile.ROLES.format(cfg=stage.cfg))
    assert stage.join("web01 10.0.0.1").status == 0
    path = tmp_path / name if (tmp_path / name).exists() else stage.state / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)

    done = stage.join("web02 10.0.0.2")

    assert "internal error" not in done.err
    if name in ("haproxy.cfg", "roles.yml"):
        assert done.status in (1, 2)
        assert str(path.resolve() if kind == "device" and name == "haproxy.cfg" else path) in done.err
        assert stage.spool_files == (["1"] if name == "roles.yml" else [])
