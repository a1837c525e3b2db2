"""The screen of `cwsink status`: a block for each spool, the worst one first, with losses and the verdict first.

Colour says nothing that the words do not say, so nothing is missing in a pipe, or with NO_COLOR.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.text import Text

from cwsink import words
from cwsink.flusher.second_chance import options_for
from cwsink.printable import printable
from cwsink.spool.room import NEARLY_FULL
from cwsink.spool.stats import SpoolStats
from cwsink.watching.reasons import clock, dropped, loss, why

_LABEL_WIDTH: Final = 10

# The colour of each state, and the beginning of its verdict.
STATES: Final = {
    "idle": ("green", ""),
    "delivering": ("cyan", "Delivering"),
    "retrying": ("yellow", "Retrying"),
    "circuit_open": ("red", "Circuit open, trying every 15 to 30 s"),
    "stalled": ("red", "Stalled"),
    "no_leader": ("yellow", "Nobody sends"),
}
_KINDS: Final = {
    "own": "started by itself",
    "run": "of cwsink run",
    "service": "of cwsink flush",
    "once": "of cwsink flush --once",
}
_STUCK: Final = ("retrying", "circuit_open", "stalled")


def page(spools: list[SpoolStats], width: int, unreadable: int = 0) -> Text:
    """Return all spools as text of at most `width` columns. `unreadable`: so many more could not be read."""
    blocks = [block(spool, width) for spool in sorted(spools, key=severity, reverse=True)]
    if len(spools) > 1:
        blocks.insert(0, _summary(spools, width))
    if spools and unreadable:
        said = _fold(f"{unreadable} more cannot be read, or not as a whole. All else:", width)
        blocks.insert(0, Text("\n".join([*said, ""]), "red"))
    return Text("\n").join(blocks)


def severity(spool: SpoolStats) -> tuple[object, ...]:
    """Return a key that is greater for a spool that is worse."""
    is_stuck = spool.is_behind or spool.orphan_seconds is not None or spool.state in _STUCK
    return spool.is_losing, is_stuck, _has_lost(spool), bool(spool.dead_letters), spool.fill, spool.pending


def _has_lost(spool: SpoolStats) -> bool:
    return spool.lost > 0 or spool.dead_letters_dropped > 0


def block(spool: SpoolStats, width: int) -> Text:
    """Return the block of one spool: target and verdict, then why, then the books."""
    style, _ = STATES[spool.state]
    lines = Text()
    lines.append("● ", "red" if _has_lost(spool) else "yellow" if spool.dead_letters and not spool.pending else style)
    lines.append(words.target(spool.log_group_name, spool.log_stream_name), "bold")
    if spool.region:
        lines.append(f"  {printable(spool.region, one_line=True)}", "dim")
    lines.append("\n")
    for said in filter(None, (loss(spool), dropped(spool))):
        for each in _fold(said, width - 2):
            lines.append(f"  {each}\n", "bold red")
    for each in _fold(_verdict(spool), width - 2):
        lines.append(f"  {each}\n", style)
    for label, value, value_style in _rows(spool):
        for index, each in enumerate(_fold(value, width - _LABEL_WIDTH - 2)):
            lines.append(f"  {label if index == 0 else '':{_LABEL_WIDTH}}", "dim")
            lines.append(f"{each}\n", value_style)
    return lines


def _summary(spools: list[SpoolStats], width: int) -> Text:
    lines: list[tuple[str, str]] = []
    if lost := sum(spool.lost for spool in spools):
        refused = sum(sum(spool.refused.values()) for spool in spools)
        of = sum(spool.appended for spool in spools) + refused
        goes_on = ", and more now" if any(spool.is_losing and not spool.lost_is_over for spool in spools) else ""
        lines.append((f"{len(spools)} spools: LOST {words.records(lost)} of {of:,}{goes_on}.", "bold red"))
    if gone := sum(spool.dead_letters_dropped for spool in spools):
        lines.append((f"{len(spools)} spools: LOST {words.counted(gone, 'dead letter')}.", "bold red"))
    behind = [spool for spool in spools if severity(spool)[1] and spool.pending]
    pending = sum(spool.pending for spool in spools)
    if behind:
        verb, late = "is" if len(behind) == 1 else "are", sum(spool.pending for spool in behind)
        text = f"{len(behind)} of {len(spools)} spools {verb} behind: {words.records(late)} in all."
        lines.append((text, "yellow"))
    elif pending:
        lines.append((f"{len(spools)} spools, none behind: {words.records(pending)} on the way.", "cyan"))
    elif dead := sum(sum(spool.dead_letters.values()) for spool in spools):
        lines.append((f"{len(spools)} spools: nothing waits; {words.counted(dead, 'dead letter')}.", "yellow"))
    elif not lost and not gone:
        lines.append((f"{len(spools)} spools: everything is delivered.", "green"))
    if (left := sum(spool.orphan_seconds is not None for spool in spools)) > 1:
        text = f"{left} of them are orphans: `cwsink replay --all` sends those, and --dry-run only lists them."
        lines.append((text, "yellow"))
    return Text("").join(Text(f"{each}\n", style) for text, style in lines for each in _fold(text, width))


def _verdict(spool: SpoolStats) -> str:
    """Return the answer to the first question: is everything delivered?"""
    if not spool.pending:
        if not spool.appended:
            return (
                "Nothing waits: all that was logged here was refused." if spool.lost else "Nothing was logged here yet."
            )
        last = spool.last_success_seconds
        when = "" if last is None else f", the last {words.duration(last)} ago"
        dead = sum(spool.dead_letters.values())
        if _has_lost(spool) or dead:
            short = f"; {words.counted(dead, 'dead letter')} (below)" if dead else ""
            return f"Nothing waits: {words.records(spool.delivered)} delivered{when}{short}."
        return f"Everything is delivered: {words.records(spool.delivered)}{when}."
    waiting = f"{words.records(spool.pending)} wait{'s' if spool.pending == 1 else ''}"
    waiting += f" ({words.size(spool.pending_bytes)})"
    if spool.oldest_pending_seconds is not None:
        waiting += f", the oldest for {words.duration(spool.oldest_pending_seconds)}"
    rate = spool.records_per_second
    if spool.state == "delivering" and rate >= 1:
        waiting += f"; {rate:,.0f} a second, about {words.duration(spool.pending / rate)} left"
    return f"{STATES[spool.state][1]}: {waiting}."


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
    if spool.dead_letters:
        letters = f"{words.each_counted(spool.dead_letters)}: kept in {spool.path}/dead_letters.jsonl"
        yield "dead", letters, "red"
        yield "", _second_chance(spool), ""
    if spool.replayed:
        yield "replayed", f"{words.each_counted(spool.replayed)}: dead letters that were appended once more", ""
    if spool.last_error and spool.state in ("idle", "delivering"):
        yield "error", f"{spool.last_error} (the last one{_at(spool.last_failure)}; it is over)", "dim"
    elif spool.last_error and spool.state in ("no_leader", "stalled"):
        yield "error", f"{spool.last_error} (the last one{_at(spool.last_failure)})", ""
    yield "leader", _leader(spool), ""
    if spool.settings:
        differing = ", ".join(f"{name} {value}" for name, value in sorted(spool.settings.items()))
        yield "settings", printable(f"{differing} (from {spool.settings_from})", one_line=True), ""
    room = f"{words.size(spool.used_bytes)} of {words.size(spool.capacity_bytes)} used"
    if spool.history_seconds is not None:
        room += f"; {words.size(spool.history_bytes)} of history, {words.duration(spool.history_seconds)} back"
    free = spool.disk_free_bytes
    if free is not None and spool.used_bytes + free < spool.capacity_bytes:
        room += f", but the disk has only {words.size(free)} free"
    if spool.pending and spool.fill >= NEARLY_FULL:
        what = (
            "records are lost"
            if spool.is_losing and not spool.lost_is_over
            else f"{'' if spool.lost else 'nothing is lost yet; '}when it is full, records are lost"
        )
        yield "disk", f"{room} ({spool.fill:.0%}): {what}", "red"
    else:
        yield "disk", room, ""
    yield "spool", spool.path, ""


def _at(moment: str | None) -> str:
    return f", {clock(moment)}" if moment else ""


def _second_chance(spool: SpoolStats) -> str:
    if spool.dead_letters.keys() == {"corrupt"}:
        return words.on_damage(spool.path)
    options = options_for(spool.dead_letters)
    command = f"{words.as_owner(spool.path)}cwsink replay --dead-letters{options} {words.quoted(spool.path)}"
    said = f"`{command}` sends what can be sent, with --clear it is thrown away"
    if "oversize" in spool.dead_letters:
        said += '. Those that are too long need --reason oversize, and the setting oversize="split" or "truncate"'
    return said


def _books(spool: SpoolStats) -> str:
    parts = [f"{spool.delivered:,} delivered"]
    if dead := sum(spool.dead_lettered.values()):
        replayed = sum(spool.replayed.values())
        became = [f"{replayed:,} of them replayed"] if replayed else []
        became += [f"{spool.dead_letters_dropped:,} lost"] if spool.dead_letters_dropped else []
        parts.append(f"{dead:,} dead" + (f" ({', '.join(became)})" if became else ""))
    if spool.evicted:
        parts.append(f"{spool.evicted:,} evicted")
    parts.append(f"{spool.pending:,} waiting")
    extra = [f"{spool.resent:,} sent again"] if spool.resent else []
    # What was changed is a dead letter. A write that was cut (a full disk, a kill) leaves only its bytes.
    what = "damaged" if "corrupt" in spool.dead_lettered else "of cut writes"
    extra += [f"{spool.corrupt_bytes:,} bytes {what}"] if spool.corrupt_bytes else []
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
