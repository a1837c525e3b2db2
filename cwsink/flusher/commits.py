"""`Cursor`: a leader's hold on the cursor file, for one epoch. What is in the file: cwsink.spool.cursor.

A process may believe that it still leads after another one has taken the lease. Each leader begins an epoch of its
own, one higher than any before it, and `commit` reads the file again under a lock. If a later epoch is there, it raises
`Fenced`, and nothing is written.

With both slots lost a leader that lives writes its state anew. A slot that the disk cannot read is lost, too, but only
after 10 s (`disk.read`). Then the leader begins a new file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Final

from cwsink.clock import monotonic
from cwsink.interruption import suppress
from cwsink.spool import cursor, descriptors, disk, files, held_lock
from cwsink.spool.cursor import SLOT_BYTES, State

_LOCK_POLL_SECONDS: Final = 0.01


class Fenced(Exception):  # noqa: N818  # it is an answer, "you are not the leader any more", not a fault
    """A leader with a later epoch has written the cursor: drop all that is in flight, and stand for election again."""


class Cursor:
    """The leader's hold on the cursor file, for one epoch."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises OSError."""
        self._path = path
        self._fd = cursor.opened(path).keep()
        self._incarnation = descriptors.incarnation()
        self._epoch = 0
        self._is_stuck = False  # another process had the lock for too long when we wanted it last

    def take_over(self, holder: str) -> State:
        """Begin a new epoch, one more than any before it, and return the state to go on from. Raises OSError."""
        with self._lock() as is_ours:
            state, generation = cursor.best(self._fd)
            self._epoch = state.epoch = state.epoch + 1
            state.holder = holder
            if is_ours and not disk.is_failing(self._fd):
                self._write(state, generation + 1)
            else:
                # The process that has the lock may be just before its write, into the slot that we write. So the new
                # epoch goes into both slots, and that process is fenced whenever it goes on.
                self._write_both(state, generation)
            return state

    def is_ours(self) -> bool:
        """Tell whether no later leader has begun an epoch."""
        return cursor.best(self._fd)[0].epoch == self._epoch

    def restore(self, state: State) -> bool:
        """Write `state` anew if the file was removed, replaced or overwritten, or fails. Returns whether that was done.

        The leader would go on with the file that it has open, and nobody else would see what it settles. Writers would
        wait for it at their end, and the next leader would send again all that the ring still has.

        Args:
            state: the last one that was committed.

        Raises:
            OSError: the file cannot be written.
        """
        with suppress(FileNotFoundError):
            is_in_place = os.path.samestat(files.seen(self._path), os.fstat(self._fd))
            if is_in_place and cursor.best(self._fd)[0].epoch >= self._epoch and not disk.is_failing(self._fd):
                return False  # a lower one: the slots of this epoch are lost
        self._open_anew()
        with self._lock():
            found, generation = cursor.best(self._fd)
            if found.epoch <= self._epoch:  # else a later leader has begun here, and `is_ours` says so
                self._write_both(state, generation)
        return True

    def commit(self, state: State) -> None:
        """Make `state` durable against a crash of this process. Raises Fenced, OSError."""
        with self._lock():
            current, generation = cursor.best(self._fd)
            if current.epoch != self._epoch or state.epoch != self._epoch:
                raise Fenced(f"epoch {self._epoch} was followed by epoch {current.epoch}")
            self._write(state, generation + 1)

    def sync(self) -> None:
        """Make the last commit durable against a crash of the host. Raises OSError."""
        disk.sync_whole(self._fd)

    def close(self) -> None:
        """Close the file."""
        descriptors.release(self._fd, self._incarnation)

    def _open_anew(self) -> None:
        """Go on with the file that has the path now; it is made if there is none. Raises OSError."""
        fd = cursor.opened(self._path).keep()
        descriptors.release(self._fd, self._incarnation)
        self._fd = fd

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Lock the file for the block. Yields False if that does not work in time, and the block goes on all the same.

        Somebody may remove leader.lock while a leader is stopped (SIGSTOP, a debugger) in the middle of a commit. Its
        successor must not wait for it for ever. The epoch fences the stopped process when it goes on. It may still
        write once, into one slot. So the successor's last commit may be lost: its request is repeated if it dies then.
        """
        until = monotonic() + (0.0 if self._is_stuck else held_lock.PATIENCE_SECONDS)
        while not (is_ours := descriptors.try_lock(self._fd, exclusive=True)) and monotonic() < until:
            time.sleep(_LOCK_POLL_SECONDS)
        if not is_ours and not self._is_stuck:
            held_lock.say(
                self._path,
                "Only a leader needs the lock, for a moment. This one goes on without it. If it is killed now, the "
                "next one may send a request again.",
            )
        self._is_stuck = not is_ours
        try:
            yield is_ours
        finally:
            if is_ours:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _write_both(self, state: State, generation: int) -> None:
        """Write both slots. The caller has the lock. Raises OSError.

        To write a part of a page that the disk cannot read may fail for ever, and each new process would wait until it
        gives that page up. So such a file is replaced, or on a full disk written over in whole pages.
        """
        if disk.is_failing(self._fd) and files.is_named(self._path, os.fstat(self._fd)):
            even = generation // 2 * 2 + 2
            slots = b"".join(cursor.packed(state, even + slot).ljust(SLOT_BYTES, b"\0") for slot in (0, 1))
            try:
                files.replace(self._path, slots)
            except OSError as error:
                if error.errno not in disk.NO_ROOM or os.pwrite(self._fd, slots, 0) != len(slots):
                    raise
                return
            self._open_anew()
            return
        for slot in (1, 2):
            self._write(state, generation + slot)

    def _write(self, state: State, generation: int) -> None:
        slot = cursor.packed(state, generation)
        if os.pwrite(self._fd, slot, (generation % 2) * SLOT_BYTES) != len(slot):
            raise OSError(errno.ENOSPC, "the cursor could not be written whole")
