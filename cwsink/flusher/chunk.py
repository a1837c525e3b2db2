"""Makes legal PutLogEvents requests of records (pure: feed, then ask).

A *chunk* is a contiguous range of what was read, small enough for one request by count and bytes. Its events may be
for several streams, or span 24 hours or more, and CloudWatch takes neither in one request. So a chunk is cut into
*requests*: each holds one stream, spans less than 24 hours, and is in order of time. Most chunks are one request.

The requests of a chunk depend only on its records, and on the settings if a record is oversize. So a leader that takes
over in the middle of a chunk makes the same requests, which `fingerprint` proves, and goes on after the last event that
is settled. The limits are those of cwsink.limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

import msgspec

from cwsink.limits import EVENT_OVERHEAD_BYTES, MAX_BATCH_BYTES, MAX_BATCH_EVENTS, MAX_BATCH_SPAN_MS
from cwsink.spool.frame import PLAIN_EVENT, Frame
from cwsink.spool.record import Event, decode_event

if TYPE_CHECKING:  # that module opens files, and this one must not
    from cwsink.spool.segment import SegmentKey

_by_time: Final = attrgetter("timestamp_ms")


def message_bytes(message: str) -> int:
    """Return the length of `message` in UTF-8 bytes, as CloudWatch counts it."""
    return len(message) if message.isascii() else len(message.encode())


class Request(NamedTuple):
    """The events of one request: of one stream, in order of time, spanning less than 24 hours."""

    stream: str
    events: list[Event]


class ChunkBuilder:
    """Collects events until the next one would not fit into one request."""

    def __init__(self, max_events: int = MAX_BATCH_EVENTS) -> None:
        self._max_events = max_events
        self._events: dict[SegmentKey, list[Event]] = {}
        self.count = 0
        self.bytes = 0

    def fits(self, size_bytes: int) -> bool:
        """Tell whether an event with a message of this many bytes still fits."""
        return self.count < self._max_events and self.bytes + size_bytes + EVENT_OVERHEAD_BYTES <= MAX_BATCH_BYTES

    def add(self, key: SegmentKey, event: Event, size_bytes: int) -> None:
        """Add the next event of segment `key`."""
        self._events.setdefault(key, []).append(event)
        self.reserve(size_bytes)

    def reserve(self, size_bytes: int) -> None:
        """Keep room for an event that is added to the chunk later. Its message has at most `size_bytes` bytes."""
        self.count += 1
        self.bytes += size_bytes + EVENT_OVERHEAD_BYTES

    def add_while_it_fits(self, key: SegmentKey, frames: Sequence[Frame], start: int, max_event_bytes: int) -> int:
        """Add events of `frames` from index `start` on, until one does not fit or needs care.

        A frame needs care, which this method does not give, if it is not a plain event, if it cannot be decoded, or if
        its message is too long.

        This is the leader's hot loop. Therefore `fits`, `add` and `message_bytes` are spelled out.

        Args:
            key: the segment of the frames.
            frames: in the order in which they were appended.
            start: index of the first frame to add.
            max_event_bytes: a longer message needs care.

        Returns:
            How many events were added.
        """
        events = self._events.setdefault(key, [])
        before = len(events)
        add, decode = events.append, decode_event
        free_events, free_bytes = self._max_events - self.count, MAX_BATCH_BYTES - self.bytes
        try:
            for each in islice(frames, start, start + free_events):
                if each.what != PLAIN_EVENT:
                    break
                event = decode(each.payload)
                message = event.message
                size = len(message) if message.isascii() else len(message.encode())
                left = free_bytes - size - EVENT_OVERHEAD_BYTES
                if left < 0 or size > max_event_bytes:
                    break
                add(event)
                free_bytes = left
        except ValueError:
            pass
        self.count += (added := len(events) - before)
        self.bytes = MAX_BATCH_BYTES - free_bytes
        return added

    @property
    def is_one_request(self) -> bool:
        """Tell whether all that was added fits into one request by count and bytes."""
        return self.count <= MAX_BATCH_EVENTS and self.bytes <= MAX_BATCH_BYTES

    def take(self) -> list[Event]:
        """Return the events by segment, and then in the order in which they were appended. Begin anew."""
        events = [event for key in sorted(self._events) for event in self._events[key]]
        self._events = {}
        self.count = self.bytes = 0
        return events


def requests(
    events: Iterable[Event], stream_of: Callable[[int], str], *, fits: bool = True, is_dated: bool = True
) -> list[Request]:
    """Divide a chunk into requests, oldest first.

    Args:
        events: in arrival order.
        stream_of: gives the stream for an event's time in ms. It is the same for all of a second.
        fits: whether all events fit into one request by count and bytes. They do, unless one was split.
        is_dated: whether the stream depends on the time. If it does not, it need not be asked for each second.

    Returns:
        Requests that together hold each event once. Within one stream, events are in order of time, then of arrival.
    """
    ordered = sorted(events, key=_by_time)
    if not ordered:
        return []
    first, last = ordered[0].timestamp_ms, ordered[-1].timestamp_ms
    if not is_dated and fits and last - first < MAX_BATCH_SPAN_MS:
        return [Request(stream_of(first), ordered)]
    streams = {second: stream_of(second * 1000) for second in {each.timestamp_ms // 1000 for each in ordered}}
    stream = streams[first // 1000]
    # The first and the last stream prove nothing: with {date:%H} the same name comes back a day later. Look at all.
    if fits and last - first < MAX_BATCH_SPAN_MS and all(other == stream for other in streams.values()):
        return [Request(stream, ordered)]
    found = [Request(stream, [])]
    room = ChunkBuilder()
    for event in ordered:
        stream, begun, size = streams[event.timestamp_ms // 1000], found[-1], message_bytes(event.message)
        if begun.events and (
            stream != begun.stream
            or event.timestamp_ms - begun.events[0].timestamp_ms >= MAX_BATCH_SPAN_MS
            or not room.fits(size)
        ):
            found.append(begun := Request(stream, []))
            room = ChunkBuilder()
        begun.events.append(event)
        room.reserve(size)
    return found


def fingerprint(found: Iterable[Request]) -> int:
    """Return a number that is equal for equal requests. It is made of streams, counts and sizes, not of the content."""
    sizes = [(each.stream, [message_bytes(event.message) for event in each.events]) for each in found]
    return crc32(repr(sizes).encode())


class _LogEvent(msgspec.Struct, gc=False):
    timestamp: int
    message: str


class _Body(msgspec.Struct, rename="camel", omit_defaults=True):
    log_group_name: str
    log_stream_name: str
    log_events: list[_LogEvent]
    sequence_token: str | None = None
    entity: Mapping[str, Mapping[str, str]] | None = None


_encode: Final = msgspec.json.Encoder().encode


def body(
    group: str,
    stream: str,
    events: Iterable[Event],
    sequence_token: str | None = None,
    entity: Mapping[str, Mapping[str, str]] | None = None,
) -> bytes:
    """Return the JSON body of a PutLogEvents request."""
    log_events = [_LogEvent(event.timestamp_ms, event.message) for event in events]
    return _encode(_Body(group, stream, log_events, sequence_token, entity))
