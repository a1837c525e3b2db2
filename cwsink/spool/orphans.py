"""Orphans: spools that nobody looks after. Records are pending, no process leads, and none that logs there is left.

That happens when a host or container got another name, when its configuration changed (each group, stream, region and
endpoint makes a spool of its own), or when the application that logged there is just not running. Pids cannot tell,
because a pid in one container says nothing in another one. The locks tell that processes hold.

A process that sends an orphan takes its lease, like any leader. So nothing is lost or sent twice if the application
comes back at that very moment.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

from cwsink.interruption import suppress
from cwsink.spool import cursor, disk, heartbeat, lease, segment, survey
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.open_segment import OpenSegment

# A process that may lead tries to take the lease every `TRY_SECONDS`. Within twice that time it has succeeded.
_TAKEOVER_SECONDS: Final = 2 * lease.TRY_SECONDS
_POLL_SECONDS: Final = 0.05


def is_orphan(directory: SpoolDirectory) -> bool:
    """Tell whether records are pending in a spool that is left alone. Raises OSError."""
    return is_left_alone(directory) and survey.has_pending(directory)


def is_left_alone(directory: SpoolDirectory) -> bool:
    """Tell whether no process leads the spool, and no process that has appended to it lives."""
    return not is_led(directory) and not is_anyone_attached(directory)


def is_led(directory: SpoolDirectory) -> bool:
    """Tell whether a process leads the spool, on this host or on another one."""
    return lease.is_taken(directory) or heartbeat.elsewhere(directory) is not None


def left_behind(directory: SpoolDirectory) -> int:
    """Return how many records are pending that no process will send, after a leader has ended.

    Another process may be about to take over, so wait for that for a moment. Raises OSError: that cannot be told.
    """
    until = time.monotonic() + _TAKEOVER_SECONDS
    while survey.has_pending(directory):
        if is_led(directory):
            return 0
        if time.monotonic() >= until or not is_anyone_attached(directory):
            return survey.survey(directory, patience_seconds=disk.PATIENCE_SECONDS).pending
        time.sleep(_POLL_SECONDS)
    return 0


def give_back(directory: SpoolDirectory) -> None:
    """Give the disk blocks of a spool back in which all is settled, unless another process leads it. Never raises.

    The last segment of a spool stays, with the blocks that were reserved for it. There may be an orphan for each
    container that ever ran, and none of them may be needed again: their reserved blocks would fill the disk. If a
    writer has the segment open, or opens it now, its lock keeps us out.
    """
    claim = lease.Lease(directory)
    with contextlib.ExitStack() as stack, suppress(OSError):
        if not claim.try_acquire():
            return
        stack.callback(claim.release)
        committed = cursor.read(directory.cursor).committed()
        for number in segment.numbers(directory.ring):
            if (opened := OpenSegment.at(directory.ring, number, os.O_RDWR)) is None:
                continue
            with contextlib.closing(opened):
                size = opened.size()
                if opened.finalise() and opened.is_final and size <= committed.get(opened.key, 0) == opened.size():
                    opened.hollow(size)
                    os.ftruncate(
                        opened.fd, size
                    )  # the size stays the same; the blocks reserved behind it are given back
