"""Small files of a spool, read and replaced in one way.

Anybody who may write to a spool's directory may put something else in the place of a file: a FIFO, at which a process
that opens it waits for ever, a symlink to somewhere else, gigabytes. So every file is opened without following links
and without waiting (cwsink.spool.descriptors), and `read` accepts only regular files, up to a given length.

A process may be killed, and the disk may become full, in the middle of a write. So `replace` writes a temporary file
beside the old one, makes sure that all of it is there, and renames it: a reader sees the old content or the new one.
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
# A process keeps a temporary file for a moment only. One as old as this was left by a process that was killed.
_STALE_SECONDS: Final = 60.0
# Nothing was written yet, or the name belongs to something that is no file of ours.
_ABSENT: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EFBIG}
)


def is_absent(error: OSError) -> bool:
    """Tell whether `read` failed because there is no such file of ours. With any other error there may be one."""
    return error.errno in _ABSENT


def read(path: str, most_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return a file's content and its status at that time.

    The status is that of the opened file, not of its name: a network file system may answer a question about a name
    from its cache, but on opening a file it asks its server.

    Raises:
        OSError: the file is not there, cannot be read (EMFILE, EIO ...), is no regular file (EINVAL), or is larger
            than `most_bytes` (EFBIG).
    """
    with descriptors.opened(path, os.O_RDONLY) as file:
        status = os.fstat(file.fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return os.pread(file.fd, most_bytes, 0), status


def replace(path: str, data: bytes) -> None:
    """Replace a file as a whole. Raises OSError: then the old file is still there, unchanged."""
    temporary = f"{path}.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"
    with descriptors.opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        try:
            if os.write(file.fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def remove_stale_temporaries(directory: str) -> None:
    """Remove temporary files that are a minute old: the processes that made them were killed. Never raises."""
    oldest = time.time() - _STALE_SECONDS
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(TEMPORARY_SUFFIX):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)
