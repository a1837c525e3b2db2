"""`hurry`: a writer that waits for delivery touches it, and the leader does not wait for more records.

The leader is another process. It looks at the file's time whenever it looks for records, ten times a second.
"""

from __future__ import annotations

import contextlib
import os

from cwsink.spool import descriptors
from cwsink.spool.directory import SpoolDirectory


def ask(directory: SpoolDirectory) -> None:
    """Have the leader send what is there now. Never raises: it is sent a little later then."""
    with contextlib.suppress(OSError):
        try:
            os.utime(directory.hurry, follow_symlinks=False)
        except FileNotFoundError:
            descriptors.release(
                descriptors.acquire(directory.hurry, os.O_WRONLY | os.O_CREAT), descriptors.incarnation()
            )


def stamp(directory: SpoolDirectory) -> int | None:
    """Return what changes when somebody asks."""
    try:
        return os.stat(directory.hurry, follow_symlinks=False).st_mtime_ns
    except OSError:
        return None
