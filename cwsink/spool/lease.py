"""Who flushes: a file lock, and the proof before every step that it is still ours.

`filelock.FileLock` on `leader.lock`: the kernel drops it when the process dies,
however it dies, so there is no time-based lease, no pid file and no `kill(pid, 0)`.
What a lock cannot tell is that its file was removed or replaced while held (then
two processes hold "it"): `is_held` compares the inode, and the epoch in the cursor
settles the rest (cwsink.spool.cursor). Nor is a lock any good between hosts: who is
granted one while another host leads gives it back (cwsink.spool.heartbeat).

filelock takes up to a megabyte (0.8 MiB beside `logging`), so it is imported by who is about to lead. A writer looks
at the lock by the kernel's `flock` (`is_taken`), in a tenth of the time.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from cwsink import host
from cwsink.diagnostics import report
from cwsink.spool import descriptors, heartbeat
from cwsink.spool.directory import SpoolDirectory

# A follower looks this often, plus up to half of it in jitter: takeover in about 0.3 s at most.
TRY_SECONDS: Final = 0.25


class Lease:
    """This process's hold on, or claim to, the right to flush a spool."""

    def __init__(self, directory: SpoolDirectory) -> None:
        from filelock import FileLock

        self._directory = directory
        self._path = directory.leader_lock
        self._heartbeat = heartbeat.Heartbeat(directory)
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
        from filelock import Timeout

        # FileLock would make a directory that was removed, with whatever mode the umask gives.
        os.stat(os.path.dirname(self._path))
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        if (other := heartbeat.elsewhere(self._directory, touch=self._path)) is not None:
            self._lock.release(force=True)
            _refuse(self._directory, other)
            return False
        self._pid = os.getpid()
        status = os.stat(self._path)
        self._inode = (status.st_dev, status.st_ino)
        self._heartbeat.begin()
        return True

    def beat(self) -> None:
        """Show other hosts that this one leads; to be called several times a second."""
        self._heartbeat.beat()

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
            if self.is_held():
                self._heartbeat.end()
            self._pid = 0
            with contextlib.suppress(OSError):
                self._lock.release(force=True)


def is_taken(directory: SpoolDirectory) -> bool:
    """Tell whether some process holds the lease now.

    It may change at the next moment, so nobody sends or commits by this. Writers ask before they start a flusher.
    """
    try:
        return descriptors.is_locked(directory.leader_lock)
    except OSError:
        return False


def _refuse(directory: SpoolDirectory, other: heartbeat.Elsewhere) -> None:
    mark, age_seconds = other
    report(
        "two_hosts",
        f"host {mark.host} (boot {mark.boot_id[:8]}) leads {directory.path}, as of {age_seconds:.0f} s ago, and this "
        f"is host {host.name()} (boot {host.boot_id()[:8]}). Two hosts must not share a spool: this one appends, and "
        "does not send while the other does. Give each a spool_directory on a disk of its own.",
    )
