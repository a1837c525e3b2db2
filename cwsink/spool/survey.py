"""Look at a spool without touching it: how many records are pending, of what time, and the books.

Each question here is answered by the same walk: over the segments, each from where it is settled on (`walk`). No lock
is taken, so any process can ask while everything else is stuck, and disturbs nobody. A writer asks when its process
ends, the flusher while it drains; `cwsink status`, `flush --once` and `replay` ask for people.

What the disk cannot read now it may read in a moment. Whoever would leave the spool if nothing is pending has to wait
for that. So to them such a page is something that may be pending, for as long as a leader tries to read it. People are
shown what can be read of the ring.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from cwsink.interruption import suppress
from cwsink.spool import cursor, disk, frame, refusals, segment
from cwsink.spool.budget import read_evictions
from cwsink.spool.cursor import Ledger
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.open_segment import READ_BLOCK_BYTES, OpenSegment
from cwsink.spool.record import Event
from cwsink.spool.segment import SegmentKey

# A look takes seconds at most. Only the oldest segments vanish meanwhile, and they are read first. So few are enough.
_MOST_LOOKS: Final = 5


class Survey(msgspec.Struct):
    """A spool's books at one moment. Counts are of records, unless the name has a unit.

    Leaders count `appended` when they read a record, and `delivered` and `dead_lettered` when they know what became of
    it. So `appended == delivered + sum(dead_lettered) + evicted + pending` is a real check.
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


def open_segments(
    directory: SpoolDirectory, last_evicted: SegmentKey | None = None, *, patience_seconds: float = 0.0
) -> Iterator[OpenSegment]:
    """Open each segment in turn, oldest first, read-only and without a lock; not the one that counts as evicted.

    `patience_seconds`: see `disk.read`.
    """
    if last_evicted is None:
        last_evicted = read_evictions(directory).last_evicted
    for number in segment.numbers(directory.ring):
        with suppress(FileNotFoundError):
            opened = OpenSegment.at(directory.ring, number, os.O_RDONLY, patience_seconds=patience_seconds)
            if opened is None:
                continue
            with contextlib.closing(opened):
                if opened.key != last_evicted:
                    yield opened


def walk(
    directory: SpoolDirectory,
    settled: Mapping[SegmentKey, int] | None = None,
    last_evicted: SegmentKey | None = None,
    *,
    patience_seconds: float = 0.0,
) -> Iterator[OpenSegment]:
    """Open each segment in turn, oldest first, to be read from where it is settled on.

    Args:
        directory: the spool.
        settled: the end of what is settled in each segment; as the cursor has it now by default.
        last_evicted: as the totals of evictions have it; read now by default.
        patience_seconds: see `disk.read`.
    """
    if settled is None:
        settled = cursor.read(directory.cursor).committed()
    for opened in open_segments(directory, last_evicted, patience_seconds=patience_seconds):
        opened.offset = settled.get(opened.key, opened.offset)
        yield opened


def survey(directory: SpoolDirectory, *, patience_seconds: float = 0.0) -> Survey:
    """Read the cursor and count the records behind it. `patience_seconds`: see `disk.read`. Raises OSError.

    A leader may deliver and reclaim a segment after the cursor was read and before the segment was. Its records would
    be in neither count, so look again then.
    """
    for _ in range(_MOST_LOOKS):
        expected = set(segment.numbers(directory.ring))
        books, seen = _look(directory, patience_seconds)
        unseen = expected - seen
        if not unseen or unseen <= set(segment.numbers(directory.ring)):  # what is still there is no file of ours
            break
    return books


def _look(directory: SpoolDirectory, patience_seconds: float) -> tuple[Survey, set[int]]:
    """Return the books, and the numbers of the segments that are in them."""
    state = cursor.read(directory.cursor)
    evictions = read_evictions(directory)
    seen = {evictions.number}
    ledger = state.ledger
    refused = Counter(ledger.refused) + Counter(evictions.refused) + Counter(refusals.counts(directory))
    books = Survey(
        epoch=state.epoch,
        delivered=ledger.delivered,
        dead_lettered=dict(ledger.dead_lettered),
        evicted=evictions.records,
        resent=ledger.resent,
        corrupt_bytes=ledger.corrupt_bytes,
    )
    for opened in walk(directory, state.committed(), evictions.last_evicted, patience_seconds=patience_seconds):
        seen.add(opened.key.number)
        for each in opened.frames():
            if each.is_event:
                books.pending += 1
                books.pending_bytes += each.size_bytes
                # The first one to arrive is not always the oldest, but near enough for people.
                if books.oldest_pending_ms is None and (event := frame.event_of(each)):
                    books.oldest_pending_ms = event.timestamp_ms
            elif loss := frame.loss_of(each):
                refused[loss.reason] += loss.count
    books.refused = dict(refused)
    books.appended = ledger.appended + books.evicted + books.pending
    return books, seen


def events(directory: SpoolDirectory) -> Iterator[Event]:
    """Yield the pending events in arrival order (segment by segment)."""
    for opened in walk(directory):
        yield from filter(None, map(frame.event_of, opened.frames()))


def has_pending(directory: SpoolDirectory) -> bool:
    """Tell whether there is a frame that is not settled yet, or may be one that cannot be read now. Raises OSError."""
    with disk.suppress_unreadable():
        return any(True for opened in _patient_walk(directory) for _ in opened.frames())
    return True


def ends(directory: SpoolDirectory) -> dict[SegmentKey, int] | None:
    """Return the offset at which the valid frames of each segment end now, for segments that are not settled.

    None: that cannot be told now, because the disk cannot read some of it. Raises OSError.
    """
    found = {}
    with disk.suppress_unreadable():
        for opened in _patient_walk(directory):
            start = opened.offset
            for _ in opened.blocks():
                pass
            if opened.offset > start:
                found[opened.key] = opened.offset
        return found
    return None


def unsettled(directory: SpoolDirectory, before: Mapping[SegmentKey, int] | None) -> dict[SegmentKey, int] | None:
    """Return those of the ends `before` that the cursor has not reached yet, in segments that still exist.

    Args:
        directory: the spool.
        before: what `ends`, or the last call, has returned.

    Returns:
        `before` (None, if that is None) if it cannot be told now: ask again.

    Raises:
        OSError: as `ends`.
    """
    if before is None:
        return ends(directory)
    with disk.suppress_unreadable():
        committed = cursor.read(directory.cursor).committed()
        left = {key: end for key, end in before.items() if committed.get(key, 0) < end}
        segments = open_segments(directory, patience_seconds=disk.PATIENCE_SECONDS) if left else ()
        present = {opened.key for opened in segments}
        return {key: end for key, end in left.items() if key in present}
    return dict(before)


def _patient_walk(directory: SpoolDirectory) -> Iterator[OpenSegment]:
    return walk(directory, patience_seconds=disk.PATIENCE_SECONDS)


def last_append(directory: SpoolDirectory) -> float | None:
    """Return the time of the last append, in seconds since 1970; None if there was none."""
    return max((status.st_mtime for status in segment.statuses(directory.ring).values()), default=None)


class Pending(msgspec.Struct):
    """The pending records: how many, how large, and the oldest and newest event's time (None if none can be read)."""

    records: int = 0
    data_bytes: int = 0
    oldest_ms: int | None = None
    newest_ms: int | None = None


def pending(directory: SpoolDirectory) -> Pending:
    """Count the pending records, and decode each for its time, which `survey` does not do. Raises OSError."""
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
    """What was pending in a spool at one moment, and how much of that is settled by now.

    `cwsink flush --once` delivers what was there when it began. Workers go on appending meanwhile, so the spool may
    never be empty. So the size of each segment is noted at the beginning, and all is done once the cursor has reached
    these sizes. It makes no difference which process delivers. The records are not counted, because that would mean to
    read them all once more. The ledger tells how many were settled.

    While the disk cannot read what is to be settled, it counts as not settled. The leader gives up what it cannot read,
    and then the cursor is behind that. Where it must leave that for later (in a header, or at the ring's end), nobody
    can tell whether records stay, and the caller gives up.

    Attributes:
        data_bytes: how much there was to settle, as far as that is known.
        foreign: the numbers of segments with a newer layout, which this version can neither read nor send.
    """

    def __init__(self, directory: SpoolDirectory) -> None:
        """Note the sizes. Raises OSError."""
        self._directory = directory
        self.foreign: list[int] = []
        self._ends: dict[SegmentKey, int] = {}
        self._reached: dict[SegmentKey, int] = {}  # where what is left began at the last look
        self._looked_at: dict[SegmentKey, int] = {}  # where we looked for a fragment
        self._evicted = 0
        self._is_noted = False
        self._before: Ledger | None = None
        self.data_bytes = 0
        self.is_settled()

    def _note(self) -> None:
        """Note the sizes. Raises OSError."""
        foreign: list[int] = []
        ends: dict[SegmentKey, int] = {}
        state = cursor.read(self._directory.cursor)
        self._before = self._before or state.ledger.plus(state.partial)
        evictions = read_evictions(self._directory)
        newest = (segment.numbers(self._directory.ring) or [0])[-1]
        for opened in walk(self._directory, patience_seconds=math.inf):
            if opened.is_foreign:
                foreign.append(opened.key.number)
            # Of a segment with a damaged header nothing can be delivered. While it is the newest, the leader leaves it.
            elif not (opened.is_damaged and opened.key.number == newest):
                ends[opened.key] = opened.size()
        self.foreign, self._ends, self._evicted, self._is_noted = foreign, ends, evictions.records, True

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is left to do: no record, and no eviction that the stream was not told of yet."""
        return (
            self._is_noted
            and not self._ends
            and cursor.read(self._directory.cursor).ledger.evicted_reported >= self._evicted
        )

    @property
    def left_bytes(self) -> int:
        """How many bytes were not settled yet at the last look."""
        return sum(self._ends[key] - start for key, start in self._reached.items())

    def is_settled(self) -> bool:
        """Look whether all of it is delivered, dead-lettered or evicted by now. Raises OSError."""
        with disk.suppress_unreadable():
            if not self._is_noted:
                self._note()
            self._look()
            self.data_bytes = max(self.data_bytes, self.left_bytes)
            return self.is_empty
        return False

    def _look(self) -> None:
        """Look how far it is settled. Raises OSError: then nothing has changed."""
        committed = cursor.read(self._directory.cursor).committed()
        ends = {key: end for key, end in self._ends.items() if committed.get(key, 0) < end}
        reached: dict[SegmentKey, int] = {}
        for opened in walk(self._directory, committed, patience_seconds=math.inf) if ends else ():
            start, end = opened.offset, ends.get(opened.key, 0)
            if start < end and not self._is_fragment(opened, end, has_moved=self._reached.get(opened.key) != start):
                reached[opened.key] = start
        self._ends, self._reached = {key: ends[key] for key in reached}, reached

    def _is_fragment(self, opened: OpenSegment, end: int, *, has_moved: bool) -> bool:
        """Tell whether a segment has no whole frame between where it is settled and `end`.

        A writer that is killed leaves such a fragment, and a leader leaves it until writers have gone on. To look takes
        a few ms. So look near the end of a segment, or once where nothing moves, and there only once.
        """
        start = opened.offset
        if opened.is_damaged or self._looked_at.get(opened.key) == start:
            return False  # the leader settles a segment with a damaged header as one damaged range
        if has_moved and end - start >= READ_BLOCK_BYTES:
            return False
        is_fragment = True
        for block in opened.blocks():
            if block.frames:
                is_fragment = block.frames[0].end > end
                break
            if block.end >= end:
                break
        self._looked_at[opened.key] = start
        return is_fragment

    def settled_since(self) -> Ledger:
        """Return what any process has settled since then, later records included."""
        if (before := self._before) is None:
            return Ledger()
        state = cursor.read(self._directory.cursor)
        now = state.ledger.plus(state.partial)
        return Ledger(
            appended=now.appended - before.appended,
            delivered=now.delivered - before.delivered,
            dead_lettered=dict(Counter(now.dead_lettered) - Counter(before.dead_lettered)),
        )
