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

A process may believe that it still leads after another one has taken the lease. Each leader begins an epoch of its
own, one higher than any before it, and `commit` reads the file again under a lock. If a later epoch is there, it raises
`Fenced`, and nothing is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Annotated, Final
from zlib import crc32

import msgspec

from cwsink.clock import monotonic
from cwsink.interruption import suppress
from cwsink.spool import descriptors, disk, files, held_lock
from cwsink.spool.record import MOST, Count
from cwsink.spool.segment import SegmentKey

MAGIC: Final = b"CWCU"
# Room for some 4,000 segments with an offset of their own; in practice there are a handful.
SLOT_BYTES: Final = 65_536
_HEADER: Final = Struct("<4sIQI")
_CHECKED_FROM: Final = 8
_FIRST_READ_BYTES: Final = 4096
_LOCK_POLL_SECONDS: Final = 0.01
# So many offsets are kept if a slot is too small for all. An offset takes at most 24 bytes.
_MOST_OFFSETS: Final = 1_000


class Fenced(Exception):  # noqa: N818  # it is an answer, "you are not the leader any more", not a fault
    """A leader with a later epoch has written the cursor: drop all that is in flight, and stand for election again."""


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
            return _best(file.fd)[0]
    except FileNotFoundError:
        return State()


class Cursor:
    """The leader's hold on the cursor file, for one epoch."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises OSError."""
        self._path = path
        self._fd = opened(path).keep()
        self._incarnation = descriptors.incarnation()
        self._epoch = 0
        self._is_stuck = False  # another process had the lock for too long when we wanted it last

    def take_over(self, holder: str) -> State:
        """Begin a new epoch, one more than any before it, and return the state to go on from. Raises OSError."""
        with self._lock() as is_ours:
            state, generation = _best(self._fd)
            self._epoch = state.epoch = state.epoch + 1
            state.holder = holder
            if is_ours and not disk.is_failing(self._fd):
                self._write(state, generation + 1)
            else:
                # The process that has the lock may be just before its write, into the slot that we write. So the new
                # epoch goes into both slots, and that process is fenced whenever it goes on.
                self._write_both(state, generation)
            return state

    def is_ours(self) -> bool:
        """Tell whether no later leader has begun an epoch."""
        return _best(self._fd)[0].epoch == self._epoch

    def restore(self, state: State) -> bool:
        """Write `state` anew if the file was removed, replaced or overwritten, or fails. Returns whether that was done.

        The leader would go on with the file that it has open, and nobody else would see what it settles. Writers would
        wait for it at their end, and the next leader would send again all that the ring still has.

        Args:
            state: the last one that was committed.

        Raises:
            OSError: the file cannot be written.
        """
        with suppress(FileNotFoundError):
            is_in_place = os.path.samestat(files.seen(self._path), os.fstat(self._fd))
            if is_in_place and _best(self._fd)[0].epoch >= self._epoch and not disk.is_failing(self._fd):
                return False  # a lower one: the slots of this epoch are lost
        fd = opened(self._path).keep()
        descriptors.release(self._fd, self._incarnation)
        self._fd = fd
        with self._lock():
            found, generation = _best(fd)
            if found.epoch <= self._epoch:  # else a later leader has begun here, and `is_ours` says so
                self._write_both(state, generation)
        return True

    def commit(self, state: State) -> None:
        """Make `state` durable against a crash of this process. Raises Fenced, OSError."""
        with self._lock():
            current, generation = _best(self._fd)
            if current.epoch != self._epoch or state.epoch != self._epoch:
                raise Fenced(f"epoch {self._epoch} was followed by epoch {current.epoch}")
            self._write(state, generation + 1)

    def sync(self) -> None:
        """Make the last commit durable against a crash of the host. Raises OSError."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        descriptors.release(self._fd, self._incarnation)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Lock the file for the block. Yields False if that does not work in time, and the block goes on all the same.

        Somebody may remove leader.lock while a leader is stopped (SIGSTOP, a debugger) in the middle of a commit. Its
        successor must not wait for it for ever. The epoch fences the stopped process when it goes on. It may still
        write once, into one slot. So the successor's last commit may be lost: its request is repeated if it dies then.
        """
        until = monotonic() + (0.0 if self._is_stuck else held_lock.PATIENCE_SECONDS)
        while not (is_ours := descriptors.try_lock(self._fd, exclusive=True)) and monotonic() < until:
            time.sleep(_LOCK_POLL_SECONDS)
        if not is_ours and not self._is_stuck:
            held_lock.say(
                self._path,
                "Only a leader needs the lock, for a moment. This one goes on without it. If it is killed now, the "
                "next one may send a request again.",
            )
        self._is_stuck = not is_ours
        try:
            yield is_ours
        finally:
            if is_ours:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _write_both(self, state: State, generation: int) -> None:
        """Write both slots. The caller has the lock. Raises OSError.

        To write a part of a page that the disk cannot read may fail for ever, and each new process would wait until it
        gives that page up. So such a file is replaced, or on a full disk written over in whole pages.
        """
        if disk.is_failing(self._fd) and files.is_named(self._path, os.fstat(self._fd)):
            even = generation // 2 * 2 + 2
            slots = b"".join(_packed(state, even + slot).ljust(SLOT_BYTES, b"\0") for slot in (0, 1))
            try:
                files.replace(self._path, slots)
            except OSError as error:
                if error.errno not in disk.NO_ROOM or os.pwrite(self._fd, slots, 0) != len(slots):
                    raise
                return
            fd = opened(self._path).keep()
            descriptors.release(self._fd, self._incarnation)
            self._fd = fd
            return
        for slot in (1, 2):
            self._write(state, generation + slot)

    def _write(self, state: State, generation: int) -> None:
        slot = _packed(state, generation)
        if os.pwrite(self._fd, slot, (generation % 2) * SLOT_BYTES) != len(slot):
            raise OSError(errno.ENOSPC, "the cursor could not be written whole")


def _packed(state: State, generation: int) -> bytes:
    """Return a slot with this state."""
    body = _encode(state)
    if len(body) > SLOT_BYTES - _HEADER.size:
        # There are more segments than a slot can name, and a longer slot would run into the other one. So forget
        # the offsets of the newest segments, and how far the chunk is sent: duplicates, never loss.
        kept = sorted(state.offsets, key=lambda each: each.number)[:_MOST_OFFSETS]
        state = msgspec.structs.replace(state, offsets=kept, chunk=[], requests_done=0, events_done=0, partial=Ledger())
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


def _best(fd: int) -> tuple[State, int]:
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
    best = max(found, key=lambda each: each[:2])
    return best[2], best[1]


def _read(fd: int, size_bytes: int, slot: int) -> bytes:
    return disk.read(fd, size_bytes, slot * SLOT_BYTES, patience_seconds=disk.PATIENCE_SECONDS)
