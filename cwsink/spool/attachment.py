"""Who has appended to a spool and still lives: a shared flock on `attached.lock`.

The kernel drops it with the process, however it ends, so "am I the last one out?"
has an answer without pids, which lie in containers.
"""

from __future__ import annotations

import os
from typing import Final

from cwsink.spool import descriptors
from cwsink.spool.directory import SpoolDirectory

# A process that asks whether anybody is attached holds the lock for a few microseconds. Another one that asks at
# that moment must not take it for a writer, so it tries again. Without a sleep: this may be an append.
_TRIES: Final = 50


def is_anyone_attached(directory: SpoolDirectory) -> bool:
    """Tell whether a process that has appended to the spool still lives; True if that cannot be told.

    It only looks: no file is made, and the lock, which is got only if nobody has it, is given back at once.
    """
    try:
        fd = descriptors.acquire(directory.attached_lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not any(descriptors.try_lock(fd, exclusive=True) for _ in range(_TRIES))
    except OSError:
        return True
    finally:
        descriptors.release(fd, descriptors.incarnation())


class Attachment:
    """This process's mark on the spool, from its first append to its end."""

    def __init__(self, directory: SpoolDirectory) -> None:
        """Attach. Raises OSError."""
        self._fd = descriptors.acquire(directory.attached_lock, os.O_RDWR | os.O_CREAT)
        self._incarnation = descriptors.incarnation()
        self._is_held = False
        self.hold()

    def hold(self) -> None:
        """Attach again if, at the first try, another process was just asking whether it is the last."""
        if not self._is_held:
            self._is_held = any(descriptors.try_lock(self._fd, exclusive=False) for _ in range(_TRIES))

    def leave(self) -> bool:
        """Detach for good, and tell whether no other process is attached.

        Who is told that others are left is detached already (a failed conversion drops the shared
        lock, flock(2)), so of several that leave at once the last to ask is told that it is alone.
        """
        is_last = descriptors.try_lock(self._fd, exclusive=True)
        self.close()
        return is_last

    def close(self) -> None:
        """Detach."""
        self._is_held = True  # nothing to hold any more
        descriptors.release(self._fd, self._incarnation)
