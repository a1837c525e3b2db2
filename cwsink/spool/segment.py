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
damaged, readers and writers take the other copy, and no record is lost. If the disk cannot read the page in which both
stand, both count as damaged.

A segment is named by its number, `0000000001.seg`. Several writers may want to make the same one at once. Each writes
its header into a temporary file and `link`s that to the name. `link` fails if the name exists, so one writer wins, and
the others find its segment.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Mapping
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from cwsink.interruption import suppress
from cwsink.spool import descriptors, disk, files, open_directory
from cwsink.spool.open_directory import OpenDirectory

MAGIC: Final = b"CWSINKSG"
LAYOUT_MAJOR: Final = 1
_FIELDS: Final = Struct("<8sHHIII16sQQ")
_CRC: Final = Struct("<I4x")
COPY_BYTES: Final = _FIELDS.size + _CRC.size
# A disk writes and loses whole sectors, of 512 bytes or more. 4,096 would keep the copies apart on each disk, but is as
# much as the smallest segment may hold; and where a page of the file is lost as a whole, the first records are, too.
SECOND_COPY_AT: Final = 512
HEADER_BYTES: Final = SECOND_COPY_AT + COPY_BYTES

# The header has 64 bits for the number, so a file whose number needs more is no segment.
_NAME: Final = re.compile(r"(\d{10,18})\.seg", re.ASCII)
# Numbers are counted from 1, so no ring gets as far as this. A file with such a name is a stray (of somebody who copied
# or touched one). If it counted, the next number might need a digit more, and no reader would see that segment. So it
# counts only if its own header has that number, too.
_DUBIOUS_NUMBER: Final = 10**12
# Errors of opening a directory, a symbolic link, a FIFO, a device, or a file of another user.
_NOT_A_FILE: Final = frozenset(
    {errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EACCES, errno.EPERM}
)

# A leader sends this much in about a third of a second. New records do not wait for a larger backlog: the first writer
# after a start begins a segment for them, and the leader reads it in turn with the backlog (reader.FreshLane).
BACKLOG_BYTES: Final = 8 * 1024 * 1024

# The least that is worth reserving: a block.
_LEAST_RESERVED_BYTES: Final = 4096

# A try to attach fails only if the segment was removed at that very moment. The tries are limited all the same, because
# an append must not spin, whatever state the directory is in.
_ATTACH_TRIES: Final = 100
# What a writer has appended in so long is appended to the next spool if somebody removes this one.
_SALVAGED_NS: Final = 1_000_000_000


class SegmentKey(NamedTuple):
    """The identity of a segment: its number, and its salt, because a spool that was made anew has the same numbers."""

    number: int
    salt: int


class Header(NamedTuple):
    """A segment's header as far as readers need it.

    Attributes:
        key: the segment.
        length: where frames begin.
        readable: False if the layout is of another version.
    """

    key: SegmentKey
    length: int
    readable: bool


def name_of(number: int) -> str:
    """Return the name of segment `number`."""
    return f"{number:010d}.seg"


def path_of(ring: str, number: int) -> str:
    """Return the path of segment `number`, for messages and for `files`."""
    return f"{ring}/{name_of(number)}"


def numbers(ring: str) -> list[int]:
    """Return the numbers of the segments that exist, oldest first; empty if the ring is gone. Raises OSError."""
    try:
        with open_directory.at(ring) as held:
            return numbers_in(held)
    except (FileNotFoundError, NotADirectoryError):
        return []


def numbers_in(ring: OpenDirectory) -> list[int]:
    """Return the numbers of the segments in a ring that is open, oldest first. Raises OSError."""
    found = sorted(int(match[1]) for name in ring.names() if (match := _NAME.fullmatch(name)))
    while found and found[-1] >= _DUBIOUS_NUMBER and not _is_numbered(ring, found[-1]):
        found.pop()
    return found


def statuses(ring: str) -> dict[int, os.stat_result]:
    """Return the status of each segment that exists, oldest first; empty if the ring is gone. Raises OSError."""
    found = {}
    with suppress(FileNotFoundError, NotADirectoryError), open_directory.at(ring) as held:
        for number in numbers_in(held):
            with suppress(FileNotFoundError):
                found[number] = held.status(name_of(number))
    return found


def _is_numbered(ring: OpenDirectory, number: int) -> bool:
    """Tell whether the header of a segment has the number of its name."""
    with suppress(OSError), ring.opened(name_of(number), os.O_RDONLY) as file:
        header = read_header(file.fd)
        return header is not None and header.key.number == number
    return False


def is_named(ring: str, number: int, status: os.stat_result) -> bool:
    """Tell whether the name of segment `number` leads to the open file with this status. Raises OSError."""
    return files.is_named(path_of(ring, number), status)


def is_in_place(ring: str, number: int, status: os.stat_result) -> bool:
    """Tell whether a leader can find this open segment by its name. It follows no link. Raises OSError."""
    is_behind_link = files.is_link(ring) or files.is_link(ring.rpartition("/")[0])
    return is_named(ring, number, status) and not is_behind_link


def pending_bytes(ring: str, settled: Mapping[SegmentKey, int]) -> int:
    """Return how many bytes are not settled. Of a segment that is not in `settled` nothing is."""
    done = {key.number: end for key, end in settled.items()}
    return sum(status.st_size - done.get(number, 0) for number, status in statuses(ring).items())


def has_pending(ring: str, settled: Mapping[SegmentKey, int]) -> bool:
    """Tell whether a segment has more than its header and what is settled, by its size alone."""
    done = {key.number: end for key, end in settled.items()}
    return any(status.st_size > max(HEADER_BYTES, done.get(number, 0)) for number, status in statuses(ring).items())


def opened(ring: str, number: int, flags: int) -> descriptors.Opened | None:
    """Open segment `number` for a `with` block. None: its name belongs to what is no regular file, or not ours.

    Raises:
        FileNotFoundError: it is gone.
        OSError: EMFILE and so on.
    """
    with open_directory.at(ring) as held:
        try:
            return held.opened(name_of(number), flags)
        except OSError as error:
            if error.errno in _NOT_A_FILE:
                return None
            raise


def remove(ring: str, number: int) -> None:
    """Unlink segment `number`, unless another process has done it. Raises OSError."""
    with suppress(FileNotFoundError):
        files.remove(path_of(ring, number))


def sync(ring: str) -> None:
    """Make all segments and their names durable against a crash of the host. Raises OSError."""
    with open_directory.at(ring) as held:
        for number in numbers_in(held):
            with suppress(FileNotFoundError), held.opened(name_of(number), os.O_RDONLY) as file:
                disk.sync(file.fd)
        held.sync()


def encode_header(key: SegmentKey, spool_id: bytes, created_ms: int) -> bytes:
    """Return a segment's header with both copies, `HEADER_BYTES` long. A clock before 1970 counts as 1970."""
    created_ms = max(0, created_ms)
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
        readable = major == LAYOUT_MAJOR and not incompatible and length >= HEADER_BYTES
        return Header(SegmentKey(number, salt), length, readable) if len(data) >= HEADER_BYTES or not readable else None
    return None


def read_header(fd: int, *, patience_seconds: float = 0.0) -> Header | None:
    """Return the header of an open segment; None if both copies are damaged, or their page cannot be read."""
    return decode_header(disk.read(fd, HEADER_BYTES, 0, patience_seconds=patience_seconds))


def create(ring: str, number: int, spool_id: bytes, reserve_bytes: int, *, or_less: bool = False) -> bool:
    """Make segment `number` and reserve its disk blocks. False: another writer was first.

    Args:
        ring: the directory.
        number: of the segment.
        spool_id: of the spool.
        reserve_bytes: how much to reserve.
        or_less: reserve as much of it as there is, or nothing, if the disk has no room for all.

    Raises:
        OSError: ENOSPC, EDQUOT and so on. The segment is removed again, unless another writer has opened it already.
    """
    salt = int.from_bytes(os.urandom(4), "little")
    header = encode_header(SegmentKey(number, salt), spool_id, int(time.time() * 1000))
    name = name_of(number)
    with open_directory.at(ring) as held, held.prepared(name, header) as (file, temporary):
        try:
            held.link(temporary, name)
        except FileExistsError:
            return False
        try:
            # Only after the link: many writers may rotate at once, and only the one that wins is to reserve blocks.
            _reserve(file.fd, reserve_bytes, or_less)
        except OSError:
            if descriptors.try_lock(file.fd, exclusive=True):
                with suppress(FileNotFoundError):
                    held.remove(name)
            raise
        return True


def _reserve(fd: int, size_bytes: int, or_less: bool) -> None:
    while size_bytes >= _LEAST_RESERVED_BYTES:
        try:
            disk.reserve(fd, size_bytes)
        except OSError as error:  # noqa: PERF203  # nearly always the first try succeeds
            # EFBIG: this process may not make a file as large as that (RLIMIT_FSIZE), so it never gets more.
            if error.errno != errno.EFBIG and not (or_less and error.errno in disk.NO_ROOM):
                raise
            size_bytes //= 2
        else:
            return


class AttachedSegment:
    """A segment as a writer has it open: an O_APPEND descriptor with a shared lock.

    One thread may rotate while another one has chosen the segment and has not written yet. That thread must not find
    its descriptor closed, or the number given to another file. So the descriptor is closed only when the last reference
    to this object goes, and that thread still has one: descriptor and salt always belong together. (Rejected: to swap
    the file under a fixed descriptor number with dup2. That thread would write a frame with the old segment's salt into
    the new one, where no reader can prove it.)

    Somebody else may close the descriptor beneath us (a daemon closes all it inherits, the interpreter's end collects
    this object before one that still logs). Its number may be another file's by then. So whoever finds that out calls
    `abandon`: then nobody writes to that number or closes it.

    Attributes:
        fd: the descriptor; -1 once it is closed or abandoned, so that a write to it fails.
        key, salt: the segment.
        end_seen: the file's size at the last check.
        saved_from: the file's size a second or two before the last check. If somebody removes the segment, what stands
            behind this offset is appended to the next one.
        is_full: nothing more may be appended, whatever the size: the file may not grow, or its disk fails.
        failures: how many appends in a row have failed (EIO).
    """

    __slots__ = ("_file", "_incarnation", "_mark", "end_seen", "failures", "fd", "is_full", "key", "salt", "saved_from")

    def __init__(self, file: descriptors.Opened, key: SegmentKey) -> None:
        """Take over an open file."""
        self._incarnation = descriptors.incarnation()
        self._file = descriptors.file_of(os.fstat(file.fd))
        self.key = key
        self.salt = key.salt
        self.is_full = False
        self.failures = 0
        self.fd = file.keep()
        self.begin(0)

    def begin(self, end_seen: int) -> None:
        """Note the file's size before the first record."""
        self.end_seen = self.saved_from = end_seen
        self._mark = time.time_ns(), end_seen

    def checked(self, end_seen: int, now_ns: int) -> None:
        """Note the file's size at a check."""
        self.end_seen = end_seen
        marked_at_ns, mark = self._mark
        if not marked_at_ns <= now_ns < marked_at_ns + _SALVAGED_NS:
            # A writer that logs rarely checks rarely, too. What it wrote before is older than a second.
            is_old = now_ns > marked_at_ns + 3 * _SALVAGED_NS
            self.saved_from, self._mark = (end_seen if is_old else mark), (now_ns, end_seen)

    def status(self) -> os.stat_result | None:
        """Return the file's status now; None if the descriptor was closed by somebody else."""
        try:
            status = os.fstat(self.fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return None
        return status if descriptors.file_of(status) == self._file else None

    def abandon(self) -> None:
        """Do not use the descriptor any more, and do not close it: it is closed, or another file's."""
        self.fd = -1

    def __del__(self) -> None:
        # It was not made to its end, and has taken over nothing. Or the interpreter has ended (see `Opened.__del__`).
        try:
            fd, self.fd = self.fd, -1
            descriptors.release(fd, self._incarnation, self._file)
        except (AttributeError, TypeError):
            pass


def attach_newest(ring: str) -> AttachedSegment | None:
    """Attach to the newest segment. None if there is none that we can append to. Raises OSError.

    That is so if there is no segment at all, or if the newest one has another layout, is damaged or is no file. The
    writer then makes a segment after it.
    """
    for _ in range(_ATTACH_TRIES):
        newest = numbers(ring)[-1:]
        if not newest:
            return None
        try:
            file = opened(ring, newest[0], os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            continue
        if file is None:
            return None
        fd, attached = file.fd, AttachedSegment(file, SegmentKey(newest[0], 0))
        # A leader or an evictor has the exclusive lock, and is about to remove the segment: look again.
        if not descriptors.try_lock(fd, exclusive=False):
            continue
        status = os.fstat(fd)
        # Was it removed before we had the lock? Its name tells. st_nlink does not: a writer that was killed while it
        # made the segment has left its temporary name, a second link, on the file.
        if not is_named(ring, newest[0], status):
            continue
        header = read_header(fd)
        if header is None or not header.readable or header.key.number != newest[0]:
            return None
        attached.key, attached.salt = header.key, header.key.salt
        attached.begin(status.st_size)
        return attached
    return None
