"""Notices that something was appended to a ring, for a process that looks after many spools of which most are idle.

A look takes one `stat` for the ring's directory and one for each segment, some 5 us in all, and needs no descriptor.
The names of the segments are read only if the directory has changed since. A file system's clock may tick only every
10 ms, so a directory that has just changed may change again without a trace. So the names in such a directory are read
again at the next look.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

from cwsink.spool import segment

# A directory that did not change for so long shows its next change by another time.
_SETTLED_NS: Final = 2_000_000_000


class RingWatch:
    """Compares a ring with how it was."""

    def __init__(self, ring: str) -> None:
        """Prepare. Until `mark` is called, all that is in the ring counts as new."""
        self._ring = ring
        self._paths: list[str] = []
        self._read_at_ns = -1  # the directory's time when the names were read; -1: read them
        self._marked: dict[str, tuple[int, int]] = {}

    def mark(self) -> None:
        """Note where the ring ends now."""
        self._read_at_ns = -1
        self._look_for_segments()
        self._marked = {}
        for path in self._paths:
            with contextlib.suppress(OSError):
                status = os.stat(path)
                self._marked[path] = status.st_ino, status.st_size

    def has_grown(self) -> bool:
        """Tell whether anything was appended since the mark. A segment with a new inode is one of another spool."""
        self._look_for_segments()
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError:  # it was reclaimed
                continue
            inode, size = self._marked.get(path, (0, 0))
            if status.st_size > size or status.st_ino != inode:
                return True
        return False

    def distrust(self) -> None:
        """Have the next look read the names, whatever the directory's time says."""
        self._read_at_ns = -1

    def _look_for_segments(self) -> None:
        try:
            changed_at_ns = os.stat(self._ring).st_mtime_ns
            if changed_at_ns != self._read_at_ns:
                self._paths = [segment.path_of(self._ring, number) for number in segment.numbers(self._ring)]
                is_settled = abs(time.time_ns() - changed_at_ns) >= _SETTLED_NS
                self._read_at_ns = changed_at_ns if is_settled else -1
        except FileNotFoundError:
            self._paths = []
        except OSError:  # no descriptor is left: look at the segments that are known
            pass
