"""Reserve disk blocks, give them back, sync, and read what a damaged disk still has.

Some of these are calls of the kernel that Python does not offer.

A full disk must show when a segment is made, and not in the middle of a record. So `reserve` asks for the segment's
blocks in advance, and the file's size stays as it is. And an idle worker may keep a segment open that is delivered. So
`punch_hole` gives the segment's blocks back. Where the platform or the file system has neither, both do nothing and
return False.

Linux has one system call for both, fallocate(2) with KEEP_SIZE and PUNCH_HOLE. Python does not offer it, and ctypes,
which could reach it, takes 0.4 MiB of each worker and 2 ms of its first append. But the kernel does the same for two
ioctls that it once took over from XFS (`linux/falloc.h`: FS_IOC_RESVSP64, on any file system; FS_IOC_UNRESVSP64, since
Linux 5.5). macOS only makes holes, by a command of fcntl(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

from cwsink.clock import monotonic
from cwsink.interruption import suppress

_SPACE: Final = struct.Struct("hhqqiI4i")
"""The ioctls' struct space_resv: kind (unused), whence, start, length in bytes, three fields that are unused."""
_WRITES_SPACE: Final = 1 << 30 | _SPACE.size << 16 | ord("X") << 8
_RESERVE: Final = _WRITES_SPACE | 42
_PUNCH_HOLE: Final = _WRITES_SPACE | 43
# macOS, with its struct fpunchhole_t: flags, a field that is unused, start, length in bytes.
_F_PUNCHHOLE: Final = 99
_PUNCHED: Final = struct.Struct("IIqq")
# ENOTTY: the kernel does not know the ioctl. ENOTSUP is EOPNOTSUPP on Linux, and a number of its own on macOS. EPERM,
# EACCES: a sandbox lets this process write the file, and no more.
_UNSUPPORTED: Final = frozenset(
    (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOTTY, errno.EPERM, errno.EACCES)
)

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors that say that the disk is full, or that this user may not take more of it."""

# A disk with a sector that it cannot read (EIO; ENODATA from some), or a file system that finds a wrong checksum
# (EBADMSG, EUCLEAN). Other errors, such as ENOMEM, say nothing of the disk.
_DAMAGED: Final = frozenset({errno.EIO, errno.ENODATA, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)})

PATIENCE_SECONDS: Final = 10.0
"""What a disk cannot read now it may read in a moment. Who would lose it, or take it for nothing, waits for so long."""

# The kernel reads whole pages. A bad sector costs its page.
_PAGE_BYTES: Final = 4096
# Stands for a byte that cannot be read. Not zero: a reader takes zeros for a write that was cut, which lost no record.
# And no frame's magic has this byte.
UNREADABLE: Final = b"\xff"
UNREADABLE_FILE: Final = "the disk cannot read it, so what is shown is incomplete"
"""What people are told of a file of which they were shown as much as can be read."""
# A file that was not asked for so long may have been readable meanwhile.
_FORGOTTEN_SECONDS: Final = 60.0

# What this process could not read last, by device and inode: the first such page, and when that failed first and last.
_failing: dict[tuple[int, int], tuple[int, float, float]] = {}


class _AtOnce(threading.local):
    """The paths of what this thread could not read in a block `at_once`; None outside of one."""

    paths: set[str] | None = None


_at_once: Final = _AtOnce()


@contextlib.contextmanager
def at_once() -> Iterator[set[str]]:
    """In the block this thread has no patience: people want to see what can be read, now.

    Yields:
        The paths of the files for which others would wait. What their bad pages hold is not shown.
    """
    before, _at_once.paths = _at_once.paths, set()
    try:
        yield _at_once.paths
    finally:
        _at_once.paths = before


def is_unreadable(error: OSError) -> bool:
    """Tell whether the disk failed to read something, as a damaged one does."""
    return error.errno in _DAMAGED


class suppress_unreadable:  # noqa: N801  # as Python's own
    """Suppress an error of the block that says that the disk cannot read something now (`is_unreadable`)."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        return isinstance(error, OSError) and is_unreadable(error)


def read(fd: int, size_bytes: int, start: int, *, patience_seconds: float = 0.0) -> bytes:
    """Return a range of a file, as far as the file goes, with 0xFF for each byte in a page that cannot be read.

    No checksum of a frame or a header is right with such bytes in it. So they count as damage, and what is intact
    around them is read.

    Args:
        fd: the file.
        size_bytes: how much.
        start: from where.
        patience_seconds: for so long a file that cannot be read is an error, because that may pass. The time counts
            from the first failure, and anew once the page is read that failed then. Bad pages behind it share it: a
            damaged file holds up its reader once.

    Raises:
        OSError: ENOMEM and so on; an error of a damaged disk, with the file's name, only as long as `patience_seconds`
            says.
    """
    parts: list[bytes] = []
    end, is_whole = start + size_bytes, True
    while start < end:  # the kernel, too, returns less than was asked for if it can read only that
        page_bytes = min(end - start, _PAGE_BYTES - start % _PAGE_BYTES)
        asked = end - start if is_whole else page_bytes
        try:
            data = os.pread(fd, asked, start)
        except OSError as error:
            if not is_unreadable(error):
                raise
            if asked > page_bytes:
                is_whole = False
                continue
            with suppress(OSError):  # no Linux, or no /proc
                error.filename = os.readlink(f"/proc/self/fd/{fd}")
            if patience_seconds and _at_once.paths is not None:
                _at_once.paths.add(error.filename or "a file of the spool")
            elif _fails_for(fd, start // _PAGE_BYTES) < patience_seconds:
                raise
            data, is_whole = UNREADABLE * page_bytes, True
        else:
            if _failing and data:
                _forget(fd, start // _PAGE_BYTES, (start + len(data) - 1) // _PAGE_BYTES)
        if not data:
            break
        parts.append(data)
        start += len(data)
    return b"".join(parts)


def is_failing(fd: int) -> bool:
    """Tell whether this process could not read a page of a file when it read that last."""
    status = os.fstat(fd)
    return (status.st_dev, status.st_ino) in _failing


def _fails_for(fd: int, page: int) -> float:
    """Note that a page of a file cannot be read now. Return for how many seconds that, or a page before it, is so."""
    status, now = os.fstat(fd), monotonic()
    key = status.st_dev, status.st_ino
    first_page, first, last = _failing.get(key, (page, now, now))
    if now - last >= _FORGOTTEN_SECONDS:
        first_page, first = page, now
    _failing[key] = first_page, first, now
    return now - first


def _forget(fd: int, first: int, last: int) -> None:
    """Note that these pages of a file can be read: what has failed among them has passed."""
    status = os.fstat(fd)
    key = status.st_dev, status.st_ino
    if (failed := _failing.get(key)) is not None and first <= failed[0] <= last:
        _failing.pop(key, None)


def reserve(fd: int, size_bytes: int, start: int = 0) -> bool:
    """Reserve `size_bytes` of the file from `start` on without changing its size. Raises OSError (ENOSPC)."""
    return _change_space(fd, _RESERVE, start, size_bytes)


def punch_hole(fd: int, start: int, end: int) -> bool:
    """Give the blocks of [start, end) back to the file system. The file's size stays. Raises OSError."""
    if sys.platform == "darwin" and start < end:
        return _ask(fcntl.fcntl, fd, _F_PUNCHHOLE, _PUNCHED.pack(0, 0, start, end - start))
    return _change_space(fd, _PUNCH_HOLE, start, end - start)


def free_bytes(place: int | str) -> int | None:
    """Return how much room a disk has for this user; None if it does not say. Raises OSError.

    `place`: an open file there; a path, if the answer is only told to people.
    """
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def total_bytes(place: int) -> int:
    """Return how large the disk of an open file is; 0 if it does not say. Raises OSError."""
    status = os.statvfs(place)
    return status.f_blocks * status.f_frsize


def free_files(place: int | str) -> int | None:
    """Return how many files more this user can make (free inodes); None if the disk does not count. Raises OSError."""
    status = os.statvfs(place)
    return status.f_favail if status.f_files else None


def most_file_bytes() -> int | None:
    """Return how large a file this process may make (RLIMIT_FSIZE); None if there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def limit_of(error: BaseException) -> str:
    """Return which limit of this process made a write fail, to be put behind the error's text; "" if none is known.

    The kernel's "File too large" does not say that it is the user's limit, and names no file. An EFBIG with a file's
    name is ours: that file is longer than what is read of it.
    """
    if not isinstance(error, OSError) or error.errno != errno.EFBIG or error.filename is not None:
        return ""
    most = most_file_bytes()
    return "" if most is None else f" (a limit of this process: `ulimit -f` lets its files have {most:,} bytes)"


def sync(fd: int) -> None:
    """Make the file's data durable against a crash of the host. Raises OSError."""
    if not _is_synced_to_its_drive(fd):
        (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)


def sync_whole(fd: int) -> None:
    """Make all that the file system knows of the file durable: of a directory, the names in it. Raises OSError."""
    if not _is_synced_to_its_drive(fd):
        os.fsync(fd)


def _is_synced_to_its_drive(fd: int) -> bool:
    """Have the drive write its cache, too: on macOS `fsync` does not. Tell whether that was done. Raises OSError."""
    return hasattr(fcntl, "F_FULLFSYNC") and _ask(fcntl.fcntl, fd, fcntl.F_FULLFSYNC)


def _change_space(fd: int, request: int, start: int, length: int) -> bool:
    if sys.platform != "linux" or length <= 0:
        return False
    return _ask(fcntl.ioctl, fd, request, _SPACE.pack(0, os.SEEK_SET, start, length, 0, 0, 0, 0, 0, 0))


def _ask(call: Callable[..., object], *arguments: object) -> bool:
    """Make a call of the kernel that some file systems do not know. Tell whether that was done. Raises OSError."""
    while True:
        try:
            call(*arguments)
        except InterruptedError:  # tmpfs gives up if a signal arrives meanwhile
            continue
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        return True
