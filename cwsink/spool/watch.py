"""Notices that a ring has grown, for a process that looks after many spools of which most are idle.

A look takes one `stat` for the ring's directory and one for each segment, some 5 us in all, and needs no descriptor.
The names of the segments are read only if the directory has changed since. A file system's clock may tick only every
10 ms, so a directory that has just changed may change again without a trace. So the names of such a directory are read
at each look.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

from cwsink.spool import segment

# A directory that did not change for so long shows its next change by another time.
_SETTLED_NS: Final = 2_000_000_000

# The size of each segment, by its number and inode. A spool that was made anew has the same numbers.
Sizes = dict[tuple[int, int], int]


class RingWatch:
    """Looks at one ring, again and again."""

    def __init__(self, ring: str) -> None:
        self._ring = ring
        self._changed_ns = 0
        self._segments: list[tuple[int, str]] = []

    def forget(self) -> None:
        """Have the next look read the names of the segments, whatever the directory's time says."""
        self._changed_ns = 0

    def sizes(self) -> Sizes:
        """Return the size of each segment now; empty if the ring is gone."""
        try:
            changed_ns = os.stat(self._ring).st_mtime_ns
            if changed_ns != self._changed_ns or abs(time.time_ns() - changed_ns) < _SETTLED_NS:
                numbers = segment.numbers(self._ring)
                self._segments = [(number, segment.path_of(self._ring, number)) for number in numbers]
                self._changed_ns = changed_ns
        except FileNotFoundError:
            self._segments = []
        except OSError:  # no descriptor is left: look at the segments that are known
            pass
        found: Sizes = {}
        for number, path in self._segments:
            with contextlib.suppress(OSError):
                status = os.stat(path)
                found[number, status.st_ino] = status.st_size
        return found


def has_grown(before: Sizes, now: Sizes) -> bool:
    """Tell whether anything was appended between two looks."""
    return any(size > before.get(key, 0) for key, size in now.items())
