"""The right to send a spool: a file lock, and the proof before every step that it is still ours.

The lock is `filelock.FileLock` on `leader.lock`. The kernel frees it when the process dies, however that dies. So there
is no lease that ends by time, no pid file and no `kill(pid, 0)`.

Two things a lock cannot tell. Somebody may remove or replace its file while it is held, and then two processes hold
"it": so `is_held` compares the inode, and the epoch in the cursor stops the first of two leaders (cwsink.spool.cursor).
And two hosts may share the disk, and each may get the lock: a process that gets it while another host leads gives it
back (cwsink.spool.heartbeat).

FileLock opens the file by its path. Somebody may exchange directories while it does, and then it locks a file of his,
or makes an empty one there. So afterwards the lock is looked for in the spool's own directory.

filelock takes up to a megabyte (0.8 MiB beside `logging`), so only a process that is about to lead imports it. A writer
asks the kernel by `flock` (`is_taken`), in a tenth of the time.
"""

from __future__ import annotations

import os
from typing import Final

from cwsink import host
from cwsink.clock import wall
from cwsink.diagnostics import report
from cwsink.interruption import is_interruption, suppress
from cwsink.spool import cursor, descriptors, files, heartbeat, held_lock, leader_state, segment
from cwsink.spool.directory import SpoolDirectory

# A process that may lead tries this often, plus up to half of it in jitter. So a free lease is found within 0.375 s.
TRY_SECONDS: Final = 0.25

# A leader that is in no request touches leader.host more often than this.
_SILENT_SECONDS: Final = heartbeat.BEAT_SECONDS + 1.0

# Who has the lock of a spool, and shows no sign of life.
_silences: dict[str, held_lock.Obstruction] = {}


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


def challenge(directory: SpoolDirectory) -> None:
    """Ask the leader, which cannot deliver, to let this process try. Never raises.

    This touches `leader.next`. A lock would say for how long a process stands, but it would take a descriptor for each
    spool, and the leader need not know: if nobody takes the lease that it has given up, it takes that again.
    """
    with suppress(OSError):
        files.touch(directory.leader_next, make=True)


def challenged_at(directory: SpoolDirectory) -> int:
    """Return the time of the last challenge, in ns, to be compared with an earlier one; 0 if there was none."""
    return files.written_at_ns(directory.leader_next)


def is_taken(directory: SpoolDirectory) -> bool:
    """Tell whether some process holds the lease now.

    That may change at the next moment, so nobody sends or commits by this. Writers ask before they start a flusher, and
    adoption and `cwsink replay` ask to know which spools nobody looks after.
    """
    try:
        return files.is_locked(directory.leader_lock)
    except OSError as error:
        if is_interruption(error):
            raise
        return False


def watch_holder(directory: SpoolDirectory, request_seconds: float) -> None:
    """Say so if records wait, and the process that has the lock does not lead. Never raises.

    Whoever counts on a leader asks now and then. A leader shows that it lives: it touches leader.host, commits, and
    writes leader.json. In a request it does none of that. When it leaves in order, it removes leader.host. If it was
    killed, the file is there, and may be young. Then the kernel may know better who has the lock.

    Args:
        directory: the spool.
        request_seconds: how long a request may take.
    """
    # No descriptor may be left, or a file cannot be read: then it is not known, and the next look tells.
    with suppress(OSError):
        silence = _silences.setdefault(directory.path, held_lock.Obstruction())
        seen_at = files.written_at_ns(directory.leader_host, directory.cursor, directory.leader_state)
        patience = _patience(directory, wall() - seen_at / 1e9, request_seconds)
        if patience is None or not is_taken(directory) or not _has_pending(directory):
            silence.is_over()
        elif silence.lasts(seen_at, seconds=patience):
            held_lock.say(
                directory.leader_lock,
                "Only a leader needs the lock, and this process shows no sign that it leads. Meanwhile nobody may send "
                "the records of the spool. They wait there as long as there is room.",
            )


def _patience(directory: SpoolDirectory, silent_seconds: float, request_seconds: float) -> float | None:
    """Return for how long who has the lock must still be silent before that is said; None: it may be a leader.

    Raises OSError.
    """
    if host.boot_id() and not files.exists(directory.leader_host):
        return held_lock.PATIENCE_SECONDS  # a leader leaves its mark when it begins
    if silent_seconds >= _SILENT_SECONDS and _has_stranger(directory):
        return held_lock.PATIENCE_SECONDS
    if silent_seconds < max(heartbeat.FRESH_SECONDS, 2 * request_seconds):
        return None
    # The host may have been suspended, or its clock set ahead, while a healthy leader waits for an answer. Then its
    # files look old at once. So it must be silent for as long as a request may take by a clock that never jumps, too.
    return max(held_lock.PATIENCE_SECONDS, request_seconds)


def _has_stranger(directory: SpoolDirectory) -> bool:
    """Tell whether the kernel names the process that has the lock, and it is none that leads or has led.

    Raises OSError.
    """
    pids = held_lock.holder(directory.leader_lock)
    published = leader_state.read(directory)
    led_by = cursor.read(directory.cursor).holder.rpartition("/")[2]
    return bool(pids) and led_by not in pids and (published is None or str(published.pid) not in pids)


def _has_pending(directory: SpoolDirectory) -> bool:
    with suppress(OSError):
        return segment.has_pending(directory.ring, cursor.read(directory.cursor).committed())
    return False


def _refuse(directory: SpoolDirectory, other: heartbeat.Elsewhere) -> None:
    mark, age_seconds = other
    report(
        "two_hosts",
        f"host {mark.host} (boot {mark.boot_id[:8]}) leads {directory.path}, as of {age_seconds:.0f} s ago, and this "
        f"is host {host.name()} (boot {host.boot_id()[:8]}). Two hosts must not share a spool: this one appends, and "
        "does not send while the other does. Give each a spool_directory on a disk of its own.",
    )
