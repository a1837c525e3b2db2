"""A record on disk: header, two salted checksums, payload (pure).

```text
offset  size  field            little-endian, fixed width
     0     4  magic            F5 43 57 46 ("\\xf5CWF"; F5 is never part of UTF-8 text)
     4     4  header CRC       zlib.crc32 of bytes 8..20, seeded with the segment's salt
     8     4  payload length   bytes, at most 16 MiB
    12     4  payload CRC      zlib.crc32 of the payload, seeded with the segment's salt
    16     1  type             1 event, 2 loss marker
    17     1  version          of the payload's layout, 1
    18     2  flags            bit 0: optional, a reader that does not know the type skips it
    20     n  payload          see cwsink.spool.record
```

A log line may quote the bytes of a spool, and the file system may hand a block of an old segment to a new one. Such
bytes must not be taken for a record. So both checksums are seeded with the salt of the segment, a random number in its
header.

The length in a header decides where a reader goes on. With one checksum over all, the reader would have to read a whole
payload before it knows that the length is wrong, and a hostile region of 256 KiB would take it seconds. So the header
has a checksum of its own.

`scan` takes bytes and returns values. Each byte becomes part of a frame, part of a range that is proven to be damaged,
or part of the tail that a live writer may still be writing.

Worked example (salt 0, an empty payload, type 1):

```text
f5 43 57 46  3d cb ab c2  00 00 00 00  00 00 00 00  01 01 00 00
```
"""

from __future__ import annotations

from enum import Enum
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from cwsink.spool import record
from cwsink.spool.record import MAX_PAYLOAD_BYTES, Event, Loss

MAGIC: Final = b"\xf5CWF"
VERSION: Final = 1
EVENT: Final = 1
LOSS: Final = 2
FLAG_OPTIONAL: Final = 1

_CHECKED: Final = Struct("<III")  # the fields that the header CRC covers; type, version and flags as one number
_HEADER: Final = Struct("<IIIII")
HEADER_BYTES: Final = _HEADER.size

pack_checked = _CHECKED.pack
pack_header = _HEADER.pack
MAGIC_NUMBER: Final = int.from_bytes(MAGIC, "little")
PLAIN_EVENT: Final = EVENT | VERSION << 8
_unpack = _HEADER.unpack_from


def encode(payload: bytes, salt: int, kind: int = EVENT, flags: int = 0) -> bytes:
    """Return the frame of `payload` for a segment with this salt: 20 bytes and the payload."""
    size, payload_crc, what = len(payload), crc32(payload, salt), kind | VERSION << 8 | flags << 16
    header_crc = crc32(pack_checked(size, payload_crc, what), salt)
    return pack_header(MAGIC_NUMBER, header_crc, size, payload_crc, what) + payload


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A valid frame.

    Attributes:
        end: the offset just after it (in the file, if `scan` was told the base).
        what: type, version and flags as one number, the last 4 bytes of its header.
        payload: the bytes of the record (cwsink.spool.record).
    """

    end: int
    what: int
    payload: bytes

    @property
    def kind(self) -> int:
        """The type: `EVENT`, `LOSS`, or one that only a later version knows."""
        return self.what & 0xFF

    @property
    def version(self) -> int:
        """The version of the payload's layout."""
        return self.what >> 8 & 0xFF

    @property
    def flags(self) -> int:
        """The flags; of these this version knows `FLAG_OPTIONAL`."""
        return self.what >> 16

    @property
    def size_bytes(self) -> int:
        """The bytes that the frame takes of the segment, with its header."""
        return HEADER_BYTES + len(self.payload)

    @property
    def is_event(self) -> bool:
        """Tell whether the frame counts as a record in the ledger, also if this version cannot read the record."""
        return self.what & 0xFF == EVENT

    @property
    def is_known(self) -> bool:
        """Tell whether this version knows the frame's type and version. Its payload may be no record all the same."""
        return self.version == VERSION and self.kind in (EVENT, LOSS)


def event_of(each: Frame) -> Event | None:
    """Return the event in a frame; None if the frame has none, or one that this version cannot read."""
    return record.event_of(each.payload) if each.is_event and each.version == VERSION else None


def loss_of(each: Frame) -> Loss | None:
    """Return the loss in a frame; None if the frame has none, or one that this version cannot read."""
    return record.loss_of(each.payload) if each.kind == LOSS and each.version == VERSION else None


class DamageKind(Enum):
    """How a range came about that does not parse."""

    TORN = "torn"  # a write was cut: it was never acknowledged, so no record is lost
    CORRUPT = "corrupt"  # bytes were changed after they were written: at least one record is lost


class Damage(NamedTuple):
    """A range [start, end) that is proven to hold no valid frame; offsets as in `Frame`."""

    start: int
    end: int
    kind: DamageKind


class Scan(NamedTuple):
    """The result of `scan`.

    Attributes:
        frames, damage: each in the order of the bytes.
        consumed: how many bytes are in `frames` or in `damage`. The next scan is to begin behind them.
        wanted: how many bytes the next scan needs to get on; 0 if only a writer can add what is missing, or nothing is.
    """

    frames: list[Frame]
    damage: list[Damage]
    consumed: int
    wanted: int


# So many times the data may be read again where frames are claimed in vain; then only frames of a usual size count.
_MOST_WASTED: Final = 4
_USUAL_BYTES: Final = 1024
# Somebody may have written megabytes of magics.
_TWO: Final = MAGIC * 2
_RUN: Final = MAGIC * 4096


def scan(data: bytes, salt: int, *, base: int = 0, at_end: bool, final: bool) -> Scan:
    """Take `data` apart.

    Args:
        data: bytes of one segment, beginning at a frame boundary.
        salt: of the segment.
        base: where in the file `data` begins; it is added to the offsets of frames and damage.
        at_end: `data` ends where the file now ends; if False, it ends where the block that was read ends.
        final: no writer can append to the segment any more, so a tail that does not parse is damage.

    Never raises, whatever the bytes are.
    """
    frames: list[Frame] = []
    damage: list[Damage] = []
    add = frames.append
    offset = 0
    length = len(data)
    # Damage makes few headers that are right in themselves with a payload that is not. Somebody may have written many,
    # each of which claims all that follows; to check each would take hours.
    trust = [_MOST_WASTED * length + MAX_PAYLOAD_BYTES]
    while length - offset >= HEADER_BYTES:
        magic, header_crc, size, payload_crc, what = _unpack(data, offset)
        body = offset + HEADER_BYTES
        end = body + size
        if magic == MAGIC_NUMBER and crc32(data[offset + 8 : body], salt) == header_crc and size <= MAX_PAYLOAD_BYTES:
            if end <= length:
                payload = data[body:end]
                if crc32(payload, salt) == payload_crc:
                    add(Frame(base + end, what, payload))
                    offset = end
                    continue
            elif not at_end:
                return Scan(frames, damage, offset, end - offset)
        found = _next_valid(data, offset + 1, salt, trust)
        if found < 0:
            break
        damage.append(_judge(data, offset, found, salt, base))
        offset = found
    if offset == length:
        return Scan(frames, damage, offset, 0)
    if final and at_end:
        damage.append(_judge(data, offset, length, salt, base))
        return Scan(frames, damage, length, 0)
    if not at_end and length - offset >= HEADER_BYTES:
        # No frame of this block is valid from here on. Ask for more bytes, so that the bad range is judged as a whole.
        return Scan(frames, damage, offset, 2 * (length - offset))
    return Scan(frames, damage, offset, 0 if at_end else HEADER_BYTES)


def _header_at(data: bytes, offset: int, salt: int) -> int:
    """Return where the frame at `offset` should end, by its header; -1 if the header is not valid."""
    if len(data) - offset < HEADER_BYTES:
        return -1
    magic, header_crc, size, *_ = _unpack(data, offset)
    if magic != MAGIC_NUMBER or size > MAX_PAYLOAD_BYTES:
        return -1
    if crc32(data[offset + 8 : offset + HEADER_BYTES], salt) != header_crc:
        return -1
    return offset + HEADER_BYTES + int(size)


def _next_valid(data: bytes, offset: int, salt: int, trust: list[int]) -> int:
    """Return where the next wholly valid frame begins at or after `offset`, or -1.

    `trust[0]`: so many bytes of payloads may still be checked in vain. Then only frames of a usual size are believed.
    """
    find = data.find
    while (offset := find(MAGIC, offset)) >= 0:
        if data.startswith(_TWO, offset):
            offset = _last_of_run(data, offset, len(data))
        end = _header_at(data, offset, salt)
        if 0 <= end <= len(data) and (trust[0] > 0 or end - offset <= _USUAL_BYTES):
            trust[0] -= end - offset
            payload_crc = _unpack(data, offset)[3]
            if crc32(data[offset + HEADER_BYTES : end], salt) == payload_crc:
                return offset
        offset += 1
    return -1


def _last_of_run(data: bytes, start: int, end: int) -> int:
    """Return where the last header of a run of magics begins; `start` if there is none.

    All headers of the run are the same, and none is valid: a magic, read as a length, is more than a frame may have.
    """
    at = start
    while data.startswith(_RUN, at, end):
        at += len(_RUN)
    while data.startswith(MAGIC, at, end):
        at += len(MAGIC)
    return max(start, at - HEADER_BYTES)


def _judge(data: bytes, start: int, end: int, salt: int, base: int) -> Damage:
    """Say of a bad range whether it is made of cut writes, or of bytes that were changed."""
    is_cut = _is_cut(data, start, end, salt) or _are_cut(data, start, end, salt)
    return Damage(base + start, base + end, DamageKind.TORN if is_cut else DamageKind.CORRUPT)


def _is_cut(data: bytes, start: int, end: int, salt: int) -> bool:
    """Tell whether [start, end) is one cut write.

    A cut write leaves the beginning of a correct frame: a part of its header, or all of the header and a part of the
    payload. Zeros count as cut, too: the leader has given these blocks back, or the write never reached the disk. All
    other bytes were a whole frame once.
    """
    if end - start < HEADER_BYTES and MAGIC.startswith(data[start : min(start + 4, end)]):
        return True
    return _header_at(data, start, salt) > end or data.count(b"\0", start, end) == end - start


def _are_cut(data: bytes, start: int, end: int, salt: int) -> bool:
    """Tell whether [start, end) is several cut writes, one after the other. Each of them begins with the magic."""
    while start < end:
        if data.startswith(_TWO, start, end):
            start = _last_of_run(data, start, end)
        following = data.find(MAGIC, start + 1, end)
        piece_end = following if following >= 0 else end
        # If the first frame's length ends exactly at `end`, nothing was cut: it is one whole, corrupt frame whose
        # payload contains the magic.
        if not _is_cut(data, start, piece_end, salt) or _header_at(data, start, salt) == end:
            return False
        start = piece_end
    return True
