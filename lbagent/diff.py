"""What would change in haproxy.cfg, as a unified diff on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from lbagent import scene
from lbagent.plan import Plan
from lbagent.scene import Scene


def show(seen: Scene, wanted: Plan) -> None:
    """Print the diff from what stands to what is planned; the operator's bytes, whatever their encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.writelines(scene.encoded(line) for line in _diff(seen, wanted))
    sys.stdout.flush()


def _diff(seen: Scene, wanted: Plan) -> Iterator[str]:
    import difflib  # noqa: PLC0415  # 6 ms that only a person waits for

    for target, before, after in zip(seen.targets, wanted.before, wanted.after, strict=True):
        old, new = (text.split("\n") for text in (before, after))
        yield from difflib.unified_diff(_lines(old), _lines(new), target.given, f"{target.given} (planned)", n=2)


def _lines(split: Sequence[str]) -> list[str]:
    lines = [f"{line}\n" for line in split[:-1]]
    return [*lines, f"{split[-1]}\n\\ No newline at end of file\n"] if split[-1] else lines
