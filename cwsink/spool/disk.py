"""Reserving and giving back blocks: two Linux calls Python does not offer.

`fallocate` with KEEP_SIZE reserves a segment's blocks when it is made, so that
"disk full" happens there and not in the middle of a record; with PUNCH_HOLE it
gives back what a delivered segment holds while an idle worker keeps it open.
Where the platform or the file system has neither, both do nothing and say so.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Final

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})

_fallocate: Callable[[int, int, int, int], int] | None = None
_looked = False


def reserve(fd: int, size_bytes: int, start: int = 0) -> bool:
    """Reserve `size_bytes` of the file from `start` on without changing its size. Raises OSError (ENOSPC)."""
    return _call(fd, _KEEP_SIZE, start, size_bytes)


def punch_hole(fd: int, start: int, end: int) -> bool:
    """Give the blocks of [start, end) back to the file system; the size stays."""
    return _call(fd, _KEEP_SIZE | _PUNCH_HOLE, start, end - start)


def sync(fd: int) -> None:
    """Make the file's data durable against a crash of the host. Raises OSError."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable against a crash of the host. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def load() -> None:
    """Load what the calls need: ctypes, a megabyte, so who makes a segment or leads does it, not every worker."""
    global _fallocate, _looked
    if _looked:
        return
    _looked = True
    if sys.platform == "linux":
        try:
            import ctypes
        except ImportError:  # the interpreter is being taken apart; the append that is under way is not
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
