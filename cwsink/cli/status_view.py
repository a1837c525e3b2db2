"""What `cwsink status` shows to people: a block for each spool, with the verdict first."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cwsink.cli import DONE, text
from cwsink.cli.sight import SpoolView, why
from cwsink.printable import printable

_LABEL_WIDTH: Final = 10
# Lines in a pipe are for grep, so they are not folded.
_UNFOLDED: Final = 10_000
_NEARLY_FULL: Final = 0.8

# The colour of each state, and the beginning of its verdict.
_STATES: Final = {
    "idle": ("green", ""),
    "delivering": ("cyan", "Delivering"),
    "retrying": ("yellow", "Retrying"),
    "circuit_open": ("red", "Circuit open, trying every 30 s"),
    "stalled": ("red", "Stalled"),
    "no_leader": ("yellow", "Nobody sends"),
}
_KINDS: Final = {
    "own": "started by itself",
    "run": "of cwsink run",
    "service": "of cwsink flush",
    "once": "of cwsink flush --once",
}


def show(looks: Iterator[tuple[list[SpoolView], int]], watch: float | None) -> int:
    """Print the first look, or with `watch` show each look. Returns the exit code."""
    console = Console(highlight=False)
    if watch is None:
        views, code = next(looks)
        _print(console, views)
        return code
    if not console.is_terminal:
        for views, _ in looks:
            print(time.strftime("-- %Y-%m-%d %H:%M:%S"))
            _print(console, views)
            sys.stdout.flush()
            time.sleep(watch)
        return DONE
    views = []
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for views, _ in looks:
                heading = Text(f"{time.strftime('%H:%M:%S')}, every {watch:g} s, Ctrl-C ends\n\n", "dim")
                live.update(heading + page(views, console.width), refresh=True)
                time.sleep(watch)
    except KeyboardInterrupt:
        _print(console, views)  # the last look stays on the screen
    return DONE


def page(views: list[SpoolView], width: int) -> Text:
    """Return all spools as text of at most `width` columns."""
    blocks = [block(view, width) for view in views]
    if len(views) > 1:
        blocks.insert(0, _summary(views))
    return Text("\n").join(blocks)


def block(view: SpoolView, width: int) -> Text:
    """Return the block of one spool: target and verdict, then why, then the books."""
    report = view.report
    style, _ = _STATES[report.state]
    lines = Text()
    lines.append("● ", style)
    lines.append(text.target(report.log_group_name, report.log_stream_name), "bold")
    if report.region:
        lines.append(f"  {printable(report.region, one_line=True)}", "dim")
    lines.append("\n")
    for each in _fold(_verdict(view), width - 2):
        lines.append(f"  {each}\n", style)
    for label, value, value_style in _rows(view):
        for index, each in enumerate(_fold(value, width - _LABEL_WIDTH - 2)):
            lines.append(f"  {label if index == 0 else '':{_LABEL_WIDTH}}", "dim")
            lines.append(f"{each}\n", value_style)
    return lines


def _print(console: Console, views: list[SpoolView]) -> None:
    is_folded = console.is_terminal or "COLUMNS" in os.environ
    shown = page(views, console.width if is_folded else _UNFOLDED)
    console.print(shown, end="", soft_wrap=True)


def _summary(views: list[SpoolView]) -> Text:
    behind = [view.report for view in views if view.report.pending]
    if not behind:
        return Text(f"{len(views)} spools: everything is delivered.\n", "green")
    pending = sum(report.pending for report in behind)
    verb = "is" if len(behind) == 1 else "are"
    summary = f"{len(behind)} of {len(views)} spools {verb} behind: {text.records(pending)} in all.\n"
    if (left := sum(view.orphan_seconds is not None for view in views)) > 1:
        summary += f"{left} of them are orphans: `cwsink replay --all` sends those, and --dry-run only lists them.\n"
    return Text(summary, "yellow")


def _verdict(view: SpoolView) -> str:
    """Return the answer to the first question: is everything delivered?"""
    report = view.report
    if not report.pending:
        if not report.appended:
            return "Nothing was logged here yet."
        when = "" if view.success_seconds is None else f", the last {text.duration(view.success_seconds)} ago"
        lost = sum(report.dead_lettered.values()) + report.evicted
        if lost:
            return f"Nothing waits: {text.records(report.delivered)} delivered{when}; {lost:,} could not be (below)."
        return f"Everything is delivered: {text.records(report.delivered)}{when}."
    waiting = f"{text.records(report.pending)} wait{'s' if report.pending == 1 else ''}"
    waiting += f" ({text.size(report.pending_bytes)})"
    if report.oldest_pending_seconds is not None:
        waiting += f", the oldest for {text.duration(report.oldest_pending_seconds)}"
    rate = view.records_per_second
    if report.state == "delivering" and rate >= 1:
        waiting += f"; {rate:,.0f} a second, about {text.duration(report.pending / rate)} left"
    return f"{_STATES[report.state][1]}: {waiting}."


def _rows(view: SpoolView) -> Iterator[tuple[str, str, str]]:
    report = view.report
    if report.state not in ("idle", "delivering"):
        first, *rest = why(view).split("\n")
        yield "why", first, "bold"
        for each in rest:
            yield "", each, ""
    if report.pending:
        for other in report.unable:
            kind = _KINDS.get(other["kind"], other["kind"])
            yield "unable", f"pid {other['pid']} on {other['host']}, {kind}: {other['error']}", ""
    if report.appended:
        yield "records", _books(view), ""
    if report.evicted:
        yield "evicted", f"{text.records(report.evicted)}: the spool was full, and the oldest went", "red"
    if report.refused:
        yield "refused", f"{text.each_counted(report.refused)}: never entered the spool, told in the stream", "red"
    if report.dead_lettered:
        yield "dead", f"{text.each_counted(report.dead_lettered)}: kept in dead_letters.jsonl", "red"
    if report.last_error and report.state in ("idle", "delivering"):
        yield "error", f"{report.last_error} (the last one; it is over)", "dim"
    elif report.last_error and report.state in ("no_leader", "stalled"):
        yield "error", f"{report.last_error} (the last one)", ""
    yield "leader", _leader(view), ""
    if report.settings:
        differing = ", ".join(f"{name} {value}" for name, value in sorted(report.settings.items()))
        yield "settings", printable(f"{differing} (from {report.settings_from})", one_line=True), ""
    fill = view.used_bytes / report.capacity_bytes if report.capacity_bytes else 0.0
    room = f"{text.size(view.used_bytes)} of {text.size(report.capacity_bytes)} used"
    if report.pending and fill >= _NEARLY_FULL:
        yield "disk", f"{room} ({fill:.0%}): on_full decides what goes when it is full", "red"
    else:
        yield "disk", room, ""
    yield "spool", report.path, ""


def _books(view: SpoolView) -> str:
    report = view.report
    parts = [f"{report.delivered:,} delivered"]
    if dead := sum(report.dead_lettered.values()):
        parts.append(f"{dead:,} dead")
    if report.evicted:
        parts.append(f"{report.evicted:,} evicted")
    parts.append(f"{report.pending:,} waiting")
    extra = [f"{report.resent:,} sent again"] if report.resent else []
    extra += [f"{report.corrupt_bytes:,} bytes damaged"] if report.corrupt_bytes else []
    books = f"{report.appended:,} appended = {' + '.join(parts)}"
    return f"{books}  ({', '.join(extra)})" if extra else books


def _leader(view: SpoolView) -> str:
    leader = view.report.leader
    if leader is None:
        return "none"
    kind = _KINDS.get(leader.kind, leader.kind)
    by = f" by {printable(leader.started_by, one_line=True)}" if leader.started_by else ""
    return f"pid {leader.pid} on {leader.host}, {kind}{by}, epoch {leader.epoch}"


def _fold(value: str, width: int) -> list[str]:
    """Return `value` in lines of at most `width` columns, folded at spaces where there are any."""
    value = printable(value, one_line=True)
    lines = Text(value).wrap(Console(width=max(width, 20)), max(width, 20))
    return [line.plain.rstrip() for line in lines] or [""]
