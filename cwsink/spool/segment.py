"""One file of the ring: its header, how it is made, and a writer's hold on it.

```text
offset  size  field               little-endian
     0     8  magic               "CWSINKSG"
     8     2  layout major        1
    10     2  header length       576; frames begin there
    12     4  compatible flags    unknown bits may be ignored
    16     4  incompatible flags  an unknown bit: leave the segment alone, and say so
    20     4  salt                seeds both checksums of every frame in this segment
    24    16  spool id
    40     8  segment number
    48     8  creation time       ms since 1970 UTC
    56     4  header CRC          zlib.crc32 of bytes 0..56
    60     4  zero
    64   448  gap                 zero
   512    64  second copy         bytes 0..64 once more
   576        frames, one after the other (cwsink.spool.frame)
```

No frame can be read without the salt. So the header stands there twice, in two sectors of the disk: if one of them is
damaged, readers and writers take the other copy, and no record is lost.

A segment is named by its number, `0000000001.seg`. It is written whole into a
temporary file and `link`ed to its name: link fails if the name exists, so of
several writers that rotate at once one wins and the others find its segment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Mapping
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from cwsink.spool import descriptors, disk, files

MAGIC: Final = b"CWSINKSG"
LAYOUT_MAJOR: Final = 1
KNOWN_INCOMPATIBLE_FLAGS: Final = 0
_FIELDS: Final = Struct("<8sHHIII16sQQ")
_CRC: Final = Struct("<I4x")
COPY_BYTES: Final = _FIELDS.size + _CRC.size
# A disk writes and loses whole sectors, of 512 bytes or more. 4,096 would keep the copies apart on each disk, but is as
# much as the smallest segment may hold; and where a page of the file is lost as a whole, the first records are, too.
SECOND_COPY_AT: Final = 512
HEADER_BYTES: Final = SECOND_COPY_AT + COPY_BYTES

# The header has 64 bits for the number; what does not fit is not a segment.
_NAME: Final = re.compile(r"(\d{10,18})\.seg", re.ASCII)
# A directory, a symbolic link, a FIFO or a device that nobody reads, a file of another user.
_NOT_A_FILE: Final = frozenset({errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM})

# What a leader in a thread needs about a third of a second for. New records do not wait for more than that:
# the first writer after a start begins a segment, which the leader reads beside the backlog.
BACKLOG_BYTES: Final = 8 * 1024 * 1024

# Each try can only fail because the segment was removed that very moment. Bounded all the same:
# whatever state the directory is in, an append must not spin.
_ATTACH_TRIES: Final = 100


class SegmentKey(NamedTuple):
    """Which segment: its number, and the salt that tells it from a namesake in a spool made anew."""

    number: int
    salt: int


class Header(NamedTuple):
    """A segment's header as far as readers need it.

    Attributes:
        key: the segment.
        length: where frames begin.
        readable: False for a foreign layout.
    """

    key: SegmentKey
    length: int
    readable: bool


def path_of(ring: str, number: int) -> str:
    """Return the path of segment `number`."""
    return f"{ring}/{number:010d}.seg"


def numbers(ring: str) -> list[int]:
    """Return the numbers of the segments that exist, oldest first; empty if the ring is gone."""
    try:
        names = os.listdir(ring)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def pending_bytes(ring: str, done: Mapping[int, int]) -> int:
    """Return the bytes behind the offset that `done` has for each segment (0 if it has none)."""
    pending = 0
    for number in numbers(ring):
        with contextlib.suppress(FileNotFoundError):
            pending += os.lstat(path_of(ring, number)).st_size - done.get(number, 0)
    return pending


def open_file(ring: str, number: int, flags: int) -> int | None:
    """Open segment `number`. None: what has its name is not a file we may open, and none of our business.

    Raises:
        FileNotFoundError: it is gone.
        OSError: EMFILE and so on.
    """
    try:
        fd = descriptors.acquire(path_of(ring, number), flags)
    except OSError as error:
        if error.errno in _NOT_A_FILE:
            return None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    descriptors.release(fd, descriptors.incarnation())
    return None


def encode_header(key: SegmentKey, spool_id: bytes, created_ms: int) -> bytes:
    """Return a segment's header with both copies, `HEADER_BYTES` long."""
    fields = _FIELDS.pack(MAGIC, LAYOUT_MAJOR, HEADER_BYTES, 0, 0, key.salt, spool_id, key.number, created_ms)
    copy = fields + _CRC.pack(crc32(fields))
    return copy.ljust(SECOND_COPY_AT, b"\0") + copy


def decode_header(data: bytes) -> Header | None:
    """Read the first copy of a header that is intact; None if neither is, or if the file ends inside the header.

    A file that ends there (a power failure, or somebody who cut it) holds no frame. A writer that appended to it would
    append before the offset at which readers begin.
    """
    for start in (0, SECOND_COPY_AT):
        copy = data[start : start + COPY_BYTES]
        if len(copy) < COPY_BYTES or _CRC.unpack_from(copy, _FIELDS.size)[0] != crc32(copy[: _FIELDS.size]):
            continue
        magic, major, length, _, incompatible, salt, _, number, _ = _FIELDS.unpack_from(copy)
        if magic != MAGIC:
            continue
        readable = major == LAYOUT_MAJOR and not incompatible & ~KNOWN_INCOMPATIBLE_FLAGS and length >= HEADER_BYTES
        return Header(SegmentKey(number, salt), length, readable) if len(data) >= HEADER_BYTES or not readable else None
    return None


def read_header(fd: int) -> Header | None:
    """Return the header of an open segment; None if both copies are damaged."""
    return decode_header(os.pread(fd, HEADER_BYTES, 0))


def create(ring: str, number: int, spool_id: bytes, reserve_bytes: int) -> bool:
    """Make segment `number`, its blocks reserved. False: another writer was first.

    Raises:
        OSError: ENOSPC, EDQUOT and so on; nothing is left behind, unless another writer has it already.
    """
    temporary = f"{ring}/{os.getpid()}-{os.urandom(8).hex()}{files.TEMPORARY_SUFFIX}"
    fd = descriptors.acquire(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        salt = int.from_bytes(os.urandom(4), "little")
        header = encode_header(SegmentKey(number, salt), spool_id, int(time.time() * 1000))
        if os.write(fd, header) != len(header):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temporary)
        try:
            os.link(temporary, path_of(ring, number))
        except FileExistsError:
            return False
        try:
            # Only now: of many writers that rotate at once one reserves, not all for a moment.
            disk.reserve(fd, reserve_bytes)
        except OSError:
            if descriptors.try_lock(fd, exclusive=True):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path_of(ring, number))
            raise
        return True
    finally:
        descriptors.release(fd, descriptors.incarnation())
        with contextlib.suppress(OSError):
            os.unlink(temporary)


class AttachedSegment:
    """A writer's hold on a segment: an O_APPEND descriptor with a shared lock.

    The descriptor is closed when the last reference goes. A thread that is between
    looking up the segment and `os.write` holds a reference, so the descriptor
    number cannot be reused under it, and descriptor and salt always belong together.
    (Rejected: swapping the descriptor with dup2 under a fixed number. A thread in flight
    then writes a frame salted for the old segment into the new one, where it is noise.)
    """

    __slots__ = ("_incarnation", "end_seen", "fd", "key", "salt")

    def __init__(self, fd: int, key: SegmentKey, end_seen: int) -> None:
        self.fd = fd
        self.key = key
        self.salt = key.salt
        self.end_seen = end_seen  # the file's size when it was last looked at
        self._incarnation = descriptors.incarnation()

    def __del__(self) -> None:
        descriptors.release(self.fd, self._incarnation)


def attach_newest(ring: str) -> AttachedSegment | None:
    """Attach to the newest readable segment, or None if there is none. Raises OSError.

    If the newest has another layout version, is damaged or is no file the answer is None too: the
    writer then makes a segment of its own after it.
    """
    for _ in range(_ATTACH_TRIES):
        newest = numbers(ring)[-1:]
        if not newest:
            return None
        try:
            fd = open_file(ring, newest[0], os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            continue
        if fd is None:
            return None
        attached = AttachedSegment(fd, SegmentKey(newest[0], 0), 0)
        # The leader holds the exclusive lock only while it removes a segment: look again.
        if not descriptors.try_lock(fd, exclusive=False):
            continue
        status = os.fstat(fd)
        # By its name, not by st_nlink: whoever was killed while it made a segment has left a second link to it.
        try:
            if not os.path.samestat(os.lstat(path_of(ring, newest[0])), status):
                continue
        except FileNotFoundError:
            continue
        header = read_header(fd)
        if header is None or not header.readable or header.key.number != newest[0]:
            return None
        attached.key, attached.salt = header.key, header.key.salt
        attached.end_seen = status.st_size
        return attached
    return None
