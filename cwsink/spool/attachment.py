"""The lock of each process that has appended to a spool and still lives: a shared flock on `attached.lock`.

The last process that ends waits for delivery, so each one has to know whether others are left. Pids cannot tell: a pid
in one container says nothing in another one. So each process that appends holds a shared lock on this file, and the
kernel frees it with the process, however that ends.
"""

from __future__ import annotations

import os
from typing import Final

from cwsink.interruption import is_interruption
from cwsink.spool import descriptors, files
from cwsink.spool.directory import SpoolDirectory

# A process that asks whether anybody is attached takes the lock for a few microseconds. Another process that asks at
# that moment must not take it for a writer, so it tries again. It does not sleep in between: this may be an append.
_TRIES: Final = 50
_SHARED: Final = ["FLOCK", "ADVISORY", "READ"]


def is_anyone_attached(directory: SpoolDirectory, *, tries: int = _TRIES) -> bool:
    """Tell whether a process that has appended to the spool still lives; True if that cannot be told (see `ask`)."""
    return ask(directory, tries=tries) is not False


def ask(directory: SpoolDirectory, *, tries: int = _TRIES) -> bool | None:
    """Tell whether a process that has appended to the spool still lives; None if that cannot be told.

    No file is made. To find out, this takes the lock; if that works, nobody is attached, and the lock is freed at once.

    Args:
        directory: the spool.
        tries: how often to try. All of them are needed if a process is attached, at 2 us each.
    """
    try:
        return files.is_locked(directory.attached_lock, shared=True, tries=tries)
    except FileNotFoundError:
        return False
    except OSError as error:
        if is_interruption(error):
            raise
        return None


def attached_pids(directory: SpoolDirectory) -> list[int] | None:
    """Return the processes that are attached, as far as the kernel shows them here; None if it does not (macOS)."""
    try:
        with open("/proc/locks", encoding="ascii") as file:
            fields = [line.split() for line in file]
        inode = f":{files.status(directory.attached_lock).st_ino}"
    except FileNotFoundError as error:
        return None if error.filename == "/proc/locks" else []
    except OSError:
        return None
    return sorted({int(each[4]) for each in fields if each[1:4] == _SHARED and each[5].endswith(inode)})


class Attachment:
    """This process's shared lock on the spool, from its first append to its end."""

    def __init__(self, directory: SpoolDirectory) -> None:
        """Attach. Raises OSError."""
        self._directory = directory
        self._file = files.opened(directory.attached_lock, os.O_RDWR | os.O_CREAT)
        self._is_held = self._has_left = False
        self.hold()

    def hold(self) -> None:
        """Take the lock if we do not have it. After `detach` or `close` do nothing: a look may come late.

        Another process may have held it when we tried, to ask whether it is alone. Somebody may have closed our
        descriptor (a daemon closes all), and its number may be another file's by now. Or somebody has removed the file,
        and nobody sees our lock. Then we open the file anew.
        """
        if self._has_left:
            return
        path = self._directory.attached_lock
        if not (is_open := self._file.is_open()) or not files.is_named(path, self._file.opened_as):
            self._is_held = False
            self._file.close() if is_open else self._file.abandon()
            self._file = files.opened(path, os.O_RDWR | os.O_CREAT)
        if not self._is_held:
            self._is_held = any(descriptors.try_lock(self._file.fd, exclusive=False) for _ in range(_TRIES))

    def detach(self) -> bool:
        """Detach for good, and tell whether no other process is attached.

        To find out, the process tries to convert its shared lock into an exclusive one. A conversion that fails drops
        the shared lock (flock(2)). So if several processes detach at once, each that is told "others are left" is gone
        for the others by then, and the last one to ask is told that it is alone.
        """
        self._has_left = True
        if not self._file.is_open():
            self._file.abandon()
            return not is_anyone_attached(self._directory)
        is_last = descriptors.try_lock(self._file.fd, exclusive=True)
        self.close()
        return is_last

    def close(self) -> None:
        """Detach, without asking whether others are left."""
        self._has_left = True
        self._file.close()
