"""Small files of a spool, read and replaced in one way.

Whoever may write to a spool's directory may put anything in the place of a file: a FIFO, which blocks who opens it, a
symlink to somewhere else, gigabytes. So every file is opened without following links and without waiting
(cwsink.spool.descriptors), and `read` takes regular files only, and so many bytes at most.

A process may be killed, and the disk may be full, in the middle of a write. So `replace` writes a temporary file beside
the old one, makes sure that all of it is there, and renames it: a reader sees the old content or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import Final

from cwsink.spool import descriptors

TEMPORARY_SUFFIX: Final = ".tmp"
# A temporary file this old belongs to a process that was killed.
_STALE_SECONDS: Final = 60.0


def read(path: str, most_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return a file's content, and its status at that time.

    By descriptor, so that a network file system asks its server anew.

    Raises:
        OSError: it is not there, cannot be read (EMFILE, EIO ...), is no regular file (EINVAL), or is larger than
            `most_bytes` (EFBIG).
    """
    fd, incarnation = descriptors.acquire(path, os.O_RDONLY), descriptors.incarnation()
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return os.pread(fd, most_bytes, 0), status
    finally:
        descriptors.release(fd, incarnation)


def replace(path: str, data: bytes) -> None:
    """Put a new file in the place of the old one, whole or not at all. Raises OSError: the old one is still there."""
    temporary = f"{path}.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"
    fd, incarnation = descriptors.acquire(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), descriptors.incarnation()
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        descriptors.release(fd, incarnation)


def remove_stale_temporaries(directory: str) -> None:
    """Remove what processes that were killed left of files they were writing. Never raises."""
    oldest = time.time() - _STALE_SECONDS
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(TEMPORARY_SUFFIX):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)
