"""Notices that something was appended to a ring, for a process that looks after many spools of which most are idle.

A look asks for the status of the ring's directory and of each segment, some 20 us in all. The names of the segments are
read only if the directory has changed since. A file system's clock may tick only every 10 ms, so a directory that has
just changed may change again without a trace. So the names in such a directory are read again at the next look.
"""

from __future__ import annotations

import time
from typing import Final

from cwsink.interruption import suppress
from cwsink.spool import open_directory, segment
from cwsink.spool.open_directory import OpenDirectory

# A directory that did not change for so long shows its next change by another time.
_SETTLED_NS: Final = 2_000_000_000


class RingWatch:
    """Compares a ring with how it was."""

    def __init__(self, ring: str) -> None:
        """Prepare. Until `mark` is called, all that is in the ring counts as new."""
        self._ring = ring
        self._names: list[str] = []
        self._read_at_ns = -1  # the directory's time when the names were read; -1: read them
        self._marked: dict[str, tuple[int, int]] = {}

    def mark(self) -> None:
        """Note where the ring ends now."""
        self._read_at_ns = -1
        self._marked = self._look()

    def has_grown(self) -> bool:
        """Tell whether anything was appended since the mark. A segment with a new inode is one of another spool."""
        for name, (inode, size) in self._look().items():
            marked_inode, marked_size = self._marked.get(name, (0, 0))
            if size > marked_size or inode != marked_inode:
                return True
        return False

    def distrust(self) -> None:
        """Have the next look read the names, whatever the directory's time says."""
        self._read_at_ns = -1

    def _look(self) -> dict[str, tuple[int, int]]:
        """Return inode and size of each segment; of none if the ring is gone, or if no descriptor is left to look."""
        found = {}
        with suppress(OSError), open_directory.at(self._ring) as held:
            self._read_names(held)
            for name in self._names:
                with suppress(FileNotFoundError):  # it was reclaimed
                    status = held.status(name)
                    found[name] = status.st_ino, status.st_size
        return found

    def _read_names(self, ring: OpenDirectory) -> None:
        changed_at_ns = ring.opened_as.st_mtime_ns
        if changed_at_ns != self._read_at_ns:
            self._names = [segment.name_of(number) for number in segment.numbers_in(ring)]
            is_settled = abs(time.time_ns() - changed_at_ns) >= _SETTLED_NS
            self._read_at_ns = changed_at_ns if is_settled else -1
