"""`Lease`: the right to send a spool, a file lock, and the proof before every step that it is still ours.

The lock is `filelock.FileLock` on `leader.lock`. The kernel frees it when the process dies, however that dies. So there
is no lease that ends by time, no pid file and no `kill(pid, 0)`.

Two things a lock cannot tell. Somebody may remove or replace its file while it is held, and then two processes hold
"it": so `is_held` compares the inode, and the epoch in the cursor stops the first of two leaders (`commits`). And two
hosts may share the disk, and each may get the lock: a process that gets it while another host leads gives it back
(cwsink.spool.heartbeat).

FileLock opens the file by its path. Somebody may exchange directories while it does, and then it locks a file of his,
or makes an empty one there. So afterwards the lock is looked for in the spool's own directory.
"""

from __future__ import annotations

import os
import time

import msgspec

from cwsink import host
from cwsink.diagnostics import report
from cwsink.interruption import suppress
from cwsink.spool import descriptors, files, heartbeat
from cwsink.spool.directory import SpoolDirectory


class Heartbeat:
    """The mark of a leader of this host, for as long as the leader holds the lease."""

    def __init__(self, directory: SpoolDirectory) -> None:
        self._path = directory.leader_host
        self._beaten_at = 0.0
        self._is_written = False

    def begin(self) -> None:
        """Write the mark. Never raises: a full disk must not keep a process from leading.

        On a full disk an empty file can be made, and its time shows the processes of this host that the leader lives.
        The next beat tries to write the mark.
        """
        self._beaten_at, self._is_written = time.monotonic(), False
        if not (boot_id := host.boot_id()):
            return
        with suppress(OSError):
            try:
                files.replace(self._path, msgspec.json.encode(heartbeat.Mark(boot_id, host.name())))
                self._is_written = True
            except OSError:
                found = heartbeat.read(self._path)
                if found is not None and found[0].boot_id != boot_id:  # its host has ended: the lease is ours
                    files.remove(self._path)
                files.touch(self._path, make=True)

    def beat(self) -> None:
        """Touch the mark if `BEAT_SECONDS` have passed. Never raises."""
        if time.monotonic() - self._beaten_at >= heartbeat.BEAT_SECONDS:
            self._beaten_at = time.monotonic()
            with suppress(OSError):
                if self._is_written and files.exists(self._path):
                    files.touch(self._path)
                else:
                    self.begin()

    def end(self) -> None:
        """Remove the mark if it is still this host's, so that a leader on the next host need not wait."""
        found = heartbeat.read(self._path)
        with suppress(OSError):
            is_ours = found is not None and found[0].boot_id == host.boot_id()
            if is_ours or files.status(self._path).st_size == 0:  # it is empty if the disk was full
                files.remove(self._path)


class Lease:
    """The right to send a spool, for a process that has it or tries to get it."""

    def __init__(self, directory: SpoolDirectory) -> None:
        # Here, because it may load slowly, and the guard has to let go of its writer's pipe before (guard._load).
        from filelock import FileLock

        self._directory = directory
        self._path = directory.leader_lock
        self._heartbeat = Heartbeat(directory)
        self._lock = FileLock(
            self._path,
            thread_local=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
            mode=descriptors.FILE_MODE,
        )
        self._pid = 0
        self._file: os.stat_result | None = None

    def try_acquire(self) -> bool:
        """Take the lease if nobody has it, and tell whether it is ours now.

        Raises:
            OSError: the directory is gone, EMFILE and so on.
        """
        from filelock import Timeout

        # FileLock goes by the path. It would make a directory that was removed, with whatever mode the umask gives. And
        # somebody may put a directory of his own in the place of the spool. So make the file in the directory that we
        # have looked at, and look there afterwards: is that file ours, and is it locked now?
        files.opened(self._path, os.O_RDWR | os.O_CREAT).close()
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        is_ours = False
        try:
            self._file = files.status(self._path)
            is_ours = files.is_locked(self._path)
        finally:
            if not is_ours:
                self._lock.release(force=True)
        if not is_ours:
            return False
        if (other := heartbeat.elsewhere(self._directory, touch=self._path)) is not None:
            self._lock.release(force=True)
            _refuse(self._directory, other)
            return False
        self._pid = os.getpid()
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
            status = files.seen(self._path)  # it takes no descriptor: none may be left when a request is answered
        except OSError:
            return False
        return self._file is not None and os.path.samestat(status, self._file)

    def release(self) -> None:
        """Give the lease back, if this process has it, so that another one can lead."""
        if self._pid == os.getpid():
            if self.is_held():
                self._heartbeat.end()
            self._pid = 0
            with suppress(OSError):
                self._lock.release(force=True)


def _refuse(directory: SpoolDirectory, other: heartbeat.Elsewhere) -> None:
    mark, age_seconds = other
    report(
        "two_hosts",
        f"host {mark.host} (boot {mark.boot_id[:8]}) leads {directory.path}, as of {age_seconds:.0f} s ago, and this "
        f"is host {host.name()} (boot {host.boot_id()[:8]}). Two hosts must not share a spool: this one appends, and "
        "does not send while the other does. Give each a spool_directory on a disk of its own.",
    )
