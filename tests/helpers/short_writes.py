"""Writes that the kernel cuts short: a library that a run loads first, built with `cc`.

The kernel may write less than it was asked to, to a file, a pipe or a socket, and reports how much. No option of
strace does that.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static long cut, calls;
static const char *report;

__attribute__((constructor)) static void start(void) {
    cut = atol(getenv("SHORT_WRITE"));
    report = getenv("SHORT_WRITE_REPORT");
    unsetenv("LD_PRELOAD"); /* programs that the run starts are not tested */
}

/* The length to write: half of the call with the wanted number, if it can be cut. */
static size_t shorten(int descriptor, size_t length) {
    if (length < 2 || ++calls != cut) return length;
    int file = open(report, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dprintf(file, "%zu of %zu bytes to descriptor %d", length / 2, length, descriptor);
    close(file);
    return length / 2;
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return real(descriptor, bytes, shorten(descriptor, length));
}

ssize_t send(int descriptor, const void *bytes, size_t length, int flags) {
    ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");
    return real(descriptor, bytes, shorten(descriptor, length), flags);
}
"""


def build_library(folder: Path) -> Path:
    """Build the library in this folder, and return its path."""
    path, source = folder / "short_writes.so", folder / "short_writes.c"
    source.write_text(_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True, timeout=60)
    return path


def make_environment(library: Path, number: int, report: Path) -> Mapping[str, str]:
    """Return the variables of a run whose write with this number writes half of its bytes.

    The run describes the write in `report`.
    """
    return {
        "LD_PRELOAD": str(library),
        "SHORT_WRITE": str(number),
        "SHORT_WRITE_REPORT": str(report),
    }
