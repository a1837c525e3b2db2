"""Shows the demo: a live line on a terminal, plain lines elsewhere, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from cwsink.demo.read_back import LogEvent
from cwsink.demo.sandbox import DemoError, Sandbox
from cwsink.demo.verdict import Ending, Verdict

_SHOULD_BE_NONE: Final = frozenset({"pending", "lost"})
_SHOWN_FIELDS: Final = ("request_id", "path", "pid")


class Screen:
    """Shows the demo while it runs. It is a context manager: the live line is there only inside."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        # A pipe, a file or a dumb terminal gets plain lines and no control characters.
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._live = Progress(
            _ClockColumn(self._clock),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[position]}"),
            console=console,
            transient=True,
            disable=not self._is_live,
        )
        self._task = self._live.add_task("", total=None, position="")

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def elapsed_seconds(self) -> float:
        """The seconds since the demo began."""
        return time.monotonic() - self._began

    def doing(self, what: str) -> None:
        """Show on the live line a step whose length is not known."""
        self._live.remove_task(self._task)
        self._task = self._live.add_task(what, total=None, position="")

    def progress(self, what: str, done: int, total: int, per_second: float) -> None:
        """Show on the live line how far a step is."""
        position = f"{done:,} of {total:,}  {per_second:,.0f}/s"
        self._live.update(self._task, description=what, total=total, completed=done, position=position)

    def say(self, what: str, style: str = "") -> None:
        """Print a line about an event, with the time."""
        self._console.print(Text.assemble(self._clock(), " ", (what, style)), soft_wrap=True)

    def _clock(self) -> Text:
        return Text(f"{self.elapsed_seconds:5.1f} s ", style="dim")


class _ClockColumn(ProgressColumn):
    """The clock of the lines above, running."""

    def __init__(self, clock: Callable[[], Text]) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        return self._clock()


def show_introduction(console: Console, *, workers: int, requests: int, where: str) -> None:
    """Print in four lines what the demo is going to do."""
    for line in (
        f"{workers} gunicorn workers log {requests:,} requests, through fapilog, to {where}.",
        "One process sends for all of them, the flusher.",
        "On the way a SIGKILL ends a worker, then the flusher, then another worker.",
        "Each record whose logger.info has returned is noted outside of cwsink, and has to be in CloudWatch.",
        "",
    ):
        console.print(line, soft_wrap=True)


def show_ending(console: Console, ending: Ending) -> None:
    """Print what became of the records, three of the events, and the verdict."""
    console.print()
    for label, value, note in _rows(ending):
        style = "bold red" if label in _SHOULD_BE_NONE and value != "0" else "bold"
        line = Text.assemble(
            f"{label:<23}", (f"{value:>7}", style), ("  " + note if note and value != "0" else "", "dim")
        )
        console.print(line, soft_wrap=True)
    console.print("\nThree of the delivered events, read back through botocore (shortened)")
    for event in _three(ending.events):
        console.print(Text.assemble("  ", *_digest(event)), soft_wrap=True)
    console.print()
    _show_verdict(console, ending.verdict)


def _rows(ending: Ending) -> list[tuple[str, str, str]]:
    """Return (label, value, note) of each line. The note is shown if the value is not 0."""
    verdict, books, takeover = ending.verdict, ending.books, ending.takeover
    dead = sum(books.dead_lettered.values())
    again = f"{ending.again:,} of them again, because a connection broke" if ending.again else ""
    unnoted = f"{verdict.unnoted:,} of them appended in the instant of a kill" if verdict.unnoted else ""
    sums = f"= {books.delivered:,} delivered + {dead:,} dead + {books.evicted:,} evicted + {books.pending:,} pending"
    return [
        ("flusher before", str(takeover.before.pid), f"epoch {takeover.before.epoch}, killed"),
        ("flusher after", str(takeover.after.pid), f"epoch {takeover.after.epoch}"),
        ("takeover in ms", f"{takeover.ms:,.0f}", "from the SIGKILL to the new epoch"),
        ("requests sent", f"{ending.sent:,}", again),
        ("records logged", f"{verdict.logged:,}", ""),
        ("delivered", f"{verdict.delivered:,}", unnoted),
        ("pending", f"{verdict.pending:,}", "in the spool"),
        ("duplicates", f"{verdict.duplicates:,}", "one batch: its answer came after the kill"),
        ("lost", f"{verdict.lost:,}", ""),
        ("streams written", f"{len(ending.streams):,}", ", ".join(ending.streams)),
        ("verified", f"{ending.account.found:,}", f"cwsink verify: {ending.account.missing:,} missing"),
        ("ledger: appended", f"{books.appended:,}", sums),
    ]


def _three(events: list[LogEvent]) -> list[LogEvent]:
    """Return the first, the middle and the last event."""
    return [events[index] for index in sorted({0, len(events) // 2, len(events) - 1})] if events else []


def _digest(event: LogEvent) -> Iterator[str | tuple[str, str]]:
    """Yield the time, the message and a few fields of an event, as parts of a line."""
    when = datetime.fromtimestamp(event.timestamp_ms / 1000, timezone.utc)
    yield f"{when:%H:%M:%S}.{event.timestamp_ms % 1000:03d}", "dim"
    try:
        entry = msgspec.json.decode(event.message, type=dict[str, Any])
    except msgspec.MsgspecError:  # this is no request, but a line of cwsink that tells the stream of a loss
        yield f"  {event.message}"
        return
    yield f"  {entry.get('message')}"
    fields = {**entry.get("context", {}), **entry.get("data", {}), "pid": entry.get("diagnostics", {}).get("pid")}
    for name in _SHOWN_FIELDS:
        yield f"  {name}=", "dim"
        yield str(fields.get(name))


def _show_verdict(console: Console, verdict: Verdict) -> None:
    for problem in verdict.problems:
        console.print(Text(problem, style="bold red"), soft_wrap=True)
    if verdict.lost:
        console.print(Text(f"FAILED: accepted records were lost ({verdict.lost:,}).", style="bold red"))
    elif verdict.problems:
        console.print(Text("FAILED.", style="bold red"))
    else:
        console.print(Text("Nothing was lost.", style="bold green"))


def show_breakdown(console: Console, error: DemoError, sandbox: Sandbox) -> None:
    """Print the last lines of the logs, and why the demo could not go on."""
    console.print(Text(sandbox.what_was_said()), soft_wrap=True)
    console.print(Text(f"FAILED: {error}", style="bold red"), soft_wrap=True)
    show_what_is_left(console, sandbox)


def show_what_is_left(console: Console, sandbox: Sandbox, spool: str | None = None) -> None:
    """Print where the directory is, if it stays, and the command that shows the spool."""
    if sandbox.keep:
        console.print(Text(f"Kept: {sandbox.path}, with all logs.", style="dim"), soft_wrap=True)
        if spool:
            console.print(Text(f"Look further: cwsink status {spool}", style="dim"), soft_wrap=True)
    else:
        console.print(Text("With --keep, the spool and all logs stay to be looked at.", style="dim"), soft_wrap=True)
