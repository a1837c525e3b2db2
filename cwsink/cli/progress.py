"""Shows how far a command is: by bars on a terminal, elsewhere by a line now and then."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cwsink import diagnostics
from cwsink.cli import be_null, leaving, say
from cwsink.printable import printable

if TYPE_CHECKING:
    from rich.progress import TaskID

# In a log file, a line now and then says that the command is alive. More lines would only fill the file.
_LINE_SECONDS: Final = 10.0


class Display:
    """Shows progress as plain lines."""

    is_live = False
    """Whether progress is redrawn in place, so that each small step may be shown."""

    def __init__(self, verb: str = "delivered") -> None:
        self._verb = verb
        self._shown: dict[str, tuple[float, int]] = {}

    def say(self, line: str) -> None:
        """Print a line that stays."""
        say(line)

    def show(self, target: str, done: int, share: float | None, note: str = "") -> None:
        """Show how many records of a spool are done, if the last line is a while ago.

        Args:
            target: the spool's name for people.
            done: how many records are done.
            share: how much of all that is, from 0 to 1; None if no end is known.
            note: who does it.
        """
        at, before = self._shown.setdefault(target, (time.monotonic(), 0))
        if done != before and time.monotonic() - at >= _LINE_SECONDS:
            self._shown[target] = (time.monotonic(), done)
            self.say(f"{target}: {done:,} records {self._verb}{'' if share is None else f' ({share:.0%})'}")


class _Bars(Display):
    """Shows a bar for each spool, or a count if there is no total. Both are redrawn in place."""

    is_live = True

    def __init__(self, *, has_end: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeRemainingColumn

        columns: list[ProgressColumn] = [
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
        ]
        if has_end:
            columns.insert(2, BarColumn(bar_width=None, complete_style="cyan", finished_style="green"))
            columns.insert(4, TimeRemainingColumn(compact=True, elapsed_when_finished=True))
        self.progress = Progress(*columns, console=Console(highlight=False), expand=has_end)
        self._tasks: dict[str, TaskID] = {}

    def say(self, line: str) -> None:
        self.progress.console.print(printable(line, one_line=True), markup=False, soft_wrap=True)

    def show(self, target: str, done: int, share: float | None, note: str = "") -> None:
        count = f"{done:,} delivered" if share is None else f"{done:,} records, {share:.0%}"
        total = None if share is None else 1.0
        if target not in self._tasks:
            self._tasks[target] = self.progress.add_task(target, count=count, note=note, total=total)
        completed = done if share is None else share
        self.progress.update(self._tasks[target], completed=completed, total=total, count=count, note=note)


@contextlib.contextmanager
def display(*, has_end: bool, verb: str = "delivered") -> Iterator[Display]:
    """Yield the display that suits stdout. `has_end`: totals are known. `verb`: what is done to records."""
    # On a terminal of these two names rich draws nothing.
    if not sys.stdout.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        yield Display(verb)
        return
    bars = _Bars(has_end=has_end)
    with _diagnostics_above(bars), leaving.in_order(bars.progress):
        yield bars


@contextlib.contextmanager
def _diagnostics_above(bars: _Bars) -> Iterator[None]:
    """Print diagnostics above the bars. They are written to descriptor 2 itself, and could end up inside a bar."""
    if not os.isatty(2):
        yield
        return
    is_over = False

    def tell(_: str, message: str) -> None:
        if not is_over:
            bars.say(f"cwsink: {message}")

    stderr = os.dup(2)
    be_null(2)
    diagnostics.subscribe(tell)
    try:
        yield
    finally:
        is_over = True
        os.dup2(stderr, 2)
        os.close(stderr)
