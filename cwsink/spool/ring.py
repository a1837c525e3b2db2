"""The writer's side of the ring: append a frame to the newest segment.

One `os.write` of one frame to an O_APPEND descriptor: the kernel's inode lock
serialises all writers of the host, and arrival order is the total order. There is
no lock of ours on this path, in the process or across processes, so `append` may
be called from threads, signal handlers and `__del__`, and no other process can
make it wait, whatever it was doing when it was stopped or killed.

What is not an append happens in `_look`, at most once a second or once in
`segment_bytes / 64` of our own bytes: is the segment full, is there a newer one, is
the directory still there. Only one thread of a process looks; others append on.

`append` answers with a closed set (`Append`). It never raises.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Mapping
from enum import Enum
from time import time_ns
from typing import Final

from cwsink.diagnostics import report, reset_quiet
from cwsink.spool import cursor, descriptors, disk, frame, segment
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.budget import Budget, read_evictions
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.segment import AttachedSegment, SegmentKey

_LOOK_NS: Final = 1_000_000_000
_SMALL_BYTES: Final = 1024
_SMALL_LOOKS: Final = 32
_LOOKS: Final = 64
# How long a refusal stands before the room is looked at again: a full spool must not cost a
# directory listing per record.
_FULL_NS: Final = 20_000_000
_EVICTING_NS: Final = 1_000_000
# Twice a segment is where a writer stops that cannot rotate, whatever the reason.
_MOST_SEGMENT_FACTOR: Final = 2
# Loss markers still fit then: some 60 bytes each, and few (cwsink.frontends.losses).
_MARKERS_BYTES: Final = 16 * 1024

# No segment is begun at a start if the last one holds next to nothing: a service that starts and dies again and
# again, while CloudWatch is away, must not leave a segment for each time. Each takes a mebibyte of the disk.
_WORTH_LEAVING_BYTES: Final = 64 * 1024
_RESERVED_AT_START_BYTES: Final = 1024 * 1024

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Append(Enum):
    """How an append ended."""

    APPENDED = "appended"
    FULL = "spool_full"
    FAILED = "io_error"
    GONE = "spool_removed"


_APPENDED: Final = Append.APPENDED
_write = os.write


class Ring:
    """This process's writing end of a spool's ring."""

    def __init__(self, directory: SpoolDirectory, max_bytes: int, segment_bytes: int, *, may_evict: bool) -> None:
        self._directory = directory
        self._spool_id = bytes.fromhex(directory.format.spool_id)
        self._segment_bytes = segment_bytes
        self._may_evict = may_evict
        self._budget = Budget(directory, max_bytes, segment_bytes)
        self._looking = threading.Lock()
        self._full_until = 0
        self._removed = False
        self._unlooked_bytes = 0
        # For Writer.append. A look is due outside [looked_at, look_at): the clock may be set back.
        self.attached: AttachedSegment | None = None
        self.looked_at = self.look_at = 0
        # A writer looks once in `look_mask + 1` small payloads, or `_look_bytes` of larger ones. 64 writers
        # that all append unseen for that long exceed a segment by about one segment.
        self.small_bytes = _SMALL_BYTES
        self.look_mask = (1 << max(0, (segment_bytes // _SMALL_LOOKS // _SMALL_BYTES).bit_length() - 1)) - 1
        self._look_bytes = segment_bytes // _LOOKS
        with contextlib.suppress(OSError):
            if not segment.numbers(directory.ring):
                disk.load()  # our first append may have to make a segment, and is not to wait for an import

    def append(self, payload: bytes, kind: int = frame.EVENT) -> Append:
        """Append one frame. When this returns APPENDED the record survives this process.

        `Writer.append` has this spelled out for small events; a change here is due there too.
        """
        if not descriptors.here[0]:
            descriptors.notice_fork()
        now = time_ns()
        attached = self.attached
        if attached is None or not self.looked_at <= now < self.look_at:
            attached = self._look(now)
            if attached is None:
                return self._refusal(now)
        data = frame.encode(payload, attached.salt, kind)
        try:
            written = _write(attached.fd, data)
        except OSError as error:
            return self.not_written(error)
        self._unlooked_bytes += written
        if self._unlooked_bytes > self._look_bytes or written != len(data):
            return self.appended(written, len(data))
        return _APPENDED

    def appended(self, written: int, length: int) -> Append:
        """Judge a write of `written` out of `length` bytes, and have the next append look at the segment."""
        self.look_at = 0
        if written == length:
            return _APPENDED
        # The disk is full: the part that was written is skipped by readers. Never truncate: others append.
        return self.not_written(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def append_marker(self, payload: bytes) -> bool:
        """Append a loss marker, even if the spool is full: it is small, rare, and tells of it."""
        attached = self.attached
        if attached is None or attached.end_seen >= _MOST_SEGMENT_FACTOR * self._segment_bytes + _MARKERS_BYTES:
            return False
        data = frame.encode(payload, attached.salt, frame.LOSS)
        try:
            # What goes into a removed segment is salvaged, but not a marker.
            return os.fstat(attached.fd).st_nlink > 0 and _write(attached.fd, data) == len(data)
        except OSError:
            return False

    def attach(self) -> None:
        """Open the newest segment now, making the first one if need be. Raises OSError."""
        if self.attached is None:
            self._swap(self._newest())

    @property
    def is_attached(self) -> bool:
        """Tell whether a segment is open."""
        return self.attached is not None

    @property
    def is_removed(self) -> bool:
        """Tell whether the last look found that somebody has removed the ring."""
        return self._removed

    def refresh(self) -> None:
        """Leave a segment that is not the newest (so that the leader can reclaim it)."""
        self.look_at = 0
        with contextlib.suppress(OSError):
            if self.attached is not None and self._looking.acquire(blocking=False):
                try:
                    self._follow(self.attached)
                finally:
                    self._looking.release()

    def close(self) -> None:
        """Let go of the segment; the next append opens it again."""
        self.attached = None

    def forked(self) -> None:
        """Forget what the parent had open (it is closed already) and what its threads held."""
        self.attached = None
        self._looking = threading.Lock()
        self.look_at = self._full_until = 0

    def sync(self) -> None:
        """Make what was appended durable against a crash of the host (fdatasync). Raises OSError."""
        if (attached := self.attached) is not None:
            disk.sync(attached.fd)

    def salvage(self) -> list[bytes]:
        """Return the event payloads that went into a segment after it was removed under us.

        That is what any process wrote there since our last look, or salvage; the caller knows its own.
        """
        attached = self.attached
        if attached is None:
            return []
        with contextlib.suppress(OSError):
            size = os.fstat(attached.fd).st_size
            data = os.pread(attached.fd, max(0, size - attached.end_seen), attached.end_seen)
            found = frame.scan(data, attached.salt, at_end=True, final=False)
            attached.end_seen += found.consumed
            return [each.payload for each in found.frames if each.is_event]
        return []

    def _is_full(self, now: int) -> bool:
        return self._full_until - _FULL_NS <= now < self._full_until

    def _refusal(self, now: int) -> Append:
        if self._removed:
            return Append.GONE
        return Append.FULL if self._full_until else Append.FAILED

    def _look(self, now: int) -> AttachedSegment | None:
        """Return the segment to append to, or None: no room (then `_full_until` is set) or no access."""
        if self._looking.acquire(blocking=False):
            try:
                return self._examine(now)
            finally:
                self._looking.release()
        # Another thread looks, or we are a signal handler that interrupted it: append on. But not for ever:
        # not if the last look found no room, and past twice a segment we look ourselves. That is safe, as it
        # is beside other processes; the lock only spares work.
        if self._full_until:
            return None
        attached = self.attached or self._first()
        if attached is None or os.fstat(attached.fd).st_size < _MOST_SEGMENT_FACTOR * self._segment_bytes:
            return attached
        return self._examine(now)

    def _examine(self, now: int) -> AttachedSegment | None:
        try:
            if self._is_full(now):
                return None
            attached = self.attached or self._first()
            if attached is None:
                return None
            end_seen = attached.end_seen  # read before the size: another thread may look, too
            status = os.fstat(attached.fd)
            if not self._is_there(attached.key.number, status):
                self._removed = True
                return None  # the writer opens the directory anew
            truncated = status.st_size < end_seen
            attached.end_seen = status.st_size
            if truncated:  # by somebody else; what is appended behind the cut might never be read
                attached = self._swap(self._make(attached.key.number))
            elif attached.end_seen >= self._segment_bytes:
                attached = self._rotate(attached, now)
            elif os.path.lexists(segment.path_of(self._directory.ring, attached.key.number + 1)):
                attached = self._follow(attached)
            if attached is not None:
                self.looked_at, self.look_at = now, now + _LOOK_NS
                self._unlooked_bytes = self._full_until = 0
                self._removed = False
            return attached
        except OSError as error:
            self.not_written(error)
            return None

    def _is_there(self, number: int, status: os.stat_result) -> bool:
        """Tell whether the segment's name leads to it: nobody removed it, or moved the spool away with it."""
        try:
            return os.path.samestat(os.lstat(segment.path_of(self._directory.ring, number)), status)
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR)

    def _first(self) -> AttachedSegment | None:
        try:
            return self._swap(self._newest())
        except OSError as error:
            # Without its directory there is nothing to attach to, and ENOENT says so.
            self._removed = error.errno == errno.ENOENT
            if not self._removed:
                self.not_written(error)
            return None

    def _newest(self) -> AttachedSegment:
        # Asked before the look: who comes while the first one begins a segment finds nobody either, or that segment.
        is_start = not is_anyone_attached(self._directory)
        attached = segment.attach_newest(self._directory.ring)
        if attached is None:
            return self._make(0)
        state = cursor.State()
        with contextlib.suppress(OSError):
            state = cursor.read(self._directory.cursor)
        committed = state.committed()
        unsettled_bytes = attached.end_seen - committed.get(attached.key, 0)
        if is_start and unsettled_bytes >= _WORTH_LEAVING_BYTES and self._is_behind(committed):
            return self._make(attached.key.number, min(_RESERVED_AT_START_BYTES, self._segment_bytes))
        # A power failure may take more of the segment than of the cursor: what is appended up to there would count
        # as delivered, or be cut off where a chunk ended. Or it brings an evicted segment back as the newest: readers
        # pass that by.
        is_cut = attached.end_seen < state.reached().get(attached.key, 0)
        is_void = attached.key == read_evictions(self._directory).void
        return self._make(attached.key.number) if is_cut or is_void else attached

    def _is_behind(self, committed: Mapping[SegmentKey, int]) -> bool:
        """Tell whether there is a backlog to keep new records out of, and room for a segment to do so."""
        pending = segment.pending_bytes(self._directory.ring, {key.number: end for key, end in committed.items()})
        return pending >= segment.BACKLOG_BYTES and self._budget.has_room()

    def _rotate(self, attached: AttachedSegment, now: int) -> AttachedSegment | None:
        """Leave a full segment: for the next one if there is one, or make it if there is room."""
        newer = self._follow(attached)
        if newer.end_seen < self._segment_bytes:
            return newer
        if self._budget.has_room() or (self._may_evict and self._budget.evict()):
            return self._swap(self._make(newer.key.number))
        if self._may_evict and newer.end_seen < _MOST_SEGMENT_FACTOR * self._segment_bytes:
            return newer  # another process is making room: go on meanwhile
        # The next one to evict may have to wait only for the one who is evicting now.
        self._full_until = now + (_EVICTING_NS if self._may_evict else _FULL_NS)
        return None

    def _make(self, after: int, reserve_bytes: int | None = None) -> AttachedSegment:
        """Make the segment after number `after`, or take the one another writer made meanwhile."""
        reserve_bytes = reserve_bytes or self._segment_bytes
        newest = max([after, *segment.numbers(self._directory.ring)[-1:]])
        if newest > after:
            attached = segment.attach_newest(self._directory.ring)
            if attached is not None and attached.key.number > after:
                return attached
            after = newest  # it cannot be written: another version's, or damaged
        try:
            segment.create(self._directory.ring, after + 1, self._spool_id, reserve_bytes)
        except OSError as error:
            # Disk full, not budget full: our own oldest segment is what we can free.
            if error.errno not in _NO_ROOM or not self._may_evict or not self._budget.evict(at_least_one=True):
                raise
            segment.create(self._directory.ring, after + 1, self._spool_id, reserve_bytes)
        attached = segment.attach_newest(self._directory.ring)
        if attached is None:
            raise OSError(errno.EIO, "the ring has no segment that can be written", self._directory.ring)
        return attached

    def _follow(self, attached: AttachedSegment) -> AttachedSegment:
        """Attach to the newest segment if it is not this one."""
        newest = segment.attach_newest(self._directory.ring)
        if newest is None or newest.key == attached.key:
            return attached
        return self._swap(newest)

    def _swap(self, attached: AttachedSegment) -> AttachedSegment:
        current = self.attached
        # Never back to an older one, which another thread found a moment ago: readers take the segments in turn.
        if current is None or current.key.number < attached.key.number:
            self.attached = current = attached
        reset_quiet("append")
        return current

    def not_written(self, error: OSError) -> Append:
        """Turn an I/O error into an answer. Looks again at the next append: things get repaired."""
        self.look_at = 0
        if error.errno in _NO_ROOM:
            self._full_until = time_ns() + _FULL_NS
            return Append.FULL
        report(
            "append",
            f"cannot append to {self._directory.path}: {error.strerror or error}. Records are refused and counted "
            "until this ends; the application goes on.",
        )
        return Append.FAILED
