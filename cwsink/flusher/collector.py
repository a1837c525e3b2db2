"""Gathers what was read into chunks: frames in, `Chunk`s out.

The collector decodes events, turns loss markers into notices, and sets aside what is damaged or too long. It remembers
up to where each segment is settled once the chunk is delivered. It holds at most one block of a segment and one chunk,
however much the spool holds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import msgspec

from cwsink import naming, words
from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.flusher import oversize
from cwsink.flusher.chunk import ChunkBuilder, message_bytes
from cwsink.spool import frame, record
from cwsink.spool.cursor import Offset
from cwsink.spool.frame import Damage, DamageKind, Frame
from cwsink.spool.open_segment import Block
from cwsink.spool.record import Event, Loss
from cwsink.spool.segment import SegmentKey

# Events that are set aside do not count for a request. Without a bound of their own, a whole backlog of such events
# would be one chunk in memory.
_MOST_SET_ASIDE_BYTES: Final = record.MAX_PAYLOAD_BYTES
_LAST_MS: Final = (1 << 63) - 1
# The notice that tells the stream of events that were set aside is shorter than this.
_NOTICE_BYTES: Final = 400


class DamagedRange(NamedTuple):
    """A damaged range of a segment, for the dead letters."""

    key: SegmentKey
    damage: Damage


@dataclass
class Chunk:
    """A range of the ring, and all that has to happen before it is committed.

    Attributes:
        events: what to send, with the notices.
        oversize: events that are too long, and become dead letters.
        damage: ranges that hold no record any more.
        refused: what loss markers in the range add to the ledger, by reason.
        ends: up to where each segment is settled once the chunk is.
        is_one_request: the events fit into one request by count and bytes.
    """

    events: list[Event] = field(default_factory=list)
    oversize: list[Event] = field(default_factory=list)
    damage: list[DamagedRange] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    ends: dict[SegmentKey, int] = field(default_factory=dict)
    is_one_request: bool = True

    def offsets(self) -> list[Offset]:
        """Return `ends` as the cursor keeps them."""
        return [Offset(key.number, key.salt, end) for key, end in sorted(self.ends.items())]


class Source(Protocol):
    """Where blocks come from: cwsink.spool.reader, or what is delivered already (cwsink.flusher.past)."""

    def read(self) -> Block | None:
        """Return the next block; None if all is read."""

    def read_to(self, key: SegmentKey, end: int) -> Block | None:
        """Return the next block of a segment before offset `end`; None if all of that is read, or gone."""

    def stop_reading(self, key: SegmentKey) -> None:
        """Read no further in a segment, because only a newer version understands it."""


class Collector:
    """Reads ahead until a chunk is full."""

    def __init__(self, reader: Source, config: SinkConfig) -> None:
        self._reader = reader
        self._max_event_bytes = config.max_event_bytes
        self._oversize = config.oversize
        self._builder = ChunkBuilder(config.max_batch_events)
        self._chunk = Chunk()
        self._set_aside_bytes = 0
        self._damage: deque[DamagedRange] = deque()  # in the block, and not in the chunk yet
        self._block: Block | None = None
        self._next = 0  # index of the first frame in the block that is not in the chunk yet

    @property
    def count(self) -> int:
        """How many events the chunk has so far."""
        return self._builder.count

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing was read since the last `take`, not even damage or a loss marker."""
        return not self._chunk.ends

    def fill(self) -> bool:
        """Read until the chunk is full (True) or nothing is left to read (False)."""
        while True:
            if self._block is None:
                self._block = self._reader.read()
                if self._block is None:
                    return False
                self._begin(self._block)
            if not self._gather(self._block):
                return True
            self._block = None

    def replay(self, ends: Iterable[Offset]) -> bool:
        """Gather exactly the range that ends at `ends`, which the leader before this one was sending.

        Returns:
            Whether all of the range is still there.
        """
        wanted = {end.key: end.offset for end in ends}
        for end in sorted(ends, key=lambda each: each.key):
            while (block := self._reader.read_to(end.key, end.offset)) is not None:
                self._begin(block)
                self._gather(block, everything=True)
        return wanted == self._chunk.ends

    def take(self) -> Chunk:
        """Return the chunk, and begin the next one."""
        chunk, self._chunk = self._chunk, Chunk()
        self._set_aside_bytes = 0
        chunk.is_one_request = self._builder.is_one_request
        chunk.events = self._builder.take()
        if chunk.oversize:
            times = [event.timestamp_ms for event in chunk.oversize]
            chunk.events.append(notice(Loss(len(times), min(times), max(times), "oversize", 0)))
        return chunk

    def _begin(self, block: Block) -> None:
        self._next = 0
        self._damage = deque(DamagedRange(block.key, damage) for damage in block.damage)

    def _gather(self, block: Block, *, everything: bool = False) -> bool:
        """Move frames of `block` into the chunk. Returns False if the next frame does not fit."""
        builder, chunk, key, unread = self._builder, self._chunk, block.key, block.frames
        while True:
            if not everything and (added := builder.add_while_it_fits(key, unread, self._next, self._max_event_bytes)):
                self._next += added
                self._reach(key, unread[self._next - 1].end)
            if self._next == len(unread):
                break
            each = unread[self._next]
            event = self._event_of(each, key)
            if event is None:
                if not (each.is_known or each.flags & frame.FLAG_OPTIONAL):
                    report("frame", f"a record of type {each.kind}, version {each.version} is left for a newer cwsink.")
                    self._reader.stop_reading(key)
                    return True
            else:
                size = message_bytes(event.message)
                if size > self._max_event_bytes and event.is_record:
                    if not self._add_oversize(key, event, size, everything):
                        return False
                elif everything or builder.fits(size):
                    builder.add(key, event, size)
                else:
                    return False
                if loss := frame.loss_of(each):
                    chunk.refused[loss.reason] += loss.count
            self._reach(key, each.end)
            self._next += 1
        self._reach(key, block.end)
        return True

    def _reach(self, key: SegmentKey, end: int) -> None:
        """Have the chunk end at `end` of the segment.

        Damage is counted when its chunk is committed, and a leader that takes over reads on behind the chunk. If the
        damaged range lay behind the end of its chunk, the next leader would read and count it again. So the range goes
        into the chunk that ends behind it.
        """
        self._chunk.ends[key] = end
        while self._damage and self._damage[0].damage.end <= end:
            self._chunk.damage.append(self._damage.popleft())

    def _add_oversize(self, key: SegmentKey, event: Event, size: int, everything: bool) -> bool:
        """Deal with an event that is too long, as `oversize` says. Returns False if it must wait for the next chunk."""
        limit = self._max_event_bytes
        # An embedded metric that is cut is no metric any more. So it is never cut.
        policy = "drop" if oversize.is_embedded_metric(event.message) else self._oversize
        if policy == "drop":
            if not everything and (
                self._set_aside_bytes >= _MOST_SET_ASIDE_BYTES
                or not (self._chunk.oversize or self._builder.fits(_NOTICE_BYTES))
            ):
                return False
            if not self._chunk.oversize:
                self._builder.reserve(_NOTICE_BYTES)
            self._set_aside_bytes += size
            self._chunk.oversize.append(event)
            return True
        if policy == "truncate":
            messages = [oversize.truncate(event.message, limit)]
        else:
            messages = oversize.split(event.message, limit, event.id)
        sizes = [message_bytes(message) for message in messages]
        # The pieces of one event may be too much for one request. So they begin a chunk of their own.
        if not (everything or self._builder.count == 0 or (len(messages) == 1 and self._builder.fits(sizes[0]))):
            return False
        for index, (message, part_bytes) in enumerate(zip(messages, sizes, strict=True)):
            sequence = event.sequence if index == 0 else record.FURTHER_PART
            self._builder.add(key, Event(event.timestamp_ms, event.producer, sequence, message), part_bytes)
        return True

    def _event_of(self, each: Frame, key: SegmentKey) -> Event | None:
        if loss := frame.loss_of(each):
            return notice(loss)
        event = frame.event_of(each)
        if event is None and each.is_known:
            start = each.end - each.size_bytes
            self._chunk.damage.append(DamagedRange(key, Damage(start, each.end, DamageKind.CORRUPT)))
        return event


def notice(loss: Loss) -> Event:
    """Return the notice that tells the stream of lost records: JSON as of a record, with `_cwsink` to be summed up.

    Its sequence says that it is not a record.
    """
    count = words.records(loss.count)
    content = {
        "timestamp": naming.rfc3339(loss.last_ms),
        "level": "ERROR",
        "message": f"cwsink: {count} dropped {_clock(loss.first_ms)} to {_clock(loss.last_ms)}, reason {loss.reason}",
        "logger": "cwsink",
        "_cwsink": {
            "lost": loss.count,
            "reason": loss.reason,
            "first": naming.rfc3339(loss.first_ms),
            "last": naming.rfc3339(loss.last_ms),
        },
    }
    # A loss marker may hold any time. CloudWatch refuses a request with a time below 0 or above 63 bits, so clamp it.
    text = msgspec.json.encode(content).decode()
    return Event(min(max(0, loss.last_ms), _LAST_MS), loss.producer, record.NOTICE, text)


def _clock(timestamp_ms: int) -> str:
    return naming.utc(timestamp_ms).strftime("%H:%M:%S")
