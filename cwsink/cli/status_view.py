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
from cwsink.cli.reasons import why
from cwsink.printable import printable
from cwsink.spool.stats import SpoolStats

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


def show(looks: Iterator[tuple[list[SpoolStats], int]], watch: float | None) -> int:
    """Print the first look, or with `watch` show each look. Returns the exit code."""
    console = Console(highlight=False)
    if watch is None:
        spools, code = next(looks)
        _print(console, spools)
        return code
    if not console.is_terminal:
        for spools, _ in looks:
            print(time.strftime("-- %Y-%m-%d %H:%M:%S"))
            _print(console, spools)
            sys.stdout.flush()
            time.sleep(watch)
        return DONE
    spools = []
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for spools, _ in looks:
                heading = Text(f"{time.strftime('%H:%M:%S')}, every {watch:g} s, Ctrl-C ends\n\n", "dim")
                live.update(heading + page(spools, console.width), refresh=True)
                time.sleep(watch)
    except KeyboardInterrupt:
        _print(console, spools)  # the last look stays on the screen
    return DONE


def page(spools: list[SpoolStats], width: int) -> Text:
    """Return all spools as text of at most `width` columns."""
    blocks = [block(spool, width) for spool in spools]
    if len(spools) > 1:
        blocks.insert(0, _summary(spools))
    return Text("\n").join(blocks)


def block(spool: SpoolStats, width: int) -> Text:
    """Return the block of one spool: target and verdict, then why, then the books."""
    style, _ = _STATES[spool.state]
    lines = Text()
    lines.append("● ", style)
    lines.append(text.target(spool.log_group_name, spool.log_stream_name), "bold")
    if spool.region:
        lines.append(f"  {printable(spool.region, one_line=True)}", "dim")
    lines.append("\n")
    for each in _fold(_verdict(spool), width - 2):
        lines.append(f"  {each}\n", style)
    for label, value, value_style in _rows(spool):
        for index, each in enumerate(_fold(value, width - _LABEL_WIDTH - 2)):
            lines.append(f"  {label if index == 0 else '':{_LABEL_WIDTH}}", "dim")
            lines.append(f"{each}\n", value_style)
    return lines


def _print(console: Console, spools: list[SpoolStats]) -> None:
    is_folded = console.is_terminal or "COLUMNS" in os.environ
    shown = page(spools, console.width if is_folded else _UNFOLDED)
    console.print(shown, end="", soft_wrap=True)


def _summary(spools: list[SpoolStats]) -> Text:
    behind = [spool for spool in spools if spool.pending]
    if not behind:
        return Text(f"{len(spools)} spools: everything is delivered.\n", "green")
    pending = sum(spool.pending for spool in behind)
    verb = "is" if len(behind) == 1 else "are"
    summary = f"{len(behind)} of {len(spools)} spools {verb} behind: {text.records(pending)} in all.\n"
    if (left := sum(spool.orphan_seconds is not None for spool in spools)) > 1:
        summary += f"{left} of them are orphans: `cwsink replay --all` sends those, and --dry-run only lists them.\n"
    return Text(summary, "yellow")


def _verdict(spool: SpoolStats) -> str:
    """Return the answer to the first question: is everything delivered?"""
    if not spool.pending:
        if not spool.appended:
            return "Nothing was logged here yet."
        last = spool.last_success_seconds
        when = "" if last is None else f", the last {text.duration(last)} ago"
        lost = sum(spool.dead_lettered.values()) + spool.evicted
        if lost:
            return f"Nothing waits: {text.records(spool.delivered)} delivered{when}; {lost:,} could not be (below)."
        return f"Everything is delivered: {text.records(spool.delivered)}{when}."
    waiting = f"{text.records(spool.pending)} wait{'s' if spool.pending == 1 else ''}"
    waiting += f" ({text.size(spool.pending_bytes)})"
    if spool.oldest_pending_seconds is not None:
        waiting += f", the oldest for {text.duration(spool.oldest_pending_seconds)}"
    rate = spool.records_per_second
    if spool.state == "delivering" and rate >= 1:
        waiting += f"; {rate:,.0f} a second, about {text.duration(spool.pending / rate)} left"
    return f"{_STATES[spool.state][1]}: {waiting}."


def _rows(spool: SpoolStats) -> Iterator[tuple[str, str, str]]:
    if spool.state not in ("idle", "delivering"):
        first, *rest = why(spool).split("\n")
        yield "why", first, "bold"
        for each in rest:
            yield "", each, ""
    if spool.pending:
        for other in spool.unable:
            kind = _KINDS.get(other["kind"], other["kind"])
            yield "unable", f"pid {other['pid']} on {other['host']}, {kind}: {other['error']}", ""
    if spool.appended:
        yield "records", _books(spool), ""
    if spool.evicted:
        yield "evicted", f"{text.records(spool.evicted)}: the spool was full, and the oldest went", "red"
    if spool.refused:
        yield "refused", f"{text.each_counted(spool.refused)}: never entered the spool, told in the stream", "red"
    if spool.dead_lettered:
        yield "dead", f"{text.each_counted(spool.dead_lettered)}: kept in dead_letters.jsonl", "red"
    if spool.last_error and spool.state in ("idle", "delivering"):
        yield "error", f"{spool.last_error} (the last one; it is over)", "dim"
    elif spool.last_error and spool.state in ("no_leader", "stalled"):
        yield "error", f"{spool.last_error} (the last one)", ""
    yield "leader", _leader(spool), ""
    if spool.settings:
        differing = ", ".join(f"{name} {value}" for name, value in sorted(spool.settings.items()))
        yield "settings", printable(f"{differing} (from {spool.settings_from})", one_line=True), ""
    fill = spool.used_bytes / spool.capacity_bytes if spool.capacity_bytes else 0.0
    room = f"{text.size(spool.used_bytes)} of {text.size(spool.capacity_bytes)} used"
    if spool.history_seconds is not None:
        room += f"; {text.size(spool.history_bytes)} of history, {text.duration(spool.history_seconds)} back"
    if spool.pending and fill >= _NEARLY_FULL:
        yield "disk", f"{room} ({fill:.0%}): on_full decides what goes when it is full", "red"
    else:
        yield "disk", room, ""
    yield "spool", spool.path, ""


def _books(spool: SpoolStats) -> str:
    parts = [f"{spool.delivered:,} delivered"]
    if dead := sum(spool.dead_lettered.values()):
        parts.append(f"{dead:,} dead")
    if spool.evicted:
        parts.append(f"{spool.evicted:,} evicted")
    parts.append(f"{spool.pending:,} waiting")
    extra = [f"{spool.resent:,} sent again"] if spool.resent else []
    extra += [f"{spool.corrupt_bytes:,} bytes damaged"] if spool.corrupt_bytes else []
    books = f"{spool.appended:,} appended = {' + '.join(parts)}"
    return f"{books}  ({', '.join(extra)})" if extra else books


def _leader(spool: SpoolStats) -> str:
    leader = spool.leader
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
