"""How far the spool is delivered: committed offsets, epoch and ledger, in one write.

```text
slot 0 at 0, slot 1 at 65536, written alternately; each

offset  size  field            little-endian
     0     4  magic            "CWCU"
     4     4  CRC              zlib.crc32 of bytes 8 .. 20 + length
     8     8  generation       grows by one each write
    16     4  length           of the state
    20     n  state            MessagePack, the struct `State`
```

The valid slot with the highest (epoch, generation) counts. If a leader is killed in the middle of a write, that slot is
torn and the other one counts. With both slots lost, a leader that lives writes its state anew. The next one would begin
to read at the oldest segment again: that costs duplicates, never a record. A slot that the disk cannot read is lost,
too, but only after 10 s (`disk.read`): until then nobody can tell what it says, and each question is an OSError. Then
the leader begins a new file.

A leader writes it (cwsink.flusher.commits); a worker only reads, and reserves its blocks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from struct import Struct
from typing import Annotated, Final
from zlib import crc32

import msgspec

from cwsink.spool import descriptors, disk, files
from cwsink.spool.record import MOST, Count, summed
from cwsink.spool.segment import SegmentKey

MAGIC: Final = b"CWCU"
# Room for some 4,000 segments with an offset of their own; in practice there are a handful.
SLOT_BYTES: Final = 65_536
_HEADER: Final = Struct("<4sIQI")
_MOST_BODY_BYTES: Final = SLOT_BYTES - _HEADER.size
_CHECKED_FROM: Final = 8
_FIRST_READ_BYTES: Final = 4096
# So many offsets are kept if a slot is too small for all. An offset takes at most 24 bytes.
_MOST_OFFSETS: Final = 1_000


class Offset(msgspec.Struct, array_like=True, frozen=True):
    """Segment (`number`, `salt`) is settled up to byte `offset`."""

    number: Count
    salt: Annotated[int, msgspec.Meta(ge=0)]
    offset: Count

    @property
    def key(self) -> SegmentKey:
        """The segment that this offset is in."""
        return SegmentKey(self.number, self.salt)


class Ledger(msgspec.Struct):
    """Totals since the spool was made, in records. `appended` counts what is settled so far.

    `appended == delivered + sum(dead_lettered)` holds in every commit. Here pending and evicted records are in neither
    count; `cwsink.spool.survey` adds them to both.
    """

    appended: Count = 0
    delivered: Count = 0
    dead_lettered: dict[str, Count] = {}
    refused: dict[str, Count] = {}
    evicted_reported: Count = 0
    refused_reported: dict[str, Count] = {}
    resent: Count = 0
    corrupt_bytes: Count = 0

    def count(self, delivered: int, dead: Mapping[str, int]) -> None:
        """Add records that are settled: those that were delivered, and the dead letters, by reason."""
        self.delivered += delivered
        self.appended += delivered + sum(dead.values())
        for reason, count in dead.items():
            self.dead_lettered[reason] = self.dead_lettered.get(reason, 0) + count

    def plus(self, chunk: Ledger) -> Ledger:
        """Return these totals with those of a chunk."""
        return msgspec.structs.replace(
            self,
            appended=self.appended + chunk.appended,
            delivered=self.delivered + chunk.delivered,
            dead_lettered=dict(Counter(self.dead_lettered) + Counter(chunk.dead_lettered)),
            refused=dict(self.refused),
            corrupt_bytes=self.corrupt_bytes + chunk.corrupt_bytes,
        )

    def without_reasons(self) -> Ledger:
        """Return these totals without the reasons."""
        return msgspec.structs.replace(
            self,
            dead_lettered=summed(self.dead_lettered),
            refused=summed(self.refused),
            refused_reported=summed(self.refused_reported),
        )


class State(msgspec.Struct):
    """What one slot holds.

    A leader of an older version drops the fields that it does not know with its next commit. So a field may be added
    only if nothing but a repeated request follows from its loss. The same holds for the file `evictions`.

    Attributes:
        epoch: of the leader that wrote this, see above; 0 before the first leader.
        holder: the host and pid of that leader, for people.
        offsets: how far each segment is settled. Of a segment that is not named, nothing is settled.
        chunk: where in each segment the chunk ends that is being sent in several requests; empty if none is.
        requests_done: how many of those requests are settled. A new leader goes on after them.
        ledger: totals of all that is settled, except of the chunk.
        partial: totals of what is settled of the chunk. They are added to `ledger` with its last request.
        fingerprint: of the requests the chunk was cut into (cwsink.flusher.chunk.fingerprint), plus `events_done`. A
            new leader goes on after `requests_done` only if its own cut has the same fingerprint; else it sends the
            chunk from its beginning (duplicates, never loss). `events_done` is in it because a leader of a version
            without that field would count those events twice: it must find another fingerprint than its own.
        events_done: how many of the first events of the next request are settled, one by one or in halves, because
            CloudWatch refused the request as a whole.
    """

    epoch: Count = 0
    holder: str = ""
    offsets: list[Offset] = []
    chunk: list[Offset] = []
    requests_done: Count = msgspec.field(default=0, name="parts_done")
    ledger: Ledger = msgspec.field(default_factory=Ledger)
    partial: Ledger = msgspec.field(default_factory=Ledger)
    fingerprint: Annotated[int, msgspec.Meta(ge=0)] = msgspec.field(default=0, name="shape")
    events_done: Count = 0

    def committed(self) -> dict[SegmentKey, int]:
        """Return the settled offset of each segment that has one."""
        return {each.key: each.offset for each in self.offsets}

    def reached(self) -> dict[SegmentKey, int]:
        """Return the same, but for each segment of the chunk that is being sent, where the chunk ends in it."""
        return {each.key: each.offset for each in [*self.offsets, *self.chunk]}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(State).decode


def read(path: str) -> State:
    """Return the state that counts; a new one if there is none. Any process may ask, and it takes no lock."""
    try:
        with files.opened(path, os.O_RDONLY) as file:
            return best(file.fd)[0]
    except FileNotFoundError:
        return State()


def packed(state: State, generation: int) -> bytes:
    """Return a slot with this state, or with as much of it as a slot has room for."""
    body = _encode(state)
    if len(body) > _MOST_BODY_BYTES:
        # There are more segments than a slot can name, and a longer slot would run into the other one. So forget
        # the offsets of the newest segments, and how far the chunk is sent: duplicates, never loss.
        kept = sorted(state.offsets, key=lambda each: each.number)[:_MOST_OFFSETS]
        state = msgspec.structs.replace(state, offsets=kept, chunk=[], requests_done=0, events_done=0, partial=Ledger())
        body = _encode(state)
        if len(body) > _MOST_BODY_BYTES:  # somebody has made up reasons: the totals stay right without them
            state.ledger = state.ledger.without_reasons()
            body = _encode(state)
    checked = _HEADER.pack(b"", 0, generation, len(body))[_CHECKED_FROM:] + body
    return MAGIC + crc32(checked).to_bytes(4, "little") + checked


def opened(path: str) -> descriptors.Opened:
    """Open the file for a `with` block, and reserve its space. Raises OSError."""
    file = files.opened(path, os.O_RDWR | os.O_CREAT)
    try:
        # If the disk fills up later, a commit must not fail after its request was sent: the next leader would send that
        # again. So reserve the blocks now. On a file system that copies on write (btrfs) a commit takes a new block all
        # the same. Then it may fail, and the leader repeats it until there is room.
        for slot in (0, 1):
            disk.reserve(file.fd, _FIRST_READ_BYTES, slot * SLOT_BYTES)
    except OSError:
        file.close()
        raise
    return file


def best(fd: int) -> tuple[State, int]:
    """Return the state that counts, and its generation; an empty state and 0 if both slots are damaged.

    Raises OSError, also if the disk cannot read one of them now.
    """
    found: list[tuple[int, int, State]] = []
    for index in (0, 1):
        slot = _read(fd, _FIRST_READ_BYTES, index)
        if len(slot) < _HEADER.size:
            continue
        magic, crc, generation, length = _HEADER.unpack_from(slot)
        end = _HEADER.size + length
        if len(slot) < end <= SLOT_BYTES:
            slot = _read(fd, end, index)
        if magic != MAGIC or generation > MOST or end > len(slot) or crc32(slot[_CHECKED_FROM:end]) != crc:
            continue
        try:
            state = _decode(slot[_HEADER.size : end])
        except ValueError:  # msgspec's errors are of that kind, and so is UnicodeDecodeError
            continue
        found.append((state.epoch, generation, state))
    if not found:
        return State(), 0
    latest = max(found, key=lambda each: each[:2])
    return latest[2], latest[1]


def _read(fd: int, size_bytes: int, slot: int) -> bytes:
    return disk.read(fd, size_bytes, slot * SLOT_BYTES, patience_seconds=disk.PATIENCE_SECONDS)
