"""Ends the flushers that writers have started below a directory (public).

A flusher ends by itself, a few seconds after the last process that logs. A test removes its directory earlier, and the
flusher might still write there. Therefore `end_flushers` removes the file of the flusher's lock, which tells it to end,
and waits until the lock is free. The test's own process lets go of its spools, too. Otherwise it would wait for their
delivery when it ends.
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
    """End every flusher that serves spools in `root` or below it, and wait until they have ended.

    This process lets go of these spools, too. Records that are not delivered by then stay there. If a process logs into
    a spool afterwards, that spool gets a new flusher.

    Raises:
        TimeoutError: a flusher does not end in time.
    """
    # If this process has logged, the module is loaded. If not, there is nothing to let go of, and no need to import it.
    if (presence := sys.modules.get("cwsink.frontends.presence")) is not None:
        presence.this.forget_below(str(root.absolute()))
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
