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
import time
from typing import Final

from cwsink.spool import cursor, heartbeat, lease, segment, survey
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.reader import OpenSegment

# A process that may lead tries to take the lease this often; twice that gives it time to succeed.
_TAKEOVER_SECONDS: Final = 2 * lease.TRY_SECONDS
_POLL_SECONDS: Final = 0.05


def is_orphan(directory: SpoolDirectory) -> bool:
    """Tell whether records are pending that nobody here will send. Raises OSError."""
    return is_left_alone(directory) and survey.has_pending(directory)


def is_left_alone(directory: SpoolDirectory) -> bool:
    """Tell whether no process leads the spool, and none that has appended to it is left."""
    return not is_led(directory) and not is_anyone_attached(directory)


def is_led(directory: SpoolDirectory) -> bool:
    """Tell whether a process leads it, on this host or on another one."""
    return lease.is_taken(directory) or heartbeat.elsewhere(directory) is not None


def left_behind(directory: SpoolDirectory) -> int:
    """Return how many records wait with nobody to send them, after a leader has ended.

    Another process may be about to take over: it is waited for, for a moment.
    """
    until = time.monotonic() + _TAKEOVER_SECONDS
    while survey.has_pending(directory):
        if is_led(directory):
            return 0
        if time.monotonic() >= until or not is_anyone_attached(directory):
            return survey.survey(directory).pending
        time.sleep(_POLL_SECONDS)
    return 0


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
