"""What is spooled: one msgspec-encoded record a frame (pure).

A record is a MessagePack array, so that it is small and a reader of another
language needs no schema:

```text
EVENT  [timestamp_ms, producer, sequence, message]
LOSS   [count, first_ms, last_ms, reason, producer]
```

`producer` is 64 random bits, drawn anew by each writer incarnation (process start,
fork), never reused. `sequence` counts that producer's records from 0: a gap in
it is a loss, and (producer, sequence) is the event's stable id.

Worked example: the record of "hi" at 1,700,000,000,000 ms by producer 7, its third:

```text
94                            array of 4
cf 00 00 01 8b cf e5 68 00    timestamp_ms
07                            producer
02                            sequence
a2 68 69                      "hi"
```
"""

from __future__ import annotations

from typing import Final

import msgspec

# The longest payload a frame may carry. Far above CloudWatch's 1 MB event, so that an oversize
# event is kept whole for the dead letters; low enough that a damaged length cannot ask for GiBs.
MAX_PAYLOAD_BYTES: Final = 16 * 1024 * 1024

# Sequences of events that are sent and are not records, so not counted as such: what tells the
# stream about a loss, and the second and further parts of a record that was split.
NOTICE: Final = -1
FURTHER_PART: Final = -2


class Event(msgspec.Struct, array_like=True, gc=False):
    """A log event as spooled. `timestamp_ms` is the event's own time, ms since 1970 UTC."""

    timestamp_ms: int
    producer: int
    sequence: int
    message: str

    @property
    def is_record(self) -> bool:
        """Tell whether this stands for a record in the ledger."""
        return self.sequence >= 0

    @property
    def is_notice(self) -> bool:
        """Tell whether this tells the stream of a loss. It stands for no record, and never becomes a dead letter."""
        return self.sequence == NOTICE

    @property
    def id(self) -> str:
        """The event's stable id: the same in every send, so a duplicate is evident."""
        return f"{self.producer:016x}-{self.sequence}"


class Loss(msgspec.Struct, array_like=True, gc=False):
    """`count` records were refused between `first_ms` and `last_ms`, for `reason`."""

    count: int
    first_ms: int
    last_ms: int
    reason: str
    producer: int


_encoder: Final = msgspec.msgpack.Encoder()
_event_decoder: Final = msgspec.msgpack.Decoder(Event)
_loss_decoder: Final = msgspec.msgpack.Decoder(Loss)

encode = _encoder.encode
decode_event = _event_decoder.decode
decode_loss = _loss_decoder.decode


def event_of(payload: bytes) -> Event | None:
    """Return an event payload's content; None if this version cannot read it."""
    try:
        return decode_event(payload)
    except ValueError:  # msgspec's errors are of that kind, and so is UnicodeDecodeError
        return None


def loss_of(payload: bytes) -> Loss | None:
    """Return a loss payload's content; None if this version cannot read it."""
    try:
        return decode_loss(payload)
    except ValueError:
        return None


def timestamp_of(payload: bytes) -> int:
    """Return an event payload's time in ms; 0 if this version cannot read it."""
    event = event_of(payload)
    return event.timestamp_ms if event else 0
