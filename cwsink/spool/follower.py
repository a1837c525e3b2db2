"""Read a spool's records while they are appended, delivered and reclaimed: `cwsink tail -f` (only looks).

A leader may reclaim a segment before `tail` has shown all of it. A lock would prevent that, but it would also keep the
leader from its work. So a `Follower` takes none. It keeps each segment open that it has seen, with an offset of its
own, and so reads the segment to its end even after the leader has unlinked it.

What a follower cannot read is a segment that came and went between two looks. Segment numbers have no gaps, so the
follower notices, and says how many it has missed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from cwsink.interruption import suppress
from cwsink.spool import cursor, frame, segment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.open_segment import OpenSegment
from cwsink.spool.record import Event


class Follower:
    """Reads one spool's records, each once, in arrival order (segment by segment)."""

    def __init__(self, directory: SpoolDirectory, *, all_present: bool, missed: Callable[[int], None]) -> None:
        """Begin at the oldest record that is pending.

        Args:
            directory: the spool.
            all_present: begin at the oldest record on disk instead.
            missed: called with the number of segments that came and went unseen.
        """
        self.directory = directory
        self._missed = missed
        self._open: dict[int, OpenSegment] = {}
        self._newest = 0
        try:
            # Open first, and read the cursor then: a segment that a leader reclaims in between is open already.
            self._attach()
            if not all_present:
                committed = cursor.read(directory.cursor).committed()
                for opened in self._open.values():
                    opened.offset = committed.get(opened.key, opened.offset)
        except BaseException:  # no descriptor is left, for example, and other spools need those that were opened
            self.close()
            raise

    def read(self) -> Iterator[Event]:
        """Yield the events that are new since the last call."""
        self._attach()
        for number, opened in sorted(self._open.items()):
            is_gone = os.fstat(opened.fd).st_nlink == 0  # asked before the read: nothing can come after it
            yield from filter(None, map(frame.event_of, opened.frames()))
            if is_gone:
                self._open.pop(number).close()

    def close(self) -> None:
        """Close all segments."""
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
            with suppress(FileNotFoundError):
                if (opened := OpenSegment.at(self.directory.ring, number, os.O_RDONLY)) is not None:
                    self._open[number] = opened
            self._newest = max(self._newest, number)
