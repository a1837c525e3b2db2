"""Who flushes: a file lock, and the proof before every step that it is still ours.

`filelock.FileLock` on `leader.lock`: the kernel drops it when the process dies,
however it dies, so there is no time-based lease, no pid file and no `kill(pid, 0)`.
What a lock cannot tell is that its file was removed or replaced while held (then
two processes hold "it"): `is_held` compares the inode, and the epoch in the cursor
settles the rest (cwsink.spool.cursor).
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from filelock import FileLock, Timeout

from cwsink.spool import descriptors
from cwsink.spool.directory import SpoolDirectory

# A follower looks this often, plus up to half of it in jitter: takeover in about 0.3 s at most.
TRY_SECONDS: Final = 0.25


class Lease:
    """This process's hold on, or claim to, the right to flush a spool."""

    def __init__(self, directory: SpoolDirectory) -> None:
        self._path = directory.leader_lock
        self._lock = FileLock(
            self._path,
            thread_local=False,
            is_singleton=False,
            blocking=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
            mode=descriptors.FILE_MODE,
        )
        self._pid = 0
        self._inode: tuple[int, int] | None = None

    def try_acquire(self) -> bool:
        """Take the lease if nobody has it. Raises OSError (the directory is gone, EMFILE ...)."""
        # FileLock would make a directory that was removed, with whatever mode the umask gives.
        os.stat(os.path.dirname(self._path))
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        self._pid = os.getpid()
        status = os.stat(self._path)
        self._inode = (status.st_dev, status.st_ino)
        return True

    def is_held(self) -> bool:
        """Return True only when this process can prove that the lease is still its own."""
        if self._pid != os.getpid() or not self._lock.is_locked:
            return False
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        return status.st_nlink == 1 and (status.st_dev, status.st_ino) == self._inode

    def release(self) -> None:
        """Let another process lead."""
        if self._pid == os.getpid():
            self._pid = 0
            with contextlib.suppress(OSError):
                self._lock.release(force=True)


def is_taken(directory: SpoolDirectory) -> bool:
    """Tell whether some process holds the lease now. For people: nothing decides by it."""
    try:
        fd = os.open(directory.leader_lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not descriptors.try_lock(fd, exclusive=False)
    finally:
        os.close(fd)
