"""The payload of a frame: one record, encoded by msgspec (pure).

A record is a MessagePack array, so that it is small and a reader of another language needs no schema:

```text
EVENT  [timestamp_ms, producer, sequence, message]
LOSS   [count, first_ms, last_ms, reason, producer]
```

`producer` is a number of 64 random bits. Each writer draws a new one when its process starts, and again after a fork.
`sequence` counts the records of one producer from 0. A gap in it means that a record was lost, and (producer, sequence)
is the stable id of the event.

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

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

# The longest payload of a frame. An event that is too long for CloudWatch (1 MB) is to be kept whole for the dead
# letters, so this is far above that; and a damaged length must not make a reader ask for GiBs of memory.
MAX_PAYLOAD_BYTES: Final = 16 * 1024 * 1024

# Some events are sent that stand for no record, so no ledger counts them. Their sequence says so: NOTICE tells the
# stream about a loss, and FURTHER_PART is the second, third ... part of a record that was split.
NOTICE: Final = -1
FURTHER_PART: Final = -2

# What `text_of` takes.
TEXTS: Final = (str, bytes, bytearray, memoryview)

# No spool lives to count so far. But damage or a stranger may write any number, with a right checksum. What has such a
# number is not believed: to go on from it would overflow, and no leader could lead that spool any more.
MOST: Final = 1 << 60
MOST_SECONDS: Final = 1e11
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MOST_SECONDS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
# CloudWatch takes no time before 1970, and JSON no number beyond 2^53.
TimeMs = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
# CloudWatch takes no event without a character.
Text = Annotated[str, msgspec.Meta(min_length=1)]
# What one loss marker may count: so few that no number of them makes the totals overflow. The reason is kept in the
# totals for as long as the spool lives, and a cursor has room for short ones.
_Few = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
_Reason = Annotated[str, msgspec.Meta(max_length=64)]
# The reason of all that is counted, where there are more reasons than a file has room for: no cwsink writes so many.
_ANY_REASON: Final = "other"


class Event(msgspec.Struct, array_like=True, gc=False):
    """A log event. `timestamp_ms` is the event's own time, in ms since 1970 UTC, not the time of the append."""

    timestamp_ms: TimeMs
    producer: int
    sequence: int
    message: Text

    @property
    def is_record(self) -> bool:
        """Tell whether the ledger counts this event as a record."""
        return self.sequence >= 0

    @property
    def is_notice(self) -> bool:
        """Tell whether this tells the stream of a loss. It stands for no record, and never becomes a dead letter."""
        return self.sequence == NOTICE

    @property
    def is_part(self) -> bool:
        """Tell whether this is the second, third ... part of a record that was split."""
        return self.sequence == FURTHER_PART

    @property
    def id(self) -> str:
        """The event's stable id. It is the same in every request, so a person can recognise a duplicate."""
        return f"{self.producer:016x}-{self.sequence}"


class Loss(msgspec.Struct, array_like=True, gc=False):
    """`count` records were refused between `first_ms` and `last_ms`, for `reason`."""

    count: _Few
    first_ms: int
    last_ms: int
    reason: _Reason
    producer: int


encode = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(Event).decode
decode_loss = msgspec.msgpack.Decoder(Loss).decode


def event_of(payload: bytes) -> Event | None:
    """Decode the payload of an event; None if this version cannot read it."""
    try:
        return decode_event(payload)
    except ValueError:  # msgspec's errors are of that kind, and so is UnicodeDecodeError
        return None


def loss_of(payload: bytes) -> Loss | None:
    """Decode the payload of a loss; None if this version cannot read it."""
    try:
        return decode_loss(payload)
    except ValueError:
        return None


def summed(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts by reason as a single one: for a file that has no room for all reasons."""
    return {_ANY_REASON: sum(counts.values())} if counts else {}


def timestamp_of(payload: bytes) -> int:
    """Return the time of an event in ms, from its payload; 0 if this version cannot read it."""
    event = event_of(payload)
    return event.timestamp_ms if event else 0


def text_of(message: object) -> str | None:
    """Return `message` as a text that UTF-8 can encode, or None if it is no text."""
    if isinstance(message, (bytes, bytearray, memoryview)):
        return bytes(message).decode("utf-8", "backslashreplace")
    if isinstance(message, str):
        return message.encode("utf-8", "backslashreplace").decode()
    return None
