"""Read a spool's records while they are appended, delivered and reclaimed: `cwsink tail -f` (only looks).

A `Follower` keeps every segment open that it has seen, with an offset of its own. So it reads a
segment to its end even if the leader has unlinked it meanwhile, and takes no lock that could
keep the leader from it. What it cannot read is a segment that came and went between two looks:
numbers have no gaps, so that is noticed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from cwsink.spool import cursor, descriptors, frame, segment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.reader import OpenSegment
from cwsink.spool.record import Event


class Follower:
    """Reads one spool's records, each once, in arrival order (segment by segment)."""

    def __init__(self, directory: SpoolDirectory, *, all_present: bool, missed: Callable[[int], None]) -> None:
        """Begin at what is pending, or with `all_present` at the oldest record on disk.

        `missed` is told how many segments came and went unseen.
        """
        self.directory = directory
        self._missed = missed
        self._open: dict[int, OpenSegment] = {}
        self._newest = 0
        # Open first, read the cursor then: nothing can be reclaimed between the two unseen.
        self._attach()
        if not all_present:
            committed = cursor.read(directory.cursor).committed()
            for opened in self._open.values():
                opened.offset = committed.get(opened.key, opened.offset)

    def read(self) -> Iterator[Event]:
        """Yield what is new since the last call."""
        self._attach()
        for number, opened in sorted(self._open.items()):
            is_gone = os.fstat(opened.fd).st_nlink == 0  # asked before the last read, so that nothing comes after it
            yield from filter(None, map(frame.event_of, opened.frames()))
            if is_gone:
                self._open.pop(number).close()

    def close(self) -> None:
        """Let go of all segments."""
        for opened in self._open.values():
            opened.close()
        self._open.clear()

    def _attach(self) -> None:
        """Open the segments that are new."""
        numbers = segment.numbers(self.directory.ring)
        if numbers and numbers[-1] < self._newest:
            self._newest = 0  # the spool was made anew
        for number in numbers:
            if number in self._open:
                continue
            if self._newest and number > self._newest + 1:
                self._missed(number - self._newest - 1)
            with contextlib.suppress(FileNotFoundError):
                fd = descriptors.acquire(segment.path_of(self.directory.ring, number), os.O_RDONLY)
                self._open[number] = OpenSegment(fd, number)
            self._newest = max(self._newest, number)
