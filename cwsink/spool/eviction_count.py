"""Counts the records of a segment that is to be evicted, a part at a time.

The thread that appends has to evict, and it may not evict what it has not counted. To count a segment of 8 MiB of short
records takes a second on a busy machine, and no append may take that long. So each append counts for some milliseconds.
What is counted so far is kept in `evictions`, and the next append, of this or another process, goes on from there.

A count goes by where the segment was settled when it began. If a leader has settled more of it since, or if it is
another segment's turn, the count begins anew.

A page that the disk cannot read now may be readable in a moment, so the segment is not counted then, nor evicted. No
append waits for it: newer segments go meanwhile, unless it was counted already and still has to go. Later, and where
bytes have changed, each damaged range counts as one record, as it does when a leader makes it a dead letter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from cwsink.clock import monotonic
from cwsink.spool import disk, frame
from cwsink.spool.open_segment import OpenSegment
from cwsink.spool.record import Count, TimeMs

# Some milliseconds for the shortest records: so late may a count notice that its time is over.
_BLOCK_BYTES: Final = 64 * 1024


class EvictionCount(msgspec.Struct, array_like=True):
    """What is counted of one segment so far.

    Attributes:
        number, salt: the segment.
        start: the offset where its settled part ends.
        offset: all before this is counted.
        records: how many events, and damaged ranges.
        first_ms, last_ms: the time of the first and the last of them; 0 if this version can read none.
        refused: counts of loss markers, by reason.
    """

    number: Count
    salt: Count
    start: Count
    offset: Count
    records: Count = 0
    first_ms: TimeMs = 0
    last_ms: TimeMs = 0
    refused: dict[str, Count] = {}

    def goes_on(self, number: int, salt: int, start: int) -> bool:
        """Tell whether this counts that segment from there."""
        return (self.number, self.salt, self.start) == (number, salt, start)

    def count(self, fd: int, until: float) -> bool:
        """Count on until all is counted, or this moment (monotonic) is there. Tell whether all is. Raises OSError.

        At least one block is counted, so a count comes to its end. The caller has the segment's exclusive lock.
        """
        opened = OpenSegment(fd, self.number, self.offset, patience_seconds=disk.PATIENCE_SECONDS)
        opened.is_final = True
        while (block := opened.read(block_bytes=_BLOCK_BYTES)) is not None:
            self._add(block.frames)
            self.records += sum(damage.kind is frame.DamageKind.CORRUPT for damage in block.damage)
            self.offset = block.end
            if monotonic() >= until and self.offset < opened.size():
                return False
        return True

    def _add(self, frames: list[frame.Frame]) -> None:
        events = [each for each in frames if each.is_event]
        self.records += len(events)
        self.first_ms = self.first_ms or _first_time(events)
        self.last_ms = _first_time(reversed(events)) or self.last_ms
        for loss in filter(None, map(frame.loss_of, frames)):
            self.refused[loss.reason] = self.refused.get(loss.reason, 0) + loss.count


def _first_time(events: Iterable[frame.Frame]) -> int:
    """Return the time of the first event that this version can read, in ms; 0 if there is none."""
    return next((event.timestamp_ms for event in map(frame.event_of, events) if event), 0)
