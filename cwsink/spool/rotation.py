"""Which segment a writer appends to: it attaches to the newest one, makes the next one, and finds room for it.

A spool has one budget, one policy and one segment size (cwsink.spool.capacity). Here they are read when a writer
begins, and whenever it needs a segment.

A disk may be smaller than a segment. If one segment took all of it, nothing could ever be evicted or given back,
because the newest segment stays. So a segment takes at most a sixteenth of what the ring could have of the disk. A
process that may not make large files (RLIMIT_FSIZE) makes segments that it can fill.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from typing import Final

from cwsink import host
from cwsink.clock import wall
from cwsink.config import MIN_SEGMENT_BYTES
from cwsink.interruption import is_interruption, suppress
from cwsink.spool import capacity, cursor, descriptors, disk, files, leader_state, open_directory, segment
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.budget import Budget, read_evictions, usage_of, used_bytes
from cwsink.spool.budget import prepare as prepare_evictions
from cwsink.spool.capacity import Capacity
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.open_segment import OpenSegment
from cwsink.spool.segment import AttachedSegment, SegmentKey

# A writer that cannot rotate appends on to its segment, and stops at this many times `segment_bytes`.
MOST_SEGMENT_FACTOR: Final = 2
# While CloudWatch is away, a service may start and die again and again. If each start began a segment, each would take
# a mebibyte of the disk. So a start begins none if the newest one holds less than this that is not settled.
_WORTH_LEAVING_BYTES: Final = 64 * 1024
_RESERVED_AT_START_BYTES: Final = 1024 * 1024
_LEAST_SEGMENTS_ON_A_DISK: Final = 16
_PAGE_BYTES: Final = 4096
# How long one append may count what it is to evict. The longer time is for a segment that is one and a half times its
# size: before it is twice its size, room must be found.
_COUNT_SECONDS: Final = 0.01
_COUNT_SECONDS_IN_NEED: Final = 0.03


class Rotation:
    """The segments of a spool, as one writer chooses among them.

    Attributes:
        segment_bytes: the size at which a segment is full, on this disk.
        may_evict: whether old records may go for new ones.
        made: how many segments it has begun to make after others.
    """

    def __init__(self, directory: SpoolDirectory, wishes: Capacity, *, is_guest: bool) -> None:
        """Begin. `is_guest`: keep to what holds, whatever the wishes are, and evict nothing."""
        self._directory = directory
        self._spool_id = bytes.fromhex(directory.format.spool_id)
        self._wishes = wishes
        self._is_guest = is_guest
        self._budget = Budget(directory, wishes.spool_max_bytes, wishes.segment_bytes)
        self.segment_bytes = wishes.segment_bytes
        self._most_grown_bytes = MOST_SEGMENT_FACTOR * wishes.segment_bytes
        self.may_evict = wishes.may_evict and not is_guest
        self.made = 0
        self._was_alone = False

    def newest(self) -> AttachedSegment:
        """Attach to the newest segment, or make one. Raises OSError."""
        # Ask before listing. A process that starts at the same moment then either sees an empty spool too (and loses
        # the `link`, harmlessly), or sees the segment we are making.
        is_start = not is_anyone_attached(self._directory)
        if not self._is_guest:
            capacity.claim(self._directory, self._wishes, is_alone=is_start)
            self._was_alone = is_start
        self._keep_to(self._holding())
        attached = segment.attach_newest(self._directory.ring)
        if attached is None:
            # The records will need the disk, and a leader needs a cursor to free any of it: reserve that before.
            with suppress(OSError):
                cursor.opened(self._directory.cursor).close()
            prepare_evictions(self._directory)
            leader_state.prepare(self._directory)
            return self.make(0)
        state, is_settled_known = cursor.State(), True
        try:
            state = cursor.read(self._directory.cursor)
        except OSError as error:
            if is_interruption(error):
                raise
            is_settled_known = not disk.is_unreadable(error)
        committed = state.committed()
        unsettled_bytes = attached.end_seen - committed.get(attached.key, 0)
        if is_start and unsettled_bytes >= _WORTH_LEAVING_BYTES and self._is_behind(committed):
            return self.make(attached.key.number, min(_RESERVED_AT_START_BYTES, self.segment_bytes))
        # After a power failure the segment may be shorter than the offset the cursor holds. Records appended now would
        # land below that offset and be taken for delivered, so begin a new segment. It may also bring back a segment
        # that was counted as evicted. Readers pass that one by, so nothing may be appended to it either.
        is_cut = attached.end_seen < state.reached().get(attached.key, 0)
        if not is_settled_known:
            # The disk cannot read the cursor: only an append since the boot shows that the segment is whole.
            is_cut = os.fstat(attached.fd).st_mtime <= wall() - host.uptime_seconds()
        if is_cut or self._may_be_evicted(attached):
            return self.make(attached.key.number)
        if is_start:
            self._trim(attached)
        return attached

    def _may_be_evicted(self, attached: AttachedSegment) -> bool:
        """Tell whether the newest segment counts as evicted, or nobody can tell. Raises OSError.

        A page that the disk cannot read in `evictions` must not keep a program from logging. Nobody appends to a
        segment after it was evicted. So one that was written to later than the totals is none that they include.
        """
        with disk.suppress_unreadable():
            return attached.key == read_evictions(self._directory).last_evicted
        return os.fstat(attached.fd).st_mtime_ns <= files.written_at_ns(self._directory.evictions)

    def agree(self) -> None:
        """This process is attached now. If it began while no other one was, look whether one has begun as well."""
        if self._was_alone:
            self._was_alone = False
            self._keep_to(capacity.agree(self._directory, self._wishes))

    def follow(self, attached: AttachedSegment) -> AttachedSegment:
        """Return the newest segment, attached, if it is not this one. Raises OSError."""
        newest = segment.attach_newest(self._directory.ring)
        return attached if newest is None or newest.key == attached.key else newest

    def next(self, attached: AttachedSegment) -> AttachedSegment | None:
        """Leave a full segment for the next one, and make that if there is none. None: there is no room for it.

        Raises:
            OSError: the next one cannot be made or opened.
        """
        newer = self.follow(attached)
        if not self.is_full(newer):
            return newer
        self._keep_to(self._holding())
        if not self.is_full(newer):  # larger segments hold by now, or there is more of the disk
            return newer
        size = newer.end_seen
        seconds = _COUNT_SECONDS if size < 1.5 * self.segment_bytes else _COUNT_SECONDS_IN_NEED
        has_room = self._budget.has_room() or (self.may_evict and self._budget.evict(seconds=seconds))
        if has_room or self._is_in_the_way(newer):
            return self.make(newer.key.number)
        if self.may_evict and self.may_grow(newer):
            return newer  # what is to go is not counted yet, or another process is evicting: append on meanwhile
        return None

    def _is_in_the_way(self, newest: AttachedSegment) -> bool:
        """Tell whether the newest segment is all that the budget has no room for, and may be left. Raises OSError.

        A segment may hold one record of nearly the whole budget, or may come from a time when the budget was larger.
        While it is the newest one, it is neither evicted nor removed. So no record would be taken ever again, even
        after all of them are delivered. Once there is a next one, the leader removes it, or a writer evicts it.
        """
        if segment.numbers(self._directory.ring) != [newest.key.number]:
            return False
        with suppress(OSError):  # nobody can tell what is settled
            if not files.exists(self._directory.history):  # else the leader is yet to put it there
                self._give_back(newest)
            if self._budget.has_room() or self._is_settled(newest):
                return True
        return self.may_evict

    def make(self, after: int, reserve_bytes: int | None = None) -> AttachedSegment:
        """Make and attach the segment after `after`, or the one another writer made meanwhile. Raises OSError."""
        ring, reserve_bytes = self._directory.ring, reserve_bytes or self.segment_bytes
        newest = max([after, *segment.numbers(ring)[-1:]])
        if newest > after:
            attached = segment.attach_newest(ring)
            if attached is not None and attached.key.number > after:
                return attached
            after = newest  # that segment cannot be appended to: it is another version's, or damaged
        try:
            self.made += bool(after)
            segment.create(ring, after + 1, self._spool_id, reserve_bytes, or_less=not self.may_evict)
        except FileNotFoundError:
            # This process may have been stopped for a minute before the link. Then a leader has taken its temporary
            # file for that of a killed one, and has removed it. If the ring is gone, this raises the same again.
            segment.create(ring, after + 1, self._spool_id, reserve_bytes, or_less=not self.may_evict)
        except OSError as error:
            # The disk is full before the budget is: all that we can free is history, or else our own oldest segment.
            if error.errno not in disk.NO_ROOM:
                raise
            if not self._history_gives_way(reserve_bytes):
                if not self.may_evict:
                    raise
                self._budget.evict(at_least_one=True, seconds=_COUNT_SECONDS_IN_NEED)
            segment.create(ring, after + 1, self._spool_id, reserve_bytes, or_less=True)
        attached = segment.attach_newest(ring)
        if attached is None:
            raise OSError(errno.EIO, "the ring has no segment that can be written", ring)
        return attached

    def is_full(self, attached: AttachedSegment) -> bool:
        """Tell whether a segment is to be left."""
        return attached.is_full or attached.end_seen >= self.segment_bytes

    def may_grow(self, attached: AttachedSegment) -> bool:
        """Tell whether a segment that is to be left may be appended to if there is no other one."""
        return not attached.is_full and attached.end_seen < self._most_grown_bytes

    def may_outgrow(self, attached: AttachedSegment) -> bool:
        """Tell whether a segment that may not grow any more may be appended to, because no file can be made.

        The disk may have no inode left, and much room. Then what is settled of the segment gives its blocks back. The
        file's size grows on, and only its blocks are limited. So nothing is lost while a leader delivers.

        Raises:
            OSError: it cannot be told how much is settled.
        """
        if attached.is_full:
            return False
        self._give_back(attached)
        return usage_of(os.fstat(attached.fd)) < self._most_grown_bytes

    def make_room(self, attached: AttachedSegment) -> bool:
        """Free some of a full disk: history, what is settled of this segment, or the oldest segment. Tell whether.

        Raises:
            OSError: neither could be tried.
        """
        if self._history_gives_way():
            return True
        before = usage_of(os.fstat(attached.fd))
        self._give_back(attached)
        if usage_of(os.fstat(attached.fd)) < before:
            return True
        return self.may_evict and self._budget.evict(at_least_one=True, seconds=_COUNT_SECONDS_IN_NEED)

    def _give_back(self, attached: AttachedSegment) -> None:
        """Give the blocks back of what is settled of a segment. Raises OSError."""
        end = self._settled(attached)
        disk.punch_hole(attached.fd, _PAGE_BYTES, end - end % _PAGE_BYTES)

    def _is_settled(self, attached: AttachedSegment) -> bool:
        """Tell whether all records of a segment are settled. A write that was cut may lie behind them."""
        settled = self._settled(attached)
        if settled == 0 or settled >= attached.end_seen:
            return settled > 0
        opened = OpenSegment.at(self._directory.ring, attached.key.number, os.O_RDONLY)
        if opened is None:
            return False
        with contextlib.closing(opened):
            opened.offset = settled
            return next(opened.frames(), None) is None

    def _settled(self, attached: AttachedSegment) -> int:
        """Return up to where a segment is settled. Raises OSError."""
        return cursor.read(self._directory.cursor).committed().get(attached.key, 0)

    def _history_gives_way(self, need_bytes: int = 0) -> bool:
        if not files.exists(self._directory.history):
            return False
        with suppress(ImportError, OSError):  # the process ends, or does not see its installation any more
            from cwsink.spool import history  # here, because few workers ever see a full disk

            return history.give_way(self._directory, need_bytes)
        return False

    def _holding(self) -> Capacity:
        if self._is_guest:
            return capacity.read(self._directory) or self._wishes
        return capacity.renew(self._directory, self._wishes)

    def _keep_to(self, holds: Capacity) -> None:
        self.may_evict = holds.may_evict and not self._is_guest
        self._budget.most_bytes = holds.spool_max_bytes
        sizes = [holds.segment_bytes]
        with suppress(OSError), open_directory.at(self._directory.ring) as held:
            if (free := disk.free_bytes(held.fd)) is not None:
                sizes.append((free + used_bytes(self._directory.ring)) // _LEAST_SEGMENTS_ON_A_DISK)
        # Not of the limit below: it may be lifted while there is no descriptor, and so no way to look here again.
        self._most_grown_bytes = MOST_SEGMENT_FACTOR * max(MIN_SEGMENT_BYTES, min(sizes))
        if (limit := disk.most_file_bytes()) is not None:
            sizes.append(limit - limit // 8)  # so that the last record of a segment is nearly never cut
        self.segment_bytes = max(MIN_SEGMENT_BYTES, min(sizes))
        self._budget.segment_bytes = self.segment_bytes

    def _is_behind(self, committed: Mapping[SegmentKey, int]) -> bool:
        """Tell whether a backlog waits that new records should not stand behind, and a segment more has room."""
        pending = segment.pending_bytes(self._directory.ring, committed)
        return pending >= segment.BACKLOG_BYTES and self._budget.has_room()

    def _trim(self, attached: AttachedSegment) -> None:
        """Give back what others have reserved of the newest segment, if that is more than a segment takes now.

        Else a small budget would be full before the first record. Nobody may append meanwhile, not even to another
        descriptor of this process: the file would be cut. So this needs the exclusive lock. To get it, or the shared
        lock back, may fail: then the segment is left as it is, or for the next one.
        """
        status = os.fstat(attached.fd)
        if usage_of(status) - status.st_size <= self.segment_bytes:
            return
        if descriptors.try_lock(attached.fd, exclusive=True):
            with suppress(OSError):
                os.ftruncate(attached.fd, os.fstat(attached.fd).st_size)
                disk.reserve(attached.fd, self.segment_bytes)
        if not descriptors.try_lock(attached.fd, exclusive=False):
            attached.is_full = True
