"""Reserve disk blocks, give them back, and sync: calls of the kernel, some of which Python does not offer.

A full disk must show when a segment is made, and not in the middle of a record. So `reserve` asks `fallocate` for the
segment's blocks in advance (KEEP_SIZE: the file's size stays). And an idle worker may keep a segment open that is
delivered. So `punch_hole` gives the segment's blocks back (PUNCH_HOLE). Where the platform or the file system has
neither, both do nothing and return False.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable
from typing import Final

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors that say that the disk is full, or that this user may not take more of it."""

_fallocate: Callable[[int, int, int, int], int] | None = None
_looked = False


def reserve(fd: int, size_bytes: int, start: int = 0) -> bool:
    """Reserve `size_bytes` of the file from `start` on without changing its size. Raises OSError (ENOSPC)."""
    return _call(fd, _KEEP_SIZE, start, size_bytes)


def punch_hole(fd: int, start: int, end: int) -> bool:
    """Give the blocks of [start, end) back to the file system. The file's size stays. Raises OSError."""
    return _call(fd, _KEEP_SIZE | _PUNCH_HOLE, start, end - start)


def free_bytes(fd: int) -> int | None:
    """Return how much room the disk of an open file has for this user; None if it does not say. Raises OSError."""
    status = os.statvfs(fd)
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def most_file_bytes() -> int | None:
    """Return how large a file this process may make (RLIMIT_FSIZE); None if there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def sync(fd: int) -> None:
    """Make the file's data durable against a crash of the host. Raises OSError."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)


def load() -> None:
    """Load ctypes. It takes a megabyte, so only a process that makes a segment or leads loads it."""
    global _fallocate, _looked
    if _looked:
        return
    _looked = True
    if sys.platform == "linux":
        try:
            import ctypes
        except ImportError:  # the interpreter is shutting down; an append that is under way then must still work
            return
        function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
        if function is not None:
            function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            function.restype = ctypes.c_int
            _fallocate = function


def _call(fd: int, mode: int, start: int, length: int) -> bool:
    load()
    if _fallocate is None or length <= 0:
        return False
    if _fallocate(fd, mode, start, length) == 0:
        return True
    import ctypes

    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code))
