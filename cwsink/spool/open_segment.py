"""One segment as a reader has it open, and the blocks that it reads from it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from cwsink.interruption import suppress
from cwsink.spool import descriptors, disk, frame, segment
from cwsink.spool.frame import Damage, DamageKind, Frame
from cwsink.spool.record import MAX_PAYLOAD_BYTES
from cwsink.spool.segment import SegmentKey

READ_BLOCK_BYTES: Final = 1024 * 1024
# Disk blocks are given back in whole pages. The first page stays, because it holds the header.
_PAGE_BYTES: Final = 4096
# A frame that begins in the first half of so many bytes ends in them, too.
_MOST_BLOCK_BYTES: Final = 2 * (MAX_PAYLOAD_BYTES + frame.HEADER_BYTES)


class Block(NamedTuple):
    """What one read of one segment found; offsets are those in the file.

    Attributes:
        key: the segment.
        begin: where the read began.
        frames: the valid frames, in order; `frame.end` is the offset after it.
        damage: the ranges that are proven bad.
        end: where the read ended. All between `begin` and this offset is in `frames` or in `damage`.
    """

    key: SegmentKey
    begin: int
    frames: list[Frame]
    damage: list[Damage]
    end: int


class OpenSegment:
    """One segment as a reader has it open: a descriptor, and how far the reader has read.

    Attributes:
        is_damaged: it has no header that can be read. Without the salt no frame in it can be proven.
        is_foreign: it has a newer layout, or holds something of a newer version: it is not read, and not removed.
        is_final: no writer can append to it any more.
        begin, offset: where its frames begin, and how far it was read.
    """

    def __init__(self, fd: int, number: int, offset: int | None = None, *, patience_seconds: float = 0.0) -> None:
        """Take over the descriptor. Begin to read at `offset`, or at the first frame.

        `patience_seconds`: see `disk.read`.
        """
        self.fd = fd
        self._incarnation = descriptors.incarnation()
        self._patience_seconds = patience_seconds
        header = segment.read_header(fd, patience_seconds=patience_seconds)
        self.is_damaged = header is None
        self.is_foreign = header is not None and not header.readable
        self.key = header.key if header else SegmentKey(number, 0)
        self.begin = header.length if header else 0
        self.offset = self.begin if offset is None else offset
        self.is_final = False
        self._hollowed_to = _PAGE_BYTES
        self._fruitless_size = -1

    @classmethod
    def at(cls, ring: str, number: int, flags: int, *, patience_seconds: float = 0.0) -> OpenSegment | None:
        """Open segment `number` of a ring, or of the history. None: something else has its name (`segment.opened`).

        Raises:
            OSError: it cannot be opened or read. No descriptor is left behind.
        """
        if (file := segment.opened(ring, number, flags)) is None:
            return None
        with file:
            opened = cls(file.fd, number, patience_seconds=patience_seconds)
            file.keep()
        return opened

    def size(self) -> int:
        """Return the file's size now, in bytes."""
        return os.fstat(self.fd).st_size

    def read(self, limit: int | None = None, *, block_bytes: int = READ_BLOCK_BYTES) -> Block | None:
        """Return what is new, and advance `offset` past it; None if there is nothing.

        Args:
            limit: read up to this offset only. The caller knows that a frame ends there.
            block_bytes: how much to read at once, if a whole frame is in that.
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
        if hole_bytes := self._hole_bytes(0, size):
            return self._bad_block(hole_bytes, DamageKind.TORN)
        want = block_bytes
        while True:
            asked = min(want, size - self.offset)
            data = disk.read(self.fd, asked, self.offset, patience_seconds=self._patience_seconds)
            at_end = self.offset + len(data) >= size or len(data) < asked
            final = self.is_final or limit is not None
            found = frame.scan(data, self.key.salt, base=self.offset, at_end=at_end, final=final)
            if found.consumed or at_end:
                break
            if self._hole_bytes(asked, size):
                return self._bad_block(asked, DamageKind.CORRUPT if data.strip(b"\0") else DamageKind.TORN)
            if asked >= _MOST_BLOCK_BYTES:
                return self._bad_block(_MOST_BLOCK_BYTES // 2, DamageKind.CORRUPT)
            want = min(max(found.wanted, 2 * want), _MOST_BLOCK_BYTES)
            del data, found  # else there are two blocks in memory
        if not found.consumed:
            self._fruitless_size = size
            return None
        begin, self.offset = self.offset, self.offset + found.consumed
        return Block(self.key, begin, found.frames, found.damage, self.offset)

    def _hole_bytes(self, ahead: int, size: int) -> int:
        """Return how long the hole is that begins so many bytes ahead; 0 if there is none, or a small one.

        No writer leaves a large one in what is not settled. To read its zeros would take long.
        """
        start = self.offset + ahead
        try:
            end = min(os.lseek(self.fd, start, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a file system that knows no holes
                return 0
            end = size  # nothing but a hole follows
        if end - start <= READ_BLOCK_BYTES:
            return 0
        # A file system may take for a hole what it has not written to the disk yet (OpenZFS before 2.2.2).
        found = disk.read(self.fd, _PAGE_BYTES, start, patience_seconds=self._patience_seconds)
        return 0 if found.strip(b"\0") else end - start

    def _bad_block(self, length: int, kind: DamageKind) -> Block:
        begin, self.offset = self.offset, self.offset + length
        return Block(self.key, begin, [], [Damage(begin, self.offset, kind)], self.offset)

    def blocks(self) -> Iterator[Block]:
        """Read all that is new, block by block."""
        return iter(self.read, None)

    def frames(self) -> Iterator[Frame]:
        """Read all that is new, frame by frame."""
        return chain.from_iterable(block.frames for block in self.blocks())

    def finalise(self) -> bool:
        """Try to take the exclusive lock, for good. That works if no writer has the segment open.

        Return False if we have no lock any more, because a writer is evicting the segment.
        """
        if not self.is_final:
            self.is_final = descriptors.try_lock(self.fd, exclusive=True)
        # A conversion that fails may have dropped the shared lock (flock(2)), so take it again.
        return self.is_final or descriptors.try_lock(self.fd, exclusive=False)

    def hollow(self, end: int, save: Callable[[OpenSegment, int], object] | None = None) -> None:
        """Give the disk blocks before `end` back. All of that is settled, but an idle writer has the file open.

        Args:
            end: where a frame ends.
            save: what keeps a copy.
        """
        page_end = end - end % _PAGE_BYTES
        if page_end > self._hollowed_to:
            if save:
                save(self, end)
            with suppress(OSError):
                disk.punch_hole(self.fd, self._hollowed_to, page_end)
            self._hollowed_to = page_end

    def close(self) -> None:
        """Close the descriptor, which frees the lock."""
        descriptors.release(self.fd, self._incarnation)
