"""Orphans: spools that nobody looks after. Records are pending, no process leads, and none that logs there is left.

That happens when a host or container got another name, when its configuration changed (each group, stream, region and
endpoint makes a spool of its own), or when the application that logged there is just not running. Pids cannot tell,
because a pid in one container says nothing in another one. The locks tell that processes hold.

A process that sends an orphan takes its lease, like any leader. So nothing is lost or sent twice if the application
comes back at that very moment.
"""

from __future__ import annotations

import time
from typing import Final

from cwsink.spool import disk, heartbeat, lease, survey
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory

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
