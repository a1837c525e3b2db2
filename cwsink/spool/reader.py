"""The leader's side of the ring: read every segment, oldest first, and reclaim what is settled.

A worker that attached to an old segment and fell idle may append to it hours later. Such a segment must not hold back
the newer ones, and the late record must not be missed. So the leader reads every segment that exists, each from an
offset of its own.

A segment is final if it is not the newest one and the leader has its exclusive lock: no process has it open for
writing, and none can attach while the lock is held. Only then is a tail that does not parse judged to be damage, and
only then is the segment unlinked, once it is committed to its end.

To convert a shared flock may drop it for a moment, and in that moment a writer may evict the segment. So the leader
tries to convert it only if nothing of the segment is in flight.

A writer locks a segment while it counts what it is about to evict, a few milliseconds at a time (`budget`). If it is
stopped or killed before it has unlinked the segment, the records are read after all. So newer ones wait for them, until
the lock is held for longer than any evictor needs it.

Each look at a segment either advances or goes on to the next segment, so a reader cannot spin. After a restart, new
records do not wait for the backlog: see `FreshLane`.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from cwsink.clock import monotonic
from cwsink.diagnostics import report
from cwsink.spool import descriptors, disk, files, frame, held_lock, segment
from cwsink.spool.budget import read_evictions
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.history import History
from cwsink.spool.open_segment import Block, OpenSegment
from cwsink.spool.segment import SegmentKey
from cwsink.spool.survey import open_segments

# An evictor counts for 10 ms at a time, and then lets go of the segment for a millisecond or so.
_LOCK_SECONDS: Final = 0.03
_LOCK_AGAIN_SECONDS: Final = 0.0005


class _Seen:
    """The sequences of one producer that were seen in the lane: all below `next`, and some above it."""

    def __init__(self) -> None:
        self.next = 0
        self._later: set[int] = set()  # seen, but above a gap

    def add(self, sequence: int) -> None:
        """Note one. If it fills the gap at `next`, go on to the gap after it."""
        if sequence > self.next:
            self._later.add(sequence)
        elif sequence == self.next:
            self.next += 1
            while self.next in self._later:
                self._later.remove(self.next)
                self.next += 1


class FreshLane:
    """The newest segments, as far as they may be read before the older ones that are behind.

    After a restart with a large backlog, segments begun since then (the *lane*) are read in turn with the old ones, so
    that live records need not wait. One thread's records must stay in order, so a record may leave the lane early only
    once every earlier sequence of its producer has been seen in the lane. Seeing sequence 0 is not enough: another
    thread of that producer may still be about to write an earlier number elsewhere.

    The lane stops at a record that may not leave it yet. A thread may be just about to write the missing sequence, so
    the reader looks once more. If the sequence is still missing then, the lane has ended: what is left of it is read
    after the backlog. A leader that takes over in the middle has not seen the producers' first records, so its lane
    ends there, too.

    It would be simpler to mark a segment in its header as begun when nobody was attached, to take such segments for the
    lane, and to count no sequences. But between the moment in which a writer finds nobody attached and the moment in
    which it links its segment, another process may open the older segment and append to it. That process goes on to
    the marked segment at its next check, and the leader would send its later records before its earlier ones.
    """

    def __init__(self, begin: int) -> None:
        """Begin with segment number `begin`."""
        self.begin = begin
        self.has_ended = False
        self._seen: defaultdict[int, _Seen] = defaultdict(_Seen)
        self._waits_at: tuple[SegmentKey, int] | None = None

    def admit(self, block: Block) -> Block:
        """Return the first part of a block, as far as it may go before the backlog. It may be empty."""
        events = [frame.event_of(each) for each in block.frames]
        for event in events:  # all of them first: threads do not write in the order of their sequences
            if event:
                self._seen[event.producer].add(event.sequence)
        for index, (each, event) in enumerate(zip(block.frames, events, strict=True)):
            may_go = event.sequence < self._seen[event.producer].next if event else each.is_known and not each.is_event
            if not may_go:
                end = block.frames[index - 1].end if index else block.begin
                self.has_ended = self._waits_at == (block.key, end)
                self._waits_at = block.key, end
                damage = [damaged for damaged in block.damage if damaged.end <= end]
                return Block(block.key, block.begin, block.frames[:index], damage, end)
        return block


class RingReader:
    """All segments of a spool, as one leader reads them."""

    def __init__(
        self, directory: SpoolDirectory, committed: Mapping[SegmentKey, int], history: History | None = None
    ) -> None:
        """Begin each segment at its `committed` offset. `history`: where segments go that are settled."""
        self._directory = directory
        self._ring = directory.ring
        self._begins = dict(committed)
        self._history = history
        self._open: dict[int, OpenSegment] = {}
        self._newest = 0
        self._lane: FreshLane | None = None
        self._is_lanes_turn = False
        self._synced: dict[int, int] = {}
        self._held: dict[int, held_lock.Obstruction] = {}
        self._held_up = held_lock.Obstruction()
        self._is_awaited = False  # the last segment that we tried to open is locked, and probably not for long
        self._is_held_up = False
        self._has_found_end = False

    @property
    def has_more(self) -> bool:
        """Tell whether there is more to read although the last `read` has found nothing.

        Another process has locked a segment, probably for a moment, or the last `reclaim` has found a segment final
        whose end is not read yet, because it is damaged.
        """
        return self._is_held_up or self._has_found_end

    def read(self) -> Block | None:
        """Return the next block that was not read yet; None if all is read, or what follows is locked for a moment.

        It is from the oldest segment that has something new. While a fresh lane is read beside a backlog, every other
        block is from the lane.
        """
        numbers = segment.numbers(self._ring)
        self._newest = numbers[-1] if numbers else 0
        for gone in self._open.keys() - set(numbers):
            self._close(gone)
        for gone in self._held.keys() - set(numbers):
            del self._held[gone]
        if self._lane is not None and self._is_lanes_turn and (block := self._read_lane(self._lane, numbers)):
            self._is_lanes_turn = False
            return block
        self._is_lanes_turn = True
        block = self._read_oldest(numbers)
        self._is_held_up = self._is_awaited
        if not self._is_held_up:
            self._held_up.is_over()
        if not self._is_held_up and (block is None or block.key.number == self._newest):
            self._lane = None
        elif self._lane is None:
            self._lane = FreshLane(self._newest) if self._has_backlog() else None
        elif self._lane.has_ended and self._lane.begin < self._newest:
            self._lane = FreshLane(self._newest)
        if self._is_held_up and self._lane is not None:
            return self._read_lane(self._lane, numbers)
        return block

    def _has_backlog(self) -> bool:
        read = {opened.key: opened.offset for opened in self._open.values()}
        return segment.pending_bytes(self._ring, {**self._begins, **read}) >= segment.BACKLOG_BYTES

    def _read_lane(self, lane: FreshLane, numbers: list[int]) -> Block | None:
        """Return what may go before the backlog of the lane's next block; None if nothing of it may."""
        if lane.has_ended:
            return None
        block = self._read_oldest([number for number in numbers if number >= lane.begin])
        if block is None:
            return None
        admitted = lane.admit(block)
        self._open[block.key.number].offset = admitted.end
        return admitted if admitted.end > admitted.begin else None

    def _read_oldest(self, numbers: list[int]) -> Block | None:
        older: list[OpenSegment] = []
        self._is_awaited = False
        for number in numbers:
            opened = self._open.get(number) or self._attach(number)
            if self._is_awaited:
                return None  # what is newer would overtake it
            if opened is None:
                continue
            before = opened.offset
            block = opened.read()
            if block is not None:
                # A writer may have appended to an older segment after we read it, and before it moved to this one.
                # Read the older ones once more and return those records first; whatever precedes what we hold is
                # already on disk.
                for each in older:
                    earlier = each.read()
                    if earlier is not None:
                        opened.offset = before
                        return earlier
                return block
            older.append(opened)
        return None

    def read_to(self, key: SegmentKey, end: int) -> Block | None:
        """Return the next block of segment `key` before offset `end`. None: all is read, or the segment is gone."""
        opened = self._open.get(key.number) or self._attach(key.number)
        while opened is None and self._is_awaited:
            opened = self._attach(key.number)
        return opened.read(limit=end) if opened and opened.key == key else None

    def stop_reading(self, key: SegmentKey) -> None:
        """Read no further in segment `key`, and do not reclaim it: only a newer version understands what it holds."""
        if opened := self._open.get(key.number):
            opened.is_foreign = True

    def data_of(self, key: SegmentKey, start: int, end: int) -> bytes:
        """Return a range of a segment as it is on disk (`disk.read`), for the dead letters. b"": it is not open."""
        opened = self._open.get(key.number)
        return disk.read(opened.fd, end - start, start) if opened and opened.key == key else b""

    def has_reclaimable(self, committed: Mapping[SegmentKey, int]) -> bool:
        """Tell whether a segment that is not the newest is settled as far as it was read, so that `reclaim` may try."""
        return any(
            number != self._newest
            and not opened.is_foreign
            and committed.get(opened.key, opened.begin) >= opened.offset
            for number, opened in self._open.items()
        )

    def reclaim(self, committed: Mapping[SegmentKey, int]) -> int:
        """Unlink each segment that is final and committed to its end, or have the history take it. Return how many.

        If an idle writer has such a segment open, give its disk blocks back instead. The caller still leads.
        """
        removed = 0
        self._has_found_end = False
        for number in [number for number in self._open if number != self._newest]:
            opened = self._open[number]
            was_final = opened.is_final
            # A segment without a whole frame, as a power failure may leave it, has no committed offset.
            end = committed.get(opened.key, opened.begin)
            if opened.is_foreign or end < opened.offset:
                continue  # something of it is in flight
            if not opened.finalise():
                self._close(number)
            elif not opened.is_final:
                opened.hollow(end, self._history.save if self._history else None)
            elif end >= opened.size():
                if self._history:
                    self._history.take(opened)
                else:
                    segment.remove(self._ring, number)
                self._open.pop(number).close()
                removed += 1
            elif not was_final:
                self._has_found_end = True
        return removed

    def sync(self) -> None:
        """Make every segment durable against a crash of the host, also what is not read yet. Raises OSError."""
        sizes: dict[int, int] = {}
        for opened in open_segments(self._directory):
            sizes[opened.key.number] = opened.size()
            if self._synced.get(opened.key.number) != sizes[opened.key.number]:
                disk.sync(opened.fd)
        if sizes.keys() - self._synced.keys():
            files.sync_directory(self._ring)  # a new file survives only if its name does
        self._synced = sizes

    def close(self) -> None:
        """Close all segments."""
        for opened in self._open.values():
            opened.close()
        self._open.clear()

    def _close(self, number: int) -> None:
        """Close a segment that is gone, or is being evicted, and note how far it was read: it may come back.

        Somebody has moved the ring away and puts it back, or the evictor lets go. What was read is in this leader's
        hands, so it must not be read once more. A segment of which a newer version's frame is left is read anew.
        """
        opened = self._open.pop(number)
        if not opened.is_foreign:
            self._begins[opened.key] = opened.offset
        opened.close()

    def _attach(self, number: int) -> OpenSegment | None:
        self._is_awaited = False
        try:
            opened = OpenSegment.at(self._ring, number, os.O_RDWR, patience_seconds=disk.PATIENCE_SECONDS)
        except FileNotFoundError:
            return None
        if opened is None:
            report("segment", f"{segment.path_of(self._ring, number)} is not a segment and is left alone.")
            return None
        try:
            is_readable = self._is_readable(opened, number)
        except BaseException:  # this process may live on, and must not keep a lock on the segment
            opened.close()
            raise
        if not is_readable:
            opened.close()
            return None
        opened.offset = self._begins.get(opened.key, opened.offset)
        if opened.is_damaged:
            report("segment", f"{self._ring}: segment {number} has a damaged header. What it held is lost.")
        if opened.is_foreign:
            report("layout", f"{self._ring}: segment {number} has a newer layout. It is left for a newer cwsink.")
        self._open[number] = opened
        return opened

    def _lock(self, opened: OpenSegment, number: int) -> bool:
        """Share the lock of a segment. If an evictor has it, wait a moment, and note whether to wait longer."""
        if descriptors.try_lock(opened.fd, exclusive=False):
            self._held.pop(number, None)
            return True
        is_stuck = self._held.setdefault(number, held_lock.Obstruction()).lasts()
        # Writers may evict one segment after the other, always just before we come to it. So both are measured.
        self._is_awaited = not (self._held_up.lasts() or is_stuck)
        until = monotonic() + _LOCK_SECONDS
        while self._is_awaited and monotonic() < until:
            time.sleep(_LOCK_AGAIN_SECONDS)
            if descriptors.try_lock(opened.fd, exclusive=False):
                self._is_awaited = False
                del self._held[number]
                return True
        if is_stuck:
            held_lock.say(
                segment.path_of(self._ring, number),
                "Only a writer that evicts the segment needs the lock, for a moment. Its records wait; newer ones are "
                "delivered.",
            )
        return False

    def _is_readable(self, opened: OpenSegment, number: int) -> bool:
        """Lock a segment, and tell whether it may be read. A segment that counts as evicted is removed instead."""
        if opened.key == read_evictions(self._directory).last_evicted:
            # The evictor holds this lock until it has unlinked the segment. If we get the lock, it was killed.
            if descriptors.try_lock(opened.fd, exclusive=True):
                segment.remove(self._ring, number)
            return False
        if opened.is_damaged and number == self._newest:
            return False  # writers that have it open append on, until they begin the next one
        if not self._lock(opened, number):  # a writer is evicting it
            return False
        # It may have been evicted before we had the lock, or be about to: its evictor was killed after it had counted.
        is_counted = opened.key == read_evictions(self._directory).last_evicted
        return not is_counted and segment.is_named(self._ring, number, os.fstat(opened.fd))
