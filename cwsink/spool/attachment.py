"""Who has appended to a spool and still lives: a shared flock on `attached.lock`.

The kernel drops it with the process, however it ends, so "am I the last one out?"
has an answer without pids, which lie in containers.
"""

from __future__ import annotations

import os

from cwsink.spool import descriptors
from cwsink.spool.directory import SpoolDirectory


class Attachment:
    """This process's mark on the spool, from its first append to its end."""

    def __init__(self, directory: SpoolDirectory) -> None:
        """Attach. Raises OSError."""
        self._fd = descriptors.acquire(directory.attached_lock, os.O_RDWR | os.O_CREAT)
        self._incarnation = descriptors.incarnation()
        descriptors.try_lock(self._fd, exclusive=False)

    def is_last(self) -> bool:
        """Tell whether no other process is attached."""
        alone = descriptors.try_lock(self._fd, exclusive=True)
        descriptors.try_lock(self._fd, exclusive=False)
        return alone

    def close(self) -> None:
        """Detach."""
        descriptors.release(self._fd, self._incarnation)
