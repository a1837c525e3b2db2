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
torn and the other one counts. With both slots lost, reading begins at the oldest segment again: that costs duplicates,
never a record.

A process may believe that it still leads after another one has taken the lease. Each leader begins an epoch of its
own, one higher than any before it, and `commit` reads the file again under a lock. If a later epoch is there, it raises
`Fenced`, and nothing is written.
"""

from __future__ import annotations

import errno
import fcntl
import os
from struct import Struct
from typing import Final
from zlib import crc32

import msgspec

from cwsink.spool import descriptors, disk
from cwsink.spool.segment import SegmentKey

MAGIC: Final = b"CWCU"
# Room for some 4,000 segments with an offset of their own; in practice there are a handful.
SLOT_BYTES: Final = 65_536
_HEADER: Final = Struct("<4sIQI")
_CHECKED_FROM: Final = 8
_FIRST_READ_BYTES: Final = 4096
# So many offsets are kept if a slot is too small for all. An offset takes at most 24 bytes.
_MOST_OFFSETS: Final = 1_000


class Fenced(Exception):  # noqa: N818  # it is an answer, "you are not the leader any more", not a fault
    """A leader with a later epoch has written the cursor: drop all that is in flight, and stand for election again."""


class Offset(msgspec.Struct, array_like=True, frozen=True):
    """Segment (`number`, `salt`) is settled up to byte `offset`."""

    number: int
    salt: int
    offset: int

    @property
    def key(self) -> SegmentKey:
        """The segment that this offset is in."""
        return SegmentKey(self.number, self.salt)


class Ledger(msgspec.Struct):
    """Totals since the spool was made, in records. `appended` counts what is settled so far.

    `appended == delivered + sum(dead_lettered)` holds in every commit. Here pending and evicted records are in neither
    count; `cwsink.spool.survey` adds them to both.
    """

    appended: int = 0
    delivered: int = 0
    dead_lettered: dict[str, int] = {}
    refused: dict[str, int] = {}
    evicted_reported: int = 0
    refused_reported: dict[str, int] = {}
    resent: int = 0
    corrupt_bytes: int = 0


class State(msgspec.Struct):
    """What one slot holds.

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

    epoch: int = 0
    holder: str = ""
    offsets: list[Offset] = []
    chunk: list[Offset] = []
    requests_done: int = msgspec.field(default=0, name="parts_done")
    ledger: Ledger = msgspec.field(default_factory=Ledger)
    partial: Ledger = msgspec.field(default_factory=Ledger)
    fingerprint: int = msgspec.field(default=0, name="shape")
    events_done: int = 0

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
        with descriptors.opened(path, os.O_RDONLY) as file:
            return _best(file.fd)[0]
    except FileNotFoundError:
        return State()


class Cursor:
    """The leader's hold on the cursor file, for one epoch."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises OSError."""
        self._fd = descriptors.acquire(path, os.O_RDWR | os.O_CREAT)
        self._incarnation = descriptors.incarnation()
        self._epoch = 0
        try:
            # If the disk fills up later, a commit must not fail after its request was sent: the next leader would send
            # that again. So reserve the blocks now.
            for slot in (0, 1):
                disk.reserve(self._fd, _FIRST_READ_BYTES, slot * SLOT_BYTES)
        except OSError:
            self.close()
            raise

    def take_over(self, holder: str) -> State:
        """Begin a new epoch, one more than any before it, and return the state to go on from. Raises OSError."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            state, generation = _best(self._fd)
            self._epoch = state.epoch = state.epoch + 1
            state.holder = holder
            self._write(state, generation + 1)
            return state
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def is_ours(self) -> bool:
        """Tell whether no later leader has begun an epoch."""
        return _best(self._fd)[0].epoch == self._epoch

    def commit(self, state: State) -> None:
        """Make `state` durable against a crash of this process. Raises Fenced, OSError."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            current, generation = _best(self._fd)
            if current.epoch != self._epoch or state.epoch != self._epoch:
                raise Fenced(f"epoch {self._epoch} was followed by epoch {current.epoch}")
            self._write(state, generation + 1)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def sync(self) -> None:
        """Make the last commit durable against a crash of the host. Raises OSError."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        descriptors.release(self._fd, self._incarnation)

    def _write(self, state: State, generation: int) -> None:
        body = _encode(state)
        if len(body) > SLOT_BYTES - _HEADER.size:
            # There are more segments than a slot can name, and a longer slot would run into the other one. So forget
            # the offsets of the newest segments, and how far the chunk is sent: duplicates, never loss.
            kept = sorted(state.offsets, key=lambda each: each.number)[:_MOST_OFFSETS]
            state = msgspec.structs.replace(
                state, offsets=kept, chunk=[], requests_done=0, events_done=0, partial=Ledger()
            )
            body = _encode(state)
        checked = _HEADER.pack(b"", 0, generation, len(body))[_CHECKED_FROM:] + body
        slot = MAGIC + crc32(checked).to_bytes(4, "little") + checked
        if os.pwrite(self._fd, slot, (generation % 2) * SLOT_BYTES) != len(slot):
            raise OSError(errno.ENOSPC, "the cursor could not be written whole")


def _best(fd: int) -> tuple[State, int]:
    """Return the state that counts, and its generation; an empty state and 0 if both slots are damaged."""
    found: list[tuple[int, int, State]] = []
    for index in (0, 1):
        slot = os.pread(fd, _FIRST_READ_BYTES, index * SLOT_BYTES)
        if len(slot) < _HEADER.size:
            continue
        magic, crc, generation, length = _HEADER.unpack_from(slot)
        end = _HEADER.size + length
        if len(slot) < end <= SLOT_BYTES:
            slot = os.pread(fd, end, index * SLOT_BYTES)
        if magic != MAGIC or end > len(slot) or crc32(slot[_CHECKED_FROM:end]) != crc:
            continue
        try:
            state = _decode(slot[_HEADER.size : end])
        except ValueError:  # msgspec's errors are of that kind, and so is UnicodeDecodeError
            continue
        found.append((state.epoch, generation, state))
    if not found:
        return State(), 0
    best = max(found, key=lambda each: each[:2])
    return best[2], best[1]
