"""One flusher a user and root starts by itself: a flock on `<root>/flusher-<user>.lock`.

Two writers may find at the same moment that nobody leads. Each would start a process. So a writer takes this lock
first, and hands it over: the new process inherits the locked descriptor, and keeps it for as long as it lives. There
is no moment between the two in which the lock is free.

The lock only spares processes. Who sends is decided by the lease of each spool (cwsink.spool.lease): whatever is
started twice, there is one sender.

A process that is to take the place of the one that has the lock (of an older version, or without credentials) holds
`flusher-<user>.next` while it waits, and writes there why. Who has the lock looks there once a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from cwsink.spool import descriptors, files

_MOST_BYTES: Final = 4096

Reason = Literal["version", "trouble"]


class Challenge(msgspec.Struct, frozen=True):
    """Why another process wants to take over: it is of a newer version, or ours cannot deliver."""

    reason: Reason


def path_of(root: str) -> str:
    """Return the lock's path."""
    return f"{root}/flusher-{os.geteuid()}.lock"


class FlusherLock:
    """A descriptor of the lock, and whether it is held by us (and by whom we have handed it to).

    Attributes:
        fd: the descriptor; -1 once it is closed.
    """

    def __init__(self, root: str, *, fd: int | None = None, is_shared: bool = False) -> None:
        """Open it, making the file if need be. Raises OSError.

        Args:
            root: the directory that holds the spools.
            fd: the locked descriptor that we were started with, if we were.
            is_shared: a forked child is to have it, too: the guard's is, a writer's is not.
        """
        self._path = path_of(root)
        self._incarnation = descriptors.incarnation()
        self._is_shared = is_shared
        flags = os.O_RDWR | os.O_CREAT
        if fd is not None:
            os.set_inheritable(fd, False)
            self.fd = fd
        elif is_shared:
            self.fd = os.open(self._path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, descriptors.FILE_MODE)
        else:
            self.fd = descriptors.acquire(self._path, flags)

    def try_acquire(self) -> bool:
        """Take it, if nobody has it. Raises OSError."""
        if not descriptors.try_lock(self.fd, exclusive=True):
            return False
        os.utime(self.fd)
        return True

    @property
    def taken_at_ns(self) -> int:
        """When it was taken, in ns since 1970, by the file system's clock."""
        return os.fstat(self.fd).st_mtime_ns

    def is_in_place(self) -> bool:
        """Tell whether the file is still what its name leads to. Who removes it wants the flusher to end."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self._path, follow_symlinks=False))
        except OSError:
            return False

    def give_up(self) -> None:
        """Free the lock, for whoever else has its descriptor, too."""
        with contextlib.suppress(OSError):
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close our descriptor. The lock is free once nobody has one that we have handed over."""
        fd, self.fd = self.fd, -1
        if self._is_shared and fd >= 0:
            os.close(fd)
        elif fd >= 0:
            descriptors.release(fd, self._incarnation)


def is_taken(root: str) -> bool:
    """Tell whether a flusher that has started by itself lives, or starts now."""
    try:
        return descriptors.is_locked(path_of(root))
    except OSError:
        return False


@contextlib.contextmanager
def challenging(root: str, reason: Reason) -> Iterator[bool]:
    """Ask whoever has the lock to give it up. Yields False if another process asks already."""
    fd, incarnation = descriptors.acquire(_next(root), os.O_RDWR | os.O_CREAT), descriptors.incarnation()
    try:
        if descriptors.try_lock(fd, exclusive=True):
            os.ftruncate(fd, 0)
            os.pwrite(fd, msgspec.json.encode(Challenge(reason)), 0)
            yield True
        else:
            yield False
    finally:
        descriptors.release(fd, incarnation)


def challenge(root: str) -> Challenge | None:
    """Return why another process waits for the lock; None if none does."""
    try:
        if descriptors.is_locked(_next(root)):
            return msgspec.json.decode(files.read(_next(root), _MOST_BYTES)[0], type=Challenge)
    except (OSError, ValueError):
        pass
    return None


def _next(root: str) -> str:
    return f"{root}/flusher-{os.geteuid()}.next"
