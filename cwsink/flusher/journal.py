"""Notes what became of delivered records: a line for each piece of a request that is settled (cwsink.spool.history).

```json
{"at_ms": 1767312000123, "epoch": 3, "stream": "web-1", "request_id": "b9c5...", "records": 998, "dead": {"too_old": 2},
 "ranges": [[7, 2893749287, 576, 8388652]], "request": 0, "begin": 0, "end": 1000, "first_ms": ..., "last_ms": ...}
```

The line holds no record. The records are in the segments, and `ranges` says where. From these the same code makes the
same requests again (cwsink.flusher.past), and so finds each event as it was sent: cut, in parts, or a notice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

import msgspec

from cwsink.config import SinkConfig
from cwsink.flusher.chunk import Request
from cwsink.flusher.collector import Chunk
from cwsink.flusher.delivery import Settled
from cwsink.spool import history
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.history import History
from cwsink.spool.record import Count, TimeMs
from cwsink.spool.segment import SegmentKey

Oversize = Literal["drop", "truncate", "split"]


class Range(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A range of a segment. `begin` is 0 for its first frame."""

    number: Count
    salt: Count
    begin: Count
    end: Count

    @property
    def key(self) -> SegmentKey:
        """The segment."""
        return SegmentKey(self.number, self.salt)


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of some events of one request.

    Attributes:
        at_ms: when the answer came.
        epoch: of the leader.
        stream: the log stream.
        request_id: AWS's id of the call; "" if CloudWatch has not taken the events.
        records: how many records were delivered.
        dead: how many became dead letters, by reason.
        rejected: which events of it CloudWatch has rejected, as it has answered.
        resent: how many of its records were sent before, in calls that were not answered.
        parts: how many events are second, third ... parts of a record.
        ranges: the chunk that the request is of.
        request: the number of the request among those of its chunk.
        begin, end: which events of the request these are.
        first_ms, last_ms: their times, in ms since 1970.
        max_event_bytes, oversize: settings that the events depend on.
    """

    at_ms: TimeMs
    epoch: Count
    stream: str
    request_id: str = ""
    records: Count = 0
    dead: dict[str, Count] = {}
    rejected: dict[str, int] = {}
    resent: Count = 0
    parts: Count = 0
    ranges: list[Range]
    request: Count
    begin: Count
    end: Count
    first_ms: TimeMs
    last_ms: TimeMs
    max_event_bytes: int
    oversize: Oversize = "drop"

    @property
    def events(self) -> int:
        """How many events these are, dead letters included."""
        return self.end - self.begin


Note = Callable[[int, Request, int, Settled], None]

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Entry).decode


class Journal:
    """Writes the journal of one leader. Without a history it does nothing."""

    def __init__(self, kept: History | None, config: SinkConfig, epoch: int) -> None:
        self._history = kept
        self._config = config
        self._epoch = epoch

    @contextlib.contextmanager
    def of(self, chunk: Chunk, committed: Mapping[SegmentKey, int]) -> Iterator[Note]:
        """Begin with a chunk. Yields what is to be called for each piece, once it is answered and before its commit.

        Opening a file may fail, and takes a while. So it is done here, and not between answer and commit.
        """
        if self._history is None or not chunk.events:
            yield lambda *_: None
            return
        ranges = [Range(*key, committed.get(key, 0), end) for key, end in sorted(chunk.ends.items())]
        kept = self._history
        with kept.journal(ranges[-1].number) as file:

            def note(number: int, request: Request, begin: int, piece: Settled) -> None:
                if file is not None:
                    kept.note(file, self._line(ranges, number, request, begin, piece))

            yield note

    def _line(self, ranges: list[Range], number: int, request: Request, begin: int, piece: Settled) -> bytes:
        events = request.events[begin : (end := begin + piece.events)]
        rejected = {name: index for name, index in (piece.answer.rejected or {}).items() if isinstance(index, int)}
        entry = Entry(
            at_ms=int(time.time() * 1000),
            epoch=self._epoch,
            stream=request.stream,
            request_id="" if piece.is_refused else piece.answer.request_id,
            records=piece.tally.delivered,
            dead=dict(piece.tally.dead),
            rejected=rejected,
            resent=piece.resent,
            parts=sum(event.is_part for event in events) if self._config.oversize == "split" else 0,
            ranges=ranges,
            request=number,
            begin=begin,
            end=end,
            first_ms=events[0].timestamp_ms,
            last_ms=events[-1].timestamp_ms,
            max_event_bytes=self._config.max_event_bytes,
            oversize=self._config.oversize,
        )
        return _encode(entry) + b"\n"


def entries(directory: SpoolDirectory) -> Iterator[Entry]:
    """Yield all entries, oldest segment first. What is no entry is passed by. Raises OSError."""
    for line in history.lines(directory):
        with contextlib.suppress(ValueError, RecursionError):
            yield _decode(line)
