"""What was in a spool at one moment, and how much of it is settled by now (only looks).

`flush --once` delivers what is there when it begins; what workers append meanwhile is
not its matter. So its end is known by positions, not by an empty spool, and it is all the
same which process delivers.
"""

from __future__ import annotations

from cwsink.spool import cursor, frame, segment, survey
from cwsink.spool.budget import read_evictions
from cwsink.spool.cursor import Ledger
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.reader import open_segments
from cwsink.spool.segment import SegmentKey


class Backlog:
    """The pending records of a spool, as of now.

    Attributes:
        records: how many there were.
        foreign: numbers of the segments of a newer layout, which this version can neither read nor send.
    """

    def __init__(self, directory: SpoolDirectory) -> None:
        """Look, which may take a second or two. Raises OSError."""
        self._directory = directory
        self.records = 0
        self.foreign: list[int] = []
        self._ends: dict[SegmentKey, int] = {}
        state = cursor.read(directory.cursor)
        committed = state.committed()
        self._before = _sum(state)
        evictions = read_evictions(directory)
        self._evicted = evictions.records
        newest = (segment.numbers(directory.ring) or [0])[-1]
        for opened in open_segments(directory):
            if opened.is_foreign:
                self.foreign.append(opened.key.number)
            # Of a damaged one nothing can be delivered, and the leader leaves it until there is a newer one.
            if opened.key == evictions.void or (opened.is_damaged and opened.key.number == newest):
                continue
            start = opened.offset = committed.get(opened.key, opened.offset)
            while (block := opened.read()) is not None:
                self.records += sum(each.kind == frame.EVENT for each in block.frames)
            if opened.offset > start:
                self._ends[opened.key] = opened.offset

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to do. The stream may have to be told of evictions all the same."""
        return not self._ends and self._is_told(cursor.read(self._directory.cursor).ledger)

    def is_settled(self) -> bool:
        """Tell whether all of it is delivered, dead-lettered or evicted by now."""
        self._ends = survey.unsettled(self._directory, self._ends)
        return self.is_empty

    def settled(self) -> Ledger:
        """Return what was settled since the beginning, by any process; of later records, too."""
        now, before = _sum(cursor.read(self._directory.cursor)), self._before
        dead = {reason: count - before.dead_lettered.get(reason, 0) for reason, count in now.dead_lettered.items()}
        return Ledger(
            appended=now.appended - before.appended,
            delivered=now.delivered - before.delivered,
            dead_lettered={reason: count for reason, count in dead.items() if count},
        )

    def _is_told(self, ledger: Ledger) -> bool:
        return ledger.evicted_reported >= self._evicted


def _sum(state: cursor.State) -> Ledger:
    """Return the totals, with what is delivered of a chunk that is being sent in several requests."""
    total, partial = state.ledger, state.partial
    dead = dict(total.dead_lettered)
    for reason, count in partial.dead_lettered.items():
        dead[reason] = dead.get(reason, 0) + count
    return Ledger(
        appended=total.appended + partial.appended,
        delivered=total.delivered + partial.delivered,
        dead_lettered=dead,
    )
