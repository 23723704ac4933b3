"""C libraries that a program loads first, and which stand between it and the kernel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

SHORT_WRITES = Path(__file__).with_name("short_writes.c")


def compile_library(source: Path, library: Path) -> Path:
    """Compile the C file `source`, and return the path of the library. Programs that have loaded an old one keep it."""
    beside = library.with_name(f"{library.name}.{os.getpid()}")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", beside, source, "-ldl"], check=True, timeout=60)
    return beside.rename(library)


def cut_write(library: Path, number: int, report: Path) -> Mapping[str, str]:
    """Return the variables of a run whose write with this number writes half of its bytes.

    `library` is compiled from SHORT_WRITES. The run describes the write in `report`.
    """
    return {
        "LD_PRELOAD": str(library),
        "SHORT_WRITE": str(number),
        "SHORT_WRITE_REPORT": str(report),
    }
