"""`hurry`: a writer that waits for delivery touches it, and the leader does not wait for more records.

The leader is another process. It looks at the file's time whenever it looks for records, ten times a second.

The last process out that could not wait for delivery says so on stderr, and leaves a word in this file: then the
flusher, whose own time ends a few seconds later, does not say it once more, in the middle of somebody's next command.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from cwsink.spool import descriptors
from cwsink.spool.directory import SpoolDirectory

_WORD: Final = b"told"


def ask(directory: SpoolDirectory) -> None:
    """Have the leader send what is there now. Never raises: it is sent a little later then."""
    with contextlib.suppress(OSError):
        try:
            os.utime(directory.hurry, follow_symlinks=False)
        except FileNotFoundError:
            descriptors.release(
                descriptors.acquire(directory.hurry, os.O_WRONLY | os.O_CREAT), descriptors.incarnation()
            )


def leave_word(directory: SpoolDirectory) -> None:
    """Note that a person was told what stays. Never raises."""
    _write(directory, _WORD)


def take_word_back(directory: SpoolDirectory) -> None:
    """Forget that: a new process logs here. Never raises."""
    if has_word(directory):
        _write(directory, b"")


def has_word(directory: SpoolDirectory) -> bool:
    """Tell whether a person was told what stays."""
    try:
        return os.stat(directory.hurry, follow_symlinks=False).st_size > 0
    except OSError:
        return False


def _write(directory: SpoolDirectory, data: bytes) -> None:
    with contextlib.suppress(OSError):
        fd = descriptors.acquire(directory.hurry, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.write(fd, data)
        finally:
            descriptors.release(fd, descriptors.incarnation())


def stamp(directory: SpoolDirectory) -> int | None:
    """Return what changes when somebody asks."""
    try:
        return os.stat(directory.hurry, follow_symlinks=False).st_mtime_ns
    except OSError:
        return None
