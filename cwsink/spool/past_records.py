"""The records of a spool from a time on: those that are delivered and still on disk, and those that wait (only looks).

Segments are read one after the other, oldest first, in the order in which their records were appended. That is nearly
the order of time, but not quite: records of several threads and processes, and of a replay. So the next 10,000 records,
or 32 MB of them, are held, and the oldest of these comes first. **Promised**: a record is in its place if it was
appended less than 10,000 records after one that is newer.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from cwsink.interruption import suppress
from cwsink.spool import files, frame, history, segment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Event

_MOST_HELD: Final = 10_000
_MOST_HELD_CHARACTERS: Final = 32 * 1024 * 1024
# An event is hardly ever appended long before its time. CloudWatch takes none that is more than 2 hours ahead.
_AHEAD_MS: Final = 2 * 3_600_000


def between(directory: SpoolDirectory, since_ms: int, until_ms: int) -> Iterator[Event]:
    """Yield the records with a time in [since_ms, until_ms), in order of time as far as that is promised."""
    return in_order(each for each in _appended(directory, since_ms) if since_ms <= each.timestamp_ms < until_ms)


def _appended(directory: SpoolDirectory, since_ms: int) -> Iterator[Event]:
    for number in history.segments(directory):
        with suppress(FileNotFoundError):
            status = files.status(segment.path_of(directory.history, number))
            if status.st_mtime * 1000 < since_ms - _AHEAD_MS:
                continue  # nothing was appended to it since then
        for opened in history.opened(directory, number):
            yield from filter(None, map(frame.event_of, opened.frames()))


def in_order(events: Iterable[Event], most: int = _MOST_HELD) -> Iterator[Event]:
    """Yield events by time, and those of one time as they come, with at most so many in memory."""
    held: list[tuple[int, int, Event]] = []
    characters, count = 0, itertools.count()
    for event in events:
        heapq.heappush(held, (event.timestamp_ms, next(count), event))
        characters += len(event.message)
        while len(held) > most or (characters > _MOST_HELD_CHARACTERS and len(held) > 1):
            oldest = heapq.heappop(held)[2]
            characters -= len(oldest.message)
            yield oldest
    yield from (each for _, _, each in sorted(held))
