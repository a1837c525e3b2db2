"""The writer's side of the ring: append a frame to the newest segment.

An append is one `os.write` of one frame to a descriptor that was opened O_APPEND. The kernel's inode lock puts the
writes of all processes of the host one after the other, and this order of arrival is the total order. No lock of ours
is taken for it, neither in the process nor across processes. So threads, signal handlers and `__del__` may call
`append`, and no other process can make it wait, whatever that process was doing when it was stopped or killed.

All other work is a check of the segment (`_check`): is it full, is there a newer one, is the directory still there? A
check is due every 0.8 s, and after about `segment_bytes / 32` of our own small records (`/ 64` of large ones). One
thread of a process checks at a time, and the others append on meanwhile.

`append` never raises. It answers with one of a closed set (`Append`).
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

_CHECK_NS: Final = 800_000_000
_SMALL_BYTES: Final = 1024
_SMALL_CHECKS: Final = 32
_CHECKS: Final = 64
# To look for room takes a directory listing. A full spool must not cost one for each record, so a refusal stands this
# long; the shorter time holds where a segment may be evicted.
_FULL_NS: Final = 20_000_000
_EVICTING_NS: Final = 1_000_000
# A writer that cannot rotate appends on to its segment, and stops at this many times `segment_bytes`.
_MOST_SEGMENT_FACTOR: Final = 2
# Loss markers may go so far beyond that. There are few, of some 60 bytes each (cwsink.frontends.losses).
_MARKERS_BYTES: Final = 16 * 1024

# While CloudWatch is away, a service may start and die again and again. If each start began a segment, each would take
# a mebibyte of the disk. So a start begins none if the newest one holds less than this that is not settled.
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
        self._checking = threading.Lock()
        self._full_until = 0
        self._removed = False
        self._user = os.geteuid()
        self._unchecked_bytes = 0
        # `Writer.append` reads the attributes from here on. A check is due if the time is not in
        # [checked_at_ns, check_due_ns): too late, or too early because the clock was set back.
        self.attached: AttachedSegment | None = None
        self.checked_at_ns = self.check_due_ns = 0
        # Checking the file's size at each append would cost a system call. It is checked once in `check_mask + 1` small
        # records, or `_check_bytes` of large ones. Even 64 writers then overshoot a segment by no more than about its
        # own size.
        self.small_bytes = _SMALL_BYTES
        self.check_mask = (1 << max(0, (segment_bytes // _SMALL_CHECKS // _SMALL_BYTES).bit_length() - 1)) - 1
        self._check_bytes = segment_bytes // _CHECKS
        with contextlib.suppress(OSError):
            if not segment.numbers(directory.ring):
                disk.load()  # our first append will have to make a segment, and must not wait for an import then

    def append(self, payload: bytes, kind: int = frame.EVENT) -> Append:
        """Append one frame. If this returns APPENDED, the record survives this process.

        `Writer.append` has the same steps spelled out for small events. Change both or none.
        """
        if not descriptors.fork_sentinel[0]:
            descriptors.become_child()
        now = time_ns()
        attached = self.attached
        if attached is None or not self.checked_at_ns <= now < self.check_due_ns:
            attached = self._check(now)
            if attached is None:
                return self._refusal(now)
        data = frame.encode(payload, attached.salt, kind)
        try:
            written = _write(attached.fd, data)
        except OSError as error:
            return self.not_written(error)
        self._unchecked_bytes += written
        if self._unchecked_bytes > self._check_bytes or written != len(data):
            return self.appended(written, len(data))
        return _APPENDED

    def appended(self, written: int, length: int) -> Append:
        """Judge a write of `written` out of `length` bytes, and make a check due at the next append."""
        self.check_due_ns = 0
        if written == length:
            return _APPENDED
        # The disk is full. Never truncate the part that was written: others have appended since. Readers skip it.
        return self.not_written(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def append_marker(self, payload: bytes) -> bool:
        """Append a loss marker, which is small and rare, even if the spool is full. Tell whether it was written."""
        attached = self.attached
        if attached is None or attached.end_seen >= _MOST_SEGMENT_FACTOR * self._segment_bytes + _MARKERS_BYTES:
            return False
        data = frame.encode(payload, attached.salt, frame.LOSS)
        try:
            # Not into a removed segment: `salvage` brings back the events in one, but no marker.
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
        """Tell whether the last check found that somebody has removed the ring."""
        return self._removed

    @property
    def is_of_another_user(self) -> bool:
        """Tell whether this process has changed its user since it opened the spool (a server that drops root)."""
        return os.geteuid() != self._user

    def refresh(self) -> None:
        """Go on to the newest segment, so that the leader can reclaim the one that we have."""
        self.check_due_ns = 0
        with contextlib.suppress(OSError):
            if self.attached is not None and self._checking.acquire(blocking=False):
                try:
                    self._follow(self.attached)
                finally:
                    self._checking.release()

    def close(self) -> None:
        """Let go of the segment; the next append opens it again."""
        self.attached = None

    def forked(self) -> None:
        """In a forked child: forget the parent's segment, which is closed already, and the locks of its threads."""
        self.attached = None
        self._checking = threading.Lock()
        self.check_due_ns = self._full_until = 0

    def sync(self) -> None:
        """Make what was appended durable against a crash of the host (fdatasync). Raises OSError."""
        if (attached := self.attached) is not None:
            disk.sync(attached.fd)

    def salvage(self) -> list[bytes]:
        """Return the event payloads that were written to our segment since our last check (or call of this).

        Somebody has removed the segment, so no leader will read them. Other processes may have written some of them.
        The caller keeps those that are its own.
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
        if self._removed or self.is_of_another_user:
            return Append.GONE
        return Append.FULL if self._full_until else Append.FAILED

    def _check(self, now: int) -> AttachedSegment | None:
        """Check the segment, and return the one to append to. None: no room (`_full_until` is set), or no access."""
        if self._checking.acquire(blocking=False):
            try:
                return self._check_segment(now)
            finally:
                self._checking.release()
        # Another thread is checking, or we are a signal handler that has interrupted the check. So append on without
        # one, with two exceptions. If the last check found no room, refuse. If the segment has grown to twice its size,
        # check here as well: the lock only spares work, and a second check is as safe as one in another process.
        if self._full_until:
            return None
        attached = self.attached or self._first()
        if attached is None or os.fstat(attached.fd).st_size < _MOST_SEGMENT_FACTOR * self._segment_bytes:
            return attached
        return self._check_segment(now)

    def _check_segment(self, now: int) -> AttachedSegment | None:
        # Until this segment is full the old descriptor would do. But this user can make no segment that the spool's
        # flusher can read. So the writer opens a spool of the new user at once.
        if self.is_of_another_user:
            return None
        try:
            if self._is_full(now):
                return None
            attached = self.attached or self._first()
            if attached is None:
                return None
            end_seen = attached.end_seen  # read before the size, because another thread may be checking, too
            status = os.fstat(attached.fd)
            if not self._is_there(attached.key.number, status):
                self._removed = True
                return None  # the writer then opens the directory anew
            truncated = status.st_size < end_seen
            attached.end_seen = status.st_size
            if truncated:  # by somebody who meddles: a leader may never read what is appended behind the cut
                attached = self._swap(self._make(attached.key.number))
            elif attached.end_seen >= self._segment_bytes:
                attached = self._rotate(attached, now)
            elif os.path.lexists(segment.path_of(self._directory.ring, attached.key.number + 1)):
                attached = self._follow(attached)
            if attached is not None:
                self.checked_at_ns, self.check_due_ns = now, now + _CHECK_NS
                self._unchecked_bytes = self._full_until = 0
                self._removed = False
            return attached
        except OSError as error:
            self.not_written(error)
            return None

    def _is_there(self, number: int, status: os.stat_result) -> bool:
        """Tell whether the segment's name leads to this file: if not, it was removed, or moved away with the spool."""
        try:
            return os.path.samestat(os.lstat(segment.path_of(self._directory.ring, number)), status)
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR)

    def _first(self) -> AttachedSegment | None:
        try:
            return self._swap(self._newest())
        except OSError as error:
            # ENOENT: the directory is gone, so the spool was removed.
            self._removed = error.errno == errno.ENOENT
            if not self._removed:
                self.not_written(error)
            return None

    def _newest(self) -> AttachedSegment:
        # Ask before listing. A process that starts at the same moment then either sees an empty spool too (and loses
        # the `link`, harmlessly), or sees the segment we are making.
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
        # After a power failure the segment may be shorter than the offset the cursor holds. Records appended now would
        # land below that offset and be taken for delivered, so begin a new segment. It may also bring back a segment
        # that was counted as evicted. Readers pass that one by, so nothing may be appended to it either.
        is_cut = attached.end_seen < state.reached().get(attached.key, 0)
        is_evicted = attached.key == read_evictions(self._directory).last_evicted
        return self._make(attached.key.number) if is_cut or is_evicted else attached

    def _is_behind(self, committed: Mapping[SegmentKey, int]) -> bool:
        """Tell whether a backlog waits that new records should not stand behind, and a segment more has room."""
        pending = segment.pending_bytes(self._directory.ring, {key.number: end for key, end in committed.items()})
        return pending >= segment.BACKLOG_BYTES and self._budget.has_room()

    def _rotate(self, attached: AttachedSegment, now: int) -> AttachedSegment | None:
        """Leave a full segment for the next one, and make that if there is none. None: there is no room for it."""
        newer = self._follow(attached)
        if newer.end_seen < self._segment_bytes:
            return newer
        if self._budget.has_room() or (self._may_evict and self._budget.evict()):
            return self._swap(self._make(newer.key.number))
        if self._may_evict and newer.end_seen < _MOST_SEGMENT_FACTOR * self._segment_bytes:
            return newer  # another process is evicting: append on meanwhile
        # Where evicting is allowed, another process may be at it and have room for us soon: ask again after a moment.
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
            after = newest  # that segment cannot be appended to: it is another version's, or damaged
        try:
            segment.create(self._directory.ring, after + 1, self._spool_id, reserve_bytes)
        except OSError as error:
            # The disk is full before the budget is: all that we can free is our own oldest segment.
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
        # Another thread may have gone on meanwhile. Never go back to an older segment than that: readers take the
        # segments in turn, and would read the later record first.
        if current is None or current.key.number < attached.key.number:
            self.attached = current = attached
        reset_quiet("append")
        return current

    def not_written(self, error: OSError) -> Append:
        """Turn an I/O error into an answer. The next append checks again, because the cause may be gone by then."""
        self.check_due_ns = 0
        if error.errno in _NO_ROOM:
            self._full_until = time_ns() + _FULL_NS
            return Append.FULL
        report(
            "append",
            f"cannot append to {self._directory.path}: {error.strerror or error}. Records are refused and counted "
            "until this ends; the application goes on.",
        )
        return Append.FAILED
