"""The right to send a spool: a file lock, and the proof before every step that it is still ours.

The lock is `filelock.FileLock` on `leader.lock`. The kernel frees it when the process dies, however that dies. So there
is no lease that ends by time, no pid file and no `kill(pid, 0)`.

Two things a lock cannot tell. Somebody may remove or replace its file while it is held, and then two processes hold
"it": so `is_held` compares the inode, and the epoch in the cursor stops the first of two leaders (cwsink.spool.cursor).
And two hosts may share the disk, and each may get the lock: a process that gets it while another host leads gives it
back (cwsink.spool.heartbeat).

filelock takes up to a megabyte (0.8 MiB beside `logging`), so only a process that is about to lead imports it. A writer
asks the kernel by `flock` (`is_taken`), in a tenth of the time.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from cwsink import host
from cwsink.diagnostics import report
from cwsink.spool import descriptors, heartbeat
from cwsink.spool.directory import SpoolDirectory

# A process that may lead tries this often, plus up to half of it in jitter. So a free lease is found within 0.375 s.
TRY_SECONDS: Final = 0.25


class Lease:
    """The right to send a spool, for a process that has it or tries to get it."""

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
        """Take the lease if nobody has it, and tell whether it is ours now.

        Raises:
            OSError: the directory is gone, EMFILE and so on.
        """
        from filelock import Timeout

        # If the directory was removed, FileLock would make it, with whatever mode the umask gives. So ask first.
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
        """Show other hosts that this one leads. The leader calls this several times a second."""
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
        """Give the lease back, if this process has it, so that another one can lead."""
        if self._pid == os.getpid():
            if self.is_held():
                self._heartbeat.end()
            self._pid = 0
            with contextlib.suppress(OSError):
                self._lock.release(force=True)


def challenge(directory: SpoolDirectory) -> None:
    """Ask the leader, which cannot deliver, to let this process try. Never raises.

    This touches `leader.next`. A lock would say for how long a process stands, but it would take a descriptor for each
    spool, and the leader need not know: if nobody takes the lease that it has given up, it takes that again.
    """
    with contextlib.suppress(OSError):
        try:
            os.utime(directory.leader_next, follow_symlinks=False)
        except FileNotFoundError:
            descriptors.release(
                descriptors.acquire(directory.leader_next, os.O_WRONLY | os.O_CREAT), descriptors.incarnation()
            )


def challenged_at(directory: SpoolDirectory) -> int:
    """Return the time of the last challenge, in ns, to be compared with an earlier one; 0 if there was none."""
    try:
        return os.stat(directory.leader_next, follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0


def is_taken(directory: SpoolDirectory) -> bool:
    """Tell whether some process holds the lease now.

    That may change at the next moment, so nobody sends or commits by this. Writers ask before they start a flusher, and
    adoption and `cwsink replay` ask to know which spools nobody looks after.
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
