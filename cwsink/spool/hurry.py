"""`hurry`: a process that ends and waits for delivery touches it, so that the leader sends at once.

The leader is another process, and it may be waiting for more records to fill a request. It looks at the file's time
whenever it looks for records, ten times a second.

The last process that ends waits for a few seconds only. If records are left then, it says so on stderr. The flusher's
own time ends a few seconds later, and it would say the same once more, in the middle of the next command of a person
at that terminal. So the process leaves a word in this file, and the flusher that finds it says nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cwsink.interruption import suppress
from cwsink.spool import files

if TYPE_CHECKING:
    from cwsink.spool.directory import SpoolDirectory

_WORD: Final = b"told"


def ask(directory: SpoolDirectory) -> None:
    """Have the leader send what is there now. Never raises: on an error it is sent a little later."""
    with suppress(OSError):
        files.touch(directory.hurry, make=True)


def leave_word(directory: SpoolDirectory) -> None:
    """Note that this process has said on stderr that records are left. Never raises."""
    _write(directory, _WORD)


def take_word_back(directory: SpoolDirectory) -> None:
    """Remove that note, because a new process logs to the spool. Never raises."""
    if has_word(directory.path):
        _write(directory, b"")


def has_word(spool: str) -> bool:
    """Tell whether a process has said on stderr that records are left in the spool at this path."""
    with suppress(OSError):
        return files.status(f"{spool}/hurry").st_size > 0
    return False


def _write(directory: SpoolDirectory, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with suppress(OSError), files.opened(directory.hurry, flags) as file:
        os.write(file.fd, data)


def stamp(directory: SpoolDirectory) -> int:
    """Return the time of the last `ask`, in ns, to be compared with an earlier one; 0 if there was none."""
    return files.written_at_ns(directory.hurry)
