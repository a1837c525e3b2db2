"""Look at a spool without touching it: what is pending, and the ledger.

For `cwsink status` and `cwsink tail`, and for tests. Takes no lock, so it works from
any process while everything else is stuck, and disturbs nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from cwsink.spool import cursor, frame, record, segment
from cwsink.spool.budget import read_evictions
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.reader import open_segments
from cwsink.spool.record import Event
from cwsink.spool.segment import SegmentKey

# A look takes seconds at most, and what vanishes during one is the oldest, which is read first.
_MOST_LOOKS: Final = 5


class Survey(msgspec.Struct):
    """A spool's books at one moment. Counts are records, unless the name has a unit.

    `appended` is counted from what was read, the other side from what became of it, so
    `appended == delivered + sum(dead_lettered) + evicted + pending` is a real check.
    """

    epoch: int = 0
    appended: int = 0
    delivered: int = 0
    dead_lettered: dict[str, int] = {}
    evicted: int = 0
    refused: dict[str, int] = {}
    resent: int = 0
    corrupt_bytes: int = 0
    pending: int = 0
    pending_bytes: int = 0
    oldest_pending_ms: int | None = None

    @property
    def adds_up(self) -> bool:
        """Tell whether every appended record is accounted for."""
        return self.appended == self.delivered + sum(self.dead_lettered.values()) + self.evicted + self.pending


def survey(directory: SpoolDirectory) -> Survey:
    """Read the cursor and count what lies behind it.

    A segment that is delivered and reclaimed between the two would be in neither count: look again.
    """
    for _ in range(_MOST_LOOKS):
        expected = set(segment.numbers(directory.ring))
        books, seen = _look(directory)
        if expected <= seen:
            break
    return books


def _look(directory: SpoolDirectory) -> tuple[Survey, set[int]]:
    """Return the books, and the numbers of the segments that were there to be counted."""
    state = cursor.read(directory.cursor)
    committed = state.committed()
    evictions = read_evictions(directory)
    seen = {evictions.number}
    ledger = state.ledger
    refused = Counter(ledger.refused)
    refused.update(evictions.refused)
    books = Survey(
        epoch=state.epoch,
        delivered=ledger.delivered,
        dead_lettered=dict(ledger.dead_lettered),
        evicted=evictions.records,
        resent=ledger.resent,
        corrupt_bytes=ledger.corrupt_bytes,
    )
    for opened in open_segments(directory):
        seen.add(opened.key.number)
        if opened.key == evictions.void:
            continue
        opened.offset = committed.get(opened.key, opened.offset)
        while (block := opened.read()) is not None:
            for each in block.frames:
                if each.kind == frame.EVENT:
                    books.pending += 1
                    books.pending_bytes += frame.HEADER_BYTES + len(each.payload)
                    # In arrival order the first one is the oldest, near enough for people.
                    if books.oldest_pending_ms is None:
                        books.oldest_pending_ms = record.timestamp_of(each.payload)
                elif each.kind == frame.LOSS and (loss := record.loss_of(each.payload)):
                    refused[loss.reason] += loss.count
    books.refused = dict(refused)
    books.appended = ledger.appended + books.evicted + books.pending
    return books, seen


def events(directory: SpoolDirectory, *, all_present: bool = False) -> Iterator[Event]:
    """Yield the pending events in arrival order (segment by segment).

    Args:
        directory: the spool.
        all_present: also those delivered already that are still on disk.
    """
    committed = {} if all_present else cursor.read(directory.cursor).committed()
    for opened in open_segments(directory):
        opened.offset = committed.get(opened.key, opened.offset)
        while (block := opened.read()) is not None:
            for each in block.frames:
                if each.kind == frame.EVENT and (event := record.event_of(each.payload)):
                    yield event


def ends(directory: SpoolDirectory) -> dict[SegmentKey, int]:
    """Return where the valid frames of each segment now end, in bytes, for what is not settled yet."""
    committed = cursor.read(directory.cursor).committed()
    found = {}
    for opened in open_segments(directory):
        start = opened.offset = committed.get(opened.key, opened.offset)
        while opened.read() is not None:
            pass
        if opened.offset > start:
            found[opened.key] = opened.offset
    return found


def unsettled(directory: SpoolDirectory, ends: Mapping[SegmentKey, int]) -> dict[SegmentKey, int]:
    """Return those of `ends` that no commit has reached yet, in segments that still exist."""
    committed = cursor.read(directory.cursor).committed()
    left = {key: end for key, end in ends.items() if committed.get(key, 0) < end}
    present = {opened.key for opened in open_segments(directory)} if left else set()
    return {key: end for key, end in left.items() if key in present}


def has_pending(directory: SpoolDirectory) -> bool:
    """Tell whether there is a frame that is not settled yet."""
    committed = cursor.read(directory.cursor).committed()
    for opened in open_segments(directory):
        opened.offset = committed.get(opened.key, opened.offset)
        while (block := opened.read()) is not None:
            if block.frames:
                return True
    return False
