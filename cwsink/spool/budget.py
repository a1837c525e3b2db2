"""The byte budget of the ring: is there room for a segment, and what goes if not.

Decided by the writer that needs a new segment, with or without a leader alive.
Eviction is exact under a kill at any point: first the totals, with the number of
the segment they now include, replace the `evictions` file in one rename; then the
segment is unlinked. Between the two the segment is void: readers skip it, and the
next evictor unlinks it. Only one process evicts at a time (`budget.lock`, a try-lock:
who does not get it appends on to the segment it has).
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
# Nothing was evicted yet; or what has the file's name is no file of ours, and no totals are lost by ignoring it.
# There is no such file, or something else lies in its place.
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
        number, salt: the segment evicted last; if it still exists it is void.
    """

    records: int = 0
    first_ms: int = 0
    last_ms: int = 0
    refused: dict[str, int] = {}
    number: int = 0
    salt: int = 0

    @property
    def void(self) -> SegmentKey:
        """The segment whose records are counted here already."""
        return SegmentKey(self.number, self.salt)


def read_evictions(directory: SpoolDirectory) -> Evictions:
    """Return the totals; zero if nothing was evicted, or the file was damaged.

    Raises:
        OSError: EMFILE, EIO and so on. Zero would be written as the new totals, and the old ones forgotten.
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
    """Return the disk space the segments take: by blocks, so that a hollowed segment counts little."""
    total = 0
    for number in segment.numbers(ring):
        with contextlib.suppress(FileNotFoundError):
            total += usage_of(os.lstat(segment.path_of(ring, number)))
    return total


def usage_of(status: os.stat_result) -> int:
    """Return the disk space of one file, in bytes (its size where the file system counts no blocks)."""
    return status.st_blocks * 512 or status.st_size


class Budget:
    """The budget of one spool, as one writer sees it."""

    def __init__(self, directory: SpoolDirectory, max_bytes: int, segment_bytes: int) -> None:
        self._directory = directory
        self._most = max_bytes
        self._segment_bytes = segment_bytes
        self._written = Evictions()  # as the file was when we last had the lock
        self._unwritten = Evictions()  # evicted, but the disk was too full to write it down

    def has_room(self) -> bool:
        """Tell whether another segment fits. Needs no lock: only one writer can make the next number."""
        return used_bytes(self._directory.ring) + self._segment_bytes <= self._most

    def evict(self, *, at_least_one: bool = False) -> bool:
        """Evict the oldest segments that nobody reads or writes until another segment fits.

        Args:
            at_least_one: evict one even if the budget has room (the disk is full, not the budget).

        Returns:
            Whether there is room now. False also if another process is at it.
        """
        lock = descriptors.acquire(self._directory.budget_lock, os.O_RDWR | os.O_CREAT)
        try:
            if not descriptors.try_lock(lock, exclusive=True):
                return False
            self._written = read_evictions(self._directory)
            evictions = _sum(_copy(self._written), self._unwritten)
            # What a killed evictor has counted goes first, though it be not the oldest: once the totals name
            # another one it would count, or be delivered, again.
            if self._is_present(evictions.void):
                if not self._evict(evictions.number, evictions):
                    return False
                at_least_one = False
            # The newest stays: its number is the ring's memory of where it is.
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
        header = segment.read_header(fd, key.number)
        descriptors.release(fd, descriptors.incarnation())
        return header is not None and header.key == key

    def _evict(self, number: int, evictions: Evictions) -> bool:
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
            header = segment.read_header(fd, number)
            if header is not None and not header.readable:
                return False  # another version's: not ours to throw away
            if header is not None and header.key != evictions.void:
                self._count(fd, header, evictions)
                try:
                    self._write_down(evictions)
                except OSError:  # the disk is full to the last block: make room first, then write it down
                    os.unlink(path)
                    descriptors.release(fd, descriptors.incarnation())
                    fd = -1  # only now are its blocks free
                    with contextlib.suppress(OSError):
                        self._write_down(evictions)
                    return True
            os.unlink(path)
            return True
        finally:
            descriptors.release(fd, descriptors.incarnation())

    def _write_down(self, evictions: Evictions) -> None:
        """Replace the totals. Raises OSError; what is not written then is remembered for the next time."""
        self._unwritten = _difference(evictions, self._written)
        _replace(self._directory.evictions, evictions)
        self._written, self._unwritten = _copy(evictions), Evictions()

    def _count(self, fd: int, header: segment.Header, evictions: Evictions) -> None:
        """Add what is not settled of a segment to the totals."""
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
    """Return the time of the first event that can be read, in ms; 0 if there is none."""
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
