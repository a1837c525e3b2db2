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

The valid slot with the highest (epoch, generation) counts. A torn write leaves the
other slot; with both lost, reading starts at the oldest segment again: duplicates,
never loss. Only the holder of the lease writes, and only with the epoch it won:
`commit` re-reads under a lock and raises `Fenced` if a later leader has written.
"""

from __future__ import annotations

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
# What is kept when a slot is too small; an offset takes at most 24 bytes.
_MOST_OFFSETS: Final = 1_000


class Fenced(Exception):  # noqa: N818  # it is an answer, "you are not the leader any more", not a fault
    """A leader with a later epoch has written the cursor: drop everything, stand for election again."""


class Offset(msgspec.Struct, array_like=True, frozen=True):
    """Segment (`number`, `salt`) is settled up to byte `offset`."""

    number: int
    salt: int
    offset: int

    @property
    def key(self) -> SegmentKey:
        """The segment this is about."""
        return SegmentKey(self.number, self.salt)


class Ledger(msgspec.Struct):
    """Totals of this spool's life, in records; `appended` counts those settled or evicted so far.

    `appended == delivered + sum(dead_lettered)` holds in every commit; what is still pending, and
    what writers evicted, is added by whoever looks (cwsink.spool.survey).
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
        epoch: the fencing number of the leader that wrote this; 0 before the first.
        holder: who that was, for people.
        offsets: how far each segment is settled; a segment that is not named: nothing of it.
        chunk: the ends of a range that is being sent in several requests, or in pieces of a refused one; else empty.
        requests_done: how many of those requests are settled. The requests of a range are the same for
            whoever computes them with the same settings, so a new leader goes on at this one.
        ledger: totals of all that is settled.
        partial: what is settled of `chunk`, and will be added to it.
        fingerprint: tells those requests from others that other settings would make of the range
            (cwsink.flusher.chunk.fingerprint), plus `events_done`: a leader that does not know that field finds another
            fingerprint than its own, and begins the range anew, rather than to count those events twice.
        events_done: how many events of the next request are settled, its first ones: CloudWatch refused it as a whole.
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
        """Return the same, and where the range ends that is delivered in part."""
        return {each.key: each.offset for each in [*self.offsets, *self.chunk]}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(State).decode


def read(path: str) -> State:
    """Return the state that counts; a new one if there is none. Works for anyone, at any time."""
    try:
        fd, incarnation = descriptors.acquire(path, os.O_RDONLY), descriptors.incarnation()
    except FileNotFoundError:
        return State()
    try:
        return _best(fd)[0]
    finally:
        descriptors.release(fd, incarnation)


class Cursor:
    """The leader's hold on the cursor file, for one epoch."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises OSError."""
        self._fd = descriptors.acquire(path, os.O_RDWR | os.O_CREAT)
        self._incarnation = descriptors.incarnation()
        self._epoch = 0
        try:
            # On a disk that fills up later, a commit that fails after its batch was sent sends it again.
            for slot in (0, 1):
                disk.reserve(self._fd, _FIRST_READ_BYTES, slot * SLOT_BYTES)
        except OSError:
            self.close()
            raise

    def take_over(self, holder: str) -> State:
        """Begin a new epoch: one more than any before. Returns the state to go on from."""
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
        """Make the last commit durable against a crash of the host."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the file."""
        descriptors.release(self._fd, self._incarnation)

    def _write(self, state: State, generation: int) -> None:
        body = _encode(state)
        if len(body) > SLOT_BYTES - _HEADER.size:
            # More segments than a slot can name: forget the newest ones, and how far a range is sent. Costs
            # duplicates, never loss; a slot that ran into the other one would cost both.
            kept = sorted(state.offsets, key=lambda each: each.number)[:_MOST_OFFSETS]
            state = msgspec.structs.replace(
                state, offsets=kept, chunk=[], requests_done=0, events_done=0, partial=Ledger()
            )
            body = _encode(state)
        checked = _HEADER.pack(b"", 0, generation, len(body))[_CHECKED_FROM:] + body
        slot = MAGIC + crc32(checked).to_bytes(4, "little") + checked
        if os.pwrite(self._fd, slot, (generation % 2) * SLOT_BYTES) != len(slot):
            raise OSError(28, "the cursor could not be written whole")


def _best(fd: int) -> tuple[State, int]:
    """Return the state that counts and the highest generation seen."""
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
