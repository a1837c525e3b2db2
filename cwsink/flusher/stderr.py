"""The flusher has its stderr from the program that started it. This module says when to let go of it.

A process that reads a pipe to its end (`subprocess.run(capture_output=True)`, a shell's `$(...)`, a test runner) waits
until no process holds the other end any more. After the program has ended, the flusher may go on for other programs,
perhaps for months, and the reader would wait for it. So the flusher lets go of a pipe that no other process has for its
stdout or stderr.

Linux shows in /proc which processes have the pipe. On other systems the flusher holds it for as long as it is needed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from itertools import product
from typing import Final

from cwsink.flusher.mute import is_pipe
from cwsink.spool.leader_state import STARTED_BY_VARIABLE

_PROC: Final = "/proc"
# One program may have started flushers of several roots. They must not wait for each other to let go.
_FLUSHERS: Final = ("cwsink-guard", "cwsink-flusher")


class Stderr:
    """Our stderr. A look takes 10 us while the process that was found to have it lives, else 5 us a process."""

    def __init__(self) -> None:
        self._pipe = _link(os.getpid(), 2) if is_pipe() else None
        self._holder: tuple[int, int] | None = None
        if self.is_held_by_us_alone() and _is_alive(_starter()):
            self._pipe = None  # the starter may have it, hidden from us. Then others may have it, too

    def is_held_by_us_alone(self) -> bool:
        """Tell whether it is a pipe that no other process has for its stdout or stderr. False if unknown."""
        if self._pipe is None:
            return False
        try:
            if self._holder is None or _link(*self._holder) != self._pipe:
                held = product(map(int, filter(str.isdecimal, os.listdir(_PROC))), (1, 2))
                others = (each for each in held if _link(*each) == self._pipe and not _is_flusher(each[0]))
                self._holder = next(others, None)
        except OSError:  # no descriptor is left to look at the processes with
            return False
        return self._holder is None


def _link(pid: int, fd: int) -> str | None:
    """Return which file a process has as this descriptor. None if it is closed, only for reading, or hidden from us."""
    path = f"{_PROC}/{pid}/fd/{fd}"
    try:
        return os.readlink(path) if os.lstat(path).st_mode & stat.S_IWUSR else None
    except OSError:
        return None


def _is_flusher(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"{_PROC}/{pid}/comm") as file:
        return file.read().strip() in _FLUSHERS
    return False


def _starter() -> int:
    found = re.match(r"pid (\d+) ", os.environ.get(STARTED_BY_VARIABLE, ""))
    return int(found[1]) if found else 0


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError), open(f"{_PROC}/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    return False
