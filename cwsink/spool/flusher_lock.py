"""The lock of the flusher that starts by itself: a flock on `<root>/flusher-<user>.lock`.

Two writers may find at the same moment that nobody leads. Each would start a flusher, and one is enough for all spools
of a root and user. So a writer takes this lock first. It then hands the lock over: the new process inherits the locked
descriptor, and keeps it for as long as it lives. So there is no moment in between in which the lock is free.

The lock only spares processes. The lease of each spool (cwsink.spool.lease) decides who sends: however many flushers
are started, one sends.

A flusher may have to give way to another process: to one of a newer version, or, if it cannot deliver, to one with
other credentials or another network. Such a process locks `flusher-<user>.next` while it waits, and writes the reason
into it. The flusher that has the lock looks there once a second.

The files lie in the root, in which other users may write, too. A file with such a name that belongs to one of them is
not used: he could keep our flushers from starting, or have them end. The writer says whose it is.

If that flusher can deliver some of its spools, it stays, and gives up only the leases of the others. The new process is
its *guest* then: a flusher beside it, with a lock of its own (`flusher-<user>.<number>.lock`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from cwsink.interruption import suppress
from cwsink.spool import descriptors, files, open_directory

# The writer that starts the guard hands over its lock, by `posix_spawn`, as this descriptor.
LOCK_FD: Final = 3
_MOST_BYTES: Final = 4096

Reason = Literal["version", "trouble"]


class Challenge(msgspec.Struct, frozen=True):
    """Why another process wants to take over: it has a newer version, or the flusher with the lock cannot deliver.

    Attributes:
        reason: see above.
        leader: the pid of the process that is to give way; 0 for whoever leads. Several writers may ask for the end of
            one flusher. Without the pid, its successor would be taken for it, and replaced in turn.
    """

    reason: Reason
    leader: int = 0


def path_of(root: str, guest: int = 0, *, owner: int | None = None) -> str:
    """Return the path of the lock, or of that of a guest. `owner`: of the spools; None: this process's user."""
    return f"{root}/flusher-{os.geteuid() if owner is None else owner}{f'.{guest}' if guest else ''}.lock"


class FlusherLock:
    """A descriptor of the lock. A process that inherits it shares the lock with us, once we have taken it.

    Attributes:
        fd: the descriptor; -1 once it is closed.
        path: the file, for messages.
    """

    def __init__(self, root: str, *, fd: int | None = None, is_shared: bool = False, guest: int = 0) -> None:
        """Open the file, and make it if it is not there. Raises OSError.

        Args:
            root: the directory that holds the spools.
            fd: the locked descriptor that this process was started with; None to open one.
            is_shared: forked children are to share the descriptor. The guard's flusher does; a writer's child does not.
            guest: the number of a guest, whose lock it is; 0: it is that of the root's flusher.
        """
        self.path = path_of(root, guest)
        self._incarnation = descriptors.incarnation()
        self._is_shared = is_shared
        if fd is not None:
            os.set_inheritable(fd, False)
            self.fd = fd
            return
        with open_directory.root(root) as held:
            file = held.opened(os.path.basename(self.path), os.O_RDWR | os.O_CREAT)
        if is_shared:
            with file:
                self.fd = os.dup(file.fd)  # no hook closes this one in a forked child
        else:
            self.fd = file.keep()

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it, and tell whether it is ours now. Raises OSError."""
        if not descriptors.try_lock(self.fd, exclusive=True):
            return False
        os.utime(self.fd)
        return True

    @property
    def taken_at_ns(self) -> int:
        """When the lock was taken, in ns since 1970, by the file system's clock."""
        return os.fstat(self.fd).st_mtime_ns

    def is_in_place(self) -> bool:
        """Tell whether the file's name still leads to our file. A person may remove it, to make the flusher end."""
        try:
            return files.is_named(self.path, os.fstat(self.fd))
        except OSError:
            return False

    def give_up(self) -> None:
        """Free the lock, also for all processes that share the descriptor."""
        with suppress(OSError):
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def leave_word(self, why: str) -> None:
        """Write down why no flusher could begin, for the process that looks next; "" for nothing. Never raises."""
        with suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, why.encode("utf-8", "backslashreplace")[:_MOST_BYTES], 0)

    def word(self) -> str:
        """Return why the last flusher could not begin; "" if it has not said that. Never raises."""
        with suppress(OSError):
            return os.pread(self.fd, _MOST_BYTES, 0).decode("utf-8", "replace").strip()
        return ""

    def close(self) -> None:
        """Close our descriptor. The lock stays taken while another process has the one that we handed over."""
        fd, self.fd = self.fd, -1
        if self._is_shared and fd >= 0:
            os.close(fd)
        elif fd >= 0:
            descriptors.release(fd, self._incarnation)


def is_taken(root: str, *, owner: int | None = None) -> bool:
    """Tell whether a flusher that was started by a writer lives, or is just starting. `owner`: see `path_of`."""
    with suppress(OSError), open_directory.root(root, owner) as held:
        return held.is_locked(os.path.basename(path_of(root, owner=owner)))
    return False


@contextlib.contextmanager
def challenging(root: str, reason: Reason, leader: int) -> Iterator[bool]:
    """Ask the flusher that has the lock to give it up. Yields False if another process is asking already."""
    with open_directory.root(root) as held:
        file = held.opened(_next(), os.O_RDWR | os.O_CREAT)
    with file:
        if descriptors.try_lock(file.fd, exclusive=True):
            os.ftruncate(file.fd, 0)
            os.pwrite(file.fd, msgspec.json.encode(Challenge(reason, leader)), 0)
            yield True
        else:
            yield False


def challenge(root: str) -> Challenge | None:
    """Return why another process wants to take over from this one; None if none does."""
    with suppress(OSError, ValueError), open_directory.root(root) as held:
        if held.is_locked(_next()):
            found = msgspec.json.decode(held.read(_next(), _MOST_BYTES)[0], type=Challenge)
            return found if found.leader in (0, os.getpid()) else None
    return None


def _next() -> str:
    return f"flusher-{os.geteuid()}.next"
