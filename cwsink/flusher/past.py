"""Makes again what was sent: from the lines of the journal, and the segments in the history (reads files).

The requests of a chunk depend on its records only, and on the settings that the line names. A leader that takes over in
the middle of a chunk relies on that, and so does this module, with the same code: `Collector.replay` gathers the
ranges, and `requests` cuts them.

A leader that takes over may send records again that an earlier one had sent, and both have written a line. `Past` names
the earlier lines that may be of the same records, so that a record is expected once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import lru_cache, partial
from itertools import groupby
from typing import Final, NamedTuple

from cwsink import naming
from cwsink.config import SinkConfig
from cwsink.flusher.chunk import Request, requests
from cwsink.flusher.collector import Collector
from cwsink.flusher.journal import Entry, Oversize, Range, entries
from cwsink.flusher.outcome import rejected_indexes
from cwsink.spool import history
from cwsink.spool.cursor import Offset
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.open_segment import Block
from cwsink.spool.record import Event
from cwsink.spool.segment import SegmentKey

# So many of the chunks that were made again last are kept in memory, for the other requests of the same chunk.
_MOST_CHUNKS: Final = 4


class Sent(NamedTuple):
    """An event that CloudWatch has taken.

    Attributes:
        entry: the index of its line.
        event: as it was sent.
        is_again: an earlier line has the same record.
    """

    entry: int
    event: Event
    is_again: bool


class _Ranges:
    """Reads the ranges of one chunk, each from the history or from the ring."""

    def __init__(self, directory: SpoolDirectory, ranges: Iterable[Range]) -> None:
        self._blocks = {each.key: _blocks(directory, each) for each in ranges}

    def read(self) -> Block | None:
        return None  # only `read_to` is asked for

    def read_to(self, key: SegmentKey, end: int) -> Block | None:
        return next(self._blocks[key], None)

    def stop_reading(self, key: SegmentKey) -> None:
        self._blocks[key].close()

    def close(self) -> None:
        for each in self._blocks.values():
            each.close()


def _blocks(directory: SpoolDirectory, wanted: Range) -> Generator[Block, None, None]:
    for opened in history.opened(directory, wanted.number):
        begin = max(opened.begin, wanted.begin)
        if opened.key != wanted.key or not opened.offset <= begin < wanted.end <= opened.size():
            continue  # another segment, or the other part of this one
        opened.offset = begin
        yield from iter(partial(opened.read, wanted.end), None)
        return


class Past:
    """What a spool's leaders have sent, as far as history knows.

    Attributes:
        entries: the lines, those of an earlier leader first.
    """

    def __init__(self, directory: SpoolDirectory) -> None:
        """Read the journal. Raises OSError."""
        self._directory = directory
        self._requests_of = lru_cache(_MOST_CHUNKS)(self._make)
        self.entries: list[Entry] = sorted(entries(directory), key=lambda entry: (entry.epoch, entry.at_ms))
        self._earlier = _earlier(self.entries)

    def sent(self, index: int) -> list[Sent] | None:
        """Return the events of line `index`; None if they are not in the history any more."""
        events = self._events_of(self.entries[index])
        if events is None:
            return None
        before: set[tuple[int, int, str]] = set()
        for each in self._earlier.get(index, ()):
            before.update(map(_id, self._events_of(self.entries[each]) or ()))
        return [Sent(index, event, bool(before) and _id(event) in before) for event in events]

    def is_first(self, index: int) -> bool:
        """Tell whether a line is the first one of its leader, which the leader before may have sent as well."""
        return index == 0 or self.entries[index - 1].epoch != self.entries[index].epoch

    def unnoted_bytes(self) -> int:
        """Return how many bytes of the history are in no line. Raises OSError."""
        noted: defaultdict[SegmentKey, set[tuple[int, int]]] = defaultdict(set)
        for entry in self.entries:
            for each in entry.ranges:
                noted[each.key].add((each.begin, each.end))
        unnoted = 0
        for kept in history.kept(self._directory):
            for opened in history.opened(self._directory, kept.number):
                at = opened.begin
                for begin, end in sorted(noted[opened.key]):
                    unnoted += max(0, begin - at)
                    at = max(at, end)
                unnoted += max(0, opened.size() - at)
        return unnoted

    def _events_of(self, entry: Entry) -> list[Event] | None:
        if not entry.request_id:
            return []  # CloudWatch has refused it
        made = self._requests_of(tuple(entry.ranges), entry.max_event_bytes, entry.oversize)
        if entry.request >= len(made) or made[entry.request].stream != entry.stream:
            return None
        events = made[entry.request].events[entry.begin : entry.end]
        if not events or len(events) != entry.events:
            return None
        if (events[0].timestamp_ms, events[-1].timestamp_ms) != (entry.first_ms, entry.last_ms):
            return None
        rejected = rejected_indexes(entry.rejected, len(events))
        return [event for index, event in enumerate(events) if index not in rejected] if rejected else events

    def _make(self, ranges: tuple[Range, ...], max_event_bytes: int, oversize: Oversize) -> list[Request]:
        """Make the requests of a chunk. They are other ones if something of it is gone."""
        with closing(_Ranges(self._directory, ranges)) as source:
            collector = Collector(source, SinkConfig(max_event_bytes=max_event_bytes, oversize=oversize))
            collector.replay([Offset(each.number, each.salt, each.end) for each in ranges])
            chunk = collector.take()
        stream = self._directory.format.log_stream_name
        return requests(
            chunk.events, partial(naming.stream_at, stream), fits=chunk.is_one_request, is_dated="{" in stream
        )


def _id(event: Event) -> tuple[int, int, str]:
    """Return what tells events apart: what stands for no record has no id, but its text."""
    return event.producer, event.sequence, "" if event.is_record else event.message


def _earlier(found: list[Entry]) -> dict[int, list[int]]:
    """Return for each line the earlier ones, of other leaders, that some of the same records may be in.

    The lines of a leader follow one another.
    """
    earlier: dict[int, list[int]] = {}
    # What the leaders before have noted of each segment: begin, end, and the line; and the greatest end.
    noted: defaultdict[SegmentKey, list[tuple[int, int, int]]] = defaultdict(list)
    ends: defaultdict[SegmentKey, int] = defaultdict(int)
    for _, group in groupby(enumerate(found), key=lambda each: each[1].epoch):
        lines = list(group)
        for index, entry in lines:
            others: set[int] = set()
            for each in entry.ranges:
                if each.begin < ends[each.key]:  # nearly always false: a leader goes on where the last one was
                    others.update(line for begin, end, line in noted[each.key] if begin < each.end and each.begin < end)
            if others:
                earlier[index] = sorted(others)
        for index, entry in lines:
            for each in entry.ranges:
                noted[each.key].append((each.begin, each.end, index))
                ends[each.key] = max(ends[each.key], each.end)
    return earlier
