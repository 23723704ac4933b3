"""What a command waits for, on a terminal only: a spinner and lines on stderr that are replaced in place."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text


class Progress:
    """Shows what is awaited; nothing where stderr is not a terminal, or one that cannot move its cursor."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        if not self._console.width:
            self._console.width = 80  # COLUMNS=0
        self._is_visible = sys.stderr.isatty() and not self._console.is_dumb_terminal
        # ASCII: a terminal of any locale can show it.
        self._spinner = Spinner("line")
        self._shown: Group | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.show("")

    @property
    def is_visible_with_stdout(self) -> bool:
        """Whether stdout is a terminal as well: then lines there need not repeat what is shown."""
        return self._is_visible and sys.stdout.isatty()

    def show(self, words: str, lines: Sequence[str] = ()) -> None:
        """Show the spinner with `words`, and `lines` below it, in place of what was shown; nothing with empty words."""
        if not self._is_visible:
            return
        self._spinner.update(text=Text(words, overflow="ellipsis", no_wrap=True))
        below = [Text(f"  {line}", overflow="ellipsis", no_wrap=True) for line in lines]
        self._shown = Group(self._spinner, *below) if words else None
        self._draw()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Within the `with`, nothing is shown, so that a line can be printed."""
        shown, self._shown = self._shown, None
        self._draw()
        try:
            yield
        finally:
            self._shown = shown
            self._draw()

    def _draw(self) -> None:
        if self._shown is None:
            if self._live:
                self._live.stop()
            self._live = None
        elif self._live:
            self._live.update(self._shown)
        else:
            # Always a new one: rich's Live erases as many lines as it had shown before it was stopped.
            self._live = Live(
                self._shown, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
