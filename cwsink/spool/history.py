"""The history: segments that are delivered, kept for a while, and what became of their records.

```text
history/0000000001.seg      a segment, as it was in the ring
history/0000000001.jsonl    the requests whose newest record lies in segment 1, a line each (cwsink.flusher.journal)
```

With `keep_delivered` the leader moves a segment here instead of unlinking it. That is one rename, so a kill leaves the
segment in one of the two places. If an idle writer has the segment open, its blocks are about to be given back. So what
is delivered of it is copied first, and the rest when the writer has ended.

The line about a request is written after its answer and before its commit. If the leader is killed in between, the next
one sends the request again and writes a second line, and there are two events in CloudWatch, too. If it is killed
before the line, the request is sent again as well. So each delivered record has a line, unless the disk was full.

The history never costs a record that is pending. It is no part of `spool_max_bytes`. The leader leaves the ring as much
free space on the disk as that may still need. Where a disk is full all the same, a writer or the leader removes the
oldest of the history before anything is evicted or refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.interruption import suppress
from cwsink.spool import disk, files, open_directory, segment
from cwsink.spool.budget import usage_of, used_bytes
from cwsink.spool.descriptors import Opened
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.open_directory import HISTORY, RING
from cwsink.spool.open_segment import OpenSegment

# How often a leader looks for what is too old.
_PRUNE_SECONDS: Final = 10.0
# The same when it begins, and after it has moved a segment. To look takes a moment for each segment that is kept.
_PRUNE_SOON_SECONDS: Final = 1.0
_COPY_BYTES: Final = 1024 * 1024
# The least that is removed for a disk that is full: what one segment more takes by default.
_LEAST_FREED_BYTES: Final = 8 * 1024 * 1024
# A journal is hardly ever longer than its segment. One that is was not written by a leader.
_MOST_JOURNAL_BYTES: Final = 256 * 1024 * 1024
_TO_COPY: Final = os.O_RDWR | os.O_CREAT
_NAME: Final = re.compile(r"(\d{10,18})\.(seg|jsonl)", re.ASCII)


class Kept(NamedTuple):
    """What the history holds of one segment: its number, the disk space that it takes, and since when it is there."""

    number: int
    used_bytes: int
    since: float


class History:
    """The history of a spool, as its leader keeps it."""

    def __init__(self, directory: SpoolDirectory, keep_seconds: float, most_bytes: int, ring_bytes: int) -> None:
        """Begin.

        Args:
            directory: the spool.
            keep_seconds: how long a segment is kept.
            most_bytes: how much disk space all of them may take.
            ring_bytes: how much the ring may take.
        """
        self._directory = directory
        self._path = directory.history
        self._keep_seconds = keep_seconds
        self._most_bytes = most_bytes
        self._ring_bytes = ring_bytes
        self._prune_at = time.monotonic() + _PRUNE_SOON_SECONDS

    def take(self, opened: OpenSegment) -> None:
        """Move a segment here that is final and settled to its end. Raises OSError: it is still in the ring."""
        name, size = segment.name_of(opened.key.number), opened.size()
        self._prune_at = min(self._prune_at, time.monotonic() + _PRUNE_SOON_SECONDS)
        try:
            with open_directory.at(self._directory.path) as spool:
                spool.make_directory(HISTORY)
                with spool.within(RING) as ring, spool.within(HISTORY) as held:
                    if opened.key.number in segment.numbers_in(held) and self.save(opened, size):
                        ring.remove(name)
                        return
                    # A writer has reserved more of the disk than it has written.
                    os.ftruncate(opened.fd, size)
                    ring.move(name, held)
        except OSError as error:
            report("history", f"cannot keep {name} in {self._path}: {error.strerror}. Its records are delivered.")
            segment.remove(self._directory.ring, opened.key.number)

    def save(self, opened: OpenSegment, end: int) -> bool:
        """Copy a segment up to `end`, where a frame ends, as far as that is not done. Never raises.

        Returns:
            False if another segment of this number is here. If the disk is full, the copy is shorter.
        """
        with suppress(OSError), open_directory.at(self._directory.path) as spool:
            spool.make_directory(HISTORY)
            with spool.within(HISTORY) as held, held.opened(segment.name_of(opened.key.number), _TO_COPY) as file:
                at = os.fstat(file.fd).st_size
                header = segment.read_header(file.fd)
                if at and (header is None or header.key != opened.key):
                    return False
                while at < end and (data := disk.read(opened.fd, min(_COPY_BYTES, end - at), at)):
                    at += os.pwrite(file.fd, data, at)
        return True

    @contextlib.contextmanager
    def journal(self, number: int) -> Iterator[Opened | None]:
        """Open the journal of segment `number`, for `note`. None: it cannot be opened, so nothing is noted."""
        try:
            with open_directory.at(self._directory.path) as spool:
                spool.make_directory(HISTORY)
                with spool.within(HISTORY) as held:
                    file = held.opened(f"{number:010d}.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            self._say_not_noted(error)
            yield None
            return
        with file:
            yield file

    def note(self, file: Opened, line: bytes) -> None:
        """Append a line to a journal. Never raises."""
        try:
            size = os.fstat(file.fd).st_size
            if size and os.pread(file.fd, 1, size - 1) != b"\n":
                line = b"\n" + line  # a leader was killed while it wrote
            if os.write(file.fd, line) != len(line) and give_way(self._directory):
                os.write(file.fd, b"\n" + line)
        except OSError as error:
            if error.errno not in disk.NO_ROOM or not give_way(self._directory):
                self._say_not_noted(error)
                return
            with suppress(OSError):
                os.write(file.fd, line)

    def _say_not_noted(self, error: OSError) -> None:
        why = f"{error.strerror}{disk.limit_of(error)}"
        report("journal", f"cannot write to {self._path}: {why}. Delivery goes on, and is not noted there.")

    def prune(self) -> None:
        """Remove what is too old, too much, or in the way of the ring; now and then, and soon after a segment came."""
        now = time.monotonic()
        if now < self._prune_at:
            return
        self._prune_at = now + _PRUNE_SECONDS
        with suppress(OSError):
            held = kept(self._directory)
            excess = sum(each.used_bytes for each in held) - self._most_bytes
            excess = max(excess, self._missing_bytes()) if held else 0
            oldest = time.time() - self._keep_seconds
            for each in held:
                if excess > 0 or each.since < oldest:
                    _remove(self._directory, each.number)
                    excess -= each.used_bytes

    def _missing_bytes(self) -> int:
        """Return how much the disk lacks for the ring to take all that it may."""
        with open_directory.at(self._path) as held:
            free = disk.free_bytes(held.fd)
        return 0 if free is None else self._ring_bytes - used_bytes(self._directory.ring) - free


def of(directory: SpoolDirectory, config: SinkConfig) -> History | None:
    """Return the history that a leader with this config keeps; None if it keeps none."""
    if config.keep_delivered is None:
        return None
    return History(directory, config.keep_delivered, config.keep_delivered_bytes, config.spool_max_bytes)


def kept(directory: SpoolDirectory) -> list[Kept]:
    """Return what the history holds, oldest first; not the notes on what is still in the ring. Raises OSError."""
    found: dict[int, Kept] = {}
    with suppress(FileNotFoundError, NotADirectoryError), open_directory.at(directory.history) as held:
        in_ring = set(segment.numbers(directory.ring))
        for name in held.names():
            if (match := _NAME.fullmatch(name)) is None or int(match[1]) in in_ring:
                continue
            with suppress(FileNotFoundError):
                status, number = held.status(name), int(match[1])
                # A rename sets this time of a segment, and a line that of a journal. Nothing else does.
                _, size, since = found.get(number, (number, 0, 0.0))
                found[number] = Kept(number, size + usage_of(status), max(since, status.st_ctime))
    return [found[number] for number in sorted(found)]


def give_way(directory: SpoolDirectory, size_bytes: int = 0) -> bool:
    """Remove the oldest of the history, because the disk is full. Tell whether there was any. Never raises."""
    size_bytes, freed = max(size_bytes, _LEAST_FREED_BYTES), 0
    with suppress(OSError):
        for each in kept(directory):
            if freed >= size_bytes:
                break
            _remove(directory, each.number)
            freed += each.used_bytes
    return freed > 0


def _remove(directory: SpoolDirectory, number: int) -> None:
    """Remove what is kept of a segment, its notes last. Raises OSError."""
    for name in (segment.name_of(number), f"{number:010d}.jsonl"):
        with suppress(FileNotFoundError):
            files.remove(f"{directory.history}/{name}")


def lines(directory: SpoolDirectory) -> Iterator[bytes]:
    """Yield the lines of all journals, oldest segment first. Raises OSError."""
    names: list[str] = []
    with suppress(FileNotFoundError, NotADirectoryError), open_directory.at(directory.history) as held:
        names = held.names()
    for number in sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match and match[2] == "jsonl"):
        with suppress(FileNotFoundError):
            yield from files.lines(f"{directory.history}/{number:010d}.jsonl", _MOST_JOURNAL_BYTES)


def segments(directory: SpoolDirectory) -> list[int]:
    """Return the numbers of all segments, in history and in the ring, oldest first. Raises OSError."""
    return sorted({*segment.numbers(directory.history), *segment.numbers(directory.ring)})


def opened(directory: SpoolDirectory, number: int) -> Iterator[OpenSegment]:
    """Open a segment to be read, wherever it is; if it is in both places, what was copied of it, and then the rest.

    A leader may move it meanwhile, always from the ring. So the ring is looked at first.
    """
    found = []
    try:
        for place in (directory.ring, directory.history):
            with suppress(FileNotFoundError, NotADirectoryError):
                if (each := OpenSegment.at(place, number, os.O_RDONLY)) is not None:
                    found.append(each)
        if len(found) == 2 and found[0].key == found[1].key:
            found[0].offset = max(found[0].begin, found[1].size())
        yield from reversed(found)
    finally:
        for each in found:
            each.close()
