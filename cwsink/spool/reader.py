"""The leader's side of the ring: read every segment, oldest first, and reclaim.

What is logged after a start does not wait for the backlog that was found: see `Lane`.

Every segment that exists is read from its own offset: a worker that attached to
an old segment and fell idle may append to it hours later, and must neither hold
back the newer ones nor be missed. A segment is final when it is not the newest and
its exclusive lock could be taken: no process has it open for writing, and none can
attach any more while the lock is held. Then, and only then, its unparsable tail is
torn, and once it is committed to its end it is unlinked.

The lock is tried only when nothing of the segment is in flight: converting a shared
flock may drop it for a moment, in which a writer may evict the segment.

Every pass over a segment either advances or goes on to the next one.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final, NamedTuple

from cwsink.diagnostics import report
from cwsink.spool import descriptors, disk, frame, segment
from cwsink.spool.budget import read_evictions
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.frame import Damage, DamageKind, Frame
from cwsink.spool.segment import SegmentKey

READ_BLOCK_BYTES: Final = 1024 * 1024
# Blocks are given back in whole pages; the first one holds the header and stays.
_PAGE_BYTES: Final = 4096


class Block(NamedTuple):
    """What one read of one segment found; offsets are those in the file.

    Attributes:
        key: the segment.
        begin: where the read began.
        frames: the valid frames, in order; `frame.end` is the offset after it.
        damage: the proven bad ranges, each already behind `end`.
        end: everything before it is settled by this block.
    """

    key: SegmentKey
    begin: int
    frames: list[Frame]
    damage: list[Damage]
    end: int


class _Seen:
    """The sequences of one producer that were seen: all before `next`, and some after it."""

    def __init__(self) -> None:
        self.next = 0
        self._later: set[int] = set()

    def add(self, sequence: int) -> None:
        if sequence > self.next:
            self._later.add(sequence)
        elif sequence == self.next:
            self.next += 1
            while self.next in self._later:
                self._later.remove(self.next)
                self.next += 1


class Lane:
    """The segments that are read beside a backlog, as far as that keeps each thread's order.

    A record may go before the older segments if they hold none that its thread wrote before it: if all earlier ones
    of its producer are in the lane. The first writer after a start begins a segment (`Ring`), so that they are.
    That the producer's very first is there proves nothing: another of its threads may have been quicker.

    At a record that may not go, the lane waits: an earlier one may be on its way to the ring. If it is not there
    by the next look, the lane ends: the rest waits for the backlog. A leader that takes over in the middle has not
    seen the first records, and goes on in order.
    """

    def __init__(self, begin: int) -> None:
        """Begin with segment number `begin`."""
        self.begin = begin
        self.has_ended = False
        self._seen: defaultdict[int, _Seen] = defaultdict(_Seen)
        self._waits_at: tuple[SegmentKey, int] | None = None

    def admit(self, block: Block) -> Block:
        """Return the part of a block that may go before the backlog; it may be empty."""
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


class OpenSegment:
    """One segment as a reader has it open: a descriptor, and how far it was read."""

    def __init__(self, fd: int, number: int, offset: int | None = None) -> None:
        """Begin at `offset`, or at the first frame. The descriptor is owned from now on."""
        self.fd = fd
        self._incarnation = descriptors.incarnation()
        header = segment.read_header(fd, number)
        self.is_damaged = header is None  # no salt, so no frame in it can be proven
        self.is_restored = header is not None and header.is_restored
        self.is_foreign = header is not None and not header.readable
        self.key = header.key if header else SegmentKey(number, 0)
        self.begin = header.length if header else 0
        self.offset = self.begin if offset is None else offset
        self.is_final = False
        self._hollowed_to = _PAGE_BYTES
        self._fruitless_size = -1

    def size(self) -> int:
        """Return the file's size now, in bytes."""
        return os.fstat(self.fd).st_size

    def read(self, limit: int | None = None) -> Block | None:
        """Return what is new, or None. Advances `offset` past it.

        Args:
            limit: an offset at which a frame is known to end; nothing after it is read.
        """
        size = self.size() if limit is None else limit
        if size < self.offset and limit is None:
            self.offset = size  # somebody truncated the file: go on with what is appended now
        if self.is_foreign or size <= self.offset:
            return None
        if self.is_damaged:
            start, self.offset = self.offset, size
            return Block(self.key, start, [], [Damage(start, size, DamageKind.CORRUPT)], size)
        if size == self._fruitless_size and not self.is_final:
            return None  # the same unfinished frame as last time
        want = READ_BLOCK_BYTES
        while True:
            asked = min(want, size - self.offset)
            data = os.pread(self.fd, asked, self.offset)
            at_end = self.offset + len(data) >= size or len(data) < asked
            final = self.is_final or limit is not None
            found = frame.scan(data, self.key.salt, base=self.offset, at_end=at_end, final=final)
            if found.consumed or at_end:
                break
            want = max(found.wanted, 2 * want)
        if not found.consumed:
            self._fruitless_size = size
            return None
        begin, self.offset = self.offset, self.offset + found.consumed
        return Block(self.key, begin, found.frames, found.damage, self.offset)

    def blocks(self) -> Iterator[Block]:
        """Read all that is new, block by block."""
        return iter(self.read, None)

    def frames(self) -> Iterator[Frame]:
        """Read all that is new, frame by frame."""
        return chain.from_iterable(block.frames for block in self.blocks())

    def finalise(self) -> bool:
        """Take the exclusive lock if no writer has the segment open; it is kept from then on.

        Returns False if the segment was lost to an evicting writer meanwhile.
        """
        if not self.is_final:
            self.is_final = descriptors.try_lock(self.fd, exclusive=True)
        # A failed conversion drops the shared lock (flock(2)): take it again.
        return self.is_final or descriptors.try_lock(self.fd, exclusive=False)

    def hollow(self, end: int) -> None:
        """Give the blocks before `end` back: delivered, but an idle writer keeps the file."""
        end -= end % _PAGE_BYTES
        if end > self._hollowed_to:
            with contextlib.suppress(OSError):
                disk.punch_hole(self.fd, self._hollowed_to, end)
            self._hollowed_to = end

    def close(self) -> None:
        """Let go of the segment."""
        descriptors.release(self.fd, self._incarnation)


def open_segments(directory: SpoolDirectory) -> Iterator[OpenSegment]:
    """Open each segment in turn, oldest first, read-only and without a lock; but none that is evicted."""
    void = read_evictions(directory).void
    for number in segment.numbers(directory.ring):
        with contextlib.suppress(FileNotFoundError):
            if (fd := segment.open_file(directory.ring, number, os.O_RDONLY)) is None:
                continue
            with contextlib.closing(OpenSegment(fd, number)) as opened:
                if opened.key != void:
                    yield opened


class RingReader:
    """All segments of a spool, as one leader reads them."""

    def __init__(self, directory: SpoolDirectory, committed: Mapping[SegmentKey, int]) -> None:
        """Begin each segment at its `committed` offset."""
        self._directory = directory
        self._ring = directory.ring
        self._committed = committed
        self._open: dict[int, OpenSegment] = {}
        self._newest = 0
        self._lane: Lane | None = None
        self._is_lanes_turn = False
        self._synced: dict[int, int] = {}

    def read(self) -> Block | None:
        """Return the next block of unread frames; None if all is read.

        It is from the oldest segment that has any. Where others are behind it, their lane has every other turn.
        """
        numbers = segment.numbers(self._ring)
        self._newest = numbers[-1] if numbers else 0
        for gone in self._open.keys() - set(numbers):
            self._open.pop(gone).close()
        if self._lane is not None and self._is_lanes_turn and (block := self._read_lane(self._lane, numbers)):
            self._is_lanes_turn = False
            return block
        self._is_lanes_turn = True
        block = self._read_oldest(numbers)
        if block is None or block.key.number == self._newest:
            self._lane = None
        elif self._lane is None:
            self._lane = Lane(self._newest) if self._has_backlog() else None
        elif self._lane.has_ended and self._lane.begin < self._newest:
            self._lane = Lane(self._newest)
        return block

    def _has_backlog(self) -> bool:
        done = {key.number: end for key, end in self._committed.items()}
        done.update((number, opened.offset) for number, opened in self._open.items())
        return segment.pending_bytes(self._ring, done) >= segment.BACKLOG_BYTES

    def _read_lane(self, lane: Lane, numbers: list[int]) -> Block | None:
        """Return the next block that may go before the backlog."""
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
        for number in numbers:
            opened = self._open.get(number) or self._attach(number)
            if opened is None:
                continue
            before = opened.offset
            block = opened.read()
            if block is not None:
                # Since we looked there, a writer may have appended to an older segment and then gone on
                # to this one: what it wrote first comes first. It is there by now, so one look is enough.
                for each in older:
                    earlier = each.read()
                    if earlier is not None:
                        opened.offset = before
                        return earlier
                return block
            older.append(opened)
        return None

    def read_to(self, key: SegmentKey, end: int) -> Block | None:
        """Return the next unread block of segment `key` before offset `end`; None if all is read, or it is gone."""
        opened = self._open.get(key.number) or self._attach(key.number)
        return opened.read(limit=end) if opened and opened.key == key else None

    def leave(self, key: SegmentKey) -> None:
        """Read no further in segment `key`, and do not reclaim it: it holds what we do not understand."""
        if opened := self._open.get(key.number):
            opened.is_foreign = True

    def data_of(self, key: SegmentKey, start: int, end: int) -> bytes:
        """Return the bytes of a range of an open segment, for the dead letters."""
        opened = self._open.get(key.number)
        return os.pread(opened.fd, end - start, start) if opened and opened.key == key else b""

    def has_reclaimable(self, committed: Mapping[SegmentKey, int]) -> bool:
        """Tell whether `reclaim` would have something to try."""
        return any(
            number != self._newest
            and not opened.is_foreign
            and committed.get(opened.key, opened.begin) >= opened.offset
            for number, opened in self._open.items()
        )

    def reclaim(self, committed: Mapping[SegmentKey, int]) -> int:
        """Unlink what is final and committed to its end; hollow what only an idle writer keeps.

        Returns the number of segments unlinked. The caller has checked that it still leads.
        """
        removed = 0
        for number in [number for number in self._open if number != self._newest]:
            opened = self._open[number]
            # Nothing of it is committed if it holds no whole frame, as a power failure may leave it.
            end = committed.get(opened.key, opened.begin)
            if opened.is_foreign or end < opened.offset:
                continue  # something of it is in flight
            if not opened.finalise():
                self._open.pop(number).close()
            elif not opened.is_final:
                opened.hollow(end)
            elif end >= opened.size():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(segment.path_of(self._ring, number))
                self._open.pop(number).close()
                removed += 1
        return removed

    def existing(self) -> set[int]:
        """Return the numbers of the segments that exist."""
        return set(segment.numbers(self._ring))

    def sync(self) -> None:
        """Make every segment durable against a crash of the host, whether it was read yet or not. Raises OSError."""
        sizes: dict[int, int] = {}
        for opened in open_segments(self._directory):
            sizes[opened.key.number] = opened.size()
            if self._synced.get(opened.key.number) != sizes[opened.key.number]:
                disk.sync(opened.fd)
        if sizes.keys() - self._synced.keys():
            disk.sync_directory(self._ring)  # a new file is durable once its name is
        self._synced = sizes

    def close(self) -> None:
        """Let go of all segments."""
        for opened in self._open.values():
            opened.close()
        self._open.clear()

    def _attach(self, number: int) -> OpenSegment | None:
        try:
            fd = segment.open_file(self._ring, number, os.O_RDWR)
        except FileNotFoundError:
            return None
        if fd is None:
            report("segment", f"{segment.path_of(self._ring, number)} is not a segment and is left alone.")
            return None
        opened = OpenSegment(fd, number)
        try:
            is_readable = self._is_readable(opened, number)
        except BaseException:  # who stays alive after it must keep no lock on the segment
            opened.close()
            raise
        if not is_readable:
            opened.close()
            return None
        opened.offset = self._committed.get(opened.key, opened.offset)
        if opened.is_damaged:
            report("segment", f"{self._ring}: segment {number} has a damaged header; what it held is lost.")
        if opened.is_restored:
            report("segment", f"{self._ring}: segment {number} has a damaged header; its records are not lost.")
        if opened.is_foreign:
            report("layout", f"{self._ring}: segment {number} has a newer layout. It is left for a newer cwsink.")
        self._open[number] = opened
        return opened

    def _is_readable(self, opened: OpenSegment, number: int) -> bool:
        """Tell whether a segment may be read from now on; then it is locked. One that counts as evicted is removed."""
        if opened.key == read_evictions(self._directory).void:
            # Its evictor holds this lock until it has unlinked it: if we get it, the evictor was killed.
            if descriptors.try_lock(opened.fd, exclusive=True):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(segment.path_of(self._ring, number))
            return False
        if opened.is_damaged and number == self._newest:
            return False  # its writers have not gone on to the next one yet
        return descriptors.try_lock(opened.fd, exclusive=False)  # if not: it is being evicted
