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
import time
from enum import Enum
from time import monotonic
from typing import Final

from cwsink.diagnostics import report, settled
from cwsink.spool import descriptors, disk, frame, segment
from cwsink.spool.budget import Budget
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.segment import AttachedSegment

LOOK_SECONDS: Final = 1.0
# A writer looks at the size of the segment once in this fraction of it: 64 writers that all append
# unseen for that long exceed a segment by one segment.
_LOOKS_PER_SEGMENT: Final = 64
# How long a refusal stands before the room is looked at again: a full spool must not cost a
# directory listing per record.
_FULL_SECONDS: Final = 0.02
# Twice a segment is where a writer stops that cannot rotate, whatever the reason.
_MOST_SEGMENT_FACTOR: Final = 2

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Append(Enum):
    """How an append ended."""

    APPENDED = "appended"
    FULL = "spool_full"
    FAILED = "io_error"
    GONE = "spool_removed"


_APPENDED: Final = Append.APPENDED
_encode = frame.encode
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
        self._segment: AttachedSegment | None = None
        self._incarnation = descriptors.incarnation()
        self._unseen_bytes = 0  # how much more we may append before looking at the size
        self._look_at = 0.0
        self._full_until = 0.0
        self._removed = False

    def append(self, payload: bytes, kind: int = frame.EVENT) -> Append:
        """Append one frame. When this returns APPENDED the record survives this process."""
        attached = self._segment
        now = monotonic()
        if attached is None or now >= self._look_at:
            attached = self._look(now)
            if attached is None:
                return self._refusal(now)
        data = _encode(payload, attached.key.salt, kind)
        try:
            written = _write(attached.fd, data)
        except OSError as error:
            return self._not_written(error)
        if written != len(data):
            # The disk is full: the part that was written is skipped by readers. Never truncate: others append.
            return self._not_written(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._unseen_bytes -= written
        if self._unseen_bytes < 0:
            self._look_at = 0.0  # the next append looks, this one is done
        return _APPENDED

    def append_marker(self, payload: bytes) -> bool:
        """Append a loss marker, even if the spool is full: it is small, rare, and tells of it."""
        attached = self._segment
        if attached is None or attached.end_seen >= _MOST_SEGMENT_FACTOR * self._segment_bytes:
            return False
        data = _encode(payload, attached.key.salt, frame.LOSS)
        try:
            return _write(attached.fd, data) == len(data)
        except OSError:
            return False

    def attach(self) -> None:
        """Open the newest segment now, making the first one if need be. Raises OSError."""
        if self._segment is None:
            self._swap(segment.attach_newest(self._directory.ring) or self._make(0))

    @property
    def is_attached(self) -> bool:
        """Tell whether a segment is open."""
        return self._segment is not None

    def refresh(self) -> None:
        """Leave a segment that is not the newest (so that the leader can reclaim it)."""
        self._look_at = 0.0
        with contextlib.suppress(OSError):
            if self._segment is not None and self._looking.acquire(blocking=False):
                try:
                    self._follow(self._segment)
                finally:
                    self._looking.release()

    def close(self) -> None:
        """Let go of the segment; the next append opens it again."""
        self._segment = None

    def forked(self) -> None:
        """Forget what the parent had open (it is closed already) and what its threads held."""
        self._segment = None
        self._looking = threading.Lock()
        self._look_at = self._full_until = 0.0

    def sync(self) -> None:
        """Make what was appended durable against a crash of the host (fdatasync). Raises OSError."""
        if (attached := self._segment) is not None:
            disk.sync(attached.fd)

    def salvage(self) -> list[bytes]:
        """Return the event payloads that went into a segment after it was removed under us.

        That is what any process wrote there since our last look; the caller knows its own.
        """
        attached = self._segment
        if attached is None:
            return []
        with contextlib.suppress(OSError):
            size = os.fstat(attached.fd).st_size
            data = os.pread(attached.fd, max(0, size - attached.end_seen), attached.end_seen)
            found = frame.scan(data, attached.key.salt, at_end=True, final=False).frames
            return [each.payload for each in found if each.kind == frame.EVENT]
        return []

    def _refusal(self, now: float) -> Append:
        if now < self._full_until:
            return Append.FULL
        return Append.GONE if self._removed else Append.FAILED

    def _look(self, now: float) -> AttachedSegment | None:
        """Return the segment to append to, or None: no room (then `_full_until` is set) or no access."""
        if not self._looking.acquire(blocking=False):
            # Another thread looks, or we are a signal handler that interrupted it: append on.
            return self._segment or self._first()
        try:
            if now < self._full_until:
                return None
            attached = self._segment or self._first()
            if attached is None:
                return None
            status = os.fstat(attached.fd)
            if status.st_nlink == 0:
                self._removed = True
                return None  # the writer opens the directory anew
            truncated = status.st_size < attached.end_seen
            attached.end_seen = status.st_size
            if truncated:  # by somebody else; what is appended behind the cut might never be read
                attached = self._swap(self._make(attached.key.number))
            elif attached.end_seen >= self._segment_bytes:
                attached = self._rotate(attached, now)
            elif os.path.lexists(segment.path_of(self._directory.ring, attached.key.number + 1)):
                attached = self._follow(attached)
            if attached is not None:
                self._unseen_bytes = self._segment_bytes // _LOOKS_PER_SEGMENT
                self._look_at = now + LOOK_SECONDS
            return attached
        except OSError as error:
            self._not_written(error)
            return None
        finally:
            self._looking.release()

    def _first(self) -> AttachedSegment | None:
        try:
            return self._swap(segment.attach_newest(self._directory.ring) or self._make(0))
        except OSError as error:
            # Without its directory there is nothing to attach to, and ENOENT says so.
            self._removed = error.errno == errno.ENOENT
            if not self._removed:
                self._not_written(error)
            return None

    def _rotate(self, attached: AttachedSegment, now: float) -> AttachedSegment | None:
        """Leave a full segment: for the next one if there is one, or make it if there is room."""
        newer = self._follow(attached)
        if newer.end_seen < self._segment_bytes:
            return newer
        if self._budget.has_room() or (self._may_evict and self._budget.evict()):
            return self._swap(self._make(newer.key.number))
        if self._may_evict and newer.end_seen < _MOST_SEGMENT_FACTOR * self._segment_bytes:
            return newer  # another process is making room: go on meanwhile
        self._full_until = now + _FULL_SECONDS
        return None

    def _make(self, after: int) -> AttachedSegment:
        """Make the segment after number `after` (or take the one another writer made meanwhile)."""
        after = max([after, *segment.numbers(self._directory.ring)[-1:]])
        try:
            segment.create(self._directory.ring, after + 1, self._spool_id, self._segment_bytes)
        except OSError as error:
            # Disk full, not budget full: our own oldest segment is what we can free.
            if error.errno not in _NO_ROOM or not self._may_evict or not self._budget.evict(at_least_one=True):
                raise
            segment.create(self._directory.ring, after + 1, self._spool_id, self._segment_bytes)
        attached = segment.attach_newest(self._directory.ring)
        if attached is None:
            raise FileNotFoundError(errno.ENOENT, "the ring has no segment that can be written", self._directory.ring)
        return attached

    def _follow(self, attached: AttachedSegment) -> AttachedSegment:
        """Attach to the newest segment if it is not this one."""
        newest = segment.attach_newest(self._directory.ring)
        if newest is None or newest.key == attached.key:
            return attached
        return self._swap(newest)

    def _swap(self, attached: AttachedSegment) -> AttachedSegment:
        self._segment = attached
        self._unseen_bytes = self._segment_bytes // _LOOKS_PER_SEGMENT
        settled("append")
        return attached

    def _not_written(self, error: OSError) -> Append:
        """Turn an I/O error into an answer. Looks again at the next append: things get repaired."""
        self._look_at = 0.0
        if error.errno in _NO_ROOM:
            self._full_until = time.monotonic() + _FULL_SECONDS
            return Append.FULL
        report(
            "append",
            f"cannot append to {self._directory.path}: {error.strerror or error}. Records are refused and counted "
            "until this ends; the application goes on.",
        )
        return Append.FAILED
