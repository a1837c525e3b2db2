"""The writer's side of the ring: append a frame to the newest segment.

An append is one `os.write` of one frame to a descriptor that was opened O_APPEND. The kernel's inode lock puts the
writes of all processes of the host one after the other, and this order of arrival is the total order. No lock of ours
is taken for it, neither in the process nor across processes. So threads, signal handlers and `__del__` may call
`append`, and no other process can make it wait, whatever that process was doing when it was stopped or killed.

All other work is a check of the segment (`_check`): is it full, is there a newer one, is the directory still there? A
check is due every 0.8 s, and after about `segment_bytes / 32` of our own small records (`/ 64` of large ones). One
thread of a process checks at a time, and the others append on meanwhile.

A write that fails is a limit that was reached, and limits come and go. So the writer does what can be done about it,
and writes the record once more (`retry`). If that fails too, the record is refused, and the next append tries anew.

| error                          | cause                              | what the writer does                          |
|--------------------------------|------------------------------------|-----------------------------------------------|
| EBADF, or another file's inode | somebody has closed our descriptor | forgets it without closing it, attaches anew  |
| ENOSPC, EDQUOT                 | the disk is full                   | gives settled blocks back, else evicts one    |
| EFBIG                          | RLIMIT_FSIZE                       | makes the next segment, of a size it can fill |
| EIO, three times in a row      | bad blocks                         | makes the next segment                        |
| any error of a rotation        | no descriptor, no space, no inode  | appends on, up to twice `segment_bytes` that  |
|                                |                                    | are not settled                               |

`append` never raises, but lets pass what a signal handler raises. It answers with one of a closed set (`Append`).
"""

from __future__ import annotations

import errno
import os
from enum import Enum
from threading import get_ident
from time import time_ns
from typing import Final

from cwsink.clock import monotonic
from cwsink.diagnostics import report, reset_quiet
from cwsink.interruption import suppress
from cwsink.spool import descriptors, disk, files, frame, open_directory, segment
from cwsink.spool.capacity import Capacity
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.rotation import MOST_SEGMENT_FACTOR, Rotation
from cwsink.spool.segment import AttachedSegment, SegmentKey

_CHECK_NS: Final = 800_000_000
# While a thread checks, the others append on without a check. If a signal handler raises in the middle of one, nobody
# may be kept from checking for good, so this ends by itself.
_CHECKING_SECONDS: Final = 0.1
# The same for who opens a segment, and how deep that may nest in a thread.
_OPENING_SECONDS: Final = 1.0
_MOST_NESTED: Final = 3
_SMALL_BYTES: Final = 1024
_SMALL_CHECKS: Final = 32
_CHECKS: Final = 64
# To look for room takes a directory listing. A full spool must not cost one for each record, so a refusal stands this
# long; the shorter time holds where a segment may be evicted.
_FULL_SECONDS: Final = 0.02
_EVICTING_SECONDS: Final = 0.001
# A record is written so often: each limit that may be in the way once, and once more.
_TRIES: Final = 4
# One failure of a disk may pass. After so many in a row the writer tries another segment, on other blocks.
_FAILURES: Final = 3


class Append(Enum):
    """How an append ended."""

    APPENDED = "appended"
    FULL = "spool_full"
    FAILED = "io_error"
    GONE = "spool_removed"


_APPENDED: Final = Append.APPENDED
_write = os.write


def code_of(error: OSError) -> int:
    """Return the errno. An error without one is not the kernel's: a signal handler has raised it (TimeoutError)."""
    if error.errno is None:
        raise error
    return error.errno


class Ring:
    """This process's writing end of a spool's ring.

    Attributes:
        is_removed: the last check has found that somebody has removed the ring.
    """

    def __init__(self, directory: SpoolDirectory, wishes: Capacity, *, is_guest: bool = False) -> None:
        """Begin; the first append attaches.

        Args:
            directory: the spool.
            wishes: budget, segment size and policy, as far as other writers do not have others (capacity).
            is_guest: this process only passes by: its wishes change nothing, and it evicts nothing.
        """
        self._directory = directory
        self._rotation = Rotation(directory, wishes, is_guest=is_guest)
        self._checking_until = self._full_until = 0.0
        self._opening: list[int] = []  # the threads that open a segment, one as often as that nests
        self._opening_until = 0.0
        self.is_removed = False
        self._user = os.geteuid()
        self._unchecked_bytes = 0
        self._synced: SegmentKey | None = None
        # `Writer.append` reads the attributes from here on. A check is due if the time is not in
        # [checked_at_ns, check_due_ns): too late, or too early because the clock was set back, or is before 1970.
        self.attached: AttachedSegment | None = None
        self.checked_at_ns = self.check_due_ns = 0
        self.small_bytes = _SMALL_BYTES
        self._set_pace()

    def append(self, payload: bytes) -> Append:
        """Append one event. If this returns APPENDED, the record survives this process.

        `Writer.append` has the same steps spelled out for small events. Change both or none.
        """
        if not descriptors.fork_sentinel[0]:
            descriptors.become_child()
        now = time_ns()
        attached = self.attached
        if attached is None or not self.checked_at_ns <= now < self.check_due_ns:
            found = self._check(now)
            if isinstance(found, Append):
                return found
            attached = found
        data = frame.encode(payload, attached.salt)
        try:
            written = _write(attached.fd, data)
        except OSError as error:
            return self.retry(code_of(error), payload)
        self._unchecked_bytes += written
        if self._unchecked_bytes > self._check_bytes or written != len(data):
            return self.appended(written, len(data), payload)
        return _APPENDED

    def appended(self, written: int, length: int, payload: bytes) -> Append:
        """Judge a write of `written` out of `length` bytes, and make a check due at the next append."""
        self.check_due_ns = 0
        # If it is cut: never truncate the part that was written, because others have appended since. Readers skip it.
        return _APPENDED if written == length else self.retry(None, payload)

    def retry(self, code: int | None, payload: bytes) -> Append:
        """Do what can be done about a write that has failed, and write the record again; a few times at most.

        Args:
            code: the errno of the write; None: it was cut. Why, the next one tells. (Not the exception: that would keep
                our frame alive, and so the segment, which could never be evicted.)
            payload: the record.
        """
        limit = disk.most_file_bytes()
        if code is None and limit is not None and limit < segment.HEADER_BYTES + frame.HEADER_BYTES + len(payload):
            code = errno.EFBIG  # it was cut at this limit, and would be cut in each segment
        for _ in range(_TRIES):
            self.check_due_ns = 0
            if code is not None and not self._mend(code, len(payload)):
                break
            attached = self._check(time_ns())
            if isinstance(attached, Append):
                return attached
            data = frame.encode(payload, attached.salt)
            try:
                if _write(attached.fd, data) == len(data):
                    attached.failures = 0
                    return _APPENDED
                code = errno.ENOSPC
            except OSError as error:
                code = code_of(error)
        return self._not_written(code)

    def is_full(self) -> bool:
        """Check the segment, and tell whether there is no room now. This writes no record."""
        return self._check(time_ns()) is Append.FULL

    def attach(self) -> None:
        """Open the newest segment now, making the first one if need be. Raises OSError."""
        if self.attached is None:
            self._swap(self._rotation.newest())

    @property
    def made(self) -> int:
        """Return how many segments this process has begun to make after others: each time records may be lost."""
        return self._rotation.made

    @property
    def is_of_another_user(self) -> bool:
        """Tell whether this process has changed its user since it opened the spool (a server that drops root)."""
        return os.geteuid() != self._user

    def agree(self) -> None:
        """Keep to what holds by now (see Rotation.agree)."""
        self._rotation.agree()

    def close(self) -> None:
        """Let go of the segment; the next append opens it again."""
        self.attached = None

    def forked(self) -> None:
        """In a forked child: forget the parent's segment, which is closed already, and what its threads were doing."""
        self.attached = self._synced = None
        self._full_until = self._checking_until = 0.0
        self._opening = []
        self.check_due_ns = 0

    def sync(self, before: SegmentKey | None) -> None:
        """Make durable (fdatasync) what was appended since the segment `before` was attached. Raises OSError."""
        if (attached := self.attached) is not None and attached.status() is None:
            self._abandon(attached)
            found = self._first()
            attached = None if isinstance(found, Append) else found
        if attached is None:
            return
        disk.sync(attached.fd)
        if not before == attached.key == self._synced:
            # The name of a new segment must last, too, and what nobody has synced in the older ones. Another thread may
            # have rotated while this one wrote.
            self._synced = None
            segment.sync(self._directory.ring)
            files.sync_directory(self._directory.path)
            with open_directory.root(self._directory.root) as held:
                held.sync()
            self._synced = attached.key

    def salvage(self) -> list[bytes]:
        """Return the event payloads that were written to our segment in the last second (or since the last call).

        Somebody has removed the segment, so no leader will read them any more. A leader may have delivered some of them
        before. Other processes may have written some of them. The caller keeps those that are its own.
        """
        if (attached := self.attached) is None:
            return []
        with suppress(OSError):
            if (status := attached.status()) is None:
                return []  # somebody has closed it, and its number may be another file's
            data = os.pread(attached.fd, max(0, status.st_size - attached.saved_from), attached.saved_from)
            found = frame.scan(data, attached.salt, at_end=True, final=False)
            attached.saved_from += found.consumed
            return [each.payload for each in found.frames if each.is_event]
        return []

    def _set_pace(self) -> None:
        # Checking the file's size at each append would cost a system call. It is checked once in `check_mask + 1` small
        # records, or `_check_bytes` of large ones. Even 64 writers then overshoot a segment by no more than about its
        # own size.
        size = self._rotation.segment_bytes
        self.check_mask = (1 << max(0, (size // _SMALL_CHECKS // _SMALL_BYTES).bit_length() - 1)) - 1
        self._check_bytes = size // _CHECKS

    def _full(self) -> Append:
        # However full it was: one that is gone is left for another spool, which has room.
        return Append.GONE if self.is_removed or self.is_of_another_user else Append.FULL

    def _check(self, now: int) -> AttachedSegment | Append:
        """Return the segment to append to, or why there is none: other threads check, too, and may change that soon."""
        # An application's tests may freeze the time of its records, `now`. So pauses go by another clock.
        if (began := monotonic()) >= self._checking_until:
            self._checking_until = began + _CHECKING_SECONDS
            try:
                return self._check_segment(now)
            finally:
                self._checking_until = 0.0
        # Another thread is checking, or we are a signal handler that has interrupted the check. So append on without
        # one, with two exceptions. If the last check found no room, refuse. If the segment must not grow any more,
        # check here as well: two checks at once only cost work, and are as safe as those of two processes.
        if self._full_until:
            return self._full()
        attached = self.attached or self._first()
        if (
            isinstance(attached, AttachedSegment)
            and (status := attached.status()) is not None
            and not attached.is_full
            and status.st_size < MOST_SEGMENT_FACTOR * self._rotation.segment_bytes
        ):
            return attached
        return self._check_segment(now)

    def _check_segment(self, now: int) -> AttachedSegment | Append:
        # Until this segment is full the old descriptor would do. But this user can make no segment that the spool's
        # flusher can read. So the writer opens a spool of the new user at once.
        if self.is_of_another_user:
            return Append.GONE
        try:
            if monotonic() < self._full_until:
                return self._full()
            if (mine := self.attached) is not None and mine.status() is None:
                self._abandon(mine)
                mine = None
            attached = mine or self._first()
            if isinstance(attached, Append):
                return attached
            end_seen = attached.end_seen  # read before the size, because another thread may be checking, too
            status = os.fstat(attached.fd)
            if not segment.is_in_place(self._directory.ring, attached.key.number, status):
                self.is_removed = True
                return Append.GONE  # the writer then opens the directory anew
            attached.checked(status.st_size, now)
            # If somebody who meddles has cut it, a leader may never read what is appended behind the cut.
            following = self._go_on(attached, is_cut=status.st_size < end_seen)
            if following is None:
                return self._not_written(errno.ENOSPC)
            self.checked_at_ns, self.check_due_ns = max(0, now), now + _CHECK_NS
            self._unchecked_bytes, self._full_until = 0, 0.0
            self.is_removed = False
            return following
        except OSError as error:
            return self._not_written(code_of(error))

    def _go_on(self, attached: AttachedSegment, *, is_cut: bool) -> AttachedSegment | None:
        """Return the segment to append to after this one was looked at; None if there is no room. Raises OSError."""
        try:
            if is_cut:
                return self._swap(self._rotation.make(attached.key.number))
            if self._rotation.is_full(attached):
                following = self._rotation.next(attached)
                return None if following is None else self._swap(following)
            if files.exists(segment.path_of(self._directory.ring, attached.key.number + 1)):
                return self._swap(self._rotation.follow(attached))
        except OSError as error:
            code_of(error)  # it raises what is a signal handler's
            # No descriptor, no space for another file: this segment may have room all the same.
            if is_cut or not (self._rotation.may_grow(attached) or self._rotation.may_outgrow(attached)):
                raise
        return attached

    def _first(self) -> AttachedSegment | Append:
        # A program may log each file that is opened (an audit hook). What it logs while we open the segment would open
        # the segment, too, and so on. A signal handler, which nests less deep, may log.
        me, now = get_ident(), monotonic()
        if now >= self._opening_until:
            self._opening = []  # a signal handler that raised may have left some behind
        if self._opening.count(me) >= _MOST_NESTED:
            return Append.FAILED
        self._opening_until = now + _OPENING_SECONDS
        try:
            self._opening.append(me)
            return self._swap(self._rotation.newest())
        except OSError as error:
            if (code := code_of(error)) != errno.ENOENT:
                return self._not_written(code)
            # The spool was removed, if it is not there. Else only a file was, and the writer tries again.
            self.is_removed = not (self._directory.is_present() and files.exists(self._directory.ring))
            return Append.GONE
        finally:
            with suppress(ValueError):
                self._opening.remove(me)

    def _swap(self, attached: AttachedSegment) -> AttachedSegment:
        current = self.attached
        # Another thread may have gone on meanwhile. Never go back to an older segment than that: readers take the
        # segments in turn, and would read the later record first.
        if current is None or current.key.number < attached.key.number:
            self.attached = current = attached
            self._set_pace()
        reset_quiet("append")
        return current

    def _abandon(self, attached: AttachedSegment) -> None:
        """Forget a segment whose descriptor somebody else has closed."""
        attached.abandon()
        if self.attached is attached:
            self.attached = None

    def _mend(self, code: int, length: int) -> bool:
        """Do what can be done about an error of a write. Tell whether the record may be written again."""
        attached = self.attached
        if attached is None:
            return code == errno.EBADF  # another thread has noticed it before us
        with suppress(OSError):
            if code == errno.EBADF or (status := attached.status()) is None:
                self._abandon(attached)
                return True
            if code in disk.NO_ROOM:
                return monotonic() >= self._full_until and self._rotation.make_room(attached)
            is_stuck = code == errno.EFBIG
            if code == errno.EIO:
                attached.failures += 1
                is_stuck = attached.failures >= _FAILURES
            # A record that has no room in a segment as large as this one has none in the next one, either.
            needed = segment.HEADER_BYTES + frame.HEADER_BYTES + length
            attached.is_full = is_stuck and status.st_size >= needed
            return attached.is_full
        return False

    def _not_written(self, code: int | None) -> Append:
        """Turn an I/O error into an answer. The next append checks again, because the cause may be gone by then."""
        self.check_due_ns = 0
        if code in disk.NO_ROOM:
            # Where evicting is allowed, another process may be at it and have room for us soon: ask again then.
            self._full_until = monotonic() + (_EVICTING_SECONDS if self._rotation.may_evict else _FULL_SECONDS)
            return Append.FULL
        why = os.strerror(code or errno.EIO) + disk.limit_of(OSError(code, ""))
        report(
            "append",
            f"cannot append to {self._directory.path}: {why}. "
            "Records are refused and counted until this ends; the application goes on.",
        )
        return Append.FAILED
