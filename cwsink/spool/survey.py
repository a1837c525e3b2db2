"""Look at a spool without touching it: what is pending, and the ledger.

For `cwsink status` and `cwsink tail`, and for tests. Takes no lock, so it works from
any process while everything else is stuck, and disturbs nobody.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from cwsink.spool import cursor, descriptors, frame, record, segment
from cwsink.spool.budget import read_evictions
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.reader import OpenSegment
from cwsink.spool.record import Event


@dataclass
class Survey:
    """A spool's books at one moment. Counts are records, unless the name has a unit.

    `appended` is counted from what was read, the other side from what became of it, so
    `appended == delivered + sum(dead_lettered) + evicted + pending` is a real check.
    """

    epoch: int = 0
    appended: int = 0
    delivered: int = 0
    dead_lettered: dict[str, int] = field(default_factory=dict)
    evicted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
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
    """Read the cursor and count what lies behind it."""
    state = cursor.read(directory.cursor)
    committed = state.committed()
    evictions = read_evictions(directory)
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
                elif each.kind == frame.LOSS:
                    loss = record.decode_loss(each.payload)
                    refused[loss.reason] += loss.count
    books.refused = dict(refused)
    books.appended = ledger.appended + books.evicted + books.pending
    return books


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
                if each.kind == frame.EVENT:
                    yield record.decode_event(each.payload)


def open_segments(directory: SpoolDirectory) -> Iterator[OpenSegment]:
    """Open each segment that exists in turn, oldest first, read-only and without a lock."""
    for number in segment.numbers(directory.ring):
        with contextlib.suppress(FileNotFoundError):
            fd = descriptors.acquire(segment.path_of(directory.ring, number), os.O_RDONLY)
            with contextlib.closing(OpenSegment(fd, number)) as opened:
                yield opened
