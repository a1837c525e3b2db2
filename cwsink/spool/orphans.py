"""Spools nobody looks after: records are pending, no process leads, and none that logs is left.

So it is when a host or container got another name, when its configuration changed (group, stream, region and
endpoint each make a spool of their own), or when what logged there is just not running. The kernel
tells, by the locks that processes hold; never by pids, which lie in containers.

Whoever sends an orphan takes its lease like any leader, so nothing is lost or sent twice if
its workers come back at that very moment.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from cwsink.spool import cursor, descriptors, frame, heartbeat, lease, record, segment, survey
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.reader import OpenSegment, open_segments


def is_orphan(directory: SpoolDirectory) -> bool:
    """Tell whether records are pending that nobody here will send. Raises OSError."""
    return is_left_alone(directory) and survey.has_pending(directory)


def is_left_alone(directory: SpoolDirectory) -> bool:
    """Tell whether no process leads the spool, and none that has appended to it is left."""
    return not is_led(directory) and not is_attached(directory)


def is_led(directory: SpoolDirectory) -> bool:
    """Tell whether a process leads it, on this host or on another one."""
    return lease.is_taken(directory) or heartbeat.elsewhere(directory) is not None


def is_attached(directory: SpoolDirectory) -> bool:
    """Tell whether a process that has appended lives (cwsink.spool.attachment); True if it cannot be told.

    The lock is got only if nobody has it, and given back at once.
    """
    try:
        return descriptors.is_locked(directory.attached_lock, shared=True)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def last_append(directory: SpoolDirectory) -> float | None:
    """Return when a record was appended last, in seconds since 1970; None if never."""
    times = []
    for number in segment.numbers(directory.ring):
        with contextlib.suppress(FileNotFoundError):
            times.append(os.stat(segment.path_of(directory.ring, number)).st_mtime)
    return max(times, default=None)


def give_back(directory: SpoolDirectory) -> None:
    """Give the disk blocks of an emptied spool back; never raises. The caller holds the lease.

    Its last segment stays, as the end of what was settled, but an orphan may never be needed again, and
    there may be one for each container that ever ran: with a segment's reservation each, they would fill the disk.
    A writer that has it open, or opens it now, keeps us out by its lock.
    """
    with contextlib.suppress(OSError):
        committed = cursor.read(directory.cursor).committed()
        for number in segment.numbers(directory.ring):
            if (fd := segment.open_file(directory.ring, number, os.O_RDWR)) is None:
                continue
            with contextlib.closing(OpenSegment(fd, number)) as opened:
                size = opened.size()
                if opened.finalise() and opened.is_final and size <= committed.get(opened.key, 0) == opened.size():
                    opened.hollow(size)
                    os.ftruncate(fd, size)  # the same size: what was reserved behind it goes


@dataclass
class Pending:
    """What waits in a spool: how much, and of what time (ms since 1970, of the events)."""

    records: int = 0
    data_bytes: int = 0
    oldest_ms: int | None = None
    newest_ms: int | None = None

    def add(self, timestamp_ms: int | None, size_bytes: int) -> None:
        """Count a record."""
        self.records += 1
        self.data_bytes += size_bytes
        if timestamp_ms is not None:
            self.oldest_ms = timestamp_ms if self.oldest_ms is None else min(self.oldest_ms, timestamp_ms)
            self.newest_ms = timestamp_ms if self.newest_ms is None else max(self.newest_ms, timestamp_ms)


def pending(directory: SpoolDirectory) -> Pending:
    """Count what waits. Only looks. Raises OSError."""
    found = Pending()
    committed = cursor.read(directory.cursor).committed()
    for opened in open_segments(directory):
        opened.offset = committed.get(opened.key, opened.offset)
        while (block := opened.read()) is not None:
            for each in block.frames:
                if each.kind == frame.EVENT:
                    found.add(record.timestamp_of(each.payload), frame.HEADER_BYTES + len(each.payload))
    return found
