"""The byte budget of the ring: is there room for a segment, and if not, which segments go?

The writer that needs a new segment decides, with or without a leader alive. Only one process evicts at a time: it has
`budget.lock`, which a writer only tries to take. A writer that does not get it appends on to the segment it has.

How the totals stay exact whenever an evictor is killed, also on a full disk: `cwsink.spool`, "When the ring is full".

To count a large segment takes longer than an append may. So one append counts a part, and the next one goes on
(cwsink.spool.eviction_count). Meanwhile writers append on to the segment they have.
"""

from __future__ import annotations

import os
from collections import Counter
from enum import Enum
from typing import Final
from zlib import crc32

import msgspec

from cwsink.clock import monotonic
from cwsink.interruption import is_interruption, suppress
from cwsink.spool import cursor, descriptors, disk, files, held_lock, lease, segment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.eviction_count import EvictionCount
from cwsink.spool.record import Count, TimeMs, summed
from cwsink.spool.segment import SegmentKey

_CRC_BYTES: Final = 4
_MOST_BYTES: Final = 64 * 1024
_BLOCK_BYTES: Final = 4096
# Blocks are allotted in groups, and the last one of a file is nearly never full.
_WORTH_TRIMMING_BYTES: Final = 64 * 1024
# An append may take 50 ms, and it does other work beside this.
_COUNT_SECONDS: Final = 0.01


class Evictions(msgspec.Struct, array_like=True):
    """What writers evicted since the spool was made.

    Attributes:
        records: how many events, and damaged ranges, ever.
        first_ms, last_ms: the times of those not yet reported into the stream.
        refused: counts of loss markers that went with an evicted segment, by reason.
        number, salt: the segment that was evicted last. It may still exist, if its evictor was killed.
        counting: how far the segment is counted that goes next; None if none is.
    """

    records: Count = 0
    first_ms: TimeMs = 0
    last_ms: TimeMs = 0
    refused: dict[str, Count] = {}
    number: Count = 0
    salt: Count = 0
    counting: EvictionCount | None = None

    @property
    def last_evicted(self) -> SegmentKey:
        """The segment that the totals include last. If it still exists, nobody may read it or count it again."""
        return SegmentKey(self.number, self.salt)


_decode: Final = msgspec.msgpack.Decoder(Evictions).decode  # made now, for a `__del__` at the interpreter's end


def read_evictions(directory: SpoolDirectory, *, mends: bool = False) -> Evictions:
    """Return the totals; zero if nothing was evicted. Of a damaged file only what the stream was told of is known.

    Args:
        directory: the spool.
        mends: write a damaged file anew. Else each new process would wait for what the disk cannot read (`disk.read`).

    Raises:
        OSError: EMFILE, EIO and so on. If we returned zero here, an evictor would write that down, and the totals
            would be lost.
    """
    if (found := _found(directory)) is None:
        found = Evictions(records=cursor.read(directory.cursor).ledger.evicted_reported)
        if mends:
            with suppress(OSError), files.opened(directory.budget_lock, os.O_RDWR | os.O_CREAT) as lock:
                if descriptors.try_lock(lock.fd, exclusive=True) and _found(directory) is None:
                    files.replace(directory.evictions, _packed(found))
    return found


def _found(directory: SpoolDirectory) -> Evictions | None:
    """Return what the file says; None if it is damaged. Raises OSError."""
    if (data := files.read_if_there(directory.evictions, _MOST_BYTES)) is None:
        return Evictions()
    for body in (data[_CRC_BYTES:], data[_CRC_BYTES:].rstrip(b"\0")):  # `_overwrite` leaves zeros behind shorter totals
        with suppress(ValueError):
            if crc32(body) == int.from_bytes(data[:_CRC_BYTES], "little"):
                return _decode(body)
    return None


def prepare(directory: SpoolDirectory) -> None:
    """Make what an eviction needs, while it can be made: the totals with their block, and the lock. Never raises."""
    with suppress(OSError):
        files.opened(directory.budget_lock, os.O_RDWR | os.O_CREAT).close()
        if not files.exists(directory.evictions):
            files.replace(directory.evictions, _packed(Evictions()))


def used_bytes(ring: str) -> int:
    """Return the disk space of all segments, by their blocks: a segment whose blocks were given back takes little."""
    return sum(usage_of(status) for status in segment.statuses(ring).values())


def usage_of(status: os.stat_result) -> int:
    """Return the disk space of one file, in bytes; where the file system counts no blocks, the file's size.

    ZFS counts blocks some 5 s late. So there the ring may exceed its budget by what is written meanwhile.
    """
    return status.st_blocks * 512 or status.st_size


class _Fate(Enum):
    """What became of a segment that was to be evicted."""

    GONE = "gone"
    HELD = "held"  # a process reads or writes it, or this version cannot read it
    UNREADABLE = "unreadable"  # the disk cannot read it now, so nobody could tell how many records go
    COUNTING = "counting"  # the time was over before all of it was counted


class Budget:
    """The budget of one spool, as one writer sees it.

    Attributes:
        most_bytes: the disk space that all segments together may take.
        segment_bytes: how much of that the next segment takes.
    """

    def __init__(self, directory: SpoolDirectory, most_bytes: int, segment_bytes: int) -> None:
        self._directory = directory
        self.most_bytes = most_bytes
        self.segment_bytes = segment_bytes
        self._written = Evictions()  # what the file said when we last had the lock
        self._unwritten = Evictions()  # what we evicted since, while the disk was too full to write it down
        self._counting: EvictionCount | None = None
        self._lock_held = held_lock.Obstruction()
        self._segments_held = held_lock.Obstruction()

    def has_room(self) -> bool:
        """Tell whether another segment fits. No lock is needed, because only one writer can make the next number."""
        return self._fits() or (self._trim() and self._fits())

    def _fits(self) -> bool:
        return used_bytes(self._directory.ring) + self.segment_bytes <= self.most_bytes

    def _trim(self) -> bool:
        """Give back what was reserved and not used, of segments that nobody has open. Tell whether there was any.

        A start behind a backlog, or a process that may only make small files, has left its segment early.
        """
        is_any = False
        for number, status in list(segment.statuses(self._directory.ring).items())[:-1]:
            if usage_of(status) - status.st_size < _WORTH_TRIMMING_BYTES:
                continue
            path = segment.path_of(self._directory.ring, number)
            with suppress(OSError), files.opened(path, os.O_RDWR) as file:
                # With this lock on a segment that is not the newest, nobody can append: the file is not cut.
                if descriptors.try_lock(file.fd, exclusive=True):
                    os.ftruncate(file.fd, os.fstat(file.fd).st_size)
                    is_any = True
        return is_any

    def evict(self, *, at_least_one: bool = False, seconds: float = _COUNT_SECONDS) -> bool:
        """Evict the oldest segments that nobody reads or writes, until another segment fits.

        Args:
            at_least_one: evict one even if the budget has room: the disk is full before the budget is.
            seconds: how long to count the records that are to go. The next call goes on.

        Returns:
            Whether there is room now. False also if another process is evicting, or if the time is over.
        """
        until = monotonic() + seconds
        with files.opened(self._directory.budget_lock, os.O_RDWR | os.O_CREAT) as lock:
            if not descriptors.try_lock(lock.fd, exclusive=True):
                self._wait_for_the_lock()
                return False
            self._lock_held.is_over()
            self._written = read_evictions(self._directory)
            evictions = _sum(_copy(self._written), self._unwritten)
            # First unlink the segment that an evictor had counted before it was killed, even if it is not the oldest.
            # The totals remember only one such segment; once they name the next, readers would take this one for live
            # again.
            if self._is_present(evictions.last_evicted):
                fate = self._evict(evictions.number, evictions, until)
                if fate is _Fate.HELD:
                    self._say_what_is_held([evictions.number], 1)
                if fate is not _Fate.GONE:
                    return False
                at_least_one = False
            # The newest one stays: the next segment's number is counted from it.
            numbers, held = segment.numbers(self._directory.ring), 0
            for number in numbers[:-1]:
                if not at_least_one and self.has_room():
                    break
                fate = self._evict(number, evictions, until)
                if fate is _Fate.COUNTING:
                    return False
                if fate is _Fate.GONE:
                    at_least_one = False
                held += fate is _Fate.HELD
            if not at_least_one and self.has_room():
                return True
            if held and not at_least_one:  # else the disk is full, which is the cause
                self._say_what_is_held(numbers, held)
            return False

    def _wait_for_the_lock(self) -> None:
        """Another process has budget.lock. Say so if it keeps that and evicts nothing."""
        numbers = segment.numbers(self._directory.ring)
        written_at = files.written_at_ns(self._directory.evictions)  # also what it has counted so far
        if self._lock_held.lasts((numbers[:1], numbers[-1:], written_at)):
            held_lock.say(
                self._directory.budget_lock,
                "Without it nothing can be evicted: while the spool is full, new records are refused and counted.",
            )

    def _say_what_is_held(self, numbers: list[int], held: int) -> None:
        """There is no room, and other processes use so many segments. Say so if that lasts.

        A leader has open what it could not send yet. It is not in the way: what hinders it is said as the cause.
        """
        if self._segments_held.lasts((numbers[0], numbers[-1])) and not lease.is_taken(self._directory):
            held_lock.say(
                segment.path_of(self._directory.ring, numbers[0]),
                f"The spool is full, and {held:,} of its segments cannot be evicted: each is open in another process, "
                "or is of a newer cwsink. New records are refused and counted.",
            )

    def _open(self, number: int) -> descriptors.Opened | None:
        """Open a segment; None if it is gone, or is no segment. Raises OSError."""
        with suppress(FileNotFoundError):
            return segment.opened(self._directory.ring, number, os.O_RDONLY)
        return None

    def _is_present(self, key: SegmentKey) -> bool:
        if (opened := self._open(key.number)) is None:
            return False
        with opened:
            with disk.suppress_unreadable():
                return _header(opened.fd, key.number).key == key
            return True  # it may be

    def _evict(self, number: int, evictions: Evictions, until: float) -> _Fate:
        """Count and unlink a segment. Raises OSError."""
        if (opened := self._open(number)) is None:
            return _Fate.HELD
        with opened:
            if not descriptors.try_lock(opened.fd, exclusive=True):
                return _Fate.HELD
            try:
                header = _header(opened.fd, number)
                if not header.readable:
                    return _Fate.HELD  # another version's: we do not know what we would throw away
                is_void = header.key == evictions.last_evicted
                if not is_void and not self._count(opened.fd, header, evictions, until):
                    return _Fate.COUNTING
            except OSError as error:
                if not disk.is_unreadable(error):
                    raise
                return _Fate.UNREADABLE
            if not is_void:
                try:
                    self._write_down(evictions)
                except OSError as error:  # the disk is full to the last block: the totals keep the block that they have
                    if is_interruption(error):
                        raise
                    self._overwrite(evictions)
            segment.remove(self._directory.ring, number)
        if self._unwritten.records or self._unwritten.refused:  # nor could they be overwritten: now there may be room
            with suppress(OSError):
                self._write_down(evictions)
        return _Fate.GONE

    def _write_down(self, evictions: Evictions) -> None:
        """Replace the totals. Raises OSError."""
        files.replace(self._directory.evictions, _packed(evictions))
        self._written, self._unwritten = _copy(evictions), Evictions()

    def _overwrite(self, evictions: Evictions) -> None:
        """Write the totals into the file that is there. If even that fails, they are added the next time.

        This is one write into one block, so no kill divides it; a power failure may.
        """
        self._unwritten = _difference(evictions, self._written)
        with suppress(OSError), files.opened(self._directory.evictions, os.O_RDWR) as file:
            data = _packed(evictions)
            if len(data) <= _BLOCK_BYTES:
                os.pwrite(file.fd, data.ljust(os.fstat(file.fd).st_size, b"\0"), 0)
                self._written, self._unwritten = _copy(evictions), Evictions()

    def _count(self, fd: int, header: segment.Header, evictions: Evictions, until: float) -> bool:
        """Count a segment's unsettled records and loss markers. Once all are, add them to the totals. Tell whether."""
        start = cursor.read(self._directory.cursor).committed().get(header.key, header.length)
        begun = [each for each in (evictions.counting, self._counting) if each and each.goes_on(*header.key, start)]
        counted = max(begun, key=lambda each: each.offset, default=EvictionCount(*header.key, start, start))
        is_counted = counted.count(fd, until)
        evictions.counting = self._counting = None if is_counted else counted
        if not is_counted:
            with suppress(OSError):  # no space: then only this process knows how far it has counted
                self._write_down(evictions)
            return False
        if counted.records:
            if not counted.first_ms:  # no record of it can be read
                counted.first_ms = counted.last_ms = max(0, os.fstat(fd).st_mtime_ns // 1_000_000)
            if evictions.records == cursor.read(self._directory.cursor).ledger.evicted_reported:
                evictions.first_ms, evictions.last_ms = counted.first_ms, counted.last_ms
            elif counted.first_ms:
                evictions.first_ms = min(evictions.first_ms, counted.first_ms)
                evictions.last_ms = max(evictions.last_ms, counted.last_ms)
            evictions.records += counted.records
        evictions.refused = dict(Counter(evictions.refused) + Counter(counted.refused))
        evictions.number, evictions.salt = header.key
        return True


def _header(fd: int, number: int) -> segment.Header:
    """Return a segment's header. If it is damaged, all of the segment is one damaged range (`OpenSegment`).

    Raises OSError, also if the disk cannot read it now.
    """
    header = segment.read_header(fd, patience_seconds=disk.PATIENCE_SECONDS)
    return header or segment.Header(SegmentKey(number, 0), 0, readable=True)


def _copy(totals: Evictions) -> Evictions:
    return msgspec.structs.replace(totals, refused=dict(totals.refused))


def _sum(totals: Evictions, more: Evictions) -> Evictions:
    if more.records or more.refused:
        totals.records += more.records
        totals.first_ms = totals.first_ms or more.first_ms
        totals.last_ms = max(totals.last_ms, more.last_ms)
        totals.refused = dict(Counter(totals.refused) + Counter(more.refused))
    return totals


def _difference(totals: Evictions, less: Evictions) -> Evictions:
    return Evictions(
        records=totals.records - less.records,
        first_ms=totals.first_ms,
        last_ms=totals.last_ms,
        refused=dict(Counter(totals.refused) - Counter(less.refused)),
    )


def _packed(evictions: Evictions) -> bytes:
    body = msgspec.msgpack.encode(evictions)
    if len(body) > _BLOCK_BYTES - _CRC_BYTES:  # somebody has made up reasons: the totals stay right without them
        without = msgspec.structs.replace(evictions, refused=summed(evictions.refused), counting=None)
        body = msgspec.msgpack.encode(without)
    return crc32(body).to_bytes(_CRC_BYTES, "little") + body
