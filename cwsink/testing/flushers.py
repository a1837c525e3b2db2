"""End the flushers that cwsink has started by itself below a directory (public).

A test's flusher would go by itself a few seconds after the test, and might write into a directory that is being
removed. Who removes the file of its lock tells it to end; the lock's own descriptor tells when it has. And the test's
own process lets go of what it has logged to: at its end it would else see to it that all of that is delivered.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import Final

_POLL_SECONDS: Final = 0.01


def end_flushers(root: Path, timeout_seconds: float = 30.0) -> None:
    """Have every flusher end that serves spools in `root` or below it, and wait until it has.

    This process lets go of these spools, too. What is not delivered by then stays there. A spool that is logged into
    afterwards gets a new flusher.

    Raises:
        TimeoutError: one does not end in time.
    """
    # Not imported: who logs has loaded it.
    if (writer := sys.modules.get("cwsink.frontends.writer")) is not None:
        writer.forget_below(str(root.absolute()))
    locks = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in root.rglob("flusher-*.lock")]
    try:
        for path in root.rglob("flusher-*.lock"):
            path.unlink(missing_ok=True)
        until = time.monotonic() + timeout_seconds
        while not all(map(_is_free, locks)):
            if time.monotonic() >= until:
                raise TimeoutError(f"a flusher of {root} has not ended within {timeout_seconds:g} s")
            time.sleep(_POLL_SECONDS)
    finally:
        for fd in locks:
            os.close(fd)


def _is_free(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
