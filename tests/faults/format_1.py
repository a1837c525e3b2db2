"""Format 1 of a spool's ring, written from its specification alone: what a cwsink of that format does, for ever.

Imports nothing of cwsink, and is never changed: later versions must read what this writes, and for as long as they
write format 1, this must read what they write. As a program: `format_1.py RING SPOOL_ID SEGMENT_BYTES` appends each
line of stdin, and answers with one line each.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

import msgspec

SEGMENT_HEADER = struct.Struct("<8sHHIII16sQQ")
COPIES_AT, HEADER_BYTES = (0, 512), 576
FRAME_HEADER = struct.Struct("<4sIIIBBH")
SEGMENT_MAGIC, FRAME_MAGIC = b"CWSINKSG", b"\xf5CWF"
EVENT, VERSION = 1, 1


class Segment(NamedTuple):
    """A segment as its header tells."""

    fd: int
    number: int
    salt: int


def path_of(ring: str, number: int) -> str:
    return f"{ring}/{number:010d}.seg"


def numbers(ring: str) -> list[int]:
    return sorted(int(name[:-4]) for name in os.listdir(ring) if name.endswith(".seg"))


def salt_of(header: bytes) -> int | None:
    """Return the salt; None for a segment that format 1 does not understand."""
    if len(header) < HEADER_BYTES:
        return None
    for start in COPIES_AT:
        end = start + SEGMENT_HEADER.size
        magic, major, length, _, incompatible, salt, _, _, _ = SEGMENT_HEADER.unpack_from(header, start)
        if magic == SEGMENT_MAGIC and struct.unpack_from("<I", header, end)[0] == crc32(header[start:end]):
            return int(salt) if major == 1 and not incompatible and length == HEADER_BYTES else None
    return None


def frame(payload: bytes, salt: int) -> bytes:
    """Return a record as it stands in a segment."""
    checked = struct.pack("<IIBBH", len(payload), crc32(payload, salt), EVENT, VERSION, 0)
    return FRAME_MAGIC + struct.pack("<I", crc32(checked, salt)) + checked + payload


def read(ring: str) -> Iterator[tuple[int, int, int, str]]:
    """Return (time in ms, producer, sequence, message) of each whole event, the ring's oldest first."""
    for number in numbers(ring):
        with open(path_of(ring, number), "rb") as file:
            data = file.read()
        salt, at = salt_of(data), HEADER_BYTES
        while salt is not None and (at := data.find(FRAME_MAGIC, at)) >= 0 and at + FRAME_HEADER.size <= len(data):
            _, header_crc, length, payload_crc, kind, version, _ = FRAME_HEADER.unpack_from(data, at)
            payload = data[at + FRAME_HEADER.size : at + FRAME_HEADER.size + length]
            if crc32(data[at + 8 : at + 20], salt) != header_crc or crc32(payload, salt) != payload_crc:
                at += 1
                continue
            at += FRAME_HEADER.size + length
            if (kind, version) == (EVENT, VERSION):
                timestamp_ms, producer, sequence, message = msgspec.msgpack.decode(payload)
                yield timestamp_ms, producer, sequence, message


def attach(ring: str) -> Segment | None:
    """Open the newest segment for appending, with the shared lock that keeps it."""
    while found := numbers(ring):
        try:
            fd = os.open(path_of(ring, found[-1]), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        salt = salt_of(os.pread(fd, HEADER_BYTES, 0))
        if os.fstat(fd).st_nlink and salt is not None:
            return Segment(fd, found[-1], salt)
        os.close(fd)
        if salt is None:
            return None
    return None


def make(ring: str, number: int, spool_id: bytes) -> None:
    """Make a segment, whole, unless another writer has."""
    salt = int.from_bytes(os.urandom(4), "little")
    fields = SEGMENT_HEADER.pack(
        SEGMENT_MAGIC, 1, HEADER_BYTES, 0, 0, salt, spool_id, number, time.time_ns() // 1_000_000
    )
    temporary = f"{ring}/{os.getpid()}.tmp"
    with open(temporary, "xb") as file:
        copy = fields + struct.pack("<I4x", crc32(fields))
        file.write(copy + bytes(COPIES_AT[1] - len(copy)) + copy)
    try:
        os.link(temporary, path_of(ring, number))
    except FileExistsError:
        pass
    os.unlink(temporary)


class Writer:
    """Appends to a ring, and goes on to the next segment."""

    def __init__(self, ring: str, spool_id: bytes, segment_bytes: int) -> None:
        self._ring = ring
        self._spool_id = spool_id
        self._segment_bytes = segment_bytes
        self._producer = int.from_bytes(os.urandom(8), "little")
        self._sequence = 0
        self._segment: Segment | None = None

    def append(self, message: str) -> None:
        """Append one event."""
        while self._segment is None or os.fstat(self._segment.fd).st_size >= self._segment_bytes:
            self._next()
        event = (time.time_ns() // 1_000_000, self._producer, self._sequence, message)
        data = frame(msgspec.msgpack.encode(event), self._segment.salt)
        assert os.write(self._segment.fd, data) == len(data)
        self._sequence += 1

    def _next(self) -> None:
        old, self._segment = self._segment, attach(self._ring)
        newest = max(numbers(self._ring), default=0)
        if self._segment is None or (old is not None and self._segment.number == old.number):
            make(self._ring, newest + 1, self._spool_id)
            if self._segment is not None:
                os.close(self._segment.fd)
            self._segment = attach(self._ring)
        if old is not None:
            os.close(old.fd)


def main(ring: str, spool_id: str, segment_bytes: str) -> None:
    """Append what stdin says."""
    writer = Writer(ring, bytes.fromhex(spool_id), int(segment_bytes))
    for line in sys.stdin:
        writer.append(line.rstrip("\n"))
        print("appended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
