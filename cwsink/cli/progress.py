"""How `cwsink flush` shows that it gets on: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

from cwsink import diagnostics

if TYPE_CHECKING:
    from rich.progress import TaskID

# In a log file a line says that it is alive; more would only fill it.
_LINE_SECONDS: Final = 10.0


class Display(Protocol):
    """What both can do. A context manager."""

    def say(self, line: str) -> None:
        """Print a line that stays."""

    def show(self, target: str, done: int, total: int | None, note: str = "") -> None:
        """Show how far one spool is, in records; `total` None if there is no end."""

    def __enter__(self) -> Display: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display(*, has_end: bool) -> Display:
    """Return what suits stdout. `has_end`: there will be totals."""
    return Bars(has_end=has_end) if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else Lines()


class Lines:
    """Plain lines."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[float, int]] = {}

    def say(self, line: str) -> None:
        """Print it."""
        print(line, flush=True)

    def show(self, target: str, done: int, total: int | None, note: str = "") -> None:
        """Print it if something was done, and the last line is a while ago."""
        at, before = self._shown.setdefault(target, (time.monotonic(), 0))
        if done != before and time.monotonic() - at >= _LINE_SECONDS:
            self._shown[target] = (time.monotonic(), done)
            self.say(f"{target}: {done:,}{'' if total is None else f' of {total:,}'} records delivered")

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Bars:
    """A bar for each spool, redrawn in place; without totals a count."""

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
        self._progress = Progress(*columns, console=Console(highlight=False), expand=has_end)
        self._tasks: dict[str, TaskID] = {}
        self._stderr: int | None = None

    def say(self, line: str) -> None:
        """Print it above the bars."""
        self._progress.console.print(line, markup=False, soft_wrap=True)

    def show(self, target: str, done: int, total: int | None, note: str = "") -> None:
        """Redraw the bar. Without a total it is only a count."""
        count = f"{done:,} delivered" if total is None else f"{done:,} of {total:,}"
        if target not in self._tasks:
            self._tasks[target] = self._progress.add_task(target, count=count, note=note, total=total)
        self._progress.update(self._tasks[target], completed=done, total=total, count=count, note=note)

    def __enter__(self) -> Display:
        self._progress.start()
        if os.isatty(2):
            # Diagnostics write to the descriptor itself, in the middle of a bar: have them printed above.
            self._stderr = os.dup(2)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)
            diagnostics.subscribe(self._tell)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._stderr is not None:
            os.dup2(self._stderr, 2)
            os.close(self._stderr)
            self._stderr = None

    def _tell(self, _: str, message: str) -> None:
        if self._stderr is not None:
            self.say(f"cwsink: {message}")
