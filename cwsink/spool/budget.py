"""The byte budget of the ring: is there room for a segment, and if not, which segments go?

The writer that needs a new segment decides, with or without a leader alive. Only one process evicts at a time: it has
`budget.lock`, which a writer only tries to take. A writer that does not get it appends on to the segment it has.

An evictor may be killed at any point, and the totals must be exact all the same. So it works in two steps. First it
replaces the file `evictions`, in one rename, by new totals with the number of the segment that they now include. Then
it unlinks that segment. If it is killed in between, the segment counts as evicted although it exists: readers skip it,
and the next evictor unlinks it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Iterable
from typing import Final
from zlib import crc32

import msgspec

from cwsink.spool import cursor, descriptors, files, frame, segment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.segment import SegmentKey

_CRC_BYTES: Final = 4
# These errors mean that nothing was evicted yet, or that the name belongs to something else than a file of ours. There
# are no totals then that could be lost.
_NOT_OURS: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EFBIG}
)
_MOST_BYTES: Final = 64 * 1024


class Evictions(msgspec.Struct, array_like=True):
    """What writers evicted since the spool was made.

    Attributes:
        records: how many events, ever.
        first_ms, last_ms: the times of those not yet reported into the stream.
        refused: counts of loss markers that went with an evicted segment, by reason.
        number, salt: the segment that was evicted last. It may still exist, if its evictor was killed.
    """

    records: int = 0
    first_ms: int = 0
    last_ms: int = 0
    refused: dict[str, int] = {}
    number: int = 0
    salt: int = 0

    @property
    def last_evicted(self) -> SegmentKey:
        """The segment that the totals include last. If it still exists, nobody may read it or count it again."""
        return SegmentKey(self.number, self.salt)


def read_evictions(directory: SpoolDirectory) -> Evictions:
    """Return the totals; zero if nothing was evicted, or if the file was damaged.

    Raises:
        OSError: EMFILE, EIO and so on. If we returned zero here, an evictor would write that down, and the totals
            would be lost.
    """
    try:
        data, _ = files.read(directory.evictions, _MOST_BYTES)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return Evictions()
        raise
    with contextlib.suppress(ValueError):
        if crc32(data[_CRC_BYTES:]) == int.from_bytes(data[:_CRC_BYTES], "little"):
            return msgspec.msgpack.decode(data[_CRC_BYTES:], type=Evictions)
    return Evictions()


def used_bytes(ring: str) -> int:
    """Return the disk space of all segments, by their blocks: a segment whose blocks were given back takes little."""
    total = 0
    for number in segment.numbers(ring):
        with contextlib.suppress(FileNotFoundError):
            total += usage_of(os.lstat(segment.path_of(ring, number)))
    return total


def usage_of(status: os.stat_result) -> int:
    """Return the disk space of one file, in bytes; where the file system counts no blocks, the file's size.

    ZFS counts blocks some 5 s late. So there the ring may exceed its budget by what is written meanwhile.
    """
    return status.st_blocks * 512 or status.st_size


class Budget:
    """The budget of one spool, as one writer sees it."""

    def __init__(self, directory: SpoolDirectory, max_bytes: int, segment_bytes: int) -> None:
        self._directory = directory
        self._most = max_bytes
        self._segment_bytes = segment_bytes
        self._written = Evictions()  # what the file said when we last had the lock
        self._unwritten = Evictions()  # what we evicted since, while the disk was too full to write it down

    def has_room(self) -> bool:
        """Tell whether another segment fits. No lock is needed, because only one writer can make the next number."""
        return used_bytes(self._directory.ring) + self._segment_bytes <= self._most

    def evict(self, *, at_least_one: bool = False) -> bool:
        """Evict the oldest segments that nobody reads or writes, until another segment fits.

        Args:
            at_least_one: evict one even if the budget has room: the disk is full before the budget is.

        Returns:
            Whether there is room now. False also if another process is evicting.
        """
        lock = descriptors.acquire(self._directory.budget_lock, os.O_RDWR | os.O_CREAT)
        try:
            if not descriptors.try_lock(lock, exclusive=True):
                return False
            self._written = read_evictions(self._directory)
            evictions = _sum(_copy(self._written), self._unwritten)
            # First unlink the segment that an evictor had counted before it was killed, even if it is not the oldest.
            # The totals remember only one such segment; once they name the next, readers would take this one for live
            # again.
            if self._is_present(evictions.last_evicted):
                if not self._evict(evictions.number, evictions):
                    return False
                at_least_one = False
            # The newest one stays: the next segment's number is counted from it.
            for number in segment.numbers(self._directory.ring)[:-1]:
                if not at_least_one and self.has_room():
                    return True
                if self._evict(number, evictions):
                    at_least_one = False
            return not at_least_one and self.has_room()
        finally:
            descriptors.release(lock, descriptors.incarnation())

    def _is_present(self, key: SegmentKey) -> bool:
        try:
            fd = segment.open_file(self._directory.ring, key.number, os.O_RDONLY)
        except FileNotFoundError:
            return False
        if fd is None:
            return False
        header = segment.read_header(fd)
        descriptors.release(fd, descriptors.incarnation())
        return header is not None and header.key == key

    def _evict(self, number: int, evictions: Evictions) -> bool:
        """Count and unlink a segment. False if a process has it open, if it is another version's, or if it is gone."""
        path = segment.path_of(self._directory.ring, number)
        try:
            fd = segment.open_file(self._directory.ring, number, os.O_RDONLY)
        except FileNotFoundError:
            return False
        if fd is None:
            return False
        try:
            if not descriptors.try_lock(fd, exclusive=True):
                return False
            header = segment.read_header(fd)
            if header is not None and not header.readable:
                return False  # another version's: we do not know what we would throw away
            if header is not None and header.key != evictions.last_evicted:
                self._count(fd, header, evictions)
                try:
                    self._write_down(evictions)
                except OSError:  # the disk is full to the last block: make room first, then write the totals down
                    os.unlink(path)
                    descriptors.release(fd, descriptors.incarnation())
                    fd = -1  # the blocks are free only once the descriptor is closed, too
                    with contextlib.suppress(OSError):
                        self._write_down(evictions)
                    return True
            os.unlink(path)
            return True
        finally:
            descriptors.release(fd, descriptors.incarnation())

    def _write_down(self, evictions: Evictions) -> None:
        """Replace the totals. Raises OSError: then the difference is remembered, and added the next time."""
        self._unwritten = _difference(evictions, self._written)
        _replace(self._directory.evictions, evictions)
        self._written, self._unwritten = _copy(evictions), Evictions()

    def _count(self, fd: int, header: segment.Header, evictions: Evictions) -> None:
        """Add a segment's unsettled records and loss markers to the totals, and name the segment there."""
        state = cursor.read(self._directory.cursor)
        start = state.committed().get(header.key, header.length)
        size = os.fstat(fd).st_size
        found = frame.scan(os.pread(fd, max(0, size - start), start), header.key.salt, at_end=True, final=True)
        count = sum(each.is_event for each in found.frames)
        if count:
            if evictions.records == state.ledger.evicted_reported:
                evictions.first_ms = _first_time(found.frames)
            evictions.last_ms = _first_time(reversed(found.frames))
            evictions.records += count
        for each in found.frames:
            if loss := frame.loss_of(each):
                evictions.refused[loss.reason] = evictions.refused.get(loss.reason, 0) + loss.count
        evictions.number, evictions.salt = header.key


def _first_time(frames: Iterable[frame.Frame]) -> int:
    """Return the time of the first event that this version can read, in ms; 0 if there is none."""
    return next((event.timestamp_ms for event in map(frame.event_of, frames) if event), 0)


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


def _replace(path: str, evictions: Evictions) -> None:
    body = msgspec.msgpack.encode(evictions)
    files.replace(path, crc32(body).to_bytes(_CRC_BYTES, "little") + body)
