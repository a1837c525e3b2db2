"""Look at a spool without touching it: what is pending, how much, of when, and the books.

Every question walks over the same ground, the segments from where each is settled (`walk`). No lock is taken, so
this works from any process while everything else is stuck, and disturbs nobody. A writer asks when it ends, the
flusher while it drains; `cwsink status`, `flush --once` and `replay` ask for people.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from cwsink.spool import cursor, frame, segment
from cwsink.spool.budget import read_evictions
from cwsink.spool.cursor import Ledger
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.reader import OpenSegment, open_segments
from cwsink.spool.record import Event
from cwsink.spool.segment import SegmentKey

# A look takes seconds at most. What vanishes meanwhile is the oldest, which is read first, so few looks are enough.
_MOST_LOOKS: Final = 5


class Survey(msgspec.Struct):
    """A spool's books at one moment. Counts are records, unless the name has a unit.

    `appended` is counted from what was read, the other side from what became of it, so
    `appended == delivered + sum(dead_lettered) + evicted + pending` is a real check.
    """

    epoch: int = 0
    appended: int = 0
    delivered: int = 0
    dead_lettered: dict[str, int] = {}
    evicted: int = 0
    refused: dict[str, int] = {}
    resent: int = 0
    corrupt_bytes: int = 0
    pending: int = 0
    pending_bytes: int = 0
    oldest_pending_ms: int | None = None

    @property
    def adds_up(self) -> bool:
        """Tell whether every appended record is accounted for."""
        return self.appended == self.delivered + sum(self.dead_lettered.values()) + self.evicted + self.pending


def walk(directory: SpoolDirectory, settled: Mapping[SegmentKey, int] | None = None) -> Iterator[OpenSegment]:
    """Open each segment in turn, oldest first, to be read from where it is settled on.

    Args:
        directory: the spool.
        settled: the end of what is settled in each segment; as the cursor has it now by default.
    """
    if settled is None:
        settled = cursor.read(directory.cursor).committed()
    for opened in open_segments(directory):
        opened.offset = settled.get(opened.key, opened.offset)
        yield opened


def survey(directory: SpoolDirectory) -> Survey:
    """Read the cursor and count what lies behind it.

    A segment that is delivered and reclaimed between the two would be in neither count: look again.
    """
    for _ in range(_MOST_LOOKS):
        expected = set(segment.numbers(directory.ring))
        books, seen = _look(directory)
        if expected <= seen:
            break
    return books


def _look(directory: SpoolDirectory) -> tuple[Survey, set[int]]:
    """Return the books, and the numbers of the segments that were there to be counted."""
    state = cursor.read(directory.cursor)
    evictions = read_evictions(directory)
    seen = {evictions.number}
    ledger = state.ledger
    refused = Counter(ledger.refused)
    refused.update(evictions.refused)
    books = Survey(
        epoch=state.epoch,
        delivered=ledger.delivered,
        dead_lettered=dict(ledger.dead_lettered),
        evicted=evictions.records,
        resent=ledger.resent,
        corrupt_bytes=ledger.corrupt_bytes,
    )
    for opened in walk(directory, state.committed()):
        seen.add(opened.key.number)
        if opened.key == evictions.last_evicted:
            continue
        for each in opened.frames():
            if each.is_event:
                books.pending += 1
                books.pending_bytes += each.size_bytes
                # In arrival order the first one is the oldest, near enough for people.
                if books.oldest_pending_ms is None and (event := frame.event_of(each)):
                    books.oldest_pending_ms = event.timestamp_ms
            elif loss := frame.loss_of(each):
                refused[loss.reason] += loss.count
    books.refused = dict(refused)
    books.appended = ledger.appended + books.evicted + books.pending
    return books, seen


def events(directory: SpoolDirectory, *, all_present: bool = False) -> Iterator[Event]:
    """Yield the pending events in arrival order (segment by segment).

    Args:
        directory: the spool.
        all_present: also those delivered already that are still on disk.
    """
    for opened in walk(directory, {} if all_present else None):
        yield from filter(None, map(frame.event_of, opened.frames()))


def has_pending(directory: SpoolDirectory) -> bool:
    """Tell whether there is a frame that is not settled yet."""
    return any(True for opened in walk(directory) for _ in opened.frames())


def ends(directory: SpoolDirectory) -> dict[SegmentKey, int]:
    """Return where the valid frames of each segment now end, in bytes, for what is not settled yet."""
    found = {}
    for opened in walk(directory):
        start = opened.offset
        for _ in opened.blocks():
            pass
        if opened.offset > start:
            found[opened.key] = opened.offset
    return found


def unsettled(directory: SpoolDirectory, ends: Mapping[SegmentKey, int]) -> dict[SegmentKey, int]:
    """Return those of `ends` that no commit has reached yet, in segments that still exist."""
    committed = cursor.read(directory.cursor).committed()
    left = {key: end for key, end in ends.items() if committed.get(key, 0) < end}
    present = {opened.key for opened in open_segments(directory)} if left else set()
    return {key: end for key, end in left.items() if key in present}


def last_append(directory: SpoolDirectory) -> float | None:
    """Return when a record was appended last, in seconds since 1970; None if never."""
    times = []
    for number in segment.numbers(directory.ring):
        with contextlib.suppress(FileNotFoundError):
            times.append(os.stat(segment.path_of(directory.ring, number)).st_mtime)
    return max(times, default=None)


class Pending(msgspec.Struct):
    """What waits in a spool: how much, and of what time (ms since 1970, of the events; None if none can be read)."""

    records: int = 0
    data_bytes: int = 0
    oldest_ms: int | None = None
    newest_ms: int | None = None


def pending(directory: SpoolDirectory) -> Pending:
    """Count what waits. Reads every record, unlike `survey`, for the oldest and newest time. Raises OSError."""
    found = Pending()
    for opened in walk(directory):
        for each in filter(lambda each: each.is_event, opened.frames()):
            found.records += 1
            found.data_bytes += each.size_bytes
            if event := frame.event_of(each):
                moment = event.timestamp_ms
                found.oldest_ms = moment if found.oldest_ms is None else min(found.oldest_ms, moment)
                found.newest_ms = moment if found.newest_ms is None else max(found.newest_ms, moment)
    return found


class Backlog:
    """The pending records of a spool as of one moment, and how many of them are settled by now.

    Workers go on appending while `cwsink flush --once` delivers what was there when it began. So its end is known by
    positions, not by an empty spool, and it makes no difference which process delivers.

    Attributes:
        records: how many there were.
        foreign: numbers of the segments of a newer layout, which this version can neither read nor send.
    """

    def __init__(self, directory: SpoolDirectory) -> None:
        """Look, which may take a second or two. Raises OSError."""
        self._directory = directory
        self.records = 0
        self.foreign: list[int] = []
        self._ends: dict[SegmentKey, int] = {}
        state = cursor.read(directory.cursor)
        self._before = _sum(state)
        evictions = read_evictions(directory)
        self._evicted = evictions.records
        newest = (segment.numbers(directory.ring) or [0])[-1]
        for opened in walk(directory, state.committed()):
            if opened.is_foreign:
                self.foreign.append(opened.key.number)
            # Of a damaged one nothing can be delivered, and the leader leaves it until there is a newer one.
            if opened.key == evictions.last_evicted or (opened.is_damaged and opened.key.number == newest):
                continue
            start = opened.offset
            self.records += sum(each.is_event for each in opened.frames())
            if opened.offset > start:
                self._ends[opened.key] = opened.offset

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to do. The stream may have to be told of evictions all the same."""
        return not self._ends and cursor.read(self._directory.cursor).ledger.evicted_reported >= self._evicted

    def is_settled(self) -> bool:
        """Tell whether all of it is delivered, dead-lettered or evicted by now."""
        self._ends = unsettled(self._directory, self._ends)
        return self.is_empty

    def settled_since(self) -> Ledger:
        """Return what was settled since the beginning, by any process; of later records, too."""
        now, before = _sum(cursor.read(self._directory.cursor)), self._before
        return Ledger(
            appended=now.appended - before.appended,
            delivered=now.delivered - before.delivered,
            dead_lettered=dict(Counter(now.dead_lettered) - Counter(before.dead_lettered)),
        )


def _sum(state: cursor.State) -> Ledger:
    """Return the totals, with what is delivered of a chunk that is being sent in several requests."""
    total, partial = state.ledger, state.partial
    return Ledger(
        appended=total.appended + partial.appended,
        delivered=total.delivered + partial.delivered,
        dead_lettered=dict(Counter(total.dead_lettered) + Counter(partial.dead_lettered)),
    )
